"""The processes of a soak: producers, workers, programs that hold slots, an operator, bursts."""

import contextlib
import fcntl
import json
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

import pgfifo
from bench.soak import load
from pgfifo.processes import follow_parent

_LATER = (pgfifo.Busy, pgfifo.InvalidValue, pgfifo.UnknownExecution)
"""What a call is told that comes at the wrong moment: it is over, or not yet, or somebody else is at it."""
_BURST, _BURST_LANES = 500, 50


def note(folder: Path, who: str, **facts: object) -> None:
    """Write a line into the journal of a process."""
    with (folder / f"{who}.jsonl").open("a") as journal:
        journal.write(json.dumps({"at": time.monotonic(), **facts}) + "\n")


def produce(dsn: str, seed: str, rate: float, stop: threading.Event) -> None:
    """Enqueue in every way there is, so many times a second."""
    chance = random.Random(seed)
    mine: deque[int] = deque(maxlen=200)
    names = [name for name in load.POLICIES if name not in (load.BURST, load.PROBE)]
    with psycopg.connect(dsn, autocommit=True) as conn, pgfifo.Client(dsn, max_size=4) as fifo:
        next_one = time.monotonic()
        while not stop.wait(max(0.0, next_one - time.monotonic())):
            next_one = max(next_one + chance.expovariate(rate), time.monotonic() - 1)
            with contextlib.suppress(*_LATER):
                _produce_one(conn, fifo, chance, chance.choice(names), mine)


def _payload(chance: random.Random, action: str) -> dict[str, Any]:
    fails = chance.choices((0, 1, 2, 3), (90, 6, 2, 2))[0] if action != load.COROUTINE else 0
    lanes = load.CUSTOMERS if action == load.WIDE else load.LANES
    return {
        "lane": chance.randrange(lanes),
        "seconds": round(chance.expovariate(1 / 0.004), 4),
        "fails": fails,
        "event": "invoice.paid",
        "url": "https://example.com/hooks/invoices",
    }


def _produce_one(
    conn: psycopg.Connection[Any], fifo: pgfifo.Client, chance: random.Random, action: str, mine: deque[int]
) -> None:
    lot, payload = chance.random(), _payload(chance, action)
    if lot < 0.5:
        mine.append(fifo.enqueue(action, payload, tags=["soak"]).id)
    elif lot < 0.56:
        lane = payload["lane"]
        items = [_payload(chance, action) | {"lane": (lane + n) % load.LANES} for n in range(20)]
        fifo.enqueue_many(action, items)
    elif lot < 0.64:
        mine.append(fifo.enqueue(action, payload, delay=chance.uniform(0.1, 5)).id)
    elif lot < 0.69:
        request = f"{chance.getrandbits(64):x}"
        first = fifo.enqueue(action, payload, request_id=request)
        again = fifo.enqueue(action, payload, request_id=request)
        if (again.id, again.created) != (first.id, False):
            raise AssertionError(f"one request_id, two executions: {first}, {again}")
    elif lot < 0.74:
        fifo.enqueue(action, payload, dedup_key=f"key {chance.randrange(50)}")
    elif lot < 0.79:
        fifo.enqueue(action, payload, item_key=f"item {chance.randrange(5)}", on_item="replace")
    elif lot < 0.87:
        with conn.transaction(force_rollback=chance.random() < 0.3):
            fifo.enqueue(action, payload, connection=conn)
            time.sleep(chance.uniform(0, 0.02))
    elif lot < 0.94 and mine:
        fifo.cancel(chance.choice(mine), reason="the soak says so")
    elif lot < 0.96 and mine:
        fifo.retry(chance.choice(mine))
    elif lot < 0.98 and mine:
        with contextlib.suppress(pgfifo.WaitTimeout, pgfifo.ExecutionFailed):
            fifo.wait(mine[-1], timeout=0.5)
    else:
        fifo.cancel_where(action=load.STOPPED, tags=["soak"])


def work(dsn: str, name: str, stop: threading.Event) -> None:
    """Run what there is."""
    worker = pgfifo.Worker(dsn, load.actions, name=name, concurrency=20, lease=5, heartbeat=1, declare=False)

    def follow() -> None:
        stop.wait()
        worker.request_stop()

    threading.Thread(target=follow, daemon=True).start()
    worker.run()


