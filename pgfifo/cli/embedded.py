"""The embedded server: a PostgreSQL of pgfifo's own."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command
from pgfifo.cli.exits import REFUSED
from pgfifo.cli.options import SET_UP, AsJson
from pgfifo.cli.output import did, note, out, print_fields, print_json

if TYPE_CHECKING:
    from pgfifo.embedded import Status

embedded = typer.Typer(
    name="embedded",
    help="The embedded PostgreSQL, which is used when no database is named.",
    no_args_is_help=True,
)
app.add_typer(embedded, rich_help_panel=SET_UP)


@embedded.command()
def start() -> None:
    """Start it, to stay up until it is stopped; otherwise it runs only while a command uses it."""
    import pgfifo.embedded as server

    found = server.start()
    did(f"The embedded PostgreSQL {found.version} runs on {found.data_dir}.", command("embedded", "stop"))
    note(f"Its address, for other programs: {command('embedded', 'url')}")


@embedded.command()
def stop() -> None:
    """Stop it, whoever uses it. The data stays."""
    import pgfifo.embedded as server

    if server.stop():
        did("Stopped the embedded PostgreSQL. Its data stays.", command("embedded", "start"))
    else:
        note("Nothing to do: the embedded PostgreSQL is not running.")


@embedded.command()
def status(json: AsJson = False) -> None:
    """Tell whether it runs, where its data is, and who uses it. Exit code 1 when it does not run."""
    import pgfifo.embedded as server

    found = server.status()
    if json:
        print_json(_fields(found))
    else:
        print_fields(_fields(found))
    if not found.running:
        raise typer.Exit(REFUSED)


@embedded.command()
def url() -> None:
    """Print the address of its database."""
    import pgfifo.embedded as server

    out(server.url())


def _fields(found: "Status") -> dict[str, object]:
    """Return what is known about the server, with paths as text."""
    return {
        name: str(value) if value is not None and name in ("data_dir", "binaries") else value
        for name, value in asdict(found).items()
    }
