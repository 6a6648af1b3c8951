"""What came out of a side by side. Nothing here talks to a server."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.systems import PEER
from bench.trial import Outcome


@dataclass
class Line:
    """A system in a case.

    Attributes:
        scenario: S1 to S14.
        title: of the case.
        unit: of the values.
        system: its label.
        kind: floor, pgfifo or peer.
        outcomes: one a round.
        dash: why there are none.
        failed: what went wrong in rounds that have none.
        against: what it is compared with, as the case names it.
        ratios: round by round.
        target: what the ratio shall be at least (rates) or at most (milliseconds).
    """

    scenario: str
    title: str
    unit: str
    system: str
    kind: str
    outcomes: list[Outcome] = field(default_factory=list)
    dash: str | None = None
    failed: list[str] = field(default_factory=list)
    against: str | None = None
    ratios: Sequence[float] = ()
    target: float | None = None

    @property
    def values(self) -> list[float]:
        """One a round."""
        return [outcome.value for outcome in self.outcomes]

    @property
    def by_turn(self) -> dict[int, Outcome]:
        """Outcomes by the number of their round."""
        return {outcome.turn: outcome for outcome in self.outcomes}

    def wants(self, turn: int) -> bool:
        """Whether it is to be measured in a round: once is enough of a peer that had to be stopped."""
        if self.dash is not None and not self.failed:
            return False
        stopped = self.kind == PEER and any(outcome.stopped for outcome in self.outcomes)
        return turn not in self.by_turn and not stopped and len(self.failed) < 2

    @property
    def met(self) -> bool | None:
        """Whether the median ratio is where it shall be; None where nothing was asked."""
        if self.target is None or not self.ratios:
            return None
        ratio = statistics.median(self.ratios)
        return ratio >= self.target if self.unit == "/s" else ratio <= self.target

    @property
    def broken(self) -> list[str]:
        """The promises that were broken on the way, in words."""
        found = []
        worst = max((outcome.violations or 0 for outcome in self.outcomes), default=0)
        if worst:
            found.append(f"{worst:,} out of order")
        for outcome in self.outcomes:
            if outcome.limit is not None and outcome.at_once is not None and outcome.at_once > outcome.limit:
                most = max(other.at_once or 0 for other in self.outcomes)
                found.append(f"{most} at once, limit {outcome.limit}")
                break
        twice = max((outcome.repeated for outcome in self.outcomes), default=0)
        if twice:
            found.append(f"{twice:,} run twice")
        return found


@dataclass
class Comparison:
    """A run of the side by side.

    Attributes:
        command: what was typed.
        machine: what it ran on.
        versions: of the systems.
        settings: what each label means.
        rounds: of each case.
        scale: of the sizes.
        most: of anything.
        cap: seconds after which a trial of a peer was stopped.
        lines: what came out.
        plans: of the floors.
        load: load averages while it ran.
        seconds: that it took.
        took: how many of them each scenario.
        notes: what a reader must know.
    """

    command: str
    machine: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    rounds: int = 3
    scale: float = 1.0
    most: int | None = None
    cap: float = 60.0
    lines: list[Line] = field(default_factory=list)
    plans: dict[str, list[str]] = field(default_factory=dict)
    load: list[float] = field(default_factory=list)
    seconds: float = 0.0
    took: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def compare(lines: Sequence[Line]) -> None:
    """Fill in the ratios, round by round: what disturbed a round disturbed both of its sides."""
    found = {(line.title, line.system): line for line in lines if line.outcomes}
    for line in lines:
        if line.against is None or not line.outcomes:
            continue
        title, _, label = line.against.rpartition(": ")
        other = found.get((title or line.title, label))
        if other is None and not title:
            # A floor that another case of the run has measured.
            other = next((found[key] for key in found if key[1] == label), None)
        if other is not None:
            line.ratios = by_turns(line.by_turn, other.by_turn)


def by_turns(ours: Mapping[int, Outcome], theirs: Mapping[int, Outcome]) -> tuple[float, ...]:
    """The ratios of the rounds that both have."""
    both = [(ours[turn].value, theirs[turn].value) for turn in ours if turn in theirs]
    return tuple(value / other for value, other in both if other)


def by_case(lines: Sequence[Line]) -> dict[tuple[str, str], list[Line]]:
    """Lines under their cases, in the order of both."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line.scenario, line.title), []).append(line)
    return found
