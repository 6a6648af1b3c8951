"""Commands: a handler that runs a program per execution.

The program gets the payload as JSON on its standard input and who it is in its environment (PGFIFO_ID,
PGFIFO_ATTEMPT, PGFIFO_TOKEN, PGFIFO_ACTION, PGFIFO_GROUP), without the way to the database. Its exit status
is the outcome:

    0       succeeded
    65      failed, and another attempt would fail as well (EX_DATAERR of sysexits.h)
    75      failed, to be tried again (EX_TEMPFAIL)
    other   failed, to be tried again; so is an end by a signal

It may say how far it is, a line each time, on the descriptor that PGFIFO_PROGRESS_FD names: a number from 0
to 1 or a percentage, a message, or both, as ``echo 40% uploading >&$PGFIFO_PROGRESS_FD``.

Each runs in a session and process group of its own. When its main process ends, whatever is left of the group
is killed before the outcome is handed in; a program that is to stay leaves the group (setsid). Cancelled, the
group gets SIGTERM, and SIGKILL when it takes longer than ``kill_after``. It does not outlive its worker: see
keeper.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pgfifo import keeper
from pgfifo.outcome import NO_RESULT, RESULT_LIMIT, Outcome, failed, succeeded
from pgfifo.processes import PROBES, SUPERVISED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pgfifo.execution import Execution

DATA_ERROR = 65
"""The exit status for: failed, do not try again."""
STDERR_LIMIT = 4 * 1024
"""How many bytes from the end of its standard error an execution that failed keeps."""

_CHUNK = 65536
_DISCONNECTED = "killed, because the process that watched over it was"


class Command:
    """A handler that runs a program, or a line of shell, for each execution."""

    def __init__(
        self,
        command: Sequence[str] | str,
        *,
        result: Literal["json"] | None = None,
        kill_after: float = 10.0,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> None:
        """Prepare the handler; nothing is run yet.

        Args:
            command: The program and its arguments, run without a shell; or text, a line for ``/bin/sh``.
            result: ``"json"``: what it writes to its standard output is the result, up to 1 MiB. Defaults to
                none, and its standard output is the worker's.
            kill_after: Seconds from SIGTERM to SIGKILL, when it is cancelled or its time is up. A
                ``kill_after`` of the policy wins. Defaults to 10.
            env: Variables to set beside those of the worker's environment.
            cwd: The folder to run it in. Defaults to the worker's.

        Raises:
            ValueError: The command is empty.
            NotImplementedError: The system has no process groups (Windows).
        """
        if not hasattr(socket, "send_fds") or not hasattr(os, "killpg"):
            raise NotImplementedError("commands need a POSIX system")
        if not command:
            raise ValueError("the command is empty")
        self.argv = (
            ["/bin/sh", "-c", command] if isinstance(command, str) else [str(word) for word in command]
        )
        self.result = result
        self.kill_after = kill_after
        self.cwd = None if cwd is None else str(cwd)
        self._env = {**_without_database(os.environ), **(env or {})}

    def problem(self) -> str | None:
        """Return why the program cannot be run from here, or None if it can."""
        program = self.argv[0]
        if os.sep in program and self.cwd is not None:
            program = os.path.join(self.cwd, program)  # noqa: PTH118 - execvp's rules, not pathlib's
        return missing(program, self._env.get("PATH"), shown=self.argv[0])

    async def __call__(self, execution: Execution) -> Outcome:
        """Run the program for one execution."""
        with contextlib.ExitStack() as files:
            stderr = files.enter_context(_Reader(STDERR_LIMIT, keep_end=True, forward_to=2))
            progress = files.enter_context(_Progress(execution))
            stdout = files.enter_context(_Reader(RESULT_LIMIT)) if self.result else None
            out = stdout.writing if stdout else _standard(1)
            env = self._environment(execution)
            with _input(execution.payload_text) as stdin:
                child = _link().start(
                    self.argv, env, self.cwd, (stdin, out, stderr.writing, progress.writing)
                )
            readers = [reader for reader in (stdout, stderr, progress) if reader is not None]
            for reader in readers:
                reader.start()
            kill_after = self.kill_after if execution.kill_after is None else execution.kill_after
            cancelled, status = await _ended(child, kill_after)
            for reader in readers:
                reader.finish()
            if cancelled and status != 0:
                raise asyncio.CancelledError
            return self._outcome(status, stdout, stderr)

    def _outcome(self, status: int | str, stdout: _Reader | None, stderr: _Reader) -> Outcome:
        if status == 0:
            return _result(stdout) if stdout else NO_RESULT
        if isinstance(status, str):
            return failed(status)
        what, said = how(status), stderr.text().strip()
        return failed(f"{what}: {said}" if said else what, retry=status != DATA_ERROR)

    def _environment(self, execution: Execution) -> dict[str, str]:
        return self._env | {
            "PGFIFO_ID": str(execution.id),
            "PGFIFO_ATTEMPT": str(execution.attempt),
            "PGFIFO_TOKEN": execution.token,
            "PGFIFO_ACTION": execution.action,
            "PGFIFO_GROUP": execution.group_text,
            "PGFIFO_PROGRESS_FD": "3",
        }

    def __repr__(self) -> str:
        return f"<pgfifo.Command {' '.join(self.argv)}>"


async def run_in_place(
    argv: Sequence[str],
    env: Mapping[str, str],
    holder: Reporting,
    *,
    kill_after: float,
    started: Callable[[Callable[[int], None]], None],
) -> tuple[bool, int | str]:
    """Run a program with the standard streams of this process, watched over like any other command.

    Args:
        argv: The program and its arguments.
        env: Its environment.
        holder: Who is told what it says of its progress.
        kill_after: Seconds from SIGTERM to SIGKILL, when this task is cancelled.
        started: Told, when it was started, what sends a signal to its whole group.

    Returns:
        Whether the task was cancelled, and the exit status: negative if a signal ended it, or a text if it
        could not be run.
    """
    with _Progress(holder) as lines:
        files = (_standard(0), _standard(1), _standard(2), lines.writing)
        child = _link().start(list(argv), dict(env), None, files)
        lines.start()
        started(child.signal)
        ended = await _ended(child, kill_after)
        lines.finish()
    return ended


def how(status: int) -> str:
    """Return in words how a program ended that did not succeed."""
    return f"exit status {status}" if status > 0 else f"killed by {_signal_name(-status)}"


def missing(program: str, path: str | None = None, *, shown: str | None = None) -> str | None:
    """Return why a program cannot be run from here, or None if it can.

    Args:
        program: Its name or path.
        path: Where to look for it. Defaults to PATH.
        shown: What it is called in the answer. Defaults to the program.
    """
    if shutil.which(program, path=path):
        return None
    if os.sep in program and Path(program).exists():
        return f"cannot run {(shown or program)!r}: it is not an executable file"
    return f"cannot run {(shown or program)!r}: there is no such program"


class Reporting(Protocol):
    """Who is told of progress."""

    def progress(self, fraction: float | None = None, message: str | None = None) -> None:
        """Say how far it is."""


def _without_database(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what leads to the database: ours, libpq's, and DATABASE_URL.

    Nor is there what is between the processes of a worker: a command is none of them.
    """
    ours = environment.get(PROBES)
    return {
        name: value
        for name, value in environment.items()
        if name not in ("DATABASE_URL", SUPERVISED, PROBES)
        and not (ours and value.startswith(ours))
        and not (name.startswith("PGFIFO_") and name.endswith("DSN"))
        and not name.startswith(_LIBPQ)
    }


