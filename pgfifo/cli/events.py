"""What happens, as it happens."""

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected
from pgfifo.cli.options import LOOK, AsJson, Dsn, Group, group_of
from pgfifo.cli.output import flush, note, out, print_json, show

if TYPE_CHECKING:
    from pgfifo.models import Event


class Kind(StrEnum):
    """The kinds of events."""

    ENQUEUED = "enqueued"
    STARTED = "started"
    ATTEMPT_ENDED = "attempt_ended"
    FINISHED = "finished"
    PROGRESS = "progress"
    LANE_STARTED = "lane_started"
    LANE_EMPTY = "lane_empty"
    PAUSED = "paused"
    RESUMED = "resumed"
    CLOSED = "closed"
    OPENED = "opened"
    CHANGED = "changed"


@app.command(rich_help_panel=LOOK)
def events(
    action: Annotated[
        str | None,
        typer.Option("--action", "-a", metavar="ACTION", help="Only this action.", show_default=False),
    ] = None,
    group: Group = None,
    kind: Annotated[
        list[Kind] | None,
        typer.Option(
            "--kind",
            "-k",
            metavar="KIND",
            help=f"Only this kind: {', '.join(Kind)}. May be repeated.",
            show_default=False,
        ),
    ] = None,
    id: Annotated[  # noqa: A002 - the option is called so
        int | None, typer.Option("--id", metavar="ID", help="Only this execution.", min=1, show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="CURSOR",
            help="Go on where an earlier one stopped; 'begin' for all that is on record.",
            show_default=False,
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, until Ctrl-C.")] = False,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Show what happens: enqueues, starts, ends, lanes that begin or become empty, pauses and changes.

    Nothing is missed and nothing told twice: with --json each line is an object with a cursor, and --since
    goes on behind it. Without --since, --follow begins now; without either, all that is on record is shown.
    """
    if not follow and since is None:
        since = "begin"
    from pgfifo.errors import EventsGone

    kinds: Any = [each.value for each in kind] if kind else None
    last = since
    try:
        with connected(dsn) as fifo:
            found = fifo.events(action, group_of(group), cursor=since, kinds=kinds, id=id, follow=follow)
            for event in found:
                if json:
                    print_json(asdict(event))
                else:
                    out(_line(event))
                flush()
                last = event.cursor
    except EventsGone:
        last = None  # its hint says where to go on
        raise
    finally:
        if last is not None and last != "begin" and not json:
            words = [] if action is None else ["--action", action]
            words += [word for pair in group or () for word in ("--group", pair)]
            words += [word for each in kind or () for word in ("--kind", each.value)]
            words += ([] if id is None else ["--id", str(id)]) + (["--follow"] if follow else [])
            note(f"Go on with: {command('events', *words, '--since', last)}")


def _line(event: "Event") -> str:
    """Return an event as a line of text."""
    where = str(event.lane or event.action or "-")
    attempt = "" if event.attempt is None else f"attempt {event.attempt}"
    said = ", ".join(f"{name} {_short(value)}" for name, value in event.detail.items())
    what = f"{event.id or '-':>8}  {attempt:<10}  {said}" if event.id or said else ""
    return f"{show(event.at)}  {event.kind:<13}  {where:<24}  {what}".rstrip()


def _short(value: object) -> str:
    """Return a value of a detail in one line, cut where it is long."""
    text = show(value).partition("\n")[0]
    return text if len(text) <= 100 else f"{text[:99]}…"
