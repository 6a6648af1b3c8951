"""Durability: what was committed comes to exactly one outcome; what was rolled back leaves no trace."""

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgfifo import errors
from tests.support.database import wait_for
from tests.support.engine import Engine, item

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


# -- rollback ----------------------------------------------------------------------------------------


def picture(engine: Engine) -> list[Any]:
    """Return what users see of everything."""
    return [
        engine.rows("select id, state, attempt, failures, ticket from pgfifo.executions order by id"),
        engine.rows("select * from pgfifo.queue_stats order by action"),
        engine.rows("select * from pgfifo.lane_stats order by action, group_text"),
    ]


@pytest.mark.parametrize("savepoint", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        "select pgfifo.finish({running}, 1, 'succeeded')",
        "select pgfifo.finish({running}, 1, 'failed')",
        "select pgfifo.finish({running}, 1, 'failed', null, 'no', false)",
        "select pgfifo.release({running}, 1)",
        "select pgfifo.cancel({running})",
        "select pgfifo.cancel({held})",
        "select pgfifo.cancel({waiting})",
        "select pgfifo.enqueue('deploy')",
        "select pgfifo.enqueue('another')",
        "select pgfifo.enqueue('deploy', '{{}}', 'new lane')",
        "select pgfifo.enqueue_many('deploy', array['{{}}', '{{}}']::jsonb[], array['', 'new lane'])",
        "select pgfifo.set_policy('deploy', '{{\"max_concurrent\": 9}}')",
        "select pgfifo.pause('deploy')",
        "select pgfifo.claim({worker}, '{{deploy}}', 5)",
        "select pgfifo.worker_stop({worker})",
        "select pgfifo.heartbeat({worker}, 9, '{{}}')",
    ],
)
def test_durability_a_change_that_rolls_back_leaves_everything_as_it_was(
    conn: Connection, connect: Connect, change: str, savepoint: bool
) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3, backoff_initial=3600)
    held, running, waiting, *_ = ids = engine.fill(6)
    worker = engine.worker()
    starts = engine.work(worker, 2, call=1).starts
    engine.finish(starts[0], "failed")
    before = picture(engine)
    other = connect(autocommit=False)
    query = change.format(running=running, held=held, waiting=waiting, worker=worker)
    other.execute("select 1")
    if savepoint:
        with other.transaction(force_rollback=True):
            other.execute(query)
        other.commit()
    else:
        other.execute(query)
        other.rollback()
    assert picture(engine) == before, "something of a rolled-back change is there"
    # And nothing of it is left behind that would show later: everything starts and ends in its order.
    engine.hand_in(worker, starts[1])
    engine.cancel(held)
    assert engine.drain(worker) == ids[2:]
    engine.assert_promises()


def test_durability_enqueue_and_outcome_commit_with_the_callers_own_writes(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    conn.execute("create temp table orders (id int)")
    with conn.transaction():
        conn.execute("insert into orders values (1)")
        new = engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    with conn.transaction(force_rollback=True):
        conn.execute("insert into orders values (2)")
        engine.finish(start)
    assert engine.rows("select * from orders") == [(1,)]
    assert engine.state(new) == "running", "the outcome was recorded without the handler's writes"
    with conn.transaction():
        conn.execute("insert into orders values (2)")
        engine.finish(start)
    assert engine.state(new) == "succeeded"
    engine.assert_promises()


# -- crashes of clients --------------------------------------------------------------------------------

SCRIPT = """
import psycopg, sys, time
conn = psycopg.connect(sys.argv[1])
for query in sys.argv[2:]:
    conn.execute(query)
print("ready", flush=True)
time.sleep(600)
"""


def test_durability_a_client_killed_in_the_middle_of_its_transaction_leaves_no_trace(
    conn: Connection, dsn: str
) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3)
    ids = engine.fill(3)
    worker = engine.worker()
    (start,) = engine.claim(worker, 1)
    before = picture(engine)
    calls = [
        "select pgfifo.enqueue('deploy')",
        f"select pgfifo.claim({worker}, '{{deploy}}', 1)",
        f"select pgfifo.finish({start.id}, 1, 'succeeded')",
        f"select pgfifo.cancel({ids[2]})",
    ]
    with subprocess.Popen([sys.executable, "-c", SCRIPT, dsn, *calls], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(signal.SIGKILL)
        client.wait(60)
    last = engine_after_the_others(engine)
    assert picture(last) == before
    assert last.hand_in(worker, start) == {}
    assert [start.id, *last.drain(worker)] == ids
    last.assert_promises()


def engine_after_the_others(engine: Engine) -> Engine:
    """Wait until the server has noticed that the client is gone."""
    others = (
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and backend_type = 'client backend' and pid <> pg_backend_pid()"
    )
    wait_for(lambda: engine.one(others) == 0, message="the server to notice that its client is gone")
    return engine


def test_durability_a_session_terminated_in_its_transaction_leaves_no_trace(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    ids = engine.fill(2)
    worker = engine.worker()
    for call in (
        "select pgfifo.enqueue('deploy')",
        f"select pgfifo.claim({worker}, '{{deploy}}', 1)",
        f"select pgfifo.cancel({ids[0]})",
    ):
        before = picture(engine)
        victim = connect(autocommit=False)
        victim.execute(call)
        conn.execute("select pg_terminate_backend(%s, 10000)", [victim.info.backend_pid])
        assert picture(engine) == before
    assert engine.drain(worker) == ids
    engine.assert_promises()


# -- commits that the server might forget ----------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        "pgfifo.enqueue('deploy')",
        "pgfifo.enqueue_many('deploy', array['{}']::jsonb[])",
        "pgfifo.work(%(worker)s, '{deploy}', 1)",
        "pgfifo.finish(%(running)s, 1, 'succeeded')",
        "pgfifo.release(%(running)s, 1)",
        "pgfifo.cancel(%(running)s)",
        "pgfifo.heartbeat(%(worker)s)",
        "pgfifo.worker_stop(%(worker)s)",
    ],
)
def test_durability_calls_raise_synchronous_commit_for_their_own_transaction(
    conn: Connection, connect: Connect, call: str
) -> None:
    """`off` is the default in many shops; a crash then hands the same attempt to two workers."""
    engine = Engine(conn)
    (running, *_) = engine.fill(3)
    worker = engine.worker()
    engine.claim(worker)
    careless = connect(autocommit=False, options="-c synchronous_commit=off")
    assert Engine(careless).one("show synchronous_commit") == "off"
    careless.execute(f"select {call}", {"worker": worker, "running": running})
    assert Engine(careless).one("show synchronous_commit") == "on", "the commit may be forgotten by a crash"
    careless.commit()
    assert Engine(careless).one("show synchronous_commit") == "off", "the caller's own setting is gone"
    careless.rollback()
    careful = connect(autocommit=False, options="-c synchronous_commit=remote_apply")
    careful.execute("select pgfifo.enqueue('deploy')")
    assert Engine(careful).one("show synchronous_commit") == "remote_apply", "a stronger setting was weakened"


