"""What the asynchronous client has of its own; the rest is the same text as the synchronous one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import psycopg_pool
import pytest

import pgfifo
from tests.support.database import in_background, wait_for

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def waiting(conn: Connection) -> list[int]:
    return [row[0] for row in conn.execute("select id from pgfifo._executions order by id")]


def sessions(conn: Connection, name: str) -> list[int]:
    query = "select pid from pg_stat_activity where application_name = %s and datname = current_database()"
    return [row[0] for row in conn.execute(query, (name,))]


def test_a_day_in_the_life(dsn: str) -> None:
    async def live() -> None:
        actions = pgfifo.Actions()
        actions.add("deploy", print, group_by=["env"], max_concurrent=2)
        async with pgfifo.AsyncClient(dsn) as fifo:
            await fifo.install()
            await fifo.declare(actions)
            job = await fifo.enqueue("deploy", {"env": "prod"})
            assert str(job.lane) == "deploy env=prod"
            jobs = await fifo.enqueue_many("deploy", ({"env": "test", "n": n} for n in range(3)))
            assert (await fifo.position(jobs[2].id)).position == 3
            assert (await fifo.stats("deploy")).queue_length == 4
            assert len(await fifo.lanes("deploy")) == 2
            assert await fifo.cancel(job.id) == "cancelled"
            assert await fifo.cancel_many([jobs[0].id, 10**15]) == ["cancelled", "unknown"]
            assert (await fifo.execution(job.id)).state == "cancelled"
            assert await fifo.pause("deploy")
            assert [s.paused for s in await fifo.stats()] == [True]
            with pytest.raises(pgfifo.UnknownAction):
                await fifo.stats("deplo")
            assert await fifo.check() == []

    asyncio.run(live())


def test_an_enqueue_on_the_callers_connection_commits_and_rolls_back_with_it(
    dsn: str, conn: Connection
) -> None:
    async def live() -> None:
        async with pgfifo.AsyncClient(dsn) as fifo, await psycopg.AsyncConnection.connect(dsn) as mine:
            await fifo.enqueue("deploy", connection=mine)
            assert waiting(conn) == []
            await mine.rollback()
            job = await fifo.enqueue("deploy", connection=mine)
            await mine.commit()
            assert waiting(conn) == [job.id]
            async with fifo.transaction() as own:
                await fifo.enqueue("deploy", connection=own)
                raise psycopg.Rollback
            assert waiting(conn) == [job.id]

    asyncio.run(live())


def test_each_client_says_which_kind_of_connection_it_wants(dsn: str, connect: Connect) -> None:
    async def live() -> None:
        async with pgfifo.AsyncClient(dsn) as fifo:
            with pytest.raises(pgfifo.InvalidValue, match="use Client"):
                await fifo.enqueue("deploy", connection=connect())
            async with await psycopg.AsyncConnection.connect(dsn) as mine:
                with pgfifo.Client(dsn) as sync, pytest.raises(pgfifo.InvalidValue, match="use AsyncClient"):
                    sync.enqueue("deploy", connection=mine)

    asyncio.run(live())


def test_many_tasks_share_a_few_connections(dsn: str, conn: Connection) -> None:
    async def live() -> None:
        async with pgfifo.AsyncClient(dsn, max_size=3, application_name="tasks") as fifo:
            await asyncio.gather(*(fifo.enqueue("deploy", n) for n in range(100)))
            assert 1 <= len(sessions(conn, "tasks")) <= 3

    asyncio.run(live())
    assert len(waiting(conn)) == 100


def test_a_client_whose_connections_are_all_in_use_says_so(dsn: str) -> None:
    async def live() -> None:
        async with pgfifo.AsyncClient(dsn, max_size=1, timeout=0.05) as fifo:
            async with fifo.transaction():
                with pytest.raises(psycopg.OperationalError, match="max_size"):
                    await fifo.stats()
            assert await fifo.stats() == []

    asyncio.run(live())


def test_a_client_can_be_used_from_one_event_loop_after_another(dsn: str) -> None:
    fifo = pgfifo.AsyncClient(dsn, max_size=1)

    async def both() -> None:
        await asyncio.gather(fifo.enqueue("deploy"), fifo.enqueue("deploy"))

    asyncio.run(both())
    asyncio.run(both())
    assert asyncio.run(fifo.stats("deploy")).queue_length == 4
    asyncio.run(fifo.close())


def test_a_cancelled_call_leaves_a_connection_that_works(
    dsn: str, connect: Connect, conn: Connection
) -> None:
    async def live() -> None:
        async with pgfifo.AsyncClient(dsn, max_size=1, application_name="cancelled") as fifo:
            await fifo.enqueue("deploy")
            lock = connect(autocommit=False)
            lock.execute("lock table pgfifo._executions in access exclusive mode")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await fifo.enqueue("deploy")
            lock.rollback()
            assert (await fifo.stats("deploy")).queue_length == 1
            assert len(sessions(conn, "cancelled")) == 1

    asyncio.run(live())


def broken_while_blocked(
    dsn: str, connect: Connect, conn: Connection, call: Callable[[pgfifo.AsyncClient], Awaitable[object]]
) -> object:
    """Make a call, and break its connection while it waits for a lock."""

    async def live() -> object:
        async with pgfifo.AsyncClient(dsn, application_name="broken") as fifo:
            return await call(fifo)

    lock = connect(autocommit=False)
    lock.execute("lock table pgfifo.ledger, pgfifo._executions in access exclusive mode")
    asked = in_background(lambda: asyncio.run(live()))
    blocked = (
        "select pid from pg_stat_activity where application_name = 'broken' and wait_event_type = 'Lock'"
    )
    wait_for(lambda: conn.execute(blocked).fetchone(), message="the call to wait for the lock")
    for pid in sessions(conn, "broken"):
        conn.execute("select pg_terminate_backend(%s)", (pid,))
    lock.rollback()
    return asked.result()


def test_a_read_whose_connection_breaks_is_made_again(dsn: str, connect: Connect, conn: Connection) -> None:
    assert broken_while_blocked(dsn, connect, conn, lambda fifo: fifo.lanes()) == []


def test_an_enqueue_whose_connection_breaks_is_said_to_be_unknown(
    dsn: str, connect: Connect, conn: Connection
) -> None:
    with pytest.raises(pgfifo.CommitUnknown):
        broken_while_blocked(dsn, connect, conn, lambda fifo: fifo.enqueue("deploy"))
    assert waiting(conn) == []


def test_connections_that_the_server_ended_while_idle_are_not_noticed(dsn: str, conn: Connection) -> None:
    async def live() -> None:
        async with pgfifo.AsyncClient(dsn, application_name="idle") as fifo:
            await fifo.enqueue("deploy")
            for pid in sessions(conn, "idle"):
                conn.execute("select pg_terminate_backend(%s, 5000)", (pid,))
            await fifo.enqueue("deploy")

    asyncio.run(live())
    assert len(waiting(conn)) == 2


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_pool_or_a_connection_of_the_callers_is_used_and_left_open(
    dsn: str, conn: Connection, autocommit: bool
) -> None:
    async def live() -> None:
        async with psycopg_pool.AsyncConnectionPool(
            dsn, min_size=0, max_size=2, open=False, kwargs={"autocommit": autocommit}
        ) as pool:
            async with pgfifo.AsyncClient(pool) as fifo:
                job = await fifo.enqueue("deploy")
                assert await fifo.cancel(job.id) == "cancelled"
            async with pool.connection() as mine:
                assert not mine.closed
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=autocommit) as mine:
            async with pgfifo.AsyncClient(mine) as fifo:
                await fifo.enqueue("deploy")
            assert len(waiting(conn)) == (1 if autocommit else 0)

    asyncio.run(live())
    assert len(waiting(conn)) == 1


def test_a_role_whose_default_is_serializable_works_all_the_same(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as admin:
        admin.execute(
            f'alter database "{admin.info.dbname}" set default_transaction_isolation = serializable'
        )

    async def live(threshold: int | None) -> None:
        async with pgfifo.AsyncClient(fresh_dsn, prepare_threshold=threshold) as fifo:
            job = await fifo.enqueue("deploy")
            assert await fifo.cancel(job.id) == "cancelled"
            await fifo.set_policy("deploy", max_concurrent=2)

    asyncio.run(live(5))
    asyncio.run(live(None))


def test_installing_from_many_tasks_at_once(empty_dsn: str) -> None:
    async def live() -> None:
        async with pgfifo.AsyncClient(empty_dsn) as fifo:
            with pytest.raises(pgfifo.SchemaMissing):
                await fifo.enqueue("deploy")
            await asyncio.gather(*(fifo.install() for _ in range(6)))
            assert (await fifo.enqueue("deploy")).created
            await fifo.uninstall()
            with pytest.raises(pgfifo.SchemaMissing):
                await fifo.enqueue("deploy")

    asyncio.run(live())
