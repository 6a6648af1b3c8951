"""Single executions: look at them, cancel them, give them back."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pgfifo.cli.app import app
from pgfifo.cli.cancelling import cancel_ids
from pgfifo.cli.database import check_schema, command, connected, rows
from pgfifo.cli.exits import Refused, usage
from pgfifo.cli.filtering import (
    Before,
    ByAction,
    DryRun,
    Ids,
    Since,
    States,
    Tags,
    check_choice,
    filter_of,
    states_of,
)
from pgfifo.cli.options import (
    LOOK,
    OPERATE,
    All,
    AnyAction,
    AsJson,
    Dsn,
    Group,
    Id,
    Limit,
    Reason,
    group_of,
    json_or_text,
)
from pgfifo.cli.output import (
    as_json,
    attempt_line,
    count,
    did,
    note,
    out,
    print_fields,
    print_json,
    print_json_rows,
    print_table,
)

if TYPE_CHECKING:
    from typing import LiteralString

    from pgfifo.client import Client
    from pgfifo.filters import Filter


_LONGEST = 80
_AT_ONCE = 5000
_LISTED = (
    "id, action, pgfifo.format_group(group_text) as group, state, attempt, enqueued_at, started_at,"
    " finished_at, payload"
)


def _option(name: str, metavar: str, help: str) -> Any:  # noqa: ANN401, A002 - as typer.Option itself
    return typer.Option(*name.split(), metavar=metavar, help=help, show_default=False)


@app.command(rich_help_panel=LOOK)
def show(id: Id, json: AsJson = False, dsn: Dsn = None) -> None:  # noqa: A002 - the argument is called so
    """Show all about one execution: state, place in the line, payload, result, error, earlier attempts."""
    with connected(dsn) as fifo:
        found = fifo.execution(id)
        place = fifo.position(id)
    fields = asdict(found) | {"position": place.position}
    if json:
        print_json(fields | {"position_exact": place.position is None or place.exact})
        return
    if place.position is not None and not place.exact:
        fields["position"] = f"{place.position:,} or more"
    if found.progress is not None:
        fields["progress"] = f"{found.progress:.0%}"
    fields["group"] = found.lane.group
    # Of the last one, the other lines tell.
    fields["earlier_attempts"] = [attempt_line(each) for each in found.attempts or ()] or None
    del fields["group_text"], fields["lane_id"], fields["attempts"]
    print_fields(
        {name: value for name, value in fields.items() if name == "payload" or value not in (None, "")},
        lists=["earlier_attempts"],
    )


@app.command("list", rich_help_panel=LOOK)
def list_(
    action: AnyAction = None,
    state: States = None,
    group: Group = None,
    tag: Tags = None,
    ids: Ids = None,
    since: Since = None,
    before: Before = None,
    limit: Limit = 50,
    all_: All = False,
    oldest: Annotated[bool, typer.Option("--oldest", help="The oldest first, not the newest.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the ids only.")] = False,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """List executions, the newest first.

    In the table, payloads are cut off after 80 characters; --json prints all of them, and so does show.
    """
    where = filter_of(action, group, state, tag, ids, {"enqueued_since": since, "enqueued_before": before})
    listed = _LISTED
    if {"delayed", "held"} & set(states_of(state)):
        listed = listed.replace("payload", "due_at, payload")
    with connected(dsn) as fifo:
        check_schema(fifo)
        columns: LiteralString = "id" if quiet else "*" if json else listed
        found = _listed(fifo, columns, where, None if all_ else limit, oldest=oldest)
        if quiet:
            for row in found:
                out(str(row["id"]))
        elif json:
            print_json_rows(found)
        else:
            shown = print_table(map(_short, found), "No executions.", wide=["payload", "group"])
            if not shown and group and action:
                _refuse_unknown_lane(fifo, action, group)
            if shown == limit and not all_:
                note(f"The {'oldest' if oldest else 'newest'} {limit:,}; more with --limit or --all.")


def _listed(
    fifo: "Client", columns: "LiteralString", where: "Filter", limit: int | None, *, oldest: bool
) -> Iterator[dict[str, Any]]:
    """Yield executions, some at a time, each part in a statement of its own."""
    from psycopg.rows import dict_row

    from pgfifo.filters import filter_json

    query = f"select {columns} from pgfifo.list_executions(%s::jsonb, %s, %s)"  # noqa: S608 - none of it is anybody's text
    end = "from_id" if oldest else "to_id"
    left = math.inf if limit is None else limit
    while True:
        size = int(min(left, _AT_ONCE))
        with fifo.transaction() as conn, conn.cursor(row_factory=dict_row) as cursor:
            part = cursor.execute(query, (filter_json(where, empty=True), size, oldest)).fetchall()
        yield from part
        left -= len(part)
        if len(part) < size or not left:
            return
        where = {**where, end: part[-1]["id"] + (1 if oldest else -1)}  # type: ignore[misc]


@app.command(rich_help_panel=OPERATE)
def cancel(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="The executions; - reads ids from stdin.")
    ] = None,
    action: ByAction = None,
    group: Group = None,
    state: States = None,
    tag: Tags = None,
    since: Since = None,
    before: Before = None,
    range_: Ids = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    dsn: Dsn = None,
) -> None:
    """Cancel executions: those that wait at once; of those that run, the worker is asked to stop them.

    Name them by their ids, or say which: with --action, --group, --state, --tag, --ids, and --since and
    --before for when they were enqueued. Many are cancelled in parts, each in a transaction of its own.
    """
    times = {"enqueued_since": since, "enqueued_before": before}
    where = filter_of(action, group, state, tag, range_, times)
    check_choice(where, ids, dry_run=dry_run, help=command("cancel", "--help"))
    if where:
        words = _where_words(action, group, tag, range_)
        _cancel_where(where, words, reason, dry_run=dry_run, dsn=dsn)
    else:
        cancel_ids(ids or [], reason, dsn)


def _where_words(
    action: str | None, group: Iterable[str] | None, tag: Iterable[str] | None, range_: str | None
) -> list[str]:
    """Return the options that say which executions, but for states and times, which a cancel changes."""
    words = [] if action is None else ["--action", action]
    words += [word for pair in group or () for word in ("--group", pair)]
    words += [word for each in tag or () for word in ("--tag", each)]
    return words + ([] if range_ is None else ["--ids", range_])


def _now(fifo: "Client") -> str:
    """Return the server's time."""
    (row,) = rows(fifo, "select clock_timestamp() as now")
    return str(row["now"].isoformat())


