"""Connections that break for many at once, go silent, or run into limits of the server's: who lives is alive.

Cuts at each point of each call are in `test_cut_connections`; long runs under such faults in `tests/faults`.
"""

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo import Actions, Execution, _connections, errors, heartbeat
from pgfifo._connections import AsyncLink, Link
from tests.support.database import in_background, wait_for
from tests.support.engine import Engine
from tests.support.proxy import Fault, Proxy

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

QUICK: dict[str, Any] = {"heartbeat": 0.05, "poll_interval": 0.05, "concurrency": 4}
BACK = "select relocked_tick is not null from pgfifo._workers where id = %s"


@pytest.fixture
def engine(conn: Connection) -> Engine:
    """The engine, past all proxies; deploy has a lane for each g."""
    engine = Engine(conn)
    engine.policy(group_by=["g"], backoff_initial=0)
    return engine


@pytest.fixture
def proxies(dsn: str) -> Iterator[list[Proxy]]:
    """Two ways to the database of the test."""
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(tempfile.TemporaryDirectory(prefix="pf")) for _ in range(2)]
        yield [stack.enter_context(Proxy(Path(folder), dsn)) for folder in folders]


class Gate:
    """A handler that waits until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.attempts: list[tuple[int, int]] = []
        self.actions = Actions()
        self.actions.action("deploy", group_by=["g"], backoff_initial=0)(self.handle)

    def handle(self, execution: Execution) -> None:
        """Say that it has begun, and wait."""
        self.attempts.append((execution.id, execution.attempt))
        self.begun.release()
        assert self.go.wait(60)

    def wait(self) -> None:
        """Wait for one more start."""
        assert self.begun.acquire(timeout=30), "the handler was never called"


def rounds(engine: Engine, count: int) -> None:
    """Let so many seconds pass, each with its round of maintenance, whoever does it."""
    last = "select max(tick) from pgfifo.ticks"

    def one_round(before: int) -> None:
        wait_for(lambda: engine.maintain()["elected"] or engine.one(last) > before)

    for _ in range(count):
        engine.advance("1 s")
        one_round(engine.one(last))


def state(engine: Engine, worker: int) -> str:
    return str(engine.one("select state from pgfifo.workers where id = %s", worker))


def end_session(conn: Connection, session: Connection) -> None:
    """End a session of the server, and wait until it is gone."""
    assert conn.execute("select pg_terminate_backend(%s, 10000)", [session.info.backend_pid]).fetchone() == (
        True,
    )


# The connection of a worker's calls


def with_link(dsn: str, use: Callable[[AsyncLink], Awaitable[None]]) -> None:
    """Use such a connection."""

    async def run() -> None:
        link = await AsyncLink.connect(dsn, pooled=False)
        try:
            async with asyncio.timeout(30):
                await use(link)
        finally:
            await link.close()

    asyncio.run(run())


def test_a_call_that_is_too_long_to_be_sent_at_once_is_sent(dsn: str) -> None:
    async def use(link: AsyncLink) -> None:
        for length in (20_000_000, 1):
            assert await link.rows("select length(%s::text), %s::text", ("x" * length, "ä")) == [
                (length, "ä")
            ]

    with_link(dsn, use)


def test_a_call_that_is_refused_says_why_and_the_next_one_is_answered(dsn: str) -> None:
    async def use(link: AsyncLink) -> None:
        for _ in range(2):
            with pytest.raises(psycopg.errors.DivisionByZero) as refused:
                await link.rows("select 1 / %s::integer", (0,))
            assert link.is_of_use_after(refused.value)
            assert await link.rows("select 6 / %s::integer", (3,)) == [(2,)]
        with pytest.raises(psycopg.errors.UndefinedTable):
            await link.rows("select %s::integer from nowhere", (1,))
        assert await link.rows("select 6 / %s::integer", (2,)) == [(3,)]

    with_link(dsn, use)


def test_a_call_that_nobody_waits_for_any_more_is_not_taken_for_the_answer_to_the_next(
    dsn: str, conn: Connection
) -> None:
    lock = "select pg_advisory_xact_lock(7)"
    waits = "select exists (select from pg_locks where locktype = 'advisory' and objid = 7 and not granted)"

    async def use(link: AsyncLink) -> None:
        with conn.transaction():
            conn.execute(lock)
            call = asyncio.create_task(link.rows(f"{lock}, %s::integer", (1,)))
            await asyncio.to_thread(wait_for, lambda: conn.execute(waits).fetchone() == (True,))
            call.cancel()
            await asyncio.wait({call})
        assert call.cancelled()
        with pytest.raises(psycopg.OperationalError) as refused:
            await link.rows("select %s::integer", (2,))
        assert not link.is_of_use_after(refused.value)

    with_link(dsn, use)


def test_rows_without_an_end_are_no_answer_since_nothing_says_that_they_were_committed(
    proxies: list[Proxy],
) -> None:
    async def use(link: AsyncLink) -> None:
        assert await link.rows("select %s::integer as marked", (1,)) == [(1,)]
        proxies[0].faults.append(Fault("marked", "before its end"))
        with pytest.raises(psycopg.OperationalError):
            await link.rows("select %s::integer as marked", (2,))

    with_link(proxies[0].dsn, use)


def test_a_connection_that_ends_while_it_is_idle_answers_no_call(dsn: str, conn: Connection) -> None:
    async def use(link: AsyncLink) -> None:
        assert await link.rows("select %s::integer", (1,)) == [(1,)]
        conn.execute("select pg_terminate_backend(%s, 10000)", [link.conn.info.backend_pid])
        with pytest.raises(psycopg.OperationalError) as refused:
            await link.rows("select %s::integer", (2,))
        assert not link.is_of_use_after(refused.value)

    with_link(dsn, use)


# An outage of the network: the server goes on, and nobody reaches it


def test_fencing_who_comes_back_from_an_outage_later_than_others_is_alive(
    engine: Engine, connect: Connect
) -> None:
    """What a user would lose: a cut of the network costs all workers but the first one back what they run."""
    engine.enqueue()
    sessions = [connect(), connect()]
    first, second = (Engine(session).worker(locked=True) for session in sessions)
    (start,) = engine.claim(second)
    for session in sessions:
        end_session(engine.conn, session)
    engine.advance("1 hour")  # nobody is there for a round of maintenance
    connect().execute("select pgfifo.worker_relock(%s)", [first])
    engine.tick(12)
    assert state(engine, second) == "alive", "the first one back has declared the other one dead"
    connect().execute("select pgfifo.worker_relock(%s)", [second])
    engine.tick(10)
    assert engine.hand_in(second, start) == {}
    assert engine.show(start.id)["attempt"] == 1
    engine.assert_promises()


def test_progress_who_does_not_come_back_after_an_outage_is_dead_when_others_have_had_their_time(
    engine: Engine, connect: Connect
) -> None:
    engine.enqueue()
    sessions = [connect(), connect()]
    first, second = (Engine(session).worker(locked=True, lease="1 day") for session in sessions)
    engine.claim(second)
    for session in sessions:
        end_session(engine.conn, session)
    connect().execute("select pgfifo.worker_relock(%s)", [first])
    engine.tick(17)
    assert state(engine, second) == "dead", "the slot of a killed worker is kept for its whole lease"


def test_progress_who_was_heard_of_since_another_came_back_dies_as_quickly_as_ever(
    engine: Engine, connect: Connect
) -> None:
    sessions = [connect(), connect()]
    first, second = (Engine(session).worker(locked=True) for session in sessions)
    end_session(engine.conn, sessions[0])
    connect().execute("select pgfifo.worker_relock(%s)", [first])
    engine.tick()
    engine.heartbeat(second)
    end_session(engine.conn, sessions[1])
    engine.tick(2)
    assert state(engine, second) == "dead"


def test_fencing_workers_that_live_through_an_outage_keep_what_they_run(
    engine: Engine, proxies: list[Proxy]
) -> None:
    """An outage longer than the lease, and one of them gets through to the server long before the other."""
    gates = [Gate(), Gate()]
    ids = [engine.enqueue(payload={"g": n}) for n in range(2)]
    with contextlib.ExitStack() as stack:
        workers = []
        for proxy, gate in zip(proxies, gates, strict=True):
            options = QUICK | {"concurrency": 1, "lease": 20}
            workers.append(stack.enter_context(pgfifo.Worker(proxy.dsn, gate.actions, **options)))
            gate.wait()
        mine = [worker.id for worker in workers]
        for proxy in proxies:
            proxy.refuses = True
            proxy.cut_all()
        engine.advance("1 hour")
        proxies[0].refuses = False
        wait_for(lambda: engine.one(BACK, mine[0]))
        rounds(engine, 10)
        proxies[1].refuses = False
        wait_for(lambda: engine.one(BACK, mine[1]))
        rounds(engine, 5)
        for gate in gates:
            gate.go.set()
        wait_for(lambda: engine.stats()["total_succeeded"] == 2)
        assert [worker.id for worker in workers] == mine, "a worker was declared dead because of the outage"
    assert sorted(gates[0].attempts + gates[1].attempts) == [(id_, 1) for id_ in ids]
    engine.assert_promises()


# Hosts that vanish, and proxies that hang: the connection is open, and nothing comes


def test_progress_what_a_vanished_host_had_is_taken_back_though_its_sessions_are_still_there(
    engine: Engine, proxies: list[Proxy], dsn: str
) -> None:
    """Its sessions hold their locks, as far as the server knows: that proves nothing; its lease decides."""
    gates = [Gate(), Gate()]
    gates[1].go.set()
    id_ = engine.enqueue()
    with pgfifo.Worker(proxies[0].dsn, gates[0].actions, **(QUICK | {"lease": 5})) as vanished:
        gates[0].wait()
        me = vanished.id
        assert me is not None
        proxies[0].refuses = True
        proxies[0].hush()
        with pgfifo.Worker(dsn, gates[1].actions, **QUICK):
            rounds(engine, 8)
            wait_for(lambda: engine.stats()["total_succeeded"] == 1)
        assert gates[1].attempts == [(id_, 2)]
        assert engine.show(id_)["failures"] == 1
        held = (
            "select exists (select from pg_locks where classid = 'pgfifo._workers'::regclass and objid = %s)"
        )
        assert engine.one(held, me), "this test is about a session that outlives its client"
        # The cable is plugged in again.
        proxies[0].refuses = False
        proxies[0].cut_all()
        wait_for(lambda: vanished.id != me, message="the vanished one to be told")
        gates[0].go.set()
    assert engine.show(id_)["attempt"] == 2
    engine.assert_promises()


def test_progress_a_worker_leaves_connections_that_do_not_answer(
    engine: Engine, proxies: list[Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a user would lose: a worker that hangs for ever behind a proxy that hangs."""
    monkeypatch.setattr(_connections, "PATIENCE", 0.3)
    monkeypatch.setattr(heartbeat, "_LEAST_PATIENCE", 0.3)
    gate = Gate()
    ids = [engine.enqueue(payload={"g": n}) for n in range(2)]
    with pgfifo.Worker(proxies[0].dsn, gate.actions, **(QUICK | {"concurrency": 1, "lease": 1})) as worker:
        gate.wait()
        me = worker.id
        pids = "select array_agg(pid) from pg_stat_activity where application_name = 'pgfifo worker'"
        before = engine.one(pids)
        proxies[0].hush()
        gate.go.set()
        wait_for(lambda: engine.stats()["total_succeeded"] == 2, message="the worker to come back")
        assert worker.id == me
        left = "select count(*) from pg_stat_activity where pid = any (%s)"
        wait_for(lambda: engine.one(left, before) == 0, message="the sessions left behind to be ended")
    assert gate.attempts == [(id_, 1) for id_ in ids]
    engine.assert_promises()


