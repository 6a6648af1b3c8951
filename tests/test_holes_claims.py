"""The holes of the design around claiming, each forced open by two or three sessions.

A test's name begins with the hole's number in the design and says what a user would have lost.
"""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.database import in_background, wait_until_blocked
from tests.support.sqlworker import (
    SqlWorker,
    advance,
    enqueue,
    enqueue_groups,
    enqueue_one_by_one,
    hold_lanes,
    lane,
    maintain,
    policy,
    value,
    violations,
)

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def swept(conn: Connection) -> int:
    """Return how often the sweep had to mend something."""
    return int(value(conn, "select sweep_found from pgfifo.ticks order by tick desc limit 1"))


# E1: a mark that commits late


def test_e1_an_enqueue_that_commits_late_is_still_started(conn: Connection, connect: Connect) -> None:
    policy(conn, "a")
    worker = SqlWorker(conn, "a")
    slow = connect(autocommit=False)
    late = enqueue(slow, "a", "late")
    late_mark = value(slow, "select id from pgfifo.marks")
    for n in range(4):
        enqueue(conn, "a", f"quick-{n}")
        advance(conn, 0.15)
        assert len(worker.drain()) == 1
    hot, safe = conn.execute("select hot_mark, safe_mark from pgfifo.scans").fetchall()[0]
    assert safe < late_mark < hot, "the scan must have gone past the late mark for this to show anything"
    slow.commit()
    started: list[int] = []
    for _ in range(10):
        advance(conn, 0.15)
        started += [start.id for start in worker.drain()]
    assert started == [late], "an enqueue that committed late was never run"
    assert swept(conn) == 0, "the claims must find it by themselves"


