"""Cancelling: what waits ends at once, what runs is asked to stop, and the others move up."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgfifo import errors
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine, item
from tests.support.model import Line

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def test_cancel_of_positions_3_6_and_9_of_ten(conn: Connection) -> None:
    engine = Engine(conn)
    line = Line()
    running, *waiting = ids = engine.fill(11)
    line.enqueue(*ids)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    line.start(running)
    assert [engine.position(id_) for id_ in waiting] == list(range(1, 11))
    for gone in [waiting[2], waiting[5], waiting[8]]:
        assert engine.cancel(gone, "not needed") == "cancelled"
        line.cancel(gone)
    stats = engine.stats()
    assert stats["queue_length"] == 7
    assert {name: stats[name] for name in line.numbers()} == line.numbers()
    left = [id_ for n, id_ in enumerate(waiting) if n not in (2, 5, 8)]
    assert [engine.position(id_) for id_ in left] == list(range(1, 8))
    engine.hand_in(worker, start)
    assert engine.drain(worker) == left, "the others did not go on in their order"
    show = engine.show(waiting[5])
    assert (show["state"], show["reason"], show["attempt"]) == ("cancelled", "not needed", 0)
    assert show["finished_at"] is not None
    assert engine.position(waiting[5]) is None
    engine.assert_promises()


def test_cancel_of_a_running_one_is_a_request_that_its_worker_hears(conn: Connection) -> None:
    engine = Engine(conn)
    new, behind = engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    assert engine.heartbeat(worker, held=[new]) == {}
    assert engine.cancel(new, "changed my mind") == "requested"
    assert engine.cancel(new) == "requested"
    assert engine.heartbeat(worker, held=[new]) == {new: "cancel"}
    assert engine.show(new)["cancel_requested_at"] is not None
    assert engine.stats()["active_count"] == 1, "its slot was given on while it may still run"
    assert engine.hand_in(worker, start, outcome="cancelled") == {}
    assert engine.show(new)["state"] == "cancelled"
    assert engine.show(new)["reason"] == "changed my mind"
    assert engine.drain(worker) == [behind]
    engine.assert_promises()


def test_cancel_does_not_undo_a_success(conn: Connection) -> None:
    engine = Engine(conn)
    new = engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    engine.cancel(new)
    engine.hand_in(worker, start)
    show = engine.show(new)
    assert show["state"] == "succeeded"
    assert show["cancel_requested_at"] is not None
    assert engine.cancel(new) == "succeeded", "what is over keeps its outcome"
    engine.assert_promises()


@pytest.mark.parametrize("outcome", ["failed", "released"])
def test_cancel_of_a_running_one_prevents_another_attempt(conn: Connection, outcome: str) -> None:
    engine = Engine(conn)
    new = engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    engine.cancel(new)
    engine.hand_in(worker, start, outcome=outcome)
    assert engine.state(new) == "cancelled", "a cancelled execution was going to be tried again"
    assert engine.rows("select 1 from pgfifo.cancellations") == []
    engine.assert_promises()


@pytest.mark.parametrize("outcome", ["failed", "released"])
def test_cancel_that_commits_after_the_attempt_ended_prevents_another_one(
    conn: Connection, connect: Connect, outcome: str
) -> None:
    """Asked in an open transaction while it ran; the attempt ends without seeing it."""
    engine = Engine(conn)
    engine.policy(backoff_initial=0)
    new, behind = engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    canceller = Engine(connect(autocommit=False))
    assert canceller.cancel(new) == "requested"
    engine.hand_in(worker, start, outcome=outcome)
    canceller.conn.commit()
    assert engine.drain(worker) == [behind], "what was to be cancelled was started again"
    assert engine.state(new) == "cancelled"
    engine.assert_promises()


def test_cancel_in_an_open_transaction_blocks_no_finish_of_what_runs(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    new = engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    canceller = Engine(connect(autocommit=False))
    assert canceller.cancel(new) == "requested"
    assert engine.hand_in(worker, start) == {}, "somebody's open transaction held up a completion"
    canceller.conn.commit()
    assert engine.state(new) == "succeeded"
    engine.advance("2 min")
    engine.tick(11)
    assert engine.rows("select 1 from pgfifo.cancellations") == [], "a request for nobody stayed for ever"
    engine.assert_promises()


def test_cancel_of_a_held_one_gives_its_slot_on(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff_initial=3600)
    held, behind = engine.fill(2)
    worker = engine.worker()
    engine.finish(engine.claim(worker)[0], "failed", "boom")
    assert engine.claim(worker) == [], "the lane is full; this takes the marks that there were"
    assert engine.cancel(held) == "cancelled"
    show = engine.show(held)
    assert (show["state"], show["failures"], show["error"]) == ("cancelled", 1, "boom")
    assert engine.drain(worker) == [behind]
    engine.assert_promises()


def test_cancel_of_a_released_one_takes_it_out_of_its_place(conn: Connection) -> None:
    engine = Engine(conn)
    returned, behind = engine.fill(2)
    worker = engine.worker()
    engine.release(engine.claim(worker)[0])
    assert engine.cancel(returned) == "cancelled"
    stats = engine.stats()
    assert (stats["queue_length"], stats["active_count"], stats["total_cancelled"]) == (1, 0, 1)
    assert engine.drain(worker) == [behind]
    engine.assert_promises()


def test_cancel_beside_a_claim_in_flight_asks_the_worker(conn: Connection, connect: Connect) -> None:
    """The cancel waits for the claim's lock and then finds it running: no slot is leaked."""
    engine = Engine(conn)
    ids = engine.fill(2)
    worker = engine.worker()
    claiming, canceller = Engine(connect(autocommit=False)), Engine(connect())
    (start,) = claiming.claim(worker)
    cancel = in_background(lambda: canceller.cancel(ids[0]))
    wait_until_blocked(conn, canceller.pid)
    claiming.conn.commit()
    assert cancel.result() == "requested"
    assert engine.hand_in(worker, start, outcome="cancelled") == {}
    assert engine.drain(worker) == ids[1:]
    engine.assert_promises()


