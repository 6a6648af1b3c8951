"""Moments that no other test forces, one for each safeguard that is needed then and only then.

What they are is in tests/safeguards.py: without its safeguard each of these turns red.
"""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgfifo import errors
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine, Start, item
from tests.support.sqlworker import hold_lanes

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

KEY = "select pg_advisory_xact_lock('pgfifo.lanes'::regclass::oid::integer, pgfifo._key(lane_id))"
AT_ONCE = {"options": "-c lock_timeout=2s"}
"""For a session that must not have to wait."""


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


def hold_lane(engine: Engine, execution: int) -> None:
    """Take the slot lock of an execution's lane, in this session's transaction."""
    engine.one(f"{KEY} from pgfifo._executions where id = %s", execution)


def full(engine: Engine) -> tuple[int, int, Start, int]:
    """Make a lane with one that runs and one that waits, whose mark a claim has taken.

    Returns:
        Two workers, what the first one runs, and the one that waits.
    """
    engine.enqueue()
    worker, other = engine.worker(), engine.worker()
    (start,) = engine.claim(worker)
    new = engine.enqueue()
    assert engine.claim(other) == [], "the lane is full; this takes the mark of the enqueue"
    return worker, other, start, new


# -- the line ------------------------------------------------------------------------------------------------


def test_order_what_comes_back_in_the_other_order_starts_in_that_of_the_line(engine: Engine) -> None:
    engine.policy(max_concurrent=3)
    ids = engine.fill(5)
    worker = engine.worker()
    first, second, third = engine.claim(worker, 3)
    for start in third, second, first:
        engine.release(start)
    assert engine.drain(worker) == ids
    engine.assert_promises()


def test_order_a_batch_of_a_relaxed_lane_that_commits_late_is_not_lost(
    engine: Engine, connect: Connect
) -> None:
    engine.policy(ordering="relaxed", max_concurrent=10)
    engine.fill(1)
    late = Engine(connect(autocommit=False))
    older = late.fill(2)
    engine.fill(2)
    worker = engine.worker()
    assert len(engine.claim(worker, 10)) == 3
    late.conn.commit()
    assert [start.id for start in engine.claim(worker, 10)] == older, "what committed late is not looked for"
    engine.assert_promises(strict=False)


def test_order_maintenance_lets_nobody_join_beside_an_enqueue(engine: Engine, connect: Connect) -> None:
    engine.enqueue()
    due = engine.enqueue_later("1 h")
    producer = Engine(connect(autocommit=False))
    producer.enqueue()
    engine.advance("2 h")
    engine.tick(3)
    assert engine.show(due)["ticket"] is None, "a place in the line was given out beside an enqueue"
    producer.conn.rollback()


def test_order_a_batch_ends_before_what_has_expired_behind_one_that_was_put_back(engine: Engine) -> None:
    engine.policy(max_wait=60)
    first, second = engine.fill(2)
    engine.cancel(first)
    engine.advance("50 s")
    back = engine.retry(first, head=True)
    engine.advance("20 s")
    worker = engine.worker(lease="1 day")
    assert engine.work(worker, 1, batches=[5]).ids == [back], "what has expired was started"
    assert engine.state(second) == "expired"


def test_slots_what_was_given_back_waits_for_a_slot_of_a_lowered_limit(engine: Engine) -> None:
    engine.policy(max_concurrent=2)
    engine.fill(2)
    worker = engine.worker()
    one, _ = engine.claim(worker, 2)
    engine.policy(max_concurrent=1)
    engine.release(one)
    assert engine.claim(worker, 2) == [], "what came back was started above the limit"
    engine.assert_promises()


def test_slots_two_who_saw_the_same_version_of_a_lane_cannot_both_decide(
    engine: Engine, connect: Connect
) -> None:
    """Whatever else goes wrong: of two who append to a lane's ledger without its lock, one fails."""
    engine.enqueue()
    one, two = Engine(connect(autocommit=False)), Engine(connect())
    append = "select pgfifo._append(id, p_running => 1) from pgfifo.lanes"
    one.one(append)
    other = in_background(lambda: two.one(append))
    wait_until_blocked(engine.conn, two.pid)
    one.conn.commit()
    with pytest.raises(psycopg.errors.UniqueViolation):
        other.result()


