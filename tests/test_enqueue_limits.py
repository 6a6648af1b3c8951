"""Quotas, the length of an action, and on_limit: what an enqueue is refused for, exactly, beside others."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

import pgfifo
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import race
from tests.support.sqlworker import (
    SqlWorker,
    advance,
    enqueue,
    enqueue_groups,
    policy,
    value,
    violations,
)

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


@pytest.fixture(autouse=True)
def noon(conn: Connection) -> None:
    """No day ends, and no month, unless a test lets it."""
    conn.execute("select pgfifo.advance(date_trunc('day', pgfifo._now(), 'UTC') + '36 h' - pgfifo._now())")


def everywhere(conn: Connection, **values: object) -> None:
    conn.execute("select from pgfifo.set_default_policy(%s::jsonb)", [json.dumps(values)])


def of_pack(conn: Connection, pack: str, **values: object) -> None:
    conn.execute("select from pgfifo.set_pack_policy(%s, %s::jsonb)", [pack, json.dumps(values)])


def unfinished(conn: Connection) -> int:
    return int(value(conn, "select count(*) from pgfifo._executions"))


def fill(conn: Connection, *groups: str, action: str = "a") -> None:
    """Enqueue one for each group, as one batch."""
    conn.execute(
        "select from pgfifo.enqueue_many(%s, array_fill('{}'::jsonb, array[%s]), %s)",
        [action, len(groups), list(groups)],
    )


def at_once(connect: Connect, count: int, group: Callable[[int], str]) -> list[str]:
    """Enqueue from so many sessions at once; return the errors' codes."""
    calls = [(connect(), "select pgfifo.enqueue('a', '{}', $1)", [group(number)]) for number in range(count)]
    return [answer for answer in race(*calls) if isinstance(answer, str)]


# Quotas


def test_a_quota_lets_so_many_in_and_says_when_it_begins_again(conn: Connection) -> None:
    policy(conn, "a", quota="3/day Europe/Berlin")
    keys = [enqueue(conn, "a", group) for group in "ggh"]
    with pytest.raises(pgfifo.QuotaExceeded) as refused:
        enqueue(conn, "a", "g")
    error = refused.value
    assert (error.action, error.scope, error.limit, error.current, error.index) == ("a", "action", 3, 3, None)
    now = value(conn, "select pgfifo._now()").astimezone(ZoneInfo("Europe/Berlin"))
    midnight = datetime.combine(
        now.date() + timedelta(days=1), datetime.min.time(), ZoneInfo("Europe/Berlin")
    )
    assert datetime.fromisoformat(error.resets_at or "") == midnight
    assert "begins again" in error.message
    advance(conn, (midnight - now).total_seconds() - 5)
    with pytest.raises(pgfifo.QuotaExceeded):
        enqueue(conn, "a", "g")
    advance(conn, 10)
    keys.append(enqueue(conn, "a", "g"))
    assert unfinished(conn) == len(keys) == 4
    assert len(SqlWorker(conn, "a").drain()) == 4
    assert violations(conn) == []


@pytest.mark.parametrize(
    ("quota", "at", "begins", "ends"),
    [
        ("1/day", "2024-06-05 12:00+00", "2024-06-05 00:00+00", "2024-06-06 00:00+00"),
        ("1/day Europe/Berlin", "2024-03-31 12:00+00", "2024-03-30 23:00+00", "2024-03-31 22:00+00"),
        ("1/day Europe/Berlin", "2024-10-27 12:00+00", "2024-10-26 22:00+00", "2024-10-27 23:00+00"),
        ("1/day America/New_York", "2024-06-05 03:59+00", "2024-06-04 04:00+00", "2024-06-05 04:00+00"),
        ("1/month", "2024-02-29 23:59+00", "2024-02-01 00:00+00", "2024-03-01 00:00+00"),
        ("1/month Asia/Kolkata", "2024-12-31 18:30+00", "2024-12-31 18:30+00", "2025-01-31 18:30+00"),
    ],
)
def test_a_quotas_period_is_that_of_its_calendar(
    conn: Connection, quota: str, at: str, begins: str, ends: str
) -> None:
    policy(conn, "a", quota=quota)
    query = (
        "select o_from = %s::timestamptz, o_to = %s::timestamptz from pgfifo._action_policies p,"
        " pgfifo._period(p.action_quota, %s::timestamptz)"
    )
    assert conn.execute(query, [begins, ends, at]).fetchall() == [(True, True)]


