"""Where calls spend their time, statement by statement and function by function: a tool for tuning the SQL.

pg_stat_statements times the execution of each nested statement, pg_stat_user_functions each function as a
whole. What a function has beyond its statements is starting and ending them (building the state of large
plans takes long) and plpgsql itself. Both have their price, so look at shares; the first line of each table
says what a call takes without.
"""

import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from psycopg.types.json import Jsonb
from rich.console import Console
from rich.table import Table

from bench.engine import ENQUEUE, Connection, Worker, enqueue_many, payloads, set_policy, succeeded
from bench.ground import Ground
from bench.meter import measured
from pgfifo.embedded import Setting

SETTINGS: dict[str, Setting] = {
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.max": 2000,
}

_SQL = Path(__file__).resolve().parent.parent / "sql"


def run(ground: Ground, calls: int, top: int, console: Console) -> None:
    """Profile the calls that matter."""
    with ground.database("profile") as db, ground.connect(db) as conn, ground.connect(db) as observer:
        conn.execute("create extension if not exists pg_stat_statements")
        set_policy(conn, "profile", group_by=["customer"], max_concurrent=1)
        worker = Worker(conn, "profile")
        idle = Worker(conn, "profile")
        one, many = _stream(worker, 1), _stream(worker, 50)
        items = payloads(1000)
        turns: list[tuple[str, int, Callable[[int], object], int]] = [
            ("work(): finish 1, claim 1", calls, lambda _: next(one), calls),
            ("work(): finish 50, claim 50", calls // 5, lambda _: next(many), calls // 5 * 50),
            ("work(): nothing to do", calls, lambda _: idle.work(1), 0),
            (
                "enqueue()",
                calls,
                lambda n: conn.execute(ENQUEUE, ["profile", items[n % 1000]], prepare=True).fetchone(),
                0,
            ),
            (
                "enqueue_many() of 1,000",
                max(3, calls // 50),
                lambda _: enqueue_many(conn, "profile", items),
                0,
            ),
        ]
        for title, count, call, waiting in turns:
            for _ in range(0, waiting, 10_000):
                enqueue_many(conn, "profile", payloads(min(10_000, waiting) + 200))
            _profile(conn, observer, title, count, call, top, console)
            next(one)
            worker.clear()
            one, many = _stream(worker, 1), _stream(worker, 50)


def _stream(worker: Worker, limit: int) -> Iterator[int]:
    """Calls that finish what the one before has claimed."""
    finished: Jsonb | None = None
    while True:
        starts, _ = worker.work(limit, finished)
        finished = succeeded(starts)
        yield len(starts)


def _profile(
    conn: Connection,
    observer: Connection,
    title: str,
    count: int,
    call: Callable[[int], object],
    top: int,
    console: Console,
) -> None:
    for n in range(min(50, count)):
        call(n)
    plain: list[float] = []
    with measured(observer, conn) as sample:
        for n in range(count // 2):
            began = time.perf_counter()
            call(n)
            plain.append((time.perf_counter() - began) * 1e6)
        sample.done = count // 2
    conn.execute("set pg_stat_statements.track = 'all'")
    conn.execute("set track_functions = 'all'")
    conn.execute("select pg_stat_statements_reset(), pg_stat_reset()")
    for n in range(count - count // 2):
        call(n)
    conn.execute("set pg_stat_statements.track = 'none'")
    conn.execute("set track_functions = 'none'")
    count -= count // 2
    cpu = "" if sample.cost.server_cpu is None else f", server CPU {sample.cost.server_cpu * 1000:.0f} µs"
    console.rule(
        f"{title}: {statistics.median(plain):.0f} µs, least {min(plain):.0f}{cpu};"
        f" WAL {sample.cost.wal:.0f} bytes"
    )
    table = Table("µs/call", "times", "buffers", "where", "statement")
    for query, times, took, touched in conn.execute(
        "select query, calls, total_exec_time, shared_blks_hit + shared_blks_read from pg_stat_statements"
        " where not toplevel order by total_exec_time desc limit %s",
        [top],
    ):
        text = re.sub(r"\s+", " ", query)
        table.add_row(
            f"{took / count * 1000:.1f}",
            f"{times / count:g}",
            f"{touched / count:.1f}",
            _place(query),
            text[:100],
        )
    console.print(table)
    table = Table("µs/call", "of its own", "times", "function")
    time.sleep(1.1)  # statistics of functions are sent at most once a second
    conn.execute("select 1")
    for name, times, total, own in conn.execute(
        "select funcname, calls, total_time, self_time from pg_stat_user_functions"
        " where schemaname = 'pgfifo' and calls > 0 order by total_time desc limit %s",
        [top],
    ):
        table.add_row(f"{total / count * 1000:.1f}", f"{own / count * 1000:.1f}", f"{times / count:g}", name)
    console.print(table)


def _place(query: str) -> str:
    """The file and line where a statement stands, found by its first words; empty when in doubt."""
    words = re.findall(r"[a-z_]+", re.sub(r"'[^']*'|\$\d+", " ", query))[:14]
    pattern = re.compile(r"[^a-z_]+(?:'[^']*'[^a-z_]*)*".join(map(re.escape, words)))
    found = [
        f"{path.name}:{text.count(chr(10), 0, hit.start()) + 1}"
        for path in sorted(_SQL.rglob("*.sql"))
        for text in [path.read_text()]
        for hit in pattern.finditer(text)
    ]
    return found[0] if len(found) == 1 else ""
