"""Uses the whole public API, for the type checker only: `mypy --strict` reads it, and nothing runs it."""

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Literal, assert_type

import psycopg
import psycopg_pool

import pgfifo
import pgfifo.testing

actions = pgfifo.Actions()


@actions.action("deploy", group_by=["env", "target.region"], max_concurrent=1)
def deploy(execution: pgfifo.Execution) -> dict[str, object]:
    assert_type(execution.id, int)
    assert_type(execution.attempt, int)
    assert_type(execution.payload, Any)
    return {"url": "https://…"}


@actions.action(
    "index",
    ordering="relaxed",
    max_queue_length="unlimited",
    max_attempts=3,
    failure_mode="yield",
    backoff="constant",
    backoff_initial=1.5,
    backoff_factor=2,
    backoff_cap=timedelta(minutes=5),
    backoff_jitter=0.1,
    on_exhausted="pause",
    retention="7d",
    lane_retention="unlimited",
    max_payload=1024,
)
async def index(execution: pgfifo.Execution) -> None:
    if execution.attempt == 1:
        raise pgfifo.Retry("not yet", after=timedelta(minutes=1), count=False)
    if execution.attempt == 2:
        raise pgfifo.Retry(after="1m30s") from ValueError()
    raise pgfifo.Abort("no such index")


@actions.action("search", batch=100)
def search(executions: list[pgfifo.Execution]) -> list[object]:
    executions[0].succeed({"n": 1})
    executions[1].fail(ValueError())
    executions[2].fail("odd")
    return [None for _ in executions]


@actions.middleware
def around(execution: pgfifo.Execution) -> Iterator[None]:
    yield


@actions.middleware
async def around_async(execution: pgfifo.Execution) -> AsyncIterator[None]:
    yield


@actions.on_failed
def failed(execution: pgfifo.Execution, error: BaseException) -> None:
    """Do nothing."""


@actions.on_exhausted
async def exhausted(execution: pgfifo.Execution, error: BaseException) -> None:
    """Do nothing."""


actions.middleware(deploy)  # type: ignore[type-var]
actions.on_failed(around)  # type: ignore[type-var]
actions.action("wrong", max_concurrent="many")  # type: ignore[arg-type]
actions.action("wrong", no_such=1)  # type: ignore[call-arg]
actions.add("plain", deploy, max_concurrent=None)
actions.include(pgfifo.Actions())
assert_type(actions.subset(["deploy"]), pgfifo.Actions)
handler: Callable[[pgfifo.Execution], dict[str, object]] = deploy
assert_type(actions.names, list[str])
assert_type(actions["deploy"], pgfifo.Action)
assert_type(actions["deploy"].is_async, bool)


def made(conn: psycopg.Connection[dict[str, Any]], pool: psycopg_pool.ConnectionPool[Any]) -> None:
    pgfifo.Client()
    pgfifo.Client("postgresql://…", max_size=2, timeout=5, prepare_threshold=None, application_name="shop")
    pgfifo.Client(conn)
    pgfifo.Client(pool, actions=actions)
    pgfifo.Client(7)  # type: ignore[arg-type]


def producing(fifo: pgfifo.Client, conn: psycopg.Connection[Any]) -> None:
    job = fifo.enqueue("deploy", {"env": "prod"})
    assert_type(job, pgfifo.Enqueued)
    assert_type(job.id, int)
    assert_type(job.created, bool)
    assert_type(job.lane, pgfifo.Lane)
    assert_type(job.lane.group, dict[str, object] | str)
    fifo.enqueue("deploy", [1, "two", None], group={"env": "prod"}, headers={"trace": "x"}, tags=["a"])
    fifo.enqueue("deploy", pgfifo.JsonText("{}"), group="prod", connection=conn)
    fifo.enqueue("deploy", request_id="a", dedup_key="b", item_key="c", run_at=datetime.now().astimezone())
    jobs = fifo.enqueue_many("deploy", ({"n": n} for n in range(3)), groups=["a", None, {"b": 1}], split=True)
    assert_type(jobs, list[pgfifo.Enqueued])
    fifo.enqueue_many("deploy", [1], headers=[None], request_ids=[None], connection=conn)
    assert_type(fifo.wait(job.id, timeout=timedelta(seconds=5)), Any)
    fifo.wait(job.id, timeout="5s", connection=conn)
    fifo.enqueue_and_wait("deploy", {"env": "prod"}, timeout=30, tags=["a"])
    assert_type(fifo.cancel(job.id, reason="no", connection=conn), str)
    assert_type(fifo.finish(1, 1, "succeeded", result={"ok": True}, connection=conn), str)
    fifo.finish(1, 1, "exploded")  # type: ignore[arg-type]
    fifo.finish(1, 1, "failed", error="no", retry=False)
    fifo.release(1, 1)
    with fifo.transaction() as own:
        assert_type(own, psycopg.Connection[Any])


@actions.schedule("30 2 * * mon-fri", time_zone="Europe/Berlin", missed="all", payload={"kind": "full"})
@actions.action("backup", schema={"type": "object"})
def backup(execution: pgfifo.Execution) -> None:
    """Do nothing."""


