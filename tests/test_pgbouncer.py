"""Everything through a real PgBouncer in transaction mode; nothing of it may be left in anybody's session.

It hands each transaction to another session of the server than the one before (server_round_robin), so what
counts on meeting its own session again fails at once.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.pq import TransactionStatus

import pgfifo
from pgfifo import Actions, Execution, _holder
from pgfifo._connections import AsyncLink, Link
from pgfifo.embedded import PrivateServer
from tests.support.bouncer import SESSIONS, PgBouncer, bouncer, find_pgbouncer
from tests.support.cli import CommandLine, program
from tests.support.database import in_background, wait_for
from tests.support.engine import Engine
from tests.test_worker import drain, working

pytestmark = pytest.mark.skipif(find_pgbouncer() is None, reason="there is no PgBouncer")

Connection = psycopg.Connection[Any]

LEFT = """
    select 'listens on ' || c from pg_listening_channels() c
    union all select 'has prepared ' || statement from pg_prepared_statements
    union all select name || ' = ' || setting from pg_settings
      where source = 'session'
        -- These PgBouncer sets to what each of its clients has.
        and name not in ('application_name', 'client_encoding', 'DateStyle', 'TimeZone',
          'standard_conforming_strings')
        and name <> 'transaction_isolation'  -- of a transaction that said so; it ended with that
    union all select 'holds the lock ' || classid || ' ' || objid from pg_locks
      where locktype = 'advisory' and pid = pg_backend_pid()
"""


@pytest.fixture(scope="module")
def pooler(server: PrivateServer) -> Iterator[PgBouncer]:
    with bouncer(server) as running:
        yield running


@pytest.fixture
def pooled(pooler: PgBouncer, dsn: str, conn: Connection) -> Iterator[str]:
    """The way to the database through the pooler; at the end, nothing may be left in its sessions."""
    dbname = conn.info.dbname
    through = pooler.dsn(dbname)
    assert len(in_all_sessions(through, "select pg_backend_pid()")) == SESSIONS
    yield through
    assert in_all_sessions(through, LEFT) == []


def in_all_sessions(dsn: str, query: str) -> list[Any]:
    """Ask in each of the pooler's sessions, all at once."""
    with ExitStack() as stack:
        found: list[Any] = []
        for _ in range(SESSIONS):
            conn = stack.enter_context(psycopg.connect(dsn, prepare_threshold=None))
            found += [value for (value,) in conn.execute(query.encode())]  # its transaction keeps the session
        return found


@pytest.fixture
def fifo(pooled: str) -> Iterator[pgfifo.Client]:
    with pgfifo.Client(pooled, prepare_threshold=None) as client:
        yield client


@pytest.fixture
def engine(conn: Connection) -> Engine:
    """The engine, past the pooler; deploy has a lane for each g."""
    engine = Engine(conn)
    engine.policy(group_by=["g"])
    return engine


class Handlers:
    """A sync, an async and a failing handler, and what they saw."""

    def __init__(self) -> None:
        self.actions = Actions()
        self.seen: list[int] = []
        self.actions.action("deploy", backoff_initial=0)(self.deploy)
        self.actions.action("mail", max_concurrent=3)(self.mail)

    def deploy(self, execution: Execution) -> int:
        self.seen.append(execution.id)
        if execution.payload.get("fails", 0) >= execution.attempt:
            raise pgfifo.Retry("not yet")
        return execution.id

    async def mail(self, execution: Execution) -> None:
        execution.progress(0.5, "half")
        await asyncio.sleep(0)


