"""Failure modes beside hold: yield gives the slot up and keeps the place, tail gives up both."""

import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgfifo import errors
from tests.support.database import Background, in_background, wait_until_blocked
from tests.support.engine import Engine, Hand, Start, item

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

BACKOFF: dict[str, Any] = {"backoff": "constant", "backoff_initial": 30, "backoff_jitter": 0}


def failing(engine: Engine, mode: str, **values: Any) -> None:
    engine.policy(**(BACKOFF | {"failure_mode": mode} | values))


def identity(engine: Engine) -> dict[str, Any]:
    stats = engine.stats()
    parts = ("total_completed", "queue_length", "active_count", "delayed_count")
    assert stats["total_enqueued"] == sum(stats[part] for part in parts)
    return stats


# The place


def test_failure_yield_gives_its_slot_up_and_is_first_again_after_its_backoff(conn: Connection) -> None:
    engine = Engine(conn)
    failing(engine, "yield")
    first, *others = engine.fill(4)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    assert engine.finish(start, "failed", "boom") == "delayed"
    show = engine.show(first)
    assert (show["state"], show["attempt"], show["failures"], show["error"]) == ("delayed", 1, 1, "boom")
    assert show["ticket"] == first
    assert (show["due_at"] - show["started_at"]).total_seconds() == pytest.approx(30, abs=10)
    assert engine.position(first) is None
    stats = identity(engine)
    assert (stats["active_count"], stats["delayed_count"], stats["queue_length"]) == (0, 1, 3)
    answer = engine.work(worker, 1)
    assert answer.ids == [others[0]], "its slot was not given on"
    engine.advance("31 s")
    assert engine.work(worker, 5).ids == [], "it took a slot that there is not"
    assert engine.state(first) == "waiting"
    assert engine.position(first) == 1
    engine.hand_in(worker, *answer.starts)
    assert engine.drain(worker) == [first, *others[1:]], "it is not first again"
    assert engine.started() == [first, others[0], first, *others[1:]]
    engine.assert_promises()


def test_failure_tail_goes_to_the_end_of_the_line_after_its_backoff(conn: Connection) -> None:
    engine = Engine(conn)
    failing(engine, "tail")
    first, *others = engine.fill(3)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    assert engine.finish(start, "failed", "boom") == "delayed"
    show = engine.show(first)
    assert (show["state"], show["attempt"], show["failures"], show["error"]) == ("delayed", 1, 1, "boom")
    assert show["ticket"] is None
    stats = identity(engine)
    assert (stats["active_count"], stats["delayed_count"], stats["queue_length"]) == (0, 1, 2)
    assert engine.work(worker, 0).starts == []
    engine.advance("31 s")
    last = engine.enqueue()
    assert engine.show(first)["ticket"] > others[-1]
    assert engine.drain(worker) == [*others, first, last], "it is not at the end, or not before younger ones"
    show = engine.show(first)
    assert (show["state"], show["attempt"], show["failures"]) == ("succeeded", 2, 1)
    assert [(a["attempt"], a["outcome"], a["ticket"]) for a in show["attempts"]] == [(1, "failed", first)]
    assert engine.started() == [first, *others, first, last]
    engine.assert_promises()


def test_failure_tail_joins_by_a_timer_where_nobody_enqueues(conn: Connection) -> None:
    engine = Engine(conn)
    failing(engine, "tail")
    first, second = engine.fill(2)
    worker = engine.worker()
    engine.finish(engine.claim(worker)[0], "failed")
    assert engine.drain(worker) == [second]
    assert engine.work(worker, 1).seconds == pytest.approx(30, abs=10)
    engine.advance("31 s")
    assert engine.drain(worker) == [first]
    engine.assert_promises()


@pytest.mark.parametrize("mode", ["yield", "tail"])
@pytest.mark.parametrize("limit", [1, 2])
def test_failure_modes_hand_their_slot_on_in_the_same_call(conn: Connection, mode: str, limit: int) -> None:
    engine = Engine(conn)
    failing(engine, mode, max_concurrent=limit)
    ids = engine.fill(limit + 1)
    worker = engine.worker()
    starts = engine.claim(worker, limit)
    answer = engine.work(worker, 5, finished=[item(starts[0], "failed")])
    assert answer.ids == [ids[-1]], "a freed slot stayed empty"
    engine.assert_promises()


