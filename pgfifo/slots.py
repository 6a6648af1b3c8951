"""Slots in a program's own hands: its place in the line, what it holds, and how it leaves.

Made by tools/gen_sync.py from its asynchronous twin: change that one.
"""

# ruff: noqa: SLF001 - a slot is made by a client, and makes its calls with that one's private methods

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Self

import psycopg

from pgfifo import groups
from pgfifo._bell import Bell, apart, is_cancel, result
from pgfifo._connections import brief, is_passing
from pgfifo._holder import LEASE, Place, conninfo_of
from pgfifo.durations import Duration, seconds
from pgfifo.errors import ExecutionFailed, LeaseLost, SlotLost, SlotTimeout
from pgfifo.execution import progressed
from pgfifo.groups import Group, lane
from pgfifo.heartbeat import Registration
from pgfifo.jsontext import dumps
from pgfifo.models import Explanation
from pgfifo.outcome import CANCELLED, NO_RESULT, Outcome, failed, raised
from pgfifo.waiting import EXPLAIN, Waiting

logger = logging.getLogger("pgfifo")

_SEEN = "select id, state, attempt, token, group_text, look_after, error, started from pgfifo."
_ENTER = f"""
    {_SEEN}slot_enter(%s::bigint, %s::bigint, %s::text, %s::jsonb, %s::text, %s::jsonb, %s::text[],
      %s::bigint[], make_interval(secs => %s::float8), %s::boolean)
"""
_LOOK = f"{_SEEN}slot_look(%s::bigint, %s::bigint)"
_LEAVE = f"{_SEEN}slot_leave(%s::bigint, %s::bigint, %s::text, %s::text)"
_POLL = 1.0
"""How often to look while nobody calls, in seconds."""
_LIVES = 3
_DAY = 86_400.0


class _Seen(NamedTuple):
    """How things stand with a slot."""

    id: int | None
    state: str
    attempt: int
    token: str
    group_text: str
    look_after: float | None
    error: str | None
    started: list[int] | None


class _Wish(NamedTuple):
    """What is asked for."""

    action: str
    payload: str
    group: str | None
    headers: str | None
    tags: list[str] | None
    timeout: float
    connection: object


class Holding(Waiting):
    """What a client needs to hold slots."""

    def close(self) -> None:
        """Close the connections that this client opened; a pool or connection of the caller's stays open."""
        apart(self._holder.close)
        super().close()

    def _registered(self, given: psycopg.Connection[Any] | None) -> Registration:
        """Return the worker of kind slot that this process is; it becomes one where it is none."""
        coming = self._holder.registered()
        if coming is None:
            if given is not None:
                conninfo, locked = conninfo_of(given), given.prepare_threshold is not None
            else:
                with self._lend() as conn:
                    conninfo, locked = conninfo_of(conn), conn.prepare_threshold is not None
            coming = self._holder.start(conninfo, locked=locked)
        return result(coming)


