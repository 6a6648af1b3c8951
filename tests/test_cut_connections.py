"""Connections that are cut at each point of each call, by a proxy between a worker or client and the server.

What the server has done and nobody has heard of is done once; what it never heard of is done all the same.
Workers and producers write down what they see, and the checker of `pgfifo verify` judges that as well.
"""

import contextlib
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo import Actions, Execution, errors
from pgfifo.verify.assemble import assemble
from pgfifo.verify.checker import violations
from pgfifo.verify.history import Rules
from pgfifo.verify.record import record
from pgfifo.verify.recorder import Producer, Recorder, now, read
from pgfifo.verify.worker import RecordedWorker
from tests.support.database import in_background, wait_for
from tests.support.engine import Engine
from tests.support.proxy import POINTS, Chance, Fault, Point, Proxy

Connection = psycopg.Connection[Any]

CALLS = ["pgfifo.work(", "pgfifo.heartbeat(", "pgfifo.maintain("]


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    """A proxy to the database of the test; nothing is wrong with it yet."""
    with tempfile.TemporaryDirectory(prefix="pf") as folder, Proxy(Path(folder), dsn) as proxy:
        yield proxy


@pytest.fixture
def engine(conn: Connection) -> Engine:
    """The engine, past the proxy; deploy has a lane for each g."""
    engine = Engine(conn)
    engine.policy(group_by=["g"])
    return engine


RULES = {"deploy": Rules(1, "hold", max_attempts=5)}


class Log:
    """What a worker and its handlers say: lanes in order, each execution once at a time."""

    def __init__(self, folder: Path, who: str = "worker") -> None:
        self.recorder = Recorder(folder, who)
        self.begun: Counter[int] = Counter()
        self.order: dict[str, list[int]] = {}
        self._active: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.most = 0
        self.actions = Actions()
        self.actions.action("deploy", group_by=["g"], backoff_initial=0)(self.handle)

    def handle(self, execution: Execution) -> int:
        """Write down a begin and an end."""
        with self.recorder.running(execution):
            return self._handle(execution)

    def _handle(self, execution: Execution) -> int:
        lane = execution.group_text
        with self._lock:
            self._active[lane] += 1
            self.most = max(self.most, self._active[lane])
            self.begun[execution.id] += 1
            self.order.setdefault(lane, []).append(execution.id)
        threading.Event().wait(0.01)
        with self._lock:
            self._active[lane] -= 1
        return execution.id


def worker_of(dsn: str, log: Log, **more: Any) -> RecordedWorker:
    """Return a worker that beats and looks often."""
    return RecordedWorker(
        dsn, log.actions, log.recorder, concurrency=4, heartbeat=0.05, poll_interval=0.05, **more
    )


def run_worker(dsn: str, log: Log) -> None:
    """Run a worker until nothing is left."""
    worker_of(dsn, log, until_empty=True).run()


def enqueue(engine: Engine, folder: Path, payloads: list[dict[str, int]]) -> list[int]:
    """Enqueue some in one transaction, past the proxy, and write it down."""
    producer = Producer(Recorder(folder, "producer"), engine.conn, pgfifo.Client(engine.conn))
    with producer.transaction() as tx:
        return [producer.enqueue(tx, "deploy", payload).id for payload in payloads]


def assert_promises(engine: Engine, folder: Path) -> None:
    """Assert that every promise was kept: by what is on record, and by what clients saw."""
    engine.assert_promises()
    history = assemble(read(folder), RULES, record(engine.conn, RULES, 0))
    assert violations(history) == []
    assert history.attempts


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("call", CALLS)
def test_durability_calls_of_a_worker_that_are_cut_off_are_done_once(
    engine: Engine, proxy: Proxy, tmp_path: Path, call: str, point: Point
) -> None:
    log = Log(tmp_path)
    ids = enqueue(engine, tmp_path, [{"g": n % 3} for n in range(24)])
    fault = Fault(call, point, times=2)
    proxy.faults.append(fault)
    run_worker(proxy.dsn, log)
    assert fault.cut == 2
    assert sorted(log.begun) == ids
    assert set(log.begun.values()) == {1}, "an execution was run again though its worker lived"
    assert log.most == 1
    assert all(lane == sorted(lane) for lane in log.order.values())
    assert engine.stats()["total_succeeded"] == 24
    assert_promises(engine, tmp_path)


