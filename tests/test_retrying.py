"""What handlers raise, and commands return, to say whether and when they are tried again."""

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo import Abort, Actions, Execution, Retry
from pgfifo.command import Command
from pgfifo.outcome import asked
from pgfifo.worker import Worker
from tests.support.engine import Engine

Connection = psycopg.Connection[Any]

QUICK: dict[str, Any] = {"heartbeat": 0.1, "poll_interval": 0.05, "shutdown_timeout": 10}


@pytest.fixture
def fifo(dsn: str) -> Iterator[pgfifo.Client]:
    with pgfifo.Client(dsn) as client:
        yield client


def run(dsn: str, actions: Actions) -> None:
    """Run a worker until nothing is left, retries included."""
    Worker(dsn, actions, until_empty=True, **QUICK).run()


def one_of(handler: Callable[..., Any], **values: Any) -> Actions:
    actions = Actions()
    actions.add("deploy", handler, **({"backoff_initial": 3600, "backoff_cap": 3600} | values))
    return actions


@pytest.mark.parametrize("mode", ["hold", "yield", "tail"])
@pytest.mark.parametrize("is_async", [False, True])
def test_retry_after_a_time_of_the_handlers_choice(
    dsn: str, fifo: pgfifo.Client, mode: str, is_async: bool
) -> None:
    """The policy's backoff is an hour, and nobody waits for that."""

    def deploy(execution: Execution) -> str:
        if execution.attempt < 3:
            raise Retry(f"no {execution.attempt}", after=0.05)
        return "done"

    async def deploy_async(execution: Execution) -> str:
        await asyncio.sleep(0)
        return deploy(execution)

    job = fifo.enqueue("deploy")
    run(dsn, one_of(deploy_async if is_async else deploy, failure_mode=mode))
    found = fifo.execution(job.id)
    assert (found.state, found.result, found.attempt, found.failures) == ("succeeded", "done", 3, 2)
    assert [entry["error"] for entry in found.attempts or []] == ["no 1", "no 2"]


def test_retry_that_does_not_count_may_be_asked_for_as_often_as_one_likes(
    dsn: str, fifo: pgfifo.Client
) -> None:
    seen: list[str] = []
    actions = one_of(lambda execution: snooze(execution, 6), max_attempts=1)
    actions.on_failed(lambda _execution, _error: seen.append("failed"))
    job = fifo.enqueue("deploy")
    run(dsn, actions)
    found = fifo.execution(job.id)
    assert (found.state, found.attempt, found.failures, found.error) == ("succeeded", 7, 0, None)
    assert {entry["outcome"] for entry in found.attempts or []} == {"snoozed"}
    assert seen == [], "a hook was called for what is no failure"


def snooze(execution: Execution, times: int) -> None:
    if execution.attempt <= times:
        raise Retry(after=0.01, count=False)


def test_retry_counts_up_to_max_attempts(dsn: str, fifo: pgfifo.Client) -> None:
    seen: list[str] = []

    def deploy(execution: Execution) -> None:
        try:
            [][execution.id]
        except IndexError as error:
            raise Retry(after=0.01) from error

    actions = one_of(deploy, max_attempts=3)
    actions.on_failed(lambda _execution, error: seen.append(type(error).__name__))
    actions.on_exhausted(lambda _execution, _error: seen.append("exhausted"))
    job = fifo.enqueue("deploy")
    run(dsn, actions)
    found = fifo.execution(job.id)
    assert (found.state, found.attempt, found.failures) == ("failed", 3, 3)
    assert found.error is not None
    assert "IndexError: list index out of range" in found.error
    assert "Traceback" in found.error
    assert sorted(seen) == ["Retry", "Retry", "Retry", "exhausted"]


