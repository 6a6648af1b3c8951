"""The kit for applications' tests: what it offers, and that nobody notices it who does not use it."""

import asyncio
import importlib.metadata
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo import Actions, Execution
from pgfifo.testing import Fifo, database, drain, drain_async
from tests.support.server import binaries_of_this_run
from tests.test_worker import QUICK

Connection = psycopg.Connection[Any]


@pytest.fixture
def actions() -> Actions:
    return Actions()


@pytest.fixture
def fifo(dsn: str) -> Iterator[Fifo]:
    with Fifo(dsn) as client:
        yield client


# Draining


def test_drain_runs_what_waits_and_what_that_enqueues(fifo: Fifo, actions: Actions) -> None:
    @actions.action("count", group_by=["lane"])
    def count(execution: Execution) -> None:
        if execution.payload["n"]:
            fifo.enqueue("count", execution.payload | {"n": execution.payload["n"] - 1})

    @actions.action("other")
    async def other(execution: Execution) -> None:
        await asyncio.sleep(0)

    fifo.declare(actions)
    fifo.enqueue("count", {"lane": "a", "n": 3})
    fifo.enqueue_many("count", [{"lane": "b", "n": 0}] * 2)
    fifo.enqueue("other")
    started = fifo.drain(actions)
    assert sorted((e.action, e.payload.get("n")) for e in started) == sorted(
        [("count", 3), ("count", 2), ("count", 1), ("count", 0), ("count", 0), ("count", 0), ("other", None)],
        key=str,
    )
    assert fifo.drain(actions) == []
    assert [stats.queue_length + stats.active_count for stats in fifo.stats()] == [0, 0]


def test_drain_raises_what_a_handler_raised_and_goes_on_to_the_end(fifo: Fifo, actions: Actions) -> None:
    error = KeyError("no such customer")

    @actions.action("work", group_by=["n"], backoff_initial=60)
    def work(execution: Execution) -> None:
        if execution.payload["n"] % 2:
            raise error if execution.payload["n"] == 1 else ValueError(execution.payload["n"])

    fifo.declare(actions)
    jobs = fifo.enqueue_many("work", [{"n": n} for n in range(3)])
    with pytest.raises(KeyError) as caught:
        fifo.drain(actions)
    assert caught.value is error
    assert error.__notes__ == [f"raised by work, execution {jobs[1].id}, attempt 1"]
    assert any(entry.name == "work" for entry in caught.traceback)
    assert [fifo.execution(job.id).state for job in jobs] == ["succeeded", "held", "succeeded"]
    fifo.enqueue_many("work", [{"n": n} for n in (3, 5)])
    with pytest.raises(ExceptionGroup, match="2 attempts failed") as group:
        fifo.drain(actions)
    assert {str(each) for each in group.value.exceptions} == {"3", "5"}
    fifo.enqueue("work", {"n": 7})
    assert len(fifo.drain(actions, raises=False)) == 1


def test_drain_leaves_what_cannot_start_now_and_the_clock_brings_it(fifo: Fifo, actions: Actions) -> None:
    @actions.action("work", backoff_initial=60, backoff_jitter=0)
    def work(execution: Execution) -> str:
        if execution.attempt == 1:
            raise RuntimeError("not yet")
        return "done"

    job = fifo.enqueue("work")
    with pytest.raises(RuntimeError, match="not yet"):
        fifo.drain(actions)
    assert fifo.drain(actions) == []
    before = fifo.advance(30)
    assert fifo.drain(actions) == []
    assert fifo.advance("31s") - before >= timedelta(seconds=31)
    assert [execution.attempt for execution in fifo.drain(actions)] == [2]
    assert fifo.execution(job.id).result == "done"
    fifo.pause("work")
    fifo.enqueue("work")
    assert fifo.drain(actions) == []


def test_drain_takes_a_worker_and_leaves_it_as_it_was(fifo: Fifo, dsn: str, actions: Actions) -> None:
    actions.add("work", lambda execution: execution.payload)
    worker = pgfifo.Worker(dsn, actions, concurrency=1, name="mine", **QUICK)
    jobs = fifo.enqueue_many("work", [1, 2])
    assert [execution.id for execution in drain(worker)] == [job.id for job in jobs]
    assert actions["work"].middleware == []
    assert [(each.name, each.state) for each in fifo.workers()] == [("mine", "stopped")]
    with worker:
        assert fifo.enqueue_and_wait("work", 3, timeout=60) == 3
        with pytest.raises(RuntimeError, match="works already"):
            drain(worker)


def test_drain_in_an_event_loop(fifo: Fifo, dsn: str, actions: Actions) -> None:
    actions.add("work", lambda _: 1 / 0, backoff_initial=600)
    fifo.enqueue("work")

    async def live() -> None:
        worker = pgfifo.Worker(dsn, actions)
        with pytest.raises(RuntimeError, match="drain_async"):
            drain(worker)
        with pytest.raises(ZeroDivisionError):
            await drain_async(worker)
        assert await drain_async(worker) == []

    asyncio.run(live())


