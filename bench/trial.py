"""One trial: a database of its own, a system in it, what it was made to do, and what that cost."""

import contextlib
import itertools
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
from bench.systems import System

Connection = psycopg.Connection[Any]

_LOOK = 0.004
"""Seconds between looks at the journal."""

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

    def fill(self, task: Produce, *, careless: bool = False) -> None:
        """Enqueue without measuring, then let the planner know, as autovacuum would in time."""
        with self.ground.careless() if careless else contextlib.nullcontext():
            self.produce(task, timeout=1800)
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


class Trials:
    """Trials on a server. Each system is installed once, in a database that its trials' are copies of."""

    def __init__(self, ground: Ground, cap: float) -> None:
        self._ground = ground
        self._cap = cap
        self._installed: dict[str, str] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Trials":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def trial(self, system: System) -> Iterator[Trial]:
        """Make a database with a system in it for the length of a block."""
        template = self._installed.get(system.program)
        if template is None:
            purpose = system.program.partition(".")[0]
            with contextlib.ExitStack() as kept:
                template = kept.enter_context(self._ground.bare_database(purpose))
                with self._opened(system, template) as installing:
                    installing.setup()
                self._installed[system.program] = template
                self._stack.push(kept.pop_all())
        with (
            self._ground.bare_database("trial", template) as dbname,
            self._opened(system, dbname) as made,
        ):
            yield made

    @contextlib.contextmanager
    def _opened(self, system: System, dbname: str) -> Iterator[Trial]:
        with tempfile.TemporaryDirectory(prefix="pgfifo-bench-") as folder:
            made = Trial(self._ground, system, dbname, Path(folder), self._cap)
            try:
                yield made
            finally:
                made.close()


def drained(
    made: Trial, task: Consume, expected: int, keys: int, *, processes: int = 1, failures: int = 0
) -> tuple[Outcome, list[Run]]:
    """Run what is enqueued, and tell the rate from the first handler's beginning to the last finish."""
    consumers = made.consumers(task, processes)
    before = made.meter()
    for consumer in consumers:
        consumer.go()
    ended, stopped = made.wait_done(expected + failures)
    runs = made.runs()
    finished = [run for run in runs if run.state == DONE]
    began = min((run.begin for run in runs), default=ended - 1)
    outcome = made.outcome(before, max(1, len(finished)), (ended - began) / 1e9)
    if not finished:
        outcome.value = 0.0
    outcome.stopped = stopped
    made.judge(outcome, runs, keys, task.limit)
    return outcome, runs
