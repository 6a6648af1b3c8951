"""What is enqueued and run to see whether the promises hold: actions of each kind, and their handlers.

An execution's payload says what becomes of it: how long its handler takes, and how often it fails.
"""

import asyncio
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

import pgfifo
from pgfifo.verify.history import Rules
from pgfifo.verify.recorder import Recorder

PACK = "pgfifo_verify"
"""The part of their names before the dot."""
SINGLE, SEVERAL, YIELDING, TAILED, RELAXED, BATCHED, PACED = (
    f"{PACK}.{name}" for name in ("single", "several", "yielding", "tailed", "relaxed", "batched", "paced")
)

MAX_ATTEMPTS = 4
_BACKOFF, _CAP, _JITTER = 0.1, 0.4, 0.1
_LONGEST = _CAP * (1 + _JITTER)

RULES: Mapping[str, Rules] = {
    SINGLE: Rules(1, "hold", strict=True, backoff=_LONGEST, max_attempts=MAX_ATTEMPTS),
    SEVERAL: Rules(3, "hold", strict=True, backoff=_LONGEST, max_attempts=MAX_ATTEMPTS),
    YIELDING: Rules(1, "yield", strict=True, backoff=_LONGEST, max_attempts=MAX_ATTEMPTS),
    TAILED: Rules(2, "tail", strict=True, backoff=_LONGEST, max_attempts=MAX_ATTEMPTS),
    RELAXED: Rules(2, "hold", strict=False, backoff=_LONGEST, max_attempts=MAX_ATTEMPTS),
    BATCHED: Rules(1, "hold", strict=True, backoff=_LONGEST, max_attempts=MAX_ATTEMPTS),
    PACED: Rules(2, "hold", strict=True, backoff=_LONGEST, max_attempts=MAX_ATTEMPTS, shared=3, paced=True),
}
"""The actions: one slot and several, each way of failing, one in relaxed order, one whose handler takes
batches, and one with a rate and a shared limit."""

BATCH = 10
"""The largest batch."""
_RATES = {PACED: "50/s"}

LANES = 5
"""Lanes of each action."""


def policy(action: str) -> dict[str, Any]:
    """Return the policy of an action, with everything that a wider scope could set otherwise."""
    rules = RULES[action]
    return {
        "group_by": ["lane"],
        "max_concurrent": rules.slots,
        "ordering": "strict" if rules.strict else "relaxed",
        "failure_mode": rules.mode,
        "max_attempts": MAX_ATTEMPTS,
        "backoff": "exponential",
        "backoff_initial": _BACKOFF,
        "backoff_factor": 2,
        "backoff_cap": _CAP,
        "backoff_jitter": _JITTER,
        "on_exhausted": "continue",
        "on_limit": "enqueue",
        "max_queue_length": "unlimited",
        "max_action_queue_length": "unlimited",
        "max_wait": "unlimited",
        "rate": _RATES.get(action, "unlimited"),
        "spacing": 0,
        "gap": 0,
        "timeout": "unlimited",
        "retention": "1d",
        "lane_retention": "1d",
    }


@dataclass(frozen=True, slots=True)
class Order:
    """What a producer enqueues next.

    Attributes:
        action: the action.
        payload: the payload.
        delay: seconds after which it is to join its line.
    """

    action: str
    payload: Mapping[str, Any]
    delay: float


def orders(chance: random.Random) -> Iterator[Order]:
    """Yield what a producer enqueues, without an end."""
    actions = tuple(RULES)
    while True:
        lot = chance.random()
        fails = 0 if lot < 0.85 else 1 if lot < 0.95 else 2 if lot < 0.98 else MAX_ATTEMPTS
        yield Order(
            chance.choice(actions),
            {
                "lane": chance.randrange(LANES),
                "seconds": round(chance.expovariate(1 / 0.01), 4),
                "fails": fails,
                "aborts": chance.random() < 0.01,
            },
            round(chance.uniform(0.05, 0.5), 3) if chance.random() < 0.03 else 0.0,
        )


actions = pgfifo.Actions()


@cache
def recorder() -> Recorder:
    """Return this worker's recorder."""
    return Recorder(Path(os.environ["PGFIFO_VERIFY_FOLDER"]), os.environ["PGFIFO_VERIFY_WORKER"])


def _handle(execution: pgfifo.Execution) -> None:
    with recorder().running(execution):
        begin = time.monotonic()
        time.sleep(execution.payload["seconds"])
        _end(execution, begin)


@actions.action(SINGLE)
def single(execution: pgfifo.Execution) -> None:
    """Run in a lane with one slot."""
    _handle(execution)


@actions.action(SEVERAL)
def several(execution: pgfifo.Execution) -> None:
    """Run in a lane with several slots, whose number changes."""
    _handle(execution)


@actions.action(YIELDING)
def yielding(execution: pgfifo.Execution) -> None:
    """Give the slot up when it fails."""
    _handle(execution)


@actions.action(TAILED)
def tailed(execution: pgfifo.Execution) -> None:
    """Go to the end of the line when it fails."""
    _handle(execution)


@actions.action(RELAXED)
async def relaxed(execution: pgfifo.Execution) -> None:
    """Run in the event loop."""
    with recorder().running(execution):
        begin = time.monotonic()
        await asyncio.sleep(execution.payload["seconds"])
        _end(execution, begin)


@actions.action(BATCHED, batch=BATCH)
def batched(executions: list[pgfifo.Execution]) -> None:
    """Run one after the other, up to the first that fails; those behind it have not begun."""
    for execution in executions:
        with recorder().running(execution):
            time.sleep(execution.payload["seconds"])
            try:
                _fail(execution)
            except pgfifo.Abort as error:
                execution.fail(error)
            else:
                execution.succeed()


@actions.action(PACED)
def paced(execution: pgfifo.Execution) -> None:
    """Run at a rate, and under a limit over all lanes."""
    _handle(execution)


def _end(execution: pgfifo.Execution, begin: float) -> None:
    """End as the payload says; after a pause as long as the lease, first try to finish as a zombie would."""
    late = time.monotonic() - begin - execution.payload["seconds"]
    if late > float(os.environ["PGFIFO_VERIFY_LEASE"]) and _finish_late(execution):
        return
    _fail(execution)


def _fail(execution: pgfifo.Execution) -> None:
    """Fail, if the payload says so."""
    if execution.payload["aborts"]:
        raise pgfifo.Abort("the payload says so")
    if execution.attempt <= execution.payload["fails"]:
        raise pgfifo.Retry("the payload says so")


def _finish_late(execution: pgfifo.Execution) -> bool:
    """Say that it has succeeded, by a call of its own: a worker that knows it is dead would not.

    Returns:
        Whether that was taken.
    """
    call = f"late {execution.id}.{execution.attempt}"
    note = recorder().note
    note("handing in", call=call, items=[(execution.id, execution.attempt, "succeeded", True)])
    with psycopg.connect(os.environ["PGFIFO_DSN"], autocommit=True) as conn:
        try:
            pgfifo.Client(conn).finish(execution.id, execution.attempt, "succeeded")
        except pgfifo.LeaseLost:
            note("handed in", call=call, refused=[(execution.id, execution.attempt, "lost")])
            return False
    note("handed in", call=call, refused=[])
    return True
