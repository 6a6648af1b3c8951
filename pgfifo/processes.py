"""Several worker processes under one parent, which starts nothing but them.

The parent passes SIGTERM and SIGINT on. It restarts nobody: when a process dies, the others are stopped and
the parent ends with an error, for whatever supervises it to see. When the parent dies, in whatever way, its
processes stop as if they had got SIGTERM.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from pgfifo import _words

logger = logging.getLogger("pgfifo")

SUPERVISED = "PGFIFO_SUPERVISED"
"""The variable that tells a process that its standard input ends with its parent."""
PROBES = "PGFIFO_PROBES"
"""The variable that tells it in which folder its parent looks for its health file."""

_INTERRUPTED = 130


def supervise(command: Sequence[str], count: int, environment: Mapping[str, str]) -> int:
    """Run a command in so many processes, and wait for the end of all.

    Args:
        command: The program and its arguments; it must call `follow_parent`.
        count: How many.
        environment: What their environment has beside this process's own.

    Returns:
        0 if all ended with 0, or 130 if SIGINT had stopped them; else the exit status of the first that did
        not, or 1 if a signal ended it.
    """
    ended: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
    processes: list[subprocess.Popen[bytes]] = []
    status = 0
    with _passed_on(processes) as told:
        try:
            while len(processes) < count and not told:
                processes.append(_start(command, environment))
                threading.Thread(target=_await, args=(processes[-1], ended), daemon=True).start()
            if told:
                _send(processes[-1:], told[-1])  # it may have come between a start and its note
            for left in range(len(processes) - 1, -1, -1):
                process = ended.get()
                if process.returncode == 0 or {-process.returncode, process.returncode - 128} & {*told}:
                    continue
                status = status or (process.returncode if process.returncode > 0 else 1)
                logger.error("worker process %d ended with %s", process.pid, _said(process.returncode))
                if left and not told:
                    others = _words.count(left, "other process", "other processes")
                    logger.error("stopping %s too: whoever supervises this one starts them all again", others)
                    told.append(signal.SIGTERM)
                    _send(processes, signal.SIGTERM)
        finally:
            # The end of its standard input stops whoever nobody has told yet.
            for process in processes:
                if process.stdin is not None:
                    with contextlib.suppress(OSError):
                        process.stdin.close()
            for process in processes:
                process.wait()
    return status or (_INTERRUPTED if signal.SIGINT in told else 0)


def follow_parent(stop: Callable[[], None]) -> None:
    """In a process that `supervise` started: have a function called, in a thread, when the parent is gone."""
    if os.environ.pop(SUPERVISED, None) is None:
        return

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        logger.info("the parent process is gone or stops: stopping")
        stop()

    threading.Thread(target=watch, name="pgfifo-parent", daemon=True).start()


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    env = {**os.environ, **environment, SUPERVISED: "1"}
    if sys.platform == "win32":
        group = subprocess.CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=env, creationflags=group)
    # In groups of their own, or a Ctrl-C at the terminal would reach them twice: by itself, and passed on.
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=env, process_group=0)


def _await(process: subprocess.Popen[bytes], ended: queue.SimpleQueue[subprocess.Popen[bytes]]) -> None:
    process.wait()
    ended.put(process)


@contextlib.contextmanager
def _passed_on(processes: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass SIGTERM and SIGINT on; yields the list of those that came."""
    told: list[int] = []

    def handle(number: int, _frame: object) -> None:
        told.append(number)
        _send(processes, number)

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(processes: list[subprocess.Popen[bytes]], number: int) -> None:
    for process in processes:
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                process.send_signal(signal.CTRL_BREAK_EVENT)
            else:
                process.send_signal(number)


def _said(code: int) -> str:
    if code > 0:
        return f"exit status {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"signal {-code}"
