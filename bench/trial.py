"""One trial: a database of its own, a system in it, what it was made to do, and what that cost."""

import contextlib
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from bench import journal
from bench.ground import Ground
from bench.journal import Run
from bench.peers.common import DONE, Consume, Produce
from bench.programs import Program, parent_of, server_cpu
from bench.systems import FLOOR, OURS, System

Connection = psycopg.Connection[Any]

_LOOK = 0.004
"""Seconds between looks at the journal."""

PGBENCH_LEAST = 500
"""Rows that pgbench takes at least: it measures nothing in less."""

KEPT = 4 * 2**30
"""Bytes of filled databases that are kept, to make trials' copies of."""

_FLOOR_ROWS = """
insert into {table} (lane, payload)
select n % 100, jsonb_build_object('customer', 'k' || n % 100, 'n', n - 1, 'work', 0, 'fail', false,
  'event', 'invoice.paid', 'invoice', 100000 + n, 'amount', 1000 + n % 977,
  'url', 'https://customer-' || n % 100 || '.example.com/hooks/invoices')
from generate_series(1, {count}) n
"""

_READ = """
select pg_snapshot_xmax(pg_current_snapshot())::text::numeric,
  pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')
"""
_CALLS = """
select coalesce(sum(s.calls), 0) from pg_stat_statements s join pg_database d on d.oid = s.dbid
where d.datname = %s and s.toplevel
"""


@dataclass
class Outcome:
    """What came of a trial.

    Attributes:
        value: what is compared, in the unit of the case.
        done: how many were done.
        seconds: in how many seconds.
        commits: transactions with an xid, all together.
        wal: bytes, all together.
        statements: that clients sent, all together; None where nobody counts.
        server_cpu: seconds; None where nobody tells.
        client_cpu: seconds, producers and consumers.
        memory: MiB, the peak of the consumers.
        violations: of order; None where no order was asked for.
        at_once: the most of one key at one time; None where nobody ran.
        limit: how many of a key were allowed.
        repeated: how many were run more than once without having failed.
        stopped: whether it was stopped before its end, because it took too long.
        turn: of which round it is; what is compared is of the same one.
        more: further figures by name.
    """

    value: float = 0.0
    done: int = 0
    seconds: float = 0.0
    commits: float | None = None
    wal: float | None = None
    statements: float | None = None
    server_cpu: float | None = None
    client_cpu: float | None = None
    memory: float | None = None
    violations: int | None = None
    at_once: int | None = None
    limit: int | None = None
    repeated: int = 0
    stopped: bool = False
    turn: int = 0
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Meter:
    xids: float
    wal: float
    calls: float | None
    server_cpu: float | None
    client_cpu: float