def test_a_client_does_everything(fifo: pgfifo.Client, engine: Engine) -> None:
    made = [fifo.enqueue("deploy", {"n": n}, request_id=f"r{n}") for n in range(10)]
    assert fifo.enqueue("deploy", {"n": 0}, request_id="r0").id == made[0].id
    many = fifo.enqueue_many("mail", [{}] * 20)
    assert [fifo.position(each.id).position for each in made] == [*range(1, 11)]
    with fifo.transaction() as conn:
        fifo.enqueue("deploy", {}, connection=conn)
        fifo.cancel(many[0].id, connection=conn)
    with contextlib.suppress(ZeroDivisionError), fifo.transaction() as conn:
        fifo.enqueue("deploy", {"rolled": "back"}, connection=conn)
        raise ZeroDivisionError
    fifo.set_policy("deploy", max_concurrent=2, max_queue_length=11)
    with pytest.raises(pgfifo.QueueFull):
        fifo.enqueue("deploy", {})
    fifo.override_policy("deploy", lasting=60, max_concurrent=3)
    assert fifo.pause("mail")
    assert fifo.resume("mail")
    later = fifo.enqueue("mail", {}, delay=timedelta(days=1))
    fifo.reschedule(later.id, delay=60)
    assert fifo.cancel_where(action="mail", to_id=many[4].id).cancelled == 4
    fifo.set_shared_limit("api", actions=["mail"], max_concurrent=5)
    fifo.set_schedule("nightly", "mail", "0 3 * * *")
    fifo.maintain()
    assert fifo.explain(made[0].id).state == "waiting"
    assert fifo.stats("deploy").queue_length == 11
    assert {lane.queue_length for lane in fifo.lanes("deploy")} == {11}
    assert len(list(fifo.executions(action="deploy"))) == 11
    assert fifo.check() == []
    with pytest.raises(pgfifo.WaitTimeout):
        fifo.wait(made[0].id, timeout=0.05)
    kinds = [event.kind for event in fifo.events(action="deploy", cursor="begin", follow=False)]
    assert kinds.count("enqueued") == 11
    engine.assert_promises()


def test_an_async_client_waits_follows_and_holds_slots(pooled: str, engine: Engine) -> None:
    async def call() -> None:
        async with AsyncExitStack() as stack:
            fifo = await stack.enter_async_context(pgfifo.AsyncClient(pooled, prepare_threshold=None))
            handlers = Handlers()
            await stack.enter_async_context(
                pgfifo.Worker(pooled, handlers.actions, poll_only=True, poll_interval=0.05, heartbeat=0.1)
            )
            assert await fifo.enqueue_and_wait("deploy", {"g": 1, "fails": 1}, timeout=60) is not None
            ended = asyncio.create_task(first_end(fifo))
            async with fifo.slot("deploy", {"g": 1}, timeout=60) as slot:
                assert slot.held
                assert await fifo.try_slot("deploy", {"g": 1}) is None
                other = await fifo.enqueue("deploy", {"g": 1})
            await fifo.wait(other.id, timeout=60)
            assert await asyncio.wait_for(ended, 20)

    async def first_end(fifo: pgfifo.AsyncClient) -> bool:
        async for event in fifo.events(kinds=["finished"]):
            return event.kind == "finished"
        return False

    asyncio.run(call())
    engine.assert_promises()


def test_order_and_slots_with_workers_that_poll(fifo: pgfifo.Client, pooled: str, engine: Engine) -> None:
    handlers = Handlers()
    ids = [
        each.id
        for each in fifo.enqueue_many("deploy", [{"g": n % 3, "fails": int(n == 5)} for n in range(60)])
    ]
    mails = fifo.enqueue_many("mail", [{}] * 30)
    with working(pooled, handlers.actions, poll_only=True):
        drain(pooled, handlers.actions, poll_only=True)
    assert {*handlers.seen} == {*ids}
    assert engine.stats("deploy")["total_succeeded"] == 60
    assert {each.state for each in fifo.workers()} == {"stopped"}
    assert fifo.wait(mails[-1].id, timeout=60) is None
    engine.assert_promises()


def test_a_worker_with_a_direct_connection_is_woken_at_once(
    fifo: pgfifo.Client, pooled: str, dsn: str, engine: Engine
) -> None:
    handlers = Handlers()
    with working(pooled, handlers.actions, listen_dsn=dsn, poll_interval=3600, heartbeat=3600, lease=86400):
        sleeps = "select count(*) from pg_locks where classid = 'pgfifo.marks'::regclass and mode ~ 'Share'"
        wait_for(lambda: engine.one(sleeps) == 2, message="the worker to sleep")
        made = fifo.enqueue("deploy", {"g": 1})
        fifo.wait(made.id, timeout=60)


