"""Where calls spend their time, statement by statement: a tool for tuning the SQL.

In a database of its own, each function on the hot path is made anew with a time stamp before each of its
statements. So a statement's time includes what it takes to start and to end it, which for small calls is
most of it and which pg_stat_statements does not show. A stamp costs about a microsecond. A loop's time is
that of its query; what its body does is told line by line, added up over the rounds of one call.
"""

import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
from psycopg.types.json import Jsonb
from rich.console import Console
from rich.table import Table

from bench.engine import ENQUEUE, Worker, enqueue_many, payloads, set_policy, succeeded
from bench.ground import Ground
from bench.meter import measured

_SQL = Path(__file__).resolve().parent.parent / "sql"
FILES = (
    "functions/work.sql",
    "internal/finish_batch.sql",
    "internal/finish_one.sql",
    "internal/start_rows.sql",
    "internal/claim_returned.sql",
    "internal/scan.sql",
    "internal/enqueue.sql",
    "internal/enqueue_batch.sql",
)

_FUNCTION = re.compile(r"^create or replace function pgfifo\.(\w+)")
_STATEMENT = re.compile(
    r"(select|insert|update|delete|with|perform|for|foreach|if|return query|execute|v_\w+ :=)\b"
)
_ENDS = (";", "then", "loop", "else", "begin")
_STAMP = "v_stamps := v_stamps || extract(epoch from clock_timestamp())::float8; v_lines := v_lines || {};"
_BEGIN = (
    "v_stamps float8[] := array[extract(epoch from clock_timestamp())::float8]; v_lines integer[] := '{0}';"
)
_TELL = "raise notice 'profile {} % %', v_lines, v_stamps;"


def instrumented(text: str) -> str:
    """Return a file of the SQL with a time stamp before each statement of its plpgsql functions."""
    lines: list[str] = []
    name = before = ""
    inside = plpgsql = False
    for number, line in enumerate(text.splitlines(), 1):
        statement = line.strip()
        if found := _FUNCTION.match(line):
            name, inside, plpgsql = found[1], False, False
        plpgsql = plpgsql or line.startswith("language plpgsql")
        first = line == "declare" and plpgsql
        if first:
            inside = True
        elif inside and line.startswith("end $$"):
            lines += [_STAMP.format(number), _TELL.format(name)]
            inside = False
        elif inside and re.match(r"return\b(?! query| next)", statement) and before.endswith(_ENDS):
            lines += [_STAMP.format(number), _TELL.format(name)]
        elif inside and before.endswith(_ENDS) and _STATEMENT.match(statement):
            lines.append(_STAMP.format(number))
        lines.append(f"{line} {_BEGIN}" if first else line)
        if statement and not statement.startswith("--"):
            before = statement.split("  --")[0].strip()
    return "\n".join(lines)


def run(ground: Ground, calls: int, least: float, console: Console) -> None:
    """Profile the calls that matter."""
    with ground.database("plain") as plain, ground.database("stamped") as stamped:
        with ground.connect(stamped) as conn:
            stamp(conn)
        for title, prepare, count in turns(calls):
            with ground.connect(plain) as conn, ground.connect(plain) as observer:
                call = prepare(conn)
                times = timed(call, count)
                with measured(observer, conn) as sample:
                    timed(call, count)
                    sample.done = count
            cpu = sample.cost.server_cpu
            console.rule(
                f"{title}: {statistics.median(times):.0f} µs, least {min(times):.0f}"
                + ("" if cpu is None else f", server CPU {cpu * 1000:.0f} µs")
                + f", WAL {sample.cost.wal:.0f} bytes"
            )
            with ground.connect(stamped) as conn:
                console.print(_table(spent(conn, prepare(conn), count), count, least))


Prepare = Callable[[psycopg.Connection[tuple[object, ...]]], Callable[[int], object]]