class Trial:
    """A system in a database of its own."""

    _numbers = itertools.count(1)

    def __init__(self, ground: Ground, system: System, dbname: str, folder: Path, cap: float) -> None:
        self.ground = ground
        self.system = system
        self.cap = cap
        self.journal = folder / "journal"
        self.stamps = folder / "stamps"
        self._folder = folder
        self._dbname = dbname
        self.dsn = url(ground.dsn, dbname)
        self._observer = ground.connect(name="pgfifo bench observer")
        self._looker = ground.connect(dbname, name="pgfifo bench looker")
        self._postmaster = parent_of(self._looker.info.backend_pid)
        row = self._observer.execute("select to_regclass('pg_stat_statements') is not null").fetchone()
        self._counts = bool(row and row[0])
        if self._counts:
            self._looker.execute("set pg_stat_statements.track = 'none'")
        self._programs: list[Program] = []
        self._ended_cpu = 0.0

    def close(self) -> None:
        """End what runs and disconnect."""
        for program in self._programs:
            program.end()
        self._observer.close()
        self._looker.close()

    def execute(self, query: str) -> None:
        """Run a statement that is not counted, in the trial's database."""
        self._looker.execute(query.encode())

    def setup(self) -> None:
        """Install the system."""
        program = self._start("setup")
        program.answer(120)
        self._forget(program)

    def fill(self, *tasks: Produce, careless: bool = False) -> None:
        """Enqueue without measuring, then let the planner know, as autovacuum would in time."""
        with self.ground.careless() if careless else contextlib.nullcontext():
            for task in tasks:
                if self.system.kind == FLOOR:
                    rows = max(task.count, PGBENCH_LEAST) if self.system.is_pgbench else task.count
                    self.execute(_FLOOR_ROWS.format(table=self.system.options["floor"], count=rows))
                else:
                    self.produce(_in_order(self.system, task), timeout=1800)
        self.execute("vacuum analyze")

    def produce(self, task: Produce, *, timeout: float = 600) -> dict[str, Any]:
        """Enqueue and wait for the end; the answer has `began` and `ended`."""
        program = self.producer(task)
        program.go()
        return self.produced(program, timeout=timeout)

    def producer(self, task: Produce) -> Program:
        """Start a producer that is ready to go."""
        program = self._start("produce", produce=task)
        program.prepared()
        return program

    def produced(self, program: Program, *, timeout: float = 600) -> dict[str, Any]:
        """Wait for a producer's end."""
        answer = program.answer(timeout)
        self._forget(program)
        return answer

    def consumers(self, task: Consume, processes: int = 1) -> list[Program]:
        """Start consumers that are ready to go."""
        started = [self._start("consume", consume=task) for _ in range(processes)]
        for program in started:
            program.prepared()
        return started

    def left(self) -> int:
        """How many are not finished."""
        row = self._looker.execute(self.system.left.encode()).fetchone()
        return int(row[0]) if row else 0

    def kept(self) -> int | None:
        """Bytes of what the system keeps of finished ones, where it is known how to ask."""
        if self.system.kept is None:
            return None
        row = self._looker.execute(self.system.kept.encode()).fetchone()
        return int(row[0]) if row else None

    def wait_done(self, expected: int, already: int = 0) -> tuple[int, bool]:
        """Wait until so many have been run and everything is finished; stop when it takes too long.

        Returns:
            The time of the end, and whether it was stopped.
        """
        return self.wait_done_beside(expected, already, 0)

    def wait_empty(self, until: float, least: int = 0) -> tuple[int, bool]:
        """Wait until no more than so many are unfinished."""
        while self.left() > least:
            self._check()
            if time.monotonic() > until:
                return time.monotonic_ns(), True
            time.sleep(_LOOK / 2)
        return time.monotonic_ns(), False

    def wait_done_beside(self, expected: int, already: int, beside: int) -> tuple[int, bool]:
        """As `wait_done`, where so many others stay unfinished."""
        until = time.monotonic() + self.cap
        while journal.count(self.journal) - already < expected:
            self._check()
            if time.monotonic() > until:
                return time.monotonic_ns(), True
            time.sleep(_LOOK)
        return self.wait_empty(until, beside)

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is so; false if it takes too long."""
        until = time.monotonic() + seconds
        while not condition():
            self._check()
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK)
        return True

    @contextlib.contextmanager
    def snapshot(self, held: bool) -> Iterator[None]:
        """Hold a snapshot open for the length of a block, or do not."""
        if not held:
            yield
            return
        with self.ground.connect(self._dbname, name="pgfifo bench holder") as holder:
            holder.execute("begin isolation level repeatable read")
            holder.execute("select count(*) from pg_class")
            yield
            holder.execute("rollback")

    def meter(self) -> "_Meter":
        """Read all counters."""
        row = self._observer.execute(_READ).fetchone()
        calls = self._observer.execute(_CALLS, [self._dbname]).fetchone() if self._counts else None
        client = self._ended_cpu + sum(program.cpu() for program in self._programs)
        server = server_cpu(self._postmaster) if self._postmaster else None
        assert row is not None
        return _Meter(float(row[0]), float(row[1]), float(calls[0]) if calls else None, server, client)

    def outcome(self, before: "_Meter", done: int, seconds: float) -> Outcome:
        """What was used since a reading."""
        after = self.meter()
        peaks = [program.peak() for program in self._programs]
        return Outcome(
            value=done / seconds if seconds > 0 else 0.0,
            done=done,
            seconds=seconds,
            commits=after.xids - before.xids,
            wal=after.wal - before.wal,
            statements=None
            if after.calls is None or before.calls is None
            else max(0.0, after.calls - before.calls),
            server_cpu=None
            if after.server_cpu is None or before.server_cpu is None
            else after.server_cpu - before.server_cpu,
            client_cpu=after.client_cpu - before.client_cpu,
            memory=sum(peaks) if peaks else None,
        )

    def of_runs(
        self, before: "_Meter", runs: Sequence[Run], ended: int, keys: int, limit: int, *, stopped: bool
    ) -> Outcome:
        """What runs came to, from the first one's beginning to the last finish, judged."""
        finished = sum(run.state == DONE for run in runs)
        began = min((run.begin for run in runs), default=ended - 1)
        outcome = self.outcome(before, max(1, finished), (ended - began) / 1e9)
        if not finished:
            outcome.value = 0.0
        outcome.stopped = stopped
        self.judge(outcome, runs, keys, limit)
        return outcome

    def judge(
        self,
        outcome: Outcome,
        runs: Sequence[Run],
        keys: int,
        limit: int = 1,
        *,
        late: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """Say what the journal tells about order and limits. `late` names what joined its line later."""
        outcome.repeated = journal.repeated(runs)
        if not self.system.orders:
            return
        outcome.limit = limit
        outcome.violations = journal.order_violations(
            [run for run in runs if not late(run.number)], lambda number: number % keys, limit
        )
        outcome.at_once = journal.most_at_once(runs, lambda number: number % keys)

    def runs(self) -> list[Run]:
        """What has been run until now."""
        return journal.read(self.journal)

    def _start(self, role: str, *, produce: Produce | None = None, consume: Consume | None = None) -> Program:
        errors = self._folder / f"errors-{next(self._numbers)}"
        program = Program(self.system, role, self.dsn, errors, produce=produce, consume=consume)
        self._programs.append(program)
        return program

    def _forget(self, program: Program) -> None:
        self._ended_cpu += program.cpu()
        program.end()
        self._programs.remove(program)

    def _check(self) -> None:
        for program in self._programs:
            if not program.alive:
                program.answer(0.1)  # raises what it said


def url(dsn: str, dbname: str) -> str:
    """The address of a database in the form that every driver understands, also that of a socket."""
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None}
    user, password = parts.pop("user", ""), parts.pop("password", "")
    parts.pop("dbname", None)
    who = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    where = urlencode(parts, quote_via=quote, safe="")
    return f"postgresql://{who}{'@' if who else ''}/{quote(dbname, safe='')}?{where}"


