"""Which schema this package works with, and what it says when they do not fit."""

from __future__ import annotations

from pgfifo.errors import SchemaMismatch

NEEDS_SCHEMA = 1
"""The oldest version of the schema that this package works with."""

CLIENT = 1
"""The version of the calls that this package makes; a schema says the oldest that it still answers."""

SCHEMA_INFO = "select version, min_client, epoch from pgfifo.schema_info()"


def check(version: int, min_client: int, database: str | None = None) -> None:
    """Refuse a schema that is too old for this package, or that this package is too old for.

    Args:
        version: The installed schema's version.
        min_client: The oldest client version that the schema answers.
        database: The database's name, for the message.

    Raises:
        SchemaMismatch: They do not fit; the message says which of them to upgrade.
    """
    where = f" in database {database!r}" if database else ""
    detail = {"version": version, "needed": NEEDS_SCHEMA, "client": CLIENT, "min_client": min_client}
    if version < NEEDS_SCHEMA:
        raise SchemaMismatch(
            f"pgfifo's schema{where} has version {version}; this package needs {NEEDS_SCHEMA} or newer",
            detail=detail,
            hint="Upgrade the schema: run `pgfifo upgrade`, or Client(…).upgrade().",
        )
    if min_client > CLIENT:
        raise SchemaMismatch(
            f"pgfifo's schema{where} wants clients of version {min_client} or newer; this is {CLIENT}",
            detail=detail,
            hint="Upgrade the package: pip install --upgrade pgfifo.",
        )
