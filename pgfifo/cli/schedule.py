"""Schedules: what is enqueued again and again."""

from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected
from pgfifo.cli.options import (
    OPERATE,
    Action,
    AnyAction,
    AsJson,
    Dsn,
    Group,
    Reason,
    group_of,
    json_or_text,
    pairs_of,
)
from pgfifo.cli.output import as_json, did, note, print_json_rows, print_table
from pgfifo.cli.producing import Header, Payload, Set, Tag, payload_of

if TYPE_CHECKING:
    from pgfifo.models import ScheduleInfo

schedule = typer.Typer(
    name="schedule",
    help="Executions that are enqueued again and again, by cron expressions, as long as a worker runs.",
    no_args_is_help=True,
)
app.add_typer(schedule, rich_help_panel=OPERATE)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.", show_default=False)]

_SHOWN = 3


class Missed(StrEnum):
    """What becomes of ticks that nobody was there for."""

    SKIP = "skip"
    ONE = "one"
    ALL = "all"


@schedule.command("set")
def set_(
    name: Name,
    action: Action,
    cron: Annotated[
        str,
        typer.Argument(
            metavar="CRON",
            help="Minute, hour, day of the month, month, day of the week, as '30 2 * * mon-fri'; "
            "or @hourly, @daily, @weekly, @monthly, @yearly.",
            show_default=False,
        ),
    ],
    payload: Payload = None,
    set_: Set = None,
    time_zone: Annotated[
        str, typer.Option("--time-zone", "-z", metavar="ZONE", help="In which time zone, as Europe/Berlin.")
    ] = "UTC",
    missed: Annotated[
        Missed,
        typer.Option(
            "--missed",
            metavar="WHAT",
            help="Ticks that no worker was there for: skip them, enqueue one for all of them, or all.",
        ),
    ] = Missed.ONE,
    group: Group = None,
    tag: Tag = None,
    header: Header = None,
    dsn: Dsn = None,
) -> None:
    """Have an action enqueued whenever a cron expression says so; each tick once, however many workers run.

    A name that is there already is changed. It wins over what code declares under the same name.
    """
    from pgfifo.scheduling import Cron

    headers = pairs_of("--header", header, json_or_text) if header else None
    content = payload_of(payload, set_)
    with connected(dsn) as fifo:
        before = next((each for each in fifo.schedules() if each.name == name), None)
        answer = fifo.set_schedule(
            name,
            action,
            cron,
            time_zone=time_zone,
            payload=content,
            group=group_of(group),
            headers=headers,
            tags=tag,
            missed=missed.value,
        )
    if answer == "same":
        note("Nothing to do: it is so already.")
        return
    undo = command("schedule", "remove", name) if before is None or before.declared else _again(before)
    did(f"{'Set' if before is None else 'Changed'} the schedule {name}, for {action}.", undo)
    if before is not None and before.declared:
        note("Code declares one of this name; this one wins over it.")
    coming = islice(Cron(cron, time_zone).after(datetime.now(UTC)), _SHOWN)
    note(f"It ticks next at {', '.join(f'{tick.astimezone():%Y-%m-%d %H:%M}' for tick in coming)}.")


@schedule.command("list")
def list_(action: AnyAction = None, json: AsJson = False, dsn: Dsn = None) -> None:
    """Show the schedules: when each ticks next, and what came of the last time."""
    with connected(dsn) as fifo:
        found = [_worked_out(each) for each in fifo.schedules(action)]
    if json:
        print_json_rows(map(asdict, found))
        return
    lines = [
        {
            "name": each.name,
            "action": each.action,
            "cron": each.cron,
            "time_zone": each.time_zone,
            "next": "paused" if each.paused else each.next_at,
            "last": each.last_tick,
            "last_execution": each.last_id,
            "missed": each.missed,
            "from": "code" if each.declared else "operator",
            "payload": each.payload,
        }
        for each in found
    ]
    print_table(lines, "No schedules.", wide=["payload"])
    for each in found:
        if each.last_error:
            note(f"{each.name}: {each.last_error}")


def _worked_out(found: "ScheduleInfo") -> "ScheduleInfo":
    """Return a schedule with its next tick, also where no worker has been there yet to work it out."""
    from pgfifo.errors import InvalidValue
    from pgfifo.scheduling import Cron

    if found.paused or found.next_at is not None:
        return found
    with suppress(InvalidValue):  # what no worker could read either: the list says so below
        return replace(found, next_at=next(Cron(found.cron, found.time_zone).after(datetime.now(UTC)), None))
    return found


@schedule.command()
def remove(name: Name, dsn: Dsn = None) -> None:
    """Remove a schedule. What it has enqueued stays."""
    with connected(dsn) as fifo:
        before = next((each for each in fifo.schedules() if each.name == name), None)
        fifo.remove_schedule(name)
    did(f"Removed the schedule {name}.", None if before is None or before.declared else _again(before))
    if before is not None and before.declared:
        note(
            "Code declares it, and does so again when it starts next. "
            f"This lasts: {command('schedule', 'pause', name)}"
        )


@schedule.command()
def pause(name: Name, reason: Reason = None, dsn: Dsn = None) -> None:
    """Let a schedule's ticks pass until it is resumed."""
    with connected(dsn) as fifo:
        changed = fifo.pause_schedule(name, reason=reason)
    if changed:
        did(f"Paused the schedule {name}: it enqueues nothing.", command("schedule", "resume", name))
    else:
        note("Nothing to do: it is paused already.")


@schedule.command()
def resume(name: Name, dsn: Dsn = None) -> None:
    """Have a paused schedule go on with its next tick; those that passed were not missed."""
    with connected(dsn) as fifo:
        changed = fifo.resume_schedule(name)
    if changed:
        did(f"Resumed the schedule {name}.", command("schedule", "pause", name))
    else:
        note("Nothing to do: it is not paused.")


def _again(before: "ScheduleInfo") -> str:
    """Return the command that sets a schedule as it was."""
    words = ["schedule", "set", before.name, before.action, before.cron, as_json(before.payload)]
    words += ["--time-zone", before.time_zone, "--missed", before.missed]
    if before.group_text is not None:
        words += ["--group", before.group_text]
    for tag in before.tags or ():
        words += ["--tag", tag]
    for key, value in (before.headers or {}).items():
        words += ["--header", f"{key}={value if isinstance(value, str) else as_json(value)}"]
    return command(*words)
