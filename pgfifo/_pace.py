"""When a worker looks for work: at once, when called, when something is due, or at its poll."""

from __future__ import annotations

import random
from collections.abc import Callable

SOON = 0.02
"""Seconds after which lanes that were locked are tried again, at first."""
LONGEST_SOON = 0.25
"""And at the most."""


class Pace:
    """Decides when to look next; times are the clock's."""

    def __init__(self, poll_interval: float, clock: Callable[[], float]) -> None:
        """Begin with a look at once.

        Args:
            poll_interval: Seconds between looks while there is no other reason for one.
            clock: The time in seconds, as the event loop counts it.
        """
        self.at = 0.0
        self._poll_interval = poll_interval
        self._clock = clock
        self._at_once = True
        self._called = False  # somebody says that there is work
        self._heeded = False  # the look that is under way is because of that
        self._vain = 0  # how often in a row it was gone before we came
        self._locked = 0  # how often in a row lanes were locked

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return self._at_once or self._clock() >= self.at

    def at_once(self) -> None:
        """Look as soon as there is room."""
        self._at_once = True

    def call(self) -> None:
        """Take note that somebody says there is work."""
        self._called = True
        self.at = min(self.at, self._clock() + self._haste())

    def begin(self) -> None:
        """Take note that a look begins. Calls that come while it is under way ask for another one."""
        self._at_once = False
        self._heeded, self._called = self._called, False

    def end(self, room: int, found: int, status: str, seconds: float) -> None:
        """Plan the next look.

        Args:
            room: How many executions there was room for.
            found: How many were found.
            status: What the server says about the next look: now, soon, later, or nothing.
            seconds: In how many seconds, for later.
        """
        if room > 0:
            self._vain = min(self._vain + 1, 20) if self._heeded and not found else 0
        self._locked = min(self._locked + 1, 20) if status == "soon" and not found else 0
        if status == "now" or (found and found >= room):
            self._at_once = True
        wait = self._poll_interval * random.uniform(0.9, 1.1)  # noqa: S311 - nobody's secret
        if status == "soon":
            wait = min(wait, SOON * 1.5**self._locked, LONGEST_SOON)
        elif status == "later":
            wait = min(wait, max(seconds, 0.001))
        if self._called:
            wait = min(wait, self._haste())
        self.at = self._clock() + wait

    def _haste(self) -> float:
        """Return in how many seconds to come when called: later where it was always gone before we came."""
        return 0.0 if self._vain < 3 else min(0.001 * 2.0**self._vain, LONGEST_SOON)
