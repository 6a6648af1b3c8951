"""What was measured, and how it is told: a table, Markdown, JSON. Nothing here talks to a server."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.table import Table

Unit = Literal["/s", "ms", "buffers", "s"]

HIGHER_IS_BETTER = frozenset({"/s"})


@dataclass(frozen=True)
class Cost:
    """What one execution cost, whatever the machine.

    Attributes:
        commits: transactions with an xid, that is commits that wait for the disk.
        wal: bytes of WAL.
        statements: statements that the client sent.
        server_cpu: milliseconds on a processor, in the server process; None where it cannot be told.
        client_cpu: the same, in the client.
    """

    commits: float
    wal: float
    statements: float
    server_cpu: float | None = None
    client_cpu: float = 0.0


@dataclass(frozen=True)
class Row:
    """One line of the report: a system in a scenario, with one value a round.

    Attributes:
        scenario: what was done.
        system: who did it.
        unit: of the values.
        values: one a round.
        against: the system or the case that it is compared with.
        ratios: of each round's value to the same round's value of `against`.
        target: what the ratio shall reach, or shall not exceed where less is better.
        cost: per execution.
        note: what a reader must know.
    """

    scenario: str
    system: str
    unit: Unit
    values: Sequence[float]
    against: str | None = None
    ratios: Sequence[float] = ()
    target: float | None = None
    cost: Cost | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median ratio is where it shall be; None where nothing was asked."""
        if self.target is None or not self.ratios:
            return None
        ratio = statistics.median(self.ratios)
        return ratio >= self.target if self.unit in HIGHER_IS_BETTER else ratio <= self.target


@dataclass
class Report:
    """A run of the benchmark."""

    command: str
    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    plans: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    """Load average (one minute) at the beginning, after each scenario and at the end."""
    seconds: float = 0.0


def ratios(values: Sequence[float], floor: Sequence[float]) -> tuple[float, ...]:
    """Compare round by round: what disturbed a round disturbed both of its sides."""
    return tuple(value / other for value, other in zip(values, floor, strict=True))


def median_cost(costs: Sequence[Cost]) -> Cost:
    """The median of each part of several rounds' costs."""
    server_cpu = [cost.server_cpu for cost in costs if cost.server_cpu is not None]
    return Cost(
        statistics.median(cost.commits for cost in costs),
        statistics.median(cost.wal for cost in costs),
        statistics.median(cost.statements for cost in costs),
        statistics.median(server_cpu) if len(server_cpu) == len(costs) else None,
        statistics.median(cost.client_cpu for cost in costs),
    )


def number(value: float) -> str:
    """A number with three digits that say something."""
    if value >= 1000:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def spread(values: Sequence[float]) -> str:
    """The median, and the smallest and largest where there are several."""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))}-{number(max(values))})"


def with_unit(row: Row) -> str:
    """The values of a row, as a person reads them."""
    return spread(row.values) + (row.unit if row.unit == "/s" else f" {row.unit}")


def comparison(row: Row) -> str:
    """The ratio of a row to what it is compared with, as 0.61 x F1b."""
    if not row.ratios or row.against is None:
        return ""
    low, high = min(row.ratios), max(row.ratios)
    between = f" ({low:.2f}-{high:.2f})" if len(row.ratios) > 1 else ""
    return f"{statistics.median(row.ratios):.2f}{between} x {row.against}"


def verdict(row: Row) -> str:
    """The target of a row and whether it is met."""
    if row.target is None:
        return ""
    sign = "≥" if row.unit in HIGHER_IS_BETTER else "≤"
    return f"{sign} {row.target:g} {'met' if row.met else 'missed'}"


def cells(row: Row) -> tuple[str, ...]:
    """A row as texts, without its scenario and note."""
    cost = row.cost
    return (
        row.system,
        with_unit(row),
        comparison(row),
        verdict(row),
        number(cost.commits) if cost else "",
        number(cost.wal) if cost else "",
        number(cost.statements) if cost else "",
        f"{number(cost.server_cpu)} + {number(cost.client_cpu)}"
        if cost and cost.server_cpu is not None
        else "",
    )


