"""Closing: once it has committed no enqueue commits, and the line drains."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgfifo import errors
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

CLOSE = {None: "select pgfifo.close('deploy')", "g": "select pgfifo.close('deploy', 'g')"}
BOTH = pytest.mark.parametrize("group", [None, "g"], ids=["action", "lane"])


@BOTH
def test_a_closed_line_takes_nothing_and_drains(conn: Connection, group: str | None) -> None:
    engine = Engine(conn)
    ids = engine.fill(3, group="g")
    conn.execute("select set_config('pgfifo.actor', 'ada', false)")
    assert engine.one("select pgfifo.close('deploy', %s, 'incident 12')", group) is True
    assert engine.one("select pgfifo.close('deploy', %s)", group) is False, "closed twice"
    with pytest.raises(errors.ActionClosed) as caught:
        engine.enqueue(group="g")
    assert (caught.value.action, caught.value.group, caught.value.reason) == ("deploy", group, "incident 12")
    assert "incident 12" in str(caught.value)
    with pytest.raises(errors.ActionClosed) as batch:
        engine.enqueue_many("deploy", [{}, {}, {}], ["a", "b", "g"])
    assert batch.value.index == (0 if group is None else 2)
    assert engine.lane(group="g")["closed"] is True
    assert engine.stats()["closed"] is (group is None)
    assert engine.drain(engine.worker()) == ids
    audit = "select what, action, group_text, actor, detail ->> 'reason' from pgfifo.audit order by id"
    assert engine.rows(audit) == [("close", "deploy", group, "ada", "incident 12")]
    if group is not None:
        assert engine.enqueue(group="other"), "closing one lane closed another"
    assert engine.one("select pgfifo.open('deploy', %s)", group) is True
    assert engine.one("select pgfifo.open('deploy', %s)", group) is False, "opened twice"
    assert engine.lane(group="g")["closed"] is False
    assert engine.state(engine.enqueue(group="g")) == "waiting"
    engine.assert_promises()


@BOTH
def test_closing_waits_for_an_enqueue_in_flight_and_then_none_gets_in(
    conn: Connection, connect: Connect, group: str | None
) -> None:
    engine = Engine(conn)
    producer, operator, late = Engine(connect(autocommit=False)), Engine(connect()), Engine(connect())
    engine.enqueue(group="g")
    early = producer.enqueue(group="g")
    closing = in_background(lambda: operator.one(CLOSE[group]))
    wait_until_blocked(conn, operator.pid)
    refused = in_background(lambda: late.enqueue(group="g"))
    wait_until_blocked(conn, late.pid)
    producer.conn.commit()
    assert closing.result() is True
    with pytest.raises(errors.ActionClosed):
        refused.result()
    assert engine.state(early) == "waiting", "an enqueue that was in time was lost"


def test_closing_waits_for_a_batch_in_flight_whose_lanes_are_new(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.enqueue(group="g")
    producer, operator = Engine(connect(autocommit=False)), Engine(connect())
    producer.enqueue_many("deploy", [{}, {}], ["h", "i"])
    closing = in_background(lambda: operator.one(CLOSE[None]))
    wait_until_blocked(conn, operator.pid)
    producer.conn.commit()
    assert closing.result() is True
    assert engine.stats()["queue_length"] == 3


@BOTH
def test_an_enqueue_that_began_before_the_close_is_refused_after_it(
    conn: Connection, connect: Connect, group: str | None
) -> None:
    """It waits for the close's lock; what it has read before that counts for nothing."""
    engine = Engine(conn)
    engine.enqueue(group="g")
    operator, producer = Engine(connect(autocommit=False)), Engine(connect())
    assert operator.one(CLOSE[group]) is True
    enqueue = in_background(lambda: producer.enqueue(group="g"))
    wait_until_blocked(conn, producer.pid)
    batches = Engine(connect())
    batch = in_background(lambda: batches.enqueue_many("deploy", [{}, {}], ["f", "g"]))
    wait_until_blocked(conn, batches.pid)
    operator.conn.commit()
    for late in enqueue, batch:
        with pytest.raises(errors.ActionClosed):
            late.result()
    assert engine.stats()["queue_length"] == 1


