"""Fencing: who lost an execution cannot finish it; the dead are found out, and nobody else is."""

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgfifo import errors
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine, item

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def kill_by_lease(engine: Engine, worker: int) -> None:
    """Let a worker miss its lease of 30 ticks, and stop with the round that says so."""
    for _ in range(32):
        if engine.one("select state from pgfifo.workers where id = %s", worker) == "dead":
            return
        engine.tick()
    raise AssertionError("a worker that missed its lease was not declared dead")


# -- zombies -----------------------------------------------------------------------------------------


def test_fencing_a_zombie_that_completes_too_late_changes_nothing(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff="constant", backoff_initial=5, backoff_jitter=0)
    new = engine.enqueue()
    zombie = engine.worker()
    (old,) = engine.claim(zombie)
    kill_by_lease(engine, zombie)
    engine.tick()
    assert engine.state(new) == "held", "what a dead worker had was not taken back"
    with pytest.raises(errors.LeaseLost) as caught:
        engine.hand_in(zombie, old)
    assert caught.value.detail == {"worker": zombie, "state": "dead"}
    with pytest.raises(errors.LeaseLost):
        engine.finish(old)
    with pytest.raises(errors.LeaseLost):
        engine.release(old)
    with pytest.raises(errors.LeaseLost):
        engine.heartbeat(zombie, held=[new])
    with pytest.raises(errors.LeaseLost):
        engine.claim(zombie)
    assert engine.state(new) == "held", "a zombie changed what it does not own"
    engine.tick(6)
    heir = engine.worker()
    (again,) = engine.claim(heir)
    assert (again.id, again.attempt) == (new, 2)
    assert again.token != old.token, "a downstream write can not tell the zombie from its heir"
    with pytest.raises(errors.LeaseLost):
        engine.finish(old)
    assert engine.hand_in(heir, old) == {new: "lost"}, (
        "an old attempt was finished in the name of the new one"
    )
    assert engine.state(new) == "running"
    assert engine.hand_in(heir, again) == {}
    with pytest.raises(errors.LeaseLost):
        engine.finish(old)
    show = engine.show(new)
    assert (show["state"], show["attempt"], show["failures"]) == ("succeeded", 2, 1)
    engine.assert_promises()


def test_fencing_between_the_declaration_and_the_return_nothing_can_be_finished(conn: Connection) -> None:
    """Declared dead in one round, taken back in the next: in between it belongs to nobody."""
    engine = Engine(conn)
    new = engine.enqueue()
    zombie = engine.worker()
    (start,) = engine.claim(zombie)
    kill_by_lease(engine, zombie)
    assert engine.state(new) == "running", "this test is about the time before it is taken back"
    with pytest.raises(errors.LeaseLost):
        engine.hand_in(zombie, start)
    with pytest.raises(errors.LeaseLost):
        engine.finish(start)
    assert engine.claim(engine.worker(), 5) == [], "its slot was given on while its end was not on record"
    engine.tick()
    assert engine.state(new) == "held"


def test_fencing_a_finish_in_flight_keeps_its_worker_alive(conn: Connection, connect: Connect) -> None:
    """The claim or finish holds the worker's fence: whoever would declare it dead looks again later."""
    engine = Engine(conn)
    engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    engine.tick(28)
    finishing = Engine(connect(autocommit=False))
    assert finishing.hand_in(worker, start) == {}
    engine.tick(5)
    assert engine.one("select state from pgfifo.workers") == "alive"
    finishing.conn.commit()
    assert engine.state(start.id) == "succeeded"
    engine.tick()
    assert engine.one("select state from pgfifo.workers") == "dead"
    engine.assert_promises()


