"""The whole benchmark: all systems in all scenarios, in turns, on one server."""

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psycopg
from rich.console import Console

from bench import floors
from bench.cases import Case, cases, reason
from bench.comparison import Comparison, Line, compare
from bench.environments import ENVIRONMENTS
from bench.ground import Ground, machine
from bench.programs import ProgramError
from bench.systems import FLOOR, ONE_KEY, PEER, SAME_ENQUEUE, SYSTEMS, System
from bench.trial import Trials
from pgfifo.embedded import Setting

SETTINGS: dict[str, Setting] = {
    # Counts statements, of all systems alike.
    "shared_preload_libraries": "pg_stat_statements",
    "max_connections": 300,
}


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        systems: in which settings.
        scenarios: S1 to S14; all if empty.
        scale: of the sizes.
        rounds: of each case.
        cap: seconds after which a trial is stopped.
        command: as typed.
    """

    systems: Sequence[System] = SYSTEMS
    scenarios: frozenset[str] = frozenset()
    scale: float = 1.0
    rounds: int = 3
    cap: float = 60.0
    command: str = "make bench"

    def cases(self) -> list[Case]:
        """The cases of these scenarios."""
        return [case for case in cases(self.scale) if case.scenario in self.scenarios or not self.scenarios]


def scenarios(names: str) -> frozenset[str]:
    """The scenarios of a comma-separated list, as s1,S4.

    Raises:
        SystemExit: there is no such scenario.
    """
    wanted = frozenset(name.strip().upper() for name in names.split(",") if name.strip())
    known = {case.scenario for case in cases(1)}
    if wanted - known:
        raise SystemExit(f"no such scenario: {', '.join(sorted(wanted - known))}. There are S1 to S14.")
    return wanted


def run(
    ground: Ground, plan: Plan, console: Console, keep: Callable[[Comparison], None] = lambda _: None
) -> Comparison:
    """Make the run and return what came out.

    Args:
        ground: the server.
        plan: what to run.
        console: where to say what is being done.
        keep: called after each case, since this may take hours. Ctrl-C ends the run with what there is.
    """
    comparison = Comparison(plan.command, machine(ground), rounds=plan.rounds, scale=plan.scale)
    began = time.perf_counter()
    missing = _environments(plan.systems, comparison, console)
    count_statements(ground)
    for system in plan.systems:
        comparison.settings[system.label] = system.says
    if any(system.kind == FLOOR for system in plan.systems):
        comparison.plans = _plans(ground)
    try:
        with Trials(ground, plan.cap) as trials:
            for case in plan.cases():
                comparison.load.append(os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0)
                console.log(f"{case.scenario} {case.title}")
                comparison.lines += _lines(trials, case, plan, missing, console)
                compare(comparison.lines)
                comparison.seconds = time.perf_counter() - began
                keep(comparison)
    except KeyboardInterrupt:
        comparison.notes.append("Interrupted: what comes after the last case is missing.")
    comparison.seconds = time.perf_counter() - began
    return comparison


def _lines(
    trials: Trials, case: Case, plan: Plan, missing: Mapping[str, str], console: Console
) -> list[Line]:
    """Measure one case: all systems in each round, forwards and backwards in turns."""
    lines: list[tuple[Line, System]] = []
    for system in plan.systems:
        dash = reason(case, system) or missing.get(system.environment or "")
        if dash and (system.kind != PEER or dash in (SAME_ENQUEUE, ONE_KEY)):
            continue
        line = Line(case.scenario, case.title, case.unit, system.label, system.kind, dash=dash)
        line.against, line.target = case.against(system), case.target(system)
        lines.append((line, system))
    for turn in range(plan.rounds):
        for line, system in lines if turn % 2 == 0 else reversed(lines):
            if line.dash is None:
                _once(trials, case, line, system, console)
    return [line for line, _ in lines]


def _once(trials: Trials, case: Case, line: Line, system: System, console: Console) -> None:
    """One round of one system: its result, or a dash if it failed."""
    try:
        with trials.trial(system) as made:
            outcome = case.measure(made)
    except (ProgramError, RuntimeError, OSError, psycopg.Error) as error:
        line.dash, line.outcomes = f"failed: {error}", []
        console.log(f"  {system.label}: failed: {error}", style="red")
        return
    line.outcomes.append(outcome)
    broken = f" ({'; '.join(line.broken)})" if line.broken else ""
    stopped = " (stopped)" if outcome.stopped else ""
    console.log(f"  {system.label}: {outcome.value:,.1f} {line.unit}{stopped}{broken}")


def _environments(systems: Sequence[System], comparison: Comparison, console: Console) -> dict[str, str]:
    """Make what the systems need; those that cannot be made, with the reason."""
    missing = {}
    for name in dict.fromkeys(system.environment for system in systems if system.environment):
        environment = ENVIRONMENTS[name]
        console.log(f"environment {name}")
        try:
            environment.make()
        except OSError as error:
            missing[name] = f"could not be installed: {error}"
            console.log(missing[name], style="red")
        else:
            shown = environment.versions()
            for package, version in shown.items():
                if package not in ("psycopg", "pg", "asyncpg"):
                    comparison.versions[package] = version
    return missing


def count_statements(ground: Ground) -> None:
    """Have statements counted, where the server can."""
    with ground.connect() as conn:
        row = conn.execute("show shared_preload_libraries").fetchone()
        if row and "pg_stat_statements" in row[0]:
            conn.execute("create extension if not exists pg_stat_statements")


def _plans(ground: Ground) -> dict[str, list[str]]:
    """How the server runs the floors' statements, over a thousand rows."""
    with ground.database("plans") as dbname, ground.connect(dbname) as conn:
        floors.prepare(conn)
        for table in ("f1", "f1b"):
            conn.execute(
                f"insert into {table} (lane, payload) select n % 100, '{{}}' from generate_series(1, 1000) n"
            )
            conn.execute(f"vacuum analyze {table}")
        singly, batch = floors.plans(conn, 1), floors.plans(conn, 50)
    return dict(
        itertools.chain(
            ((f"{name}, batch 1", plan) for name, plan in singly.items()),
            ((f"{name}, batch 50", plan) for name, plan in batch.items()),
        )
    )