def _in_order(system: System, task: Produce) -> Produce:
    """How a system is filled quickly with the order of each key kept."""
    if task.chunk:
        return task
    chunk = system.fill if task.ordered else 1000
    # One by one, several connections may share the work where each key stays with one of them.
    connections = 1
    if chunk == 1 and not task.part:
        connections = next(n for n in (8, 5, 4, 2, 1) if task.keys % n == 0)
    apart = system.apart if task.keys <= 10 and task.ordered else 0
    return dataclasses.replace(task, chunk=chunk, connections=connections, apart=apart)


@dataclass
class _Template:
    """A database that trials' are copies of."""

    name: str
    size: int
    """Bytes."""
    stack: contextlib.ExitStack


class Trials:
    """Trials on a server.

    Each system is installed once, and filled once with what a case lets wait; each trial has a copy of that.
    """

    def __init__(self, ground: Ground, cap: float) -> None:
        self.cap = cap
        """Seconds after which a trial is stopped."""
        self._ground = ground
        self._installed: dict[str, _Template] = {}
        self._filled: dict[object, _Template] = {}
        self._numbers = itertools.count(1)

    def __enter__(self) -> "Trials":
        return self

    def __exit__(self, *_: object) -> None:
        for template in (*self._installed.values(), *self._filled.values()):
            template.stack.close()

    @contextlib.contextmanager
    def trial(self, system: System, waiting: Sequence[Produce] = ()) -> Iterator[Trial]:
        """Make a database with a system in it, where this waits, for the length of a block."""
        template = self._installation(system)
        if waiting:
            template = self._with(system, tuple(waiting), template)
        with (
            self._ground.bare_database("trial", template.name) as dbname,
            self._opened(system, dbname) as made,
        ):
            yield made

    def _installation(self, system: System) -> _Template:
        found = self._installed.get(system.program)
        if found is None:
            found = self._make(system, "template1", lambda made: made.setup())
            self._installed[system.program] = found
        return found

    def _with(self, system: System, waiting: tuple[Produce, ...], installed: _Template) -> _Template:
        # What of a setting concerns producers: the same for most settings of a system.
        concerns = {name: system.options.get(name) for name in ("floor", "groups", "queue")}
        key = (system.program, system.is_pgbench, json.dumps(concerns), waiting)
        found = self._filled.pop(key, None)
        if found is None:
            found = self._make(system, installed.name, lambda made: made.fill(*waiting, careless=True))
        self._filled[key] = found
        while len(self._filled) > 1 and sum(kept.size for kept in self._filled.values()) > KEPT:
            self._filled.pop(next(iter(self._filled))).stack.close()
        return found

    def _make(self, system: System, template: str, do: Callable[[Trial], None]) -> _Template:
        purpose = f"{system.program.partition('.')[0]}_{next(self._numbers)}"
        with contextlib.ExitStack() as kept:
            name = kept.enter_context(self._ground.bare_database(purpose, template))
            with self._opened(system, name) as made:
                do(made)
            with self._ground.connect() as conn:
                row = conn.execute("select pg_database_size(%s)", [name]).fetchone()
            return _Template(name, int(row[0]) if row else 0, kept.pop_all())

    @contextlib.contextmanager
    def _opened(self, system: System, dbname: str) -> Iterator[Trial]:
        with tempfile.TemporaryDirectory(prefix="pgfifo-bench-") as folder:
            # pgfifo is to come to its end: it is what this is about.
            cap = max(self.cap, 60.0) if system.kind == OURS else self.cap
            made = Trial(self._ground, system, dbname, Path(folder), cap)
            try:
                yield made
            finally:
                made.close()


