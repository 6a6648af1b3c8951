"""A soak from its beginning to its verdict."""

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

import pgfifo
from bench.engine import WORK, Worker, succeeded
from bench.ground import Ground, machine
from bench.soak import load
from pgfifo.verify.children import Children, Interrupts

# What holds what has ended, for as long as retention says. The rest is the queue itself.
KEPT = ("history", "audit", "_minutes", "requests")

_SIZES = """
select c.relname, pg_table_size(c.oid), pg_indexes_size(c.oid),
  coalesce(s.n_dead_tup, 0), coalesce(s.n_live_tup, 0)
from pg_class c left join pg_stat_all_tables s on s.relid = c.oid
where c.relnamespace = 'pgfifo'::regnamespace and c.relkind = 'r'
"""


@dataclass(frozen=True)
class Settings:
    """How much happens.

    Attributes:
        duration: for how many seconds there is load.
        every: seconds from one sample to the next.
        rate: calls of each producer a second.
        burst: seconds from the end of a burst to the next one.
        mortality: seconds that a worker lives until it is killed, about.
        round: for how many seconds each verification runs.
        verify: more words for `pgfifo verify`.
        checks: seconds from one `check()` to the next.
    """

    duration: float = 1800.0
    every: float = 5.0
    rate: float = 8.0
    burst: float = 15.0
    mortality: float = 20.0
    round: float = 240.0
    verify: tuple[str, ...] = ("--producers", "3", "--workers", "3", "--rate", "6", "--lease", "5s")
    checks: float = 30.0

    @classmethod
    def lasting(cls, seconds: float, rate: float) -> "Settings":
        """Return those of a run of some length; in a short one everything happens all the same."""
        return cls(
            duration=seconds,
            rate=rate,
            every=min(5.0, seconds / 20),
            burst=min(15.0, seconds / 8),
            mortality=min(20.0, seconds / 4),
            round=min(240.0, seconds / 2),
            checks=min(30.0, seconds / 4),
        )


@dataclass
class Sample:
    """What was seen at one moment."""

    at: float
    enqueued: int
    completed: int
    waiting: int
    active: int
    memory: dict[str, int]
    """Resident bytes of each process that lives as long as the soak."""
    server: int
    """Resident bytes that the server's processes have to themselves, together."""
    tables: dict[str, tuple[int, int, int, int]]
    """Of each table: bytes, bytes of its indexes, dead rows, living rows. History in one."""
    probe: int
    """Buffers that finishing ten and claiming ten touched."""
    load: float


@dataclass
class Verdict:
    """One thing that was to stay as it is, and whether it did."""

    name: str
    held: bool | None
    """None: the run was too short to tell."""
    seen: str

    @property
    def said(self) -> str:
        """In two words at most."""
        return "too short" if self.held is None else "held" if self.held else "NOT HELD"


