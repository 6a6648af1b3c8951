"""When cron expressions tick, and the round in which a worker enqueues what has ticked.

SQL keeps the schedules and decides which call counts; it does not read expressions. cronsim does, by the
rules of Debian's cron, also where clocks are put forward or back.
"""

from __future__ import annotations

import logging
import zoneinfo
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import cronsim

from pgfifo import _given, groups
from pgfifo.errors import InvalidValue
from pgfifo.jsontext import dumps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgfifo.groups import Group

logger = logging.getLogger("pgfifo")

Missed = Literal["skip", "one", "all"]
"""What becomes of ticks that nobody was there to enqueue."""

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
"""Words for common expressions."""

_FIELDS = 5
_AT_ONCE = 100
# Where to look for the last tick: the first of these spans that has any has at most some thousands.
_SPANS = (timedelta(hours=1), timedelta(days=1), timedelta(days=8))
_DUE = "select id, version, name, cron, time_zone, missed, since, next_at, now from pgfifo.due_schedules()"
_TICK = "select pgfifo.tick_schedule(%s::bigint, %s::integer, %s::timestamptz, %s::timestamptz[], %s, %s)"

Rows = Callable[[str, tuple[object, ...]], Sequence[Sequence[Any]]]
"""Runs a statement that commits at once, and returns its rows."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression in a time zone.

    Attributes:
        expression: Minute, hour, day of the month, month and day of the week; or one of `ALIASES`.
        time_zone: An IANA name, as ``Europe/Berlin``.

    Raises:
        InvalidValue: The expression is none or never ticks, or there is no such time zone.
    """

    expression: str
    time_zone: str = "UTC"
    _zone: zoneinfo.ZoneInfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _given.text(self.expression, "cron")
        _given.text(self.time_zone, "time_zone")
        try:
            object.__setattr__(self, "_zone", zoneinfo.ZoneInfo(self.time_zone))
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise _given.wrong(
                "time_zone", self.time_zone, "is no time zone", "Give an IANA name, such as Europe/Berlin."
            ) from None
        if len(self._expanded().split()) != _FIELDS:
            raise self._wrong("it has to have five fields")
        try:
            next(self.after(datetime.now(UTC)))
        except StopIteration:
            raise _given.wrong("cron", self.expression, "never ticks", "Give a day that there is.") from None
        except Exception as error:  # noqa: BLE001 - what cronsim does not foresee is no expression either
            raise self._wrong(str(error) or "it is not understood") from None

    def _wrong(self, why: str) -> InvalidValue:
        return _given.wrong(
            "cron",
            self.expression,
            f"is no cron expression ({why})",
            "Give minute, hour, day of the month, month and day of the week, such as 30 2 * * mon-fri.",
        )

    def _expanded(self) -> str:
        return ALIASES.get(self.expression.strip().lower(), self.expression)

    def after(self, time: datetime) -> Iterator[datetime]:
        """Yield the ticks after a time, in UTC, each later than the one before."""
        last = time
        for tick in cronsim.CronSim(self._expanded(), time.astimezone(self._zone)):
            found = tick.astimezone(UTC)
            # In the hour that comes twice, times without a wildcard mean its first coming only.
            if found > last:
                last = found
                yield found

    def last(self, first: datetime, now: datetime) -> datetime:
        """Return the last tick up to now, where ``first`` is one of them."""
        for span in _SPANS:
            begin = max(first, now - span)
            found = [begin] if begin == first else []
            for tick in self.after(begin):
                if tick > now:
                    break
                found.append(tick)
            if found:
                return found[-1]
        found = [first]
        for tick in self.after(first):
            if tick > now:
                break
            found.append(tick)
        return found[-1]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What code declares: when an action is enqueued, and with what.

    Attributes:
        name: Its name, unique in the database.
        cron: When.
        payload: The payload, as JSON text.
        group: The group, as text; None for what the payload says.
        headers: The headers, as JSON text.
        tags: The tags.
        missed: What becomes of ticks that nobody was there to enqueue.
    """

    name: str
    cron: Cron
    payload: str = "{}"
    group: str | None = None
    headers: str | None = None
    tags: tuple[str, ...] = ()
    missed: Missed = "one"

    def as_json(self) -> str:
        """Return it as SQL takes it."""
        parts = {
            "name": dumps(self.name),
            "cron": dumps(self.cron.expression),
            "time_zone": dumps(self.cron.time_zone),
            "payload": self.payload,
            "group": dumps(self.group),
            "headers": self.headers or "null",
            "tags": dumps(list(self.tags) or None),
            "missed": dumps(self.missed),
        }
        return "{" + ",".join(f'"{key}":{value}' for key, value in parts.items()) + "}"


def schedule(
    name: str,
    cron: str,
    time_zone: str = "UTC",
    payload: object = None,
    group: Group | None = None,
    headers: Mapping[str, Any] | None = None,
    tags: Sequence[str] | None = None,
    missed: Missed = "one",
) -> Schedule:
    """Return a schedule of what a caller gives.

    Raises:
        InvalidValue: An argument cannot be right.
    """
    if missed not in ("skip", "one", "all"):
        raise _given.wrong("missed", missed, "is none of its words", "Give skip, one or all.")
    return Schedule(
        _given.text(name, "name"),
        Cron(cron, time_zone),
        "{}" if payload is None else dumps(payload),
        groups.to_text(group),
        None if headers is None else dumps(dict(_given.mapping(headers, "headers")), "header"),
        () if tags is None else tuple(_given.texts(tags, "tags")),
        missed,
    )


def declaration(schedules: Mapping[str, Sequence[Schedule]]) -> str:
    """Return what `declare_schedules` takes: the schedules of each action, those without any included."""
    parts = (
        f"{dumps(action)}:[{','.join(each.as_json() for each in found)}]"
        for action, found in schedules.items()
    )
    return "{" + ",".join(parts) + "}"


def tick(rows: Rows) -> int:
    """Enqueue what has ticked, and say when the next ticks are; return how many executions that gave.

    Args:
        rows: How to ask the database; each call commits by itself.
    """
    count = 0
    for id_, version, name, cron, time_zone, missed, since, due, now in rows(_DUE, ()):
        try:
            ticks, following = _ticks(Cron(cron, time_zone), missed, since, due, now)
        except InvalidValue as error:
            logger.warning("schedule %s ticks no more: %s", name, error.message)
            rows(_TICK, (id_, version, due, [], None, error.message))
            continue
        [(ids,)] = rows(_TICK, (id_, version, due, ticks, following, None))
        count += len(ids or ())
        if ids is not None and len(ids) < len(ticks):
            logger.warning(
                "schedule %s: %d of %d ticks gave nothing", name, len(ticks) - len(ids), len(ticks)
            )
    return count


def _ticks(
    cron: Cron, missed: str, since: datetime, due: datetime | None, now: datetime
) -> tuple[list[datetime], datetime]:
    """Return the ticks to hand in, and the one after them."""
    first = due or next(cron.after(since))
    if first > now:
        return [], first
    if missed != "all":
        last = cron.last(first, now)
        return [last], next(cron.after(last))
    *ticks, following = [first, *islice(cron.after(first), _AT_ONCE)]
    if following > now:
        ticks = [tick for tick in ticks if tick <= now]
        following = next(cron.after(ticks[-1]))
    return ticks, following
