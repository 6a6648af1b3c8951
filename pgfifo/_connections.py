"""The connections of a worker, and which of their errors it gets over."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import socket
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq.abc import PGresult

from pgfifo.errors import PgfifoError

T = TypeVar("T")
Row = tuple[Any, ...]
Session = tuple[int, datetime]
"""A session of the server: its process and when it began."""

PATIENCE = 60.0
"""Seconds after which a server that does not answer a call is taken for gone, and called again elsewhere."""

# A call is one statement, so a transaction that is idle belongs to a host that has vanished: it holds lanes.
# The server is to notice such a host as soon as we would notice the server's end: see pgfifo.dsn.
_SET_READ_COMMITTED = """
    select set_config('default_transaction_isolation', 'read committed', false),
        set_config('idle_in_transaction_session_timeout', '30s', false),
        set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),
        set_config('tcp_keepalives_count', '4', false), set_config('tcp_user_timeout', '30000', false)
"""
# The session of a lost connection may live on in the server: it holds our locks, or is about to commit what
# is going to be asked for again. Its time tells it from another process that has got its number since.
_SESSION = """
    select pid, backend_start from pg_catalog.pg_stat_activity where pid = pg_catalog.pg_backend_pid()
"""
_END = """
    select pg_catalog.pg_terminate_backend(pid, 1000) from pg_catalog.pg_stat_activity
    where pid = %s and backend_start = %s
"""
_IS_READ_COMMITTED = "select current_setting('default_transaction_isolation') = 'read committed'"

_FIRST_PAUSE = 0.05
# Well below the second of grace after which a worker whose session lock is gone counts as dead.
_LONGEST_PAUSE = 0.5

# What a server says that is stopping, starting or short of something, became a standby, or gave up waiting.
_PASSING = ("08", "25006", "40", "53", "55", "57", "58", "XX")
_STANDBY = "25006"


class Pauses:
    """Pauses between tries: longer and longer up to half a second, and not the same as everybody else's."""

    def __init__(self) -> None:
        self._tries = 0

    def next(self) -> float:
        """Return how many seconds to wait now."""
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._tries, 10))
        self._tries += 1
        return longest * random.uniform(0.5, 1)  # noqa: S311 - nobody's secret


def is_passing(error: psycopg.Error) -> bool:
    """Return whether the call may work later: the connection broke, or the server cannot do it just now."""
    if isinstance(error, PgfifoError):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate.startswith(_PASSING)


