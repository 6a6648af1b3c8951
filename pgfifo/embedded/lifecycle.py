"""The embedded server that processes share: start, use, stop."""

import atexit
import contextlib
import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg

from .binaries import find_binaries
from .cluster import (
    OPEN_TO_ALL,
    SHORT,
    Address,
    Cluster,
    check_version,
    fits_socket,
    loopback_address,
    ping,
    unix_sockets,
)
from .errors import EmbeddedError
from .identity import identity_for
from .locks import FileLock, lock, try_lock

DATABASE = "pgfifo"
"""The database that `Embedded.dsn` names."""

_CONTROL_TIMEOUT = 150.0
_RECOVERY_TIMEOUT = 120.0
_LOG_LIMIT = 10_000_000


@dataclass(frozen=True)
class Status:
    """What there is to know about an embedded server.

    Attributes:
        running: whether it answers.
        version: the server's version as it tells it, or that of the data when it does not run; empty when
            there is none yet.
        dsn: the URL of its database; it works only while it runs.
        data_dir: the folder with everything that belongs to it.
        users: how many leases are held now. Exact on Linux; elsewhere 1 stands for one or more.
        binaries: the folder of the programs that run it, None when none are found.
        stays: whether it was started to stay until it is stopped.
    """

    running: bool
    version: str
    dsn: str
    data_dir: Path
    users: int
    binaries: Path | None
    stays: bool


class Embedded:
    """A lease on a running embedded server. It ends with `close`, the ``with`` block, or the process.

    Attributes:
        dsn: the URL of the database ``pgfifo`` in it.
        data_dir: the folder with everything that belongs to it.
    """

    def __init__(self, home: "_Home", dsn: str, lease: FileLock) -> None:
        """Use `acquire`."""
        self.dsn = dsn
        self.data_dir = home.path
        self._home = home
        self._lease: FileLock | None = lease
        atexit.register(self.close)

    def close(self) -> None:
        """Give the lease back and stop the server if nobody else uses it. Doing so twice is harmless.

        Raises:
            EmbeddedError: another process has kept the start and stop lock for minutes.
        """
        lease, self._lease = self._lease, None
        if lease is None:
            return
        atexit.unregister(self.close)
        lease.release()
        with self._home.control():
            self._home.stop_if_unused()

    def status(self) -> Status:
        """Tell how the server is: its version, its programs."""
        return status(self.data_dir)

    def __enter__(self) -> "Embedded":
        """Hold the lease for the length of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lease back at the end of the block."""
        self.close()


def acquire(data_dir: Path | None = None, keep: bool = False) -> Embedded:
    """Take a lease on the embedded server, making and starting it where needed.

    Args:
        data_dir: the folder with everything that belongs to it. Defaults to `default_data_dir`.
        keep: leave the server running when the last lease ends, until `stop`. Defaults to False.

    Returns:
        The lease, which holds the DSN.

    Raises:
        EmbeddedError: there is no PostgreSQL to be found, or it does not start.
    """
    home = _Home(data_dir)
    home.make()
    with home.control():
        dsn = home.ensure_running()
        if keep:
            home.stays.touch(mode=0o600)
        # Nobody holds this lock exclusively but under the control lock.
        lease = lock(home.users, shared=True, timeout=_CONTROL_TIMEOUT, what="The embedded PostgreSQL")
    return Embedded(home, dsn, lease)


def start(data_dir: Path | None = None) -> Status:
    """Start the embedded server so that it stays until `stop`; one that runs already stays from now on.

    Args:
        data_dir: its folder. Defaults to `default_data_dir`.

    Raises:
        EmbeddedError: there is no PostgreSQL to be found, or it does not start.
    """
    with acquire(data_dir, keep=True) as server:
        return status(server.data_dir)


def stop(data_dir: Path | None = None) -> bool:
    """Stop the embedded server, whoever uses it.

    Args:
        data_dir: its folder. Defaults to `default_data_dir`.

    Returns:
        Whether there was one running.

    Raises:
        EmbeddedError: another process has kept the start and stop lock for minutes.
    """
    home = _Home(data_dir)
    if not home.path.is_dir():
        return False
    with home.control():
        return home.stop()


