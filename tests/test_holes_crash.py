"""The holes of the design around crashes, failovers and readers of the history, on servers of their own.

A test's name begins with the hole's number in the design and says what a user would have lost.
"""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgfifo.embedded import PrivateServer
from pgfifo.schema import install
from tests.support.database import wait_for
from tests.support.server import make_server
from tests.support.sqlworker import (
    SqlWorker,
    Start,
    advance,
    enqueue,
    enqueue_groups,
    policy,
    value,
    violations,
)

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


@pytest.fixture
def own() -> Iterator[PrivateServer]:
    """A server to be treated badly. What a commit said is flushed late unless pgfifo asks for it."""
    with make_server(
        synchronous_commit=False, wal_writer_delay="10s", wal_retrieve_retry_interval="100ms"
    ) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            install(conn)
            conn.execute("update pgfifo.installation set testing = true")
            conn.execute("create table control (n integer)")
        yield server


def connected(server: PrivateServer) -> Connection:
    return psycopg.connect(server.dsn(), autocommit=True)


def busy(conn: Connection) -> tuple[SqlWorker, list[Start]]:
    """Bring a queue into the middle of everything: waiting, running, held, returned, finished."""
    policy(conn, "a", max_concurrent=2, backoff="constant", backoff_initial=20)
    policy(conn, "r", ordering="relaxed", max_concurrent=2)
    worker = SqlWorker(conn, "a", "r")
    for action in ("a", "r"):
        enqueue_groups(conn, action, [str(n) for n in range(20)] * 5)
    for _ in range(5):  # so that the points where scans begin have moved
        first = worker.work(8)
        worker.work(0, [start.ended() for start in first])
        advance(conn, 1.1)
    for outcome in ("failed", "released"):
        worker.work(0, [start.ended(outcome) for start in worker.work(4)])
    held = worker.work(10)
    assert len(held) == 10
    return worker, held


def all_run(conn: Connection, total: int) -> None:
    """Bring everything to its end, rescue included, and look whether anything is missing or was run twice."""
    heir = SqlWorker(conn, "a", "r")
    for _ in range(80):  # the lease is over after 31 ticks, the backoff of what was lost after 20 more
        advance(conn, 1.1)
        conn.execute("select pgfifo.maintain()")
        heir.drain()
        conn.execute("select from pgfifo.heartbeat(%s)", [heir.id])
        if value(conn, "select sum(total_completed) from pgfifo.queue_stats") == total:
            break
    stats = "select sum(total_succeeded), sum(queue_length), sum(active_count) from pgfifo.queue_stats"
    assert conn.execute(stats).fetchone() == (total, 0, 0), "something was lost or stands still"
    assert value(conn, "select count(distinct id) from pgfifo.history") == total
    assert value(conn, "select sweep_found from pgfifo.ticks") == 0, "only the sweep got it going again"
    assert violations(conn) == []


# E2, a crash and a promotion


def test_e2_a_crash_loses_nothing_and_everything_still_runs(own: PrivateServer) -> None:
    with connected(own) as conn:
        worker, held = busy(conn)
        started = {(start.id, start.attempt) for start in held}
        before = value(conn, "select max(id) from pgfifo.executions")
    own.restart("immediate")
    with connected(own) as conn:
        assert value(conn, "select count(*) from pgfifo.executions") == 200, (
            "an enqueue was lost in the crash"
        )
        after = enqueue(conn, "a", "after")
        assert after > before, "a ticket was given out twice"
        # The worker has survived and reconnects: what it runs is still its own.
        worker.conn = conn
        again = worker.work(10)
        assert not {(start.id, start.attempt) for start in again} & started, "one attempt was given out twice"
        worker.work(0, [start.ended() for start in [*held, *again]])
        assert worker.refused == []
        all_run(conn, 201)


def test_e2_after_a_crash_of_everybody_what_ran_comes_back_to_its_place(own: PrivateServer) -> None:
    with connected(own) as conn:
        _, held = busy(conn)
    own.restart("immediate")
    with connected(own) as conn:
        all_run(conn, 200)
        attempts = dict(conn.execute("select id, attempt from pgfifo.executions").fetchall())
        assert all(attempts[start.id] > start.attempt for start in held)


