"""What a worker was told to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pgfifo._watching import Watch
from pgfifo.actions import Action
from pgfifo.heartbeat import Identity


@dataclass(frozen=True, slots=True)
class Plan:
    """A worker's settings; `pgfifo.worker.Worker` says what they mean.

    Attributes:
        conninfo: The database for claims.
        direct: The database without a transaction pooler in between, if it can be reached so.
        name: The worker's name.
        actions: What it runs, by name.
        declared: Whether to declare them.
        concurrency: How many at once.
        caps: How many of an action at once, where that is less.
        poll_interval: Seconds.
        heartbeat: Seconds.
        lease: Seconds.
        shutdown_timeout: Seconds.
        until_empty: Whether to end when nothing is left.
        until_idle: Whether to end when nothing can start now.
        watch: Who measures, if anybody does.
    """

    conninfo: str
    direct: str | None
    name: str
    actions: Mapping[str, Action]
    declared: bool
    concurrency: int
    caps: Mapping[str, int]
    poll_interval: float
    heartbeat: float
    lease: float
    shutdown_timeout: float
    until_empty: bool
    until_idle: bool
    watch: Watch | None = None

    def identity(self) -> Identity:
        """Return what the worker says of itself."""
        return Identity(
            conninfo=self.direct or self.conninfo,
            locked=self.direct is not None,
            name=self.name,
            actions=list(self.actions),
            concurrency=self.concurrency,
            interval=self.heartbeat,
            lease=self.lease,
            declared={name: action.values for name, action in self.actions.items()} if self.declared else {},
            schedules={name: action.schedules for name, action in self.actions.items()}
            if self.declared
            else {},
        )