@BOTH
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_an_enqueue_with_a_snapshot_from_before_the_close_is_refused(
    conn: Connection, connect: Connect, group: str | None, level: str
) -> None:
    engine = Engine(conn)
    engine.enqueue(group="g")
    calls = (
        "select pgfifo.enqueue('deploy', p_group => 'g')",
        "select id from pgfifo.enqueue_many('deploy', array['{}'::jsonb], '{g}')",
    )
    for call in calls:
        old = Engine(connect(autocommit=False))
        old.conn.execute(f"set transaction isolation level {level}")
        old.one("select count(*) from pgfifo.executions")
        engine.one(CLOSE[group])
        with pytest.raises(psycopg.errors.SerializationFailure):
            old.one(call)
        old.conn.rollback()
        engine.one("select pgfifo.open('deploy', %s)", group)
    assert engine.stats()["queue_length"] == 1
    fresh = Engine(connect(autocommit=False))
    fresh.conn.execute(f"set transaction isolation level {level}")
    fresh.enqueue(group="g")
    fresh.conn.commit()
    engine.one(CLOSE[group])
    fresh.conn.execute(f"set transaction isolation level {level}")
    with pytest.raises(errors.ActionClosed):
        fresh.enqueue(group="g")


@BOTH
def test_closing_gives_up_on_an_enqueue_that_stays_open_and_says_whose(
    conn: Connection, connect: Connect, group: str | None
) -> None:
    engine = Engine(conn)
    engine.enqueue(group="g")
    producer = Engine(connect(autocommit=False))
    producer.enqueue(group="g")
    with pytest.raises(errors.Busy) as caught:
        engine.one(CLOSE[group])
    assert caught.value.pids == [producer.pid]
    assert str(producer.pid) in (caught.value.hint or "")
    assert engine.stats()["closed"] is False
    assert engine.enqueue(group="free"), "a close that gave up keeps others out"


def test_closing_a_lane_does_not_wait_for_producers_of_others(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    producer = Engine(connect(autocommit=False))
    producer.enqueue(group="other")
    producer.conn.commit()
    producer.enqueue(group="other")
    assert engine.one(CLOSE["g"]) is True
    producer.conn.commit()


def test_a_lane_can_be_closed_before_it_is_there_and_stays(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(lane_retention=1)
    assert engine.one("select pgfifo.open('deploy', 'g')") is False
    assert engine.rows("select 1 from pgfifo.lanes") == [], "opening made a lane"
    assert engine.one(CLOSE["g"]) is True
    engine.advance("1 hour")
    engine.tick(2)
    with pytest.raises(errors.ActionClosed):
        engine.enqueue(group="g")
    engine.one("select pgfifo.open('deploy', 'g')")
    engine.advance("1 hour")
    engine.tick(2)
    assert engine.rows("select 1 from pgfifo.lanes") == [], "an opened lane is never removed"


def test_maintenance_does_not_wait_for_an_open_close(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(lane_retention=1)
    engine.enqueue(group="idle")
    engine.drain(engine.worker())
    engine.advance("1 hour")
    operator = Engine(connect(autocommit=False))
    operator.one(CLOSE[None])
    conn.execute("set statement_timeout = '5s'")
    engine.tick(2)
    assert engine.lane(group="idle")["total_succeeded"] == 1
    operator.conn.rollback()
    engine.tick(2)
    assert engine.rows("select 1 from pgfifo.lanes") == []
    assert engine.stats()["total_succeeded"] == 1


def test_closing_holds_up_neither_claims_nor_finishes(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    ids = engine.fill(3, group="g")
    operator = Engine(connect(autocommit=False))
    operator.one(CLOSE[None])
    operator.one(CLOSE["g"])
    assert engine.drain(engine.worker()) == ids
    operator.conn.commit()


@pytest.mark.parametrize("call", ["close", "open"])
def test_closing_needs_a_known_action_and_read_committed(
    conn: Connection, connect: Connect, call: str
) -> None:
    engine = Engine(conn)
    engine.enqueue()
    with pytest.raises(errors.UnknownAction) as caught:
        engine.one(f"select pgfifo.{call}('deplyo')")
    assert caught.value.nearest == "deploy"
    old = Engine(connect(autocommit=False))
    old.conn.execute("set transaction isolation level repeatable read")
    with pytest.raises(errors.IsolationLevel):
        old.one(f"select pgfifo.{call}('deploy')")