def test_e2_a_promoted_standby_goes_on_where_the_primary_was(own: PrivateServer) -> None:
    with own.standby() as standby, connected(own) as conn:
        _, held = busy(conn)
        conn.execute("set synchronous_commit = local; insert into control values (0)")
        reached = value(conn, "select pg_current_wal_flush_lsn()")
        with connected(standby) as replica:
            replayed = "select pg_last_wal_replay_lsn() >= %s::pg_lsn"
            wait_for(lambda: value(replica, replayed, reached), message="the standby to have everything")
            # Looking works on a replica.
            assert value(replica, "select sum(total_enqueued) from pgfifo.queue_stats") == 200
            assert value(replica, "select count(*) from pgfifo.executions where state = 'running'") == 10
            assert value(replica, "select count(*) from pgfifo.lane_stats") == 40
            assert replica.execute("select * from pgfifo.order_violations").fetchall() == []
            key = value(replica, "select id from pgfifo.executions where state = 'waiting' limit 1")
            assert value(replica, "select pos from pgfifo.position(%s)", key) >= 1
            explained = value(replica, "select data from pgfifo.explain(%s)", key)
            assert explained["state"] == "waiting"
            assert explained["locked"] is None, "the primary's locks cannot be seen here"
            assert replica.execute("select * from pgfifo.check()").fetchall() == []
        own.kill()
        with connected(standby) as promoted:
            assert value(promoted, "select pg_promote()")
            all_run(promoted, 200)
            attempts = dict(promoted.execute("select id, attempt from pgfifo.executions").fetchall())
            assert all(attempts[start.id] > start.attempt for start in held)


def test_e2_what_a_failover_has_lost_is_given_out_under_new_tokens_only(own: PrivateServer) -> None:
    """An asynchronous standby is promoted that has not seen a start, nor an enqueue."""
    token = "select token from pgfifo.work(%s, array['a'], 1, 7) where kind = 'start'"
    with own.standby() as standby:
        with connected(own) as conn, connected(standby) as replica:
            policy(conn, "a")
            kept = enqueue(conn, "a")
            other = enqueue(conn, "b")
            worker = SqlWorker(conn, "a")
            ending = SqlWorker(conn, "b")
            (ends,) = ending.work(call=1)
            conn.execute("select from pgfifo.heartbeat(%s, 1, %s)", [ending.id, [other]])
            conn.execute("set synchronous_commit = local; insert into control values (0)")
            reached = value(conn, "select pg_current_wal_flush_lsn()")
            replayed = "select pg_last_wal_replay_lsn() >= %s::pg_lsn"
            wait_for(lambda: value(replica, replayed, reached), message="the standby to have everything")
        standby.stop()
        with connected(own) as conn:
            assert value(conn, token, worker.id) == f"1-{kept}-1"
            ending.conn = conn
            ending.work(0, [ends.ended()])
            lost = [enqueue(conn, "a") for _ in range(40)]  # more than a sequence is ahead of its log
            forgotten = {SqlWorker(conn, "a").id for _ in range(40)}
        own.kill()
        standby.start()
        with connected(standby) as promoted:
            assert value(promoted, "select pg_promote()")
        with connected(standby) as promoted:
            # The worker has survived. It still runs what nobody here knows to be started.
            worker.conn = promoted
            assert promoted.execute(token, [worker.id]).fetchall() == [], (
                "one attempt runs twice in one worker"
            )
            heartbeat = "select id, signal from pgfifo.heartbeat(%s, 0, %s)"
            assert promoted.execute(heartbeat, [worker.id, [kept]]).fetchall() == [(kept, "lost")]
            worker.work(0, [{"id": kept, "attempt": 1, "outcome": "succeeded"}])
            assert worker.refused == [(kept, "lost")], "an outcome was taken for another start"
            assert value(promoted, token, worker.id) == f"2-{kept}-1", "a token was given out twice"
            again = [enqueue(promoted, "a") for _ in range(40)]
            assert set(again) & set(lost), "no id was given out twice, so this has shown nothing"
            assert value(promoted, "select count(*) from pgfifo.executions") == 42
            registered = {SqlWorker(promoted, "a").id for _ in range(40)}
            assert not registered & forgotten, "two processes answer to one worker's id"
            # What has ended, and nobody here knows of: its worker holds it no longer.
            ending.conn = promoted
            promoted.execute("select from pgfifo.heartbeat(%s, 1, '{}')", [ending.id])
            (run_again,) = ending.work(call=2)
            assert (run_again.id, run_again.attempt) == (other, 2), "its slot is kept for ever"
            assert violations(promoted) == []
            audit = "select detail from pgfifo.audit where what = 'raise_epoch'"
            assert promoted.execute(audit).fetchall() == [({"epoch": 2},)]


def test_e2_every_table_is_logged(conn: Connection) -> None:
    unlogged = conn.execute(
        "select relname from pg_class where relnamespace = 'pgfifo'::regnamespace and relpersistence <> 'p'"
    ).fetchall()
    assert unlogged == [], "a crash empties these, and the counts in marks with them"


def test_e2_an_outage_longer_than_the_lease_kills_no_living_worker(own: PrivateServer) -> None:
    with connected(own) as conn:
        policy(conn, "a")
        enqueue(conn, "a")
        worker = SqlWorker(conn, "a", locked=True)
        (running,) = worker.work()
    own.restart("immediate")
    with connected(own) as conn:
        advance(conn, 3600)
        for _ in range(5):
            conn.execute("select pgfifo.maintain()")
            advance(conn, 1)
        worker.conn = conn
        conn.execute("select pgfifo.worker_relock(%s)", [worker.id])
        worker.work(0, [running.ended()])
        assert worker.refused == [], "a worker was declared dead because the server was away"