def test_durability_what_a_lost_connection_was_about_to_do_is_ended_before_it_is_asked_for_again(
    engine: Engine, proxies: list[Proxy]
) -> None:
    """A claim that commits after its number was asked for again gives rows to a worker that never hears."""
    lost = Link(proxies[0].dsn, pooled=False)
    slow = in_background(lambda: lost.rows("select pg_sleep(600)"))
    running = (
        "select count(*) from pg_stat_activity where query = 'select pg_sleep(600)' and state = 'active'"
    )
    wait_for(lambda: engine.one(running) == 1)
    proxies[0].hush()
    again = Link(proxies[1].dsn, pooled=False, after=lost.session)
    assert engine.one(running) == 0, "the server goes on with what nobody waits for"
    again.close()
    proxies[0].cut_all()
    with pytest.raises(psycopg.OperationalError):
        slow.result()
    lost.close()


def test_an_answer_that_takes_too_long_is_no_answer(proxies: list[Proxy]) -> None:
    link = Link(proxies[0].dsn, pooled=False, patience=60)
    assert link.rows("select 1") == [(1,)]
    assert isinstance(link.conn, _connections._Impatient)
    assert link.conn.patience == 60
    link.conn.patience = 0.2  # only now: what a server is asked at first may take its time
    proxies[0].hush()
    begun = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match=r"has not answered for 0\.2 s"):
        link.rows("select 2")
    assert time.monotonic() - begun >= 0.2
    assert link.conn.closed


