"""Where harm is done: a database, worker processes, producers, journals of all of them, and the verdict."""

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

import pgfifo
from pgfifo.verify.assemble import assemble
from pgfifo.verify.checker import violations
from pgfifo.verify.children import Children, Interrupts
from pgfifo.verify.history import History
from pgfifo.verify.load import LANES
from pgfifo.verify.record import record, swept
from pgfifo.verify.recorder import Producer, Recorder, now, read
from tests.faults.load import ONE, RULES, SEVERAL, YIELDING, policy
from tests.support.database import in_background, wait_for

ROOT = Path(__file__).resolve().parents[2]
LEASE = 3.0


class Ground:
    """Everything that one test of harm needs.

    Attributes:
        fifo: a client past all harm that is done to the network.
        lease: of the workers, in seconds.
    """

    def __init__(self, dsn: str, folder: Path, lease: float = LEASE) -> None:
        """Set the policies; nobody is there yet.

        Args:
            dsn: a database with pgfifo, and nothing of these actions.
            folder: where journals and logs go; empty.
            lease: of the workers, in seconds.
        """
        self.dsn, self.folder, self.lease = dsn, folder, lease
        self.fifo = pgfifo.Client(dsn)
        for action, rules in RULES.items():
            self.fifo.set_policy(action, **policy(rules))
        self.recorder = Recorder(folder, "ground")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "FAULTS_FOLDER": str(folder)}
        self.children = Children(folder, environment, Interrupts())
        with self.connected() as conn:
            self._swept = swept(conn)
        self._named = 0
        self._over = threading.Event()

    @contextlib.contextmanager
    def connected(self) -> Iterator[psycopg.Connection[Any]]:
        """An autocommit connection."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            yield conn

    def close(self) -> None:
        """End all processes."""
        self.children.end()
        self.fifo.close()

    # Workers

    def worker(
        self,
        *,
        dsn: str | None = None,
        environment: Mapping[str, str] | None = None,
        registered: bool = True,
        **options: object,
    ) -> str:
        """Start a worker process and wait until it is registered; return its name.

        Args:
            dsn: how it gets to the database. Defaults to that of the ground.
            environment: more variables of its.
            registered: whether to wait.
            options: those of `pgfifo.Worker`.
        """
        self._named += 1
        name = f"worker-{self._named}"
        given = {"concurrency": 8, "lease": self.lease, "heartbeat": self.lease / 6, "shutdown_timeout": 10}
        self.children.start(
            name,
            "-m",
            "tests.faults.load",
            FAULTS_WORKER=name,
            FAULTS_DSN=dsn or self.dsn,
            FAULTS_OPTIONS=json.dumps(given | options),
            **(environment or {}),
        )
        if registered:
            wait_for(lambda: self.is_alive(name), 30, f"{name} to be registered: {self.log(name)}")
        return name

    def is_alive(self, name: str) -> bool:
        """Return whether the database takes a worker for alive."""
        self.children.refuse_dead()
        return any(each.name == name and each.state == "alive" for each in self.fifo.workers())

    def registrations(self, name: str) -> list[tuple[int, str]]:
        """Return the ids that a worker has had, with their states."""
        with self.connected() as conn:
            query = "select id, state from pgfifo.workers where name = %s order by id"
            return [(id_, state) for id_, state in conn.execute(query, [name])]

    def log(self, name: str) -> str:
        """Return what a worker has logged."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """End a worker with SIGKILL."""
        self.children.expected.add(name)
        self.recorder.note("fault", worker=name, fault="kill")
        self.children.all[name].kill()
        self.children.all[name].wait()
        self.recorder.note("fault over", worker=name, fault="kill")

    @contextlib.contextmanager
    def harmed(self, name: str, fault: str) -> Iterator[None]:
        """Write down that something is done to a worker in a block."""
        self.recorder.note("fault", worker=name, fault=fault)
        yield
        self.recorder.note("fault over", worker=name, fault=fault)

    @contextlib.contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """Stop a worker with SIGSTOP in a block."""
        with self.harmed(name, "pause"):
            self.children.all[name].send_signal(signal.SIGSTOP)
            yield
            self.children.all[name].send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def supervised(self, count: int, **options: Any) -> Iterator[None]:
        """Have so many workers in a block, and others for those that end, as a supervisor does."""
        names = [self.worker(**options) for _ in range(count)]

        def supervise() -> None:
            while not self._over.wait(0.05):
                for nth, name in enumerate(names):
                    if self.children.all[name].poll() is not None:
                        self.recorder.note("fault", worker=name, fault="exit")
                        self.children.expected.add(name)
                        names[nth] = self.worker(registered=False, **options)

        for name in names:
            self.children.expected.add(name)
        running = in_background(supervise)
        try:
            yield
        finally:
            self._over.set()
            running.result()
            self.children.expected.update(names)

    # Producers

    def enqueue(self, action: str, lane: int = 0, **payload: object) -> int:
        """Enqueue one, and write it down."""
        return self.enqueue_all([(action, {"lane": lane, **payload})])[0]

    def enqueue_all(self, items: list[tuple[str, dict[str, Any]]]) -> list[int]:
        """Enqueue some in one transaction, and write it down."""
        self._named += 1
        with self.connected() as conn:
            producer = Producer(Recorder(self.folder, f"producer-{self._named}"), conn, pgfifo.Client(conn))
            with producer.transaction() as tx:
                return [producer.enqueue(tx, action, payload).id for action, payload in items]

    @contextlib.contextmanager
    def load(
        self, producers: int = 2, rate: float = 40.0, dsn: str | None = None, fails: float = 0.0
    ) -> Iterator[None]:
        """Enqueue in a block, from several threads, whatever becomes of their connections.

        Args:
            producers: how many threads.
            rate: how many transactions each makes a second.
            dsn: how they get to the database. Defaults to that of the ground.
            fails: the share of what fails at first.
        """
        over = threading.Event()
        running = [
            in_background(partial(self._produce, number, rate, fails, dsn or self.dsn, over))
            for number in range(producers)
        ]
        try:
            yield
        finally:
            over.set()
            for each in running:
                each.result(60)

    def _produce(self, number: int, rate: float, fails: float, dsn: str, over: threading.Event) -> None:
        chance = random.Random(number)
        connections = 0
        while not over.is_set():
            connections += 1
            recorder = Recorder(self.folder, f"load-{number}.{connections}")
            with contextlib.suppress(psycopg.Error), psycopg.connect(dsn, autocommit=True) as conn:
                producer = Producer(recorder, conn, pgfifo.Client(conn))
                while not over.wait(chance.expovariate(rate)):
                    lanes = sorted(
                        (chance.choice((ONE, SEVERAL, YIELDING)), chance.randrange(LANES))
                        for _ in range(chance.choice((1, 1, 2)))
                    )
                    harm = "fail" if chance.random() < fails else None
                    with producer.transaction(roll_back=chance.random() < 0.05) as tx:
                        for action, lane in lanes:
                            producer.enqueue(tx, action, {"lane": lane, "harm": harm})
            over.wait(0.05)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Write down that nobody can get anything done in a block."""
        since = now()
        yield
        self.recorder.note("outage", since=since)

    # The end

    def state(self, id_: int) -> str:
        """Return the state of an execution."""
        return self.fifo.execution(id_).state

    def wait_for_state(self, id_: int, state: str, timeout: float = 30.0) -> None:
        """Wait until an execution is in a state."""
        wait_for(lambda: self.state(id_) == state, timeout, f"execution {id_} to be {state}")

    def settle(self, timeout: float = 60.0) -> None:
        """Wait until everything is done."""

        def left() -> int:
            self.children.refuse_dead()
            stats = [each for each in self.fifo.stats() if each.action in RULES]
            return sum(each.queue_length + each.active_count + each.delayed_count for each in stats)

        deadline = time.monotonic() + timeout
        while left():
            assert time.monotonic() < deadline, f"{left()} are left after {timeout:g} s: {self.fifo.stats()}"
            time.sleep(0.05)

    def judge(self) -> History:
        """Stop all workers, and assert that every promise was kept, from what everybody saw."""
        until = now()
        self._over.set()
        living = [name for name, process in self.children.all.items() if process.poll() is None]
        for name in living:
            self.recorder.note("stopping", worker=name)
        self.children.expected.update(living)
        self.children.stop(*living)
        with self.connected() as conn:
            history = assemble(
                read(self.folder),
                RULES,
                record(conn, RULES, self._swept),
                lease=self.lease,
                patience=10.0 + self.lease,
                until=until,
            )
        found = violations(history)
        assert not found, "\n".join(found)
        assert history.attempts, "nothing has happened"
        return history


def kinds(history: History) -> Counter[str]:
    """Count what became of the executions."""
    assert history.record is not None
    return Counter(each.state for each in history.record.outcomes)


def refused(history: History) -> int:
    """Count the attempts whose end came too late, and was refused."""
    return sum(any(said.answer == "lost" for said in each.handed) for each in history.attempts)
