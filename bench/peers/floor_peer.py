"""The floors as a system of their own: what anybody pays who keeps a queue in a table. See bench/floors.py.

Options: `floor` is f1 or f1b, `batch` how many are claimed at once, `threads` how many connections claim, and
`copy` whether many are inserted by COPY instead of one multi-row insert.
"""

import threading
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

import pgfifo.schema
from bench import floors
from bench.peers import common
from bench.peers.common import Consume, Handlers, Job, Produce, Spec, Stage

Connection = psycopg.Connection[Any]

INSERT_ONE = "insert into {} (lane, payload) values (%s, %s)"
INSERT_MANY = "insert into {} (lane, payload) select * from unnest(%s::bigint[], %s::jsonb[])"


def setup(spec: Spec) -> None:
    """Make the floors' tables."""
    with psycopg.connect(spec.dsn, autocommit=True) as conn:
        pgfifo.schema.install(conn)  # `bare` has the columns of pgfifo's own table
        floors.prepare(conn)


def produce(spec: Spec, task: Produce, stage: Stage) -> None:
    """Insert."""
    connections = [psycopg.connect(spec.dsn, autocommit=True) for _ in range(task.connections)]
    common.send_all_in_threads(task, stage, [_sender(conn, spec, task) for conn in connections])


def _sender(conn: Connection, spec: Spec, task: Produce) -> common.SendAndWait:
    table = spec.options["floor"]

    def lane(job: Job) -> int:
        return int(job.key.removeprefix(task.prefix)) if job.key.startswith(task.prefix) else 0

    def one(part: Sequence[Job]) -> None:
        job = part[0]
        if table == "bare":
            conn.execute(floors.BARE_ONE, [lane(job), Jsonb(job.payload)], prepare=True).fetchone()
        else:
            conn.execute(INSERT_ONE.format(table), [lane(job), Jsonb(job.payload)], prepare=True)

    def many(part: Sequence[Job]) -> None:
        payloads = [Jsonb(job.payload) for job in part]
        if table == "bare":
            conn.execute(floors.BARE_MANY, [payloads])
        else:
            conn.execute(INSERT_MANY.format(table), [[lane(job) for job in part], payloads])

    def copy(part: Sequence[Job]) -> None:
        copied = "copy bare (id, lane_id, ticket, enqueued_at, payload) from stdin"
        with conn.cursor() as cursor, cursor.copy(copied) as rows:
            for job in part:
                number = job.payload["n"]
                rows.write_row([number, lane(job), number, "now", Jsonb(job.payload)])

    if task.chunk == 1:
        return one
    return copy if spec.options.get("copy") else many


def consume(spec: Spec, task: Consume, stage: Stage) -> None:
    """Claim and delete, on so many connections, each in a thread."""
    handlers = Handlers(task)
    batch = spec.options["batch"]
    connections = [psycopg.connect(spec.dsn, autocommit=True) for _ in range(spec.options.get("threads", 1))]
    loop = _f1 if spec.options["floor"] == "f1" else _f1b
    threads = [threading.Thread(target=loop, args=(conn, batch, handlers)) for conn in connections]
    stage.go()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _f1(conn: Connection, batch: int, handlers: Handlers) -> None:
    while rows := conn.execute(floors.F1, [batch], prepare=True).fetchall():
        for row in rows:
            handlers.run_sync(row[2])


def _f1b(conn: Connection, batch: int, handlers: Handlers) -> None:
    while rows := conn.execute(floors.F1B_CLAIM, [batch], prepare=True).fetchall():
        for row in rows:
            handlers.run_sync(row[2])
        conn.execute(floors.F1B_DONE, [[row[0] for row in rows]], prepare=True)


if __name__ == "__main__":
    common.main(setup, produce, consume)