@dataclass
class Soak:
    """A run, and what came of it."""

    settings: Settings
    machine: dict[str, Any]
    samples: list[Sample] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    bursts: list[dict[str, float]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    checks: int = 0
    kills: int = 0
    slots: dict[str, int] = field(default_factory=dict)
    operator: dict[str, int] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    drained: bool = False
    vacuumed: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    seconds: float = 0.0
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether nothing did not hold."""
        return all(each.held is not False for each in self.verdicts)


def soak(ground: Ground, settings: Settings, say: Callable[[str], None]) -> Soak:
    """Put load on a database of its own for a time, do harm, look on, and judge.

    Args:
        ground: the server.
        settings: how much happens.
        say: told what happens.

    Raises:
        BrokenError: one of its processes has ended with an error.
    """
    result = Soak(settings, machine(ground))
    began = time.monotonic()
    interrupts = Interrupts()
    with ExitStack() as stack:
        stack.enter_context(interrupts.heard())
        db = stack.enter_context(ground.database("soak"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgfifo-soak-")))
        dsn = ground.dsn_of(db)
        fifo = stack.enter_context(pgfifo.Client(dsn))
        load.prepare(fifo)
        environment = {**os.environ, "PGFIFO_DSN": dsn, "SOAK_FOLDER": str(folder)}
        children = Children(folder, environment, interrupts)
        stack.callback(children.end)
        conn = stack.enter_context(ground.connect(db))
        _Run(result, fifo, conn, folder, children, say).tell()
    result.seconds = time.monotonic() - began
    result.verdicts = judge(result)
    return result


class _Run:
    """One run."""

    def __init__(
        self,
        result: Soak,
        fifo: pgfifo.Client,
        conn: psycopg.Connection[Any],
        folder: Path,
        children: Children,
        say: Callable[[str], None],
    ) -> None:
        self._result = result
        self._settings = result.settings
        self._fifo = fifo
        self._conn = conn
        self._folder = folder
        self._children = children
        self._say = say
        self._chance = random.Random("soak")
        self._probe = _Probe(conn)
        self._lasting: dict[str, int] = {}
        self._mortal = ""
        self._verification: tuple[float, subprocess.Popen[bytes]] | None = None
        self._begin = time.monotonic()

    def tell(self) -> None:
        """Let it happen."""
        self._begin_all()
        settings = self._settings
        until = time.monotonic() + settings.duration
        due = dict.fromkeys(("sample", "kill", "check", "verify"), time.monotonic())
        due["kill"] += settings.mortality
        due["check"] += settings.checks
        while (now := time.monotonic()) < until:
            self._children.refuse_dead()
            self._round_over()
            if now >= due["sample"]:
                due["sample"] = now + settings.every
                self._sample()
            if now >= due["kill"]:
                due["kill"] = now + settings.mortality * self._chance.uniform(0.5, 1.5)
                self._kill()
            if now >= due["check"]:
                due["check"] = now + settings.checks
                self._check()
            if self._verification is None and until - now > settings.round / 2:
                self._verify(min(settings.round, until - now))
            time.sleep(0.1)
        self._sample()
        self._end_all()

    # Processes

    def _start(self, name: str, *words: str) -> None:
        process = self._children.start(name, "-m", "bench.soak.processes", words[0], name, *words[1:])
        self._lasting[name] = process.pid

    def _begin_all(self) -> None:
        settings = self._settings
        for name in ("worker-1", "worker-2"):
            self._start(name, "work")
        for name in ("producer-1", "producer-2"):
            self._start(name, "produce", str(settings.rate))
        self._start("slots", "slots")
        self._start("operator", "operate")
        self._start("bursts", "burst", str(settings.burst))
        self._new_mortal()
        self._say(
            f"load for {settings.duration:g} s; a worker is killed about every {settings.mortality:g} s"
        )

    def _new_mortal(self) -> None:
        self._mortal = f"mortal-{self._result.kills + 1}"
        self._children.start(self._mortal, "-m", "bench.soak.processes", "work", self._mortal)

    def _kill(self) -> None:
        self._children.expected.add(self._mortal)
        process = self._children.all.pop(self._mortal)
        process.kill()
        process.wait()
        if process.stdin:
            process.stdin.close()
        self._result.kills += 1
        self._new_mortal()

    def _verify(self, seconds: float) -> None:
        """Begin another verification: its actions, processes and harm come on top, and go when it is over."""
        name = f"verify-{len(self._result.rounds) + 1}"
        with (
            (self._folder / f"{name}.json").open("wb") as out,
            (self._folder / f"{name}.err").open("wb") as err,
        ):
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pgfifo", "verify", "--json", "--yes", "--chaos", "kill,pause"),
                    *("--duration", f"{seconds:.0f}s", "--seed", name, *self._settings.verify),
                ],
                env=os.environ | {"PGFIFO_DSN": self._fifo_dsn()},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._verification = (time.monotonic(), process)
        self._children.all[name] = process
        self._children.expected.add(name)

    def _fifo_dsn(self) -> str:
        return self._conn.info.dsn

    def _round_over(self, *, wait: float = 0.0) -> None:
        if self._verification is None:
            return
        began, process = self._verification
        if wait:
            process.wait(wait)
        if process.poll() is None:
            return
        self._verification = None
        name = f"verify-{len(self._result.rounds) + 1}"
        text = (self._folder / f"{name}.json").read_text()
        if not text:
            said = (self._folder / f"{name}.err").read_text().strip().splitlines()[-5:]
            self._result.findings.append(f"{name} ended with {process.returncode}: {' / '.join(said)}")
            text = '{"held": false, "done": {}, "promises": []}'
        report = json.loads(text)
        report["began"] = began - self._begin
        self._result.rounds.append(report)
        self._say(f"{name}: {'held' if report['held'] else 'NOT HELD'}")

    def _end_all(self) -> None:
        self._say("no more load; what is left is run")
        self._round_over(wait=self._settings.round + 300)
        lasting = ["producer-1", "producer-2", "slots", "operator", "bursts"]
        self._children.expected.update(lasting)
        self._children.stop(*lasting)
        for action in load.POLICIES:
            self._fifo.set_policy(action, max_concurrent=20, rate="unlimited")
        self._result.drained = self._drain()
        self._check()
        workers = ["worker-1", "worker-2", self._mortal]
        self._children.expected.update(workers)
        self._children.stop(*workers)
        self._probe.end()
        stats = self._ours()
        self._result.totals = {
            name: sum(getattr(each, f"total_{name}") for each in stats)
            for name in ("enqueued", "succeeded", "failed", "cancelled", "expired")
        }
        self._conn.execute("vacuum")
        self._conn.execute(
            "select pg_stat_force_next_flush()" if self._conn.info.server_version >= 150000 else "select 1"
        )
        self._result.vacuumed = _tables(self._conn)
        for who, key in (("slots", "slots"), ("operator", "operator"), ("bursts", "bursts")):
            for line in _journal(self._folder / f"{who}.jsonl"):
                self._keep(key, line)

    def _keep(self, key: str, line: dict[str, Any]) -> None:
        result = self._result
        if key == "slots":
            result.slots[line["said"]] = result.slots.get(line["said"], 0) + 1
        elif key == "operator":
            result.operator = {name: line[name] for name in ("calls", "events")}
        else:
            result.bursts.append(
                {name: line[name] for name in ("enqueue", "drain")} | {"at": line["at"] - self._begin}
            )

    def _drain(self) -> bool:
        """Wait until everything has ended, or nothing has for a minute."""
        moved, before = time.monotonic(), -1
        while time.monotonic() < moved + 60:
            self._children.refuse_dead()
            stats = self._ours()
            left = {
                each.action: n
                for each in stats
                if (n := each.queue_length + each.active_count + each.delayed_count)
            }
            if not left:
                return True
            finished = sum(each.total_completed for each in stats)
            if finished != before:
                moved, before = time.monotonic(), finished
            time.sleep(0.2)
        self._result.findings.append(f"not run in the end: {left}")
        return False

    # Looking

    def _ours(self) -> list[pgfifo.ActionStats]:
        return [
            each
            for each in self._fifo.stats()
            if each.action.startswith(f"{load.PACK}.") and each.action != load.PROBE
        ]

    def _check(self) -> None:
        found = [each for each in self._fifo.check() if each.severity == "violation"]
        self._result.checks += 1
        self._result.findings += [f"{each.kind}: {each.lane}: {each.detail}" for each in found]
        for each in found:
            self._say(f"VIOLATION {each}")

    def _sample(self) -> None:
        stats = self._ours()
        sample = Sample(
            at=time.monotonic() - self._begin,
            enqueued=sum(each.total_enqueued for each in stats),
            completed=sum(each.total_completed for each in stats),
            waiting=sum(each.queue_length + each.delayed_count for each in stats),
            active=sum(each.active_count for each in stats),
            memory={name: _resident(pid) for name, pid in self._lasting.items()},
            server=_server_memory(self._conn),
            tables=_tables(self._conn),
            probe=self._probe.touched(),
            load=os.getloadavg()[0],
        )
        self._result.samples.append(sample)
        if len(self._result.samples) % 12 == 1:
            self._say(
                f"{sample.at:6.0f} s  {sample.enqueued:9,} enqueued  {sample.completed:9,} finished "
                f" {sample.waiting:6,} waiting  probe {sample.probe:5,} buffers"
            )


class _Probe:
    """A worker that claims ten and finishes ten, and looks at what that touches: no clock is asked."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self._worker = Worker(conn, load.PROBE)
        self._held: Any = None

    def touched(self) -> int:
        lanes = [f'{{"lane": {n}}}' for n in range(10)]
        self._conn.execute("select count(*) from pgfifo.enqueue_many(%s, %s::jsonb[])", [load.PROBE, lanes])
        row = self._conn.execute(
            f"explain (analyze, buffers, timing off, format json) {WORK}",
            self._worker.arguments(10, self._held),
        ).fetchone()
        assert row is not None
        plan = row[0][0]["Plan"]
        self._held = succeeded(
            self._conn.execute(
                "select 'start', id, attempt from pgfifo.runs where worker_id = %s", [self._worker.id]
            ).fetchall()
        )
        return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])

    def end(self) -> None:
        """Hand back what is left."""
        self._worker.work(0, self._held)
        self._conn.execute("select pgfifo.worker_stop(%s)", [self._worker.id])


