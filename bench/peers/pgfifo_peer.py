"""pgfifo: its client, and its worker with sync or async handlers; or its SQL alone, without a worker."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg.types.json import Jsonb

import pgfifo
from bench.engine import Worker as BareWorker
from bench.engine import succeeded
from bench.peers import common
from bench.peers.common import Consume, Handlers, Job, Produce, Spec, Stage


def setup(spec: Spec) -> None:
    """Install the schema."""
    with pgfifo.Client(spec.dsn) as fifo:
        fifo.install()


def produce(spec: Spec, task: Produce, stage: Stage) -> None:
    """Enqueue with one client a connection; groups are read from the payloads."""
    with pgfifo.Client(spec.dsn) as fifo:
        if task.ordered:
            fifo.set_policy(task.queue, group_by=["customer"], max_concurrent=task.limit)
        else:
            # No order asked: one lane, relaxed, with as many slots as anybody can fill.
            fifo.set_policy(task.queue, ordering="relaxed", max_concurrent=1_000_000)
        fifo.set_policy(task.queue, backoff="constant", backoff_initial=0.05)
        if task.paused:
            fifo.pause(task.queue)
    clients = [pgfifo.Client(spec.dsn) for _ in range(task.connections)]
    for client in clients:
        client.stats()  # connects
    common.send_all_in_threads(task, stage, [_sender(client, task) for client in clients])
    for client in clients:
        client.close()


def _sender(client: pgfifo.Client, task: Produce) -> common.SendAndWait:
    def one(part: Sequence[Job]) -> None:
        job = part[0]
        delay = timedelta(milliseconds=job.delay) if job.delay else None
        client.enqueue(task.queue, job.payload, delay=delay)

    def many(part: Sequence[Job]) -> None:
        payloads = [job.payload for job in part]
        if any(job.delay for job in part):
            now = datetime.now(UTC)
            run_ats = [now + timedelta(milliseconds=job.delay) if job.delay else None for job in part]
            client.enqueue_many(task.queue, payloads, run_ats=run_ats, split=True)
        else:
            client.enqueue_many(task.queue, payloads, split=True)

    return one if task.chunk == 1 else many


def consume(spec: Spec, task: Consume, stage: Stage) -> None:
    """Run the worker until the harness ends it."""
    if spec.options.get("handlers") == "none":
        _consume_bare(spec, task, stage)
        return
    handlers = Handlers(task)
    actions = pgfifo.Actions()
    for queue in task.also:
        actions.add(queue, lambda _: None)
    if spec.options.get("handlers") == "sync":

        @actions.action(task.queue)
        def handle(execution: pgfifo.Execution) -> None:
            handlers.run_sync(execution.payload)
    else:

        @actions.action(task.queue)
        async def handle_async(execution: pgfifo.Execution) -> None:
            await handlers.run(execution.payload)

    poll = spec.options.get("poll")
    worker = pgfifo.Worker(
        spec.dsn,
        actions,
        concurrency=task.concurrency or spec.options.get("concurrency", 10),
        poll_only=poll is not None,
        poll_interval=poll or 1.0,
    )
    stage.go()
    worker.run()


def _consume_bare(spec: Spec, task: Consume, stage: Stage) -> None:
    """Call `pgfifo.work` over and over: what the SQL costs without a worker around it."""
    handlers = Handlers(task)
    with psycopg.connect(spec.dsn, autocommit=True) as conn:
        worker = BareWorker(conn, task.queue)
        stage.go()
        finished: Jsonb | None = None
        while True:
            starts, _ = worker.work(task.concurrency or spec.options.get("concurrency", 50), finished)
            for start in starts:
                handlers.run_sync(start[6])  # of work_row, the payload
            finished = succeeded(starts)
            if not starts:
                time.sleep(0.001)


if __name__ == "__main__":
    common.main(setup, produce, consume)
