"""The application that all commands belong to."""

import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import pgfifo
from pgfifo.cli.exits import INTERRUPTED, USAGE, explained, terminable, told
from pgfifo.cli.options import FAMILIES
from pgfifo.cli.output import error, out


class _Group(TyperGroup):
    """The commands, in families, with errors told in words."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002 - typer's own signature
        """Return the names of all commands, family by family."""
        family = {name: getattr(command, "rich_help_panel", "") for name, command in self.commands.items()}
        return [name for each in FAMILIES for name in family if family[name] == each]

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - as above
        """Run a command."""
        with told():
            return super().invoke(ctx)


app = typer.Typer(
    name="pgfifo",
    cls=_Group,
    help="An ordered queue with limits, inside your own PostgreSQL.",
    epilog="The database: --dsn, PGFIFO_DSN, DATABASE_URL, libpq's own variables; "
    "with none of them, an embedded PostgreSQL of pgfifo's own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_words: list[str] = []


def _version(value: bool) -> None:
    """Print the version and exit."""
    if value:
        out(pgfifo.__version__)
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """An ordered queue with limits, inside your own PostgreSQL."""


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        words: what stands behind the program's name. Defaults to the process's own.
    """
    try:
        load()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        _words[:] = sys.argv[1:] if words is None else words
        _refuse_bytes(_words)
        with terminable():
            app(args=list(_words), prog_name="pgfifo")
    except KeyboardInterrupt as caught:  # before or after the command itself
        refused = explained(caught)
        sys.exit(refused.code if refused else INTERRUPTED)


def load() -> None:
    """Have all commands register themselves."""
    from pgfifo.cli import (  # noqa: F401
        demo,
        doctor,
        embedded,
        events,
        executions,
        flow,
        holding,
        later,
        limit,
        looking,
        monitoring,
        policy,
        producing,
        retrying,
        roles,
        schedule,
        schema,
        serving,
        top,
        verify,
        working,
    )


def arguments() -> list[str]:
    """Return the command line, without the program's name."""
    return list(_words)


def _refuse_bytes(words: Sequence[str]) -> None:
    """Refuse arguments that are not text: nothing that takes them could."""
    for word in words:
        if any("\ud800" <= char <= "\udfff" for char in word):
            error(f"the argument {word!r} is not UTF-8")
            sys.exit(USAGE)
