"""The small process that starts a worker's commands, and that kills them when the worker is gone.

Run as a program of its own (``python -I -S keeper.py FD PID``, standard library only), one per worker:

    worker ──socket── keeper ──┬─ command (leader of its own session and process group)
                               └─ command …

A worker that is killed with SIGKILL cannot clean up behind itself, so somebody else has to: the keeper sees
its end (the socket closes; on Linux a pidfd says so even where a forked process still holds the socket) and
kills the process group of each command at once, grandchildren included. Should the keeper itself be killed,
the kernel kills the commands' leaders (PDEATHSIG on Linux), and the worker, who sees the socket close, kills
the groups.

It is a process of its own, with one thread, because there fork and prctl are safe: a worker has threads.

Frames are a length of four bytes (big-endian) and that much JSON. To the keeper:
    {"key": 1, "argv": […], "env": {…}, "cwd": null}   and descriptors for 0 to 3
    {"key": 1, "signal": 15}                           to the whole group
From the keeper:
    {"key": 1, "pid": 4711}
    {"key": 1, "exit": 0}         negative: ended by that signal. Sent when nothing of the group is left.
    {"key": 1, "errno": 2}        could not be started
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
from typing import Any, NoReturn

_PDEATHSIG = 1
_SUBREAPER = 36
_HEADER = 4
_NOT_STARTED = 127


class Keeper:
    """The keeper's loop."""

    def __init__(self, connection: socket.socket, worker: int) -> None:
        self._socket = connection
        self._worker = worker
        self._me = os.getpid()
        self._selector = selectors.DefaultSelector()
        self._incoming = bytearray()
        self._descriptors: list[int] = []
        self._outgoing = bytearray()
        self._keys: dict[int, int] = {}  # leader's pid → key
        self._pids: dict[int, int] = {}  # key → leader's pid
        self._errors: dict[int, int] = {}  # leader's pid → pipe on which a failed exec tells its errno
        self._leaving: dict[
            int, tuple[int, int]
        ] = {}  # pid of a leader that ended, whose group is not empty yet → key, exit
        self._prctl = _find_prctl()

    def run(self) -> None:
        """Serve until the worker is gone; then kill what is left."""
        woken, wake = socket.socketpair()
        for end in (woken, wake, self._socket):
            end.settimeout(0)
        _quiet_signals()
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        if self._prctl:
            # Orphans of the commands come to us, so that we can tell when a group is empty.
            self._prctl(_SUBREAPER, 1, 0, 0, 0)
        self._selector.register(woken, selectors.EVENT_READ)
        self._selector.register(self._socket, selectors.EVENT_READ)
        watched = self._watch_worker()
        try:
            while True:
                ready = {key.fd: events for key, events in self._selector.select(self._patience())}
                if watched in ready:
                    return
                if woken.fileno() in ready:
                    woken.recv(4096)
                events = ready.get(self._socket.fileno(), 0)
                if events & selectors.EVENT_READ and not self._receive():
                    return
                self._reap()
                self._flush()
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            for pid in self._keys:
                _kill(pid, signal.SIGKILL)

    def _watch_worker(self) -> int:
        """Return a descriptor that becomes readable when the worker's process ends, or -1."""
        if not hasattr(os, "pidfd_open"):
            return -1
        try:
            watched: int = os.pidfd_open(self._worker)
        except OSError:
            return -1
        if os.getppid() != self._worker:
            os.close(watched)  # it ended before we looked, and the number is somebody else's by now
            sys.exit(0)
        self._selector.register(watched, selectors.EVENT_READ)
        return watched

    def _patience(self) -> float | None:
        """Return how long to wait for events (seconds): a group that becomes empty sends none."""
        return 0.01 if self._leaving else None

    def _receive(self) -> bool:
        """Read what the worker sent and act on it; False when the worker is gone."""
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(65536, socket.CMSG_SPACE(64 * 4), _RECEIVE_FLAGS)
        except (BlockingIOError, InterruptedError):
            return True
        for _level, _kind, payload in ancillary:
            fds = memoryview(payload[: len(payload) - len(payload) % 4]).cast("i").tolist()
            for fd in fds:
                os.set_inheritable(fd, False)  # noqa: FBT003 - its signature
            self._descriptors.extend(fds)
        if not data or flags & socket.MSG_CTRUNC:
            return False  # truncated: out of descriptors, and we no longer know which belong to whom
        self._incoming += data
        while len(self._incoming) >= _HEADER:
            end = _HEADER + int.from_bytes(self._incoming[:_HEADER], "big")
            if len(self._incoming) < end:
                break
            message = json.loads(self._incoming[_HEADER:end])
            del self._incoming[:end]
            if "argv" in message:
                self._start(message)
            else:
                self._signal(message["key"], message["signal"])
        return True

    def _start(self, message: dict[str, Any]) -> None:
        fds, self._descriptors = self._descriptors[:4], self._descriptors[4:]
        reading, writing = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(reading)
            self._say({"key": message["key"], "errno": error.errno})
            return
        else:
            if pid == 0:
                self._become(message, fds, writing)
        finally:
            for fd in (*fds, writing):
                os.close(fd)
        self._keys[pid] = message["key"]
        self._pids[message["key"]] = pid
        self._errors[pid] = reading
        self._say({"key": message["key"], "pid": pid})

    def _become(self, message: dict[str, Any], fds: list[int], errors: int) -> NoReturn:
        """Turn the forked child into the command."""
        try:
            os.setsid()
            if self._prctl:
                self._prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != self._me:
                    os._exit(_NOT_STARTED)
            import fcntl  # not there on Windows, where this module is imported, too

            # One of ours may have a number that the command is to have: out of its way first.
            errors = fcntl.fcntl(errors, fcntl.F_DUPFD_CLOEXEC, 16)
            for number, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in fds]):
                os.dup2(fd, number)
            if message["cwd"] is not None:
                os.chdir(message["cwd"])
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            argv = [os.fsencode(word) for word in message["argv"]]
            env = {os.fsencode(name): os.fsencode(value) for name, value in message["env"].items()}
            os.execvpe(argv[0], argv, env)  # noqa: S606
        except OSError as error:
            os.write(errors, str(error.errno).encode())
        except BaseException:  # noqa: BLE001 - whatever it is, this process is the fork of another
            os.write(errors, b"0")
        finally:
            os._exit(_NOT_STARTED)

    def _signal(self, key: int, number: int) -> None:
        pid = self._pids.get(key)
        if pid is not None:
            _kill(pid, number)

    def _reap(self) -> None:
        """Collect what ended; the rest of a leader's group is killed while the leader still has its pid."""
        while (ended := _next_ended()) is not None:
            pid, status = ended
            if pid not in self._keys:
                _collect(pid)
                continue
            _kill(pid, signal.SIGKILL)
            status = _collect(pid, status)
            key = self._keys.pop(pid)
            del self._pids[key]
            reading = self._errors.pop(pid)
            told = os.read(reading, 16)
            os.close(reading)
            if told:
                self._say({"key": key, "errno": int(told)})
            else:
                self._leaving[pid] = (key, os.waitstatus_to_exitcode(status))
        for pid, (key, code) in list(self._leaving.items()):
            if _group_is_empty(pid):
                del self._leaving[pid]
                self._say({"key": key, "exit": code})

    def _say(self, message: dict[str, Any]) -> None:
        encoded = json.dumps(message).encode()
        self._outgoing += len(encoded).to_bytes(_HEADER, "big") + encoded

    def _flush(self) -> None:
        """Send what there is to say. Never waits: the worker may be waiting for us to read."""
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except (BlockingIOError, InterruptedError):
            pass
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)
        if self._selector.get_key(self._socket).events != wanted:
            self._selector.modify(self._socket, wanted)


_RECEIVE_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def _quiet_signals() -> None:
    """Let nothing but the worker's end stop us: signals to the commands' session or terminal are not ours.

    Blocked, with their default action, so that a child has only to unblock them.
    """
    quiet = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTSTP}
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, quiet)


def _find_prctl() -> Any:  # noqa: ANN401 - a C function
    if not sys.platform.startswith("linux"):
        return None
    try:
        import ctypes

        return ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return None


def _kill(pid: int, number: int) -> None:
    """Send a signal to the group of a leader that was not collected yet."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)  # forked, and not yet in a group of its own
    except PermissionError:
        pass  # it became another user's; macOS says so of a group of zombies, too


def _next_ended() -> tuple[int, int | None] | None:
    """Return the pid of a child that ended, and its status where looking means collecting; or None."""
    try:
        if hasattr(os, "waitid"):
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return None if info is None else (info.si_pid, None)
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _collect(pid: int, status: int | None = None) -> int:
    return os.waitpid(pid, 0)[1] if status is None else status


def _group_is_empty(pgid: int) -> bool:
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return sys.platform == "darwin"
    return False


def main(descriptor: int, worker: int) -> None:
    """Keep the commands of the worker (a pid), who holds the other end of the socket."""
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    Keeper(connection, worker).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
