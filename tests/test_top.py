"""`pgfifo top`: what its screens show, what its keys change, and that it is fit for 80 by 24."""

import asyncio
import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pyte
import pytest
from psycopg.conninfo import make_conninfo
from rich.cells import cell_len
from textual.pilot import Pilot

from pgfifo import dsn as dsns
from pgfifo.top import Top
from pgfifo.top.cells import age, fitted, number, rate, short, spark
from pgfifo.top.dialogs import Ask, Confirm, Help
from pgfifo.top.views import Execution, Lane, Lanes, View
from tests.support.cli import CommandLine, program
from tests.support.engine import Engine
from tests.support.proxy import Proxy

Connection = psycopg.Connection[Any]
Scenario = Callable[["Seen"], Awaitable[None]]

NEVER = 3600.0
"""Seconds between two reads, where a test does not want one of itself."""


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


@pytest.fixture
def cli(dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(dsn, monkeypatch, capsys)


class Seen:
    """The running application, as somebody who sits before it has it."""

    def __init__(self, top: Top, pilot: Pilot[None]) -> None:
        self.top = top
        self.pilot = pilot

    @property
    def lines(self) -> list[str]:
        """What is on the screen."""
        strips = self.top.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip).rstrip() for strip in strips]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def line(self, part: str) -> str:
        """Return the first line that has something in it."""
        return next(line for line in self.lines if part in line)

    async def until(self, there: Callable[[], object], what: str) -> None:
        """Wait until something is to be seen."""
        deadline = time.monotonic() + 20
        while not there():
            assert time.monotonic() < deadline, f"waited in vain for {what}; the screen:\n{self.text}"
            await self.pilot.pause(0.01)

    async def shows(self, *parts: str) -> None:
        """Wait until all of these are on the screen."""
        await self.until(lambda: all(part in self.text for part in parts), str(parts))

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def on(self, screen: type[object]) -> None:
        """Wait until such a screen is before one."""
        await self.until(lambda: isinstance(self.top.screen, screen), screen.__name__)

    async def read(self) -> None:
        """Wait for a read that begins now."""
        before = self.top.reads
        self.top.look()
        await self.until(lambda: self.top.reads > before, "a read")
        await self.pilot.pause()


def watch(dsn: str, scenario: Scenario, *, every: float = NEVER, size: tuple[int, int] = (80, 24)) -> None:
    """Run the application and do something before it."""

    async def run() -> None:
        top = Top(dsns.resolve(dsn), every)
        async with top.run_test(size=size) as pilot:
            seen = Seen(top, pilot)
            await seen.until(lambda: top.reads, "the first read")
            await pilot.pause()
            await scenario(seen)
            assert all(cell_len(line) <= top.size.width for line in seen.lines)

    asyncio.run(run())


# What the screens show


def test_actions_are_shown_by_depth_with_slots_wait_rates_and_trend(dsn: str, engine: Engine) -> None:
    engine.policy("deploy", max_concurrent=2)
    engine.enqueue_many("deploy", [{}] * 3)
    engine.enqueue_many("deliver", [{}] * 1200, [str(n % 7) for n in range(1200)])
    engine.policy("idle")
    engine.advance("90 min")
    worker = engine.worker("deploy")
    started = engine.claim(worker, 2, ["deploy"])

    async def look(seen: Seen) -> None:
        await seen.shows("deliver")
        assert [line.split()[0] for line in seen.lines[3:6]] == ["deliver", "deploy", "idle"]
        assert "3 actions  8 lanes  1,201 waiting  2 of 9 slots" in seen.text
        assert seen.line(" deliver").split()[1:6] == ["1,200", "0/7", "1h", "30m", "-"]
        assert seen.line(" deploy").split()[1:3] == ["1", "2/2"]
        engine.hand_in(worker, *started)
        engine.enqueue_many("idle", [{}] * 50)
        engine.advance("10 s")
        await seen.read()
        assert seen.line(" deploy").split()[2] == "0/2"
        come, gone = seen.line(" idle").split()[-3:-1]
        assert 0 < float(come) <= 5
        assert gone == "0"
        assert seen.line(" deploy").split()[-3] == "0"
        assert 0 < float(seen.line(" deploy").split()[-2]) <= 0.2
        assert seen.line(" idle").endswith("▁█")

    watch(dsn, look)