def test_a_quota_is_that_of_its_scope_as_a_whole(conn: Connection) -> None:
    everywhere(conn, quota="6/month")
    of_pack(conn, "p", quota="4/month")
    policy(conn, "p.a", quota="3/month")
    policy(conn, "p.a", "g", quota="2/month")

    def refused_by(action: str, group: str) -> str | None:
        try:
            enqueue(conn, action, group)
        except pgfifo.QuotaExceeded as error:
            return error.scope
        return None

    assert [refused_by("p.a", "g") for _ in range(3)] == [None, None, "lane"]
    assert [refused_by("p.a", "h") for _ in range(2)] == [None, "action"]
    assert [refused_by("p.b", "g") for _ in range(2)] == [None, "pack"]
    assert [refused_by("c", "g") for _ in range(3)] == [None, None, "everything"]
    assert unfinished(conn) == 6, "what was refused by one quota was charged to another"
    assert refused_by("p.a", "g") == "lane", "the narrowest is not named first"


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_quota_is_held_to_the_commit(conn: Connection, connect: Connect, end: str) -> None:
    policy(conn, "a", quota="1/day")
    one, two, other = connect(autocommit=False), connect(), connect()
    enqueue(one, "a", "g")
    enqueue(other, "b", "g")  # who has no quota does not wait
    asked = in_background(partial(enqueue, two, "a", "h"))
    wait_until_blocked(conn, two.info.backend_pid)
    getattr(one, end)()
    if end == "commit":
        with pytest.raises(pgfifo.QuotaExceeded):
            asked.result()
    else:
        asked.result()
    assert value(conn, "select count(*) from pgfifo.executions where action = 'a'") == 1


@pytest.mark.parametrize("scope", ["pack", "everything"])
def test_a_quota_of_several_actions_is_held_to_the_commit(
    conn: Connection, connect: Connect, scope: str
) -> None:
    enqueue(conn, "p.a", "g")
    enqueue(conn, "p.b", "g")
    call = "set_pack_policy('p', %s)" if scope == "pack" else "set_default_policy(%s)"
    conn.execute(f"select * from pgfifo.{call}", [json.dumps({"quota": "1/day"})])
    one, two = connect(autocommit=False), connect()
    enqueue(one, "p.a", "g")
    asked = in_background(partial(enqueue, two, "p.b", "g"))
    wait_until_blocked(conn, two.info.backend_pid)
    one.commit()
    with pytest.raises(pgfifo.QuotaExceeded):
        asked.result()


def test_a_quota_is_given_back_with_a_savepoint(conn: Connection) -> None:
    policy(conn, "a", quota="1/day")
    with conn.transaction(), conn.transaction(force_rollback=True):
        enqueue(conn, "a", "g")
    enqueue(conn, "a", "g")
    with pytest.raises(pgfifo.QuotaExceeded):
        enqueue(conn, "a", "g")


def test_a_quota_lets_in_exactly_so_many_of_many_at_once(conn: Connection, connect: Connect) -> None:
    policy(conn, "a", quota="10/day")
    assert at_once(connect, 20, lambda number: str(number % 5)) == ["QF004"] * 10
    assert unfinished(conn) == 10


