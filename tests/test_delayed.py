"""Executions that join their line later: not in the line until they are due, then at its end."""

import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgfifo import errors
from tests.support.database import Background, in_background, wait_for, wait_until_blocked
from tests.support.engine import Engine, Hand, Start

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def identity(engine: Engine, action: str = "deploy") -> dict[str, Any]:
    """Return an action's statistics, after a look whether they add up."""
    stats = engine.stats(action)
    parts = ("total_completed", "queue_length", "active_count", "delayed_count")
    assert stats["total_enqueued"] == sum(stats[part] for part in parts)
    return stats


# The line


def test_delayed_is_not_in_the_line_until_it_is_due_and_then_joins_its_end(conn: Connection) -> None:
    engine = Engine(conn)
    late = engine.enqueue_later("10 min")
    first, second = engine.fill(2)
    assert engine.state(late) == "delayed"
    assert engine.position(late) is None
    show = engine.show(late)
    assert show["ticket"] is None
    assert (show["due_at"] - show["enqueued_at"]).total_seconds() == pytest.approx(600, abs=30)
    stats = identity(engine)
    assert (stats["delayed_count"], stats["queue_length"], stats["total_enqueued"]) == (1, 2, 3)
    worker = engine.worker()
    assert engine.drain(worker) == [first, second], "a delayed one stalled its lane, or ran too early"
    third = engine.enqueue()
    engine.advance("10 min")
    assert engine.drain(worker) == [third, late], "the delayed one did not join the end of the line"
    stats = identity(engine)
    assert (stats["delayed_count"], stats["queue_length"], stats["total_completed"]) == (0, 0, 4)
    engine.assert_promises()


def test_delayed_ones_join_in_the_order_of_their_times(conn: Connection) -> None:
    engine = Engine(conn)
    ids = {delay: engine.enqueue_later(f"{delay} min") for delay in (30, 10, 20, 15)}
    again = engine.enqueue_later("10 min")
    engine.advance("1 hour")
    assert engine.drain(engine.worker()) == [ids[10], again, ids[15], ids[20], ids[30]]
    engine.assert_promises()


def test_delayed_one_that_is_due_joins_before_a_younger_enqueue(conn: Connection) -> None:
    """Nobody claims meanwhile: the enqueue itself lets it join, in one transaction with its own."""
    engine = Engine(conn)
    first = engine.enqueue()
    late = engine.enqueue_later("10 min")
    engine.advance("11 min")
    assert engine.state(late) == "delayed"
    last = engine.enqueue()
    assert engine.state(late) == "waiting"
    assert [engine.position(each) for each in (first, late, last)] == [1, 2, 3]
    assert identity(engine)["queue_length"] == 3
    batch = engine.enqueue_later("10 min")
    engine.advance("11 min")
    after = engine.fill(2)
    assert engine.drain(engine.worker()) == [first, late, last, batch, *after]
    engine.assert_promises()


def test_delayed_one_gets_a_later_number_of_the_same_sequence_as_its_ticket(conn: Connection) -> None:
    engine = Engine(conn)
    late = engine.enqueue_later("1 min")
    between = engine.enqueue()
    engine.advance("2 min")
    after = engine.enqueue()
    ticket = engine.show(late)["ticket"]
    assert between < ticket < after
    engine.assert_promises()


def test_delayed_until_a_time_that_has_passed_is_enqueued_at_once(conn: Connection) -> None:
    engine = Engine(conn)
    past = engine.one("select pgfifo.enqueue('deploy', p_run_at => pgfifo._now() - interval '1 day')")
    none = engine.enqueue_later("0 s")
    assert engine.states([past, none]) == ["waiting", "waiting"]
    assert engine.drain(engine.worker()) == [past, none]
    engine.assert_promises()


