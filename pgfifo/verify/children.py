"""Processes of one's own that do not outlive one, and interrupts that leave none behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pgfifo.processes import SUPERVISED

_SAID = 5


class BrokenError(Exception):
    """What was begun does not work here; the message says why."""


class Interrupts:
    """SIGINT and SIGTERM as KeyboardInterrupt, but not while something is begun and not noted down yet."""

    def __init__(self) -> None:
        self._waiting = False
        self._pending = False

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._waiting:
            self._pending = True
        else:
            raise KeyboardInterrupt

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Hear them, for the length of a block."""
        before = {
            number: signal.signal(number, self._interrupt) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let them wait until the end of a block: something begins in it, and is noted down for its end."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
            if self._pending:
                self._pending = False
                raise KeyboardInterrupt


class Children:
    """Python processes that end with this one, however it does."""

    def __init__(self, folder: Path, environment: Mapping[str, str], interrupts: Interrupts) -> None:
        """Begin with none.

        Args:
            folder: where what they print goes, a file for each.
            environment: all of theirs.
            interrupts: what must not come in between.
        """
        self._environment = {**environment, SUPERVISED: "1"}
        self._folder = folder
        self._interrupts = interrupts
        self.all: dict[str, subprocess.Popen[bytes]] = {}
        self.expected: set[str] = set()
        """Those whose end is no surprise."""

    def start(self, name: str, *arguments: str, **own: str) -> "subprocess.Popen[bytes]":
        """Start a process.

        Args:
            name: what it is called here.
            arguments: those of the Python interpreter.
            own: more of its environment.
        """
        with self._interrupts.waiting(), (self._folder / f"{name}.log").open("wb") as log:
            process = self.all[name] = subprocess.Popen(
                [sys.executable, *arguments],
                env=self._environment | own,
                stdin=subprocess.PIPE,  # its end tells them of ours
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is ours
            )
        return process

    def refuse_dead(self) -> None:
        """Notice a process that has ended by itself.

        Raises:
            BrokenError: One has, with an error that nobody expected.
        """
        for name, process in self.all.items():
            if process.poll() and name not in self.expected:
                said = (
                    (self._folder / f"{name}.log").read_text(errors="replace").strip().splitlines()[-_SAID:]
                )
                raise BrokenError("\n".join([f"{name} has ended with {process.returncode}:", *said]))

    def stop(self, *names: str, patience: float = 40.0) -> None:
        """Have processes stop as SIGTERM does, and wait for the end of all.

        Raises:
            BrokenError: One does not end.
        """
        for name in names:
            self.all[name].terminate()
        deadline = time.monotonic() + patience
        for name in names:
            try:
                self.all[name].wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise BrokenError(f"{name} does not stop") from None

    def end(self) -> None:
        """End all of them, now; also those that are stopped."""
        for process in self.all.values():
            process.kill()
        for process in self.all.values():
            process.wait()
            if process.stdin:
                process.stdin.close()
