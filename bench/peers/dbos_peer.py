"""DBOS: a workflow without steps on a queue that is partitioned by the key, with `partition_concurrency`.

Options: `polling_interval_sec` of the queue, and `worker_concurrency`.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Any

import sqlalchemy
from dbos import DBOS, DBOSClient, DBOSConfig

from bench.peers import common
from bench.peers.common import Consume, Handlers, Job, Produce, Spec, Stage

logging.disable(logging.ERROR)


def _launch(spec: Spec) -> None:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": spec.dsn,
        "application_version": "1",
        "log_level": "ERROR",
        "sys_db_pool_size": 20,
    }
    DBOS(config=config)
    DBOS.launch()


def setup(spec: Spec) -> None:
    """Make the system database."""
    _launch(spec)
    DBOS.destroy()


def produce(spec: Spec, task: Produce, stage: Stage) -> None:
    """Enqueue from outside, with a client for each connection; many in one transaction."""
    clients = [
        DBOSClient(system_database_url=spec.dsn, system_database_pool_size=1, application_name="bench")
        for _ in range(task.connections)
    ]
    common.send_all_in_threads(task, stage, [_sender(client, spec, task) for client in clients])


def _sender(client: DBOSClient, spec: Spec, task: Produce) -> common.SendAndWait:
    def options(job: Job) -> dict[str, Any]:
        found: dict[str, Any] = {"workflow_name": "handle", "queue_name": task.queue, "app_version": "1"}
        if task.ordered:
            found["queue_partition_key"] = job.key
        if job.delay:
            found["delay_seconds"] = job.delay / 1000
        return found

    def one(part: Sequence[Job]) -> None:
        client.enqueue(options(part[0]), part[0].payload)

    engine = sqlalchemy.create_engine(spec.dsn.replace("postgresql://", "postgresql+psycopg://", 1))

    def many(part: Sequence[Job]) -> None:
        with engine.begin() as conn:
            for job in part:
                client.enqueue_in_transaction(conn, options(job), job.payload)

    return one if task.chunk == 1 else many


def consume(spec: Spec, task: Consume, stage: Stage) -> None:
    """Launch with the workflow and the queue until the harness ends it."""
    handlers = Handlers(task)

    @DBOS.workflow(name="handle")
    async def handle(payload: dict[str, Any]) -> None:
        await handlers.run(payload)

    stage.go()
    _launch(spec)
    DBOS.register_queue(
        task.queue,
        partition_concurrency=task.limit if task.ordered else None,
        worker_concurrency=task.concurrency or spec.options.get("worker_concurrency"),
        polling_interval_sec=spec.options.get("polling_interval_sec", 1.0),
        on_conflict="always_update",
    )
    threading.Event().wait()


if __name__ == "__main__":
    common.main(setup, produce, consume)