def test_one_gets_from_an_action_to_a_lane_its_line_and_an_execution(dsn: str, engine: Engine) -> None:
    engine.policy("deploy", group_by=["env"])
    worker = engine.worker("deploy")
    prod = engine.enqueue_many("deploy", [{"env": "prod", "n": n} for n in range(4)])
    engine.enqueue("deploy", {"env": "qa"})
    [start] = engine.claim(worker, 1)

    async def look(seen: Seen) -> None:
        await seen.shows("deploy")
        await seen.press("enter")
        await seen.on(Lanes)
        await seen.shows("lanes of deploy", "env=prod", "env=qa")
        assert seen.line("env=prod").split()[-4:-2] == ["3", "1/1"]
        await seen.press("enter")
        await seen.on(Lane)
        await seen.shows("the line of deploy env=prod", "3 waiting · 1 of 1 slot")
        # Why the head waits, and the line in its order: who is active, who is next.
        assert "The only slot of its lane is taken" in seen.text
        table = [line.split() for line in seen.lines if re.match(r" +(slot|\d+) +\d+ ", line)]
        assert [row[:3] for row in table] == [
            ["slot", str(start.id), "running"],
            *([str(place), str(each), "waiting"] for place, each in enumerate(prod[1:], 1)),
        ]
        await seen.press("down", "enter")
        await seen.on(Execution)
        await seen.shows(f"Execution {prod[1]} (deploy env=prod) is waiting", '"n": 1')
        await seen.press("escape")
        await seen.on(Lane)
        await seen.press("escape", "escape")
        await seen.shows("pgfifo top · actions")

    watch(dsn, look)


def test_workers_are_shown_with_what_they_run_and_whether_they_are_silent(dsn: str, engine: Engine) -> None:
    engine.enqueue("deliver", group="ann")
    engine.enqueue("deliver", group="bob")
    silent = engine.worker("deliver", concurrency=3)
    engine.claim(silent, 1, ["deliver"])
    gone = engine.worker("deliver", concurrency=7)
    engine.one("select pgfifo.worker_stop(%s)", gone)
    engine.advance("11 min")
    busy = engine.worker("deliver", concurrency=5)
    [start] = engine.claim(busy, 1, ["deliver"])

    async def look(seen: Seen) -> None:
        await seen.press("3")
        await seen.shows("pgfifo top · workers", "2 alive  2 running of 8")
        assert f"deliver bob #{start.id}" in seen.line(" 1/5 ")
        assert "alive" in seen.line(" 1/5 ")
        assert "silent" in seen.line(" 1/3 ")
        assert "/7 " not in seen.text, "it has been gone for long"
        await seen.press("enter")
        await seen.on(Execution)
        await seen.shows("is running")

    watch(dsn, look)


def test_what_has_finished_in_a_lane_is_shown_and_can_be_tried_again(
    dsn: str, engine: Engine, cli: CommandLine
) -> None:
    engine.policy("deploy", max_attempts=1)
    failed = engine.enqueue()
    worker = engine.worker()
    [start] = engine.claim(worker)
    engine.work(
        worker, 0, finished=[{"id": start.id, "attempt": 1, "outcome": "failed", "error": "no route"}]
    )

    async def look(seen: Seen) -> None:
        await seen.shows("deploy")
        await seen.press("enter")
        await seen.shows("lanes of deploy", "0/1")
        await seen.press("enter")
        await seen.shows("the line of deploy")
        await seen.press("f")
        await seen.shows("what has finished in", "no route")
        await seen.press("t")
        await seen.on(Confirm)
        await seen.press("y")
        await seen.shows("Put back as execution")
        undo = said_undo(seen)
        await seen.press("f")
        await seen.shows("the line of deploy", "1 waiting")
        assert engine.state(failed) == "failed"
        cli.ok(*undo)
        await seen.read()
        await seen.shows("0 waiting")

    watch(dsn, look)