def drained(
    made: Trial, task: Consume, expected: int, keys: int, *, processes: int = 1, failures: int = 0
) -> tuple[Outcome, list[Run]]:
    """Run what is enqueued, and tell the rate from the first handler's beginning to the last finish."""
    consumers = made.consumers(task, processes)
    kept = made.kept()
    before = made.meter()
    for consumer in consumers:
        consumer.go()
    made.wait_for(lambda: journal.count(made.journal) > 0, made.cap)  # some take seconds to start
    ended, stopped = made.wait_done(expected + failures)
    runs = made.runs()
    outcome = made.of_runs(before, runs, ended, keys, task.limit, stopped=stopped)
    if kept is not None and outcome.value:
        outcome.more["kept"] = ((made.kept() or kept) - kept) / outcome.done
    return outcome, runs


def drained_warm(made: Trial, task: Consume, count: int, keys: int, processes: int) -> Outcome:
    """As `drained`, by consumers that have connected and prepared all they need before it counts.

    They run some until each has run one; stand still while the queue is filled; and go on all at once.
    """
    some, already = Produce(50 * processes, keys=keys, chunk=0), 0

    def more() -> int:
        made.produce(_in_order(made.system, dataclasses.replace(some, first=already)))
        return already + some.count

    already = more()
    consumers = made.consumers(task, processes)
    for consumer in consumers:
        consumer.go()
    made.wait_done(already)
    until = time.monotonic() + made.cap
    while time.monotonic() < until and len({run.process for run in made.runs()}) < processes:
        already = more()
        made.wait_done(already)
    for consumer in consumers:
        consumer.stop()
    made.fill(Produce(count, keys=keys, first=already, chunk=0))
    before = made.meter()
    for consumer in consumers:
        consumer.go_on()
    ended, stopped = made.wait_done(count, already)
    runs = [run for run in made.runs() if run.number >= already]
    return made.of_runs(before, runs, ended, keys, task.limit, stopped=stopped)
