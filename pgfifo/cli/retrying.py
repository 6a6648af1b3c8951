"""Put finished executions back: by their ids, or all that fit a filter."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from pgfifo.cli.app import app
from pgfifo.cli.cancelling import read_ids
from pgfifo.cli.database import command, connected
from pgfifo.cli.exits import REFUSED, Refused
from pgfifo.cli.filtering import Before, ByAction, DryRun, Ids, Since, States, Tags, check_choice, filter_of
from pgfifo.cli.options import OPERATE, Dsn, Group
from pgfifo.cli.output import count, did, error, note, out

if TYPE_CHECKING:
    from pgfifo.filters import Filter
    from pgfifo.models import RetryAnswer

_AT_ONCE = 1000
_NAMED = 10  # more are counted
_LISTED = 200  # more do not go into one command

Head = Annotated[
    bool,
    typer.Option("--head", help="Into their old places, before all younger ones that wait; not at the end."),
]


@app.command(rich_help_panel=OPERATE)
def retry(
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
    head: Head = False,
    dry_run: DryRun = False,
    dsn: Dsn = None,
) -> None:
    """Put finished executions back: each becomes a new one at the end of its line. Their outcomes stay.

    Name them by their ids, and the ids of the new ones are printed. Or say which, with --action, --group,
    --state, --tag, --ids, and --since and --before for when they ended: without --state those that failed,
    each once. Many are put back in parts, each in a transaction of its own.
    """
    times = {"finished_since": since, "finished_before": before}
    where = filter_of(action, group, state, tag, range_, times)
    check_choice(where, ids, dry_run=dry_run, help=command("retry", "--help"))
    if where:
        _retry_where(where, head=head, dry_run=dry_run, dsn=dsn)
    else:
        _retry_ids(ids or [], head=head, dsn=dsn)


def _retry_ids(words: list[str], *, head: bool, dsn: str | None) -> None:
    """Put back what is named, and print the new ids."""
    new: list[int] = []
    refused = 0
    with connected(dsn) as fifo:
        given = read_ids(words)
        while part := list(islice(given, _AT_ONCE)):
            for answer in fifo.retry_many(part, head=head):
                if answer.answer == "retried" and answer.retry_id is not None:
                    new.append(answer.retry_id)
                    out(str(answer.retry_id))
                else:
                    refused += 1
                    error(*_refusal(answer))
    if new:
        names = f"execution{'s' if len(new) > 1 else ''} {', '.join(map(str, new))}"
        where = "in its old place" if head else "at the end of its line"
        _did(f"Put back as {names if len(new) <= _NAMED else count(len(new), 'execution')}, {where}.", new)
    elif not refused:
        note("Nothing to do: no ids.")
    if refused:
        raise typer.Exit(REFUSED)


def _did(text: str, new: list[int]) -> None:
    """Say what was done, and the command that cancels the new ones and nobody else's."""
    first, last = min(new), max(new)
    undo = None
    if len(new) > _NAMED and last - first + 1 == len(new):
        undo = command("cancel", "--ids", f"{first}..{last}")
    elif len(new) <= _LISTED:
        undo = command("cancel", *map(str, new))
    did(text, undo)
    if undo is None:
        note("No one command undoes it: in between others have enqueued too.")
        note(f"The new ones are in {first}..{last}, and have the ids of the old ones as retry_of.")


def _refusal(answer: "RetryAnswer") -> tuple[str, str | None]:
    """Say why an execution was not put back, and what to do."""
    id_ = answer.id
    return {
        "unknown": (
            f"there is no execution {id_}",
            "It may never have been committed, or its retention is over.",
        ),
        "busy": (f"another transaction holds the lane of execution {id_}", "Try again when that has ended."),
        "again": (
            f"execution {id_} has been put back already, as {answer.retry_id}, which is not finished",
            None,
        ),
        "full": (
            f"the line of execution {id_} is full",
            "Try again when it is shorter, or put it into its old place: --head.",
        ),
        "quota": (
            f"a quota is used up that execution {id_} would count for",
            f"Wait until it begins again, or raise it; {command('policy', 'show')} shows them.",
        ),
        "limit": (
            f"execution {id_} could not start at once, and its lane lets nothing wait (on_limit = cancel)",
            "Try again later, or put it into its old place: --head.",
        ),
        "closed": (f"the lane of execution {id_} is closed", None),
        "taken": (
            f"the old place of execution {id_} has another retry in it",
            "Put it at the end of the line.",
        ),
        "slot": (f"execution {id_} stood for a slot that a program held", None),
    }.get(answer.answer, (f"execution {id_} is {answer.answer}; only finished ones can be put back", None))


def _retry_where(where: "Filter", *, head: bool, dry_run: bool, dsn: str | None) -> None:
    """Put back what fits a filter."""
    with connected(dsn) as fifo:
        done = fifo.retry_where(**where, head=head, dry_run=dry_run)
    if not done.retried and not done.refused and not done.busy:
        note("Nothing to do: nothing fits that was not put back before.")
        return
    if dry_run:
        note(f"Would put back {count(done.retried, 'execution')}.")
        return
    if done.retried:
        _did(f"Put back {count(done.retried, 'execution')}.", done.ids)
    problems = []
    if done.refused:
        why = "their lines are full or closed, or another limit of enqueues is reached"
        problems.append(f"{count(done.refused, 'execution')} could not be: {why}")
    if done.busy:
        problems.append(f"{count(done.busy, 'execution')} had to be passed by: somebody keeps their lanes")
    if problems:
        raise Refused("; ".join(problems), "Run the same command again later: it goes on with these.")