def _cancel_where(
    where: "Filter", words: list[str], reason: str | None, *, dry_run: bool, dsn: str | None
) -> None:
    """Cancel what fits a filter."""
    with connected(dsn) as fifo:
        begun = _now(fifo)
        done = fifo.cancel_where(**where, reason=reason, dry_run=dry_run)
        ended = _now(fifo)
    if not done.cancelled and not done.requested and not done.busy:
        note("Nothing to do: no execution that is not finished fits.")
        return
    if dry_run:
        asked = count(done.requested, "that runs", "that run")
        note(f"Would cancel {count(done.cancelled, 'execution')}, and ask the workers to stop {asked}.")
        return
    did(
        f"Cancelled {count(done.cancelled, 'execution')}.",
        command("retry", *words, "--state", "cancelled", "--since", begun, "--before", ended, "--head"),
    )
    if done.requested:
        note(
            f"Asked the workers to stop {count(done.requested, 'execution')};"
            " what succeeds all the same has succeeded."
        )
    if done.busy:
        raise Refused(
            f"{count(done.busy, 'lane')} had to be passed by: somebody's open transaction keeps them",
            "Run the same command again.",
        )


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

    The worker that has it loses it: it is told to stop its handler, at once or by its next heartbeat, and
    nothing that it says of it counts any more. Until then the handler may go on beside the next execution of
    its lane.
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
        f"there is none; what it was stays: {command('show', 'ID')}",
    )
    if found.state == "running" and (worker := workers.get(found.worker_id or 0)):
        where = f"(pid {worker.pid} on {worker.host})"
        note(f"Worker {worker.name} {where} loses it now, or with its next heartbeat.")


def _refuse_unknown_lane(fifo: "Client", action: str, group: list[str]) -> None:
    """Refuse a group that nothing was found of, if there is no such lane either."""
    if not fifo.lanes(action, group_of(group), limit=1):
        raise Refused(f"{action} has no lane {' '.join(group)}", f"Its lanes: {command('lanes', action)}")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the list as a table shows it."""
    payload, finished, started = as_json(row.pop("payload")), row.pop("finished_at"), row.pop("started_at")
    if len(payload) > _LONGEST:
        payload = payload[: _LONGEST - 1] + "…"
    return row | {"last_change": finished or started or row["enqueued_at"], "payload": payload}
