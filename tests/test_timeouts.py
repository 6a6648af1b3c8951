"""Time limits of attempts: who overran is told to stop, has failed, and keeps its slot until it has ended."""

import asyncio
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgfifo import Actions, Command, Execution
from pgfifo import command as command_module
from pgfifo._run import CURRENT
from tests.support.database import wait_for
from tests.support.engine import Engine
from tests.test_worker import drain, enqueue, look, policy, wait_for_state, working
from tests.test_worker_processes import RUN, Start, alive, ends, journal, start, wait_for_lines

Connection = psycopg.Connection[Any]

__all__ = ["start"]

posix = pytest.mark.skipif(sys.platform == "win32", reason="process groups and signals are POSIX's")


@pytest.fixture
def actions() -> Actions:
    return Actions()


# Which limit


def limits(engine: Engine, worker: int, call: int) -> dict[str, Any]:
    """Claim, and return the limits of what was started, by group."""
    query = "select kind, id, group_text, detail from pgfifo.work(%s, '{deploy}', 10, %s)"
    rows = engine.rows(query, worker, call)
    groups = {id_: group for kind, id_, group, _ in rows if kind == "start"}
    return {groups[id_]: detail for kind, id_, _, detail in rows if kind == "limit"}


def test_a_claim_says_how_long_what_it_starts_may_run(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue(group="a")
    engine.enqueue(group="b")
    worker = engine.worker()
    assert limits(engine, worker, 1) == {}, "nobody has set one"
    conn.execute("select pgfifo.set_default_policy('{\"timeout\": 30}')")
    engine.policy(group="c", timeout="1 min", kill_after=5)
    engine.policy(group="d", timeout="unlimited")
    engine.policy(group="e", timeout="unlimited", kill_after="unlimited")
    for group in "cdef":
        engine.enqueue(group=group)
    wanted = {"c": {"timeout": 60, "kill_after": 5}, "e": {"kill_after": "Infinity"}, "f": {"timeout": 30}}
    assert limits(engine, worker, 2) == wanted
    assert limits(engine, worker, 2) == wanted, "asked again it is told something else"
    assert limits(engine, worker, 3) == {}
    engine.policy(timeout=1)
    engine.enqueue(group="g")
    assert limits(engine, worker, 4) == {"g": {"timeout": 1}}
    conn.execute("select pgfifo.set_default_policy('{\"timeout\": null}')")
    engine.policy(timeout=None)
    engine.enqueue(group="h")
    assert limits(engine, worker, 5) == {}


# What becomes of it


def test_a_coroutine_whose_time_is_up_is_cancelled_and_has_failed(
    dsn: str, conn: Connection, actions: Actions, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[BaseException] = []
    actions.on_failed(lambda _, error: errors.append(error))
    seen: list[tuple[float | None, str | None]] = []

    @actions.action("work", timeout=0.05, max_attempts=2, backoff_initial=0)
    async def work(execution: Execution) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.append((execution.timeout, execution.cancel_reason))

    id_ = enqueue(conn, "work")
    drain(dsn, actions)
    state, failures, error = look(conn, id_, "state", "failures", "error")
    assert (state, failures) == ("failed", 2)
    assert error == "TimeoutError: it ran for longer than its time limit of 0.05 s"
    assert seen == [(0.05, "timeout")] * 2
    assert [type(error) for error in errors] == [TimeoutError] * 2
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [message for message in said if "over its 0.05 s" in message] == said
    assert len(said) == 2


@pytest.mark.parametrize("manner", ["returns", "raises", "heeds", "suppresses"])
def test_what_overran_has_failed_however_it_ends(
    dsn: str, conn: Connection, actions: Actions, manner: str
) -> None:
    @actions.action("sync", timeout=0.05, max_attempts=1)
    def sync(execution: Execution) -> str:
        wait_for(lambda: execution.cancel_requested)
        if manner == "heeds":
            execution.raise_if_cancelled()
        if manner == "raises":
            raise RuntimeError("cut short")
        return "too late"

    @actions.action("async", timeout=0.05, max_attempts=1)
    async def in_loop(execution: Execution) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if manner == "heeds":
                raise
        if manner == "raises":
            raise RuntimeError("cut short")
        return "too late"

    ids = [enqueue(conn, "sync"), enqueue(conn, "async")]
    drain(dsn, actions)
    for id_ in ids:
        state, result, error = look(conn, id_, "state", "result", "error")
        assert (state, result) == ("failed", None)
        assert error.startswith("RuntimeError: cut short" if manner == "raises" else "TimeoutError: it ran")


def test_slots_what_overran_keeps_its_slot_until_its_thread_has_ended(
    dsn: str, conn: Connection, actions: Actions, caplog: pytest.LogCaptureFixture
) -> None:
    """In an application's own process it is only complained of after kill_after."""
    go = threading.Event()
    overran = threading.Event()

    @actions.action("work", timeout=0.05, kill_after=0.05, max_attempts=1)
    def work(execution: Execution) -> None:
        if execution.payload == 1:
            wait_for(lambda: execution.cancel_reason == "timeout")
            overran.set()
            assert go.wait(30)

    first, second = enqueue(conn, "work", 1), enqueue(conn, "work", 2)
    with working(dsn, actions):
        assert overran.wait(30)
        wait_for(lambda: "still runs 0.05 s after its time was up" in caplog.text)
        assert (look(conn, first, "state"), look(conn, second, "state")) == ("running", "waiting")
        go.set()
        wait_for_state(conn, second, "succeeded")
    assert look(conn, first, "state") == "failed"


def timer() -> asyncio.TimerHandle:
    """What goes off when the time of the attempt that asks is up."""
    run = CURRENT.get()
    assert run is not None
    assert isinstance(run.timer, asyncio.TimerHandle)
    return run.timer


def test_a_limit_does_not_outlive_its_attempt(dsn: str, conn: Connection, actions: Actions) -> None:
    timers = []

    @actions.action("work", timeout=0.1)
    async def work(execution: Execution) -> None:
        if execution.payload == "longer":
            await asyncio.sleep(0.2)
        else:
            timers.append(timer())

    policy(conn, "work", timeout="unlimited")
    id_ = enqueue(conn, "work", "longer")
    drain(dsn, actions)
    assert look(conn, id_, "state") == "succeeded", "an operator's value did not win"
    policy(conn, "work", timeout=60)
    ids = [enqueue(conn, "work") for _ in range(20)]
    drain(dsn, actions, concurrency=1)
    assert {look(conn, id_, "state") for id_ in ids} == {"succeeded"}
    assert [each.cancelled() for each in timers] == [True] * 20


def test_what_has_completed_before_its_time_was_up_has_succeeded(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    @actions.action("work", timeout=60)
    async def work(execution: Execution) -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as own:
            await execution.complete(own, "in time")
        asyncio.get_running_loop().call_soon(timer()._run)  # now it is up
        await asyncio.sleep(60)

    id_ = enqueue(conn, "work")
    drain(dsn, actions)
    assert look(conn, id_, "state", "result", "attempt") == ("succeeded", "in time", 1)


def test_cancel_of_what_overran_is_a_cancel(dsn: str, conn: Connection, actions: Actions) -> None:
    go = threading.Event()

    @actions.action("work", timeout=0.05)
    def work(execution: Execution) -> None:
        wait_for(lambda: execution.cancel_reason == "timeout")
        conn.execute("select pgfifo.cancel(%s)", (execution.id,))
        go.set()

    id_ = enqueue(conn, "work")
    drain(dsn, actions)
    assert go.is_set()
    assert look(conn, id_, "state", "attempt") == ("cancelled", 1)


# Programs


@posix
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_program_whose_time_is_up_is_ended_with_its_whole_group(
    dsn: str, conn: Connection, actions: Actions, tmp_path: Path, stubborn: bool
) -> None:
    """With SIGTERM, or, after the policy's kill_after, which wins over the handler's own, with SIGKILL."""
    script = f"""
        {"trap '' TERM" if stubborn else "trap 'echo told >&2; exit 3' TERM"}
        sleep 60 & echo $$ $! > {tmp_path}/pids.new; mv {tmp_path}/pids.new {tmp_path}/pids
        while true; do sleep 0.01; done
    """
    actions.add("work", Command(script, kill_after=60), timeout=2, kill_after=0.1, max_attempts=1)
    id_ = enqueue(conn, "work")
    drain(dsn, actions)
    state, error = look(conn, id_, "state", "error")
    assert state == "failed"
    assert error.startswith("TimeoutError: it ran for longer")
    for pid in (tmp_path / "pids").read_text().split():
        assert not alive(int(pid))


@posix
def test_the_kill_after_of_a_command_counts_where_no_policy_has_one(
    dsn: str, conn: Connection, actions: Actions, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    ended = command_module._ended

    async def noting(child: Any, kill_after: float) -> Any:
        seen.append(kill_after)
        return await ended(child, kill_after)

    monkeypatch.setattr(command_module, "_ended", noting)
    actions.add("plain", Command(["true"]))
    actions.add("own", Command(["true"], kill_after=3))
    for _ in range(2):
        for name in actions.names:
            enqueue(conn, name)
            drain(dsn, actions)
        policy(conn, "own", kill_after=7)
    assert seen == [10, 3, 10, 7]


# The end of the process

STUCK = """
    @actions.action("stuck", timeout=0.1, kill_after=0.1, backoff_initial=0)
    def stuck(execution):
        note(f"begin {os.getpid()} {execution.attempt}")
        while execution.attempt == 1:
            time.sleep(1)

    @actions.action("slow")
    def slow(execution):
        note(f"slow {os.getpid()} {execution.attempt}")
        while not (folder / "go").exists():
            time.sleep(0.005)
"""


@posix
def test_slots_a_process_whose_handler_does_not_stop_ends_when_the_others_have(
    start: Start, conn: Connection, tmp_path: Path
) -> None:
    stuck, slow = enqueue(conn, "stuck"), enqueue(conn, "slow")
    worker = start(STUCK, RUN)
    wait_for_lines(tmp_path, 2)
    assert worker.stderr is not None
    for line in worker.stderr:
        if "the worker stops" in line:
            break
    late = enqueue(conn, "slow")
    assert worker.poll() is None, "it did not wait for the others"
    (tmp_path / "go").touch()
    assert ends(worker) == 1
    assert look(conn, slow, "state") == "succeeded"
    assert look(conn, late, "state") == "waiting"
    assert look(conn, stuck, "state") == "running", "it is given back by whoever notices, not by the dying"
    start(STUCK, RUN)
    wait_for_state(conn, stuck, "succeeded")
    assert look(conn, stuck, "attempt", "failures") == (2, 1)
    assert len({line.split()[1] for line in journal(tmp_path)} - {str(os.getpid())}) == 2
