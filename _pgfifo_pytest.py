"""What pytest loads wherever pgfifo is installed: fixtures, and nothing of pgfifo until one is asked for.

It is no part of the package, because to import that takes a while: see `pgfifo.testing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pgfifo import Actions
    from pgfifo.testing import Fifo


@pytest.fixture(scope="session")
def pgfifo_server() -> Iterator[str]:
    """The URL of a PostgreSQL server of this run's own, with no port to the network, thrown away at its end.

    Override it to have the tests' database made on another server, by a role that may create databases.
    """
    from pgfifo.testing import server

    with server() as url:
        yield url


@pytest.fixture(scope="session")
def pgfifo_dsn(pgfifo_server: str) -> Iterator[str]:
    """The URL of a database of this run's own, with pgfifo installed for testing.

    Override it to use one that has the application's tables, too.
    """
    from pgfifo.testing import database

    with database(pgfifo_server) as url:
        yield url


@pytest.fixture(scope="session")
def pgfifo_actions() -> Actions | None:
    """None. Override it to return the application's actions: `fifo` then knows and declares them."""
    return None


@pytest.fixture
def fifo(pgfifo_dsn: str, pgfifo_actions: Actions | None) -> Iterator[Fifo]:
    """A client for the tests' database, in which nothing of pgfifo's is left from other tests."""
    from pgfifo.testing import Fifo

    with Fifo(pgfifo_dsn, actions=pgfifo_actions) as client:
        client.install(testing=True)
        client.reset()
        if pgfifo_actions is not None:
            client.declare(pgfifo_actions)
        yield client