def test_delayed_items_of_a_batch_each_have_a_time_of_their_own(conn: Connection) -> None:
    engine = Engine(conn)
    delays = [None, "20 min", "-1 s", "10 min", None, "10 min"]
    ids = engine.enqueue_many("deploy", [{}] * 6, ["a", "a", "a", "a", "b", "b"], delays)
    assert engine.states(ids) == ["waiting", "delayed", "waiting", "delayed", "waiting", "delayed"]
    stats = identity(engine)
    assert (stats["delayed_count"], stats["queue_length"]) == (3, 3)
    worker = engine.worker()
    assert sorted(engine.drain(worker)) == sorted([ids[0], ids[2], ids[4]])
    engine.advance("11 min")
    assert sorted(engine.drain(worker)) == sorted([ids[3], ids[5]])
    engine.advance("10 min")
    assert engine.drain(worker) == [ids[1]]
    engine.assert_promises()


def test_delayed_batch_waits_as_a_whole_and_keeps_its_order(conn: Connection) -> None:
    engine = Engine(conn)
    ids = [
        new
        for (new,) in engine.rows(
            "select id from pgfifo.enqueue_many("
            " 'deploy', array_fill('{}'::jsonb, array[500]), p_delay => '5 min') order by ordinal"
        )
    ]
    assert identity(engine)["delayed_count"] == 500
    worker = engine.worker()
    assert engine.drain(worker) == []
    engine.advance("5 min")
    assert engine.drain(worker) == ids, "more than one look is needed for so many, and nobody came again"
    engine.assert_promises()


