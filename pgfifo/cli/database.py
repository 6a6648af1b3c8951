"""Which database a command works on, and a client for it."""

import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgfifo.cli.output import note

if TYPE_CHECKING:
    from typing import LiteralString

    from pgfifo.client import Client
    from pgfifo.dsn import Dsn


@contextmanager
def address(dsn: str | None, *, schema: bool = True, quiet: bool = False) -> Iterator["Dsn"]:
    """Return which database to use; when none is named, the embedded one, which then runs for that long.

    Args:
        dsn: what ``--dsn`` says, if anything.
        schema: install the schema where the database is the embedded one and it is missing or old.
        quiet: do not say so when it is the embedded one.
    """
    from pgfifo import embedded
    from pgfifo.dsn import Dsn, resolve

    found = resolve(dsn)
    if found.source != "default":
        yield found
        return
    with embedded.acquire() as server:
        if not quiet:
            what = server.status()
            of = f" of {what.binaries}" if what.binaries else ""
            note(
                f"Using the embedded PostgreSQL {what.version}{of}, data in {what.data_dir}"
                " (no --dsn, PGFIFO_DSN or DATABASE_URL)."
            )
        if schema:
            _install_missing(server.dsn)
        yield Dsn(server.dsn, "default")


@contextmanager
def connected(dsn: str | None, *, schema: bool = True) -> Iterator["Client"]:
    """Return a client for the database; see `address`."""
    from pgfifo.client import Client

    # Nothing is prepared, as there may be a pooler in between, and few calls are made more than once.
    with address(dsn, schema=schema) as found, Client(found, prepare_threshold=None) as fifo:
        yield fifo


def rows(
    fifo: "Client", query: "LiteralString", arguments: Sequence[object] = (), *, at_once: int = 1000
) -> Iterator[dict[str, Any]]:
    """Return the rows of a query as mappings, while they come in.

    Args:
        fifo: the client.
        query: what no method of the client has.
        arguments: its arguments.
        at_once: how many rows are fetched at a time.
    """
    from psycopg.rows import dict_row

    check_schema(fifo)
    with fifo.transaction() as conn, conn.cursor("rows", row_factory=dict_row) as cursor:
        cursor.itersize = at_once
        cursor.execute(query, arguments)
        yield from cursor


def check_schema(fifo: "Client") -> None:
    """Refuse a schema that is missing or does not fit, as calls do; a query would not know, or not say so."""
    from pgfifo import compatibility

    info = fifo.schema_info()
    compatibility.check(info.version, info.min_client)


def command(*words: str) -> str:
    """Return a command as one would type it, with the program's path where its name is not enough."""
    return shlex.join([*_program(), *words])


def _program() -> list[str]:
    """Return the words that this program can be called with."""
    given, found = Path(sys.argv[0]), shutil.which("pgfifo")
    if given.name == "pgfifo" and not (found and given.exists() and given.samefile(found)):
        return [sys.argv[0]]
    if given.name == "__main__.py" and given.parent.name == "pgfifo" and not found:
        return ["python", "-m", "pgfifo"]
    return ["pgfifo"]


def _install_missing(dsn: str) -> None:
    """Put a missing or an old schema in place."""
    from pgfifo import compatibility
    from pgfifo.client import Client
    from pgfifo.errors import SchemaMissing

    with Client(dsn) as fifo:
        try:
            if fifo.schema_info().version >= compatibility.NEEDS_SCHEMA:
                return
        except SchemaMissing:
            pass
        fifo.install()
