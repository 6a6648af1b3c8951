"""Producing and consuming, beside the floors: each round runs every side once, in turns."""

import contextlib
import itertools
import time

from psycopg.types.json import Jsonb

from bench import floors
from bench.bench import Bench
from bench.engine import ENQUEUE, Worker, enqueue_many, payloads, set_policy
from bench.meter import Sample, measured
from bench.report import Row, ratios

GROUPED = {"group_by": ["customer"], "max_concurrent": 1}


def drain(bench: Bench, db: str) -> None:
    """Drain a full line, in batches on one connection."""
    sizes = bench.sizes
    title = f"Drain {sizes.drain:,}, batch {sizes.batch}, one connection"
    items = payloads(sizes.drain)
    with bench.ground.connect(db) as conn, bench.ground.connect(db) as observer:
        set_policy(conn, "drain", **GROUPED)
        worker = Worker(conn, "drain")
        for _ in range(sizes.rounds):
            floors.fill(conn, "f1", items)
            with measured(observer, conn) as sample:
                floors.drain_f1(conn, sizes.batch, sample)
            bench.keep(title, "F1", sample)
            floors.fill(conn, "f1b", items)
            with measured(observer, conn) as sample:
                floors.drain_f1b(conn, sizes.batch, sample)
            bench.keep(title, "F1b", sample)
            enqueue_many(conn, "drain", items)
            with measured(observer, conn) as sample:
                worker.drain(sizes.batch, sample)
            _expect(sample, sizes.drain)
            bench.keep(title, "pgfifo", sample)
        floors.fill(conn, "f1", items[:1000])
        floors.fill(conn, "f1b", items[:1000])
        bench.report.plans |= floors.plans(conn, sizes.batch)
        conn.execute("truncate f1, f1b")
    bench.rates(title, "F1", note="claim and delete in one commit; no order, no slots, no history")
    bench.rates(title, "F1b", note="claim in one commit, delete in the next; no order, no slots, no history")
    note = "100 lanes with one slot each, in order, history kept, through pgfifo.work"
    bench.rates(title, "pgfifo", against="F1b", target=0.5, note=note)


def produce_many(bench: Bench, db: str) -> None:
    """Enqueue batches, each in one commit."""
    with bench.ground.connect(db) as conn, bench.ground.connect(db) as observer:
        set_policy(conn, "many", **GROUPED)
        for size in bench.sizes.many:
            title = f"Enqueue {size:,} in one call over 100 lanes"
            items = payloads(size)
            # The first call on a connection builds caches and, here, lanes.
            enqueue_many(conn, "many", items[:100])
            conn.execute(floors.BARE_MANY, [items[:100]])
            for _ in range(bench.sizes.rounds):
                with measured(observer, conn) as sample:
                    conn.execute(floors.BARE_MANY, [items])
                    sample.done, sample.statements = size, 1
                bench.keep(title, "bare insert", sample)
                with measured(observer, conn) as sample:
                    enqueue_many(conn, "many", items)
                    sample.done, sample.statements = size, 1
                bench.keep(title, "pgfifo", sample)
            bench.rates(
                title, "bare insert", note="one multi-row insert, the same columns, only the primary key"
            )
            note = "groups read from the payloads, ids returned"
            bench.rates(title, "pgfifo", against="bare insert", target=0.5, note=note)


def produce_singly(bench: Bench, db: str) -> None:
    """Enqueue one by one, each in its own commit."""
    title = "Enqueue one by one, own commits, one connection"
    items = payloads(bench.sizes.singly)
    with bench.ground.connect(db) as conn, bench.ground.connect(db) as observer:
        set_policy(conn, "singly", **GROUPED)
        enqueue_many(conn, "singly", items[:100])
        for _ in range(bench.sizes.rounds):
            with measured(observer, conn) as sample:
                for n, item in enumerate(items):
                    conn.execute(floors.BARE_ONE, [n % 100, item], prepare=True).fetchone()
                sample.done = sample.statements = len(items)
            bench.keep(title, "bare insert", sample)
            with measured(observer, conn) as sample:
                for item in items:
                    conn.execute(ENQUEUE, ["singly", item], prepare=True).fetchone()
                sample.done = sample.statements = len(items)
            bench.keep(title, "pgfifo", sample)
    bench.rates(title, "bare insert")
    bench.rates(title, "pgfifo", against="bare insert", note="over 100 lanes")


