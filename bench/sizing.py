"""What an execution costs the server, a worker and the disk, and how that grows with what there is more of.

On a server of its own. Each part varies one thing and leaves the rest alone; what is told is per execution:
milliseconds of processor of the whole server (the postmaster and all of its processes, those of autovacuum
included) and of the client, bytes of WAL, commits, statements, shared buffers, and bytes that the history
keeps. From these it works out how much a core carries, and which limit comes first.
"""

import argparse
import base64
import contextlib
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from psycopg.types.json import Jsonb
from rich.console import Console

from bench import journal, profile
from bench.engine import ENQUEUE, Connection, Worker, enqueue_many, payloads, set_policy, succeeded, touched
from bench.environments import ROOT
from bench.ground import Ground, machine, open_ground
from bench.meter import Sample, measured
from bench.peers.common import Consume, Produce
from bench.programs import Program, parent_of, server_cpu
from bench.side_by_side import SETTINGS, count_statements
from bench.sizing_report import (
    BARE,
    BATCH_TABLE,
    COMMITS,
    CONCURRENCY,
    ENQUEUE_TABLE,
    MANY_LANES,
    ONE_LANE,
    PAYLOAD_ENQUEUE,
    PAYLOAD_WORK,
    PROCESSES,
    Call,
    Measure,
    Report,
    Sizes,
    Usage,
    as_json,
    bytes_text,
    connections_name,
    lanes_name,
    lanes_table,
    markdown,
)
from bench.systems import SYSTEMS
from bench.trial import Outcome, Trial, Trials, drained

RESULTS = ROOT / "docs" / "benchmarks"
ACTION = "deliver"

_PATIENCE = 120.0
"""Seconds after which a trial with real workers is given up."""
_FIRST, _WARM = 100, 8
"""How many wake a worker up, and how many calls a producer's connection makes until it has its plans."""
_LOOKS = 3
"""Calls whose buffers are counted."""
_OURS = next(system for system in SYSTEMS if system.label == "pgfifo, async")


@dataclass(frozen=True)
class Place:
    """A database to measure in."""

    dbname: str
    conn: Connection
    observer: Connection
    postmaster: int | None

    @contextlib.contextmanager
    def measured(self) -> Iterator[Sample]:
        """Measure a block of work, with the processor time of the whole server."""
        before = None if self.postmaster is None else server_cpu(self.postmaster)
        with measured(self.observer) as sample:
            yield sample
        sample.server_cpu = (
            None if before is None or self.postmaster is None else server_cpu(self.postmaster) - before
        )

    def history(self) -> int:
        """How many bytes the history has, with its indexes."""
        row = self.observer.execute(
            "select sum(pg_total_relation_size(p.relid)) from pg_partition_tree('pgfifo.history') p"
        ).fetchone()
        return int(row[0]) if row else 0


