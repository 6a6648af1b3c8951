"""PgQueuer: an entrypoint for each key, with `concurrency_limit`, which its dequeue enforces for all workers.

Keys must be known when the worker starts. Without order all go to one entrypoint without a limit. Options:
`batch_size` of the queue manager, and its `min_dequeue_poll_interval` in seconds.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from datetime import timedelta

import asyncpg
from pgqueuer import AsyncpgDriver, PgQueuer, Queries, RetryRequested
from pgqueuer.models import Job as Dequeued

from bench.peers import common
from bench.peers.common import Consume, DeliberateFailureError, Handlers, Job, Produce, Spec, Stage

logging.disable(logging.ERROR)


def setup(spec: Spec) -> None:
    """Install the schema."""

    async def install() -> None:
        conn = await asyncpg.connect(spec.dsn)
        await Queries(AsyncpgDriver(conn)).install()

    asyncio.run(install())


def produce(spec: Spec, task: Produce, stage: Stage) -> None:
    """Enqueue."""

    async def enqueue() -> None:
        connections = [await asyncpg.connect(spec.dsn) for _ in range(task.connections)]
        senders = [_sender(Queries(AsyncpgDriver(conn)), task) for conn in connections]
        await common.send_all(task, stage, senders)

    asyncio.run(enqueue())


def _sender(queries: Queries, task: Produce) -> common.Send:
    def entrypoint(job: Job) -> str:
        return f"{task.queue}.{job.key}" if task.ordered else task.queue

    def due(job: Job) -> timedelta | None:
        return timedelta(milliseconds=job.delay) if job.delay else None

    async def one(part: Sequence[Job]) -> None:
        job = part[0]
        payload = json.dumps(job.payload).encode()
        await queries.enqueue(entrypoint(job), payload, execute_after=due(job))

    async def many(part: Sequence[Job]) -> None:
        await queries.enqueue(
            [entrypoint(job) for job in part],
            [json.dumps(job.payload).encode() for job in part],
            [0] * len(part),
            [due(job) for job in part] if any(job.delay for job in part) else None,
        )

    return one if task.chunk == 1 else many


def consume(spec: Spec, task: Consume, stage: Stage) -> None:
    """Run the queue manager until the harness ends it."""
    handlers = Handlers(task)

    async def handle(job: Dequeued) -> None:
        try:
            await handlers.run(json.loads(job.payload or b""))
        except DeliberateFailureError:
            raise RetryRequested(delay=timedelta(milliseconds=task.backoff)) from None

    async def work() -> None:
        conn = await asyncpg.connect(spec.dsn)
        pgq = PgQueuer(AsyncpgDriver(conn))
        if task.ordered:
            for key in common.keys(task):
                pgq.entrypoint(f"{task.queue}.{key}", concurrency_limit=task.limit)(handle)
        else:
            pgq.entrypoint(task.queue)(handle)
        if (least := spec.options.get("min_dequeue_poll_interval")) is not None:
            pgq.qm.min_dequeue_poll_interval = timedelta(seconds=least)
        stage.go()
        await pgq.run(batch_size=task.concurrency or spec.options["batch_size"])

    asyncio.run(work())


if __name__ == "__main__":
    common.main(setup, produce, consume)