HEADINGS = (
    "",
    "median (least-most)",
    "ratio",
    "target",
    "commits",
    "WAL bytes",
    "statements",
    "CPU ms (server + client)",
)


def by_scenario(report: Report) -> dict[str, list[Row]]:
    """Rows under the headings of their scenarios, in the order of both."""
    grouped: dict[str, list[Row]] = {}
    for row in report.rows:
        grouped.setdefault(row.scenario, []).append(row)
    return grouped


def describe(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    return (
        f"{machine['cores']} x {machine['cpu']}, {machine['memory_gib']:g} GiB, {machine['kernel']};"
        f" PostgreSQL {machine['postgresql']}, Python {machine['python']}, psycopg {machine['psycopg']},"
        f" pgfifo {machine['pgfifo']} ({machine['sql']})"
    )


def terminal(report: Report) -> Table:
    """The report as a table for a terminal."""
    table = Table(title="pgfifo beside its floors (last four columns: per execution)", caption_justify="left")
    table.caption = describe(report.machine)
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if place in (0, 3) else "right", overflow="fold")
    for scenario, rows in by_scenario(report).items():
        table.add_section()
        table.add_row(f"[bold]{scenario}[/bold]")
        for row in rows:
            style = {True: "green", False: "red", None: None}[row.met]
            table.add_row(*cells(row), style=style)
    return table


_HOW_TO_READ = (
    "Written by the benchmark; `make bench-quick` writes it anew. Ratios count: both sides ran in turns, in"
    " one run on one server, and each ratio is of two runs that followed each other. The last four columns"
    " are per execution: commits that wait for the disk, bytes of WAL, statements that the client sent, and"
    " milliseconds of processor time (in the server process and in the client)."
)


def markdown(report: Report) -> str:
    """The report as a page of the documentation."""
    machine = report.machine
    lines = [
        f"# `{report.command}`",
        "",
        _HOW_TO_READ,
        "",
        *where_and_when(machine, report.seconds, report.load),
    ]
    for scenario, rows in by_scenario(report).items():
        lines += ["", f"## {scenario}", ""]
        lines += ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
        notes = [f"{row.system}: {row.note}" for row in rows if row.note]
        lines += ["", *(f"- {note}" for note in notes)] if notes else []
    if report.notes:
        lines += ["", "## How it was done", "", *(f"- {note}" for note in report.notes)]
    if report.plans:
        lines += ["", "## Plans of the floors", ""]
        for name, plan in report.plans.items():
            lines += [f"{name}:", "", "```text", *plan, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def where_and_when(machine: dict[str, Any], seconds: float, load: Sequence[float]) -> list[str]:
    """Say on what, when and for how long something was measured, and how busy the machine was."""
    return [
        f"- {machine['cores']} x {machine['cpu']}, {machine['memory_gib']:g} GiB, {machine['kernel']}",
        f"- PostgreSQL {machine['postgresql']}: "
        + ", ".join(f"{name} = {value}" for name, value in machine["settings"].items()),
        "- " + _versions(machine),
        f"- {machine['date']}, {seconds:.0f} s; load average while it ran: {_load(load)}",
    ]


def _versions(machine: dict[str, Any]) -> str:
    return (
        f"Python {machine['python']}, psycopg {machine['psycopg']} (libpq {machine['libpq']}),"
        f" pgfifo {machine['pgfifo']}, SQL {machine['sql']}"
    )


def _load(load: Sequence[float]) -> str:
    if not load:
        return "unknown"
    busy = "" if max(load) <= 2 else " (the machine was not quiet)"
    return f"{min(load):.1f} to {max(load):.1f}{busy}"


def as_json(report: Report) -> str:
    """The report for programs."""
    content = asdict(report)
    for row, told in zip(report.rows, content["rows"], strict=True):
        told["median"] = statistics.median(row.values)
        told["ratio"] = statistics.median(row.ratios) if row.ratios else None
        told["met"] = row.met
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
