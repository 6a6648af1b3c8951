"""The benchmark: what it computes and prints, and that all of it runs. Nothing here looks at a clock."""

import io
import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.console import Console

from bench import profile
from bench.__main__ import run
from bench.bench import Sizes
from bench.engine import ENQUEUE, Worker, enqueue_many, payloads, set_policy
from bench.ground import Ground
from bench.meter import Sample
from bench.report import (
    Cost,
    Report,
    Row,
    as_json,
    by_scenario,
    comparison,
    markdown,
    median_cost,
    number,
    ratios,
    spread,
    terminal,
    verdict,
)
from bench.sizing import sizing, write
from bench.sizing_report import CONCURRENCY, ENQUEUE_TABLE, PAYLOAD_WORK
from bench.sizing_report import Sizes as SizingSizes
from pgfifo.embedded import PrivateServer

Connection = psycopg.Connection[Any]

SQL = Path(__file__).resolve().parent.parent / "sql"

MACHINE = {
    "cpu": "A processor",
    "cores": 2,
    "memory_gib": 8,
    "kernel": "Linux 6.1",
    "postgresql": "18.1",
    "settings": {"fsync": "on"},
    "python": "3.11.7",
    "psycopg": "3.3.0",
    "libpq": 180001,
    "pgfifo": "0.1.0",
    "sql": "0123456789ab",
    "date": "2026-01-01 00:00 UTC",
}


def rate(values: list[float], **more: object) -> Row:
    return Row("Drain", "pgfifo", "/s", values, **more)  # type: ignore[arg-type]


def test_bench_compares_round_by_round_and_takes_medians() -> None:
    assert ratios([2, 6, 12], [4, 6, 6]) == (0.5, 1, 2)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        ratios([1], [1, 2])
    assert spread([300, 100, 2000]) == "300 (100-2,000)"
    assert spread([5.0]) == "5.00"
    assert [number(n) for n in (12345.6, 123.4, 12.34, 1.234, 0.0123)] == [
        "12,346",
        "123",
        "12.3",
        "1.23",
        "0.012",
    ]
    cost = median_cost([Cost(1, 10, 1, 0.1, 1), Cost(3, 30, 1, 0.3, 3), Cost(2, 20, 1, 0.2, 2)])
    assert cost == Cost(2, 20, 1, 0.2, 2)
    assert median_cost([Cost(1, 10, 1, None, 1), Cost(3, 30, 1, 0.3, 3)]).server_cpu is None


def test_bench_says_whether_a_target_is_met_in_the_right_direction() -> None:
    assert rate([1], against="F1b", ratios=(0.4, 0.6, 0.5), target=0.5).met is True
    missed = rate([1], against="F1b", ratios=(0.4, 0.6, 0.4), target=0.5)
    assert missed.met is False
    assert verdict(missed) == "≥ 0.5 missed"
    assert comparison(missed) == "0.40 (0.40-0.60) x F1b"
    slower = Row("Claim", "beside", "ms", [1], "alone", (1.3,), 1.25)
    assert slower.met is False, "where less is better, more than the target is a miss"
    assert verdict(slower) == "≤ 1.25 missed"
    assert rate([1]).met is None
    assert verdict(rate([1])) == ""


def test_bench_tells_the_same_in_terminal_markdown_and_json() -> None:
    rows = [
        Row("Drain", "F1b", "/s", [100, 200]),
        rate([60, 120], against="F1b", ratios=(0.6, 0.6), target=0.5, cost=Cost(0.02, 500, 0.02, 0.05, 0.01)),
        Row("Claim", "alone", "ms", [1.5], note="nothing else there"),
    ]
    report = Report("python -m bench quick", MACHINE, rows, {"F1": ["Delete on f1"]}, load=[0.5, 3.0])
    console = Console(file=io.StringIO(), width=200)
    console.print(terminal(report))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    page = markdown(report)
    for text in ("pgfifo", "90.0 (60.0-120)/s", "0.60 (0.60-0.60) x F1b", "≥ 0.5 met", "0.050 + 0.010"):
        assert text in shown
        assert text in page
    assert list(by_scenario(report)) == ["Drain", "Claim"]
    assert "alone: nothing else there" in page
    assert "Delete on f1" in page
    assert "the machine was not quiet" in page
    told = json.loads(as_json(report))
    assert told["machine"] == MACHINE
    assert [(row["median"], row["ratio"], row["met"]) for row in told["rows"]] == [
        (150, None, None),
        (90, 0.6, True),
        (1.5, None, None),
    ]


