"""Statistics, lanes, places in the line, and the check of everything."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected, rows
from pgfifo.cli.exits import INTERRUPTED, REFUSED
from pgfifo.cli.options import (
    LOOK,
    OPERATE,
    Action,
    All,
    AnyAction,
    AsJson,
    Dsn,
    Id,
    Limit,
    duration,
    some_seconds,
)
from pgfifo.cli.output import (
    count,
    flush,
    note,
    out,
    print_fields,
    print_json,
    print_json_rows,
    print_paragraph,
    print_table,
    span,
    table,
)

if TYPE_CHECKING:
    from pgfifo.client import Client

Row = dict[str, Any]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.")]
Every = Annotated[float, duration("--every", "With --watch: how often. [default: 1s]", some_seconds)]

_HEADINGS = {
    "queue_length": "waiting",
    "active_count": "active",
    "delayed_count": "delayed",
    "max_concurrent": "slots",
    "total_succeeded": "succeeded",
    "total_failed": "failed",
    "total_cancelled": "cancelled",
    "total_expired": "expired",
}
_LANES = (
    # Which ones is decided by as few columns as do: the others cost a look into the line of each lane.
    "select l.*, pgfifo.format_group(l.group_text) as shown from pgfifo.lane_stats l"
    " where l.lane_id in (select b.lane_id from pgfifo.lane_stats b where b.action = %s"
    " order by b.queue_length + b.active_count desc, b.group_text limit %s)"
    " order by l.queue_length + l.active_count desc, l.group_text"
)


@app.command(rich_help_panel=LOOK)
def stats(
    action: AnyAction = None, watch: Watch = False, every: Every = 1.0, json: AsJson = False, dsn: Dsn = None
) -> None:
    """Show how many wait, are active and have finished, per action."""

    def read(fifo: "Client") -> list[Row]:
        return [asdict(each) for each in (fifo.stats() if action is None else [fifo.stats(action)])]

    def view(row: Row) -> Row:
        return {"action": row["action"], "lanes": row["lanes"], **_counts(row)}

    with connected(dsn) as fifo:
        empty = "No actions yet; an enqueue makes one."
        _show(lambda: read(fifo), view, empty, watch=watch, every=every, json=json)


@app.command(rich_help_panel=LOOK)
def lanes(
    action: Action,
    limit: Limit = 50,
    all_: All = False,
    watch: Watch = False,
    every: Every = 1.0,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Show the lanes of an action, the busiest first."""

    def view(row: Row) -> Row:
        return {"group": row["shown"] or "-", **_counts(row)}

    with connected(dsn) as fifo:
        fifo.effective_policy(action)  # refuses an action that there is not

        def read() -> list[Row]:
            return list(rows(fifo, _LANES, [action, None if all_ else limit]))

        empty = f"{action} has no lanes now."
        found = _show(read, view, empty, watch=watch, every=every, json=json)
        if found == limit and not all_:
            note(f"The busiest {limit:,}; more with --limit or --all.")


