"""Procrastinate: its app, worker and `lock`.

Options: `concurrency`, `delete_jobs` and `fetch_job_polling_interval` of the worker.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import procrastinate
from procrastinate.jobs import Job as Deferred

from bench.peers import common
from bench.peers.common import Consume, Handlers, Job, Produce, Spec, Stage

logging.disable(logging.ERROR)


def _app(spec: Spec, connections: int = 10) -> procrastinate.App:
    connector = procrastinate.PsycopgConnector(conninfo=spec.dsn, min_size=connections, max_size=connections)
    return procrastinate.App(connector=connector)


def setup(spec: Spec) -> None:
    """Apply the schema."""

    async def apply() -> None:
        app = _app(spec, 1)
        async with app.open_async():
            await app.schema_manager.apply_schema_async()

    asyncio.run(apply())


def produce(spec: Spec, task: Produce, stage: Stage) -> None:
    """Defer."""

    async def defer() -> None:
        app = _app(spec, task.connections)
        async with app.open_async():
            await common.send_all(task, stage, [_sender(app, task)] * task.connections)

    asyncio.run(defer())


def _sender(app: procrastinate.App, task: Produce) -> common.Send:
    def due(job: Job) -> datetime | None:
        return datetime.now(UTC) + timedelta(milliseconds=job.delay) if job.delay else None

    async def one(part: Sequence[Job]) -> None:
        job = part[0]
        lock = job.key if task.ordered else None
        task_ = app.configure_task("handle", queue=task.queue, lock=lock, schedule_at=due(job))
        await task_.defer_async(payload=job.payload)

    async def many(part: Sequence[Job]) -> None:
        # What Task.batch_defer_async calls; that has one lock for all of a batch.
        await app.job_manager.batch_defer_jobs_async(
            [
                Deferred(
                    id=None,
                    queue=task.queue,
                    lock=job.key if task.ordered else None,
                    queueing_lock=None,
                    task_name="handle",
                    task_kwargs={"payload": job.payload},
                    scheduled_at=due(job),
                )
                for job in part
            ]
        )

    return one if task.chunk == 1 else many


def consume(spec: Spec, task: Consume, stage: Stage) -> None:
    """Run the worker until the harness ends it."""
    handlers = Handlers(task)
    concurrency = task.concurrency or spec.options["concurrency"]
    app = _app(spec, max(10, concurrency + 2))
    retry = procrastinate.RetryStrategy(max_attempts=5, wait=0)

    @app.task(name="handle", queue=task.queue, retry=retry)
    async def handle(payload: dict[str, Any]) -> None:
        await handlers.run(payload)

    async def work() -> None:
        async with app.open_async():
            stage.go()
            await app.run_worker_async(
                queues=[task.queue],
                concurrency=concurrency,
                delete_jobs=spec.options["delete_jobs"],
                fetch_job_polling_interval=spec.options.get("fetch_job_polling_interval", 5.0),
                install_signal_handlers=False,
            )

    asyncio.run(work())


if __name__ == "__main__":
    common.main(setup, produce, consume)
