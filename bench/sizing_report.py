"""What `make sizing` has measured, what follows from it, and how it is told. No server is asked here."""

import json
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.report import number, spread, where_and_when

COMMAND = "make sizing"
ENQUEUE_TABLE = "Enqueue: how many in a call"
BATCH_TABLE = "Work: how many in a call"
PAYLOAD_ENQUEUE = "Payload: enqueue, 100 in a call"
PAYLOAD_WORK = "Payload: work, 50 in a call"
COMMITS = "Durability: what waits for the disk"
BARE = "a row into a bare table, and a commit"
ONE_LANE = "Producers of one lane: connections"
MANY_LANES = "Producers of 100 lanes: connections"
CONCURRENCY = "A worker process: its concurrency"
PROCESSES = "Worker processes: how many"

_DAY = 86_400


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        rounds: how often each thing is measured.
        singly: executions where each is a call of its own.
        many: executions where a call has many.
        batches: how many a worker asks for in a call.
        chunks: how many an enqueue has.
        lanes: over how many lanes.
        slots: how many of a lane at once.
        bytes: of a payload.
        heavy: bytes of payloads in a measurement, at most.
        backlog: how many wait beside.
        history: how many have ended before.
        idle: connections that do nothing.
        turns: values of `pgfifo.turn`.
        connections: of a producer.
        processes: of a worker.
        concurrency: of a worker process.
        run: executions for real workers.
        rates: executions a second that arrive.
        seconds: for how long they do.
        calls: that are taken apart.
    """

    rounds: int = 2
    singly: int = 1_000
    many: int = 5_000
    batches: tuple[int, ...] = (1, 10, 50, 200)
    chunks: tuple[int, ...] = (1, 10, 100, 1_000)
    lanes: tuple[int, ...] = (1, 10, 100, 10_000)
    slots: tuple[int, ...] = (1, 10)
    bytes: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    heavy: int = 10_000_000
    backlog: int = 100_000
    history: int = 500_000
    idle: int = 100
    turns: tuple[int, ...] = (0, 10, 100)
    connections: tuple[int, ...] = (1, 2, 4, 8)
    processes: tuple[int, ...] = (1, 2, 4)
    concurrency: tuple[int, ...] = (1, 10, 50)
    run: int = 8_000
    rates: tuple[int, ...] = (10, 100, 500)
    seconds: float = 4.0
    calls: int = 100


@dataclass(frozen=True)
class Measure:
    """What one execution cost.

    Attributes:
        rate: executions a second.
        server: milliseconds of processor of the whole server; None where nobody tells.
        client: milliseconds of processor of the clients.
        wal: bytes of WAL.
        commits: that wait for the disk.
        statements: that clients sent; None where nobody counts.
        buffers: shared buffers that were touched; None where that was not asked.
        kept: bytes that the history has grown by, with its indexes; None where nothing ended.
    """

    rate: float
    server: float | None
    client: float
    wal: float
    commits: float
    statements: float | None
    buffers: float | None = None
    kept: float | None = None


@dataclass
class Line:
    """A row of a table: what was measured, a measure for each round."""

    table: str
    name: str
    rounds: list[Measure] = field(default_factory=list)

    def of(self, attribute: str) -> float | None:
        """Return the median of an attribute, or None where a round lacks it."""
        values = [getattr(measure, attribute) for measure in self.rounds]
        return None if any(value is None for value in values) else statistics.median(values)


@dataclass(frozen=True)
class Usage:
    """What goes on at some rate of arrivals, in a second.

    Attributes:
        name: what arrives, and who works.
        done: executions.
        server: milliseconds of processor of the whole server.
        worker: milliseconds of processor of the workers.
        wal: bytes.
        commits: that wait for the disk.
        statements: that workers and producers sent.
    """

    name: str
    done: float
    server: float | None
    worker: float
    wal: float
    commits: float
    statements: float | None


@dataclass(frozen=True)
class Call:
    """Where the time of a call goes.

    Attributes:
        name: the call.
        waited: microseconds, as the client sees it.
        server: microseconds of processor, of the server process.
        client: microseconds of processor.
        parts: microseconds within the functions that take most; one that calls others includes them.
    """

    name: str
    waited: float
    server: float | None
    client: float
    parts: dict[str, float]


@dataclass
class Report:
    """A run."""

    machine: dict[str, Any]
    sizes: Sizes
    lines: list[Line] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self, table: str, name: str) -> Line | None:
        """Return the row of this name, if there is one."""
        return next((line for line in self.lines if (line.table, line.name) == (table, name)), None)

    def keep(self, table: str, name: str, measure: Measure) -> None:
        """Keep one round's measure."""
        line = self.line(table, name)
        if line is None:
            line = Line(table, name)
            self.lines.append(line)
        line.rounds.append(measure)