# Limits that somebody has set for the role


@contextlib.contextmanager
def limited(conn: Connection, **settings: str) -> Iterator[None]:
    """Give the role of the tests other defaults."""
    try:
        for name, value in settings.items():
            conn.execute(f"alter role current_user set {name} = '{value}'")
        yield
    finally:
        for name in settings:
            conn.execute(f"alter role current_user reset {name}")


def test_durability_where_the_role_has_time_limits_all_is_done_once(engine: Engine, dsn: str) -> None:
    """What runs into them is done again, and once; cancels of what is under way stand in for slowness."""
    gate = Gate()
    gate.go.set()
    limits = {
        "statement_timeout": "5s",
        "lock_timeout": "5ms",
        "idle_in_transaction_session_timeout": "500ms",
    }
    cancel = (
        "select count(pg_cancel_backend(pid)) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    made: list[int] = []
    with (
        limited(engine.conn, **limits),
        pgfifo.Client(dsn) as fifo,
        pgfifo.Worker(dsn, gate.actions, **QUICK),
    ):
        for n in range(60):
            for _ in range(50):
                with contextlib.suppress(psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
                    made.append(fifo.enqueue("deploy", {"g": n % 3}, request_id=str(n)).id)
                    break
            engine.one(cancel)
        wait_for(lambda: engine.stats()["total_succeeded"] == 60, 120)
    assert sorted(gate.attempts) == [(id_, 1) for id_ in sorted(set(made))]
    engine.assert_promises()


def test_order_an_enqueue_that_a_lock_timeout_ends_has_left_nothing(
    engine: Engine, connect: Connect, dsn: str
) -> None:
    engine.enqueue()
    with connect(autocommit=False) as busy:
        Engine(busy).enqueue()
        with limited(engine.conn, lock_timeout="20ms"), pgfifo.Client(dsn) as fifo:
            with pytest.raises(psycopg.errors.LockNotAvailable):
                fifo.enqueue("deploy")
            assert fifo.enqueue("deploy", {"g": "another lane"}).created
    assert engine.stats()["total_enqueued"] == 3
    engine.assert_promises()


def test_durability_an_enqueue_that_a_statement_timeout_ends_has_left_nothing(
    engine: Engine, connect: Connect, dsn: str
) -> None:
    engine.enqueue()
    with connect(autocommit=False) as busy:
        Engine(busy).enqueue()
        with (
            limited(engine.conn, statement_timeout="50ms"),
            pgfifo.Client(dsn) as fifo,
            pytest.raises(psycopg.errors.QueryCanceled),
        ):
            fifo.enqueue("deploy")
    assert engine.stats()["total_enqueued"] == 2


def test_durability_a_producer_that_idles_in_its_transaction_for_too_long_has_enqueued_nothing(
    engine: Engine, dsn: str
) -> None:
    with limited(engine.conn, idle_in_transaction_session_timeout="50ms"), pgfifo.Client(dsn) as fifo:

        def dawdle() -> None:
            with fifo.transaction() as mine:
                fifo.enqueue("deploy", connection=mine)
                gone = "select count(*) from pg_stat_activity where pid = %s"
                wait_for(
                    lambda: engine.one(gone, mine.info.backend_pid) == 0,
                    message="the server's patience to end",
                )

        with pytest.raises((errors.CommitUnknown, psycopg.OperationalError)):
            dawdle()
        assert fifo.enqueue("deploy").created, "the lane's enqueue lock is still held"
    assert engine.stats()["total_enqueued"] == 1
    engine.assert_promises()


def test_where_a_role_may_have_no_more_sessions_everybody_says_so_and_a_worker_gets_over_it(
    engine: Engine, dsn: str
) -> None:
    gate = Gate()
    gate.go.set()
    name = "pgfifo_test_few"
    engine.conn.execute(f"create role {name} login connection limit 3")
    few = psycopg.conninfo.make_conninfo(dsn, user=name)
    try:
        engine.conn.execute("select pgfifo.grant_role('admin', %s)", [name])
        with pgfifo.Worker(few, gate.actions, **QUICK):
            sessions = "select count(*) from pg_stat_activity where usename = %s"
            wait_for(lambda: engine.one(sessions, name) == 3)
            with (
                pgfifo.Client(few) as fifo,
                pytest.raises(psycopg.OperationalError, match="too many connections"),
            ):
                fifo.enqueue("deploy")
            engine.enqueue()
            wait_for(lambda: engine.stats()["total_succeeded"] == 1)
            taken = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = %s"
            engine.conn.execute(f"alter role {name} connection limit 0")
            engine.rows(taken, name)
            id_ = engine.enqueue()
            engine.conn.execute(f"alter role {name} connection limit 3")
            wait_for(lambda: engine.state(id_) == "succeeded", 60)
    finally:
        engine.conn.execute(f"drop owned by {name}; drop role {name}")
