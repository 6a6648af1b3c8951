"""The thread that keeps a worker alive in the database's eyes, whatever its handlers do to the event loop.

On a connection of its own it registers the worker (the session holds the worker's lock), says every few
seconds what the worker holds, hears what to stop, and does a round of maintenance each second.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import psycopg

from pgfifo._connections import PATIENCE, Link, Pauses, Session, brief, is_passing
from pgfifo._words import count
from pgfifo.compatibility import SCHEMA_INFO, check
from pgfifo.errors import LeaseLost, translated
from pgfifo.scheduling import Schedule, declaration, tick

if TYPE_CHECKING:
    from pgfifo.execution import Progress, Reason

logger = logging.getLogger("pgfifo")

_START = "select pgfifo.worker_start(%s, %s, %s, %s, %s, make_interval(secs => %s), %s, %s)"
_BEAT = "select id, signal from pgfifo.heartbeat(%s, %s, %s, %s)"
_PROGRESS = """
    select count(pgfifo.progress(told.id, told.attempt, told.fraction, told.message))
    from unnest(%s::bigint[], %s::integer[], %s::float8[], %s::text[]) as told(id, attempt, fraction, message)
"""
_MAINTAIN = """
    select (m ->> 'more')::boolean, coalesce((m ->> 'schedules_due')::boolean, false) from pgfifo.maintain() m
"""
_MAINTAIN_EVERY = 1.0
_MAINTAIN_AT_ONCE = 20
# Seconds that an answer may take at least, where the lease is short.
_LEAST_PATIENCE = 5.0


class Held(Protocol):
    """What the heartbeat has to know of an execution that the worker holds."""

    def stop(self, reason: Reason) -> bool:
        """Ask it to stop, from any thread; false if it was asked, or has ended, before."""

    def cancel_task(self) -> None:
        """Make that felt, in the event loop."""

    told: Progress | None
    """The progress that was passed on last."""

    def progress(self) -> tuple[int, float | None, str | None] | None:
        """Return the attempt and its progress, if that was not passed on yet."""


class Registration:
    """One life of a worker: its id, how far its claims have arrived, and what it holds.

    A claim's rows and its number change together, under the lock: a heartbeat that knew the number and not
    the rows would give them away.
    """

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.calls = 0
        self.lock = threading.Lock()
        self.arrived = 0
        self.held: dict[int, Held] = {}
        self.dead = False

    def forget(self, execution_id: int, run: Held) -> None:
        """Hold this run of an execution no longer; call it under the lock."""
        if self.held.get(execution_id) is run:
            del self.held[execution_id]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a worker says of itself.

    Attributes:
        conninfo: The database that it beats in.
        locked: Whether its session speaks for it; not through a transaction pooler.
        name: For people.
        actions: What it serves.
        declared: The actions that its code declares, with their values.
        schedules: The schedules that its code declares, by action.
        kind: ``worker``, or ``slot``: it claims nothing, and holds slots for a program.
        concurrency: How many it runs at once.
        interval: Seconds between heartbeats.
        lease: Seconds without one until it counts as dead.
    """

    conninfo: str
    locked: bool
    name: str
    actions: list[str]
    concurrency: int
    interval: float
    lease: float
    declared: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    schedules: Mapping[str, Sequence[Schedule]] = field(default_factory=dict)
    kind: str = "worker"


