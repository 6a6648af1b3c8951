"""One PostgreSQL server: its files, its processes, its address.

Nothing here believes a pid file. Whether a server is up is answered by asking it; a pid is used only after
its command line has shown that it is this server's.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from psycopg import pq

from .binaries import program, server_major
from .errors import EmbeddedError
from .identity import Identity, identity_for

SUPERUSER = "postgres"
OPEN_TO_ALL = Path("/var/tmp")  # noqa: S108  # whoever makes a folder there checks whose it is
SHORT = Path("/tmp")  # noqa: S108  # as above
SOCKET_PORT = 5432
_MARGIN = len(f"/.s.PGSQL.{SOCKET_PORT}")
_SOCKET_PATH_LIMIT = 103 if sys.platform == "darwin" else 107
_ORPHANS_GRACE = 5.0
_HUNG_GRACE = 5.0

StopMode = Literal["smart", "fast", "immediate"]
Setting = str | int | float | bool

# What a killed server, still going down, does to the next one.
_PASSING = re.compile(r"lock file .* already exists|shared memory block .* still in use")
_SIGNALS: Mapping[StopMode, str] = {"smart": "SIGTERM", "fast": "SIGINT", "immediate": "SIGQUIT"}
_UP, _REFUSES = pq.Ping.OK, pq.Ping.REJECT


@dataclass(frozen=True)
class Address:
    """Where a server listens: a folder with its socket, or this machine's loopback with a password.

    Attributes:
        host: the folder of the socket, or 127.0.0.1.
        port: the port, or the number in the socket's name.
        password: the password where one is needed.
    """

    host: str
    port: int = SOCKET_PORT
    password: str | None = None

    def dsn(self, dbname: str, **parameters: Setting) -> str:
        """Return the URL of a database there; parameters are libpq's, as ``connect_timeout=2``."""
        extra = {"host": self.host, "port": self.port} if self.password is None else {}
        place = "" if self.password is None else f":{quote(self.password)}@{self.host}:{self.port}"
        query = "&".join(
            f"{name}={quote(str(value), safe='')}" for name, value in {**extra, **parameters}.items()
        )
        user = f"{SUPERUSER}{place or '@'}"
        return f"postgresql://{user}/{quote(dbname, safe='')}" + (f"?{query}" if query else "")


