"""pgmq: its SQL, as its own Python package brings and calls it, with a loop that reads, handles and deletes.

With a key, messages carry the group header and are read by `read_grouped`, which gives a group's messages to
one reader; the loop handles them one after the other. Without, they are read by `read`. Option `batch` is
how many are read at once.
"""

import time
from collections.abc import Sequence
from typing import Any

import psycopg
from pgmq.install import get_embedded_install_sql
from psycopg.types.json import Jsonb

from bench.peers import common
from bench.peers.common import Consume, DeliberateFailureError, Handlers, Job, Produce, Spec, Stage

Connection = psycopg.Connection[Any]


def setup(spec: Spec) -> None:
    """Install the schema, and make the queues with the index for grouped reads."""
    with psycopg.connect(spec.dsn, autocommit=True) as conn:
        conn.execute(get_embedded_install_sql())
        for queue in ("bench", "idle"):
            conn.execute("select pgmq.create(%s)", [queue])
            conn.execute("select pgmq.create_fifo_index(%s)", [queue])


def produce(spec: Spec, task: Produce, stage: Stage) -> None:
    """Send."""
    connections = [psycopg.connect(spec.dsn, autocommit=True) for _ in range(task.connections)]
    common.send_all_in_threads(task, stage, [_sender(conn, task) for conn in connections])


def _sender(conn: Connection, task: Produce) -> common.SendAndWait:
    def header(job: Job) -> Jsonb | None:
        return Jsonb({"x-pgmq-group": job.key}) if task.ordered else None

    def one(part: Sequence[Job]) -> None:
        job = part[0]
        conn.execute(
            "select pgmq.send(%s::text, %s::jsonb, %s::jsonb, clock_timestamp() + %s * interval '1 ms')",
            [task.queue, Jsonb(job.payload), header(job), job.delay],
            prepare=True,
        ).fetchall()

    def many(part: Sequence[Job]) -> None:
        # A batch has one delay for all: those that are due now are one, and each delayed one is its own.
        now = [job for job in part if not job.delay]
        headers = [header(job) for job in now] if task.ordered else None
        if now:  # it takes no empty batch
            conn.execute(
                "select pgmq.send_batch(%s::text, %s::jsonb[], %s::jsonb[])",
                [task.queue, [Jsonb(job.payload) for job in now], headers],
            ).fetchall()
        for job in part:
            if job.delay:
                one([job])

    return one if task.chunk == 1 else many


def consume(spec: Spec, task: Consume, stage: Stage) -> None:
    """Read, handle and delete until the harness ends it."""
    handlers = Handlers(task)
    batch = task.concurrency or spec.options["batch"]
    read = f"select msg_id, message from pgmq.{'read_grouped' if task.ordered else 'read'}(%s::text, 600, %s)"
    with psycopg.connect(spec.dsn, autocommit=True) as conn:
        stage.go()
        while True:
            rows = conn.execute(read, [task.queue, batch], prepare=True).fetchall()
            if not rows:
                time.sleep(spec.options.get("poll", 0.1))  # the interval of its own read_with_poll
                continue
            done = []
            for place, (number, payload) in enumerate(rows):
                try:
                    handlers.run_sync(payload)
                except DeliberateFailureError:
                    later = [row[0] for row in rows[place:]]
                    conn.execute(
                        "select pgmq.set_vt(%s::text, id, clock_timestamp() + %s * interval '1 ms')"
                        " from unnest(%s::bigint[]) id",
                        [task.queue, task.backoff, later],
                    ).fetchall()
                    break
                done.append(number)
            conn.execute("select pgmq.delete(%s::text, %s::bigint[])", [task.queue, done], prepare=True)


if __name__ == "__main__":
    common.main(setup, produce, consume)
