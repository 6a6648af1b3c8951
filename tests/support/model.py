"""What the queue ought to do, in plain Python: a line, its slots, its counters; and handlers' journals.

Nothing here asks the database. What is on record is judged by `pgfifo.verify`.
"""

import bisect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Line:
    """One lane: who waits, in order of tickets; who is active; what has become of the others."""

    limit: int = 1
    waiting: list[int] = field(default_factory=list)
    running: set[int] = field(default_factory=set)
    held: set[int] = field(default_factory=set)
    enqueued: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0

    def enqueue(self, *ids: int) -> None:
        """Put executions at the end; each must be younger than all that came before."""
        for new in ids:
            assert not self.waiting or new > self.waiting[-1], f"{new} joined behind {self.waiting[-1]}"
            self.waiting.append(new)
            self.enqueued += 1

    def next_ones(self, at_most: int) -> list[int]:
        """Say which executions a claim must start now."""
        return self.waiting[: max(0, min(at_most, self.limit - len(self.running) - len(self.held)))]

    def start(self, started: int) -> None:
        """Record a start; it must be the one whose turn it is, and a slot must be free."""
        if started in self.held:
            self.held.remove(started)
        else:
            assert self.waiting, f"{started} was started and nothing waited"
            assert started == self.waiting[0], f"{started} was started while {self.waiting[0]} was next"
            assert len(self.running) + len(self.held) < self.limit, f"{started} took a slot that there is not"
            self.waiting.pop(0)
        self.running.add(started)

    def succeed(self, ended: int) -> None:
        """Record a success."""
        self.running.remove(ended)
        self.succeeded += 1

    def hold(self, failed: int) -> None:
        """Record a failure that keeps its slot for another attempt."""
        self.running.remove(failed)
        self.held.add(failed)

    def fail(self, ended: int) -> None:
        """Record the last failure."""
        self.running.remove(ended)
        self.failed += 1

    def release(self, returned: int) -> None:
        """Put a running execution back to its place."""
        self.running.remove(returned)
        bisect.insort(self.waiting, returned)

    def cancel(self, ended: int) -> None:
        """Take an execution out that waits or is held."""
        if ended in self.held:
            self.held.remove(ended)
        else:
            self.waiting.remove(ended)
        self.cancelled += 1

    def numbers(self) -> dict[str, int]:
        """Return the statistics, under their names in the views."""
        return {
            "queue_length": len(self.waiting),
            "active_count": len(self.running) + len(self.held),
            "running_count": len(self.running),
            "held_count": len(self.held),
            "max_concurrent": self.limit,
            "total_enqueued": self.enqueued,
            "total_completed": self.succeeded + self.failed + self.cancelled,
            "total_succeeded": self.succeeded,
            "total_failed": self.failed,
            "total_cancelled": self.cancelled,
        }


class Journal:
    """What handlers write down when they begin and end, in the order in which they do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: dict[str, set[int]] = {}
        self.begun: dict[str, list[int]] = {}
        self.ended: dict[str, list[int]] = {}
        self.most: dict[str, int] = {}
        """The most that were active at once, per lane."""

    def begin(self, lane: str, *ids: int) -> None:
        """Write down a begin: after its claim was answered."""
        with self._lock:
            active = self._active.setdefault(lane, set())
            for new in ids:
                assert new not in active, f"{new} runs twice at once"
                active.add(new)
                self.begun.setdefault(lane, []).append(new)
            self.most[lane] = max(self.most.get(lane, 0), len(active))

    def end(self, lane: str, *ids: int) -> None:
        """Write down an end: before it is handed back."""
        with self._lock:
            for old in ids:
                self._active[lane].remove(old)
                self.ended.setdefault(lane, []).append(old)


class Gate:
    """Lets many act at a time, or one look while nobody acts."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._acting = 0
        self._looking = False

    @contextmanager
    def act(self) -> Iterator[None]:
        """Act, together with others, while nobody looks."""
        with self._changed:
            self._changed.wait_for(lambda: not self._looking)
            self._acting += 1
        try:
            yield
        finally:
            with self._changed:
                self._acting -= 1
                self._changed.notify_all()

    @contextmanager
    def look(self) -> Iterator[None]:
        """Look, while nobody acts."""
        with self._changed:
            self._changed.wait_for(lambda: not self._looking)
            self._looking = True
            self._changed.wait_for(lambda: self._acting == 0)
        try:
            yield
        finally:
            with self._changed:
                self._looking = False
                self._changed.notify_all()