def _tables(conn: psycopg.Connection[Any]) -> dict[str, tuple[int, int, int, int]]:
    tables: dict[str, tuple[int, int, int, int]] = {}
    for name, *numbers in conn.execute(_SIZES).fetchall():
        # The history is one table a day.
        known = "history" if name.startswith("history") else name
        before = tables.get(known, (0, 0, 0, 0))
        tables[known] = tuple(a + b for a, b in zip(before, numbers, strict=True))
    return tables


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _server_memory(conn: psycopg.Connection[Any]) -> int:
    """What the sessions of this database have in memory that is theirs alone; 0 where nobody tells."""
    total = 0
    for (pid,) in conn.execute("select pid from pg_stat_activity where datname = current_database()"):
        try:
            fields = Path(f"/proc/{pid}/statm").read_text().split()
        except OSError:
            continue
        total += (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
    return total


def _journal(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text().splitlines():
            yield json.loads(line)


# The verdict


def thirds(values: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the second and the last third; the first is warming up."""
    size = len(values) // 3
    if not size:
        return (statistics.median(values), values[-1]) if values else (0.0, 0.0)
    return statistics.median(values[size : 2 * size]), statistics.median(values[-size:])


def per_second(samples: Sequence[Sample]) -> tuple[float, float]:
    """Return how many executions ended in a second, in the second and the last third."""
    size = max(1, len(samples) // 3)
    first, middle, last = samples[size], samples[min(2 * size, len(samples) - 2)], samples[-1]
    return (
        (middle.completed - first.completed) / max(0.1, middle.at - first.at),
        (last.completed - middle.completed) / max(0.1, last.at - middle.at),
    )


def rates(samples: Sequence[Sample]) -> list[float]:
    """Return how many executions ended in a second, from each sample to the next."""
    return [
        (after.completed - before.completed) / (after.at - before.at)
        for before, after in itertools.pairwise(samples)
    ]


def queue_bytes(tables: Mapping[str, tuple[int, int, int, int]]) -> float:
    """Return the bytes of tables and indexes of the queue itself."""
    return sum(size + indexes for name, (size, indexes, _, _) in tables.items() if name not in KEPT)


def judge(result: Soak) -> list[Verdict]:
    """Say what stayed as it was."""
    samples = result.samples
    verdicts = [
        Verdict(
            "promises",
            bool(result.rounds) and all(each["held"] for each in result.rounds),
            f"{len(result.rounds)} verifications with kills and pauses, "
            f"{sum(each['done'].get('starts', 0) for each in result.rounds):,} starts judged",
        ),
        Verdict(
            "checks", not result.findings, f"{result.checks} times check(): {result.findings or 'clean'}"
        ),
        Verdict(
            "slots of programs",
            set(result.slots) <= {"alone", "timeout"} and result.slots.get("alone", 0) > 0,
            ", ".join(f"{count:,} {said}" for said, count in sorted(result.slots.items())) or "none",
        ),
        Verdict(
            "one outcome each",
            result.drained
            and result.totals["enqueued"] == sum(result.totals.values()) - result.totals["enqueued"],
            ", ".join(f"{count:,} {name}" for name, count in result.totals.items()),
        ),
    ]
    verdicts += _trends(result) if len(samples) > 5 else []
    left = {name: rows[2] for name, rows in result.vacuumed.items() if rows[2] > 100}
    size = queue_bytes(result.vacuumed) / 1e6
    verdicts.append(
        Verdict("dead rows after a vacuum", not left, f"{left or 'none'}; the queue has {size:.1f} MB")
    )
    return verdicts


def _trends(result: Soak) -> list[Verdict]:
    """Compare the second third with the last; the first is warming up."""
    samples = result.samples
    verdicts = []
    before, after = per_second(samples)
    waiting = thirds([each.waiting for each in samples])
    verdicts.append(
        Verdict(
            "throughput",
            after >= 0.7 * before and waiting[1] <= 3 * waiting[0] + 500,
            f"{before:.0f} executions ended in a second in the second third, {after:.0f} in the last; "
            f"{waiting[0]:,.0f} and {waiting[1]:,.0f} waiting or delayed",
        )
    )
    before, after = thirds([each["drain"] for each in result.bursts])
    verdicts.append(
        Verdict(
            "bursts",
            after >= 0.6 * before > 0,
            f"{len(result.bursts)} of them, run at {before:,.0f}/s in the second third,"
            f" {after:,.0f}/s in the last",
        )
    )
    before, after = thirds([each.probe for each in samples])
    verdicts.append(
        Verdict(
            "cost of a claim",
            after <= 1.3 * before + 100,
            f"finishing ten and claiming ten touched {before:,.0f} buffers in the second third,"
            f" {after:,.0f} in the last",
        )
    )
    for name in samples[-1].memory:
        before, after = thirds([each.memory[name] for each in samples if each.memory[name]])
        verdicts.append(
            Verdict(
                f"memory of {name}",
                after <= 1.1 * before + 4e6,
                f"{before / 1e6:.1f} MB in the second third, {after / 1e6:.1f} MB in the last",
            )
        )
    before, after = thirds([queue_bytes(each.tables) for each in samples])
    dead = thirds(
        [sum(rows[2] for name, rows in each.tables.items() if name not in KEPT) for each in samples]
    )
    verdicts.append(
        Verdict(
            "tables and indexes of the queue",
            after <= 1.25 * before + 4e6 and dead[1] <= 2 * dead[0] + 20_000,
            f"{before / 1e6:.1f} MB in the second third, {after / 1e6:.1f} MB in the last; "
            f"{dead[0]:,.0f} and {dead[1]:,.0f} dead rows",
        )
    )
    before, after = thirds([sum(each.tables["history"][:2]) for each in samples])
    verdicts.append(
        Verdict(
            "the history, kept for 30 s",
            after <= 1.5 * before + 16e6,
            f"{before / 1e6:.1f} MB in the second third, {after / 1e6:.1f} MB in the last",
        )
    )
    if result.settings.duration < _TELLING:
        return [Verdict(each.name, None, each.seen) for each in verdicts]
    return verdicts


_TELLING = 300.0
"""Seconds from which on a trend is one."""
