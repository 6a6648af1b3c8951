"""What handlers and producers write down for themselves, without pgfifo: JSON lines, a file for each process.

Lines are written in one go, so a process that is killed leaves whole lines behind it.
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from pgfifo.demo.verdict import Mark

if TYPE_CHECKING:
    from pgfifo import Execution


class Journal:
    """The journal of one process."""

    def __init__(self, path: Path) -> None:
        """Open a journal, which may be there already.

        Args:
            path: the file.
        """
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, line: dict[str, Any]) -> None:
        """Write a line."""
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")


class HandlerJournal:
    """The journal of a worker: when its handlers begin and end, by the server's clock."""

    def __init__(self, path: Path, dsn: str, worker: str) -> None:
        """Open the journal.

        Args:
            path: the file.
            dsn: where the clock is; each thread reads it on a connection of its own.
            worker: the worker's name.
        """
        self._journal = Journal(path)
        self._dsn = dsn
        self._worker = worker
        self._threads = threading.local()

    @contextmanager
    def kept(self, execution: "Execution") -> Iterator[None]:
        """Write down when the block begins, and when it has come to its end."""
        self._write("begin", execution)
        yield
        self._write("end", execution)

    def _write(self, event: str, execution: "Execution") -> None:
        self._journal.write(
            {
                "event": event,
                "id": execution.id,
                "attempt": execution.attempt,
                "action": execution.action,
                "lane": execution.group_text,
                "at": self._now(),
                "worker": self._worker,
            }
        )

    def _now(self) -> float:
        """Read the server's clock."""
        conn: psycopg.Connection[Any] | None = getattr(self._threads, "conn", None)
        if conn is None:
            conn = self._threads.conn = psycopg.connect(self._dsn, autocommit=True)
        return clock(conn)


def clock(conn: psycopg.Connection[Any]) -> float:
    """Return the time on the server's clock, in seconds."""
    row = conn.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
    assert row is not None  # noqa: S101 - a select without from has one row
    return float(row[0])


def read_lines(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """Return all whole lines of some journals.

    Args:
        folder: where they are.
        pattern: their names, as ``worker-*.jsonl``.
    """
    lines = []
    for path in sorted(folder.glob(pattern)):
        text = path.read_text()
        lines += [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return lines


def read_marks(folder: Path) -> list[Mark]:
    """Return the lines of all workers' journals."""
    return [Mark(**line) for line in read_lines(folder, "worker-*.jsonl")]
