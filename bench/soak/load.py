"""The actions of a soak: one of each kind, and what their handlers do."""

import asyncio
import time
from typing import Any

import pgfifo

PACK = "soak"
PLAIN, WIDE, FLAKY, YIELDING, TAILED, RATED, SHARING, SHARED, COROUTINE, BATCHED, STOPPED, BURST, SLOT = (
    f"{PACK}.{name}"
    for name in (
        *("plain", "wide", "flaky", "yielding", "tailed", "rated", "sharing", "shared", "coroutine"),
        *("batched", "stopped", "burst", "slot"),
    )
)
PROBE = f"{PACK}.probe"
"""Claimed from by the soak itself, to see what a claim touches."""

LANES = 20
CUSTOMERS = 3_000
"""Lanes of the wide one: they come, are idle, and are removed."""
SLOT_GROUPS = 3
TOGETHER = 4
"""The shared limit."""

_COMMON: dict[str, Any] = {
    "group_by": ["lane"],
    "max_concurrent": 1,
    "backoff": "constant",
    "backoff_initial": 0.2,
    "max_attempts": 3,
    # So that what has ended, and lanes that are idle, go while the soak looks on.
    "retention": "30s",
    "lane_retention": "30s",
}
POLICIES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    WIDE: {},
    FLAKY: {"max_concurrent": 2},
    YIELDING: {"failure_mode": "yield"},
    TAILED: {"failure_mode": "tail", "max_concurrent": 3},
    RATED: {"rate": "20/s", "max_wait": "20s"},
    SHARING: {"max_concurrent": 2},
    SHARED: {"max_concurrent": 3, "ordering": "relaxed"},
    COROUTINE: {"max_concurrent": 5, "ordering": "relaxed"},
    BATCHED: {},
    STOPPED: {"max_concurrent": 2, "timeout": 0.5},
    BURST: {},
    PROBE: {},
}

actions = pgfifo.Actions()


def prepare(fifo: pgfifo.Client) -> None:
    """Set the policies."""
    for action, own in POLICIES.items():
        fifo.set_policy(action, **(_COMMON | own))
    fifo.set_policy(SLOT, max_concurrent=1, retention="30s", lane_retention="30s")
    fifo.set_shared_limit(PACK, max_concurrent=TOGETHER, actions=[SHARING, SHARED])


def _run(execution: pgfifo.Execution) -> None:
    """Take the time that the payload says, and fail as often as it says."""
    time.sleep(execution.payload.get("seconds", 0))
    if execution.attempt <= execution.payload.get("fails", 0):
        raise pgfifo.Retry("the payload says so")


for _action in (PLAIN, WIDE, FLAKY, YIELDING, TAILED, RATED, SHARING, SHARED):
    actions.action(_action)(_run)


@actions.action(BURST)
def burst(_execution: pgfifo.Execution) -> None:
    """Do nothing."""


@actions.action(COROUTINE)
async def coroutine(execution: pgfifo.Execution) -> None:
    """Run in the event loop, and say how far it is."""
    execution.progress(0.5, "halfway")
    await asyncio.sleep(execution.payload.get("seconds", 0))


@actions.action(BATCHED, batch=50)
def batched(executions: list[pgfifo.Execution]) -> None:
    """Take many at once; the first that fails keeps its place, those behind it go back."""
    for execution in executions:
        _run(execution)
        execution.succeed({"together": len(executions)})


@actions.action(STOPPED)
async def stopped(execution: pgfifo.Execution) -> None:
    """Run into the time limit, or be cancelled before."""
    await asyncio.sleep(60 if execution.payload.get("seconds", 0) > _LONG else 0)


_LONG = 0.02