def test_independence_lanes_of_several_actions_are_served_by_the_age_of_their_marks(engine: Engine) -> None:
    for action in "first", "second":
        engine.policy(action)
    older = engine.enqueue("second")
    younger = [engine.enqueue("first", group=str(n)) for n in range(30)]
    worker = engine.worker("first", "second")
    for expected in older, younger[0]:
        (start,) = engine.claim(worker, 1, ["first", "second"])
        assert start.id == expected


def test_independence_a_claim_starts_no_more_than_it_asks_for_in_lanes_with_many_slots(
    engine: Engine,
) -> None:
    engine.policy(max_concurrent=10)
    for group in "a", "b":
        engine.fill(10, group=group)
    starts = engine.claim(engine.worker(), 4)
    assert sorted(start.group for start in starts) == ["a", "a", "b", "b"]


# -- marks ---------------------------------------------------------------------------------------------------


def test_progress_a_claim_that_could_not_take_all_leaves_a_mark(engine: Engine) -> None:
    engine.policy(max_concurrent=5)
    ids = engine.fill(5)
    worker = engine.worker()
    assert [start.id for start in engine.claim(worker, 2)] == ids[:2]
    assert [start.id for start in engine.claim(worker, 5)] == ids[2:]


def test_progress_a_claim_takes_no_mark_of_a_lane_that_somebody_has(engine: Engine, connect: Connect) -> None:
    locked = engine.enqueue(group="a")
    free = engine.enqueue(group="b")
    worker = engine.worker()
    holder = Engine(connect(autocommit=False))
    hold_lane(holder, locked)
    assert [start.id for start in engine.claim(worker, 5)] == [free]
    holder.conn.rollback()
    assert [start.id for start in engine.claim(worker, 5)] == [locked]


def test_progress_a_retry_leaves_a_mark(engine: Engine) -> None:
    old = engine.enqueue()
    worker = engine.worker()
    engine.finish(engine.claim(worker)[0], "failed", retry=False)
    assert engine.drain(worker) == []
    new = engine.retry(old)
    assert engine.drain(worker) == [new]


def test_progress_a_release_leaves_a_mark(engine: Engine) -> None:
    _, other, start, new = full(engine)
    assert engine.release(start) == "returned"
    assert engine.drain(other) == [start.id, new]


def test_progress_a_finish_by_hand_leaves_a_mark(engine: Engine) -> None:
    _, other, start, new = full(engine)
    assert engine.one("select pgfifo.finish_execution(%s, 'failed')", start.id)
    assert engine.drain(other) == [new]


def test_progress_a_worker_that_signs_off_leaves_a_mark(engine: Engine) -> None:
    worker, other, start, new = full(engine)
    assert engine.one("select pgfifo.worker_stop(%s)", worker) == 1
    assert engine.drain(other) == [start.id, new]


def test_progress_a_failure_that_is_handed_in_leaves_a_mark(engine: Engine) -> None:
    worker, other, start, new = full(engine)
    engine.hand_in(worker, start, outcome="failed", retry=False)
    assert engine.drain(other) == [new]


def test_progress_a_limit_that_is_raised_for_one_lane_leaves_a_mark(engine: Engine) -> None:
    _, other, _, new = full(engine)
    engine.policy(group="", max_concurrent=2)
    assert [start.id for start in engine.claim(other)] == [new]


def test_progress_the_resume_of_a_lane_leaves_a_mark(engine: Engine) -> None:
    new = engine.enqueue()
    worker = engine.worker()
    engine.pause(group="")
    assert engine.claim(worker) == [], "the lane is paused; this takes the mark of the enqueue"
    engine.resume(group="")
    assert [start.id for start in engine.claim(worker)] == [new]


def test_progress_a_backoff_ends_in_time_though_the_clock_has_been_set_back(engine: Engine) -> None:
    engine.policy(backoff="constant", backoff_initial=1, backoff_jitter=0)
    engine.enqueue()
    worker = engine.worker(lease="1 day")
    (start,) = engine.claim(worker)
    for by in "1 h", "1 s", "-1 h":  # timers are looked for from an hour ahead on, and then no more
        engine.advance(by)
        engine.claim(worker)
    engine.hand_in(worker, start, outcome="failed")
    engine.advance("2 s")
    assert [again.id for again in engine.claim(worker)] == [start.id]


