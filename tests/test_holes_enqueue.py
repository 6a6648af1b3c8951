"""The holes of the design around enqueuing, each forced open by two or three sessions.

A test's name begins with the hole's number in the design and says what a user would have lost.
"""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgfifo.embedded import PrivateServer
from tests.support.database import in_background, wait_until_blocked
from tests.support.server import make_server
from tests.support.sqlworker import (
    SqlWorker,
    advance,
    enqueue,
    enqueue_groups,
    hold_lanes,
    lane,
    maintain,
    policy,
    value,
    violations,
)

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


# E9: who else gives out places in the line


def test_e9_places_in_a_line_are_given_out_under_its_enqueue_lock_only(conn: Connection) -> None:
    # Whoever draws from the sequence. _admit is called by enqueues, by claims and by maintenance.
    drawing = conn.execute(
        "select proname from pg_proc where pronamespace = 'pgfifo'::regnamespace"
        " and prosrc like '%nextval(''pgfifo.execution_ids'')%' order by 1"
    ).fetchall()
    assert [name for (name,) in drawing] == ["_admit", "_enqueue", "_enqueue_batch", "_put_back"]


def test_e9_producers_that_never_pause_do_not_keep_a_retry_from_its_place(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a", backoff="constant", backoff_initial=1, backoff_jitter=0)
    worker = SqlWorker(conn, "a")
    key = enqueue(conn, "a", "g")
    (start,) = worker.work()
    producer = connect(autocommit=False)
    enqueue(producer, "a", "g")  # holds the lane's enqueue lock from now on
    worker.work(0, [start.ended("failed")])
    advance(conn, 2)
    assert [again.id for again in worker.work()] == [key], "a retry starved behind the producers of its lane"


# E10: the lock table is the whole cluster's


@pytest.fixture
def small() -> Iterator[PrivateServer]:
    """A server with a small lock table."""
    with make_server(max_locks_per_transaction=10, max_connections=30, max_prepared_transactions=0) as server:
        yield server


def test_e10_batches_over_many_lanes_leave_the_lock_table_to_the_others(small: PrivateServer) -> None:
    from pgfifo.schema import install

    with psycopg.connect(small.dsn(), autocommit=True) as conn:
        install(conn)
        conn.execute("update pgfifo.installation set testing = true")
        policy(conn, "a", lane_retention=60)
        most = value(conn, "select pgfifo.max_batch_lanes()")
        assert most == 30, "a tenth of 10 locks for each of 30 connections"

        groups = [str(n) for n in range(most + 1)]
        batch = "select from pgfifo.enqueue_many('a', array_fill('{}'::jsonb, array[%s]), %s)"
        with pytest.raises(psycopg.Error) as refused:
            conn.execute(batch, [most + 1, groups])
        assert refused.value.sqlstate == "QF020", "a batch that may exhaust the cluster's lock table got in"
        assert "split" in (refused.value.diag.message_hint or "").lower()
        assert value(conn, "select count(*) from pgfifo.lanes") == 0

        # Five producers at once, and bystanders who need locks of their own.
        producers = [psycopg.connect(small.dsn()) for _ in range(5)]
        for n, producer in enumerate(producers):
            producer.execute(batch, [most, [f"{n}-{g}" for g in range(most)]])
        with conn.transaction():
            for n in range(40):
                conn.execute(f"create temporary table bystander_{n} ()")
        for producer in producers:
            producer.commit()
            producer.close()

        # Lanes beyond counting: claims, upkeep and repair hold no more locks than a batch may.
        for n in range(8):
            conn.execute(batch, [most, [f"more-{n}-{g}" for g in range(most)]])
        conn.execute("update pgfifo.ledger set waiting = waiting + 1")
        repaired = "select count(*) from pgfifo.check(true) where severity = 'repaired'"
        assert [value(conn, repaired) for _ in range(14)] == [most] * 13 + [0]
        worker = SqlWorker(conn, "a")
        held = worker.work(10_000)
        assert 0 < len(held) <= 128
        while more := worker.work(1000):
            held += more
        assert len(held) == 13 * most
        conn.execute("select pgfifo.worker_stop(%s)", [worker.id])
        for _ in range(100):
            advance(conn, 1)
            if not value(conn, "select pgfifo.maintain()")["more"]:
                break
        assert value(conn, "select count(*) from pgfifo.runs where state = 'running'") == 0
        heir = SqlWorker(conn, "a")
        assert len(heir.drain()) == 13 * most
        for _ in range(200):
            advance(conn, 61)
            maintain(conn)
            if value(conn, "select count(*) from pgfifo.lanes") == 0:
                break
        assert value(conn, "select count(*) from pgfifo.lanes") == 0, "idle lanes stay for ever"
        assert value(conn, "select total_completed from pgfifo.queue_stats") == 13 * most


def test_e10_a_claim_holds_few_slot_locks_however_many_lanes_wait(conn: Connection, connect: Connect) -> None:
    policy(conn, "a")
    enqueue_groups(conn, "a", map(str, range(1000)))
    claiming = connect(autocommit=False)
    worker = SqlWorker(conn, "a")
    worker.conn = claiming
    assert len(worker.work(1000)) == 64
    assert worker.more == "now"
    locks = "select count(*) from pg_locks where locktype = 'advisory' and classid = 'pgfifo.lanes'::regclass"
    assert value(conn, locks) == 64


# E16: removal of an idle lane


def idle_lane(conn: Connection) -> None:
    """Make the lane (a, g), empty and idle for longer than its retention."""
    policy(conn, "a", lane_retention=60)
    enqueue(conn, "a", "g")
    assert len(SqlWorker(conn, "a").drain()) == 1
    advance(conn, 120)


ENQUEUES = {
    "enqueue": "select pgfifo.enqueue('a', '{}', 'g')",
    "enqueue_many": "select id from pgfifo.enqueue_many('a', array['{}'::jsonb], array['g'])",
}


@pytest.mark.parametrize("call", ENQUEUES)
def test_e16_an_enqueue_that_meets_the_removal_of_its_lane_is_not_swallowed(
    conn: Connection, connect: Connect, call: str
) -> None:
    idle_lane(conn)
    old = lane(conn, "a", "g")
    remover, producer = connect(autocommit=False), connect()
    assert maintain(remover)["lanes_removed"] == 1
    enqueued = in_background(lambda: value(producer, ENQUEUES[call]))
    wait_until_blocked(conn, producer.info.backend_pid)
    remover.commit()
    key = enqueued.result()
    assert lane(conn, "a", "g") != old
    started = [start.id for start in SqlWorker(conn, "a").drain()]
    assert started == [key], "an enqueue was swallowed together with an idle lane"
    assert value(conn, "select total_enqueued from pgfifo.queue_stats") == 2
    assert violations(conn) == []


@pytest.mark.parametrize("call", ENQUEUES)
def test_e16_an_enqueue_on_an_old_snapshot_is_not_swallowed_either(
    conn: Connection, connect: Connect, call: str
) -> None:
    idle_lane(conn)
    producer = connect(autocommit=False)
    producer.execute("set transaction isolation level repeatable read")
    assert value(producer, "select count(*) from pgfifo.lane_stats") == 1  # its snapshot shows the lane
    assert maintain(conn)["lanes_removed"] == 1
    with pytest.raises(psycopg.errors.SerializationFailure):
        producer.execute(ENQUEUES[call])
    producer.rollback()
    key = value(producer, ENQUEUES[call])
    producer.commit()
    assert [start.id for start in SqlWorker(conn, "a").drain()] == [key]


@pytest.mark.parametrize("ordering", ["strict", "relaxed"])
def test_e16_a_lane_with_an_enqueue_under_way_is_not_removed(
    conn: Connection, connect: Connect, ordering: str
) -> None:
    idle_lane(conn)
    policy(conn, "a", ordering=ordering)
    producer = connect(autocommit=False)
    key = enqueue(producer, "a", "g")
    assert maintain(conn)["lanes_removed"] == 0
    producer.commit()
    assert [start.id for start in SqlWorker(conn, "a").drain()] == [key]


def test_e16_totals_survive_the_lane(conn: Connection) -> None:
    idle_lane(conn)
    before = conn.execute(
        "select total_enqueued, total_completed, total_succeeded from pgfifo.queue_stats"
    ).fetchall()
    assert maintain(conn)["lanes_removed"] == 1
    after = conn.execute(
        "select total_enqueued, total_completed, total_succeeded from pgfifo.queue_stats"
    ).fetchall()
    assert before == after == [(1, 1, 1)]


def test_e16_a_pause_of_a_lane_that_is_being_removed_is_not_lost_in_silence(
    conn: Connection, connect: Connect
) -> None:
    idle_lane(conn)
    remover, operator = connect(autocommit=False), connect()
    assert maintain(remover)["lanes_removed"] == 1
    paused = in_background(lambda: value(operator, "select pgfifo.pause('a', 'g')"))
    wait_until_blocked(conn, operator.info.backend_pid)
    remover.commit()
    with pytest.raises(psycopg.Error) as refused:
        paused.result()
    assert refused.value.sqlstate == "QF023", (
        "told that the lane is paused, while nothing keeps it from starting"
    )
    assert value(conn, "select count(*) from pgfifo.policies where scope = 'lane'") == 0


def test_e16_a_limit_for_a_lane_that_is_being_removed_holds_for_the_lane_that_comes_back(
    conn: Connection, connect: Connect
) -> None:
    idle_lane(conn)
    remover, operator = connect(autocommit=False), connect()
    assert maintain(remover)["lanes_removed"] == 1
    change = in_background(lambda: policy(operator, "a", "g", max_concurrent=3))
    wait_until_blocked(conn, operator.info.backend_pid)
    remover.commit()
    change.result()
    assert value(conn, "select max_concurrent from pgfifo.lane_stats") == 3


# E21: an xid before an id


def test_e21_whoever_draws_a_mark_owns_an_xid_before(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        conn.execute(
            """
            create function public.has_xid() returns trigger language plpgsql as $$
            begin
              if pg_current_xact_id_if_assigned() is null then
                raise exception '% is about to draw an id for % without an xid', tg_op, tg_table_name;
              end if;
              return null;
            end $$;
            """
        )
        for table in ("arrivals", "marks", "timers"):
            conn.execute(
                f"create trigger has_xid before insert on pgfifo.{table}"
                " for each statement execute function public.has_xid()"
            )
        policy(conn, "a", backoff="constant", backoff_initial=0, max_concurrent=2, lane_retention=60)
        policy(conn, "r", ordering="relaxed")
        conn.execute("select pgfifo.pause('a')")
        worker = SqlWorker(conn, "a", "r")
        enqueue(conn, "r", "g")
        enqueue_groups(conn, "r", ["g", "h"])
        enqueue(conn, "a", "g")
        enqueue_groups(conn, "a", ["g"] * 5 + ["h"] * 5)
        conn.execute("select pgfifo.resume('a')")
        held = worker.work(3, call=1)
        for outcome in ("failed", "released", "succeeded", "cancelled", "succeeded"):
            held = worker.work(2, [start.ended(outcome) for start in held])
        policy(conn, "a", "g", max_concurrent=3)
        policy(conn, "a", max_concurrent=4)
        conn.execute("select pgfifo.pause('a', 'g')")
        conn.execute("select pgfifo.resume('a', 'g')")
        for query in ("select pgfifo.release(%s, %s)", "select pgfifo.finish(%s, %s, 'failed')"):
            for start in worker.work(1):
                conn.execute(query, [start.id, start.attempt])
        conn.execute("select from pgfifo.heartbeat(%s, 1, '{}')", [worker.id])
        conn.execute("select pgfifo.worker_stop(%s)", [worker.id])
        conn.execute("delete from pgfifo.marks")
        for _ in range(3):
            advance(conn, 5)
            conn.execute("select pgfifo.maintain()")
        conn.execute("select from pgfifo.check(true)")
        with psycopg.connect(fresh_dsn) as holder:
            enqueue_groups(conn, "a", map(str, range(1100)))
            enqueue(conn, "a", "one")
            assert hold_lanes(holder, "a") > 1000
            SqlWorker(conn, "a").work(100)  # puts them off with timers
        assert len(SqlWorker(conn, "a", "r").drain()) > 0


# Relaxed lanes: the order among what is visible, and no queueing of producers


def test_e1_producers_of_a_relaxed_lane_do_not_wait_for_each_other(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a", ordering="relaxed")
    enqueue(conn, "a", "g")
    first, second = connect(autocommit=False), connect(autocommit=False)
    second.execute("set local lock_timeout = '2s'")
    older = enqueue(first, "a", "g")
    younger = enqueue(second, "a", "g")
    second.commit()
    worker = SqlWorker(conn, "a")
    assert len(worker.drain()) == 2
    first.commit()
    assert older < younger
    advance(
        conn, 2
    )  # where claims begin may have moved on: the next look behind that is a second away at most
    assert [start.id for start in worker.drain()] == [older], "what committed behind a younger one was lost"
    assert violations(conn) == []
