"""The worker against a real server: what handlers get, what becomes of them, what survives which accident."""

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgfifo import Actions, Execution, InvalidValue, SchemaMissing, UnknownAction
from pgfifo import _engine as engine_module
from pgfifo._connections import AsyncLink
from pgfifo.jsontext import JsonText
from pgfifo.worker import Worker
from tests.support.database import wait_for
from tests.support.server import make_server

Connection = psycopg.Connection[Any]

QUICK: dict[str, Any] = {"heartbeat": 0.1, "poll_interval": 0.1, "shutdown_timeout": 10}


@pytest.fixture
def actions() -> Actions:
    return Actions()


@contextlib.contextmanager
def working(dsn: str, actions: Actions, **options: Any) -> Iterator[Worker]:
    """A worker in a thread; at the end it must have stopped cleanly."""
    worker = Worker(dsn, actions, **(QUICK | options))
    worker.start()
    try:
        yield worker
    finally:
        assert worker.stop()


def drain(dsn: str, actions: Actions, **options: Any) -> None:
    """Run a worker until nothing is left."""
    Worker(dsn, actions, until_empty=True, **(QUICK | options)).run()


def enqueue(conn: Connection, action: str, payload: object = None, group: str | None = None) -> int:
    row = conn.execute(
        "select pgfifo.enqueue(%s, %s::jsonb, %s)", (action, json.dumps(payload), group)
    ).fetchone()
    assert row is not None
    return int(row[0])


def policy(conn: Connection, action: str, **values: object) -> None:
    conn.execute("select pgfifo.set_policy(%s, %s::jsonb)", (action, json.dumps(values)))


def look(conn: Connection, id_: int, *columns: str) -> Any:
    """Read columns of an execution; one column as a bare value."""
    row = conn.execute(f"select {', '.join(columns)} from pgfifo.executions where id = %s", (id_,)).fetchone()
    assert row is not None, f"execution {id_} is nowhere"
    return row[0] if len(columns) == 1 else row


def wait_for_state(conn: Connection, id_: int, state: str, timeout: float = 30.0) -> None:
    wait_for(lambda: look(conn, id_, "state") == state, timeout, f"execution {id_} to be {state}")


def attempts(conn: Connection) -> Counter[int]:
    """How many executions have been started how often."""
    return Counter(n for (n,) in conn.execute("select attempt from pgfifo.executions"))


def one(conn: Connection, query: str, *parameters: object) -> Any:
    row = conn.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