def scheduling(fifo: pgfifo.Client, conn: psycopg.Connection[Any]) -> None:
    assert_type(fifo.set_schedule("nightly", "backup", "@daily", time_zone="UTC", connection=conn), str)
    fifo.set_schedule("nightly", "backup", "@daily", missed="some")  # type: ignore[arg-type]
    [info] = fifo.schedules("backup")
    assert_type(info, pgfifo.ScheduleInfo)
    assert_type(info.next_at, datetime | None)
    assert_type(fifo.pause_schedule("nightly", reason="incident"), bool)
    assert_type(fifo.resume_schedule("nightly"), bool)
    fifo.remove_schedule("nightly")


def testing(worker: pgfifo.Worker) -> None:
    fifo = pgfifo.testing.Fifo("postgresql://…", actions=actions)
    fifo.install(testing=True)
    assert_type(fifo.drain(), list[pgfifo.Execution])
    assert_type(fifo.drain(actions, raises=False, concurrency=1), list[pgfifo.Execution])
    assert_type(pgfifo.testing.drain(worker), list[pgfifo.Execution])
    assert_type(fifo.advance(timedelta(hours=1)), datetime)
    assert_type(fifo.assert_enqueued("deploy", {"env": "prod"}, count=1), pgfifo.ExecutionInfo)
    fifo.assert_not_enqueued("deploy", group={"env": "prod"}, state="waiting")


def looking(fifo: pgfifo.Client) -> None:
    info = fifo.execution(1)
    assert_type(info, pgfifo.ExecutionInfo)
    assert_type(info.lane, pgfifo.Lane)
    assert_type(info.finished, bool)
    assert_type(info.finished_at, datetime | None)
    assert_type(fifo.executions(), list[pgfifo.ExecutionInfo])
    fifo.executions("deploy", group="prod", state="waiting", before=10, limit=5)
    fifo.executions(state=["failed", "cancelled"])
    fifo.executions(state="exploded")  # type: ignore[arg-type]
    position = fifo.position(1)
    assert_type(position, pgfifo.Position)
    assert_type(position.position, int | None)
    assert_type(position.exact, bool)
    assert_type(position.eta_seconds, float | None)
    assert_type(position.eta_basis, Literal["lane", "action"] | None)
    assert_type(fifo.pace("deploy", minutes=5), pgfifo.Pace)
    assert_type(fifo.overview("deploy"), list[pgfifo.ActionOverview])
    assert_type(fifo.find_lanes(search="prod", having="waiting", sort="oldest"), list[pgfifo.LaneStats])
    assert_type(fifo.line("deploy", {"env": "prod"}, limit=5), list[pgfifo.Place])
    assert_type(fifo.minutes("deploy", minutes=5), list[pgfifo.Minute])
    assert_type(fifo.wait_times(), list[pgfifo.WaitTimes])
    explanation = fifo.explain(1)
    assert_type(explanation, pgfifo.Explanation)
    assert_type(explanation.reasons, list[str])
    assert_type(explanation.data, dict[str, Any])
    assert_type(fifo.stats(), list[pgfifo.ActionStats])
    stats = fifo.stats("deploy")
    assert_type(stats, pgfifo.ActionStats)
    assert_type(stats.queue_length, int)
    assert_type(stats.lanes, int)
    lanes = fifo.lanes("deploy", {"env": "prod"}, limit=10)
    assert_type(lanes, list[pgfifo.LaneStats])
    assert_type(lanes[0].lane, pgfifo.Lane)
    assert_type(fifo.workers(), list[pgfifo.WorkerInfo])
    assert_type(fifo.order_violations("deploy", limit=5), list[pgfifo.OrderViolation])
    found = fifo.check(repair=True)
    assert_type(found, list[pgfifo.Finding])
    assert_type(found[0].severity, Literal["violation", "overdue", "repaired"])
    diagnoses = fifo.doctor(open_after="10s", check=False)
    assert_type(diagnoses, list[pgfifo.Diagnosis])
    assert_type(diagnoses[0].severity, Literal["critical", "warning", "info"])
    info.id = 2  # type: ignore[misc]