# -- nobody waits for a claim in flight ----------------------------------------------------------------------


def test_independence_a_claim_waits_for_no_timers_of_another_one(engine: Engine, connect: Connect) -> None:
    engine.policy(backoff="constant", backoff_initial=60, backoff_jitter=0)
    engine.enqueue(group="a")
    worker, other = engine.worker(), engine.worker()
    engine.hand_in(worker, *engine.claim(worker), outcome="failed")
    engine.advance("2 min")
    claiming, beside = Engine(connect(autocommit=False)), Engine(connect(**AT_ONCE))
    assert len(claiming.claim(worker)) == 1, "this has fired the timer"
    assert beside.claim(other) == []
    claiming.conn.commit()


def test_independence_a_claim_waits_for_nobody_who_marks_lanes(engine: Engine, connect: Connect) -> None:
    engine.enqueue(group="a")
    worker, other = engine.worker(), engine.worker()
    engine.claim(worker)
    engine.policy(max_concurrent=2)
    claiming, beside = Engine(connect(autocommit=False)), Engine(connect(**AT_ONCE))
    claiming.claim(worker)
    assert beside.claim(other) == []
    claiming.conn.commit()


def test_independence_a_claim_waits_for_nobody_who_moves_the_points(engine: Engine, connect: Connect) -> None:
    engine.policy()
    worker, other = engine.worker(), engine.worker()
    engine.claim(worker)
    engine.advance("1 min")
    claiming, beside = Engine(connect(autocommit=False)), Engine(connect(**AT_ONCE))
    claiming.claim(worker)
    assert engine.one("select count(*) from pgfifo.scans") == 1, "it has moved the points, and not committed"
    assert beside.claim(other) == []
    claiming.conn.commit()


def test_independence_maintenance_is_done_by_one_at_a_time(engine: Engine, connect: Connect) -> None:
    elected, beside = Engine(connect(autocommit=False)), Engine(connect(**AT_ONCE))
    engine.maintain()  # the first one notices where it is
    engine.advance("2 s")
    assert elected.maintain()["elected"]
    assert beside.maintain() == {"elected": False, "more": False}
    elected.conn.commit()


# -- locks that others hold ----------------------------------------------------------------------------------


def test_slots_a_finish_is_put_off_while_somebody_has_the_lane(engine: Engine, connect: Connect) -> None:
    engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    holder = Engine(connect(autocommit=False))
    hold_lane(holder, start.id)
    assert engine.hand_in(worker, start) == {start.id: "retry"}
    assert engine.hand_in(worker, start, outcome="failed") == {start.id: "retry"}
    assert engine.state(start.id) == "running"
    holder.conn.rollback()
    assert engine.hand_in(worker, start) == {}


def test_fencing_who_signs_off_waits_for_a_claim_of_its_own_in_flight(
    engine: Engine, connect: Connect
) -> None:
    engine.enqueue()
    worker = engine.worker()
    claiming, leaving = Engine(connect(autocommit=False)), Engine(connect())
    (start,) = claiming.claim(worker)
    stop = in_background(lambda: leaving.one("select pgfifo.worker_stop(%s)", worker))
    wait_until_blocked(engine.conn, leaving.pid)
    claiming.conn.commit()
    # A commit lets go of its locks one by one. If the lane's is still there, maintenance takes it back.
    if stop.result() == 0:
        engine.tick(2)
    assert engine.state(start.id) == "waiting", "something was started for who had signed off"
    assert engine.drain(engine.worker()) == [start.id]


def test_fencing_what_who_signs_off_cannot_give_back_is_taken_back(engine: Engine, connect: Connect) -> None:
    engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    holder = Engine(connect(autocommit=False))
    hold_lanes(holder.conn, "deploy")
    assert engine.one("select pgfifo.worker_stop(%s)", worker) == 0
    holder.conn.rollback()
    engine.tick(2)
    assert engine.state(start.id) == "waiting"


