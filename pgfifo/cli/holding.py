"""Slots in the shell: hold one while a command runs, and see who holds them."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import address, command, connected
from pgfifo.cli.exits import TIMED_OUT, Refused, explained, usage
from pgfifo.cli.options import LOOK, WORK, Action, AnyAction, AsJson, Dsn, Group, duration, group_of
from pgfifo.cli.output import note, print_json_rows, print_table, span

if TYPE_CHECKING:
    from pgfifo.dsn import Dsn as Found
    from pgfifo.slots_async import AsyncSlot

_PATIENCE = 1.0
"""After so many seconds of waiting we say what we wait for."""
_POSIX = {name: getattr(signal, name) for name in dir(signal) if name.startswith("SIG")}
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_PASSED_ON = [_POSIX[name] for name in _NAMES if name in _POSIX]
_ENDING = {_POSIX.get("SIGTERM"), _POSIX.get("SIGHUP")}
_STOPPING = _POSIX.get("SIGTSTP")


@app.command(rich_help_panel=WORK)
def run(
    action: Action,
    words: Annotated[
        list[str],
        typer.Argument(metavar="-- COMMAND...", help="The command, behind two dashes.", show_default=False),
    ],
    group: Group = None,
    timeout: Annotated[
        float | None, duration("--timeout", "How long to wait for the slot. [default: no limit]")
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait: exit with 5 if no slot is free.")
    ] = False,
    shell: Annotated[
        bool,
        typer.Option("--shell", help="The command is one line of shell, not a program and its arguments."),
    ] = False,
    kill_after: Annotated[
        float, duration("--kill-after", "From SIGTERM to SIGKILL when it is to stop. [default: 10s]")
    ] = 10.0,
    poll_only: Annotated[
        bool, typer.Option("--poll-only", help="Only poll: for a PgBouncer in transaction mode.")
    ] = False,
    dsn: Dsn = None,
) -> None:
    """Run a command while holding a slot of a lane: a lock, in the order of the line.

    It waits in the lane's line among workers' executions and others who run this, and needs no worker. The
    command has this process's standard streams and environment, and PGFIFO_ID, PGFIFO_ATTEMPT, PGFIFO_TOKEN,
    PGFIFO_ACTION and PGFIFO_GROUP. Signals are passed on to it. When this process is killed it is killed,
    too, and the slot goes to the next one; when the slot is lost, or somebody cancels it, it is stopped. It
    may say how far it is: echo 40% uploading >&$PGFIFO_PROGRESS_FD

    The command's exit status is the exit status here, unchanged; 128 and the signal's number, as in a shell,
    when a signal ended it. If it was never run, or its slot was lost, an error on stderr says so, and the
    exit code is one of pgfifo's own.
    """
    from pgfifo.command import missing

    if shell and len(words) != 1:
        raise usage("--shell takes one line of shell", "Put it into quotes: --shell -- 'pg_dump … | gzip …'")
    if no_wait and timeout is not None:
        raise usage("--no-wait and --timeout exclude each other")
    if os.name != "posix":
        raise usage("commands need a POSIX system")
    argv = ["/bin/sh", "-c", words[0]] if shell else words
    if problem := missing(argv[0]):
        raise usage(problem)
    wanted: dict[str, Any] = {"group": group_of(group)} | ({} if no_wait else {"timeout": timeout})
    with address(dsn) as found:
        code = asyncio.run(
            _Runner(argv, kill_after).run(
                found, action, group or [], wanted, no_wait=no_wait, poll_only=poll_only
            )
        )
    raise typer.Exit(code)


@app.command(rich_help_panel=LOOK)
def slots(action: AnyAction = None, group: Group = None, json: AsJson = False, dsn: Dsn = None) -> None:
    """Show who holds slots, workers and programs alike, and which programs wait for one."""
    from pgfifo.groups import lane

    with connected(dsn) as fifo:
        found = fifo.slots(action, group=group_of(group))
    if json:
        print_json_rows(map(asdict, found))
        return
    now = datetime.now(UTC)
    lines = [
        {
            "lane": lane(each.action, each.group_text),
            "state": each.state,
            "for": span(max(0.0, (now - each.since).total_seconds())),
            "id": each.id,
            "by": "program" if each.is_slot else "worker",
            "holder": each.holder,
            "pid": each.pid,
            "last_seen": None
            if each.last_seen is None
            else span(max(0.0, (now - each.last_seen).total_seconds())) + " ago",
        }
        for each in found
    ]
    print_table(lines, "Nobody holds a slot or waits for one.", wide=["lane", "holder"])


class _Runner:
    """Waits for the slot, and runs the command in it."""

    def __init__(self, argv: list[str], kill_after: float) -> None:
        self._argv = argv
        self._kill_after = kill_after
        self._told: int | None = None
        self._send: Callable[[int], None] | None = None

    async def run(
        self,
        found: "Found",
        action: str,
        group: Sequence[str],
        wanted: Mapping[str, Any],
        *,
        no_wait: bool,
        poll_only: bool,
    ) -> int:
        """Return the exit status."""
        from pgfifo.client_async import AsyncClient
        from pgfifo.command import kept
        from pgfifo.groups import lane

        options: dict[str, Any] = {"prepare_threshold": None} if poll_only else {}
        loop = asyncio.get_running_loop()
        name = lane(action, ",".join(group))
        holders = [word for pair in group for word in ("--group", pair)]
        who = f"{command('slots', action, *holders)} shows who holds them."
        said = f"Waiting for a slot of {name}; {who}"
        patience = loop.call_later(_PATIENCE, note, said)
        async with AsyncClient(found, **options) as fifo:
            with self._signals(loop), kept():
                try:
                    slot = await fifo.try_slot(action, **wanted) if no_wait else fifo.slot(action, **wanted)
                    if slot is None:
                        raise Refused(
                            f"no slot of {name} is free",
                            who,
                            code=TIMED_OUT,
                        )
                    async with slot:
                        patience.cancel()
                        return await self._work(slot)
                except asyncio.CancelledError:
                    if self._told is None:
                        raise
                    name = signal.Signals(self._told).name
                    raise Refused(f"ended by {name}", code=128 + self._told) from None
                finally:
                    patience.cancel()

    async def _work(self, slot: "AsyncSlot") -> int:
        """Run the command; its slot is held."""
        import psycopg

        from pgfifo.command import how, run_in_place

        cancelled, status = await run_in_place(
            self._argv, _environment(slot), slot, kill_after=self._kill_after, started=self._started
        )
        self._send = None  # a signal now is for us: the server may be away, and we wait for it to tell it
        if cancelled and status != 0:
            raise asyncio.CancelledError  # it was stopped because the slot was lost, or somebody asked for it
        if status == 0:
            return 0  # if the slot was lost meanwhile, leaving it says so
        said = status if isinstance(status, str) else how(status)
        try:
            await slot.release(error=said)
        except psycopg.Error as error:
            # What went wrong with the command says more.
            note(str(explained(error)))
        if isinstance(status, str):
            raise Refused(status)
        return status if status > 0 else 128 - status

    def _started(self, send: Callable[[int], None]) -> None:
        self._send = send

    @contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Pass signals on to the command; before it was started they end the wait."""
        task = asyncio.current_task()

        def handle(number: int) -> None:
            self._told = number
            if self._send is None:
                if task is not None:
                    task.cancel()
                return
            self._send(number)
            if number in _ENDING:
                loop.call_later(self._kill_after, self._send, signal.SIGKILL)

        # What is ignored, as nohup has it, stays ignored, here and there.
        numbers = [number for number in _PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]
        for number in numbers:
            loop.add_signal_handler(number, handle, number)
        if _STOPPING is not None:
            numbers.append(_STOPPING)
            loop.add_signal_handler(_STOPPING, note, "Ctrl-Z is of no use here: who stops loses the slot.")
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def _environment(slot: "AsyncSlot") -> dict[str, str]:
    """Return this process's environment, and what says which slot it is."""
    return {
        **os.environ,
        "PGFIFO_ID": str(slot.id),
        "PGFIFO_ATTEMPT": str(slot.attempt),
        "PGFIFO_TOKEN": slot.token,
        "PGFIFO_ACTION": slot.action,
        "PGFIFO_GROUP": slot.group_text,
        "PGFIFO_PROGRESS_FD": "3",
    }