@pytest.mark.parametrize("mode", ["yield", "tail"])
def test_failure_modes_free_slot_wakes_others_where_the_worker_takes_nothing(
    conn: Connection, mode: str
) -> None:
    engine = Engine(conn)
    failing(engine, mode)
    _, second = engine.fill(2)
    one, other = engine.worker(), engine.worker()
    (start,) = engine.claim(one)
    assert engine.claim(other) == []
    engine.hand_in(one, start, outcome="failed")
    assert [each.id for each in engine.claim(other)] == [second], "nobody was told of the free slot"
    engine.assert_promises()


def test_failure_yield_several_come_back_in_their_order_and_before_all_others(conn: Connection) -> None:
    engine = Engine(conn)
    failing(engine, "yield", max_concurrent=3)
    ids = engine.fill(8)
    worker = engine.worker()
    for start in reversed(engine.claim(worker, 3)):
        engine.finish(start, "failed")
        engine.advance("1 s")
    running = engine.claim(worker, 2)
    assert [start.id for start in running] == ids[3:5]
    engine.advance("40 s")
    assert [start.id for start in engine.claim(worker, 5)] == ids[:1]
    engine.hand_in(worker, *running)
    assert [start.id for start in engine.claim(worker, 5)] == ids[1:3]
    engine.assert_promises()


def test_failure_yield_thousands_come_back_at_once(conn: Connection) -> None:
    engine = Engine(conn)
    failing(engine, "yield", max_concurrent=3000)
    ids = engine.fill(2500)
    worker = engine.worker()
    starts = engine.claim(worker, 2500)
    engine.hand_in(worker, *starts, outcome="failed")
    assert identity(engine)["delayed_count"] == 2500
    engine.policy(max_concurrent=1)
    engine.advance("31 s")
    assert engine.drain(worker, limit=1)[:5] == ids[:5]
    assert identity(engine)["total_succeeded"] == 2500
    engine.assert_promises()


