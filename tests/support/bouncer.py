"""A real PgBouncer in transaction mode in front of the test server, where one is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from pgfifo.embedded import PrivateServer
from pgfifo.embedded.identity import clean_environment, identity_for
from tests.support.database import wait_for

SESSIONS = 4
"""How many sessions of the server there are, for whoever comes."""

_SETTINGS = f"""
[databases]
* = host={{host}} port={{port}} user={{user}} {{password}}
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {{folder}}
auth_type = any
pool_mode = transaction
default_pool_size = {SESSIONS}
min_pool_size = {SESSIONS}
max_client_conn = 500
; Each transaction in another session than the one before: what is left in a session is noticed.
server_round_robin = 1
"""


def find_pgbouncer() -> str | None:
    """Return where PgBouncer is, on PATH or where distributions put it."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def bouncer(server: PrivateServer) -> Iterator[PgBouncer]:
    """Run one for the length of a block."""
    found = find_pgbouncer()
    assert found is not None
    identity = identity_for(server.binaries)
    # A short name: a socket lies in it. Beside the server's own, where whoever runs that may go.
    folder = Path(tempfile.mkdtemp(prefix="pgb-", dir=Path(server.host).parent))
    try:
        config = folder / "pgbouncer.ini"
        password = f"password={server.password}" if server.password else ""
        config.write_text(
            _SETTINGS.format(
                host=server.host, port=server.port, user=server.user, password=password, folder=folder
            )
        )
        identity.give(folder)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*identity.prefix, found, str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
                user=identity.uid,
                group=identity.gid,
                extra_groups=[] if identity.switches else None,
                start_new_session=True,
            )
        try:
            running = PgBouncer(folder, server.user)
            wait_for(running.answers, 20, f"PgBouncer:\n{(folder / 'log').read_text()}")
            yield running
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder)


class PgBouncer:
    """One that runs."""

    def __init__(self, folder: Path, user: str) -> None:
        self._folder = folder
        self._user = user

    def dsn(self, dbname: str) -> str:
        """Return the way to a database through it."""
        return make_conninfo(host=str(self._folder), port="6432", user=self._user, dbname=dbname)

    def answers(self) -> bool:
        """Return whether it is up."""
        try:
            with psycopg.connect(self.dsn("postgres"), autocommit=True, connect_timeout=2) as conn:
                conn.execute("select 1")
        except psycopg.OperationalError:
            return False
        return True
