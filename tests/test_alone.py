"""One execution alone, or one of many: both ways of `work` decide alike."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.engine import Engine, Start, item
from tests.support.sqlworker import hold_lanes

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

pytestmark = pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])


def claim(engine: Engine, worker: int, together: bool, limit: int = 1) -> list[Start]:
    return engine.work(worker, limit, together=together).starts


def hand_in(engine: Engine, worker: int, start: Start, together: bool) -> dict[int, str]:
    return engine.work(worker, 0, [], [item(start)], together=together).refused


def test_fencing_nobody_finishes_what_another_worker_runs(conn: Connection, together: bool) -> None:
    engine = Engine(conn)
    engine.fill(1)
    worker, other = engine.worker(), engine.worker()
    (start,) = claim(engine, worker, together)
    assert hand_in(engine, other, start, together) == {start.id: "lost"}
    assert engine.state(start.id) == "running"
    assert hand_in(engine, worker, start, together) == {}
    assert engine.state(start.id) == "succeeded"
    engine.assert_promises()


def test_fencing_an_earlier_attempt_finishes_nothing(conn: Connection, together: bool) -> None:
    engine = Engine(conn)
    engine.fill(1)
    worker = engine.worker()
    (first,) = claim(engine, worker, together)
    engine.release(first)
    (second,) = claim(engine, worker, together)
    assert (second.id, second.attempt) == (first.id, 2)
    assert hand_in(engine, worker, first, together) == {first.id: "lost"}
    assert hand_in(engine, worker, second, together) == {}
    engine.assert_promises()


def test_slots_a_success_waits_until_nobody_has_the_lane(
    conn: Connection, connect: Connect, together: bool
) -> None:
    engine = Engine(conn)
    engine.fill(2)
    worker = engine.worker()
    (start,) = claim(engine, worker, together)
    holder = Engine(connect(autocommit=False))
    hold_lanes(holder.conn, "deploy")
    assert hand_in(engine, worker, start, together) == {start.id: "retry"}
    holder.conn.rollback()
    assert hand_in(engine, worker, start, together) == {}


def test_order_what_was_given_back_comes_first(conn: Connection, together: bool) -> None:
    engine = Engine(conn)
    first, second = engine.fill(2)
    worker = engine.worker()
    (start,) = claim(engine, worker, together)
    engine.release(start)
    for expected in (first, second):
        (start,) = claim(engine, worker, together)
        assert start.id == expected
        assert hand_in(engine, worker, start, together) == {}
    engine.assert_promises()


def test_progress_a_success_leaves_a_mark_for_others(conn: Connection, together: bool) -> None:
    engine = Engine(conn)
    _, second = engine.fill(2)
    worker, other = engine.worker(), engine.worker()
    (start,) = claim(engine, worker, together)
    assert claim(engine, other, together) == [], "the lane is full, and the mark is gone"
    assert hand_in(engine, worker, start, together) == {}
    assert [each.id for each in claim(engine, other, together)] == [second]


def test_progress_a_claim_of_one_leaves_a_mark_for_the_rest(conn: Connection, together: bool) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3)
    ids = engine.fill(3)
    for expected in ids:
        assert [start.id for start in claim(engine, engine.worker(), together)] == [expected]
    engine.assert_promises()


def test_durability_a_success_beats_a_request_to_stop_and_keeps_it_on_record(
    conn: Connection, together: bool
) -> None:
    engine = Engine(conn)
    engine.fill(1)
    worker = engine.worker()
    (start,) = claim(engine, worker, together)
    assert engine.cancel(start.id, "enough") == "requested"
    assert hand_in(engine, worker, start, together) == {}
    row = engine.rows("select outcome, reason, cancel_requested_at is not null from pgfifo.history")
    assert row == [("succeeded", "enough", True)]
    assert engine.one("select count(*) from pgfifo.cancellations") == 0


def test_slots_a_lane_with_a_limit_of_its_own_keeps_to_it(conn: Connection, together: bool) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3)
    engine.fill(4)
    engine.policy(group="", max_concurrent=2)
    worker = engine.worker()
    for left in (2, 1, 0):
        assert len(claim(engine, worker, together)) == (1 if left else 0)
    engine.assert_promises()


def test_slots_several_free_ones_of_a_lane_are_filled_by_one_call(conn: Connection, together: bool) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3)
    ids = engine.fill(4)
    worker = engine.worker()
    assert [start.id for start in claim(engine, worker, together, 2)] == ids[:2]
    assert [start.id for start in claim(engine, worker, together, 2)] == ids[2:3]
    engine.assert_promises()


def test_stats_what_arrives_is_counted_once(conn: Connection, together: bool) -> None:
    engine = Engine(conn)
    engine.policy()
    worker = engine.worker()
    for turn in range(1, 6):
        engine.enqueue()
        engine.enqueue()
        for _ in range(2):
            (start,) = claim(engine, worker, together)
            assert hand_in(engine, worker, start, together) == {}
        stats = engine.stats()
        assert (stats["queue_length"], stats["active_count"], stats["total_completed"]) == (0, 0, 2 * turn)
    assert engine.one("select count(*) from pgfifo.arrivals") == 0
    engine.assert_promises()


def test_order_what_a_relaxed_lane_starts_is_not_judged_as_strict(conn: Connection, together: bool) -> None:
    engine = Engine(conn)
    engine.policy(ordering="relaxed")
    engine.fill(3)
    worker = engine.worker()
    ended: list[dict[str, object]] = []
    for _ in range(3):
        (start,) = engine.work(worker, 1, finished=ended, together=together).starts
        ended = [item(start)]
    engine.work(worker, 0, [], ended, together=together)
    assert engine.rows("select distinct is_strict from pgfifo.history") == [(False,)]


def test_independence_a_call_starts_no_more_than_it_asks_for_in_the_lanes_that_it_has_freed(
    conn: Connection, together: bool
) -> None:
    engine = Engine(conn)
    for group in "abab":
        engine.enqueue(group=group)
    worker = engine.worker()
    ended = [item(start) for start in claim(engine, worker, together, 2)]
    assert len(ended) == 2
    assert claim(engine, worker, together, 2) == [], "both are full"
    assert len(engine.work(worker, 1, finished=ended, together=together).starts) == 1
    assert len(claim(engine, worker, together)) == 1
    engine.assert_promises()
