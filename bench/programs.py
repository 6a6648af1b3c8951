"""Producers and consumers as processes: started, told to go, watched, ended."""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from bench.environments import ENVIRONMENTS, ROOT
from bench.peers.common import Consume, Produce
from bench.systems import System

_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class ProgramError(RuntimeError):
    """A program of a system did not do what it was told."""


class Program:
    """One process."""

    def __init__(
        self,
        system: System,
        role: str,
        dsn: str,
        errors: Path,
        *,
        produce: Produce | None = None,
        consume: Consume | None = None,
    ) -> None:
        self.name = f"{system.label}: {role}"
        self._errors = errors
        told = {
            "role": role,
            "dsn": dsn,
            "options": dict(system.options),
            "produce": dataclasses.asdict(produce) if produce else None,
            "consume": dataclasses.asdict(consume) if consume else None,
        }
        if system.environment is None:
            command, variables = [sys.executable, "-m", f"bench.peers.{system.program}"], {}
        else:
            environment = ENVIRONMENTS[system.environment]
            command, variables = environment.command(system.program), environment.variables()
        with errors.open("ab") as file:
            self._process = subprocess.Popen(
                [*command, json.dumps(told)],
                cwd=ROOT,
                env=_variables(variables),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,  # with processes of its own it is a group, to be counted and ended
            )
        self._rest = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def prepared(self, timeout: float = 120) -> None:
        """Wait until it is ready."""
        line = self._line(timeout)
        if line != "ready":
            raise ProgramError(f"{self.name} said {line!r} instead of being ready")

    def go(self) -> None:
        """Let it begin."""
        _pipe(self._process.stdin).write(b"go\n")
        _pipe(self._process.stdin).flush()

    def answer(self, timeout: float) -> dict[str, Any]:
        """Wait for what it answers."""
        found: dict[str, Any] = json.loads(self._line(timeout))
        return found

    def cpu(self) -> float:
        """Seconds that it and the processes that it has started have been on a processor."""
        # Of those that have ended, too.
        return sum(sum(int(field) for field in fields[11:15]) for _, fields in self._group()) / _TICK

    def peak(self) -> float:
        """The most memory that it has had, in MiB, with the processes that it has started."""
        total = 0.0
        for pid, _ in self._group():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                total += next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0)
        return total

    def stop(self) -> None:
        """Let it stand still, with all that it has started."""
        os.killpg(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let what was stopped go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def end(self) -> None:
        """End it at once, with all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _group(self) -> list[tuple[int, list[str]]]:
        """The processes of its group, with what the system tells of each from its state on."""
        found = []
        for pid in _processes():
            fields = _stat(pid)
            if fields is not None and int(fields[2]) == self.pid:
                found.append((pid, fields))
        return found

    def _line(self, timeout: float) -> str:
        out = _pipe(self._process.stdout).fileno()
        until = time.monotonic() + timeout
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                raise ProgramError(f"{self.name} took more than {timeout:.0f} s")
            more = os.read(out, 65536)
            if not more:
                code = self._process.wait()
                raise ProgramError(f"{self.name} ended with {code}: {self._said()}")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()

    def _said(self) -> str:
        return " ".join(self._errors.read_text(errors="replace").split())[-600:]


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _variables(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program, with nothing that leads to a database or changes a library's ways."""
    left_out = ("PG", "DBOS", "PROCRASTINATE", "GRAPHILE", "DATABASE_URL", "PYTHON", "NODE_OPTIONS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return kept | dict(more)


def server_cpu(postmaster: int) -> float:
    """Seconds that a server has been on a processor: the postmaster, what it has, and what it had."""
    total = 0.0
    for pid in (postmaster, *_children(postmaster)):
        fields = _stat(pid)
        if fields is not None:
            # Those that have ended are added up in their parent.
            parts = fields[11:15] if pid == postmaster else fields[11:13]
            total += sum(int(part) for part in parts) / _TICK
    return total


def _children(parent: int) -> Iterator[int]:
    for pid in _processes():
        fields = _stat(pid)
        if fields is not None and int(fields[1]) == parent:
            yield pid


def _processes() -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _stat(pid: int) -> list[str] | None:
    """What the system tells of a process, from its state on; None where there is none, or nobody tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def parent_of(pid: int) -> int | None:
    """The process that has started this one; None where nobody tells."""
    fields = _stat(pid)
    return int(fields[1]) if fields is not None else None