@dataclass
class Sizing:
    """One run, and where it runs."""

    ground: Ground
    template: str
    trials: Trials
    sizes: Sizes
    report: Report

    @contextlib.contextmanager
    def place(self, *, slots: int = 1) -> Iterator[Place]:
        """Make a database, with an action of so many slots a lane, for the length of a block."""
        with (
            self.ground.bare_database("sized", self.template) as dbname,
            self.ground.connect(dbname) as conn,
            self.ground.connect(dbname, name="pgfifo bench observer") as observer,
        ):
            set_policy(conn, ACTION, group_by=["customer"], max_concurrent=slots)
            yield Place(dbname, conn, observer, parent_of(conn.info.backend_pid))

    def enqueue(self, place: Place, table: str, name: str, items: Sequence[Jsonb], chunk: int) -> None:
        """Measure enqueues, so many in a call."""
        _send(place.conn, items[:chunk], chunk)
        with place.measured() as sample:
            sample.statements = _send(place.conn, items, chunk)
            sample.done = len(items)
        if chunk == 1:
            buffers = touched(place.conn, ENQUEUE, [ACTION, items[0]])
        else:
            part = list(items[:chunk])
            buffers = touched(place.conn, "select * from pgfifo.enqueue_many(%s, %s)", [ACTION, part])
        self.report.keep(table, name, _measure(sample, buffers / min(chunk, len(items))))

    def work(
        self, place: Place, table: str, name: str, *, batch: int, count: int, items: Sequence[Jsonb] = ()
    ) -> None:
        """Measure a worker that asks for so many at once; `items` are enqueued first."""
        _send(place.conn, items, 1000)
        place.conn.execute("vacuum analyze")
        worker = Worker(place.conn, ACTION)
        worker.drain(batch, Sample(), most=max(1, min(5 * batch, count // 5)))
        buffers = _touched_by_work(worker, batch)
        kept = place.history()
        with place.measured() as sample:
            worker.drain(batch, sample, most=count)
        each = (place.history() - kept) / sample.done
        self.report.keep(table, name, _measure(sample, buffers, each))


def _send(conn: Connection, items: Sequence[Jsonb], chunk: int) -> int:
    """Enqueue, so many in a call; return how many calls that were."""
    for start in range(0, len(items), chunk):
        if chunk == 1:
            conn.execute(ENQUEUE, [ACTION, items[start]], prepare=True)
        else:
            enqueue_many(conn, ACTION, items[start : start + chunk])
    return -(-len(items) // chunk)


def _touched_by_work(worker: Worker, batch: int) -> float | None:
    """Return how many buffers calls touch that finish and claim, for each that they finish."""
    found: list[float] = []
    starts, _ = worker.work(batch)
    while starts and len(found) < _LOOKS:
        buffers, after = worker.explained(batch, succeeded(starts))
        found.append(buffers / len(starts))
        starts = after
    worker.work(0, succeeded(starts))
    return statistics.median(found) if found else None


def _measure(sample: Sample, buffers: float | None = None, kept: float | None = None) -> Measure:
    cost = sample.cost
    return Measure(
        sample.rate,
        cost.server_cpu,
        cost.client_cpu,
        cost.wal,
        cost.commits,
        cost.statements,
        buffers,
        kept,
    )


def _outcome(outcome: Outcome) -> Measure:
    def each(value: float | None) -> float | None:
        return None if value is None else value / outcome.done

    server = each(outcome.server_cpu)
    return Measure(
        outcome.value,
        None if server is None else server * 1000,
        (each(outcome.client_cpu) or 0.0) * 1000,
        each(outcome.wal) or 0.0,
        each(outcome.commits) or 0.0,
        each(outcome.statements),
    )


def _needed(count: int, batch: int) -> int:
    """How many must wait for so many to be measured, with those before and after."""
    return count + min(5 * batch, count // 5) + (_LOOKS + 3) * batch


# Parts: each varies one thing


def _calls(sizing: Sizing) -> None:
    """Where the time of a call goes."""
    if sizing.report.calls:
        return
    with (
        sizing.ground.bare_database("plain", sizing.template) as plain,
        sizing.ground.bare_database("stamped", sizing.template) as stamped,
    ):
        with sizing.ground.connect(stamped) as conn:
            profile.stamp(conn)
        for title, prepare, count in profile.turns(sizing.sizes.calls):
            with sizing.ground.connect(plain) as conn, sizing.ground.connect(plain) as observer:
                call = prepare(conn)
                profile.timed(call, max(1, count // 5))
                with measured(observer, conn) as sample:
                    times = profile.timed(call, count)
                    sample.done = count
            with sizing.ground.connect(stamped) as conn:
                by_line = profile.spent(conn, prepare(conn), count)
            whole = {name: sum(took) / count for (name, line), took in by_line.items() if line < 0}
            least = max(whole.values(), default=0) / 20
            parts = sorted(whole.items(), key=lambda item: -item[1])
            cost = sample.cost
            sizing.report.calls.append(
                Call(
                    title,
                    statistics.median(times),
                    None if cost.server_cpu is None else cost.server_cpu * 1000,
                    cost.client_cpu * 1000,
                    {name: took for name, took in parts if took >= least},
                )
            )


def _enqueue(sizing: Sizing) -> None:
    sizes = sizing.sizes
    with sizing.place() as place:
        for chunk in sizes.chunks:
            count = sizes.singly if chunk == 1 else max(sizes.many, chunk)
            sizing.enqueue(place, ENQUEUE_TABLE, f"{chunk:,} in a call, 100 lanes", payloads(count), chunk)


def _batch(sizing: Sizing) -> None:
    sizes = sizing.sizes
    for batch in sizes.batches:
        count = sizes.singly if batch == 1 else sizes.many
        with sizing.place() as place:
            items = payloads(_needed(count, batch), 400)
            sizing.work(
                place,
                BATCH_TABLE,
                f"up to {batch} in a call, 400 lanes",
                batch=batch,
                count=count,
                items=items,
            )


def _lanes(sizing: Sizing) -> None:
    sizes = sizing.sizes
    for slots in sizes.slots:
        for lanes in sizes.lanes:
            count = sizes.singly if lanes * slots < 10 else sizes.many
            name = lanes_name(lanes)
            with sizing.place(slots=slots) as place:
                items = payloads(max(lanes, _needed(count, 50)), lanes)
                if slots == sizes.slots[0]:
                    table = "Lanes: enqueue, 1,000 in a call"
                    sizing.enqueue(place, table, name, items, 1000)
                    items = []
                sizing.work(place, lanes_table(slots), name, batch=50, count=count, items=items)


def _payload(sizing: Sizing) -> None:
    sizes = sizing.sizes
    chance = random.Random(1)
    for size in sizes.bytes:
        count = max(60, min(sizes.many, sizes.heavy // size))
        # Base64 of noise: what TOAST cannot press together.
        texts = [base64.b64encode(chance.randbytes(size * 3 // 4)).decode() for _ in range(20)]
        items = [
            Jsonb({"customer": n % 100, "n": n, "data": texts[n % 20]}) for n in range(_needed(count, 50))
        ]
        with sizing.place() as place:
            sizing.enqueue(place, PAYLOAD_ENQUEUE, bytes_text(size), items, 100)
            sizing.work(place, PAYLOAD_WORK, bytes_text(size), batch=50, count=count)


def _backlog(sizing: Sizing) -> None:
    sizes = sizing.sizes
    table = "Backlog: work, 10 in a call, 100 lanes"
    count = sizes.many // 2
    for name in ("nothing else", "in the same lanes", "in another lane that is paused"):
        with sizing.place() as place:
            if name != "nothing else":
                with sizing.ground.careless():
                    if name == "in the same lanes":
                        _send(place.conn, payloads(sizes.backlog), 20_000)
                    else:
                        paused = [Jsonb({"customer": "paused"})] * sizes.backlog
                        _send(place.conn, paused[:1], 1)
                        place.conn.execute("select pgfifo.pause(%s, %s)", [ACTION, "paused"])
                        _send(place.conn, paused[1:], 20_000)
            label = name if name == "nothing else" else f"{sizes.backlog:,} waiting {name}"
            sizing.work(place, table, label, batch=10, count=count, items=payloads(_needed(count, 10)))


def _history(sizing: Sizing) -> None:
    sizes = sizing.sizes
    count = sizes.many // 2
    for finished in (0, sizes.history):
        with sizing.place() as place:
            if finished:
                with sizing.ground.careless():
                    _finish_many(place.conn, finished)
            table = "History: work, 10 in a call, 100 lanes"
            sizing.work(
                place,
                table,
                f"{finished:,} rows kept",
                batch=10,
                count=count,
                items=payloads(_needed(count, 10)),
            )


def _finish_many(conn: Connection, count: int) -> None:
    """Let a thousand end, or half of them; copy what they leave, with ids, events and times of their own."""
    first = min(1000, count // 2)
    _send(conn, payloads(first), 1000)
    Worker(conn, ACTION).drain(50, Sample())
    own = ("id", "event_no", "start_event", "finished_at")
    row = conn.execute(
        "select string_agg(quote_ident(attname), ', ') from pg_attribute"
        " where attrelid = 'pgfifo.history'::regclass and attnum > 0 and not attisdropped"
        " and not attname = any (%s)",
        [list(own)],
    ).fetchone()
    assert row is not None
    conn.execute(
        f"insert into pgfifo.history ({', '.join(own)}, {row[0]})"
        f" select new_id, new_event, new_event - 1, finished_at - n * interval '10 s', {row[0]}"
        " from (select h.*, n, nextval('pgfifo.execution_ids') as new_id,"
        "   nextval('pgfifo.event_ids') as new_event"
        "   from (select * from pgfifo.history) h, generate_series(1, %s) n) s".encode(),
        [count // first - 1],
    )


def _turn(sizing: Sizing) -> None:
    sizes = sizing.sizes
    for batch in (1, 10):
        count = sizes.singly if batch == 1 else sizes.many
        for turn in sizes.turns:
            with sizing.place() as place:
                place.conn.execute("select set_config('pgfifo.turn', %s, false)", [str(turn)])
                sizing.work(
                    place,
                    f"Turns: work, {batch} in a call, 100 lanes",
                    f"pgfifo.turn = {turn}",
                    batch=batch,
                    count=count,
                    items=payloads(_needed(count, batch)),
                )


def _durability(sizing: Sizing) -> None:
    sizes = sizing.sizes
    items = payloads(sizes.singly)

    def work(name: str, batch: int) -> None:
        count = sizes.singly if batch == 1 else sizes.many
        with sizing.place() as place:
            sizing.work(place, COMMITS, name, batch=batch, count=count, items=payloads(_needed(count, batch)))

    with sizing.place() as place:
        place.conn.execute("create table bare (n integer)")
        with place.measured() as sample:
            for n in range(sizes.singly):
                place.conn.execute("insert into bare values (%s)", [n], prepare=True)
            sample.done = sample.statements = sizes.singly
        sizing.report.keep(COMMITS, BARE, _measure(sample))
    with sizing.place() as place:
        sizing.enqueue(place, COMMITS, "enqueue, one a commit", items, 1)
        place.conn.execute("set synchronous_commit = off")
        sizing.enqueue(place, COMMITS, "the same, where synchronous_commit is off", items, 1)
        place.conn.execute("reset synchronous_commit")
        with place.measured() as sample:
            for start in range(0, len(items), 100):
                with place.conn.transaction():
                    sample.statements += 2 + _send(place.conn, items[start : start + 100], 1)
            sample.done = len(items)
        sizing.report.keep(COMMITS, "enqueue, 100 calls in a transaction", _measure(sample))
    work("work, one in a call", 1)
    with sizing.ground.careless() as without:
        if without:
            with sizing.place() as place:
                sizing.enqueue(place, COMMITS, "enqueue, without fsync", items, 1)
            work("work, one in a call, without fsync", 1)


def _idle(sizing: Sizing) -> None:
    sizes = sizing.sizes
    for idle in (0, sizes.idle):
        with sizing.place() as place, contextlib.ExitStack() as stack:
            for _ in range(idle):
                stack.enter_context(sizing.ground.connect(place.dbname, name="pgfifo bench idle"))
            name = f"{idle} idle connections"
            sizing.enqueue(
                place, "Connections: enqueue, one in a call", name, payloads(_needed(sizes.singly, 1)), 1
            )
            sizing.work(place, "Connections: work, one in a call", name, batch=1, count=sizes.singly)


# Parts with clients and workers of the package, in processes of their own


def _producers(sizing: Sizing) -> None:
    sizes = sizing.sizes
    for table, lanes in ((ONE_LANE, 1), (MANY_LANES, 100)):
        for connections in sizes.connections:
            count = sizes.singly * min(2, connections)
            with sizing.trials.trial(_OURS) as made:
                task = Produce(count=count, keys=lanes, connections=connections)
                program = made.producer(task)
                before = made.meter()
                program.go()
                answer = program.answer(_PATIENCE)
                outcome = made.outcome(before, count, (answer["ended"] - answer["began"]) / 1e9)
            sizing.report.keep(table, connections_name(connections), _outcome(outcome))


def _workers(sizing: Sizing) -> None:
    sizes = sizing.sizes

    def drain(table: str, name: str, concurrency: int, processes: int) -> None:
        count = sizes.run if concurrency > 1 else sizes.run // 3
        with sizing.trials.trial(_OURS) as made:
            made.fill(Produce(count=count, keys=100, chunk=1000))
            task = Consume(str(made.journal), keys=100, concurrency=concurrency)
            outcome, _ = drained(made, task, count, 100, processes=processes)
        sizing.report.keep(table, name, _outcome(outcome))

    for concurrency in sizes.concurrency:
        drain(CONCURRENCY, f"concurrency {concurrency}", concurrency, 1)
    for processes in sizes.processes:
        drain(PROCESSES, f"{processes} x concurrency 10", 10, processes)


def _rate(sizing: Sizing) -> None:
    sizes = sizing.sizes
    if sizing.report.usage:
        return
    for processes in sorted({*sizes.processes[:1], *sizes.processes[-1:]}):
        with _awake(sizing, processes) as (made, workers):
            name = f"nothing, {_workers_of(processes)}"
            sizing.report.usage.append(_used(made, workers, name, 0, sizes.seconds))
    for rate in sizes.rates:
        with _awake(sizing, 1) as (made, workers):
            name = f"{rate:,} a second, {_workers_of(1)}"
            count = max(2, round(rate * sizes.seconds))
            sizing.report.usage.append(_used(made, workers, name, count, sizes.seconds))


def _workers_of(processes: int) -> str:
    return f"{processes} worker process{'' if processes == 1 else 'es'}"


@contextlib.contextmanager
def _awake(sizing: Sizing, processes: int) -> Iterator[tuple[Trial, list[Program]]]:
    """Start workers, and wait until they have done something: what follows is not their start."""
    with sizing.trials.trial(_OURS) as made:
        made.produce(Produce(count=_FIRST, keys=100, chunk=_FIRST))
        workers = made.consumers(Consume(str(made.journal), keys=100), processes)
        for worker in workers:
            worker.go()
        made.wait_done(_FIRST)
        yield made, workers


def _used(made: Trial, workers: Sequence[Program], name: str, count: int, seconds: float) -> Usage:
    """Let so many arrive, evenly, or wait for as long; tell what was used in a second."""
    if count:
        senders = 1 if count <= 100 * seconds else 4
        warm = _WARM * senders
        interval = 1000 * senders * seconds / count
        task = Produce(count=count + warm, first=_FIRST, connections=senders, interval=interval)
        producer = made.producer(task)
        producer.go()
        made.wait_for(lambda: journal.count(made.journal) >= _FIRST + warm, _PATIENCE)
    cpu = sum(worker.cpu() for worker in workers)
    before = made.meter()
    began = time.perf_counter()
    if count:
        made.produced(producer)
        made.wait_done(count + warm, _FIRST)
    else:
        time.sleep(seconds)
    took = time.perf_counter() - began
    outcome = made.outcome(before, count, took)
    return Usage(
        name,
        count / took,
        None if outcome.server_cpu is None else outcome.server_cpu / took * 1000,
        (sum(worker.cpu() for worker in workers) - cpu) / took * 1000,
        (outcome.wal or 0) / took,
        (outcome.commits or 0) / took,
        None if outcome.statements is None else outcome.statements / took,
    )


PARTS: dict[str, Callable[[Sizing], None]] = {
    "calls": _calls,
    "enqueue": _enqueue,
    "batch": _batch,
    "workers": _workers,
    "rate": _rate,
    "lanes": _lanes,
    "payload": _payload,
    "backlog": _backlog,
    "history": _history,
    "turn": _turn,
    "durability": _durability,
    "producers": _producers,
    "idle": _idle,
}


def sizing(ground: Ground, sizes: Sizes, console: Console, only: Collection[str] = ()) -> Report:
    """Measure everything, or some parts of it.

    Args:
        ground: the server.
        sizes: how much of everything.
        console: where to say what is being done.
        only: names of parts. Defaults to all.
    """
    report = Report(machine(ground), sizes)
    began = time.perf_counter()
    count_statements(ground)
    with ground.database("sizing") as template, Trials(ground, _PATIENCE) as trials:
        run = Sizing(ground, template, trials, sizes, report)
        for round_ in range(sizes.rounds):
            for name, part in PARTS.items():
                if not only or name in only:
                    report.load.append(os.getloadavg()[0])
                    console.log(f"{name}, round {round_ + 1} of {sizes.rounds}")
                    part(run)
    report.seconds = time.perf_counter() - began
    return report


def write(report: Report, out: Path) -> None:
    """Write the page and the file for programs into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "sizing.md").write_text(markdown(report))
    (out / "sizing.json").write_text(as_json(report))


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m bench.sizing", description=__doc__)
    parser.add_argument("--dsn", help="use this server, in databases made for the run (default: its own)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each thing is done (default: 2)")
    parser.add_argument(
        "--only", default="", help=f"some of: {','.join(PARTS)}; printed, and nothing is written then"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where sizing.md and .json go")
    parser.add_argument("--note", action="append", default=[], help="what a reader must know about this run")
    arguments = parser.parse_args()
    only = [name for name in arguments.only.split(",") if name]
    if unknown := set(only) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    console = Console(stderr=True)
    with open_ground(arguments.dsn, SETTINGS) as ground:
        report = sizing(ground, Sizes(rounds=arguments.rounds), console, only)
    report.notes += arguments.note
    if only:
        sys.stdout.write(markdown(report))
        return
    write(report, arguments.out)
    console.print(f"{report.seconds:.0f} s; written to {arguments.out}/sizing.md and .json")


if __name__ == "__main__":
    main()
