"""What calls cost, counted in buffers and never in time: the promise of flat cost, and the holes it had.

A buffer touched is a page looked at, from memory or from disk; a plan that walks dead rows, a backlog or all
lanes touches more of them with every execution. The numbers compared are the best of a few calls, first with
little and then with a lot.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.support.sqlworker import (
    SqlWorker,
    buffers,
    claim_cost,
    enqueue,
    enqueue_groups,
    enqueue_one_by_one,
    policy,
    value,
    violations,
)

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


@contextlib.contextmanager
def held_snapshot(connect: Connect) -> Iterator[Connection]:
    """Another session's long transaction: nothing that dies from now on can be cleaned away."""
    holder = connect(autocommit=False)
    holder.execute("set transaction isolation level repeatable read")
    holder.execute("select count(*) from pgfifo.executions")
    yield holder
    holder.rollback()


def flat(before: int, after: int, what: str) -> None:
    """Fail when the cost has grown with what must not count."""
    # A level more in each of some twenty indexes, pages that have filled up: not more. Who walks over dead
    # entries touches a thousand.
    assert after <= before * 1.5 + 80, f"a call touched {before} buffers before and {after} after {what}"


def churn(worker: SqlWorker, count: int, limit: int = 100, failing: int = 0) -> int:
    """Run so many executions, one call after the other; the first attempt of every nth fails."""
    done = 0
    held = worker.work(limit)
    while held:
        ended = []
        for start in held:
            fails = failing and start.attempt == 1 and start.id % failing == 0
            ended.append(start.ended("failed" if fails else "succeeded"))
            done += not fails
        if done >= count:
            worker.work(0, ended)
            return done
        held = worker.work(limit, ended)
        while not held and worker.more:
            held = worker.work(limit)
    return done


# E8, and what was measured beside it: dead entries at the head of a line


@pytest.mark.parametrize("ordering", ["strict", "relaxed"])
def test_e8_a_claim_does_not_walk_over_what_has_been_consumed_while_a_snapshot_is_held(
    conn: Connection, connect: Connect, ordering: str
) -> None:
    policy(conn, "a", ordering=ordering, max_concurrent=100)
    worker = SqlWorker(conn, "a")
    enqueue_groups(conn, "a", ["g"] * 500)
    with held_snapshot(connect):
        churn(worker, 200)
        before = claim_cost(worker)
        enqueue_groups(conn, "a", ["g"] * 12_000)
        churn(worker, 12_000)
        enqueue_groups(conn, "a", ["g"] * 100)
        flat(before, claim_cost(worker), "12,000 executions of one lane under a held snapshot")