def test_a_batch_fits_into_a_quota_as_a_whole_or_names_its_first_item_that_does_not(conn: Connection) -> None:
    policy(conn, "a", quota="5/day")
    policy(conn, "a", "g", quota="2/day")
    with pytest.raises(pgfifo.QuotaExceeded) as lane:
        fill(conn, "h", "g", "h", "g", "g")
    assert (lane.value.scope, lane.value.group, lane.value.index) == ("lane", "g", 4)
    fill(conn, "h", "g")
    with pytest.raises(pgfifo.QuotaExceeded) as action:
        fill(conn, "h", "g", "h", "h")
    assert (action.value.scope, action.value.current, action.value.index) == ("action", 2, 3)
    with pytest.raises(pgfifo.QuotaExceeded) as single:
        conn.execute("select from pgfifo.enqueue_many('a', array_fill('{}'::jsonb, array[4]))")
    assert single.value.index == 3
    fill(conn, "h", "h", "h")
    assert unfinished(conn) == 5


def test_a_quota_counts_what_is_new_delayed_ones_too(conn: Connection) -> None:
    policy(conn, "a", quota="2/day")
    conn.execute("select pgfifo.enqueue('a', p_request_id => 'r', p_delay => '1 hour')")
    conn.execute("select pgfifo.enqueue('a', p_dedup_key => 'd')")
    conn.execute("select pgfifo.enqueue('a', p_request_id => 'r')")
    conn.execute("select pgfifo.enqueue('a', p_dedup_key => 'd')")
    conn.execute(
        "select pgfifo.enqueue_many('a', array['{}', '{}']::jsonb[], p_dedup_keys => array['d', null],"
        " p_request_ids => array[null, 'r'])"
    )
    with pytest.raises(pgfifo.QuotaExceeded):
        conn.execute("select pgfifo.enqueue('a', p_delay => '1 hour')")
    assert unfinished(conn) == 2


def test_a_quota_goes_on_when_the_clock_is_set_back(conn: Connection) -> None:
    policy(conn, "a", quota="1/day")
    advance(conn, 86400)
    enqueue(conn, "a", "g")
    advance(conn, -86400)
    with pytest.raises(pgfifo.QuotaExceeded):
        enqueue(conn, "a", "g")
    advance(conn, 86400)
    with pytest.raises(pgfifo.QuotaExceeded):
        enqueue(conn, "a", "g")
    advance(conn, 86400)
    enqueue(conn, "a", "g")


def test_a_quota_can_be_raised_and_removed_within_its_period(conn: Connection) -> None:
    policy(conn, "a", quota="1/day")
    enqueue(conn, "a", "g")
    policy(conn, "a", quota="2/day")
    enqueue(conn, "a", "g")
    with pytest.raises(pgfifo.QuotaExceeded):
        enqueue(conn, "a", "g")
    policy(conn, "a", quota="unlimited")
    enqueue(conn, "a", "g")
    policy(conn, "a", quota=None)
    enqueue(conn, "a", "g")


# The length of an action


def test_an_actions_length_is_that_of_all_its_lanes(conn: Connection) -> None:
    policy(conn, "a", max_action_queue_length=3, max_queue_length=2)
    fill(conn, "g", "g", "h")
    with pytest.raises(pgfifo.QueueFull) as refused:
        enqueue(conn, "a", "i")
    error = refused.value
    assert (error.group, error.limit, error.current, error.index) == (None, 3, 3, None)
    assert "max_action_queue_length" in (error.hint or "")
    with pytest.raises(pgfifo.QueueFull) as lane:
        enqueue(conn, "a", "g")
    assert (lane.value.group, lane.value.limit) == ("g", 2)
    enqueue(conn, "b", "g")
    worker = SqlWorker(conn, "a")
    (one, other) = worker.work(2)
    fill(conn, "i", "h")
    worker.work(0, [one.ended("released")])
    with pytest.raises(pgfifo.QueueFull) as again:
        enqueue(conn, "a", "j")
    assert again.value.current == 4, "what came back to the line was not counted"
    conn.execute("select pgfifo.cancel(%s)", [one.id])
    conn.execute("select pgfifo.cancel(max(id)) from pgfifo.executions where group_text = 'h'")
    enqueue(conn, "a", "j")
    worker.work(0, [other.ended()])
    assert len(worker.drain()) == 3
    assert violations(conn) == []


