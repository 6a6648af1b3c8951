"""The side by side: what it reads from handlers' journals, what it says of broken promises; that it runs."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import journal
from bench.__main__ import command
from bench.cases import cases, left_out, reason
from bench.comparison import Comparison, Line, compare
from bench.environments import ENVIRONMENTS
from bench.ground import Ground
from bench.journal import Run
from bench.peers.common import (
    BEGUN,
    DONE,
    FAILED,
    Consume,
    DeliberateFailureError,
    Handlers,
    Produce,
    jobs,
)
from bench.side_by_side import Plan, _anywhere, run, scenarios
from bench.systems import OURS, PEER, SYSTEMS, chosen
from bench.targets import checks, glances
from bench.telling import as_json, cells, from_json, markdown, terminal
from bench.trial import Outcome, Trials, drained_warm, url
from pgfifo.embedded import PrivateServer

MACHINE = {
    "cpu": "A processor",
    "cores": 2,
    "memory_gib": 8,
    "kernel": "Linux 6.1",
    "postgresql": "18.1",
    "settings": {"fsync": "on"},
    "python": "3.11.7",
    "psycopg": "3.3.0",
    "pgfifo": "0.1.0",
    "sql": "0123456789ab",
    "date": "2026-01-01 00:00 UTC",
}

PEERS = Path(__file__).resolve().parent.parent / "bench" / "peers"


def one_key(_: int) -> str:
    return "k"


def ran(number: int, begin: int, end: int, state: int = DONE) -> Run:
    return Run(begin, end, number, 1, state)


def test_bench_counts_each_step_back_of_a_key_as_a_violation_of_order() -> None:
    assert journal.order_violations([ran(1, 0, 1), ran(2, 2, 3), ran(3, 4, 5)], one_key) == 0
    assert journal.order_violations([ran(2, 0, 1), ran(1, 2, 3), ran(3, 4, 5)], one_key) == 1
    assert journal.order_violations([ran(3, 0, 1), ran(1, 2, 3), ran(2, 4, 5)], one_key) == 2
    apart = [ran(2, 0, 1), ran(1, 2, 3)]
    assert journal.order_violations(apart, lambda number: number) == 0, "keys are lines of their own"
    again = [ran(1, 0, 1, FAILED), ran(2, 2, 3), ran(1, 4, 5)]
    assert journal.order_violations(again, one_key) == 1, "what failed was overtaken before its next attempt"


def test_bench_does_not_count_the_quicker_of_two_threads_as_a_violation() -> None:
    swapped = [ran(2, 0, 9), ran(1, 1, 9), ran(3, 2, 9)]
    assert journal.order_violations(swapped, one_key, limit=1) == 1
    assert journal.order_violations(swapped, one_key, limit=2) == 0
    far = [ran(2, 0, 9), ran(3, 1, 9), ran(1, 2, 9)]
    assert journal.order_violations(far, one_key, limit=2) == 1, "two that fit beside it have begun before it"


def test_bench_finds_the_most_runs_of_a_key_at_one_time() -> None:
    after = [ran(1, 0, 5), ran(2, 5, 9)]
    assert journal.most_at_once(after, one_key) == 1, "one that begins as the other ends is not beside it"
    assert journal.most_at_once([*after, ran(3, 4, 6)], one_key) == 2
    assert journal.most_at_once([*after, ran(3, 4, 6)], lambda number: number) == 1
    assert journal.repeated([ran(1, 0, 1, FAILED), ran(1, 2, 3), ran(2, 4, 5), ran(2, 6, 7)]) == 1


def test_bench_handlers_leave_what_they_did_in_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    handlers = Handlers(Consume(str(path)))
    handlers.run_sync({"n": 7, "work": 0, "fail": False})
    with pytest.raises(DeliberateFailureError):
        handlers.run_sync({"n": 8, "work": 0, "fail": True})
    handlers.run_sync({"n": 8, "work": 0, "fail": True})
    handlers.note(9, 1, 0, BEGUN)
    assert journal.count(path) == 4
    assert journal.has_begun(path)
    found = journal.read(path)
    assert [(run.number, run.state) for run in found] == [(7, DONE), (8, FAILED), (8, DONE)]
    assert all(run.begin <= run.end for run in found)
    assert journal.read(tmp_path / "none") == []


def test_bench_makes_the_same_jobs_for_every_system() -> None:
    made = jobs(Produce(40, keys=4, fail_every=10, delay_every=10, delay=1000))
    assert [job.key for job in made[:5]] == ["k0", "k1", "k2", "k3", "k0"]
    assert [job.payload["n"] for job in made if job.payload["fail"]] == [0, 10, 20, 30]
    delayed = [job.payload["n"] for job in made if job.delay]
    assert delayed == [1, 11, 21, 31]
    assert all(0 < made[n].delay <= 1000 for n in delayed)
    fields = set(Produce.__dataclass_fields__)
    in_node = set(re.findall(r"\btask\.(\w+)", (PEERS / "common.mjs").read_text())) - {"journal"}
    assert in_node <= fields, "a program in Node asks for what it is not told"


def test_bench_prints_a_number_with_the_promise_that_it_broke() -> None:
    kept = Line(
        "S4", "Drain", "/s", "pgfifo, async", OURS, [Outcome(100, 10, 0.1, violations=0, at_once=1, limit=1)]
    )
    broken = Line(
        "S4",
        "Drain",
        "/s",
        "A peer, best",
        PEER,
        [
            Outcome(200, 10, 0.1, 20, 5000, 30, 0.1, 0.2, 50, violations=0, at_once=1, limit=1),
            Outcome(300, 10, 0.1, 20, 5000, 30, 0.1, 0.2, 50, violations=4, at_once=3, limit=1, turn=1),
        ],
    )
    dash = Line("S4", "Drain", "/s", "Another, default", PEER, dash="has no keys")
    assert kept.broken == []
    assert broken.broken == ["4 out of order", "3 at once, limit 1"]
    assert cells(broken)[:1] + cells(broken)[4:] == (
        "A peer, best",
        "✗ 4",
        "✗ 3 of 1",
        "2.00",
        "500",
        "3.00",
        "10.0 + 20.0",
        "50",
    )
    told = Comparison(
        "make bench", MACHINE, lines=[kept, broken, dash], settings={"pgfifo, async": "as it comes"}
    )
    page = markdown(told, ["side-by-side-s4.svg"])
    assert "250 (200-300)/s [2] **promise broken**" in page
    assert "- A peer, best: 4 out of order; 3 at once, limit 1" in page
    assert "| Another, default | - |" in page
    assert "- Another, default: has no keys" in page
    assert "![S4](side-by-side-s4.svg)" in page
    console = Console(file=io.StringIO(), width=250)
    console.print(terminal(told))
    assert "promise broken" in console.file.getvalue()  # type: ignore[attr-defined]
    assert json.loads(as_json(told))["lines"][1]["broken"] == broken.broken


def test_bench_compares_with_the_same_round_of_another_system_or_case() -> None:
    def line(title: str, system: str, *values: float, **more: Any) -> Line:
        outcomes = [Outcome(value, 1, 1, turn=turn) for turn, value in enumerate(values)]
        return Line("S4", title, "/s", system, OURS, outcomes, **more)

    floor = line("Drain", "F1b", 10, 20)
    ours = line("Drain", "ours", 5, 18, against="F1b", target=0.7)
    beside = line("Beside", "ours", 4, 9, against="Drain: ours", target=0.5)
    elsewhere = line("Beside", "other", 4, 9, against="F1b")
    lost = line("Beside", "another", 4, 9, against="nobody")
    shorter = line("Drain", "stopped", 5, against="F1b")
    compare([floor, ours, beside, elsewhere, lost, shorter])
    assert ours.ratios == (0.5, 0.9)
    assert ours.met is True
    assert beside.ratios == (0.8, 0.5)
    assert elsewhere.ratios == (0.4, 0.45)
    assert lost.ratios == ()
    assert shorter.ratios == (0.5,), "a round that only one has is compared with nothing"
    assert replace(ours, unit="ms", ratios=(0.9,)).met is False, "in milliseconds less is better"


def lines_of(*told: tuple[str, str, str, str, list[Outcome]]) -> list[Line]:
    return [
        Line(
            scenario,
            title,
            "/s",
            system,
            kind,
            [replace(one, turn=turn) for turn, one in enumerate(outcomes)],
        )
        for scenario, title, system, kind, outcomes in told
    ]


def test_bench_holds_what_came_out_against_what_was_asked_for() -> None:
    def drained(value: float, *, wal: float = 0, cpu: float = 0, **more: Any) -> Outcome:
        return Outcome(value, 100, 1, 4, wal, 8, cpu, 0.0, violations=0, at_once=1, limit=1, **more)

    found = {
        (check.scenario, check.what.split(",")[0], check.system): (round(check.median, 6), check.met)
        for check in checks(
            lines_of(
                ("S3", "Drain", "pgfifo, async 50", OURS, [drained(100), drained(200)]),
                ("S4", "Drain", "F1b, batch 50, 1 connection", "floor", [drained(1, wal=10_000)] * 2),
                (
                    "S4",
                    "Drain",
                    "pgfifo, async 50",
                    OURS,
                    [drained(95, wal=20_000, more={"kept": 60}), drained(190, wal=20_000, more={"kept": 60})],
                ),
                ("S4", "Drain", "pgmq, best", PEER, [drained(19)]),
                ("S4", "Drain", "pgmq, default", PEER, [replace(drained(90), violations=3)] * 2),
                ("S11", "Drain with 1 process", "pgfifo, async", OURS, [drained(1, cpu=1)]),
                ("S11", "Drain with 2 processes", "pgfifo, async", OURS, [drained(2, cpu=2)]),
            )
        )
    }
    assert found["S4", "in order", "pgfifo, async 50"] == (0.95, True)
    beside = found["S4", "the best setting", "pgfifo, async 50"]
    assert beside == (5, True), "what breaks its promise is no peer's best, and only rounds of both count"
    processes = "Drain with 2 processes: CPU an execution"
    assert found["S11", processes, "pgfifo, async"] == (2, False)
    assert found["cost", "commits an execution", "pgfifo, async 50"] == (0.04, True)
    wal = "WAL an execution without the row that the history keeps"
    assert found["cost", wal, "pgfifo, async 50"] == (1.4, True)


def test_bench_names_the_best_peer_and_those_that_were_quicker_by_breaking_it() -> None:
    kept, broken = Outcome(100, 1, 1, violations=0), Outcome(300, 1, 1, violations=2)
    lines = lines_of(
        ("S4", "Drain", "pgfifo, async", OURS, [Outcome(250, 1, 1)]),
        ("S4", "Drain", "pgfifo, bare SQL", OURS, [Outcome(900, 1, 1)]),
        ("S4", "Drain", "A peer, best", PEER, [broken]),
        ("S4", "Drain", "Another, best", PEER, [kept]),
        ("S4", "Drain", "A third, best", PEER, [replace(broken, value=50)]),
    )
    (glance,) = glances(lines)
    assert (glance.ours, glance.peer) == (lines[0], lines[3])
    assert glance.quicker == [lines[2]]
    page = markdown(Comparison("make bench", MACHINE, lines=lines))
    assert (
        "| S4 Drain | 250/s (async) | 100/s (Another, best) | 300/s (A peer, best): 2 out of order |" in page
    )


def test_bench_does_not_repeat_a_peer_that_had_to_be_stopped() -> None:
    def line(kind: str, **more: Any) -> Line:
        return Line("S4", "Drain", "/s", "one", kind, [Outcome(1, 1, 1, **more)])

    assert line(PEER).wants(1)
    assert not line(PEER).wants(0), "it has that round"
    assert not line(PEER, stopped=True).wants(1)
    assert line(OURS, stopped=True).wants(1)
    assert not Line("S4", "Drain", "/s", "one", PEER, dash="has no keys").wants(0)
    assert Line("S4", "Drain", "/s", "one", PEER, dash="failed: x", failed=["x"]).wants(1)
    assert not Line("S4", "Drain", "/s", "one", PEER, dash="failed: x", failed=["x", "x"]).wants(2)


def test_bench_leaves_settings_out_of_a_brief_run_but_no_scenario() -> None:
    found = cases(1, 20_000)
    assert max(task.count for case in found for task in case.waiting) == 20_000
    for scenario in sorted({case.scenario for case in found}):
        there = [case for case in found if case.scenario == scenario]
        able = [(case, system) for case in there for system in SYSTEMS if reason(case, system) is None]
        kept = {system.name for case, system in able if not left_out(case, system)}
        assert kept == {system.name for _, system in able}, f"{scenario} leaves a system out"


def test_bench_reports_a_failure_without_where_it_ran() -> None:
    said = "File '/home/me/x/peer.py', line 7: postgresql://me:secret@/db?host=%2Frun%2Fx refused n/a"
    assert _anywhere(said) == "File '…', line 7: … refused n/a"


def test_bench_names_systems_and_scenarios_as_the_command_line_does() -> None:
    assert {system.kind for system in chosen("peers")} == {PEER}
    assert {system.name for system in chosen("pgfifo,pgmq")} == {"pgfifo", "pgmq"}
    assert [system.label for system in chosen("pgfifo:async-50")] == ["pgfifo, async 50"]
    assert chosen("") == list(SYSTEMS)
    with pytest.raises(SystemExit, match="no such system: rabbit"):
        chosen("rabbit")
    assert scenarios("s1, S14") == {"S1", "S14"}
    with pytest.raises(SystemExit, match="no such scenario: S15"):
        scenarios("S15")


def test_bench_knows_how_to_run_each_system_and_why_not() -> None:
    labels = [system.label for system in SYSTEMS]
    assert len(set(labels)) == len(labels)
    found = cases(1)
    assert [case.scenario for case in found] == sorted(
        (case.scenario for case in found), key=lambda s: int(s[1:])
    )
    assert {case.scenario for case in found} == {f"S{n}" for n in range(1, 15)}
    for system in SYSTEMS:
        suffix = "" if system.program.endswith(".mjs") else ".py"
        assert (PEERS / f"{system.program}{suffix}").exists()
        assert system.environment is None or system.environment in ENVIRONMENTS
        ran_in = [case for case in found if reason(case, system) is None]
        assert ran_in, f"{system.label} is measured nowhere"
    ours = [system for system in SYSTEMS if system.label == "pgfifo, async"]
    assert [case.title for case in found if reason(case, ours[0])] == []


def test_bench_reports_the_command_without_where_it_ran() -> None:
    typed = [
        "--dsn",
        "postgresql://me:secret@db/x",
        "--systems",
        "pgfifo",
        "--out=/somewhere",
        "--scale",
        "0.1",
    ]
    assert command(typed) == "python -m bench --systems pgfifo --scale 0.1"
    assert command(["--scenarios", "S1", "--dsn"]) == "python -m bench --scenarios S1"


def test_bench_gives_programs_an_address_that_every_driver_reads() -> None:
    made = url("host='/run/a b' user=me password=p@ss port=5433 dbname=x", "y")
    assert made == "postgresql://me:p%40ss@/y?host=%2Frun%2Fa%20b&port=5433"


def test_bench_keeps_what_it_has_when_it_is_interrupted(server: PrivateServer) -> None:
    def keep(comparison: Comparison) -> None:
        kept.append(comparison.seconds)
        if len(kept) == 2:
            raise KeyboardInterrupt

    kept: list[float] = []
    plan = Plan((), frozenset({"S1"}), rounds=1)
    comparison = run(Ground(server.dsn(), None), plan, Console(file=io.StringIO()), keep)
    assert len(kept) == 2
    assert "Interrupted" in comparison.notes[0]


def test_bench_goes_on_with_a_run_that_was_ended(server: PrivateServer) -> None:
    """What is there is not measured again, so a run whose time is over at once has what the first one had."""
    ours = next(system for system in SYSTEMS if system.label == "pgfifo, async")
    plan = Plan((ours,), frozenset({"S2"}), scale=0.01, rounds=1, minutes=1e-9)
    ground, console = Ground(server.dsn(), None), Console(file=io.StringIO())
    nothing = run(ground, plan, console)
    assert [line.outcomes for line in nothing.lines] == [[]]
    assert "were over" in nothing.notes[-1]
    (line,) = nothing.lines
    line.outcomes.append(Outcome(7, 1, 1, more={"kept": 3}))
    earlier = from_json(as_json(nothing))
    again = run(ground, plan, console, before=earlier)
    assert [line.outcomes for line in again.lines] == [[Outcome(7, 1, 1, more={"kept": 3})]]
    assert again.seconds > earlier.seconds


@pytest.mark.long
def test_bench_fills_a_queue_once_and_gives_each_trial_a_copy(server: PrivateServer) -> None:
    floor = next(system for system in SYSTEMS if system.label == "F1b, batch 10, 1 connection")
    waiting = (Produce(30, chunk=0),)
    with Trials(Ground(server.dsn(), None), 1) as trials:
        for _ in range(2):
            with trials.trial(floor, waiting) as made:
                assert made.left() == 30
                made.execute("delete from f1b")
        with trials.trial(floor) as made:
            assert made.left() == 0


@pytest.mark.long
@pytest.mark.timeout(600)
def test_bench_measures_a_floor_and_pgfifo_side_by_side(server: PrivateServer) -> None:
    systems = chosen("f1b:batch-10:1-connection,pgfifo:async")
    plan = Plan(systems, frozenset({"S4"}), scale=0.005, rounds=1, cap=60)
    ground = Ground(server.dsn(), None)
    comparison = run(ground, plan, Console(file=io.StringIO()))
    told = {(line.scenario, line.system): line for line in comparison.lines}
    assert [line.dash for line in comparison.lines if line.dash] == []
    assert set(told) == {("S4", "F1b, batch 10, 1 connection"), ("S4", "pgfifo, async")}
    ours = told["S4", "pgfifo, async"]
    (outcome,) = ours.outcomes
    assert (outcome.done, outcome.violations, outcome.at_once, outcome.stopped) == (50, 0, 1, False)
    assert outcome.commits is not None
    assert outcome.commits >= 5, "fifty in batches of ten"
    assert outcome.memory
    assert ours.ratios
    assert outcome.more["kept"] > 0
    assert "f1b_waiting" in " ".join(comparison.plans["F1b, claim, batch 50"])
    page = markdown(comparison)
    assert "| pgfifo, async |" in page
    assert server.host not in page + as_json(comparison), "a result must not say where it was made"
    with ground.connect() as conn:
        assert conn.execute(
            "select count(*) from pg_database where datname like 'pgfifo_bench%'"
        ).fetchone() == (0,)


@pytest.mark.long
def test_bench_counts_several_processes_from_when_each_has_run_something(server: PrivateServer) -> None:
    (system,) = chosen("pgfifo:bare-sql")
    with Trials(Ground(server.dsn(), None), 60) as trials, trials.trial(system) as made:
        outcome = drained_warm(made, Consume(str(made.journal)), 50, 100, processes=2)
        assert (outcome.done, outcome.violations, outcome.stopped) == (50, 0, False)
        assert len({run.process for run in made.runs()}) == 2
