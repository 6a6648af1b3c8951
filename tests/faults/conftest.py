"""The ground on which harm is done."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import pgfifo.schema
from pgfifo.embedded import PrivateServer
from tests.faults.ground import Ground
from tests.support.server import make_server


@pytest.fixture
def ground(fresh_dsn: str, tmp_path: Path) -> Iterator[Ground]:
    """A database of the test's own, on the server of the run."""
    place = Ground(fresh_dsn, tmp_path)
    try:
        yield place
    finally:
        place.close()


@pytest.fixture
def own() -> Iterator[PrivateServer]:
    """A server of the test's own, running, with pgfifo in it."""
    with make_server() as running:
        with psycopg.connect(running.dsn(), autocommit=True) as conn:
            pgfifo.schema.install(conn)
        yield running


@pytest.fixture
def own_ground(own: PrivateServer, tmp_path: Path) -> Iterator[Ground]:
    """The database of a server of the test's own, which may be harmed too."""
    place = Ground(own.dsn(), tmp_path)
    try:
        yield place
    finally:
        place.close()
