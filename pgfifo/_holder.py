"""What a client needs to hold slots: in each process one worker of kind slot, while any slot is wanted.

It has a thread and a connection of its own, a `Heartbeat`. The session speaks for the process: when that is
killed, its slots are given on a moment later. On the same connection the thread hears that somebody's turn
has come.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo

from pgfifo._bell import AsyncBell, Bell
from pgfifo.dsn import with_defaults
from pgfifo.heartbeat import Heartbeat, Held, Identity, Registration

if TYPE_CHECKING:
    from typing import Any

    from pgfifo._connections import Link
    from pgfifo.execution import Progress, Reason

B = TypeVar("B", Bell, AsyncBell)

LINGER = 10.0
"""How long the worker is kept when no slot is wanted any more, in seconds: mostly there is a next one."""
LEASE = 30.0
"""How long nobody may hear of this process until what it holds is given on, in seconds."""
_INTERVAL = 5.0
_PATIENCE = 2.0


class Place(Generic[B]):
    """One slot that is asked for: a place in the line, then the slot.

    Attributes:
        number: What the server knows the request by, before it has given it an id.
        who: The thread or task that asks.
        registration: The life of the worker in whose name it was asked for.
        id: The execution that stands for it, as soon as that is known.
        attempt: Which start of it this is; 0 while it waits.
        lost: Whether it was taken from us.
        cancelled: Whether somebody asked to stop.
        last_progress: How far its holder is.
        told: The progress that was passed on last.
        leaving: Whether it is being left: what is said of it from now on may be an answer to that.
        left: Whether the server knows that it was left.
        held_as: What it is in the list of all that this process holds; None before it is held.
    """

    def __init__(self, number: int, bell: B) -> None:
        self.number = number
        self.who = bell.who
        self.registration: Registration | None = None
        self.id: int | None = None
        self.attempt = 0
        self.lost = self.cancelled = self.leaving = self.left = False
        self.last_progress: Progress | None = None
        self.told: Progress | None = None
        self.held_as: tuple[int, str, int] | None = None
        self.bell: B = bell

    @property
    def worker(self) -> int:
        """The worker in whose name the slot was asked for; 0 before that."""
        return 0 if self.registration is None else self.registration.worker

    def stop(self, reason: Reason) -> bool:
        """Take note of why to stop, from any thread; false if that is known."""
        if self.leaving or self.lost or (reason != "lost" and self.cancelled):
            return False
        if reason == "lost":
            self.lost = True
        else:
            self.cancelled = True
        return True

    def cancel_task(self) -> None:
        """Interrupt a task that is at work in the slot."""
        self.bell.interrupt()

    def progress(self) -> tuple[int, float | None, str | None] | None:
        """Return the attempt and its progress, if that was not passed on yet."""
        last: Progress | None = self.last_progress
        return None if last is None or last == self.told else (self.attempt, last[0], last[1])


AnyPlace = Place[Bell] | Place[AsyncBell]

_IDENTITY = """
    select extract(epoch from pg_postmaster_start_time())::text || ' '
      || (select oid from pg_database where datname = current_database())
"""
"""What a database is known by, however it is reached; every role may ask."""

_held: dict[tuple[int, str, int], object] = {}
"""What is held in this process through all clients: process id, database and execution; and by which thread
or task. By process id, since a fork has nothing of its parent's."""


class Holder:
    """Slots of this process, and the heart that beats for them. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._processes: dict[int, _Holding] = {}

    def _mine(self) -> _Holding:
        # By process id: a fork has neither its parent's thread nor its slots.
        pid = os.getpid()
        mine = self._processes.get(pid)
        return mine if mine is not None else self._processes.setdefault(pid, _Holding())

    def place(self, bell: B) -> Place[B]:
        """Return a new place; until it is dropped the worker lives."""
        return self._mine().place(bell)

    def registered(self) -> Future[Registration] | None:
        """Return the worker's life, or to be; None where `start` has to begin one."""
        return self._mine().registered()

    def start(self, conninfo: str, *, locked: bool) -> Future[Registration]:
        """Begin to live, and register.

        Args:
            conninfo: The database.
            locked: Whether the session can speak for us; not through a transaction pooler.
        """
        return self._mine().start(conninfo, locked=locked)

    def refused(self, place: AnyPlace) -> None:
        """Take note that a call was refused because the worker was declared dead."""
        self._mine().refused(place)

    def name(self, place: AnyPlace, id: int) -> None:  # noqa: A002 - its name everywhere
        """Take note of the execution that stands for a place."""
        self._mine().name(place, id)

    def ring(self, ids: Iterable[int]) -> None:
        """Have those look whose turn has come."""
        self._mine().ring(ids)

    def taken(self, place: AnyPlace) -> None:
        """Take note that the slot is ours: from now on heartbeats ask for it."""
        self._mine().taken(place)

    def of(self, who: object) -> list[int]:
        """Return the executions that stand for slots which this thread or task holds, through any client."""
        return self._mine().of(who)

    def drop(self, place: AnyPlace) -> None:
        """Give a place up. If the server has not been told, it hears of it with the next heartbeat."""
        self._mine().drop(place)

    def close(self) -> None:
        """Sign off, unless a slot is still held; then when it is left."""
        self._mine().close()


