"""Single executions: look at them, cancel them, give them back."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected, rows
from pgfifo.cli.exits import REFUSED, Refused, usage
from pgfifo.cli.options import (
    LOOK,
    OPERATE,
    AnyAction,
    AsJson,
    Dsn,
    Group,
    Id,
    Reason,
    group_of,
    json_or_text,
)
from pgfifo.cli.output import (
    count,
    did,
    error,
    note,
    out,
    print_fields,
    print_json,
    print_json_rows,
    print_table,
)

if TYPE_CHECKING:
    from pgfifo.client import Client


class State(StrEnum):
    """The states, and two words for several of them."""

    DELAYED = "delayed"
    WAITING = "waiting"
    RUNNING = "running"
    HELD = "held"
    ACTIVE = "active"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FINISHED = "finished"


_SEVERAL = {
    State.ACTIVE: [State.RUNNING, State.HELD],
    State.FINISHED: [State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED],
}
_LISTED = (
    "id, action, pgfifo.format_group(group_text) as group, state, attempt, enqueued_at, started_at,"
    " finished_at, payload"
)


def _option(name: str, metavar: str, help: str) -> Any:  # noqa: ANN401, A002 - as typer.Option itself
    return typer.Option(*name.split(), metavar=metavar, help=help, show_default=False)


@app.command(rich_help_panel=LOOK)
def show(id: Id, json: AsJson = False, dsn: Dsn = None) -> None:  # noqa: A002 - the argument is called so
    """Show all about one execution: state, place in the line, payload, result, error."""
    with connected(dsn) as fifo:
        found = fifo.execution(id)
        place = fifo.position(id)
    fields = asdict(found) | {"position": place.position}
    if json:
        print_json(fields | {"position_exact": place.position is None or place.exact})
        return
    if place.position is not None and not place.exact:
        fields["position"] = f"{place.position:,} or more"
    fields["group"] = found.lane.group
    del fields["group_text"], fields["lane_id"]
    print_fields(
        {name: value for name, value in fields.items() if name == "payload" or value not in (None, "")}
    )


@app.command("list", rich_help_panel=LOOK)
def list_(
    action: AnyAction = None,
    state: Annotated[
        list[State] | None,
        _option("--state -s", "STATE", f"Only in this state: {', '.join(State)}. May be repeated."),
    ] = None,
    group: Group = None,
    tag: Annotated[list[str] | None, _option("--tag", "TAG", "Only with this tag; may be repeated.")] = None,
    ids: Annotated[str | None, _option("--ids", "FROM..TO", "Only these ids, both included.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="At most so many; 0 for all.")] = 50,
    oldest: Annotated[bool, typer.Option("--oldest", help="The oldest first, not the newest.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the ids only.")] = False,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """List executions, the newest first."""
    if group and action is None:
        raise usage("--group needs the action whose group it is")
    first, last = _range(ids)
    states = [name.value for given in state or [] for name in _SEVERAL.get(given, [given])]
    with connected(dsn) as fifo:
        asked = {
            "action = %s": action,
            "group_text = %s": _lane(fifo, action, group) if action else None,
            "state = any (%s)": states or None,
            "tags @> %s::text[]": tag or None,
            "id >= %s": first,
            "id <= %s": last,
        }
        given = {condition: value for condition, value in asked.items() if value is not None}
        query = f"select {'id' if quiet else '*' if json else _LISTED} from pgfifo.executions"  # noqa: S608
        query += f" where {' and '.join(given)}" if given else ""
        query += f" order by id {'asc' if oldest else 'desc'} limit %s"
        found = rows(fifo, query, [*given.values(), limit or None])
        if quiet:
            for row in found:
                out(str(row["id"]))
        elif json:
            print_json_rows(found)
        else:
            shown = print_table(map(_short, found), "No executions.", wide=["payload", "group"])
            if limit and shown == limit:
                note(f"The {'oldest' if oldest else 'newest'} {limit}; more with --limit.")


@app.command(rich_help_panel=OPERATE)
def cancel(
    ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="The executions; - reads ids from stdin.")
    ],
    reason: Reason = None,
    dsn: Dsn = None,
) -> None:
    """Cancel executions: those that wait at once; of those that run, the worker is asked to stop them."""
    from pgfifo.errors import UnknownExecution

    done: list[int] = []
    asked: list[int] = []
    refused = False
    with connected(dsn) as fifo:
        for id_ in _ids(ids):
            try:
                answer = fifo.cancel(id_, reason=reason)
            except UnknownExecution as unknown:
                error(unknown.message, unknown.hint)
                refused = True
                continue
            if answer == "cancelled":
                done.append(id_)
            elif answer == "requested":
                asked.append(id_)
            else:
                error(f"execution {id_} has {answer} already")
                refused = True
    if done:
        did(f"Cancelled {_named(done)}.", "there is none; what it was stays: pgfifo show ID")
    if asked:
        note(f"Asked the worker to stop {_named(asked)}; what succeeds all the same has succeeded.")
    if refused:
        raise typer.Exit(REFUSED)
    if not done and not asked:
        note("Nothing to do: no ids.")


@app.command(rich_help_panel=OPERATE)
def release(
    id: Id,  # noqa: A002 - the argument is called so
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it even if its worker is alive.")] = False,
    dsn: Dsn = None,
) -> None:
    """Give a running execution back to its place in the line, to be started again.

    Its worker loses it. Where that worker still lives, the handler may go on for a moment beside the next
    run: so this is refused without --yes.
    """
    with connected(dsn) as fifo:
        found = fifo.execution(id)
        if found.state != "running":
            raise Refused(f"execution {id} is {found.state}; only running ones can be released")
        workers = {worker.id: worker for worker in fifo.workers() if worker.state == "alive"}
        worker = workers.get(found.worker_id or 0)
        if worker and not yes:
            raise Refused(
                f"worker {worker.name} (pid {worker.pid} on {worker.host}) runs execution {id} now",
                f"To have it stopped: {command('cancel', str(id))}. To release it all the same, add --yes.",
            )
        fifo.release(id, found.attempt)
    did(
        f"Released execution {id}: it is back in its place in the line.",
        f"{command('cancel', str(id))} ends it",
    )


@app.command(rich_help_panel=OPERATE)
def finish(
    id: Id,  # noqa: A002 - the argument is called so
    succeeded: Annotated[bool, typer.Option("--succeeded", help="It is done.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="It has failed; it is not tried again.")] = False,
    cancelled: Annotated[bool, typer.Option("--cancelled", help="It is not wanted any more.")] = False,
    reason: Reason = None,
    result: Annotated[
        str | None, _option("--result", "JSON", "With --succeeded: what it gave, as JSON or text.")
    ] = None,
    dsn: Dsn = None,
) -> None:
    """End an execution that is stuck, whatever it is doing, with an outcome of your choice.

    The worker that has it loses it: it is told to stop its handler by its next heartbeat, and nothing that it
    says of it counts any more. Until then the handler may go on beside the next execution of its lane.
    """
    asked: dict[Literal["succeeded", "failed", "cancelled"], bool]
    asked = {"succeeded": succeeded, "failed": failed, "cancelled": cancelled}
    chosen = [outcome for outcome, wanted in asked.items() if wanted]
    if len(chosen) != 1:
        raise usage("say how it ends: one of --succeeded, --failed and --cancelled")
    if result is not None and not succeeded:
        raise usage("--result goes with --succeeded only")
    with connected(dsn) as fifo:
        found = fifo.execution(id)
        workers = {worker.id: worker for worker in fifo.workers() if worker.state == "alive"}
        given = None if result is None else json_or_text(result)
        if not fifo.finish_execution(id, chosen[0], reason=reason, result=given):
            raise Refused(f"execution {id} has {fifo.execution(id).state} already")
    did(
        f"Finished execution {id}, which was {found.state}: {chosen[0]}.",
        "there is none; what it was stays: pgfifo show ID",
    )
    if found.state == "running" and (worker := workers.get(found.worker_id or 0)):
        note(f"Worker {worker.name} (pid {worker.pid} on {worker.host}) loses it with its next heartbeat.")


def _lane(fifo: "Client", action: str, group: list[str] | None) -> str | None:
    """Return the canonical text of a group that was given, after a look whether there is such an action."""
    lanes = fifo.lanes(action, group_of(group), limit=1)
    if not group:
        return None
    if not lanes:
        raise Refused(f"{action} has no lane {' '.join(group)}", f"Its lanes: {command('lanes', action)}")
    return lanes[0].group_text


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the list as a table shows it."""
    payload, finished, started = row.pop("payload"), row.pop("finished_at"), row.pop("started_at")
    return row | {"last_change": finished or started or row["enqueued_at"], "payload": payload}


def _range(text: str | None) -> tuple[int | None, int | None]:
    """Read a range of ids."""
    if text is None:
        return None, None
    first, dots, last = text.partition("..")
    if not dots:
        last = first
    try:
        return int(first) if first else None, int(last) if last else None
    except ValueError:
        raise usage(
            f"--ids {text!r} is no range of ids", "Write it like 17..1016, 17.., ..1016 or 17."
        ) from None


def _ids(words: Iterable[str]) -> Iterator[int]:
    """Read ids, from stdin where a word is a dash."""
    for word in words:
        for text in (line.strip() for line in sys.stdin) if word == "-" else [word]:
            if text.isascii() and text.isdigit() and len(text) < 19:
                yield int(text)
            elif text:
                raise usage(f"{text!r} is no id of an execution")


def _named(ids: list[int]) -> str:
    """Name executions, or count them where they are many."""
    return f"execution {', '.join(map(str, ids))}" if len(ids) <= 10 else count(len(ids), "execution")
