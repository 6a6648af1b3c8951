"""What the scenarios share: the server, the sizes, and the report that they write into."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.ground import Ground
from bench.meter import Sample
from bench.report import Report, Row, Unit, median_cost, ratios


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    rounds: int = 3
    drain: int = 10_000
    batch: int = 50
    many: tuple[int, ...] = (1_000, 20_000)
    singly: int = 500
    waiting: int = 1_000
    backlog: int = 300_000
    lanes: int = 100_000
    claims: int = 25
    held: int = 20_000


@dataclass
class Bench:
    """One run."""

    ground: Ground
    report: Report
    sizes: Sizes
    say: Callable[[str], None]
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)

    def step(self, what: str) -> None:
        """Say what is being done, and note how busy the machine is."""
        self.report.load.append(os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0)
        self.say(what)

    def keep(self, scenario: str, system: str, sample: Sample) -> None:
        """Keep one round's measurement."""
        self.samples.setdefault((scenario, system), []).append(sample)

    def rates(
        self,
        scenario: str,
        system: str,
        *,
        against: str | None = None,
        target: float | None = None,
        note: str = "",
    ) -> None:
        """Make a row of executions a second out of the rounds that were kept."""
        own = self.samples[scenario, system]
        rates = [sample.rate for sample in own]
        other = [sample.rate for sample in self.samples[scenario, against]] if against else []
        self.report.rows.append(
            Row(
                scenario,
                system,
                "/s",
                rates,
                against,
                ratios(rates, other) if against else (),
                target,
                median_cost([sample.cost for sample in own]),
                note,
            )
        )

    def row(self, scenario: str, system: str, unit: Unit, values: list[float], note: str = "") -> None:
        """Add a row that is compared with nothing."""
        self.report.rows.append(Row(scenario, system, unit, values, note=note))
