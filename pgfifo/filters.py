"""What bulk changes are about: the keys of a filter, and how they are said to SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypedDict, get_args

from pgfifo import groups
from pgfifo._given import brief, id_, listed, text, texts
from pgfifo.durations import Duration, seconds
from pgfifo.errors import InvalidValue
from pgfifo.groups import Group
from pgfifo.jsontext import dumps
from pgfifo.models import State

Moment = datetime | Duration
"""A time; or how long ago, by the server's clock, as text, seconds or a timedelta."""


class Which(TypedDict, total=False):
    """Which executions are meant, where the action is said by itself: those that fit all that is said."""

    group: Group
    """Of this lane; needs the action."""
    state: State | Sequence[State]
    """In this state, or in one of these."""
    tags: Sequence[str]
    """With all of these tags."""
    enqueued_since: Moment
    """Enqueued at this time or later."""
    enqueued_before: Moment
    """Enqueued before this time."""
    finished_since: Moment
    """Finished at this time or later."""
    finished_before: Moment
    """Finished before this time."""
    from_id: int
    """With this id or a higher one."""
    to_id: int
    """With this id or a lower one."""


class Filter(Which, total=False):
    """Which executions are meant: those that fit everything that is said."""

    action: str
    """Of this action."""


_TIMES = ("enqueued_since", "enqueued_before", "finished_since", "finished_before")


def filter_json(given: Filter, *, empty: bool = False) -> str:
    """Return a filter as SQL takes it; what is None says nothing.

    Args:
        given: The filter.
        empty: Whether it may say nothing at all, and mean everything.

    Raises:
        InvalidValue: A key does not exist, a time is none, or nothing is said at all.
    """
    values: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    unknown = values.keys() - Filter.__annotations__.keys()
    if unknown or not (values or empty):
        raise InvalidValue(
            f"a filter has no key {min(unknown)!r}" if unknown else "a filter has to say something",
            detail={"name": min(unknown) if unknown else "filter"},
            hint=f"There are: {', '.join(Filter.__annotations__)}.",
        )
    for name in _TIMES:
        if name in values:
            values[name] = _moment(name, values[name])
    if "group" in values:
        values["group"] = groups.to_text(given["group"])
    if "tags" in values:
        values["tags"] = texts(given["tags"], "tags")
    if "state" in values:
        values["state"] = states(given["state"])
    if "action" in values:
        text(given["action"], "action")
    for name in ("from_id", "to_id"):
        if name in values:
            values[name] = id_(values[name], name)
    return dumps(values, "filter")


def _moment(name: str, value: object) -> object:
    """Return a time as SQL takes it: ISO 8601, or a number of seconds ago."""
    if not isinstance(value, datetime):
        return seconds(value, name)  # type: ignore[arg-type]  # which refuses what is none
    if value.utcoffset() is None:
        raise InvalidValue(
            f"{name} {value} does not say in which time zone",
            detail={"name": name, "value": str(value)},
            hint="Use datetime.now(timezone.utc) - timedelta(…), or .astimezone().",
        )
    return value.isoformat()


def states(value: object, name: str = "state") -> list[State]:
    """Return one state or several as a list."""
    found = [value] if isinstance(value, str) else listed(value, name, "states")  # type: ignore[arg-type]
    for each in found:
        if each not in get_args(State):
            raise InvalidValue(
                f"{brief(each)} is no state",
                detail={"name": name, "value": brief(each)},
                hint=f"There are: {', '.join(get_args(State))}.",
            )
    return found  # type: ignore[return-value]  # as was just looked