class _Holding:
    """The same, of one process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._last = 0
        self._places: dict[int, AnyPlace] = {}
        self._early: set[int] = set()
        self._heart: _Heart | None = None
        self._registered: Future[Registration] = Future()
        self._database = ""
        self._idle_since = time.monotonic()
        self._closing = False

    def place(self, bell: B) -> Place[B]:
        with self._lock:
            self._last += 1
            place: Place[B] = Place(self._last, bell)
            self._places[place.number] = place
            self._closing = False
            return place

    def registered(self) -> Future[Registration] | None:
        with self._lock:
            return self._registered if self._heart is not None else None

    def start(self, conninfo: str, *, locked: bool) -> Future[Registration]:
        with self._lock:
            if self._heart is None:
                self._registered = Future()
                self._heart = _Heart(self, conninfo, locked=locked)
                self._heart.start()
            return self._registered

    def refused(self, place: AnyPlace) -> None:
        with self._lock:
            heart = self._heart
        if heart is not None and place.registration is not None:
            heart.declared_dead(place.registration)

    def name(self, place: AnyPlace, id: int) -> None:  # noqa: A002 - as above
        with self._lock:
            place.id = id
            early = id in self._early
            self._early.discard(id)
        if early:
            place.bell.ring()

    def ring(self, ids: Iterable[int]) -> None:
        for id_ in ids:
            with self._lock:
                called = [place for place in self._places.values() if place.id == id_]
                if not called and any(place.id is None for place in self._places.values()):
                    self._early.add(id_)  # its place does not know yet that this is its own
            for place in called:
                place.bell.ring()

    def taken(self, place: AnyPlace) -> None:
        registration = place.registration
        if registration is None or place.id is None:
            raise ValueError("a place that was not asked for")
        with registration.lock:
            registration.held[place.id] = place
            place.lost = place.lost or registration.dead
        place.held_as = (os.getpid(), self._database, place.id)
        _held[place.held_as] = place.who

    def of(self, who: object) -> list[int]:
        here = (os.getpid(), self._database)
        return [held[2] for held, holder in list(_held.items()) if holder is who and held[:2] == here]

    def drop(self, place: AnyPlace) -> None:
        registration = place.registration
        if registration is not None and place.id is not None:
            with registration.lock:
                registration.forget(place.id, place)
        if place.held_as is not None:
            _held.pop(place.held_as, None)
        with self._lock:
            if self._places.pop(place.number, None) is None:
                return
            if all(other.id is not None for other in self._places.values()):
                self._early.clear()
            self._idle_since = time.monotonic()
            heart = self._heart
            if self._closing and not self._places:
                self._heart = None
        if heart is not None:
            if self._closing and not self._places:
                heart.close()
            elif place.id is None or not place.left:
                heart.beat_now()

    def close(self) -> None:
        with self._lock:
            self._closing = True
            heart = self._heart
            if heart is None or self._places:
                return
            self._heart = None
        heart.close()
        heart.join(_PATIENCE)

    # The heart's thread

    def reached(self, database: str) -> None:
        """Take note of the database's identity; while something is held, what it was known by stays."""
        with self._lock:
            if not any(place.attempt for place in self._places.values()):
                self._database = database

    def numbers(self) -> tuple[int, list[int]]:
        """Return the last number that was given out, and those that are in use."""
        with self._lock:
            return self._last, list(self._places)

    def ring_all(self) -> None:
        """Have all who wait look."""
        with self._lock:
            waiting = [place for place in self._places.values() if not place.attempt]
        for place in waiting:
            place.bell.ring()

    def born(self, registration: Registration) -> None:
        """Take note of a life that begins."""
        with self._lock:
            if self._registered.done():
                self._registered = Future()
            self._registered.set_result(registration)
        self.ring_all()

    def buried(self) -> None:
        """Take note of a life that has ended: the next one is to come."""
        with self._lock:
            if self._registered.done():
                self._registered = Future()

    def idle(self) -> bool:
        """Return whether nobody has wanted a slot for a while; then the heart stops."""
        with self._lock:
            if self._places or time.monotonic() < self._idle_since + LINGER:
                return False
            self._heart = None
            return True

    def stopped(self, heart: _Heart, error: Exception | None) -> None:
        """Take note that the heart has stopped."""
        with self._lock:
            is_last = self._heart in (None, heart)
            if self._heart is heart:
                self._heart = None
            if is_last and not self._registered.done():
                self._registered.set_exception(
                    error or psycopg.OperationalError("the client was closed meanwhile")
                )
            left = list(self._places.values()) if error is not None else []
        for place in left:
            if place.stop("lost"):
                place.cancel_task()
            place.bell.ring()


