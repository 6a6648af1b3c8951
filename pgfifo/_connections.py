"""The connections of a worker, and which of their errors it gets over."""

from __future__ import annotations

import random
from typing import Any

import psycopg

from pgfifo.errors import PgfifoError

Row = tuple[Any, ...]

# A call is one statement, so a transaction that is idle belongs to a host that has vanished: it holds lanes.
_SET_READ_COMMITTED = """
    select set_config('default_transaction_isolation', 'read committed', false),
        set_config('idle_in_transaction_session_timeout', '30s', false)
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


class Link:
    """A connection for calls of one statement each, at READ COMMITTED, which commits at once."""

    def __init__(self, conninfo: str, *, pooled: bool) -> None:
        """Connect.

        Args:
            conninfo: Where to.
            pooled: Whether a pooler may be in between: each statement may meet another session of the server.
        """
        self.conn: psycopg.Connection[Any] = psycopg.connect(
            conninfo, autocommit=True, prepare_threshold=None if pooled else 1
        )
        try:
            self.conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            told = self.conn.execute(_IS_READ_COMMITTED if pooled else _SET_READ_COMMITTED).fetchone()
            # What a session of a pooler has for a default is not ours to change, so we say it each time.
            self._explicit = pooled and told != (True,)
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


class AsyncLink:
    """As `Link`, for an event loop; rows come in the binary format."""

    def __init__(self, conn: psycopg.AsyncConnection[Any], *, explicit: bool) -> None:
        self.conn = conn
        self._explicit = explicit
        self._cursor = conn.cursor(binary=True)

    @classmethod
    async def connect(cls, conninfo: str, *, pooled: bool) -> AsyncLink:
        """Connect; the arguments are those of `Link`."""
        conn = await psycopg.AsyncConnection.connect(
            conninfo, autocommit=True, prepare_threshold=None if pooled else 1
        )
        try:
            await conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
            cursor = await conn.execute(_IS_READ_COMMITTED if pooled else _SET_READ_COMMITTED)
            told = await cursor.fetchone()
        except BaseException:
            await conn.close()
            raise
        return cls(conn, explicit=pooled and told != (True,))

    async def rows(self, query: str, parameters: tuple[object, ...] = ()) -> list[Row]:
        """Run a statement and return its rows."""
        if self._explicit:
            async with self.conn.transaction():
                return await (await self._cursor.execute(query, parameters)).fetchall()
        return await (await self._cursor.execute(query, parameters)).fetchall()

    def is_of_use_after(self, error: psycopg.Error) -> bool:
        """Return whether the connection can be used again."""
        return not self.conn.closed and error.sqlstate != _STANDBY

    async def close(self) -> None:
        """Close the connection."""
        await self.conn.close()
