"""Policy attributes: their names, their types, and what each may be.

The same rules stand in the database's constraints. Here they are checked where the mistake was made: at the
decorator, when it is imported, without a connection.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypedDict

from pgfifo._given import brief, texts
from pgfifo.durations import Duration, seconds
from pgfifo.errors import InvalidValue

Unlimited = Literal["unlimited"]

MOST = 1_000_000
"""The largest limit."""
LONGEST_BACKOFF = 365 * 86400.0
"""The longest backoff, in seconds."""
LONGEST_TIME = 365 * 86400.0
"""The longest spacing, gap, timeout or period of a rate, in seconds."""
LONGEST_WAIT = 3_155_760_000.0
"""The longest ``max_wait`` and retention, in seconds: 100 years."""
LARGEST_QUOTA = 1_000_000_000
"""The largest quota."""
LARGEST_PAYLOAD = 268_435_455
"""The largest ``max_payload``, in bytes: jsonb has no room for more."""


class Policy(TypedDict, total=False):
    """The attributes of a policy. What is left out keeps its value; None inherits from the wider scope."""

    group_by: Sequence[str] | str | None
    """Payload paths (``customer``, ``target.region``) that split the action into lanes. Defaults to none."""
    max_concurrent: int | None
    """How many executions of one lane are active at once. Defaults to 1."""
    ordering: Literal["strict", "relaxed"] | None
    """``strict``: in the commit order of the enqueues. ``relaxed``: producers do not wait for each other."""
    max_queue_length: int | Unlimited | None
    """How many executions of one lane may wait. Defaults to unlimited."""
    max_action_queue_length: int | Unlimited | None
    """How many executions may wait in all lanes of the action together; its enqueues then go one at a time,
    each to its commit. Defaults to unlimited."""
    on_limit: Literal["enqueue", "cancel"] | None
    """``enqueue``: what cannot start at once waits. ``cancel``: it is refused, and enqueues to one lane go
    one at a time, each to its commit. Defaults to enqueue."""
    rate: str | None
    """How many executions of one lane start per time: ``100/s``, ``5/2h``. Defaults to unlimited."""
    burst: int | None
    """How many of them may start at once after a quiet time. Defaults to the number in ``rate``."""
    spacing: Duration | None
    """The least time from one start in a lane to the next. Defaults to 0."""
    gap: Duration | None
    """The least time from an end in a lane to the next start. Defaults to 0."""
    quota: str | None
    """How many enqueues are accepted per calendar ``day`` or ``month``, in a time zone (UTC if none is
    named): ``1000/day Europe/Berlin``. It holds for the scope it is set at as a whole, whose enqueues then go
    one at a time, each to its commit; not inherited."""
    max_wait: Duration | Unlimited | None
    """How long an execution may wait in the line; then it expires. Defaults to unlimited."""
    timeout: Duration | Unlimited | None
    """How long an attempt may run. Defaults to unlimited."""
    kill_after: Duration | Unlimited | None
    """How long after its timeout a command is killed, or a handler ends its worker. Defaults to 10 s."""
    max_attempts: int | None
    """How many attempts may fail before the execution has failed. Defaults to 5."""
    failure_mode: Literal["hold", "yield", "tail"] | None
    """What a failed attempt does to its lane. ``hold``: it keeps its place and its slot through the
    backoff. ``yield``: it gives its slot up and is first in the line when the backoff is over. ``tail``: it
    goes to the end of the line. Defaults to hold."""
    backoff: Literal["exponential", "constant"] | None
    """How the pause before the next attempt grows. Defaults to exponential."""
    backoff_initial: Duration | None
    """The first pause. Defaults to 1 second."""
    backoff_factor: float | None
    """What each next pause is multiplied with. Defaults to 2."""
    backoff_cap: Duration | None
    """The longest pause. Defaults to 5 minutes."""
    backoff_jitter: float | None
    """By which part of itself a pause varies at random. Defaults to 0.1."""
    on_exhausted: Literal["continue", "pause"] | None
    """What the lane does when an execution has failed for good. Defaults to continue."""
    retention: Duration | Unlimited | None
    """How long a finished execution can be looked up. Defaults to 7 days."""
    lane_retention: Duration | Unlimited | None
    """How long an empty lane is kept. Defaults to 1 day."""
    max_payload: int | None
    """The largest payload and the largest result, in bytes. Defaults to 1 MiB."""
    declared_actions_only: bool | None
    """For everything only: an enqueue to an unknown action is refused. Defaults to False: it creates it."""
    audit_retention: Duration | Unlimited | None
    """For everything only: how long the audit, and with it the history of policies, is kept; a day at least.
    Defaults to a year."""


class SharedLimitValues(TypedDict, total=False):
    """What a shared limit says. What is left out keeps its value; a number that is None is taken away."""

    max_concurrent: int | None
    """How many executions that draw from it are active at once."""
    rate: str | None
    """How many of them start per time: ``100/s``, ``10/min``, ``5/2h``."""
    burst: int | None
    """How many of them may start at once after a quiet time. Defaults to the number in ``rate``."""
    actions: Sequence[str]
    """Actions that draw from it, by name; the list replaces the one before."""
    packs: Sequence[str]
    """Packs whose actions draw from it, those that are yet to come too; the list replaces the one before."""
    everything: bool
    """Whether every action draws from it."""


DURATIONS = frozenset(
    (
        "spacing",
        "gap",
        "max_wait",
        "timeout",
        "kill_after",
        "backoff_initial",
        "backoff_cap",
        "retention",
        "lane_retention",
        "audit_retention",
    )
)
"""The attributes that are durations."""

Scope = Literal["an action", "a pack", "everything"]

_BELONGS_TO: dict[str, Scope] = {
    "group_by": "an action",
    "declared_actions_only": "everything",
    "audit_retention": "everything",
}


def checked(values: Mapping[str, object], scope: Scope = "an action") -> dict[str, object]:
    """Return policy values in the form that SQL takes: durations in seconds, everything as JSON has it.

    Args:
        values: The attributes.
        scope: What they are for. Defaults to an action, or one of its lanes.

    Raises:
        InvalidValue: An attribute does not exist, belongs to another scope, or cannot have this value; the
            message names it.
    """
    result: dict[str, object] = {}
    for name, value in values.items():
        check = _CHECKS.get(name)
        if check is None:
            raise _unknown(name, "a policy", _CHECKS)
        if _BELONGS_TO.get(name, scope) != scope:
            raise InvalidValue(
                f"{name} belongs to {_BELONGS_TO[name]}, not to {scope}",
                detail={"name": name, "value": brief(value)},
                hint="Set it there, or leave it out.",
            )
        result[name] = None if value is None else check(name, value)
    return result


def checked_limit(values: Mapping[str, object]) -> dict[str, object]:
    """Return what a shared limit says in the form that SQL takes.

    Raises:
        InvalidValue: An attribute does not exist, or cannot have this value; the message names it.
    """
    result: dict[str, object] = {}
    for name, value in values.items():
        check = _LIMIT_CHECKS.get(name)
        if check is None:
            raise _unknown(name, "a shared limit", _LIMIT_CHECKS)
        taken_away = value is None and name in ("max_concurrent", "rate", "burst")
        result[name] = None if taken_away else check(name, value)
    return result


def _unknown(name: str, of: str, known: Mapping[str, object]) -> InvalidValue:
    near = difflib.get_close_matches(name, known, 1)
    return InvalidValue(
        f"{of} has no attribute {name!r}",
        detail={"name": name},
        hint=f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}.",
    )


def _wrong(name: str, value: object, allowed: str) -> InvalidValue:
    return InvalidValue(
        f"{name} cannot be {brief(value)}", detail={"name": name, "value": brief(value)}, hint=allowed
    )


def _count(most: int, *, unlimited: bool = False) -> Callable[[str, object], object]:
    allowed = f"It is a whole number from 1 to {most}" + (", or 'unlimited'." if unlimited else ".")

    def check(name: str, value: object) -> object:
        if unlimited and value == "unlimited":
            return value
        if type(value) is not int or not 1 <= value <= most:
            raise _wrong(name, value, allowed)
        return value

    return check


def _number(least: float, most: float) -> Callable[[str, object], object]:
    def check(name: str, value: object) -> object:
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise _wrong(name, value, f"It is a number from {least:g} to {most:g}.")
        return value

    return check


def _one_of(*words: str) -> Callable[[str, object], object]:
    def check(name: str, value: object) -> object:
        if value not in words:
            raise _wrong(name, value, f"It is one of: {', '.join(words)}.")
        return value

    return check


def _yes_or_no(name: str, value: object) -> object:
    if not isinstance(value, bool):
        raise _wrong(name, value, "It is True or False.")
    return value


def _duration(
    most: float = math.inf, *, least: float = 0, unlimited: bool = False
) -> Callable[[str, object], object]:
    def check(name: str, value: object) -> object:
        if unlimited and value == "unlimited":
            return value
        result = seconds(value, name)  # type: ignore[arg-type]  # it refuses what is no duration
        if result > most:
            raise _wrong(name, value, f"It is at most {most:g} seconds.")
        if result < least:
            raise _wrong(name, value, f"It is at least {least:g} seconds.")
        return result

    return check


_RATE = re.compile(
    r"\s*(\d{1,9})\s*/\s*(\d{1,9}(?:\.\d{1,6})?)?\s*"
    r"(ms|s|sec|second|m|min|minute|h|hour|d|day|w|week)\s*",
    re.ASCII | re.IGNORECASE,
)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def _rate(name: str, value: object) -> object:
    if value == "unlimited":
        return value
    return _starts_per_time(name, value, "; or 'unlimited'")


def _starts_per_time(name: str, value: object, or_else: str = "") -> object:
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found:
        unit = found[3].lower()
        period = float(found[2] or 1) * (0.001 if unit == "ms" else _UNITS[unit[0]])
        if 1 <= int(found[1]) <= MOST and 0.001 <= round(period, 3) <= LONGEST_TIME:
            return value
    raise _wrong(
        name,
        value,
        f"It is starts per time, as 100/s, 10/min or 5/2h: 1 to {MOST} in 1 ms to a year{or_else}.",
    )


def _quota(name: str, value: object) -> object:
    if value == "unlimited":
        return value
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d{1,10})\s*/\s*(?:day|month)(?:\s+\S+)?\s*", value, re.ASCII)
        if found and 1 <= int(found[1]) <= LARGEST_QUOTA:
            return value
    raise _wrong(
        name,
        value,
        f"It is enqueues per calendar day or month, 1 to {LARGEST_QUOTA}, with a time zone, as"
        " 1000/day Europe/Berlin or 50000/month; or 'unlimited'.",
    )


def _paths(name: str, value: object) -> object:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, Sequence):
        raise _wrong(name, value, 'It is a list of payload paths, such as ["env", "target.region"].')
    paths = list(given)
    for path in paths:
        if not isinstance(path, str) or not re.fullmatch(r"[^.\0]+(\.[^.\0]+)*", path):
            raise _wrong(name, path, "A path is keys joined by dots, such as env or target.region.")
    if len(set(paths)) < len(paths):
        raise _wrong(name, value, "Each path is given once.")
    return paths


def _names(name: str, value: object) -> object:
    return texts(value, name)  # type: ignore[arg-type]  # it refuses what is no list of names


_CHECKS: dict[str, Callable[[str, object], object]] = {
    "group_by": _paths,
    "max_concurrent": _count(MOST),
    "ordering": _one_of("strict", "relaxed"),
    "max_queue_length": _count(MOST, unlimited=True),
    "max_action_queue_length": _count(MOST, unlimited=True),
    "on_limit": _one_of("enqueue", "cancel"),
    "rate": _rate,
    "burst": _count(MOST),
    "spacing": _duration(LONGEST_TIME),
    "gap": _duration(LONGEST_TIME),
    "quota": _quota,
    "max_wait": _duration(LONGEST_WAIT, least=0.001, unlimited=True),
    "timeout": _duration(LONGEST_TIME, least=0.001, unlimited=True),
    "kill_after": _duration(LONGEST_TIME, unlimited=True),
    "max_attempts": _count(MOST),
    "failure_mode": _one_of("hold", "yield", "tail"),
    "backoff": _one_of("exponential", "constant"),
    "backoff_initial": _duration(LONGEST_BACKOFF),
    "backoff_factor": _number(1, 1000),
    "backoff_cap": _duration(LONGEST_BACKOFF),
    "backoff_jitter": _number(0, 1),
    "on_exhausted": _one_of("continue", "pause"),
    "retention": _duration(LONGEST_WAIT, unlimited=True),
    "lane_retention": _duration(LONGEST_WAIT, unlimited=True),
    "max_payload": _count(LARGEST_PAYLOAD),
    "declared_actions_only": _yes_or_no,
    "audit_retention": _duration(LONGEST_WAIT, least=86400, unlimited=True),
}

_LIMIT_CHECKS: dict[str, Callable[[str, object], object]] = {
    "max_concurrent": _count(MOST),
    "rate": _starts_per_time,
    "burst": _count(MOST),
    "actions": _names,
    "packs": _names,
    "everything": _yes_or_no,
}