_LIBPQ = (
    "PGHOST",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGPASS",
    "PGSERVICE",
    "PGSSL",
    "PGREQUIRE",
    "PGOPTIONS",
    "PGAPPNAME",
    "PGTARGETSESSIONATTRS",
    "PGCHANNELBINDING",
    "PGGSS",
    "PGKRB",
)


def _result(stdout: _Reader) -> Outcome:
    if stdout.cut:
        return NO_RESULT.without_result(f"standard output was longer than {RESULT_LIMIT} bytes")
    try:
        text = stdout.taken.decode()
        if not text.strip():
            return NO_RESULT
        checked = succeeded(json.loads(text, parse_constant=_refuse))
    except (ValueError, RecursionError) as error:
        return NO_RESULT.without_result(f"standard output is not JSON: {error}")
    # The text itself keeps numbers as exact as they were written.
    return Outcome("succeeded", text) if checked.result is not None else checked


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not in JSON")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextlib.contextmanager
def _input(text: str) -> Iterator[int]:
    """Yield a descriptor that reads as this text: a file without a name, which nobody has to feed."""
    data = text.encode()
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("payload")
    else:
        with tempfile.TemporaryFile(buffering=0) as file:
            fd = os.dup(file.fileno())
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def _standard(fd: int) -> int:
    """Return one of this process's standard streams, or a sink if it was closed."""
    try:
        os.fstat(fd)
    except OSError:
        return _sink()
    return fd