def test_failure_tail_in_a_relaxed_lane(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    failing(engine, "tail", ordering="relaxed", backoff_initial=1)
    first = engine.enqueue()
    worker = engine.worker()
    engine.finish(engine.claim(worker)[0], "failed", "boom")
    engine.advance("2 s")
    slow, quick = Engine(connect(autocommit=False)), Engine(connect())
    mine = slow.enqueue()  # lets it join, and is not committed when a younger one has been run
    yours = quick.enqueue()
    assert engine.drain(worker) == [yours]
    slow.conn.commit()
    engine.advance("1.1 s")  # once a second claims look at what has committed late
    assert engine.drain(worker) == [first, mine]
    show = engine.show(first)
    assert (show["attempt"], show["failures"], len(show["attempts"])) == (2, 1, 1), "its past was lost"
    engine.assert_promises(strict=False)


@pytest.mark.parametrize("mode", ["hold", "yield", "tail"])
def test_failure_modes_change_from_one_failure_to_the_next(conn: Connection, mode: str) -> None:
    """Each mode after each other: what it was before must not matter."""
    engine = Engine(conn)
    failing(engine, mode, max_attempts=20)
    first = engine.enqueue()
    worker = engine.worker()
    for number, after in enumerate(["tail", "yield", "hold", "yield", "tail", "tail", "hold", mode]):
        (start,) = engine.claim(worker)
        assert (start.id, start.attempt) == (first, number + 1)
        engine.finish(start, "failed")
        failing(engine, after, max_attempts=20)
        identity(engine)
        engine.advance("31 s")
    (start,) = engine.claim(worker)
    engine.hand_in(worker, start, outcome="released")
    assert engine.drain(worker) == [first]
    show = engine.show(first)
    assert (show["attempt"], show["failures"], len(show["attempts"])) == (10, 8, 9)
    assert identity(engine)["total_succeeded"] == 1
    engine.assert_promises()


@pytest.mark.parametrize("mode", ["yield", "tail"])
def test_failure_modes_without_any_backoff(conn: Connection, mode: str) -> None:
    engine = Engine(conn)
    failing(engine, mode, backoff_initial=0, max_attempts=3)
    ids = engine.fill(3)
    worker = engine.worker()
    order = []
    for _ in range(9):
        (start,) = engine.claim(worker)
        order.append(start.id)
        engine.hand_in(worker, start, outcome="failed")
    first, second, third = ids
    expected = [first] * 3 + [second] * 3 + [third] * 3 if mode == "yield" else ids * 3
    assert order == expected
    assert engine.stats()["total_failed"] == 3
    engine.assert_promises()


# Exhausted


@pytest.mark.parametrize("mode", ["hold", "yield", "tail"])
def test_failure_modes_the_last_failure_is_final(conn: Connection, mode: str) -> None:
    engine = Engine(conn)
    failing(engine, mode, max_attempts=2)
    first, second = engine.fill(2)
    worker = engine.worker()
    starts: list[Start] = []
    while len(starts) < 2:
        for start in engine.claim(worker, 1):
            if start.id == first:
                starts.append(start)
                engine.hand_in(worker, start, outcome="failed", error=f"boom {start.attempt}")
            else:
                engine.hand_in(worker, start)
        engine.advance("31 s")
    show = engine.show(first)
    assert (show["state"], show["attempt"], show["failures"], show["error"]) == ("failed", 2, 2, "boom 2")
    engine.drain(worker)
    assert engine.state(second) == "succeeded"
    engine.assert_promises()


@pytest.mark.parametrize("mode", ["hold", "yield", "tail"])
def test_failure_modes_a_poison_execution_never_loops_for_ever(conn: Connection, mode: str) -> None:
    """Each start of it kills its worker."""
    engine = Engine(conn)
    failing(engine, mode, max_attempts=3, backoff_initial=5)
    poison, good = engine.fill(2)
    deaths = 0
    for _ in range(20):
        victim = engine.worker(lease="1 s")
        starts = engine.claim(victim)
        if not starts or starts[0].id != poison:
            engine.hand_in(victim, *starts)
        else:
            deaths += 1
        engine.one("update pgfifo._workers set seen_tick = 0 where id = %s returning 1", victim)
        engine.tick(3)
        engine.advance("5 s")
    assert deaths == 3, "a handler that kills its process goes round and round"
    show = engine.show(poison)
    assert (show["state"], show["attempt"], show["failures"]) == ("failed", 3, 3)
    assert "was lost" in show["error"]
    assert {entry["outcome"] for entry in show["attempts"]} == {"lost"}
    assert engine.state(good) == "succeeded", "a poison execution has taken its lane with it"
    engine.assert_promises()


@pytest.mark.parametrize("mode", ["hold", "yield", "tail"])
def test_failure_modes_exhausted_pauses_the_lane_where_the_policy_says_so(
    conn: Connection, mode: str
) -> None:
    engine = Engine(conn)
    failing(engine, mode, max_attempts=1, on_exhausted="pause")
    bad, second, third = engine.fill(3)
    other = engine.enqueue(group="other")
    worker = engine.worker()
    (start,) = [each for each in engine.claim(worker, 1) if each.id == bad]
    answer = engine.work(worker, 5, finished=[item(start, "failed", error="no such order\nTraceback")])
    assert answer.ids == [other], "the lane went on, or another one did not"
    lane = engine.lane()
    assert lane["paused"] is True
    assert lane["paused_reason"] == f"execution {bad} failed for good: no such order"
    stats = engine.stats()
    assert (stats["paused"], stats["paused_lanes"]) == (False, 1)
    assert engine.one("select detail ->> 'on_exhausted' from pgfifo.audit where what = 'pause'") == "pause"
    engine.hand_in(worker, *answer.starts)
    engine.enqueue()
    assert engine.claim(worker, 5) == []
    assert engine.resume(group="") is True
    assert engine.drain(worker)[:2] == [second, third]
    assert engine.lane()["paused_reason"] is None
    engine.assert_promises()


def test_failure_exhausted_without_retry_pauses_too_and_an_operators_pause_stays(conn: Connection) -> None:
    engine = Engine(conn)
    failing(engine, "hold", on_exhausted="pause", max_concurrent=2)
    engine.fill(3)
    worker = engine.worker()
    one, two = engine.claim(worker, 2)
    engine.one("select pgfifo.pause('deploy', '', 'by hand')")
    engine.hand_in(worker, one, outcome="failed", retry=False)
    assert engine.lane()["paused_reason"] == "by hand"
    engine.resume(group="")
    engine.hand_in(worker, two, outcome="failed", retry=False)
    assert engine.lane()["paused_reason"] == f"execution {two.id} failed for good"
    engine.resume(group="")
    assert engine.rows("select from pgfifo.policies where scope = 'lane'") == [], "the lane cannot be removed"


# What a handler asks for


@pytest.mark.parametrize("mode", ["hold", "yield", "tail"])
def test_failure_modes_a_handler_says_when_to_try_again(conn: Connection, mode: str) -> None:
    engine = Engine(conn)
    failing(engine, mode)
    first = engine.enqueue()
    worker = engine.worker()
    engine.hand_in(worker, *engine.claim(worker), outcome="failed", after=300)
    assert engine.show(first)["failures"] == 1
    engine.advance("290 s")
    assert engine.claim(worker) == []
    engine.advance("11 s")
    (start,) = engine.claim(worker)
    assert engine.one("select pgfifo.finish(%s, %s, 'failed', p_after => '1 hour')", *start[:2]) in (
        "held",
        "delayed",
    )
    engine.advance("59 min")
    assert engine.claim(worker) == []
    engine.advance("2 min")
    assert engine.drain(worker) == [first]
    engine.assert_promises()


@pytest.mark.parametrize("mode", ["hold", "yield", "tail"])
def test_failure_modes_a_snooze_counts_no_failure(conn: Connection, mode: str) -> None:
    engine = Engine(conn)
    failing(engine, mode, max_attempts=2)
    first = engine.enqueue()
    worker = engine.worker()
    for _ in range(5):
        (start,) = engine.claim(worker)
        engine.hand_in(worker, start, outcome="failed", after=10, count=False)
        assert engine.hand_in(worker, start, outcome="failed", after=10, count=False) == {}, "said twice"
        assert engine.hand_in(worker, start, outcome="failed") == {first: "lost"}, "that is no repetition"
        engine.advance("11 s")
    (start,) = engine.claim(worker)
    engine.hand_in(worker, start, outcome="failed")
    engine.advance("31 s")
    (start,) = engine.claim(worker)
    engine.hand_in(worker, start)
    show = engine.show(first)
    assert (show["state"], show["attempt"], show["failures"]) == ("succeeded", 7, 1)
    assert [entry["outcome"] for entry in show["attempts"]] == ["snoozed"] * 5 + ["failed"]
    engine.assert_promises()


@pytest.mark.parametrize("mode", ["yield", "tail"])
def test_failure_modes_repeating_a_report_is_ok_and_another_one_is_not(conn: Connection, mode: str) -> None:
    engine = Engine(conn)
    failing(engine, mode)
    first = engine.enqueue()
    worker, stranger = engine.worker(), engine.worker()
    (start,) = engine.claim(worker)
    assert engine.hand_in(worker, start, outcome="failed") == {}
    assert engine.hand_in(worker, start, outcome="failed") == {}
    assert engine.hand_in(worker, start) == {first: "lost"}
    assert engine.hand_in(stranger, start, outcome="failed") == {first: "lost"}
    engine.advance("31 s")
    (again,) = engine.claim(worker)
    assert engine.hand_in(worker, start, outcome="failed") == {}, "also when it runs again"
    engine.hand_in(worker, again)
    assert engine.hand_in(worker, start, outcome="failed") == {}, "and when it is over"
    engine.assert_promises()


# Cancelling and changing


@pytest.mark.parametrize("mode", ["yield", "tail"])
def test_failure_modes_cancel_during_the_backoff_and_after_it(conn: Connection, mode: str) -> None:
    engine = Engine(conn)
    failing(engine, mode, max_concurrent=2)
    one, two = engine.fill(2)
    worker = engine.worker()
    for start in engine.claim(worker, 2):
        engine.finish(start, "failed", "boom")
    assert engine.cancel(one, "no need") == "cancelled"
    engine.pause(group="")
    engine.advance("31 s")
    engine.claim(worker)
    assert engine.state(two) == "waiting"
    assert engine.cancel(two) == "cancelled"
    for each in (one, two):
        show = engine.show(each)
        assert (show["state"], show["attempt"], show["failures"], show["error"]) == (
            "cancelled",
            1,
            1,
            "boom",
        )
        assert len(show["attempts"]) == 1
    assert identity(engine)["total_cancelled"] == 2
    engine.resume(group="")
    assert engine.drain(worker) == []
    engine.assert_promises()


@pytest.mark.parametrize("mode", ["yield", "tail"])
@pytest.mark.parametrize("seen", ["in the backoff", "in the line"])
def test_failure_modes_cancel_that_commits_after_the_attempt_ended_prevents_another_one(
    conn: Connection, connect: Connect, mode: str, seen: str
) -> None:
    engine = Engine(conn)
    failing(engine, mode)
    new, behind = engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    canceller = Engine(connect(autocommit=False))
    assert canceller.cancel(new) == "requested"
    engine.hand_in(worker, start, outcome="failed")
    if seen == "in the line":
        engine.pause(group="")
        engine.advance("31 s")
        engine.claim(worker)
        canceller.conn.commit()
        engine.tick(1)
        engine.advance("2 min")
        engine.tick(11)  # maintenance clears away requests for what is over
        engine.resume(group="")
    else:
        canceller.conn.commit()
        engine.advance("31 s")
    assert engine.drain(worker) == [behind], "what was to be cancelled was started again"
    assert engine.state(new) == "cancelled"
    assert engine.rows("select from pgfifo.cancellations") == []
    engine.assert_promises()


@pytest.mark.parametrize("mode", ["yield", "tail"])
def test_failure_modes_reschedule_ends_the_backoff(conn: Connection, mode: str) -> None:
    engine = Engine(conn)
    failing(engine, mode)
    first = engine.enqueue()
    worker = engine.worker()
    engine.finish(engine.claim(worker)[0], "failed")
    engine.reschedule(first, "1 hour")
    engine.advance("31 s")
    assert engine.claim(worker) == []
    engine.reschedule(first)
    assert engine.drain(worker) == [first]
    engine.assert_promises()


@pytest.mark.parametrize("mode", ["yield", "tail"])
def test_failure_modes_cancel_many_and_by_filter_and_by_hand(conn: Connection, mode: str) -> None:
    engine = Engine(conn)
    failing(engine, mode, max_concurrent=4)
    ids = engine.fill(4)
    late = engine.enqueue_later("1 hour")
    worker = engine.worker()
    engine.hand_in(worker, *engine.claim(worker, 4), outcome="failed")
    assert engine.cancel_many([ids[0], late]) == ["cancelled", "cancelled"]
    assert engine.one("select pgfifo.finish_execution(%s, 'failed', 'given up')", ids[1])
    delayed = '{"action": "deploy", "state": "delayed"}'
    (row,) = engine.rows("select cancelled, busy, next from pgfifo.cancel_where(%s)", delayed)
    assert row == (2, 0, None)
    assert engine.states(ids) == ["cancelled", "failed", "cancelled", "cancelled"]
    assert identity(engine)["delayed_count"] == 0
    engine.assert_promises()


def test_failure_tail_cancel_by_filter_passes_one_by_that_is_joining(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    failing(engine, "tail")
    first, second = engine.enqueue(group="a"), engine.enqueue(group="b")
    worker = engine.worker()
    engine.hand_in(worker, *engine.claim(worker, 2), outcome="failed")
    engine.advance("31 s")
    producer = Engine(connect(autocommit=False))
    producer.enqueue(group="a")
    (row,) = engine.rows("""select cancelled, busy from pgfifo.cancel_where('{"state": "delayed"}')""")
    assert row == (1, 1)
    producer.conn.rollback()
    assert engine.states([first, second]) == ["delayed", "cancelled"]
    assert engine.cancel(first) == "cancelled"
    engine.assert_promises()


# Crashes


@pytest.mark.parametrize("mode", ["yield", "tail"])
def test_failure_modes_a_finish_that_never_commits_changes_nothing(
    conn: Connection, connect: Connect, mode: str
) -> None:
    engine = Engine(conn)
    failing(engine, mode)
    first, second = engine.fill(2)
    dying = Engine(connect(autocommit=False))
    worker = engine.worker()
    (start,) = engine.claim(worker)
    dying.finish(start, "failed")
    engine.one("select pg_terminate_backend(%s, 5000)", dying.pid)
    assert engine.state(first) == "running"
    assert engine.claim(worker, 5) == []
    engine.hand_in(worker, start, outcome="failed")
    engine.advance("31 s")
    assert sorted(engine.drain(worker)) == [first, second]
    engine.assert_promises()


@pytest.mark.parametrize("mode", ["yield", "tail"])
def test_failure_modes_a_claim_that_never_commits_leaves_what_was_due_as_it_was(
    conn: Connection, connect: Connect, mode: str
) -> None:
    engine = Engine(conn)
    failing(engine, mode)
    first = engine.enqueue()
    worker = engine.worker()
    engine.finish(engine.claim(worker)[0], "failed")
    engine.advance("31 s")
    dying = Engine(connect(autocommit=False))
    assert [start.id for start in dying.claim(worker)] == [first]
    engine.one("select pg_terminate_backend(%s, 5000)", dying.pid)
    assert engine.state(first) == "delayed"
    (again,) = engine.claim(worker)
    assert (again.id, again.attempt) == (first, 2)
    engine.hand_in(worker, again)
    engine.assert_promises()


def test_failure_tail_meets_an_enqueue_that_is_under_way(conn: Connection, connect: Connect) -> None:
    """The failure does not wait for the enqueue, and joins behind it."""
    engine = Engine(conn)
    failing(engine, "tail", backoff_initial=0)
    first = engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    producer = Engine(connect(autocommit=False))
    second = producer.enqueue()
    engine.hand_in(worker, start, outcome="failed")
    assert engine.claim(worker) == []
    assert engine.state(first) == "delayed"
    producer.conn.commit()
    engine.advance("1.1 s")
    assert engine.drain(worker) == [second, first]
    engine.assert_promises()


def test_failure_tail_of_a_run_that_a_reschedule_waits_for(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    failing(engine, "tail")
    first = engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    finisher, other = Engine(connect(autocommit=False)), Engine(connect())
    finisher.finish(start, "failed")
    changed = in_background(lambda: other.reschedule(first, "1 hour"))
    wait_until_blocked(conn, other.pid)
    finisher.conn.commit()
    assert changed.result() is not None
    engine.advance("31 s")
    assert engine.claim(worker) == []
    engine.assert_promises()


# Against a model


@pytest.mark.parametrize("seed", range(4))
def test_failure_modes_random_steps_agree_with_a_model(conn: Connection, seed: int) -> None:
    """One lane; the model knows who is next: returned ones by ticket, then the line, joiners at its end.

    Time is counted in steps of 100 s, so that the seconds which the test itself takes do not matter.
    """
    chance = random.Random(seed)
    engine = Engine(conn)
    now = 0
    limit = 2
    engine.policy(max_concurrent=limit, max_attempts=1000)
    engine.enqueue_later("1 s")
    worker = engine.worker()
    engine.advance("2 s")
    engine.drain(worker)
    line: list[tuple[int, int]] = []  # (order, id); order: a ticket of the model's own
    joining: dict[int, int] = {}
    yielded: dict[int, tuple[int, int]] = {}
    held: dict[int, tuple[int, int]] = {}
    running: dict[int, tuple[Start, int]] = {}
    tickets = 0
    succeeded = 1
    cancelled = enqueued = 0

    def join() -> None:
        nonlocal tickets
        # Of those that are due at the same step, the one that was delayed first is due first.
        for new in sorted((new for new, due in joining.items() if due <= now), key=lambda new: joining[new]):
            tickets += 1
            line.append((tickets, new))
            del joining[new]

    for _ in range(250):
        step = chance.random()
        if step < 0.2:
            join()
            tickets += 1
            line.append((tickets, engine.enqueue()))
            enqueued += 1
        elif step < 0.3:
            join()  # an enqueue for later has the lane's enqueue lock as well
            wait = chance.choice([1, 3, 10])
            joining[engine.enqueue_later(f"{wait * 100} s")] = now + wait
            enqueued += 1
        elif step < 0.55 and running:
            key = chance.choice(list(running))
            start, ticket = running.pop(key)
            kind = chance.choice(["succeeded", "succeeded", "released", "hold", "yield", "tail"])
            if kind in ("hold", "yield", "tail"):
                delay = chance.choice([0, 2, 5])
                failing(engine, kind, max_concurrent=limit, max_attempts=1000)
                engine.hand_in(worker, start, outcome="failed", after=delay * 100)
                if kind == "hold":
                    held[key] = (now + delay, ticket)
                elif kind == "yield":
                    yielded[key] = (now + delay, ticket)
                else:
                    joining[key] = now + delay
            else:
                engine.hand_in(worker, start, outcome=kind)
                if kind == "released":
                    line.append((ticket, key))
                else:
                    succeeded += 1
        elif step < 0.6:
            now += 1
            engine.advance("100 s")
        elif step < 0.65 and (line or joining or yielded or held):
            key = chance.choice([*(each for _, each in line), *joining, *yielded, *held])
            assert engine.cancel(key) == "cancelled"
            line[:] = [(order, each) for order, each in line if each != key]
            for states in (joining, yielded, held):
                states.pop(key, None)
            cancelled += 1
        else:
            most = chance.randint(1, 3)
            join()
            for key, (due, ticket) in list(yielded.items()):
                if due <= now:
                    line.append((ticket, key))
                    del yielded[key]
            line.sort()
            due_held = sorted((ticket, key) for key, (due, ticket) in held.items() if due <= now)
            free = limit - len(running) - len(held)
            # A held one that an older one waits for gives its slot back, the youngest first.
            for ticket, key in reversed(due_held):
                if sum(order < ticket for order, _ in line) <= free:
                    break
                line.append((ticket, key))
                line.sort()
                del held[key]
                free += 1
                due_held.remove((ticket, key))
            expected: list[tuple[int, int]] = []
            for ticket, key in sorted([*due_held, *line]):
                if len(expected) == most:
                    break
                if key in held:
                    del held[key]
                elif free > 0:
                    free -= 1
                    line.remove((ticket, key))
                else:
                    continue
                expected.append((ticket, key))
            starts: list[Start] = []
            while len(starts) < most:
                answer = engine.work(worker, most - len(starts))
                starts += answer.starts
                if not answer.starts and answer.more not in ("now", "soon"):
                    break
            assert [start.id for start in starts] == [key for _, key in expected]
            for start, (ticket, key) in zip(starts, expected, strict=True):
                running[key] = (start, ticket)
        stats = identity(engine)
        joined = {key for key in joining if engine.state(key) == "waiting"}
        assert stats["active_count"] == len(running) + len(held)
        assert stats["held_count"] == len(held)
        assert stats["queue_length"] + stats["delayed_count"] == len(line) + len(joining) + len(yielded), (
            joined
        )
        assert (stats["total_succeeded"], stats["total_cancelled"]) == (succeeded, cancelled)
    engine.assert_promises()


def test_failure_modes_many_workers_and_producers_keep_every_promise(
    conn: Connection, connect: Connect
) -> None:
    """Three lanes, one for each mode; every third attempt fails, workers die, others enqueue meanwhile."""
    engine = Engine(conn)
    engine.policy(max_concurrent=2, backoff_initial=0.01, backoff_cap=0.05, max_attempts=50)
    lanes = {"hold": "h", "yield": "y", "tail": "t"}
    for mode, group in lanes.items():
        engine.enqueue(group=group)
        engine.policy(group=group, failure_mode=mode)

    def produce(own: Connection, seed: int) -> int:
        chance = random.Random(seed)
        producer = Engine(own)
        group = "t"
        for _ in range(60):
            producer.enqueue(group=group) if chance.random() < 0.7 else producer.enqueue_later(
                "0.02 s", group=group
            )
            if chance.random() < 0.3:
                own.commit()  # one lane in a transaction: two in opposite orders could wait for each other
                group = chance.choice(list(lanes.values()))
        own.commit()
        return 60

    def consume(hand: Hand) -> int:
        ended: list[Start] = []
        done = idle = 0
        while idle < 60:
            bad = [start for start in ended if (start.id + start.attempt) % 3 == 0]
            hand.to_hand_in += [item(start, "failed") for start in bad]
            ended = hand.turn(4, [start for start in ended if start not in bad]).starts
            done += len(ended)
            idle = 0 if ended else idle + 1
        return done

    def produces(seed: int) -> Background[int]:
        own = connect(autocommit=False)
        return in_background(lambda: produce(own, seed))

    def consumes() -> Background[int]:
        hand = Hand(connect())
        return in_background(lambda: consume(hand))

    producers, consumers = [produces(seed) for seed in range(3)], [consumes() for _ in range(3)]
    made = sum(producer.result(120) for producer in producers)
    assert sum(consumer.result(120) for consumer in consumers) > 0
    engine.advance("1 s")
    last = Hand(conn)
    ended: list[Start] = []
    for _ in range(500):
        ended = last.turn(10, ended).starts
        if not ended and not engine.rows("select from pgfifo._executions"):
            break
        engine.advance("0.1 s")
    stats = identity(engine)
    assert stats["total_succeeded"] == made + 3, "not all have come to their end"
    assert stats["total_failed"] == 0
    engine.assert_promises()


def test_failure_mode_that_does_not_exist_is_refused(conn: Connection) -> None:
    with pytest.raises(errors.InvalidValue):
        Engine(conn).policy(failure_mode="drop")


def test_failure_exhausted_lanes_go_on_with_the_resume_of_their_action(
    conn: Connection, connect: Connect
) -> None:
    """Except one that was paused by hand, and one that is being stopped again at that moment."""
    engine = Engine(conn)
    failing(engine, "hold", on_exhausted="pause")
    for group in ("a", "b", "c", "by hand"):
        engine.enqueue_many("deploy", [{}] * 3, [group] * 3)
    worker = engine.worker()
    starts = engine.claim(worker, 4)
    engine.hand_in(worker, *starts[:2], outcome="failed", retry=False)
    engine.hand_in(worker, starts[3])
    engine.pause(group="by hand")
    stopping = Engine(connect(autocommit=False))
    stopping.finish(starts[2], "failed", retry=False)
    assert engine.stats()["paused_lanes"] == 3
    assert engine.resume() is True, "it waited for a failure that was not committed"
    stopping.conn.commit()
    assert {row[0]: row[1] for row in engine.rows("select group_text, paused from pgfifo.lane_stats")} == {
        "a": False,
        "b": False,
        "c": True,
        "by hand": True,
    }
    assert len(engine.drain(worker)) == 4, "the lanes were not looked at again"
    assert engine.resume() is True
    assert len(engine.drain(worker)) == 2
    assert engine.resume() is False
    assert (
        engine.one("select detail -> 'lanes' from pgfifo.audit where what = 'resume' order by id limit 1")
        == 2
    )
    engine.assert_promises()
