"""The psycopg connection inside of what an application has: psycopg's own, SQLAlchemy's, Django's.

Nothing of theirs is imported; they are told apart by what they offer.
"""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg

from pgfifo.errors import InvalidValue

C = TypeVar("C")


def unwrap(connection: Any) -> psycopg.Connection[Any]:  # noqa: ANN401 - that is the question
    """Return the psycopg connection behind a connection or session.

    A SQLAlchemy connection that is in no transaction begins one, as with any statement: so its commit commits
    what is done here.

    Args:
        connection: psycopg's Connection; SQLAlchemy's Connection, Session or scoped_session; Django's.

    Raises:
        InvalidValue: It is none of these, or the driver below is not psycopg 3.
    """
    found = connection
    if isinstance(found, psycopg.Connection):
        return found
    if hasattr(found, "ensure_connection"):  # Django
        found.ensure_connection()
        return _only(psycopg.Connection, found.connection, connection)
    if hasattr(found, "get_bind") and callable(getattr(found, "connection", None)):  # SQLAlchemy's Session
        found = found.connection()
    if hasattr(found, "get_raw_connection"):  # SQLAlchemy's AsyncConnection
        raise _wrong(connection, "it is asynchronous: use AsyncClient")
    if hasattr(found, "in_transaction") and hasattr(found, "dialect"):  # SQLAlchemy's Connection
        if not found.in_transaction():
            found.begin()
        found = found.connection.driver_connection
    return _only(psycopg.Connection, found, connection)


async def unwrap_async(connection: Any) -> psycopg.AsyncConnection[Any]:  # noqa: ANN401 - as above
    """Return the psycopg connection behind an asynchronous connection or session.

    Args:
        connection: psycopg's AsyncConnection; SQLAlchemy's AsyncConnection, AsyncSession or
            async_scoped_session.

    Raises:
        InvalidValue: It is none of these, or the driver below is not psycopg 3.
    """
    found = connection
    if isinstance(found, psycopg.AsyncConnection):
        return found
    if hasattr(found, "get_bind") and callable(
        getattr(found, "connection", None)
    ):  # SQLAlchemy's AsyncSession
        found = found.connection()
        if hasattr(found, "__await__"):
            found = await found
    if hasattr(found, "get_raw_connection"):  # SQLAlchemy's AsyncConnection
        if not found.in_transaction():
            await found.begin()
        found = (await found.get_raw_connection()).driver_connection
    return _only(psycopg.AsyncConnection, found, connection)


def begins_transaction(connection: object) -> bool:
    """Return whether it is SQLAlchemy's, which is in a transaction or begins one with whatever comes next."""
    return hasattr(connection, "in_transaction")


def _only(kind: type[C], found: object, given: object) -> C:
    if isinstance(found, kind):
        return found
    if isinstance(found, psycopg.Connection):
        raise _wrong(given, "it is synchronous: use Client, or give an asynchronous connection")
    if isinstance(found, psycopg.AsyncConnection):
        raise _wrong(given, "it is asynchronous: use AsyncClient")
    driver = type(found).__module__.partition(".")[0]
    if driver in ("psycopg2", "asyncpg", "pg8000"):
        raise _wrong(given, f"it is on {driver}; pgfifo needs psycopg 3 (postgresql+psycopg://)")
    raise _wrong(given, "pgfifo knows psycopg's, SQLAlchemy's and Django's")


def _wrong(given: object, why: str) -> InvalidValue:
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    return InvalidValue(
        f"connection= cannot be a {kind}: {why}",
        detail={"name": "connection", "value": kind},
        hint="Give the connection or session whose transaction the call is to be part of.",
    )
