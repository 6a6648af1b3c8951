"""Commands as handlers: what they are given, what their end means, and that nothing of them survives."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pgfifo import command as command_module
from pgfifo.command import STDERR_LIMIT, Command, kept
from pgfifo.execution import Execution
from pgfifo.outcome import RESULT_LIMIT, Outcome
from tests.support.database import wait_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")


def an_execution(payload: object = None, group_text: str = '{"env":"prod"}', **other: Any) -> Execution:
    values: dict[str, Any] = {
        "id": 7,
        "attempt": 2,
        "token": "1-7-2",
        "action": "deploy",
        "group_text": group_text,
        "payload_text": json.dumps(payload),
        "headers_text": None,
        "tags": None,
        "enqueued_at": datetime.now(UTC),
        "wait_seconds": 0.0,
    }
    return Execution(**(values | other))


def in_loop(body: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function in a loop of its own, and end the keeper with it."""

    async def whole() -> Any:
        with kept():
            return await body()

    return asyncio.run(whole())


def run(command: Command, execution: Execution | None = None) -> Outcome:
    outcome = in_loop(lambda: command(execution or an_execution()))
    assert isinstance(outcome, Outcome)
    return outcome


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text() if sys.platform == "linux" else ""
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return ") Z" not in stat


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def read_pids(path: Path, count: int) -> list[int]:
    """Wait until a program has written that many numbers of processes."""
    wait_for(lambda: path.exists() and len(path.read_text().split()) == count, message="the command to start")
    return [int(pid) for pid in path.read_text().split()]


# What it is given


def test_the_payload_comes_on_standard_input() -> None:
    outcome = run(Command(["cat"], result="json"), an_execution({"a": [1, "zwölf", None]}))
    assert outcome.result is not None
    assert json.loads(outcome.result) == {"a": [1, "zwölf", None]}


def test_numbers_of_the_payload_arrive_as_exact_as_they_were_enqueued() -> None:
    exact = "[123456789012345678901234567890.10, 1e400]"
    got = run(Command("cat >&2; exit 1"), an_execution(payload_text=exact)).error
    assert got == f"exit status 1: {exact}"


def test_the_environment_says_which_execution_it_is() -> None:
    variables = ["ID", "ATTEMPT", "TOKEN", "ACTION", "GROUP"]
    script = ";".join(f"echo $PGFIFO_{name} >&2" for name in variables) + "; exit 1"
    assert run(Command(script)).error == 'exit status 1: 7\n2\n1-7-2\ndeploy\n{"env":"prod"}'


def test_the_environment_does_not_lead_to_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        "PGFIFO_DSN",
        "PGFIFO_LISTEN_DSN",
        "DATABASE_URL",
        "PGPASSWORD",
        "PGPASSFILE",
        "PGHOST",
        "PGSERVICE",
    ]:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HARMLESS", "stays")
    error = run(Command("env >&2; exit 1", env={"EXTRA": "set"})).error
    assert error is not None
    assert "secret" not in error
    assert "HARMLESS=stays" in error
    assert "EXTRA=set" in error


def test_it_runs_in_the_folder_that_was_asked_for(tmp_path: Path) -> None:
    assert run(Command("pwd >&2; exit 1", cwd=tmp_path)).error == f"exit status 1: {tmp_path}"


def test_arguments_are_not_read_by_a_shell() -> None:
    assert (
        run(Command(["sh", "-c", 'echo "$1" >&2; exit 1', "sh", "$HOME; *"])).error
        == "exit status 1: $HOME; *"
    )