def test_order_a_reschedule_beside_a_claim_in_flight_finds_it_running(
    engine: Engine, connect: Connect
) -> None:
    engine.policy(backoff="constant", backoff_initial=60, backoff_jitter=0)
    held = engine.enqueue()
    worker = engine.worker()
    engine.hand_in(worker, *engine.claim(worker), outcome="failed")
    engine.advance("2 min")
    claiming, operator = Engine(connect(autocommit=False)), Engine(connect())
    assert len(claiming.claim(worker)) == 1
    asked = in_background(lambda: operator.reschedule(held, "1 h"))
    wait_until_blocked(engine.conn, operator.pid)
    claiming.conn.commit()
    with pytest.raises(errors.InvalidValue, match="running"):
        asked.result()
    engine.assert_promises()


def test_slots_the_pause_of_a_lane_waits_for_a_claim_in_flight(engine: Engine, connect: Connect) -> None:
    engine.policy(max_concurrent=2)
    engine.fill(2)
    worker = engine.worker()
    claiming, operator = Engine(connect(autocommit=False)), Engine(connect())
    assert len(claiming.claim(worker, 2)) == 2
    change = in_background(lambda: operator.pause(group=""))
    wait_until_blocked(engine.conn, operator.pid)
    claiming.conn.commit()
    change.result()
    engine.assert_promises()


def test_slots_a_shared_limit_waits_for_a_claim_in_flight(engine: Engine, connect: Connect) -> None:
    """Who draws from it is read by claims that do not draw yet: they have no lock of the limit."""
    engine.policy(max_concurrent=2)
    engine.fill(2)
    worker = engine.worker()
    claiming, operator = Engine(connect(autocommit=False)), Engine(connect())
    assert len(claiming.claim(worker, 1)) == 1
    query = "select * from pgfifo.set_shared_limit('api', %s)"
    limit = Jsonb({"max_concurrent": 1, "actions": ["deploy"]})
    change = in_background(lambda: operator.rows(query, limit))
    wait_until_blocked(engine.conn, operator.pid)
    claiming.conn.commit()
    change.result()


def test_slots_an_expired_key_is_given_up_under_the_lock_of_its_lane(
    engine: Engine, connect: Connect
) -> None:
    engine.policy(max_wait=60)
    enqueue = "select pgfifo.enqueue('deploy', p_dedup_key => 'k')"
    expired = engine.one(enqueue)
    engine.advance("2 min")
    holder, producer = Engine(connect(autocommit=False)), Engine(connect())
    hold_lane(holder, expired)
    asked = in_background(lambda: producer.one(enqueue))
    wait_until_blocked(engine.conn, producer.pid)
    holder.conn.rollback()
    assert asked.result() != expired
    assert engine.state(expired) == "expired"


def test_progress_an_item_and_a_cancel_of_it_do_not_wait_in_a_circle(
    engine: Engine, connect: Connect
) -> None:
    """Both wait for the lane, the item's enqueue first; the cancel has locked the row that both are about."""
    enqueue = (
        "select pgfifo.enqueue('deploy', %s, p_item_key => 'k', p_delay => '1 h', p_on_item => 'replace')"
    )
    first = engine.one(enqueue, Jsonb({"n": 1}))
    holder, producer, canceller = Engine(connect(autocommit=False)), Engine(connect()), Engine(connect())
    hold_lane(holder, first)
    asked = in_background(lambda: producer.one(enqueue, Jsonb({"n": 2})))
    wait_until_blocked(engine.conn, producer.pid)
    cancel = in_background(lambda: canceller.cancel(first))
    wait_until_blocked(engine.conn, canceller.pid)
    holder.conn.rollback()
    assert asked.result() == first
    assert cancel.result() == "cancelled"
    assert engine.show(first)["payload"] == {"n": 2}


# -- what is looked at again ---------------------------------------------------------------------------------