class _Heart(Heartbeat):
    """A heartbeat that can also hear, between its beats, whose turn has come."""

    def __init__(self, holding: _Holding, conninfo: str, *, locked: bool) -> None:
        identity = Identity(
            conninfo=conninfo,
            locked=locked,
            name=f"{socket.gethostname()}:{os.getpid()}",
            actions=[],
            concurrency=1,
            interval=_INTERVAL,
            lease=LEASE,
            kind="slot",
        )
        self._holding = holding
        self._error: Exception | None = None
        self._asleep, self._alarm = socket.socketpair()
        self._asleep.settimeout(0)
        self._alarm.settimeout(0)
        super().__init__(
            identity,
            registered=holding.born,
            failed=self._fail,
            ended=self._end,
            stopping=_interrupt,
        )

    def join(self, patience: float) -> None:
        """Wait for the end, at most so many seconds."""
        self._thread.join(patience)

    def _fail(self, error: Exception) -> None:
        self._error = error

    def _end(self) -> None:
        self._holding.stopped(self, self._error)
        self._asleep.close()
        self._alarm.close()

    def _wake(self) -> None:
        super()._wake()
        with contextlib.suppress(OSError):  # it is full, or closed
            self._alarm.send(b"!")

    def _slots(self, arrived: int) -> tuple[int, list[int] | None]:  # noqa: ARG002 - it claims nothing
        return self._holding.numbers()

    def _connected(self, link: Link) -> None:
        [(database,)] = link.rows(_IDENTITY)
        self._holding.reached(database)
        if self._identity.locked:
            link.conn.add_notify_handler(lambda told: self._hear(told.payload))
            link.conn.execute("listen pgfifo_slots")
        # What was said before is not heard.
        self._holding.ring_all()

    def _hear(self, payload: str) -> None:
        """Somebody's turn has come; or, where no execution is named, somebody is asked to stop."""
        worker, _, id_ = payload.partition(" ")
        if self._registration is None or worker != str(self._registration.worker):
            return
        if id_.isdecimal():
            self._holding.ring([int(id_)])
        else:
            self.beat_now()

    def _bury(self, registration: Registration) -> None:
        news = not registration.dead
        super()._bury(registration)
        if news:
            self._holding.buried()
            self._holding.ring_all()

    def _pause(self, length: float) -> None:
        if self._holding.idle():
            self._closing = True
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self._asleep, selectors.EVENT_READ)
            conn = self._link.conn if self._link is not None else None
            if conn is not None and not conn.closed:
                selector.register(conn, selectors.EVENT_READ)
            woken = [key.fileobj for key, _ in selector.select(length)]
        self._woken.clear()
        with contextlib.suppress(BlockingIOError):
            self._asleep.recv(4096)
        if conn is not None and conn in woken:
            try:
                conn.execute("")  # reads what has come, and calls _hear
            except psycopg.Error as error:
                self._get_over(error)


def _interrupt(places: list[Held]) -> None:
    for place in places:
        place.cancel_task()


def conninfo_of(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> str:
    """Return how to reach the database that a connection is to."""
    parameters = conn.info.get_parameters()
    if conn.info.password:
        parameters["password"] = conn.info.password
    return with_defaults(make_conninfo(**parameters), "pgfifo slots")
