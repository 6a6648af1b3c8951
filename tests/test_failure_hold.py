"""Failure mode hold: a failed attempt keeps place and slot through the backoff. Nothing overtakes it."""

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.engine import Engine, item

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def test_failure_hold_keeps_place_and_slot_through_the_backoff(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff="constant", backoff_initial=30, backoff_jitter=0)
    first, second = engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    assert engine.finish(start, "failed", "boom") == "held"
    show = engine.show(first)
    assert (show["state"], show["failures"], show["error"]) == ("held", 1, "boom")
    assert engine.position(first) is None
    stats = engine.stats()
    assert (stats["active_count"], stats["held_count"], stats["running_count"]) == (1, 1, 0)
    for _ in range(29):
        engine.advance("1 s")
        assert engine.claim(worker, 5) == [], "a younger one used the slot of one that is held"
    engine.advance("1 s")
    (again,) = engine.claim(worker, 5)
    assert (again.id, again.attempt) == (first, 2)
    engine.hand_in(worker, again)
    assert engine.drain(worker) == [second]
    assert engine.started() == [first, first, second]
    engine.assert_promises()


def test_failure_hold_leaves_the_other_slots_to_the_others(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=2, backoff="constant", backoff_initial=30, backoff_jitter=0)
    ids = engine.fill(4)
    worker = engine.worker()
    first, second = engine.claim(worker, 2)
    engine.finish(first, "failed")
    assert engine.work(worker, 5, finished=[item(second)]).ids == [ids[2]]
    engine.advance("31 s")
    assert [start.id for start in engine.claim(worker, 5)] == [ids[0]], "a retry is first in its lane"
    engine.assert_promises()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, [1, 2, 4, 8]),
        ({"backoff_initial": 10, "backoff_factor": 3}, [10, 30, 90, 270]),
        ({"backoff_initial": 10, "backoff_factor": 3, "backoff_cap": 50}, [10, 30, 50, 50]),
        ({"backoff": "constant", "backoff_initial": "2 min"}, [120, 120, 120, 120]),
        ({"backoff_initial": 0}, [0, 0, 0, 0]),
    ],
)
def test_failure_hold_backoff_grows_as_the_policy_says(
    conn: Connection, policy: dict[str, Any], expected: list[float]
) -> None:
    engine = Engine(conn)
    engine.policy(backoff_jitter=0, **policy)
    new = engine.enqueue()
    worker = engine.worker()
    for seconds in expected:
        (start,) = engine.claim(worker)
        engine.finish(start, "failed")
        wait = engine.one("select extract(epoch from due_at - ended_at) from pgfifo.runs where id = %s", new)
        assert float(wait) == pytest.approx(seconds, abs=0.5)
        engine.advance(f"{seconds + 0.1} s")
    (start,) = engine.claim(worker)
    assert (start.attempt, engine.finish(start, "failed")) == (5, "failed"), "the default is five attempts"
    engine.assert_promises()


def test_failure_hold_jitter_stays_within_its_part(conn: Connection) -> None:
    waits = [
        wait
        for (wait,) in conn.execute(
            "select pgfifo._backoff('exponential', 10, 2, 300, 0.1, 2) from generate_series(1, 1000)"
        )
    ]
    assert min(waits) >= 18
    assert max(waits) <= 22
    assert len(set(waits)) > 900, "many that fail together are tried again together"


def test_failure_hold_after_the_last_attempt_the_lane_goes_on(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_attempts=2, backoff_initial=0)
    first, second = engine.fill(2)
    worker = engine.worker()
    for expected in ("held", "failed"):
        (start,) = engine.claim(worker)
        assert engine.finish(start, "failed", "boom") == expected
    show = engine.show(first)
    assert (show["state"], show["attempt"], show["failures"], show["error"]) == ("failed", 2, 2, "boom")
    assert engine.drain(worker) == [second]
    assert engine.stats()["total_failed"] == 1
    engine.assert_promises()


