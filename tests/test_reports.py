"""How far it is: what a handler says reaches whoever looks, and nothing else notices."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo import errors
from pgfifo.command import Command
from tests.support.database import wait_for
from tests.support.engine import Engine
from tests.test_command import an_execution
from tests.test_command import run as run_command

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

SAY = "select pgfifo.progress(%s, %s, %s, %s)"


def said(engine: Engine, id_: int) -> tuple[float | None, str | None]:
    show = engine.show(id_)
    assert (show["progress_at"] is None) == (show["progress"] is None and show["progress_message"] is None)
    return show["progress"], show["progress_message"]


def test_what_is_said_is_shown_while_it_runs(conn: Connection) -> None:
    engine = Engine(conn)
    first, second = engine.fill(2)
    worker = engine.worker()
    assert engine.one(SAY, first, 1, 0.5, "early") is False, "it does not run yet"
    (start,) = engine.claim(worker)
    assert said(engine, first) == (None, None)
    assert engine.one(SAY, first, 1, 0.25, "uploading") is True
    assert said(engine, first) == (0.25, "uploading")
    assert engine.one(SAY, first, 1, 0.5, None) is True
    assert said(engine, first) == (0.5, "uploading"), "what was not said again is gone"
    assert engine.one(SAY, first, 1, None, "x" * 2000) is True
    assert said(engine, first) == (0.5, "x" * 1000)
    engine.hand_in(worker, start)
    assert said(engine, first) == (None, None)
    assert engine.one(SAY, first, 1, 0.9, None) is False
    assert said(engine, second) == (None, None)


def test_only_the_attempt_that_runs_is_heard(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff_initial=0)
    (only,) = engine.fill(1)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    engine.one(SAY, only, 1, 0.7, "first")
    engine.finish(start, "failed")
    assert said(engine, only) == (None, None), "a held one is not on its way"
    (start,) = engine.claim(worker)
    assert start.attempt == 2
    assert said(engine, only) == (None, None), "the second attempt has said nothing yet"
    assert engine.one(SAY, only, 1, 0.9, "zombie") is False
    assert engine.one(SAY, only, 2, 0.1, None) is True
    assert said(engine, only) == (0.1, None), "a message of the first attempt came with it"


def test_what_can_not_be_progress_is_refused(conn: Connection) -> None:
    engine = Engine(conn)
    (only,) = engine.fill(1)
    engine.claim(engine.worker())
    for fraction in (-0.1, 1.1, float("nan"), float("inf"), None):
        with pytest.raises(errors.InvalidValue):
            engine.one(SAY, only, 1, fraction, "x" if fraction is not None else None)
    execution = an_execution()
    for bad in (-0.1, 1.1, float("nan"), "half", True):
        with pytest.raises(errors.InvalidValue):
            execution.progress(bad)  # type: ignore[arg-type]  # that is what is wrong
    with pytest.raises(errors.InvalidValue):
        execution.progress()
    assert execution.last_progress is None


def test_reports_meet_neither_claims_nor_finishes(conn: Connection, connect: Connect) -> None:
    """An open transaction that has reported holds nobody up, and what it leaves is cleared away."""
    engine = Engine(conn)
    first, second = engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    other = Engine(connect(autocommit=False))
    other.one(SAY, first, 1, 0.5, None)
    conn.execute("set statement_timeout = '5s'")
    assert engine.work(worker, 1, finished=[{"id": first, "attempt": 1, "outcome": "succeeded"}]).ids == [
        second
    ]
    other.conn.commit()
    assert engine.rows("select id from pgfifo.reports") == [(first,)]
    engine.one(SAY, second, 1, 0.5, None)
    engine.tick(11)
    assert engine.rows("select id from pgfifo.reports") == [(second,)], (
        "reports of what is over stay for ever"
    )
    assert start.id == first
    engine.assert_promises()


def test_handlers_sync_and_async_say_how_far_they_are(dsn: str, conn: Connection) -> None:
    engine = Engine(conn)
    actions = pgfifo.Actions()
    go = threading.Event()

    @actions.action("sync")
    def in_thread(execution: pgfifo.Execution) -> None:
        for step in range(4000):
            execution.progress(step / 8000, "counting")
        assert go.wait(30)

    @actions.action("async")
    async def in_loop(execution: pgfifo.Execution) -> None:
        execution.progress(message="looking")
        execution.progress(1)
        await asyncio.to_thread(go.wait, 30)

    with pgfifo.Client(dsn) as fifo:
        jobs = [fifo.enqueue(name) for name in ("sync", "async")]
        with pgfifo.Worker(dsn, actions, heartbeat=0.1):
            wait_for(
                lambda: said(engine, jobs[0].id) == (3999 / 8000, "counting"), 20, "the sync one's progress"
            )
            wait_for(lambda: said(engine, jobs[1].id) == (1.0, "looking"), 20, "the async one's progress")
            info = fifo.execution(jobs[1].id)
            assert (info.progress, info.progress_message) == (1.0, "looking")
            assert info.progress_at is not None
            go.set()


def test_a_report_that_fails_is_made_again(dsn: str, conn: Connection) -> None:
    engine = Engine(conn)
    actions = pgfifo.Actions()
    go, reporting = threading.Event(), threading.Event()

    @actions.action("deploy")
    def deploy(execution: pgfifo.Execution) -> None:
        assert reporting.wait(30)
        execution.progress(0.5, "half")
        assert go.wait(30)

    job = engine.enqueue()
    with pgfifo.Worker(dsn, actions, heartbeat=0.2):
        wait_for(lambda: engine.state(job) == "running", 20, "the start")
        conn.execute("alter function pgfifo.progress rename to progress_for_a_while_gone")
        try:
            reporting.set()
            seen = "select count(*) from pg_stat_activity where query like '%%(told.id%%' and state = 'idle'"
            wait_for(lambda: engine.one(seen) > 0, 20, "a report that fails")
        finally:
            conn.execute("alter function pgfifo.progress_for_a_while_gone rename to progress")
        wait_for(lambda: said(engine, job) == (0.5, "half"), 20, "the report that was made again")
        go.set()


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ("0.4 uploading", (0.4, "uploading")),
        ("40% uploading  all of it", (0.4, "uploading  all of it")),
        ("1", (1.0, None)),
        ("100%", (1.0, None)),
        ("uploading", (None, "uploading")),
        ("2 files left", (None, "2 files left")),
        ("nan", (None, "nan")),
        ("0.1\\n0.2 a\\n0.3", (0.3, "a")),
        ("0.5 unfinished line\\n0.9", (0.5, "unfinished line")),
        ("\\n", None),
    ],
)
def test_a_command_says_it_on_a_descriptor_of_its_own(line: str, progress: object) -> None:
    execution = an_execution()
    ending = "" if "unfinished" in line else "\\n"
    outcome = run_command(
        Command(f"printf '{line.replace('%', '%%')}{ending}' >&$PGFIFO_PROGRESS_FD"), execution
    )
    assert outcome.kind == "succeeded"
    assert execution.last_progress == progress
