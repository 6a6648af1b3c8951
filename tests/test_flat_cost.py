"""Flat cost: what a call touches does not grow with what waits, with what has ended, or with dead rows.

Counted in buffers and scans, as the server itself reports them; never in time.
"""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.engine import Engine, item

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def bound(small: int) -> float:
    """Return what a call may touch in a large queue: its indexes are a level or two higher, and no more."""
    return 1.6 * small + 60


def buffers(conn: Connection, query: str, *parameters: object, times: int = 4) -> int:
    """Return how many pages a statement touches, at best of several times, each rolled back."""
    least = 10**9
    for _ in range(times):
        with conn.transaction(force_rollback=True):
            row = conn.execute(f"explain (analyze, buffers, format json) {query}", parameters).fetchone()
        assert row is not None
        plan = row[0][0]["Plan"]
        least = min(least, plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
    return least


def claim_cost(engine: Engine, worker: int, limit: int = 5) -> int:
    return buffers(engine.conn, "select * from pgfifo.work(%s, '{deploy}', %s)", worker, limit)


def finish_cost(engine: Engine, worker: int) -> int:
    rows = engine.rows("select id, attempt from pgfifo.runs where worker_id = %s limit 3", worker)
    items = [{"id": id_, "attempt": attempt, "outcome": "succeeded"} for id_, attempt in rows]
    assert items
    return buffers(
        engine.conn, "select * from pgfifo.work(%s, '{deploy}', 3, null, %s)", worker, Jsonb(items)
    )


def fill(engine: Engine, count: int, action: str = "deploy", group: str = "") -> None:
    """Enqueue one by one, as producers do: each with an arrival and a mark of its own."""
    engine.conn.execute(
        f"do $$ begin for n in 1 .. {count} loop perform pgfifo.enqueue('{action}', '{{}}', '{group}');"
        " end loop; end $$"
    )


def vacuum(engine: Engine) -> None:
    engine.conn.execute("vacuum analyze pgfifo._executions, pgfifo.runs, pgfifo.marks, pgfifo.arrivals")


def test_flat_cost_of_claims_and_finishes_over_the_backlog(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=5)
    engine.fill(100)
    worker = engine.worker()
    engine.claim(worker, 4)
    engine.hand_in(worker, *engine.claim(worker, 1))
    small = claim_cost(engine, worker), finish_cost(engine, worker)
    for _ in range(10):
        engine.fill(2000)
    engine.hand_in(worker, *engine.claim(worker, 1))  # what has arrived is counted once, by the next claim
    large = claim_cost(engine, worker), finish_cost(engine, worker)
    assert large[0] < bound(small[0]), (
        f"a claim touches {large[0]} pages with 20,000 waiting, {small[0]} with 100"
    )
    assert large[1] < bound(small[1]), f"a finish touches {large[1]} pages, before {small[1]}"


def test_flat_cost_of_enqueues_over_the_backlog(conn: Connection) -> None:
    engine = Engine(conn)
    for limit in ("unlimited", 1_000_000):
        engine.policy(max_queue_length=limit)
        engine.fill(10)
        small = buffers(conn, "select pgfifo.enqueue('deploy')")
        engine.fill(10_000)
        large = buffers(conn, "select pgfifo.enqueue('deploy')")
        assert large < bound(small), (
            f"an enqueue counts the line (max_queue_length {limit}): {small}, {large}"
        )


def test_flat_cost_of_a_full_lane_with_thousands_of_marks(conn: Connection) -> None:
    """Enqueued one by one behind a full lane: the marks are met once, not by every claim."""
    engine = Engine(conn)
    engine.fill(1, group="full")
    worker = engine.worker()
    assert len(engine.claim(worker)) == 1
    engine.fill(3, group="free")
    small = claim_cost(engine, worker)
    engine.drain(engine.worker())
    fill(engine, 3000, group="full")
    calls = 0
    while engine.work(worker, 5).more == "now":
        calls += 1
    assert calls < 30, "each claim met all marks of the full lane again"
    engine.fill(3, group="free")
    vacuum(engine)
    large = claim_cost(engine, worker)
    assert large < bound(small), f"a full lane costs every claim {large} pages instead of {small}"


def test_flat_cost_over_the_number_of_lanes(conn: Connection) -> None:
    engine = Engine(conn)
    lanes = engine.one("select pgfifo.max_batch_lanes()")
    engine.enqueue_many("deploy", [{}] * 20, [f"{n}" for n in range(20)])
    worker = engine.worker()
    engine.claim(worker, 3)
    small = claim_cost(engine, worker), finish_cost(engine, worker)
    for start in range(0, 3000, lanes):
        groups = [f"more {n}" for n in range(start, min(3000, start + lanes))]
        engine.enqueue_many("deploy", [{}] * len(groups), groups)
    large = claim_cost(engine, worker), finish_cost(engine, worker)
    assert large[0] < bound(small[0]), f"3,000 lanes cost a claim {large[0]} pages instead of {small[0]}"
    assert large[1] < bound(small[1])


def test_flat_cost_beside_an_action_that_nobody_serves(conn: Connection) -> None:
    engine = Engine(conn)
    engine.fill(50)
    worker = engine.worker()
    small = claim_cost(engine, worker)
    fill(engine, 3000, "idle")
    assert claim_cost(engine, worker) < bound(small), (
        "a worker walks the marks of actions that it does not serve"
    )


def test_flat_cost_over_what_has_ended(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=500)
    engine.fill(100)
    worker = engine.worker()
    engine.claim(worker, 3)
    small = (
        claim_cost(engine, worker),
        finish_cost(engine, worker),
        buffers(conn, "select pgfifo.enqueue('deploy')"),
    )
    for _ in range(4):
        engine.fill(2000)
        engine.drain(engine.worker(), limit=400)
    engine.fill(100)
    vacuum(engine)
    large = (
        claim_cost(engine, worker),
        finish_cost(engine, worker),
        buffers(conn, "select pgfifo.enqueue('deploy')"),
    )
    for what, before, after in zip(("claim", "finish", "enqueue"), small, large, strict=True):
        assert after < bound(before), (
            f"after 8,000 executions a {what} touches {after} pages, before {before}"
        )


def test_flat_cost_under_a_snapshot_that_somebody_holds(conn: Connection, connect: Connect) -> None:
    """Nothing that dies can be cleared away; each call must find its way without walking over it."""
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    engine.fill(50)
    worker = engine.worker()
    engine.claim(worker, 2)
    small = claim_cost(engine, worker), finish_cost(engine, worker)
    holder = connect(autocommit=False)
    holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    holder.execute("select count(*) from pgfifo.executions")
    engine.fill(1500)
    worked = engine.worker()
    engine.one("select pgfifo.worker_stop(%s)", worker)
    for start in (start for _ in range(600) for start in engine.claim(worked, 2)):
        outcome = "released" if start.attempt == 1 and start.id % 10 == 0 else "succeeded"
        engine.hand_in(worked, start, outcome=outcome)
        if start.id % 100 == 0:
            engine.advance("200 ms")  # the points from which marks are scanned move on in time
    engine.advance("2 s")
    engine.claim(worked, 2)
    large = claim_cost(engine, worked), finish_cost(engine, worked)
    assert large[0] < bound(small[0]), f"a claim walks over dead rows: {large[0]} pages instead of {small[0]}"
    assert large[1] < bound(small[1]), f"a finish walks over dead rows: {large[1]} pages, before {small[1]}"
    holder.rollback()


def scanned(conn: Connection, call: str, *parameters: object) -> dict[str, int]:
    """Call, roll back, and return how many rows of which tables were read by scans of whole tables."""
    tables = [
        "_executions",
        "runs",
        "arrivals",
        "marks",
        "ledger",
        "lanes",
        "history",
        "timers",
        "cancellations",
    ]
    query = (
        "select relname, coalesce(seq_tup_read, 0) from pg_stat_xact_user_tables"
        " where schemaname = 'pgfifo' and relname = any (%s)"
    )
    with conn.transaction(force_rollback=True):
        before = dict(conn.execute(query, [tables]).fetchall())
        conn.execute(f"select {call}", parameters)
        after = dict(conn.execute(query, [tables]).fetchall())
    return {name: read - before[name] for name, read in after.items() if read > before[name]}


@pytest.mark.parametrize("warm", [False, True])
def test_flat_cost_no_call_scans_a_table_of_the_queue(conn: Connection, connect: Connect, warm: bool) -> None:
    """Plans made while the tables were empty, and said to be, must be the right ones later."""
    engine = Engine(conn)
    engine.policy(max_concurrent=20, backoff_initial=3600)
    caller = connect()
    engine.fill(10)
    worker = engine.worker()
    a, b, c, d = engine.work(worker, 4, call=1).starts
    items = [
        {"id": a.id, "attempt": 1, "outcome": "succeeded"},
        {"id": b.id, "attempt": 1, "outcome": "failed"},
    ]
    waiting = engine.one("select max(id) from pgfifo._executions")
    calls: list[tuple[str, list[object]]] = [
        ("pgfifo.enqueue('deploy')", []),
        ("pgfifo.enqueue('deploy', '{}', 'new')", []),
        ("pgfifo.enqueue_many('deploy', array['{}', '{}']::jsonb[], array['', 'new'])", []),
        ("pgfifo.work(%s, '{deploy}', 10, 2, %s)", [worker, Jsonb(items)]),
        ("pgfifo.work(%s, '{deploy}', 4, 1)", [worker]),
        ("pgfifo.finish(%s, 1, 'succeeded')", [c.id]),
        ("pgfifo.finish(%s, 1, 'failed')", [c.id]),
        ("pgfifo.release(%s, 1)", [d.id]),
        ("pgfifo.cancel(%s)", [waiting]),
        ("pgfifo.cancel(%s)", [d.id]),
        ("pgfifo.heartbeat(%s, 1, %s::bigint[])", [worker, [a.id, b.id]]),
        ("pgfifo.position(%s)", [waiting]),
        ("pgfifo.explain(%s)", [waiting]),
        ("pgfifo.pace('deploy')", []),
    ]
    conn.execute("vacuum analyze")
    if warm:
        for _ in range(7):  # more often than a plan is made for the values at hand
            for call, parameters in calls:
                scanned(caller, call, *parameters)
    for _ in range(5):
        engine.fill(2000)
        groups = [f"{n}" for n in range(500)]
        engine.enqueue_many("deploy", [{}] * 500, groups)
    other = engine.worker()
    for _ in range(5):
        engine.work(other, 0, [], [item(start) for start in engine.claim(other, 500)])
    found = {call: scanned(caller, call, *parameters) for call, parameters in calls}
    assert {call: tables for call, tables in found.items() if tables} == {}, "these calls read whole tables"


def test_flat_cost_who_looks_up_by_keys_walks_indexes_in_order_and_compiles_nothing(conn: Connection) -> None:
    """Without sequential scans. A bitmap reads all dead versions of a lane, to sort them for the newest one.

    And a scan that is off and used all the same costs so much, up to PostgreSQL 17, that a call is compiled.
    """
    rows = conn.execute(
        "select oid::regprocedure::text from pg_proc where pronamespace = 'pgfifo'::regnamespace"
        " and 'enable_seqscan=off' = any (proconfig)"
        " and not proconfig @> array['enable_bitmapscan=off', 'jit=off']"
    ).fetchall()
    assert rows == []