def test_a_cancel_reaches_a_worker_that_polls_with_its_heartbeat(
    fifo: pgfifo.Client, pooled: str, engine: Engine
) -> None:
    actions = Actions()
    begun = threading.Event()

    @actions.action("deploy")
    async def deploy(_execution: Execution) -> None:
        begun.set()
        await asyncio.sleep(3600)

    made = fifo.enqueue("deploy", {})
    with working(pooled, actions, poll_only=True):
        assert begun.wait(60)
        assert fifo.cancel(made.id) == "requested"
        with pytest.raises(pgfifo.ExecutionFailed, match="cancelled"):
            fifo.wait(made.id, timeout=60)
    assert engine.stats()["active_count"] == 0


def test_progress_a_worker_that_is_killed_is_noticed_by_its_lease(
    fifo: pgfifo.Client, pooled: str, engine: Engine
) -> None:
    """Its session speaks for nobody: it is the pooler's."""
    source = """
        import sys, threading, pgfifo
        actions = pgfifo.Actions()

        @actions.action("deploy")
        def deploy(execution):
            print("begun", flush=True)
            threading.Event().wait()

        pgfifo.Worker(sys.argv[1], actions, poll_only=True, heartbeat=0.3, lease=1).run()
    """
    made = fifo.enqueue("deploy", {})
    command = [sys.executable, "-c", textwrap.dedent(source), pooled]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.kill()
    actions = Actions()
    seen: list[int] = []
    actions.action("deploy", backoff_initial=0)(lambda execution: seen.append(execution.attempt))
    drain(pooled, actions, poll_only=True)
    assert seen == [2]
    assert fifo.execution(made.id).state == "succeeded"
    assert engine.one("select count(*) from pgfifo.workers where state = 'dead'") == 1


def test_slots_exclude_each_other_across_programs(
    fifo: pgfifo.Client, pooled: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_holder, "_INTERVAL", 0.1)
    inside: list[int] = []

    def take(number: int, timeout: float = 60) -> int:
        with pgfifo.Client(pooled, prepare_threshold=None) as client:
            for _ in range(2):
                with client.slot("deploy", timeout=timeout):
                    inside.append(number)
                    assert len(inside) == 1, "two were in the slot"
                    inside.remove(number)
        return number

    callers = [in_background(lambda n=n: take(n)) for n in range(2)]  # type: ignore[misc]
    assert [caller.result(60) for caller in callers] == [*range(2)]
    with fifo.slot("deploy"):
        assert fifo.try_slot("deploy") is None
        with pytest.raises(pgfifo.AlreadyHeld), fifo.slot("deploy", timeout=1):
            pass
        with pytest.raises(pgfifo.SlotTimeout):
            in_background(lambda: take(0, timeout=0.05)).result(60)
    assert engine.stats()["total_succeeded"] == 5
    engine.assert_promises()


def test_connections_of_the_caller_and_pools_through_the_pooler(pooled: str, engine: Engine) -> None:
    with psycopg_pool.ConnectionPool(
        pooled, min_size=1, max_size=3, kwargs={"prepare_threshold": None}, open=True
    ) as pool:
        fifo = pgfifo.Client(pool)
        for n in range(10):
            fifo.enqueue("deploy", {"n": n})
        with pool.connection() as conn:
            fifo.enqueue("deploy", {}, connection=conn)
            assert conn.info.transaction_status == TransactionStatus.INTRANS
    assert engine.stats()["queue_length"] == 11


def test_a_role_whose_default_is_serializable(pooled: str, engine: Engine, conn: Connection) -> None:
    """The pooler's sessions were opened with that default, and are not pgfifo's to change."""
    name, user = conn.info.dbname, conn.info.user
    terminate = (
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
        " where datname = %s and pid <> pg_backend_pid()"
    )
    conn.execute(
        f'alter role "{user}" in database "{name}" set default_transaction_isolation = serializable'.encode()
    )
    try:
        conn.execute(terminate, [name])
        wait_for(lambda: settled(pooled), message="the pooler to have new sessions")
        assert in_all_sessions(pooled, "show default_transaction_isolation") == ["serializable"] * SESSIONS
        handlers = Handlers()
        with pgfifo.Client(pooled, prepare_threshold=None) as fifo:
            made = fifo.enqueue_many("deploy", [{"g": n % 2} for n in range(10)])
            fifo.cancel(made[-1].id)
            fifo.set_policy("deploy", max_concurrent=2)
            drain(pooled, handlers.actions, poll_only=True)
            with fifo.slot("deploy", {"g": 1}):
                fifo.maintain()
        assert engine.stats()["total_succeeded"] == 10
    finally:
        conn.execute(f'alter role "{user}" in database "{name}" reset default_transaction_isolation'.encode())
        conn.execute(terminate, [name])
        wait_for(lambda: settled(pooled), message="the pooler to have new sessions")


