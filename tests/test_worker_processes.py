"""Worker processes as they are started in earnest: stopped, killed, and several under one parent."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.database import wait_for

Connection = psycopg.Connection[Any]
Start = Callable[..., subprocess.Popen[str]]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and process groups are POSIX's")

# What the programs below have in common. A handler says in a file that it has begun, and waits for another.
COMMON = """
    import asyncio, logging, os, sys, time
    from pathlib import Path
    from pgfifo import Actions, Execution
    from pgfifo.command import Command
    from pgfifo.processes import follow_parent, supervise
    from pgfifo.worker import Worker

    logging.basicConfig(level=logging.INFO)
    dsn, folder, *words = sys.argv[1:]
    folder = Path(folder)
    actions = Actions()
    quick = {"heartbeat": 0.1, "poll_interval": 0.1}

    def note(text):
        with (folder / "journal").open("a") as file:
            print(text, file=file)
"""

SYNC = """
    @actions.action("work")
    def work(execution):
        note(f"begin {os.getpid()} {execution.attempt}")
        while not (folder / "go").exists():
            time.sleep(0.005)
        note(f"end {os.getpid()} {execution.attempt}")
        return execution.attempt
"""

RUN = """
    Worker(dsn, actions, **quick).run()
"""


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    """Start programs; at the end of the test none of them is left."""
    started: list[subprocess.Popen[str]] = []

    def starter(*parts: str, words: list[str] | None = None) -> subprocess.Popen[str]:
        code = "\n".join(textwrap.dedent(part) for part in (COMMON, *parts))
        program = [sys.executable, "-c", code, dsn, str(tmp_path), *(words or [])]
        where = Path(__file__).parents[1]
        process = subprocess.Popen(
            program, cwd=where, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
        )
        started.append(process)
        return process

    yield starter
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def enqueue(conn: Connection, action: str, payload: object = None) -> int:
    row = conn.execute("select pgfifo.enqueue(%s, %s::jsonb)", (action, json.dumps(payload))).fetchone()
    assert row is not None
    return int(row[0])


def look(conn: Connection, id_: int, *columns: str) -> Any:
    row = conn.execute(f"select {', '.join(columns)} from pgfifo.executions where id = %s", (id_,)).fetchone()
    assert row is not None
    return row[0] if len(columns) == 1 else row


def one(conn: Connection, query: str) -> Any:
    row = conn.execute(query).fetchone()
    assert row is not None
    return row[0]


def wait_for_state(conn: Connection, id_: int, state: str, timeout: float = 30.0) -> None:
    wait_for(lambda: look(conn, id_, "state") == state, timeout, f"execution {id_} to be {state}")


def journal(folder: Path) -> list[str]:
    path = folder / "journal"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_lines(folder: Path, count: int, timeout: float = 30.0) -> list[str]:
    wait_for(lambda: len(journal(folder)) >= count, timeout, f"{count} lines of the handlers' journal")
    return journal(folder)


def wait_for_word(process: subprocess.Popen[str], word: str) -> None:
    """Read a program's log until it says so."""
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return
    raise AssertionError(f"it ended without saying {word!r}")


def ends(process: subprocess.Popen[str], timeout: float = 30.0) -> int:
    return process.wait(timeout)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or ") Z" not in state.read_text()


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_runs_finish(
    start: Start, conn: Connection, tmp_path: Path, number: signal.Signals
) -> None:
    first, second = enqueue(conn, "work"), enqueue(conn, "work")
    worker = start(SYNC, RUN)
    wait_for_lines(tmp_path, 1)
    worker.send_signal(number)
    wait_for_word(worker, "stopping" if number == signal.SIGTERM else "stopping; once more ends it at once")
    wait_for_word(worker, f"waits up to 30 s for 1 execution: {first}")
    assert worker.poll() is None
    (tmp_path / "go").touch()
    assert ends(worker) == 0
    assert look(conn, first, "state", "result") == ("succeeded", 1)
    assert look(conn, second, "state") == "waiting"
    assert one(conn, "select state from pgfifo.workers") == "stopped"


def test_a_second_interrupt_ends_it_at_once(start: Start, conn: Connection, tmp_path: Path) -> None:
    id_ = enqueue(conn, "work")
    worker = start(SYNC, RUN)
    wait_for_lines(tmp_path, 1)
    worker.send_signal(signal.SIGINT)
    wait_for_word(worker, "stopping")
    worker.send_signal(signal.SIGINT)
    assert ends(worker) == 130
    assert look(conn, id_, "state") == "running", "it is given back by whoever notices, not by the dying"


