"""How the client makes its calls: on which connection, and what happens when that breaks.

`AsyncCalls` is written by hand; `pgfifo.calls.Calls` is made from it by tools/gen_sync.py.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pgfifo import compatibility
from pgfifo._gate import AsyncGate
from pgfifo._given import text
from pgfifo._holder import Holder
from pgfifo._payloads import Payloads
from pgfifo._unwrap import unwrap_async
from pgfifo.dsn import Dsn, describe, resolve, with_defaults
from pgfifo.errors import CommitUnknown, InvalidValue, IsolationLevel, PgfifoError, translated
from pgfifo.jsontext import StoredLoader
from pgfifo.pool_async import AsyncPool

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

    from pgfifo.actions import Actions

logger = logging.getLogger("pgfifo")

T = TypeVar("T")

_PAUSES = (0.0, 0.5)
"""How long to wait, in seconds, before each repetition of a call that lost its connection."""


class AsyncCalls:
    """What a client stands on: a pool of its own, the caller's pool, or one connection of the caller's."""

    def __init__(
        self,
        database: str | Dsn | AsyncConnectionPool[Any] | psycopg.AsyncConnection[Any] | None = None,
        *,
        max_size: int = 10,
        timeout: float = 30.0,
        prepare_threshold: int | None = 5,
        application_name: str = "pgfifo",
        actions: Actions | None = None,
    ) -> None:
        """Say which database; nothing is connected yet.

        Args:
            database: A DSN; or None, to use PGFIFO_DSN, DATABASE_URL, or libpq's own variables; or the
                caller's pool; or one connection, whose open transaction every call then joins and never ends.
            max_size: The most connections that are open at once. For a DSN only.
            timeout: How long a call waits for one of them, in seconds. For a DSN only.
            prepare_threshold: After how many uses a statement is prepared. None, never, goes with a pooler
                in transaction mode, such as PgBouncer. For a DSN only.
            application_name: What the server shows, unless the DSN gives a name. For a DSN only.
            actions: The application's actions: payloads are checked against their schemas before they are
                sent.

        Raises:
            InvalidValue: The DSN cannot be read, or the database is something else.
        """
        self._payloads = None if actions is None else Payloads(actions)
        self._own: AsyncPool | None = None
        self._one: psycopg.AsyncConnection[Any] | None = None
        self._name = "the caller's"
        self._checked = self._checked_joined = False
        self._explicit = False
        self._holder = Holder()
        # Connections that may be kept to hear of ends: some of our own, where no pooler is in between.
        self._ears = AsyncGate(0)
        if database is None or isinstance(database, str | Dsn):
            dsn = database if isinstance(database, Dsn) else resolve(database)
            self._name = describe(dsn.conninfo)
            self._own = AsyncPool(
                with_defaults(dsn.conninfo, application_name),
                max_size=max_size,
                timeout=timeout,
                prepare_threshold=prepare_threshold,
            )
            self._lend: Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]] = (
                self._own.connection
            )
            if prepare_threshold is not None:
                self._ears = AsyncGate(max_size // 2)
        elif isinstance(database, psycopg.AsyncConnection):
            one = self._one = database
            self._lend = lambda: nullcontext(one)
        elif callable(getattr(database, "getconn", None)):
            self._lend = database.connection
        else:
            raise InvalidValue(
                f"a client cannot be made from a {type(database).__module__}.{type(database).__qualname__}",
                detail={"name": "database"},
                hint="Give a DSN, a psycopg_pool.AsyncConnectionPool, a psycopg.AsyncConnection, or nothing.",
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<pgfifo.{type(self).__name__} {self._name}>"

    def acting_as(self, actor: str) -> Self:
        """Return this client for somebody: the audit says of what it changes that he has done it.

        ::

            await fifo.acting_as("ann").pause("deploy", reason="release")

        It has the same connections, and needs no closing. Calls with a ``connection=`` are the caller's:
        there, ``set_config('pgfifo.actor', …)`` says it.

        Args:
            actor: Who, as the audit's ``actor``.

        Raises:
            InvalidValue: The client was made from one connection of the caller's, or the actor is no text.
        """
        if self._one is not None:
            raise InvalidValue(
                "a client of one connection joins its transaction, and names nobody in it",
                detail={"name": "actor"},
                hint="Call set_config('pgfifo.actor', …) on the connection.",
            )
        found = copy.copy(self)
        found._lend = functools.partial(  # noqa: SLF001 - it is ours
            _lend_for, self._lend, text(actor, "actor"), foreign=self._own is None
        )
        found._ears = AsyncGate(0)  # noqa: SLF001 - in a transaction one hears nothing: it looks instead
        return found

    async def close(self) -> None:
        """Close the connections that this client opened; a pool or connection of the caller's stays open."""
        if self._own is not None:
            await self._own.close()

    async def _rows(
        self,
        query: str,
        arguments: Sequence[object],
        make: Callable[..., T],
        *,
        connection: object = None,
        once: bool = False,
        request_id: str | None = None,
    ) -> list[T]:
        """Make one call and return its rows.

        Args:
            query: The SQL.
            arguments: Its arguments.
            make: What makes an object of a row's values.
            connection: The caller's connection, whose transaction the call joins.
            once: Whether it must not be made again after a loss of the connection.
            request_id: Of a change that may be made again: what the server knows it by; the first of several.
        """
        matters = once or request_id is not None
        joined = self._one if connection is None else await unwrap_async(connection)
        if joined is not None:
            return await self._join(joined, query, arguments, make, matters=matters, request_id=request_id)
        losses = 0
        doubtful = False
        while True:
            conn: psycopg.AsyncConnection[Any] | None = None
            sent = False
            try:
                async with self._lend() as conn:
                    if not self._checked:
                        await _check(conn)
                        self._checked = True
                    sent = True
                    rows = await fetch(
                        conn, query, arguments, explicit=self._explicit, foreign=self._own is None
                    )
                # A pool of the caller's may commit only here; what follows is true in any case.
                return [make(*row) for row in rows]
            except IsolationLevel:
                if self._explicit:
                    raise
                self._explicit = (
                    True  # the role's or the pool's default is higher; it was refused, so try again
                )
            except psycopg.Error as error:
                # It broke, or after that it could not be made anew.
                broken = bool(losses) if conn is None else conn.closed
                doubtful = doubtful or (matters and sent and broken)
                if not broken or losses == len(_PAUSES) or (doubtful and once):
                    if doubtful and (broken or not isinstance(error, PgfifoError)):
                        raise _unknown(arguments, request_id) from error
                    raise_for = translated(
                        error, database=None if broken or conn is None else conn.info.dbname
                    )
                    if raise_for is error:
                        raise
                    raise raise_for from error
                logger.info("the connection to %s was lost; trying again", self._name)
                await asyncio.sleep(_PAUSES[losses])
                losses += 1

    async def _join(
        self,
        conn: psycopg.AsyncConnection[Any],
        query: str,
        arguments: Sequence[object],
        make: Callable[..., T],
        *,
        matters: bool,
        request_id: str | None,
    ) -> list[T]:
        """Make one call on the caller's connection, as part of its transaction."""
        commits = conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE
        try:
            if not self._checked_joined:
                await _check(conn)
                self._checked_joined = True
            rows = await fetch(conn, query, arguments, foreign=True)
        except psycopg.Error as error:
            if matters and commits and conn.closed:
                raise _unknown(arguments, request_id) from error
            raise_for = translated(error, database=None if conn.closed else conn.info.dbname)
            if raise_for is error:
                raise
            raise raise_for from error
        return [make(*row) for row in rows]

    async def _row(
        self,
        query: str,
        arguments: Sequence[object],
        make: Callable[..., T],
        *,
        connection: object = None,
        once: bool = False,
        request_id: str | None = None,
    ) -> T:
        """Make one call that returns one row."""
        [row] = await self._rows(
            query, arguments, make, connection=connection, once=once, request_id=request_id
        )
        return row

    async def _script(self, script: str) -> None:
        """Run a script that may be run twice, in one transaction."""
        for loss in range(len(_PAUSES) + 1):
            conn: psycopg.AsyncConnection[Any] | None = None
            try:
                async with self._lend() as conn, conn.transaction():
                    await psycopg.AsyncCursor(conn, row_factory=tuple_row).execute(script)
            except psycopg.OperationalError:
                if conn is None or not conn.closed or self._one is not None or loss == len(_PAUSES):
                    raise
                await asyncio.sleep(_PAUSES[loss])
            else:
                self._checked = self._checked_joined = False
                return

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """Open a transaction at READ COMMITTED, for calls that belong together.

        ::

            async with fifo.transaction() as conn:
                await fifo.import_commit(number, upto, connection=conn)
                await fifo.enqueue_many("deliver", lines, connection=conn)

        Yields:
            The connection, to be given to calls as ``connection=``.

        Raises:
            CommitUnknown: The connection broke while it committed.
        """
        committing = False
        async with self._lend() as conn:
            try:
                async with conn.transaction():
                    if self._one is None:
                        await conn.execute("set transaction isolation level read committed")
                    yield conn
                    committing = self._one is None
            except psycopg.Error as error:
                if committing and conn.closed:
                    raise _unknown(()) from error
                raise


