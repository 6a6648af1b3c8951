"""A producer of the demo, a process of its own: it stores and enqueues events, both in one transaction."""

import os
import random
import sys
import time
from pathlib import Path

import psycopg
from psycopg.types.json import Jsonb

from pgfifo import Client
from pgfifo.demo.events import events
from pgfifo.verify.recorder import Producer, Recorder

STORE = """
    create schema shop;
    create table shop.events (id text primary key, customer text not null, body jsonb not null)
"""
"""The table of the application that the producers belong to."""

_ROLLED_BACK = 0.05
_LONG = 0.1


def produce(dsn: str, number: int, count: int, folder: Path) -> None:
    """Store and enqueue events; write down what is seen of it.

    Args:
        dsn: the database.
        number: which producer this is.
        count: how many events.
        folder: where that goes.
    """
    chance = random.Random(number)  # noqa: S311 - nobody's secret
    with psycopg.connect(dsn, autocommit=True) as conn:
        producer = Producer(Recorder(folder, f"producer-{number}"), conn, Client(conn))
        for action, event in events(number, count):
            committed = False
            while not committed:
                committed = chance.random() >= _ROLLED_BACK
                with producer.transaction(roll_back=not committed) as tx:
                    conn.execute(
                        "insert into shop.events values (%s, %s, %s)",
                        [event["id"], event["customer"], Jsonb(event)],
                    )
                    producer.enqueue(tx, action, event)
                    time.sleep(_rest_of_the_work(chance))


def _rest_of_the_work(chance: random.Random) -> float:
    """Return how long the application's transaction goes on after it has enqueued, in seconds."""
    return chance.uniform(0.02, 0.03) if chance.random() < _LONG else chance.uniform(0.0, 0.004)


if __name__ == "__main__":
    produce(
        os.environ["PGFIFO_DSN"], int(sys.argv[1]), int(sys.argv[2]), Path(os.environ["PGFIFO_DEMO_FOLDER"])
    )
