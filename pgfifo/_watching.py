"""What a worker tells whoever measures it, and says of its own health."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from pgfifo._run import Run
    from pgfifo._together import Together

Health = Literal["stopped", "ready", "live", "stuck"]
"""How a worker is.

``ready``: it is registered, is heard by the server, and claims. ``live``: it goes on, but is not settled yet,
has lost its connection for longer than its lease, or is about to stop. ``stuck``: its event loop or its
heartbeat has not gone on for the length of a lease. ``stopped``: it does not run.
"""

LEAST_PATIENCE = 30.0
"""Seconds for which the loop and the heartbeat may stand still at least, where the lease is shorter."""


class Watch(Protocol):
    """Measures a worker. Its methods are called as it goes: they take no time, and raise nothing."""

    def begin(self, concurrency: int) -> None:
        """Take note that a worker begins, and how many it may run at once."""

    def end(self, concurrency: int) -> None:
        """Take note that it has ended."""

    def called(self, seconds: float) -> None:
        """Take note of how long a call took that hands in and claims."""

    def started(self, run: Run | Together) -> None:
        """Take note of a start, or of that of a batch."""

    def ran(self, action: str, seconds: float) -> None:
        """Take note of how long a handler ran; in the handler's thread."""

    def ended(self, action: str) -> None:
        """Take note that a handler has ended, or was not called after all."""

    def finished(self, action: str, outcome: str) -> None:
        """Take note of what is on record of an attempt: an outcome, or ``postponed``, ``lost``."""