def test_fencing_a_heartbeat_that_comes_while_others_are_looked_at_counts(
    engine: Engine, connect: Connect
) -> None:
    """Maintenance has read who was silent, and waits for a row of another worker."""
    engine.policy()
    session = connect()
    gone = Engine(session).worker(locked=True)
    silent = engine.worker(lease="3 s")
    session.close()
    engine.tick(1)
    engine.conn.execute("update pgfifo._workers set lock_missed_tick = null where id = %s", [gone])
    engine.advance("1 s")
    for _ in range(3):
        engine.conn.execute("update pgfifo.ticks set tick = tick + 1")
    beating, maintaining = Engine(connect(autocommit=False)), Engine(connect())
    beating.conn.execute("select from pgfifo._workers where id = %s for update", [gone])
    round_ = in_background(maintaining.maintain)
    wait_until_blocked(engine.conn, maintaining.pid)
    engine.heartbeat(silent)
    beating.conn.rollback()
    assert round_.result()["dead"] == 0, "a worker whose heartbeat had come was declared dead"


def test_fencing_a_session_that_does_maintenance_for_its_own_worker_lives(engine: Engine) -> None:
    engine.policy()
    worker = engine.worker(locked=True)
    engine.tick(4)
    assert engine.one("select state from pgfifo.workers where id = %s", worker) == "alive"


def test_fencing_a_lease_does_not_pass_faster_for_who_calls_maintenance_often(engine: Engine) -> None:
    engine.policy()
    worker = engine.worker(lease="3 s")
    engine.tick()
    for _ in range(5):
        engine.maintain()
    assert engine.one("select state from pgfifo.workers where id = %s", worker) == "alive"


def test_durability_an_enqueue_between_the_sweeps_look_and_its_removal_of_the_lane(
    engine: Engine, connect: Connect
) -> None:
    """The sweep has found two idle lanes, and waits for a row of the minutes while it removes the first."""
    engine.policy(lane_retention=60)
    worker = engine.worker(lease="1 day")
    for group in "a", "b":
        engine.enqueue(group=group)
    engine.drain(worker)
    engine.advance("1 h")
    blocking, sweeping = Engine(connect(autocommit=False)), Engine(connect())
    blocking.conn.execute(
        "insert into pgfifo._minutes (action_id, minute) select a.id, pgfifo._minute(pgfifo._now()) + d"
        " from pgfifo.actions a, unnest(array['0', '1 min']::interval[]) d"
    )
    sweep = in_background(sweeping.maintain)
    wait_until_blocked(engine.conn, sweeping.pid)
    (gone,) = engine.rows(
        "select l.group_text from pg_locks k join pgfifo.lanes l on k.objid = pgfifo._key(l.id)::oid"
        " where k.pid = %s and k.classid = 'pgfifo.lanes'::regclass and k.locktype = 'advisory'",
        sweeping.pid,
    )
    other = "a" if gone == ("b",) else "b"
    new = engine.enqueue(group=other)
    blocking.conn.rollback()
    assert sweep.result()["lanes_removed"] == 1
    assert engine.drain(worker) == [new], "an enqueue was swallowed together with an idle lane"


def test_slots_an_override_that_is_given_more_time_while_others_end(engine: Engine, connect: Connect) -> None:
    """Its end is due when all are read; it is renewed while the first of them waits for a row."""
    for action in "a", "b":
        engine.policy(action, max_concurrent=5)
    override = "select * from pgfifo.override_policy(%s, '{\"max_concurrent\": 1}', '1 h')"
    for action in "a", "b":
        engine.rows(override, action)
    worker = engine.worker("a", "b", lease="1 day")
    engine.claim(worker, 1, ["a"])
    assert engine.one("select count(*) from pgfifo._in_force") == 1, "what is in force for a is kept"
    engine.advance("2 h")
    blocking, ending = Engine(connect(autocommit=False)), Engine(connect())
    blocking.conn.execute("select from pgfifo._in_force for update")
    end = in_background(lambda: ending.one("select pgfifo._end_overrides(pgfifo._now())"))
    wait_until_blocked(engine.conn, ending.pid)
    engine.rows(override, "b")
    blocking.conn.rollback()
    assert end.result() == 1
    assert engine.effective("b")["max_concurrent"][0] == 1, "an override that was renewed has ended"