def test_signals_have_their_default_action_and_none_is_blocked() -> None:
    """What a Python parent ignores (SIGPIPE) and the keeper blocks must not reach the program."""
    show = (
        "import signal; print(signal.getsignal(signal.SIGPIPE), signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    )
    status = "grep -E '^Sig(Blk|Ign):' /proc/self/status >&2; exit 1"
    if sys.platform == "linux":
        error = run(Command(["sh", "-c", status])).error
        assert error is not None
        # Signal 32 is the C library's own: what this process was started with, nobody can change.
        assert [int(line.split()[-1], 16) & 0x7FFFFFFF for line in error.splitlines()] == [0, 0]
    else:
        assert run(Command([sys.executable, "-c", show])).error is None


def test_a_command_that_reads_no_input_is_fine() -> None:
    assert run(Command("exec <&-; exit 0"), an_execution("x" * 1_000_000)).kind == "succeeded"


def test_an_empty_command_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Command([])


# What its end means


@pytest.mark.parametrize(
    ("status", "kind", "retry"),
    [
        (0, "succeeded", True),
        (1, "failed", True),
        (65, "failed", False),
        (75, "failed", True),
        (127, "failed", True),
    ],
)
def test_the_exit_status_is_the_outcome(status: int, kind: str, retry: bool) -> None:
    outcome = run(Command(f"exit {status}"))
    assert (outcome.kind, outcome.retry) == (kind, retry)
    assert outcome.error == (f"exit status {status}" if status else None)


def test_an_end_by_a_signal_is_a_failure_that_names_it() -> None:
    assert run(Command("kill -SEGV $$")).error == "killed by SIGSEGV"


def test_a_failure_keeps_the_end_of_standard_error() -> None:
    outcome = run(Command("yes 0123456789abcde | head -c 100000 >&2; echo the end >&2; exit 3"))
    assert outcome.error is not None
    assert outcome.error.startswith("exit status 3: ")
    assert outcome.error.endswith("0123456789abcde\nthe end")
    assert STDERR_LIMIT - 20 < len(outcome.error.removeprefix("exit status 3: ")) <= STDERR_LIMIT


def test_standard_error_goes_to_the_workers_standard_error_too(capfd: pytest.CaptureFixture[str]) -> None:
    run(Command("echo hello >&2"))
    assert capfd.readouterr().err == "hello\n"


def test_standard_output_is_the_workers(capfd: pytest.CaptureFixture[str]) -> None:
    run(Command("echo hello"))
    assert capfd.readouterr().out == "hello\n"


def test_text_that_postgresql_cannot_hold_is_replaced() -> None:
    assert run(Command(r"printf 'a\0b\377' >&2; exit 1")).error == "exit status 1: a\ufffdb\ufffd"


def test_a_result_keeps_its_numbers_exact() -> None:
    assert run(Command("echo '{\"n\": 1.10}'", result="json")).result == '{"n": 1.10}\n'


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("echo not json", "not JSON"),
        ("echo NaN", "not JSON"),
        ("echo '[1e400]'", "infinity"),
        (r"""printf '%s' '"\u0000"'""", "NUL"),
        ("yes | head -c 3000000", "longer than"),
    ],
)
def test_a_result_that_cannot_be_stored_does_not_make_a_failure(output: str, why: str) -> None:
    outcome = run(Command(output, result="json"))
    assert (outcome.kind, outcome.result) == ("succeeded", None)
    assert outcome.result_error is not None
    assert why in outcome.result_error


def test_no_output_is_no_result() -> None:
    assert run(Command("true", result="json")) == Outcome("succeeded")


def test_a_result_of_the_largest_size_is_read() -> None:
    text = run(
        Command(f"printf '\"'; head -c {RESULT_LIMIT - 2} /dev/zero | tr '\\0' x; printf '\"'", result="json")
    )
    assert text.result is not None
    assert len(text.result) == RESULT_LIMIT


def test_a_missing_program_is_a_failure_that_says_so() -> None:
    command = Command(["./no-such-program"])
    assert run(command).error == "cannot run './no-such-program': No such file or directory"
    assert command.problem() == "cannot run './no-such-program': there is no such program"
    assert Command(["sh"]).problem() is None


