"""`make soak` and `make scale`, small: they run end to end, tell what they saw, and judge it rightly."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench import scale
from bench.ground import Ground
from bench.soak import report
from bench.soak.run import Sample, Settings, Soak, judge, soak
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
    "libpq": 180001,
    "pgfifo": "0.1.0",
    "sql": "0123456789ab",
    "date": "2026-01-01 00:00 UTC",
}
MB = 1_000_000


def run_of(
    *, memory: float = 0, tables: float = 0, probe: float = 0, rate: float = 0, held: bool = True
) -> Soak:
    """A soak of ten minutes whose figures grow by so much, times what they were, from begin to end."""
    result = Soak(Settings(duration=600), MACHINE)
    done = 0.0
    for n in range(61):
        grown = n / 60
        done += 1000 * (1 + rate * grown)
        size = int(40 * MB * (1 + tables * grown))
        result.samples.append(
            Sample(
                at=n * 10.0,
                enqueued=int(done),
                completed=int(done),
                waiting=10,
                active=1,
                memory={"worker-1": int(50 * MB * (1 + memory * grown))},
                server=0,
                tables={"marks": (size, size, 100, 10), "history": (MB, MB, 0, 100)},
                probe=int(1000 * (1 + probe * grown)),
                load=1.0,
            )
        )
    result.rounds = [{"held": held, "began": 0.0, "done": {"starts": 100, "seconds": 60}, "promises": []}]
    result.bursts = [{"at": n * 60.0, "enqueue": 5000.0, "drain": 900.0} for n in range(9)]
    result.slots, result.drained, result.checks = {"alone": 10}, True, 3
    result.totals = {"enqueued": 10, "succeeded": 8, "failed": 1, "cancelled": 1, "expired": 0}
    result.vacuumed = {"marks": (MB, MB, 0, 10)}
    result.verdicts = judge(result)
    return result


def test_a_soak_that_stays_as_it_was_holds() -> None:
    result = run_of()
    assert [each.name for each in result.verdicts if not each.held] == []
    assert result.held
    assert "Everything held" in report.markdown(result, ["a note"])
    assert len(json.loads(report.as_json(result))["samples"]) == 61


@pytest.mark.parametrize(
    ("grows", "what"),
    [
        ({"memory": 1.0}, "memory of worker-1"),
        ({"tables": 3.0}, "tables and indexes of the queue"),
        ({"probe": 2.0}, "cost of a claim"),
        ({"rate": -0.9}, "throughput"),
        ({"held": False}, "promises"),
    ],
)
def test_a_soak_in_which_something_changes_does_not_hold(grows: dict[str, float], what: str) -> None:
    result = run_of(**grows)  # type: ignore[arg-type]
    assert [each.name for each in result.verdicts if not each.held] == [what]
    assert not result.held
    assert "NOT everything held" in report.markdown(result, [])


def test_a_soak_that_left_something_undone_does_not_hold() -> None:
    result = run_of()
    result.drained = False
    result.slots = {"alone": 9, "not alone": 1}
    result.findings = ["ledger: a lane"]
    broken = [each.name for each in judge(result) if not each.held]
    assert broken == ["checks", "slots of programs", "one outcome each"]


@pytest.mark.long
def test_soak_runs_to_its_end_and_leaves_nothing(server: PrivateServer, tmp_path: Path) -> None:
    ground = Ground(server.dsn(), None)
    settings = Settings(
        duration=5,
        every=0.5,
        burst=1,
        mortality=2,
        round=2,
        checks=2,
        verify=("--producers", "1", "--workers", "2", "--rate", "5", "--lease", "2s"),
    )
    result = soak(ground, settings, lambda _: None)
    assert result.held, result.verdicts
    assert (result.kills >= 1, result.checks >= 1, len(result.rounds)) == (True, True, 1)
    assert result.totals["succeeded"] > 0
    report.write(result, tmp_path, ["a note"])
    assert "too short" in (tmp_path / "soak.md").read_text()
    assert server.host not in (tmp_path / "soak.json").read_text()
    with ground.connect() as conn:
        left = conn.execute("select count(*) from pg_database where datname like 'pgfifo_bench_soak%'")
        assert left.fetchone() == (0,)


@pytest.mark.long
def test_scale_does_everything_in_all_queues(server: PrivateServer, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [each for each in scale.OPERATIONS if each.command]
    few = [each for each in scale.OPERATIONS if each not in commands[1:]]
    monkeypatch.setattr(scale, "OPERATIONS", tuple(few))
    sizes = scale.Sizes(deep=1500, singly=100, lanes=700, finished=100, rounds=1, limit=60_000)
    found = scale.scale(Ground(server.dsn(), None), sizes, Console(file=io.StringIO()))
    assert len(found.rows) == len(few)
    assert all(list(queues) == ["small", "deep", "wide"] for _, queues in found.rows)
    page = scale.markdown(found)
    assert "Cancelling all" in page
    assert "Nothing is too slow" in page
    assert server.host not in page
    slow = scale.Report(MACHINE, scale.Sizes(limit=100), [(few[0], {"small": scale.Measured([500.0])})])
    assert slow.slow() == [f"{few[0].name} (small): 500 ms"]
