"""Where pgfifo has to get, and whether it got there: ratios of one round, and a few figures of its own."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.comparison import Line, by_turns
from bench.systems import OURS, PEER
from bench.trial import Outcome

AT_LEAST, AT_MOST = "≥", "≤"

BARE = "pgfifo, bare SQL"
_BATCHES = {"pgfifo, async": 10, "pgfifo, async 50": 50}
"""Whose costs are held against those of the floor of the same batch."""


@dataclass(frozen=True)
class Check:
    """One thing that was asked for.

    Attributes:
        scenario: S1 to S14, or cost.
        what: it is, in words.
        system: whose.
        values: one a round.
        sign: whether they shall be at least or at most the bar.
        bar: for the median.
    """

    scenario: str
    what: str
    system: str
    values: Sequence[float]
    sign: str
    bar: float

    @property
    def median(self) -> float:
        """What counts."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool:
        """Whether it got there."""
        return self.median >= self.bar if self.sign == AT_LEAST else self.median <= self.bar


def checks(lines: Sequence[Line]) -> list[Check]:
    """All that can be said of these lines, in the order of the scenarios."""
    found = [
        *_ratios(lines),
        *_between(lines),
        *_latency(lines),
        *_own(lines),
        *_processes(lines),
        *_cost(lines),
    ]
    return sorted((check for check in found if check.values), key=lambda check: _place(check.scenario))


def _place(scenario: str) -> int:
    return int(scenario[1:]) if scenario[1:].isdigit() else 100


def _ours(lines: Sequence[Line], scenario: str) -> list[Line]:
    """Those of its workers: bare SQL is shown beside them, and nothing is asked of it."""
    found = [line for line in lines if line.scenario == scenario and line.kind == OURS and line.outcomes]
    return [line for line in found if line.system != BARE]


def _ratios(lines: Sequence[Line]) -> Iterator[Check]:
    """What each line is compared with anyway."""
    for line in lines:
        if line.target is not None and line.against is not None:
            title, _, label = line.against.rpartition(": ")
            sign = AT_LEAST if line.unit == "/s" else AT_MOST
            what = f"{line.title}: x {f'the same in “{title}”' if title else label}"
            yield Check(line.scenario, what, line.system, line.ratios, sign, line.target)


def _between(lines: Sequence[Line]) -> Iterator[Check]:
    """The drain in order: beside the one without order, and beside the best that two peers can do."""
    unordered = {line.system: line for line in _ours(lines, "S3")}
    ordered = _ours(lines, "S4")
    for line in ordered:
        if line.system in unordered:
            values = by_turns(line.by_turn, unordered[line.system].by_turn)
            yield Check("S4", "in order, x the same without (S3)", line.system, values, AT_LEAST, 0.9)
    ours = _best(ordered)
    for name, bar in (("pgmq", 5.0), ("pg-boss", 2.0)):
        other = _best(
            [
                line
                for line in lines
                if line.scenario == "S4" and line.kind == PEER and line.system.split(", ")[0] == name
            ]
        )
        if ours and other:
            values = by_turns(ours.by_turn, other.by_turn)
            yield Check("S4", f"the best setting, x {other.system}", ours.system, values, AT_LEAST, bar)


def _best(lines: Sequence[Line]) -> Line | None:
    """The quickest of a scenario's lines that kept what was asked for."""
    kept = [line for line in lines if line.outcomes and not line.broken]
    return max(kept, key=lambda line: statistics.median(line.values), default=None)


def _latency(lines: Sequence[Line]) -> Iterator[Check]:
    for line in _ours(lines, "S7"):
        bars = {"p50": 55.0} if "poll" in line.system else {"p50": 1.0, "p99": 4.0}
        for name, bar in bars.items():
            values = [outcome.more[name] for outcome in line.outcomes if name in outcome.more]
            yield Check("S7", f"{name}, ms", line.system, values, AT_MOST, bar)


def _own(lines: Sequence[Line]) -> Iterator[Check]:
    """Figures that are compared with nothing."""
    for line in _ours(lines, "S8"):
        if "at concurrency 10, enqueued in hundreds" in line.title:
            yield Check("S8", f"{line.title}: a second", line.system, line.values, AT_LEAST, 5_000)
    for work, bar in ((10, 0.93), (100, 0.99)):
        for line in _ours(lines, "S12"):
            if f"take {work} ms" in line.title:
                values = [outcome.more["busy"] for outcome in line.outcomes if "busy" in outcome.more]
                what = f"handlers that take {work} ms: how much of the time the slot is busy"
                yield Check("S12", what, line.system, values, AT_LEAST, bar)