def test_fencing_a_call_beside_its_own_declaration_of_death_fails(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    engine.tick(30)
    engine.advance("1 s")
    reaper, late = Engine(connect(autocommit=False)), Engine(connect())
    assert reaper.maintain()["dead"] == 1
    finish = in_background(lambda: late.hand_in(worker, start))
    wait_until_blocked(conn, late.pid)
    reaper.conn.commit()
    with pytest.raises(errors.LeaseLost):
        finish.result()
    assert engine.state(start.id) == "running"


# -- once is enough ------------------------------------------------------------------------------------


def test_fencing_completing_twice_counts_once_and_says_ok(conn: Connection) -> None:
    engine = Engine(conn)
    new = engine.enqueue()
    worker, other = engine.worker(), engine.worker()
    (start,) = engine.claim(worker)
    assert engine.hand_in(worker, start) == {}
    assert engine.hand_in(worker, start) == {}, (
        "a worker whose answer was lost was told that it lost its lease"
    )
    assert engine.hand_in(worker, start, start) == {}
    assert engine.hand_in(worker, start, outcome="failed") == {new: "lost"}, "told ok, and it succeeded"
    assert engine.hand_in(other, start) == {new: "lost"}, "somebody else's finish was accepted"
    assert engine.finish(start) == "succeeded"
    with pytest.raises(errors.LeaseLost):
        engine.finish(start, "failed")
    assert engine.stats()["total_completed"] == 1
    engine.assert_promises()


def test_fencing_failing_twice_counts_once(conn: Connection) -> None:
    engine = Engine(conn)
    new = engine.enqueue()
    worker, other = engine.worker(), engine.worker()
    (start,) = engine.claim(worker)
    assert engine.hand_in(worker, start, outcome="failed") == {}
    assert engine.hand_in(worker, start, outcome="failed") == {}
    assert engine.hand_in(worker, start) == {new: "lost"}, "told ok, and it is going to run again"
    assert engine.show(new)["failures"] == 1, "one failure was counted twice"
    engine.advance("10 s")
    (again,) = engine.claim(other)
    assert engine.hand_in(worker, start, outcome="failed") == {}
    assert engine.state(new) == "running", "a repeated report of the first attempt ended the second"
    assert engine.hand_in(other, again, outcome="released") == {}
    assert engine.hand_in(other, again, outcome="released") == {}
    assert engine.hand_in(worker, again) == {new: "lost"}
    engine.assert_promises()


def test_fencing_a_batch_with_good_and_bad_items_ends_the_good_ones(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=5)
    ids = engine.fill(5)
    worker, other = engine.worker(), engine.worker()
    mine, theirs = engine.claim(worker, 3), engine.claim(other, 2)
    wrong = mine[1]._replace(attempt=7)
    answer = engine.work(
        worker,
        0,
        [],
        [item(mine[0]), item(wrong), item(theirs[0]), item(mine[2], "failed", error="no"), item(mine[0])],
    )
    assert answer.refused == {wrong.id: "lost", theirs[0].id: "lost"}
    assert engine.states(ids) == ["succeeded", "running", "held", "running", "running"]
    with pytest.raises(errors.InvalidValue, match="not as 'done'"):
        engine.work(worker, 0, [], [item(mine[1], "done")])
    with pytest.raises(errors.InvalidValue):
        engine.finish(mine[1], "released")
    engine.assert_promises()


def test_fencing_what_is_not_there_is_said_to_be_unknown(conn: Connection) -> None:
    engine = Engine(conn)
    new = engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    nobody = start._replace(id=new + 1000)
    with pytest.raises(errors.UnknownExecution):
        engine.finish(nobody)
    with pytest.raises(errors.UnknownExecution):
        engine.release(nobody)
    with pytest.raises(errors.LeaseLost):
        engine.finish(start._replace(attempt=2))
    with pytest.raises(errors.LeaseLost, match="there is no worker"):
        engine.claim(worker + 1000)
    assert engine.hand_in(worker, nobody) == {nobody.id: "lost"}


def test_fencing_released_executions_get_a_new_token(conn: Connection) -> None:
    engine = Engine(conn)
    new = engine.enqueue()
    worker = engine.worker()
    (first,) = engine.claim(worker)
    epoch = engine.one("select epoch from pgfifo.schema_info()")
    assert first.token == f"{epoch}-{new}-1"
    engine.release(first)
    show = engine.show(new)
    assert (show["state"], show["attempt"], show["failures"]) == ("waiting", 1, 0)
    with pytest.raises(errors.LeaseLost):
        engine.release(first)
    (second,) = engine.claim(worker)
    assert second.token == f"{epoch}-{new}-2"
    assert engine.hand_in(worker, first) == {new: "lost"}, "a released attempt could still be finished"
    conn.execute("update pgfifo.installation set epoch = epoch + 1")
    engine.release(second)
    assert engine.claim(worker) == [], "given out before the worker said what it still holds of older ones"
    conn.execute("select from pgfifo.heartbeat(%s)", [worker])
    (third,) = engine.claim(worker)
    assert third.token == f"{epoch + 1}-{new}-3", "after a restore old tokens must not match"
    engine.hand_in(worker, third)
    engine.assert_promises()


# -- lost answers --------------------------------------------------------------------------------------


def test_fencing_a_claim_asked_again_returns_the_same_rows(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=5)
    ids = engine.fill(10)
    worker = engine.worker()
    first = engine.work(worker, 3, call=1)
    again = engine.work(worker, 3, call=1)
    assert again.starts == first.starts, "a lost answer cost executions, or started others in their place"
    assert again.ids == ids[:3]
    second = engine.work(worker, 5, call=2, finished=[item(start) for start in first.starts])
    assert second.ids == ids[3:8]
    repeated = engine.work(worker, 5, call=2, finished=[item(start) for start in first.starts])
    assert repeated.starts == second.starts
    assert repeated.refused == {}
    assert engine.stats()["total_succeeded"] == 3
    engine.assert_promises()


def test_fencing_a_heartbeat_gives_back_what_never_arrived_and_nothing_newer(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=6)
    ids = engine.fill(6)
    worker = engine.worker()
    known = engine.work(worker, 2, call=1)
    lost = engine.work(worker, 2, call=2)
    newer = engine.work(worker, 2, call=3)
    assert engine.heartbeat(worker, 1, known.ids) == {}
    assert engine.states(ids) == ["running"] * 6, "rows of calls that it has not seen were taken from it"
    assert engine.heartbeat(worker, 2, known.ids) == {}
    assert engine.states(lost.ids) == ["waiting"] * 2, (
        "executions that nobody knows of keep their slots for ever"
    )
    assert engine.states(newer.ids) == ["running"] * 2
    assert [engine.show(id_)["failures"] for id_ in lost.ids] == [0, 0]
    assert [start.id for start in engine.claim(engine.worker(), 5)] == lost.ids
    assert engine.heartbeat(worker, 3, [*known.ids, *lost.ids, *newer.ids]) == dict.fromkeys(lost.ids, "lost")
    engine.assert_promises()


def test_fencing_a_heartbeat_tries_again_where_the_lane_was_locked(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3)
    ids = engine.fill(3)
    worker = engine.worker()
    engine.work(worker, 1, call=1)
    busy = Engine(connect(autocommit=False))
    busy.cancel(ids[2])
    engine.heartbeat(worker, 1, [])
    assert engine.state(ids[0]) == "running"
    busy.conn.rollback()
    engine.heartbeat(worker, 1, [])
    assert engine.state(ids[0]) == "waiting", "an execution that nobody knows of keeps its slot for ever"
    engine.assert_promises()


# -- death -----------------------------------------------------------------------------------------------


def test_fencing_death_by_lease_is_counted_in_ticks_and_heartbeats_prevent_it(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue()
    silent, lively = engine.worker(), engine.worker()
    for _ in range(30):
        engine.tick()
        engine.heartbeat(lively)
    states = "select state from pgfifo.workers order by id"
    assert engine.rows(states) == [("alive",), ("alive",)], "a worker was declared dead within its lease"
    engine.tick()
    assert engine.rows(states) == [("dead",), ("alive",)]
    assert silent < lively


def test_fencing_an_outage_kills_nobody(conn: Connection) -> None:
    """An hour in which nothing ran: the first round of maintenance afterwards must not declare all dead."""
    engine = Engine(conn)
    engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    engine.advance("1 hour")
    for _ in range(3):
        engine.tick()
    assert engine.one("select state from pgfifo.workers") == "alive", (
        "an outage cost a living worker its work"
    )
    engine.heartbeat(worker)
    assert engine.hand_in(worker, start) == {}
    engine.advance("-2 hours")
    engine.tick(3)
    assert engine.one("select state from pgfifo.workers") == "alive", "a clock set back killed a worker"
    engine.assert_promises()


def test_fencing_a_lost_session_lock_means_death_after_a_grace(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(backoff_initial=0)
    new = engine.enqueue()
    session = connect()
    worker = Engine(session).worker(locked=True)
    engine.work(worker, 1)
    engine.tick(3)
    assert engine.one("select state from pgfifo.workers") == "alive"
    conn.execute("select pg_terminate_backend(%s, 10000)", [session.info.backend_pid])
    engine.tick()
    assert engine.one("select state from pgfifo.workers") == "alive", "there was no grace for a reconnect"
    engine.tick()
    assert engine.one("select state from pgfifo.workers") == "dead", "its lock is gone and it still counts"
    engine.tick()
    assert engine.claim(engine.worker())[0].id == new
    engine.assert_promises()


def test_fencing_a_session_lock_taken_again_within_the_grace_saves_the_worker(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    engine.enqueue()
    session, next_session = connect(), connect()
    worker = Engine(session).worker(locked=True)
    (start,) = engine.claim(worker)
    session.close()
    conn.execute(
        "select pg_terminate_backend(%s, 5000)", [session.info.backend_pid]
    ) if not session.closed else None
    next_session.execute("select pgfifo.worker_relock(%s)", [worker])
    engine.tick(5)
    assert engine.one("select state from pgfifo.workers") == "alive"
    assert engine.hand_in(worker, start) == {}


def test_fencing_a_held_lock_never_means_alive(conn: Connection, connect: Connect) -> None:
    """The session is there and nothing comes from it: the lease decides."""
    engine = Engine(conn)
    engine.enqueue()
    worker = Engine(connect()).worker(locked=True)
    engine.claim(worker)
    kill_by_lease(engine, worker)


def test_fencing_a_lost_attempt_counts_a_failure_and_waits_its_backoff(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff="constant", backoff_initial=20, backoff_jitter=0)
    new, behind = engine.fill(2)
    worker = engine.worker()
    engine.claim(worker)
    kill_by_lease(engine, worker)
    engine.tick()
    show = engine.show(new)
    assert (show["state"], show["failures"], show["attempt"]) == ("held", 1, 1)
    assert f"worker {worker}" in show["error"]
    assert engine.claim(engine.worker(), 5) == [], (
        "a poison execution is tried again at once, by the next worker"
    )
    engine.advance("21 s")
    assert engine.drain(engine.worker()) == [new, behind], "what a dead worker had was overtaken"
    engine.assert_promises()


def test_fencing_a_poison_execution_is_given_up_after_its_attempts(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_attempts=3, backoff_initial=0)
    poison, next_one = engine.fill(2)
    for attempt in (1, 2, 3):
        worker = engine.worker(lease="1 s")
        (start,) = engine.claim(worker)
        assert (start.id, start.attempt) == (poison, attempt)
        engine.tick(3)
    show = engine.show(poison)
    assert (show["state"], show["attempt"], show["failures"]) == ("failed", 3, 3)
    assert "was lost" in show["error"]
    assert engine.drain(engine.worker()) == [next_one], "a poison execution stopped its lane"
    engine.assert_promises()


def test_fencing_a_dead_workers_row_stays_until_nothing_is_left_in_its_name(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    ids = engine.fill(2)
    worker = engine.worker()
    engine.claim(worker)
    kill_by_lease(engine, worker)
    busy = Engine(connect(autocommit=False))
    busy.cancel(ids[1])
    engine.advance("2 days")
    engine.tick(2)
    assert engine.one("select executions from pgfifo.workers where id = %s", worker) == 1
    assert [kind for _, kind, _, _ in engine.check()] == ["worker"]
    busy.conn.rollback()
    engine.tick(12)
    assert engine.state(ids[0]) == "held"
    engine.advance("2 days")
    engine.tick(12)
    assert engine.rows("select 1 from pgfifo.workers where id = %s", worker) == []


def test_fencing_what_a_stopped_worker_left_in_a_locked_lane_is_taken_back_later(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    ids = engine.fill(2)
    worker = engine.worker()
    engine.claim(worker)
    busy = Engine(connect(autocommit=False))
    busy.cancel(ids[1])
    assert engine.one("select pgfifo.worker_stop(%s)", worker) == 0
    busy.conn.rollback()
    engine.tick(2)
    show = engine.show(ids[0])
    assert (show["state"], show["failures"]) == ("waiting", 0), (
        "a stopped worker took a slot with it for ever"
    )
    assert engine.one("select pgfifo.worker_stop(%s)", worker) == 0
    assert engine.drain(engine.worker()) == ids
    engine.assert_promises()


@pytest.mark.parametrize(
    ("actions", "concurrency", "lease"),
    [("{}", 1, "30 s"), ("{deploy}", 0, "30 s"), ("{deploy}", 1, "0.5 s")],
)
def test_fencing_a_worker_that_makes_no_sense_is_not_registered(
    conn: Connection, actions: str, concurrency: int, lease: str
) -> None:
    engine = Engine(conn)
    engine.enqueue()
    with pytest.raises(errors.InvalidValue):
        engine.one("select pgfifo.worker_start('', '', 1, %s, %s, %s)", actions, concurrency, lease)
    with pytest.raises(errors.UnknownAction, match="deplyo") as caught:
        engine.worker("deplyo")
    assert "'deploy'" in (caught.value.hint or "")
    assert engine.rows("select 1 from pgfifo.workers") == []


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("old", ["succeeded", "failed", "released", "cancelled"])
def test_fencing_each_attempt_in_a_batch_gets_its_own_answer(
    conn: Connection, old: str, swapped: bool
) -> None:
    """An older attempt beside the one that counts is lost, not taken in silence for what was done."""
    engine = Engine(conn)
    new = engine.enqueue()
    worker = engine.worker()
    (first,) = engine.claim(worker)
    engine.release(first)
    (second,) = engine.claim(worker)
    items = [item(first, old), item(second), item(second), item(second, "failed")]
    answers = engine.rows(
        "select id, attempt, status from pgfifo.work(%s, '{}', 0, null, %s::jsonb) where kind = 'finish'",
        worker,
        json.dumps(items[::-1] if swapped else items),
    )
    # What is said twice was done once, and another outcome of it is refused. The first one was released.
    earlier = [] if old == "released" else [(new, 1, "lost")]
    assert sorted(answers) == [*earlier, (new, 2, "lost")]
    assert engine.state(new) == "succeeded"
    engine.assert_promises()


def test_fencing_an_older_attempt_in_a_batch_that_ended_so_is_no_loss(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff_initial=0, backoff_jitter=0)
    new = engine.enqueue()
    worker = engine.worker()
    (first,) = engine.claim(worker)
    assert engine.hand_in(worker, first, outcome="failed", error="boom") == {}
    (second,) = engine.claim(worker)
    answer = engine.work(worker, 0, [], [item(first, "failed", error="boom"), item(second)])
    assert (answer.refused, engine.state(new)) == ({}, "succeeded")
    engine.assert_promises()