def said_undo(seen: Seen) -> list[str]:
    """Return the command that the message names, without the program's name."""
    return shlex.split(seen.top.said.partition("Undo: ")[2])[1:]


def test_lists_are_filtered_and_sorted(dsn: str, engine: Engine) -> None:
    engine.enqueue_many("alpha", [{}] * 3)
    engine.enqueue("beta.one")
    engine.enqueue_many("beta.two", [{}] * 5, ["x", "x", "y", "z", "z"])

    async def look(seen: Seen) -> None:
        await seen.shows("alpha")
        assert [line.split()[0] for line in seen.lines[3:6]] == ["beta.two", "alpha", "beta.one"]
        for order in ("oldest", "in", "out", "name"):
            await seen.press("s")
            await seen.shows(f"by {order}")
        await seen.until(
            lambda: [line.split()[:1] for line in seen.lines[3:6]] == [["alpha"], ["beta.one"], ["beta.two"]],
            "the order by name",
        )
        await seen.press("slash")
        await seen.on(Ask)
        await seen.press(*"beta", "enter")
        await seen.shows("filter beta")
        await seen.until(lambda: " alpha" not in seen.text, "the filter")
        await seen.press("escape")
        await seen.shows(" alpha")
        await seen.press("2")
        await seen.shows("pgfifo top · lanes")
        await seen.press("slash")
        await seen.on(Ask)
        await seen.press("y", "enter")
        await seen.shows("filter y", "1 lane, with 1 waiting")
        await seen.press("s", "s", "s")
        await seen.shows("by group")

    watch(dsn, look)


def test_an_execution_is_found_by_its_id_and_one_that_is_not_there_is_told(dsn: str, engine: Engine) -> None:
    new = engine.enqueue()

    async def look(seen: Seen) -> None:
        for typed, shown in ((str(new), f"Execution {new} (deploy) is waiting"), ("9" * 9, "there is no")):
            await seen.press("g")
            await seen.on(Ask)
            await seen.press(*typed, "enter")
            await seen.on(Execution)
            await seen.shows(shown)
        await seen.press("escape", "escape")
        await seen.shows("pgfifo top · actions")
        await seen.press("g")
        await seen.on(Ask)
        await seen.press(*str(2**63), "enter")
        await seen.shows("There is no such execution: the largest id is 9223372036854775807.")
        assert not isinstance(seen.top.screen, Execution)

    watch(dsn, look)


def test_an_execution_shows_its_earlier_attempts_in_words(dsn: str, engine: Engine) -> None:
    engine.policy("deploy", backoff_initial=1, backoff_jitter=0)
    new = engine.enqueue()
    worker = engine.worker()
    for error in ("no route", "no answer"):
        [start] = engine.claim(worker)
        engine.hand_in(worker, start, outcome="failed", error=error)
        engine.advance("5 s")
    assert engine.claim(worker)

    async def look(seen: Seen) -> None:
        await seen.press("g")
        await seen.on(Ask)
        await seen.press(*str(new), "enter")
        await seen.shows(f"Execution {new} (deploy) is running")
        said = " ".join(seen.text.split())
        assert re.search(rf"attempts 1 failed at .* on worker {worker}: no route 2 failed at", said)
        assert f"on worker {worker}: no answer" in said

    watch(dsn, look)


# What the keys change


