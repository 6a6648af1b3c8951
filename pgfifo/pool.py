"""A few connections, opened in the caller's own thread when they are needed, and given back.

A pool that connects in the background must keep its callers waiting while the server is down, and can tell
them no more than that it took too long. Here the caller gets the reason at once. There are no threads either,
so a fork has nothing to break.

Made by tools/gen_sync.py from its asynchronous twin: change that one.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from pgfifo._gate import Gate
from pgfifo._sockets import has_news
from pgfifo.jsontext import StoredLoader

_IDLE_SECONDS = 300.0
_READ_COMMITTED = """
    select set_config('default_transaction_isolation', 'read committed', false)
    where current_setting('default_transaction_isolation') <> 'read committed'
"""


class _Connections:
    """The connections of one process; after a fork, the child has its own, and leaves its parent's alone."""

    def __init__(self, max_size: int) -> None:
        self.gate = Gate(max_size)
        self.idle: deque[tuple[psycopg.Connection[Any], float]] = deque()


class Pool:
    """Connections to one database."""

    def __init__(
        self, conninfo: str, *, max_size: int = 10, timeout: float = 30.0, prepare_threshold: int | None = 5
    ) -> None:
        self.conninfo = conninfo
        self._max_size = max_size
        self._timeout = timeout
        self._prepare_threshold = prepare_threshold
        self._closed = False
        # By process id. Entries of other processes are kept, so that nothing ever closes their sockets.
        self._processes: dict[int, _Connections] = {}
        weakref.finalize(self, _finish, self._processes)

    def _mine(self) -> _Connections:
        pid = os.getpid()
        mine = self._processes.get(pid)
        return mine if mine is not None else self._processes.setdefault(pid, _Connections(self._max_size))

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Lend a connection in autocommit mode, at READ COMMITTED.

        Raises:
            psycopg.OperationalError: The server cannot be reached, or all connections stayed in use.
            psycopg.InterfaceError: The pool is closed.
        """
        if self._closed:
            raise psycopg.InterfaceError("this pgfifo client is closed")
        mine = self._mine()
        if not mine.gate.enter(self._timeout):
            raise psycopg.OperationalError(
                f"all {self._max_size} connections of this client stayed in use for {self._timeout:g} s; "
                "give it a larger max_size"
            )
        try:
            conn = self._take(mine)
            try:
                yield conn
            finally:
                if mine is self._mine():
                    self._give_back(mine, conn)
        finally:
            mine.gate.leave()

    def _take(self, mine: _Connections) -> psycopg.Connection[Any]:
        while mine.idle:
            try:
                conn = mine.idle.pop()[0]
            except IndexError:  # another thread was quicker
                break
            if _is_well(conn):
                return conn
            conn.close()
        return self._connect()

    def _connect(self) -> psycopg.Connection[Any]:
        conn = psycopg.Connection.connect(
            self.conninfo, autocommit=True, prepare_threshold=self._prepare_threshold
        )
        conn.adapters.register_loader("jsonb", StoredLoader)
        try:
            conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
            if self._prepare_threshold is not None:  # else a pooler is in between: leave its session alone
                conn.execute(_READ_COMMITTED)
        except BaseException:
            conn.close()
            raise
        return conn

    def _give_back(self, mine: _Connections, conn: psycopg.Connection[Any]) -> None:
        if self._closed or conn.closed or conn.info.transaction_status != TransactionStatus.IDLE:
            conn.close()
            return
        now = time.monotonic()
        mine.idle.append((conn, now))
        while mine.idle and mine.idle[0][1] < now - _IDLE_SECONDS:
            try:
                old, since = mine.idle.popleft()
            except IndexError:
                break
            if since >= now - _IDLE_SECONDS:  # another thread took the old one
                mine.idle.append((old, since))
                break
            old.close()

    def close(self) -> None:
        """Close the connections that are not lent; the others are closed when they come back."""
        self._closed = True
        mine = self._mine()
        while mine.idle:
            mine.idle.pop()[0].close()


def _is_well(conn: psycopg.Connection[Any]) -> bool:
    """Return whether an idle connection still works; it costs a round trip only where there is a doubt."""
    if conn.closed:
        return False
    if not has_news(conn.fileno()):
        return True
    try:
        conn.execute("")
    except psycopg.Error:
        return False
    return not conn.closed


def _finish(processes: dict[int, _Connections]) -> None:
    """Close what a forgotten pool left open, in this process."""
    mine = processes.get(os.getpid())
    while mine is not None and mine.idle:
        conn, _ = mine.idle.pop()  # kept until it is closed: psycopg warns of one that is dropped before
        conn.pgconn.finish()