class Cluster:
    """A data folder, the programs that run it, and where it listens."""

    def __init__(
        self, data: Path, binaries: Path, log: Path, settings: Mapping[str, Setting] | None = None
    ) -> None:
        """Describe a server; nothing is touched yet.

        Args:
            data: the data folder.
            binaries: the folder with ``postgres`` and ``initdb``.
            log: the file for the server's messages.
            settings: lines of postgresql.conf on top of pgfifo's own.
        """
        self.data = data
        self.binaries = binaries
        self.log = log
        self.settings = dict(settings or {})
        self.identity: Identity = identity_for(binaries)

    def initdb(self, *, sync: bool = True, password: str | None = None, timeout: float = 120.0) -> None:
        """Make the data folder, under a temporary name first: a half-made one is never taken for a whole.

        Args:
            sync: wait until it is on disk.
            password: the superuser's; None lets in whoever reaches the socket.
            timeout: seconds until it is given up.

        Raises:
            EmbeddedError: initdb failed.
        """
        for leftover in self.data.parent.glob(f"{self.data.name}.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{self.data.name}.new-", dir=self.data.parent))
        password_file = fresh.with_name(f"{fresh.name}.pw")
        command: list[str | Path] = [program(self.binaries, "initdb"), "-D", fresh, "-U", SUPERUSER]
        command += [
            "--encoding=UTF8",
            "--locale=C",
            "--auth=trust" if password is None else "--auth=scram-sha-256",
        ]
        try:
            if password is not None:
                password_file.touch(mode=0o600)
                password_file.write_text(password)
                self.identity.give(password_file)
                command.append(f"--pwfile={password_file}")
            if not sync:
                command.append("--no-sync")
            self.identity.give(fresh)
            made = self.identity.run(command, cwd=fresh.parent, timeout=timeout)
            if made.returncode != 0:
                raise EmbeddedError(
                    f"initdb failed in {self.data.parent}: {(made.stderr or made.stdout).strip()}"
                )
            with (fresh / "postgresql.conf").open("a") as conf:
                conf.write("\ninclude_if_exists = 'pgfifo.conf'  # rewritten at each start\n")
            fresh.rename(self.data)
        finally:
            password_file.unlink(missing_ok=True)
            if fresh.exists():
                shutil.rmtree(fresh, ignore_errors=True)

    def start(self, address: Address, timeout: float = 60.0) -> None:
        """Start the server and wait until it answers; one that does is left alone.

        What a killed server left behind is cleared away first: a hung postmaster, orphaned backends, a lock
        file with a pid that is somebody else's by now.

        Args:
            address: where it shall listen.
            timeout: seconds until it is given up.

        Raises:
            EmbeddedError: it does not come up; the message ends with what the server said.
        """
        deadline = time.monotonic() + timeout
        if self.postmaster() is not None and self.settled(address, timeout):
            return
        self._configure(address)
        while True:
            self.clear_remains()
            if address.password is None:
                # It names a dead postmaster; it is believed if that pid is a zombie or somebody else's.
                (Path(address.host) / f".s.PGSQL.{address.port}.lock").unlink(missing_ok=True)
            self.log.touch(mode=0o600)
            self.identity.give(self.log)
            said_before = self.log.stat().st_size
            pid = self._launch()
            wait_until(
                lambda pid=pid: not _alive(pid) or ping(address) == _UP,  # type: ignore[misc]
                deadline - time.monotonic(),
            )
            if _alive(pid) and ping(address) == _UP:
                return
            said = self.log.read_bytes()[said_before:].decode(errors="replace").strip()
            passing = _PASSING.search(said)
            if time.monotonic() > deadline or not passing:
                raise EmbeddedError(
                    f"PostgreSQL did not start on {self.data}. It said:\n{said or '(nothing)'}"
                )
            time.sleep(0.2)  # what it complains of passes by itself, and nobody tells when

    def settled(self, address: Address, timeout: float = 60.0) -> bool:
        """Tell whether the server is up, after waiting for the end of a start or stop that is on its way.

        Args:
            address: where it should listen.
            timeout: seconds to wait at most.

        Raises:
            EmbeddedError: it is there, and does not get ready.
        """
        answer = ping(address)

        def decided() -> bool:
            nonlocal answer
            answer = ping(address)
            return answer != _REFUSES

        if answer == _REFUSES and not wait_until(decided, timeout):
            raise EmbeddedError(
                f"PostgreSQL on {self.data} has been starting up or shutting down for {timeout:g} s. "
                f"{self.log} tells what it does; try again later."
            )
        return answer == _UP

    def stop(self, mode: StopMode = "fast", timeout: float = 60.0) -> bool:
        """Stop the server and wait until it has gone; one that does not go is ended the harder way.

        Args:
            mode: as in pg_ctl: ``smart`` (when all have left), ``fast``, ``immediate`` (like a crash).
            timeout: seconds before a harder way is taken.

        Returns:
            Whether there was a server to stop.
        """
        pid = self.postmaster()
        if pid is None:
            return False
        if sys.platform == "win32":
            control = [program(self.binaries, "pg_ctl"), "stop", "-D", self.data, "-m", mode]
            self.identity.run(control, cwd=self.data, timeout=timeout)
            return True
        for name, patience in ((_SIGNALS[mode], timeout), ("SIGQUIT", _HUNG_GRACE), ("SIGKILL", _HUNG_GRACE)):
            _signal(pid, name)
            if wait_until(lambda: not _alive(pid), patience):
                break
        self.clear_remains()
        return True

    def kill(self) -> None:
        """End the postmaster with SIGKILL, as a crash would, and wait until its children have noticed."""
        pid = self.postmaster()
        if pid is not None:
            _signal(pid, "SIGKILL")
            wait_until(lambda: not _alive(pid), _HUNG_GRACE)
        self._clear_orphans()

    def postmaster(self) -> int | None:
        """Return the pid of this server's postmaster, None if there is none, whatever the pid file says."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int((self.data / "postmaster.pid").read_text().split("\n")[0])
            if pid > 0 and _alive(pid) and self._is_ours(pid):
                return pid
        return None

    def clear_remains(self) -> None:
        """Clear away what an earlier run left: a hung postmaster, its orphans, its pid file."""
        pid = self.postmaster()
        if pid is not None:
            if wait_until(lambda: not _alive(pid), _HUNG_GRACE):
                return
            _signal(pid, "SIGQUIT")
            if not wait_until(lambda: not _alive(pid), _HUNG_GRACE):
                _signal(pid, "SIGKILL")
                wait_until(lambda: not _alive(pid), _HUNG_GRACE)
        self._clear_orphans()
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def major(self) -> int:
        """Return the major version of the data folder, 0 when it is not one."""
        try:
            return int((self.data / "PG_VERSION").read_text())
        except (OSError, ValueError):
            return 0

    def _configure(self, address: Address) -> None:
        """Write the settings of this run."""
        mine: dict[str, Setting] = {"lc_messages": "C", "cluster_name": "pgfifo"}
        if address.password is None:
            mine |= {"listen_addresses": "", "unix_socket_directories": address.host}
            mine |= {"unix_socket_permissions": "0700", "port": address.port}
        else:
            mine |= {"listen_addresses": address.host, "port": address.port, "unix_socket_directories": ""}
        lines = [f"{name} = {_literal(value)}\n" for name, value in (mine | self.settings).items()]
        conf = self.data / "pgfifo.conf"
        conf.write_text("".join(lines))
        self.identity.give(conf)

    def _launch(self) -> int:
        """Start the postmaster in the background and return its pid."""
        if sys.platform == "win32":
            control = [program(self.binaries, "pg_ctl"), "start", "-D", self.data, "-l", self.log, "-w"]
            self.identity.run(control, cwd=self.data.parent, timeout=120)
            return self.postmaster() or 0
        # A shell in between, so that init and not this process becomes the parent: a dead postmaster shall
        # not stay behind as this process's zombie, which another one would take for alive.
        script = 'log=$1; shift; exec </dev/null; "$@" >>"$log" 2>&1 & echo $!'
        server: list[str | Path] = [
            *self.identity.prefix,
            program(self.binaries, "postgres"),
            "-D",
            self.data,
        ]
        shell = Identity(uid=self.identity.uid, gid=self.identity.gid)
        answer = shell.run(
            ["/bin/sh", "-c", script, "sh", self.log, *server], cwd=self.data.parent, timeout=20
        )
        try:
            return int(answer.stdout)
        except ValueError as error:
            raise EmbeddedError(f"Cannot start {server[-3]}: {answer.stderr.strip()}") from error

    def _is_ours(self, pid: int) -> bool:
        """Tell from its command line whether a process is a postmaster on this data folder."""
        if sys.platform == "linux":
            try:
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                return False
            return os.fsencode(self.data) in arguments and arguments[0].endswith(b"postgres")
        if sys.platform == "win32":
            return True
        shown = subprocess.run(
            ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout
        return "postgres" in shown and str(self.data) in shown

    def _orphans(self) -> list[int]:
        """List the server processes that still live in this data folder (elsewhere than on Linux: none)."""
        if sys.platform != "linux":
            return []
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if (entry / "cwd").readlink() == self.data and _alive(int(entry.name)):
                        found.append(int(entry.name))
        return found

    def _clear_orphans(self) -> None:
        """Wait until a dead postmaster's children have noticed, and end those that do not."""
        if not (self.data / "postmaster.pid").exists():
            return
        if not wait_until(lambda: not self._orphans(), _ORPHANS_GRACE):
            for pid in self._orphans():
                _signal(pid, "SIGKILL")
            wait_until(lambda: not self._orphans(), _ORPHANS_GRACE)