def test_slots_a_process_with_a_stuck_handler_ends_before_its_execution_is_given_back(
    start: Start, conn: Connection, tmp_path: Path
) -> None:
    id_ = enqueue(conn, "work")
    graces = "from pgfifo import _engine; _engine.CANCEL_GRACE = _engine.KILL_GRACE = 0.05"
    worker = start(graces, SYNC, "Worker(dsn, actions, shutdown_timeout=0, **quick).run()")
    wait_for_lines(tmp_path, 1)
    worker.terminate()
    assert ends(worker) == 1
    assert worker.stderr is not None
    assert "did not return" in worker.stderr.read()
    (tmp_path / "go").touch()
    start(SYNC, RUN)
    wait_for_state(conn, id_, "succeeded")
    assert journal(tmp_path)[1].endswith(" 2"), "the first attempt never ended"
    assert look(conn, id_, "attempt") == 2


def test_the_end_of_the_interpreter_stops_a_worker_in_a_thread(
    start: Start, conn: Connection, tmp_path: Path
) -> None:
    id_ = enqueue(conn, "work")
    (tmp_path / "go").touch()
    wait = "while not (folder / 'journal').exists(): time.sleep(0.005)"
    worker = start(SYNC, "Worker(dsn, actions, **quick).start()", wait)
    assert ends(worker) == 0
    assert look(conn, id_, "state") == "succeeded"
    assert one(conn, "select state from pgfifo.workers") == "stopped"