def test_failure_hold_without_retry_it_fails_at_once(conn: Connection) -> None:
    engine = Engine(conn)
    new = engine.enqueue()
    worker = engine.worker()
    assert engine.hand_in(worker, *engine.claim(worker), outcome="failed", retry=False) == {}
    assert engine.state(new) == "failed"
    engine.assert_promises()


def test_failure_hold_releases_count_no_failures(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_attempts=1)
    new = engine.enqueue()
    worker = engine.worker()
    for attempt in range(1, 6):
        (start,) = engine.claim(worker)
        assert start.attempt == attempt
        engine.hand_in(worker, start, outcome="released")
    (start,) = engine.claim(worker)
    engine.hand_in(worker, start)
    show = engine.show(new)
    assert (show["state"], show["attempt"], show["failures"]) == ("succeeded", 6, 0)
    engine.assert_promises()


def test_failure_hold_keeps_a_record_of_every_attempt(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff_initial=0)
    new = engine.enqueue()
    worker = engine.worker()
    for outcome in ("failed", "released", "failed", "succeeded"):
        (start,) = engine.claim(worker)
        engine.hand_in(worker, start, outcome=outcome, **({"error": "boom"} if outcome == "failed" else {}))
    attempts = engine.show(new)["attempts"]
    assert [(a["attempt"], a["outcome"], a.get("error")) for a in attempts] == [
        (1, "failed", "boom"),
        (2, "released", None),
        (3, "failed", "boom"),
    ]
    assert {a["worker"] for a in attempts} == {worker}
    assert [stay.start_no for stay in sorted(engine.stays(), key=lambda s: s.start_no or 0)] == [1, 2, 3, 4]
    engine.assert_promises()


def test_failure_hold_thousands_of_attempts_keep_the_record_bounded(conn: Connection) -> None:
    engine = Engine(conn)
    new = engine.enqueue()
    worker = engine.worker()
    for _ in range(120):
        engine.hand_in(worker, *engine.claim(worker), outcome="released")
    assert len(engine.show(new)["attempts"]) == 100
    assert len(json.dumps(engine.show(new)["attempts"])) < 50_000
    assert engine.drain(worker) == [new]


def test_failure_hold_while_its_lane_is_paused_it_waits_for_the_resume(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff="constant", backoff_initial=5, backoff_jitter=0)
    for group in (None, ""):
        ids = engine.fill(2)
        worker = engine.worker()
        engine.finish(engine.claim(worker)[0], "failed")
        engine.pause(group=group)
        engine.advance("6 s")
        assert engine.claim(worker, 5) == [], "a retry started in what is paused"
        engine.resume(group=group)
        assert engine.drain(worker) == ids, "a retry that came due during the pause was forgotten"
    engine.assert_promises()


def test_failure_hold_many_workers_and_failures_keep_the_order(conn: Connection, connect: Connect) -> None:
    """Every third attempt fails, over five lanes: each lane's first starts are in order, no slot is lost."""
    engine = Engine(conn)
    engine.policy(max_concurrent=2, backoff_initial=0, max_attempts=50)
    lanes = [f"{n}" for n in range(5)]
    ids = engine.enqueue_many("deploy", [{}] * 200, lanes * 40)
    workers = [engine.worker() for _ in range(3)]
    turn = 0
    while engine.stats()["total_succeeded"] < len(ids):
        turn += 1
        assert turn < 2000, "the lanes came to a stop"
        worker = workers[turn % 3]
        for start in engine.claim(worker, 7):
            bad = (start.id + start.attempt) % 3 == 0
            engine.hand_in(worker, start, outcome="failed" if bad else "succeeded")
    for number, lane in enumerate(lanes):
        firsts = list(dict.fromkeys(engine.started(group=lane)))
        assert firsts == ids[number::5]
    assert engine.stats()["total_failed"] == 0
    engine.assert_promises()
