"""Harm that is done to servers, and how long it took until everything went again."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgfifo.embedded import PrivateServer
from pgfifo.embedded.identity import identity_for
from pgfifo.verify.history import History
from pgfifo.verify.recorder import now


@dataclass(frozen=True)
class Recovery:
    """How long everything took after a blow, in seconds."""

    server: float
    commit: float
    start: float

    def __str__(self) -> str:
        return f"server {self.server:.2f} s, {self.calls}"

    @property
    def calls(self) -> str:
        """The first ones that were answered."""
        return f"commit {self.commit:.2f} s, start {self.start:.2f} s"


class Blow:
    """Something that is done to a server, with the times of it."""

    def __init__(self) -> None:
        self.at = now()
        self.up = inf

    def is_up(self) -> None:
        """Note that a server can be written to again."""
        self.up = now()

    def recovery(self, history: History) -> Recovery:
        """Return how long it took until the server was back, the first enqueue and the first start."""
        since = self.at + 0.02  # what was answered just before may have been written down just after
        commit = min(each.commit.answered for each in history.enqueues if each.commit.called > since)
        start = min(each.claim.answered for each in history.attempts if each.claim.answered > since)
        return Recovery(self.up - self.at, commit - self.at, start - self.at)


def kill_all(server: PrivateServer) -> Blow:
    """End a postmaster and all its children with SIGKILL, and wait until nothing of them is left."""
    postmaster = int((server.data / "postmaster.pid").read_text().split("\n")[0])
    children = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent(path) == postmaster]
    for pid in [postmaster, *children]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    blow = Blow()
    server.kill()
    return blow


def _parent(process: Path) -> int:
    with contextlib.suppress(OSError):
        for line in (process / "status").read_text().splitlines():
            if line.startswith("PPid:"):
                return int(line.split()[1])
    return 0


def either(*servers: PrivateServer) -> str:
    """Return a DSN that finds whichever of some servers can be written to."""
    parts = [conninfo_to_dict(server.dsn()) for server in servers]
    return make_conninfo(
        "",
        host=",".join(str(each["host"]) for each in parts),
        port=",".join(str(each["port"]) for each in parts),
        user=parts[0]["user"],
        dbname=parts[0]["dbname"],
        target_session_attrs="read-write",
        connect_timeout=3,
    )


@contextlib.contextmanager
def small_filesystem(size: str) -> Iterator[Path]:
    """A filesystem of a limited size, as long as the block runs.

    Raises:
        PermissionError: this machine, or this user, may not mount one.
    """
    with tempfile.TemporaryDirectory(prefix="pgfifo-small-") as name:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", name]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise PermissionError(done.stderr.strip())
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


class Ballast:
    """A file that takes all the room a filesystem has left."""

    def __init__(self, place: Path) -> None:
        self._file = place / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Take the room, all but so many bytes."""
        room = shutil.disk_usage(self._file.parent).free - leave
        with self._file.open("ab") as file, contextlib.suppress(OSError):
            for _ in range(max(0, room) // 65536 + 1):
                file.write(b"\0" * 65536)
                file.flush()

    def remove(self) -> None:
        """Give it back."""
        self._file.unlink(missing_ok=True)


def move_to(server: PrivateServer, part: str, place: Path) -> None:
    """Move a folder of a stopped server's data to another place, with a link in its stead."""
    there = place / part
    shutil.copytree(server.data / part, there, symlinks=True)
    shutil.rmtree(server.data / part)
    (server.data / part).symlink_to(there)
    identity_for(server.binaries).give(there)
