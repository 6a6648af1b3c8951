"""Threads for synchronous handlers.

Not concurrent.futures: its threads hold up the end of the interpreter until the last handler has returned.
Here the process may end first; then whoever notices gives their executions back.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable


class Threads:
    """At most so many threads, started when they are needed and kept."""

    def __init__(self, size: int, name: str) -> None:
        """Prepare them; none is started yet.

        Args:
            size: The most that there will be.
            name: What they are called, with a number behind it.
        """
        self._size = size
        self._name = name
        self._jobs: queue.SimpleQueue[tuple[contextvars.Context, Callable[[], None]] | None] = (
            queue.SimpleQueue()
        )
        self._idle = threading.Semaphore(0)
        self._started = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run a function, which raises nothing, in a thread, with the caller's context variables."""
        self._jobs.put((contextvars.copy_context(), job))
        if not self._idle.acquire(blocking=False) and self._started < self._size:
            self._started += 1
            threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()

    def close(self) -> None:
        """Let the threads go, each when it is done; does not wait for them."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _serve(self) -> None:
        while (given := self._jobs.get()) is not None:
            context, job = given
            context.run(job)
            del given, context, job  # an idle thread keeps nothing alive
            self._idle.release()
