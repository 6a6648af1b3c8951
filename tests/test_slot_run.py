"""pgfifo run and pgfifo slots: a command in a slot, through the installed program, stopped and killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo import _holder
from tests.support.cli import CommandLine, program, run_program
from tests.support.database import in_background, wait_for
from tests.support.engine import Engine
from tests.test_worker import working

Connection = psycopg.Connection[Any]
Start = Callable[..., subprocess.Popen[str]]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="commands are for POSIX systems")


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


@pytest.fixture
def env(dsn: str) -> dict[str, str]:
    return {"PGFIFO_DSN": dsn, "GREETING": "hello"}


@pytest.fixture
def start(env: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start the program; at the end of the test it is gone."""
    started: list[subprocess.Popen[str]] = []

    def starter(*words: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [program(), "run", *words],
                env=os.environ | env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                cwd=tmp_path,
            )
        )
        return started[-1]

    yield starter
    for process in started:
        process.kill()
        process.communicate()


def only(engine: Engine, state: str) -> dict[str, Any]:
    """Return the only execution that is in a state."""
    [(id_,)] = engine.rows("select id from pgfifo.executions where state = %s", state)
    return engine.show(id_)


def waits(engine: Engine) -> bool:
    return bool(engine.rows("select from pgfifo.slots where state = 'waiting'"))


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end; return the exit status, and what was said on stderr."""
    _, said = process.communicate(timeout=30)
    assert "Traceback" not in said
    return process.returncode, said


def test_a_command_runs_in_a_slot_with_streams_and_environment_of_the_caller(
    env: dict[str, str], engine: Engine
) -> None:
    engine.policy("migrate-db", group_by=["env"])
    script = 'read line; echo "$GREETING $line $PGFIFO_TOKEN $PGFIFO_GROUP"; echo oops >&2; echo 40% half >&3'
    said = run_program(
        "run", "migrate-db", "--group", "env=prod", "--shell", "--", script, env=env, input="world\n"
    )
    shown = only(engine, "succeeded")
    assert said.code == 0
    assert said.out == f'hello world 1-{shown["id"]}-1 {{"env":"prod"}}\n'
    assert said.err == "oops\n"
    assert (shown["action"], shown["group_text"], shown["is_slot"]) == ("migrate-db", '{"env":"prod"}', True)
    assert engine.rows("select from pgfifo._workers") == [], "it has signed off"
    engine.assert_promises()


@pytest.mark.parametrize(
    ("script", "code", "error"),
    [
        ("exit 0", 0, None),
        ("exit 3", 3, "exit status 3"),
        ("exit 255", 255, "exit status 255"),
        ("kill -TERM $$", 143, "killed by SIGTERM"),
    ],
)
def test_the_exit_status_is_that_of_the_command(
    env: dict[str, str], engine: Engine, script: str, code: int, error: str | None
) -> None:
    said = run_program("run", "deploy", "--", "sh", "-c", script, env=env)
    assert (said.code, said.all) == (code, "")
    shown = only(engine, "failed" if error else "succeeded")
    assert (shown["error"], shown["attempt"]) == (error, 1)


def test_what_turns_out_to_be_no_program_is_told_and_keeps_no_slot(
    env: dict[str, str], engine: Engine, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("echo there is no first line\n")
    script.chmod(0o755)
    said = run_program("run", "deploy", "--", str(script), env=env)
    assert (said.code, said.out) == (1, "")
    assert "Exec format error (does the script begin with #!" in said.err
    assert "Exec format error" in only(engine, "failed")["error"]


def test_order_and_slots_among_commands_programs_and_a_worker(
    start: Start, dsn: str, engine: Engine, tmp_path: Path
) -> None:
    """Each joins the line after the one before is in it; the journal says when each had its turn."""
    journal = tmp_path / "journal"
    actions = pgfifo.Actions()

    def turn(number: int) -> None:
        for what in ("begin", "end"):
            with journal.open("a") as lines:
                lines.write(f"{what} {number}\n")

    @actions.action("deploy")
    def deploy(execution: pgfifo.Execution) -> None:
        turn(execution.payload["n"])

    def call(fifo: pgfifo.Client, number: int) -> None:
        with fifo.slot("deploy", timeout=60):
            turn(number)

    with pgfifo.Client(dsn) as fifo:
        gate = fifo.slot("deploy")
        gate.__enter__()
        commands, callers = [], []
        for number in range(9):
            if number % 3 == 0:
                command = f"echo begin {number} >> journal; sleep 0.05; echo end {number} >> journal"
                commands.append(start("deploy", "--shell", "--", command))
            elif number % 3 == 1:
                engine.enqueue(payload={"n": number})
            else:
                callers.append(in_background(partial(call, fifo, number)))
            wait_for(lambda n=number: engine.stats()["queue_length"] == n + 1, message="its place")  # type: ignore[misc]
        with working(dsn, actions):
            gate.__exit__(None, None, None)
            for caller in callers:
                caller.result()
            assert [ended(command)[0] for command in commands] == [0, 0, 0]
    assert journal.read_text().splitlines() == [
        f"{what} {number}" for number in range(9) for what in ("begin", "end")
    ]
    engine.assert_promises()


def test_it_waits_in_line_or_does_not(start: Start, env: dict[str, str], engine: Engine) -> None:
    holding = start("deploy", "--", "sh", "-c", "echo begun; sleep 600")
    assert first_line(holding) == "begun"
    said = run_program("run", "deploy", "--no-wait", "--", "true", env=env)
    assert (said.code, said.out) == (5, "")
    assert "no slot of deploy is free" in said.err
    said = run_program("run", "deploy", "--timeout", "50ms", "--", "true", env=env)
    assert said.code == 5
    assert "no slot of deploy became free in 0.05 s" in said.err
    said = run_program("policy", "set", "lock", "--group-by", "who", env=env)
    beside = start("lock", "--group", "who=a", "--", "sh", "-c", "echo begun; sleep 600")
    assert first_line(beside) == "begun"
    said = run_program("run", "lock", "--group", "who=a", "--no-wait", "--", "true", env=env)
    assert said.code == 5
    assert "no slot of lock who=a is free" in said.err
    assert "slots lock --group who=a shows who holds them." in said.err
    beside.send_signal(signal.SIGINT)
    assert ended(beside)[0] == 130
    waiting = start("deploy", "--", "echo", "mine")
    wait_for(lambda: waits(engine), message="the second to wait")
    holding.send_signal(signal.SIGINT)
    assert ended(holding)[0] == 130
    assert ended(waiting)[0] == 0
    states = [state for (state,) in engine.rows("select state from pgfifo.executions order by id")]
    assert states == ["failed", "cancelled", "failed", "succeeded"]
    engine.assert_promises()


def test_a_signal_during_the_wait_gives_up_the_place(start: Start, engine: Engine) -> None:
    holding = start("deploy", "--", "sh", "-c", "echo begun; sleep 600")
    assert first_line(holding) == "begun"
    waiting = {
        number: start("deploy", "--", "true") for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    for number, process in waiting.items():
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Waiting for a slot of deploy; ")
        process.send_signal(number)
    for number, process in waiting.items():
        status, said = ended(process)
        assert status == 128 + number
        assert f"ended by {number.name}" in said
    assert not waits(engine)
    reasons = engine.rows("select reason from pgfifo.executions where state = 'cancelled'")
    assert reasons == [("given up while it waited",)] * 3


def test_signals_are_passed_on_and_a_stubborn_command_is_killed(
    start: Start, engine: Engine, tmp_path: Path
) -> None:
    script = "trap 'echo heard >> heard' TERM; echo begun; while :; do sleep 0.05; done"
    stubborn = start("deploy", "--kill-after", "300ms", "--shell", "--", script)
    assert first_line(stubborn) == "begun"
    stubborn.send_signal(signal.SIGTERM)
    assert ended(stubborn)[0] == 137
    assert (tmp_path / "heard").read_text() == "heard\n"
    assert only(engine, "failed")["error"] == "killed by SIGKILL"
    graceful = start(
        "deploy", "--shell", "--", "trap 'exit 7' USR1; echo begun; while :; do sleep 0.05; done"
    )
    assert first_line(graceful) == "begun"
    graceful.send_signal(signal.SIGTSTP)
    assert graceful.stderr is not None
    assert "Ctrl-Z is of no use here" in graceful.stderr.readline()
    graceful.send_signal(signal.SIGUSR1)
    assert ended(graceful)[0] == 7


@pytest.mark.parametrize("how", ["lost", "cancelled"])
def test_a_command_whose_slot_is_lost_or_cancelled_is_stopped(
    start: Start, dsn: str, engine: Engine, tmp_path: Path, how: str
) -> None:
    script = "trap 'echo stopped > stopped; exit 1' TERM; echo begun; while :; do sleep 0.05; done"
    process = start("deploy", "--shell", "--", script)
    assert first_line(process) == "begun"
    id_ = only(engine, "running")["id"]
    with pgfifo.Client(dsn) as fifo:
        if how == "lost":
            fifo.finish_execution(id_, "failed", reason="stuck")
        else:
            fifo.cancel(id_)
    status, said = ended(process)
    assert status == 1
    assert (f"was {how}" if how == "cancelled" else "the slot of deploy was lost") in said
    assert (tmp_path / "stopped").exists()


def test_a_command_that_fails_in_a_slot_that_was_lost_unnoticed_ends_with_its_own_status(
    dsn: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_holder, "_INTERVAL", 15.0)
    cli = CommandLine(dsn, monkeypatch, capsys)
    script = """