def bytes_text(count: int) -> str:
    """A number of bytes, for people."""
    return f"{count // 1000:,} KB" if count >= 1000 else f"{count} B"


def lanes_name(count: int) -> str:
    """Name a row."""
    return f"{count:,} lane{'' if count == 1 else 's'}"


def lanes_table(slots: int) -> str:
    """Name the table of work with so many slots a lane."""
    return f"Lanes: work, up to 50 in a call, {slots} slot{'' if slots == 1 else 's'} each"


def connections_name(count: int) -> str:
    """Name a row."""
    return f"{count} connection{'' if count == 1 else 's'}"


# What follows from it


@dataclass(frozen=True)
class Way:
    """A way to use it, and what an execution costs then, with payloads of 150 bytes.

    Attributes:
        name: the way.
        server: milliseconds of the whole server's processor, from the enqueue to the end.
        worker: milliseconds of the worker's, without what its handler takes.
        wal: bytes.
        kept: bytes of the history.
    """

    name: str
    server: float
    worker: float
    wal: float
    kept: float


@dataclass(frozen=True)
class Demand:
    """What somebody needs."""

    name: str
    way: int
    """0: one by one; 1: in bulk."""
    daily: int
    peak: int
    bytes: int
    days: int
    processes: int
    pools: int
    """Connections of the producers' pools."""


DEMANDS = (
    Demand("webhooks", 0, 2_000_000, 200, 1_000, 7, 2, 40),
    Demand("events in bulk", 1, 50_000_000, 3_000, 100, 3, 4, 10),
)


