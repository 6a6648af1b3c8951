"""A side by side, as it is told: in the terminal, as Markdown, as JSON."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Group
from rich.table import Table

from bench.comparison import Comparison, Line, by_case
from bench.report import number, spread
from bench.targets import Check, Glance, checks, glances
from bench.trial import Outcome

ENDED = "the run was ended before"
"""Why a line has nothing that could have."""

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
    flat = [outcome.more["last to first"] for outcome in line.outcomes if "last to first" in outcome.more]
    if flat:
        told += f", last tenth {statistics.median(flat):.2f} x the first"
    stopped = [outcome for outcome in line.outcomes if outcome.stopped]
    if stopped:
        longest = max(stopped, key=lambda outcome: outcome.seconds)
        told += f" (stopped after {longest.seconds:.0f} s, {longest.done:,} done)"
    if len(line.outcomes) > 1 or stopped:
        told += f" [{len(line.outcomes)}]"
    return told + (" **promise broken**" if line.broken else "")


def _ratio(line: Line) -> str:
    if not line.ratios or line.against is None:
        return ""
    low, high = min(line.ratios), max(line.ratios)
    between = f" ({low:.2f}-{high:.2f})" if len(line.ratios) > 1 else ""
    title, _, label = line.against.rpartition(": ")
    other = f"the same in “{title}”" if title else label
    return f"{statistics.median(line.ratios):.2f}{between} x {other}"


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


def terminal(comparison: Comparison) -> Group:
    """The whole as tables for a terminal."""
    return Group(_all(comparison), _at_a_glance(comparison), _reached(comparison))


def _at_a_glance(comparison: Comparison) -> Table:
    table = Table(title="At a glance (the best setting of each)")
    for place, heading in enumerate(GLANCE_HEADINGS):
        table.add_column(heading, justify="left" if place == 0 else "right", overflow="fold")
    for glance in glances(comparison.lines):
        table.add_row(*glance_cells(glance))
    return table


def _reached(comparison: Comparison) -> Table:
    table = Table(title="Where pgfifo has to get")
    for place, heading in enumerate(CHECK_HEADINGS):
        table.add_column(heading, justify="left" if place in (0, 1) else "right", overflow="fold")
    for check in checks(comparison.lines):
        table.add_row(*check_cells(check), style="green" if check.met else "red")
    return table


def _all(comparison: Comparison) -> Table:
    table = Table(title="Side by side (commits, WAL, statements and CPU per execution)")
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if place == 0 else "right", overflow="fold")
    for (scenario, title), lines in by_case(comparison.lines).items():
        table.add_section()
        table.add_row(f"[bold]{scenario} {title}[/bold]")
        for line in lines:
            style = "red" if line.broken or line.met is False else "green" if line.met else None
            if not line.outcomes:
                style = "dim"
            told = [cell.replace("**", "").replace("[", r"\[") for cell in cells(line)]
            if not line.outcomes:
                told[1] = f"- {line.dash or ENDED}"
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


_GLANCE = (
    "The best setting of each, of those with real handlers. A system that was quicker and broke what was"
    " asked for is named in the last column."
)
_REACHED = (
    "Ratios are of two trials of the same round, and their median counts; in brackets the number of rounds"
    " that have both. A peer that was stopped has one round. *Cost* is what an execution takes whatever the"
    " machine; the row that the history keeps is counted by what its tables and indexes grow by."
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
        f"- `{comparison.command}`: rounds {comparison.rounds}, {_sizes(comparison)}",
        f"- {machine['cores']} x {machine['cpu']}, {machine['memory_gib']:g} GiB, {machine['kernel']}",
        f"- PostgreSQL {machine['postgresql']}: "
        + ", ".join(f"{name} = {value}" for name, value in machine["settings"].items()),
        "- " + ours + versions,
        f"- {machine['date']}, {comparison.seconds / 60:.0f} min; load average {_load(comparison.load)}",
        "- Time: " + ", ".join(f"{name} {spent:.0f} s" for name, spent in comparison.took.items()),
        *(f"- {note}" for note in comparison.notes),
    ]
    lines += ["", "## At a glance", "", _GLANCE, ""]
    lines += _table(GLANCE_HEADINGS, [glance_cells(glance) for glance in glances(comparison.lines)], 1)
    lines += ["", "## Where pgfifo has to get", "", _REACHED, ""]
    lines += _table(CHECK_HEADINGS, [check_cells(check) for check in checks(comparison.lines)], 2)
    shown: set[str] = set()
    for (scenario, title), found in by_case(comparison.lines).items():
        if scenario not in shown:
            shown.add(scenario)
            lines += ["", f"## {scenario}"]
            plot = next((plot for plot in plots if plot.endswith(f"-{scenario.lower()}.svg")), None)
            if plot:
                lines += ["", f"![{scenario}]({plot})"]
        lines += ["", f"### {title}", ""]
        lines += _table(HEADINGS, [cells(line) for line in found], 1)
        said = [f"- {line.system}: {word}" for line in found for word in _words(line)]
        lines += ["", *said] if said else []
    lines += ["", "## Settings", ""]
    lines += [f"- {label}: {says}" for label, says in comparison.settings.items()]
    if comparison.plans:
        lines += ["", "## Plans of the floors", ""]
        for name, plan in comparison.plans.items():
            lines += [f"{name}:", "", "```text", *plan, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


CHECK_HEADINGS = ("", "what", "reached", "asked", "")


def check_cells(check: Check) -> tuple[str, ...]:
    """What was asked for, as texts."""
    told = f"{spread(check.values)} [{len(check.values)}]"
    asked = f"{check.sign} {check.bar:g}"
    return (check.scenario, f"{check.system}: {check.what}", told, asked, "met" if check.met else "missed")


GLANCE_HEADINGS = ("", "pgfifo", "the best that kept its promises", "better, but broke them")


def glance_cells(glance: Glance) -> tuple[str, ...]:
    """A case as texts."""

    def told(line: Line | None) -> str:
        return f"{short(line)} ({line.system.removeprefix('pgfifo, ')})" if line else "-"

    def short(line: Line) -> str:
        unit = line.unit if line.unit == "/s" else f" {line.unit}"
        return number(statistics.median(line.values)) + unit

    quicker = "; ".join(f"{told(line)}: {', '.join(line.broken)}" for line in glance.quicker)
    return (f"{glance.scenario} {glance.title}", told(glance.ours), told(glance.peer), quicker)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows as a table in Markdown, with so many columns that are read from the left."""
    aligned = "|---" * left + "|---:" * (len(headings) - left) + "|"
    told = ("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)
    return ["| " + " | ".join(headings) + " |", aligned, *told]


def _sizes(comparison: Comparison) -> str:
    most = "" if comparison.most is None else f", none above {comparison.most:,}"
    return f"sizes x {comparison.scale:g}{most}, peers stopped after {comparison.cap:g} s"


def _words(line: Line) -> list[str]:
    """What is to be said of a line below its table."""
    if not line.outcomes:
        return [line.dash or ENDED]
    failed = [f"a round failed: {reason}" for reason in line.failed]
    return (["; ".join(line.broken)] if line.broken else []) + failed


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
    content["checks"] = [asdict(check) | {"met": check.met} for check in checks(comparison.lines)]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def from_json(text: str) -> Comparison:
    """What `as_json` has made of a run, to go on with it."""
    content = json.loads(text)
    content.pop("checks", None)
    lines = []
    for told in content.pop("lines"):
        outcomes = [Outcome(**outcome) for outcome in told["outcomes"]]
        fields = {name: told[name] for name in ("scenario", "title", "unit", "system", "kind")}
        lines.append(Line(**fields, outcomes=outcomes))
    return Comparison(**content, lines=lines)