def brief(error: BaseException) -> str:
    """Return what an error says, in one line for the log."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Silence(psycopg.OperationalError):
    """The server is there, or something in between is, and does not answer."""

    def __init__(self, patience: float) -> None:
        super().__init__(f"the server has not answered for {patience:g} s")


class _Impatient(psycopg.Connection[Any]):
    """A connection that does not wait for ever for an answer, from a proxy that hangs, for example."""

    patience = math.inf

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:  # noqa: ANN401 - whatever psycopg wants
        """Wait as psycopg does, for a limited time."""
        try:
            return super().wait(_within(gen, self.patience), *args, **kwargs)
        except _Silence:
            self.close()
            raise


def _within(waiting: PQGen[T], patience: float) -> PQGen[T]:
    """Do what psycopg does while it waits; raise when that takes too long."""
    deadline = time.monotonic() + patience
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted  # nothing, about ten times a second, while there is nothing to read
            if not ready and time.monotonic() > deadline:
                raise _Silence(patience)
            wanted = waiting.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


@contextlib.asynccontextmanager
async def answered(conn: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """Cut a connection that does not answer within `PATIENCE` what is asked in the block.

    Not by cancelling the block: psycopg would then ask the server, which does not answer, to stop.

    Raises:
        psycopg.OperationalError: It was cut.
    """
    silent = False

    def cut() -> None:
        nonlocal silent
        silent = True
        with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(conn.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)

    patience = PATIENCE
    timer = asyncio.get_running_loop().call_later(patience, cut)
    try:
        yield
    except psycopg.OperationalError as error:
        if silent:
            raise _Silence(patience) from error
        raise
    finally:
        timer.cancel()


def _own(session: Session | None, told: int) -> Session | None:
    """Return a connection's session if it is its own; behind a pooler it may be anybody's when it is lost.

    Args:
        session: Who has answered.
        told: The process that the connection was told it has; a pooler makes one up.
    """
    return session if session is not None and session[0] == told else None


class Link:
    """A connection for calls of one statement each, at READ COMMITTED, which commits at once."""

    def __init__(
        self, conninfo: str, *, pooled: bool, after: Session | None = None, patience: float = PATIENCE
    ) -> None:
        """Connect.

        Args:
            conninfo: Where to.
            pooled: Whether a pooler may be in between: each statement may meet another session of the server.
            after: The session of the connection that was lost, to be ended should it live on.
            patience: Seconds after which an answer is not waited for any more.
        """
        self.session: Session | None = None
        self.conn: psycopg.Connection[Any] = _Impatient.connect(
            conninfo, autocommit=True, prepare_threshold=None if pooled else 1
        )
        self.conn.patience = patience
        try:
            self.conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            told = self.conn.execute(_IS_READ_COMMITTED if pooled else _SET_READ_COMMITTED).fetchone()
            # What a session of a pooler has for a default is not ours to change, so we say it each time.
            self._explicit = pooled and told != (True,)
            if not pooled:
                self.session = _own(self.conn.execute(_SESSION).fetchone(), self.conn.info.backend_pid)
                if after is not None:
                    with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                        self.conn.execute(_END, after)
        except BaseException:
            self.conn.close()
            raise

    def rows(self, query: str, parameters: tuple[object, ...] = ()) -> list[Row]:
        """Run a statement and return its rows."""
        if self._explicit:
            with self.conn.transaction():
                return self.conn.execute(query, parameters).fetchall()
        return self.conn.execute(query, parameters).fetchall()

    def is_of_use_after(self, error: psycopg.Error) -> bool:
        """Return whether the connection can be used again."""
        return not self.conn.closed and error.sqlstate != _STANDBY

    def close(self) -> None:
        """Close the connection."""
        self.conn.close()


class _Prepared:
    """Statements that are prepared once and run one at a time, on a connection that nobody else has.

    A cursor can do more, and takes a tenth of a millisecond for that each time: with Python 3.11 a task, and
    more rounds of the event loop, to wait for an answer. A worker's calls are few and always the same.
    """

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self._conn = conn
        self._names: dict[str, bytes] = {}
        self._adapt = Transformer(conn)
        self._watched = -1
        self._ended: asyncio.Future[None] | None = None
        self._results: list[PGresult] = []

    async def rows(self, query: str, parameters: tuple[object, ...]) -> list[Row]:
        """Run a statement and return its rows.

        Raises:
            psycopg.OperationalError: The connection broke, or did not answer within `PATIENCE`.
        """
        pgconn = self._conn.pgconn
        try:
            name = self._names.get(query)
            if name is None:
                name = b"pgfifo_%d" % len(self._names)
                pgconn.send_prepare(name, _numbered(query).encode())
                await self._answer()
                self._names[query] = name
            texts = self._adapt.dump_sequence(parameters, [PyFormat.TEXT] * len(parameters))
            pgconn.send_query_prepared(name, texts, result_format=pq.Format.BINARY)
            result = await self._answer()
        finally:
            if pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                await self.close()  # nobody waits any more for the answer that is on its way
        self._adapt.set_pgresult(result)
        return self._adapt.load_rows(0, result.ntuples, tuple)

    async def close(self) -> None:
        """Close the connection."""
        self._unwatch()
        await self._conn.close()

    async def _answer(self) -> PGresult:
        """Wait for the end of what was sent: the server has committed then."""
        loop = asyncio.get_running_loop()
        self._ended, self._results = loop.create_future(), []
        patience = PATIENCE
        timer = loop.call_later(patience, lambda: self._end(_Silence(patience)))
        if self._watched < 0:
            self._watched = self._conn.fileno()
            loop.add_reader(self._watched, self._read)
        try:
            if self._conn.pgconn.flush() != 0:
                loop.add_writer(self._watched, self._write)
            await self._ended
        finally:
            timer.cancel()
        results, self._results = self._results, []
        if (refusal := _refusal(results)) is not None:
            raise error_from_result(refusal, encoding=self._conn.info.encoding)
        if not results:
            raise psycopg.OperationalError("the connection is closed")
        return results[-1]

    def _end(self, error: psycopg.Error | None = None) -> None:
        if self._ended is not None and not self._ended.done():
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)

    def _read(self) -> None:
        pgconn = self._conn.pgconn
        try:
            pgconn.consume_input()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    self._end()
                    break
                self._results.append(result)
        except psycopg.Error as error:
            self._unwatch()
            # What the server said before it left tells more. Rows tell nothing: it may not have committed.
            self._end(None if _refusal(self._results) else error)

    def _write(self) -> None:
        try:
            if self._conn.pgconn.flush() == 0:
                asyncio.get_running_loop().remove_writer(self._watched)
        except psycopg.Error as error:
            self._unwatch()
            self._end(error)

    def _unwatch(self) -> None:
        # By the number that was registered: a broken connection has none, and soon it is somebody else's.
        if self._watched >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._watched)
            loop.remove_writer(self._watched)
            self._watched = -1


def _refusal(results: list[PGresult]) -> PGresult | None:
    return next((result for result in results if result.status == pq.ExecStatus.FATAL_ERROR), None)


def _numbered(query: str) -> str:
    """Write a statement's parameters as the server does."""
    first, *others = query.split("%s")
    return first + "".join(f"${n}{part}" for n, part in enumerate(others, 1))