def test_drain_finds_a_mark_that_was_committed_late(fifo: Fifo, dsn: str, actions: Actions) -> None:
    """Claims have passed over it while its transaction was open: they look back each second only."""
    actions.add("work", lambda _: None)
    fifo.enqueue("work", group="a")
    with psycopg.connect(dsn) as own:
        fifo.enqueue("work", group="b", connection=own)
        for n in range(4):
            fifo.drain(actions)
            fifo.enqueue("work", group=f"c{n}")
    assert len(fifo.drain(actions)) == 2


# Asserting


def test_assert_enqueued_finds_what_contains_a_subset(fifo: Fifo, actions: Actions) -> None:
    fifo.set_policy("deploy", group_by=["env"])
    first = fifo.enqueue("deploy", {"env": "prod", "tags": ["a", "b"], "target": {"region": "eu", "zone": 1}})
    second = fifo.enqueue("deploy", {"env": "test"})
    assert fifo.assert_enqueued("deploy").id == first.id
    assert fifo.assert_enqueued("deploy", {"env": "test"}).id == second.id
    assert fifo.assert_enqueued("deploy", {"tags": ["b"], "target": {"region": "eu"}}, count=1).id == first.id
    assert fifo.assert_enqueued("deploy", group={"env": "test"}, state="waiting", count=1).id == second.id
    fifo.assert_enqueued("deploy", count=2)
    fifo.assert_not_enqueued("deploy", {"env": "stage"})
    fifo.assert_not_enqueued("deploy", state="succeeded")
    fifo.assert_not_enqueued("never.heard.of")
    with pytest.raises(AssertionError) as caught:
        fifo.assert_enqueued("deploy", {"env": "stage"})
    said = str(caught.value).splitlines()[0]
    wanted = 'an execution of deploy with {"env":"stage"} in its payload'
    assert said == f"{wanted} should have been enqueued, none was; there is:"
    assert f'  {second.id} deploy env=test (waiting): {{"env":"test"}}' in str(caught.value)
    with pytest.raises(AssertionError, match="3 executions of deploy should have been enqueued, 2 were"):
        fifo.assert_enqueued("deploy", count=3)
    with pytest.raises(AssertionError, match=r"of deploy for group \{'env': 'test'\} and be held"):
        fifo.assert_enqueued("deploy", group={"env": "test"}, state="held")
    with pytest.raises(pgfifo.InvalidValue, match="drain needs the actions"):
        fifo.drain()
    with pytest.raises(AssertionError, match="no execution of deploy should have been enqueued, 2 were"):
        fifo.assert_not_enqueued("deploy")
    with pytest.raises(AssertionError, match=r"of never should have been enqueued, none was$"):
        fifo.assert_enqueued("never")
    fifo.enqueue_many("deploy", [{"env": "prod", "n": n} for n in range(30)])
    with pytest.raises(AssertionError, match=r"and 12 more$"):
        fifo.assert_enqueued("deploy", {"env": "stage"})


# Where it may be used


def test_the_clock_moves_and_all_is_removed_only_where_it_was_installed_for_testing(empty_dsn: str) -> None:
    with Fifo(empty_dsn) as fifo:
        fifo.install()
        for call in (lambda: fifo.advance(1), fifo.reset):
            with pytest.raises(pgfifo.InvalidValue, match="testing"):
                call()
        job = fifo.enqueue("deploy")
        with pytest.raises(pgfifo.InvalidValue, match="is in use, and is not for testing"):
            fifo.install(testing=True)
        assert fifo.execution(job.id).state == "waiting"
        fifo.uninstall()
        fifo.install(testing=True)
        fifo.enqueue("deploy")
        fifo.install(testing=True)
        fifo.install()
        fifo.advance(1)
        fifo.reset()
        assert fifo.stats() == []


def test_reset_leaves_what_a_fresh_installation_has(empty_dsn: str, actions: Actions) -> None:
    def rows(conn: Connection) -> dict[str, list[Any]]:
        tables = conn.execute(
            "select c.relname from pg_class c where c.relnamespace = 'pgfifo'::regnamespace"
            " and c.relkind in ('r', 'p') and not c.relispartition"
        ).fetchall()
        volatile = "- 'at' - 'installed_at' - 'pruned_at'"
        return {
            name: conn.execute(f"select to_jsonb(t) {volatile} from pgfifo.{name} t order by 1").fetchall()
            for (name,) in tables
        }

    actions.add("work", lambda execution: 1 / execution.payload)
    with Fifo(empty_dsn) as fifo, psycopg.connect(empty_dsn, autocommit=True) as conn:
        fifo.install(testing=True)
        fresh = rows(conn)
        fifo.enqueue_many("work", [0, 1, 2], group="x")
        fifo.drain(actions, raises=False)
        fifo.set_default_policy(max_attempts=2)
        fifo.override_policy("work", lasting="1h", max_concurrent=3)
        fifo.import_start("work", "file", "print")
        fifo.advance("5d")
        fifo.maintain()
        fifo.reset()
        assert rows(conn) == fresh


