"""What happens in the demo, one after the other."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg

from pgfifo._words import count
from pgfifo.client import Client
from pgfifo.demo import sabotage
from pgfifo.demo.events import DELIVER, INDEX, LIMITS
from pgfifo.demo.handlers import actions
from pgfifo.demo.journal import clock, read_lines, read_marks
from pgfifo.demo.producer import STORE
from pgfifo.demo.screen import Lane, Screen, Snapshot, Worker
from pgfifo.demo.verdict import Check, Evidence, Outcome, judge, runs_of
from pgfifo.embedded import PrivateServer, remove_abandoned
from pgfifo.processes import SUPERVISED

KILLED = "slow"
"""The worker that is killed."""

_TICK = 0.15
_WORTH_IT = 3
_OUTCOMES = "select id, action, group_text as lane, state, attempt from pgfifo.executions"
_BUSIEST = """
    select action, pgfifo.format_group(group_text), active_count, max_concurrent, queue_length
    from pgfifo.lane_stats where queue_length + active_count > 0
    order by queue_length desc, active_count desc, action, group_text limit %s
"""
_DONE_BY = "select worker_id, count(*) from pgfifo.executions where state = 'succeeded' group by worker_id"
_HELD = "select id from pgfifo.executions where worker_id = %s and state = 'running'"
_LEFT = "select count(*) from pg_stat_activity where application_name = %s"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much happens.

    Attributes:
        events: how many are enqueued.
        producers: how many processes enqueue them.
        paces: the workers, with the seconds that each takes for an execution on average.
        concurrency: how many executions a worker runs at once.
        kill_at: which part is done when a worker is killed.
        stalled: seconds without any progress after which it is over.
    """

    events: int = 2000
    producers: int = 4
    paces: dict[str, float] = field(default_factory=lambda: {"fast": 0.03, "medium": 0.05, KILLED: 0.12})
    concurrency: int = 8
    kill_at: float = 0.4
    stalled: float = 10.0


class BrokenError(Exception):
    """The demo itself does not work here; the message says what."""


@dataclass(slots=True)
class _Kill:
    """What is known of the kill.

    Attributes:
        gone: when the worker's process had ended, by the server's clock.
        held: the executions that were its own then.
    """

    gone: float
    held: list[int]


