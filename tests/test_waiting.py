"""Waiting for an end: heard of at once where that can be, found in any case, refused where it cannot be."""

import asyncio
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import psycopg_pool
import pytest

import pgfifo
from pgfifo import waiting, waiting_async
from tests.support.database import Background, in_background, told, wait_for
from tests.support.engine import Engine
from tests.support.server import make_server
from tests.test_unwrap import DjangoConnection, SqlalchemyConnection
from tests.test_worker import working

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

WATCHED = """
    select objid::bigint from pg_locks
    where locktype = 'advisory' and classid = 'pgfifo.history'::regclass and objid <> 0 order by 1
"""


@pytest.fixture
def fifo(dsn: str) -> Iterator[pgfifo.Client]:
    with pgfifo.Client(dsn) as client:
        yield client


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


@pytest.fixture
def only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again by himself."""
    for module in (waiting, waiting_async):
        monkeypatch.setattr(module, "_LATEST", 60.0)
        monkeypatch.setattr(module, "_SOONEST", 60.0)


def in_wait(fifo: pgfifo.Client, engine: Engine, id_: int) -> Background[Any]:
    """Wait in another thread, and return when that one is waiting."""
    found = in_background(lambda: fifo.wait(id_, timeout=60))
    wait_for(lambda: (id_,) in engine.rows(WATCHED), message="the waiting session")
    return found


# What comes of it


def test_the_result_of_what_has_ended_is_returned_at_once(fifo: pgfifo.Client, engine: Engine) -> None:
    id_ = engine.enqueue()
    worker = engine.worker()
    [start] = engine.work(worker).starts
    engine.work(worker, 0, finished=[{"id": id_, "attempt": 1, "outcome": "succeeded", "result": [1, {}]}])
    assert start.id == id_
    assert fifo.wait(id_, timeout=0) == [1, {}]
    assert fifo.wait(id_) == [1, {}]


def test_an_end_without_success_is_raised_with_its_outcome_and_error(
    fifo: pgfifo.Client, engine: Engine
) -> None:
    engine.policy(max_attempts=1)
    failing, cancelled = engine.enqueue(), engine.enqueue()
    worker = engine.worker()
    engine.work(worker)
    ended = {"id": failing, "attempt": 1, "outcome": "failed", "error": "OSError: no route\n\nTraceback"}
    engine.work(worker, 0, finished=[ended])
    engine.cancel(cancelled, "not tonight")
    with pytest.raises(
        pgfifo.ExecutionFailed, match=rf"execution {failing} \(deploy\) failed: OSError"
    ) as raised:
        fifo.wait(failing)
    assert (raised.value.id, raised.value.outcome) == (failing, "failed")
    assert raised.value.error == "OSError: no route\n\nTraceback"
    assert raised.value.sqlstate == "QF014"
    with pytest.raises(pgfifo.ExecutionFailed, match=r"was cancelled: not tonight") as raised:
        fifo.wait(cancelled)
    assert (raised.value.outcome, raised.value.error) == ("cancelled", "not tonight")


def test_a_wait_that_is_over_says_how_things_stand(fifo: pgfifo.Client, engine: Engine) -> None:
    id_ = engine.enqueue()
    for timeout in (0, "20ms", 0.05):
        with pytest.raises(pgfifo.WaitTimeout, match=r"\(deploy\) was still waiting after") as raised:
            fifo.wait(id_, timeout=timeout)
        assert isinstance(raised.value, TimeoutError)
        assert (raised.value.id, raised.value.state) == (id_, "waiting")
    assert raised.value.timeout == 0.05
    assert engine.rows(WATCHED) == []


def test_an_execution_that_is_not_there_is_not_waited_for(
    fifo: pgfifo.Client, engine: Engine, connect: Connect
) -> None:
    with pytest.raises(pgfifo.UnknownExecution):
        fifo.wait(1)
    other = Engine(connect(autocommit=False))
    id_ = other.enqueue()
    with pytest.raises(pgfifo.UnknownExecution, match="not be committed yet"):
        fifo.wait(id_)


# How it is heard of


def by_work(engine: Engine, id_: int, attempt: int) -> None:
    worker = engine.one("select worker_id from pgfifo.executions where id = %s", id_)
    engine.work(worker, 0, finished=[{"id": id_, "attempt": attempt, "outcome": "succeeded", "result": 7}])


def by_finish(engine: Engine, id_: int, attempt: int) -> None:
    engine.one("select pgfifo.finish(%s, %s, 'succeeded', '7')", id_, attempt)


@pytest.mark.usefixtures("only_told")
@pytest.mark.parametrize("end", [by_work, by_finish])
def test_an_end_is_told_to_those_who_wait_for_it(
    fifo: pgfifo.Client, engine: Engine, end: Callable[[Engine, int, int], None]
) -> None:
    """Nobody looks again by himself here: only a notification can be it."""
    id_ = engine.enqueue()
    worker = engine.worker()
    engine.work(worker)
    found = in_wait(fifo, engine, id_)
    end(engine, id_, 1)
    assert found.result() == 7
    wait_for(lambda: engine.rows(WATCHED) == [], message="the session to wait for nothing any more")


@pytest.mark.usefixtures("only_told")
@pytest.mark.parametrize("state", ["waiting", "held", "failed", "lost"])
def test_every_other_end_is_told_too(fifo: pgfifo.Client, engine: Engine, state: str) -> None:
    engine.policy(max_attempts=2 if state == "held" else 1)
    id_ = engine.enqueue()
    worker = engine.worker(lease="3 s")
    if state != "waiting":
        engine.work(worker)
    if state == "held":
        engine.work(worker, 0, finished=[{"id": id_, "attempt": 1, "outcome": "failed"}])
    found = in_wait(fifo, engine, id_)
    if state == "failed":
        engine.work(worker, 0, finished=[{"id": id_, "attempt": 1, "outcome": "failed"}])
    elif state == "lost":
        engine.tick(6)
    else:
        engine.cancel(id_)
    with pytest.raises(pgfifo.ExecutionFailed) as raised:
        found.result()
    assert raised.value.outcome == ("failed" if state in ("failed", "lost") else "cancelled")


def test_notifications_are_sent_to_nobody_else(fifo: pgfifo.Client, engine: Engine, connect: Connect) -> None:
    """They cost a lock of the whole database at the commit."""
    engine.policy(max_concurrent=10)
    listener = connect()
    listener.execute("listen pgfifo_done")
    worker = engine.worker()
    first, second, third = (engine.enqueue() for _ in range(3))
    engine.work(worker, 10)
    by_work(engine, first, 1)
    found = in_wait(fifo, engine, second)
    by_work(engine, third, 1)
    by_work(engine, second, 1)
    assert found.result() == 7
    assert [each.payload for each in told(listener)] == [str(second)]


def test_a_transaction_that_asked_who_waits_too_early_is_found_by_looking(
    fifo: pgfifo.Client, engine: Engine, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_LATEST", 0.05)
    id_ = engine.enqueue()
    worker = engine.worker()
    engine.work(worker)
    ending = Engine(connect(autocommit=False))
    by_finish(ending, id_, 1)
    found = in_wait(fifo, engine, id_)
    ending.conn.commit()
    assert found.result() == 7


def test_notifications_can_be_turned_off_for_a_transaction(
    fifo: pgfifo.Client, engine: Engine, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For PREPARE TRANSACTION, which refuses one that has notified."""
    monkeypatch.setattr(waiting, "_LATEST", 0.05)
    id_ = engine.enqueue()
    found = in_wait(fifo, engine, id_)
    other = Engine(connect(autocommit=False))
    other.conn.execute("set local pgfifo.notify = off")
    other.cancel(id_)
    other.conn.execute("prepare transaction 'ending'")
    other.conn.rollback()
    engine.conn.execute("commit prepared 'ending'")
    with pytest.raises(pgfifo.ExecutionFailed):
        found.result()


