"""The handlers of the demo: they write their journal, and take their time.

A worker runs them as it would run anybody's: ``pgfifo worker pgfifo.demo.handlers:actions``.
"""

import os
import random
import time
from functools import cache
from pathlib import Path

import pgfifo
from pgfifo.demo.events import DELIVER, INDEX, LIMITS
from pgfifo.demo.journal import HandlerJournal

actions = pgfifo.Actions()


@cache
def _journal() -> HandlerJournal:
    """Return this worker's journal."""
    name = os.environ["PGFIFO_DEMO_WORKER"]
    path = Path(os.environ["PGFIFO_DEMO_FOLDER"]) / f"worker-{name}.jsonl"
    return HandlerJournal(path, os.environ["PGFIFO_DSN"], name)


@actions.action(DELIVER, group_by=["customer"], max_concurrent=LIMITS[DELIVER])
def deliver(execution: pgfifo.Execution) -> dict[str, object]:
    """Send an event to its customer: one at a time, or they would arrive in any order."""
    with _journal().kept(execution):
        _take_time()
    return {"status": 200, "url": execution.payload["url"]}


@actions.action(INDEX, group_by=["customer"], max_concurrent=LIMITS[INDEX])
def index(execution: pgfifo.Execution) -> None:
    """Put an event into the customer's search index, which bears three at a time."""
    with _journal().kept(execution):
        _take_time()


def _take_time() -> None:
    """Do what takes handlers their time: wait for others. How long depends on the worker."""
    pace = float(os.environ["PGFIFO_DEMO_PACE"])
    time.sleep(pace * random.uniform(0.5, 1.5))  # noqa: S311 - nobody's secret
