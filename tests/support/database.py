"""Databases for tests, and what races between sessions need: background threads and waiting for events."""

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import sql

from pgfifo.embedded import PrivateServer
from pgfifo.schema import install

T = TypeVar("T")


class Background(Generic[T]):
    """A function that runs in a thread. Made by `in_background`."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._value: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def result(self, timeout: float = 30.0) -> T:
        """Wait for the end; return what the function returned, or raise what it raised."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"still running after {timeout:g} s: {self._function}")
        if self._error is not None:
            raise self._error
        return self._value[0]

    def _run(self) -> None:
        try:
            self._value.append(self._function())
        except BaseException as error:  # noqa: BLE001  # whatever it is, `result` raises it again
            self._error = error


def in_background(function: Callable[[], T]) -> Background[T]:
    """Run a function in a thread, as the second session of a race.

    Give it a connection of its own: a psycopg connection serves one thread at a time.
    """
    return Background(function)


def wait_for(predicate: Callable[[], object], timeout: float = 30.0, message: str = "it") -> None:
    """Poll until a condition holds; fail with the message when it does not within the time (seconds)."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {message}")
        time.sleep(0.005)


def told(listener: psycopg.Connection[Any]) -> list[psycopg.Notify]:
    """Return what an autocommit session that listens has been told by all that has committed until now.

    Whoever commits signals the listening backends before it answers; they pass it on before they answer
    what they are asked next.
    """
    listener.execute("select 1")
    return list(listener.notifies(timeout=0))


def wait_until_blocked(observer: psycopg.Connection[Any], pid: int, timeout: float = 30.0) -> None:
    """Wait until a backend waits for a lock.

    Args:
        observer: an autocommit connection that is not part of the race.
        pid: the backend, as ``conn.info.backend_pid`` tells it.
        timeout: seconds until the test fails.
    """
    assert observer.autocommit, "within a transaction pg_stat_activity does not change"
    waiting = "select wait_event_type = 'Lock' from pg_catalog.pg_stat_activity where pid = %s"
    wait_for(
        lambda: observer.execute(waiting, [pid]).fetchone() == (True,),
        timeout,
        f"backend {pid} to be blocked",
    )


class Databases:
    """The databases of the server of this run."""

    TEMPLATE = "pgfifo_template"
    SHARED = "pgfifo_shared"

    def __init__(self, server: PrivateServer) -> None:
        self._server = server
        self._made = 0

    def template(self) -> str:
        """Return the name of a database with a fresh schema, to make copies of; its clock can be moved."""
        if not self._is_there(self.TEMPLATE):
            self.create(name=self.TEMPLATE)
            with psycopg.connect(self._server.dsn(self.TEMPLATE), autocommit=True) as conn:
                install(conn)
                # Tests move the clock instead of waiting.
                conn.execute("update pgfifo.installation set testing = true")
                # Each test finds the last round of maintenance as long ago, also the first ones of a process:
                # in the second of a round there is no other one.
                conn.execute("update pgfifo.ticks set at = at - interval '1 h'")
        return self.TEMPLATE

    def shared(self) -> str:
        """Return the DSN of the database that most tests share, one after the other."""
        dsn = self._server.dsn(self.SHARED)
        if not self._is_there(self.SHARED):
            self.create(self.template(), name=self.SHARED)
            with psycopg.connect(dsn, autocommit=True) as conn:
                remember_seed(conn)
        return dsn

    def _is_there(self, name: str) -> bool:
        with psycopg.connect(self._server.dsn(), autocommit=True) as conn:
            query = "select exists (select from pg_database where datname = %s)"
            return conn.execute(query, [name]).fetchone() == (True,)

    def create(self, template: str | None = None, name: str | None = None) -> str:
        """Make a database, empty or as a copy, and return its name."""
        self._made += 1
        name = name or f"pgfifo_test_{self._made}"
        query = sql.SQL("create database {} template {}")
        self._run(query.format(sql.Identifier(name), sql.Identifier(template or "template1")))
        return name

    def drop(self, name: str) -> None:
        """Drop a database, whoever is still in it."""
        with psycopg.connect(self._server.dsn(name), autocommit=True) as conn:
            _roll_back_prepared(conn)
        self._run(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def _run(self, query: sql.Composed) -> None:
        with psycopg.connect(self._server.dsn(), autocommit=True) as conn:
            conn.execute(query)


def remember_seed(conn: psycopg.Connection[Any]) -> None:
    """Keep a copy of the rows that a fresh schema has, for `clean` to put back."""
    conn.execute("create schema test_seed")
    for table in _tables(conn):
        name = sql.Identifier(table)
        filled = conn.execute(sql.SQL("select exists (select from pgfifo.{})").format(name)).fetchone()
        if filled == (True,):
            conn.execute(sql.SQL("create table test_seed.{0} as table pgfifo.{0}").format(name))


def clean(conn: psycopg.Connection[Any]) -> None:
    """Bring the shared database back to a fresh schema: nobody else in it, the rows that it began with.

    Args:
        conn: an autocommit connection to it.
    """
    _throw_others_out(conn)
    _roll_back_prepared(conn)
    seeded = [
        name
        for (name,) in conn.execute(
            "select tablename from pg_catalog.pg_tables where schemaname = 'test_seed'"
            " and to_regclass('pgfifo.' || tablename) is not null"
        )
    ]
    tables = sorted({*_tables(conn), *seeded})
    if not tables:
        return
    with conn.transaction():
        conn.execute("set local lock_timeout = '60s'")
        # Triggers stay quiet, as if the rows had never been touched.
        conn.execute("set local session_replication_role = replica")
        names = sql.SQL(", ").join(sql.Identifier("pgfifo", table) for table in tables)
        conn.execute(sql.SQL("truncate {} cascade").format(names))
        for table in seeded:
            put_back = "insert into pgfifo.{0} overriding system value table test_seed.{0}"
            conn.execute(sql.SQL(put_back).format(sql.Identifier(table)))
        # Of all sequences, those that no column owns too: ids begin with 1 in each test.
        conn.execute(
            "select pg_catalog.setval(s.seqrelid, s.seqstart, false)"
            " from pg_catalog.pg_sequence s join pg_catalog.pg_class c on c.oid = s.seqrelid"
            " where c.relnamespace = to_regnamespace('pgfifo')"
        )
        # What an earlier test, or autovacuum, has found out about tables would choose the plans of this one.
        conn.execute(
            "delete from pg_catalog.pg_statistic s using pg_catalog.pg_class c"
            " where c.oid = s.starelid and c.relnamespace = to_regnamespace('pgfifo')"
        )
        conn.execute(
            "update pg_catalog.pg_class set reltuples = -1, relpages = 0, relallvisible = 0"
            " where relnamespace = to_regnamespace('pgfifo') and relkind in ('r', 'p') and reltuples <> -1"
        )


def _tables(conn: psycopg.Connection[Any]) -> list[str]:
    """List the tables that something has been written to.

    To truncate one takes ten times as long as to ask whether it has any pages.
    """
    rows = conn.execute(
        "select c.relname from pg_catalog.pg_class c where c.relnamespace = to_regnamespace('pgfifo')"
        " and c.relkind in ('r', 'p') and not c.relispartition"
        " and exists (select from pg_catalog.pg_partition_tree(c.oid) t"
        "   where pg_catalog.pg_relation_size(t.relid) > 0"
        "   union all select where pg_catalog.pg_relation_size(c.oid) > 0) order by 1"
    )
    return [name for (name,) in rows]


def _throw_others_out(conn: psycopg.Connection[Any]) -> None:
    """End all other sessions in this database and wait until they are gone."""
    conn.execute(
        "select pg_catalog.pg_terminate_backend(pid, 60000) from pg_catalog.pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
    )


def _roll_back_prepared(conn: psycopg.Connection[Any]) -> None:
    """Roll back what a test has prepared and left."""
    for (gid,) in conn.execute(
        "select gid from pg_catalog.pg_prepared_xacts where database = current_database()"
    ):
        conn.execute(sql.SQL("rollback prepared {}").format(sql.Literal(gid)))