def ways(report: Report) -> list[Way]:
    """What an execution costs, one by one and in bulk; empty where not all of it was measured."""
    sizes = report.sizes
    found = []
    for name, chunk, concurrency in (
        ("one by one", sizes.chunks[0], sizes.concurrency[len(sizes.concurrency) // 2]),
        ("in bulk", sizes.chunks[-1], sizes.concurrency[-1]),
    ):
        sent = report.line(ENQUEUE_TABLE, f"{chunk:,} in a call, 100 lanes")
        done = report.line(CONCURRENCY, f"concurrency {concurrency}")
        ended = report.line(PAYLOAD_WORK, bytes_text(sizes.bytes[0]))
        if sent is None or done is None or ended is None:
            return []
        server, more, kept = sent.of("server"), done.of("server"), ended.of("kept")
        if server is None or more is None or kept is None:
            return []
        says = f"{name}: enqueue {chunk:,} a call, worker with concurrency {concurrency}"
        wal = (sent.of("wal") or 0) + (done.of("wal") or 0)
        found.append(Way(says, server + more, done.of("client") or 0, wal, kept))
    return found


def _more(report: Report, table: str, size: int, attribute: str) -> float:
    """How much more a payload of that size takes than the smallest."""
    least = report.line(table, bytes_text(report.sizes.bytes[0]))
    line = report.line(table, bytes_text(size))
    if least is None or line is None:
        return 0.0
    return max(0.0, (line.of(attribute) or 0) - (least.of(attribute) or 0))


def _carries(report: Report) -> list[str]:
    """Tell how much a core carries."""
    cores = report.machine["cores"]
    rows = []
    for way in ways(report):
        # Of a run that is too short for the processor's clock nothing can be said.
        alone = number(1000 / way.worker) if way.worker else "?"
        rows.append(
            f"| {way.name} | {number(way.server)} | {number(way.worker)} | {number(1000 / way.server)} |"
            f" {alone} | {number(1000 * cores / (way.server + way.worker))} |"
            f" {number(way.wal)} | {number(way.kept)} |"
        )
    head = (
        "| | server ms | worker ms | executions/s, a core of the server | executions/s, a core of workers |"
        f" executions/s, {cores} cores for both | WAL bytes | kept bytes |"
    )
    return (
        ["", "## What a core carries", "", _CARRIES, "", head, "|---|" + "---:|" * 7, *rows] if rows else []
    )


_CARRIES = (
    "From the enqueue to the end, without what handlers take: 1000 divided by the milliseconds of processor."
    " Nothing that is near its limit is quick: plan for half of it."
)


def _demands(report: Report) -> list[str]:
    """Work the formula of docs/performance.md through."""
    found = ways(report)
    rows = []
    for demand in DEMANDS if found else ():
        way = found[demand.way]
        wal, kept, server = way.wal, way.kept, way.server
        for table in (PAYLOAD_ENQUEUE, PAYLOAD_WORK):
            wal += _more(report, table, demand.bytes, "wal")
            server += _more(report, table, demand.bytes, "server")
        kept += _more(report, PAYLOAD_WORK, demand.bytes, "kept")
        size = bytes_text(demand.bytes)
        connections = 3 * demand.processes + demand.pools
        rows.append(
            f"| {demand.name} | {demand.daily:,} | {demand.peak:,} | {size} | {demand.days} |"
            f" {demand.peak * server / 1000:.2f} | {demand.peak * way.worker / 1000:.2f} |"
            f" {demand.daily * server / 1000 / _DAY:.2f} | {demand.daily * wal / 1e9:.1f} |"
            f" {demand.daily * kept * demand.days / 1e9:.1f} | {connections} |"
        )
    head = (
        "| | a day | /s at the peak | payload | days kept | server cores at the peak |"
        " worker cores at the peak | server cores on average | WAL GB a day | history GB | connections |"
    )
    return ["", "## Two examples", "", _DEMANDS, "", head, "|---|" + "---:|" * 10, *rows] if rows else []


_DEMANDS = (
    "The formula of [performance](../performance.md#a-formula) with this run's figures. *Webhooks* are"
    " enqueued one by one, by producers with 40 connections, and run by two worker processes; *events in"
    " bulk* come 1,000 in a call over 10 connections, and four processes run them."
)


def _ceilings(report: Report) -> list[str]:
    """Tell the rates at which each limit was met."""
    sizes = report.sizes
    met: list[tuple[str, list[Line | None]]] = [
        ("one connection that commits a row at a time", [report.line(COMMITS, BARE)]),
        ("one producer, one by one, one connection", [report.line(MANY_LANES, connections_name(1))]),
        (
            "producers of 100 lanes, one by one, as many connections as help",
            [report.line(MANY_LANES, connections_name(count)) for count in sizes.connections],
        ),
        (
            "producers of one strict lane, one by one, as many connections as help",
            [report.line(ONE_LANE, connections_name(count)) for count in sizes.connections],
        ),
        (
            "one strict lane with one slot, bare SQL",
            [report.line(lanes_table(sizes.slots[0]), lanes_name(sizes.lanes[0]))],
        ),
        (
            "one worker process, 100 lanes",
            [report.line(CONCURRENCY, f"concurrency {count}") for count in sizes.concurrency],
        ),
        (
            "all worker processes together, 100 lanes",
            [report.line(PROCESSES, f"{count} x concurrency 10") for count in sizes.processes],
        ),
    ]
    rows = []
    for name, lines in met:
        known = [line for line in lines if line is not None]
        if known:
            best = max(known, key=lambda line: line.of("rate") or 0)
            rows.append(f"| {name} | {number(best.of('rate') or 0)} | {best.name} |")
    return (
        ["", "## Ceilings", "", _CEILINGS, "", "| | executions/s | with |", "|---|---:|---|", *rows]
        if rows
        else []
    )


_CEILINGS = "The most that was seen of each, with producers, workers and the server on this one machine."


# Telling

_HEAD = (
    "| | executions/s | server ms | x the first | client ms | WAL bytes | commits | statements | buffers |"
    " kept bytes |"
)
_HOW_TO_READ = (
    "Written by `{command}`; what it means stands in [performance](../performance.md). A server of its own;"
    " each table varies one thing, in a database made for each row, {rounds}. Figures are medians, per"
    " execution: milliseconds of processor of the whole server (all of its processes, autovacuum too) and of"
    " the client, bytes of WAL, commits that wait for the disk, statements that arrived, shared buffers that"
    " were touched, and bytes that the history keeps, with its indexes. *Work* finishes some and claims the"
    " next in one call, by bare SQL; payloads have 150 bytes where nothing else is said."
)


def markdown(report: Report) -> str:
    """The report as a page of the documentation."""
    rounds = "once" if report.sizes.rounds == 1 else f"{report.sizes.rounds} times"
    lines = [
        f"# `{COMMAND}`",
        "",
        _HOW_TO_READ.format(command=COMMAND, rounds=rounds),
        "",
        *where_and_when(report.machine, report.seconds, report.load),
        *_carries(report),
        *_demands(report),
        *_ceilings(report),
        *_told_calls(report),
    ]
    tables: dict[str, list[Line]] = {}
    for line in report.lines:
        tables.setdefault(line.table, []).append(line)
    for table, rows in tables.items():
        lines += [
            "",
            f"## {table}",
            "",
            _HEAD,
            "|---|" + "---:|" * 9,
            *(_told(line, rows[0]) for line in rows),
        ]
    lines += _told_usage(report)
    if report.notes:
        lines += ["", "## How it was done", "", *(f"- {note}" for note in report.notes)]
    return "\n".join(lines) + "\n"


def _told(line: Line, first: Line) -> str:
    def cell(attribute: str) -> str:
        value = line.of(attribute)
        return "" if value is None else number(value)

    server, base = line.of("server"), first.of("server")
    ratio = f"{server / base:.2f}" if server is not None and base else ""
    rates = spread([measure.rate for measure in line.rounds])
    cells = [cell(name) for name in ("client", "wal", "commits", "statements", "buffers", "kept")]
    return "| " + " | ".join([line.name, rates, cell("server"), ratio, *cells]) + " |"


def _told_calls(report: Report) -> list[str]:
    if not report.calls:
        return []
    rows = []
    for call in report.calls:
        server = "" if call.server is None else f"{call.server:,.0f}"
        parts = ", ".join(f"`{name}` {took:,.0f}" for name, took in call.parts.items())
        rows.append(f"| {call.name} | {call.waited:,.0f} | {server} | {call.client:,.0f} | {parts} |")
    head = "| | the client waits | server processor | client processor | in functions |"
    return ["", "## Where the time of a call goes", "", _CALLS, "", head, "|---|---:|---:|---:|---|", *rows]


_CALLS = (
    "Microseconds, on one connection: medians of what the client waits, means of the rest. What it waits for"
    " beyond both processors is the disk, the way there and back, and whoever else is on the machine. Times"
    " in functions are told by functions with time stamps in them, which costs a little; one that calls"
    " others includes them. Line by line: `python -m bench profile`."
)


def _told_usage(report: Report) -> list[str]:
    if not report.usage:
        return []
    rows = []
    for usage in report.usage:
        server = "" if usage.server is None else number(usage.server)
        each = number(usage.server / usage.done) if usage.server is not None and usage.done else ""
        sent = "" if usage.statements is None else number(usage.statements)
        rows.append(
            f"| {usage.name} | {number(usage.done)} | {server} | {each} | {number(usage.worker)} |"
            f" {number(usage.wal)} | {number(usage.commits)} | {sent} |"
        )
    head = (
        "| arrives | executions/s | server ms a second | server ms each | workers ms a second |"
        " WAL bytes a second | commits a second | statements a second |"
    )
    return [
        "",
        "## Rate: what arrives evenly, one by one",
        "",
        _USAGE,
        "",
        head,
        "|---|" + "---:|" * 7,
        *rows,
    ]


_USAGE = (
    "In a second, enqueues included: of 1,000 ms of a core. The workers are the package's, with concurrency"
    " 10; what they do for themselves (heartbeats, maintenance, polls) is what the first rows show."
)


def as_json(report: Report) -> str:
    """The report for programs."""
    told = asdict(report) | {"ways": [asdict(way) for way in ways(report)]}
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"
