"""The systems that are measured side by side: how each is set, what it promises, and what it cannot do.

docs/benchmarks/README.md says the same for readers, with reasons.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FLOOR, OURS, PEER = "floor", "pgfifo", "peer"


@dataclass(frozen=True)
class System:
    """A system in one setting.

    Attributes:
        name: the system.
        setting: which of its settings; with the name, what reports call it.
        kind: a floor, pgfifo or a peer.
        program: what runs it, in bench/peers.
        environment: where it is installed; None for the project's own.
        options: what its program is told.
        left: SQL that counts what is not finished in the queue `bench`.
        says: its setting in words.
        limits: whether more than one of a key may run, and no more than so many.
        orders: whether it promises an order per key at all.
        fill: how many in one commit keep their order, when a queue is filled.
        blocks: whether a process takes nothing more while a handler of its batch runs.
        apart: milliseconds after each where there are few keys: two of one key may have the same time else.
        kept: SQL for the bytes of what is kept of finished ones.
        most_keys: over how many keys it is worth trying.
        cannot: reasons, by feature (bulk, delay, fail, pause, processes, latency, produce, consume, …) or
            scenario.
    """

    name: str
    setting: str
    kind: str
    program: str
    left: str
    says: str
    environment: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: bool = False
    orders: bool = True
    fill: int = 1000
    blocks: bool = False
    apart: float = 0
    kept: str | None = None
    most_keys: int | None = None
    cannot: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What reports call it."""
        return f"{self.name}, {self.setting}" if self.setting else self.name

    @property
    def is_pgbench(self) -> bool:
        """Whether pgbench does its work."""
        return bool(self.options.get("pgbench"))

    @property
    def slug(self) -> str:
        """What the command line calls the system, in whatever setting."""
        return _plain(self.name)

    @property
    def code(self) -> str:
        """What the command line calls the system in this setting."""
        return _plain(self.label)


_NO_KEYS = "has no keys: it is here for the rate"


def _floor(name: str, setting: str, says: str, floor: str, **options: object) -> System:
    cannot = dict.fromkeys(("S5", "S6", "S8", "S9", "S10", "S11", "S12", "S13", "S14"), _NO_KEYS)
    cannot["latency"] = "does not wait for work"
    if floor == "bare":
        cannot["consume"] = "is only inserted into"
        if options.get("copy"):
            cannot["S1"] = "is for many at once"
    else:
        cannot["produce"] = "the bare inserts stand for it"
    return System(
        name,
        setting,
        FLOOR,
        "floor_peer",
        f"select count(*) from {floor}",
        says,
        options={"floor": floor, **options},
        orders=False,
        cannot=cannot,
    )


def _f2(setting: str, floor: str, batch: int, clients: int) -> System:
    says = f"{'the statements of F1b' if floor == 'f1b' else 'the statement of F1'} by pgbench -M prepared"
    return System(
        "F2",
        setting,
        FLOOR,
        "floor_peer",
        f"select count(*) from {floor}",
        says,
        options={"floor": floor, "batch": batch, "threads": clients, "pgbench": True},
        orders=False,
        cannot={
            "produce": "the bare inserts stand for it",
            "latency": "does not wait for work",
            **({} if (floor, batch, clients) == ("f1", 1, 1) else {"S5": _NO_KEYS, "S12": _NO_KEYS}),
        },
    )


_PGFIFO_LEFT = (
    "select coalesce(sum(queue_length + active_count + delayed_count), 0) from pgfifo.queue_stats"
    " where action = 'bench'"
)


_PGFIFO_KEPT = "select sum(pg_total_relation_size(p.relid)) from pg_partition_tree('pgfifo.history') p"


def _pgfifo(setting: str, says: str, cannot: Mapping[str, str] | None = None, **options: object) -> System:
    return System(
        "pgfifo",
        setting,
        OURS,
        "pgfifo_peer",
        _PGFIFO_LEFT,
        says,
        options=options,
        limits=True,
        kept=_PGFIFO_KEPT,
        cannot=cannot or {},
    )


