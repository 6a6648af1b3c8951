"""What a piece of work cost: time, commits, WAL, statements, processor time."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from bench.report import Cost

Connection = psycopg.Connection[Any]

_READ = """
select pg_snapshot_xmax(pg_current_snapshot())::text::numeric,
  pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')
"""


@dataclass
class Sample:
    """One measured run. Whoever does the work sets `done` and `statements`."""

    done: int = 0
    statements: int = 0
    seconds: float = 0.0
    commits: float = 0.0
    wal: float = 0.0
    server_cpu: float | None = None
    client_cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Executions a second."""
        return self.done / self.seconds

    @property
    def cost(self) -> Cost:
        """What one execution cost."""
        each = 1 / self.done
        return Cost(
            self.commits * each,
            self.wal * each,
            self.statements * each,
            None if self.server_cpu is None else self.server_cpu * each * 1000,
            self.client_cpu * each * 1000,
        )


@contextlib.contextmanager
def measured(observer: Connection, *workers: Connection) -> Iterator[Sample]:
    """Measure a block of work.

    Commits are counted as xids that were given out, and WAL by its position: exact at once, where the
    statistics views come late; both belong to the whole server, so nobody else should be writing.

    Args:
        observer: a connection that takes no part in the work.
        workers: the connections that do, to add up the processor time of their server processes.
    """
    sample = Sample()
    before = observer.execute(_READ).fetchone()
    server = server_cpu_of(workers)
    client = time.process_time()
    began = time.perf_counter()
    yield sample
    sample.seconds = time.perf_counter() - began
    sample.client_cpu = time.process_time() - client
    after_cpu = server_cpu_of(workers)
    after = observer.execute(_READ).fetchone()
    assert before is not None
    assert after is not None
    sample.commits = float(after[0] - before[0])
    sample.wal = float(after[1] - before[1])
    if server is not None and after_cpu is not None:
        sample.server_cpu = after_cpu - server


def server_cpu_of(workers: tuple[Connection, ...]) -> float | None:
    """Seconds that these connections' server processes have been on a processor; None where nobody tells."""
    total = 0
    for conn in workers:
        try:
            total += int(Path(f"/proc/{conn.info.backend_pid}/schedstat").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None
    return total / 1e9