@pytest.mark.parametrize("point", POINTS)
def test_durability_a_worker_whose_start_is_cut_off_says_so_and_leaves_nothing_that_is_in_the_way(
    engine: Engine, proxy: Proxy, tmp_path: Path, point: Point
) -> None:
    log = Log(tmp_path)
    ids = enqueue(engine, tmp_path, [{"g": n} for n in range(3)])
    proxy.faults.append(Fault("pgfifo.worker_start(", point))
    with pytest.raises(psycopg.OperationalError):
        run_worker(proxy.dsn, log)
    run_worker(proxy.dsn, log)
    assert sorted(log.begun) == ids
    assert engine.stats()["total_succeeded"] == 3
    assert_promises(engine, tmp_path)


@pytest.mark.parametrize("point", POINTS)
def test_durability_an_enqueue_that_is_cut_off_is_unknown_unless_it_has_a_request_id(
    engine: Engine, proxy: Proxy, point: Point
) -> None:
    with pgfifo.Client(proxy.dsn) as fifo:
        fifo.enqueue("deploy")
        proxy.faults.append(Fault("pgfifo.enqueue", point))
        with pytest.raises(errors.CommitUnknown):
            fifo.enqueue("deploy")
        known = 1 if point == "before the request" else 2
        assert engine.stats()["total_enqueued"] == known
        proxy.faults[:] = [Fault("pgfifo.enqueue", point)]
        job = fifo.enqueue("deploy", request_id="one")
        assert proxy.faults[0].cut == 1
        assert fifo.enqueue("deploy", request_id="one").id == job.id
    assert engine.stats()["total_enqueued"] == known + 1
    engine.assert_promises()


@pytest.mark.parametrize("point", POINTS)
def test_progress_a_wait_that_is_cut_off_goes_on(
    engine: Engine, proxy: Proxy, tmp_path: Path, point: Point
) -> None:
    [id_] = enqueue(engine, tmp_path, [{"g": 1}])
    with pgfifo.Client(proxy.dsn) as fifo:
        fifo.stats()
        proxy.faults.append(Fault("pgfifo.", point, times=2))
        waiting = in_background(lambda: fifo.wait(id_, timeout=60))
        wait_for(lambda: proxy.faults[0].cut == 2)
        run_worker(engine.conn.info.dsn, Log(tmp_path))
        assert waiting.result() == id_
    assert_promises(engine, tmp_path)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("call", ["pgfifo.slot_enter(", "pgfifo.slot_look(", "pgfifo.slot_leave("])
def test_slots_of_a_program_whose_calls_are_cut_off_are_taken_and_given_back_once(
    engine: Engine, proxy: Proxy, call: str, point: Point
) -> None:
    with pgfifo.Client(proxy.dsn) as fifo:
        for _ in range(2):
            proxy.faults[:] = [Fault(call, point)]
            with fifo.slot("deploy", timeout=60):
                assert engine.stats()["active_count"] == 1
            wait_for(lambda: engine.stats()["active_count"] == 0)
    assert engine.stats()["total_enqueued"] == 2
    engine.assert_promises()


@pytest.mark.parametrize("seed", range(2))
def test_durability_under_random_cuts_each_is_done_once_and_in_order(
    engine: Engine, proxy: Proxy, tmp_path: Path, seed: int
) -> None:
    """Two workers and two producers, each of whose statements may be cut off anywhere."""
    logs = [Log(tmp_path, f"worker-{number}") for number in range(2)]
    chance = Chance(0.05, seed)

    def produce(first: int) -> None:
        note = Recorder(tmp_path, f"producer-{first}").note
        with pgfifo.Client(proxy.dsn) as fifo:
            for n in range(first, first + 60):
                called = now()
                note("ending", tx=n, commit=True)
                for _ in range(20):
                    with contextlib.suppress(errors.CommitUnknown, psycopg.OperationalError):
                        made = fifo.enqueue("deploy", {"g": n % 4}, request_id=str(n))
                        break
                else:
                    raise AssertionError("cut off twenty times")
                note("ended", tx=n, commit=True)
                lane = made.lane.group_text
                note("enqueue", tx=n, called=called, id=made.id, action="deploy", lane=lane, delay=0)

    with contextlib.ExitStack() as stack:
        for log in logs:
            stack.enter_context(worker_of(proxy.dsn, log))
        proxy.faults.append(chance)
        for producer in [in_background(partial(produce, first)) for first in (0, 1000)]:
            producer.result(60)
        wait_for(lambda: engine.stats()["total_succeeded"] == 120, 60)
        proxy.faults.clear()
    assert chance.cut > 5
    assert engine.stats()["total_enqueued"] == 120
    assert all(log.most <= 1 for log in logs)
    assert_promises(engine, tmp_path)