def status(data_dir: Path | None = None) -> Status:
    """Tell how the embedded server is, without changing anything.

    Args:
        data_dir: its folder. Defaults to `default_data_dir`.
    """
    home = _Home(data_dir)
    dsn = home.dsn()
    version = _version(dsn) if dsn else ""
    try:
        binaries: Path | None = find_binaries(home.made_by() or None)
    except EmbeddedError:
        binaries = None
    return Status(
        running=bool(version),
        version=version or str(home.made_by() or ""),
        dsn=dsn,
        data_dir=home.path,
        users=_holders(home.users),
        binaries=binaries,
        stays=home.stays.exists(),
    )


def url(data_dir: Path | None = None) -> str:
    """Return the DSN of the running embedded server.

    Args:
        data_dir: its folder. Defaults to `default_data_dir`.

    Raises:
        EmbeddedError: it does not run.
    """
    dsn = _Home(data_dir).dsn()
    if not dsn or not _version(dsn):
        raise EmbeddedError("The embedded PostgreSQL is not running. Start it with: pgfifo embedded start")
    return dsn


def default_data_dir() -> Path:
    """Return the folder of this user's embedded server: ``PGFIFO_HOME``, else the platform's place for it."""
    chosen = os.environ.get("PGFIFO_HOME")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "pgfifo"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "pgfifo"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "pgfifo"


