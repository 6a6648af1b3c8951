"""A producer of a verification, a process of its own: transactions of all kinds, and some cancels."""

import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import psycopg

from pgfifo.client import Client
from pgfifo.dsn import with_defaults
from pgfifo.errors import Busy, InvalidValue
from pgfifo.models import Enqueued
from pgfifo.processes import follow_parent
from pgfifo.verify.load import Order, orders
from pgfifo.verify.recorder import Producer, Recorder, now

_ROLLED_BACK = 0.05
_CANCELLED = 0.04
_LONG = 0.1
_SEVERAL, _RETRIED, _KEYED = 0.08, 0.04, 0.04
_KEYS = 20
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
    mine: deque[Enqueued] = deque(maxlen=_REMEMBERED)
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
            roll_back = chance.random() < _ROLLED_BACK
            with suppress(_NotNowError), producer.transaction(roll_back=roll_back) as tx:
                made = _made(producer, tx, coming, mine, chance)
                # The rest of what the application does.
                time.sleep(
                    chance.uniform(0.02, 0.03) if chance.random() < _LONG else chance.uniform(0, 0.003)
                )
                if not roll_back:
                    mine.extend(made)
            if mine and chance.random() < _CANCELLED:
                producer.cancel(chance.choice(mine).id)


class _NotNowError(Exception):
    """What was to be put back has not ended, or is back already; the transaction goes with it."""


def _made(
    producer: Producer, tx: int, coming: Iterator[Order], mine: Sequence[Enqueued], chance: random.Random
) -> list[Enqueued]:
    """Enqueue some: one by one in one order of lanes, or two producers would wait for each other in a circle.

    For the same reason several by one call, one that is put back, and one with a key are alone in their
    transactions, each in a single lane.
    """
    lot = chance.random()
    if lot < _SEVERAL:
        first, *more = islice(coming, chance.randrange(2, 30))
        lane = {"lane": first.payload["lane"]}
        return producer.enqueue_many(tx, first.action, [{**each.payload, **lane} for each in (first, *more)])
    if lot < _SEVERAL + _RETRIED and mine:
        try:
            producer.retry(tx, chance.choice(mine))
        except (InvalidValue, Busy):
            raise _NotNowError from None
        return []
    if lot < _SEVERAL + _RETRIED + _KEYED:
        order = next(coming)
        made = producer.enqueue(tx, order.action, order.payload, key=f"key {chance.randrange(_KEYS)}")
        return [made] if made.created else []
    batch = sorted(
        islice(coming, chance.choice((1, 1, 1, 2, 3))), key=lambda each: (each.action, each.payload["lane"])
    )
    return [producer.enqueue(tx, each.action, each.payload, delay=each.delay) for each in batch]


def main() -> None:
    """Be the process."""
    stop = threading.Event()
    follow_parent(stop.set)
    name, seed, rate, until = sys.argv[1:]
    recorder = Recorder(Path(os.environ["PGFIFO_VERIFY_FOLDER"]), name)
    produce(os.environ["PGFIFO_DSN"], recorder, f"{seed} {name}", float(rate), float(until), stop)


if __name__ == "__main__":
    main()
