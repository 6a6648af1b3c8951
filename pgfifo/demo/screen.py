"""Show the demo: a live picture on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pgfifo.verify.history import Check

_EVERY = 1.0
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane as it stands: its action, its group as people read it, and its numbers."""

    action: str
    group: str
    active: int
    slots: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as it stands: what it is doing, how many it runs, and how many it has done."""

    name: str
    state: str
    running: int
    done: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How the whole stands, so many seconds after the beginning."""

    seconds: float
    total: int
    enqueued: int
    finished: int
    rate: float
    lanes: Sequence[Lane]
    workers: Sequence[Worker]


class Screen:
    """Where the demo is shown."""

    lanes = 10
    """How many lanes there is room for."""

    def __init__(self, console: Console | None = None) -> None:
        """Choose the console; stdout unless told otherwise."""
        self._console = console or Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self._live: Live | None = None
        self._last = 0.0

    def say(self, text: str) -> None:
        """Say what happens."""
        self._console.print(Text(text))

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show pictures for the length of the block, in one place where that is possible."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=8, transient=False) as self._live:
            yield
        self._live = None

    def show(self, now: Snapshot) -> None:
        """Show how it stands."""
        if self._live is not None:
            self._live.update(_picture(now))
        elif now.seconds - self._last >= _EVERY:
            self._last = now.seconds
            active = sum(worker.running for worker in now.workers)
            self.say(
                f"{now.seconds:5.1f} s  enqueued {now.enqueued:5,}  finished {now.finished:5,}"
                f"  active {active:3}  {now.rate:5,.0f}/s"
            )

    def judge(self, checks: "Sequence[Check]") -> None:
        """Show the verdict."""
        for check in checks:
            mark, style = ("✓", "green") if check.holds else ("✗", "bold red")
            line = Text.assemble((f"{mark} ", style), (check.name, "bold"))
            self._console.print(line + Text(f": {check.seen}" if check.holds else ""))
            for finding in check.findings[:_SHOWN]:
                self._console.print(Text(f"    {finding}", "red"))
            if len(check.findings) > _SHOWN:
                self._console.print(Text(f"    … and {len(check.findings) - _SHOWN:,} more", "red"))


def _picture(now: Snapshot) -> RenderableType:
    """Return the whole as a picture."""
    progress = Table.grid(padding=(0, 2))
    for name, count in (("enqueued", now.enqueued), ("finished", now.finished)):
        progress.add_row(name, ProgressBar(now.total, count, width=40), f"{count:,} of {now.total:,}")
    rate = Text(f"{now.seconds:.0f} s, {now.rate:,.0f} executions a second", "dim")
    lanes = Table(title="the busiest lanes", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("action", "customer"):
        lanes.add_column(heading)
    lanes.add_column("active")
    lanes.add_column("waiting")
    for lane in now.lanes:
        slots = "●" * lane.active + "○" * (lane.slots - lane.active)
        line = "▪" * min(lane.waiting, 30) + (f" {lane.waiting}" if lane.waiting else "")
        lanes.add_row(
            lane.action, lane.group.removeprefix("customer="), Text(slots, "green"), Text(line, "yellow")
        )
    workers = Table(title="the workers", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("worker", "", "running", "done"):
        workers.add_column(heading, justify="right" if heading in ("running", "done") else "left")
    for worker in now.workers:
        style = "red" if worker.state == "killed" else "green"
        workers.add_row(worker.name, Text(worker.state, style), str(worker.running), f"{worker.done:,}")
    return Group(progress, rate, Text(), lanes, Text(), workers)
