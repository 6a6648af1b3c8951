"""Charts as inline SVG: lines and areas over the last minutes, drawn here, so that no script has to.

A chart is stretched to its place; words and figures stand beside it as text of the page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from markupsafe import Markup

from pgfifo.models import ActionOverview, Minute, Pace, WaitTimes
from pgfifo.web.pages import formats

WIDTH, HEIGHT = 600, 100
MINUTES = 60

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        name: What it is called in the legend.
        values: A value for each minute; None where there is none.
        style: Which of the styles of the page it has: ``main``, ``second``, ``third`` or ``bad``.
        area: Whether what is below it is filled.
    """

    name: str
    values: Values
    style: str = "main"
    area: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, as the template shows it.

    Attributes:
        title: What it shows.
        unit: What its figures are: ``count``, ``rate`` or ``seconds``.
        minutes: When each of its minutes began.
        series: Its lines.
    """

    title: str
    unit: str
    minutes: Sequence[datetime]
    series: Sequence[Series]

    @property
    def top(self) -> float:
        """The value at its upper edge."""
        return ceiling(max((v for s in self.series for v in s.values if v is not None), default=0), self.unit)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to see."""
        return not any(value for series in self.series for value in series.values)

    @property
    def summary(self) -> str:
        """What somebody is told who does not see it."""
        told = []
        for each in self.series:
            known = [value for value in each.values if value is not None]
            if known:
                told.append(f"{each.name} {self.shown(known[-1])}, at most {self.shown(max(known))}")
        return f"{self.title} in the last hour: {'; '.join(told) or 'nothing'}"

    def shown(self, value: float | None) -> str:
        """Return a value with its unit."""
        if self.unit == "seconds":
            return formats.duration(value)
        return formats.rate(value) if self.unit == "rate" else formats.number(value)

    @property
    def svg(self) -> Markup:
        """The drawing."""
        return draw(self.series, self.top)

    @property
    def points(self) -> str:
        """The values for the script, which shows those under the pointer."""
        rows = [
            [f"{minute:%H:%M}", *(self.shown(series.values[n]) for series in self.series)]
            for n, minute in enumerate(self.minutes)
        ]
        return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


def draw(series: Sequence[Series], top: float) -> Markup:
    """Return the drawing of some lines, stretched to its place by the page's style."""
    shapes = Markup("")
    for each in series:
        for run in _runs(each.values, top):
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
            if each.area:
                shapes += Markup('<path class="area {}" d="{}V{}H{:.1f}Z"/>').format(
                    each.style, path, HEIGHT, run[0][0]
                )
            shapes += Markup('<path class="line {}" d="{}"/>').format(each.style, path)
    return Markup(
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true" focusable="false">{}</svg>'
    ).format(WIDTH, HEIGHT, shapes)


def spark(values: Values, style: str = "main") -> Markup:
    """Return a small drawing of one line, for a table."""
    series = Series("", values, style, area=True)
    return draw([series], ceiling(max((value for value in values if value is not None), default=0), "count"))


def _runs(values: Values, top: float) -> list[list[tuple[float, float]]]:
    """Return the points of a line, in pieces where values are missing; a piece of one is a short dash."""
    step = WIDTH / max(1, len(values) - 1)
    runs: list[list[tuple[float, float]]] = [[]]
    for n, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((n * step, HEIGHT - 1 - (HEIGHT - 2) * min(1.0, value / top)))
    for run in runs:
        if len(run) == 1:
            run.append((min(WIDTH, run[0][0] + step / 2), run[0][1]))
    return [run for run in runs if run]


def ceiling(value: float, unit: str) -> float:
    """Return a round figure that is not below a value."""
    if value <= 0:
        return 1.0
    if unit == "seconds" and value > 1:
        steps = (2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)
        return float(next((step for step in steps if step >= value), math.ceil(value / 86400) * 86400))
    size: float = 10.0 ** math.floor(math.log10(value))
    found = next(size * step for step in (1, 2, 3, 4, 5, 6, 8, 10) if size * step >= value * 0.9999)
    return found if unit == "seconds" else max(1.0, found)


@dataclass(frozen=True, slots=True)
class Hour:
    """The last hour of an action, or of several: a value for each minute; the last goes on.

    Attributes:
        minutes: When each began.
        backlog: What had not ended at its end: waiting, active and delayed.
        enqueued: How many were enqueued.
        started: How many were started; None where it is not counted yet.
        failed: How many failed for good.
        p50: What half of those that ended had waited at most, in seconds.
        p95: The same of 95 %.
        p99: The same of 99 %.
    """

    minutes: list[datetime]
    backlog: list[float | None]
    enqueued: list[float | None]
    started: list[float | None]
    failed: list[float | None]
    p50: list[float | None]
    p95: list[float | None]
    p99: list[float | None]

    def charts(self) -> list[Chart]:
        """Return its three charts."""
        return [
            Chart("Backlog", "count", self.minutes, [Series("not ended", self.backlog, area=True)]),
            Chart(
                "Per minute",
                "count",
                self.minutes,
                [
                    Series("started", self.started, area=True),
                    Series("enqueued", self.enqueued, "second"),
                    Series("failed", self.failed, "bad"),
                ],
            ),
            Chart(
                "Wait to start",
                "seconds",
                self.minutes,
                [
                    Series("p50", self.p50),
                    Series("p95", self.p95, "second"),
                    Series("p99", self.p99, "third"),
                ],
            ),
        ]


