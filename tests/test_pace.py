"""Limits over time in one lane: rate, spacing and gap, on a clock that the test moves."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.engine import Engine, item

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def seconds(engine: Engine) -> float:
    """Return what the clock says, in seconds."""
    return float(engine.one("select extract(epoch from pgfifo._now())::float8"))


def starts_over(engine: Engine, worker: int, length: float, step: float) -> list[float]:
    """Claim and finish each step of time for so long; return when starts were, in seconds from now."""
    began = seconds(engine)
    found = []
    while seconds(engine) - began <= length:
        answer = engine.work(worker, 10)
        found += [seconds(engine) - began for _ in answer.starts]
        engine.hand_in(worker, *answer.starts)
        engine.advance(f"{step} s")
    return found


def test_rate_lets_a_burst_go_and_then_keeps_its_pace(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=10, rate="3/min")
    ids = engine.fill(8)
    worker = engine.worker()
    found = starts_over(engine, worker, 90, 1)
    assert [round(at, -1) for at in found] == [0, 0, 0, 20, 40, 60, 80]
    assert engine.started() == ids[:7]
    engine.assert_promises()


def test_rate_with_a_burst_of_one_spaces_the_starts_evenly(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=10, rate="6/min", burst=1)
    engine.fill(5)
    found = starts_over(engine, engine.worker(), 35, 1)
    assert [round(at, -1) for at in found] == [0, 10, 20, 30]
    engine.assert_promises()


def test_rate_that_was_not_used_saves_up_no_more_than_its_burst(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=100, rate="1/s", burst=4)
    worker = engine.worker()
    engine.fill(1)
    engine.drain(worker)
    engine.advance("1 hour")
    engine.fill(20)
    assert len(engine.claim(worker, 50)) == 4


def test_spacing_is_from_start_to_start_whatever_the_slots(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=5, spacing=10)
    engine.fill(4)
    found = starts_over(engine, engine.worker(), 25, 1)
    assert [round(at, -1) for at in found] == [0, 10, 20]
    engine.assert_promises()


def test_gap_is_from_the_end_to_the_next_start(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(gap=600)
    first, second, _ = engine.fill(3)
    worker = engine.worker()
    (start,) = engine.claim(worker, 5)
    assert start.id == first
    engine.advance("1 min")
    answer = engine.work(worker, 5, finished=[item(start)])
    assert (answer.ids, answer.more) == ([], "later")
    assert answer.seconds == pytest.approx(600, abs=30)
    engine.advance("9 min")
    assert engine.claim(worker, 5) == []
    engine.advance("1 min")
    assert [s.id for s in engine.claim(worker, 5)] == [second]
    engine.assert_promises()


def test_gap_counts_the_end_of_a_failed_attempt_too(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(gap=10, max_attempts=1)
    _, second = engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    assert engine.finish(start, "failed") == "failed"
    assert engine.claim(worker) == []
    engine.advance("10 s")
    assert [s.id for s in engine.claim(worker)] == [second]


def test_a_lane_that_has_to_wait_costs_nothing_until_it_is_due(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=5, spacing=3600)
    engine.fill(3)
    worker = engine.worker()
    engine.drain(worker)
    for _ in range(5):
        engine.enqueue()
        answer = engine.work(worker, 5)
        assert (answer.ids, answer.more) == ([], "later")
    assert engine.one("select count(*) from pgfifo.marks") == 0, "claims come to a lane that may not start"
    assert engine.one("select count(*) from pgfifo.timers") == 1, "each look at the lane left a timer"
    engine.tick(3)
    assert engine.one("select count(*) from pgfifo.marks") == 0
    assert engine.sweep_found() == 0, "a lane that waits for its time was taken for one that lost its mark"
    engine.advance("1 hour")
    assert len(engine.claim(worker, 5)) == 1
    engine.assert_promises()


def test_a_faster_rate_holds_at_once_for_what_waits(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=100, rate="1/h")
    engine.fill(10)
    worker = engine.worker()
    assert len(engine.claim(worker, 50)) == 1
    assert engine.claim(worker, 50) == []
    engine.policy(rate="5/s")
    engine.advance("1 s")
    assert len(engine.claim(worker, 50)) == 5
    engine.policy(rate="unlimited")
    assert len(engine.claim(worker, 50)) == 4
    engine.assert_promises()


def test_a_rate_counts_no_starts_from_before_it_was_set(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=10, spacing=1)
    engine.fill(8)
    worker = engine.worker()
    (start,) = engine.claim(worker, 5)
    engine.hand_in(worker, start)
    engine.policy(spacing=None, rate="5/h")
    engine.advance("1 s")
    assert len(engine.claim(worker, 10)) == 5, "a rate that was just set was taken for used up"
    engine.assert_promises()


def test_a_lane_s_own_rate_holds_for_it_alone(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=10)
    engine.policy("deploy", "a", rate="1/h")
    slow, fast = engine.fill(3, group="a"), engine.fill(3, group="b")
    worker = engine.worker()
    assert sorted(s.id for s in engine.claim(worker, 50)) == sorted([slow[0], *fast])
    assert engine.claim(worker, 50) == []


def test_a_retry_in_its_slot_is_a_start_like_any_other(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(spacing=60, backoff="constant", backoff_initial=5, backoff_jitter=0)
    first, _ = engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    engine.finish(start, "failed")
    engine.advance("6 s")
    assert engine.claim(worker) == [], "a retry did not keep the spacing"
    engine.advance("55 s")
    (again,) = engine.claim(worker)
    assert (again.id, again.attempt) == (first, 2)
    engine.assert_promises()


def test_a_clock_set_back_makes_nobody_wait_for_longer_than_the_limit_says(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=9, spacing=10, rate="6/min", burst=2, gap=1)
    engine.fill(5)
    worker = engine.worker()
    assert len(engine.drain(worker)) == 1
    engine.advance("-1 day")
    engine.policy(spacing=9)  # a change looks at the lanes again: timers of the other time are far off
    assert len(engine.claim(worker, 5)) == 1
    assert engine.claim(worker, 5) == []
    engine.advance("10 s")
    assert len(engine.claim(worker, 5)) == 1


def test_rate_is_exact_under_workers_that_claim_at_once(conn: Connection, connect: Connect) -> None:
    """The second claim passes the lane by while the first has it, and then sees what the first has used."""
    engine = Engine(conn)
    engine.policy(max_concurrent=10, rate="2/h")
    engine.fill(5)
    one, other = engine.worker(), engine.worker()
    first = Engine(connect(autocommit=False))
    assert len(first.claim(one, 1)) == 1
    assert engine.claim(other, 5) == []
    first.conn.commit()
    assert len(engine.claim(other, 5)) == 1
    assert engine.claim(other, 5) == []
    engine.assert_promises()


def test_an_idle_lane_is_not_removed_while_its_rate_is_used_up(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=10, rate="1/w", lane_retention=1)
    engine.fill(1)
    worker = engine.worker()
    engine.drain(worker)
    engine.advance("1 day")
    engine.tick(2)
    engine.fill(1)
    assert engine.claim(worker) == [], "the removal of its lane has forgotten the rate"
    engine.advance("7 days")
    assert len(engine.claim(worker)) == 1