def ping(address: Address) -> pq.Ping:
    """Ask whether a server is there: OK, REJECT (starting or stopping) or NO_RESPONSE, after 2 s at most."""
    return pq.Ping(pq.PGconn.ping(address.dsn("postgres", connect_timeout=2).encode()))


def unix_sockets() -> bool:
    """Tell whether this platform's PostgreSQL and libpq meet over Unix sockets."""
    return os.name != "nt" and hasattr(socket, "AF_UNIX")


def fits_socket(folder: Path) -> bool:
    """Tell whether a folder can hold a Unix socket: its path is short, and no list of hosts to libpq."""
    return len(os.fsencode(folder)) + _MARGIN <= _SOCKET_PATH_LIMIT and not set(str(folder)) & set(',"\n')


def loopback_address() -> Address:
    """Choose a free port of the loopback and a password, for platforms without Unix sockets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Address("127.0.0.1", probe.getsockname()[1], secrets.token_urlsafe(24))


def wait_until(condition: Callable[[], object], timeout: float) -> bool:
    """Poll a condition until it holds.

    Args:
        condition: what to wait for.
        timeout: seconds to wait at most.

    Returns:
        Whether it came to hold.
    """
    deadline = time.monotonic() + timeout
    pause = 0.002
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return True


def check_version(cluster: Cluster) -> None:
    """Insist that the programs fit the data folder.

    Raises:
        EmbeddedError: the folder was made by another major version.
    """
    have, made_by = server_major(cluster.binaries), cluster.major()
    if have != made_by:
        raise EmbeddedError(
            f"{cluster.data} was made by PostgreSQL {made_by}, but {cluster.binaries} is {have}. "
            f"Set PGFIFO_PG_BIN to the folder of a PostgreSQL {made_by}, or move the data away to start anew."
        )


def _alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    if sys.platform == "linux":
        try:
            state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        except (OSError, IndexError):
            return False
        return state not in (b"Z", b"X")
    if sys.platform == "win32":
        return pid > 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _signal(pid: int, name: str) -> None:
    """Send a signal to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, getattr(signal, name))


def _literal(value: Setting) -> str:
    """Write a value for postgresql.conf."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return (
        str(value)
        if isinstance(value, int | float)
        else "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
    )
