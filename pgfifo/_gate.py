"""Let so many in at once and the others wait: for threads, and for the tasks of an event loop."""

from __future__ import annotations

import asyncio
import threading


class Gate:
    """A gate for threads."""

    def __init__(self, size: int) -> None:
        self._room = threading.Semaphore(size)

    def enter(self, timeout: float) -> bool:
        """Go in, or say after so many seconds that there was no room."""
        return self._room.acquire(timeout=timeout)

    def leave(self) -> None:
        """Come out."""
        self._room.release()


class AsyncGate:
    """A gate for the tasks of one event loop; in a new loop it is a new gate."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room = asyncio.Semaphore(size)

    async def enter(self, timeout: float) -> bool:  # noqa: ASYNC109 - the answer to a timeout is False here
        """Go in, or say after so many seconds that there was no room."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._room = loop, asyncio.Semaphore(self._size)
        if not self._room.locked():
            return await self._room.acquire()
        try:
            async with asyncio.timeout(timeout):
                return await self._room.acquire()
        except TimeoutError:
            return False

    def leave(self) -> None:
        """Come out."""
        self._room.release()
