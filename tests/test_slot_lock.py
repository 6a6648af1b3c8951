"""The slot as a lock: around the caller's code, in threads, in tasks, and in processes that are killed."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest

import pgfifo
import pgfifo.schema
from pgfifo import _holder
from tests.support.database import Background, in_background, wait_for
from tests.support.engine import Engine
from tests.support.server import make_server
from tests.test_unwrap import SqlalchemyConnection
from tests.test_worker import working

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

WAITING = "select count(*) from pgfifo.slots where state = 'waiting'"
DEATH = "update pgfifo._workers set state = 'dead', ended_at = pgfifo._now() where id = %s returning id"


@pytest.fixture
def fifo(dsn: str) -> Iterator[pgfifo.Client]:
    with pgfifo.Client(dsn) as client:
        yield client


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats come often: nobody waits for one."""
    monkeypatch.setattr(_holder, "_INTERVAL", 0.1)


def in_line(engine: Engine, count: int) -> None:
    """Wait until so many wait for slots."""
    wait_for(lambda: engine.one(WAITING) == count, message=f"{count} to wait in the line")


def id_of(slot: pgfifo.Slot) -> int:
    assert slot.id is not None
    return slot.id


def outcome(engine: Engine, id_: int | None) -> tuple[str, str | None]:
    assert id_ is not None
    shown = engine.show(id_)
    return shown["state"], shown["error"]


# A lock


def test_the_code_in_the_block_holds_a_slot_and_its_end_gives_it_on(
    fifo: pgfifo.Client, engine: Engine
) -> None:
    engine.policy("migrate-db", group_by=["env"])
    with fifo.slot("migrate-db", {"env": "prod", "sha": "abc"}, timeout=60, tags=["release"]) as slot:
        assert engine.lane("migrate-db", '{"env":"prod"}')["active_count"] == 1
        assert (slot.held, slot.lost, slot.cancel_requested) == (True, False, False)
        assert (slot.action, slot.group, slot.attempt) == ("migrate-db", {"env": "prod"}, 1)
        assert slot.token == f"1-{slot.id}-1"
        assert repr(slot) == "<pgfifo.Slot of migrate-db env=prod, held>"
        [info] = fifo.slots("migrate-db", group="prod")
        assert (info.id, info.state, info.is_slot, info.pid) == (slot.id, "running", True, os.getpid())
        assert fifo.workers() == [], "it serves nobody"
    assert not slot.held
    assert slot.id is not None
    shown = engine.show(slot.id)
    assert (shown["state"], shown["payload"], shown["tags"]) == (
        "succeeded",
        {"env": "prod", "sha": "abc"},
        ["release"],
    )
    assert fifo.slots() == []
    engine.assert_promises()


def test_what_the_code_raises_is_on_record_and_the_slot_is_free(fifo: pgfifo.Client, engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), fifo.slot("deploy") as slot:
        _ = 1 / 0
    state, error = outcome(engine, slot.id)
    assert state == "failed"
    assert error is not None
    assert error.startswith("ZeroDivisionError: division by zero\n\nTraceback")
    with fifo.slot("deploy", timeout=0):
        pass
    assert engine.stats()["total_completed"] == 2, "and what failed is not run again"


