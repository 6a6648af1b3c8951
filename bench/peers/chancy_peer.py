"""Chancy: a queue with the async executor. It has no keys; see bench/systems.py.

Options: those of its Queue.
"""

import asyncio
import functools
import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from chancy import Chancy, Queue, Worker
from chancy import Job as Pushed

from bench.peers import common
from bench.peers.common import Consume, Handlers, Job, Produce, Spec, Stage

logging.disable(logging.ERROR)

JOURNAL = "BENCH_JOURNAL"
"""The executor imports the module of the handler anew, by its name: so the journal is told by a variable."""


@functools.cache
def _handlers() -> Handlers:
    return Handlers(Consume(os.environ[JOURNAL]))


async def handle(payload: dict[str, Any]) -> None:
    """The handler."""
    await _handlers().run(payload)


def setup(spec: Spec) -> None:
    """Migrate, and declare the queue."""

    async def migrate() -> None:
        async with Chancy(spec.dsn) as chancy:
            await chancy.migrate()

    asyncio.run(migrate())


def produce(spec: Spec, task: Produce, stage: Stage) -> None:
    """Push."""

    async def push() -> None:
        size = task.connections
        async with Chancy(
            spec.dsn, min_connection_pool_size=size, max_connection_pool_size=size + 1
        ) as chancy:
            await common.send_all(task, stage, [_sender(chancy, task)] * size)

    asyncio.run(push())


def _sender(chancy: Chancy, task: Produce) -> common.Send:
    def pushed(job: Job) -> Pushed:
        return Pushed(
            func="bench.peers.chancy_peer.handle",
            queue=task.queue,
            kwargs={"payload": job.payload},
            scheduled_at=datetime.now(UTC) + timedelta(milliseconds=job.delay),
        )

    async def one(part: Sequence[Job]) -> None:
        await chancy.push(pushed(part[0]))

    async def many(part: Sequence[Job]) -> None:
        jobs = [pushed(job) for job in part]
        async for _ in chancy.push_many(jobs, batch_size=len(jobs)):
            pass

    return one if task.chunk == 1 else many


def consume(spec: Spec, task: Consume, stage: Stage) -> None:
    """Run the worker until the harness ends it."""
    os.environ[JOURNAL] = task.journal

    async def work() -> None:
        async with Chancy(spec.dsn) as chancy:
            queue = Queue(task.queue, executor="chancy.executors.asyncex.AsyncExecutor", **spec.options)
            await chancy.declare(queue, upsert=True)
            stage.go()
            async with Worker(chancy, register_signal_handlers=False) as worker:
                await worker.wait_for_shutdown()

    asyncio.run(work())


if __name__ == "__main__":
    common.main(setup, produce, consume)