def test_abort_fails_for_good_at_once(
    dsn: str, fifo: pgfifo.Client, caplog: pytest.LogCaptureFixture
) -> None:
    def deploy(execution: Execution) -> None:
        raise Abort("no such environment")

    job = fifo.enqueue("deploy")
    with caplog.at_level(logging.INFO, "pgfifo"):
        run(dsn, one_of(deploy))
    found = fifo.execution(job.id)
    assert (found.state, found.attempt, found.failures) == ("failed", 1, 1)
    assert found.error == "no such environment"
    assert [record.exc_info for record in caplog.records if "no such environment" in record.message] == [None]


def test_retry_of_what_was_cancelled_is_not_tried_again(dsn: str, fifo: pgfifo.Client) -> None:
    def deploy(execution: Execution) -> None:
        fifo.cancel(execution.id)
        raise Retry(after=0)

    job = fifo.enqueue("deploy")
    run(dsn, one_of(deploy))
    assert fifo.execution(job.id).state == "cancelled"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Retry(), {"error": "the handler asked to be tried again"}),
        (Retry("busy"), {"error": "busy"}),
        (Retry("busy", after="1m30s"), {"error": "busy", "after": 90.0}),
        (Retry(after=timedelta(seconds=2), count=False), {"after": 2.0, "count": False}),
        (Retry("not yet", count=False), {"error": "not yet", "count": False}),
        (Abort(), {"error": "the handler gave up", "retry": False}),
        (Abort("no"), {"error": "no", "retry": False}),
    ],
)
def test_retry_and_abort_as_they_are_handed_in(error: Retry | Abort, expected: dict[str, object]) -> None:
    item = {"id": 1, "attempt": 2, "outcome": "failed", **expected}
    assert json.loads(asked(error).as_json(1, 2)) == item


@pytest.mark.parametrize("after", [-1, "soon", float("nan"), None])
def test_retry_after_what_is_no_time(after: Any) -> None:
    if after is None:
        assert Retry(after=after).after is None
        return
    with pytest.raises(pgfifo.InvalidValue):
        Retry(after=after)


def test_retry_by_a_client_in_the_name_of_its_worker(fifo: pgfifo.Client, conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(failure_mode="yield", backoff_initial=1)
    job = fifo.enqueue("deploy")
    worker = engine.worker()
    (start,) = engine.claim(worker)
    assert fifo.finish(job.id, start.attempt, "failed", error="later", after="1h", count=False) == "delayed"
    found = fifo.execution(job.id)
    assert (found.state, found.failures, found.error) == ("delayed", 0, "later")
    engine.advance("59 min")
    assert engine.claim(worker) == []
    engine.advance("2 min")
    assert engine.drain(worker) == [job.id]


@pytest.mark.parametrize(("status", "attempts"), [(75, 2), (65, 1), (1, 2)])
def test_commands_say_by_their_exit_status_whether_they_are_tried_again(
    dsn: str, fifo: pgfifo.Client, status: int, attempts: int
) -> None:
    job = fifo.enqueue("deploy")
    program = [sys.executable, "-c", f"raise SystemExit({status})"]
    run(dsn, one_of(Command(program), max_attempts=2, backoff_initial=0, backoff_cap=0))
    found = fifo.execution(job.id)
    assert (found.state, found.attempt, found.failures) == ("failed", attempts, attempts)


def test_exhausted_lane_is_shown_paused_with_its_reason(dsn: str, fifo: pgfifo.Client) -> None:
    def deploy(execution: Execution) -> None:
        raise Abort("no such environment")

    first = fifo.enqueue("deploy")
    second = fifo.enqueue("deploy")
    run(dsn, one_of(deploy, on_exhausted="pause"))
    assert fifo.execution(second.id).state == "waiting", "the lane went on after one that failed for good"
    (lane,) = fifo.lanes("deploy")
    assert lane.paused
    assert lane.paused_reason == f"execution {first.id} failed for good: no such environment"
    stats = fifo.stats("deploy")
    assert (stats.paused, stats.paused_lanes) == (False, 1)
    assert fifo.resume("deploy") is True
    assert fifo.resume("deploy") is False
    assert not fifo.lanes("deploy")[0].paused
