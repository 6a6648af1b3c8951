"""Retention: what has ended can be looked up as long as its policy says; no finish waits for it to go."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgfifo import errors
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine

Connection = psycopg.Connection[Any]


@pytest.fixture
def engine(fresh_dsn: str) -> Iterator[Engine]:
    """An engine in a database of its own: these tests make and drop partitions."""
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        yield Engine(conn)


@pytest.fixture
def other(fresh_dsn: str, engine: Engine) -> Iterator[Engine]:
    """A second session, with transactions of its own."""
    with psycopg.connect(fresh_dsn) as conn:
        yield Engine(conn)


def finish_some(engine: Engine, count: int, action: str = "deploy") -> list[int]:
    ids = engine.fill(count, action)
    assert engine.drain(engine.worker(action), [action], limit=500) == ids
    return ids


def days(engine: Engine) -> list[str]:
    """Return the days that have a partition."""
    rows = engine.rows(
        "select right(inhrelid::regclass::text, 8) from pg_inherits"
        " where inhparent = 'pgfifo.history'::regclass and inhrelid::regclass::text !~ 'default' order by 1"
    )
    return [day for (day,) in rows]


def pass_time(engine: Engine, by: str) -> dict[str, Any]:
    """Move on and do a round of upkeep that prunes."""
    engine.advance(by)
    engine.advance("11 s")
    return engine.maintain()


def in_history(engine: Engine, ids: list[int]) -> int:
    return int(engine.one("select count(*) from pgfifo.executions where id = any (%s)", ids))


def test_retention_of_a_week_is_the_default(engine: Engine) -> None:
    engine.policy(max_concurrent=10)
    ids = finish_some(engine, 20)
    for _ in range(6):
        pass_time(engine, "1 day")
    assert in_history(engine, ids) == 20, "what had ended was forgotten before its time"
    dropped = sum(pass_time(engine, "1 day")["partitions_dropped"] for _ in range(3))
    assert dropped > 0
    assert in_history(engine, ids) == 0
    stats = engine.stats()
    assert (stats["total_enqueued"], stats["total_succeeded"]) == (20, 20), "totals went with the history"


def test_retention_is_per_action_and_changes_at_once(engine: Engine) -> None:
    engine.policy("short", retention="1 hour", max_concurrent=10)
    engine.policy("kept", retention="unlimited", max_concurrent=10)
    engine.policy("deploy", max_concurrent=10)
    short, kept, plain = (finish_some(engine, 5, action) for action in ("short", "kept", "deploy"))
    pass_time(engine, "59 min")
    assert in_history(engine, short + kept + plain) == 15
    assert pass_time(engine, "2 min")["history_deleted"] == 5
    assert (in_history(engine, short), in_history(engine, plain)) == (0, 5)
    for _ in range(20):
        pass_time(engine, "1 day")
    assert (in_history(engine, kept), in_history(engine, plain)) == (5, 0)
    engine.policy("kept", retention="10 days")
    pass_time(engine, "0 s")
    assert in_history(engine, kept) == 0


def test_retention_goes_in_batches(engine: Engine) -> None:
    engine.policy(retention=0, max_concurrent=1000)
    engine.policy("other", retention="unlimited")
    finish_some(engine, 2500)
    assert [pass_time(engine, "1 s")["history_deleted"] for _ in range(4)] == [1000, 1000, 500, 0]


def test_claims_do_the_rounds_that_nobody_calls_for(engine: Engine) -> None:
    """One of a hundred, by chance; never where time is a test's."""
    engine.policy()
    worker = engine.worker(lease="1 day")
    engine.conn.execute("update pgfifo.ticks set at = at - interval '1 hour'")
    before = engine.one("select max(tick) from pgfifo.ticks")

    def rounds(claims: int) -> int:
        for _ in range(claims):
            engine.claim(worker)
            if (after := engine.one("select max(tick) from pgfifo.ticks")) > before:
                return int(after - before)
        return 0

    assert rounds(1000) == 0
    engine.conn.execute("update pgfifo.installation set testing = false")
    assert rounds(5000) == 1


def test_retention_of_what_stays_active_does_not_run(engine: Engine) -> None:
    engine.policy(retention=0, backoff_initial=3600, backoff_cap=31536000)
    held, waiting = engine.fill(2)
    engine.finish(engine.claim(engine.worker())[0], "failed")
    for _ in range(3):
        pass_time(engine, "10 days")
    assert engine.states([held, waiting]) == ["held", "waiting"], "something that had not ended was pruned"


def test_retention_partitions_are_made_well_ahead(engine: Engine) -> None:
    for _ in range(5):
        now = engine.one("select to_char(pgfifo.advance('1 day') at time zone 'utc', 'YYYYMMDD')")
        pass_time(engine, "0 s")
        later = [day for day in days(engine) if day > now]
        assert len(later) >= 3, "the day would begin without a partition"
        assert now in days(engine)
        finish_some(engine, 1)
    assert engine.one("select count(*) from pgfifo.history_default") == 0


