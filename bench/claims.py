"""The cost of a claim must not depend on what else is in the queue. Time is noisy, buffers touched are not.

Two databases on one server: one has next to nothing in it, the other all at once what could be in the way.
Each round measures all cases once, in turns: a hundred free lanes get work, and calls that finish ten and
claim ten run it.
"""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from psycopg.types.json import Jsonb

from bench.bench import Bench
from bench.engine import Connection, Worker, enqueue_many, payloads, set_policy, succeeded
from bench.report import Row, Unit, ratios

BATCH = 10
LANE = {"group_by": ["customer"], "max_concurrent": 1}


@dataclass
class Case:
    """An action in a state, and what claims of it cost."""

    name: str
    action: str
    worker: Worker
    free: list[Jsonb]
    """What is enqueued in each round for claims to find; empty where the fixture itself is claimed from."""
    note: str = ""
    times: list[list[float]] = field(default_factory=list)
    buffers: list[list[float]] = field(default_factory=list)


def claim_cost(bench: Bench, small: str, big: str) -> None:
    """Measure claims beside backlogs and many lanes."""
    sizes = bench.sizes
    with bench.ground.connect(small) as alone, bench.ground.connect(big) as crowded:
        free = payloads(10 * sizes.claims)
        for conn in (alone, crowded):
            set_policy(conn, "waiting", **LANE)
            _full_lane(conn, "waiting")
            _bulk(conn, "waiting", [Jsonb({"customer": "full"})] * sizes.waiting)
        bench.step(
            f"building {sizes.backlog:,} waiting in bulk, as many one by one, and {sizes.lanes:,} lanes twice"
        )
        notes = _build(bench, big)
        cases = [
            Case(
                "alone",
                "waiting",
                Worker(alone, "waiting"),
                free,
                note=f"{sizes.waiting:,} waiting behind a full lane",
            ),
            Case(
                "beside all of the following",
                "waiting",
                Worker(crowded, "waiting"),
                free,
                note=notes["unserved"],
            ),
            Case(f"{sizes.backlog:,} behind a full lane, in bulk", "bulk", Worker(crowded, "bulk"), free),
            Case(
                f"{sizes.backlog:,} behind a full lane, one by one",
                "singly",
                Worker(crowded, "singly"),
                free,
                note=notes["singly"],
            ),
            Case(f"{sizes.lanes:,} lanes with one waiting each", "lanes", Worker(crowded, "lanes"), []),
        ]
        bench.step("claiming beside backlogs")
        singly = cases[3]
        began = time.perf_counter()
        calls = _catch_up(singly.worker)
        took = time.perf_counter() - began
        for case in cases:
            _claims(case, sizes.claims, keep=False)  # warm up
        for _ in range(sizes.rounds):
            for case in cases:
                _claims(case, sizes.claims, keep=True)
    title = f"One call that finishes {BATCH} and claims {BATCH} of 100 free lanes"
    units: tuple[tuple[Unit, str], ...] = (("ms", "times"), ("buffers", "buffers"))
    for unit, of in units:
        base = [statistics.median(values) for values in getattr(cases[0], of)]
        for case in cases:
            values = [statistics.median(found) for found in getattr(case, of)]
            first = case is cases[0]
            # Buffers grow with the depth of the indexes: a level more is a buffer more in each look-up.
            target = None if first else (1.25 if unit == "ms" else 1.4)
            compared = () if first else ratios(values, base)
            against = None if first else "alone"
            note = case.note if unit == "ms" else ""
            scenario = title if unit == "ms" else f"{title}: shared buffers touched"
            bench.report.rows.append(
                Row(scenario, case.name, unit, values, against, compared, target, note=note)
            )
    bench.report.rows.append(
        Row(
            f"Counting {sizes.backlog:,} that were enqueued one by one",
            "the first claims, once",
            "s",
            [took],
            note=f"{calls} calls, {took / sizes.backlog * 1e6:.1f} µs per enqueued execution: each left"
            " an arrival and a mark, and the claims after it count the one and take the other away",
        )
    )


