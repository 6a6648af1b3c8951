"""Put the schema in place, bring it up to date, take it away."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected
from pgfifo.cli.exits import Refused, usage
from pgfifo.cli.options import SET_UP, Dsn
from pgfifo.cli.output import count, did, note, out

if TYPE_CHECKING:
    from pgfifo.client import Client


@app.command(rich_help_panel=SET_UP)
def install(
    testing: Annotated[
        bool,
        typer.Option("--testing", help="For tests: there pgfifo's clock can be moved, and all be removed."),
    ] = False,
    dsn: Dsn = None,
) -> None:
    """Install pgfifo's schema into the database, or bring it up to date.

    Doing so twice, or from many places at once, is harmless.
    """
    with connected(dsn, schema=False) as fifo:
        before = _version(fifo)
        fifo.install(testing=testing)
        after = _version(fifo)
    if before == after:
        note(f"Nothing to do: the schema pgfifo is there, at version {after}.")
    elif before is None:
        did(f"Installed the schema pgfifo, version {after}.", command("uninstall"))
        note("That removes everything that is in it by then as well.")
    else:
        did(
            f"Upgraded the schema from version {before} to {after}.", "restore a backup; there is no way back"
        )


@app.command(rich_help_panel=SET_UP)
def upgrade(dsn: Dsn = None) -> None:
    """Bring an installed schema up to the version of this package."""
    with connected(dsn, schema=False) as fifo:
        before = fifo.schema_info().version
        fifo.upgrade()
        after = _version(fifo)
    if before == after:
        note(f"Nothing to do: the schema is at version {after}.")
    else:
        did(
            f"Upgraded the schema from version {before} to {after}.", "restore a backup; there is no way back"
        )


@app.command(rich_help_panel=SET_UP)
def uninstall(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False, dsn: Dsn = None
) -> None:
    """Remove the schema with everything in it: what waits, what runs, and the history."""
    with connected(dsn, schema=False) as fifo:
        if _version(fifo) is None:
            note("Nothing to do: pgfifo is not installed there.")
            return
        lost = _lost(fifo)
        if not yes:
            confirm(f"Remove pgfifo {lost}?")
        fifo.uninstall()
    did(f"Removed pgfifo {lost}.", "restore a backup; there is no way back")


@app.command(rich_help_panel=SET_UP)
def sql() -> None:
    """Print the script that installs the schema, for those who run migrations themselves."""
    from pgfifo import schema

    out(schema.sql_text().rstrip("\n"))


def _version(fifo: "Client") -> int | None:
    """Return the installed version, None if there is none."""
    from pgfifo.errors import SchemaMissing

    try:
        return fifo.schema_info().version
    except SchemaMissing:
        return None


def _lost(fifo: "Client") -> str:
    """Say where the schema is and what would be lost with it."""
    import psycopg

    with fifo.transaction() as conn:
        name = conn.info.dbname
    try:
        stats = fifo.stats()
    except psycopg.Error:
        return f"from database {name}, with everything in it"
    unfinished = sum(each.queue_length + each.active_count + each.delayed_count for each in stats)
    finished = sum(each.total_completed for each in stats)
    return f"from database {name}, with {count(unfinished, 'unfinished execution')} and {finished:,} finished"


def confirm(question: str) -> None:
    """Ask; refuse to go on without a yes."""
    if not sys.stdin.isatty():
        raise usage(f"{question} There is nobody to ask", "Add --yes if that is meant.")
    if not typer.confirm(question, default=False, err=True):
        raise Refused("nothing was changed")