def test_retention_days_without_upkeep_land_in_the_default_partition_and_age_there(engine: Engine) -> None:
    engine.policy(max_concurrent=10)
    engine.advance("30 days")
    ids = finish_some(engine, 5)
    assert engine.one("select count(*) from pgfifo.history_default") == 5
    pass_time(engine, "1 day")
    assert in_history(engine, ids) == 5
    pass_time(engine, "7 days")
    assert in_history(engine, ids) == 0, "history of a time without upkeep stays for ever"


def test_retention_behind_a_dump_that_stays_open_finishes_go_on(engine: Engine, other: Engine) -> None:
    """pg_dump keeps every partition open; upkeep passes it by, and no finish queues up behind either."""
    engine.policy(max_concurrent=10)
    old = finish_some(engine, 5)
    other.conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    dumped = other.rows("select id from pgfifo.history order by id")
    before = days(engine)
    engine.conn.execute("set statement_timeout = '10s'")  # not of locks: that is an answer to be got over
    for _ in range(9):
        answer = pass_time(engine, "1 day")
        assert answer["partitions_dropped"] == 0
        finish_some(engine, 2)
        engine.cancel(engine.enqueue())
    assert days(engine) == before, "a partition went that somebody was reading"
    assert other.rows("select id from pgfifo.history order by id") == dumped
    other.conn.commit()
    assert pass_time(engine, "0 s")["partitions_dropped"] > 0
    assert in_history(engine, old) == 0
    engine.assert_promises()


def test_retention_a_finish_beside_upkeep_that_makes_partitions_succeeds(
    engine: Engine, other: Engine, fresh_dsn: str
) -> None:
    """Its day has no partition and gets none: it waits for a moment and lands in the default partition."""
    engine.policy(retention="unlimited")  # so that nothing is dropped, which would take a stronger lock
    engine.enqueue()
    engine.advance("30 days")
    worker = engine.worker()
    (start,) = engine.claim(worker)
    assert other.maintain()["elected"]
    assert days(other) != days(engine), "this test is about partitions that are being made"
    with psycopg.connect(fresh_dsn, autocommit=True) as finishing:
        finish = in_background(lambda: Engine(finishing).hand_in(worker, start))
        wait_until_blocked(engine.conn, finishing.info.backend_pid)
        other.conn.commit()
        assert finish.result() == {}, "a completion failed because history was being prepared"
    assert engine.state(start.id) == "succeeded"
    engine.assert_promises()


def test_retention_upkeep_does_not_wait_for_a_finish_in_flight(engine: Engine, other: Engine) -> None:
    engine.enqueue()
    engine.advance("30 days")
    (start,) = engine.claim(engine.worker())
    other.finish(start)
    engine.conn.execute("set lock_timeout = '1ms'")
    before = days(engine)
    assert pass_time(engine, "0 s")["elected"]
    assert days(engine) == before
    other.conn.commit()
    assert engine.state(start.id) == "succeeded"
    pass_time(engine, "0 s")
    pass_time(engine, "0 s")
    assert set(days(engine)).isdisjoint(before)
    assert len(days(engine)) == 3


def test_retention_workers_that_are_gone_are_forgotten_after_a_day(engine: Engine) -> None:
    engine.enqueue()
    worker = engine.worker()
    engine.one("select pgfifo.worker_stop(%s)", worker)
    pass_time(engine, "23 hours")
    assert len(engine.rows("select 1 from pgfifo.workers")) == 1
    pass_time(engine, "2 hours")
    assert engine.rows("select 1 from pgfifo.workers") == []


def entries(engine: Engine) -> list[str]:
    return [what for (what,) in engine.rows("select what from pgfifo.audit order by id")]


def test_retention_of_the_audit_is_a_year(engine: Engine) -> None:
    engine.enqueue()
    engine.pause()
    pass_time(engine, "364 days")
    engine.resume()
    assert entries(engine) == ["pause", "resume"], "what somebody did was forgotten before its time"
    assert pass_time(engine, "2 days")["audit_deleted"] == 1
    assert entries(engine) == ["resume"]


def test_retention_of_the_audit_is_a_setting_and_goes_in_batches(engine: Engine) -> None:
    set_default = "select pgfifo.set_default_policy(%s)"
    engine.rows("select pgfifo._audit('pause', 'x', null, null) from generate_series(1, 2500)")
    engine.rows(set_default, Jsonb({"audit_retention": "unlimited"}))
    assert pass_time(engine, "1000 days")["audit_deleted"] == 0
    engine.rows(set_default, Jsonb({"audit_retention": "1 day"}))
    assert [pass_time(engine, "1 s")["audit_deleted"] for _ in range(4)] == [1000, 1000, 501, 0]
    assert entries(engine) == ["set_policy"], "who shortened the record is not on it"
    for value in ("23 hours", 0, True, "soon"):
        with pytest.raises(errors.InvalidValue):
            engine.rows(set_default, Jsonb({"audit_retention": value}))
