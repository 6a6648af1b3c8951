"""Removing an action: nothing of it is left, and nothing that is still to be done goes with it."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

import pgfifo
from pgfifo import errors
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine, item

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

ABOUT = """
    select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace = 'pgfifo'::regnamespace and c.relkind in ('r', 'p') and not a.attisdropped
      and a.attname in ('action_id', 'lane_id', 'dedup_action_id', 'target')
"""


def remains(engine: Engine, action: int, lanes: list[int]) -> list[str]:
    """Return the tables in which something speaks of an action or its lanes."""
    names = {
        "action_id": [str(action)],
        "dedup_action_id": [str(action)],
        "lane_id": [str(id_) for id_ in lanes],
    }
    names["target"] = [f"{kind}action:{action}" for kind in ("", "quota ", "length ")]
    names["target"] += [f"{kind}lane:{id_}" for id_ in lanes for kind in ("", "quota ", "length ")]
    found = []
    for table, column in engine.rows(ABOUT):
        query = sql.SQL("select exists (select from pgfifo.{} x where x.{}::text = any (%s))").format(
            sql.Identifier(table), sql.Identifier(column)
        )
        if engine.conn.execute(query, [names[column]]).fetchone() == (True,):
            found.append(table)
    return found


def test_nothing_is_left_of_an_action_that_was_removed_and_all_of_the_others(conn: Connection) -> None:
    engine = Engine(conn)
    for action in ("deploy", "other"):
        engine.policy(action, rate="100/s", quota="9/day", max_action_queue_length=50, retention=3600)
        engine.policy(action, "a", max_concurrent=2, quota="9/day")
        engine.rows("select pgfifo.override_policy(%s, '{\"max_attempts\": 2}', '1 hour')", action)
        engine.rows("select pgfifo.set_schedule(%s, %s, '@daily')", f"daily.{action}", action)
        engine.one("select pgfifo.enqueue(%s, '{}', 'a', p_request_id => 'r', p_dedup_key => 'd')", action)
        engine.fill(3, action, "b")
        worker = engine.worker(action)
        engine.drain(worker, [action])
        engine.advance("3 minutes")
        engine.maintain()
        engine.one("select pgfifo.worker_stop(%s)", worker)
    action = engine.one("select id from pgfifo.actions where name = 'deploy'")
    lanes = [id_ for (id_,) in engine.rows("select id from pgfifo.lanes where action_id = %s", action)]
    before = set(remains(engine, action, lanes))
    assert {
        "lanes",
        "ledger",
        "policies",
        "_overrides",
        "_schedules",
        "requests",
        "history",
        "tallies",
    } <= before
    with pgfifo.Client(conn) as fifo:
        fifo.remove_action("deploy")
        assert [each.action for each in fifo.stats()] == ["other"]
        with pytest.raises(pgfifo.UnknownAction):
            fifo.remove_action("deploy")
    assert remains(engine, action, lanes) == []
    assert engine.stats("other")["total_succeeded"] == 4
    assert engine.rows("select what, action from pgfifo.audit order by id desc limit 1") == [
        ("remove_action", "deploy")
    ]
    engine.assert_promises()
    again = engine.enqueue("deploy")
    assert engine.drain(engine.worker("deploy")) == [again], "a new action of the name does not work"


@pytest.mark.parametrize("state", ["waiting", "delayed", "running", "held"])
def test_an_action_with_something_to_do_is_not_removed(conn: Connection, state: str) -> None:
    engine = Engine(conn)
    id_ = engine.enqueue_later("1 hour") if state == "delayed" else engine.enqueue()
    worker = engine.worker()
    if state in ("running", "held"):
        [start] = engine.work(worker, 1).starts
        if state == "held":
            engine.work(worker, 0, finished=[item(start, "failed")])
    assert engine.state(id_) == state
    with pytest.raises(errors.Busy, match="1 execution of it has no outcome yet"):
        engine.one("select pgfifo.remove_action('deploy')")
    assert engine.state(id_) == state


def test_an_action_that_a_living_worker_serves_is_not_removed(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    worker = engine.worker()
    with pytest.raises(errors.Busy, match="1 worker serves it"):
        engine.one("select pgfifo.remove_action('deploy')")
    engine.one("select pgfifo.worker_stop(%s)", worker)
    engine.enqueue("other")
    both = engine.worker("deploy", "other")
    engine.one("select pgfifo.worker_stop(%s)", both)
    engine.one("select pgfifo.remove_action('deploy')")
    assert engine.rows("select name from pgfifo.actions") == [("other",)]
    assert engine.rows("select id from pgfifo._workers") == [(both,)], "it served nothing that there still is"
    engine.cancel(engine.one("select id from pgfifo._executions"))
    engine.one("select pgfifo.remove_action('other')")
    assert engine.rows("select from pgfifo._workers") == []


def test_an_enqueue_in_flight_is_waited_for_and_then_counts(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    producer, operator = Engine(connect(autocommit=False)), Engine(connect())
    id_ = producer.enqueue()
    removal = in_background(lambda: operator.one("select pgfifo.remove_action('deploy')"))
    wait_until_blocked(conn, operator.pid)
    producer.conn.commit()
    with pytest.raises(errors.Busy, match="no outcome yet"):
        removal.result()
    assert engine.state(id_) == "waiting", "an accepted execution was removed"


def test_an_enqueue_that_waits_for_the_removal_is_refused_and_not_swallowed(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    operator, producer = Engine(connect(autocommit=False)), Engine(connect())
    operator.one("select pgfifo.remove_action('deploy')")
    enqueue = in_background(producer.enqueue)
    wait_until_blocked(conn, producer.pid)
    operator.conn.commit()
    with pytest.raises(psycopg.Error):
        enqueue.result()
    assert engine.rows("select id from pgfifo._executions") == []
    assert engine.state(producer.enqueue()) == "waiting"