# E20, commits that are not flushed

DURABLE = {
    "enqueue": "select pgfifo.enqueue('a', '{{}}')",
    "enqueue_many": "select from pgfifo.enqueue_many('a', array['{{}}'::jsonb])",
    "work": "select from pgfifo.work({worker}, array['a'], 1)",
    "claim": "select from pgfifo.claim({worker}, array['a'])",
    "finish": "select pgfifo.finish({id}, 1, 'succeeded')",
    "release": "select pgfifo.release({id}, 1)",
    "cancel": "select pgfifo.cancel({id})",
    "heartbeat": "select from pgfifo.heartbeat({worker})",
    "worker_start": "select pgfifo.worker_start('', '', 0, array['a'], 1, '30 s', false)",
    "worker_stop": "select pgfifo.worker_stop({worker})",
}


def test_e20_what_hands_out_or_takes_in_is_durable_whatever_the_session_says(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a")
    enqueue(conn, "a")
    worker = SqlWorker(conn, "a")
    (running,) = worker.work()
    careless = connect(autocommit=False)
    careless.execute("set synchronous_commit = off")
    careless.commit()
    for name, query in DURABLE.items():
        careless.execute(query.format(worker=worker.id, id=running.id))
        setting = value(careless, "show synchronous_commit")
        assert setting == "on", f"a crash after {name} forgets what was already acted on"
        careless.rollback()
        assert value(careless, "show synchronous_commit") == "off", "the caller's own setting was changed"
        careless.rollback()


def test_e20_a_crash_forgets_no_claim_where_commits_are_not_flushed(own: PrivateServer) -> None:
    with connected(own) as conn:
        assert value(conn, "show synchronous_commit") == "off"
        policy(conn, "a")
        enqueue(conn, "a")
        worker = SqlWorker(conn, "a")
        (start,) = worker.work()
        conn.execute("insert into control values (1)")
        registered = SqlWorker(conn, "a").id
        conn.execute("insert into control values (2)")
    own.restart("immediate")
    with connected(own) as conn:
        forgotten = value(conn, "select 2 - count(*) from control where n in (1, 2)")
        assert forgotten > 0, "nothing was forgotten, so this crash has shown nothing"
        other = SqlWorker(conn, "a")
        assert other.id > registered, "two processes answer to one worker's id"
        assert other.work() == [], "the same attempt was handed out twice"
        state = "select worker_id, attempt from pgfifo.executions where id = %s"
        assert conn.execute(state, [start.id]).fetchone() == (worker.id, start.attempt)


# E12: readers of the history


def test_e12_a_reader_of_the_history_stops_neither_finishes_nor_upkeep(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as conn, psycopg.connect(fresh_dsn) as reader:
        conn.execute("set statement_timeout = '20s'")
        policy(conn, "a", retention=2 * 86400)
        worker = SqlWorker(conn, "a")
        enqueue(conn, "a")
        worker.drain()
        old = value(conn, "select tableoid::regclass::text from pgfifo.history")
        assert old != "pgfifo.history_default", "the first day has no partition of its own"

        reader.execute(
            "select count(*) from pgfifo.executions"
        )  # holds its locks to its end, as pg_dump does
        for _ in range(7):  # days pass: new partitions are due, and the old one is due to go
            advance(conn, 86400)
            assert value(conn, "select pgfifo.maintain()")["elected"]
            enqueue(conn, "a")
            assert len(worker.drain()) == 1, "a finish stood behind a reader"
        assert value(conn, "select to_regclass(%s) is not null", old)
        assert value(conn, "select count(*) from pg_locks where not granted") == 0

        reader.rollback()
        for _ in range(4):
            advance(conn, 20)
            conn.execute("select pgfifo.maintain()")
        assert value(conn, "select to_regclass(%s) is null", old), "old history is never dropped"
        ahead = "to_regclass('pgfifo.history_' || to_char(pgfifo._now() + interval '2 days', 'YYYYMMDD'))"
        assert value(conn, f"select {ahead} is not null"), "the days ahead have no partition"
        kept = value(conn, "select count(*) from pgfifo.history")
        assert kept <= 3, f"{kept} executions of a week are kept, with a retention of two days"
        assert violations(conn) == []


def test_e12_rows_of_a_day_without_a_partition_are_kept_and_age(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        policy(conn, "a", retention=86400)
        worker = SqlWorker(conn, "a")
        advance(conn, 30 * 86400)  # nobody has maintained for days
        key = enqueue(conn, "a")
        held = worker.work()
        worker.work(0, [start.ended() for start in held])
        assert value(conn, "select tableoid::regclass::text from pgfifo.history") == "pgfifo.history_default"
        conn.execute("select pgfifo.maintain()")
        assert value(conn, "select state from pgfifo.executions where id = %s", key) == "succeeded"
        advance(conn, 86500)
        conn.execute("select pgfifo.maintain()")
        assert value(conn, "select count(*) from pgfifo.history") == 0
