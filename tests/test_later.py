"""Delayed executions through the clients, the worker and the command line."""

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo.worker import Worker
from tests.support.cli import CommandLine
from tests.support.database import wait_for
from tests.support.engine import Engine

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

QUICK: dict[str, Any] = {"heartbeat": 0.1, "poll_interval": 0.1, "shutdown_timeout": 10}


@pytest.fixture
def fifo(dsn: str) -> Iterator[pgfifo.Client]:
    with pgfifo.Client(dsn) as client:
        yield client


@pytest.fixture
def cli(
    dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    """The command line on a clean database, whose first execution will be number 1."""
    conn.execute("alter sequence pgfifo.execution_ids restart")
    return CommandLine(dsn, monkeypatch, capsys)


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


# Clients


def test_later_by_a_time_or_by_a_delay(fifo: pgfifo.Client, conn: Connection) -> None:
    engine = Engine(conn)
    jobs = [
        fifo.enqueue("deploy", delay=30),
        fifo.enqueue("deploy", delay=timedelta(seconds=20)),
        fifo.enqueue("deploy", delay="10s"),
        fifo.enqueue("deploy", run_at=soon(40)),
    ]
    assert {fifo.execution(job.id).state for job in jobs} == {"delayed"}
    assert fifo.position(jobs[0].id).position is None
    assert fifo.stats("deploy").delayed_count == 4
    assert [found.id for found in fifo.executions(state="delayed")] == [job.id for job in reversed(jobs)]
    engine.advance("1 min")
    assert engine.drain(engine.worker()) == [jobs[n].id for n in (2, 1, 0, 3)]


def test_later_for_a_batch(fifo: pgfifo.Client, conn: Connection) -> None:
    engine = Engine(conn)
    late = fifo.enqueue_many("deploy", [1, 2], delay=10)
    mixed = fifo.enqueue_many("deploy", [3, 4, 5], run_ats=[soon(20), None, soon(30)])
    worker = engine.worker()
    assert engine.drain(worker) == [mixed[1].id]
    engine.advance("25 s")
    assert engine.drain(worker) == [late[0].id, late[1].id, mixed[0].id]
    engine.advance("10 s")
    assert engine.drain(worker) == [mixed[2].id]


def test_later_made_again_with_the_same_request_id(fifo: pgfifo.Client, conn: Connection) -> None:
    first = fifo.enqueue("deploy", delay=10, request_id="a")
    again = fifo.enqueue("deploy", delay=10, request_id="a")
    assert (again.id, again.created) == (first.id, False)
    assert fifo.stats("deploy").delayed_count == 1


def test_later_in_the_callers_transaction(fifo: pgfifo.Client, conn: Connection, connect: Connect) -> None:
    mine = connect(autocommit=False)
    fifo.enqueue("deploy", delay=10, connection=mine)
    mine.rollback()
    assert fifo.executions() == []
    job = fifo.enqueue("deploy", delay=10, connection=mine)
    mine.commit()
    before = fifo.execution(job.id).due_at
    assert fifo.reschedule(job.id, delay=60, connection=mine) == before
    mine.rollback()
    assert fifo.execution(job.id).due_at == before


def test_later_times_that_cannot_be(fifo: pgfifo.Client) -> None:
    with pytest.raises(pgfifo.InvalidValue, match="negative"):
        fifo.enqueue("deploy", delay=-1)
    with pytest.raises(pgfifo.InvalidValue, match="exclude"):
        fifo.enqueue("deploy", delay=1, run_at=soon(1))
    with pytest.raises(pgfifo.InvalidValue, match="time zone"):
        fifo.enqueue("deploy", run_at=datetime(2030, 1, 1))
    with pytest.raises(pgfifo.InvalidValue, match="time zone") as caught:
        fifo.enqueue_many("deploy", [1, 2], run_ats=[None, datetime(2030, 1, 1)])
    assert caught.value.index == 1


def test_later_changed(fifo: pgfifo.Client, conn: Connection) -> None:
    engine = Engine(conn)
    job = fifo.enqueue("deploy", delay=3600)
    due = fifo.execution(job.id).due_at
    new = soon(7200)
    assert fifo.reschedule(job.id, run_at=new) == due
    assert fifo.execution(job.id).due_at == new
    fifo.reschedule(job.id)
    assert engine.drain(engine.worker()) == [job.id]
    with pytest.raises(pgfifo.InvalidValue, match="succeeded"):
        fifo.reschedule(job.id, delay=1)
    with pytest.raises(pgfifo.UnknownExecution):
        fifo.reschedule(4711)


def test_later_from_asyncio(dsn: str) -> None:
    async def live() -> None:
        async with pgfifo.AsyncClient(dsn) as fifo:
            job = await fifo.enqueue("deploy", delay="1h")
            (other,) = await fifo.enqueue_many("deploy", [1], delay=timedelta(hours=2))
            assert (await fifo.execution(other.id)).state == "delayed"
            await fifo.reschedule(job.id, delay="2h")
            assert await fifo.cancel_many([job.id, other.id]) == ["cancelled", "cancelled"]

    asyncio.run(live())


# The worker


def test_later_wakes_a_worker_that_would_not_have_looked_for_a_minute(
    dsn: str, fifo: pgfifo.Client, conn: Connection
) -> None:
    actions = pgfifo.Actions()
    actions.add("deploy", lambda _: None)
    fifo.declare(actions)
    slow = QUICK | {"poll_interval": 60}
    with Worker(dsn, actions, **slow):
        first = fifo.enqueue("deploy", delay=0.3)
        wait_for(lambda: fifo.execution(first.id).finished, 30, "the delayed one to be run")
        put_off = fifo.enqueue("deploy", delay=3600)
        fifo.reschedule(put_off.id, delay=0.2)
        wait_for(lambda: fifo.execution(put_off.id).finished, 30, "the one that was put forward to be run")


def test_later_until_empty_waits_for_what_is_due_and_not_for_what_is_to_come(
    dsn: str, fifo: pgfifo.Client, conn: Connection
) -> None:
    done: list[int] = []
    actions = pgfifo.Actions()
    actions.add("deploy", lambda execution: done.append(execution.id))
    due = fifo.enqueue("deploy", delay=10)
    fifo.enqueue("deploy", delay=3600)
    Engine(conn).advance("11 s")
    Worker(dsn, actions, until_empty=True, **QUICK).run()
    assert done == [due.id]
    assert fifo.stats("deploy").delayed_count == 1


# The command line


def test_later_enqueue_and_reschedule(cli: CommandLine, conn: Connection) -> None:
    said = cli.ok("enqueue", "deploy", "--delay", "1h")
    assert said.out == "1\n"
    assert "Enqueued in deploy, to join it in 1h.\n" in said.err
    assert said.undo == [["cancel", "1"]]
    said = cli.ok("enqueue", "deploy", "--run-at", "2999-01-31T12:00")
    assert "Enqueued in deploy, to join it at 2999-01-31 12:00" in said.err
    assert [row["state"] for row in json.loads(cli.ok("list", "--json").out)] == ["delayed", "delayed"]
    assert "2999-01-31" in cli.ok("list", "--state", "delayed").out
    assert "due at" in cli.ok("show", "1").out
    before = json.loads(cli.ok("show", "1", "--json").out)["due_at"]
    said = cli.ok("reschedule", "1", "--delay", "2h")
    assert "joins its lane at" in said.err
    ((*undo,),) = said.undo
    assert cli.ok(*undo).code == 0
    again = json.loads(cli.ok("show", "1", "--json").out)["due_at"]
    assert datetime.fromisoformat(again) == datetime.fromisoformat(before)
    assert (
        "Execution 1 joins its lane with the next enqueue or claim there.\n" in cli.ok("reschedule", "1").err
    )
    engine = Engine(conn)
    assert engine.drain(engine.worker()) == [1]


def test_later_bad_times_on_the_command_line(cli: CommandLine) -> None:
    for words in (
        ["enqueue", "deploy", "--delay", "soon"],
        ["enqueue", "deploy", "--run-at", "tomorrow"],
        ["enqueue", "deploy", "--run-at", "2030-01-01", "--delay", "1h"],
        ["reschedule", "1", "--run-at", "2030-01-01", "--delay", "1h"],
    ):
        said = cli(*words)
        assert said.code == 2, words
        assert "Traceback" not in said.all
    assert cli("reschedule", "4711").code == 1
    cli.ok("enqueue", "deploy")
    said = cli("reschedule", "1", "--delay", "1h")
    assert (said.code, "is waiting" in said.err) == (1, True)


def test_later_for_each_line_of_a_file(cli: CommandLine, conn: Connection, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text('{"n":1}\n{"n":2}\n{"n":3}\n')
    cli.ok("enqueue", "deploy", "--file", str(file), "--delay", "1h")
    cli.ok("enqueue", "deploy", "--file", str(file), "--run-at", "2999-01-31T12:00")
    engine = Engine(conn)
    assert engine.stats()["delayed_count"] == 6
    engine.advance("1 hour")
    assert engine.drain(engine.worker()) == [1, 2, 3]