def test_e1_a_backoff_that_ends_in_a_long_transaction_is_not_forgotten(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a", backoff="constant", backoff_initial=1, backoff_jitter=0)
    worker = SqlWorker(conn, "a")
    key = enqueue(conn, "a", "slow")
    assert [start.id for start in worker.work()] == [key]
    slow = connect(autocommit=False)
    assert value(slow, "select pgfifo.finish(%s, 1, 'failed')", key) == "held"
    due = value(slow, "select due_at from pgfifo.timers")
    for n in range(4):
        enqueue(conn, "a", f"quick-{n}")
        advance(conn, 5)
        assert len(worker.drain()) == 1
    passed = "select safe_timer <= %s and %s < hot_timer from pgfifo.scans"
    assert value(conn, passed, due, due), "the scan must have gone past the timer for this to show anything"
    slow.commit()
    again: list[int] = []
    for _ in range(10):
        advance(conn, 0.15)
        again += [start.id for start in worker.drain()]
    assert again == [key], "an execution stayed in its backoff for ever"
    assert swept(conn) == 0


# E3: locked lanes at the front


@pytest.mark.parametrize(
    ("locked", "limit", "calls"), [(10, 1, 1), (10, 10, 1), (2000, 1, 40), (2000, 10, 5)]
)
def test_e3_locked_lanes_at_the_front_do_not_starve_a_free_one(
    conn: Connection, connect: Connect, locked: int, limit: int, calls: int
) -> None:
    policy(conn, "a")
    enqueue_groups(conn, "a", (f"stuck-{n}" for n in range(locked)))
    free = enqueue(conn, "a", "free")
    holder = connect(autocommit=False)
    assert hold_lanes(holder, "a", "stuck-%") == locked
    worker = SqlWorker(conn, "a")
    got: list[int] = []
    for call in range(1, calls + 1):
        got = [start.id for start in worker.work(limit)]
        if got:
            break
        assert worker.more in ("now", "soon"), f"call {call}: told to sleep while a free lane waits"
    assert got == [free], f"a free lane behind {locked} locked ones was not served in {calls} calls"

    holder.rollback()
    ran = {free}
    for _ in range(100):
        ran.update(start.id for start in worker.drain(limit=100))
        if len(ran) == locked + 1:
            break
        advance(conn, 1.1)
    assert len(ran) == locked + 1, "lanes that were locked for a while were forgotten"
    assert violations(conn) == []


def test_e3_marks_of_a_locked_lane_do_not_starve_a_free_one(conn: Connection, connect: Connect) -> None:
    policy(conn, "a")
    stuck = enqueue(conn, "a", "stuck")
    # As if so many had been enqueued one by one.
    conn.execute(
        "insert into pgfifo.marks (action_id, id, lane_id)"
        " select l.action_id, nextval('pgfifo.mark_ids'), l.id from pgfifo.lanes l, generate_series(1, 30000)"
    )
    free = enqueue(conn, "a", "free")
    holder = connect(autocommit=False)
    assert hold_lanes(holder, "a", "stuck") == 1
    worker = SqlWorker(conn, "a")
    got: list[int] = []
    for _ in range(5):
        got = [start.id for start in worker.work()]
        if got:
            break
        assert worker.more in ("now", "soon"), "told to sleep while a free lane waits"
    assert got == [free], "a free lane behind the marks of a locked one was not served"
    assert value(conn, "select count(*) from pgfifo.marks") < 2000, "marks of a locked lane stay in front"

    holder.rollback()
    advance(conn, 1.1)
    assert [start.id for start in worker.drain()] == [stuck]
    assert violations(conn) == []


# E4: a full lane's marks


def test_e4_ten_thousand_marks_of_a_full_lane_do_not_mean_ten_thousand_claims(conn: Connection) -> None:
    policy(conn, "a")
    worker = SqlWorker(conn, "a")
    enqueue(conn, "a", "full")
    (running,) = worker.work()
    enqueue_one_by_one(conn, "a", "full", 10_000)
    other = enqueue(conn, "a", "other")
    got: list[int] = []
    for _ in range(6):
        got = [start.id for start in worker.work()]
        if got:
            break
        assert worker.more == "now", "told to sleep while a free lane waits"
    assert got == [other], "a free lane starved behind the marks of a full one"
    # One is left for each thousand arrivals that were still to be counted.
    assert value(conn, "select count(*) from pgfifo.marks") <= 10, "the full lane's marks stayed"
    for _ in range(3):
        assert worker.work() == []
    assert value(conn, "select count(*) from pgfifo.marks") == 0
    # Having lost its marks the full lane must get going with its next completion.
    assert len(worker.work(1, [running.ended()])) == 1, "the full lane lost its turn with its marks"


# E5: lanes take turns


def test_e5_a_lane_with_a_long_line_does_not_starve_another(conn: Connection) -> None:
    """Each execution a turn; how a turn of several ends, tests/test_turns.py shows."""
    conn.execute("set pgfifo.turn = 0")
    policy(conn, "a")
    enqueue_groups(conn, "a", ["long"] * 50)
    enqueue_groups(conn, "a", ["short"] * 50)
    worker = SqlWorker(conn, "a")
    order = []
    held = worker.work(1)
    for _ in range(60):
        order.append(held[0].group)
        held = worker.work(1, [held[0].ended()])
    assert abs(order[:20].count("long") - order[:20].count("short")) <= 2, f"lanes do not take turns: {order}"
    assert max(order.count("long"), order.count("short")) <= 32, f"one lane was served first: {order}"


def test_e5_what_has_just_finished_is_refilled_only_after_older_marks(conn: Connection) -> None:
    conn.execute("set pgfifo.turn = 0")
    policy(conn, "a", max_concurrent=2)
    enqueue(conn, "a", "mine")
    enqueue(conn, "a", "mine")
    enqueue(conn, "a", "mine")
    worker = SqlWorker(conn, "a")
    first, _ = worker.work(2)
    older = enqueue(conn, "a", "older")
    assert [start.id for start in worker.work(1, [first.ended()])] == [older]
    assert [start.group for start in worker.work(1)] == ["mine"], "the lane that stepped back lost its mark"


# E6, E6b, E7: isolation levels

DECIDING = {
    "work": "select from pgfifo.work({worker}, array['a'], 1)",
    "work with a finish": (
        "select from pgfifo.work({worker}, array['a'], 0, null, "
        """'[{{"id": {id}, "attempt": 1, "outcome": "succeeded"}}]')"""
    ),
    "claim": "select from pgfifo.claim({worker}, array['a'])",
    "finish": "select pgfifo.finish({id}, 1, 'succeeded')",
    "release": "select pgfifo.release({id}, 1)",
    "cancel": "select pgfifo.cancel({id})",
    "heartbeat": "select from pgfifo.heartbeat({worker}, 5, '{{}}')",
    "worker_stop": "select pgfifo.worker_stop({worker})",
    "worker_relock": "select pgfifo.worker_relock({worker})",
    "maintain": "select pgfifo.maintain()",
    "set_policy": """select from pgfifo.set_policy('a', '{{"max_concurrent": 5}}')""",
    "set_policy of a lane": """select from pgfifo.set_policy('a', '{{"max_concurrent": 5}}', 'g')""",
    "set_pack_policy": """select from pgfifo.set_pack_policy('p', '{{"max_concurrent": 5}}')""",
    "set_default_policy": """select from pgfifo.set_default_policy('{{"max_concurrent": 5}}')""",
    "override": """select from pgfifo.override_policy('a', '{{"max_attempts": 5}}', '1h')""",
    "override of a lane": """select from pgfifo.override_policy('a', '{{"max_attempts": 5}}', '1h', 'g')""",
    "override of a pack": """select from pgfifo.override_pack_policy('p', '{{"max_attempts": 5}}', '1h')""",
    "override of all": """select from pgfifo.override_default_policy('{{"max_attempts": 5}}', '1h')""",
    "apply_policies": """select from pgfifo.apply_policies('{{"everything": {{"max_attempts": 3}}}}')""",
    "declare_action": """select pgfifo.declare_action('a', '{{"max_concurrent": 5}}')""",
    "pause": "select pgfifo.pause('a')",
    "pause of a lane": "select pgfifo.pause('a', 'g')",
    "resume": "select pgfifo.resume('a')",
    "cancel_where": """select from pgfifo.cancel_where('{{"action": "a"}}')""",
    "finish_execution": "select pgfifo.finish_execution({id}, 'failed')",
    "close": "select pgfifo.close('a')",
    "open of a lane": "select pgfifo.open('a', 'g')",
    "check with repair": "select from pgfifo.check(true)",
}


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_e6_e6b_e7_a_decision_on_an_old_snapshot_is_refused(
    conn: Connection, connect: Connect, level: str
) -> None:
    policy(conn, "a")
    worker = SqlWorker(conn, "a")
    enqueue(conn, "a", "g")
    enqueue(conn, "a", "g")
    (running,) = worker.work()
    before = conn.execute("select * from pgfifo.ledger").fetchall()
    marks = conn.execute("select * from pgfifo.marks").fetchall()
    old = connect()
    for name, query in DECIDING.items():
        old.execute(f"begin isolation level {level}")
        with pytest.raises(psycopg.Error) as refused:
            old.execute(query.format(worker=worker.id, id=running.id))
        old.rollback()
        assert refused.value.sqlstate == "QF019", f"{name} decides on a snapshot that may be old"
        assert refused.value.diag.message_hint, name
    assert conn.execute("select * from pgfifo.ledger").fetchall() == before, "a slot leaked"
    assert conn.execute("select * from pgfifo.marks").fetchall() == marks, "a mark was eaten"
    # A role's default does the same as saying it.
    old.execute(f"set default_transaction_isolation = '{level}'")
    with pytest.raises(psycopg.Error) as refused:
        old.execute("select from pgfifo.work(%s, array['a'], 1)", [worker.id])
    assert refused.value.sqlstate == "QF019"


def test_e7_readers_and_producers_work_at_every_isolation_level(conn: Connection, connect: Connect) -> None:
    policy(conn, "a")
    for level in ("read committed", "repeatable read", "serializable"):
        other = connect()
        with other.transaction():
            other.execute(f"set transaction isolation level {level}")
            key = enqueue(other, "a", level)
            assert value(other, "select pos from pgfifo.position(%s)", key) == 1
            assert (
                value(other, "select total_enqueued from pgfifo.lane_stats where group_text = %s", level) == 1
            )
            assert other.execute("select * from pgfifo.check()").fetchall() == []
        assert value(conn, "select state from pgfifo.executions where id = %s", key) == "waiting"


# E15: the sweep


def test_e15_the_sweep_finds_what_lost_its_mark_in_slices_and_counts_it(conn: Connection) -> None:
    policy(conn, "a")
    enqueue_groups(conn, "a", map(str, range(2500)))
    worker = SqlWorker(conn, "a")
    conn.execute("delete from pgfifo.marks")  # as if all wake-ups had been lost
    assert worker.work(10) == []
    conn.execute("update pgfifo.ticks set swept_to = 0")
    found = []
    for _ in range(4):
        advance(conn, 5)
        found.append(value(conn, "select pgfifo.maintain()")["sweep_found"])
    assert found[:3] == [1000, 1000, 500], f"the sweep looks at a slice of 1,000 lanes a tick: {found}"
    assert found[3] == 0, "a second mark for a lane that has one"
    assert swept(conn) == 2500, "what the sweep mends must be counted"
    assert len({start.id for start in worker.drain()}) == 2500
    assert violations(conn) == []


def test_e15_the_sweep_finds_a_lane_whose_completion_left_no_mark(conn: Connection) -> None:
    policy(conn, "a")
    worker = SqlWorker(conn, "a")
    enqueue(conn, "a", "g")
    second = enqueue(conn, "a", "g")
    (first,) = worker.work()
    worker.work(0, [first.ended()])
    conn.execute("delete from pgfifo.marks")
    for _ in range(3):
        advance(conn, 5)
        conn.execute("select pgfifo.maintain()")
    assert [start.id for start in worker.work()] == [second], "a lane without a mark stood still for ever"


def test_e15_the_sweep_takes_nothing_for_lost_that_nobody_has_asked_for(conn: Connection) -> None:
    policy(conn, "a", backoff="constant", backoff_initial=1)
    worker = SqlWorker(conn, "a")
    enqueue(conn, "a", "held")
    enqueue(conn, "a", "waiting")
    worker.work(0, [start.ended("failed") for start in worker.work()])
    policy(conn, "a", max_concurrent=2)
    for _ in range(5):  # no worker calls for a while
        advance(conn, 10)
        assert maintain(conn)["sweep_found"] == 0, "an alarm without a cause"
    assert {start.group for start in worker.drain()} == {"held", "waiting"}


def test_e15_repair_marks_lanes_that_lost_their_marks(conn: Connection) -> None:
    policy(conn, "a")
    worker = SqlWorker(conn, "a")
    key = enqueue(conn, "a", "g")
    conn.execute("delete from pgfifo.marks")
    assert worker.work() == []
    conn.execute("select from pgfifo.check(true)")
    assert [start.id for start in worker.work()] == [key], "check(repair) left a lane without its mark"


# E17: limits are read, never copied


def test_e17_a_lane_created_beside_a_limit_change_has_the_new_limit(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a", max_concurrent=3)
    worker = SqlWorker(conn, "a")
    operator = connect(autocommit=False)
    policy(operator, "a", max_concurrent=1)
    for _ in range(3):
        enqueue(conn, "a", "new")  # the lane comes to be while the change is not yet visible
    assert worker.work(3) == [], "a claim decided while the limit was changing"
    assert worker.more == "soon"
    operator.commit()
    assert len(worker.work(3)) == 1, "the new lane has kept the old limit"
    assert value(conn, "select max_concurrent from pgfifo.lane_stats") == 1


def test_e17_a_limit_change_waits_for_starts_under_the_old_limit(conn: Connection, connect: Connect) -> None:
    policy(conn, "a", max_concurrent=2)
    enqueue(conn, "a", "g")
    enqueue(conn, "a", "g")
    claiming = connect(autocommit=False)
    worker = SqlWorker(conn, "a")
    worker.conn = claiming
    assert len(worker.work(2)) == 2
    operator = connect()
    change = in_background(lambda: policy(operator, "a", max_concurrent=1))
    wait_until_blocked(conn, operator.info.backend_pid)
    claiming.commit()
    change.result()
    assert violations(conn) == [], "a start above the limit in force"
    assert value(conn, "select max_concurrent from pgfifo.lane_stats") == 1
    assert value(conn, "select active_count from pgfifo.lane_stats") == 2


def test_e17_a_raised_limit_fills_every_lane_by_itself(conn: Connection) -> None:
    policy(conn, "a")
    worker = SqlWorker(conn, "a")
    for n in range(20):
        for _ in range(3):
            enqueue(conn, "a", str(n))
    assert len(worker.work(100)) == 20
    assert worker.work(100) == []
    policy(conn, "a", max_concurrent=3)
    assert len(worker.work(100)) == 40, "lanes stayed below their raised limit"


# E29: nobody's foreign keys


def test_e29_an_applications_role_cannot_put_foreign_keys_on_executions(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as owner:
        owner.execute("create role app_of_e29; grant usage on schema pgfifo to app_of_e29")
        try:
            owner.execute("grant execute on all functions in schema pgfifo to app_of_e29")
            owner.execute("create schema app authorization app_of_e29")
            owner.execute("set role app_of_e29")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                owner.execute("create table app.mine (execution bigint references pgfifo._executions (id))")
            owner.execute("reset role")
            foreign_keys = "select count(*) from pg_constraint where contype = 'f'"
            assert value(owner, foreign_keys) == 0, (
                "a finish would wait for row locks with the slot lock held"
            )
        finally:
            owner.execute("reset role; drop owned by app_of_e29 cascade; drop role app_of_e29")


# E30: lost replies


def test_e30_the_same_call_again_returns_the_rows_whose_answer_was_lost(conn: Connection) -> None:
    policy(conn, "a", max_concurrent=5)
    for _ in range(5):
        enqueue(conn, "a", "g")
    worker = SqlWorker(conn, "a")
    lost = worker.work(2, call=1)
    assert worker.work(2, call=1) == lost, "two executions that nobody knows of hold their slots"
    assert len(worker.work(5, call=2)) == 3
    assert value(conn, "select running from pgfifo.ledger") == 5


def test_e30_what_a_living_worker_does_not_list_goes_back_to_its_place(conn: Connection) -> None:
    policy(conn, "a", max_concurrent=2)
    ids = [enqueue(conn, "a", "g") for _ in range(3)]
    worker = SqlWorker(conn, "a")
    known, lost = worker.work(2, call=1)
    conn.execute("select from pgfifo.heartbeat(%s, 1, %s)", [worker.id, [known.id]])
    assert [start.id for start in worker.work(1, call=2)] == [lost.id], "a slot leaked with a lost answer"
    assert ids[2] not in [start.id for start in worker.work(5, call=3)]
    assert violations(conn) == []


def test_e30_a_locked_lane_does_not_make_a_heartbeat_forget_what_was_lost(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a")
    key = enqueue(conn, "a", "g")
    worker = SqlWorker(conn, "a")
    assert [start.id for start in worker.work(1, call=1)] == [key]
    holder = connect(autocommit=False)
    assert hold_lanes(holder, "a") == 1
    conn.execute("select from pgfifo.heartbeat(%s, 1, '{}')", [worker.id])  # its answer to call 1 was lost
    holder.rollback()
    conn.execute("select from pgfifo.heartbeat(%s, 1, '{}')", [worker.id])
    again = [start.id for start in worker.work(1, call=2)]
    assert again == [key], "an execution that nobody runs holds its slot as long as its worker lives"


def test_e30_a_locked_lane_does_not_make_worker_stop_leave_something_behind(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a")
    key = enqueue(conn, "a", "g")
    gone = SqlWorker(conn, "a")
    assert [start.id for start in gone.work(1)] == [key]
    holder = connect(autocommit=False)
    assert hold_lanes(holder, "a") == 1
    conn.execute("select pgfifo.worker_stop(%s)", [gone.id])
    holder.rollback()
    worker = SqlWorker(conn, "a")
    for _ in range(3):
        advance(conn, 1)
        conn.execute("select pgfifo.maintain()")
    assert [start.id for start in worker.work(1)] == [key], "the slot of a stopped worker is gone"
    assert value(conn, "select failures from pgfifo.executions where id = %s", key) == 0
    assert violations(conn) == []


# Relaxed lanes


def test_e1_thousands_of_arrivals_in_a_relaxed_lane_are_all_counted_and_run(conn: Connection) -> None:
    policy(conn, "a", ordering="relaxed")
    worker = SqlWorker(conn, "a")
    enqueue(conn, "a", "g")
    (running,) = worker.work()
    enqueue_one_by_one(conn, "a", "g", 3_500)
    for _ in range(6):
        worker.work()
    assert value(conn, "select queue_length from pgfifo.lane_stats") == 3_500
    left = value(conn, "select count(*) from pgfifo.arrivals a, pgfifo.ledger g where a.id <= g.mark_floor")
    assert left == 0, (
        f"{left} arrivals lie below the point from which they are counted, and are never counted"
    )
    worker.work(0, [running.ended()])
    policy(conn, "a", max_concurrent=100)
    assert len(worker.drain()) == 3_500, "executions were stranded in a relaxed lane"
    assert lane(conn, "a", "g")
    assert violations(conn) == []


def test_e1_an_older_ticket_that_commits_late_in_a_relaxed_lane_is_not_lost(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a", ordering="relaxed", max_concurrent=100)
    worker = SqlWorker(conn, "a")
    enqueue(conn, "a", "g")
    assert len(worker.drain()) == 1
    slow = connect(autocommit=False)
    late = enqueue(slow, "a", "g")
    for _ in range(5):
        enqueue(conn, "a", "g")
    assert len(worker.drain()) == 5
    assert value(conn, "select consumed from pgfifo.ledger") > late
    slow.commit()
    enqueue(conn, "a", "g")
    advance(conn, 2)
    assert worker.drain()[0].id == late, "an older ticket was lost behind the consumed mark"
    assert violations(conn) == []
