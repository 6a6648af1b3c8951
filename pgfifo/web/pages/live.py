"""Live pages: what one shows is rendered once per interval, for all who look at it, and sent if it changed.

A page that nobody looks at costs nothing: it is rendered by a task that begins with the first viewer and ends
with the last. The next time is put off where a page takes long: it takes a tenth of the time at most.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from pgfifo.web.problems import problem_of

Render = Callable[[], Awaitable[str]]
"""Returns what a page shows now."""

INTERVAL = 2.0
"""How many seconds pass between two looks at the database for a page, at least."""
_SHARE = 10
_SILENCE = 15.0
_LONGEST = 3600.0
MOST_PAGES = 100
"""How many pages are kept live at once."""

# Ages go on by themselves on the page: that they have is no news.
_AGES = re.compile(r"(<time [^>]*>)[^<]*")


@dataclass(eq=False)
class _Topic:
    """A page that somebody looks at."""

    render: Render
    viewers: set[asyncio.Queue[tuple[str, str] | None]] = field(default_factory=set)
    latest: tuple[str, str] | None = None
    """What was sent last: its version and itself; an empty version where the database is away."""
    task: asyncio.Task[None] | None = None


class Hub:
    """All live pages of an application.

    Attributes:
        interval: How many seconds pass between two looks, at least.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self.interval = interval
        self._topics: dict[str, _Topic] = {}
        self._closed = False

    @property
    def pages(self) -> int:
        """How many pages are live."""
        return len(self._topics)

    def full(self, key: str) -> bool:
        """Tell whether there is no place for one more page."""
        return key not in self._topics and len(self._topics) >= MOST_PAGES

    def close(self) -> None:
        """End all streams, and take no more: the server is about to end."""
        self._closed = True
        for topic in self._topics.values():
            for queue in topic.viewers:
                _put(queue, None)

    async def follow(self, key: str, render: Render, seen: str | None = None) -> AsyncIterator[str]:
        """Yield the events of a page, as Server-Sent Events have them.

        Args:
            key: Which page it is: viewers of one with the same key share what is rendered.
            render: Renders it.
            seen: The version that the viewer has.
        """
        topic = self._topics.setdefault(key, _Topic(render))
        queue: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue(1)
        topic.viewers.add(queue)
        if topic.latest is not None:
            queue.put_nowait(topic.latest)
        if topic.task is None:
            topic.task = asyncio.create_task(self._run(topic))
        ends = asyncio.get_running_loop().time() + _LONGEST
        try:
            yield "retry: 2000\n\n"
            while not self._closed and asyncio.get_running_loop().time() < ends:
                try:
                    async with asyncio.timeout(_SILENCE):
                        news = await queue.get()
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if news is None:
                    return
                version, shown = news
                if version != seen:
                    yield _event(version, shown)
                    seen = version
        finally:
            topic.viewers.discard(queue)
            if not topic.viewers:
                self._topics.pop(key, None)
                if topic.task is not None:
                    topic.task.cancel()

    async def _run(self, topic: _Topic) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            topic.latest = await _rendered(topic.render)
            for queue in topic.viewers:
                _put(queue, topic.latest)
            took = loop.time() - began
            await asyncio.sleep(max(self.interval - took, took * (_SHARE - 1)))


def _put(queue: asyncio.Queue[tuple[str, str] | None], news: tuple[str, str] | None) -> None:
    if queue.full():  # somebody slow: what he has not taken yet is old
        queue.get_nowait()
    queue.put_nowait(news)


async def _rendered(render: Render) -> tuple[str, str]:
    """Return a page and its version; where it cannot be had, why."""
    try:
        shown = await render()
    except Exception as error:  # noqa: BLE001 - whatever it is, the page goes on; problem_of logs it
        return "", problem_of(error).detail
    return hashlib.sha256(_AGES.sub(r"\1", shown).encode()).hexdigest()[:16], shown


def _event(version: str, shown: str) -> str:
    lines = "".join(f"data: {line}\n" for line in re.split(r"\r\n|\n|\r", shown))
    return f"event: {'page' if version else 'away'}\nid: {version}\n{lines}\n"
