"""A throw-away server of one's own, for tests and benchmarks."""

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .binaries import find_binaries, program, server_major
from .cluster import (
    OPEN_TO_ALL,
    SHORT,
    SUPERUSER,
    Address,
    Cluster,
    Setting,
    StopMode,
    fits_socket,
    loopback_address,
    unix_sockets,
)
from .errors import EmbeddedError
from .identity import identity_for
from .locks import FileLock, lock, try_lock

_PREFIX = "pgfifo-private-"


class PrivateServer:
    """A server in a temporary folder, with settings of one's own, that is gone with `close`.

    Attributes:
        binaries: the folder of its programs.
        version: its major version, as 18.
        data: its data folder.
        user: its superuser; whoever reaches the socket may be it.
    """

    def __init__(
        self,
        settings: Mapping[str, Setting] | None = None,
        *,
        binaries: Path | None = None,
        copy_of: Path | None = None,
    ) -> None:
        """Make the server, without starting it.

        Args:
            settings: lines of postgresql.conf, as ``{"fsync": False}``. Defaults to none.
            binaries: the folder with its programs. Defaults to `find_binaries`.
            copy_of: a data folder at rest to begin with. Defaults to a new one.

        Raises:
            EmbeddedError: there is no PostgreSQL to be found, or it cannot make a data folder.
        """
        self.binaries = binaries or find_binaries()
        self.version = server_major(self.binaries)
        self.user = SUPERUSER
        identity = identity_for(self.binaries)
        self._folder = _new_folder(OPEN_TO_ALL if identity.switches else Path(tempfile.gettempdir()))
        self._made_in = os.getpid()
        self._owned: FileLock | None = lock(
            self._folder / "owner.lock", shared=False, timeout=5, what="A new folder"
        )
        identity.give(self._folder)
        self._cluster = Cluster(self._folder / "data", self.binaries, self._folder / "server.log", settings)
        self.data = self._cluster.data
        self._address = Address(str(self._folder)) if unix_sockets() else loopback_address()
        atexit.register(self.close)
        try:
            if copy_of is None:
                self._cluster.initdb(sync=False, password=self._address.password)
            else:
                shutil.copytree(copy_of, self.data, symlinks=True)
                (self.data / "postmaster.pid").unlink(missing_ok=True)
                identity.give(self.data)
        except BaseException:
            self.close()
            raise

    @property
    def host(self) -> str:
        """The folder of its socket (or 127.0.0.1 where there are none)."""
        return self._address.host

    @property
    def port(self) -> int:
        """Its port, or the number in its socket's name."""
        return self._address.port

    @property
    def password(self) -> str | None:
        """The superuser's password where one is needed."""
        return self._address.password

    @property
    def settings(self) -> dict[str, Setting]:
        """The lines of postgresql.conf; a change counts from the next start."""
        return self._cluster.settings

    @property
    def running(self) -> bool:
        """Whether its postmaster lives."""
        return self._cluster.postmaster() is not None

    def dsn(self, dbname: str = "postgres") -> str:
        """Return the URL of one of its databases."""
        return self._address.dsn(dbname)

    def start(self, timeout: float = 60.0) -> "PrivateServer":
        """Start it and wait until it answers.

        Args:
            timeout: seconds until it is given up.

        Raises:
            EmbeddedError: it does not come up; the message ends with what the server said.
        """
        self._cluster.start(self._address, timeout)
        return self

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop it and wait until it has gone. ``immediate`` is a crash in the server's eyes."""
        self._cluster.stop(mode)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start it."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """End the postmaster with SIGKILL and wait until the backends have noticed."""
        self._cluster.kill()

    def standby(self, settings: Mapping[str, Setting] | None = None) -> "PrivateServer":
        """Make a streaming standby of this server and start it. This server restarts for the copy.

        Args:
            settings: lines of postgresql.conf. Defaults to this server's own.

        Returns:
            The standby; ``select pg_promote()`` there makes it a primary.
        """
        self.stop()
        copy = PrivateServer(
            self.settings if settings is None else settings, binaries=self.binaries, copy_of=self.data
        )
        self.start()
        copy.settings["primary_conninfo"] = self.dsn()
        signal_file = copy.data / "standby.signal"
        signal_file.touch()
        identity_for(self.binaries).give(signal_file)
        return copy.start()

    def run(self, name: str, *arguments: str | Path, stdin: str = "", timeout: float = 120.0) -> str:
        """Run one of the server's programs against it and return what it prints.

        Args:
            name: the program, as ``pg_dump``. Not each distribution of PostgreSQL has each of them.
            arguments: what follows the connection.
            stdin: what it reads.
            timeout: seconds until it is killed.

        Raises:
            EmbeddedError: there is no such program, or it fails.
        """
        where = {"PGHOST": self.host, "PGPORT": str(self.port), "PGUSER": self.user, "PGDATABASE": "postgres"}
        if self.password:
            where["PGPASSWORD"] = self.password
        command = [program(self.binaries, name), *arguments]
        identity = identity_for(self.binaries)
        done = identity.run(command, cwd=self._folder, stdin=stdin, timeout=timeout, environment=where)
        if done.returncode != 0:
            raise EmbeddedError(f"{name} failed with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def has(self, name: str) -> bool:
        """Tell whether this distribution of PostgreSQL has a program, as ``pg_dump``."""
        try:
            program(self.binaries, name)
        except EmbeddedError:
            return False
        return True

    def log(self) -> str:
        """Return what the server has written so far."""
        try:
            return self._cluster.log.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def close(self) -> None:
        """Stop it the quick way and remove its folder. Doing so twice is harmless."""
        if os.getpid() != self._made_in:
            return  # a forked child shall not take its parent's server away
        owned, self._owned = self._owned, None
        if owned is None:
            return
        atexit.unregister(self.close)
        self._cluster.stop("immediate")
        shutil.rmtree(self._folder, ignore_errors=True)
        owned.release()

    def __enter__(self) -> "PrivateServer":
        """Start it for the length of a block."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Remove it at the end of the block."""
        self.close()


def remove_abandoned() -> int:
    """Stop and remove the private servers of processes that were killed before they could.

    Returns:
        How many there were.
    """
    removed = 0
    binaries = find_binaries()
    mine = {getattr(os, "geteuid", int)(), identity_for(binaries).uid}
    for base in {Path(tempfile.gettempdir()), OPEN_TO_ALL, SHORT}:
        for folder in base.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError, EmbeddedError):
                owner = folder / "owner.lock"
                # Without data it may be one that its owner has made just now, and is about to lock.
                made = owner.exists() and (folder / "data").exists()
                if folder.lstat().st_uid not in mine or not made:
                    continue
                free = try_lock(owner, shared=False)
                if free is not None:
                    with free:
                        Cluster(folder / "data", binaries, folder / "server.log").stop("immediate")
                        shutil.rmtree(folder, ignore_errors=True)
                        removed += 1
    return removed


def _new_folder(base: Path) -> Path:
    """Make a folder whose path will do for a socket."""
    for place in (base, SHORT):
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place)).resolve()
        if not unix_sockets() or fits_socket(folder):
            return folder
        folder.rmdir()
    raise EmbeddedError(f"The paths of temporary folders ({base}) will not do for a Unix socket; set TMPDIR.")
