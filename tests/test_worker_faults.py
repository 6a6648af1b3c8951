"""Faults of workers in short: no memory, clocks that jump. Real processes are harmed in `tests/faults`."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo import Actions, Execution
from pgfifo._connections import Link
from pgfifo.heartbeat import Heartbeat
from tests.support.engine import Engine, Start

Connection = psycopg.Connection[Any]

QUICK: dict[str, Any] = {"heartbeat": 0.05, "poll_interval": 0.05}


@pytest.fixture
def engine(conn: Connection) -> Engine:
    engine = Engine(conn)
    engine.policy(group_by=["g"], backoff_initial=0)
    return engine


def test_durability_memory_errors_of_handlers_are_failures_like_any_other(engine: Engine, dsn: str) -> None:
    actions = Actions()

    @actions.action("deploy", group_by=["g"])
    def deploy(execution: Execution) -> None:
        if execution.attempt == 1:
            raise MemoryError

    @actions.action("async", backoff_initial=0)
    async def async_(execution: Execution) -> None:
        if execution.attempt == 1:
            bytearray(1 << 60)

    ids = [engine.enqueue(), engine.enqueue("async")]
    pgfifo.Worker(dsn, actions, until_empty=True, **QUICK).run()
    assert [engine.show(id_)["attempt"] for id_ in ids] == [2, 2]
    assert engine.states(ids) == ["succeeded", "succeeded"]
    assert engine.one("select count(*) from pgfifo.workers") == 1


def test_progress_a_worker_whose_heartbeat_fails_for_good_ends_and_gives_back(
    engine: Engine, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a user would lose: a process that is there, counts as dead, and starts nothing ever again."""
    real = Heartbeat._beat

    def beat(self: Heartbeat, link: Link) -> None:
        if self._registration is not None and self._registration.held:
            raise MemoryError
        real(self, link)

    actions = Actions()

    @actions.action("deploy", group_by=["g"])
    async def deploy(execution: Execution) -> None:
        if execution.attempt == 1:
            await asyncio.sleep(3600)

    id_ = engine.enqueue()
    with monkeypatch.context() as patch:
        patch.setattr(Heartbeat, "_beat", beat)
        with pytest.raises(MemoryError):
            pgfifo.Worker(dsn, actions, **QUICK).run()
    assert engine.state(id_) in ("running", "waiting")
    engine.tick(4)
    pgfifo.Worker(dsn, actions, until_empty=True, **QUICK).run()
    assert (engine.state(id_), engine.show(id_)["attempt"]) == ("succeeded", 2)
    engine.assert_promises()


def test_progress_a_backoff_that_begins_before_anybody_has_seen_the_clock_go_back_ends(
    engine: Engine,
) -> None:
    """Scans begin where they had come to by the other clock, and its timer lies before that."""
    engine.policy(backoff="constant", backoff_initial=10, backoff_jitter=0)
    worker = engine.worker()
    id_ = engine.enqueue()
    (start,) = engine.claim(worker)
    for by in ("1 hour", "2 s", "2 s", "2 s"):
        engine.advance(by)
        assert engine.claim(worker) == []
    engine.advance("-1 hour")
    assert engine.hand_in(worker, start, outcome="failed") == {}
    for by in ("1 s", "5 s"):
        engine.advance(by)
        assert engine.claim(worker) == []
    engine.advance("10 s")
    assert [(again.id, again.attempt) for again in engine.claim(worker)] == [(id_, 2)]
    engine.assert_promises()


def test_progress_a_lane_that_a_claim_has_put_off_when_the_clock_goes_back_gets_going(engine: Engine) -> None:
    """It was locked, and to be looked at again in a moment; by the new clock that is in an hour."""
    worker = engine.worker()
    id_ = engine.enqueue()
    engine.conn.execute("delete from pgfifo.marks")
    engine.conn.execute("select pgfifo._timer(id, pgfifo._now() + interval '50 ms') from pgfifo.lanes")
    engine.advance("-1 hour")
    assert [start.id for start in engine.claim(worker)] == [id_]
    engine.assert_promises()


def test_progress_what_commits_late_is_found_at_once_though_the_clock_was_set_back(
    engine: Engine, connect: Callable[..., Connection]
) -> None:
    """Once a second a claim looks for such: by a clock that goes back by half an hour, too."""
    worker = engine.worker()
    late = connect(autocommit=False)
    id_ = Engine(late).enqueue(payload={"g": 1})
    other = engine.enqueue(payload={"g": 2})
    assert [start.id for start in engine.claim(worker)] == [other]
    for _ in range(3):
        engine.advance("2 s")
        assert engine.claim(worker) == []
    engine.advance("-30 min")
    late.commit()
    found: list[int] = []
    for _ in range(3):
        engine.advance("2 s")
        found += [start.id for start in engine.claim(worker)]
    assert found == [id_]
    engine.assert_promises()


def test_order_and_slots_hold_while_the_clock_jumps_by_hours(engine: Engine) -> None:
    """Between any two steps; and all gets done when the clock has passed what it once said."""
    dice = random.Random(2)
    engine.policy("spaced", group_by=["g"], spacing=1, max_concurrent=2, backoff_initial=1)
    engine.policy("later", failure_mode="yield", backoff_initial=2)
    names = ["deploy", "spaced", "later"]
    engine.policy("deploy", backoff_initial=1, max_concurrent=2)
    workers = [engine.worker(*names, lease="1 day") for _ in range(2)]
    active: list[tuple[int, Start]] = []
    for _ in range(80):
        if dice.random() < 0.15:
            engine.advance(dice.choice(["1 hour", "-1 hour", "3 hours", "-3 hours", "5 s"]))
        step = dice.random()
        if step < 0.4:
            engine.enqueue(dice.choice(names), {"g": dice.randrange(2)})
        elif step < 0.6:
            worker = dice.choice(workers)
            active += [(worker, start) for start in engine.work(worker, 2, names).starts]
        elif step < 0.9 and active:
            worker, start = active.pop(dice.randrange(len(active)))
            failed = start.attempt == 1 and dice.random() < 0.4
            assert engine.hand_in(worker, start, outcome="failed" if failed else "succeeded") == {}
        else:
            engine.maintain()
    for worker, start in active:
        assert engine.hand_in(worker, start) == {}
    for _ in range(24):
        engine.advance("30 min")
        engine.drain(workers[0], names)
        engine.maintain()
    totals = [engine.stats(name) for name in names]
    assert sum(each["total_succeeded"] for each in totals) == sum(each["total_enqueued"] for each in totals)
    assert [state for (state,) in engine.rows("select state from pgfifo.workers")] == ["alive", "alive"]
    engine.assert_promises()