class Slot:
    """A slot of a lane, for the code of this very program.

    `Client.slot` returns one to be entered with ``with``; `Client.try_slot` one that is held
    already.

    Attributes:
        id: The execution that stands for it; None before it was asked for.
        attempt: Which start of that execution this is; 0 before the slot is held.
        token: Epoch, id and attempt in one text, for whatever must reject a holder that lost its slot;
            empty before the slot is held.
        action: The action's name.
        group_text: The lane's group as text; empty if the action has none.
    """

    def __init__(self, client: Holding, wish: _Wish) -> None:
        """Use `Client.slot` instead."""
        self._client = client
        self._wish = wish
        self._place: Place[Bell] | None = None
        self._entered = False
        self.id: int | None = None
        self.attempt = 0
        self.token = ""
        self.action = wish.action
        self.group_text = ""

    @property
    def group(self) -> Mapping[str, object]:
        """The lane's group by path, as ``{"env": "prod"}``; empty if there is none, or it is a free text."""
        group = groups.parse(self.group_text)
        return group if isinstance(group, dict) else {}

    @property
    def held(self) -> bool:
        """Whether the slot is held: it was had, not left, and is not known to be lost."""
        return self._place is not None and not self._place.lost

    @property
    def lost(self) -> bool:
        """Whether the slot was taken from its holder: another one may be at work beside him."""
        return self._lost or (self._place is not None and self._place.lost)

    _lost = False

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody has asked the holder to stop, with `Client.cancel`."""
        return self._place is not None and self._place.cancelled

    def raise_if_lost(self) -> None:
        """Go no further without the slot.

        Raises:
            SlotLost: It was lost.
        """
        if self.lost:
            raise self._slot_lost()

    def progress(self, fraction: float | None = None, message: str | None = None) -> None:
        """Say how far the holder is, for whoever looks; the same as `Execution.progress`.

        Args:
            fraction: From 0 to 1. Without it, what was said before stays.
            message: What is going on, up to 1,000 characters. Without it, what was said before stays.

        Raises:
            InvalidValue: The fraction is not a number from 0 to 1, or there is neither.
        """
        if self._place is not None:
            self._place.last_progress = progressed(self._place.last_progress, fraction, message)

    def __enter__(self) -> Self:
        place = self._place or self._acquire(at_once=False)
        if place is None or self._entered:
            raise RuntimeError("this slot was entered before, and not left")
        self._entered = True
        place.bell.begin()
        if place.lost or place.cancelled:
            place.bell.interrupt()  # while nobody was there to be interrupted
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        place = self._place
        if place is None:
            return  # it was released
        interrupted = place.bell.end(error)
        outcome = NO_RESULT if error is None else CANCELLED if is_cancel(error) else raised(error)
        try:
            state = self._leave(place, outcome)
        except psycopg.Error:
            if error is None or interrupted:
                raise
            return  # the slot is given up all the same, and what was raised says more
        ordinary = error is None or interrupted or isinstance(error, Exception)
        if state == "lost" and ordinary:
            raise self._slot_lost() from error
        if interrupted:
            raise ExecutionFailed(
                f"{self._name()}, which held a slot, was cancelled",
                detail={"id": self.id, "outcome": "cancelled", "error": None},
            ) from error

    def release(self, *, error: str | None = None) -> None:
        """Leave the slot, as at the end of a ``with``; nothing happens where it is not held.

        Args:
            error: What went wrong, for the record: it has failed then. Defaults to nothing.

        Raises:
            SlotLost: It had been lost.
            InTransaction: The client's connection is in a transaction.
        """
        place = self._place
        if place is not None:
            place.bell.end(None)
            outcome = NO_RESULT if error is None else failed(error)
            if self._leave(place, outcome) == "lost":
                raise self._slot_lost()

    def _acquire(self, *, at_once: bool) -> Place[Bell] | None:
        """Wait for the slot; None where it cannot be had at once, and that was asked for."""
        holder = self._client._holder
        given = self._client._outside_of_transactions(self._wish.connection)
        place = holder.place(Bell())
        try:
            seen = self._wait(place, given, at_once=at_once)
        except BaseException as error:  # also an interrupt: the place in the line would be kept
            self._give_up(place, given, error)
            raise
        if seen.id is None:
            place.left = True
            holder.drop(place)
            return None
        place.attempt = self.attempt = seen.attempt
        self.token = seen.token
        self._place, self._entered, self._lost = place, False, False
        holder.taken(place)
        # Of one that nobody leaves the server hears with the next heartbeat.
        weakref.finalize(self, holder.drop, place).atexit = False
        return place

    def _wait(self, place: Place[Bell], given: psycopg.Connection[Any] | None, *, at_once: bool) -> _Seen:
        """Join the line, and wait until the slot is ours; with no id where it cannot be had at once."""
        begun = monotonic()
        seen = self._join(place, given, at_once=at_once)
        while seen.state == "waiting":
            left = self._wish.timeout - (monotonic() - begun)
            if left <= 0:
                raise self._timed_out(place, given)
            place.bell.wait(min(left, seen.look_after or _POLL, _POLL))
            seen = self._look(place, given, self._wish.timeout - (monotonic() - begun))
        if seen.id is not None and seen.state != "running":
            place.left = True
            raise self._ended(seen)
        return seen

    def _join(self, place: Place[Bell], given: psycopg.Connection[Any] | None, *, at_once: bool) -> _Seen:
        wish, client = self._wish, self._client
        begun = monotonic()
        for life in range(_LIVES):
            place.registration = registration = client._registered(given)
            left = wish.timeout - (monotonic() - begun)
            arguments = (
                registration.worker,
                place.number,
                wish.action,
                wish.payload,
                wish.group,
                wish.headers,
                wish.tags,
                client._holder.of(place.who),
                None if left > _DAY else max(0.0, left),
                at_once,
            )
            try:
                seen = self._say(_ENTER, arguments, given)
                break
            except LeaseLost:
                # Declared dead, perhaps while this process slept: nothing was asked for in its name yet.
                client._holder.refused(place)
                if life == _LIVES - 1:
                    raise
        self.id = seen.id
        if seen.id is not None:
            client._holder.name(place, seen.id)
        self.group_text = seen.group_text or ""
        return seen

    def _look(self, place: Place[Bell], given: psycopg.Connection[Any] | None, left: float) -> _Seen:
        try:
            return self._insist(place, _LOOK, (place.worker, place.id), given, left)
        except LeaseLost as error:
            place.left = place.lost = self._lost = True
            self._client._holder.refused(place)
            raise self._slot_lost() from error

    def _leave(self, place: Place[Bell], outcome: Outcome) -> str:
        """Leave what is held; return how that went."""
        self._place = None
        place.leaving = True
        arguments = (place.worker, place.id, outcome.kind, outcome.error)
        try:
            given = self._client._outside_of_transactions(self._wish.connection)
            state = (self._insist(place, _LEAVE, arguments, given)).state
            place.left = True
        except LeaseLost:
            place.left = True
            self._client._holder.refused(place)
            state = "lost"
        finally:
            self._lost = place.lost
            self._client._holder.drop(place)
        self._lost = self._lost or state == "lost"
        return "lost" if self._lost else state

    def _give_up(
        self, place: Place[Bell], given: psycopg.Connection[Any] | None, error: BaseException
    ) -> None:
        """Leave the line; whatever goes wrong, heartbeats do not list this place any more."""
        reason = "the wait timed out" if isinstance(error, SlotTimeout) else "given up while it waited"
        try:
            if place.id is not None and not place.left:
                self._say(_LEAVE, (place.worker, place.id, "cancelled", reason), given)
                place.left = True
        except psycopg.Error:
            pass  # the server hears of it with the next heartbeat, or when that stays away
        finally:
            self._client._holder.drop(place)

    def _insist(
        self,
        place: Place[Bell],
        query: str,
        arguments: tuple[object, ...],
        given: psycopg.Connection[Any] | None,
        patience: float = LEASE,
    ) -> _Seen:
        """Make a call that may be made twice; again and again while the server cannot be reached.

        Not for longer than the lease: what we have or wait for may be somebody else's after that.
        """
        begun = monotonic()
        while True:
            try:
                return self._say(query, arguments, given)
            except psycopg.OperationalError as error:
                left = min(patience, LEASE) - (monotonic() - begun)
                if given is not None or left <= 0 or not is_passing(error):
                    raise
                logger.info("%s: trying again: %s", self._name(), brief(error))
            place.bell.wait(min(left, _POLL))

    def _say(self, query: str, arguments: tuple[object, ...], given: psycopg.Connection[Any] | None) -> _Seen:
        """Make one call, and tell those of this process whose turn has come with it."""
        seen = self._client._row(query, arguments, _Seen, connection=given)
        self._client._holder.ring(seen.started or ())
        return seen

    def _timed_out(self, place: Place[Bell], given: psycopg.Connection[Any] | None) -> SlotTimeout:
        """Return the error for a wait in vain; with what was in the way, if that can be had."""
        message = f"no slot of {lane(self.action, self.group_text)} became free in {self._wish.timeout:g} s"
        detail = {
            "action": self.action,
            "group": self.group_text,
            "timeout": self._wish.timeout,
            "id": place.id,
        }
        with suppress(psycopg.Error):
            found = self._client._row(EXPLAIN, (place.id,), Explanation, connection=given)
            message += f". {found.data['why']}" if found.data["why"] else ""
        return SlotTimeout(message, detail=detail, hint="The place in the line was given up.")

    def _ended(self, seen: _Seen) -> ExecutionFailed | SlotLost:
        """Return the error for a place that somebody else has ended."""
        if seen.state == "lost":
            self._lost = True
            return self._slot_lost()
        said = f": {seen.error}" if seen.error else ""
        what = "was cancelled" if seen.state == "cancelled" else seen.state
        return ExecutionFailed(
            f"{self._name()}, which waited for a slot, {what}{said}",
            detail={"id": self.id, "outcome": seen.state, "error": seen.error},
        )

    def _name(self) -> str:
        return f"execution {self.id} ({lane(self.action, self.group_text)})"

    def _slot_lost(self) -> SlotLost:
        return SlotLost(
            f"the slot of {lane(self.action, self.group_text)} was lost; another may have had it as well",
            detail={"action": self.action, "group": self.group_text, "id": self.id},
            hint="Its holder could not be heard of for too long, or somebody has ended it.",
        )

    def __repr__(self) -> str:
        how = "lost" if self.lost else "held" if self.held else "not held"
        return f"<pgfifo.{type(self).__name__} of {lane(self.action, self.group_text)}, {how}>"


def wish(
    action: str,
    payload: object,
    group: Group | None,
    headers: Mapping[str, Any] | None,
    tags: Sequence[str] | None,
    timeout: Duration | None,
    connection: object,
) -> _Wish:
    """Return what a call asks for, in the form in which it is sent."""
    return _Wish(
        action,
        "{}" if payload is None else dumps(payload),
        groups.to_text(group),
        None if headers is None else dumps(headers, "header"),
        None if tags is None else list(tags),
        math.inf if timeout is None else seconds(timeout, "timeout"),
        connection,
    )