def test_bench_profile_stamps_functions_that_still_work(fresh_dsn: str) -> None:
    """Each function on the hot path is stamped, and does with its stamps what it did without."""
    told: list[str] = []
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        for file in profile.FILES:
            conn.execute(profile.instrumented((SQL / file).read_text()).encode())
        conn.add_notice_handler(lambda notice: told.append(str(notice.message_primary)))
        set_policy(conn, "deploy", max_concurrent=2)
        enqueue_many(conn, "deploy", payloads(3))
        conn.execute(ENQUEUE, ["deploy", payloads(1)[0]])
        conn.execute("set pgfifo.turn = 0")  # or what ends within a turn goes another way
        worker, sample = Worker(conn, "deploy"), Sample()
        worker.drain(10, sample)
    assert sample.done == 4
    named = {line.split()[1] for line in told if line.startswith("profile ")}
    assert named >= {"_enqueue", "_enqueue_batch", "work", "_finish_batch"}


@pytest.mark.long
def test_bench_quick_runs_on_a_given_server_and_leaves_nothing_there(server: PrivateServer) -> None:
    sizes = Sizes(
        rounds=2,
        drain=100,
        batch=10,
        many=(20,),
        singly=20,
        waiting=20,
        backlog=50,
        lanes=200,
        claims=5,
        held=100,
    )
    quiet = Console(file=io.StringIO())
    report = run(Ground(server.dsn(), None), "quick", sizes, quiet)
    assert all(value > 0 for row in report.rows for value in row.values)
    compared = [row for row in report.rows if row.target is not None]
    assert {row.system for row in compared} >= {"pgfifo", "beside all of the following"}
    assert {"F1", "F1b, claim", "F1b, delete"} <= set(report.plans)
    assert "f1b_waiting" in " ".join(report.plans["F1b, claim"]), "the floor must not be without its index"
    page = markdown(report)
    assert "| pgfifo | " in page
    assert server.host not in page, "a result must not say where it was made"
    assert json.loads(as_json(report))["machine"]["own_server"] is False
    with Ground(server.dsn(), None).connect() as conn:
        assert conn.execute(
            "select count(*) from pg_database where datname like 'pgfifo_bench%'"
        ).fetchone() == (0,)


def test_bench_sizing_runs_all_its_parts_and_leaves_nothing_there(
    server: PrivateServer, tmp_path: Path
) -> None:
    sizes = SizingSizes(
        rounds=1,
        singly=5,
        many=10,
        batches=(2,),
        chunks=(1, 10),
        lanes=(2,),
        slots=(1,),
        bytes=(100, 1000),
        heavy=1000,
        backlog=20,
        history=40,
        idle=2,
        turns=(0,),
        connections=(1,),
        processes=(),
        concurrency=(10,),
        run=20,
        rates=(50,),
        seconds=0.2,
        calls=3,
    )
    report = sizing(Ground(server.dsn(), None), sizes, Console(file=io.StringIO()))
    measured = {line.table for line in report.lines}
    assert {ENQUEUE_TABLE, CONCURRENCY, PAYLOAD_WORK} <= measured
    kept = [report.line(PAYLOAD_WORK, size) for size in ("100 B", "1 KB")]
    small, large = (line.of("kept") if line else None for line in kept)
    assert small is not None
    assert large is not None
    assert small < large, "the history keeps payloads"
    assert all(measure.commits > 0 for line in report.lines for measure in line.rounds)
    assert [call.parts for call in report.calls if "nothing to do" not in call.name and not call.parts] == []
    write(report, tmp_path)
    page = (tmp_path / "sizing.md").read_text()
    for heading in ("## What a core carries", "## Two examples", "## Ceilings", "## Rate"):
        assert heading in page
    assert server.host not in page, "a result must not say where it was made"
    assert len(json.loads((tmp_path / "sizing.json").read_text())["ways"]) == 2
    with Ground(server.dsn(), None).connect() as conn:
        left = conn.execute("select count(*) from pg_database where datname like 'pgfifo_bench%'").fetchone()
    assert left == (0,)
