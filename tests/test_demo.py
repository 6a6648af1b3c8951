"""The demo: it holds, it notices when a safeguard is gone, and it leaves nothing behind."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgfifo.demo import sabotage
from pgfifo.demo.events import CUSTOMERS, DELIVER, INDEX, events
from tests.support.cli import processes_of, program

FOREVER = 300


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A short folder for everything temporary, empty again afterwards, with nobody in it."""
    folder = tmp_path_factory.mktemp("d")
    yield folder
    assert not processes_of(folder), "processes of the demo are left"
    assert not list(folder.iterdir()), "files of the demo are left"


def demo(place: Path, *words: str) -> "subprocess.Popen[str]":
    """Start the demo."""
    return subprocess.Popen(
        [program(), "demo", *words],
        env=os.environ | {"TMPDIR": str(place), "PGFIFO_DSN": "postgresql://nobody@127.0.0.1:1/nowhere"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_demo(place: Path, *words: str) -> tuple[int, str]:
    """Run the demo to its end."""
    with demo(place, *words) as process:
        out, _ = process.communicate(timeout=FOREVER)
    assert "Traceback" not in out
    return process.returncode, out


@pytest.mark.long
def test_demo_holds_and_says_what_was_seen(place: Path) -> None:
    code, out = run_demo(place, "--events", "800")
    assert code == 0, out
    assert "800 committed: 800 succeeded" in out
    assert "0 order violations in" in out
    assert "0 slot violations (at most deliver 1 of 1, index 3 of 3 at once)" in out
    assert "was killed with SIGKILL" in out
    assert "each in its place" in out
    assert "no wake-up was lost: 0 wake-ups lost" in out
    assert "fenced" not in out, "nobody has listened to the hand-ins"
    assert "✗" not in out
    assert "pgfifo stats" in out


@pytest.mark.long
@pytest.mark.parametrize(
    ("safeguard", "found"),
    [
        ("order", "✗ "),
        ("slots", "✗ within the slots"),
        ("lost", "✗ finished exactly once"),
    ],
)
def test_demo_notices_when_a_safeguard_is_gone(place: Path, safeguard: str, found: str) -> None:
    code, out = run_demo(
        place, "--sabotage", safeguard, *(["--events", "800"] if safeguard != "order" else [])
    )
    assert code == 1, out
    assert "SABOTAGE: " in out
    assert found in out
    assert f"(A safeguard was taken out: {safeguard}.)" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["Starting", "begin to enqueue", "enqueued"])
def test_demo_that_is_interrupted_leaves_nothing(place: Path, number: signal.Signals, moment: str) -> None:
    with demo(place) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if moment in line:
                break
        process.send_signal(number)
        out, _ = process.communicate(timeout=FOREVER)
    assert process.returncode == 130, out
    assert "Traceback" not in out


@pytest.mark.parametrize("name", sabotage.SABOTAGES)
def test_safeguards_stand_where_the_sabotage_looks_for_them(fresh_dsn: str, name: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        functions = [cut.function for cut in sabotage.SABOTAGES[name].cuts]
        query = "select f, pg_get_functiondef(f::regproc) from unnest(%s::text[]) f order by f"
        before = conn.execute(query, [functions]).fetchall()
        assert sabotage.apply(conn, name) == sabotage.SABOTAGES[name].what
        after = conn.execute(query, [functions]).fetchall()
        assert all(one != other for one, other in zip(before, after, strict=True))
        with pytest.raises(LookupError):
            sabotage.apply(conn, name)


def test_events_are_the_same_each_time_and_those_of_many_customers() -> None:
    found = [event for number in range(1, 5) for event in events(number, 500)]
    assert found == [event for number in range(1, 5) for event in events(number, 500)]
    assert {event["customer"] for _, event in found} == set(CUSTOMERS)
    assert len(CUSTOMERS) == 40
    assert len({event["id"] for _, event in found}) == 2000
    deliveries = sum(action == DELIVER for action, _ in found)
    assert 1000 < deliveries < 1400
    assert sum(action == INDEX for action, _ in found) == 2000 - deliveries
