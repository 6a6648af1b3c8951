"""Calls an application's hooks, beside the work and after the fact: nothing they do changes an outcome."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pgfifo._around import Hook, called
from pgfifo._threads import Threads

if TYPE_CHECKING:
    from pgfifo._run import Run

logger = logging.getLogger("pgfifo")

_THREADS = 4


class Hooks:
    """The hooks of a worker that are under way."""

    def __init__(self, name: str) -> None:
        """Prepare it.

        Args:
            name: What its threads are called.
        """
        self._threads = Threads(_THREADS, f"{name}-hooks")
        self._tasks: set[asyncio.Task[None]] = set()

    def call(self, run: Run, hooks: Iterable[Hook], error: BaseException) -> None:
        """Call hooks, one after the other; returns at once."""
        task = asyncio.get_running_loop().create_task(self._call_each(run, list(hooks), error))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, patience: float) -> None:
        """Wait so many seconds for those that are under way, then leave them."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)
        if self._tasks:
            logger.warning("%d hooks had not ended %g s after the work", len(self._tasks), patience)
        for task in self._tasks:
            task.cancel()
        self._threads.close()

    async def _call_each(self, run: Run, hooks: list[Hook], error: BaseException) -> None:
        for hook in hooks:
            result = await self._in_thread(hook, run, error)
            if not inspect.isawaitable(result):
                continue
            try:
                await result
            except BaseException as raised:  # SystemExit of a hook is its failure, not our end
                task = asyncio.current_task()
                if isinstance(raised, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                _log(hook, run, raised)

    async def _in_thread(self, hook: Hook, run: Run, error: BaseException) -> object:
        """Call a hook in a thread; a coroutine function only makes its coroutine there."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[object] = loop.create_future()

        def settle(result: object) -> None:
            if not answer.done():
                answer.set_result(result)

        def job() -> None:
            result: object = None
            try:
                result = hook(run.execution, error)
            except BaseException as raised:  # noqa: BLE001 - as above
                _log(hook, run, raised)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, result)

        self._threads.submit(job)
        return await answer


def _log(hook: Hook, run: Run, error: BaseException) -> None:
    said = "the hook %s raised, after execution %s"
    logger.error(said, called(hook), run.execution.id, exc_info=error, extra=run.ids())