def test_order_and_slots_among_ten_callers_and_a_worker(
    fifo: pgfifo.Client, engine: Engine, dsn: str
) -> None:
    """Each enters the line after the one before is in it; they must come to their turns in that order."""
    journal: list[tuple[str, object]] = []
    inside: set[object] = set()
    lock = threading.Lock()
    actions = pgfifo.Actions()

    def note(what: str, who: object) -> None:
        with lock:
            journal.append((what, who))
            inside.symmetric_difference_update({who})
            assert len(inside) <= 1, f"two at once: {inside}"

    @actions.action("deploy")
    def deploy(execution: pgfifo.Execution) -> None:
        note("begin", execution.payload["n"])
        note("end", execution.payload["n"])

    def call(number: int) -> None:
        with fifo.slot("deploy", timeout=60):
            note("begin", number)
            note("end", number)

    gate = fifo.slot("deploy")
    gate.__enter__()
    callers: list[Background[None]] = []
    for number in range(20):
        if number % 2:
            engine.enqueue(payload={"n": number})
        else:
            callers.append(in_background(lambda n=number: call(n)))  # type: ignore[misc]
            in_line(engine, len(callers))
    with working(dsn, actions):
        gate.__exit__(None, None, None)
        for caller in callers:
            caller.result()
        wait_for(lambda: engine.stats()["active_count"] + engine.stats()["queue_length"] == 0)
    assert [who for what, who in journal if what == "begin"] == list(range(20))
    engine.assert_promises()


def test_order_among_callers_where_no_worker_is(fifo: pgfifo.Client, dsn: str, engine: Engine) -> None:
    """Two processes' clients; each hears of its turn without looking for it."""
    order: list[int] = []
    with pgfifo.Client(dsn) as other:
        callers = []
        with fifo.slot("deploy"):
            for number in range(8):
                client = (fifo, other)[number % 2]

                def call(client: pgfifo.Client = client, number: int = number) -> None:
                    with client.slot("deploy", timeout=60):
                        order.append(number)

                callers.append(in_background(call))
                in_line(engine, number + 1)
            assert order == []
        for caller in callers:
            caller.result()
    assert order == list(range(8))
    assert engine.one("select count(*) from pgfifo.marks") == 0
    engine.assert_promises()


