"""Executions that join their lane later: the options that say when, and a change of that time."""

from datetime import datetime
from typing import Annotated, Any

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected
from pgfifo.cli.exits import Refused, usage
from pgfifo.cli.options import OPERATE, Dsn, Id, duration
from pgfifo.cli.output import did, show


def _time(text: str) -> datetime:
    """Read a time in ISO 8601, in the local time zone if it names none."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no time. Write it like 2026-01-31T12:00 or 2026-01-31T12:00:00+01:00."
        ) from None


RunAt = Annotated[
    Any,
    typer.Option(
        "--run-at",
        metavar="TIME",
        help="When it joins the end of its lane: a time in ISO 8601, such as 2026-01-31T12:00.",
        parser=_time,
        show_default=False,
    ),
]
Delay = Annotated[
    float | None, duration("--delay", "How long until it joins the end of its lane, as 30s or 2h.")
]


def one_time(run_at: datetime | None, delay: float | None) -> None:
    """Refuse a time that is given in two ways."""
    if run_at is not None and delay is not None:
        raise usage("--run-at and --delay exclude each other")


@app.command(rich_help_panel=OPERATE)
def reschedule(
    id: Id,  # noqa: A002 - the argument is called so
    run_at: RunAt = None,
    delay: Delay = None,
    dsn: Dsn = None,
) -> None:
    """Change when a delayed execution joins its lane, or when a held one is tried again.

    Without a time: now.
    """
    one_time(run_at, delay)
    with connected(dsn) as fifo:
        state = fifo.execution(id).state
        if state not in ("delayed", "held"):
            raise Refused(f"execution {id} is {state}; only delayed and held ones have a time to change")
        before = fifo.reschedule(id, run_at=run_at, delay=delay)
        found = fifo.execution(id)
    what = "is tried again" if found.state == "held" else "joins its lane"
    when = "now" if found.state == "held" else "with the next enqueue or claim there"
    if found.due_at is not None and (run_at or delay):
        when = f"at {show(found.due_at)}"
    did(
        f"Execution {id} {what} {when}.",
        command("reschedule", str(id), "--run-at", before.isoformat()),
    )