def test_delayed_wait_is_counted_from_the_time_they_were_due(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue_later("1 hour")
    engine.advance("1 hour 10 min")
    worker = engine.worker()
    waited = engine.one(
        "select wait_seconds from pgfifo.work(%s, '{deploy}', 1) where kind = 'start'", worker
    )
    assert waited == pytest.approx(600, abs=60)


# Limits, pauses, relaxed lanes


def test_delayed_ones_do_not_count_against_the_length_and_join_all_the_same(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_queue_length=3)
    late = [engine.enqueue_later("10 min") for _ in range(3)]
    waiting = engine.fill(3)
    with pytest.raises(errors.QueueFull):
        engine.enqueue()
    later = engine.enqueue_later("20 min")
    engine.advance("11 min")
    with pytest.raises(errors.QueueFull) as raised:
        engine.enqueue()
    assert raised.value.current == 6, "those that are due are in the line before it is measured"
    assert engine.states(late) == ["delayed"] * 3, "a refused enqueue leaves nothing behind"
    worker = engine.worker()
    assert engine.drain(worker, limit=1) == [*waiting, *late]
    assert identity(engine)["delayed_count"] == 1
    ids = engine.fill(3)
    with pytest.raises(errors.QueueFull):
        engine.enqueue()
    engine.advance("10 min")
    assert engine.drain(worker) == [*ids, later]
    engine.assert_promises()


def test_delayed_ones_and_a_length_are_counted_in_thousands_of_mixed_steps(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_queue_length=10, max_concurrent=2)
    worker = engine.worker()
    chance = random.Random(7)
    running: list[Start] = []
    for _ in range(600):
        step = chance.random()
        if step < 0.3:
            engine.enqueue_later(f"{chance.randint(1, 20)} h")
        elif step < 0.6:
            due = engine.one(
                "select count(*) from pgfifo._executions where ticket is null and run_at <= pgfifo._now()"
            )
            length = engine.stats()["queue_length"] + min(due, 100)
            if length >= 10:
                with pytest.raises(errors.QueueFull):
                    engine.enqueue()
            else:
                engine.enqueue()
        elif step < 0.9:
            running = [*engine.claim(worker, 2), *running]
            engine.hand_in(worker, *running[1:])
            del running[1:]
        else:
            engine.advance("3 h")
        identity(engine)
    engine.hand_in(worker, *running)
    engine.advance("1 day")
    engine.drain(worker)
    engine.assert_promises()


@pytest.mark.parametrize("group", [None, ""])
def test_delayed_ones_join_a_paused_line_and_start_after_the_resume(
    conn: Connection, group: str | None
) -> None:
    engine = Engine(conn)
    late = engine.enqueue_later("3 min")
    worker = engine.worker()
    engine.pause(group=group)
    engine.advance("10 min")
    assert engine.claim(worker) == []
    engine.tick(2)
    assert engine.state(late) == "waiting"
    engine.resume(group=group)
    assert engine.drain(worker) == [late]
    engine.assert_promises()


def test_delayed_in_a_relaxed_lane_joins_by_an_enqueue_or_by_a_claim(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    engine.policy(ordering="relaxed")
    worker = engine.worker()
    first = engine.enqueue_later("1 min")
    engine.advance("2 min")
    assert engine.drain(worker) == [first]
    second, third = engine.enqueue_later("1 min"), engine.enqueue_later("1 min")
    engine.advance("2 min")
    one, other = Engine(connect(autocommit=False)), Engine(connect(autocommit=False))
    mine = one.enqueue()  # lets both join
    yours = other.enqueue()  # at the same time, and waits for nobody
    other.conn.commit()
    assert engine.drain(worker) == [yours]
    one.conn.commit()
    engine.advance("1.1 s")  # once a second claims look at what has committed late
    assert engine.drain(worker) == [second, third, mine]
    assert identity(engine)["delayed_count"] == 0
    engine.assert_promises(strict=False)


# Who lets them join


def test_delayed_one_wakes_a_worker_that_knows_when_it_is_due(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue_later("7 min")
    answer = engine.work(engine.worker(), 1)
    assert answer.more == "later"
    assert answer.seconds == pytest.approx(420, abs=60)


def test_delayed_enqueue_wakes_a_sleeper_so_that_it_learns_the_time(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    engine.enqueue_later("1 hour")
    sleeper = connect()
    sleeper.execute("listen pgfifo")
    sleeper.execute("select pgfifo.sleeping('{deploy}')")
    engine.enqueue_later("0.3 s")
    assert [notice.payload for notice in sleeper.notifies(timeout=30, stop_after=1)] == ["deploy"]


def test_delayed_one_joins_behind_an_enqueue_that_was_under_way_when_it_fell_due(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    late = engine.enqueue_later("1 h")
    producer = Engine(connect(autocommit=False))
    before = producer.enqueue()  # holds the lane's enqueue lock
    engine.advance("2 h")
    worker = engine.worker()
    answer = engine.work(worker, 5)
    assert answer.starts == []
    assert answer.more == "later", "nobody would come back, should the enqueue be rolled back"
    assert answer.seconds is not None
    assert answer.seconds < 60
    assert engine.state(late) == "delayed"
    producer.conn.commit()
    engine.advance("1.1 s")
    assert engine.drain(worker) == [before, late]
    engine.assert_promises()


def test_delayed_one_joins_also_when_the_enqueue_in_its_way_is_rolled_back(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    late = engine.enqueue_later("1 min")
    engine.advance("2 min")
    producer = Engine(connect(autocommit=False))
    producer.enqueue()  # lets it join, and never commits
    worker = engine.worker()
    assert engine.claim(worker) == []
    for _ in range(30):
        engine.work(worker, 5)
    timers = engine.one("select count(*) from pgfifo.timers")
    assert timers <= 3, "each look at the lane left a timer"
    producer.conn.rollback()
    engine.advance("2 min")  # it may have been due for long, by a clock that goes on meanwhile
    assert engine.drain(worker) == [late]
    engine.assert_promises()


def test_delayed_one_joins_while_producers_never_pause(conn: Connection, connect: Connect) -> None:
    """Each waits for the lane's enqueue lock before the last one lets go: a claim's try never gets it."""
    engine = Engine(conn)
    late = engine.enqueue_later("1 min")
    worker = engine.worker()
    now, then = Engine(connect(autocommit=False)), Engine(connect(autocommit=False))
    now.enqueue()
    engine.advance("2 min")
    for _ in range(3):
        waiting = in_background(then.enqueue)
        wait_until_blocked(conn, then.pid)
        assert late not in [start.id for start in engine.claim(worker, 5)]
        now.conn.commit()
        waiting.result()
        now, then = then, now
        if engine.state(late) == "waiting":
            break
    now.conn.commit()
    assert engine.show(late)["ticket"] is not None, "a delayed one starved behind the producers of its lane"


def test_delayed_one_joins_by_maintenance_where_no_enqueue_lets_it(
    conn: Connection, connect: Connect
) -> None:
    """Enqueues on old snapshots cannot let it join; nobody claims."""
    engine = Engine(conn)
    late = engine.enqueue_later("1 min")
    old = Engine(connect(autocommit=False))
    old.conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    engine.advance("4 min")
    held = old.enqueue()
    assert engine.maintain()["admitted"] == 0, "it cannot, now"
    old.conn.commit()
    assert engine.state(late) == "delayed"
    engine.tick(2)
    assert engine.state(late) == "waiting"
    assert engine.sweep_found() == 0
    assert engine.drain(engine.worker()) == [held, late]
    engine.assert_promises()


def test_delayed_enqueue_at_repeatable_read(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    old = Engine(connect(autocommit=False))
    old.conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    due = engine.enqueue_later("1 min")
    old.rows("select from pgfifo.executions")
    engine.advance("2 min")
    late = old.enqueue_later("10 min")
    now = old.enqueue()
    old.conn.commit()
    worker = engine.worker()
    assert engine.drain(worker) == [now, due]
    engine.advance("10 min")
    assert engine.drain(worker) == [late]
    engine.assert_promises()


def test_delayed_two_claims_of_the_same_instant_let_it_join_once(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=10)
    ids = [engine.enqueue_later("1 min") for _ in range(10)]
    engine.advance("2 min")
    worker, other = engine.worker(), Engine(connect(autocommit=False))
    open_claim = other.claim(other.worker(), 3)
    other.conn.rollback()
    assert [start.id for start in open_claim] == ids[:3]
    assert [start.id for start in engine.claim(worker, 10)] == ids, "a claim that was rolled back took them"
    assert identity(engine)["delayed_count"] == 0


def test_delayed_rolled_back_leaves_nothing(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    producer = Engine(connect(autocommit=False))
    producer.enqueue_later("1 min")
    producer.conn.rollback()
    engine.enqueue()
    engine.advance("5 min")
    assert len(engine.drain(engine.worker())) == 1
    assert engine.rows("select from pgfifo._executions") == []
    engine.assert_promises()


def test_delayed_clock_that_goes_back_loses_nobody(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue_later("10 min")
    worker = engine.worker()
    engine.advance("20 min")
    assert len(engine.drain(worker)) == 1
    engine.advance("-15 min")
    late = engine.enqueue_later("1 min")
    engine.advance("20 min")
    assert engine.drain(worker) == [late]
    engine.assert_promises()


# Cancelling and changing


def test_delayed_cancel(conn: Connection) -> None:
    engine = Engine(conn)
    late, other = engine.enqueue_later("10 min"), engine.enqueue_later("20 min")
    assert engine.cancel(late, "no need") == "cancelled"
    show = engine.show(late)
    assert (show["state"], show["reason"], show["attempt"]) == ("cancelled", "no need", 0)
    assert identity(engine)["delayed_count"] == 1
    engine.advance("1 hour")
    assert engine.drain(engine.worker()) == [other]
    assert identity(engine)["total_cancelled"] == 1
    engine.assert_promises()


def test_delayed_cancel_waits_for_the_enqueue_that_lets_it_join_with_no_lane_in_hand(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    ready = engine.enqueue()
    late = engine.enqueue_later("1 min")
    engine.advance("2 min")
    producer = Engine(connect(autocommit=False))
    mine = producer.enqueue()  # it joins here, and that is not committed
    canceller = Engine(connect())
    cancelled = in_background(lambda: canceller.cancel(late))
    wait_until_blocked(conn, canceller.pid)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    assert start.id == ready, "an application's open enqueue held up its lane"
    engine.hand_in(worker, start)
    producer.conn.commit()
    assert cancelled.result() == "cancelled"
    engine.advance("1.1 s")
    assert engine.drain(worker) == [mine]
    assert engine.state(late) == "cancelled"
    engine.assert_promises()


def test_delayed_cancel_in_an_open_transaction_is_passed_over_and_may_be_rolled_back(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    late = engine.enqueue_later("1 min")
    canceller = Engine(connect(autocommit=False))
    canceller.cancel(late)
    engine.advance("2 min")
    mine = engine.enqueue()  # waits for nobody
    assert engine.state(late) == "delayed"
    canceller.conn.rollback()
    worker = engine.worker()
    assert engine.drain(worker) == [mine, late]
    engine.assert_promises()


def test_delayed_cancel_that_is_rolled_back_after_a_claim_passed_it_over(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    late = engine.enqueue_later("1 min")
    engine.advance("2 min")
    lock = connect(autocommit=False)
    lock.execute("select from pgfifo._executions where id = %s for update", [late])
    worker = engine.worker()
    answer = engine.work(worker, 1)
    assert (answer.starts, answer.more) == ([], "later")
    lock.rollback()
    engine.advance("1 min")
    assert engine.drain(worker) == [late]
    engine.assert_promises()


def test_delayed_reschedule_to_earlier_to_later_and_to_now(conn: Connection) -> None:
    engine = Engine(conn)
    one, two, three = (engine.enqueue_later(delay) for delay in ("1 day", "10 min", "1 day"))
    worker = engine.worker()
    due = engine.show(one)["due_at"]
    assert engine.reschedule(one, "5 min") == due
    engine.reschedule(two, "30 min")
    assert engine.work(worker, 1).seconds == pytest.approx(300, abs=30)
    engine.advance("6 min")
    assert engine.drain(worker) == [one]
    engine.advance("10 min")
    assert engine.drain(worker) == [], "one that was put off joined at its old time"
    engine.reschedule(three)
    assert engine.drain(worker) == [three]
    engine.advance("15 min")
    assert engine.drain(worker) == [two]
    engine.assert_promises()


def test_delayed_reschedule_of_a_held_one_tries_it_again_at_once(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff_initial=3600, backoff_cap=3600)
    new = engine.enqueue()
    worker = engine.worker()
    engine.finish(engine.claim(worker)[0], "failed")
    engine.reschedule(new)
    assert engine.drain(worker) == [new]
    engine.assert_promises()


def test_delayed_reschedule_of_what_has_no_time_is_refused(conn: Connection) -> None:
    engine = Engine(conn)
    new = engine.enqueue()
    worker = engine.worker()
    for state in ("waiting", "running", "succeeded"):
        with pytest.raises(errors.InvalidValue, match=f"is {state}"):
            engine.reschedule(new, "1 s")
        if state == "waiting":
            (start,) = engine.claim(worker)
        elif state == "running":
            engine.hand_in(worker, start)
    with pytest.raises(errors.UnknownExecution):
        engine.reschedule(4711, "1 s")


def test_delayed_reschedule_waits_for_the_enqueue_that_lets_it_join(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    late = engine.enqueue_later("1 min")
    engine.advance("2 min")
    producer, other = Engine(connect(autocommit=False)), Engine(connect())
    producer.enqueue()
    refused = in_background(lambda: other.reschedule(late, "1 hour"))
    wait_until_blocked(conn, other.pid)
    producer.conn.commit()
    with pytest.raises(errors.InvalidValue, match="is waiting"):
        refused.result()
    engine.assert_promises()


def test_delayed_reschedule_beside_an_enqueue_that_moves_the_bound(
    conn: Connection, connect: Connect
) -> None:
    """An admission has proposed a bound and not seen a time that is being changed."""
    engine = Engine(conn)
    due = engine.enqueue_later("1 min")
    other = engine.enqueue_later("1 day")
    changer = Engine(connect(autocommit=False))
    engine.advance("2 min")
    changer.reschedule(other)  # now, and not committed
    engine.advance("2 min")
    mine = engine.enqueue()  # lets `due` join, and proposes its own now
    assert engine.state(due) == "waiting"
    producer = Engine(connect(autocommit=False))
    last = producer.enqueue_later("1 day")  # until it commits, `other` cannot join
    changer.conn.commit()
    worker = engine.worker()
    assert engine.drain(worker) == [due, mine]
    producer.conn.commit()
    engine.advance("2 min")
    assert engine.drain(worker) == [other], "a delayed one fell below the bound, and is never found"
    assert engine.state(last) == "delayed"
    engine.assert_promises()


@pytest.mark.parametrize("call", ["enqueue", "reschedule"])
@pytest.mark.parametrize(
    "arguments",
    [
        "p_delay => '-1 s'",
        "p_run_at => 'infinity'",
        "p_run_at => '-infinity'",
        "p_run_at => now(), p_delay => '1 s'",
        "p_delay => '1000000 years'",
    ],
)
def test_delayed_times_that_cannot_be_are_refused(conn: Connection, call: str, arguments: str) -> None:
    first = "'deploy'" if call == "enqueue" else str(Engine(conn).enqueue_later("1 min"))
    with pytest.raises(errors.InvalidValue):
        conn.execute(f"select pgfifo.{call}({first}, {arguments})")


def test_delayed_times_of_a_batch_are_refused_with_their_index(conn: Connection) -> None:
    with pytest.raises(errors.InvalidValue) as raised:
        conn.execute("select pgfifo.enqueue_many('deploy', '{1,2}', p_run_ats => '{2030-01-01, infinity}')")
    assert raised.value.index == 1
    with pytest.raises(errors.InvalidValue):
        conn.execute("select pgfifo.enqueue_many('deploy', '{1,2}', p_run_ats => '{2030-01-01}')")
    with pytest.raises(errors.InvalidValue):
        conn.execute(
            "select pgfifo.enqueue_many('deploy', '{1}', p_run_ats => '{2030-01-01}', p_delay => '1 s')"
        )


# Upkeep


def test_delayed_keeps_its_lane_from_being_removed(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(lane_retention=1)
    late = engine.enqueue_later("1 hour", group="g")
    engine.claim(engine.worker())
    engine.advance("10 min")
    engine.tick(3)
    assert len(engine.rows("select from pgfifo.lanes")) == 1
    engine.advance("1 hour")
    worker = engine.worker()
    assert engine.drain(worker) == [late]
    engine.advance("10 min")
    engine.tick(3)
    assert engine.rows("select from pgfifo.lanes") == []
    stats = identity(engine)
    assert (stats["total_enqueued"], stats["total_succeeded"]) == (1, 1)


def test_delayed_lost_timers_are_found_by_the_sweep_and_counted(conn: Connection) -> None:
    engine = Engine(conn)
    late = engine.enqueue_later("1 min")
    conn.execute("delete from pgfifo.timers")
    engine.advance("5 min")
    engine.tick()
    assert engine.sweep_found() == 1
    assert engine.drain(engine.worker()) == [late]


def test_delayed_check_sees_what_is_overdue_and_counters_that_lie(conn: Connection) -> None:
    engine = Engine(conn)
    late = engine.enqueue_later("1 min")
    assert engine.check() == []
    engine.advance("10 min")
    ((severity, kind, _, detail),) = engine.check()
    assert (severity, kind) == ("overdue", "delayed")
    assert str(late) in detail
    conn.execute("update pgfifo.ledger set delayed = 3, delayed_from = pgfifo._now()")
    assert {(row[0], row[1]) for row in engine.check()} >= {("violation", "ledger"), ("violation", "totals")}
    engine.rows("select from pgfifo.check(true)")
    assert [row for row in engine.check() if row[0] == "violation"] == []
    assert engine.drain(engine.worker()) == [late]
    engine.assert_promises()


def test_delayed_admin_finish(conn: Connection) -> None:
    engine = Engine(conn)
    late, other = engine.enqueue_later("1 min"), engine.enqueue_later("1 min")
    assert engine.one("select pgfifo.finish_execution(%s, 'succeeded', 'by hand')", late) is True
    assert engine.state(late) == "succeeded"
    assert identity(engine)["delayed_count"] == 1
    engine.advance("2 min")
    assert engine.drain(engine.worker()) == [other]
    engine.assert_promises()


# All at once


def test_delayed_among_many_clients_keep_every_promise(conn: Connection, connect: Connect) -> None:
    """Producers with and without delays, cancels, new times, rollbacks, three workers."""
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    lanes = ["a", "b", "c"]
    engine.enqueue_many("deploy", [{}] * 3, lanes)

    def produce(seed: int, own: Connection) -> tuple[int, int]:
        chance = random.Random(seed)
        producer = Engine(own)
        kept = lost = 0
        for _ in range(50):
            lane = chance.choice(lanes)
            mine = [
                producer.enqueue_later(f"{chance.choice([0.001, 0.01, 0.05, 0.2])} s", group=lane)
                if chance.random() < 0.6
                else producer.enqueue(group=lane)
                for _ in range(chance.randint(1, 3))
            ]
            if chance.random() < 0.2:
                own.rollback()
                lost += len(mine)
                continue
            own.commit()
            kept += len(mine)
            try:
                if chance.random() < 0.15:
                    producer.cancel(mine[-1])
                elif chance.random() < 0.15:
                    producer.reschedule(mine[-1], "0.02 s")
            except errors.InvalidValue:
                own.rollback()
            own.commit()
        return kept, lost

    def consume(hand: Hand) -> int:
        done = idle = 0
        ended: list[Start] = []
        while idle < 100:
            ended = hand.turn(3, ended).starts
            done += len(ended)
            idle = 0 if ended else idle + 1
        return done

    def produces(seed: int) -> Background[tuple[int, int]]:
        own = connect(autocommit=False)
        return in_background(lambda: produce(seed, own))

    def consumes() -> Background[int]:
        hand = Hand(connect())
        return in_background(lambda: consume(hand))

    producers, consumers = [produces(seed) for seed in range(4)], [consumes() for _ in range(3)]
    kept, lost = map(sum, zip(*(producer.result(120) for producer in producers), strict=True))
    assert (kept > 150, lost > 10) == (True, True)
    assert sum(consumer.result(120) for consumer in consumers) > 100
    engine.advance("1 min")
    engine.drain(engine.worker())
    stats = identity(engine)
    assert stats["total_completed"] == kept + 3, "not all that was enqueued has come to its end"
    engine.assert_promises()


def test_delayed_one_that_joins_while_a_cancel_waits_for_it_can_be_run_and_ended_meanwhile(
    conn: Connection, connect: Connect
) -> None:
    """The cancel gets the row when it is none that is to join any more, and then waits for the lane."""
    engine = Engine(conn)
    engine.policy(max_concurrent=5)
    engine.enqueue()
    late = engine.enqueue_later("10 min")
    engine.advance("11 min")
    worker = engine.worker()
    producer, claimer, operator = (
        Engine(connect(autocommit=False)),
        Engine(connect(autocommit=False)),
        Engine(connect()),
    )
    producer.enqueue()  # lets it join
    assert len(claimer.claim(worker)) == 1
    cancel = in_background(lambda: operator.cancel(late))
    wait_until_blocked(conn, operator.pid)
    producer.conn.commit()
    lane = "select exists (select from pg_locks where pid = %s and locktype = 'advisory' and not granted)"
    wait_for(lambda: conn.execute(lane, [operator.pid]).fetchone() == (True,), message="the lane's lock")
    start = next(start for start in claimer.claim(worker, 5) if start.id == late)
    assert claimer.hand_in(worker, start) == {}
    claimer.conn.commit()
    assert cancel.result() == "succeeded"
    assert engine.state(late) == "succeeded"
    engine.assert_promises()
