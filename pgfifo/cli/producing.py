"""Enqueue: one execution, or a file of them."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command, connected
from pgfifo.cli.exits import usage
from pgfifo.cli.later import Delay, RunAt, one_time
from pgfifo.cli.options import (
    PRODUCE,
    Action,
    AsJson,
    Dsn,
    Group,
    Id,
    duration,
    group_of,
    json_or_text,
    pairs_of,
)
from pgfifo.cli.options import tag as tag_of
from pgfifo.cli.output import as_json, did, note, out, print_json, show

if TYPE_CHECKING:
    from pgfifo.client import Client
    from pgfifo.jsontext import JsonText

Payload = Annotated[
    str | None,
    typer.Argument(metavar="[PAYLOAD]", help="The payload, as JSON. [default: {}]", show_default=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Set a value in the payload, as customer=1 or target.region=eu; may be repeated. "
        "A value that is JSON is taken as JSON, any other as text.",
        show_default=False,
    ),
]
File = Annotated[
    str | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="Enqueue a file of one JSON object a line; - is stdin.",
        show_default=False,
    ),
]
Tag = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG", help="A tag; may be repeated.", parser=tag_of, show_default=False),
]
Header = Annotated[
    list[str] | None,
    typer.Option("--header", metavar="KEY=VALUE", help="A header; may be repeated.", show_default=False),
]
RequestId = Annotated[
    str | None,
    typer.Option(
        "--request-id",
        metavar="TEXT",
        help="A name for this request: made again with the same one, it enqueues nothing, "
        "and prints the first one's id.",
        show_default=False,
    ),
]
DedupKey = Annotated[
    str | None,
    typer.Option(
        "--dedup-key",
        metavar="TEXT",
        help="A name for this piece of work: while one of the action has it and has not ended, nothing is "
        "enqueued, and that one's id is printed.",
        show_default=False,
    ),
]
ItemKey = Annotated[
    str | None,
    typer.Option(
        "--item-key",
        metavar="TEXT",
        help="A name for what it is about: while one of the lane has it and waits, that one keeps its place, "
        "--on-item says what its payload becomes, and its id is printed.",
        show_default=False,
    ),
]
OnItem = Annotated[
    Literal["immutable", "replace", "merge_patch"] | None,
    typer.Option(
        "--on-item",
        help="With --item-key: leave the payload of the one that waits, replace it, or lay this one over it "
        "(RFC 7396). [default: immutable]",
        show_default=False,
    ),
]
Envelope = Annotated[
    bool,
    typer.Option(
        "--envelope",
        help="With --file: each line says more than its payload, as "
        '{"payload": {"n": 1}, "group": {"env": "prod"}, "run_at": "2026-01-31T12:00Z"}; also headers, '
        "tags, request_id, dedup_key and item_key. What it leaves out is as the other options say.",
    ),
]
CommitEvery = Annotated[
    int | None,
    typer.Option(
        "--commit-every",
        metavar="LINES",
        min=1,
        help="Lines in a transaction. [default: 1000]",
        show_default=False,
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave bad lines out; else a file with any is refused.")
]
Resume = Annotated[
    int | None,
    typer.Option(
        "--resume", metavar="IMPORT", min=1, help="Go on with an import that has stopped.", show_default=False
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for its end, and print its result.")]
Timeout = Annotated[
    float | None,
    duration("--timeout", "How long to wait, as 30s; then the exit status is 5. [default: no limit]"),
]


@app.command(rich_help_panel=PRODUCE)
def enqueue(
    action: Action,
    payload: Payload = None,
    set_: Set = None,
    file: File = None,
    group: Group = None,
    tag: Tag = None,
    header: Header = None,
    request_id: RequestId = None,
    dedup_key: DedupKey = None,
    item_key: ItemKey = None,
    on_item: OnItem = None,
    run_at: RunAt = None,
    delay: Delay = None,
    envelope: Envelope = False,
    commit_every: CommitEvery = None,
    skip_bad: SkipBad = False,
    resume: Resume = None,
    wait: Wait = False,
    timeout: Timeout = None,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Put an execution, or each line of a file, at the end of its lane, now or later.

    Prints the execution's id, or the number of the import; with --wait its result, as JSON.

    A file is read twice: first to check each line, then to enqueue them in batches, each in a transaction
    that also records how far it has come. If it stops, --resume goes on with the very next line.
    """
    from pgfifo import durations

    headers = pairs_of("--header", header, json_or_text) if header else None
    one_time(run_at, delay)
    keys = {"--request-id": request_id, "--dedup-key": dedup_key, "--item-key": item_key}
    if on_item is not None and item_key is None and not envelope:
        raise usage("--on-item belongs to --item-key, or to --envelope")
    if file is None and resume is None:
        if commit_every is not None or skip_bad or envelope:
            raise usage("--envelope, --commit-every and --skip-bad belong to --file")
        if timeout is not None and not wait:
            raise usage("--timeout belongs to --wait")
        with connected(dsn) as fifo:
            job = fifo.enqueue(
                action,
                payload_of(payload, set_),
                group=group_of(group),
                headers=headers,
                tags=tag,
                request_id=request_id,
                dedup_key=dedup_key,
                item_key=item_key,
                on_item=on_item or "immutable",
                run_at=run_at,
                delay=delay,
            )
            if wait:
                what = "Enqueued execution" if job.created else "Nothing was enqueued: there was execution"
                note(f"{what} {job.id} in {job.lane}; waiting for its end.")
                _print_outcome(fifo, job.id, timeout, json=json)
                return
        if json:
            row = {"id": job.id, "created": job.created, "action": action, "group_text": job.lane.group_text}
            print_json(row)
        else:
            out(str(job.id))
        if job.created:
            when = "" if run_at is None else f", to join it at {show(run_at)}"
            when = f", to join it in {durations.text(delay)}" if delay else when
            did(f"Enqueued in {job.lane}{when}.", command("cancel", str(job.id)))
        elif item_key is None or request_id is not None or on_item in (None, "immutable"):
            did(f"Nothing was enqueued: execution {job.id} in {job.lane} was there already.")
        else:
            change = "replaced" if on_item == "replace" else "patched"
            did(f"Nothing was enqueued: the payload of execution {job.id} in {job.lane} was {change}.")
        return
    if wait or timeout is not None:
        raise usage("--wait and --timeout belong to one execution, not to --file")
    if payload is not None or set_:
        raise usage("a payload and --file exclude each other")
    for name, key in keys.items():
        if key is not None:
            raise usage(
                f"{name} belongs to one execution, and a file holds many", "Say it in each line: --envelope."
            )
    from pgfifo.cli.filing import Options, enqueue_file

    repeated = {
        "--group": group,
        "--tag": tag,
        "--header": header,
        "--run-at": None if run_at is None else [run_at.isoformat()],
        "--delay": None if delay is None else [f"{delay:g}s"],
        "--on-item": None if on_item is None else [on_item],
    }
    words = [word for name, values in repeated.items() for value in values or [] for word in (name, value)]
    words += ["--envelope"] * envelope
    given = (action, file, group_of(group), headers, tag, run_at, delay, envelope, on_item or "immutable")
    enqueue_file(Options(*given, commit_every, skip_bad, resume, json, words), dsn)


