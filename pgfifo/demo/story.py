"""What happens in the demo, one after the other."""

import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from pgfifo._words import count
from pgfifo.client import Client
from pgfifo.demo import sabotage
from pgfifo.demo.events import DELIVER, INDEX, LIMITS
from pgfifo.demo.handlers import actions
from pgfifo.demo.producer import STORE
from pgfifo.demo.screen import Lane, Screen, Snapshot, Worker
from pgfifo.demo.verdict import verdict
from pgfifo.embedded import PrivateServer, remove_abandoned
from pgfifo.verify.assemble import assemble
from pgfifo.verify.children import BrokenError, Children, Interrupts
from pgfifo.verify.history import Check, Rules
from pgfifo.verify.record import record, swept
from pgfifo.verify.recorder import Recorder, read

KILLED = "slow"
"""The worker that is killed."""

_TICK = 0.15
_WORTH_IT = 3
_RULES = {action: Rules(slots=slots) for action, slots in LIMITS.items()}
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
        interrupts = Interrupts()
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
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment = {**ours, "PGFIFO_DSN": server.dsn(), "PGFIFO_DEMO_FOLDER": str(folder)}
        children = Children(folder, environment, interrupts)
        stack.callback(children.end)
        fifo = stack.enter_context(Client(server.dsn()))
        return _Story(screen, scale or Scale(), fifo, folder, conn, children).tell()


class _Story:
    """One run."""

    def __init__(
        self,
        screen: Screen,
        scale: Scale,
        fifo: Client,
        folder: Path,
        conn: psycopg.Connection[Any],
        children: Children,
    ) -> None:
        self._screen = screen
        self._scale = scale
        self._fifo = fifo
        self._folder = folder
        self._conn = conn
        self._children = children
        self._recorder = Recorder(folder, "story")
        self._producers: list[str] = []
        self._ids: dict[str, int] = {}
        self._was_held: list[int] | None = None  # by the worker that was killed, then
        self._begin = 0.0

    def tell(self) -> list[Check]:
        """Let it happen, and judge it."""
        scale, screen = self._scale, self._screen
        before = swept(self._conn)
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
        screen.say("The workers stop; what everybody wrote down is compared with pgfifo's history.")
        self._children.stop(*scale.paces)
        history = assemble(read(self._folder), _RULES, record(self._conn, _RULES, before))
        return verdict(history, KILLED, self._was_held or [])

    def _watch(self) -> None:
        """Follow it until everything is done, or nothing moves any more."""
        scale = self._scale
        moved, before, last = time.monotonic(), (-1, -1), (time.monotonic(), 0)
        rate = 0.0
        while True:
            self._children.refuse_dead()
            stats = self._fifo.stats()
            enqueued = sum(each.total_enqueued for each in stats)
            finished = sum(each.total_completed for each in stats)
            unfinished = sum(each.queue_length + each.active_count + each.delayed_count for each in stats)
            now = time.monotonic()
            if now - last[0] >= 1.0:
                rate = (finished - last[1]) / (now - last[0])
                last = (now, finished)
            self._screen.show(self._snapshot(enqueued, finished, rate))
            if self._was_held is None and finished >= scale.kill_at * scale.events:
                self._kill_worker()
            produced = all(self._children.all[name].poll() is not None for name in self._producers)
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
            killed = self._was_held is not None and name == KILLED
            running = 0 if killed else found[id_].executions
            workers.append(Worker(name, "killed" if killed else "runs", running, done.get(id_, 0)))
        seconds = time.monotonic() - self._begin
        return Snapshot(seconds, self._scale.events, enqueued, finished, rate, lanes, workers)

    def _kill_worker(self) -> None:
        """Kill a worker in the middle of its work, and note what it held."""
        process, id_ = self._children.all[KILLED], self._ids[KILLED]
        if len(self._held(id_)) < _WORTH_IT:
            return  # in a moment
        self._children.expected.add(KILLED)
        self._recorder.note("fault", worker=KILLED, fault="kill")
        process.kill()
        process.wait()
        self._recorder.note("fault over", worker=KILLED, fault="kill")
        # What it had sent may still be carried out; then its sessions end.
        deadline = time.monotonic() + 5
        while self._value(_LEFT, f"pgfifo worker {KILLED}") and time.monotonic() < deadline:
            time.sleep(0.01)
        held = self._was_held = self._held(id_)
        self._screen.say(f"Worker {KILLED} was killed with SIGKILL; it held {count(len(held), 'execution')}.")

    def _held(self, worker: int) -> list[int]:
        """Return what a worker runs now."""
        return [id_ for (id_,) in self._conn.execute(_HELD, [worker]).fetchall()]

    def _value(self, query: str, *arguments: object) -> Any:  # noqa: ANN401 - whatever it is
        """Return the one value of a query."""
        row = self._conn.execute(query, arguments).fetchone()
        return row[0] if row else None

    def _start_producer(self, number: int, events: int) -> None:
        """Start a process that enqueues."""
        name = f"producer-{number}"
        self._children.start(name, "-m", "pgfifo.demo.producer", str(number), str(events))
        self._producers.append(name)

    def _start_worker(self, name: str, pace: float) -> None:
        """Start a worker, by the command that anybody would use."""
        arguments = ["-m", "pgfifo", "worker", "pgfifo.demo.handlers:actions", "--name", name]
        arguments += ["--concurrency", str(self._scale.concurrency)]
        self._children.start(name, *arguments, PGFIFO_DEMO_WORKER=name, PGFIFO_DEMO_PACE=str(pace))

    def _await_workers(self) -> None:
        """Wait until all workers are registered."""
        names = self._scale.paces
        deadline = time.monotonic() + 30
        while len(self._ids) < len(names):
            self._children.refuse_dead()
            self._ids = {each.name: each.id for each in self._fifo.workers() if each.name in names}
            if time.monotonic() > deadline:
                raise BrokenError("the workers do not come up")
            time.sleep(0.05)