def _sink() -> int:
    global _sink_fd
    if _sink_fd < 0:
        _sink_fd = os.open(os.devnull, os.O_RDWR)
    return _sink_fd


_sink_fd = -1


class _Reader:
    """A pipe that a program writes to; what comes is kept up to a limit, from the beginning or the end."""

    def __init__(self, limit: int, *, keep_end: bool = False, forward_to: int | None = None) -> None:
        self.taken = bytearray()
        self.cut = False
        self._limit = limit
        self._keep_end = keep_end
        self._forward_to = forward_to
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> _Reader:
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close_writing()
        if self._reading >= 0:
            self._loop.remove_reader(self._reading)
            os.close(self._reading)
            self._reading = -1

    def start(self) -> None:
        """Read from now on. The program has its own copy of the writing end."""
        self._close_writing()
        self._loop.add_reader(self._reading, self._read)

    def finish(self) -> None:
        """Take what is still in the pipe. Its end may not come: a process that left the group can hold it."""
        while self._read():
            pass

    def text(self) -> str:
        """Return what was kept."""
        return self.taken.decode(errors="replace")

    def _close_writing(self) -> None:
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def _read(self) -> bool:
        """Take one piece; False when there is none."""
        try:
            data = os.read(self._reading, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._reading)
            return False
        if self._forward_to is not None:
            with contextlib.suppress(OSError):
                os.write(self._forward_to, data)
        self.taken += data
        if len(self.taken) > self._limit:
            self.cut = True
            del self.taken[slice(None, -self._limit) if self._keep_end else slice(self._limit, None)]
        return True


class _Progress(_Reader):
    """A pipe with lines that say how far the program is."""

    def __init__(self, execution: Reporting) -> None:
        super().__init__(STDERR_LIMIT, keep_end=True)
        self._execution = execution

    def _read(self) -> bool:
        if not super()._read():
            return False
        *lines, rest = self.taken.split(b"\n")
        self.taken = rest
        for line in lines:
            self._tell(line.decode(errors="replace").strip())
        return True

    def _tell(self, line: str) -> None:
        first, _, rest = line.partition(" ")
        try:
            fraction = float(first.removesuffix("%")) / (100 if first.endswith("%") else 1)
        except ValueError:
            fraction = -1.0
        if 0 <= fraction <= 1:
            self._execution.progress(fraction, rest.strip() or None)
        elif line:
            self._execution.progress(message=line)


class _Child:
    """A program that was started, or is about to be."""

    def __init__(self, link: _Link, key: int, program: str) -> None:
        self._link = link
        self.key = key
        self.program = program
        self.pid: int | None = None
        # Its exit status (negative: the signal that ended it), or the error to record.
        self.ended: asyncio.Future[int | str] = link.loop.create_future()

    def signal(self, number: int) -> None:
        """Send a signal to its whole group; nothing happens when it has ended."""
        if not self.ended.done():
            self._link.send({"key": self.key, "signal": int(number)})


async def _ended(child: _Child, kill_after: float) -> tuple[bool, int | str]:
    """Wait for the end; a first cancellation sends SIGTERM, a second one SIGKILL at once."""
    cancelled = False
    patience: asyncio.TimerHandle | None = None
    try:
        while True:
            try:
                status = await asyncio.shield(child.ended)
                if status is _DISCONNECTED and child.pid is not None:
                    await _until_gone(child.pid)
                return cancelled, status
            except asyncio.CancelledError:
                child.signal(signal.SIGKILL if cancelled else signal.SIGTERM)
                if not cancelled:
                    loop = asyncio.get_running_loop()
                    patience = loop.call_later(kill_after, child.signal, signal.SIGKILL)
                cancelled = True
    finally:
        if patience:
            patience.cancel()