@app.command(rich_help_panel=PRODUCE)
def wait(id: Id, timeout: Timeout = None, json: AsJson = False, dsn: Dsn = None) -> None:  # noqa: A002 - its name
    """Wait for the end of an execution, and print its result as JSON.

    The exit status is 1 if it ended in any other way than succeeded, and 5 if it did not end in time; it goes
    on then.
    """
    with connected(dsn) as fifo:
        _print_outcome(fifo, id, timeout, json=json)


def _print_outcome(fifo: "Client", id_: int, timeout: float | None, *, json: bool) -> None:
    """Wait for an execution and print what came of it."""
    from pgfifo.errors import ExecutionFailed, WaitTimeout

    try:
        result = fifo.wait(id_, timeout=timeout)
    except ExecutionFailed as failed:
        if json:
            print_json({"id": id_, "outcome": failed.outcome, "result": None, "error": failed.error})
        raise
    except WaitTimeout as late:
        if json:
            known = {"id": id_, "outcome": None, "result": None, "error": None}
            print_json(known | {"reasons": late.reasons, "explanation": late.explanation})
        raise
    print_json({"id": id_, "outcome": "succeeded", "result": result, "error": None} if json else result)


def payload_of(text: str | None, settings: list[str] | None) -> "JsonText":
    """Return the payload that the command line gives."""
    from pgfifo.jsontext import JsonText, UnstorableError, read

    try:
        value: Any = read(text) if text is not None else {}
    except ValueError as error:
        hint = "In a shell, put single quotes around it: '{\"customer\":1}'"
        if isinstance(error, UnstorableError):
            hint = "It is JSON, but nothing that PostgreSQL could store: remove it."
        raise usage(f"the payload cannot be enqueued: {error}", hint) from None
    if not settings:
        return JsonText("{}" if text is None else text)
    if not isinstance(value, dict):
        raise usage("--set needs a payload that is an object")
    values = pairs_of("--set", settings, json_or_text)
    for path in values:
        if longer := [other for other in values if other.startswith(f"{path}.")]:
            raise usage(f"--set {path} and --set {longer[0]} exclude each other: one is a part of the other")
    for path, given in values.items():
        *way, last = path.split(".")
        place = value
        for key in way:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise usage(f"--set {path}: {key!r} is not an object")
        place[last] = given
    changed = as_json(value)
    try:
        read(changed)
    except ValueError as error:
        raise usage(f"the payload cannot be enqueued: {error}") from None
    return JsonText(changed)