class Gate:
    """A handler that waits until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.seen: list[Execution] = []

    def __call__(self, execution: Execution) -> str:
        self.seen.append(execution)
        self.begun.release()
        assert self.go.wait(60)
        return "done"

    def wait(self) -> None:
        """Wait for one more start."""
        assert self.begun.acquire(timeout=30), "the handler was never called"


# What a handler is given, and what becomes of what it returns or raises


def test_a_handler_gets_the_execution_and_its_result_is_kept(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    seen: list[Execution] = []

    @actions.action("deploy", group_by=["env"])
    def deploy(execution: Execution) -> object:
        seen.append(execution)
        return {"url": "https://example.org", "n": [1, None]}

    conn.execute("select pgfifo.declare_action('deploy', '{\"group_by\": [\"env\"]}')")
    sent = """'deploy', '{"env": "prod"}', p_headers => '{"trace": "t"}', p_tags => '{a,b}'"""
    id_ = one(conn, f"select pgfifo.enqueue({sent})")
    drain(dsn, actions)
    [execution] = seen
    assert (execution.id, execution.attempt, execution.action) == (id_, 1, "deploy")
    assert (execution.group, execution.group_text) == ({"env": "prod"}, '{"env":"prod"}')
    assert (execution.payload, execution.headers, execution.tags) == (
        {"env": "prod"},
        {"trace": "t"},
        ("a", "b"),
    )
    assert execution.token.endswith(f"-{id_}-1")
    assert execution.enqueued_at.tzinfo is not None
    assert 0 <= execution.wait_seconds < 60
    assert not execution.cancel_requested
    assert look(conn, id_, "state", "result") == ("succeeded", {"url": "https://example.org", "n": [1, None]})


def test_async_and_sync_handlers_run_side_by_side(dsn: str, conn: Connection, actions: Actions) -> None:
    """Each waits for the other to have begun."""
    here, there = threading.Event(), threading.Event()

    @actions.action("sync")
    def in_thread(execution: Execution) -> str:
        here.set()
        assert there.wait(30)
        return threading.current_thread().name

    @actions.action("async")
    async def in_loop(execution: Execution) -> str:
        there.set()
        assert await asyncio.to_thread(here.wait, 15)
        return threading.current_thread().name

    first, second = enqueue(conn, "sync"), enqueue(conn, "async")
    drain(dsn, actions)
    assert look(conn, first, "state") == look(conn, second, "state") == "succeeded"
    assert look(conn, first, "result").startswith("pgfifo-")


def test_durability_an_error_of_the_handler_is_kept_and_logged_once(
    dsn: str, conn: Connection, actions: Actions, caplog: pytest.LogCaptureFixture
) -> None:
    @actions.action("break", max_attempts=1)
    def fail(execution: Execution) -> None:
        raise RuntimeError("no such host\x00 \ud800")

    id_ = enqueue(conn, "break")
    drain(dsn, actions)
    state, error = look(conn, id_, "state", "error")
    assert state == "failed"
    assert error.startswith("RuntimeError: no such host\ufffd \ufffd\n\nTraceback (most recent call last):")
    assert "in fail\n" in error
    assert "_run.py" not in error, "frames of pgfifo's own say nothing to the reader"
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info is not None
    assert record.name == "pgfifo"
    assert (record.__dict__["pgfifo_id"], record.__dict__["pgfifo_attempt"]) == (id_, 1)
    assert (record.__dict__["pgfifo_action"], record.__dict__["pgfifo_group"]) == ("break", "")


def test_a_long_traceback_is_cut_and_keeps_the_message_and_its_end(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    @actions.action("break", max_attempts=1)
    def fail(execution: Execution) -> None:
        raise ValueError("x" * 100_000 + " the end")

    id_ = enqueue(conn, "break")
    drain(dsn, actions)
    error = look(conn, id_, "error")
    assert error.startswith("ValueError: xxx")
    assert error.endswith("the end")
    assert len(error.encode()) <= 16 * 1024


def test_progress_a_failed_attempt_is_repeated_after_its_backoff(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    @actions.action("flaky", backoff_initial=0.05, backoff_jitter=0)
    async def flaky(execution: Execution) -> int:
        if execution.attempt < 3:
            raise OSError("not yet")
        return execution.attempt

    id_ = enqueue(conn, "flaky")
    drain(dsn, actions)
    assert look(conn, id_, "state", "attempt", "failures", "result") == ("succeeded", 3, 2, 3)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (object(), "object"),
        (float("nan"), "NaN"),
        ("a\x00b", "NUL"),
        ("x" * 1_100_000, "limit"),
        ([{"a": {1}}], "set"),
    ],
)
def test_a_result_that_is_not_json_does_not_make_a_failure(
    dsn: str, conn: Connection, actions: Actions, result: object, why: str
) -> None:
    actions.add("answer", lambda _: result)
    id_ = enqueue(conn, "answer")
    drain(dsn, actions)
    state, kept, error = look(conn, id_, "state", "result", "result_error")
    assert (state, kept) == ("succeeded", None)
    assert why in error


def test_progress_a_result_that_only_postgresql_refuses_holds_nobody_up(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    """It is handed in together with others; they must get through, and it must not come back for ever."""
    policy(conn, "answer", max_concurrent=5)
    broken = str.__new__(JsonText, "{no json")  # what nobody has looked at
    actions.add("answer", lambda execution: broken if execution.payload == 2 else "fine")
    ids = [enqueue(conn, "answer", n) for n in range(5)]
    drain(dsn, actions)
    assert [look(conn, id_, "result") for id_ in ids] == ["fine", "fine", None, "fine", "fine"]
    assert look(conn, ids[2], "state") == "succeeded"
    assert "json" in look(conn, ids[2], "result_error")


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError("stray"), GeneratorExit()]
)
def test_progress_a_handler_cannot_end_the_worker(
    dsn: str, conn: Connection, actions: Actions, error: BaseException
) -> None:
    def raise_it(execution: Execution) -> None:
        raise error

    async def raise_it_there(execution: Execution) -> None:
        raise error

    actions.add("sync", raise_it, max_attempts=1)
    actions.add("async", raise_it_there, max_attempts=1)
    actions.add("after", lambda _: "fine")
    first, second, third = (enqueue(conn, name) for name in ("sync", "async", "after"))
    drain(dsn, actions)
    for id_ in (first, second):
        assert look(conn, id_, "state") == "failed"
        assert type(error).__name__ in look(conn, id_, "error").splitlines()[0]
    assert look(conn, third, "state") == "succeeded"


def test_a_sync_handler_that_returns_a_coroutine_is_a_failure(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    """Or its work would not be done, and it would be called a success."""

    async def really(execution: Execution) -> None:
        raise AssertionError("never run")

    actions.add("wrapped", lambda execution: [really(execution)][0], max_attempts=1)
    id_ = enqueue(conn, "wrapped")
    drain(dsn, actions)
    assert look(conn, id_, "state") == "failed"
    assert "awaitable" in look(conn, id_, "error")


def test_order_of_starts_is_the_order_of_the_line(dsn: str, conn: Connection, actions: Actions) -> None:
    begun: list[tuple[int, int]] = []

    @actions.action("line", group_by=["lane"], max_concurrent=1)
    async def handle(execution: Execution) -> None:
        begun.append((execution.payload["lane"], execution.payload["n"]))
        await asyncio.sleep(0)

    conn.execute("select pgfifo.declare_action('line', '{\"group_by\": [\"lane\"]}')")
    payloads = [json.dumps({"lane": n % 7, "n": n}) for n in range(300)]
    conn.execute("select count(*) from pgfifo.enqueue_many('line', %s::jsonb[])", (payloads,))
    drain(dsn, actions, concurrency=20)
    for lane in range(7):
        assert [n for which, n in begun if which == lane] == list(range(lane, 300, 7))
    assert one(conn, "select count(*) from pgfifo.order_violations") == 0
    assert attempts(conn) == {1: 300}


# How much it takes


def test_slots_it_claims_no_more_than_it_has_room_for(dsn: str, conn: Connection, actions: Actions) -> None:
    gate = Gate()
    actions.add("work", gate, max_concurrent=10)
    for n in range(6):
        enqueue(conn, "work", n)
    with working(dsn, actions, concurrency=2):
        gate.wait()
        gate.wait()
        # Room for two more heartbeats and polls: nothing else may have been taken.
        wait_for(lambda: one(conn, "select count(*) from pgfifo.executions where state = 'running'") == 2)
        assert not gate.begun.acquire(timeout=0.3)
        assert one(conn, "select count(*) from pgfifo.executions where state = 'running'") == 2
        gate.go.set()
        for _ in range(4):
            gate.wait()


def test_a_cap_of_one_action_leaves_room_for_others(dsn: str, conn: Connection, actions: Actions) -> None:
    heavy, light = Gate(), Gate()
    actions.add("heavy", heavy, max_concurrent=10)
    actions.add("light", light, max_concurrent=10)
    for _ in range(3):
        enqueue(conn, "heavy")
        enqueue(conn, "light")
    with working(dsn, actions, concurrency={"*": 4, "heavy": 1}):
        heavy.wait()
        for _ in range(3):
            light.wait()
        assert not heavy.begun.acquire(timeout=0.3)
        heavy.go.set()
        light.go.set()
        heavy.wait()
        heavy.wait()


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": 10_001},
        {"concurrency": True},
        {"concurrency": {"work": 0}},
        {"poll_interval": 0},
        {"heartbeat": "soon"},
        {"heartbeat": 5, "lease": 6},
        {"poll_only": True, "listen_dsn": "host=x"},
    ],
)
def test_what_cannot_be_right_is_refused(actions: Actions, options: dict[str, Any]) -> None:
    actions.add("work", lambda _: None)
    with pytest.raises(InvalidValue):
        Worker("host=nowhere", actions, **options)


def test_a_cap_of_an_unknown_action_and_an_empty_registry_are_refused(actions: Actions) -> None:
    with pytest.raises(InvalidValue):
        Worker("host=nowhere", actions)
    actions.add("work", lambda _: None)
    with pytest.raises(UnknownAction, match="wrok"):
        Worker("host=nowhere", actions, concurrency={"wrok": 1})


# Waking


def test_progress_an_enqueue_wakes_a_sleeping_worker(dsn: str, conn: Connection, actions: Actions) -> None:
    """With a poll of a minute, only a notification can be it; also after it was awake in between."""
    gate = Gate()
    gate.go.set()
    actions.add("work", gate)
    asleep = (
        "select count(*) from pg_locks where locktype = 'advisory' and classid = 'pgfifo.marks'::regclass"
    )
    with working(dsn, actions, poll_interval=60) as worker:
        for n in range(5):
            wait_for(lambda: one(conn, asleep), message="the worker to fall asleep")
            enqueue(conn, "work", n)
            gate.wait()
    assert worker.id is None


def test_progress_a_worker_with_room_sleeps_on_while_something_runs(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    """It hears of what comes without waking up and falling asleep again around each execution."""
    gate = Gate()
    actions.add("work", gate, group_by=["n"])
    said = "select query, query_start from pg_stat_activity where query ~ '^select pgfifo.(sleeping|awake)'"
    with working(dsn, actions, poll_interval=60, concurrency=3):
        wait_for(lambda: conn.execute(said).fetchone(), message="the worker to fall asleep")
        before = conn.execute(said).fetchall()
        # It looks once more when it has said that it sleeps; what comes during that look has it look again.
        looked = (
            "select from pg_stat_activity where query ~ 'pgfifo.work' and state = 'idle' and query_start > %s"
        )
        wait_for(lambda: conn.execute(looked, [before[0][1]]).fetchone() is not None, message="its last look")
        for n in range(2):
            conn.execute("select pgfifo.enqueue('work', %s)", [f'{{"n": {n}}}'])
            gate.wait()  # only a notification can have told it
        assert conn.execute(said).fetchall() == before, "it woke up for what left room for another"
        conn.execute("""select pgfifo.enqueue('work', '{"n": 2}')""")
        gate.wait()
        wait_for(lambda: "awake" in conn.execute(said).fetchall()[0][0], message="the full worker to wake up")
        gate.go.set()


def test_progress_a_poll_finds_work_where_nobody_can_be_woken(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    gate = Gate()
    gate.go.set()
    actions.add("work", gate)
    with working(dsn, actions, poll_only=True, poll_interval=0.05):
        enqueue(conn, "work")
        gate.wait()
        assert one(conn, "select bool_or(locked) from pgfifo._workers") is False


def test_progress_a_backoff_ends_without_a_poll_or_a_notification(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    """The claim says when the next timer is due."""
    gate = Gate()
    actions.add(
        "flaky", lambda e: gate(e) if e.attempt == 2 else 1 / 0, backoff_initial=0.2, backoff_jitter=0
    )
    gate.go.set()
    enqueue(conn, "flaky")
    with working(dsn, actions, poll_interval=60):
        gate.wait()


def test_progress_a_broken_listening_connection_is_replaced(
    dsn: str, conn: Connection, actions: Actions, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    gate.go.set()
    actions.add("work", gate)
    listening = (
        "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and query ~ 'pgfifo.sleeping|^listen'"
    )
    with working(dsn, actions, poll_interval=60):
        wait_for(lambda: conn.execute(listening).fetchone(), message="the worker to listen")
        pid = one(conn, listening)
        conn.execute("select pg_terminate_backend(%s, 5000)", (pid,))
        wait_for(
            lambda: conn.execute(listening.replace("|^listen", "")).fetchone(), message="it to sleep again"
        )
        enqueue(conn, "work")
        gate.wait()
    assert len([r for r in caplog.records if "wakes this worker" in r.message]) == 1


# Cancelling


def test_cancel_ends_an_async_handler(dsn: str, conn: Connection, actions: Actions) -> None:
    begun = threading.Event()
    cleaned = threading.Event()

    @actions.action("slow")
    async def slow(execution: Execution) -> None:
        begun.set()
        try:
            await asyncio.sleep(600)
        finally:
            assert execution.cancel_reason == "cancel"
            cleaned.set()

    id_ = enqueue(conn, "slow")
    with working(dsn, actions):
        assert begun.wait(30)
        assert one(conn, "select pgfifo.cancel(%s, 'enough')", id_) == "requested"
        assert cleaned.wait(30)
        wait_for_state(conn, id_, "cancelled")


def test_cancel_calls_a_busy_worker_that_would_not_ask_for_an_hour(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    begun = threading.Semaphore(0)

    @actions.action("slow", max_concurrent=3)
    async def slow(execution: Execution) -> None:
        begun.release()
        await asyncio.sleep(600)

    ids = [enqueue(conn, "slow") for _ in range(3)]
    with working(dsn, actions, heartbeat=3600, lease=7200, poll_interval=60, concurrency=3):
        for _ in ids:
            assert begun.acquire(timeout=30)
        assert one(conn, "select pgfifo.cancel(%s)", ids[0]) == "requested"
        wait_for_state(conn, ids[0], "cancelled")
        conn.execute("select pgfifo.cancel_many(%s)", (ids[1:],))
        for id_ in ids[1:]:
            wait_for_state(conn, id_, "cancelled")


def test_cancel_reaches_a_worker_that_cannot_be_called_with_its_heartbeat(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    begun = threading.Event()

    @actions.action("slow")
    async def slow(execution: Execution) -> None:
        begun.set()
        await asyncio.sleep(600)

    id_ = enqueue(conn, "slow")
    with working(dsn, actions, poll_only=True):
        assert begun.wait(30)
        with conn.transaction():
            conn.execute("set local pgfifo.notify = off")
            conn.execute("select pgfifo.cancel(%s)", (id_,))
        wait_for_state(conn, id_, "cancelled")


def test_cancel_is_seen_by_a_sync_handler(dsn: str, conn: Connection, actions: Actions) -> None:
    begun = threading.Event()

    @actions.action("slow")
    def slow(execution: Execution) -> None:
        begun.set()
        while True:
            try:
                execution.raise_if_cancelled()
            except Exception:  # noqa: BLE001
                raise AssertionError("an `except Exception` must not swallow it") from None
            time.sleep(0.005)

    id_ = enqueue(conn, "slow")
    with working(dsn, actions):
        assert begun.wait(30)
        conn.execute("select pgfifo.cancel(%s)", (id_,))
        wait_for_state(conn, id_, "cancelled")


def test_what_succeeds_in_spite_of_a_cancel_succeeded(dsn: str, conn: Connection, actions: Actions) -> None:
    gate = Gate()
    actions.add("slow", gate)
    id_ = enqueue(conn, "slow")
    with working(dsn, actions):
        gate.wait()
        conn.execute("select pgfifo.cancel(%s)", (id_,))
        wait_for(lambda: gate.seen[0].cancel_requested, message="the handler to see it")
        gate.go.set()
        wait_for_state(conn, id_, "succeeded")
    assert look(conn, id_, "cancel_requested_at") is not None


# until_empty


def test_until_empty_waits_for_what_runs_elsewhere(
    dsn: str, conn: Connection, connect: Callable[..., Connection], actions: Actions
) -> None:
    """It may come back. Here somebody else's worker gives it back, and it is run before the end."""
    seen: list[int] = []
    actions.add("work", lambda execution: seen.append(execution.attempt))
    enqueue(conn, "work")
    other = connect()
    worker = one(other, "select pgfifo.worker_start('other', 'host', 1, '{work}', 1)")
    claimed = one(other, "select id from pgfifo.claim(%s, '{work}', 1)", worker)
    thread = threading.Thread(target=drain, args=(dsn, actions))
    thread.start()
    wait_for(lambda: one(conn, "select count(*) from pgfifo.workers where state = 'alive'") == 2)
    assert seen == []
    conn.execute("select pgfifo.release(%s, 1)", (claimed,))
    thread.join(30)
    assert not thread.is_alive()
    assert seen == [2]
    other.execute("select pgfifo.worker_stop(%s)", (worker,))