def consume_singly(bench: Bench, db: str) -> None:
    """Claim and finish one at a time."""
    title = "Claim and finish one at a time, one connection"
    items = payloads(bench.sizes.singly)
    alone = [Jsonb({"customer": 1})] * bench.sizes.singly
    with bench.ground.connect(db) as conn, bench.ground.connect(db) as observer:
        workers = {}
        for action in ("by_one", "in_one_lane"):
            set_policy(conn, action, **GROUPED)
            workers[action] = Worker(conn, action)
        for _ in range(bench.sizes.rounds):
            floors.fill(conn, "f1", items)
            with measured(observer, conn) as sample:
                floors.drain_f1(conn, 1, sample)
            bench.keep(title, "F1", sample)
            floors.fill(conn, "f1b", items)
            with measured(observer, conn) as sample:
                floors.drain_f1b(conn, 1, sample)
            bench.keep(title, "F1b", sample)
            for action, batch, system in (
                ("by_one", items, "pgfifo, 100 lanes"),
                ("in_one_lane", alone, "pgfifo, one lane"),
            ):
                enqueue_many(conn, action, batch)
                with measured(observer, conn) as sample:
                    workers[action].drain(1, sample)
                _expect(sample, len(batch))
                bench.keep(title, system, sample)
        conn.execute("truncate f1, f1b")
    bench.rates(title, "F1")
    bench.rates(title, "F1b", against="F1")
    for system in ("pgfifo, 100 lanes", "pgfifo, one lane"):
        bench.rates(
            title, system, against="F1", note="finishes one and claims one in each call, history kept"
        )


def beside_snapshot(bench: Bench, count: int, rounds: int) -> None:
    """Drain with failures while another session holds a snapshot from before the first enqueue to the end.

    A tenth more is enqueued than is measured, so that the end is not about lanes that wait for their
    backoffs. The rate is taken for each fifth of the way: first and last are compared, and that with a run
    without the snapshot.
    """
    title = (
        f"Drain {count:,}, every tenth fails once, batch {bench.sizes.batch}: the last fifth beside the first"
    )
    lanes = min(500, max(10, count // 20))
    items = payloads(count + count // 10, lanes)
    kept: dict[str, list[list[float]]] = {"no snapshot": [], "a snapshot held open": []}
    for _ in range(rounds):
        for system, fifths in kept.items():
            with bench.ground.database("held") as db, contextlib.ExitStack() as stack:
                conn = stack.enter_context(bench.ground.connect(db))
                set_policy(conn, "held", **GROUPED, backoff="constant", backoff_initial=0.05)
                if system != "no snapshot":
                    holder = stack.enter_context(bench.ground.connect(db))
                    stack.callback(holder.rollback)
                    holder.execute("begin isolation level repeatable read")
                    holder.execute("select count(*) from pgfifo._executions")
                for start in range(0, len(items), 10_000):
                    enqueue_many(conn, "held", items[start : start + 10_000])
                fifths.append(_fifths(Worker(conn, "held"), count, bench.sizes.batch))
    for system, fifths in kept.items():
        first, last = [rates[0] for rates in fifths], [rates[-1] for rates in fifths]
        told = "; ".join(" ".join(f"{rate:,.0f}" for rate in rates) for rates in fifths)
        note = f"executions a second, fifth by fifth: {told}"
        target = 0.8 if system != "no snapshot" else None
        bench.report.rows.append(
            Row(title, system, "/s", last, "its first fifth", ratios(last, first), target, note=note)
        )
    last, other = ([rates[-1] for rates in fifths] for fifths in reversed(kept.values()))
    bench.report.rows.append(
        Row(title, "its last fifth", "/s", last, "the last fifth without", ratios(last, other), 0.8)
    )


def _fifths(worker: Worker, count: int, batch: int) -> list[float]:
    """Drain so many and return the rate of each fifth. Every tenth fails at its first attempt."""
    times = [time.perf_counter()]
    done = 0
    finished: Jsonb | None = None
    while len(times) < 6:
        starts, _ = worker.work(batch, finished)
        ended = [
            {
                "id": start[1],
                "attempt": start[2],
                "outcome": "failed" if start[1] % 10 == 0 and start[2] == 1 else "succeeded",
            }
            for start in starts
        ]
        finished = Jsonb(ended) if ended else None
        done += sum(item["outcome"] == "succeeded" for item in ended)
        if done >= len(times) * count / 5:
            times.append(time.perf_counter())
    return [count / 5 / (after - before) for before, after in itertools.pairwise(times)]


def _expect(sample: Sample, count: int) -> None:
    if sample.done != count:
        raise RuntimeError(f"{sample.done} executions were run instead of {count}")


__all__ = ["beside_snapshot", "consume_singly", "drain", "produce_many", "produce_singly"]
