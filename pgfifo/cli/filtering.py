"""Options that say which executions are meant, and the filter that they make."""

import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgfifo.cli.exits import usage
from pgfifo.cli.options import group_of, tag

if TYPE_CHECKING:
    from datetime import datetime

    from pgfifo.filters import Filter


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


SEVERAL = {
    State.ACTIVE: [State.RUNNING, State.HELD],
    State.FINISHED: [State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED],
}


def states_of(given: Iterable[State] | None) -> list[str]:
    """Return the states that ``--state`` gives."""
    return [state.value for each in given or () for state in SEVERAL.get(each, [each])]


def _moment(text: str) -> "float | datetime":
    """Read a time: how long ago, as ``2h``, or ISO 8601, in the local time zone if it names none."""
    from datetime import datetime

    from pgfifo import durations
    from pgfifo.errors import InvalidValue

    try:
        return durations.seconds(text)
    except InvalidValue:
        pass
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time. Write it like 2h or 30m (so long ago), 2026-01-31 or 2026-01-31T12:00."
        ) from None


def _which(*names: str, metavar: str, help: str, parser: Callable[[str], Any] | None = None) -> Any:  # noqa: ANN401, A002
    return typer.Option(*names, metavar=metavar, help=help, parser=parser, show_default=False)


ByAction = Annotated[str | None, _which("--action", "-a", metavar="ACTION", help="All of this action.")]
States = Annotated[
    list[State] | None,
    _which(
        "--state", "-s", metavar="STATE", help=f"Only in this state: {', '.join(State)}. May be repeated."
    ),
]
Tags = Annotated[
    list[str] | None,
    _which("--tag", metavar="TAG", help="Only with this tag; may be repeated.", parser=tag),
]
Ids = Annotated[str | None, _which("--ids", metavar="FROM..TO", help="Only these ids, both included.")]
Since = Annotated[
    Any, _which("--since", metavar="TIME", help="Not older: 2h ago, or a time in ISO 8601.", parser=_moment)
]
Before = Annotated[
    Any, _which("--before", metavar="TIME", help="Older: before 2h ago, or before that time.", parser=_moment)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def filter_of(
    action: str | None,
    group: Iterable[str] | None,
    state: Iterable[State] | None,
    tags: Iterable[str] | None,
    ids: str | None,
    times: "Mapping[str, float | datetime | None]",
) -> "Filter":
    """Return the filter that these options give; empty, if none of them is given.

    Args:
        action: ``--action``.
        group: ``--group``.
        state: ``--state``.
        tags: ``--tag``.
        ids: ``--ids``.
        times: ``--since`` and ``--before``, under the keys of the filter that they stand for.
    """
    if group and action is None:
        raise usage("--group needs the action whose group it is")
    first, last = range_of(ids)
    asked = {
        "action": action,
        "group": group_of(group),
        "state": states_of(state) or None,
        "tags": list(tags or ()) or None,
        "from_id": first,
        "to_id": last,
        **times,
    }
    given: Filter = {name: value for name, value in asked.items() if value is not None}  # type: ignore[assignment]
    return given


def check_choice(where: "Filter", ids: list[str] | None, *, dry_run: bool, help: str) -> None:  # noqa: A002
    """Refuse to say which executions in two ways, or in none.

    Args:
        where: What `filter_of` returned.
        ids: Those that are named.
        dry_run: ``--dry-run``.
        help: The command that explains it.
    """
    if where and ids:
        raise usage("either name executions by their ids, or say which with options")
    if dry_run and not where:
        raise usage("--dry-run goes with options that say which executions")
    if not where and ids is None:
        raise usage("which executions?", f"Give ids, or options such as --action; see: {help}")


def range_of(text: str | None) -> tuple[int | None, int | None]:
    """Read a range of ids."""
    if text is None:
        return None, None
    first, dots, last = text.partition("..")
    if not dots:
        last = first
    if not (first or last) or any(part and not re.fullmatch(r"[0-9]{1,18}", part) for part in (first, last)):
        hint = "Write it like 17..1016, 17.., ..1016 or 17."
        raise usage(f"--ids {text!r} is no range of ids", hint)
    if first and last and int(first) > int(last):
        raise usage(f"--ids {text} is an empty range", f"The smaller one comes first: {last}..{first}")
    return int(first) if first else None, int(last) if last else None
