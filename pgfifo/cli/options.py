"""Arguments and options that several commands have, and what reads them."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgfifo.cli.exits import usage

if TYPE_CHECKING:
    from pgfifo.groups import Group as GroupValue

PRODUCE, WORK, LOOK, OPERATE, SET_UP = "Produce", "Work", "Look", "Operate", "Set up"
FAMILIES = (PRODUCE, WORK, LOOK, OPERATE, SET_UP)
"""The families of commands, as the help shows them."""


def _given_dsn(text: str) -> str:
    """Refuse a DSN that is empty: it would mean another database than whoever wrote it thinks."""
    if not text.strip():
        raise typer.BadParameter("It is empty, as a variable that is not set is.")
    return text


Dsn = Annotated[
    str | None,
    typer.Option(
        "--dsn",
        metavar="URL",
        help="The database, as postgresql://user@host/name or host=… dbname=…",
        parser=_given_dsn,
        show_default=False,
    ),
]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")]
All = Annotated[bool, typer.Option("--all", help="All of them, whatever the limit.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Action = Annotated[str, typer.Argument(help="The action.", metavar="ACTION", show_default=False)]
AnyAction = Annotated[
    str | None, typer.Argument(help="Only this action.", metavar="[ACTION]", show_default=False)
]
Id = Annotated[int, typer.Argument(help="The execution's id.", metavar="ID", min=1, show_default=False)]
Group = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        "-g",
        metavar="PATH=VALUE",
        help="The group, as env=prod, once for each path of the action's group_by; or its raw text.",
        show_default=False,
    ),
]
Reason = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why; it is kept.", show_default=False)
]


def group_of(pairs: Iterable[str] | None) -> "GroupValue | None":
    """Return the group that ``--group`` gives."""
    from pgfifo import groups

    given = list(pairs or ())
    return groups.from_pairs(given) if given else None


def seconds(text: str) -> float:
    """Read a duration, as ``30s``, ``5m``, ``1h30m``; a bare number is seconds."""
    from pgfifo import durations
    from pgfifo.cli.hints import in_shell
    from pgfifo.errors import InvalidValue

    try:
        return durations.seconds(text)
    except InvalidValue as error:
        hint = in_shell(error.hint, error.detail)
        raise typer.BadParameter(f"{error.message}. {hint or ''}".strip()) from None


def some_seconds(text: str) -> float:
    """Read a duration that is longer than nothing."""
    found = seconds(text)
    if found <= 0:
        raise typer.BadParameter("It must be longer than nothing.")
    return found


def duration(name: str, help: str, parser: Callable[[str], float] = seconds) -> Any:  # noqa: ANN401, A002
    """Return an option whose value is a duration."""
    return typer.Option(name, metavar="TIME", help=help, parser=parser, show_default=False)


def tag(text: str) -> str:
    """Read a tag; an empty one is a variable that is not set."""
    if not text:
        raise typer.BadParameter("A tag cannot be empty.")
    return text


def pairs_of(name: str, given: Iterable[str] | None, value: Callable[[str], object]) -> dict[str, object]:
    """Read a repeatable option of the form ``key=value``.

    Args:
        name: the option, for the message.
        given: what was given.
        value: reads what stands behind the ``=``.
    """
    result: dict[str, object] = {}
    for pair in given or ():
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise usage(f"{name} {pair!r} has no key and value", f"Write it as {name} key=value.")
        if key in result:
            raise usage(f"{name} {key} is given twice")
        result[key] = value(text)
    return result


def json_or_text(text: str) -> object:
    """Read a value as JSON if it is JSON, else as text; as ``1``, ``true``, ``{"a":1}``, ``hello``."""
    import json

    try:
        value: object = json.loads(text, parse_constant=str)
    except ValueError:
        return text
    return value