import os, sys, pgfifo
with pgfifo.Client(os.environ["PGFIFO_DSN"]) as fifo:
    fifo.finish_execution(int(os.environ["PGFIFO_ID"]), "failed", reason="stuck")
sys.exit(int(sys.argv[1]))
"""
    for status, code in ((7, 7), (0, 1)):
        said = cli("run", "deploy", "--poll-only", "--", sys.executable, "-c", script, status)
        assert said.code == code
        assert "the slot of deploy was lost" in said.err
    assert engine.stats()["total_failed"] == 2


def test_slots_a_killed_runs_command_is_gone_before_the_next_one_begins(
    start: Start, engine: Engine, tmp_path: Path
) -> None:
    """SIGKILL cannot be passed on. The next one looks whether a process of the first is left."""
    first = start("deploy", "--shell", "--", "echo $$ > leader; echo begun; sleep 600; true")
    assert first_line(first) == "begun"
    leader = int((tmp_path / "leader").read_text())
    second = start("deploy", "--shell", "--", f"kill -0 -{leader} 2>/dev/null && echo left || echo gone")
    wait_for(lambda: waits(engine), message="the second to wait")
    first.kill()
    assert first_line(second) == "gone"
    assert ended(second)[0] == 0
    lost = only(engine, "failed")
    assert lost["error"].startswith("holder lost: worker")
    assert lost["attempt"] == 1
    engine.assert_promises()


def test_what_cannot_be_right_is_refused_before_anything_is_asked_for(
    dsn: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = CommandLine(dsn, monkeypatch, capsys)
    for words, said in (
        (("deploy",), "COMMAND"),
        (("deploy", "--", "no-such-program"), "there is no such program"),
        (("deploy", "--", "./no-such-program"), "there is no such program"),
        (("deploy", "--shell", "--", "a", "b"), "one line of shell"),
        (("deploy", "--no-wait", "--timeout", "1s", "--", "true"), "exclude each other"),
        (("deploy", "--timeout", "soon", "--", "true"), "soon"),
    ):
        refused = cli("run", *words)
        assert refused.code == 2, words
        assert said in refused.err
    assert engine.rows("select from pgfifo.executions") == []
    engine.enqueue()
    engine.one("select pgfifo.close('deploy', p_reason => 'moving')")
    refused = cli("run", "deploy", "--", "true")
    assert refused.code == 1
    assert "moving" in refused.err


def test_who_holds_and_who_waits_is_shown(
    dsn: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = CommandLine(dsn, monkeypatch, capsys)
    assert "Nobody holds a slot" in cli.ok("slots").err
    engine.policy(group_by=["env"])
    engine.enqueue(payload={"env": "test"})
    worker = engine.worker()
    engine.claim(worker)
    with pgfifo.Client(dsn) as fifo, fifo.slot("deploy", group="prod") as slot:
        shown = cli.ok("slots").out
        assert "deploy env=prod" in shown
        assert "deploy env=test" in shown
        assert "program" in shown
        [row] = json.loads(cli.ok("slots", "deploy", "--group", "env=prod", "--json").out)
        assert (row["id"], row["state"], row["is_slot"], row["pid"]) == (
            slot.id,
            "running",
            True,
            os.getpid(),
        )
        assert "env=prod" not in cli.ok("slots", "deploy", "-g", "env=test").out
        assert cli.ok("workers").out.count("alive") == 1, "programs that hold slots serve nobody"


def test_slots_of_nobody_of_many_and_of_an_action_that_is_not_there(
    dsn: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = CommandLine(dsn, monkeypatch, capsys)
    assert cli.ok("slots", "--json").out == "[]\n"
    engine.policy(max_concurrent=50)
    ids = engine.fill(60)
    worker = engine.worker(concurrency=50)
    engine.claim(worker, 50)
    lines = cli.ok("slots", "deploy").out.splitlines()
    assert len(lines) == 51, "who waits for a worker holds nothing"
    assert [line.split()[3] for line in lines[1:]] == [str(id_) for id_ in ids[:50]]
    rows = json.loads(cli.ok("slots", "--json").out)
    assert {(row["state"], row["is_slot"], row["worker_id"]) for row in rows} == {("running", False, worker)}
    refused = cli("slots", "deplyo")
    assert refused.code == 1
    assert "deploy" in refused.err.replace("deplyo", "")