@app.command(rich_help_panel=LOOK)
def pace(
    action: Action,
    minutes: Annotated[
        int, typer.Option("--minutes", "-m", min=1, max=10080, help="Over so many minutes, a week at most.")
    ] = 10,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Show how an action has got on of late: enqueued, started, ended, with mean times."""
    with connected(dsn) as fifo:
        found = asdict(fifo.pace(action, minutes))
    if json:
        print_json(found)
    else:
        print_fields(found)


@app.command(rich_help_panel=LOOK)
def audit(
    action: AnyAction = None,
    what: Annotated[
        str | None, typer.Option("--what", metavar="WHAT", help="Only this, as pause.", show_default=False)
    ] = None,
    limit: Limit = 50,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Show what people and programs did to how the queue runs, newest first."""
    from pgfifo import groups

    with connected(dsn) as fifo:
        if action is not None:
            fifo.stats(action)  # refuses an action that there is not
        found = fifo.audit(action, what=what, limit=limit)
    if json:
        print_json_rows(map(asdict, found))
        return
    print_table(
        (
            {
                "at": each.at,
                "by": each.actor or each.who,
                "what": each.what,
                "of": groups.lane(each.action, each.group_text or "") if each.action else None,
                "application": each.application,
                "detail": each.detail,
            }
            for each in found
        ),
        "Nothing is on record.",
        wide=["application", "detail"],
    )


@app.command(rich_help_panel=LOOK)
def position(id: Id, json: AsJson = False, dsn: Dsn = None) -> None:  # noqa: A002 - the argument is called so
    """Show how far an execution is from its turn, 1 is next; and when that will probably be."""
    with connected(dsn) as fifo:
        place = fifo.position(id)
        state = fifo.execution(id).state
    if json:
        print_json({"id": id, "state": state} | asdict(place))
    elif place.position is None:
        note(f"Execution {id} is {state}: it is not in the line.")
        out("-")
    else:
        if not place.exact:
            note("At least so far: beyond 10,000 they are not counted.")
        if place.eta_seconds is not None:
            basis = "its lane has moved" if place.eta_basis == "lane" else "its action's have run"
            note(f"It will start in about {span(place.eta_seconds)}, as {basis} of late.")
        out(str(place.position))


@app.command(rich_help_panel=LOOK)
def explain(id: Id, json: AsJson = False, dsn: Dsn = None) -> None:  # noqa: A002 - the argument is called so
    """Say why an execution is not running: who is ahead, who has the slots, what it waits for."""
    with connected(dsn) as fifo:
        found = fifo.explain(id)
    if json:
        print_json(found.data)
    else:
        print_paragraph(found.explanation)


@app.command(rich_help_panel=OPERATE)
def check(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Compare the books with the rows, and the starts with the promises. Exit code 1 on findings."""
    with connected(dsn) as fifo:
        found = [asdict(finding) for finding in fifo.check(repair=repair)]
    if json:
        print_json_rows(found)
    else:
        print_table(found, "Everything is in order.", wide=["detail"])
    if found:
        more = f" What can be mended has been; look again with: {command('check')}" if repair else ""
        note(f"{count(len(found), 'finding')}.{more}")
        raise typer.Exit(REFUSED)


def _counts(row: Row) -> Row:
    """Return the numbers of a line of statistics, with short headings."""
    oldest = row["oldest_enqueued_at"]
    shown: Row = {heading: row[name] for name, heading in _HEADINGS.items()}
    shown["oldest"] = span(max(0.0, (datetime.now(UTC) - oldest).total_seconds())) if oldest else "-"
    states = []
    if row["paused"]:
        states.append(f"paused ({row['paused_reason']})" if row["paused_reason"] else "paused")
    elif row.get("paused_lanes"):
        states.append(f"{count(row['paused_lanes'], 'lane')} paused")
    if row["closed"]:
        states.append("closed")
    return shown | {"state": ", ".join(states)}


def _show(
    read: Callable[[], list[Row]],
    view: Callable[[Row], Row],
    empty: str,
    *,
    watch: bool,
    every: float,
    json: bool,
) -> int:
    """Show statistics, once or again and again; return how many lines there were."""
    if not watch:
        found = read()
        if json:
            print_json_rows(map(_public, found))
        else:
            print_table([view(row) for row in found], empty, wide=["state"])
        return len(found)
    with suppress(KeyboardInterrupt), _screen(tables=not json) as draw:
        while True:
            found = read()
            if json:
                print_json([_public(row) for row in found])
                flush()
            else:
                draw(table([view(row) for row in found]) if found else [empty])
            time.sleep(every)
    raise typer.Exit(INTERRUPTED)  # the way out of it, and nothing to complain of


def _public(row: Row) -> Row:
    """Return a line of statistics as the view has it."""
    return {name: value for name, value in row.items() if name != "shown"}


@contextmanager
def _screen(*, tables: bool) -> Iterator[Callable[[Sequence[str]], None]]:
    """Draw over what was drawn before, on a terminal; elsewhere one below the other."""
    if not (tables and sys.stdout.isatty()):

        def plain(lines: Sequence[str]) -> None:
            out("\n".join([*lines, ""]))
            flush()

        yield plain
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(highlight=False), auto_refresh=False, screen=True) as live:

        def draw(lines: Sequence[str]) -> None:
            room = max(1, live.console.size.height - 1)
            text = Text.from_ansi("\n".join(lines[:room]), no_wrap=True, overflow="crop")
            live.update(text, refresh=True)

        yield draw
