"""The connection on which a sleeping worker is woken, and any worker hears of cancels."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import psycopg

from pgfifo._connections import AsyncLink, Pauses, Session, answered, brief

logger = logging.getLogger("pgfifo")

_CANCEL = "cancel "


class Listener:
    """Tells others that this worker sleeps, and hears when there is work.

    It is a help, not a need: while its connection is down, the worker polls.
    """

    def __init__(
        self,
        conninfo: str,
        actions: Iterable[str],
        woken: Callable[[], None],
        called: Callable[[str], None],
    ) -> None:
        """Prepare it; `connect` opens the connection.

        Args:
            conninfo: The database, with no transaction pooler in between.
            actions: What the worker serves; it is not woken for others.
            woken: Called in the event loop when there is work, or may be.
            called: Called there with a worker's id when something that it runs was cancelled.
        """
        self._conninfo = conninfo
        self._actions = frozenset(actions)
        self._woken = woken
        self._called = called
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._session: Session | None = None
        self._watched = -1
        self._asleep: frozenset[str] = frozenset()
        self._reconnecting: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Open the connection.

        Raises:
            psycopg.OperationalError: The server cannot be reached.
        """
        link = await AsyncLink.connect(self._conninfo, pooled=False, after=self._session)
        conn, self._session = link.conn, link.session
        try:
            conn.add_notify_handler(lambda told: self._hear(told.payload))
            async with answered(conn):
                await conn.execute("listen pgfifo")
        except BaseException:
            await conn.close()
            raise
        self._conn = conn
        self._watch(conn)

    async def fall_asleep(self, actions: Iterable[str]) -> bool:
        """Ask to be woken for these actions; true when that is news, and the worker has to look once more."""
        wanted = frozenset(actions)
        old, new = self._asleep - wanted, wanted - self._asleep
        if not (old or new) or not await self._say("select pgfifo.awake(%s)", old):
            return False
        if not await self._say("select pgfifo.sleeping(%s)", new):
            return False
        self._asleep = wanted
        return bool(new)

    async def wake_up(self) -> None:
        """Ask no longer to be woken."""
        asleep, self._asleep = self._asleep, frozenset()
        await self._say("select pgfifo.awake(%s)", asleep)

    async def close(self) -> None:
        """Close the connection."""
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.gather(self._reconnecting, return_exceptions=True)
        conn, self._conn = self._conn, None
        if conn is not None:
            self._unwatch()
            await conn.close()

    async def _say(self, query: str, actions: frozenset[str]) -> bool:
        """Call one of the two functions; false when the connection is down."""
        conn = self._conn
        if conn is None or not actions:
            return conn is not None
        self._unwatch()  # while a statement runs, psycopg watches the socket itself
        try:
            async with answered(conn):
                await conn.execute(query, (sorted(actions),))
        except psycopg.OperationalError as error:
            self._lose(conn, error)
            return False
        self._watch(conn)
        return True

    def _watch(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self._watched = conn.fileno()
        asyncio.get_running_loop().add_reader(self._watched, self._read, conn)

    def _unwatch(self) -> None:
        # By the number that was registered: a broken connection has none, and soon it is somebody else's.
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = -1

    def _read(self, conn: psycopg.AsyncConnection[Any]) -> None:
        try:
            conn.pgconn.consume_input()
            while (told := conn.pgconn.notifies()) is not None:
                self._hear(told.extra.decode(errors="replace"))
        except psycopg.OperationalError as error:
            self._lose(conn, error)

    def _hear(self, payload: str) -> None:
        if payload in self._actions:
            self._woken()
        elif payload.startswith(_CANCEL):  # no name of an action has a space
            self._called(payload.removeprefix(_CANCEL))

    def _lose(self, conn: psycopg.AsyncConnection[Any], error: psycopg.Error) -> None:
        self._unwatch()
        self._conn, self._asleep = None, frozenset()
        self._reconnecting = asyncio.create_task(self._reconnect(conn, error))

    async def _reconnect(self, conn: psycopg.AsyncConnection[Any], error: psycopg.Error) -> None:
        logger.warning("lost the connection that wakes this worker, polling meanwhile: %s", brief(error))
        await conn.close()
        pauses = Pauses()
        while self._conn is None:
            await asyncio.sleep(pauses.next())
            try:
                await self.connect()
            except psycopg.Error:
                continue
        self._woken()
