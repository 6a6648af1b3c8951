"""The command line: ``pgfifo``.

Each module here holds a family of commands. What is slow to import (psycopg, rich, the client) is imported in
the functions that need it, so that ``pgfifo --help`` answers at once.
"""

from pgfifo.cli.app import main

__all__ = ["main"]