def test_until_empty_does_not_wait_for_what_is_paused(
    dsn: str, conn: Connection, actions: Actions, caplog: pytest.LogCaptureFixture
) -> None:
    actions.add("work", lambda _: None)
    first, second = enqueue(conn, "work", group="a"), enqueue(conn, "work", group="b")
    conn.execute("select pgfifo.pause('work', 'b')")
    drain(dsn, actions)
    assert look(conn, first, "state") == "succeeded"
    assert look(conn, second, "state") == "waiting"
    assert "1 execution waits in paused lanes" in caplog.text


def test_until_empty_ends_at_once_when_there_is_nothing(dsn: str, actions: Actions) -> None:
    actions.add("work", lambda _: None)
    drain(dsn, actions, poll_interval=60)


# Starting and stopping


def test_stop_finishes_what_runs_and_leaves_what_waits(dsn: str, conn: Connection, actions: Actions) -> None:
    gate = Gate()
    actions.add("work", gate)
    first, second = enqueue(conn, "work"), enqueue(conn, "work")
    worker = Worker(dsn, actions, **QUICK)
    worker.start()
    gate.wait()
    assert [execution.id for execution in worker.running] == [first]
    worker.request_stop()
    assert not worker.stop(0.2)
    gate.go.set()
    assert worker.stop()
    assert look(conn, first, "state") == "succeeded"
    assert look(conn, second, "state") == "waiting"
    assert one(conn, "select state from pgfifo.workers") == "stopped"


