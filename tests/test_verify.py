"""`pgfifo verify`: promises hold under harm, a missing safeguard is noticed, and nothing is left behind."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo.demo import sabotage
from pgfifo.verify.load import RULES, SINGLE
from tests.support.cli import CommandLine, processes_of, program

FOREVER = 300
SMALL = ("--producers", "2", "--workers", "2", "--lease", "2s")


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A short folder for everything temporary, empty again afterwards, with nobody in it."""
    folder = tmp_path_factory.mktemp("v")
    yield folder
    assert not processes_of(folder), "processes of the verification are left"
    assert not list(folder.iterdir()), "files of the verification are left"


def verification(dsn: str, place: Path, *words: str) -> "subprocess.Popen[str]":
    """Start a verification."""
    return subprocess.Popen(
        [program(), "verify", "--dsn", dsn, *SMALL, *words],
        env=os.environ | {"TMPDIR": str(place)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def judged(dsn: str, place: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Run a verification to its end; return the exit status and the report."""
    with verification(dsn, place, "--json", *words) as process:
        out, err = process.communicate(timeout=FOREVER)
    assert "Traceback" not in err, err
    assert out, err
    report = json.loads(out)
    assert isinstance(report, dict)
    return process.returncode, report


def left_of_it(dsn: str) -> list[str]:
    with pgfifo.Client(dsn) as fifo:
        return [each.action for each in fifo.stats()] + [each.name for each in fifo.workers()]


@pytest.mark.long
def test_every_promise_holds_while_workers_are_killed_and_stopped(fresh_dsn: str, place: Path) -> None:
    with pgfifo.Client(fresh_dsn) as fifo:
        fifo.enqueue("theirs", {})
        fifo.enqueue(SINGLE, {}, group="left by one that was killed")
    code, report = judged(fresh_dsn, place, "--duration", "5", "--chaos", "kill,pause", "--yes")
    assert code == 0, report
    assert report["held"]
    assert report["done"]["kills"] >= 1
    assert report["done"]["starts"] >= report["done"]["succeeded"] > 0
    assert {each["name"] for each in report["promises"] if each["held"]} == {
        "in order",
        "within the slots",
        "finished exactly once",
        "clients and record agree",
        "fenced",
        "no lane stood still",
        "pgfifo's own checks",
    }
    assert left_of_it(fresh_dsn) == ["theirs"]
    with pgfifo.Client(fresh_dsn) as fifo:
        [theirs] = fifo.executions()
        assert (theirs.action, theirs.state) == ("theirs", "waiting"), "it has touched what is not its own"


@pytest.mark.long
def test_a_safeguard_that_is_gone_is_noticed(fresh_dsn: str, place: Path) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        sabotage.apply(conn, "slots")  # not one whose lack shows in a race only
    code, report = judged(fresh_dsn, place, "--duration", "3")
    assert code == 1, report
    assert not report["held"]
    broken = [each for each in report["promises"] if not each["held"]]
    assert broken
    assert all(each["violations"] for each in broken)
    assert left_of_it(fresh_dsn) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_that_is_interrupted_leaves_nothing(fresh_dsn: str, place: Path, number: signal.Signals) -> None:
    with verification(fresh_dsn, place) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "producers enqueue" in line:
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=FOREVER)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""
    assert left_of_it(fresh_dsn) == []


def test_harm_is_asked_for(
    dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = CommandLine(dsn, monkeypatch, capsys)
    said = cli("verify", "--chaos", "kill,pause")
    assert (said.code, "There is nobody to ask" in said.err) == (2, True), said.err
    said = cli("verify", "--chaos", "fire")
    assert (said.code, "'fire'" in said.err) == (2, True), said.err
    said = cli("verify", "--chaos", "pause", "--workers", "1", "--yes")
    assert (said.code, "two workers" in said.err) == (2, True), said.err
    assert left_of_it(dsn) == []


def test_only_one_at_a_time(
    dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for action in RULES:
            conn.execute("select pgfifo.enqueue(%s, '{}')", [action])
        conn.execute("select pgfifo.worker_start('verify-1', 'there', 1, %s, 1)", [list(RULES)])
    said = CommandLine(dsn, monkeypatch, capsys)("verify", "--duration", "1")
    assert said.code == 1
    assert "another verification is under way in this database: worker verify-1 on there" in said.err