@pytest.mark.parametrize("mine", [True, False], ids=["same client", "other client"])
def test_who_waits_is_told_and_does_not_have_to_look(
    fifo: pgfifo.Client, dsn: str, engine: Engine, mine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgfifo.slots._POLL", 600.0)
    with pgfifo.Client(dsn) as other:
        client = fifo if mine else other

        def call() -> bool:
            with client.slot("deploy"):
                return True

        with fifo.slot("deploy"):
            caller = in_background(call)
            in_line(engine, 1)
        assert caller.result()


def test_a_wait_that_is_over_gives_up_its_place_and_says_what_was_in_the_way(
    fifo: pgfifo.Client, engine: Engine
) -> None:
    with fifo.slot("deploy", group="prod") as slot:

        def call() -> None:
            with fifo.slot("deploy", group="prod", timeout="20ms"):
                raise AssertionError("there were two")

        with pytest.raises(
            pgfifo.SlotTimeout, match=r"no slot of deploy prod became free in 0\.02 s"
        ) as raised:
            in_background(call).result()
        assert isinstance(raised.value, TimeoutError)
        assert (raised.value.action, raised.value.group, raised.value.timeout) == ("deploy", "prod", 0.02)
        assert f"execution {slot.id}, running since" in raised.value.message
        assert fifo.position(raised.value.detail["id"]).position is None
        assert outcome(engine, raised.value.detail["id"])[0] == "cancelled"
        assert engine.lane("deploy", "prod")["queue_length"] == 0
    engine.assert_promises()


def test_a_thread_that_holds_the_only_slot_is_told_so_instead_of_waiting_for_itself(
    fifo: pgfifo.Client, engine: Engine
) -> None:
    with fifo.slot("deploy"):
        with pytest.raises(pgfifo.AlreadyHeld), fifo.slot("deploy"):
            pass
        assert fifo.try_slot("deploy") is None
        with fifo.slot("deploy", group="other"):
            pass
        engine.policy(max_concurrent=2)
        with fifo.slot("deploy", timeout=60), pytest.raises(pgfifo.AlreadyHeld), fifo.slot("deploy"):
            pass
    assert engine.stats()["active_count"] == 0


def test_a_thread_is_told_so_whichever_of_its_clients_it_asks(
    fifo: pgfifo.Client, dsn: str, empty_dsn: str, engine: Engine
) -> None:
    with pgfifo.Client(dsn) as other, pgfifo.Client(empty_dsn) as elsewhere:
        elsewhere.install()
        with fifo.slot("deploy"):
            with pytest.raises(pgfifo.AlreadyHeld), other.slot("deploy"):
                pass
            assert other.try_slot("deploy") is None
            waiting = in_background(lambda: _take(other))
            in_line(engine, 1)
            with elsewhere.slot("deploy", timeout=30) as slot:
                assert slot.held, "another database's lane"
        assert waiting.result(), "another thread just waits"
        with other.slot("deploy", timeout=30) as slot:
            assert slot.held, "the first one was left"
    assert engine.stats()["active_count"] == 0
    assert _holder._held == {}


def test_a_try_is_held_until_it_is_left_or_released(fifo: pgfifo.Client, engine: Engine) -> None:
    slot = fifo.try_slot("deploy")
    assert slot is not None
    assert slot.held
    assert fifo.try_slot("deploy") is None
    with slot:
        assert slot.held
        with pytest.raises(RuntimeError):
            slot.__enter__()
    slot = fifo.try_slot("deploy")
    assert slot is not None
    slot.release()
    slot.release()
    assert engine.stats()["total_succeeded"] == 2
    slot = fifo.try_slot("deploy")
    assert slot is not None
    id_ = slot.id
    slot.release(error="the disk is full")
    assert outcome(engine, id_) == ("failed", "the disk is full")


def test_a_slot_that_nobody_leaves_is_ended_when_it_is_forgotten(fifo: pgfifo.Client, engine: Engine) -> None:
    slot = fifo.try_slot("deploy")
    assert slot is not None
    id_ = slot.id
    del slot
    gc.collect()
    wait_for(lambda: outcome(engine, id_)[0] == "failed", message="the slot to be free")


def test_a_slot_object_can_be_used_again(fifo: pgfifo.Client, engine: Engine) -> None:
    slot = fifo.slot("deploy")
    for _ in range(2):
        with slot:
            assert slot.held
    assert engine.stats()["total_succeeded"] == 2


def test_progress_of_a_slot_can_be_seen(fifo: pgfifo.Client) -> None:
    with fifo.slot("deploy") as slot:
        slot.progress(0.4, "copying")
        assert slot.id is not None
        id_ = slot.id
        wait_for(lambda: fifo.execution(id_).progress == 0.4, message="the progress to arrive")
        assert fifo.execution(id_).progress_message == "copying"


# Interference


def test_fencing_a_lost_slot_is_told_while_the_code_runs_and_raised_at_its_end(
    fifo: pgfifo.Client, engine: Engine
) -> None:
    slot = fifo.slot("deploy")

    def use() -> None:
        with slot:
            fifo.finish_execution(id_of(slot), "failed", reason="stuck")
            wait_for(lambda: slot.lost, message="the slot to be known as lost")
            assert not slot.held
            with pytest.raises(pgfifo.SlotLost):
                slot.raise_if_lost()
            with fifo.slot("deploy", timeout=60) as other:
                assert other.held, "another has it by now"

    with pytest.raises(pgfifo.SlotLost, match=r"the slot of deploy was lost") as raised:
        use()
    assert (raised.value.id, raised.value.action) == (slot.id, "deploy")
    assert slot.lost
    assert outcome(engine, slot.id) == ("failed", "stuck")


def test_fencing_a_slot_that_was_lost_unnoticed_is_raised_at_the_end(
    fifo: pgfifo.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_holder, "_INTERVAL", 15.0)

    def use() -> None:
        with fifo.slot("deploy") as slot:
            fifo.finish_execution(id_of(slot), "failed")
            raise ZeroDivisionError

    with pytest.raises(pgfifo.SlotLost) as raised:
        use()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_fencing_a_process_that_was_declared_dead_has_lost_its_slots_and_can_take_others(
    fifo: pgfifo.Client, engine: Engine
) -> None:
    slot = fifo.slot("deploy")
    waiting: list[Background[str]] = []

    def use() -> None:
        with slot:
            waiting.append(in_background(lambda: _take(fifo)))
            in_line(engine, 1)
            engine.one(DEATH, fifo.slots()[0].worker_id)
            wait_for(lambda: slot.lost, message="the slot to be known as lost")

    with pytest.raises(pgfifo.SlotLost):
        use()
    with pytest.raises(pgfifo.SlotLost):
        waiting[0].result()
    with fifo.slot("deploy", timeout=30) as again:
        assert again.held
    assert outcome(engine, slot.id)[0] == "failed"
    engine.assert_promises()


def test_a_broken_connection_does_not_cost_the_slot(fifo: pgfifo.Client, engine: Engine) -> None:
    with fifo.slot("deploy") as slot:
        worker = fifo.slots()[0].worker_id
        engine.rows(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where pid <> pg_backend_pid() and datname = current_database()"
        )
        held = (
            "select count(*) from pg_locks where classid = 'pgfifo._workers'::regclass and objid = %s::bigint"
        )
        wait_for(lambda: engine.one(held, worker) == 1, message="the lock on a new session")
        assert slot.held
    assert outcome(engine, slot.id)[0] == "succeeded"


def test_progress_an_outage_costs_nobody_a_slot_or_a_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One holds and leaves while the server is away, and one waits all the time."""
    monkeypatch.setattr("pgfifo.calls._PAUSES", ())
    caplog.set_level("INFO", "pgfifo")
    go = threading.Event()

    def hold(slot: pgfifo.Slot) -> None:
        with slot:
            go.wait(30)

    def insists(slot: pgfifo.Slot) -> bool:
        return f"execution {slot.id} (deploy): trying again" in caplog.text

    with make_server() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            pgfifo.schema.install(conn)
        with pgfifo.Client(server.dsn()) as mine, pgfifo.Client(server.dsn()) as theirs:
            holding, waiting = mine.slot("deploy"), theirs.slot("deploy", timeout=60)
            callers = [in_background(lambda: hold(holding))]
            wait_for(lambda: holding.held, message="the slot")
            callers.append(in_background(lambda: hold(waiting)))
            wait_for(lambda: waiting.id is not None, message="the place")
            server.stop("fast")
            go.set()
            wait_for(lambda: insists(holding) and insists(waiting), message="both to go on trying")
            server.start()
            for caller in callers:
                caller.result()
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            engine = Engine(conn)
            assert engine.states([id_of(holding), id_of(waiting)]) == ["succeeded", "succeeded"]
            engine.assert_promises()


def test_a_cancel_of_a_place_in_the_line_is_raised(fifo: pgfifo.Client, engine: Engine) -> None:
    with fifo.slot("deploy") as slot:
        waiting = in_background(lambda: _take(fifo))
        in_line(engine, 1)
        [place] = [each for each in fifo.slots() if each.state == "waiting"]
        fifo.cancel(place.id, reason="not tonight")
        with pytest.raises(pgfifo.ExecutionFailed, match="was cancelled: not tonight") as raised:
            waiting.result()
        assert (raised.value.id, raised.value.outcome) == (place.id, "cancelled")
        assert slot.id is not None
        fifo.cancel(slot.id)
        wait_for(lambda: slot.cancel_requested, message="the request")
        assert slot.held
    assert outcome(engine, slot.id)[0] == "succeeded", "it did not heed it"


# Connections


def test_a_connection_in_a_transaction_is_refused(
    fifo: pgfifo.Client, engine: Engine, connect: Connect
) -> None:
    theirs = connect(autocommit=False)
    for refused in (theirs, SqlalchemyConnection(theirs)):
        with pytest.raises(pgfifo.InTransaction), fifo.slot("deploy", connection=refused):
            pass
        with pytest.raises(pgfifo.InTransaction):
            fifo.try_slot("deploy", connection=refused)
    one = connect()
    with pgfifo.Client(one) as mine:
        with one.transaction(), pytest.raises(pgfifo.InTransaction), mine.slot("deploy"):
            pass
        with mine.slot("deploy"), one.transaction():
            assert engine.one("select count(*) from pgfifo.slots") == 1
    assert engine.stats()["total_succeeded"] == 1


def test_a_transaction_left_open_at_the_end_does_not_keep_the_slot(engine: Engine, connect: Connect) -> None:
    one = connect()
    with pgfifo.Client(one) as mine:
        with pytest.raises(pgfifo.InTransaction), mine.slot("deploy") as slot:
            one.execute("begin")
        wait_for(lambda: outcome(engine, slot.id)[0] == "failed", message="the slot to be free")
        one.rollback()


def test_it_works_with_a_pool_of_the_callers(dsn: str, engine: Engine) -> None:
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=2) as pool, pgfifo.Client(pool) as fifo:
        with fifo.slot("deploy"):
            assert engine.stats()["active_count"] == 1
        assert engine.stats()["total_succeeded"] == 1


def test_it_works_where_only_polling_does(dsn: str, engine: Engine) -> None:
    """As through a pooler in transaction mode: no notifications, and no session that speaks for it."""
    with pgfifo.Client(dsn, prepare_threshold=None) as fifo:

        def call() -> bool:
            with fifo.slot("deploy", timeout=30):
                return True

        with fifo.slot("deploy"):
            waiting = in_background(call)
            in_line(engine, 1)
            assert engine.rows("select locked from pgfifo.workers") == [(False,)]
            listening = "select count(*) from pg_stat_activity where query like 'listen%%'"
            assert engine.one(listening) == 0
        assert waiting.result()


def test_the_worker_signs_off_when_no_slot_was_wanted_for_a_while(
    fifo: pgfifo.Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_holder, "LINGER", 600.0)
    with fifo.slot("deploy"):
        first = fifo.slots()[0].worker_id
    with fifo.slot("deploy"):
        assert fifo.slots()[0].worker_id == first, "it is kept for the next one"
    monkeypatch.setattr(_holder, "LINGER", 0.2)
    wait_for(lambda: engine.rows("select from pgfifo._workers") == [], message="the worker to sign off")
    with fifo.slot("deploy"):
        assert fifo.slots()[0].worker_id != first
    fifo.close()
    assert engine.rows("select from pgfifo._workers") == [], "closing signs off"


def test_no_server_is_told_at_once(dsn: str) -> None:
    with (
        pgfifo.Client(psycopg.conninfo.make_conninfo(dsn, port=1)) as fifo,
        pytest.raises(psycopg.OperationalError),
        fifo.slot("deploy", timeout=30),
    ):
        pass


def test_no_schema_is_told_at_once(empty_dsn: str) -> None:
    with pgfifo.Client(empty_dsn) as fifo, pytest.raises(pgfifo.SchemaMissing), fifo.slot("deploy"):
        pass


# Tasks


def test_in_tasks_it_is_the_same(dsn: str, engine: Engine) -> None:
    order: list[int] = []

    async def main() -> None:
        async with pgfifo.AsyncClient(dsn) as fifo:

            async def call(number: int) -> None:
                async with fifo.slot("deploy", timeout=60):
                    order.append(number)

            async with asyncio.TaskGroup() as group, fifo.slot("deploy") as slot:
                assert slot.held
                for number in range(5):
                    group.create_task(call(number))
                    await asyncio.to_thread(in_line, engine, number + 1)
                assert await fifo.try_slot("deploy") is None
                with pytest.raises(pgfifo.AlreadyHeld):
                    async with fifo.slot("deploy"):
                        pass
            assert order == list(range(5))
            slot = await fifo.try_slot("deploy")  # type: ignore[assignment]
            assert slot is not None
            async with slot:
                pass

    asyncio.run(main())
    engine.assert_promises()


def test_a_task_that_is_cancelled_gives_up_its_place_or_its_slot(dsn: str, engine: Engine) -> None:
    async def main() -> None:
        async with pgfifo.AsyncClient(dsn) as fifo:

            async def call() -> None:
                async with fifo.slot("deploy"):
                    await asyncio.sleep(60)

            tasks = [asyncio.create_task(call()) for _ in range(2)]
            await asyncio.to_thread(in_line, engine, 1)
            for task in tasks:
                task.cancel()
            assert [type(end) for end in await asyncio.gather(*tasks, return_exceptions=True)] == [
                asyncio.CancelledError
            ] * 2

    asyncio.run(main())
    assert engine.stats()["total_cancelled"] == 2
    engine.assert_promises()


@pytest.mark.parametrize("how", ["lost", "cancelled"])
def test_what_runs_in_a_slot_that_is_lost_or_cancelled_is_cancelled(
    dsn: str, engine: Engine, how: str
) -> None:
    async def use(fifo: pgfifo.AsyncClient, slot: pgfifo.AsyncSlot) -> None:
        async with slot:
            assert slot.id is not None
            if how == "lost":
                await fifo.finish_execution(slot.id, "failed")
            else:
                await fifo.cancel(slot.id)
            with pytest.raises(asyncio.CancelledError) as interrupted:
                await asyncio.sleep(60)
            raise interrupted.value

    async def main() -> None:
        async with pgfifo.AsyncClient(dsn) as fifo:
            slot = fifo.slot("deploy")
            with pytest.raises(pgfifo.SlotLost if how == "lost" else pgfifo.ExecutionFailed):
                await use(fifo, slot)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0, "the task itself goes on"
            assert outcome(engine, slot.id)[0] == ("failed" if how == "lost" else "cancelled")

    asyncio.run(main())


# Processes

HOLD = """
    import sys, time
    import pgfifo

    with pgfifo.Client(sys.argv[1]) as fifo, fifo.slot("deploy", timeout=30) as slot:
        print(slot.token, flush=True)
        time.sleep(600)
"""


@pytest.fixture
def hold(dsn: str) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start processes that take the slot and keep it."""
    started: list[subprocess.Popen[str]] = []

    def starter() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(HOLD), dsn]
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        )
        return started[-1]

    yield starter
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
def test_progress_a_killed_holders_slot_goes_to_the_next_one_where_no_worker_is(
    hold: Callable[[], subprocess.Popen[str]], fifo: pgfifo.Client, engine: Engine
) -> None:
    """The lease is 30 seconds; the end of the session is noticed long before that."""
    holder = hold()
    assert holder.stdout is not None
    token = holder.stdout.readline().strip()
    next_ = in_background(lambda: _take(fifo))
    in_line(engine, 1)
    holder.send_signal(signal.SIGKILL)
    assert next_.result(timeout=20) > token
    id_ = int(token.split("-")[1])
    state, error = outcome(engine, id_)
    assert state == "failed"
    assert error is not None
    assert error.startswith("holder lost: worker")
    assert engine.show(id_)["attempt"] == 1
    assert engine.stats()["total_enqueued"] == 2, "and what was killed is not run again"
    engine.assert_promises()


def _take(fifo: pgfifo.Client) -> str:
    with fifo.slot("deploy", timeout=30) as slot:
        return slot.token


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_has_no_slots_and_can_take_its_own(fifo: pgfifo.Client, engine: Engine) -> None:
    with fifo.slot("deploy"):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with fifo.slot("other", timeout=60):
                    code = 0 if fifo.try_slot("deploy") is None else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert engine.stats()["active_count"] == 1
    assert engine.stats()["total_succeeded"] == 1