def test_progress_a_shared_slot_that_is_given_back_late_is_not_lost(engine: Engine, connect: Connect) -> None:
    engine.policy(max_concurrent=5)
    limit = Jsonb({"max_concurrent": 2, "actions": ["deploy"]})
    engine.rows("select * from pgfifo.set_shared_limit('api', %s)", limit)
    for group in "a", "b", "a", "b":
        engine.enqueue(group=group)
    worker = engine.worker()
    (first,), (second,) = engine.claim(worker), engine.claim(worker)
    assert first.group != second.group
    late = Engine(connect(autocommit=False))
    late.finish(first)
    engine.hand_in(worker, second)
    third = engine.claim(worker)  # this counts the slot of the second
    late.conn.commit()
    engine.hand_in(worker, *third)
    assert len(engine.drain(worker)) == 1
    assert engine.one("select active_count from pgfifo.shared_limits") == 0, "a shared slot was lost"
    engine.assert_promises()


def test_progress_a_shared_slot_that_is_given_back_is_used_by_an_action_that_others_serve(
    engine: Engine,
) -> None:
    for action in "a", "b":
        engine.policy(action)
    limit = Jsonb({"max_concurrent": 1, "actions": ["a", "b"]})
    engine.rows("select * from pgfifo.set_shared_limit('api', %s)", limit)
    engine.enqueue("a")
    waiting = engine.enqueue("b")
    busy, other = engine.worker("a"), engine.worker("b")
    (start,) = engine.claim(busy, 1, ["a"])
    assert engine.claim(other, 1, ["b"]) == []
    engine.hand_in(busy, start)
    assert [each.id for each in engine.claim(other, 1, ["b"])] == [waiting]


# -- programs' own slots -------------------------------------------------------------------------------------


def test_durability_a_slot_asked_for_twice_at_once_under_one_number_is_one(
    engine: Engine, connect: Connect
) -> None:
    engine.policy(max_concurrent=5)
    program = engine.one("select pgfifo.worker_start('', '', 1, '{}', 1, '1 h', false, 'slot')")
    enter = "select (pgfifo.slot_enter(%s, 1, 'deploy')).id"
    one, two = Engine(connect(autocommit=False)), Engine(connect())
    first = one.one(enter, program)
    asked = in_background(lambda: two.one(enter, program))
    wait_until_blocked(engine.conn, two.pid)
    one.conn.commit()
    assert asked.result() == first


def test_slots_a_place_that_is_left_beside_a_claim_in_flight_was_a_slot(
    engine: Engine, connect: Connect
) -> None:
    """The claim has started it in its owner's name when he gives up his place."""
    worker, _, start, _ = full(engine)
    program = engine.one("select pgfifo.worker_start('', '', 1, '{}', 1, '1 h', false, 'slot')")
    waiting, state = engine.rows("select id, state from pgfifo.slot_enter(%s, 1, 'deploy')", program)[0]
    assert state == "waiting"
    (second,) = engine.work(worker, 1, finished=[item(start)]).starts
    claiming, leaving = Engine(connect(autocommit=False)), Engine(connect())
    claiming.work(worker, 1, finished=[item(second)])
    left = in_background(
        lambda: leaving.one("select (pgfifo.slot_leave(%s, %s, 'cancelled')).state", program, waiting)
    )
    wait_until_blocked(engine.conn, leaving.pid)
    claiming.conn.commit()
    assert left.result() == "cancelled"
    assert engine.show(waiting)["attempt"] == 1
    engine.assert_promises()


# -- schedules -----------------------------------------------------------------------------------------------


def test_durability_a_tick_of_a_schedule_that_was_restored_is_enqueued_once(engine: Engine) -> None:
    engine.rows("select * from pgfifo.set_schedule('nightly', 'deploy', '0 3 * * *')")
    due = engine.one(
        "update pgfifo._schedules set next_at = pgfifo._now() - interval '10 s' returning next_at"
    )
    tick = (
        "select pgfifo.tick_schedule(id, version, next_at, array[next_at], pgfifo._now() + interval '1 day')"
        " from pgfifo._schedules"
    )
    first = engine.one(tick)
    engine.conn.execute("update pgfifo._schedules set next_at = %s", [due])
    assert engine.one(tick) == first
    assert engine.stats()["queue_length"] == 1