def test_an_actions_length_lets_delayed_ones_in_though_more_wait_than_may(conn: Connection) -> None:
    fill(conn, "g", "h", "i")
    policy(conn, "a", max_action_queue_length=2)
    conn.execute("select pgfifo.enqueue('a', p_delay => '1 h')")
    assert unfinished(conn) == 4


def test_an_actions_length_lets_in_exactly_so_many_of_many_at_once(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a", max_action_queue_length=10, ordering="relaxed")
    assert at_once(connect, 20, lambda number: str(number % 7)) == ["QF001"] * 10
    assert unfinished(conn) == 10


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_actions_length_is_held_to_the_commit(conn: Connection, connect: Connect, end: str) -> None:
    policy(conn, "a", max_action_queue_length=1)
    one, two = connect(autocommit=False), connect()
    enqueue(one, "a", "g")
    asked = in_background(partial(enqueue, two, "a", "h"))
    wait_until_blocked(conn, two.info.backend_pid)
    getattr(one, end)()
    if end == "commit":
        with pytest.raises(pgfifo.QueueFull):
            asked.result()
    else:
        asked.result()
    assert unfinished(conn) == 1


def test_producers_of_a_limited_action_queue_up_before_its_lanes(conn: Connection, connect: Connect) -> None:
    # The second, which waits for the first's commit, must not hold a lane that the first goes on to.
    policy(conn, "a", max_action_queue_length=10)
    fill(conn, "g", "h")
    one, two = connect(autocommit=False), connect()
    enqueue(one, "a", "g")
    asked = in_background(partial(enqueue, two, "a", "h"))
    wait_until_blocked(conn, two.info.backend_pid)
    enqueue(one, "a", "h")
    one.commit()
    asked.result()
    assert unfinished(conn) == 5


def test_an_actions_length_over_many_lanes_is_never_exceeded_and_is_noticed_when_it_falls(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a", max_action_queue_length=160)
    enqueue_groups(conn, "a", map(str, range(150)))
    assert at_once(connect, 20, lambda number: str(number * 7)) == ["QF001"] * 10
    worker = SqlWorker(conn, "a")
    started = worker.work(30)
    assert len(started) == 30
    advance(conn, 1)
    fill(conn, *["0"] * 30)
    with pytest.raises(pgfifo.QueueFull):
        enqueue(conn, "a", "0")
    assert value(conn, "select queue_length from pgfifo.queue_stats where action = 'a'") == 160


def test_a_batch_that_is_too_long_for_its_action_names_the_first_item(conn: Connection) -> None:
    policy(conn, "a", max_action_queue_length=3)
    fill(conn, "g")
    with pytest.raises(pgfifo.QueueFull) as refused:
        fill(conn, "h", "g", "i", "j")
    assert (refused.value.index, refused.value.current) == (2, 1)
    conn.execute("select pgfifo.enqueue('a', p_delay => '1 hour')")  # does not wait yet
    fill(conn, "h", "g")
    assert unfinished(conn) == 4


def test_what_has_expired_is_not_in_the_length_of_its_action(conn: Connection) -> None:
    policy(conn, "a", max_action_queue_length=2, max_wait=60)
    fill(conn, "g", "h")
    advance(conn, 61)
    fill(conn, "g", "h")
    with pytest.raises(pgfifo.QueueFull):
        enqueue(conn, "a", "g")


@pytest.mark.parametrize("limit", [{"quota": "5/day"}, {"max_action_queue_length": 5}])
def test_what_an_old_snapshot_cannot_decide_is_an_error_to_repeat(
    conn: Connection, connect: Connect, limit: dict[str, Any]
) -> None:
    policy(conn, "a", **limit)
    enqueue(conn, "a", "g")
    late = connect(autocommit=False)
    late.execute("set transaction isolation level repeatable read")
    enqueue(late, "a", "g")  # nobody came between its snapshot and its lock
    late.commit()
    late.execute("set transaction isolation level repeatable read")
    late.execute("select from pgfifo.queue_stats")
    enqueue(conn, "a", "h")
    with pytest.raises(psycopg.errors.SerializationFailure):
        enqueue(late, "a", "g")
    late.rollback()
    with pgfifo.Client(late) as fifo:
        late.execute("set transaction isolation level repeatable read")
        late.execute("select from pgfifo.queue_stats")
        enqueue(conn, "a", "h")
        with pytest.raises(pgfifo.SnapshotTooOld):
            fifo.enqueue("a", group="g")
        late.rollback()
        fifo.enqueue("a", group="g")
        late.commit()
    late.execute("set transaction isolation level repeatable read")
    full = psycopg.errors.SerializationFailure if "quota" not in limit else pgfifo.QuotaExceeded
    with pytest.raises(full):
        enqueue(late, "a", "g")


# on_limit


@pytest.mark.parametrize("ordering", ["strict", "relaxed"])
def test_on_limit_cancel_refuses_what_could_not_start_at_once(conn: Connection, ordering: str) -> None:
    policy(conn, "a", on_limit="cancel", max_concurrent=2, ordering=ordering)
    keys = [enqueue(conn, "a", "g") for _ in range(2)]
    enqueue(conn, "a", "h")

    def refused() -> tuple[Any, ...]:
        with pytest.raises(pgfifo.ConcurrencyLimit) as caught:
            enqueue(conn, "a", "g")
        error = caught.value
        return error.group, error.which, error.limit, error.current, error.index

    assert refused() == ("g", "max_concurrent", 2, 2, None), "what waits for a slot was overlooked"
    worker = SqlWorker(conn, "a")
    started = [start for start in worker.work(3) if start.group == "g"]
    assert sorted(start.id for start in started) == keys
    assert refused() == ("g", "max_concurrent", 2, 2, None), "what runs was overlooked"
    worker.work(0, [started[0].ended()])
    enqueue(conn, "a", "g")
    refused()
    policy(conn, "a", max_concurrent=3)
    enqueue(conn, "a", "g")
    policy(conn, "a", max_concurrent=1)
    assert refused() == ("g", "max_concurrent", 1, 3, None)
    assert violations(conn) == []


@pytest.mark.parametrize("ordering", ["strict", "relaxed"])
def test_on_limit_cancel_lets_in_exactly_as_many_as_there_are_slots(
    conn: Connection, connect: Connect, ordering: str
) -> None:
    policy(conn, "a", on_limit="cancel", max_concurrent=3, ordering=ordering)
    assert at_once(connect, 12, lambda _: "g") == ["QF002"] * 9
    assert unfinished(conn) == 3


@pytest.mark.parametrize("ordering", ["strict", "relaxed"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_on_limit_cancel_waits_for_how_another_enqueue_ends(
    conn: Connection, connect: Connect, ordering: str, end: str
) -> None:
    policy(conn, "a", on_limit="cancel", ordering=ordering)
    enqueue(conn, "a", "g")
    assert len(SqlWorker(conn, "a").drain()) == 1
    one, two = connect(autocommit=False), connect()
    enqueue(one, "a", "g")
    asked = in_background(partial(enqueue, two, "a", "g"))
    wait_until_blocked(conn, two.info.backend_pid)
    getattr(one, end)()
    if end == "commit":
        with pytest.raises(pgfifo.ConcurrencyLimit):
            asked.result()
    else:
        asked.result()


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_on_limit_cancel_beside_a_claim_in_flight_counts_each_once(
    conn: Connection, connect: Connect, end: str
) -> None:
    policy(conn, "a", on_limit="cancel", max_concurrent=2)
    enqueue(conn, "a", "g")
    claiming = connect(autocommit=False)
    worker = SqlWorker(conn, "a")
    worker.conn = claiming
    (start,) = worker.work()
    enqueue(conn, "a", "g")
    with pytest.raises(pgfifo.ConcurrencyLimit):
        enqueue(conn, "a", "g")
    getattr(claiming, end)()
    with pytest.raises(pgfifo.ConcurrencyLimit) as refused:
        enqueue(conn, "a", "g")
    assert refused.value.current == 2
    assert start.id


def test_on_limit_cancel_refuses_what_is_paused(conn: Connection) -> None:
    policy(conn, "a", on_limit="cancel", max_concurrent=5)
    enqueue(conn, "a", "g")
    for pause in (["a"], ["a", "g"]):
        arguments = ", ".join(["%s"] * len(pause))
        conn.execute(f"select pgfifo.pause({arguments})", pause)
        with pytest.raises(pgfifo.ConcurrencyLimit, match="paused") as refused:
            enqueue(conn, "a", "g")
        assert refused.value.which == "paused"
        conn.execute(f"select pgfifo.resume({arguments})", pause)
    enqueue(conn, "a", "g")


def test_on_limit_cancel_counts_what_is_held(conn: Connection) -> None:
    policy(conn, "a", on_limit="cancel", backoff_initial=60)
    enqueue(conn, "a", "g")
    worker = SqlWorker(conn, "a")
    (start,) = worker.work()
    worker.work(0, [start.ended("failed")])
    with pytest.raises(pgfifo.ConcurrencyLimit):
        enqueue(conn, "a", "g")


def test_on_limit_cancel_refuses_what_a_rate_would_let_wait(conn: Connection) -> None:
    policy(conn, "a", on_limit="cancel", max_concurrent=10, rate="2/h")
    fill(conn, "g", "g")
    with pytest.raises(pgfifo.RateLimit) as waiting:
        enqueue(conn, "a", "g")
    assert (waiting.value.which, waiting.value.limit) == ("rate", 2), "what waits will have used it up"
    worker = SqlWorker(conn, "a")
    started = worker.work(5)
    assert len(started) == 2
    with pytest.raises(pgfifo.RateLimit) as used:
        enqueue(conn, "a", "g")
    assert used.value.until is not None
    worker.work(0, [start.ended() for start in started])
    advance(conn, 1801)
    enqueue(conn, "a", "g")
    with pytest.raises(pgfifo.RateLimit):
        enqueue(conn, "a", "g")
    assert len(worker.work(5)) == 1


def test_on_limit_cancel_refuses_within_a_spacing(conn: Connection) -> None:
    policy(conn, "a", on_limit="cancel", max_concurrent=10, spacing=60)
    with pytest.raises(pgfifo.RateLimit) as both:
        fill(conn, "g", "g")
    assert (both.value.which, both.value.limit, both.value.index) == ("spacing", 1, 1)
    enqueue(conn, "a", "g")
    assert len(SqlWorker(conn, "a").work(5)) == 1
    with pytest.raises(pgfifo.RateLimit) as refused:
        enqueue(conn, "a", "g")
    assert (refused.value.which, refused.value.until is not None) == ("spacing", True)
    advance(conn, 61)
    enqueue(conn, "a", "g")


def test_on_limit_cancel_refuses_what_a_shared_limit_would_let_wait(conn: Connection) -> None:
    policy(conn, "a", on_limit="cancel", max_concurrent=10)
    enqueue(conn, "b", "g")
    limits = {"max_concurrent": 1, "actions": ["a", "b"]}
    conn.execute("select from pgfifo.set_shared_limit('api', %s::jsonb)", [json.dumps(limits)])
    with pytest.raises(pgfifo.ConcurrencyLimit) as both:
        fill(conn, "g", "g")
    assert (both.value.which, both.value.index) == ("shared_slots", 1)
    other = SqlWorker(conn, "b")
    (start,) = other.work()
    with pytest.raises(pgfifo.ConcurrencyLimit) as refused:
        enqueue(conn, "a", "g")
    error = refused.value
    assert (error.which, error.name, error.limit, error.current) == ("shared_slots", "api", 1, 1)
    other.work(0, [start.ended()])
    enqueue(conn, "a", "g")


def test_on_limit_of_a_lane_wins_over_its_actions(conn: Connection) -> None:
    policy(conn, "a", on_limit="cancel")
    policy(conn, "a", "patient", on_limit="enqueue")
    policy(conn, "b", "hasty", on_limit="cancel")
    for _ in range(3):
        enqueue(conn, "a", "patient")
        enqueue(conn, "b", "any")
    for action, group in (("a", "hasty"), ("b", "hasty")):
        enqueue(conn, action, group)
        with pytest.raises(pgfifo.ConcurrencyLimit):
            enqueue(conn, action, group)
    assert unfinished(conn) == 8


def test_on_limit_cancel_refuses_a_batch_as_a_whole_and_names_the_first_item(conn: Connection) -> None:
    policy(conn, "a", on_limit="cancel", max_concurrent=2)
    with pytest.raises(pgfifo.ConcurrencyLimit) as refused:
        fill(conn, "g", "h", "g", "h", "h", "g")
    assert (refused.value.index, refused.value.group) == (4, "h")
    fill(conn, "g", "h", "g", "h")
    assert unfinished(conn) == 4


def test_on_limit_cancel_is_about_what_joins_now_and_is_new(conn: Connection) -> None:
    policy(conn, "a", on_limit="cancel")
    first = value(conn, "select pgfifo.enqueue('a', p_dedup_key => 'd', p_request_id => 'r')")
    assert value(conn, "select pgfifo.enqueue('a', p_dedup_key => 'd')") == first
    assert value(conn, "select pgfifo.enqueue('a', p_request_id => 'r')") == first
    conn.execute("select pgfifo.enqueue('a', p_delay => '1 hour')")
    with pytest.raises(pgfifo.ConcurrencyLimit):
        conn.execute("select pgfifo.enqueue('a')")


def test_on_limit_cancel_is_not_decided_on_an_old_snapshot(conn: Connection, connect: Connect) -> None:
    policy(conn, "a", on_limit="cancel")
    late = connect(autocommit=False)
    late.execute("set transaction isolation level repeatable read")
    with pytest.raises(pgfifo.IsolationLevel):
        enqueue(late, "a", "g")


def test_a_key_whose_execution_has_expired_is_free(conn: Connection) -> None:
    policy(conn, "a", max_wait=60)
    first = value(conn, "select pgfifo.enqueue('a', p_dedup_key => 'd')")
    item = value(conn, "select pgfifo.enqueue('a', p_item_key => 'i')")
    advance(conn, 61)
    again = value(conn, "select pgfifo.enqueue('a', p_dedup_key => 'd')")
    assert again > first, "told of one that had expired, and nothing is enqueued"
    assert value(conn, "select pgfifo.enqueue('a', '1', p_item_key => 'i', p_on_item => 'replace')") > item
    states = "select state from pgfifo.executions where id in (%s, %s)"
    assert conn.execute(states, [first, item]).fetchall() == [("expired",)] * 2
    assert len(SqlWorker(conn, "a").drain()) == 2
    assert violations(conn) == []


def test_a_quotas_reset_is_a_time_with_its_zone(conn: Connection) -> None:
    policy(conn, "a", quota="1/month")
    enqueue(conn, "a", "g")
    with pytest.raises(pgfifo.QuotaExceeded) as refused:
        enqueue(conn, "a", "g")
    resets = datetime.fromisoformat(refused.value.resets_at or "").astimezone(UTC)
    assert (resets.day, resets.hour, resets.minute) == (1, 0, 0)
