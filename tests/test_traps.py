"""The traps of the field that no other test is about: each is something that another queue's users ran into.

Of the traps that are missing here, those of order, limits, fencing and lost wake-ups are in the tests of
these promises; dead rows, backlogs and many lanes are in tests/test_holes_plans.py.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.database import in_background, told, wait_until_blocked
from tests.support.sqlworker import (
    SqlWorker,
    advance,
    enqueue,
    enqueue_groups,
    hold_lanes,
    lane,
    policy,
    value,
    violations,
)

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]
ROOT = Path(__file__).parents[1]


# 3. A unique violation as the scheduler


def test_trap_3_a_blocked_lane_shows_no_error_to_anybody(conn: Connection, connect: Connect) -> None:
    policy(conn, "a")
    enqueue_groups(conn, "a", ["blocked", "free", "blocked", "free"])
    holder = connect(autocommit=False)
    assert hold_lanes(holder, "a", "blocked") == 1
    worker = SqlWorker(conn, "a")
    assert [start.group for start in worker.drain()] == ["free", "free"]
    holder.rollback()
    advance(conn, 2)
    assert [start.group for start in worker.drain()] == ["blocked", "blocked"]


# 7. Hot counter rows


def test_trap_7_producers_of_other_lanes_and_claims_never_wait_for_an_open_enqueue(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a", max_concurrent=5, max_queue_length=1000)
    worker = SqlWorker(conn, "a")
    for group in ("g", "h"):
        enqueue(conn, "a", group)
    slow, other, claiming = connect(autocommit=False), connect(), connect()
    for session in (other, claiming):
        session.execute("set lock_timeout = '2s'")
    enqueue(slow, "a", "g")
    enqueue(other, "a", "h")
    worker.conn = claiming
    first = worker.work(5)
    assert len(first) == 3, "claims stood behind a producer's open transaction"
    worker.work(5, [start.ended() for start in first])
    assert worker.refused == []
    assert value(conn, "select total_completed from pgfifo.queue_stats") == 3
    slow.commit()
    advance(conn, 2)  # once a second claims look at what has committed late, as this has on a busy machine
    assert len(worker.drain()) == 1


# 8. Prefetching


def test_trap_8_a_claim_takes_no_more_than_it_can_run_at_once(conn: Connection) -> None:
    policy(conn, "a", max_concurrent=50)
    enqueue_groups(conn, "a", ["g"] * 30)
    worker = SqlWorker(conn, "a")
    assert len(worker.work(3)) == 3
    assert value(conn, "select running from pgfifo.ledger") == 3
    assert worker.work(0) == []
    rows = conn.execute(
        "select count(*) from pgfifo.work(%s, array['a'], 10, null, null, array[2]) where kind = 'start'",
        [worker.id],
    ).fetchone()
    assert rows == (2,), "a worker's own cap for one action was exceeded"


# 10. Lost wake-ups


@pytest.mark.parametrize("first", ["failed", "cancelled", "released"])
def test_trap_10_each_lane_of_a_batch_is_marked_whatever_became_of_the_others(
    conn: Connection, first: str
) -> None:
    policy(conn, "a")
    ids = [enqueue(conn, "a", group) for group in ("empty", "b", "c")]
    worker = SqlWorker(conn, "a")
    one, two, three = worker.work(3)
    # The first leaves a lane behind in which nothing waits.
    worker.work(0, [one.ended(first), two.ended("released"), three.ended("released")])
    again = {start.id for start in worker.work(3)}
    assert again >= set(ids[1:]), "what was given back waits, in a lane that nobody looks at"


# 11. Advisory locks: sessions, poolers, collisions, deadlocks


def test_trap_11_a_worker_behind_a_transaction_pooler_leaves_no_session_locks(conn: Connection) -> None:
    policy(conn, "a")
    enqueue_groups(conn, "a", ["g", "h"])
    worker = SqlWorker(conn, "a", locked=False)
    worker.drain()
    conn.execute("select from pgfifo.heartbeat(%s)", [worker.id])
    conn.execute("select pgfifo.maintain()")
    conn.execute("select pgfifo.worker_stop(%s)", [worker.id])
    assert value(conn, "select count(*) from pg_locks where locktype = 'advisory'") == 0


def test_trap_11_settings_of_a_call_do_not_stay_on_a_pooled_connection(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a")
    enqueue(conn, "a", "g")
    pooled = connect()
    worker = SqlWorker(pooled, "a")
    settings = "select name, setting from pg_settings order by 1"
    before = pooled.execute(settings).fetchall()
    (start,) = worker.work()
    holder = connect(autocommit=False)
    assert hold_lanes(holder, "a") == 1
    worker.work(0, [start.ended()])  # waits for the lane, with a lock_timeout of its own
    assert worker.refused == [(start.id, "retry")]
    holder.rollback()
    enqueue(pooled, "a", "g")
    worker.work(1, [start.ended()])
    assert pooled.execute(settings).fetchall() == before


def test_trap_11_lanes_whose_keys_collide_only_share_a_lock(conn: Connection) -> None:
    policy(conn, "a")
    enqueue(conn, "a", "one")
    first = lane(conn, "a", "one")
    sequence = "pg_get_serial_sequence('pgfifo.lanes', 'id')"
    conn.execute(f"select setval({sequence}, {first + 2**31 - 1})")
    enqueue(conn, "a", "two")
    assert lane(conn, "a", "two") == first + 2**31
    assert value(conn, "select count(distinct pgfifo._key(id)) from pgfifo.lanes") == 1
    enqueue_groups(conn, "a", ["one", "two"] * 3)
    worker = SqlWorker(conn, "a")
    assert len(worker.work(10)) == 2, "lanes with one key shared more than a lock"
    assert len(worker.drain()) == 0
    conn.execute("select pgfifo.worker_stop(%s)", [worker.id])
    assert len(SqlWorker(conn, "a").drain()) == 8
    assert violations(conn) == []


@pytest.mark.parametrize("lanes", ["there", "new"])
def test_trap_11_batches_over_the_same_lanes_in_other_orders_do_not_deadlock(
    conn: Connection, connect: Connect, lanes: str
) -> None:
    policy(conn, "a")
    groups = ["1", "2", "3"]
    if lanes == "there":
        enqueue_groups(conn, "a", groups)
    middle, up, down = connect(autocommit=False), connect(), connect()
    enqueue(middle, "a", "2")
    # Each holds one end now and waits for the middle; unsorted, they would wait for each other afterwards.
    upwards = in_background(lambda: enqueue_groups(up, "a", groups))
    wait_until_blocked(conn, up.info.backend_pid)
    downwards = in_background(lambda: enqueue_groups(down, "a", groups[::-1]))
    wait_until_blocked(conn, down.info.backend_pid)
    middle.commit()
    upwards.result()
    downwards.result()
    assert len(SqlWorker(conn, "a").drain()) == (10 if lanes == "there" else 7)
    assert value(conn, "select count(*) from pgfifo.lanes") == 3
    assert violations(conn) == []


def test_trap_11_locks_of_the_application_with_the_same_numbers_do_not_meet_ours(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a")
    enqueue(conn, "a", "g")
    lane_id = lane(conn, "a", "g")
    application = connect()
    for number in range(10):
        application.execute("select pg_advisory_lock(%s), pg_advisory_lock(0, %s)", [number, number])
    application.execute("select pg_advisory_lock(%s), pg_advisory_lock(0, %s)", [lane_id, lane_id])
    assert len(SqlWorker(conn, "a").drain()) == 1


# 12. NOTIFY


def test_trap_12_a_transaction_notifies_once_however_much_it_enqueues(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a")
    sleeper = connect()
    sleeper.execute("listen pgfifo")
    sleeper.execute("select pgfifo.sleeping(array['a'])")
    with conn.transaction():
        for _ in range(100):
            enqueue(conn, "a", "g")
    assert [n.payload for n in sleeper.notifies(timeout=30, stop_after=1)] == ["a"]
    assert told(sleeper) == []


def test_trap_12_nobody_is_notified_while_nobody_sleeps(conn: Connection, connect: Connect) -> None:
    policy(conn, "a")
    listener = connect()
    listener.execute("listen pgfifo")
    enqueue(conn, "a", "g")
    listener.execute("select pgfifo.sleeping(array['a'])")
    listener.execute("select pgfifo.awake(array['a'])")
    enqueue(conn, "a", "g")
    assert SqlWorker(conn, "a").drain()
    conn.execute("notify pgfifo, 'end'")
    assert [n.payload for n in listener.notifies(timeout=30, stop_after=1)] == ["end"]


@pytest.mark.parametrize("limit", [0, 1])
def test_trap_12_a_completion_wakes_a_sleeper_for_what_its_worker_does_not_take(
    conn: Connection, connect: Connect, limit: int
) -> None:
    policy(conn, "a")
    enqueue_groups(conn, "a", ["g", "g", "h"])
    worker = SqlWorker(conn, "a")
    (first,) = worker.work(1)
    sleeper = connect()
    sleeper.execute("listen pgfifo")
    sleeper.execute("select pgfifo.sleeping(array['a'])")
    worker.work(limit, [first.ended()])
    woken = [n.payload for n in sleeper.notifies(timeout=30, stop_after=1)]
    assert woken == ["a"], "work waits until somebody happens to poll"


def test_trap_12_a_transaction_that_shall_be_prepared_can_do_without_notifying(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a")
    sleeper = connect()
    sleeper.execute("select pgfifo.sleeping(array['a'])")
    conn.execute("begin; set local pgfifo.notify = off")
    key = enqueue(conn, "a", "g")
    conn.execute("prepare transaction 'trap 12'")
    worker = SqlWorker(conn, "a")
    assert worker.work() == []
    conn.execute("commit prepared 'trap 12'")
    advance(conn, 2)
    assert [start.id for start in worker.drain()] == [key]


def test_trap_12_a_cancel_calls_each_worker_that_can_listen_once(conn: Connection, connect: Connect) -> None:
    policy(conn, "a", max_concurrent=10)
    ids = [enqueue(conn, "a", "g") for _ in range(12)]
    numbers = []
    for locked in (True, True, False):
        session = connect()
        start = "select pgfifo.worker_start('w', 'h', 1, array['a'], 10, '30 s', %s)"
        numbers.append(value(session, start, locked))
        session.execute("select count(*) from pgfifo.claim(%s, array['a'], 3)", [numbers[-1]])
    listener = connect()
    listener.execute("listen pgfifo")
    with conn.transaction():
        conn.execute("set local pgfifo.notify = off")
        conn.execute("select pgfifo.cancel(%s)", [ids[0]])
    with conn.transaction():
        conn.execute("select count(*) from pgfifo.cancel_many(%s)", [ids[:11]])
        conn.execute("select pgfifo.cancel(%s)", [ids[1]])
    conn.execute("select pgfifo.cancel(%s)", [ids[11]])
    conn.execute("notify pgfifo, 'end'")
    called = [n.payload for n in listener.notifies(timeout=30, stop_after=3)]
    assert sorted(called) == sorted([*(f"cancel {number}" for number in numbers[:2]), "end"])
    conn.execute("delete from pgfifo.cancellations")
    conn.execute("""select * from pgfifo.cancel_where('{"action": "a"}')""")
    called = [n.payload for n in listener.notifies(timeout=30, stop_after=2)]
    assert sorted(called) == sorted(f"cancel {number}" for number in numbers[:2])
    mine = value(conn, "select min(id) from pgfifo.runs where worker_id = %s", numbers[0])
    conn.execute("select pgfifo.finish_execution(%s, 'failed')", [mine])
    called = [n.payload for n in listener.notifies(timeout=30, stop_after=1)]
    assert called == [f"cancel {numbers[0]}"], "who lost it goes on until its next heartbeat"
    other = value(conn, "select min(id) from pgfifo.runs where worker_id = %s", numbers[1])
    conn.execute("select pgfifo.release(%s, 1)", [other])
    called = [n.payload for n in listener.notifies(timeout=30, stop_after=1)]
    assert called == [f"cancel {numbers[1]}"], "who lost it goes on until its next heartbeat"


@pytest.mark.parametrize(
    "call",
    [
        "select pgfifo.finish_execution(%s, 'failed')",
        "select pgfifo.release(%s, 1)",
        "select pgfifo.finish(%s, 1, 'succeeded')",
        "select pgfifo.finish(%s, 1, 'failed', p_error => 'boom', p_retry => false)",
    ],
)
def test_trap_12_whoever_sleeps_is_woken_for_a_slot_that_somebody_frees_by_hand(
    conn: Connection, connect: Connect, call: str
) -> None:
    """Not by the poll: what the one who calls leaves is for those who sleep."""
    ids = [enqueue(conn, "a", "g") for _ in range(2)]
    busy, sleeper = (SqlWorker(connect(), "a") for _ in range(2))
    assert [start.id for start in busy.work()] == ids[:1]
    assert sleeper.work() == []
    sleeper.conn.execute("listen pgfifo")
    sleeper.conn.execute("select pgfifo.sleeping('{a}')")
    conn.execute(call, [ids[0]])
    woken = [n.payload for n in sleeper.conn.notifies(timeout=30, stop_after=1)]
    assert woken == ["a"], "a free slot waits for a poll"
    # What was given back to its place comes first.
    assert ids[1] in [start.id for start in sleeper.drain()]


# 14. A slot held while waiting for something else


def test_trap_14_a_backoff_holds_its_own_slot_and_nothing_of_other_lanes(conn: Connection) -> None:
    policy(conn, "a", max_concurrent=1, backoff_initial=3600)
    enqueue_groups(conn, "a", ["bad", "bad", "good", "good"])
    worker = SqlWorker(conn, "a")
    ended = [start.ended("failed" if start.group == "bad" else "succeeded") for start in worker.work(2)]
    worker.work(0, ended)
    assert [start.group for start in worker.drain()] == ["good"]
    stats = "select active_count, held_count, queue_length from pgfifo.lane_stats where group_text = 'bad'"
    assert conn.execute(stats).fetchone() == (1, 1, 1)


# 15. Limits in each worker's settings


def test_trap_15_workers_with_other_settings_have_the_same_limit(conn: Connection) -> None:
    policy(conn, "a", max_concurrent=2)
    enqueue_groups(conn, "a", ["g"] * 10)
    greedy, modest = SqlWorker(conn, "a"), SqlWorker(conn, "a")
    conn.execute("select pgfifo.declare_action('a', '{\"max_concurrent\": 9}')")  # newer code of one of them
    assert len(greedy.work(10)) + len(modest.work(1)) == 2, "the operator's limit is one worker's opinion"


# 16. A delayed job that stalls its key


def test_trap_16_a_delayed_execution_stalls_nobody_and_is_seen_as_what_it_is(conn: Connection) -> None:
    delayed = value(conn, "select pgfifo.enqueue('a', p_delay => '1 hour')")
    keys = [enqueue(conn, "a", "") for _ in range(3)]
    worker = SqlWorker(conn, "a")
    assert [start.id for start in worker.drain()] == keys, "a delayed one stalled its lane"
    assert value(conn, "select state from pgfifo.executions where id = %s", delayed) == "delayed"
    assert value(conn, "select delayed_count from pgfifo.queue_stats") == 1


# 17. Documents that promise more than the code does


def test_trap_17_every_test_that_a_document_names_exists() -> None:
    missing = []
    for page in sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")]):
        text = page.read_text()
        for path, name in re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", text):
            source = ROOT / path
            if not source.exists() or f"def {name}(" not in source.read_text():
                missing.append(f"{page.name}: {path}::{name}")
        missing += [
            f"{page.name}: {path}"
            for path in re.findall(r"tests/[\w/]+\.py", text)
            if not (ROOT / path).exists()
        ]
    assert missing == [], "a document leans on a test that is not there"


# What comes of it all at once


def test_traps_together_leave_nothing_behind(conn: Connection, connect: Connect) -> None:
    """Failures, releases, cancels, limit changes and stopped workers in random order: exact in the end."""
    chance = random.Random(4242)
    policy(conn, "a", max_concurrent=2, backoff="constant", backoff_initial=1, max_attempts=3)
    policy(conn, "r", ordering="relaxed", max_concurrent=3, backoff="constant", backoff_initial=1)
    workers = [SqlWorker(conn, "a", "r") for _ in range(3)]
    total = 0
    for _ in range(150):
        step = chance.random()
        if step < 0.4:
            count = chance.randint(1, 8)
            enqueue_groups(conn, chance.choice("ar"), [chance.choice("xyz") for _ in range(count)])
            total += count
        elif step < 0.5:
            waiting = "select id from pgfifo.executions where state in ('waiting', 'held') order by id"
            keys = [key for (key,) in conn.execute(waiting)]
            if keys:
                conn.execute("select pgfifo.cancel(%s)", [chance.choice(keys)])
        elif step < 0.6:
            policy(conn, chance.choice("ar"), max_concurrent=chance.randint(1, 4))
        elif step < 0.65:
            gone = workers.pop(0)
            conn.execute("select pgfifo.worker_stop(%s)", [gone.id])
            workers.append(SqlWorker(conn, "a", "r"))
        else:
            worker = chance.choice(workers)
            mine = "select id, attempt from pgfifo.runs where worker_id = %s order by id"
            items = [
                {"id": key, "attempt": attempt, "outcome": chance.choice(["succeeded", "failed", "released"])}
                for key, attempt in conn.execute(mine, [worker.id])
            ]
            conn.execute(
                "select from pgfifo.work(%s, array['a', 'r'], 4, null, %s::jsonb)",
                [worker.id, json.dumps(items)],
            )
        advance(conn, chance.choice([0, 0.2, 1.5]))
        if chance.random() < 0.1:
            conn.execute("select pgfifo.maintain()")
    for worker in workers:
        conn.execute("select pgfifo.worker_stop(%s)", [worker.id])
    last = SqlWorker(conn, "a", "r")
    for _ in range(10):
        advance(conn, 2)
        last.drain()
    left = "sum(queue_length + active_count)"
    stats = f"select sum(total_enqueued), sum(total_completed), {left} from pgfifo.queue_stats"
    assert conn.execute(stats).fetchone() == (total, total, 0)
    assert value(conn, "select coalesce(sum(sweep_found), 0) from pgfifo.ticks") == 0
    assert violations(conn) == []
