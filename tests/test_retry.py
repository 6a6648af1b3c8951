"""Putting finished executions back: at the end of the line or in the old place, by id or by filter."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

import pgfifo
from pgfifo import errors
from tests.support.cli import CommandLine
from tests.support.database import Background, in_background, wait_until_blocked
from tests.support.engine import Engine, Hand, Start

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def fail(engine: Engine, worker: int, *ids: int) -> None:
    """Run what is next: these fail for good, the others succeed."""
    left = set(ids)
    while left:
        for start in engine.claim(worker, 10):
            if start.id in left:
                engine.hand_in(worker, start, outcome="failed", error="boom", retry=False)
                left.discard(start.id)
            else:
                engine.hand_in(worker, start)


def failed(conn: Connection, count: int) -> tuple[Engine, int, list[int]]:
    """Have so many fail for good; return the engine, the worker that ran them, and their ids."""
    engine = Engine(conn)
    ids = engine.fill(count)
    worker = engine.worker()
    fail(engine, worker, *ids)
    return engine, worker, ids


def identity(engine: Engine, action: str = "deploy") -> dict[str, Any]:
    stats = engine.stats(action)
    parts = ("total_completed", "queue_length", "active_count", "delayed_count")
    assert stats["total_enqueued"] == sum(stats[part] for part in parts)
    return stats


def where(engine: Engine, head: bool = False, dry_run: bool = False, **keys: object) -> tuple[int, int, int]:
    """Call until there is nothing more, a small piece at a time."""
    total = [0, 0, 0]
    after: str | None = None
    while True:
        (row,) = engine.rows(
            "select retried, refused, busy, next from pgfifo.retry_where(%s, %s, %s, %s, 7)",
            Jsonb(keys),
            head,
            dry_run,
            after,
        )
        total = [each + more for each, more in zip(total, row[:3], strict=True)]
        after = row[3]
        if after is None:
            return total[0], total[1], total[2]


# One


def test_retry_makes_a_new_one_at_the_end_of_the_line_and_the_old_outcome_stays(conn: Connection) -> None:
    engine = Engine(conn)
    old = engine.one(
        "select pgfifo.enqueue('deploy', '{\"a\": 1}', 'g', '{\"trace\": 7}', '{red}', p_request_id => 'r')"
    )
    worker = engine.worker()
    fail(engine, worker, old)
    (waiting,) = engine.fill(1, group="g")
    new = engine.retry(old)
    assert new > waiting
    show = engine.show(new)
    assert (show["state"], show["retry_of"], show["attempt"], show["failures"]) == ("waiting", old, 0, 0)
    assert (show["payload"], show["headers"], show["tags"], show["group_text"]) == (
        {"a": 1},
        {"trace": 7},
        ["red"],
        "g",
    )
    assert show["ticket"] == new
    before = engine.show(old)
    assert (before["state"], before["error"], before["failures"]) == ("failed", "boom", 1)
    assert engine.drain(worker) == [waiting, new]
    assert identity(engine)["total_enqueued"] == 3
    assert engine.one("select detail from pgfifo.audit where what = 'retry'") == {"id": old, "retry": new}
    engine.assert_promises()


def test_retry_at_the_head_starts_before_younger_ones_that_wait(conn: Connection) -> None:
    engine = Engine(conn)
    first, second, *others = engine.fill(6)
    worker = engine.worker()
    fail(engine, worker, first, second)
    (running,) = engine.claim(worker)
    again = engine.retry(second, head=True)
    before = engine.retry(first, head=True)
    assert [engine.show(each)["ticket"] for each in (before, again)] == [first, second]
    assert [engine.position(each) for each in (before, again, others[1])] == [1, 2, 3]
    assert identity(engine)["queue_length"] == 5
    engine.hand_in(worker, running)
    assert engine.drain(worker) == [before, again, *others[1:]]
    engine.assert_promises()


def test_retry_at_the_head_of_one_whose_turn_had_not_come(conn: Connection) -> None:
    """It was cancelled while it waited; its old place is still in the line."""
    engine = Engine(conn)
    ids = engine.fill(5)
    engine.cancel(ids[2])
    new = engine.retry(ids[2], head=True)
    assert engine.position(new) == 3
    assert engine.drain(engine.worker()) == [*ids[:2], new, *ids[3:]]
    engine.assert_promises()


def test_retry_at_the_head_of_one_that_never_had_a_place_joins_the_end(conn: Connection) -> None:
    engine = Engine(conn)
    late = engine.enqueue_later("1 hour")
    engine.cancel(late)
    first = engine.enqueue()
    new = engine.retry(late, head=True)
    assert engine.drain(engine.worker()) == [first, new]
    engine.assert_promises()


@pytest.mark.parametrize("head", [False, True])
def test_retry_in_a_lane_that_was_removed_meanwhile(conn: Connection, head: bool) -> None:
    engine = Engine(conn)
    engine.policy(lane_retention=1)
    old = engine.enqueue(group="g")
    worker = engine.worker()
    fail(engine, worker, old)
    engine.advance("5 s")
    engine.tick(3)
    assert engine.rows("select from pgfifo.lanes") == []
    new = engine.retry(old, head)
    younger = engine.enqueue(group="g")
    assert engine.drain(worker) == [new, younger]
    assert identity(engine)["total_enqueued"] == 3
    engine.assert_promises()


@pytest.mark.parametrize("head", [False, True])
def test_retry_in_a_relaxed_lane(conn: Connection, head: bool) -> None:
    engine = Engine(conn)
    engine.policy(ordering="relaxed")
    old, *others = engine.fill(3)
    worker = engine.worker()
    fail(engine, worker, old)
    new = engine.retry(old, head)
    assert engine.drain(worker)[0 if head else -1] == new
    assert identity(engine)["total_completed"] == 2 + len(others)
    engine.assert_promises(strict=False)


@pytest.mark.parametrize("outcome", ["succeeded", "cancelled"])
def test_retry_of_any_outcome_by_its_id(conn: Connection, outcome: str) -> None:
    engine = Engine(conn)
    old = engine.enqueue()
    worker = engine.worker()
    engine.hand_in(worker, *engine.claim(worker), outcome=outcome)
    assert engine.drain(worker) == []
    new = engine.retry(old)
    assert engine.drain(worker) == [new]


def test_retry_of_an_expired_one(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=5)
    old = engine.enqueue()
    worker = engine.worker()
    engine.advance("10 s")
    assert engine.claim(worker) == []
    assert engine.state(old) == "expired"
    new = engine.retry(old, head=True)
    assert engine.state(new) == "waiting", "it waits from now on"
    assert engine.drain(worker) == [new]
    engine.assert_promises()


def test_retry_of_a_retry_and_only_one_at_a_time(conn: Connection) -> None:
    engine = Engine(conn)
    old = engine.enqueue()
    worker = engine.worker()
    fail(engine, worker, old)
    second = engine.retry(old)
    with pytest.raises(errors.InvalidValue, match=f"already, as {second}") as caught:
        engine.retry(old)
    assert caught.value.detail["retry"] == second
    fail(engine, worker, second)
    third = engine.retry(second, head=True)
    assert engine.show(third)["ticket"] == second
    fourth = engine.retry(old, head=True)
    assert engine.retry_many([second, second]) == [("again", third), ("again", third)]
    assert engine.drain(worker) == [fourth, third]
    engine.assert_promises()


def test_retry_at_the_head_where_another_one_has_the_old_ticket(conn: Connection) -> None:
    engine = Engine(conn)
    old = engine.enqueue()
    worker = engine.worker()
    fail(engine, worker, old)
    second = engine.retry(old, head=True)
    fail(engine, worker, second)
    third = engine.retry(second, head=True)
    with pytest.raises(errors.InvalidValue, match="another retry"):
        engine.retry(old, head=True)
    engine.retry(old)
    assert engine.drain(worker)[0] == third


def test_retry_what_cannot_be_put_back(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_queue_length=1, max_concurrent=1)
    old, *_ = [engine.enqueue()]
    worker = engine.worker()
    fail(engine, worker, old)
    running = engine.enqueue()
    (start,) = engine.claim(worker)
    waiting = engine.enqueue()
    late = engine.enqueue_later("1 hour")
    assert engine.retry_many([running, waiting, late, 4711, old]) == [
        ("running", None),
        ("waiting", None),
        ("delayed", None),
        ("unknown", None),
        ("full", None),
    ]
    with pytest.raises(errors.QueueFull) as full:
        engine.retry(old)
    assert (full.value.limit, full.value.current) == (1, 1)
    with pytest.raises(errors.InvalidValue, match="is waiting"):
        engine.retry(waiting)
    with pytest.raises(errors.UnknownExecution):
        engine.retry(4711)
    engine.one("select pgfifo.close('deploy')")
    with pytest.raises(errors.ActionClosed):
        engine.retry(old, head=True)
    engine.one("select pgfifo.open('deploy')")
    new = engine.retry(old, head=True)
    assert identity(engine)["queue_length"] == 2, "an old place is not asked whether the line is full"
    engine.hand_in(worker, start)
    assert engine.drain(worker) == [new, waiting]
    engine.assert_promises()


def test_retry_fills_a_line_up_to_its_length_and_not_beyond(conn: Connection) -> None:
    engine, worker, ids = failed(conn, 6)
    engine.policy(max_queue_length=4)
    engine.enqueue()
    assert [answer for answer, _ in engine.retry_many(ids)] == ["retried"] * 3 + ["full"] * 3
    with pytest.raises(errors.QueueFull):
        engine.enqueue()
    engine.drain(worker)
    assert [answer for answer, _ in engine.retry_many(ids)] == ["retried"] * 4 + ["full"] * 2
    assert identity(engine)["queue_length"] == 4
    engine.drain(worker)
    engine.assert_promises()


def test_retry_fills_the_lines_of_an_action_up_to_its_length_and_not_beyond(conn: Connection) -> None:
    engine = Engine(conn)
    ids = engine.enqueue_many("deploy", [{}] * 6, ["a", "b", "a", "b", "a", "b"])
    worker = engine.worker()
    fail(engine, worker, *ids)
    engine.policy(max_action_queue_length=4)
    engine.enqueue(group="c")
    assert [answer for answer, _ in engine.retry_many(ids)] == ["retried"] * 3 + ["full"] * 3
    with pytest.raises(errors.QueueFull, match="in all its lanes"):
        engine.enqueue(group="d")
    with pytest.raises(errors.QueueFull, match="in all its lanes"):
        engine.retry(ids[5])
    # An old place is not asked for; what comes to it counts.
    engine.retry(ids[5], head=True)
    engine.drain(worker, limit=1)
    assert [answer for answer, _ in engine.retry_many(ids, head=True)] == ["retried"] * 6
    assert (identity(engine)["queue_length"], where(engine, action="deploy")) == (6, (0, 0, 0))
    engine.drain(worker)
    engine.assert_promises()


QUOTAS = {
    "everything": "select pgfifo.set_default_policy(%s)",
    "pack": "select pgfifo.set_pack_policy('web', %s)",
    "action": "select pgfifo.set_policy('web.get', %s)",
    "lane": "select pgfifo.set_policy('web.get', %s, 'a')",
}


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("scope", QUOTAS)
def test_retry_counts_for_quotas_like_an_enqueue(conn: Connection, scope: str, head: bool) -> None:
    engine = Engine(conn)
    ids = engine.fill(4, "web.get", "a")
    worker = engine.worker("web.get")
    engine.policy("web.get", max_concurrent=4)
    engine.hand_in(worker, *engine.claim(worker, 4, ["web.get"]), outcome="failed", error="boom", retry=False)
    conn.execute(QUOTAS[scope].encode(), [Jsonb({"quota": "3/day"})])
    engine.enqueue("web.get", group="a")
    assert [answer for answer, _ in engine.retry_many(ids, head)] == ["retried"] * 2 + ["quota"] * 2
    with pytest.raises(errors.QuotaExceeded) as refused:
        engine.retry(ids[3], head)
    assert (refused.value.limit, refused.value.current) == (3, 3)
    with pytest.raises(errors.QuotaExceeded):
        engine.enqueue("web.get", group="a")
    assert where(engine, head, action="web.get") == (0, 2, 0)
    engine.advance("1 day")
    assert where(engine, head, action="web.get") == (2, 0, 0)
    engine.enqueue("web.get", group="a")
    with pytest.raises(errors.QuotaExceeded):
        engine.enqueue("web.get", group="a")
    engine.drain(worker, ["web.get"])
    engine.assert_promises()


def test_retry_obeys_a_lane_that_refuses_what_cannot_start_at_once(conn: Connection) -> None:
    engine, worker, ids = failed(conn, 4)
    engine.policy(on_limit="cancel", max_concurrent=2)
    assert [answer for answer, _ in engine.retry_many(ids)] == ["retried"] * 2 + ["limit"] * 2
    with pytest.raises(errors.ConcurrencyLimit, match="max_concurrent is 2"):
        engine.retry(ids[2])
    # The one whose old place is asked for goes there, whatever waits.
    engine.retry(ids[2], head=True)
    assert where(engine, action="deploy") == (0, 1, 0)
    assert len(engine.drain(worker)) == 3
    engine.policy(rate="1/h")
    engine.retry(ids[3])
    assert len(engine.drain(worker)) == 1
    with pytest.raises(errors.RateLimit):
        engine.retry(ids[0])
    engine.pause()
    engine.policy(rate=None)
    with pytest.raises(errors.ConcurrencyLimit, match="paused"):
        engine.retry(ids[0])
    engine.resume()
    engine.assert_promises()


def test_retry_and_enqueues_beside_it_share_a_quota_exactly(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    old, other = engine.enqueue(group="a"), engine.enqueue(group="b")
    worker = engine.worker()
    fail(engine, worker, old, other)
    engine.policy(quota="1/day")
    undecided, retrying = Engine(connect(autocommit=False)), Engine(connect())
    undecided.enqueue(group="c")
    soon = "clock_timestamp() + interval '10 ms'"
    busy = f"select answer from pgfifo._put_back(array[%s::bigint], false, {soon})"
    assert engine.rows(busy, old) == [("busy",)], "it did not wait for who may take the last of the quota"
    second = in_background(lambda: retrying.retry_many([old, other]))
    wait_until_blocked(conn, retrying.pid)
    undecided.conn.rollback()
    assert [answer for answer, _ in second.result()] == ["retried", "quota"]
    engine.drain(worker)
    engine.advance("1 day")
    undecided.retry(other)
    enqueueing = Engine(connect())
    third = in_background(lambda: enqueueing.enqueue(group="c"))
    wait_until_blocked(conn, enqueueing.pid)
    undecided.conn.commit()
    with pytest.raises(errors.QuotaExceeded):
        third.result()
    engine.drain(worker)
    engine.assert_promises()


def test_retry_lets_what_is_due_join_first(conn: Connection) -> None:
    engine = Engine(conn)
    old = engine.enqueue()
    worker = engine.worker()
    fail(engine, worker, old)
    late = engine.enqueue_later("1 s")
    engine.advance("2 s")
    new = engine.retry(old)
    assert engine.drain(worker) == [late, new]


# Beside others


def test_retry_of_the_same_one_by_two_at_once_makes_one(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    old = engine.enqueue()
    worker = engine.worker()
    fail(engine, worker, old)
    one, other = Engine(connect(autocommit=False)), Engine(connect())
    new = one.retry(old)
    second = in_background(lambda: other.retry(old, head=True))
    wait_until_blocked(conn, other.pid)
    one.conn.commit()
    with pytest.raises(errors.InvalidValue, match="already"):
        second.result()
    assert engine.drain(worker) == [new]
    engine.assert_promises()


@pytest.mark.parametrize("many", [False, True])
def test_retry_knows_one_that_ends_while_it_looks(conn: Connection, connect: Connect, many: bool) -> None:
    engine, other = Engine(conn), Engine(connect())
    old = engine.enqueue()
    holder = connect(autocommit=False)
    holder.execute("lock table pgfifo.policies in access exclusive mode")  # is read after the first look
    query = "select retry_id, answer from pgfifo.retry_many(array[%s]::bigint[])"
    retry = in_background(lambda: other.rows(query, old)[0] if many else (other.retry(old), "retried"))
    wait_until_blocked(conn, other.pid)
    holder.execute("select pgfifo.cancel(%s)", [old])
    holder.commit()
    new, answer = retry.result()
    assert answer == ("busy" if many else "retried"), "an execution that has just ended is not unknown"
    if many:
        new, answer = engine.rows(query, old)[0]
    assert (engine.drain(engine.worker()), answer) == ([new], "retried")
    engine.assert_promises()


def test_retry_that_is_rolled_back_leaves_nothing(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    old, behind = engine.fill(2)
    worker = engine.worker()
    fail(engine, worker, old)
    undecided = Engine(connect(autocommit=False))
    undecided.retry(old, head=True)
    undecided.conn.rollback()
    undecided.retry(old)
    undecided.conn.rollback()
    assert engine.retry_many([old])[0][0] == "retried"
    assert len(engine.drain(worker)) == 2
    assert identity(engine)["total_enqueued"] == 3
    engine.assert_promises()
    _ = behind


def test_retry_waits_for_the_enqueue_that_is_under_way_and_gives_up_after_a_while(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    old, other = engine.enqueue(group="a"), engine.enqueue(group="b")
    worker = engine.worker()
    fail(engine, worker, old, other)
    producer = Engine(connect(autocommit=False))
    mine = producer.enqueue(group="a")
    answers = dict(zip([old, other], engine.retry_many([old, other]), strict=True))
    assert answers[old] == ("busy", None)
    assert answers[other][0] == "retried"
    with pytest.raises(errors.Busy):
        engine.retry(old)
    producer.conn.commit()
    new = engine.retry(old)
    order = engine.drain(worker)
    assert [each for each in order if each in (mine, new)] == [mine, new]
    engine.assert_promises()


def test_retry_at_the_head_beside_a_claim_in_flight(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    old, second = engine.fill(2)
    worker = engine.worker()
    fail(engine, worker, old)
    claimer, operator = Engine(connect(autocommit=False)), Engine(connect())
    assert [start.id for start in claimer.claim(worker)] == [second]
    retried = in_background(lambda: operator.retry(old, head=True))
    wait_until_blocked(conn, operator.pid)
    claimer.conn.commit()
    new = retried.result()
    assert engine.state(second) == "running"
    assert engine.show(new)["ticket"] == old
    engine.assert_promises()


# Many, and by filter


def test_retry_many_keeps_the_order_that_is_given(conn: Connection) -> None:
    engine, worker, ids = failed(conn, 20)
    given = list(ids)
    random.Random(3).shuffle(given)
    answers = engine.retry_many(given)
    assert {answer for answer, _ in answers} == {"retried"}
    assert engine.drain(worker) == [new for _, new in answers]
    assert engine.retry_many(ids[:2] + ids[:1], head=True)[2][0] == "again"
    engine.assert_promises()


def test_retry_many_over_lanes_and_actions(conn: Connection) -> None:
    engine = Engine(conn)
    groups = [str(n % 7) for n in range(70)]
    ids = engine.enqueue_many("deploy", [{}] * 70, groups) + engine.enqueue_many("other", [{}] * 70, groups)
    worker = engine.worker("deploy", "other")
    while starts := engine.claim(worker, 20, ["deploy", "other"]):
        engine.hand_in(worker, *starts, outcome="failed", retry=False)
    for head in (True, False):
        answers = engine.retry_many(ids, head)
        assert {answer for answer, _ in answers} == {"retried"}
        while starts := engine.claim(worker, 20, ["deploy", "other"]):
            engine.hand_in(worker, *starts, outcome="failed", retry=False)
    assert identity(engine)["total_failed"] == 210
    engine.assert_promises()


def test_retry_where_puts_back_what_failed_and_each_only_once(conn: Connection) -> None:
    engine = Engine(conn)
    ids = engine.enqueue_many("deploy", [{}] * 40, [str(n % 4) for n in range(40)])
    worker = engine.worker()
    bad = ids[::3]
    fail(engine, worker, *bad)
    engine.drain(worker)
    engine.cancel(engine.enqueue())
    assert where(engine, dry_run=True, action="deploy") == (len(bad), 0, 0)
    assert identity(engine)["queue_length"] == 0, "a dry run is dry"
    assert where(engine, action="deploy") == (len(bad), 0, 0)
    assert where(engine, action="deploy") == (0, 0, 0), "it put back what it had put back before"
    again = [new for (new,) in engine.rows("select id from pgfifo.executions where retry_of is not null")]
    fail(engine, worker, *again)
    assert where(engine, action="deploy", head=True) == (len(bad), 0, 0), (
        "a retry that failed is put back itself"
    )
    engine.drain(worker)
    assert where(engine, action="deploy", state=["succeeded", "cancelled"], to_id=max(ids)) == (
        40 - len(bad),
        0,
        0,
    )
    engine.drain(worker)
    engine.assert_promises()


def test_retry_where_each_key_selects_what_it_says(conn: Connection) -> None:
    engine = Engine(conn)
    early = engine.enqueue_many("a", [{}] * 2, ["g", "h"])
    serving = engine.worker("a")
    engine.hand_in(serving, *engine.claim(serving, 10, ["a"]), outcome="failed", retry=False)
    engine.advance("1 hour")
    late = engine.one("select pgfifo.enqueue('a', '{}', 'g', null, '{red}')")
    engine.hand_in(serving, *engine.claim(serving, 10, ["a"]), outcome="failed", retry=False)
    for keys, expected in (
        ({"action": "a"}, 3),
        ({"action": "a", "group": "g"}, 2),
        ({"tags": ["red"]}, 1),
        ({"finished_since": 600}, 1),
        ({"finished_before": 600}, 2),
        ({"enqueued_since": 600}, 1),
        ({"from_id": early[1], "to_id": early[1]}, 1),
        ({"state": "succeeded"}, 0),
        ({"state": ["failed", "expired"]}, 3),
    ):
        assert where(engine, dry_run=True, **keys)[0] == expected, keys
    assert where(engine, action="a", finished_since=600) == (1, 0, 0)
    assert engine.one("select retry_of from pgfifo.executions where finished_at is null") == late
    for bad in ({}, {"state": "waiting"}, {"nothing": 1}):
        with pytest.raises(errors.InvalidValue):
            where(engine, **bad)
    with pytest.raises(errors.UnknownAction):
        where(engine, action="nobody")


def test_retry_where_counts_what_was_refused_and_goes_on_later(conn: Connection) -> None:
    engine, worker, _ids = failed(conn, 10)
    engine.policy(max_queue_length=4)
    assert where(engine, action="deploy") == (4, 6, 0)
    engine.drain(worker)
    assert where(engine, action="deploy") == (4, 2, 0)
    engine.drain(worker)
    assert where(engine, action="deploy") == (2, 0, 0)
    engine.assert_promises()


def test_retry_where_leaves_alone_what_fails_after_it_began(conn: Connection) -> None:
    """The first piece's retries fail again before the second piece: they are not put back for ever."""
    engine, worker, _ids = failed(conn, 10)
    after = None
    retried = 0
    for _ in range(20):
        query = "select retried, next from pgfifo.retry_where(%s, p_after => %s, p_limit => 3)"
        ((count, after),) = engine.rows(query, Jsonb({"action": "deploy"}), after)
        retried += count
        starts = engine.claim(worker, 1)
        while starts:
            engine.hand_in(worker, *starts, outcome="failed", retry=False)
            starts = engine.claim(worker, 1)
        if after is None:
            break
    assert (retried, after) == (10, None)