class _Interrupts:
    """SIGINT and SIGTERM as KeyboardInterrupt, but not while something is begun and not noted down yet."""

    def __init__(self) -> None:
        self._waiting = False
        self._pending = False

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._waiting:
            self._pending = True
        else:
            raise KeyboardInterrupt

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Hear them, for the length of a block."""
        before = {
            number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let them wait until the end of a block: something begins in it, and is noted down for its end."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
            if self._pending:
                self._pending = False
                raise KeyboardInterrupt


def run(screen: Screen, scale: Scale | None = None, sabotaged: str | None = None) -> list[Check]:
    """Run the demo on a server of its own, and judge it. Nothing is left behind, however it ends.

    Args:
        screen: where to show it.
        scale: how much happens. Defaults to the usual.
        sabotaged: the safeguard to take out of the SQL first, a key of `sabotage.SABOTAGES`.

    Returns:
        The checks that were made.

    Raises:
        BrokenError: it does not work here.
        EmbeddedError: there is no PostgreSQL to be found, or it does not start.
        KeyboardInterrupt: interrupted.
    """
    remove_abandoned()
    with ExitStack() as stack:
        interrupts = _Interrupts()
        stack.enter_context(interrupts.heard())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgfifo-demo-")))
        screen.say("Starting a PostgreSQL of its own, with its data in a temporary folder …")
        with interrupts.waiting():
            server = stack.enter_context(PrivateServer({"cluster_name": "pgfifo-demo"}))
        conn = stack.enter_context(psycopg.connect(server.dsn(), autocommit=True))
        with Client(server.dsn()) as fifo:
            fifo.install()
            fifo.declare(actions)
        conn.execute(STORE)
        screen.say(
            f"PostgreSQL {conn.info.parameter_status('server_version')} runs; pgfifo's schema is installed."
        )
        if sabotaged:
            screen.say(f"SABOTAGE: {sabotage.apply(conn, sabotaged)}.")
        return _Story(screen, scale or Scale(), server.dsn(), folder, conn, stack, interrupts).tell()


class _Story:
    """One run."""

    def __init__(
        self,
        screen: Screen,
        scale: Scale,
        dsn: str,
        folder: Path,
        conn: psycopg.Connection[Any],
        stack: ExitStack,
        interrupts: _Interrupts,
    ) -> None:
        self._screen = screen
        self._scale = scale
        self._folder = folder
        self._conn = conn
        self._stack = stack
        self._interrupts = interrupts
        self._fifo = stack.enter_context(Client(dsn))
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        self._environment = ours | {
            "PGFIFO_DSN": dsn,
            "PGFIFO_DEMO_FOLDER": str(folder),
            SUPERVISED: "1",  # whoever is started here ends when this process does
        }
        self._producers: dict[str, subprocess.Popen[bytes]] = {}
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._ids: dict[str, int] = {}
        self._kill: _Kill | None = None
        self._begin = 0.0

    def tell(self) -> list[Check]:
        """Let it happen, and judge it."""
        scale, screen = self._scale, self._screen
        for name, pace in scale.paces.items():
            self._start_worker(name, pace)
        self._await_workers()
        screen.say(
            f"{len(scale.paces)} worker processes are ready: {', '.join(scale.paces)}. "
            f"{scale.producers} producers begin to enqueue {scale.events:,} webhook events "
            f"for 40 customers: {DELIVER} (1 slot per customer) and {INDEX} (3)."
        )
        self._begin = time.monotonic()
        for number in range(scale.producers):
            share = scale.events // scale.producers + (number < scale.events % scale.producers)
            self._start_producer(number + 1, share)
        with screen.live():
            self._watch()
        screen.say("The workers stop; the journals are compared with pgfifo's history.")
        for process in self._workers.values():
            process.terminate()
        for process in self._workers.values():
            process.wait(timeout=40)
        return judge(self._evidence())

    def _watch(self) -> None:
        """Follow it until everything is done, or nothing moves any more."""
        scale = self._scale
        moved, before, last = time.monotonic(), (-1, -1), (time.monotonic(), 0)
        rate = 0.0
        while True:
            self._refuse_dead()
            stats = self._fifo.stats()
            enqueued = sum(each.total_enqueued for each in stats)
            finished = sum(each.total_completed for each in stats)
            unfinished = sum(each.queue_length + each.active_count + each.delayed_count for each in stats)
            now = time.monotonic()
            if now - last[0] >= 1.0:
                rate = (finished - last[1]) / (now - last[0])
                last = (now, finished)
            self._screen.show(self._snapshot(enqueued, finished, rate))
            if self._kill is None and finished >= scale.kill_at * scale.events:
                self._kill_worker()
            produced = all(process.poll() is not None for process in self._producers.values())
            if produced and not unfinished:
                return
            if (enqueued, finished) != before:
                moved, before = now, (enqueued, finished)
            elif now - moved > scale.stalled:
                self._screen.say(
                    f"Nothing has moved for {scale.stalled:g} s: {unfinished:,} are left. That is all."
                )
                return
            time.sleep(_TICK)

    def _snapshot(self, enqueued: int, finished: int, rate: float) -> Snapshot:
        """Return how it stands now."""
        done = dict(self._conn.execute(_DONE_BY).fetchall())
        lanes = [Lane(*row) for row in self._conn.execute(_BUSIEST, [self._screen.lanes]).fetchall()]
        found = {each.id: each for each in self._fifo.workers()}
        workers = []
        for name, id_ in self._ids.items():
            killed = self._kill is not None and name == KILLED
            running = 0 if killed else found[id_].executions
            workers.append(Worker(name, "killed" if killed else "runs", running, done.get(id_, 0)))
        seconds = time.monotonic() - self._begin
        return Snapshot(seconds, self._scale.events, enqueued, finished, rate, lanes, workers)

    def _kill_worker(self) -> None:
        """Kill a worker in the middle of its work, and note what it held."""
        process, id_ = self._workers[KILLED], self._ids[KILLED]
        if len(self._held(id_)) < _WORTH_IT:
            return  # in a moment
        process.kill()
        process.wait()
        gone = clock(self._conn)
        # What it had sent may still be carried out; then its sessions end.
        deadline = time.monotonic() + 5
        while self._value(_LEFT, f"pgfifo worker {KILLED}") and time.monotonic() < deadline:
            time.sleep(0.01)
        self._kill = _Kill(gone, self._held(id_))
        held = len(self._kill.held)
        self._screen.say(f"Worker {KILLED} was killed with SIGKILL; it held {count(held, 'execution')}.")

    def _held(self, worker: int) -> list[int]:
        """Return what a worker runs now."""
        return [id_ for (id_,) in self._conn.execute(_HELD, [worker]).fetchall()]

    def _value(self, query: str, *arguments: object) -> Any:  # noqa: ANN401 - whatever it is
        """Return the one value of a query."""
        row = self._conn.execute(query, arguments).fetchone()
        return row[0] if row else None

    def _evidence(self) -> Evidence:
        """Collect what the verdict rests on."""
        enqueued: dict[str, list[int]] = {DELIVER: [], INDEX: []}
        for line in read_lines(self._folder, "producer-*.jsonl"):
            enqueued[line["action"]].append(line["id"])
        kill = self._kill or _Kill(0.0, [])
        findings = [
            f"{found.severity}: {found.kind}{f' in {found.lane}' if found.lane else ''}: {found.detail}"
            for found in self._fifo.check()
        ]
        findings += [
            f"order_violations: {each.action} {each.group_text}: {each.id} started before {each.overtaken}"
            for each in self._fifo.order_violations(limit=1000)
        ]
        return Evidence(
            enqueued=enqueued,
            limits=LIMITS,
            runs=runs_of(read_marks(self._folder), {KILLED: kill.gone} if self._kill else {}),
            outcomes=[Outcome(*row) for row in self._conn.execute(_OUTCOMES).fetchall()],
            killed=KILLED,
            held=kill.held,
            findings=findings,
        )

    def _start_producer(self, number: int, count: int) -> None:
        """Start a process that enqueues."""
        arguments = ["-m", "pgfifo.demo.producer", str(number), str(count)]
        self._producers[f"producer {number}"] = self._start(f"producer-{number}", arguments, {})

    def _start_worker(self, name: str, pace: float) -> None:
        """Start a worker, by the command that anybody would use."""
        arguments = ["-m", "pgfifo", "worker", "pgfifo.demo.handlers:actions", "--name", name]
        arguments += ["--concurrency", str(self._scale.concurrency)]
        own = {"PGFIFO_DEMO_WORKER": name, "PGFIFO_DEMO_PACE": str(pace)}
        self._workers[name] = self._start(f"worker-{name}", arguments, own)

    def _start(self, name: str, arguments: list[str], own: dict[str, str]) -> "subprocess.Popen[bytes]":
        """Start a Python process of the demo, which will not outlive it."""
        with self._interrupts.waiting(), (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=self._environment | own,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is ours
            )
            self._stack.callback(_end, process)
        return process

    def _await_workers(self) -> None:
        """Wait until all workers are registered."""
        deadline = time.monotonic() + 30
        while len(self._ids) < len(self._workers):
            self._refuse_dead()
            self._ids = {each.name: each.id for each in self._fifo.workers() if each.name in self._workers}
            if time.monotonic() > deadline:
                raise BrokenError("the workers do not come up")
            time.sleep(0.05)

    def _refuse_dead(self) -> None:
        """Notice a process that has ended by itself."""
        for name, process in (self._producers | self._workers).items():
            if process.poll() and not (name == KILLED and self._kill):
                log = (
                    self._folder / f"{'worker-' if name in self._workers else ''}{name.replace(' ', '-')}.log"
                )
                said = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise BrokenError("\n".join([f"{name} has ended with {process.returncode}:", *said]))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process, now."""
    process.kill()
    process.wait()
    if process.stdin:
        process.stdin.close()