@pytest.mark.usefixtures("only_told")
def test_more_who_wait_than_may_listen_are_served_all_the_same(
    dsn: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_SOONEST", 0.01)
    monkeypatch.setattr(waiting, "_LATEST", 0.05)
    ids = [engine.enqueue(group=str(n)) for n in range(6)]
    worker = engine.worker()
    engine.work(worker, 10)
    with pgfifo.Client(dsn, max_size=4) as fifo:
        found = [in_background(lambda id_=id_: fifo.wait(id_, timeout=60)) for id_ in ids]  # type: ignore[misc]
        wait_for(lambda: len(engine.rows(WATCHED)) == 2, message="two to listen")
        assert fifo.stats("deploy").active_count == 6, "those who wait took all of the connections"
        for id_ in ids:
            by_work(engine, id_, 1)
        assert [each.result() for each in found] == [7] * 6


@contextmanager
def clients(dsn: str) -> Iterator[dict[str, pgfifo.Client]]:
    with (
        pgfifo.Client(dsn, prepare_threshold=None) as pooled,
        pgfifo.Client(dsn, max_size=1) as narrow,
        psycopg_pool.ConnectionPool(dsn, min_size=1) as pool,
        psycopg.connect(dsn, autocommit=True) as conn,
    ):
        yield {
            "a pooler may be in between": pooled,
            "one connection": narrow,
            "the caller's pool": pgfifo.Client(pool),
            "the caller's connection": pgfifo.Client(conn),
        }


def test_where_nobody_can_listen_the_end_is_looked_for(dsn: str, engine: Engine) -> None:
    engine.policy()
    worker = engine.worker()
    with clients(dsn) as all_of_them:
        for kind, fifo in all_of_them.items():
            id_ = engine.enqueue()
            engine.work(worker)
            found = in_background(lambda fifo=fifo, id_=id_: fifo.wait(id_, timeout=60))  # type: ignore[misc]
            assert engine.rows(WATCHED) == []
            by_work(engine, id_, 1)
            assert found.result() == 7, kind


def test_a_connection_that_breaks_ends_no_wait(
    fifo: pgfifo.Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = engine.enqueue()
    found = in_wait(fifo, engine, id_)
    engine.conn.execute(
        "select pg_terminate_backend(pid, 5000) from pg_locks"
        " where classid = 'pgfifo.history'::regclass and objid <> 0 and locktype = 'advisory'"
    )
    engine.cancel(id_)
    with pytest.raises(pgfifo.ExecutionFailed):
        found.result()


def test_on_a_standby_the_end_is_looked_for() -> None:
    with make_server() as primary, pgfifo.Client(primary.dsn()) as fifo:
        fifo.install()
        job = fifo.enqueue("deploy")
        with primary.standby() as standby, pgfifo.Client(standby.dsn()) as reader:
            wait_for(lambda: reader.executions() != [], message="the standby to follow")
            assert "action" in {finding.kind for finding in reader.doctor()}, "it works here as well"
            found = in_background(lambda: reader.wait(job.id, timeout=30))
            fifo.cancel(job.id)
            with pytest.raises(pgfifo.ExecutionFailed):
                found.result()


# Where the end could never be seen


def test_waiting_inside_a_transaction_is_refused(dsn: str, fifo: pgfifo.Client, connect: Connect) -> None:
    job = fifo.enqueue("deploy")
    transactional = connect(autocommit=False)
    within = connect()
    begun = SqlalchemyConnection(connect())
    with within.transaction():
        within.execute("select 1")
        for odd in (transactional, within, DjangoConnection(within), begun):
            with pytest.raises(pgfifo.InTransaction):
                fifo.wait(job.id, timeout=0, connection=odd)
            with pytest.raises(pgfifo.InTransaction):
                fifo.enqueue_and_wait("deploy", connection=odd)
        with pytest.raises(pgfifo.InTransaction):
            pgfifo.Client(within).wait(job.id)
    assert begun.begun == 0
    assert len(fifo.executions()) == 1, "something was enqueued before it was refused"
    with pytest.raises(pgfifo.WaitTimeout):
        fifo.wait(job.id, timeout=0, connection=within)
    with pytest.raises(pgfifo.WaitTimeout):
        fifo.enqueue_and_wait("deploy", connection=within, timeout=0)
    with pytest.raises(pgfifo.InvalidValue, match="connection= cannot be"):
        fifo.wait(job.id, connection=types.SimpleNamespace())


# Enqueue and wait


def test_enqueue_and_wait_returns_what_the_handler_returned(dsn: str, fifo: pgfifo.Client) -> None:
    actions = pgfifo.Actions()
    actions.add("double", lambda execution: execution.payload["n"] * 2, group_by=["n"])
    fifo.declare(actions)
    with working(dsn, actions):
        assert fifo.enqueue_and_wait("double", {"n": 21}, timeout=60, tags=["t"], headers={"h": 1}) == 42
    [info] = fifo.executions()
    assert (info.tags, info.headers, info.group_text) == (["t"], {"h": 1}, '{"n":21}')
    with pytest.raises(pgfifo.WaitTimeout) as raised:
        fifo.enqueue_and_wait("double", {"n": 1}, timeout=0)
    assert raised.value.id is not None
    assert fifo.execution(raised.value.id).state == "waiting"


@pytest.mark.usefixtures("only_told")
def test_waiting_in_an_event_loop(dsn: str, engine: Engine) -> None:
    """Many at once, one of them cancelled; and the connections are as good as new afterwards."""
    engine.policy(max_concurrent=3)
    worker = engine.worker()
    ids = [engine.enqueue() for _ in range(3)]
    engine.work(worker, 3)

    async def live() -> None:
        async with pgfifo.AsyncClient(dsn) as fifo:
            tasks = [asyncio.create_task(fifo.wait(id_, timeout=60)) for id_ in ids]
            await asyncio.to_thread(wait_for, lambda: len(engine.rows(WATCHED)) == 3)
            tasks[0].cancel()
            await asyncio.wait([tasks[0]])
            assert tasks[0].cancelled()
            await asyncio.to_thread(wait_for, lambda: len(engine.rows(WATCHED)) == 2)
            for id_ in ids[1:]:
                by_work(engine, id_, 1)
            assert await asyncio.gather(*tasks[1:]) == [7, 7]
            assert engine.rows(WATCHED) == []
            with pytest.raises(pgfifo.WaitTimeout):
                await fifo.enqueue_and_wait("deploy", timeout=0)
            async with await psycopg.AsyncConnection.connect(dsn) as within:
                with pytest.raises(pgfifo.InTransaction):
                    await fifo.wait(ids[0], connection=within)

    asyncio.run(live())


def test_progress_hundreds_of_waits_and_ends_at_random_lose_none(dsn: str, fifo: pgfifo.Client) -> None:
    """Each waits from some moment around the end on; none may wait for longer than a look takes."""
    actions = pgfifo.Actions()
    actions.add("echo", lambda execution: execution.payload, max_concurrent=8)
    fifo.declare(actions)
    with working(dsn, actions):
        found: list[int] = []

        def ask(first: int) -> None:
            found.extend(fifo.enqueue_and_wait("echo", first + n, timeout=30) for n in range(100))

        threads = [threading.Thread(target=ask, args=(n * 100,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == list(range(400))
