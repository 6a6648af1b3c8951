"""How whoever waits for a slot is called, and whoever holds one is interrupted: a thread, or a task."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class Bell:
    """For a thread. It can be called while it waits; what it does in the slot cannot be interrupted."""

    def __init__(self) -> None:
        self.who: object = threading.current_thread()
        self._rung = threading.Event()

    def ring(self) -> None:
        """Call whoever waits, or will; from any thread."""
        self._rung.set()

    def wait(self, longest: float) -> None:
        """Wait to be called, at most so many seconds."""
        self._rung.wait(longest)
        self._rung.clear()

    def begin(self) -> None:
        """Take note that what is done in the slot begins."""

    def interrupt(self) -> None:
        """Interrupt what is done in the slot."""

    def end(self, _error: BaseException | None) -> bool:
        """Take note that it has ended with this error; return whether that was the interruption."""
        return False


class AsyncBell:
    """For a task."""

    def __init__(self) -> None:
        self.who: object = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._interrupted = False

    def ring(self) -> None:
        """Call whoever waits, or will; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._rung.set)

    async def wait(self, longest: float) -> None:
        """Wait to be called, at most so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest):
                await self._rung.wait()
        self._rung.clear()

    def begin(self) -> None:
        """Take note that what is done in the slot begins, in the current task."""
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0

    def interrupt(self) -> None:
        """Cancel what is done in the slot; from any thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None and not self._interrupted:
            self._interrupted = True
            self._task.cancel()

    def end(self, error: BaseException | None) -> bool:
        """Take note that it has ended with this error; return whether that was the interruption."""
        task, self._task = self._task, None
        if task is None or not self._interrupted:
            return False
        # As asyncio.timeout has it: should somebody else have cancelled the task too, that is his.
        return task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError)


def is_cancel(error: BaseException | None) -> bool:
    """Return whether it is the end of what was cancelled, and not a failure."""
    return isinstance(error, asyncio.CancelledError)


def result(coming: Future[T]) -> T:
    """Wait for what another thread is about to have."""
    return coming.result()


async def result_async(coming: Future[T]) -> T:
    """Wait for what a thread is about to have; others may wait for it, too."""
    return await asyncio.shield(asyncio.wrap_future(coming))


def apart(function: Callable[[], None]) -> None:
    """Call what takes a moment."""
    function()


async def apart_async(function: Callable[[], None]) -> None:
    """Call what takes a moment, where the event loop does not wait for it."""
    await asyncio.to_thread(function)