def hold_slots(dsn: str, folder: Path, stop: threading.Event) -> None:
    """Hold slots as locks; a file lock says whether somebody else is in there too."""

    def go_on(number: int) -> None:
        chance = random.Random(number)
        while not stop.is_set():
            group = f"{chance.randrange(load.SLOT_GROUPS)}"
            try:
                with fifo.slot(load.SLOT, group=group, timeout=30):
                    said = _alone(folder / f"slot-{group}.lock", chance.uniform(0.0, 0.02))
            except pgfifo.SlotTimeout:
                said = "timeout"
            note(folder, "slots", said=said)
            stop.wait(chance.expovariate(10))

    with pgfifo.Client(dsn, max_size=12) as fifo:
        threads = [threading.Thread(target=go_on, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _alone(path: Path, seconds: float) -> str:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "not alone"
        time.sleep(seconds)
    return "alone"


def operate(dsn: str, folder: Path, seed: str, stop: threading.Event) -> None:
    """Look, and change limits; read all events."""
    chance = random.Random(seed)
    done = events = 0
    with pgfifo.Client(dsn) as fifo:
        cursor = None
        deeds: list[Callable[[str], object]] = [
            lambda _: fifo.stats(),
            fifo.stats,
            lambda action: fifo.lanes(action, limit=50),
            lambda action: fifo.executions(action, limit=50),
            lambda action: [fifo.explain(each.id) for each in fifo.executions(action, limit=1)],
            lambda action: [fifo.position(each.id) for each in fifo.executions(action, limit=1)],
            fifo.pace,
            lambda action: fifo.set_policy(action, max_concurrent=chance.randint(1, 5)),
            lambda action: fifo.override_policy(action, lasting=2, max_concurrent=chance.randint(1, 5)),
            lambda action: (fifo.pause(action), stop.wait(0.2), fifo.resume(action)),
            lambda _: fifo.workers(),
            lambda _: fifo.slots(),
            lambda action: fifo.policy_history(action, limit=10),
        ]
        while not stop.wait(0.5):
            with contextlib.suppress(*_LATER):
                chance.choice(deeds)(chance.choice([*load.POLICIES]))
            try:
                for event in fifo.events(cursor=cursor or "begin", follow=False):
                    events, cursor = events + 1, event.cursor
            except pgfifo.EventsGone:  # retention is short here: it was too slow
                cursor = None
            done += 1
        note(folder, "operator", calls=done, events=events)
        for action in load.POLICIES:
            fifo.resume(action)


def burst(dsn: str, folder: Path, every: float, stop: threading.Event) -> None:
    """Enqueue many at once now and then, and see how long the workers have for them."""
    payloads = [{"lane": n % _BURST_LANES} for n in range(_BURST)]
    with pgfifo.Client(dsn) as fifo:
        while not stop.wait(every):
            began = time.monotonic()
            fifo.enqueue_many(load.BURST, payloads)
            enqueued = time.monotonic()
            while (left := _left(fifo)) and not stop.is_set():
                time.sleep(0.02)
            if not left:
                over = time.monotonic()
                note(folder, "bursts", enqueue=_BURST / (enqueued - began), drain=_BURST / (over - began))


def _left(fifo: pgfifo.Client) -> int:
    stats = fifo.stats(load.BURST)
    return stats.queue_length + stats.active_count


def main() -> None:
    """Be one of them."""
    stop = threading.Event()
    follow_parent(stop.set)
    what, name, *rest = sys.argv[1:]
    if what != "work":  # a worker listens to signals itself
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
    dsn, folder = os.environ["PGFIFO_DSN"], Path(os.environ["SOAK_FOLDER"])
    if what == "produce":
        produce(dsn, name, float(rest[0]), stop)
    elif what == "work":
        work(dsn, name, stop)
    elif what == "slots":
        hold_slots(dsn, folder, stop)
    elif what == "operate":
        operate(dsn, folder, name, stop)
    else:
        burst(dsn, folder, float(rest[0]), stop)


if __name__ == "__main__":
    main()