def operating(fifo: pgfifo.Client, conn: psycopg.Connection[Any]) -> None:
    fifo.install()
    fifo.upgrade()
    fifo.uninstall()
    assert_type(fifo.schema_info(), pgfifo.SchemaInfo)
    fifo.declare(actions)
    changes = fifo.set_policy("deploy", max_concurrent=3, retention="2d", connection=conn)
    assert_type(changes, list[pgfifo.PolicyChange])
    fifo.set_policy("deploy", {"env": "prod"}, max_concurrent=None)
    fifo.set_policy("deploy", force=True, group_by=["env"])
    fifo.set_policy("deploy", max_concurrent="many")  # type: ignore[arg-type]
    fifo.set_pack_policy("billing", max_attempts=1)
    fifo.set_default_policy(max_attempts=1)
    assert_type(fifo.effective_policy("deploy", "prod"), list[pgfifo.PolicyValue])
    assert_type(fifo.override_policy("deploy", lasting="1h", rate="5/s"), list[pgfifo.PolicyChange])
    fifo.override_pack_policy("billing", lasting=timedelta(hours=1), max_concurrent=5)
    fifo.override_default_policy(max_concurrent=None)
    assert_type(fifo.overrides(), list[pgfifo.PolicyOverride])
    assert_type(fifo.policy_history("deploy", "prod", scope="lane"), list[pgfifo.PolicyRecord])
    fifo.policy_history(scope="world")  # type: ignore[arg-type]
    changed = fifo.set_shared_limit(
        "api", max_concurrent=20, rate="100/s", packs=["billing"], connection=conn
    )
    assert_type(changed, list[pgfifo.SharedLimitChange])
    fifo.set_shared_limit("api", rate=None, actions=("a", "b"), everything=False)
    fifo.set_shared_limit("api", actions=None)  # type: ignore[arg-type]
    assert_type(fifo.shared_limits(), list[pgfifo.SharedLimit])
    assert_type(fifo.create_roles(), list[str])
    assert_type(fifo.grant_role("producer", "app", connection=conn), bool)
    fifo.grant_role("owner", "app")  # type: ignore[arg-type]
    assert_type(fifo.revoke_role("producer", "app"), bool)
    assert_type(fifo.grant_enqueue("deploy", "app"), bool)
    assert_type(fifo.revoke_enqueue("deploy", "app"), bool)
    assert_type(fifo.grants(), list[pgfifo.Grant])
    fifo.drop_shared_limit("api")
    assert_type(fifo.export_policies(), dict[str, Any])
    assert_type(fifo.apply_policies({}, prune=True, dry_run=True), list[pgfifo.PolicyDifference])
    assert_type(fifo.audit("deploy", what="pause"), list[pgfifo.AuditEntry])
    assert_type(fifo.pause("deploy", reason="holiday"), bool)
    assert_type(fifo.resume("deploy", {"env": "prod"}), bool)
    assert_type(fifo.maintain(), dict[str, Any])
    number = fifo.import_start("deploy", "events.jsonl", "abc")
    assert_type(number, int)
    fifo.import_commit(number, 1000, connection=conn)
    fifo.import_enqueued(number, 1000, 1, 1000, connection=conn)
    assert_type(fifo.import_status(number), pgfifo.ImportStatus)
    fifo.import_finish(number)
    with fifo:
        pass
    fifo.close()


async def asynchronous(
    conn: psycopg.AsyncConnection[Any], pool: psycopg_pool.AsyncConnectionPool[Any]
) -> None:
    pgfifo.AsyncClient(pool)
    async with pgfifo.AsyncClient(conn) as fifo:
        assert_type(await fifo.enqueue("deploy", {}, connection=conn), pgfifo.Enqueued)
        assert_type(await fifo.enqueue_many("deploy", [{}]), list[pgfifo.Enqueued])
        assert_type(await fifo.stats(), list[pgfifo.ActionStats])
        assert_type(await fifo.stats("deploy"), pgfifo.ActionStats)
        async with fifo.transaction() as own:
            assert_type(own, psycopg.AsyncConnection[Any])


def refusals(error: pgfifo.PgfifoError, full: pgfifo.QueueFull, late: pgfifo.SlotTimeout) -> None:
    assert_type(error.message, str)
    assert_type(error.detail, dict[str, Any])
    assert_type(error.hint, str | None)
    assert_type(full.action, str | None)
    assert_type(full.limit, float | None)
    timeout: TimeoutError = late
    value: ValueError = pgfifo.InvalidValue("odd")
    base: psycopg.DatabaseError = error
    print(timeout, value, base)


def works(dsn: str, own: psycopg.Connection[Any], execution: pgfifo.Execution) -> None:
    """Use a worker, a command and an execution."""
    actions.add(
        "shell", pgfifo.Command(["./deliver.sh"], result="json", kill_after=5, env={"A": "b"}, cwd="/")
    )
    worker = pgfifo.Worker(
        dsn,
        actions,
        name="one",
        concurrency={"*": 20, "index": 2},
        poll_interval="1s",
        heartbeat=timedelta(seconds=5),
        lease=30,
        shutdown_timeout="1m",
        listen_dsn=dsn,
        until_empty=True,
        declare=False,
        on_start=lambda worker: print(worker + 1),
    )
    worker.run()
    with worker as same:
        assert_type(same, pgfifo.Worker)
    worker.start()
    worker.request_stop()
    assert_type(worker.stop(timeout="5s"), bool)
    assert_type(worker.running, list[pgfifo.Execution])
    assert_type(worker.id, int | None)
    assert_type(execution.cancel_reason, Literal["cancel", "lost", "shutdown", "timeout"] | None)
    execution.raise_if_cancelled()
    execution.complete(own, {"done": True})


async def works_in_a_loop(dsn: str, own: psycopg.AsyncConnection[Any], execution: pgfifo.Execution) -> None:
    """Use a worker in an event loop."""
    async with pgfifo.Worker(dsn, actions) as worker:
        assert_type(worker, pgfifo.Worker)
    await pgfifo.Worker(dsn, actions, poll_only=True).run_async()
    await execution.complete(own)
    raise pgfifo.ExecutionCancelled("cancel")
