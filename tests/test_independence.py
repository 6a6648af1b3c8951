"""Independence: the state of one lane does not slow another."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.engine import Engine, Start, item

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def test_independence_of_three_actions_with_fifty_each(conn: Connection) -> None:
    """Completions interleaved in all ways; each action runs in its own order under its own limit."""
    engine = Engine(conn)
    limits = {"deploy": 1, "index": 3, "mail.send": 7}
    for action, limit in limits.items():
        engine.policy(action, max_concurrent=limit)
    ids: dict[str, list[int]] = {action: [] for action in limits}
    for n in range(150):
        action = list(limits)[n % 3]
        ids[action].append(engine.enqueue(action))
    worker = engine.worker(*limits)
    running: list[Start] = []
    begun: dict[str, list[int]] = {action: [] for action in limits}
    turn = 0
    while sum(map(len, begun.values())) < 150 or running:
        turn += 1
        assert turn < 500, "an action came to a stop"
        running.sort(key=lambda start: (start.id * 7919) % 101)
        ended, running = running[: 1 + turn % 4], running[1 + turn % 4 :]
        answer = engine.work(worker, 5, list(limits), [item(start) for start in ended])
        for start in answer.starts:
            begun[start.action].append(start.id)
        running += answer.starts
        for action, limit in limits.items():
            assert sum(start.action == action for start in running) <= limit
    assert begun == ids, "an action's order depended on another action"
    for action in limits:
        stats = engine.stats(action)
        assert (stats["total_succeeded"], stats["queue_length"], stats["active_count"]) == (50, 0, 0)
        assert engine.started(action) == ids[action]
    engine.assert_promises()


def hinder(engine: Engine, other: Engine, how: str) -> None:
    """Put the lane `bad` into a state."""
    engine.fill(50, group="bad")
    worker = engine.worker()
    if how == "full":
        assert len(engine.claim(worker, 5)) == 1
    elif how == "paused":
        engine.pause(group="bad")
    elif how == "its head fails":
        engine.finish(engine.claim(worker)[0], "failed")
    elif how == "locked":
        other.cancel(engine.one("select min(id) from pgfifo._executions"))
    elif how == "an enqueue is open":
        other.enqueue(group="bad")
    elif how == "a claim is open":
        assert len(other.claim(worker)) == 1
    elif how == "its worker is dead":
        engine.claim(worker)
        engine.tick(32)


STATES = [
    "full",
    "paused",
    "its head fails",
    "locked",
    "an enqueue is open",
    "a claim is open",
    "its worker is dead",
]


@pytest.mark.parametrize("how", STATES)
def test_independence_a_lane_in_trouble_does_not_hold_up_another(
    conn: Connection, connect: Connect, how: str
) -> None:
    engine, other = Engine(conn), Engine(connect(autocommit=False))
    engine.policy(backoff_initial=3600)
    hinder(engine, other, how)
    conn.execute("set lock_timeout = '1ms'")  # nothing that follows may wait for anything
    ids = engine.fill(20, group="good")
    worker = engine.worker()
    engine.one("select 1 from pgfifo.lanes where group_text = 'good'")
    order: list[int] = []
    finished: list[dict[str, object]] = []
    for _ in range(200):
        answer = engine.work(worker, 3, finished=finished)
        finished = [item(start) for start in answer.starts]
        order += [start.id for start in answer.starts if start.group == "good"]
        if len(order) == 20:
            break
    assert order == ids, f"the other lane stood still because this one: {how}"
    engine.work(worker, 0, [], finished)
    other.conn.rollback()
    engine.assert_promises()


def test_independence_hundreds_of_locked_lanes_in_front_are_passed_over(
    conn: Connection, connect: Connect
) -> None:
    engine, other = Engine(conn), Engine(connect(autocommit=False))
    ids = engine.enqueue_many("deploy", [{}] * 150, [f"{n}" for n in range(150)])
    for id_ in ids:
        other.cancel(id_)
    good = engine.fill(3, group="good")
    worker = engine.worker()
    order: list[int] = []
    for _ in range(30):
        for start in engine.claim(worker, 1):
            order.append(start.id)
            engine.hand_in(worker, start)
    assert order == good, "a free lane behind locked ones got nothing"
    other.conn.rollback()
    engine.advance("10 s")
    assert sorted(engine.drain(worker)) == ids, "lanes that were locked for a while were forgotten"
    engine.assert_promises()


@pytest.mark.parametrize("paused", ["x", "y"])
def test_independence_a_lane_uses_what_a_paused_one_leaves_of_a_calls_limit(
    conn: Connection, paused: str
) -> None:
    """Both have just ended something; the one that could start must, and not be left for the next call."""
    engine = Engine(conn)
    for group in ("x", "y"):
        engine.fill(2, group=group)
    worker = engine.worker()
    first = engine.claim(worker, 2)
    assert len(first) == 2
    engine.pause(group=paused)
    answer = engine.work(worker, 1, finished=[item(start) for start in first])
    assert [start.group for start in answer.starts] == [{"x": "y", "y": "x"}[paused]]
    engine.assert_promises()


def test_independence_lanes_take_turns(conn: Connection) -> None:
    """A deep lane that is always ready must not be refilled before the others have had their turn."""
    engine = Engine(conn)
    engine.fill(100, group="deep")
    worker = engine.worker()
    (start,) = engine.claim(worker)
    others = {group: engine.fill(1, group=group)[0] for group in ("a", "b", "c")}
    order = []
    for _ in range(5):
        answer = engine.work(worker, 1, finished=[item(start)], turn=0)
        (start,) = answer.starts
        order.append(start.id)
    assert set(others.values()) <= set(order), "a deep lane starved the others"
    engine.assert_promises()


def test_independence_actions_that_nobody_serves_do_not_show(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue_many("idle", [{}] * 500, [f"{n}" for n in range(500)])
    ids = engine.fill(5)
    worker = engine.worker()
    answer = engine.work(worker, 5)
    assert answer.ids == ids[:1]
    assert answer.more is None, "marks of somebody else's action were looked at"
    assert engine.stats("idle")["queue_length"] == 500
    engine.assert_promises()