def _build(bench: Bench, db: str) -> dict[str, str]:
    """Build what could be in the way, on two connections at once."""
    sizes = bench.sizes

    def in_bulk() -> None:
        with bench.ground.connect(db) as conn:
            set_policy(conn, "bulk", **LANE)
            _full_lane(conn, "bulk")
            waiting = [Jsonb({"customer": "full"})] * 20_000
            for start in range(0, sizes.backlog, len(waiting)):
                _bulk(conn, "bulk", waiting[: sizes.backlog - start])
            for action in ("lanes", "unserved"):
                set_policy(conn, action, **LANE)
                for start in range(0, sizes.lanes, 500):
                    items = [Jsonb({"customer": n}) for n in range(start, min(start + 500, sizes.lanes))]
                    _bulk(conn, action, items)

    def one_by_one() -> None:
        with bench.ground.connect(db) as conn:
            set_policy(conn, "singly", **LANE)
            _full_lane(conn, "singly")
            conn.execute(
                f"""do $$ begin
                  for i in 1 .. {sizes.backlog:d} loop
                    perform pgfifo.enqueue('singly', '{{"customer": "full"}}');
                    commit;
                  end loop;
                end $$"""
            )

    began = time.perf_counter()
    with bench.ground.careless() as careless, ThreadPoolExecutor(2) as both:
        for job in (both.submit(one_by_one), both.submit(in_bulk)):
            job.result()
    how = (
        "with fsync off while building, on again and a checkpoint before measuring"
        if careless
        else "as they come"
    )
    bench.report.notes.append(
        f"The backlog of {sizes.backlog:,} was enqueued one by one by a loop in the server that calls"
        f" pgfifo.enqueue and commits after each, {how}; in bulk by calls of 20,000. Building took"
        f" {time.perf_counter() - began:.0f} s."
    )
    return {
        "unserved": f"the backlogs below, and {sizes.lanes:,} lanes with one waiting each of an"
        " action that nobody serves",
        "singly": "each its own commit",
    }


def _full_lane(conn: Connection, action: str) -> None:
    """Fill the slot of a lane for as long as the run lasts."""
    enqueue_many(conn, action, [Jsonb({"customer": "full"})])
    starts, _ = Worker(conn, action).work(1)
    if len(starts) != 1:
        raise RuntimeError(f"the lane of {action} was not filled")


def _bulk(conn: Connection, action: str, items: Sequence[Jsonb]) -> None:
    conn.execute("select count(*) from pgfifo.enqueue_many(%s, %s)", [action, list(items)])


def _catch_up(worker: Worker) -> int:
    """Call until claims have seen all marks; return how many calls that took."""
    calls = 1
    while worker.work(BATCH)[1] in ("now", "soon"):
        calls += 1
    return calls


def _claims(case: Case, count: int, *, keep: bool) -> None:
    """Time so many calls, and look at what some of them touched. Claims: no slot is handed on."""
    case.worker.conn.execute("set pgfifo.turn = 0")
    if case.free:
        enqueue_many(case.worker.conn, case.action, case.free)
    times: list[float] = []
    buffers: list[float] = []
    finished: Jsonb | None = None
    for n in range(count):
        if n % 5 == 4:
            touched, starts = case.worker.explained(BATCH, finished)
            buffers.append(touched)
        else:
            began = time.perf_counter()
            starts, _ = case.worker.work(BATCH, finished)
            times.append((time.perf_counter() - began) * 1000)
        if len(starts) != BATCH:
            raise RuntimeError(f"{case.name}: a claim started {len(starts)} instead of {BATCH}")
        finished = succeeded(starts)
    case.worker.work(0, finished)
    if keep:
        case.times.append(times)
        case.buffers.append(buffers)
