"""The side by side, as it is told: in the terminal, as Markdown, as JSON. Nothing here talks to a server."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from bench.report import number, ratios, spread
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
    against: str | None = None
    ratios: Sequence[float] = ()
    target: float | None = None

    @property
    def values(self) -> list[float]:
        """One a round."""
        return [outcome.value for outcome in self.outcomes]

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
        lines: what came out.
        plans: of the floors.
        load: load averages while it ran.
        seconds: that it took.
        notes: what a reader must know.
    """

    command: str
    machine: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    rounds: int = 3
    scale: float = 1.0
    lines: list[Line] = field(default_factory=list)
    plans: dict[str, list[str]] = field(default_factory=dict)
    load: list[float] = field(default_factory=list)
    seconds: float = 0.0
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
        if other is not None and len(other.values) == len(line.values) and all(other.values):
            line.ratios = ratios(line.values, other.values)


HEADINGS = (
    "",
    "median (least-most)",
    "ratio",
    "target",
    "order",
    "at once",
    "commits",
    "WAL bytes",
    "statements",
    "CPU ms (server + clients)",
    "memory MiB",
)


def cells(line: Line) -> tuple[str, ...]:
    """A line as texts."""
    if not line.outcomes:
        return (line.system, "-", *[""] * (len(HEADINGS) - 2))
    return (
        line.system,
        _value(line),
        _ratio(line),
        _verdict(line),
        _order(line),
        _at_once(line),
        *(_each(line, name) for name in ("commits", "wal", "statements")),
        _cpu(line),
        _memory(line),
    )


def _value(line: Line) -> str:
    told = spread(line.values) + (line.unit if line.unit == "/s" else f" {line.unit}")
    quantiles = [outcome.more for outcome in line.outcomes if "p99" in outcome.more]
    if quantiles:
        p95 = statistics.median(found["p95"] for found in quantiles)
        p99 = statistics.median(found["p99"] for found in quantiles)
        told += f", p95 {number(p95)}, p99 {number(p99)}"
    busy = [outcome.more["busy"] for outcome in line.outcomes if "busy" in outcome.more]
    if busy:
        told += f", busy {100 * statistics.median(busy):.1f} %"
    if any(outcome.stopped for outcome in line.outcomes):
        most = max(outcome.done for outcome in line.outcomes)
        told += f" (stopped after {most:,})"
    return told + (" **promise broken**" if line.broken else "")


def _ratio(line: Line) -> str:
    if not line.ratios or line.against is None:
        return ""
    low, high = min(line.ratios), max(line.ratios)
    between = f" ({low:.2f}-{high:.2f})" if len(line.ratios) > 1 else ""
    title, _, label = line.against.rpartition(": ")
    return f"{statistics.median(line.ratios):.2f}{between} x {'first case' if title else label}"


def _verdict(line: Line) -> str:
    if line.met is None:
        return ""
    return f"{'≥' if line.unit == '/s' else '≤'} {line.target:g} {'met' if line.met else 'missed'}"


def _order(line: Line) -> str:
    found = [outcome.violations for outcome in line.outcomes if outcome.violations is not None]
    if not found:
        return ""
    return f"✗ {max(found):,}" if max(found) else "kept"


def _at_once(line: Line) -> str:
    found = [outcome for outcome in line.outcomes if outcome.at_once is not None]
    if not found:
        return ""
    most, limit = max(outcome.at_once or 0 for outcome in found), found[0].limit
    return f"✗ {most} of {limit}" if limit is not None and most > limit else f"{most} of {limit}"


def _each(line: Line, name: str) -> str:
    found = [
        getattr(outcome, name) / outcome.done
        for outcome in line.outcomes
        if getattr(outcome, name) is not None and outcome.done
    ]
    return number(statistics.median(found)) if found else ""


def _cpu(line: Line) -> str:
    def told(name: str) -> str:
        found = [
            1000 * getattr(outcome, name) / outcome.done
            for outcome in line.outcomes
            if getattr(outcome, name) is not None and outcome.done
        ]
        return number(statistics.median(found)) if found else "?"

    return f"{told('server_cpu')} + {told('client_cpu')}"


def _memory(line: Line) -> str:
    found = [outcome.memory for outcome in line.outcomes if outcome.memory]
    return f"{statistics.median(found):.0f}" if found else ""


