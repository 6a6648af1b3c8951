"""A PostgreSQL of pgfifo's own: a real server without a port to the network.

Each process that uses it holds a lease, and the last one out stops it, unless it was started to stay::

    with acquire() as server:
        psycopg.connect(server.dsn)

How it holds together: every start and stop happens under an exclusive lock on ``control.lock``; every user
keeps a shared lock on ``users.lock``, which the kernel drops when the user dies, however it dies; whether the
server is up is answered by connecting to it, never by a pid file.
"""

from .binaries import find_binaries, server_major
from .cluster import Setting, StopMode
from .errors import EmbeddedError
from .lifecycle import DATABASE, Embedded, Status, acquire, default_data_dir, start, status, stop, url
from .private import PrivateServer, remove_abandoned

__all__ = [
    "DATABASE",
    "Embedded",
    "EmbeddedError",
    "PrivateServer",
    "Setting",
    "Status",
    "StopMode",
    "acquire",
    "default_data_dir",
    "find_binaries",
    "remove_abandoned",
    "server_major",
    "start",
    "status",
    "stop",
    "url",
]