def _processes(lines: Sequence[Line]) -> Iterator[Check]:
    """What an execution costs in processor time with several processes, beside one."""
    several = _ours(lines, "S11")
    alone = {line.system: line for line in several if line.title.endswith("with 1 process")}
    for line in several:
        if line.system in alone and line is not alone[line.system]:
            values = _each(line.by_turn, alone[line.system].by_turn, _cpu)
            what = f"{line.title}: CPU an execution, server and clients, x 1 process"
            yield Check("S11", what, line.system, values, AT_MOST, 1.15)


def _cost(lines: Sequence[Line]) -> Iterator[Check]:
    for line in _ours(lines, "S5"):
        if line.system in _BATCHES and line.title.endswith("limit 1"):
            yield Check(
                "cost", "commits an execution, one at a time (S5)", line.system, _commits(line), AT_MOST, 1.2
            )
    floors = {line.system: line for line in lines if line.scenario == "S4" and line.outcomes}
    for line in _ours(lines, "S4"):
        batch = _BATCHES.get(line.system)
        if batch == 50:
            yield Check(
                "cost", "commits an execution, batch 50 (S4)", line.system, _commits(line), AT_MOST, 0.05
            )
        floor = floors.get(f"F1b, batch {batch}, 1 connection")
        if floor is not None:
            values = _each(line.by_turn, floor.by_turn, _wal)
            what = f"WAL an execution without the row that the history keeps, x {floor.system} (S4)"
            yield Check("cost", what, line.system, values, AT_MOST, 1.5)


def _commits(line: Line) -> list[float]:
    return [outcome.commits / outcome.done for outcome in line.outcomes if outcome.commits is not None]


def _cpu(outcome: Outcome) -> float | None:
    if outcome.server_cpu is None or outcome.client_cpu is None or not outcome.done:
        return None
    return (outcome.server_cpu + outcome.client_cpu) / outcome.done


def _wal(outcome: Outcome) -> float | None:
    if outcome.wal is None or not outcome.done:
        return None
    return outcome.wal / outcome.done - float(outcome.more.get("kept", 0))


def _each(
    ours: Mapping[int, Outcome], theirs: Mapping[int, Outcome], tell: Callable[[Outcome], float | None]
) -> list[float]:
    """The ratios of a figure, of the rounds that both have."""
    pairs = [(tell(ours[turn]), tell(theirs[turn])) for turn in ours if turn in theirs]
    return [one / other for one, other in pairs if one is not None and other]


@dataclass(frozen=True)
class Glance:
    """A case in a line: pgfifo's best setting, and what others did."""

    scenario: str
    title: str
    unit: str
    ours: Line | None
    peer: Line | None
    """The best of those that kept what was asked for."""
    quicker: Sequence[Line]
    """Those that were better than that, and broke it."""


def glances(lines: Sequence[Line]) -> list[Glance]:
    """The cases that pgfifo and a peer were measured in."""
    cases: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if line.outcomes:
            cases.setdefault((line.scenario, line.title), []).append(line)
    found = []
    for (scenario, title), there in cases.items():
        unit = there[0].unit
        ours = _first([line for line in there if line.kind == OURS and line.system != BARE], unit)
        peers = [line for line in there if line.kind == PEER and any(line.values)]
        peer = _first([line for line in peers if not line.broken], unit)
        broken = sorted((line for line in peers if line.broken), key=lambda line: _rank(line, unit))
        quicker = [line for line in broken if peer is None or _rank(line, unit) < _rank(peer, unit)]
        if ours or peer:
            found.append(Glance(scenario, title, unit, ours, peer, quicker))
    return found


def _first(lines: Sequence[Line], unit: str) -> Line | None:
    return min((line for line in lines if not line.broken), key=lambda line: _rank(line, unit), default=None)


def _rank(line: Line, unit: str) -> float:
    middle = statistics.median(line.values)
    return -middle if unit == "/s" else middle