def test_retry_where_over_many_lanes(conn: Connection) -> None:
    engine = Engine(conn)
    groups = [str(n) for n in range(200)]
    engine.enqueue_many("deploy", [{}] * 200, groups)
    worker = engine.worker()
    while starts := engine.claim(worker, 100):
        engine.hand_in(worker, *starts, outcome="failed", retry=False)
    (row,) = engine.rows('select retried, next from pgfifo.retry_where(\'{"action": "deploy"}\')')
    assert row[0] == 64, "at most so many lanes in one transaction"
    assert row[1] is not None
    assert where(engine, action="deploy") == (136, 0, 0)
    engine.drain(worker)
    engine.assert_promises()


def test_retry_many_refuses_what_is_too_much_for_one_call(conn: Connection) -> None:
    engine = Engine(conn)
    assert engine.retry_many([]) == []
    with pytest.raises(errors.InvalidValue, match="at most 10,000"):
        engine.retry_many(range(10_001))
    with pytest.raises(errors.InvalidValue):
        conn.execute("select pgfifo.retry_many(array[null::bigint])")
    with pytest.raises(errors.InvalidValue):
        conn.execute("select pgfifo.retry_where('{\"from_id\": 1}', p_limit => 0)")


@pytest.mark.parametrize(
    "call",
    [
        "select pgfifo.retry(1)",
        "select pgfifo.retry_many('{1}')",
        "select pgfifo.retry_where('{\"from_id\": 1}')",
    ],
)
def test_retry_on_an_old_snapshot_is_refused(conn: Connection, connect: Connect, call: str) -> None:
    Engine(conn).enqueue()
    old = connect(autocommit=False)
    old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    with pytest.raises(errors.IsolationLevel):
        old.execute(call)


