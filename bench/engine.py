"""pgfifo as the benchmark calls it: the SQL functions, on a connection, as a worker in any language would."""

import itertools
import time
from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg
from psycopg.types.json import Jsonb

from bench.meter import Sample

Connection = psycopg.Connection[Any]

WORK: LiteralString = "select * from pgfifo.work(%s, %s, %s, %s, %s)"
ENQUEUE: LiteralString = "select pgfifo.enqueue(%s, %s)"
ENQUEUE_MANY: LiteralString = "select * from pgfifo.enqueue_many(%s, %s)"


def payloads(count: int, lanes: int = 100) -> list[Jsonb]:
    """Webhook events of so many customers, about 150 bytes each."""
    return [
        Jsonb(
            {
                "customer": n % lanes,
                "event": "invoice.paid",
                "invoice": 100_000 + n,
                "amount": 1000 + n % 977,
                "url": f"https://customer-{n % lanes}.example.com/hooks/invoices",
            }
        )
        for n in range(count)
    ]


def set_policy(conn: Connection, action: str, **values: object) -> None:
    """Set attributes of an action."""
    conn.execute("select pgfifo.set_policy(%s, %s)", [action, Jsonb(values)])


def enqueue_many(conn: Connection, action: str, items: Sequence[Jsonb]) -> None:
    """Enqueue one batch in one commit."""
    conn.execute(ENQUEUE_MANY, [action, list(items)]).fetchall()


class Worker:
    """A worker that does nothing with what it gets but hand it back."""

    def __init__(self, conn: Connection, *actions: str) -> None:
        """Register it. Its lease is long: it sends no heartbeats."""
        self.conn = conn
        self.actions = list(actions)
        self._calls = itertools.count(1)
        self._again: list[dict[str, object]] = []
        row = conn.execute(
            "select pgfifo.worker_start('bench', '', 1, %s, 50, '1 h')", [self.actions]
        ).fetchone()
        assert row is not None
        self.id = int(row[0])

    def arguments(self, limit: int, finished: Jsonb | None = None) -> list[object]:
        """Return those of the next call."""
        return [self.id, self.actions, limit, next(self._calls), finished]

    def work(self, limit: int, finished: Jsonb | None = None) -> tuple[list[tuple[Any, ...]], str | None]:
        """Make one call; return what was started, and the advice about when to call again.

        What could not be finished, since somebody else had its lane for longer than a moment, is handed in
        again with the next call, as any worker does.
        """
        if self._again:
            finished = Jsonb([*self._again, *(finished.obj if finished else [])])
        rows = self.conn.execute(WORK, self.arguments(limit, finished), prepare=True).fetchall()
        retry = {(row[1], row[2]) for row in rows if row[0] == "finish" and row[13] == "retry"}
        self._again = (
            [item for item in finished.obj if (item["id"], item["attempt"]) in retry] if finished else []
        )
        starts = [row for row in rows if row[0] == "start"]
        more = [row[13] for row in rows if row[0] == "more"]
        return starts, more[0] if more else None

    def explained(self, limit: int, finished: Jsonb | None) -> tuple[int, list[tuple[Any, ...]]]:
        """Make one call under EXPLAIN; return the buffers that it touched, and what it started."""
        arguments = [self.id, self.actions, limit, 10**9 + time.monotonic_ns() // 1000, finished]
        buffers = touched(self.conn, WORK, arguments)
        # The same call again returns the same rows.
        rows = self.conn.execute(WORK, [*arguments[:4], None]).fetchall()
        return buffers, [row for row in rows if row[0] == "start"]

    def drain(self, limit: int, sample: Sample, most: int | None = None) -> None:
        """Finish and claim in one call, over and over, until nothing is left or so many are done."""
        finished: Jsonb | None = None
        while True:
            starts, more = self.work(limit, finished)
            sample.statements += 1
            if not starts and more is None and not self._again:
                return
            finished = succeeded(starts)
            sample.done += len(starts)
            if most is not None and sample.done >= most:
                self.work(0, finished)
                sample.statements += 1
                return


def touched(conn: Connection, statement: LiteralString, parameters: Sequence[object]) -> int:
    """Run a statement under EXPLAIN, and return how many shared buffers it and what it calls have touched."""
    row = conn.execute(
        f"explain (analyze, buffers, timing off, format json) {statement}", parameters
    ).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def succeeded(starts: Sequence[tuple[Any, ...]]) -> Jsonb | None:
    """What a worker hands in for executions that went well."""
    if not starts:
        return None
    return Jsonb([{"id": start[1], "attempt": start[2], "outcome": "succeeded"} for start in starts])
