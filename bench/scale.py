"""A million waiting in one lane, and a hundred thousand lanes: what people and programs do there, timed.

Three databases on one server: a small queue, a deep lane, many lanes. Each operation is done in all of them,
in turns, and what it took and touched is compared with the small one. What a person or a program waits for
must stay within a limit, however large the queue is.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from psycopg.types.json import Jsonb
from rich.console import Console

from bench.engine import WORK, Connection, Worker, enqueue_many, set_policy, succeeded, touched
from bench.environments import ROOT
from bench.ground import Ground, machine, open_ground
from bench.meter import Sample, server_cpu_of
from bench.report import where_and_when

RESULTS = ROOT / "docs" / "benchmarks"
ACTION = "deliver"
BACKLOG = {"customer": "backlog"}

_LANES, _EACH, _FEW, _BATCH, _LANES_AT_ONCE = 60, 60, 3_000, 20_000, 500

Kind = Literal["interactive", "sum", "command", "round", "whole"]
"""Interactive: somebody waits for it. Sum: adds up the lanes of an action, and somebody waits for that.
Command: of the command line. Round: bounded upkeep. Whole: looks at everything, by its nature."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        deep: how many wait in one lane.
        singly: how many of these were enqueued one by one.
        lanes: how many lanes.
        finished: how many are in the history.
        rounds: how often each operation is timed.
        limit: what an interactive one may take, in milliseconds of the server's processor.
        sum_limit: the same for what adds up lanes.
    """

    deep: int = 1_000_000
    singly: int = 50_000
    lanes: int = 100_000
    finished: int = 20_000
    rounds: int = 5
    limit: float = 300.0
    sum_limit: float = 600.0


@dataclass
class Queue:
    """One of the queues, and what operations need to know of it."""

    name: str
    dsn: str
    conn: Connection
    worker: Worker
    lane: str
    """The group of the lane that is looked at: the deep one, or one of many."""
    first: int
    middle: int
    last: int
    """Waiting ones of that lane, or of all lanes where each has but one."""
    spare: Iterator[int]
    """Waiting ones that may be cancelled, each once."""
    finished: Any = None
    """What the worker has to hand in."""

    def take(self, count: int) -> list[int]:
        """Take so many that may be cancelled."""
        return list(itertools.islice(self.spare, count))


Parameters = Callable[[Queue], Sequence[object]]


@dataclass(frozen=True)
class Operation:
    """Something that is done with a queue: a statement, or a command of the command line."""

    name: str
    statement: str | None = None
    parameters: Parameters = lambda _: ()
    command: Callable[[Queue], Sequence[str]] | None = None
    kind: Kind = "interactive"
    note: str = ""
    first: str | None = None
    """A statement before it, with the same parameters; not timed."""
    then: str | None = None
    """A statement after it, that undoes it; the same."""


@dataclass
class Measured:
    """What an operation took in one queue: as the client sees it, and what the server touched."""

    times: list[float] = field(default_factory=list)
    """Milliseconds that the client waited, a round each."""
    cpu: list[float] = field(default_factory=list)
    """Milliseconds of the server's processor, where that can be told."""
    buffers: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the server's time, or of the client's where that is not known."""
        return statistics.median(self.cpu or self.times)

    @property
    def told(self) -> str:
        """Both, for people."""
        waited = statistics.median(self.times)
        return f"{self.median:,.1f} ({waited:,.0f})" if self.cpu else f"{waited:,.0f}"


@dataclass
class Report:
    """A run."""

    machine: dict[str, Any]
    sizes: Sizes
    rows: list[tuple[Operation, dict[str, Measured]]] = field(default_factory=list)
    built: dict[str, float] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    load: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def slow(self) -> list[str]:
        """Name what somebody waits for too long."""
        limits = {"interactive": self.sizes.limit, "sum": self.sizes.sum_limit}
        return [
            f"{operation.name} ({name}): {measured.median:.0f} ms"
            for operation, queues in self.rows
            if operation.kind in limits
            for name, measured in queues.items()
            if measured.median > limits[operation.kind]
        ]


def _work(limit: int) -> Parameters:
    return lambda queue: queue.worker.arguments(limit, queue.finished)


def _all_lane(queue: Queue) -> Sequence[object]:
    return (Jsonb({"action": ACTION, "group": queue.lane}),)


def _action(_queue: Queue) -> Sequence[object]:
    return (ACTION,)


def _lane(queue: Queue) -> Sequence[object]:
    return (ACTION, queue.lane)


_PAUSE, _PAUSE_LANE = "select pgfifo.pause(%s)", "select pgfifo.pause(%s, %s)"
_RESUME, _RESUME_LANE = "select pgfifo.resume(%s)", "select pgfifo.resume(%s, %s)"
_ANY_LIMIT = "jsonb_build_object('max_concurrent', 1 + (random() * 9)::integer)"
_CLOSE, _OPEN = "select pgfifo.close(%s)", "select pgfifo.open(%s)"

OPERATIONS: tuple[Operation, ...] = (
    Operation("enqueue one", "select pgfifo.enqueue(%s, %s)", lambda _: (ACTION, Jsonb(BACKLOG))),
    Operation(
        "enqueue one, into a lane of its own",
        "select pgfifo.enqueue(%s, %s)",
        lambda _: (ACTION, Jsonb({"customer": f"new {time.time_ns()}"})),
    ),
    Operation(
        "enqueue 1,000 at once, over 100 lanes",
        "select count(*) from pgfifo.enqueue_many(%s, %s)",
        lambda _: (ACTION, [Jsonb({"customer": f"many {n % 100}"}) for n in range(1000)]),
    ),
    Operation("finish 1 and claim 1 (work)", WORK, _work(1)),
    Operation("finish 50 and claim 50 (work)", WORK, _work(50)),
    Operation(
        "the same after a change of the policy",
        WORK,
        _work(50),
        first=f"select pgfifo.set_policy('{ACTION}', {_ANY_LIMIT})",
        note="a change concerns all lanes, which are marked a piece at a time",
    ),
    Operation(
        "the same after a pause and a resume",
        WORK,
        _work(50),
        first=f"select pgfifo.pause('{ACTION}'), pgfifo.resume('{ACTION}')",
    ),
    Operation("heartbeat", "select pgfifo.heartbeat(%s, 1, '{}')", lambda queue: (queue.worker.id,)),
    Operation("cancel one that waits", "select pgfifo.cancel(%s)", lambda queue: (queue.take(1)[0],)),
    Operation(
        "cancel 20 by their ids",
        "select count(*) from pgfifo.cancel_many(%s)",
        lambda queue: (queue.take(20),),
    ),
    Operation(
        "cancel 100 by filter: a range of ids",
        "select * from pgfifo.cancel_where(%s)",
        lambda queue: (Jsonb({"action": ACTION, "from_id": (ids := queue.take(100))[0], "to_id": ids[-1]}),),
    ),
    Operation(
        "cancel by filter, a piece: a tag that ten have",
        "select * from pgfifo.cancel_where(%s)",
        lambda _: (Jsonb({"action": ACTION, "tags": ["rare"]}),),
    ),
    Operation(
        "cancel by filter, dry run, a piece: one lane",
        "select * from pgfifo.cancel_where(%s, p_dry_run => true)",
        _all_lane,
    ),
    Operation(
        "retry by filter, dry run, a piece: what succeeded",
        "select * from pgfifo.retry_where(%s, p_dry_run => true)",
        lambda _: (Jsonb({"action": ACTION, "state": ["succeeded"]}),),
    ),
    Operation("stats of all actions", "select * from pgfifo.queue_stats order by action", kind="sum"),
    Operation(
        "stats of one action", "select * from pgfifo.queue_stats where action = %s", _action, kind="sum"
    ),
    Operation(
        "stats of one lane",
        "select * from pgfifo.lane_stats where action = %s and group_text = %s",
        _lane,
    ),
    Operation(
        "the first 1,000 lanes, by group",
        "select * from pgfifo.lane_stats where action = %s order by action, group_text limit 1000",
        _action,
        kind="sum",
    ),
    Operation(
        "how much is left (remaining)",
        "select * from pgfifo.remaining(%s)",
        lambda _: ([ACTION],),
        kind="sum",
    ),
    Operation("position of the first", "select * from pgfifo.position(%s)", lambda queue: (queue.first,)),
    Operation("position in the middle", "select * from pgfifo.position(%s)", lambda queue: (queue.middle,)),
    Operation("position of the last", "select * from pgfifo.position(%s)", lambda queue: (queue.last,)),
    Operation("explain the last", "select * from pgfifo.explain(%s)", lambda queue: (queue.last,)),
    Operation("pace", "select * from pgfifo.pace(%s)", _action),
    Operation("show one", "select * from pgfifo.executions where id = %s", lambda queue: (queue.middle,)),
    Operation("list the newest 100", "select * from pgfifo.list_executions()"),
    Operation("list the oldest 100", "select * from pgfifo.list_executions(p_oldest => true)"),
    Operation(
        "list 100 of one lane",
        "select * from pgfifo.list_executions(%s)",
        _all_lane,
    ),
    Operation(
        "list 100 that run",
        "select * from pgfifo.list_executions(%s)",
        lambda _: (Jsonb({"action": ACTION, "state": ["running"]}),),
    ),
    Operation(
        "list 100 that were cancelled",
        "select * from pgfifo.list_executions(%s)",
        lambda _: (Jsonb({"state": ["cancelled"]}),),
    ),
    Operation(
        "list 100 with a tag that ten have",
        "select * from pgfifo.list_executions(%s)",
        lambda _: (Jsonb({"action": ACTION, "tags": ["rare"]}),),
        note="there is no index of tags: it looks at all rows of the action",
    ),
    Operation(
        "events, the newest 1,000",
        "select count(*) from pgfifo.events((select e.cursor from pgfifo.events(null, 1) e limit 1), 1000)",
    ),
    Operation(
        "set the policy of the action",
        "select pgfifo.set_policy(%s, %s)",
        lambda _: (ACTION, Jsonb({"max_concurrent": 2})),
        then="select pgfifo.set_policy(%s, %s || '{\"max_concurrent\": 1}')",
    ),
    Operation(
        "set the policy of a lane",
        "select pgfifo.set_policy(%s, %s, %s)",
        lambda queue: (ACTION, Jsonb({"max_concurrent": 2}), queue.lane),
        then="select pgfifo.set_policy(%s, %s || '{\"max_concurrent\": 1}', %s)",
    ),
    Operation("pause the action", _PAUSE, _action, then=_RESUME),
    Operation("resume the action", _RESUME, _action, first=_PAUSE),
    Operation("pause a lane", _PAUSE_LANE, _lane, then=_RESUME_LANE),
    Operation("resume a lane", _RESUME_LANE, _lane, first=_PAUSE_LANE),
    Operation("close the action", _CLOSE, _action, then=_OPEN),
    Operation("open the action", _OPEN, _action, first=_CLOSE),
    Operation(
        "a round of maintenance",
        "select pgfifo.maintain()",
        kind="round",
        first="update pgfifo.ticks set at = at - interval '2 s'",
    ),
    Operation("pgfifo stats", kind="command", command=lambda _: ["stats"]),
    Operation("pgfifo lanes", kind="command", command=lambda _: ["lanes", ACTION]),
    Operation("pgfifo list", kind="command", command=lambda _: ["list"]),
    Operation(
        "pgfifo list --state waiting --group …",
        kind="command",
        command=lambda queue: ["list", ACTION, "--state", "waiting", "--group", queue.lane],
    ),
    Operation("pgfifo show", kind="command", command=lambda queue: ["show", str(queue.middle)]),
    Operation("pgfifo position", kind="command", command=lambda queue: ["position", str(queue.last)]),
    Operation("pgfifo explain", kind="command", command=lambda queue: ["explain", str(queue.last)]),
    Operation("check", "select * from pgfifo.check()", kind="whole"),
    Operation("order violations", "select count(*) from pgfifo.order_violations", kind="whole"),
)


def scale(ground: Ground, sizes: Sizes, console: Console, only: str = "") -> Report:
    """Build the queues, do everything in them, and return what it took.

    Args:
        ground: the server.
        sizes: how much of everything.
        console: where to say what is being done.
        only: a word; operations without it in their names are left out. Defaults to none.
    """
    report = Report(machine(ground), sizes)
    began = time.perf_counter()
    with (
        ground.database("small") as small,
        ground.database("deep") as deep,
        ground.database("wide") as wide,
        ground.connect(small) as small_conn,
        ground.connect(deep) as deep_conn,
        ground.connect(wide) as wide_conn,
    ):
        queues = []
        with ground.careless():
            for name, db, conn, build in (
                ("small", small, small_conn, _build_small),
                ("deep", deep, deep_conn, _build_deep),
                ("wide", wide, wide_conn, _build_wide),
            ):
                console.log(f"building: {name}")
                start = time.perf_counter()
                worker = _history(conn, sizes)
                build(conn, sizes)
                report.built[name] = time.perf_counter() - start
                queues.append(_queue(name, ground.dsn_of(db), conn, worker))
        for queue in queues:
            console.log(f"the first claims and rounds of maintenance: {queue.name}")
            _settle(queue, report)
        for operation in OPERATIONS:
            if only not in operation.name:
                continue
            report.load.append(os.getloadavg()[0])
            console.log(operation.name)
            report.rows.append((operation, _measure(operation, queues, sizes.rounds)))
        if not only:
            console.log("cancelling the deep lane, by filter, to its end")
            _cancel_all(queues[1], report)
            console.log("a shared limit over all lanes")
            _share(queues[2], report)
            _length(queues[2], report)
        for queue in queues:
            report.disk[queue.name] = _one(queue.conn, "select pg_database_size(current_database())")
    report.seconds = time.perf_counter() - began
    return report


# Building


def _history(conn: Connection, sizes: Sizes) -> Worker:
    """Make the action, and run some executions to their end."""
    set_policy(conn, ACTION, group_by=["customer"], max_concurrent=1)
    worker = Worker(conn, ACTION)
    for start in range(0, sizes.finished, _BATCH):
        count = min(_BATCH, sizes.finished - start)
        enqueue_many(conn, ACTION, [Jsonb({"customer": f"past {n % 50}"}) for n in range(count)])
        worker.drain(50, Sample())
    return worker


def _build_small(conn: Connection, _sizes: Sizes) -> None:
    """Fifty lanes with a few waiting in each; one of them has a thousand."""
    _bulk(conn, [Jsonb({"customer": n % _LANES}) for n in range(_LANES * _EACH)])
    _bulk(conn, [Jsonb(BACKLOG)] * _FEW)
    _tag(conn)


def _build_deep(conn: Connection, sizes: Sizes) -> None:
    """The same, and a lane with a million, some of them enqueued one by one."""
    _bulk(conn, [Jsonb({"customer": n % _LANES}) for n in range(_LANES * _EACH)])
    left = sizes.deep - sizes.singly
    while left > 0:
        _bulk(conn, [Jsonb(BACKLOG)] * min(left, _BATCH))
        left -= _BATCH
    conn.execute(
        f"""do $$ begin
          for i in 1 .. {sizes.singly:d} loop
            perform pgfifo.enqueue('{ACTION}', '{{"customer": "backlog"}}');
            commit;
          end loop;
        end $$"""
    )
    _tag(conn)


def _build_wide(conn: Connection, sizes: Sizes) -> None:
    """A lane for each of a hundred thousand customers."""
    for start in range(0, sizes.lanes, _LANES_AT_ONCE):
        items = [Jsonb({"customer": n}) for n in range(start, min(start + _LANES_AT_ONCE, sizes.lanes))]
        _bulk(conn, items)
    _tag(conn)


def _bulk(conn: Connection, items: Sequence[Jsonb]) -> None:
    conn.execute("select count(*) from pgfifo.enqueue_many(%s, %s)", [ACTION, list(items)])


def _tag(conn: Connection) -> None:
    """Enqueue the ten that have a tag of their own."""
    conn.execute(
        "select count(*) from generate_series(1, 10) n, lateral pgfifo.enqueue(%s, %s, p_tags => '{rare}')",
        [ACTION, Jsonb({"customer": "tagged"})],
    )


def _queue(name: str, dsn: str, conn: Connection, worker: Worker) -> Queue:
    """Choose what is looked at: the fullest lane, or the one in the middle."""
    lane, lane_id, count = conn.execute(
        "select l.group_text, l.id, count(*)"
        " from pgfifo._executions e join pgfifo.lanes l on l.id = e.lane_id"
        " group by 1, 2 order by count(*) desc, l.id desc limit 1"
    ).fetchone() or ("", 0, 0)
    of_lane = f"e.lane_id = {lane_id}" if count > _LANES else "true"
    ids = [
        int(row[0])
        for row in conn.execute(f"select e.id from pgfifo._executions e where {of_lane} order by e.id")
    ]
    # Cancelled ones come from the second quarter on: neither the first nor those that are looked at.
    spare = (id_ for id_ in ids[len(ids) // 4 :] if id_ not in (ids[len(ids) // 2], ids[-1]))
    return Queue(name, dsn, conn, worker, lane, ids[len(ids) // 4 - 1], ids[len(ids) // 2], ids[-1], spare)


def _settle(queue: Queue, report: Report) -> None:
    """Let claims count what was enqueued, and maintenance come round; the tables have their statistics."""
    began = time.perf_counter()
    calls = 1
    starts, more = queue.worker.work(1)
    while more in ("now", "soon"):
        calls += 1
        starts, more = queue.worker.work(1, succeeded(starts))
        if calls > 5 and len(starts) == 1:
            break
    queue.finished = succeeded(starts)
    claims = time.perf_counter() - began
    queue.conn.execute("vacuum analyze")
    report.notes.append(f"{queue.name}: {calls} calls of work, {claims:.1f} s, until one found all counted.")


# Measuring


def _measure(operation: Operation, queues: Sequence[Queue], rounds: int) -> dict[str, Measured]:
    """Time an operation in all queues, in turns, after one that does not count."""
    found = {queue.name: Measured() for queue in queues}
    for round_ in range(rounds + 1 if rounds > 1 else 1):
        for queue in queues:
            if operation.command:
                took, cpu, touched = _command(operation, queue), None, None
            else:
                took, cpu, touched = _statement(operation, queue)
            measured = found[queue.name]
            if round_ or rounds == 1:
                measured.times.append(took)
                measured.cpu += [] if cpu is None else [cpu]
            measured.buffers += [] if touched is None else [touched]
    return found


def _command(operation: Operation, queue: Queue) -> float:
    """Run a command as a process of its own, start of the interpreter included."""
    assert operation.command is not None
    words = [str(Path(sys.executable).with_name("pgfifo")), *operation.command(queue)]
    began = time.perf_counter()
    subprocess.run(words, env=os.environ | {"PGFIFO_DSN": queue.dsn}, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1000


def _statement(operation: Operation, queue: Queue) -> tuple[float, float | None, int]:
    """Time a statement; then look at what it touches, the next time it is done."""
    assert operation.statement is not None
    parameters = operation.parameters(queue)
    _beside(operation.first, queue, parameters)
    before = server_cpu_of((queue.conn,))
    began = time.perf_counter()
    queue.conn.execute(operation.statement.encode(), parameters, prepare=True).fetchall()
    took = (time.perf_counter() - began) * 1000
    after = server_cpu_of((queue.conn,))
    cpu = None if before is None or after is None else (after - before) * 1000
    _after(operation, queue, parameters)
    parameters = operation.parameters(queue)
    _beside(operation.first, queue, parameters)
    buffers = touched(queue.conn, operation.statement, parameters)
    _after(operation, queue, parameters)
    return took, cpu, buffers


def _after(operation: Operation, queue: Queue, parameters: Sequence[object]) -> None:
    """Keep what was started, for the next call; put back what was changed."""
    if operation.statement == WORK:
        started = queue.conn.execute(
            "select 'start', id, attempt from pgfifo.runs where worker_id = %s and state = 'running'",
            [queue.worker.id],
        ).fetchall()
        queue.finished = succeeded(started)
    _beside(operation.then, queue, parameters)


def _beside(statement: str | None, queue: Queue, parameters: Sequence[object]) -> None:
    if statement is not None:
        queue.conn.execute(statement.encode(), parameters if "%s" in statement else None)


def _cancel_all(queue: Queue, report: Report) -> None:
    """Cancel all of the deep lane, a piece at a time; the last one must not cost more than the first."""
    times: list[float] = []
    done, after = 0, None
    while True:
        began = time.perf_counter()
        row = queue.conn.execute(
            "select * from pgfifo.cancel_where(%s, p_after => %s)", [*_all_lane(queue), after]
        ).fetchone()
        times.append((time.perf_counter() - began) * 1000)
        assert row is not None
        done, after = done + int(row[0]), row[3]
        if after is None:
            break
    few = max(1, len(times) // 10)
    report.notes.append(
        f"Cancelling all {done:,} of the deep lane by filter took {sum(times) / 1000:.0f} s in"
        f" {len(times):,} calls:"
        f" {statistics.median(times[:few]):.0f} ms each among the first tenth,"
        f" {statistics.median(times[-few:]):.0f} ms among the last."
    )


def _share(queue: Queue, report: Report) -> None:
    """Let three at a time start, of lanes that are all looked at for the first time under this limit."""
    queue.conn.execute(
        "select from pgfifo.set_shared_limit('scale', %s)",
        [Jsonb({"max_concurrent": 3, "actions": [ACTION]})],
    )
    queue.worker.work(0, queue.finished)
    began, calls, done = time.perf_counter(), 0, 0
    starts: list[tuple[Any, ...]] = []
    while done < _SHARED and calls < _PATIENCE:
        starts, _ = queue.worker.work(10, succeeded(starts))
        calls, done = calls + 1, done + len(starts)
    queue.finished = succeeded(starts)
    report.notes.append(
        f"A shared limit of three over the {report.sizes.lanes:,} lanes of *wide*, just set: {done}"
        " executions"
        f" were started by {calls} calls of work, in {time.perf_counter() - began:.1f} s."
    )


def _length(queue: Queue, report: Report) -> None:
    """Enqueue where a length over all lanes is set: they are counted, now and then."""
    queue.conn.execute(
        "select from pgfifo.set_policy(%s, %s)", [ACTION, Jsonb({"max_action_queue_length": 1_000_000})]
    )
    operation = Operation("", "select pgfifo.enqueue(%s, %s)", lambda _: (ACTION, Jsonb(BACKLOG)))
    took, cpu, _ = _statement(operation, queue)
    report.notes.append(
        f"An enqueue to *wide* that has to count all lanes, because max_action_queue_length was just set:"
        f" {cpu or took:.0f} ms. Others within the next {report.sizes.lanes * 20e-6:.1f} s add to that count."
    )


_SHARED, _PATIENCE = 60, 500


def _one(conn: Connection, query: str, parameters: Sequence[object] = ()) -> Any:  # noqa: ANN401 - whatever it is
    row = conn.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return row[0]


# Telling

_HOW_TO_READ = (
    "Written by `make scale`. Three databases on one server: *small*; *deep*, with a lane in which {deep:,}"
    " wait; and *wide*, with {lanes:,} lanes in which one waits each. Each operation was done in all three in"
    " turns, {rounds} times each. The figures are medians of milliseconds of the server's processor, in"
    " brackets what the client waited, and the fewest shared buffers that were touched. What somebody waits"
    " for may take {limit:g} ms of the server's processor; what adds up all lanes of an action {sum_limit:g}."
)
_KINDS = {
    "interactive": "What people and programs wait for",
    "sum": "What adds up the lanes of an action",
    "command": "Commands, as the person waits who types them",
    "round": "Upkeep: bounded rounds",
    "whole": "What looks at everything, by its nature",
}


def markdown(report: Report) -> str:
    """The report as a page of the documentation."""
    sizes = report.sizes
    slow = report.slow()
    lines = [
        "# `make scale`",
        "",
        _HOW_TO_READ.format(
            deep=sizes.deep,
            lanes=sizes.lanes,
            rounds=sizes.rounds,
            limit=sizes.limit,
            sum_limit=sizes.sum_limit,
        ),
        "",
        f"**{'Too slow: ' + '; '.join(slow) if slow else 'Nothing is too slow.'}**",
        "",
        *where_and_when(report.machine, report.seconds, report.load),
    ]
    for kind, heading in _KINDS.items():
        lines += [
            *("", f"## {heading}", ""),
            "| | small ms | deep ms | wide ms | small buffers | deep buffers | wide buffers |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for operation, queues in report.rows:
            if operation.kind == kind:
                name = f"`{operation.name}`" if operation.command else operation.name
                times = [measured.told for measured in queues.values()]
                touched = [f"{min(each.buffers):,}" if each.buffers else "" for each in queues.values()]
                lines.append("| " + " | ".join([name, *times, *touched]) + " |")
    notes = [f"{operation.name}: {operation.note}" for operation, _ in report.rows if operation.note]
    lines += ["", "## How it was done", ""]
    lines += [f"- {note}" for note in [*notes, *report.notes]]
    lines += [
        f"- {name}: built in {report.built[name]:.0f} s, {report.disk[name] / 1e6:,.0f} MB in the end."
        for name in report.built
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Use large queues, write the report, and end with 1 if something is too slow."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--dsn", help="use this server, in databases made for the run (default: its own)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each thing is done (default: 5)")
    parser.add_argument("--deep", type=int, default=1_000_000, help="how many wait in one lane")
    parser.add_argument("--lanes", type=int, default=100_000, help="how many lanes there are")
    parser.add_argument("--only", default="", help="what has this in its name; nothing is written then")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where scale.md goes")
    parser.add_argument("--note", action="append", default=[], help="what a reader must know about this run")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    sizes = Sizes(deep=arguments.deep, lanes=arguments.lanes, rounds=arguments.rounds)
    with open_ground(arguments.dsn) as ground:
        report = scale(ground, sizes, console, arguments.only)
    report.notes += arguments.note
    if arguments.only:
        console.print(markdown(report), highlight=False)
    else:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "scale.md").write_text(markdown(report))
        console.print(f"{report.seconds:.0f} s; written to {arguments.out}/scale.md")
    for slow in report.slow():
        console.print(f"too slow: {slow}", style="red")
    sys.exit(1 if report.slow() else 0)


if __name__ == "__main__":
    main()