def test_a_worker_process_is_small(start: Start, conn: Connection, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    for _ in range(500):
        enqueue(conn, "work")
    program = """
        from tests.support.memory import peak_kib
        Worker(dsn, actions, until_empty=True, **quick).run()
        note(peak_kib())
    """
    assert ends(start(SYNC, program)) == 0
    assert int(journal(tmp_path)[-1]) < 80 * 1024


# Death


def test_progress_the_only_worker_killed_a_new_one_does_not_wait_for_the_lease(
    start: Start, conn: Connection, tmp_path: Path
) -> None:
    id_ = enqueue(conn, "work")
    first = start(SYNC, "Worker(dsn, actions, lease=600).run()")
    wait_for_lines(tmp_path, 1)
    first.kill()
    first.wait()
    (tmp_path / "go").touch()
    start(SYNC, RUN)
    wait_for_state(conn, id_, "succeeded")
    assert look(conn, id_, "attempt", "failures") == (2, 1)
    assert one(conn, "select count(*) from pgfifo.workers where state = 'dead'") == 1


COMMAND = """
    # Says who it is and whether an earlier attempt is still alive, in any of its processes.
    script = '''
        for old in $(sed -n 's/^alive //p' journal); do
            if kill -0 $old 2>/dev/null; then echo "overlap $old" >> journal; fi
        done
        [ "$PGFIFO_ATTEMPT" = 1 ] || { echo "again $PGFIFO_ATTEMPT" >> journal; exit 0; }
        trap "" TERM HUP INT
        (trap "" TERM HUP INT; sleep 600) &
        echo "alive $!" >> journal
        echo "alive $$" >> journal
        wait
    '''
    actions.add("work", Command(script, cwd=folder))
"""


def test_slots_a_killed_workers_command_is_gone_before_the_next_start(
    start: Start, conn: Connection, tmp_path: Path
) -> None:
    """What a user would lose: two deploys at once."""
    id_ = enqueue(conn, "work")
    first = start(COMMAND, RUN)
    lines = wait_for_lines(tmp_path, 2)
    # One that is alive already: it takes over as soon as may be.
    start(COMMAND, RUN)
    wait_for(lambda: one(conn, "select count(*) from pgfifo.workers where state = 'alive'") == 2)
    first.kill()
    first.wait()
    wait_for_state(conn, id_, "succeeded")
    assert journal(tmp_path) == [*lines, "again 2"]
    assert not any(alive(int(line.split()[1])) for line in lines)


def test_a_signal_stops_commands_at_the_end_of_the_time(
    start: Start, conn: Connection, tmp_path: Path
) -> None:
    id_ = enqueue(conn, "work")
    graces = "from pgfifo import _engine; _engine.CANCEL_GRACE = 0.1"
    worker = start(graces, COMMAND, "Worker(dsn, actions, shutdown_timeout=0, **quick).run()")
    lines = wait_for_lines(tmp_path, 2)
    worker.terminate()
    assert ends(worker) == 0
    assert not any(alive(int(line.split()[1])) for line in lines)
    assert look(conn, id_, "state", "failures") == ("waiting", 0)


# Several under one parent

CHILD = """
    if words == ["child"]:
        worker = Worker(dsn, actions, **quick)
        follow_parent(worker.request_stop)
        worker.run()
        sys.exit(0)
"""

PARENT = """
    note(f"parent {os.getpid()}")
    code = sys.orig_argv[2]
    sys.exit(supervise([sys.executable, "-c", code, dsn, str(folder), "child"], 2, {}))
"""


@pytest.fixture
def family(start: Start, conn: Connection) -> tuple[subprocess.Popen[str], list[int]]:
    """A parent and its two workers, when they are registered; their pids."""
    conn.execute("select pgfifo.set_policy('work', '{\"max_concurrent\": 10}')")
    parent = start(SYNC, CHILD, PARENT)
    living = "select pid from pgfifo.workers where state = 'alive'"
    wait_for(lambda: len(conn.execute(living).fetchall()) == 2, 20, "two workers to be registered")
    return parent, [pid for (pid,) in conn.execute(living)]


def test_processes_share_the_work(
    family: tuple[subprocess.Popen[str], list[int]], conn: Connection, tmp_path: Path
) -> None:
    parent, pids = family
    for _ in range(20):  # ten at once in each, and ten slots: neither can have them all for itself
        enqueue(conn, "work")
    wait_for_lines(tmp_path, 11)
    (tmp_path / "go").touch()
    wait_for(lambda: one(conn, "select count(*) from pgfifo.executions where state = 'succeeded'") == 20)
    parent.terminate()
    assert ends(parent) == 0
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_lets_its_processes_finish(
    family: tuple[subprocess.Popen[str], list[int]], conn: Connection, tmp_path: Path, number: signal.Signals
) -> None:
    parent, pids = family
    id_ = enqueue(conn, "work")
    wait_for_lines(tmp_path, 2)
    parent.send_signal(number)
    wait_for_word(parent, "stopping")
    (tmp_path / "go").touch()
    assert ends(parent) == (130 if number == signal.SIGINT else 0)
    assert look(conn, id_, "state") == "succeeded"
    assert not any(alive(pid) for pid in pids)


def test_a_process_that_dies_stops_the_others_and_is_told(
    family: tuple[subprocess.Popen[str], list[int]], conn: Connection
) -> None:
    parent, pids = family
    os.kill(pids[0], signal.SIGKILL)
    assert ends(parent) == 1
    assert parent.stderr is not None
    said = parent.stderr.read()
    assert f"worker process {pids[0]} ended with signal 9 (SIGKILL)" in said
    assert f"stopping {len(pids) - 1} other process" in said
    assert "whoever supervises this one starts them all again" in said
    assert not any(alive(pid) for pid in pids)


def test_processes_stop_when_their_parent_is_killed(
    family: tuple[subprocess.Popen[str], list[int]], conn: Connection, tmp_path: Path
) -> None:
    parent, pids = family
    id_ = enqueue(conn, "work")
    wait_for_lines(tmp_path, 2)
    parent.kill()
    parent.wait()
    (tmp_path / "go").touch()
    wait_for(lambda: not any(alive(pid) for pid in pids), 20, "the processes to follow their parent")
    assert look(conn, id_, "state") == "succeeded", "they stop in order, and finish what runs"


# Other systems

WITHOUT_POSIX = """
    import asyncio, subprocess, tempfile, logging, psycopg, typer, rich.progress  # they have their own ways
    import os, signal, socket, sys

    gone = {
        os: "fork killpg setsid getppid register_at_fork waitid memfd_create pidfd_open set_blocking WNOHANG",
        signal: "SIGKILL SIGCHLD SIGHUP SIGPIPE SIGQUIT SIGTSTP SIGXFSZ pthread_sigmask SIG_BLOCK",
        socket: "AF_UNIX send_fds recv_fds CMSG_SPACE MSG_DONTWAIT MSG_CTRUNC",
    }
    for module, names in gone.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    sys.modules["fcntl"] = sys.modules["pwd"] = sys.modules["resource"] = None
    import pgfifo, pgfifo.keeper, pgfifo.processes, pgfifo.cli
    try:
        pgfifo.Command(["true"])
    except NotImplementedError as error:
        print(error)
"""


def test_everything_can_be_imported_where_there_is_no_posix() -> None:
    program = [sys.executable, "-c", textwrap.dedent(WITHOUT_POSIX)]
    done = subprocess.run(program, cwd=Path(__file__).parents[1], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "commands need a POSIX system\n"