def settled(dsn: str) -> bool:
    """Return whether each of the pooler's sessions works."""
    try:
        return len(in_all_sessions(dsn, "select 1")) == SESSIONS
    except psycopg.OperationalError:
        return False


def test_progress_sessions_that_are_ended_behind_the_pooler_are_got_over(
    fifo: pgfifo.Client, pooled: str, engine: Engine
) -> None:
    handlers = Handlers()
    end = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
    )
    with working(pooled, handlers.actions, poll_only=True):
        for n in range(30):
            made = fifo.enqueue("deploy", {"g": n % 2}, request_id=f"r{n}")
            if n % 10 == 5:
                engine.one(end)
        fifo.wait(made.id, timeout=30)
        wait_for(lambda: engine.stats()["queue_length"] + engine.stats()["active_count"] == 0, 30)
    assert engine.stats()["total_succeeded"] == 30
    assert len(handlers.seen) == 30
    engine.assert_promises()


def enqueue_many_times(fifo: pgfifo.Client) -> None:
    """Enqueue until the statement is prepared, in one session of several."""
    for _ in range(100):
        fifo.enqueue("mail", {})


def test_who_does_not_know_of_the_pooler_is_told(pooler: PgBouncer, dsn: str, conn: Connection) -> None:
    through = pooler.dsn(conn.info.dbname)
    in_all_sessions(through, "select 1")
    with pgfifo.Client(through) as fifo:
        fifo.declare(Handlers().actions)
        with pytest.raises(psycopg.errors.InvalidSqlStatementName, match="prepare_threshold=None"):
            enqueue_many_times(fifo)
    with pytest.raises(psycopg.Error, match="poll_only=True"):
        drain(through, Handlers().actions)


def test_the_command_line(
    pooled: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = CommandLine(pooled, monkeypatch, capsys)
    for n in range(7):
        cli.ok("enqueue", "deploy", f'{{"n": {n}}}')
    cli.ok("list", "deploy", "--json")
    cli.ok("stats")
    cli.ok("policy", "set", "deploy", "--max-concurrent", "2")
    cli.ok("pause", "deploy")
    cli.ok("resume", "deploy")
    cli.ok("check")
    cli.ok("worker", "--poll-only", "--until-empty", "--action", "deploy", "--", "true")
    cli.ok("run", "deploy", "--poll-only", "--", "true")
    assert engine.stats()["total_succeeded"] == 8


def test_a_pooled_session_is_never_taken_for_the_workers_own(
    pooler: PgBouncer, dsn: str, conn: Connection
) -> None:
    """Who does not know of the pooler would end a stranger's session, as the one that it has lost itself."""
    with contextlib.closing(Link(dsn, pooled=False)) as direct:
        assert direct.session is not None
    with contextlib.closing(Link(pooler.dsn(conn.info.dbname), pooled=False)) as unaware:
        assert unaware.session is None

    async def connect() -> None:
        link = await AsyncLink.connect(pooler.dsn(conn.info.dbname), pooled=False)
        assert link.session is None
        await link.close()

    asyncio.run(connect())


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_every_promise_holds_while_workers_are_killed_and_stopped(
    pooler: PgBouncer, pooled: str, conn: Connection
) -> None:
    """The checker's word for it: `pgfifo verify` goes through the pooler."""
    size = ["--duration", "30", "--producers", "6", "--workers", "3", "--lease", "2s"]
    done = subprocess.run(
        [
            program(),
            "verify",
            "--dsn",
            pooled,
            "--poll-only",
            *size,
            "--chaos",
            "kill,pause",
            "--yes",
            "--json",
        ],
        capture_output=True,
        timeout=500,
        check=False,
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert all(each["held"] and each["exercised"] for each in report["promises"]), report