class Heartbeat:
    """The thread. All callbacks are called in it."""

    def __init__(
        self,
        identity: Identity,
        *,
        registered: Callable[[Registration], None],
        failed: Callable[[Exception], None],
        ended: Callable[[], None],
        stopping: Callable[[list[Held]], None],
    ) -> None:
        """Prepare it.

        Args:
            identity: Who beats.
            registered: Told each registration: the first, and a new one when the worker was declared dead.
            failed: Told what ended the thread, when it is not `close`.
            ended: Called when it has ended, in whatever way.
            stopping: Told what was asked to stop.
        """
        self._identity = identity
        self._registered = registered
        self._failed = failed
        self._ended = ended
        self._stopping = stopping
        self._registration: Registration | None = None
        self._link: Link | None = None
        self._session: Session | None = None
        self._woken = threading.Event()
        self._closing = self._asked = False
        self._complained_of = ""
        self._pauses = Pauses()
        self._lock_gone = False
        self.pulse = self.heard = time.monotonic()
        """When the thread was last seen to go on, and when the server last took a heartbeat."""
        self._thread = threading.Thread(
            target=self._run, name=f"pgfifo-heartbeat-{identity.name}", daemon=True
        )

    def start(self) -> None:
        """Connect and register, in the thread; `registered` or `failed` is called."""
        self._thread.start()

    def declared_dead(self, registration: Registration) -> None:
        """Take note that a call of the worker was refused because it was declared dead: it registers anew."""
        self._bury(registration)
        self._wake()

    def beat_now(self) -> None:
        """Ask at once what to stop, and not only when the next heartbeat is due; from any thread."""
        self._asked = True
        self._wake()

    def close(self) -> None:
        """Sign the worker off, when it holds nothing any more, and end the thread; does not wait for it."""
        self._closing = True
        self._wake()

    def _wake(self) -> None:
        self._woken.set()

    def _pause(self, length: float) -> None:
        """Wait so many seconds, or until woken."""
        self._woken.wait(length)
        self._woken.clear()

    def _connected(self, link: Link) -> None:
        """Prepare a new connection."""

    def _slots(self, arrived: int) -> tuple[int, list[int] | None]:
        """Return up to which of its numbers a worker of kind slot speaks, and which of them are in use.

        Args:
            arrived: For a worker that claims, who has no such numbers: up to which claim it speaks.
        """
        return arrived, None

    def _run(self) -> None:
        try:
            self._begin()
            self._live()
        except Exception as error:  # noqa: BLE001 - handed on to whoever waits for the worker
            self._failed(error)
        finally:
            if self._link is not None:
                self._link.close()
            self._ended()

    def _begin(self) -> None:
        identity = self._identity
        link = self._connect()
        try:
            self._connected(link)
            [(version, min_client, _epoch)] = link.rows(SCHEMA_INFO)
            check(version, min_client, link.conn.info.dbname)
            for name, values in identity.declared.items():
                link.rows("select pgfifo.declare_action(%s, %s::jsonb)", (name, json.dumps(dict(values))))
            if identity.schedules:
                link.rows("select pgfifo.declare_schedules(%s::jsonb)", (declaration(identity.schedules),))
            self._register(link)
        except psycopg.Error as error:
            raise translated(error, database=link.conn.info.dbname) from None

    def _register(self, link: Link) -> None:
        who = self._identity
        [(worker,)] = link.rows(
            _START,
            (
                who.name,
                socket.gethostname(),
                os.getpid(),
                who.actions,
                who.concurrency,
                who.lease,
                who.locked,
                who.kind,
            ),
        )
        self._lock_gone = False
        self._registration = Registration(worker)
        self._registered(self._registration)

    def _live(self) -> None:
        next_beat = next_round = time.monotonic()
        while True:
            self.pulse = time.monotonic()
            registration = self._registration
            if registration is None or (self._closing and (registration.dead or not registration.held)):
                return self._sign_off()
            try:
                link = self._link or self._reconnect()
                if registration.dead:
                    self._register(link)
                elif self._lock_gone:
                    self._relock(link, registration)
                if (now := time.monotonic()) >= next_beat or self._asked:
                    self._asked = False  # before it asks: what is cancelled after that calls again
                    next_beat = now + self._identity.interval
                    self._beat(link)
                if (now := time.monotonic()) >= next_round:
                    next_round = now + _MAINTAIN_EVERY * random.uniform(0.9, 1.1)  # noqa: S311 - nobody's secret
                    self._tell_progress(link)
                    self._maintain(link, until=next_beat)
            except psycopg.Error as error:
                self._get_over(error)
                next_beat = next_round = time.monotonic() + self._pauses.next()
            else:
                self._complained_of, self._pauses = "", Pauses()
            self._pause(max(0.0, min(next_beat, next_round) - time.monotonic()))

    def _connect(self) -> Link:
        who = self._identity
        # Another connection is to be tried while there is still some of the lease left.
        patience = min(PATIENCE, max(who.lease / 2, _LEAST_PATIENCE))
        link = Link(who.conninfo, pooled=not who.locked, after=self._session, patience=patience)
        self._link, self._session = link, link.session
        self.pulse = time.monotonic()
        return link

    def _reconnect(self) -> Link:
        link = self._connect()
        self._lock_gone = True
        self._connected(link)
        return link

    def _relock(self, link: Link, registration: Registration) -> None:
        """Say that we live, and take the lock that the old session held."""
        self._beat(link)
        if self._identity.locked:
            link.rows("select pgfifo.worker_relock(%s)", (registration.worker,))
        self._lock_gone = False

    def _beat(self, link: Link) -> None:
        registration = self._registration
        if registration is None or registration.dead:
            return
        with registration.lock:
            arrived, held = registration.arrived, dict(registration.held)
        upto, slots = self._slots(arrived)
        told = link.rows(_BEAT, (registration.worker, upto, list(held), slots))
        self.heard = time.monotonic()
        stopped = [
            held[id_] for id_, signal in told if held[id_].stop("lost" if signal == "lost" else "cancel")
        ]
        if stopped:
            self._stopping(stopped)

    def _tell_progress(self, link: Link) -> None:
        """Pass on what handlers have said since the last time."""
        registration = self._registration
        if registration is None or registration.dead:
            return
        with registration.lock:
            held = list(registration.held.items())
        news = [(one, id_, *said) for id_, one in held if (said := one.progress()) is not None]
        if news:
            runs, *columns = zip(*news, strict=True)
            link.rows(_PROGRESS, tuple(map(list, columns)))
            for one, (fraction, message) in zip(runs, zip(*columns[2:], strict=True), strict=True):
                one.told = (fraction, message)

    def _maintain(self, link: Link, until: float) -> None:
        for _ in range(_MAINTAIN_AT_ONCE):
            [(more, due)] = link.rows(_MAINTAIN)
            if due:
                tick(link.rows)
            if not more or self._woken.is_set() or time.monotonic() >= until:
                break

    def _get_over(self, error: psycopg.Error) -> None:
        """Take an error as a reason to try again; nothing that the server says may end the heartbeat."""
        if isinstance(error, LeaseLost) and self._registration is not None:
            self._bury(self._registration)
            return
        if self._link is not None and not self._link.is_of_use_after(error):
            self._link.close()
            self._link = None
        said = f"{type(error).__name__} {error.sqlstate}"
        if said != self._complained_of:
            self._complained_of = said
            level = logging.WARNING if is_passing(error) else logging.ERROR
            said = "the heartbeat of worker %s failed, trying again: %s"
            logger.log(level, said, self._identity.name, brief(error))

    def _bury(self, registration: Registration) -> None:
        with registration.lock:
            if registration.dead:
                return
            registration.dead = True
            held = list(registration.held.values())
        logger.error(
            "worker %s (%s) was declared dead, and has lost its %s",
            registration.worker,
            self._identity.name,
            count(len(held), "execution"),
        )
        self._stopping([one for one in held if one.stop("lost")])

    def _sign_off(self) -> None:
        """Say goodbye if the server can hear it; if it cannot, it notices that the session is gone."""
        registration = self._registration
        if self._link is None or registration is None or registration.dead:
            return
        try:
            self._link.rows("select pgfifo.worker_stop(%s)", (registration.worker,))
        except psycopg.Error as error:
            logger.warning("worker %s could not sign off: %s", self._identity.name, brief(error))