NOT_YET = -1.0
"""The backlog of an action before it was there."""


def _backlog(
    stats: ActionOverview, minutes: Sequence[Minute], axis: Sequence[datetime], pace: Pace | None
) -> list[float | None]:
    """Return what had not ended at the end of each minute; None where that is not counted.

    It is counted from the end of the pace; where there is none, back from now. All that waits was enqueued
    since the oldest of it was: what of it is not in the minutes since then has not been counted yet, and is
    no part of what was before.
    """
    flows = {
        each.minute: each.enqueued - each.succeeded - each.failed - each.cancelled - each.expired
        for each in minutes
    }
    now = float(stats.queue_length + stats.active_count + stats.delayed_count)
    left, gap = now, axis[-1]
    if pace is not None:
        left = pace.backlog + float(sum(flow for minute, flow in flows.items() if minute >= pace.until))
        if left != now and axis[-2] not in flows:  # perhaps it has not been counted yet
            gap = axis[-2]
    if stats.oldest_enqueued_at is not None:
        oldest = stats.oldest_enqueued_at.astimezone(UTC).replace(second=0, microsecond=0)
        since = [each for each in minutes if each.minute >= oldest and each.enqueued]
        uncounted = stats.queue_length - sum(each.enqueued for each in since)
        if uncounted > 0:
            gap = min(gap, max([oldest, *(each.minute + timedelta(minutes=1) for each in since)]))
            if pace is None:
                left -= uncounted
    found: list[float | None] = []
    for at in reversed(axis):
        if at == axis[-1]:
            found.append(now)
        elif pace is not None and at < pace.since and pace.since > pace.until - timedelta(minutes=MINUTES):
            found.append(NOT_YET)
        else:
            found.append(None if at >= gap else max(0.0, left))
        left -= flows.get(at, 0)
    return found[::-1]


def _sum(values: Values) -> float | None:
    """Return the sum of the backlogs of actions in a minute; None if one is not known, or none was there."""
    there = [value for value in values if value != NOT_YET]
    known = [value for value in there if value is not None]
    return sum(known) if known and len(known) == len(there) else None


def hour(
    overview: Sequence[ActionOverview],
    minutes: Sequence[Minute],
    waits: Sequence[WaitTimes],
    paces: Mapping[str, Pace],
) -> Hour:
    """Put together the last hour of these actions.

    Each minute knows how many came and how many ended in it; a pace, what had not ended at its end.

    Args:
        overview: The actions as they are now.
        minutes: What happened in their minutes.
        waits: How long they waited; of one action, or there is nothing to draw.
        paces: The pace of actions in an hour that ended in this one.
    """
    began = formats.now().replace(second=0, microsecond=0)
    axis = [began - timedelta(minutes=back) for back in range(MINUTES, -1, -1)]
    by_minute: dict[datetime, list[Minute]] = {}
    for each in minutes:
        by_minute.setdefault(each.minute, []).append(each)
    # The last two minutes may not be counted yet: then nothing is known of them.
    counted = {each.minute for each in minutes if each.started or each.enqueued or each.minute < axis[-2]}

    def count(at: datetime, attribute: str) -> float | None:
        if at >= axis[-2] and at not in counted:
            return None
        return float(sum(getattr(each, attribute) for each in by_minute.get(at, ())))

    of_action: dict[str, list[Minute]] = {}
    for each in minutes:
        of_action.setdefault(each.action, []).append(each)
    backlogs = [
        _backlog(each, of_action.get(each.action, []), axis, paces.get(each.action)) for each in overview
    ]
    backlog = [_sum([each[n] for each in backlogs]) for n in range(len(axis))]
    of_waits: Mapping[datetime | None, WaitTimes] = {each.minute: each for each in waits}

    def wait(attribute: str) -> list[float | None]:
        return [getattr(of_waits[at], attribute) if at in of_waits else None for at in axis]

    return Hour(
        minutes=axis,
        backlog=backlog,
        enqueued=[count(at, "enqueued") for at in axis],
        started=[count(at, "started") for at in axis],
        failed=[count(at, "failed") for at in axis],
        p50=wait("p50"),
        p95=wait("p95"),
        p99=wait("p99"),
    )