class AsyncLink:
    """As `Link`, for an event loop; rows come in the binary format."""

    def __init__(
        self, conn: psycopg.AsyncConnection[Any], *, pooled: bool, explicit: bool, session: Session | None
    ) -> None:
        self.conn = conn
        self.session = session
        self._explicit = explicit
        self._prepared = None if pooled else _Prepared(conn)
        self._cursor = conn.cursor(binary=True)

    @classmethod
    async def connect(cls, conninfo: str, *, pooled: bool, after: Session | None = None) -> AsyncLink:
        """Connect; the arguments are those of `Link`."""
        session: Session | None = None
        conn = await psycopg.AsyncConnection.connect(
            conninfo, autocommit=True, prepare_threshold=None if pooled else 1
        )
        try:
            await conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
            async with answered(conn):
                cursor = await conn.execute(_IS_READ_COMMITTED if pooled else _SET_READ_COMMITTED)
                told = await cursor.fetchone()
                if not pooled:
                    session = await (await conn.execute(_SESSION)).fetchone()
                    session = _own(session, conn.info.backend_pid)
                    if after is not None:
                        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                            await conn.execute(_END, after)
        except BaseException:
            await conn.close()
            raise
        return cls(conn, pooled=pooled, explicit=pooled and told != (True,), session=session)

    async def rows(self, query: str, parameters: tuple[object, ...] = ()) -> list[Row]:
        """Run a statement and return its rows."""
        if self._prepared is not None:
            return await self._prepared.rows(query, parameters)
        async with answered(self.conn):
            if self._explicit:
                async with self.conn.transaction():
                    return await (await self._cursor.execute(query, parameters)).fetchall()
            return await (await self._cursor.execute(query, parameters)).fetchall()

    def is_of_use_after(self, error: psycopg.Error) -> bool:
        """Return whether the connection can be used again."""
        return not self.conn.closed and error.sqlstate != _STANDBY

    async def close(self) -> None:
        """Close the connection."""
        if self._prepared is not None:
            await self._prepared.close()
        else:
            await self.conn.close()