def test_what_goes_to_its_old_place_counts_for_those_that_go_to_the_end_with_it(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_queue_length=2)
    first = engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    engine.finish(start, "failed", retry=False)
    never_joined = engine.enqueue_later("1 h")
    engine.cancel(never_joined)
    engine.enqueue()
    answers = engine.retry_many([first, never_joined], head=True)
    assert [answer for answer, _ in answers] == ["retried", "full"]
    assert engine.stats()["queue_length"] == 2


def test_retry_among_everything_else_keeps_every_promise(conn: Connection, connect: Connect) -> None:
    """Two lanes: producers, workers whose attempts fail for good, operators who put back at both ends."""
    engine = Engine(conn)
    engine.policy(max_concurrent=2, max_attempts=1)
    engine.enqueue_many("deploy", [{}] * 2, ["a", "b"])

    def produce(own: Connection) -> int:
        producer = Engine(own)
        for number in range(60):
            producer.enqueue(group="ab"[number // 10 % 2])
        return 60

    def consume(hand: Hand) -> int:
        ended: list[Start] = []
        done = idle = 0
        while idle < 100:
            bad = [start for start in ended if start.id % 3 == 0]
            hand.to_hand_in += [
                {"id": each.id, "attempt": each.attempt, "outcome": "failed", "error": "boom"} for each in bad
            ]
            ended = hand.turn(4, [start for start in ended if start not in bad]).starts
            done += len(ended)
            idle = 0 if ended else idle + 1
        return done

    def operate(own: Connection, seed: int) -> int:
        chance, operator, made = random.Random(seed), Engine(own), 0
        for _ in range(2000):
            if made >= 20:
                break
            failed = [
                id_ for (id_,) in operator.rows("select id from pgfifo.history where outcome = 'failed'")
            ]
            if failed:
                given = chance.sample(failed, min(3, len(failed)))
                answers = operator.retry_many(given, chance.random() < 0.5)
                made += sum(answer == "retried" for answer, _ in answers)
        return made

    def begin(what: Callable[[Connection], int]) -> Background[int]:
        own = connect()
        return in_background(lambda: what(own))

    consumers = [begin(lambda own: consume(Hand(own))) for _ in range(2)]
    producers = [begin(produce) for _ in range(2)]
    operators = [begin(lambda own: operate(own, 1)), begin(lambda own: operate(own, 2))]
    made = sum(producer.result(120) for producer in producers) + 2
    retried = sum(operator.result(120) for operator in operators)
    assert sum(consumer.result(120) for consumer in consumers) > 0
    engine.drain(engine.worker())
    stats = identity(engine)
    assert retried > 0
    assert stats["total_enqueued"] == stats["total_completed"] == made + retried
    engine.assert_promises()


# Clients and the command line


def test_retry_by_the_client(dsn: str, conn: Connection) -> None:
    engine = Engine(conn)
    with pgfifo.Client(dsn) as fifo:
        ids = [job.id for job in fifo.enqueue_many("deploy", range(4))]
        worker = engine.worker()
        fail(engine, worker, *ids)
        new = fifo.retry(ids[0])
        assert fifo.execution(new).retry_of == ids[0]
        head = fifo.retry(ids[1], head=True)
        assert fifo.position(head).position == 1
        with pytest.raises(pgfifo.InvalidValue, match="already"):
            fifo.retry(ids[0])
        with pytest.raises(pgfifo.UnknownExecution):
            fifo.retry(4711)
        answers = fifo.retry_many([ids[2], ids[0], 4711])
        assert [(each.id, each.answer) for each in answers] == [
            (ids[2], "retried"),
            (ids[0], "again"),
            (4711, "unknown"),
        ]
        assert fifo.retry_where(action="deploy", dry_run=True) == pgfifo.Retried(1, 0, 0, [])
        done = fifo.retry_where(action="deploy", finished_since=3600)
        assert done == pgfifo.Retried(
            1, 0, 0, [found.id for found in fifo.executions() if found.retry_of == ids[3]]
        )
        assert fifo.stats("deploy").queue_length == 4
        with pytest.raises(pgfifo.InvalidValue):
            fifo.retry_where()
        with psycopg.connect(dsn) as mine:
            fifo.retry_many(ids, connection=mine)
            fail(engine, worker, new)
            fifo.retry(new, connection=mine)
            mine.rollback()
        assert fifo.retry(new) > new


def test_retry_many_by_the_client_in_parts(dsn: str, conn: Connection) -> None:
    engine = Engine(conn)
    most = engine.one("select pgfifo.max_batch_lanes()")
    count = most + 500
    engine.enqueue_many("deploy", [{}] * most, [str(n) for n in range(most)])
    engine.enqueue_many("deploy", [{}] * 500, ["x" + str(n) for n in range(500)])
    ids = [id_ for (id_,) in engine.rows("select id from pgfifo.executions order by id")]
    worker = engine.worker()
    while starts := engine.claim(worker, 1000):
        engine.hand_in(worker, *starts, outcome="failed", retry=False)

    async def live() -> list[pgfifo.RetryAnswer]:
        async with pgfifo.AsyncClient(dsn) as fifo:
            with pytest.raises(pgfifo.TooManyLanes):
                async with fifo.transaction() as mine:
                    await fifo.retry_many(ids, connection=mine)
            return await fifo.retry_many(ids)

    answers = asyncio.run(live())
    assert [answer.answer for answer in answers] == ["retried"] * count


def test_retry_on_the_command_line(
    dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conn.execute("alter sequence pgfifo.execution_ids restart")
    cli, engine = CommandLine(dsn, monkeypatch, capsys), Engine(conn)
    engine.fill(5)
    worker = engine.worker()
    fail(engine, worker, 1, 2, 3, 4)
    said = cli.ok("retry", "1", "2")
    assert said.out == "6\n7\n"
    assert said.undo == [["cancel", "6", "7"]]
    said = cli("retry", "1", "5", "4711", "3", "--head")
    assert (said.code, said.out) == (1, "8\n")
    for words in ("already, as 6", "is waiting", "no execution 4711", "in its old place"):
        assert words in said.err
    assert cli.ok("position", "8").out == "1\n"
    assert (
        "Would put back 1 execution."
        in cli.ok("retry", "--action", "deploy", "--since", "1h", "--dry-run").err
    )
    said = cli.ok("retry", "--action", "deploy", "--since", "1h")
    assert "Put back 1 execution." in said.err
    assert said.undo == [["cancel", "9"]]
    assert "Nothing to do" in cli.ok("retry", "--action", "deploy", "--since", "1h").err
    assert cli.ok("retry", "-", stdin="").out == ""
    engine.drain(worker)
    engine.policy(max_queue_length=1)
    assert cli("retry", "--action", "deploy", "--state", "succeeded").code == 1
    for bad in (["retry"], ["retry", "1", "--action", "deploy"], ["retry", "1", "--dry-run"], ["retry", "x"]):
        said = cli(*bad)
        assert (said.code, "Traceback" in said.all) == (2, False), bad
    assert cli("retry", "--action", "nobody").code == 1


@pytest.mark.parametrize("number", [3, 12, 250])
@pytest.mark.parametrize("between", [False, True], ids=["in a row", "with others between"])
@pytest.mark.parametrize("by", ["ids", "filter"])
def test_retry_says_how_to_cancel_just_the_new_ones(
    dsn: str,
    conn: Connection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    between: bool,
    by: str,
) -> None:
    cli, engine = CommandLine(dsn, monkeypatch, capsys), Engine(conn)
    ids = engine.enqueue_many("deploy", [{}] * number)
    worker = engine.worker()
    while starts := engine.claim(worker, 1000):
        engine.hand_in(worker, *starts, outcome="failed", retry=False)
    if between:  # as if others drew ids meanwhile
        conn.execute("alter sequence pgfifo.execution_ids increment 2")
    said = cli.ok("retry", *(map(str, ids) if by == "ids" else ("--action", "deploy")))
    conn.execute("alter sequence pgfifo.execution_ids increment 1")
    if between and number == 250:
        assert said.undo == []
        assert "No one command undoes it" in said.err
        return
    other = engine.enqueue()
    [undo] = said.undo
    cli.ok(*undo)
    states = dict(engine.rows("select id, state from pgfifo.executions where id <> all (%s)", ids))
    assert states.pop(other) == "waiting"
    assert list(states.values()) == ["cancelled"] * number