@pytest.mark.parametrize(
    ("ordering", "writes", "count"),
    [
        ("strict", False, 4000),
        ("relaxed", False, 4000),
        ("strict", True, 8000),
        ("relaxed", True, 8000),
    ],
)
def test_e8_nor_when_each_was_enqueued_on_its_own(
    conn: Connection, connect: Connect, ordering: str, writes: bool, count: int
) -> None:
    policy(conn, "a", ordering=ordering, max_concurrent=100)
    worker = SqlWorker(conn, "a")
    enqueue_one_by_one(conn, "a", "g", 200)
    with held_snapshot(connect) as holder:
        if writes:
            holder.execute("select pg_current_xact_id()")
        churn(worker, 100)
        before = claim_cost(worker)
        for _ in range(count // 500):
            enqueue_one_by_one(conn, "a", "g", 500)
            churn(worker, 500)
        enqueue_one_by_one(conn, "a", "g", 20)
        flat(before, claim_cost(worker), f"{count} executions, each its own commit, under a held snapshot")


def test_e8_nor_where_the_tables_were_empty_when_they_were_analyzed(
    conn: Connection, connect: Connect
) -> None:
    # For a table without rows the planner holds any index for as good, one that only sorts too.
    policy(conn, "a", max_concurrent=100)
    conn.execute("vacuum analyze")
    worker = SqlWorker(conn, "a")
    enqueue_groups(conn, "a", ["g"] * 500)
    with held_snapshot(connect):
        churn(worker, 200)
        before = claim_cost(worker)
        enqueue_groups(conn, "a", ["g"] * 12_000)
        churn(worker, 12_000)
        enqueue_groups(conn, "a", ["g"] * 100)
        flat(
            before, claim_cost(worker), "12,000 executions under a held snapshot, after an analyze of nothing"
        )


def test_e8_nor_do_other_calls_where_each_lane_had_one_row_when_the_ledger_was_analyzed(
    conn: Connection, connect: Connect
) -> None:
    # One row a lane is what is visible of it, and few enough for a plan that reads all and sorts.
    policy(conn, "a", max_concurrent=100)
    worker, other = SqlWorker(conn, "a"), SqlWorker(conn, "a")
    lanes = [str(n) for n in range(40)]
    enqueue_groups(conn, "a", lanes * 20)
    held = [start.id for start in other.work(5)]
    calls = {
        "an enqueue": "select pgfifo.enqueue('a', '{}', n::text) from generate_series(0, 39) n",
        "an enqueue with a key": "select pgfifo.enqueue('a', '{}', n::text, p_item_key => 'x')"
        " from generate_series(0, 39) n",
        # Of the one that has had most of what is dead.
        "a heartbeat": f"select * from pgfifo.heartbeat({worker.id}, null, '{{{','.join(map(str, held))}}}')",
    }

    def costs() -> dict[str, int]:
        return {call: min(buffers(conn, query) for _ in range(3)) for call, query in calls.items()}

    with held_snapshot(connect):
        churn(worker, 400, limit=10)
        conn.execute("analyze")
        before = costs()
        for _ in range(2):
            enqueue_groups(conn, "a", lanes * 50)
            churn(worker, 2000, limit=10)
            conn.execute("analyze")
        for call, after in costs().items():
            flat(before[call], after, f"4,000 executions in 40 lanes under a held snapshot ({call})")


def test_e8_nor_after_many_lanes_beside_it(conn: Connection, connect: Connect) -> None:
    policy(conn, "a")
    worker = SqlWorker(conn, "a")
    lanes = [str(n) for n in range(100)]
    enqueue_groups(conn, "a", lanes)
    with held_snapshot(connect):
        churn(worker, 100)
        enqueue_groups(conn, "a", lanes)
        before = claim_cost(worker)
        for _ in range(10):
            enqueue_groups(conn, "a", lanes * 10)
            churn(worker, 1000)
        enqueue_groups(conn, "a", lanes)
        flat(before, claim_cost(worker), "10,000 executions in 100 lanes under a held snapshot")
    assert violations(conn) == []


@pytest.mark.parametrize("lanes", [1, 50])
def test_e8_nor_when_every_third_fails_and_comes_again(
    conn: Connection, connect: Connect, lanes: int
) -> None:
    policy(conn, "a", backoff="constant", backoff_initial=0, max_concurrent=3)
    worker = SqlWorker(conn, "a")
    names = [str(n) for n in range(lanes)]
    enqueue_groups(conn, "a", names * (200 // lanes))
    with held_snapshot(connect):
        churn(worker, 100, failing=3)
        before = claim_cost(worker)
        enqueue_groups(conn, "a", names * (3000 // lanes))
        churn(worker, 3000, failing=3)
        enqueue_groups(conn, "a", names * (100 // lanes))
        flat(before, claim_cost(worker), "3,000 executions of which 1,000 failed once, under a held snapshot")


def test_e8_what_returns_to_its_place_does_not_move_the_consumed_mark_back(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a", max_concurrent=20)
    other, worker = SqlWorker(conn, "a"), SqlWorker(conn, "a")
    first = enqueue(conn, "a", "g")
    (old,) = other.work()
    enqueue_groups(conn, "a", ["g"] * 500)
    with held_snapshot(connect):
        churn(worker, 200)
        before = claim_cost(worker)
        enqueue_groups(conn, "a", ["g"] * 8000)
        churn(worker, 8000)
        enqueue_groups(conn, "a", ["g"] * 100)
        consumed = value(conn, "select consumed from pgfifo.ledger")
        other.work(0, [old.ended("released")])
        assert value(conn, "select consumed from pgfifo.ledger") == consumed
        after = claim_cost(worker, times=1)
        assert value(conn, "select state from pgfifo.executions where id = %s", first) == "running"
        flat(before * 4, after, "an execution came back that is 8,000 older than its line")
        flat(before, claim_cost(worker), "an execution came back that is 8,000 older than its line")


def test_e8_a_lane_with_something_held_does_not_walk_over_what_was_held_before(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a", backoff="constant", backoff_initial=0, max_concurrent=4)
    worker = SqlWorker(conn, "a")
    enqueue_groups(conn, "a", ["g"] * 300)
    with held_snapshot(connect):
        conn.execute("update pgfifo.policies set backoff_initial = 3600")
        (stuck,) = worker.work()
        worker.work(0, [stuck.ended("failed")])  # holds its slot for an hour
        conn.execute("update pgfifo.policies set backoff_initial = 0")
        churn(worker, 100, limit=3, failing=1)
        before = claim_cost(worker)
        enqueue_groups(conn, "a", ["g"] * 1000)
        churn(worker, 1000, limit=3, failing=1)
        enqueue_groups(conn, "a", ["g"] * 100)
        flat(before, claim_cost(worker), "1,000 executions of a lane had failed once, and one is held")


# E4 and the traps of the field: backlog, lanes, other people's actions


def test_e4_a_claim_costs_the_same_whatever_waits_behind_a_full_lane(conn: Connection) -> None:
    policy(conn, "a")
    worker = SqlWorker(conn, "a")
    enqueue(conn, "a", "full")
    assert len(worker.work()) == 1
    other = SqlWorker(conn, "a")
    enqueue_groups(conn, "a", ["free"] * 50)
    before = claim_cost(other)
    enqueue_groups(conn, "a", ["full"] * 20_000)
    claim_cost(other)
    flat(before, claim_cost(other), "20,000 were waiting behind a full lane")


def test_e4_a_claim_costs_the_same_with_a_hundred_and_with_twenty_thousand_lanes(conn: Connection) -> None:
    policy(conn, "a")
    policy(conn, "nobody")
    worker = SqlWorker(conn, "a")
    enqueue_groups(conn, "a", (str(n) for n in range(100)))
    before = claim_cost(worker)
    enqueue_groups(conn, "a", (str(n) for n in range(10_000)))
    enqueue_groups(conn, "nobody", (str(n) for n in range(10_000)))
    conn.execute("analyze")
    fresh = SqlWorker(conn, "a")
    flat(before, claim_cost(fresh), "there were 20,000 lanes, half of them of an action that nobody serves")


# E11b: dead timers


def test_e11b_a_claim_does_not_walk_over_timers_that_have_fired(conn: Connection, connect: Connect) -> None:
    policy(conn, "a")
    worker = SqlWorker(conn, "a")
    enqueue_groups(conn, "a", ["g"] * 10)
    claim_cost(worker)
    with held_snapshot(connect):
        before = claim_cost(worker)
        conn.execute(
            "insert into pgfifo.timers (action_id, due_at, id, lane_id)"
            " select l.action_id, clock_timestamp(), nextval('pgfifo.mark_ids'), l.id"
            " from pgfifo.lanes l, generate_series(1, 20000)"
        )
        enqueue_groups(conn, "a", ["g"] * 2000)
        for _ in range(400):
            worker.work(0, [start.ended() for start in worker.work()])
            if not value(
                conn, "select exists (select from pgfifo.timers) or exists (select from pgfifo.marks)"
            ):
                break
        assert value(conn, "select count(*) from pgfifo.timers") == 0
        # The point from which timers are looked for comes to where the last look was, twice. Nobody else
        # waits, so these calls hand the slot on; that moves the points as well.
        for _ in range(2):
            conn.execute("select pgfifo.advance('350 ms')")
            claim_cost(worker, times=1)
        flat(before, claim_cost(worker), "20,000 timers had fired under a held snapshot")


# E15: what a round of maintenance costs


def test_e15_a_round_of_maintenance_costs_the_same_whatever_is_marked(conn: Connection) -> None:
    policy(conn, "a")
    enqueue_groups(conn, "a", (str(n) for n in range(1000)))
    conn.execute("select pgfifo.maintain()")
    # As autovacuum does, but not by chance: without, plans rest on what was there before this test.
    conn.execute("analyze")

    def round_cost() -> int:
        conn.execute("select pgfifo.advance('2 s')")
        conn.execute("update pgfifo.ticks set swept_to = 0")
        return buffers(conn, "select pgfifo.maintain()")

    round_cost()
    before = min(round_cost() for _ in range(3))
    enqueue_one_by_one(conn, "a", "0", 5_000)
    conn.execute("analyze")
    after = min(round_cost() for _ in range(3))
    assert after <= before + 1000, f"{before} buffers with 1,000 marks, {after} with 6,000"
