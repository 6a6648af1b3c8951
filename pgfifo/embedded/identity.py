"""Run PostgreSQL's programs as somebody whom they accept: they refuse to run as root."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import EmbeddedError

_UNSHARE = ("unshare", "--user", "--map-user=65534", "--map-group=65534", "--")


@dataclass(frozen=True)
class Identity:
    """Who runs the server: this user; root, seen as nobody (a user namespace); another account (setuid).

    Attributes:
        prefix: what to put in front of a command.
        uid: the account to switch to, None to stay.
        gid: the group to switch to, None to stay.
    """

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None

    @property
    def switches(self) -> bool:
        """Tell whether commands run as another account, which must then own the data."""
        return self.uid is not None

    def run(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path,
        timeout: float,
        stdin: str = "",
        environment: dict[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, in a session of its own, without the caller's PG* settings.

        Args:
            command: the program and its arguments.
            cwd: the folder to run in; it must be reachable for whoever runs the command.
            timeout: seconds until it is killed.
            stdin: what it reads.
            environment: variables on top of the cleaned ones.

        Raises:
            EmbeddedError: it could not be run, or did not end in time.
        """
        argv = [*self.prefix, *map(str, command)]
        kwargs: dict[str, object] = {}
        if self.switches:
            kwargs = {"user": self.uid, "group": self.gid, "extra_groups": []}
        try:
            return subprocess.run(  # type: ignore[call-overload,no-any-return]  # kwargs differ by platform
                argv,
                cwd=cwd,
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                env=clean_environment() | (environment or {}),
                start_new_session=True,
                check=False,
                **kwargs,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EmbeddedError(f"Cannot run {command[0]}: {error}") from error

    def give(self, path: Path) -> None:
        """Make a folder and what is in it belong to whoever runs the server."""
        if not self.switches or sys.platform == "win32":
            return
        for entry in (path, *path.rglob("*")):
            os.chown(entry, self.uid or 0, self.gid or 0, follow_symlinks=False)


def clean_environment() -> dict[str, str]:
    """Return this process's environment without PostgreSQL's settings, with messages in English."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C"}


def identity_for(binaries: Path) -> Identity:
    """Decide who runs the server.

    Args:
        binaries: the folder with the server's programs; another account must be able to run them.

    Raises:
        EmbeddedError: this is root, and there is no way to run the server as anybody else.
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        return Identity()
    if _may_unshare():
        return Identity(prefix=_UNSHARE)
    import pwd

    accounts = {entry.pw_name: entry for entry in pwd.getpwall()}
    account = accounts.get("postgres") or accounts.get("nobody")
    if account is None:
        raise EmbeddedError(
            "PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody. "
            "Run this as an ordinary user."
        )
    other = Identity(uid=account.pw_uid, gid=account.pw_gid)
    try:
        answer = other.run([binaries / "postgres", "--version"], cwd=Path("/"), timeout=20)
        reachable = answer.returncode == 0
    except EmbeddedError:
        reachable = False
    if not reachable:
        raise EmbeddedError(
            f"PostgreSQL refuses to run as root, user namespaces are not allowed here, and the user "
            f"{account.pw_name} cannot run the programs in {binaries} (a folder above is closed to others). "
            "Run this as an ordinary user, or install pgfifo or PostgreSQL where everybody may read it."
        )
    return other


@functools.cache
def _may_unshare() -> bool:
    """Tell whether this machine lets root enter a user namespace (Docker's default profile does not)."""
    if sys.platform != "linux" or shutil.which(_UNSHARE[0]) is None:
        return False
    return subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0
