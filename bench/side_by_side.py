"""The whole benchmark: all systems in all scenarios, in turns, on one server."""

import itertools
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import psycopg
from rich.console import Console

from bench import floors
from bench.cases import BRIEFLY, HEAD_TO_HEAD, Case, cases, left_out, reason
from bench.comparison import Comparison, Line, compare
from bench.environments import ENVIRONMENTS
from bench.ground import Ground, machine
from bench.programs import ProgramError
from bench.systems import FLOOR, ONE_KEY, OURS, PEER, SAME_ENQUEUE, SYSTEMS, System
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
        most: of anything.
        brief: leave out what says least for its time.
        rounds: of each case.
        cap: seconds after which a trial of a peer is stopped.
        minutes: after which no trial begins any more; 0 for never.
        command: as typed.
    """

    systems: Sequence[System] = SYSTEMS
    scenarios: frozenset[str] = frozenset()
    scale: float = 1.0
    most: int | None = None
    brief: bool = False
    rounds: int = 3
    cap: float = 60.0
    minutes: float = 0.0
    command: str = "make bench"

    def cases(self) -> list[Case]:
        """The cases of these scenarios."""
        found = cases(self.scale, self.most)
        return [case for case in found if case.scenario in self.scenarios or not self.scenarios]


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
    ground: Ground,
    plan: Plan,
    console: Console,
    keep: Callable[[Comparison], None] = lambda _: None,
    before: Comparison | None = None,
) -> Comparison:
    """Make the run and return what came out.

    Args:
        ground: the server.
        plan: what to run.
        console: where to say what is being done.
        keep: called after each case of each round. Ctrl-C ends the run with what there is.
        before: an earlier run that was ended: what it has is not measured again.
    """
    comparison = Comparison(
        plan.command, machine(ground), rounds=plan.rounds, scale=plan.scale, most=plan.most, cap=plan.cap
    )
    began = time.monotonic()
    missing = _environments(plan.systems, comparison, console)
    count_statements(ground)
    for system in plan.systems:
        comparison.settings[system.label] = system.says
    if any(system.kind == FLOOR for system in plan.systems):
        comparison.plans = _plans(ground)
    if plan.brief:
        comparison.notes += [f"Brief: {scenario}: {what}." for scenario, what in BRIEFLY.items()]
    planned = plan.cases()
    lines = {case: _lines(case, plan, missing) for case in planned}
    comparison.lines = [line for found in lines.values() for line, _ in found]
    earlier = _take_over(comparison, before) if before else 0.0
    until = began + plan.minutes * 60 if plan.minutes else math.inf
    try:
        with Trials(ground, plan.cap) as trials:
            for turn, case, kinds in _turns(planned, plan.rounds):
                todo = [
                    (line, system)
                    for line, system in lines[case]
                    if system.kind in kinds and line.wants(turn)
                ]
                if todo:
                    console.log(f"round {turn + 1}: {case.scenario} {case.title}")
                    comparison.load.append(os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0)
                for line, system in todo if turn % 2 == 0 else reversed(todo):
                    now = _in_time(until)
                    _once(trials, case, turn, line, system, console)
                    spent = comparison.took.get(case.scenario, 0.0)
                    comparison.took[case.scenario] = spent + time.monotonic() - now
                compare(comparison.lines)
                comparison.seconds = earlier + time.monotonic() - began
                keep(comparison)
    except KeyboardInterrupt:
        comparison.notes.append("Interrupted: what came after is missing.")
    except _TimeIsUpError:
        comparison.notes.append(f"The {plan.minutes:g} minutes were over: what came after is missing.")
    compare(comparison.lines)
    comparison.seconds = earlier + time.monotonic() - began
    return comparison


class _TimeIsUpError(Exception):
    """The time of the run is over."""


def _in_time(until: float) -> float:
    """The time, unless it is over."""
    now = time.monotonic()
    if now > until:
        raise _TimeIsUpError
    return now


def _turns(planned: Sequence[Case], rounds: int) -> Iterator[tuple[int, Case, frozenset[str]]]:
    """The cases in the order in which they are run, so that one that is ended early has the most of it.

    First all of them once. Then the other rounds of pgfifo and its floors, and of peers in the scenarios that
    are head to head; and last the other rounds of peers in the rest. What is to be compared in pairs follows
    each other; pairs beyond the first of a round are pgfifo's only.

    Yields:
        The number of the turn, the case, and the kinds of systems that take part.
    """
    everybody, own = frozenset({FLOOR, OURS, PEER}), frozenset({FLOOR, OURS})
    passes = [(0, case, everybody) for case in planned]
    again = [(round_, case) for round_ in range(1, rounds) for case in planned]
    passes += [(round_, case, everybody if case.scenario in HEAD_TO_HEAD else own) for round_, case in again]
    passes += [(round_, case, everybody) for round_, case in again if case.scenario not in HEAD_TO_HEAD]
    for (round_, _), group in itertools.groupby(passes, key=lambda one: (one[0], one[1].scenario)):
        found = list(group)
        for pair in range(found[0][1].pairs):
            for _, case, kinds in found:
                turn = round_ * case.pairs + pair
                yield turn, case, kinds if pair == 0 else frozenset({OURS})


def _take_over(comparison: Comparison, before: Comparison) -> float:
    """Take what an earlier run has measured of the same, and return how many seconds it took."""
    found = {(line.scenario, line.title, line.system): line for line in before.lines}
    for line in comparison.lines:
        made = found.get((line.scenario, line.title, line.system))
        if made is not None and line.dash is None:
            line.outcomes = list(made.outcomes)
    comparison.load, comparison.took = list(before.load), dict(before.took)
    comparison.notes.append(f"Made in parts: the first of {before.machine['date']}.")
    return before.seconds


def _lines(case: Case, plan: Plan, missing: Mapping[str, str]) -> list[tuple[Line, System]]:
    """All systems of a case, with the reasons of those that cannot do it."""
    lines: list[tuple[Line, System]] = []
    for system in plan.systems:
        if plan.brief and left_out(case, system):
            continue
        dash = reason(case, system) or missing.get(system.environment or "")
        if dash and (system.kind != PEER or dash in (SAME_ENQUEUE, ONE_KEY)):
            continue
        line = Line(case.scenario, case.title, case.unit, system.label, system.kind, dash=dash)
        line.against, line.target = case.against(system), case.target(system)
        lines.append((line, system))
    return lines


def _once(trials: Trials, case: Case, turn: int, line: Line, system: System, console: Console) -> None:
    """One round of one system: its result, or a dash if it failed."""
    try:
        with trials.trial(system, case.waiting) as made:
            outcome = case.measure(made)
    except (ProgramError, RuntimeError, OSError, psycopg.Error) as error:
        line.failed.append(_anywhere(str(error)))
        if not line.outcomes:
            line.dash = f"failed: {line.failed[-1]}"
        console.log(f"  {system.label}: failed: {error}", style="red")
        return
    outcome.turn = turn
    line.dash = None
    line.outcomes.append(outcome)
    broken = f" ({'; '.join(line.broken)})" if line.broken else ""
    stopped = " (stopped)" if outcome.stopped else ""
    console.log(f"  {system.label}: {outcome.value:,.1f} {line.unit}{stopped}{broken}")


def _anywhere(said: str) -> str:
    """What a program said, without where it ran: it goes into a page."""
    return re.sub(r"(postgres\w*:/)?/[\w.+%@?=&:-]+(/[\w.+%@?=&:-]*)+", "…", said)


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
