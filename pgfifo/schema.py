"""Install, upgrade and remove the schema; everything it does is SQL from the packaged `sql/` folder."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import tuple_row

from pgfifo.errors import schema_missing

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["MIN_CLIENT", "VERSION", "install", "script_hash", "sql_text", "uninstall", "upgrade", "version"]

VERSION = 1
"""The version of the schema that this package installs and needs."""

MIN_CLIENT = 1
"""The oldest schema version whose clients that schema still serves."""

_INCLUDE = re.compile(r"^\\ir\s+(\S+)[ \t]*$", re.MULTILINE)


def _folder() -> Traversable:
    """The SQL files: inside the package when it was built, beside it in a checkout."""
    packaged = files("pgfifo") / "sql"
    if packaged.joinpath("install.sql").is_file():
        return packaged
    return Path(__file__).resolve().parent.parent / "sql"


def _read(folder: Traversable, name: str) -> str:
    text = folder.joinpath(*name.split("/")).read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda found: f"-- {found[1]}\n{_read(folder, found[1])}", text)


@cache
def sql_text() -> str:
    """Return the whole install script, for those who run migrations themselves.

    It is one idempotent script for one transaction: with `psql -1`, in a migration, or as one simple query.
    Where an older version is installed, it first takes the steps from there; where a newer one is, it fails
    and changes nothing.
    """
    folder = _folder()
    text = _read(folder, "install.sql")
    steps = [
        f"-- {name}\n{_read(folder, f'migrations/{name}')}"
        for name in sorted(
            step.name for step in folder.joinpath("migrations").iterdir() if step.name.endswith(".sql")
        )
    ]
    text = text.replace("-- Steps from older versions\n", "-- Steps from older versions\n" + "".join(steps))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text.replace(
        "-- Back to the caller.\n",
        "-- Which script this was. Then back to the caller.\n"
        f"update pgfifo.installation set script_hash = '{digest}'"
        f" where script_hash is distinct from '{digest}';\n",
    )


@cache
def script_hash() -> str:
    """Return what the installation's row says when exactly this script was its last."""
    return str(re.findall(r"script_hash = '([0-9a-f]{64})'", sql_text())[-1])


def version(conn: psycopg.Connection[Any]) -> int | None:
    """Return the installed version of the schema, or None where there is none."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        cursor.execute("select to_regclass('pgfifo.installation') is not null")
        found = cursor.fetchone()
        if found is None or not found[0]:
            return None
        cursor.execute("select version from pgfifo.installation")
        row = cursor.fetchone()
        return None if row is None else int(row[0])


def _is_current(conn: psycopg.Connection[Any]) -> bool:
    with conn.cursor(row_factory=tuple_row) as cursor:
        cursor.execute("select to_regclass('pgfifo.installation') is not null")
        found = cursor.fetchone()
        if found is None or not found[0]:
            return False
        cursor.execute("select script_hash = %s from pgfifo.installation", (script_hash(),))
        row = cursor.fetchone()
        return row is not None and bool(row[0])


def install(conn: psycopg.Connection[Any]) -> int:
    """Install the schema, or bring an older one up to date; do nothing where it is right already.

    Safe from many processes at once: they take turns on a lock. In the caller's transaction if the connection
    is in one, else in one of its own.

    Args:
        conn: A connection whose role may create a schema in this database. No superuser, no CREATEROLE.

    Returns:
        The version that is installed now.

    Raises:
        SchemaMismatch: A newer version is installed; upgrade the package instead.
    """
    if not _is_current(conn):
        with conn.transaction(), conn.cursor() as cursor:
            cursor.execute(sql_text().encode())
    return VERSION


def upgrade(conn: psycopg.Connection[Any]) -> int:
    """Bring the schema to this package's version: table changes step by step, then functions and views anew.

    Args:
        conn: A connection of the role that owns the schema.

    Returns:
        The version that is installed now.

    Raises:
        SchemaMissing: There is no schema to upgrade.
        SchemaMismatch: A newer version is installed; upgrade the package instead.
    """
    if version(conn) is None:
        raise schema_missing(conn.info.dbname)
    return install(conn)


def uninstall(conn: psycopg.Connection[Any]) -> None:
    """Remove the schema with everything in it: what waits, what runs, the history.

    Args:
        conn: A connection of the role that owns the schema.
    """
    with conn.transaction(), conn.cursor() as cursor:
        cursor.execute("drop schema if exists pgfifo cascade")