def test_each_change_asks_first_and_says_how_to_undo_it(dsn: str, engine: Engine, cli: CommandLine) -> None:
    first = engine.enqueue("deploy", group="ann")
    engine.enqueue("deploy", group="ann")

    async def confirmed(seen: Seen, *keys: str, said: str, answers: tuple[str, ...] = ()) -> None:
        """Press keys, and give these answers, which are no; then yes, and undo that as the message says."""
        for answer in answers:
            await seen.press(*keys)
            await seen.on(Confirm)
            before = state()
            await seen.press(answer)
            await seen.on(View)
            assert state() == before, f"{answer} is no yes"
        before = state()
        await seen.press(*keys)
        await seen.on(Confirm)
        await seen.press("y")
        await seen.shows(said)
        assert state() != before
        cli.ok(*said_undo(seen))
        assert state() == before

    def state() -> tuple[Any, ...]:
        return (
            engine.rows(
                "select paused from pgfifo.queue_stats union all select paused from pgfifo.lane_stats"
            ),
            engine.effective("deploy")["max_concurrent"],
            engine.effective("deploy", "ann")["max_concurrent"],
        )

    async def look(seen: Seen) -> None:
        await seen.shows("deploy")
        no = ("n", "enter", "escape")
        await confirmed(seen, "p", said="Paused deploy: nothing more starts.", answers=no)
        engine.pause()
        await confirmed(seen, "r", said="Resumed deploy.")
        await seen.press("l")
        await seen.shows("How many slots (max_concurrent) for deploy, in each lane: (now 1)")
        before = state()
        await seen.press("0", "enter")
        await seen.shows("Refused: max_concurrent is 1 to 1,000,000. Nothing is changed.")
        assert state() == before
        await confirmed(seen, "l", "7", "enter", said="deploy has 7 slots in each lane now.")
        engine.resume()
        await seen.press("enter")
        await seen.shows("lanes of deploy", "ann")
        await confirmed(seen, "p", said="Paused deploy ann: nothing more starts.")
        engine.policy("deploy", "ann", max_concurrent=4)
        await confirmed(seen, "l", "5", "enter", said="deploy ann has 5 slots now.")
        await seen.press("enter")
        await seen.shows("the line of deploy ann", f" {first}  waiting")  # there is something to choose now
        await seen.press("c")
        await seen.on(Confirm)
        await seen.press("n")
        assert engine.state(first) == "waiting"
        await seen.press("c")
        await seen.on(Confirm)
        await seen.press("y")
        await seen.shows(f"Cancelled execution {first}.", "1 waiting")
        assert engine.state(first) == "cancelled"
        cli.ok(*said_undo(seen))

    watch(dsn, look)


def test_what_is_refused_is_said_and_the_view_goes_on(dsn: str, engine: Engine, conn: Connection) -> None:
    engine.enqueue("deploy")
    conn.execute("create role onlooker login")
    try:
        conn.execute("select pgfifo.grant_role('observer', 'onlooker')")

        async def look(seen: Seen) -> None:
            await seen.shows("deploy")
            await seen.press("p")
            await seen.on(Confirm)
            await seen.press("y")
            await seen.shows("Refused: permission denied for function pause")
            engine.enqueue("deliver")
            await seen.read()
            await seen.shows("deliver")

        watch(make_conninfo(dsn, user="onlooker"), look)
    finally:
        conn.execute("drop owned by onlooker; drop role onlooker")


# What it does to the server


def test_it_reads_once_in_a_while_and_dialogs_make_it_read_no_more(dsn: str, engine: Engine) -> None:
    engine.enqueue("deploy")

    async def look(seen: Seen) -> None:
        await seen.shows("deploy")
        before = seen.top.reads
        for key, screen in (("question_mark", Help), ("slash", Ask), ("p", Confirm)):
            await seen.press(key)
            await seen.on(screen)
            await seen.press("escape")
            await seen.on(View)
        await seen.press("s", "s")
        await seen.pilot.pause()
        assert seen.top.reads == before
        await seen.press("enter")
        await seen.shows("lanes of deploy", "0/1")  # the heading is there before anything is read
        assert seen.top.reads == before + 1, "what one opens is read at once"

    watch(dsn, look)


def test_each_screen_is_one_statement(dsn: str, engine: Engine, conn: Connection) -> None:
    new = engine.enqueue("deploy", group="ann")
    with tempfile.TemporaryDirectory(prefix="pf") as folder, Proxy(Path(folder), dsn) as proxy:
        asked: list[str] = []

        class Counting:
            """A fault that never strikes, and counts."""

            def strikes(self, statement: str) -> bool:
                asked.append(statement)
                return False

        proxy.faults.append(Counting())  # type: ignore[arg-type]

        async def look(seen: Seen) -> None:
            await seen.shows("deploy")
            for key, shown in (("2", "ann"), ("enter", "the line of"), ("f", "finished"), ("3", "workers")):
                before = seen.top.reads
                asked.clear()
                await seen.press(key)
                await seen.until(lambda: seen.top.reads > before, "a read")  # noqa: B023 - called here
                await seen.shows(shown)
                assert len(asked) == 1, asked
            asked.clear()
            seen.top.push_screen(Execution(new))
            await seen.shows("is waiting, enqueued")
            assert len(asked) == 1, asked

        watch(proxy.dsn, look)