SAME_ENQUEUE = "enqueues as the default setting does"
_SAME_ENQUEUE = {"produce": SAME_ENQUEUE}
ONE_KEY = "is the best for one key, and measured there only"
_ONE_KEY = {
    **_SAME_ENQUEUE,
    **dict.fromkeys(("S3", "S4", "S6", "S7", "S9", "S10", "S11", "S13", "S14"), ONE_KEY),
}
_NO_PAUSE = "cannot pause one queue"


def _pgmq(setting: str, says: str, batch: int, cannot: Mapping[str, str] | None = None) -> System:
    return System(
        "pgmq",
        setting,
        PEER,
        "pgmq_peer",
        "select count(*) from pgmq.q_bench",
        says,
        "pgmq",
        {"batch": batch},
        blocks=True,
        most_keys=1_000,
        cannot={
            "pause": _NO_PAUSE,
            "limit": "a group is read by one reader at a time; no other limit",
            "keys": "a grouped read over 10,000 groups takes close to a minute",
            "S12": "its reader is one loop: it handles a batch one after the other, between two reads",
            **(cannot or {}),
        },
    )


def _procrastinate(
    setting: str, says: str, cannot: Mapping[str, str] | None = None, **options: object
) -> System:
    return System(
        "Procrastinate",
        setting,
        PEER,
        "procrastinate_peer",
        "select count(*) from procrastinate_jobs where queue_name = 'bench' and status in ('todo', 'doing')",
        says,
        "procrastinate",
        options,
        cannot={
            "pause": _NO_PAUSE,
            "limit": "a lock is held by one job at a time; no other limit per key",
            **(cannot or {}),
        },
    )


def _pgqueuer(setting: str, says: str, cannot: Mapping[str, str] | None = None, **options: object) -> System:
    return System(
        "PgQueuer",
        setting,
        PEER,
        "pgqueuer_peer",
        "select count(*) from pgqueuer where entrypoint like 'bench%' and status in ('queued', 'picked')",
        says,
        "pgqueuer",
        options,
        limits=True,
        most_keys=1_000,
        cannot={
            "pause": _NO_PAUSE,
            "keys": "a key is an entrypoint, registered in the worker when it starts and part of each query",
            **(cannot or {}),
        },
    )


def _graphile(setting: str, says: str, cannot: Mapping[str, str] | None = None, **options: object) -> System:
    return System(
        "graphile-worker",
        setting,
        PEER,
        "graphile_peer.mjs",
        "select count(*) from graphile_worker._private_jobs j join graphile_worker._private_tasks t"
        " on t.id = j.task_id where t.identifier = 'bench'",
        says,
        "node",
        options,
        fill=1,
        cannot={
            "pause": _NO_PAUSE,
            "limit": "a named queue runs one job at a time; no other limit per key",
            "fail": "its backoff is fixed, from about 2.7 s on",
            **(cannot or {}),
        },
    )


def _pgboss(setting: str, says: str, cannot: Mapping[str, str] | None = None, **options: object) -> System:
    groups = bool(options.get("groups"))
    return System(
        "pg-boss",
        setting,
        PEER,
        "pgboss_peer.mjs",
        "select count(*) from pgboss.job where name = 'bench' and state < 'completed'",
        says,
        "node",
        options,
        limits=groups,
        fill=1,
        blocks=True,
        cannot={
            "pause": _NO_PAUSE,
            **(
                {} if groups else {"limit": "key_strict_fifo runs one job of a key at a time; see its groups"}
            ),
            **(cannot or {}),
        },
    )


def _dbos(setting: str, says: str, cannot: Mapping[str, str] | None = None, **options: object) -> System:
    return System(
        "DBOS",
        setting,
        PEER,
        "dbos_peer",
        "select count(*) from dbos.workflow_status where queue_name = 'bench'"
        " and status in ('ENQUEUED', 'PENDING', 'DELAYED')",
        says,
        "dbos",
        options,
        limits=True,
        fill=1,
        apart=1.5,
        cannot={
            "pause": _NO_PAUSE,
            "fail": "a workflow that fails has failed: its retries are of steps",
            **(cannot or {}),
        },
    )


_KEYLESS = dict.fromkeys(
    ("S4", "S5", "S6", "S8", "S9", "S10", "S11", "S12", "S13", "S14"),
    "has neither an order nor a limit per key",
)