async def _until_gone(group: int) -> None:
    """Wait for the end of a group that was killed and is nobody's to collect."""
    with contextlib.suppress(OSError):
        while True:
            os.killpg(group, 0)
            await asyncio.sleep(0.01)


class _Link:
    """The keeper process of an event loop, and the socket to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.closed = False
        self._children: dict[int, _Child] = {}
        self._last = 0
        self._incoming = bytearray()
        self._socket, theirs = socket.socketpair()
        with theirs:
            program = [sys.executable, "-I", "-S", keeper.__file__, str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        loop.add_reader(self._socket, self._receive)

    def start(
        self, argv: list[str], env: dict[str, str], cwd: str | None, files: tuple[int, int, int, int]
    ) -> _Child:
        """Have a program started; it gets copies of these files, as descriptors 0 to 3."""
        self._last += 1
        child = self._children[self._last] = _Child(self, self._last, argv[0])
        self.send({"key": child.key, "argv": argv, "env": env, "cwd": cwd}, files)
        return child

    def send(self, message: dict[str, object], files: Sequence[int] = ()) -> None:
        """Send a message. This may wait for the keeper, who always reads."""
        if self.closed:
            return
        encoded = json.dumps(message).encode()
        data = len(encoded).to_bytes(4, "big") + encoded
        try:
            sent = socket.send_fds(self._socket, [data], list(files)) if files else 0
            self._socket.sendall(data[sent:])
        except OSError:
            self._lose()

    def close(self) -> None:
        """Let the keeper go, and with it what still runs."""
        self._lose()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)

    def abandon(self) -> None:
        """Let go of the socket in a forked process, so that it does not stand for the worker."""
        self.closed = True
        self._socket.close()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_CHUNK, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        self._incoming += data
        at = 0
        while len(self._incoming) >= at + 4:
            end = at + 4 + int.from_bytes(self._incoming[at : at + 4], "big")
            if len(self._incoming) < end:
                break
            self._hear(json.loads(self._incoming[at + 4 : end]))
            at = end
        del self._incoming[:at]

    def _hear(self, message: dict[str, int]) -> None:
        key = message["key"]
        if "pid" in message:
            self._children[key].pid = message["pid"]
            return
        child = self._children.pop(key)
        if "errno" in message:
            child.ended.set_result(f"cannot run {child.program!r}: {_why(message['errno'])}")
        else:
            child.ended.set_result(message["exit"])

    def _lose(self) -> None:
        """Do what is left to do when there is no keeper any more: kill the groups that it kept."""
        if self.closed:
            return
        self.closed = True
        self.loop.remove_reader(self._socket)
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.1)
        children, self._children = list(self._children.values()), {}
        for child in children:
            if child.pid is not None:
                with contextlib.suppress(OSError):
                    os.killpg(child.pid, signal.SIGKILL)
            child.ended.set_result(_DISCONNECTED)


def _why(number: int) -> str:
    if number == 0:
        return "its arguments or environment hold what no program can be given"
    why = os.strerror(number)
    return f"{why} (does the script begin with #! and an interpreter?)" if why == "Exec format error" else why


_links: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Link] = weakref.WeakKeyDictionary()
_users: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, int] = weakref.WeakKeyDictionary()


def _link() -> _Link:
    """Return the running loop's keeper; start one if there is none, or no longer."""
    loop = asyncio.get_running_loop()
    link = _links.get(loop)
    if link is None or link.closed:
        link = _links[loop] = _Link(loop)
    return link


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Run commands within; at the end of the last such block of an event loop its keeper ends."""
    loop = asyncio.get_running_loop()
    _users[loop] = _users.get(loop, 0) + 1
    try:
        yield
    finally:
        _users[loop] -= 1
        link = None if _users[loop] else _links.pop(loop, None)
        if link is not None:
            link.close()


def _after_fork() -> None:
    for link in list(_links.values()):
        link.abandon()
    _links.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