def by_case(comparison: Comparison) -> dict[tuple[str, str], list[Line]]:
    """Lines under their cases, in the order of both."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in comparison.lines:
        found.setdefault((line.scenario, line.title), []).append(line)
    return found


def terminal(comparison: Comparison) -> Table:
    """The whole as a table for a terminal."""
    table = Table(title="Side by side (commits, WAL, statements and CPU per execution)")
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if place == 0 else "right", overflow="fold")
    for (scenario, title), lines in by_case(comparison).items():
        table.add_section()
        table.add_row(f"[bold]{scenario} {title}[/bold]")
        for line in lines:
            style = "red" if line.broken or line.met is False else "green" if line.met else None
            if line.dash:
                style = "dim"
            told = [cell.replace("**", "").replace("[", r"\[") for cell in cells(line)]
            if line.dash:
                told[1] = f"- {line.dash}"
            table.add_row(*told, style=style)
    return table


_HOW_TO_READ = (
    "Written by the benchmark; [the method](README.md) says how each system is set, and what counts as a"
    " broken promise. All of it is one run on one server, the systems in turns, so ratios count and absolute"
    " figures belong to this machine. The columns from commits on are per execution: transactions with an"
    " xid, bytes of WAL, statements that arrived at the server, milliseconds of processor time (all of the"
    " server; producers and consumers). Memory is the peak of the consumer. Where a number was reached by"
    " breaking the promise that was asked for, that is said beside it."
)


def markdown(comparison: Comparison, plots: Sequence[str] = ()) -> str:
    """The whole as a page of the documentation."""
    machine = comparison.machine
    versions = ", ".join(f"{name} {version}" for name, version in sorted(comparison.versions.items()))
    ours = f"Python {machine['python']}, psycopg {machine['psycopg']}, pgfifo {machine['pgfifo']}"
    ours += f" (SQL {machine['sql']}); "
    lines = [
        "# Side by side",
        "",
        _HOW_TO_READ,
        "",
        f"- `{comparison.command}`: rounds {comparison.rounds}, sizes x {comparison.scale:g}",
        f"- {machine['cores']} x {machine['cpu']}, {machine['memory_gib']:g} GiB, {machine['kernel']}",
        f"- PostgreSQL {machine['postgresql']}: "
        + ", ".join(f"{name} = {value}" for name, value in machine["settings"].items()),
        "- " + ours + versions,
        f"- {machine['date']}, {comparison.seconds / 60:.0f} min; load average {_load(comparison.load)}",
        *(f"- {note}" for note in comparison.notes),
    ]
    shown: set[str] = set()
    for (scenario, title), found in by_case(comparison).items():
        if scenario not in shown:
            shown.add(scenario)
            lines += ["", f"## {scenario}"]
            plot = next((plot for plot in plots if plot.endswith(f"-{scenario.lower()}.svg")), None)
            if plot:
                lines += ["", f"![{scenario}]({plot})"]
        lines += ["", f"### {title}", ""]
        lines += ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
        lines += ["| " + " | ".join(cells(line)) + " |" for line in found]
        said = [
            f"- {line.system}: {'; '.join(line.broken)}" if line.broken else f"- {line.system}: {line.dash}"
            for line in found
            if line.broken or line.dash
        ]
        lines += ["", *said] if said else []
    lines += ["", "## Settings", ""]
    lines += [f"- {label}: {says}" for label, says in comparison.settings.items()]
    if comparison.plans:
        lines += ["", "## Plans of the floors", ""]
        for name, plan in comparison.plans.items():
            lines += [f"{name}:", "", "```text", *plan, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _load(load: Sequence[float]) -> str:
    return f"{min(load):.1f} to {max(load):.1f}" if load else "unknown"


def as_json(comparison: Comparison) -> str:
    """The whole for programs."""
    content = asdict(comparison)
    for line, told in zip(comparison.lines, content["lines"], strict=True):
        told["median"] = statistics.median(line.values) if line.outcomes else None
        told["least"] = min(line.values, default=None)
        told["most"] = max(line.values, default=None)
        told["ratio"] = statistics.median(line.ratios) if line.ratios else None
        told["met"] = line.met
        told["broken"] = line.broken
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