def test_stop_gives_interrupted_handlers_back_without_a_failure(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    begun = threading.Semaphore(0)

    @actions.action("async", max_concurrent=2)
    async def in_loop(execution: Execution) -> None:
        begun.release()
        await asyncio.sleep(600)

    @actions.action("sync", max_concurrent=2)
    def in_thread(execution: Execution) -> None:
        begun.release()
        while True:
            execution.raise_if_cancelled()
            time.sleep(0.005)

    ids = [enqueue(conn, "async"), enqueue(conn, "sync")]
    worker = Worker(dsn, actions, **(QUICK | {"shutdown_timeout": 0}))
    worker.start()
    assert begun.acquire(timeout=30)
    assert begun.acquire(timeout=30)
    assert worker.stop()
    for id_ in ids:
        assert look(conn, id_, "state", "failures", "attempt") == ("waiting", 0, 1)


def test_slots_a_handler_that_does_not_return_keeps_its_slot(
    dsn: str,
    conn: Connection,
    actions: Actions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a user would lose: a second run beside the first, in a process that lives on."""
    monkeypatch.setattr(engine_module, "CANCEL_GRACE", 0.05)
    monkeypatch.setattr(engine_module, "KILL_GRACE", 0.05)
    gate = Gate()
    actions.add("stuck", gate)
    id_ = enqueue(conn, "stuck")
    worker = Worker(dsn, actions, **(QUICK | {"shutdown_timeout": 0}))
    worker.start()
    gate.wait()
    assert not worker.stop(1)
    assert f"1 execution still runs 0 s after worker {worker.name} was to stop: {id_}" in caplog.text
    seen = one(conn, "select last_seen from pgfifo.workers")
    wait_for(lambda: one(conn, "select last_seen from pgfifo.workers") > seen, message="one more heartbeat")
    assert look(conn, id_, "state") == "running"
    gate.go.set()
    assert worker.stop()
    assert look(conn, id_, "state", "result") == ("succeeded", "done")


def test_a_worker_that_is_stopped_before_it_has_begun_ends(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    """A signal may come while it connects."""
    actions.add("work", lambda _: None)
    id_ = enqueue(conn, "work")
    worker = Worker(dsn, actions, **QUICK)
    worker.request_stop()
    worker.run()
    worker = Worker(dsn, actions, on_start=lambda _: worker.request_stop(), **QUICK)
    worker.run()
    wait_for(lambda: one(conn, "select count(*) from pgfifo.workers where state = 'alive'") == 0)
    assert look(conn, id_, "state") == "waiting"


def test_a_worker_can_be_started_again(dsn: str, conn: Connection, actions: Actions) -> None:
    actions.add("work", lambda _: None)
    worker = Worker(dsn, actions, **QUICK)
    assert worker.stop(), "it was never started"
    for _ in range(2):
        id_ = enqueue(conn, "work")
        with worker:
            with pytest.raises(RuntimeError, match="works already"):
                worker.start()
            wait_for_state(conn, id_, "succeeded")


def test_in_an_event_loop(dsn: str, conn: Connection, actions: Actions) -> None:
    async def body() -> None:
        begun = asyncio.Event()

        async def handle(execution: Execution) -> None:
            begun.set()

        actions.add("work", handle)
        worker = Worker(dsn, actions, **QUICK)
        async with worker:
            assert worker.id is not None
            enqueue(conn, "work")
            await asyncio.wait_for(begun.wait(), 30)
        assert worker.id is None

    asyncio.run(body())
    assert one(conn, "select state from pgfifo.workers") == "stopped"


def test_a_cancelled_run_interrupts_and_gives_back(dsn: str, conn: Connection, actions: Actions) -> None:
    async def body() -> None:
        begun = asyncio.Event()

        async def handle(execution: Execution) -> None:
            begun.set()
            await asyncio.sleep(600)

        actions.add("work", handle)
        task = asyncio.create_task(Worker(dsn, actions, **QUICK).run_async())
        await asyncio.wait_for(begun.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    id_ = enqueue(conn, "work")
    asyncio.run(body())
    assert look(conn, id_, "state", "failures") == ("waiting", 0)
    assert one(conn, "select state from pgfifo.workers") == "stopped"


def test_slots_a_cancelled_run_stays_registered_for_its_threads(
    dsn: str, conn: Connection, actions: Actions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "CANCEL_GRACE", 0.05)
    monkeypatch.setattr(engine_module, "KILL_GRACE", 0.05)
    gate = Gate()
    actions.add("stuck", gate)

    async def body() -> None:
        task = asyncio.create_task(Worker(dsn, actions, **QUICK).run_async())
        await asyncio.to_thread(gate.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    id_ = enqueue(conn, "stuck")
    asyncio.run(body())
    assert look(conn, id_, "state") == "running"
    gate.go.set()
    wait_for_state(conn, id_, "waiting")  # what it returned is lost with the loop: it is given back
    wait_for(lambda: one(conn, "select state from pgfifo.workers") == "stopped", message="it to sign off")


def test_an_unknown_action_is_refused_unless_the_code_declares_it(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    actions.add("deplyo", lambda _: None)
    enqueue(conn, "deploy")
    with pytest.raises(UnknownAction) as caught:
        drain(dsn, actions, declare=False)
    assert caught.value.nearest == "deploy"
    drain(dsn, actions)


def test_a_database_without_the_schema_is_named(empty_dsn: str, actions: Actions) -> None:
    actions.add("work", lambda _: None)
    with pytest.raises(SchemaMissing, match="not installed"):
        drain(empty_dsn, actions)
    worker = Worker(empty_dsn, actions)
    with pytest.raises(SchemaMissing, match="not installed"):
        worker.start()


def test_a_server_that_is_not_there_is_an_error_at_the_start(actions: Actions) -> None:
    actions.add("work", lambda _: None)
    with pytest.raises(psycopg.OperationalError):
        Worker("host=/nonexistent dbname=x", actions).run()


@pytest.mark.parametrize("poll_only", [False, True])
def test_slots_a_role_whose_default_is_serializable_works_all_the_same(
    dsn: str, conn: Connection, actions: Actions, poll_only: bool
) -> None:
    actions.add("work", lambda _: None)
    id_ = enqueue(conn, "work")
    conn.execute("alter role current_user set default_transaction_isolation = 'serializable'")
    try:
        drain(dsn, actions, poll_only=poll_only)
    finally:
        conn.execute("alter role current_user reset default_transaction_isolation")
    assert look(conn, id_, "state") == "succeeded"


# Accidents


def lose_answers(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Lose the first answer to each claim: the server has committed, and the connection breaks before it."""
    lost: list[object] = []
    real = AsyncLink.rows

    async def rows(link: AsyncLink, query: str, parameters: tuple[object, ...] = ()) -> Any:
        answer = await real(link, query, parameters)
        if "pgfifo.work(" in query and any(row[0] == "start" for row in answer) and parameters[3] not in lost:
            lost.append(parameters[3])
            await link.close()
            raise psycopg.OperationalError("the connection broke")
        return answer

    monkeypatch.setattr(AsyncLink, "rows", rows)
    return lost


def test_durability_a_lost_answer_is_asked_for_again(
    dsn: str,
    conn: Connection,
    actions: Actions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With heartbeats as quick as can be: none of them may give away what is on its way."""
    lost = lose_answers(monkeypatch)
    seen: Counter[int] = Counter()

    @actions.action("work", max_concurrent=3)
    async def handle(execution: Execution) -> None:
        seen[execution.id] += 1

    ids = [enqueue(conn, "work") for _ in range(20)]
    drain(dsn, actions, heartbeat=0.005)
    assert len(lost) >= 7, "three at a time"
    assert seen == dict.fromkeys(ids, 1)
    assert attempts(conn) == {1: 20}
    assert len([r for r in caplog.records if "trying again" in r.message]) == len(lost)


def test_durability_heartbeats_give_nothing_away_that_has_arrived(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    @actions.action("work", group_by=["g"], max_concurrent=2)
    async def handle(execution: Execution) -> None:
        await asyncio.sleep(0)

    conn.execute('select pgfifo.declare_action(\'work\', \'{"group_by": ["g"], "max_concurrent": 2}\')')
    payloads = [json.dumps({"g": n % 20}) for n in range(2000)]
    conn.execute("select count(*) from pgfifo.enqueue_many('work', %s::jsonb[])", (payloads,))
    drain(dsn, actions, heartbeat=0.0005, concurrency=15)
    assert attempts(conn) == {1: 2000}


def test_durability_cut_connections_are_replaced_and_nothing_is_repeated(
    dsn: str, conn: Connection, actions: Actions, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    actions.add("work", gate, max_concurrent=2)
    ids = [enqueue(conn, "work") for _ in range(4)]
    others = "datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
    with working(dsn, actions) as worker:
        gate.wait()
        gate.wait()
        me = worker.id
        conn.execute(f"select pg_terminate_backend(pid, 5000) from pg_stat_activity where {others}")
        gate.go.set()
        for id_ in ids:
            wait_for_state(conn, id_, "succeeded")
        held = "select exists (select from pg_locks where classid = 'pgfifo._workers'::regclass and granted)"
        wait_for(lambda: one(conn, held), message="the worker's lock to be taken again")
        assert worker.id == me
    assert attempts(conn) == {1: 4}


def test_progress_a_restarted_server_is_found_again(actions: Actions) -> None:
    import pgfifo.schema

    gate = Gate()
    actions.add("work", gate)
    with make_server() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            pgfifo.schema.install(conn)
            first = enqueue(conn, "work")
        with working(server.dsn(), actions) as worker:
            gate.wait()
            me = worker.id
            server.stop("fast")
            server.start()
            gate.go.set()
            with psycopg.connect(server.dsn(), autocommit=True) as conn:
                wait_for_state(conn, first, "succeeded")
                second = enqueue(conn, "work")
                wait_for_state(conn, second, "succeeded")
                assert look(conn, first, "attempt") == look(conn, second, "attempt") == 1
            assert worker.id == me, "an outage must not cost a worker its life"


def declare_dead(conn: Connection, worker: int) -> None:
    """Do what a rescue does when a lease has run out: declare it dead, commit, take back what it held."""
    conn.execute(
        "update pgfifo._workers set state = 'dead', ended_at = pgfifo._now() where id = %s", (worker,)
    )
    conn.execute("select pgfifo._take_back(%s, 'failed', 'declared dead by the test', 100)", (worker,))


def test_fencing_a_worker_declared_dead_stops_what_it_has_and_begins_a_new_life(
    dsn: str, conn: Connection, actions: Actions, caplog: pytest.LogCaptureFixture
) -> None:
    policy(conn, "work", max_concurrent=2, backoff_initial=0.01)
    reasons: list[str | None] = []
    first_gate = Gate()

    @actions.action("work")
    async def handle(execution: Execution) -> str:
        if execution.attempt == 1:
            first_gate.begun.release()
            try:
                await asyncio.sleep(600)
            finally:
                reasons.append(execution.cancel_reason)
        return "second"

    def zombie(execution: Execution) -> str:
        if execution.attempt == 1:
            first_gate(execution)
            return "from the grave"
        return "second"

    actions.add("zombie", zombie)
    policy(conn, "zombie", backoff_initial=0.01)
    first, second = enqueue(conn, "work"), enqueue(conn, "zombie")
    with working(dsn, actions) as worker:
        first_gate.wait()
        first_gate.wait()
        me = worker.id
        assert me is not None
        declare_dead(conn, me)
        wait_for_state(conn, first, "succeeded")
        wait_for_state(conn, second, "succeeded")
        assert reasons == ["lost"]
        assert worker.id != me
        assert first_gate.seen[0].cancel_reason == "lost"
        assert len(worker.running) == 1, "the zombie's thread still has its place"
        first_gate.go.set()
        wait_for(lambda: not worker.running, message="the zombie to return")
    assert look(conn, first, "result", "attempt") == ("second", 2)
    assert look(conn, second, "result", "attempt") == ("second", 2), "the zombie's result counts for nothing"
    assert len([r for r in caplog.records if "was declared dead" in r.message]) == 1


def test_slots_zombies_do_not_give_their_room_away(dsn: str, conn: Connection, actions: Actions) -> None:
    gate = Gate()
    actions.add("work", gate, max_concurrent=5, backoff_initial=600)
    for _ in range(3):
        enqueue(conn, "work")
    with working(dsn, actions, concurrency=2) as worker:
        gate.wait()
        gate.wait()
        me = worker.id
        assert me is not None
        declare_dead(conn, me)
        wait_for(lambda: worker.id != me, message="a new registration")
        assert not gate.begun.acquire(timeout=0.3), "both of its threads are still busy"
        gate.go.set()
        gate.wait()


def test_fencing_an_execution_taken_away_is_stopped_and_its_outcome_dropped(
    dsn: str, conn: Connection, actions: Actions, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    actions.add("work", lambda e: gate(e) if e.attempt == 1 else "second")
    id_ = enqueue(conn, "work")
    with working(dsn, actions, concurrency=1):
        gate.wait()
        conn.execute("select pgfifo.release(%s, 1)", (id_,))
        wait_for(lambda: gate.seen[0].cancel_reason == "lost", message="the heartbeat to tell it")
        gate.go.set()
        wait_for_state(conn, id_, "succeeded")
    assert look(conn, id_, "result", "attempt") == ("second", 2)
    assert "counts for nothing" in caplog.text


def test_fencing_a_handler_that_blocks_the_event_loop_does_not_cost_the_lease(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    begun = threading.Event()

    @actions.action("rude")
    async def rude(execution: Execution) -> None:
        begun.set()
        time.sleep(3)  # noqa: ASYNC251

    id_ = enqueue(conn, "rude")
    with working(dsn, actions, lease=1, heartbeat=0.2):
        assert begun.wait(30)
        wait_for_state(conn, id_, "succeeded")
    assert look(conn, id_, "attempt") == 1
    assert one(conn, "select count(*) from pgfifo.workers") == 1


def test_durability_a_lane_locked_by_somebody_only_delays_its_outcome(
    dsn: str, conn: Connection, connect: Callable[..., Connection], actions: Actions
) -> None:
    """Somebody cancels in a transaction that he leaves open; the other lane goes on meanwhile."""
    gate = Gate()
    actions.add("work", gate)
    blocked, free, more = (
        enqueue(conn, "work", group="a"),
        enqueue(conn, "work", group="b"),
        enqueue(conn, "work", group="a"),
    )
    somebody = connect(autocommit=False)
    with working(dsn, actions):
        gate.wait()
        gate.wait()
        somebody.execute("select pgfifo.cancel(%s)", (more,))
        gate.go.set()
        wait_for_state(conn, free, "succeeded")
        assert look(conn, blocked, "state") == "running"
        somebody.rollback()
        wait_for_state(conn, blocked, "succeeded")
        wait_for_state(conn, more, "succeeded")
    assert attempts(conn) == {1: 3}


@pytest.mark.long
def test_memory_stays_flat(dsn: str, conn: Connection, actions: Actions) -> None:
    """A hundred thousand in the benchmark; here enough to see a leak of 100 bytes an execution."""
    import resource
    import sys
    from pathlib import Path

    def resident() -> int:
        if sys.platform == "linux":
            return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @actions.action("work", group_by=["g"])
    async def handle(execution: Execution) -> None:
        if execution.payload["n"] in (10_000, 29_999):
            marks.append(resident())

    marks: list[int] = []
    conn.execute("select pgfifo.declare_action('work', '{\"group_by\": [\"g\"]}')")
    for start in range(0, 30_000, 10_000):
        payloads = [json.dumps({"g": n % 50, "n": n}) for n in range(start, start + 10_000)]
        conn.execute("select count(*) from pgfifo.enqueue_many('work', %s::jsonb[])", (payloads,))
        del payloads
    drain(dsn, actions, concurrency=50)
    assert marks[1] - marks[0] < 2_000_000, "the worker grows with what it has done"