def test_a_lost_connection_is_said_and_it_goes_on_when_it_is_back(dsn: str, engine: Engine) -> None:
    engine.enqueue("deploy")
    with tempfile.TemporaryDirectory(prefix="pf") as folder, Proxy(Path(folder), dsn) as proxy:

        async def look(seen: Seen) -> None:
            await seen.shows("deploy")
            proxy.refuses = True
            proxy.cut_all()
            await seen.shows("No connection since", ", trying again: ", " deploy")
            engine.enqueue("deliver")
            await seen.press("p")
            await seen.on(Confirm)
            await seen.press("y")
            proxy.refuses = False
            await seen.shows("deliver")
            await seen.until(lambda: not seen.top.lost, "the message to go")

        watch(proxy.dsn, look, every=0.05)


def test_a_session_that_the_server_ends_is_replaced(dsn: str, engine: Engine, conn: Connection) -> None:
    engine.enqueue("deploy")

    async def look(seen: Seen) -> None:
        await seen.shows("deploy")
        query = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = %s"
        assert conn.execute(query, ["pgfifo top"]).fetchall() == [(True,)]
        await seen.read()
        await seen.shows("No connection since")
        await seen.read()
        await seen.shows("Connected again.")

    watch(dsn, look)


# What is in names


def test_hostile_names_are_shown_as_text_and_keep_the_columns(dsn: str, engine: Engine) -> None:
    action, group = "[red]@click[/]宽宽宽宽宽宽宽宽宽宽宽宽", "\x1b[2J\x1b[31m[bold]名\u202e\r\n"
    engine.enqueue(action, {"[link=x]": "\x1b]0;title\x07"}, group)
    engine.pause(action)

    async def look(seen: Seen) -> None:
        for keys in ((), ("enter",), ("enter",), ("enter",)):
            await seen.press(*keys)
            await seen.shows("[red]@click[/]宽")
            assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", seen.text)
            assert all(cell_len(line) <= 80 for line in seen.lines)
            for key in ("p", "l"):
                await seen.press(key)
                await seen.until(lambda: not isinstance(seen.top.screen, View), "the question")
                await seen.until(lambda: "[red]@click[/]" in seen.text, "the name in the question")
                await seen.press("escape")
                await seen.on(View)
        assert "\\x1b[2J\\x1b[31m[bold]名" in seen.text
        assert "[link=x]" in seen.text

    watch(dsn, look)


@pytest.mark.parametrize("size", [(40, 10), (200, 60)])
def test_other_sizes_are_used_or_survived(dsn: str, engine: Engine, size: tuple[int, int]) -> None:
    engine.enqueue("a" * 100)

    async def look(seen: Seen) -> None:
        await seen.shows("aaaa")
        if size[0] == 200:
            assert "a" * 100 in seen.text
        await seen.pilot.resize_terminal(80, 24)
        await seen.shows("aaaa", "trend")

    watch(dsn, look, size=size)


def test_values_are_shown_in_few_characters() -> None:
    assert [short(each) for each in (0, 9_999, 10_000, 123_456, 2_000_000)] == [
        "0",
        "9999",
        "10k",
        "123k",
        "2M",
    ]
    assert number(12_345_678).plain == "12.35M"
    assert number(None).plain == "-"
    assert [rate(each).plain for each in (None, 0.0, 0.123, 5.0, 1234.5)] == ["-", "0", "0.12", "5", "1234"]
    assert spark([0, 0], 8) == "▁▁"
    assert spark([1, 4, 8], 2) == "▅█"
    assert cell_len(fitted("宽宽宽", 4)) == 4
    assert age(None, None) == "-"  # type: ignore[arg-type]  # there is no time to compare


# The command, in a real terminal