def turns(calls: int) -> list[tuple[str, Prepare, int]]:
    """Return the calls that matter: what each is, what prepares it, and how often it is made."""
    items = payloads(1000)

    def work(limit: int) -> Prepare:
        def prepare(conn: psycopg.Connection[tuple[object, ...]]) -> Callable[[int], object]:
            set_policy(conn, f"work{limit}", group_by=["customer"], max_concurrent=1)
            needed = limit * calls * 3
            for start in range(0, needed, 20_000):
                enqueue_many(conn, f"work{limit}", payloads(min(20_000, needed - start)))
            stream = _stream(Worker(conn, f"work{limit}"), limit)
            return lambda _: next(stream)

        return prepare

    def idle(conn: psycopg.Connection[tuple[object, ...]]) -> Callable[[int], object]:
        set_policy(conn, "idle", max_concurrent=1)
        worker = Worker(conn, "idle")
        return lambda _: worker.work(1)

    def enqueue(conn: psycopg.Connection[tuple[object, ...]]) -> Callable[[int], object]:
        set_policy(conn, "enqueue", group_by=["customer"])
        return lambda n: conn.execute(ENQUEUE, ["enqueue", items[n % 1000]], prepare=True).fetchone()

    def many(conn: psycopg.Connection[tuple[object, ...]]) -> Callable[[int], object]:
        set_policy(conn, "many", group_by=["customer"])
        return lambda _: enqueue_many(conn, "many", items)

    return [
        ("work(): finish 1, claim 1", work(1), calls),
        ("work(): finish 50, claim 50", work(50), max(2, calls // 5)),
        ("work(): nothing to do", idle, calls),
        ("enqueue()", enqueue, calls),
        ("enqueue_many() of 1,000", many, max(2, calls // 20)),
    ]


def _stream(worker: Worker, limit: int) -> Iterator[int]:
    """Calls that finish what the one before has claimed."""
    finished: Jsonb | None = None
    while True:
        starts, _ = worker.work(limit, finished)
        finished = succeeded(starts)
        yield len(starts)


def timed(call: Callable[[int], object], count: int) -> list[float]:
    """Make so many calls and return what each took, in microseconds."""
    times = []
    for n in range(count):
        began = time.perf_counter()
        call(n)
        times.append((time.perf_counter() - began) * 1e6)
    return times


def stamp(conn: psycopg.Connection[tuple[object, ...]]) -> None:
    """Put stamps into the functions of a database."""
    for file in FILES:
        conn.execute(instrumented((_SQL / file).read_text()).encode())


Spent = dict[tuple[str, int], list[float]]
"""Microseconds by function and line, one for each call that came by; line -1 is the whole function."""


def spent(conn: psycopg.Connection[tuple[object, ...]], call: Callable[[int], object], count: int) -> Spent:
    """Make calls of stamped functions and add their times up by line."""
    told: list[str] = []
    conn.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
    timed(call, min(20, count))
    by_line: Spent = defaultdict(list)
    for n in range(count):
        told.clear()
        call(n)
        for place, took in _added_up(told).items():
            by_line[place].append(took)
    return by_line


def _table(by_line: Spent, count: int, least: float) -> Table:
    """Tell what takes so long, in the median call."""
    texts = {
        found[1]: (file, text)
        for file, text in _texts()
        for found in re.finditer(_FUNCTION.pattern, text, re.MULTILINE)
    }
    table = Table("µs", "in % of calls", "where", "statement")
    for (name, line), took in sorted(by_line.items(), key=lambda item: (item[0][0] != "work", item[0])):
        if statistics.median(took) >= least:
            file, text = texts[name]
            statement = (
                "whole function"
                if line < 0
                else "declare"
                if line == 0
                else text.splitlines()[line - 1].strip()
            )
            table.add_row(
                f"{statistics.median(took):.0f}",
                f"{100 * len(took) / count:.0f}",
                f"{Path(file).name}:{max(line, 0)}",
                f"[bold]{name}[/bold]" if line < 0 else statement[:100].replace("[", r"\["),
            )
    return table


def _texts() -> list[tuple[str, str]]:
    return [(file, (_SQL / file).read_text()) for file in FILES]


def _added_up(told: list[str]) -> dict[tuple[str, int], float]:
    """Microseconds by function and line of the notices of one call; line -1 is the whole function."""
    added: dict[tuple[str, int], float] = defaultdict(float)
    for message in told:
        found = re.fullmatch(r"profile (\w+) \{(.*)\} \{(.*)\}", message)
        if found:
            lines = [int(line) for line in found[2].split(",")]
            stamps = [float(stamp) for stamp in found[3].split(",")]
            for line, begin, end in zip(lines, stamps, stamps[1:], strict=False):
                added[found[1], line] += (end - begin) * 1e6
            added[found[1], -1] += (stamps[-1] - stamps[0]) * 1e6
    return added