# -- outcomes --------------------------------------------------------------------------------------------


def test_durability_each_execution_ends_in_one_outcome_that_can_be_looked_up(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=4)
    ids = engine.fill(5)
    worker = engine.worker()
    a, b, c, d = engine.claim(worker, 4)
    engine.work(
        worker,
        0,
        [],
        [
            item(a, result={"url": "ä"}),
            item(b, "failed", error="boom", retry=False),
            item(c, "cancelled", error="asked to"),
            item(d, "succeeded", result_error="not JSON"),
        ],
    )
    assert engine.cancel(ids[4], "not needed") == "cancelled"
    assert engine.states(ids) == ["succeeded", "failed", "cancelled", "succeeded", "cancelled"]
    assert engine.show(ids[0])["result"] == {"url": "ä"}
    assert (engine.show(ids[1])["error"], engine.show(ids[1])["failures"]) == ("boom", 1)
    assert engine.show(ids[3])["result_error"] == "not JSON"
    assert engine.show(ids[4])["reason"] == "not needed"
    for id_ in ids:
        assert engine.show(id_)["finished_at"] is not None
        with pytest.raises(errors.LeaseLost):
            engine.one("select pgfifo.finish(%s, 2, 'succeeded')", id_)
    assert engine.stats()["total_completed"] == 5
    engine.assert_promises()


def test_durability_long_errors_are_clipped_and_nothing_else_is(conn: Connection) -> None:
    engine = Engine(conn)
    ids = engine.fill(2)
    worker = engine.worker()
    for text in ("x" * 40_000, "ä" * 40_000):
        (start,) = engine.claim(worker)
        engine.finish(start, "failed", text, retry=False)
    for id_ in ids:
        error = engine.show(id_)["error"]
        assert len(error.encode()) <= 16_384
        assert error.endswith("[cut]")


def test_durability_planted_second_outcomes_are_found(conn: Connection) -> None:
    engine = Engine(conn)
    new = engine.enqueue()
    engine.drain(engine.worker())
    conn.execute("insert into pgfifo.history select * from pgfifo.history")
    assert ("violation", "outcome") in [(severity, kind) for severity, kind, _, _ in engine.check()]
    assert str(new) in str(engine.check())


def test_durability_sequences_behind_the_rows_are_found(conn: Connection) -> None:
    """Logical replication and hand-made restores carry rows and no sequences."""
    engine = Engine(conn)
    engine.fill(5)
    engine.fill(1)
    conn.execute("select setval('pgfifo.execution_ids', 1), setval('pgfifo.mark_ids', 1)")
    assert [kind for _, kind, _, _ in engine.check()] == ["sequence", "sequence"]
    conn.execute("alter sequence pgfifo.execution_ids cache 10")
    try:
        assert any("caches 10" in detail for _, _, _, detail in engine.check())
    finally:
        conn.execute("alter sequence pgfifo.execution_ids cache 1")
