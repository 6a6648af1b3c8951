"""Exact stats: statistics are true at every instant, compared with a model, never with the ledger itself."""

from collections.abc import Callable
from typing import Any

import psycopg

from tests.support.engine import Engine, item
from tests.support.model import Line

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def agree(engine: Engine, line: Line, action: str = "deploy") -> None:
    expected = line.numbers()
    stats = engine.stats(action)
    assert {name: stats[name] for name in expected} == expected, "the statistics are not what happened"


def test_stats_of_fifty_executions_are_exact_after_every_tenth(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=5, backoff="constant", backoff_initial=3600)
    line = Line(limit=5)
    worker = engine.worker()
    for _ in range(5):
        line.enqueue(*engine.fill(9), engine.enqueue())
        agree(engine, line)
    starts: dict[int, Any] = {}
    ended = 0
    while line.waiting or line.running:
        for start in engine.claim(worker, 5):
            assert start.id == line.next_ones(1)[0]
            line.start(start.id)
            starts[start.id] = start
        execution = min(line.running)
        ended += 1
        if ended % 10 == 4:
            engine.finish(starts[execution], "failed", retry=False)
            line.fail(execution)
        elif ended % 10 == 7:
            engine.release(starts[execution])
            line.release(execution)
        elif ended == 15:
            engine.finish(starts[execution], "failed")
            line.hold(execution)
        else:
            engine.hand_in(worker, starts[execution])
            line.succeed(execution)
        if ended % 10 == 9 and line.waiting:
            gone = line.waiting[-1]
            engine.cancel(gone)
            line.cancel(gone)
        if ended % 10 == 0:
            agree(engine, line)
    agree(engine, line)
    (held,) = line.held
    engine.cancel(held)
    line.cancel(held)
    agree(engine, line)
    numbers = line.numbers()
    assert (numbers["queue_length"], numbers["active_count"], numbers["total_completed"]) == (0, 0, 50)
    engine.assert_promises()