def test_cancel_beside_a_finish_in_flight_reports_the_outcome(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(backoff_initial=3600)
    new = engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    engine.finish(start, "failed")
    operator, canceller = Engine(connect(autocommit=False)), Engine(connect())
    assert operator.cancel(new) == "cancelled"
    cancel = in_background(lambda: canceller.cancel(new))
    wait_until_blocked(conn, canceller.pid)
    operator.conn.commit()
    assert cancel.result() == "cancelled"
    assert engine.stats()["total_cancelled"] == 1, "one cancel was counted twice"
    engine.assert_promises()


def test_cancel_gives_up_on_a_lane_that_somebody_keeps(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    first, second = engine.fill(2)
    holder = Engine(connect(autocommit=False))
    holder.cancel(first)
    with pytest.raises(errors.Busy) as caught:
        engine.cancel(second)
    assert str(holder.pid) in str(caught.value.detail)
    holder.conn.rollback()
    assert engine.drain(engine.worker()) == [first, second]
    engine.assert_promises()


def test_cancel_of_what_never_was_is_an_error(conn: Connection) -> None:
    engine = Engine(conn)
    with pytest.raises(errors.UnknownExecution):
        engine.cancel(4711)
    with pytest.raises(errors.UnknownExecution):
        engine.position(4711)


def test_cancel_is_audited(conn: Connection) -> None:
    engine = Engine(conn)
    new = engine.enqueue(group="prod")
    conn.execute("select set_config('pgfifo.actor', 'ada', false)")
    engine.cancel(new, "not needed")
    row = engine.rows(
        "select what, action, group_text, actor, detail from pgfifo.audit order by id desc limit 1"
    )
    assert row == [
        ("cancel", "deploy", "prod", "ada", {"id": new, "reason": "not needed", "answer": "cancelled"})
    ]


def test_cancel_of_everything_leaves_an_empty_line(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3)
    ids = engine.fill(30)
    worker = engine.worker()
    starts = engine.claim(worker, 3)
    assert [engine.cancel(id_) for id_ in ids] == ["requested"] * 3 + ["cancelled"] * 27
    assert engine.work(worker, 9, finished=[item(start, "cancelled") for start in starts]).starts == []
    assert engine.states(ids) == ["cancelled"] * 30
    assert engine.stats()["queue_length"] == engine.stats()["active_count"] == 0
    engine.assert_promises()


# Many at once


def keep_lane(conn: Connection, execution: int) -> None:
    """Hold the slot lock of an execution's lane, to the end of the transaction."""
    conn.execute(
        "select pg_advisory_xact_lock('pgfifo.lanes'::regclass::oid::integer, lane_id::integer)"
        " from pgfifo.executions where id = %s",
        [execution],
    )


def test_cancel_many_answers_for_each_as_cancel_does(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=4, backoff_initial=3600)
    succeeded, gone, running, held, returned, waiting, behind = engine.fill(7)
    worker = engine.worker()
    starts = {start.id: start for start in engine.claim(worker, 2)}
    engine.finish(starts[succeeded])
    engine.finish(starts[gone])
    assert engine.cancel(behind) == "cancelled"
    starts |= {start.id: start for start in engine.claim(worker, 3)}
    engine.finish(starts[held], "failed", "boom")
    engine.release(starts[returned])
    asked = [waiting, 10**15, running, succeeded, returned, behind, held, waiting]
    answers = ["cancelled", "unknown", "requested", "succeeded", "cancelled", "cancelled", "cancelled"]
    assert engine.cancel_many(asked, "not needed") == [*answers, "cancelled"], "the order of the answers"
    assert engine.heartbeat(worker, held=[running]) == {running: "cancel"}
    assert [engine.show(id_)["reason"] for id_ in (waiting, returned, held)] == ["not needed"] * 3
    assert engine.show(held)["error"] == "boom"
    stats = engine.stats()
    numbers = [stats[name] for name in ("queue_length", "active_count", "total_cancelled", "total_succeeded")]
    assert numbers == [0, 1, 4, 2]
    audited = engine.rows(
        "select detail ->> 'answer', (detail ->> 'id')::bigint from pgfifo.audit"
        " where detail ->> 'reason' = 'not needed' and action = 'deploy' order by id"
    )
    assert sorted(audited) == sorted(
        [("requested", running), *(("cancelled", id_) for id_ in (held, returned, waiting))]
    )
    engine.hand_in(worker, starts[running], outcome="cancelled")
    engine.assert_promises()


def test_cancel_many_over_many_lanes_leaves_each_ledger_right(conn: Connection) -> None:
    engine = Engine(conn)
    ids = engine.enqueue_many("deploy", [{}] * 300, [str(n % 60) for n in range(300)])
    assert engine.cancel_many(ids[:150]) == ["cancelled"] * 150
    assert engine.states(ids) == ["cancelled"] * 150 + ["waiting"] * 150
    assert engine.stats()["queue_length"] == 150
    assert sorted(engine.drain(engine.worker(), limit=60)) == ids[150:]
    engine.assert_promises()


def test_cancel_many_that_rolls_back_leaves_everything_as_it_was(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=2, backoff_initial=0)
    ids = engine.fill(6)
    worker = engine.worker()
    held, running = engine.claim(worker, 2)
    engine.finish(held, "failed")
    before = engine.stats()
    other = Engine(connect(autocommit=False))
    assert other.cancel_many(ids) == ["cancelled", "requested", *["cancelled"] * 4]
    other.conn.rollback()
    assert {n: v for n, v in engine.stats().items() if n != "last_updated"} == {
        n: v for n, v in before.items() if n != "last_updated"
    }
    assert engine.heartbeat(worker, held=[running.id]) == {}
    engine.hand_in(worker, running)
    assert engine.drain(worker) == [ids[0], *ids[2:]]
    engine.assert_promises()


def test_cancel_many_beside_a_claim_in_flight_asks_the_worker(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    ids = engine.fill(3)
    worker = engine.worker()
    claiming, canceller = Engine(connect(autocommit=False)), Engine(connect())
    (start,) = claiming.claim(worker)
    cancel = in_background(lambda: canceller.cancel_many(ids[:2]))
    wait_until_blocked(conn, canceller.pid)
    claiming.conn.commit()
    assert cancel.result() == ["requested", "cancelled"], "a slot was given on while its execution ran"
    assert engine.hand_in(worker, start, outcome="cancelled") == {}
    assert engine.drain(worker) == ids[2:]
    engine.assert_promises()


@pytest.mark.parametrize(("outcome", "answer"), [("failed", "cancelled"), ("succeeded", "succeeded")])
def test_cancel_many_of_one_that_ends_while_it_is_asked(
    conn: Connection, connect: Connect, outcome: str, answer: str
) -> None:
    """It waits for another's request for the same execution; until that is over, the attempt has ended."""
    engine = Engine(conn)
    engine.policy(backoff_initial=3600)
    new, behind = engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    first, second = Engine(connect(autocommit=False)), Engine(connect())
    assert first.cancel(new) == "requested"
    cancel = in_background(lambda: second.cancel_many([new]))
    wait_until_blocked(conn, second.pid)
    engine.hand_in(worker, start, outcome=outcome)
    first.conn.rollback()
    assert cancel.result() == [answer]
    assert engine.state(new) == answer
    assert engine.rows("select 1 from pgfifo.cancellations") == [], "a request for nobody was left"
    assert engine.drain(worker) == [behind]
    engine.assert_promises()


def test_cancel_many_does_what_it_can_beside_a_lane_that_somebody_keeps(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    kept, *others = engine.enqueue_many("deploy", [{}] * 4, ["a", "b", "c", "d"])
    holder = Engine(connect(autocommit=False))
    keep_lane(holder.conn, kept)
    assert engine.cancel_many([kept, *others]) == ["busy", *["cancelled"] * 3], "one lane held up the others"
    assert engine.state(kept) == "waiting"
    holder.conn.rollback()
    assert engine.cancel_many([kept]) == ["cancelled"]
    engine.assert_promises()


def test_cancel_many_in_other_orders_do_not_wait_for_each_other_in_a_circle(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    ids = engine.enqueue_many("deploy", [{}] * 20, [str(n) for n in range(20)])
    holder, one, two = Engine(connect(autocommit=False)), Engine(connect()), Engine(connect())
    keep_lane(holder.conn, ids[10])
    racing = [in_background(lambda: one.cancel_many(ids)), in_background(lambda: two.cancel_many(ids[::-1]))]
    for canceller in (one, two):
        wait_until_blocked(conn, canceller.pid)
    holder.conn.rollback()
    for race in racing:
        assert race.result() == ["cancelled"] * 20
    assert engine.stats()["total_cancelled"] == 20, "one cancel was counted twice"
    engine.assert_promises()


def test_cancel_many_refuses_what_is_too_much_for_one_call(conn: Connection) -> None:
    engine = Engine(conn)
    assert engine.cancel_many([]) == []
    with pytest.raises(errors.InvalidValue, match="at most 10,000"):
        engine.cancel_many(range(10_001))
    with pytest.raises(errors.InvalidValue, match="null is no id"):
        engine.rows("select * from pgfifo.cancel_many(array[1, null]::bigint[])")
    most = engine.one("select pgfifo.max_batch_lanes()")
    ids = engine.enqueue_many("deploy", [{}] * most, [str(n) for n in range(most)])
    ids.append(engine.enqueue(group="one more"))
    with pytest.raises(errors.TooManyLanes) as caught:
        engine.cancel_many(ids)
    assert (caught.value.lanes, caught.value.limit) == (most + 1, most)
    assert engine.stats()["queue_length"] == most + 1
    assert set(engine.cancel_many(ids[1:])) == {"cancelled"}
    engine.assert_promises()


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_cancel_many_decides_at_read_committed_only(conn: Connection, isolation: str) -> None:
    engine = Engine(conn)
    ids = engine.fill(2)
    with conn.transaction(force_rollback=True):
        conn.execute(f"set transaction isolation level {isolation}")
        with pytest.raises(errors.IsolationLevel), conn.transaction():
            engine.cancel_many(ids)
    assert engine.states(ids) == ["waiting"] * 2
