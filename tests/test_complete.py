"""`complete`: a handler's writes and its outcome commit together, once; its slot is its own to its end."""

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo import Actions, Execution
from tests.support.database import in_background, wait_for, wait_until_blocked
from tests.support.engine import Engine
from tests.test_unwrap import (
    DjangoConnection,
    SqlalchemyAsyncConnection,
    SqlalchemyAsyncSession,
    SqlalchemyConnection,
    SqlalchemySession,
)
from tests.test_worker import Gate, drain, enqueue, look, one, wait_for_state, working

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


@pytest.fixture
def actions() -> Actions:
    return Actions()


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


@pytest.fixture
def postings(conn: Connection) -> Iterator[Callable[[], list[int]]]:
    """A table of the application's; returns what is in it."""
    conn.execute("create table public.postings (execution bigint)")
    yield lambda: [id_ for (id_,) in conn.execute("select execution from public.postings order by 1")]
    conn.execute("drop table public.postings")


def post(own: Connection, execution: Execution) -> None:
    own.execute("insert into public.postings values (%s)", (execution.id,))


def complete(engine: Engine, id_: int, attempt: int = 1, result: object = None) -> None:
    engine.conn.execute("select pgfifo.complete(%s, %s, %s::jsonb)", (id_, attempt, result))


# In a handler


def test_complete_commits_the_handlers_writes_with_the_outcome(
    dsn: str, conn: Connection, actions: Actions, postings: Callable[[], list[int]]
) -> None:
    @actions.action("invoice")
    def invoice(execution: Execution) -> str:
        with psycopg.connect(dsn) as own:
            post(own, execution)
            execution.complete(own, {"invoice": execution.id})
        assert execution.completed
        return "not this"

    @actions.action("invoice.async")
    async def invoice_async(execution: Execution) -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as own:
            await own.execute("insert into public.postings values (%s)", (execution.id,))
            await execution.complete(own, "there")

    ids = [enqueue(conn, "invoice"), enqueue(conn, "invoice.async")]
    drain(dsn, actions)
    assert look(conn, ids[0], "state", "attempt", "result") == ("succeeded", 1, {"invoice": ids[0]})
    assert look(conn, ids[1], "state", "attempt", "result") == ("succeeded", 1, "there")
    assert postings() == ids


def test_complete_takes_what_applications_have(dsn: str, conn: Connection, actions: Actions) -> None:
    """Their transactions; stand-ins show what is asked of them."""
    kinds = {
        "alchemy": SqlalchemyConnection,
        "session": lambda own: SqlalchemySession(SqlalchemyConnection(own)),
        "django": DjangoConnection,
    }

    @actions.action("sync")
    def sync(execution: Execution) -> None:
        with psycopg.connect(dsn) as own:
            execution.complete(kinds[execution.payload](own), execution.payload)

    @actions.action("async")
    async def in_loop(execution: Execution) -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as own:
            alchemy = SqlalchemyAsyncConnection(own)
            given = SqlalchemyAsyncSession(alchemy) if execution.payload == "session" else alchemy
            given.sync_session = None  # type: ignore[union-attr]  # what tells an AsyncSession from a Session
            await execution.complete(given, execution.payload)

    wanted = {enqueue(conn, "sync", kind): kind for kind in kinds}
    wanted |= {enqueue(conn, "async", kind): kind for kind in ("alchemy", "session")}
    drain(dsn, actions)
    for id_, kind in wanted.items():
        assert look(conn, id_, "state", "result", "error") == ("succeeded", kind, None)


