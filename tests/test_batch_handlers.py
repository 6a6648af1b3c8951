"""Handlers of batches: a list of consecutive executions, one run, an outcome for each."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from pgfifo import Abort, Actions, Execution, InvalidPayload, InvalidValue, Retry
from pgfifo.testing import drain
from pgfifo.worker import Worker
from tests.support.database import wait_for
from tests.support.engine import Engine

Connection = psycopg.Connection[Any]
Executions = list[Execution]

QUICK: dict[str, Any] = {"heartbeat": 0.1, "poll_interval": 0.1, "shutdown_timeout": 10}


@dataclass
class Order:
    customer: int


@pytest.fixture
def actions() -> Actions:
    return Actions()


def fill(
    conn: Connection, payloads: list[object], action: str = "index", group: str | None = None
) -> list[int]:
    return Engine(conn).enqueue_many(action, payloads, None if group is None else [group] * len(payloads))


@pytest.fixture(autouse=True)
def long_backoffs(conn: Connection) -> None:
    """What has failed does not come again while its test goes on, unless the test says so."""
    conn.execute("""select pgfifo.set_default_policy('{"backoff_initial": 600}')""")


def run(dsn: str, actions: Actions, **options: Any) -> list[int]:
    """Run all that can start; return the ids of the attempts."""
    return [each.id for each in drain(Worker(dsn, actions, **(QUICK | options)), raises=False)]


def look(conn: Connection, ids: list[int], *columns: str) -> list[Any]:
    query = f"select id, {', '.join(columns)} from pgfifo.executions where id = any (%s)"
    rows = {row[0]: row[1:] for row in conn.execute(query, [ids]).fetchall()}
    return [rows[id_][0] if len(columns) == 1 else rows[id_] for id_ in ids]


@contextlib.contextmanager
def working(dsn: str, actions: Actions, **options: Any) -> Iterator[Worker]:
    worker = Worker(dsn, actions, **(QUICK | options))
    worker.start()
    try:
        yield worker
    finally:
        assert worker.stop()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_batch_handlers_get_consecutive_executions_of_one_lane_in_order(
    dsn: str, conn: Connection, actions: Actions, kind: str
) -> None:
    calls: list[tuple[str, list[int]]] = []

    def index(executions: Executions) -> list[int]:
        calls.append((executions[0].group_text, [each.id for each in executions]))
        assert len({each.group_text for each in executions}) == 1
        return [each.payload["n"] for each in executions]

    async def index_async(executions: Executions) -> list[int]:
        await asyncio.sleep(0)
        return index(executions)

    actions.add("index", index if kind == "sync" else index_async, batch=3)
    a = fill(conn, [{"n": n} for n in range(7)], group="a")
    b = fill(conn, [{"n": n} for n in range(2)], group="b")
    assert sorted(run(dsn, actions)) == a + b
    assert [ids for group, ids in calls if "a" in group] == [a[:3], a[3:6], a[6:]]
    assert [ids for group, ids in calls if "b" in group] == [b]
    assert look(conn, a, "state", "result") == [("succeeded", n) for n in range(7)]
    Engine(conn).assert_promises()


def test_batch_handlers_run_one_batch_of_a_lane_at_a_time(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    at_once = threading.Semaphore(1)
    most = []

    @actions.action("index", batch=4)
    def index(executions: Executions) -> None:
        assert at_once.acquire(blocking=False), "two batches in one slot"
        most.append([each.id for each in executions])
        at_once.release()

    ids = fill(conn, [{}] * 10)
    with working(dsn, actions), working(dsn, actions):
        wait_for(lambda: look(conn, ids, "state") == ["succeeded"] * 10)
    assert most == [ids[:4], ids[4:8], ids[8:]]
    Engine(conn).assert_promises()


def test_batch_handlers_return_results_and_errors_for_each(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    @actions.action("index", batch=10, failure_mode="tail")
    def index(executions: Executions) -> list[object]:
        return ["fine", ValueError("odd"), Retry(after=3600), Abort("never"), None]

    ids = fill(conn, [{}] * 5)
    run(dsn, actions)
    assert look(conn, ids, "state", "failures") == [
        ("succeeded", 0),
        ("delayed", 1),
        ("delayed", 1),
        ("failed", 1),
        ("succeeded", 0),
    ]
    assert look(conn, ids, "error")[1].startswith("ValueError: odd")
    assert look(conn, ids, "result") == ["fine", None, None, None, None]
    Engine(conn).assert_promises()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_batch_handlers_that_raise_fail_the_first_without_an_outcome(
    dsn: str, conn: Connection, actions: Actions, kind: str
) -> None:
    """Under hold, the default: those before it end, it is held, the others were not started."""
    calls = []

    def index(executions: Executions) -> None:
        calls.append([each.id for each in executions])
        executions[0].succeed({"n": 1})
        executions[1].succeed()
        raise RuntimeError("no more")

    async def index_async(executions: Executions) -> None:
        index(executions)

    actions.add("index", index if kind == "sync" else index_async, batch=10)
    ids = fill(conn, [{}] * 5)
    run(dsn, actions)
    assert calls == [ids]
    assert look(conn, ids, "state") == ["succeeded", "succeeded", "held", "waiting", "waiting"]
    assert look(conn, ids, "failures") == [0, 0, 1, 0, 0]
    assert look(conn, ids, "result")[:2] == [{"n": 1}, None]
    assert look(conn, ids, "error")[2].startswith("RuntimeError: no more")
    Engine(conn).assert_promises()


def test_batch_handlers_say_success_behind_a_failure_in_vain_under_hold(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    @actions.action("index", batch=10)
    def index(executions: Executions) -> None:
        executions[1].fail("odd")

    ids = fill(conn, [{}] * 3)
    run(dsn, actions)
    assert look(conn, ids, "state") == ["succeeded", "held", "waiting"]
    assert look(conn, ids, "error")[1] == "odd"


def test_batch_handlers_try_what_came_back_one_by_one(dsn: str, conn: Connection, actions: Actions) -> None:
    """The one that fails is found, and costs the others nothing."""
    calls = []

    @actions.action("index", batch=10, backoff_initial=0.001, max_attempts=2)
    def index(executions: Executions) -> None:
        calls.append([each.payload["n"] for each in executions])
        for each in executions:
            if each.payload["n"] == 2:
                raise RuntimeError("odd")
            each.succeed()

    ids = fill(conn, [{"n": n} for n in range(5)])
    Worker(dsn, actions, until_empty=True, **QUICK).run()
    assert calls == [[0, 1, 2, 3, 4], [2], [3], [4]]
    assert look(conn, ids, "state") == ["succeeded", "succeeded", "failed", "succeeded", "succeeded"]
    Engine(conn).assert_promises()


@pytest.mark.parametrize("result", [["one"], "text", {"a": 1}, ["one", "two", "three"]])
def test_batch_handlers_that_return_something_else_fail(
    dsn: str, conn: Connection, actions: Actions, result: object
) -> None:
    @actions.action("index", batch=10)
    def index(executions: Executions) -> object:
        return result

    ids = fill(conn, [{}] * 2)
    run(dsn, actions)
    assert look(conn, ids, "state") == ["held", "waiting"]
    assert "it returns a list with one for each, or None" in look(conn, ids, "error")[0]


def test_batch_handlers_take_payloads_built(dsn: str, conn: Connection, actions: Actions) -> None:
    calls: list[object] = []

    @actions.action("index", batch=10)
    def index(orders: list[Order]) -> list[int]:
        calls.append(orders)
        return [order.customer for order in orders]

    @actions.action("both", batch=10)
    def both(executions: "list[Execution]", orders: list[Order]) -> None:
        calls.append(list(zip([each.payload["customer"] for each in executions], orders, strict=True)))

    ids = fill(conn, [{"customer": 1}, {"customer": 2}])
    run(dsn, actions)
    assert look(conn, ids, "result") == [1, 2]
    fill(conn, [{"customer": 3}], "both")
    run(dsn, actions)
    assert calls == [[Order(1), Order(2)], [(3, Order(3))]]


def test_batch_handlers_get_what_comes_before_a_payload_that_does_not_fit(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    calls: list[object] = []

    @actions.action("index", batch=10)
    def index(orders: list[Order]) -> None:
        calls.append(orders)

    ids = fill(conn, [{"customer": 1}, {"customer": "two"}, {"customer": 3}])
    run(dsn, actions)
    assert calls == [[Order(1)], [Order(3)]]
    assert look(conn, ids, "state") == ["succeeded", "failed", "succeeded"]
    assert "InvalidPayload" in look(conn, ids, "error")[1]
    Engine(conn).assert_promises()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_batch_handlers_have_their_middleware_and_hooks_for_each(
    dsn: str, conn: Connection, actions: Actions, kind: str
) -> None:
    told: list[object] = []

    @actions.middleware
    def around(execution: Execution) -> Iterator[None]:
        number = execution.payload["n"]
        told.append(number)
        try:
            result = yield
        except ValueError as error:
            told.append((number, str(error)))
            raise
        else:
            told.append((number, result))
        if number == 3:
            raise LookupError("middleware")

    @actions.on_failed
    def failed(execution: Execution, error: BaseException) -> None:
        told.append(f"{execution.payload['n']} {type(error).__name__}")

    def index(executions: Executions) -> list[object]:
        told.append("handler")
        return ["fine", ValueError("odd"), None, "three"]

    async def index_async(executions: Executions) -> list[object]:
        return index(executions)

    handler = index if kind == "sync" else index_async
    actions.add("index", handler, batch=10, failure_mode="yield", max_attempts=1)
    ids = fill(conn, [{"n": n} for n in range(4)])
    run(dsn, actions)
    assert told[:5] == [0, 1, 2, 3, "handler"]
    assert told[5:9] == [(3, "three"), (2, None), (1, "odd"), (0, "fine")]
    assert set(told[9:]) == {"1 ValueError", "3 LookupError"}
    assert look(conn, ids, "state") == ["succeeded", "failed", "succeeded", "failed"]


def test_batch_handlers_that_complete_commit_their_writes_and_outcomes_together(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    @actions.action("index", batch=10)
    def index(executions: Executions) -> None:
        with psycopg.connect(dsn) as own:
            for n, each in enumerate(executions):
                if n < 2:
                    each.complete(own, n)
        raise RuntimeError("after the commit")

    ids = fill(conn, [{}] * 4)
    run(dsn, actions)
    assert look(conn, ids, "state", "result") == [
        ("succeeded", 0),
        ("succeeded", 1),
        ("held", None),
        ("waiting", None),
    ]
    Engine(conn).assert_promises()


def test_batch_handlers_that_are_over_their_time_fail_with_the_first_without_an_outcome(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    @actions.action("index", batch=10, timeout=0.2)
    async def index(executions: Executions) -> None:
        executions[0].succeed()
        await asyncio.sleep(3600)

    ids = fill(conn, [{}] * 3)
    run(dsn, actions)
    assert look(conn, ids, "state", "failures") == [("succeeded", 0), ("held", 1), ("waiting", 0)]
    assert "time limit" in look(conn, ids, "error")[1]
    Engine(conn).assert_promises()


def test_batch_handlers_go_on_while_one_of_the_batch_is_not_cancelled(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    seen: list[bool] = []

    @actions.action("index", batch=10)
    async def index(executions: Executions) -> None:
        begun.set()
        await asyncio.to_thread(go_on.wait, 60)
        seen.extend(each.cancel_requested for each in executions)
        executions[1].fail("stopped")

    engine = Engine(conn)
    ids = fill(conn, [{}] * 3)
    with working(dsn, actions) as worker:
        begun.wait(30)
        assert engine.cancel(ids[1]) == "requested"
        wait_for(lambda: [each.cancel_requested for each in worker.running] == [False, True, False])
        go_on.set()
        wait_for(lambda: look(conn, ids, "state") == ["succeeded", "cancelled", "succeeded"])
    assert seen == [False, True, False]
    engine.assert_promises()


def test_batch_handlers_are_cancelled_when_all_of_the_batch_are(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    begun = threading.Event()

    @actions.action("index", batch=10)
    async def index(executions: Executions) -> None:
        executions[0].succeed()
        begun.set()
        await asyncio.sleep(3600)

    engine = Engine(conn)
    ids = fill(conn, [{}] * 3)
    with working(dsn, actions):
        begun.wait(30)
        engine.cancel_many(ids[1:])
        wait_for(lambda: look(conn, ids, "state") == ["succeeded", "cancelled", "cancelled"])
    engine.assert_promises()


def test_batch_handlers_that_are_interrupted_give_back_what_has_no_outcome(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    begun = threading.Event()

    @actions.action("index", batch=10)
    async def index(executions: Executions) -> None:
        executions[0].succeed()
        begun.set()
        await asyncio.sleep(3600)

    ids = fill(conn, [{}] * 3)
    with working(dsn, actions, shutdown_timeout=0):
        begun.wait(30)
    assert look(conn, ids, "state", "failures") == [("succeeded", 0), ("waiting", 0), ("waiting", 0)]
    Engine(conn).assert_promises()


def test_batch_handlers_count_as_one_of_what_a_worker_runs_at_once(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    both = threading.Barrier(2)

    @actions.action("index", batch=10)
    def index(executions: Executions) -> None:
        both.wait(30)

    ids = fill(conn, [{}] * 5, group="a") + fill(conn, [{}] * 5, group="b")
    run(dsn, actions, concurrency=2)
    assert look(conn, ids, "state") == ["succeeded"] * 10


def test_batch_handlers_errors_are_raised_by_drain(dsn: str, conn: Connection, actions: Actions) -> None:
    @actions.action("index", batch=10, failure_mode="yield")
    def index(executions: Executions) -> list[object]:
        return [None, ValueError("one"), LookupError("two")]

    fill(conn, [{}] * 3)
    with pytest.raises(BaseExceptionGroup) as raised:
        drain(Worker(dsn, actions, **QUICK))
    assert {type(each) for each in raised.value.exceptions} == {ValueError, LookupError}


# -- registering -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [0, 1001, 1.5, "3", True])
def test_batch_handlers_have_a_size_from_1_to_1000(actions: Actions, batch: Any) -> None:
    with pytest.raises(InvalidValue, match="batch must be a whole number from 1 to 1,000"):
        actions.add("index", lambda _: None, batch=batch)


def one(execution: Execution) -> None: ...


def number(value: int) -> None: ...


def three(a: Executions, b: Executions, c: Executions) -> None: ...


def two(a: Executions, b: Executions) -> None: ...


def numbers(values: list[int]) -> None: ...


def typed(order: Order) -> None: ...


@pytest.mark.parametrize("handler", [one, number, numbers, two, three, typed])
def test_batch_handlers_take_lists(actions: Actions, handler: Any) -> None:
    with pytest.raises(InvalidValue, match="the handler of 'index'") as raised:
        actions.add("index", handler, batch=10)
    assert "list[Execution]" in str(raised.value.hint)


def test_batch_handlers_alone_say_outcomes(dsn: str, conn: Connection, actions: Actions) -> None:
    errors: list[str] = []

    @actions.action("index")
    def index(execution: Execution) -> None:
        with pytest.raises(InvalidValue, match="succeed is for handlers of batches") as raised:
            execution.succeed()
        errors.append(json.dumps(raised.value.detail))
        with pytest.raises(InvalidValue, match="fail is for handlers of batches") as raised:
            execution.fail("odd")
        errors.append(json.dumps(raised.value.detail))

    fill(conn, [{}])
    run(dsn, actions)
    assert len(errors) == 2


def test_batch_handlers_know_the_invalid_payload_as_everybody_does(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    seen: list[BaseException] = []

    @actions.action("index", batch=2)
    def index(orders: list[Order]) -> None: ...

    actions.on_failed(lambda _, error: seen.append(error))
    fill(conn, [{"customer": None}])
    run(dsn, actions)
    assert [type(each) for each in seen] == [InvalidPayload]
