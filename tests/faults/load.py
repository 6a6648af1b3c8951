"""A worker process to be harmed, and handlers that do harm. What they see is written down.

``python -m tests.faults.load`` is the process; its environment says the rest (see `Ground.worker`).
"""

import asyncio
import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pgfifo
from pgfifo.processes import follow_parent
from pgfifo.verify.history import Rules
from pgfifo.verify.recorder import Recorder
from pgfifo.verify.worker import RecordedWorker

MAX_ATTEMPTS = 4
ONE, SEVERAL, YIELDING, COMMAND = "faults.one", "faults.several", "faults.yielding", "faults.command"
RULES: Mapping[str, Rules] = {
    ONE: Rules(1, "hold", backoff=0.5, max_attempts=MAX_ATTEMPTS),
    SEVERAL: Rules(3, "hold", backoff=0.5, max_attempts=MAX_ATTEMPTS),
    YIELDING: Rules(1, "yield", backoff=0.5, max_attempts=MAX_ATTEMPTS),
    COMMAND: Rules(1, "hold", backoff=0.5, max_attempts=MAX_ATTEMPTS),
}
_CLONE_NEWNET = 0x40000000

actions = pgfifo.Actions()


@cache
def recorder() -> Recorder:
    """Return this worker's recorder."""
    return Recorder(Path(os.environ["FAULTS_FOLDER"]), os.environ["FAULTS_WORKER"])


def policy(rules: Rules) -> dict[str, Any]:
    """Return the policy of an action."""
    return {
        "group_by": ["lane"],
        "max_concurrent": rules.slots,
        "failure_mode": rules.mode,
        "max_attempts": MAX_ATTEMPTS,
        "backoff_initial": 0.1,
        "backoff_cap": 0.4,
    }


def _harm(execution: pgfifo.Execution) -> str | None:
    """Return what this attempt is to do, apart from its work."""
    given = execution.payload
    return given.get("harm") if execution.attempt <= given.get("times", 1) else None


def _end_me() -> None:
    """Write down that this process is about to end."""
    recorder().note("fault", worker=recorder().who, fault="kill")


def _handle(execution: pgfifo.Execution) -> None:
    harm, seconds = _harm(execution), execution.payload.get("seconds", 0.01)
    with recorder().running(execution):
        if harm == "exit":
            _end_me()
            os._exit(9)
        elif harm == "crash":
            _end_me()
            os.kill(os.getpid(), signal.SIGSEGV)
        elif harm == "hang":
            while True:
                time.sleep(1)
        elif harm == "memory":
            _take_all(0)
        elif harm == "fill":
            _take_all(seconds)
        elif harm == "interpreter":
            ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))  # unlike CDLL it keeps the interpreter's lock
        elif harm == "fail":
            raise pgfifo.Retry("the payload says so")
        elif harm == "spin":
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                pass
        else:
            time.sleep(seconds)


def _take_all(seconds: float) -> None:
    """Take all memory there is, and keep it for a time, or fail."""
    taken = []
    size = 64 * 1024 * 1024
    while size >= 16:
        try:
            taken.append(bytearray(size))
        except MemoryError:
            if not seconds:
                raise
            size //= 2
    time.sleep(seconds)


@actions.action(ONE)
def one(execution: pgfifo.Execution) -> None:
    """Run in a thread, in a lane with one slot."""
    _handle(execution)


@actions.action(YIELDING)
def yielding(execution: pgfifo.Execution) -> None:
    """Run in a thread, and give the slot up on failure."""
    _handle(execution)


@actions.action(SEVERAL)
async def several(execution: pgfifo.Execution) -> None:
    """Run in the event loop, in a lane with several slots."""
    if _harm(execution) == "wait":
        with recorder().running(execution):
            await asyncio.sleep(3600)
    elif _harm(execution):
        _handle(execution)  # it blocks the loop
    else:
        with recorder().running(execution):
            await asyncio.sleep(execution.payload.get("seconds", 0.01))


_PROGRAM = """
import json, os, signal, sys
payload = json.load(sys.stdin)
if int(os.environ["PGFIFO_ATTEMPT"]) <= payload.get("times", 1):
    if payload.get("harm") == "memory":
        bytearray(1 << 40)
    elif payload.get("harm") == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
"""
actions.add(COMMAND, pgfifo.Command([sys.executable, "-I", "-S", "-c", _PROGRAM]))


def serve() -> None:
    """Work until stopped."""
    if network := os.environ.get("FAULTS_NETWORK"):
        with Path(network).open() as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    if most := os.environ.get("FAULTS_MEMORY"):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(most), int(most)))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level="INFO", stream=sys.stderr)
    options = json.loads(os.environ["FAULTS_OPTIONS"])
    worker = RecordedWorker(os.environ["FAULTS_DSN"], actions, recorder(), declare=False, **options)
    follow_parent(worker.request_stop)
    worker.run()


if __name__ == "__main__":
    serve()
