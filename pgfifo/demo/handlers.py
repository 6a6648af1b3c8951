"""The handlers of the demo: they write down when they begin and end, and take their time.

A worker runs them as it would run anybody's: ``pgfifo worker pgfifo.demo.handlers:actions``.
"""

import os
import random
import time
from functools import cache
from pathlib import Path

import pgfifo
from pgfifo.demo.events import DELIVER, INDEX, LIMITS
from pgfifo.verify.recorder import Recorder

actions = pgfifo.Actions()


@cache
def _recorder() -> Recorder:
    """Return this worker's recorder."""
    return Recorder(Path(os.environ["PGFIFO_DEMO_FOLDER"]), os.environ["PGFIFO_DEMO_WORKER"])


@actions.action(DELIVER, group_by=["customer"], max_concurrent=LIMITS[DELIVER])
def deliver(execution: pgfifo.Execution) -> dict[str, object]:
    """Send an event to its customer: one at a time, or they would arrive in any order."""
    with _recorder().running(execution):
        _take_time()
    return {"status": 200, "url": execution.payload["url"]}


@actions.action(INDEX, group_by=["customer"], max_concurrent=LIMITS[INDEX])
def index(execution: pgfifo.Execution) -> None:
    """Put an event into the customer's search index, which bears three at a time."""
    with _recorder().running(execution):
        _take_time()


def _take_time() -> None:
    """Do what takes handlers their time: wait for others. How long depends on the worker."""
    pace = float(os.environ["PGFIFO_DEMO_PACE"])
    time.sleep(pace * random.uniform(0.5, 1.5))  # noqa: S311 - nobody's secret