class Terminal:
    """A program in a terminal of 80 by 24, and what is on its screen."""

    def __init__(self, *words: str, env: dict[str, str]) -> None:
        self.screen = pyte.Screen(80, 24)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._fd, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [program(), *words],
            stdin=side,
            stdout=side,
            stderr=side,
            env=os.environ | env,
            start_new_session=True,
        )
        os.close(side)

    def press(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, *parts: str) -> None:
        """Take in what it prints until all of these are on the screen."""
        deadline = time.monotonic() + 60
        while not all(part in "\n".join(self.screen.display) for part in parts):
            assert time.monotonic() < deadline, "\n".join(self.screen.display)
            self._take()

    def _take(self) -> bool:
        if not select.select([self._fd], [], [], 0.1)[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # whoever had the other side has gone
            return False
        self.raw += data
        # Private modes that pyte has no notion of, such as synchronised output, are no text.
        self._stream.feed(re.sub(rb"\x1b\[[<>=?][0-9;]*[a-zA-Z$]*[p-z]", b"", data))
        return bool(data)

    def end(self) -> int:
        """Take in the rest, and return the exit code."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            self._take()
        while self._take():
            pass
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._fd)


@contextmanager
def terminal(*words: str, **env: str) -> Iterator[Terminal]:
    running = Terminal(*words, env={"TERM": "xterm-256color", **env})
    try:
        yield running
    finally:
        running.close()


def test_in_a_real_terminal_of_80_by_24_it_is_drawn_and_gives_the_terminal_back(
    dsn: str, engine: Engine
) -> None:
    engine.enqueue_many("deploy", [{"n": n} for n in range(3)], ["prod", "prod", "qa"])
    with terminal("top", PGFIFO_DSN=dsn) as seen:
        seen.until("pgfifo top · actions", "deploy", "trend", "? help")
        assert seen.screen.display[-1].startswith(" Enter lanes")
        seen.press("\r")
        seen.until("lanes of deploy", "prod", "qa")
        seen.press("\r")
        seen.until("the line of deploy prod", "No living worker serves deploy")
        seen.press("p")
        seen.until("Pause deploy prod?")
        seen.press("y")
        seen.until("Paused deploy prod: nothing more starts. Undo:")
        assert engine.lane("deploy", "prod")["paused"] is True
        seen.press("q")
        assert seen.end() == 0
        assert b"\x1b[?1049l" in seen.raw, "the screen that was there before is back"
    for end, code in (("\x03", 130), (None, 143)):
        with terminal("top", PGFIFO_DSN=dsn) as seen:
            seen.until("deploy")
            if end is None:
                seen.process.send_signal(signal.SIGTERM)
            else:
                seen.press(end)
            assert seen.end() == code
            assert b"\x1b[?1049l" in seen.raw


def test_what_is_wrong_is_said_before_the_screen_is_taken(empty_dsn: str, dsn: str) -> None:
    for env, code, words in (
        ({"PGFIFO_DSN": empty_dsn}, 4, "is not installed"),
        ({"PGFIFO_DSN": "postgresql:///x?host=/nowhere"}, 3, "connection"),
        ({"PGFIFO_DSN": dsn, "TERM": "dumb"}, 1, "top needs a terminal"),
    ):
        with terminal("top", **env) as seen:
            assert seen.end() == code
            assert b"\x1b[?1049h" not in seen.raw
            assert words in " ".join("".join(seen.screen.display).split())


def test_it_is_for_terminals_and_says_what_is_for_scripts(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = cli("top")
    assert said.code == 1
    assert said.err.startswith("Error: top needs a terminal, and this is none\n")
    assert "stats --json" in said.err
    for option in ("--once", "--json"):
        said = cli("top", option)
        assert said.code == 2
        assert "stats" in said.err
    assert cli("top", "--every", "1s").code == 2
    monkeypatch.setattr("pgfifo.cli.top._is_terminal", lambda: True)
    for name in [each for each in sys.modules if each.partition(".")[0] == "textual" or "pgfifo.top" in each]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "textual", None)
    said = cli("top")
    assert said.code == 1
    assert "pip install 'pgfifo[top]'" in said.err
