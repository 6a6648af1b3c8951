"""absurd: a task without steps, spawned and worked off by its Python SDK. It has no keys.

Options: `concurrency` and `poll_interval` of its worker.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg
from absurd_sdk import Absurd, AsyncAbsurd
from absurdctl import BUNDLED_SCHEMA_SQL

from bench.peers import common
from bench.peers.common import Consume, Handlers, Job, Produce, Spec, Stage


def setup(spec: Spec) -> None:
    """Install the schema that its command line brings, and make the queues."""
    with psycopg.connect(spec.dsn, autocommit=True) as conn:
        conn.execute(BUNDLED_SCHEMA_SQL)
        for queue in ("bench", "idle"):
            conn.execute("select absurd.create_queue(%s)", [queue])


def produce(spec: Spec, task: Produce, stage: Stage) -> None:
    """Spawn."""
    clients = [Absurd(spec.dsn, queue_name=task.queue) for _ in range(task.connections)]
    common.send_all_in_threads(task, stage, [_sender(client, task.queue) for client in clients])


def _sender(client: Absurd, queue: str) -> common.SendAndWait:
    def each(part: Sequence[Job]) -> None:
        for job in part:
            client.spawn("handle", job.payload, queue=queue)

    return each


def consume(spec: Spec, task: Consume, stage: Stage) -> None:
    """Run the worker until the harness ends it."""
    handlers = Handlers(task)

    async def work() -> None:
        app = AsyncAbsurd(spec.dsn, queue_name=task.queue)

        @app.register_task("handle")
        async def handle(params: dict[str, Any], _: object) -> None:
            await handlers.run(params)

        stage.go()
        await app.start_worker(
            concurrency=task.concurrency or spec.options["concurrency"],
            poll_interval=spec.options.get("poll_interval", 0.25),
        )

    asyncio.run(work())


if __name__ == "__main__":
    common.main(setup, produce, consume)
