"""connection= takes what an application has; stand-ins show what is asked of it."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo._unwrap import unwrap, unwrap_async

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


class Driver:
    """What SQLAlchemy's pool lends."""

    def __init__(self, driver_connection: object) -> None:
        self.driver_connection = driver_connection


class SqlalchemyConnection:
    dialect = "postgresql"

    def __init__(self, driver: object) -> None:
        self.connection = Driver(driver)
        self.begun = 0

    def in_transaction(self) -> bool:
        return bool(self.begun)

    def begin(self) -> None:
        self.begun += 1


class SqlalchemySession:
    def __init__(self, bound: object) -> None:
        self._bound = bound

    def get_bind(self) -> None: ...

    def connection(self) -> object:
        return self._bound


class SqlalchemyAsyncConnection:
    dialect = "postgresql"

    def __init__(self, driver: object) -> None:
        self._driver = driver
        self.begun = 0

    def in_transaction(self) -> bool:
        return bool(self.begun)

    async def begin(self) -> None:
        self.begun += 1

    async def get_raw_connection(self) -> object:
        return Driver(self._driver)


class SqlalchemyAsyncSession(SqlalchemySession):
    async def connection(self) -> object:
        return self._bound


class DjangoConnection:
    def __init__(self, driver: object) -> None:
        self._driver = driver
        self.connection: object = None

    def ensure_connection(self) -> None:
        self.connection = self._driver


class Foreign:
    """A connection of another driver."""

    __module__ = "psycopg2.extensions"


def test_a_connection_is_found_in_everything_that_holds_one(conn: Connection) -> None:
    assert unwrap(conn) is conn
    alchemy = SqlalchemyConnection(conn)
    assert unwrap(alchemy) is conn
    assert unwrap(alchemy) is conn
    assert alchemy.begun == 1, "SQLAlchemy's commit would not commit what was done"
    assert unwrap(SqlalchemySession(SqlalchemyConnection(conn))) is conn
    assert unwrap(DjangoConnection(conn)) is conn


def test_an_asynchronous_connection_is_found_too(dsn: str) -> None:
    async def find() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            assert await unwrap_async(conn) is conn
            alchemy = SqlalchemyAsyncConnection(conn)
            assert await unwrap_async(alchemy) is conn
            assert await unwrap_async(alchemy) is conn
            assert alchemy.begun == 1, "SQLAlchemy's commit would not commit what was done"
            assert await unwrap_async(SqlalchemyAsyncSession(alchemy)) is conn
            with pytest.raises(pgfifo.InvalidValue, match="use AsyncClient"):
                unwrap(alchemy)

    asyncio.run(find())


@pytest.mark.parametrize("wrap", [SqlalchemyConnection, DjangoConnection, lambda foreign: foreign])
def test_another_driver_is_named_with_the_one_that_is_needed(wrap: Callable[[object], object]) -> None:
    with pytest.raises(pgfifo.InvalidValue, match=r"psycopg2; pgfifo needs psycopg 3"):
        unwrap(wrap(Foreign()))


@pytest.mark.parametrize("odd", ["postgresql://", 7, object()])
def test_what_holds_none_is_refused_by_its_type(odd: object) -> None:
    with pytest.raises(pgfifo.InvalidValue, match=type(odd).__qualname__):
        unwrap(odd)
    with pytest.raises(pgfifo.InvalidValue, match=type(odd).__qualname__):
        asyncio.run(unwrap_async(odd))