def test_the_asynchronous_client_installs_for_testing_too(empty_dsn: str) -> None:
    async def live() -> None:
        async with pgfifo.AsyncClient(empty_dsn) as fifo:
            await fifo.install(testing=True)

    asyncio.run(live())
    with Fifo(empty_dsn) as fifo:
        fifo.advance(1)


def test_a_database_is_made_and_dropped(dsn: str, conn: Connection) -> None:
    for server in (dsn, psycopg.conninfo.make_conninfo(dsn)):
        with database(server) as url, Fifo(url) as fifo:
            assert ("://" in url) == ("://" in server)
            fifo.enqueue("deploy")
            fifo.advance(1)
            name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        assert conn.execute("select from pg_database where datname = %s", (name,)).fetchone() is None


# The plugin

JOBS = """
    import pgfifo

    actions = pgfifo.Actions()

    @actions.action("deploy", group_by=["env"])
    def deploy(execution):
        with pgfifo.Client(execution.headers["dsn"]) as fifo:
            fifo.enqueue("announce", {"what": execution.payload["env"]})

    @actions.action("announce", backoff_initial=60)
    async def announce(execution):
        if execution.attempt == 1:
            raise OSError("no network")
"""
TESTS = """
    import pytest
    from jobs import actions

    @pytest.fixture(scope="session")
    def pgfifo_actions():
        return actions

    def enqueue(fifo, env):
        return fifo.enqueue("deploy", {"env": env}, headers={"dsn": fifo.dsn})

    def test_one(fifo, pgfifo_dsn):
        assert fifo.dsn == pgfifo_dsn
        enqueue(fifo, "prod")
        with pytest.raises(OSError, match="no network"):
            fifo.drain()
        fifo.assert_enqueued("announce", {"what": "prod"}, state="held")
        fifo.advance("2m")
        fifo.drain()
        fifo.assert_enqueued("announce", state="succeeded")

    def test_two_begins_with_a_clean_queue_and_declared_actions(fifo):
        assert fifo.executions() == []
        assert [stats.action for stats in fifo.stats()] == ["announce", "deploy"]
        assert fifo.effective_policy("deploy")[0].value == ["env"]

    def test_three_fails_as_one_would_like_it_to(fifo):
        enqueue(fifo, "test")
        fifo.assert_enqueued("deploy", {"env": "prod"})
"""


def run_pytest(folder: Path, *words: str, **files: str) -> subprocess.CompletedProcess[str]:
    """Write a project and run its tests, with what is installed."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=folder,
        env=os.environ | {"PGFIFO_PG_BIN": str(binaries_of_this_run()), "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_project_is_tested_with_it(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, jobs=JOBS, test_jobs=TESTS)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert "should have been enqueued, none was; there is:\n" in done.stdout.replace("E         ", "")
    assert "(waiting)" in done.stdout
    assert "testing.py" not in done.stdout, "the traceback shows how the kit is made"


def test_a_project_can_have_it_on_a_database_of_its_own(tmp_path: Path, empty_dsn: str) -> None:
    conftest = """
        import os, psycopg, pytest

        @pytest.fixture(scope="session")
        def pgfifo_dsn():
            dsn = os.environ["PROJECT_DSN"]
            with psycopg.connect(dsn) as conn:
                conn.execute("create table if not exists orders (id integer)")
            return dsn
    """
    test = """
        import psycopg

        def test_beside_the_applications_tables(fifo, pgfifo_dsn):
            with psycopg.connect(pgfifo_dsn) as conn:
                conn.execute("insert into orders values (1)")
                fifo.enqueue("ship", connection=conn)
            fifo.assert_enqueued("ship")
    """
    os.environ["PROJECT_DSN"] = empty_dsn
    try:
        done = run_pytest(tmp_path, conftest=conftest, test_orders=test)
    finally:
        del os.environ["PROJECT_DSN"]
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    with psycopg.connect(empty_dsn) as conn:
        assert conn.execute("select count(*) from public.orders").fetchone() == (1,)


def test_a_project_that_does_not_use_it_does_not_load_it(tmp_path: Path) -> None:
    test = """
        import sys

        def fifo():
            return "a name of the project's own"

        def test_nothing_is_loaded():
            loaded = {"pgfifo", "psycopg", "msgspec", "rich"} & set(sys.modules)
            assert not loaded

        import pytest

        @pytest.fixture(name="fifo")
        def _fifo():
            return fifo()

        def test_a_fixture_of_that_name_is_the_projects(fifo):
            assert fifo == "a name of the project's own"
    """
    done = run_pytest(tmp_path, "-p", "no:hypothesispytest", test_it=test)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_plugin_is_registered_for_pytest() -> None:
    [found] = importlib.metadata.entry_points(group="pytest11", name="pgfifo")
    assert found.value == "_pgfifo_pytest"
