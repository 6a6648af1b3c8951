"""A server of the run's own, and databases in it.

Server and schema are made once; each test begins with a clean database. All DSNs work in subprocesses.
"""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support import server as servers

servers.clean_environment()  # before anything of pgfifo looks at it

from pgfifo.embedded import PrivateServer, remove_abandoned  # noqa: E402
from tests.support.database import Databases, clean  # noqa: E402

pytest_plugins = ["tests.support.skips"]

Connection = psycopg.Connection[Any]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let what a test printed or logged get from a process of pytest-xdist to the one that reports.

    Some tests log half a surrogate pair, which no encoding of text takes.
    """
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep everything away from the embedded server of whoever runs the tests."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGFIFO_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def server() -> Iterator[PrivateServer]:
    """The running server of this run."""
    if servers.kept is not None:
        yield servers.kept
        return
    remove_abandoned()
    with servers.make_server() as running:
        yield running


@pytest.fixture(scope="session")
def databases(server: PrivateServer) -> Databases:
    """The databases of this run's server, with a template that has the schema and nothing else."""
    return Databases(server)


@pytest.fixture(scope="session")
def template(databases: Databases) -> str:
    """The name of a database with a fresh schema (one where time can be moved), to make copies of."""
    return databases.template()


@pytest.fixture(scope="session")
def _shared(databases: Databases) -> str:
    """The DSN of the database that most tests share, one after the other."""
    return databases.shared()


@pytest.fixture
def dsn(_shared: str) -> str:
    """The DSN of a clean database with the schema: no rows, nobody in it."""
    with psycopg.connect(_shared, autocommit=True) as conn:
        clean(conn)
    return _shared


@pytest.fixture
def fresh_dsn(server: PrivateServer, databases: Databases, template: str) -> Iterator[str]:
    """The DSN of a database of the test's own with the schema, for tests that change the schema."""
    name = databases.create(template)
    yield server.dsn(name)
    databases.drop(name)


@pytest.fixture
def empty_dsn(server: PrivateServer, databases: Databases) -> Iterator[str]:
    """The DSN of a database of the test's own without the schema."""
    name = databases.create()
    yield server.dsn(name)
    databases.drop(name)


@pytest.fixture
def connect(dsn: str) -> Iterator[Callable[..., Connection]]:
    """Further connections to the database of `dsn`, autocommit unless told otherwise, closed at the end."""
    opened: list[Connection] = []

    def opener(*, autocommit: bool = True, **parameters: Any) -> Connection:
        opened.append(psycopg.connect(dsn, autocommit=autocommit, **parameters))
        return opened[-1]

    yield opener
    for connection in opened:
        connection.close()


@pytest.fixture
def conn(connect: Callable[..., Connection]) -> Connection:
    """An autocommit connection to the database of `dsn`."""
    return connect()