def test_complete_that_is_rolled_back_is_a_failed_attempt(
    dsn: str,
    conn: Connection,
    actions: Actions,
    postings: Callable[[], list[int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where the handler swallows that: its writes are not there. One that always does so ends."""
    failures: list[str] = []
    actions.on_failed(lambda _, error: failures.append(str(error)))

    @actions.action("invoice", max_attempts=3, backoff_initial=0)
    def invoice(execution: Execution) -> None:
        with psycopg.connect(dsn) as own:
            post(own, execution)
            execution.complete(own, execution.attempt)
            if execution.attempt <= execution.payload:
                own.rollback()

    ids = [enqueue(conn, "invoice", n) for n in (1, 3)]
    drain(dsn, actions)
    assert look(conn, ids[0], "state", "attempt", "failures", "result") == ("succeeded", 2, 1, 2)
    state, error = look(conn, ids[1], "state", "error")
    assert state == "failed"
    assert "in a transaction that was rolled back" in error
    assert postings() == ids[:1]
    assert len(failures) == 4
    assert len([record for record in caplog.records if "rolled back" in record.message]) == 4


def test_complete_whose_commit_fails_is_a_failed_attempt(
    dsn: str, conn: Connection, actions: Actions, postings: Callable[[], list[int]]
) -> None:
    conn.execute("alter table public.postings add unique (execution) deferrable initially deferred")

    @actions.action("invoice", backoff_initial=0)
    def invoice(execution: Execution) -> None:
        with contextlib.closing(psycopg.connect(dsn)) as own:
            post(own, execution)
            if execution.attempt == 1:
                post(own, execution)
            execution.complete(own)
            own.commit()

    id_ = enqueue(conn, "invoice")
    drain(dsn, actions)
    assert look(conn, id_, "state", "attempt", "failures") == ("succeeded", 2, 1)
    assert one(conn, "select attempts -> 0 ->> 'error' from pgfifo.executions").startswith(
        "psycopg.errors.UniqueViolation"
    )
    assert postings() == [id_]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_complete_that_was_committed_stays_when_the_handler_fails_afterwards(
    dsn: str, conn: Connection, actions: Actions, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    hooks: list[object] = []
    actions.on_failed(lambda *_: hooks.append("failed"))

    def invoice(execution: Execution) -> None:
        with psycopg.connect(dsn) as own:
            execution.complete(own, "done")
        raise RuntimeError("too late")

    async def invoice_async(execution: Execution) -> None:
        invoice(execution)

    actions.add("invoice", invoice if kind == "sync" else invoice_async)
    id_ = enqueue(conn, "invoice")
    drain(dsn, actions)
    assert look(conn, id_, "state", "attempt", "failures", "result", "error") == (
        "succeeded",
        1,
        0,
        "done",
        None,
    )
    assert hooks == []
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "raised after it had called complete" in record.message


def test_slots_what_has_completed_keeps_its_slot_until_its_handler_has_ended(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    gate = Gate()

    @actions.action("invoice", max_concurrent=1)
    def invoice(execution: Execution) -> None:
        with psycopg.connect(dsn) as own:
            execution.complete(own, "early")
        gate(execution)

    first, second = enqueue(conn, "invoice"), enqueue(conn, "invoice")
    with working(dsn, actions):
        gate.wait()
        assert not gate.begun.acquire(timeout=0.3)
        assert (look(conn, first, "state"), look(conn, second, "state")) == ("running", "waiting")
        gate.go.set()
        wait_for_state(conn, second, "succeeded")
    assert look(conn, first, "state", "result") == ("succeeded", "early")


def test_cancel_of_what_has_completed_stops_the_handler_and_it_has_succeeded(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    @actions.action("invoice")
    async def invoice(execution: Execution) -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as own:
            await execution.complete(own, "done")
        await asyncio.sleep(60)

    id_ = enqueue(conn, "invoice")
    with working(dsn, actions):
        wait_for(lambda: one(conn, "select count(*) from pgfifo.runs where completed") == 1)
        conn.execute("select pgfifo.cancel(%s)", (id_,))
        wait_for_state(conn, id_, "succeeded")
    assert look(conn, id_, "result") == "done"


@pytest.mark.parametrize(
    ("result", "error"), [({1, 2}, pgfifo.InvalidValue), ("x" * 1_100_000, pgfifo.PayloadTooLarge)]
)
def test_a_result_that_cannot_be_kept_is_refused_before_the_commit(
    dsn: str,
    conn: Connection,
    actions: Actions,
    postings: Callable[[], list[int]],
    result: object,
    error: type[Exception],
) -> None:
    @actions.action("invoice", max_attempts=1)
    def invoice(execution: Execution) -> None:
        with psycopg.connect(dsn) as own:
            post(own, execution)
            execution.complete(own, result)

    id_ = enqueue(conn, "invoice")
    drain(dsn, actions)
    state, said = look(conn, id_, "state", "error")
    assert state == "failed"
    assert error.__name__ in said.splitlines()[0]
    assert postings() == []


def test_durability_each_posting_is_made_once_whatever_breaks(
    dsn: str, conn: Connection, actions: Actions, postings: Callable[[], list[int]]
) -> None:
    """Handlers raise before and after, swallow rollbacks, and lose their connections around the commit."""
    dice = random.Random(7)
    lock = threading.Lock()

    @actions.action("post", max_concurrent=4, max_attempts=1000, backoff_initial=0)
    def handle(execution: Execution) -> None:
        with lock:
            kind = dice.choice(["fine", "before", "after", "rolled back", "cut", "unknown", "again"])
        own = psycopg.connect(dsn)
        try:
            post(own, execution)
            if kind == "before":
                raise RuntimeError(kind)
            execution.complete(own, kind)
            if kind == "rolled back":
                own.rollback()
            if kind == "cut":
                with psycopg.connect(dsn, autocommit=True) as killer:
                    killer.execute("select pg_terminate_backend(%s, 5000)", (own.info.backend_pid,))
            own.commit()
            if kind == "unknown":  # as if the answer to the commit had been lost
                raise psycopg.OperationalError("server closed the connection unexpectedly")
            if kind == "again":
                post(own, execution)
                execution.complete(own, "twice")
                own.commit()
            if kind == "after":
                raise RuntimeError(kind)
        finally:
            own.close()

    ids = [enqueue(conn, "post") for _ in range(60)]
    drain(dsn, actions, concurrency=4)
    assert postings() == ids
    assert {look(conn, id_, "state") for id_ in ids} == {"succeeded"}
    assert not {look(conn, id_, "result") for id_ in ids} & {"twice", "rolled back", "cut", "before", None}
    assert one(conn, "select count(*) from pgfifo.check()") == 0


# Under the fence


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "released", "cancelled"])
def test_whatever_the_worker_says_afterwards_it_has_succeeded(engine: Engine, outcome: str) -> None:
    id_ = engine.enqueue()
    worker = engine.worker()
    engine.work(worker)
    complete(engine, id_, result='"mine"')
    said = {"id": id_, "attempt": 1, "outcome": outcome, "result": "theirs", "error": "theirs"}
    assert engine.work(worker, 0, finished=[said]).refused == {}
    columns = "state, result, error, failures, attempts"
    assert engine.rows(f"select {columns} from pgfifo.executions") == [("succeeded", "mine", None, 0, None)]
    assert engine.rows("select running, succeeded, failed, cancelled from pgfifo.ledger") == [(0, 1, 0, 0)]


@pytest.mark.parametrize("call", ["finish", "release", "finish_execution", "worker_stop"])
def test_whoever_ends_it_afterwards_it_has_succeeded(engine: Engine, call: str) -> None:
    id_ = engine.enqueue()
    worker = engine.worker()
    engine.work(worker)
    complete(engine, id_, result='"mine"')
    arguments = {
        "finish": (id_, 1, "failed"),
        "release": (id_, 1),
        "finish_execution": (id_, "failed", "stuck"),
        "worker_stop": (worker,),
    }[call]
    engine.one(f"select pgfifo.{call}({', '.join(['%s'] * len(arguments))})", *arguments)
    columns = "state, result, error, reason, failures"
    assert engine.rows(f"select {columns} from pgfifo.executions") == [("succeeded", "mine", None, None, 0)]
    assert engine.rows("select * from pgfifo.check()") == []


def test_durability_a_worker_that_dies_after_the_commit_has_not_lost_it(engine: Engine) -> None:
    id_ = engine.enqueue()
    engine.enqueue()
    worker = engine.worker(lease="3 s")
    engine.work(worker)
    complete(engine, id_, result="7")
    engine.tick(6)
    assert engine.rows(
        "select state, result, attempt, failures from pgfifo.executions where id = %s", id_
    ) == [("succeeded", 7, 1, 0)]
    assert engine.work(engine.worker()).ids == [id_ + 1], "its slot was not given on"


def test_fencing_one_that_was_taken_away_cannot_complete(engine: Engine, connect: Connect) -> None:
    id_ = engine.enqueue()
    worker = engine.worker()
    engine.work(worker)
    engine.one("select pgfifo.release(%s, 1)", id_)
    own = Engine(connect(autocommit=False))
    with pytest.raises(pgfifo.LeaseLost):
        complete(own, id_)
    own.conn.rollback()
    engine.work(worker)
    with pytest.raises(pgfifo.LeaseLost):
        complete(own, id_, attempt=1)
    own.conn.rollback()
    complete(own, id_, attempt=2)
    with pytest.raises(pgfifo.UnknownExecution):
        complete(engine, 4711)


def test_fencing_it_is_completed_once(engine: Engine, connect: Connect) -> None:
    """Twice would be two postings. What was rolled back did not happen."""
    id_ = engine.enqueue()
    engine.work(engine.worker())
    own = Engine(connect(autocommit=False))
    complete(own, id_, result="1")
    own.conn.rollback()
    with own.conn.transaction():
        with own.conn.transaction(force_rollback=True):
            complete(own, id_, result="2")
        complete(own, id_, result="3")
    with pytest.raises(pgfifo.LeaseLost, match="completed already"):
        complete(own, id_, result="4")
    own.conn.rollback()
    assert engine.one("select result from pgfifo.runs") == 3


def test_fencing_nobody_takes_it_away_between_the_call_and_the_commit(
    engine: Engine, connect: Connect
) -> None:
    """Or the writes would be there, and the execution run again."""
    id_ = engine.enqueue()
    worker = engine.worker(lease="3 s")
    engine.work(worker)
    own = Engine(connect(autocommit=False))
    complete(own, id_)
    other = Engine(connect())
    taking = in_background(lambda: other.one("select pgfifo.finish_execution(%s, 'failed')", id_))
    wait_until_blocked(engine.conn, other.pid)
    assert engine.work(worker, 0, finished=[{"id": id_, "attempt": 1, "outcome": "failed"}]).refused == {
        id_: "retry"
    }
    engine.tick(8)
    assert engine.one("select state from pgfifo._workers") == "alive", "it was declared dead meanwhile"
    own.conn.commit()
    assert taking.result() is True
    assert engine.one("select state from pgfifo.executions") == "succeeded"


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_it_is_refused_above_read_committed(engine: Engine, connect: Connect, level: str) -> None:
    id_ = engine.enqueue()
    engine.work(engine.worker())
    own = Engine(connect(autocommit=False))
    own.conn.execute(f"set transaction isolation level {level}")
    with pytest.raises(pgfifo.IsolationLevel):
        complete(own, id_)


def test_a_wait_ends_when_its_handler_has_ended(engine: Engine, dsn: str) -> None:
    id_ = engine.enqueue()
    worker = engine.worker()
    engine.work(worker)
    with pgfifo.Client(dsn) as fifo:
        complete(engine, id_, result="7")
        with pytest.raises(pgfifo.WaitTimeout):
            fifo.wait(id_, timeout=0)
        engine.work(worker, 0, finished=[{"id": id_, "attempt": 1, "outcome": "failed"}])
        assert fifo.wait(id_, timeout=0) == 7
