"""A producer of a verification, a process of its own: transactions of all kinds, and some cancels."""

import os
import random
import sys
import threading
import time
from collections import deque
from itertools import islice
from pathlib import Path

import psycopg

from pgfifo.client import Client
from pgfifo.dsn import with_defaults
from pgfifo.processes import follow_parent
from pgfifo.verify.load import orders
from pgfifo.verify.recorder import Producer, Recorder, now

_ROLLED_BACK = 0.05
_CANCELLED = 0.04
_LONG = 0.1
_REMEMBERED = 50


def produce(
    dsn: str, recorder: Recorder, seed: str, rate: float, until: float, stop: threading.Event
) -> None:
    """Enqueue until a time, or until stopped.

    Args:
        dsn: the database.
        recorder: where to write.
        seed: the same one makes the same executions.
        rate: transactions a second.
        until: when to end, by the recorders' clock.
        stop: set when it is to end before.
    """
    chance = random.Random(seed)  # noqa: S311 - nobody's secret
    coming = orders(chance)
    mine: deque[int] = deque(maxlen=_REMEMBERED)
    prepared = None if os.environ["PGFIFO_VERIFY_POLL_ONLY"] else 5
    with psycopg.connect(
        with_defaults(dsn, "pgfifo verify producer"), autocommit=True, prepare_threshold=prepared
    ) as conn:
        producer = Producer(recorder, conn, Client(conn))
        next_one = now()
        while (at := now()) < until and not stop.is_set():
            if at < next_one:
                time.sleep(min(next_one - at, 0.1))
                continue
            next_one = max(next_one + chance.expovariate(rate), at - 1.0)
            # In one order of lanes, or two producers would wait for each other in a circle.
            batch = sorted(
                islice(coming, chance.choice((1, 1, 1, 2, 3))),
                key=lambda each: (each.action, each.payload["lane"]),
            )
            roll_back = chance.random() < _ROLLED_BACK
            with producer.transaction(roll_back=roll_back) as tx:
                made = [
                    producer.enqueue(tx, each.action, each.payload, delay=each.delay).id for each in batch
                ]
                # The rest of what the application does.
                time.sleep(
                    chance.uniform(0.02, 0.03) if chance.random() < _LONG else chance.uniform(0, 0.003)
                )
            if not roll_back:
                mine.extend(made)
            if mine and chance.random() < _CANCELLED:
                producer.cancel(chance.choice(mine))


def main() -> None:
    """Be the process."""
    stop = threading.Event()
    follow_parent(stop.set)
    name, seed, rate, until = sys.argv[1:]
    recorder = Recorder(Path(os.environ["PGFIFO_VERIFY_FOLDER"]), name)
    produce(os.environ["PGFIFO_DSN"], recorder, f"{seed} {name}", float(rate), float(until), stop)


if __name__ == "__main__":
    main()
