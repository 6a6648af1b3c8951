"""Finishing by hand: what is stuck ends, its slot goes on, and whoever had it is fenced off."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo import errors
from tests.support.database import in_background, wait_for, wait_until_blocked
from tests.support.engine import Engine, item

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

END = "select pgfifo.finish_execution(%s, %s, %s)"


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "cancelled"])
def test_a_stuck_one_ends_and_its_worker_is_fenced(conn: Connection, outcome: str) -> None:
    engine = Engine(conn)
    stuck, behind = engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    conn.execute("select set_config('pgfifo.actor', 'ada', false)")
    assert engine.one(END, stuck, outcome, "hangs") is True
    assert engine.one(END, stuck, "failed", "again") is False, "an outcome changed"
    show = engine.show(stuck)
    assert (show["state"], show["reason"], show["attempt"]) == (outcome, "hangs", 1)
    assert (show["error"], show["failures"]) == (("hangs", 1) if outcome == "failed" else (None, 0))
    assert engine.heartbeat(worker, held=[stuck]) == {stuck: "lost"}
    # Not even the same outcome is his to say.
    assert engine.hand_in(worker, start, outcome=outcome) == {stuck: "lost"}
    with pytest.raises(errors.LeaseLost):
        engine.finish(start, outcome)
    with pytest.raises(errors.LeaseLost):
        engine.release(start)
    assert engine.state(stuck) == outcome
    stats = engine.stats()
    assert (stats["active_count"], stats[f"total_{outcome}"]) == (0, 1)
    assert engine.drain(worker) == [behind], "its slot was not given on"
    audit = engine.rows("select what, action, actor, detail from pgfifo.audit order by id desc limit 1")
    detail = {"id": stuck, "outcome": outcome, "reason": "hangs", "was": "running", "attempt": 1}
    assert audit == [("finish", "deploy", "ada", {**detail, "worker": worker})]
    engine.assert_promises()


@pytest.mark.parametrize("state", ["held", "returned", "waiting"])
@pytest.mark.parametrize("outcome", ["succeeded", "failed", "cancelled"])
def test_what_does_not_run_ends_too(conn: Connection, state: str, outcome: str) -> None:
    engine = Engine(conn)
    engine.policy(backoff_initial=3600)
    worker = engine.worker()
    first, second = engine.fill(2)
    if state == "held":
        engine.finish(engine.claim(worker)[0], "failed", "boom")
    elif state == "returned":
        engine.release(engine.claim(worker)[0])
    before = engine.stats()
    assert engine.one(END, first, outcome, "by hand") is True
    show = engine.show(first)
    assert (show["state"], show["reason"]) == (outcome, "by hand")
    assert show["failures"] == (1 if state == "held" else 0)
    after = engine.stats()
    assert after[f"total_{outcome}"] == 1
    assert after["queue_length"] + after["active_count"] == 1
    assert after["total_enqueued"] == before["total_enqueued"]
    assert engine.drain(worker) == [second]
    engine.assert_promises()


def test_a_result_can_be_given_with_a_success_only(conn: Connection) -> None:
    engine = Engine(conn)
    first, second = engine.fill(2)
    engine.claim(engine.worker())
    for id_ in first, second:
        engine.one("""select pgfifo.finish_execution(%s, 'succeeded', null, '{"url": 1}')""", id_)
        assert engine.show(id_)["result"] == {"url": 1}
    third = engine.enqueue()
    for outcome, result in (("failed", "{}"), ("expired", None), ("released", None), (None, None)):
        with pytest.raises(errors.InvalidValue):
            engine.one("select pgfifo.finish_execution(%s, %s, null, %s)", third, outcome, result)
    with pytest.raises(errors.UnknownExecution):
        engine.one(END, 4711, "failed", None)


def test_beside_a_finish_in_flight_one_outcome_counts(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    ids = engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    working, operator = Engine(connect(autocommit=False)), Engine(connect())
    assert working.hand_in(worker, start) == {}
    ending = in_background(lambda: operator.one(END, start.id, "failed", "too late"))
    wait_until_blocked(conn, operator.pid)
    working.conn.commit()
    assert ending.result() is False
    assert engine.state(start.id) == "succeeded"
    # And the other way round.
    (start,) = engine.claim(worker)
    operator = Engine(connect(autocommit=False))
    assert operator.one(END, start.id, "failed", "first") is True
    handler = Engine(connect())
    late = in_background(lambda: handler.finish(start))
    wait_until_blocked(conn, handler.pid)
    operator.conn.commit()
    with pytest.raises(errors.LeaseLost):
        late.result()
    assert engine.states(ids) == ["succeeded", "failed"]
    engine.assert_promises()


def test_beside_a_claim_in_flight_it_ends_what_that_has_started(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    first, second = engine.fill(2)
    worker = engine.worker()
    claiming, operator = Engine(connect(autocommit=False)), Engine(connect())
    (start,) = claiming.claim(worker)
    ending = in_background(lambda: operator.one(END, first, "failed", "no"))
    wait_until_blocked(conn, operator.pid)
    claiming.conn.commit()
    assert ending.result() is True
    answer = engine.work(worker, 1, finished=[item(start)])
    assert (answer.refused, answer.ids) == ({first: "lost"}, [second])
    engine.assert_promises()


def test_a_rollback_gives_it_back_to_its_worker(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    (only,) = engine.fill(1)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    operator = Engine(connect(autocommit=False))
    operator.one(END, only, "failed", "no")
    operator.conn.rollback()
    assert engine.heartbeat(worker, held=[only]) == {}
    assert engine.hand_in(worker, start) == {}
    assert engine.state(only) == "succeeded"
    engine.assert_promises()


def test_a_handler_hears_that_it_has_lost_its_execution(dsn: str, conn: Connection) -> None:
    actions = pgfifo.Actions()
    heard: list[bool] = []

    @actions.action("deploy")
    def deploy(execution: pgfifo.Execution) -> None:
        wait_for(lambda: execution.cancel_requested, 20, "the handler to be told")
        heard.append(True)

    with pgfifo.Client(dsn) as fifo:
        job = fifo.enqueue("deploy")
        with pgfifo.Worker(dsn, actions, heartbeat=0.1):
            wait_for(lambda: fifo.execution(job.id).state == "running", message="the start")
            assert fifo.finish_execution(job.id, "failed", reason="stuck")
            wait_for(lambda: heard, 20, "the handler to end")
        info = fifo.execution(job.id)
    assert (info.state, info.reason, info.attempt) == ("failed", "stuck", 1)