def test_a_script_that_is_not_executable_or_has_no_interpreter_says_so(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo hello\n")
    command = Command([str(script)])
    assert run(command).error == f"cannot run '{script}': Permission denied"
    assert command.problem() == f"cannot run '{script}': it is not an executable file"
    script.chmod(0o755)
    assert "begin with #!" in (run(command).error or "")


def test_an_argument_that_no_program_can_be_given_is_a_failure() -> None:
    assert "arguments" in (run(Command(["echo", "a\0b"])).error or "")


# That nothing of it survives


def test_what_the_main_process_leaves_in_its_group_is_killed_before_the_outcome(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    started = asyncio.run(_timed(Command(f"sleep 600 & echo $! > {pids}")))
    assert started.kind == "succeeded"
    assert not alive(int(pids.read_text()))


async def _timed(command: Command) -> Outcome:
    with kept():
        return await asyncio.wait_for(command(an_execution()), 20)


def test_a_process_that_left_the_group_may_stay_and_holds_nothing_up(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = "import os; os.setsid(); print(os.getpid(), flush=True); os.execvp('sleep', ['sleep', '600'])"
    script = f'"{sys.executable}" -c "{program}" > {pids} & while [ ! -s {pids} ]; do sleep 0.01; done'
    assert asyncio.run(_timed(Command(script))).kind == "succeeded"
    daemon = int(pids.read_text())
    assert alive(daemon)
    os.kill(daemon, signal.SIGKILL)


async def _cancel_when(command: Command, ready: Callable[[], object], times: int = 1) -> Any:
    with kept():
        task = asyncio.create_task(command(an_execution()))
        while not ready():
            assert not task.done(), task
            await asyncio.sleep(0.005)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        return await asyncio.wait_for(task, 20)


def test_cancel_sends_sigterm_to_the_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = Command(f"sleep 600 & echo $! $$ > {pids}; wait")
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_cancel_when(command, lambda: pids.exists() and len(pids.read_text().split()) == 2))
    assert not any(alive(pid) for pid in read_pids(pids, 2))


def test_a_command_that_succeeds_in_spite_of_a_cancel_succeeded(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = Command(f"trap 'exit 0' TERM; echo > {ready}; while :; do sleep 0.01; done")
    assert asyncio.run(_cancel_when(command, ready.exists)) == Outcome("succeeded")


def test_a_command_that_ignores_sigterm_is_killed_after_a_while(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = Command(f"trap '' TERM; echo > {ready}; while :; do sleep 0.01; done", kill_after=0.1)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_cancel_when(command, ready.exists))


def test_a_second_cancel_kills_at_once(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = Command(f"trap '' TERM; echo > {ready}; while :; do sleep 0.01; done", kill_after=600)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_cancel_when(command, ready.exists, times=2))


PARENT = """
    import asyncio, sys
    from tests.test_command import Command, an_execution

    async def main():
        await asyncio.gather(*(Command(sys.argv[1])(an_execution()) for _ in range(2)))

    asyncio.run(main())
"""


def start_parent(script: str) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-c", textwrap.dedent(PARENT), script]
    return subprocess.Popen(program, cwd=Path(__file__).parents[1])


def test_slots_commands_and_their_children_die_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    """What a user would lose: two runs of one execution at once, when its slot is given to another worker."""
    pids = tmp_path / "pids"
    # The second child ignores what can be ignored, and its parent is not the command itself.
    worker = start_parent(f"trap '' TERM HUP; (sleep 600 & echo $! $$ >> {pids}; wait)")
    try:
        running = read_pids(pids, 4)
    finally:
        worker.kill()
        worker.wait()
    wait_for(lambda: not any(alive(pid) for pid in running), 30, "the commands to die with their worker")


@pytest.mark.skipif(sys.platform != "linux", reason="a pidfd is Linux's")
def test_slots_a_forked_process_of_the_worker_does_not_keep_its_commands_alive(tmp_path: Path) -> None:
    """A handler that uses multiprocessing holds a copy of the worker's end of the socket."""
    pids, fork = tmp_path / "pids", tmp_path / "fork"
    parent = f"""
        import asyncio, os, time
        from pgfifo import command
        from tests.test_command import Command, an_execution

        async def main():
            task = asyncio.create_task(Command("echo $$ > {pids}; sleep 600")(an_execution()))
            await asyncio.sleep(0)
            keep = list(command._links.values())
            command._links.clear()  # as if the fork had not been noticed
            if os.fork() == 0:
                with open({str(fork)!r}, "w") as file:
                    file.write(str(os.getpid()))
                time.sleep(600)
            await task

        asyncio.run(main())
    """
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(parent)], cwd=Path(__file__).parents[1], start_new_session=True
    )
    try:
        [command], [forked] = read_pids(pids, 1), read_pids(fork, 1)
        worker.kill()
        worker.wait()
        wait_for(lambda: not alive(command), 30, "the command to die with its worker")
        assert alive(forked)
    finally:
        os.killpg(worker.pid, signal.SIGKILL)


def test_slots_a_killed_keeper_takes_its_commands_with_it_and_is_replaced(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = Command(f"sleep 600 & echo $! $$ > {pids}; wait")

    async def body() -> tuple[Outcome, Outcome]:
        task = asyncio.create_task(command(an_execution()))
        await asyncio.to_thread(read_pids, pids, 2)
        link = command_module._link()
        link._process.kill()
        first = await asyncio.wait_for(task, 20)
        assert not any(alive(pid) for pid in read_pids(pids, 2))
        return first, await Command("exit 0")(an_execution())

    first, second = in_loop(body)
    assert first.kind == "failed"
    assert "killed" in first.error
    assert second.kind == "succeeded"


def test_the_end_of_one_worker_leaves_the_commands_of_another_alone(tmp_path: Path) -> None:
    """Two may share an event loop, and so the process that starts their commands."""
    go = tmp_path / "go"

    async def body() -> Outcome:
        task = asyncio.create_task(Command(f"while [ ! -e {go} ]; do sleep 0.01; done")(an_execution()))
        with kept():
            await Command("exit 0")(an_execution())
        go.touch()
        return await asyncio.wait_for(task, 20)

    assert in_loop(body).kind == "succeeded"


def test_many_at_once() -> None:
    async def body() -> list[Outcome]:
        return await asyncio.gather(
            *(Command("cat; exit 0", result="json")(an_execution(n)) for n in range(100))
        )

    outcomes = in_loop(body)
    assert [json.loads(outcome.result) for outcome in outcomes] == list(range(100))


def test_nothing_stays_open() -> None:
    async def body() -> int:
        await Command("true")(an_execution())
        before = open_files()
        for _ in range(20):
            await Command("echo 1; echo 2 >&2; exit 1", result="json")(an_execution())
            await Command(["./no-such-program"])(an_execution())
        return open_files() - before

    assert in_loop(body) == 0