def _chancy(setting: str, says: str, cannot: Mapping[str, str] | None = None, **options: object) -> System:
    return System(
        "Chancy",
        setting,
        PEER,
        "chancy_peer",
        "select count(*) from chancy_jobs where queue = 'bench'"
        " and state in ('pending', 'retrying', 'running')",
        says,
        "chancy",
        options,
        orders=False,
        cannot={**_KEYLESS, **(cannot or {})},
    )


def _absurd(setting: str, says: str, cannot: Mapping[str, str] | None = None, **options: object) -> System:
    return System(
        "absurd",
        setting,
        PEER,
        "absurd_peer",
        "select count(*) from absurd.t_bench where state in ('pending', 'running', 'sleeping')",
        says,
        "absurd",
        options,
        orders=False,
        cannot={**_KEYLESS, "bulk": "has no call for many", **(cannot or {})},
    )


_PGBOSS_WORK = {
    "batchSize": 100,
    "burstWhenBatchFull": True,
    "pollingIntervalSeconds": 0.5,
    "notifyPollingIntervalSeconds": 0.5,
}

SYSTEMS: tuple[System, ...] = (
    _floor("bare insert", "", "one row, or one multi-row insert; pgfifo's columns, primary key", "bare"),
    _floor("bare insert", "COPY", "the same by COPY", "bare", copy=True),
    _floor("F1", "batch 1, 1 connection", "claim and delete in one commit", "f1", batch=1),
    _floor("F1", "batch 1, 10 connections", "the same in ten threads", "f1", batch=1, threads=10),
    _floor("F1", "batch 50, 1 connection", "the same, fifty at once", "f1", batch=50),
    _floor("F1b", "batch 1, 1 connection", "claim in one commit, delete in the next", "f1b", batch=1),
    _floor("F1b", "batch 1, 10 connections", "the same in ten threads", "f1b", batch=1, threads=10),
    _floor("F1b", "batch 10, 1 connection", "the same, ten at once", "f1b", batch=10),
    _floor("F1b", "batch 50, 1 connection", "the same, fifty at once", "f1b", batch=50),
    _f2("batch 1, 1 client", "f1", 1, 1),
    _f2("batch 1, 10 clients", "f1", 1, 10),
    _f2("batch 50, 1 client", "f1", 50, 1),
    _f2("two commits, batch 1, 1 client", "f1b", 1, 1),
    _f2("two commits, batch 50, 1 client", "f1b", 50, 1),
    _pgfifo("async", "the worker as it comes: concurrency 10; coroutines as handlers", concurrency=10),
    _pgfifo(
        "async 50", "the worker with concurrency 50; coroutines as handlers", _SAME_ENQUEUE, concurrency=50
    ),
    _pgfifo(
        "sync",
        "the worker as it comes; functions as handlers, in threads",
        _SAME_ENQUEUE,
        handlers="sync",
        concurrency=10,
    ),
    _pgfifo(
        "sync 50",
        "the worker with concurrency 50; functions as handlers, in threads",
        _SAME_ENQUEUE,
        handlers="sync",
        concurrency=50,
    ),
    _pgfifo(
        "poll only",
        "the worker behind a pooler: no notifications, a look each 100 ms",
        dict.fromkeys(("produce", "drain"), "is measured in S7 only"),
        concurrency=10,
        poll=0.1,
    ),
    _pgfifo(
        "bare SQL",
        "no worker: one connection that calls pgfifo.work(), fifty at once",
        {
            **_SAME_ENQUEUE,
            "latency": "does not wait for work: it asks again and again",
            "S12": "one loop, no concurrency",
            "S6": "one loop: a long handler would stop it",
            "fail": "hands in successes only",
        },
        handlers="none",
        concurrency=50,
    ),
    _pgmq("default", "read 10 at once and delete them together", 10),
    _pgmq("best", "read 100 at once and delete them together", 100, _SAME_ENQUEUE),
    _procrastinate("default", "one at a time, jobs kept", concurrency=1, delete_jobs="never"),
    _procrastinate(
        "best",
        "20 at a time, finished jobs deleted, a look each 20 ms",
        _SAME_ENQUEUE,
        concurrency=20,
        delete_jobs="always",
        fetch_job_polling_interval=0.02,
    ),
    _pgqueuer("default", "batch_size 10, on asyncpg", batch_size=10),
    _pgqueuer(
        "best",
        "batch_size 100, on asyncpg, a look each millisecond while something waits",
        _SAME_ENQUEUE,
        batch_size=100,
        min_dequeue_poll_interval=0.001,
    ),
    _pgqueuer(
        "one key",
        "batch_size 1, so that finishes are not gathered, and a look each millisecond while something waits",
        _ONE_KEY,
        batch_size=1,
        min_dequeue_poll_interval=0.001,
    ),
    _graphile("default", "one job at a time", concurrentJobs=1),
    _graphile(
        "best",
        "24 jobs at a time, pool of 26, a look each 20 ms",
        _SAME_ENQUEUE,
        concurrentJobs=24,
        maxPoolSize=26,
        pollInterval=20,
    ),
    _graphile(
        "one key",
        "two jobs at a time, a look each millisecond: it looks before the one that has ended is finished",
        _ONE_KEY,
        concurrentJobs=2,
        pollInterval=1,
    ),
    _graphile(
        "batches",
        "24 jobs at a time, a local queue of 500, completions gathered, a look each 20 ms",
        _SAME_ENQUEUE,
        concurrentJobs=24,
        maxPoolSize=26,
        pollInterval=20,
        localQueue={"size": 500},
        completeJobBatchDelay=0,
        failJobBatchDelay=0,
    ),
    _pgboss("default", "key_strict_fifo; one worker, one job at a time, a look each two seconds"),
    _pgboss(
        "best",
        "key_strict_fifo; a worker that takes 100 keys at once, is notified, and goes on after a full batch",
        boss={"useListenNotify": True},
        queue={"notify": True},
        work=_PGBOSS_WORK,
    ),
    _pgboss(
        "one key",
        "key_strict_fifo; two workers, one job each, without a pause while its counts say that more is ready",
        _ONE_KEY,
        boss={"monitorIntervalSeconds": 1, "superviseIntervalSeconds": 1, "queueCacheIntervalSeconds": 1},
        work={"localConcurrency": 2, "burstWhenReadyExceeds": 1, "pollingIntervalSeconds": 0.5},
    ),
    _pgboss(
        "groups",
        "standard policy, the key as a group with groupConcurrency; otherwise as best",
        groups=True,
        boss={"useListenNotify": True},
        queue={"notify": True},
        work=_PGBOSS_WORK,
    ),
    _dbos("default", "a queue partitioned by key, a look each second"),
    _dbos("best", "a queue partitioned by key, a look each 10 ms", _SAME_ENQUEUE, polling_interval_sec=0.01),
    _chancy("default", "the async executor, ten at once, a look each five seconds", concurrency=10),
    _chancy(
        "best",
        "the async executor, 100 at once, and again at once after each",
        _SAME_ENQUEUE,
        concurrency=100,
        eager_polling=True,
        polling_interval=1,
    ),
    _absurd("default", "one at a time, a look each 250 ms", concurrency=1),
    _absurd("best", "50 at a time, a look each 10 ms", _SAME_ENQUEUE, concurrency=50, poll_interval=0.01),
)


def chosen(names: str) -> list[System]:
    """The systems of a comma-separated list of names, or all; a label names one setting.

    Raises:
        SystemExit: nothing is called that.
    """
    if not names:
        return list(SYSTEMS)
    wanted = [name.strip().lower() for name in names.split(",") if name.strip()]
    known = {system.slug for system in SYSTEMS} | {system.kind for system in SYSTEMS}
    labels = {system.code for system in SYSTEMS}
    wrong = [name for name in wanted if name.rstrip("s") not in known and name not in known | labels]
    if wrong:
        raise SystemExit(f"no such system: {', '.join(wrong)}. There are: {', '.join(sorted(known))}.")
    return [
        system
        for system in SYSTEMS
        if {system.slug, system.kind, system.kind + "s", system.code} & set(wanted)
    ]


def _plain(label: str) -> str:
    return label.lower().replace(", ", ":").replace(" ", "-")