def test_stats_of_actions_and_lanes_agree_with_their_models(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    engine.policy("index", max_concurrent=3)
    lines = {
        (action, group): Line(limit=2 if action == "deploy" else 3)
        for action in ("deploy", "index")
        for group in ("a", "b")
    }
    for (action, group), line in lines.items():
        line.enqueue(*engine.fill(5 if group == "a" else 4, action, group))
    worker = engine.worker("deploy", "index")
    for start in engine.work(worker, 7, ["deploy", "index"]).starts:
        lines[start.action, start.group].start(start.id)
        if start.id % 2:
            engine.hand_in(worker, start)
            lines[start.action, start.group].succeed(start.id)
    for (action, group), line in lines.items():
        lane = engine.lane(action, group)
        assert {name: lane[name] for name in line.numbers()} == line.numbers()
    for action in ("deploy", "index"):
        mine = [line.numbers() for (name, _), line in lines.items() if name == action]
        stats = engine.stats(action)
        for column in mine[0]:
            if column != "max_concurrent":
                assert stats[column] == sum(numbers[column] for numbers in mine), column
        assert (stats["lanes"], stats["slots_total"]) == (2, 4 if action == "deploy" else 6)
        assert stats["max_concurrent"] == (2 if action == "deploy" else 3), "it is the limit of one lane"
    engine.assert_promises()


def test_stats_see_nothing_of_what_is_not_committed(conn: Connection, connect: Connect) -> None:
    engine, other = Engine(conn), Engine(connect(autocommit=False))
    line = Line()
    line.enqueue(*engine.fill(3))
    worker = engine.worker()
    other.fill(5)
    agree(engine, line)
    assert other.stats()["queue_length"] == 8, "a transaction must see its own enqueues"
    other.conn.rollback()
    (start,) = other.claim(worker)
    agree(engine, line)
    other.conn.commit()
    line.start(start.id)
    agree(engine, line)
    with conn.transaction():
        conn.execute("set transaction isolation level repeatable read")
        agree(engine, line)
        other.finish(start)
        other.conn.commit()
        agree(engine, line)  # one snapshot, one truth
    line.succeed(start.id)
    agree(engine, line)


def test_stats_before_anything_was_claimed_count_what_is_not_folded(conn: Connection) -> None:
    engine = Engine(conn)
    line = Line()
    for _ in range(20):
        line.enqueue(engine.enqueue())
        agree(engine, line)
    assert engine.one("select enqueued from pgfifo.ledger") == 0, "this test is about unfolded arrivals"
    for id_ in line.waiting[::3]:
        engine.cancel(id_)
        line.cancel(id_)
    agree(engine, line)
    assert engine.drain(engine.worker()) == line.waiting
    engine.assert_promises()


def test_stats_oldest_is_the_one_that_waits_longest(conn: Connection) -> None:
    engine = Engine(conn)
    ids = []
    for _ in range(3):
        ids.append(engine.enqueue())
        engine.advance("1 min")
    worker = engine.worker()

    def oldest() -> Any:
        return engine.stats()["oldest_enqueued_at"]

    enqueued = [engine.show(id_)["enqueued_at"] for id_ in ids]
    assert oldest() == enqueued[0]
    (start,) = engine.claim(worker)
    assert oldest() == enqueued[1]
    engine.release(start)
    assert oldest() == enqueued[0], "one that came back waits too"
    engine.cancel(ids[0])
    engine.cancel(ids[1])
    assert oldest() == enqueued[2]
    engine.drain(worker)
    assert oldest() is None


def test_stats_stay_exact_when_idle_lanes_are_removed(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(lane_retention=0)
    worker = engine.worker()
    total = 0
    for turn in range(3):
        engine.fill(4, group="a")
        engine.fill(3, group=f"b{turn}")
        total += 7
        starts = engine.claim(worker, 1)
        engine.hand_in(worker, *starts, outcome="failed", retry=False)
        engine.cancel(engine.one("select max(id) from pgfifo._executions"))
        engine.drain(worker)
        engine.tick(4)
        stats = engine.stats()
        assert stats["lanes"] == 0, "idle lanes stay for ever"
        assert (stats["total_enqueued"], stats["total_completed"]) == (total, total)
        assert (stats["total_failed"], stats["total_cancelled"]) == (turn + 1, turn + 1)
        assert stats["queue_length"] == stats["active_count"] == 0
    assert len(engine.rows("select 1 from pgfifo.executions")) == total, "history went with the lanes"
    engine.assert_promises()


def test_stats_a_lane_with_a_pause_or_a_limit_of_its_own_is_not_removed(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(lane_retention=0)
    for group in ("paused", "limited", "plain"):
        engine.fill(1, group=group)
    engine.drain(engine.worker(lease="1 hour"))
    engine.pause(group="paused")
    engine.policy(group="limited", max_concurrent=3)
    engine.tick(4)
    assert engine.rows("select group_text from pgfifo.lane_stats order by 1") == [("limited",), ("paused",)]
    engine.resume(group="paused")
    engine.policy(group="limited", max_concurrent=None)
    engine.tick(4)
    assert engine.stats()["lanes"] == 0, "a lane that was paused once stays for ever"


def test_stats_lanes_stay_for_their_lane_retention(conn: Connection) -> None:
    engine = Engine(conn)
    engine.fill(1)
    engine.drain(engine.worker())
    engine.advance("23 hours")
    engine.tick(3)
    assert engine.stats()["lanes"] == 1
    engine.advance("1 hour")
    engine.tick(3)
    assert engine.stats()["lanes"] == 0
    engine.policy(lane_retention="unlimited")
    engine.fill(1)
    engine.drain(engine.worker())
    engine.advance("1000 days")
    engine.tick(3)
    assert engine.stats()["lanes"] == 1


def test_stats_of_a_finish_and_claim_in_one_call_are_right_at_once(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3)
    line = Line(limit=3)
    line.enqueue(*engine.fill(20))
    worker = engine.worker()
    finished: list[Any] = []
    while line.waiting or line.running:
        answer = engine.work(worker, 3, finished=[item(start) for start in finished])
        for start in finished:
            line.succeed(start.id)
        for start in answer.starts:
            line.start(start.id)
        finished = answer.starts
        agree(engine, line)
    engine.assert_promises()


def test_stats_positions_beyond_ten_thousand_are_a_lower_bound(conn: Connection) -> None:
    engine = Engine(conn)
    ids = engine.fill(10_001)
    position = "select pos, exact from pgfifo.position(%s)"
    assert engine.rows(position, ids[0]) == [(1, True)]
    assert engine.rows(position, ids[9_999]) == [(10_000, True)]
    assert engine.rows(position, ids[10_000]) == [(10_001, False)]