class _Home:
    """The folder of an embedded server, and what is done to it under the control lock."""

    def __init__(self, data_dir: Path | None) -> None:
        self.path = (default_data_dir() if data_dir is None else Path(data_dir)).absolute()
        if self.path.exists():
            self.path = self.path.resolve()
        self.users = self.path / "users.lock"
        self.stays = self.path / "stays"
        self._address_file = self.path / "address.json"

    def make(self) -> None:
        """Make the folder, closed to others."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path = self.path.resolve()
            self.path.chmod(0o700)
        except OSError as error:
            raise EmbeddedError(
                f"Cannot use {self.path} for the embedded PostgreSQL: {error}. "
                "Set PGFIFO_HOME to another folder."
            ) from error

    @contextlib.contextmanager
    def control(self) -> Iterator[None]:
        """Hold the lock that everything needs that starts or stops the server."""
        what = "Starting or stopping the embedded PostgreSQL"
        with lock(self.path / "control.lock", shared=False, timeout=_CONTROL_TIMEOUT, what=what):
            yield

    def ensure_running(self) -> str:
        """Make, start or just find the server, and return the DSN of its database."""
        address = self._address()
        cluster = None
        if address is None or ping(address) != psycopg.pq.Ping.OK:
            cluster = self._cluster()
            if address is None or not cluster.settled(address, timeout=_RECOVERY_TIMEOUT):
                address = self._start(cluster, address)
        self._ensure_database(address)
        return address.dsn(DATABASE)

    def stop_if_unused(self) -> None:
        """Stop the server when no lease is left and it was not started to stay."""
        if self.stays.exists():
            return
        last = try_lock(self.users, shared=False)
        if last is not None:
            with last:
                self.stop()

    def stop(self) -> bool:
        """Stop the server; leave it fresh for the next start."""
        self.stays.unlink(missing_ok=True)
        if not self.made_by():
            return False
        stopped = self._cluster().stop("fast")
        address = self._address()
        if address is not None and address.password is None:
            folder = Path(address.host)
            if not folder.is_relative_to(self.path):
                with contextlib.suppress(OSError):  # somebody may have cleared it away
                    folder.rmdir()
        return stopped

    def dsn(self) -> str:
        """Return the DSN that the last start wrote down; empty if there was none."""
        address = self._address()
        return address.dsn(DATABASE) if address else ""

    def made_by(self) -> int:
        """Return the major version that made the data; 0 when there is none yet."""
        for data in (self.path / "data", _outside(self.path) / "data"):
            with contextlib.suppress(OSError, ValueError):
                return int((data / "PG_VERSION").read_text())
        return 0

    def _cluster(self) -> Cluster:
        """Describe the server on this folder's data, with programs that fit it."""
        made_by = self.made_by()
        try:
            binaries = find_binaries(made_by or None)
        except EmbeddedError:
            binaries = find_binaries()  # the wrong version: what fits it not is said where it matters
        identity = identity_for(binaries)
        base = self.path
        if identity.switches:
            # Another account runs the server, and may not enter a home of root's.
            base = _outside(self.path)
            _make_private(base, identity.uid)
            identity.give(base)
        return Cluster(base / "data", binaries, base / "server.log")

    def _start(self, cluster: Cluster, last: Address | None) -> Address:
        """Make the data if there is none, start the server on it, and write down where it listens."""
        with contextlib.suppress(FileNotFoundError):
            if cluster.log.stat().st_size > _LOG_LIMIT:
                cluster.log.replace(cluster.log.with_suffix(".log.1"))
        if unix_sockets():
            address = Address(str(_socket_folder(cluster)))
        else:
            address = loopback_address()
            if last is not None and last.password is not None:
                address = Address(address.host, address.port, last.password)
        made = cluster.major()
        if not made:
            # The password is in the data: know it before it is there.
            self._write_address(address)
            cluster.initdb(password=address.password)
        check_version(cluster)
        self._write_address(address)
        cluster.start(address)
        return address

    def _ensure_database(self, address: Address) -> None:
        """Make the database if this is the first start, or the first one was killed in between."""
        try:
            with psycopg.connect(address.dsn("postgres", connect_timeout=10), autocommit=True) as conn:
                known = conn.execute(
                    "select 1 from pg_catalog.pg_database where datname = %s", [DATABASE]
                ).fetchone()
                if known is None:
                    conn.execute(f"create database {DATABASE}")
        except psycopg.Error as error:
            raise EmbeddedError(
                f"The embedded PostgreSQL in {self.path} runs but refuses work: {error}"
            ) from error

    def _address(self) -> Address | None:
        """Read where the last start made the server listen."""
        try:
            return Address(**json.loads(self._address_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _write_address(self, address: Address) -> None:
        """Write down where the server listens, in one step."""
        fresh = self._address_file.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(asdict(address)))
        fresh.replace(self._address_file)


def _outside(home: Path) -> Path:
    """Name the folder under /var/tmp for a home whose server runs as another account."""
    return OPEN_TO_ALL.resolve() / f"pgfifo-{_short_hash(home)}"


def _socket_folder(cluster: Cluster) -> Path:
    """Return a folder for the socket, closed to others: beside the data, or where the path is shorter."""
    folder = cluster.data.parent / "socket"
    if not fits_socket(folder):
        name = f"pgfifo-{_short_hash(cluster.data)}"
        folder = next(
            (
                place
                for base in (Path(tempfile.gettempdir()), SHORT)
                if fits_socket(place := base.resolve() / name)
            ),
            folder,
        )
    _make_private(folder, cluster.identity.uid)
    cluster.identity.give(folder)
    return folder


def _make_private(folder: Path, owner: int | None) -> None:
    """Make a folder that only its owner can enter; refuse one that somebody else has put there.

    Args:
        folder: the folder.
        owner: the account besides this one that it may belong to.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if sys.platform == "win32":
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), owner):
        raise EmbeddedError(
            f"{folder} belongs to somebody else; remove it, or set PGFIFO_HOME to another folder."
        )
    folder.chmod(0o700)


def _short_hash(path: Path) -> str:
    """Return a short name for a path and this user."""
    user = os.geteuid() if sys.platform != "win32" else 0
    return hashlib.sha256(f"{user}:{path}".encode()).hexdigest()[:12]


def _version(dsn: str) -> str:
    """Return the version of the server there, empty when none answers."""
    try:
        with psycopg.connect(dsn, connect_timeout=3) as conn:
            return str(conn.info.parameter_status("server_version"))
    except psycopg.Error:
        return ""


def _holders(path: Path) -> int:
    """Count the shared locks on a file."""
    if not path.exists():
        return 0
    try:
        table = Path("/proc/locks").read_text()
    except OSError:
        free = try_lock(path, shared=False)
        if free is None:
            return 1
        free.release()
        return 0
    inode = str(path.stat().st_ino)
    rows = (line.split() for line in table.splitlines())
    return sum(
        1
        for row in rows
        if len(row) > 5 and row[1:4] == ["FLOCK", "ADVISORY", "READ"] and row[5].split(":")[2] == inode
    )
