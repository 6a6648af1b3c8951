"""A bar that shows how far it has come, on a terminal; elsewhere, nothing."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from pgfifo.jsonlines import Lines


class Shower:
    """Shows how far it has come, stage after stage; this one to nobody."""

    def next(self, stage: str, size: int | None) -> None:
        """Begin a stage.

        Args:
            stage: what is done in it.
            size: how much there is to do; None if nobody knows.
        """

    def count(self, done: int, text: str) -> None:
        """Show how much is done, and say it in a text."""

    def step(self, lines: "Lines") -> None:
        """Show how far a file has come, of so many bytes."""
        self.count(lines.offset, f"{lines.number:,} lines")


class _Bar(Shower):
    """Shows it in a bar."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def next(self, stage: str, size: int | None) -> None:
        """Begin a stage with a bar of its own."""
        self._task = self._progress.add_task(stage, total=size, text="")

    def count(self, done: int, text: str) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, text=text)


@contextmanager
def shown() -> Iterator[Shower]:
    """Show progress on stderr for the length of the block."""
    if not sys.stderr.isatty():
        yield Shower()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=8) as progress:
        yield _Bar(progress)
