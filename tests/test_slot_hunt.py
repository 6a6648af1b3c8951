"""Twenty callers in threads, tasks and processes share three slots with a worker; some are killed."""

import asyncio
import os
import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgfifo
from tests.support.database import in_background, wait_for
from tests.support.engine import Engine
from tests.test_worker import working

Connection = psycopg.Connection[Any]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")

UNFINISHED = "select count(*) from pgfifo.executions where finished_at is null"
SLOTS = 3
TURNS = 4
PROGRAM = """
    import os, sys, time
    import pgfifo

    journal = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)

    with pgfifo.Client(sys.argv[1]) as fifo:
        while True:
            with fifo.slot("deploy", timeout=60) as slot:
                os.write(journal, f"begin {os.getpid()} {slot.id}\\n".encode())
                time.sleep(0.1)
                os.write(journal, f"end {os.getpid()} {slot.id}\\n".encode())
"""


class Journal:
    """Who is in a slot, in the order in which it was written: by whoever is in it, while he is in it."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def write(self, *words: object) -> None:
        os.write(self._file, f"{' '.join(map(str, words))}\n".encode())

    def close(self) -> None:
        os.close(self._file)

    def most(self) -> int:
        """Return how many were in slots at once, at most."""
        inside: set[tuple[str, str]] = set()
        most = 0
        for line in self.path.read_text().splitlines():
            what, who, id_ = line.split()
            if what == "begin":
                inside.add((who, id_))
                most = max(most, len(inside))
            elif what == "end":
                inside.discard((who, id_))
            else:
                inside = {one for one in inside if one[0] != who}
        assert not inside
        return most


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal")
    yield journal
    journal.close()


def in_threads(fifo: pgfifo.Client, journal: Journal, number: int) -> int:
    """Take slots; some waits are too short, some do not wait. Return how often there was one."""
    chance = random.Random(number)
    had = 0
    for _ in range(TURNS):
        try:
            slot = (
                fifo.try_slot("deploy")
                if chance.random() < 0.2
                else fifo.slot("deploy", timeout=chance.choice((0.05, 60)))
            )
            if slot is None:
                continue
            with slot:
                journal.write("begin", f"t{number}", slot.id)
                had += 1
                threading.Event().wait(chance.random() * 0.2)
                journal.write("end", f"t{number}", slot.id)
        except pgfifo.SlotTimeout:
            pass
    return had


async def in_tasks(dsn: str, journal: Journal, count: int) -> None:
    """Take slots in tasks, some of which are cancelled while they wait or hold."""
    chance = random.Random(count)

    async def call(fifo: pgfifo.AsyncClient, number: int) -> None:
        for _ in range(TURNS):
            async with fifo.slot("deploy", timeout=60) as slot:
                journal.write("begin", f"a{number}", slot.id)
                try:
                    await asyncio.sleep(chance.random() * 0.2)
                finally:
                    journal.write("end", f"a{number}", slot.id)

    async with pgfifo.AsyncClient(dsn) as fifo:
        tasks = [asyncio.create_task(call(fifo, number)) for number in range(count)]
        for task in tasks[::2]:
            await asyncio.sleep(0.1)
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [
            asyncio.CancelledError if n % 2 == 0 else type(None) for n in range(count)
        ]


def test_slots_and_order_among_twenty_callers_of_which_some_are_killed(
    dsn: str, conn: Connection, journal: Journal
) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=SLOTS)
    actions = pgfifo.Actions()

    @actions.action("deploy")
    def deploy(execution: pgfifo.Execution) -> None:
        journal.write("begin", "w", execution.id)
        journal.write("end", "w", execution.id)

    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), dsn, str(journal.path)]
    programs = [subprocess.Popen(command, cwd=Path(__file__).parents[1]) for _ in range(6)]
    try:
        with pgfifo.Client(dsn) as fifo, working(dsn, actions):
            callers = [in_background(lambda n=n: in_threads(fifo, journal, n)) for n in range(7)]  # type: ignore[misc]
            tasks = in_background(lambda: asyncio.run(in_tasks(dsn, journal, 7)))
            for program in programs:
                engine.enqueue()
                begun = f"begin {program.pid} "
                wait_for(lambda b=begun: b in journal.path.read_text(), 30, "a program's turn")  # type: ignore[misc]
                journal.write("killed", program.pid, "-")
                program.kill()
                program.wait()
                journal.write("killed", program.pid, "-")  # it may have begun once more
            assert sum(caller.result(60) for caller in callers) > 0
            tasks.result(60)
            wait_for(lambda: engine.one(UNFINISHED) == 0, 30, "the end of all")
    finally:
        for program in programs:
            program.kill()
            program.wait()
    assert 1 < journal.most() <= SLOTS
    failures = engine.rows("select distinct error from pgfifo.executions where state = 'failed'")
    assert failures
    assert all(error.startswith("holder lost") for (error,) in failures), failures
    engine.assert_promises()