@asynccontextmanager
async def _lend_for(
    lend: Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]],
    actor: str,
    *,
    foreign: bool,
) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Lend a connection in a transaction that says who acts: the name ends with it, poolers or not."""
    async with lend() as conn, conn.transaction():
        if foreign:  # a connection of ours is at that level
            await conn.execute("set transaction isolation level read committed")
        await conn.execute("select set_config('pgfifo.actor', %s::text, true)", (actor,))
        yield conn


async def fetch(
    conn: psycopg.AsyncConnection[Any],
    query: str,
    arguments: Sequence[object],
    *,
    explicit: bool = False,
    foreign: bool = False,
) -> list[tuple[Any, ...]]:
    """Run one statement, with a cursor of our own: the row factory of a connection is its owner's.

    Args:
        conn: The connection.
        query: The statement.
        arguments: Its arguments.
        explicit: Run it in a transaction that is READ COMMITTED, whatever the default is.
        foreign: The connection is the caller's, who may have told it to read JSON in another way.
    """
    cursor = psycopg.AsyncCursor(conn, row_factory=tuple_row)
    if foreign:
        cursor.adapters.register_loader("jsonb", StoredLoader)
    if not explicit:
        await cursor.execute(query, arguments)
        return await cursor.fetchall()
    async with conn.transaction():
        await cursor.execute("set transaction isolation level read committed")
        await cursor.execute(query, arguments)
        return await cursor.fetchall()


async def _check(conn: psycopg.AsyncConnection[Any]) -> None:
    """Compare package and schema."""
    try:
        async with (
            conn.transaction()
        ):  # a savepoint, where the caller has a transaction: it survives a refusal
            [(version, min_client, _)] = await fetch(conn, compatibility.SCHEMA_INFO, ())
    except psycopg.Error as error:
        if conn.closed:
            raise
        raise translated(error, database=conn.info.dbname) from error
    compatibility.check(version, min_client, conn.info.dbname)


def _unknown(arguments: Sequence[object], request_id: str | None = None) -> CommitUnknown:
    """Return the error for a change that was sent and never answered."""
    action = arguments[0] if arguments else None
    detail: dict[str, object] = {"action": action} if isinstance(action, str) else {}
    hint = "Look whether it is there, for example in pgfifo.executions, before you send it again."
    if request_id is not None:
        detail["request_id"] = request_id
        hint = "Send it again with the same request_id: it will not be there twice."
    return CommitUnknown(
        "the connection broke before the answer came: the change may have been committed or not",
        detail=detail,
        hint=hint,
    )
