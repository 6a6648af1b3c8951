"""The server that the benchmark runs on, databases in it, and how a machine is described."""

import contextlib
import datetime
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

import pgfifo
import pgfifo.schema
from pgfifo.embedded import PrivateServer, Setting, remove_abandoned

Connection = psycopg.Connection[Any]

SETTINGS: dict[str, Setting] = {
    # Everything that concerns durability is as it is by default: fsync, synchronous_commit, full_page_writes.
    # No checkpoint shall fall into one side of a comparison.
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "256MB",
}

SHOWN = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "autovacuum",
    "jit",
)


@dataclass(frozen=True)
class Ground:
    """A server to measure on."""

    dsn: str
    """Of a database from which others can be made."""
    private: PrivateServer | None

    def connect(self, dbname: str | None = None, *, name: str = "pgfifo bench") -> Connection:
        """Connect with autocommit, to a database of the benchmark's or to the one that was given."""
        return psycopg.connect(make_conninfo(self.dsn_of(dbname), application_name=name), autocommit=True)

    def dsn_of(self, dbname: str | None) -> str:
        """Return the address of a database, or of the one that was given."""
        return make_conninfo(self.dsn, **({"dbname": dbname} if dbname else {}))

    @contextlib.contextmanager
    def bare_database(self, purpose: str, template: str = "template1") -> Iterator[str]:
        """Make an empty database, or a copy of one, for the length of a block."""
        name = f"pgfifo_bench_{purpose}_{os.getpid()}"
        made = sql.SQL("create database {} template {}").format(
            sql.Identifier(name), sql.Identifier(template)
        )
        with self.connect() as conn:
            conn.execute(made)
        try:
            yield name
        finally:
            with self.connect() as conn:
                conn.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    @contextlib.contextmanager
    def database(self, purpose: str) -> Iterator[str]:
        """Make a database with pgfifo in it for the length of a block."""
        with self.bare_database(purpose) as name:
            with self.connect(name) as conn:
                pgfifo.schema.install(conn)
            yield name

    @contextlib.contextmanager
    def careless(self) -> Iterator[bool]:
        """For building only: do not wait for the disk, where the server is ours; then make up for it."""
        if self.private is None:
            yield False
            return
        self._set_fsync("off")
        try:
            yield True
        finally:
            self._set_fsync("on")
            with self.connect() as conn:
                conn.execute("checkpoint")

    def _set_fsync(self, value: LiteralString) -> None:
        with self.connect() as conn:
            conn.execute(sql.SQL("alter system set fsync = {}").format(sql.SQL(value)))
            conn.execute("select pg_reload_conf()")
        # A new session has the new value once the postmaster has read it.
        for _ in range(1000):
            with self.connect() as conn:
                row = conn.execute("show fsync").fetchone()
            if row == (value,):
                return
        raise RuntimeError(f"the server did not take fsync = {value}")


@contextlib.contextmanager
def open_ground(dsn: str | None, settings: dict[str, Setting] | None = None) -> Iterator[Ground]:
    """Use the server at this address, or start one of our own for the length of a block."""
    if dsn is not None:
        yield Ground(dsn, None)
        return
    remove_abandoned()
    with PrivateServer(SETTINGS | (settings or {})) as server:
        yield Ground(server.dsn(), server)


def machine(ground: Ground) -> dict[str, Any]:
    """Describe what this run runs on: nothing that identifies the machine."""
    with ground.connect() as conn:
        rows = conn.execute(
            "select name, current_setting(name) from pg_settings where name = any (%s)", [list(SHOWN)]
        ).fetchall()
        version = conn.execute("select split_part(current_setting('server_version'), ' ', 1)").fetchone()
    settings = dict(rows)
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(_memory() / 2**30),
        "kernel": f"{platform.system()} {platform.release()}",
        "postgresql": version[0] if version else "?",
        "own_server": ground.private is not None,
        "settings": {name: settings[name] for name in SHOWN if name in settings},
        "python": platform.python_version(),
        "psycopg": psycopg.__version__,
        "libpq": psycopg.pq.version(),
        "pgfifo": pgfifo.__version__,
        "sql": hashlib.sha256(pgfifo.schema.sql_text().encode()).hexdigest()[:12],
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
