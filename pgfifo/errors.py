"""Everything that pgfifo raises on purpose.

    psycopg.DatabaseError
     └─ PgfifoError
         ├─ QueueFull            QF001  the lane has as many waiting executions as it may
         ├─ ConcurrencyLimit     QF002  no slot is free, and the policy says not to wait
         ├─ RateLimit            QF003  the rate is used up, and the policy says not to wait
         ├─ QuotaExceeded        QF004  the quota is used up
         ├─ ActionClosed         QF005  the action takes no new executions
         ├─ UnknownAction        QF006  no action of that name
         ├─ GroupMismatch        QF007  the group does not fit the action's group_by
         ├─ GroupTooLong         QF008  the group's text is over its limit
         ├─ PayloadTooLarge      QF009  a payload or a result is over its limit
         ├─ LeaseLost            QF010  the caller does not own this execution any more
         ├─ AlreadyHeld          QF011  this thread holds that slot already
         ├─ SlotTimeout          QF012  no slot became free in time (a TimeoutError too)
         ├─ SlotLost             QF013  the slot was lost while it was used
         ├─ ExecutionFailed      QF014  the awaited execution did not succeed
         ├─ SchemaMissing        QF015  pgfifo is not installed in this database
         ├─ SchemaMismatch       QF016  package and schema are too far apart
         ├─ CommitUnknown        QF017  the connection broke before the answer came
         ├─ InTransaction        QF018  refused inside a transaction
         ├─ IsolationLevel       QF019  refused above READ COMMITTED
         ├─ TooManyLanes         QF020  one batch touches too many lanes
         ├─ UnknownExecution     QF021  no execution of that id
         ├─ InvalidValue         QF022  an argument that can not be right (a ValueError too)
         ├─ Busy                 QF023  somebody's open transaction is in the way
         ├─ WaitTimeout          QF024  the awaited execution did not end in time (a TimeoutError too)
         ├─ InvalidPayload       QF025  a payload does not fit its action (a ValueError too)
         ├─ NotPermitted         QF026  the role may do such things, but not this one
         ├─ EventsGone           QF027  what a cursor has yet to tell is not on record any more
         └─ SnapshotTooOld       40001  the caller's transaction began too early for this call

PostgreSQL raises most of them, with these SQLSTATEs, so they mean the same in every language. psycopg picks
the class by the SQLSTATE, on any connection of the process: the keyword ``code=`` in a class line does that.
What PostgreSQL itself raises (a server that is down, a missing privilege) stays psycopg's error.
"""

# ruff: noqa: N818 - names that say what happened read better than the same names with Error behind them

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

import psycopg

if TYPE_CHECKING:
    from collections.abc import Mapping

V = TypeVar("V")


class _Fact(Generic[V]):
    """One value of an error's ``detail``, or None where the error does not say."""

    def __init__(self, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, error: None, owner: type[PgfifoError]) -> _Fact[V]: ...
    @overload
    def __get__(self, error: PgfifoError, owner: type[PgfifoError]) -> V | None: ...
    def __get__(self, error: PgfifoError | None, owner: type[PgfifoError]) -> _Fact[V] | V | None:
        return self if error is None else cast("V | None", error.detail.get(self.name))


class PgfifoError(psycopg.DatabaseError):
    """Base of all of pgfifo's errors.

    Attributes:
        message: What is wrong, in one sentence.
        detail: The values that the message speaks of, by name; the same in SQL's error detail, as JSON.
        hint: What to do about it, or None.
        sqlstate: The code that PostgreSQL raised it with.
    """

    def __init__(
        self,
        message: str = "",
        *args: Any,  # noqa: ANN401 - psycopg's own signature
        detail: Mapping[str, Any] | None = None,
        hint: str | None = None,
        **psycopg_arguments: Any,  # noqa: ANN401 - handed on to psycopg as they are
    ) -> None:
        super().__init__(message, *args, **psycopg_arguments)
        said = self.diag
        self.message: str = said.message_primary or message
        self.detail: dict[str, Any] = dict(detail) if detail is not None else _parsed(said.message_detail)
        self.hint: str | None = hint if hint is not None else said.message_hint

    def __str__(self) -> str:
        return f"{self.message}\nHINT: {self.hint}" if self.hint else self.message


def _parsed(detail: str | None) -> dict[str, Any]:
    """Return the detail of an SQL error as a mapping; a detail that is no JSON object goes under ``text``."""
    if not detail:
        return {}
    try:
        value = json.loads(detail)
    except (ValueError, RecursionError):  # the latter: a value is named that is too deep for Python
        return {"text": detail}
    return value if isinstance(value, dict) else {"text": detail}


class _Limit(PgfifoError):
    """An enqueue that was refused because of a limit; nothing was enqueued."""

    action = _Fact[str]("action")
    """The action."""
    group = _Fact[str]("group")
    """The lane's group, as text."""
    limit = _Fact[float]("limit")
    """The limit in force."""
    current = _Fact[float]("current")
    """How much of it is used."""
    index = _Fact[int]("index")
    """In a batch: the place of the first item that was refused, counted from 0."""


class QueueFull(_Limit, code="QF001"):
    """As many wait as may, in the lane or, where no group is named, in all lanes of the action.

    Attributes: action, group, limit, current, and index in a batch.
    """


class ConcurrencyLimit(_Limit, code="QF002"):
    """The execution could not start at once, and ``on_limit = 'cancel'`` refuses to let it wait.

    Attributes: action, group, limit, current, and index in a batch.
    """

    which = _Fact[str]("which")
    """What keeps it from starting: ``max_concurrent``, ``paused``, ``shared_slots`` or ``shared_turn``."""
    name = _Fact[str]("name")
    """The shared limit, if it is one."""


class RateLimit(_Limit, code="QF003"):
    """The rate or spacing does not allow a start now, and ``on_limit = 'cancel'`` refuses to let it wait.

    Attributes: action, group, limit, current, and index in a batch.
    """

    which = _Fact[str]("which")
    """What keeps it from starting: ``rate``, ``spacing``, ``gap`` or ``shared_rate``."""
    name = _Fact[str]("name")
    """The shared limit, if it is one."""
    until = _Fact[str]("until")
    """Until when, as ISO 8601."""


class QuotaExceeded(_Limit, code="QF004"):
    """The quota is used up.

    Attributes: action, group (of a lane's quota), limit, current, and index in a batch.
    """

    scope = _Fact[str]("scope")
    """Whose quota: ``lane``, ``action``, ``pack`` or ``everything``."""
    resets_at = _Fact[str]("resets_at")
    """When it begins again, as ISO 8601."""


class ActionClosed(PgfifoError, code="QF005"):
    """The action, or the lane, takes no new executions; what waits is still worked off."""

    action = _Fact[str]("action")
    """The action."""
    group = _Fact[str]("group")
    """The lane's group, as text, where only the lane is closed."""
    reason = _Fact[str]("reason")
    """Why it was closed, as whoever closed it has said."""
    index = _Fact[int]("index")
    """In a batch: the place of the first such item, counted from 0."""


class UnknownAction(PgfifoError, code="QF006"):
    """Nothing was ever enqueued or declared under this name."""

    action = _Fact[str]("action")
    """The name that was asked for."""
    nearest = _Fact[str]("nearest")
    """A known name that looks like it."""


class GroupMismatch(PgfifoError, code="QF007"):
    """The group that was given does not fit the action's ``group_by``."""

    action = _Fact[str]("action")
    """The action."""
    group = _Fact[str]("group")
    """The group that was given."""
    group_by = _Fact[list[str]]("group_by")
    """The paths that a group of this action has."""
    index = _Fact[int]("index")
    """In a batch: the place of the first such item, counted from 0."""


class GroupTooLong(PgfifoError, code="QF008"):
    """The canonical text of the group is longer than a group may be."""

    action = _Fact[str]("action")
    """The action."""
    limit = _Fact[int]("limit")
    """The most bytes that a group's text may have."""
    bytes = _Fact[int]("bytes")
    """How many it has."""
    index = _Fact[int]("index")
    """In a batch: the place of the first such item, counted from 0."""


class PayloadTooLarge(PgfifoError, code="QF009"):
    """A payload or a result is larger than the policy allows."""

    action = _Fact[str]("action")
    """The action."""
    limit = _Fact[int]("limit")
    """The most bytes."""
    bytes = _Fact[int]("bytes")
    """How many it has."""
    index = _Fact[int]("index")
    """In a batch: the place of the first such item, counted from 0."""


class LeaseLost(PgfifoError, code="QF010"):
    """The caller does not own this execution (or is not a living worker) any more; nothing was changed."""

    id = _Fact[int]("id")
    """The execution."""
    attempt = _Fact[int]("attempt")
    """The attempt that the caller spoke for."""
    worker = _Fact[int]("worker")
    """The worker that was declared dead."""


class AlreadyHeld(PgfifoError, code="QF011"):
    """This thread holds a slot of that lane, and waiting for a second one would wait for ever."""

    action = _Fact[str]("action")
    """The action."""
    group = _Fact[str]("group")
    """The lane's group, as text."""


class SlotTimeout(PgfifoError, TimeoutError, code="QF012"):
    """No slot became free in the time that was given."""

    action = _Fact[str]("action")
    """The action."""
    group = _Fact[str]("group")
    """The lane's group, as text."""
    timeout = _Fact[float]("timeout")
    """How long was waited, in seconds."""


class SlotLost(PgfifoError, code="QF013"):
    """The slot was lost while its holder was at work; another may have run beside it."""

    action = _Fact[str]("action")
    """The action."""
    group = _Fact[str]("group")
    """The lane's group, as text."""
    id = _Fact[int]("id")
    """The execution that stood for the slot."""


class ExecutionFailed(PgfifoError, code="QF014"):
    """The execution that was waited for ended with another outcome than ``succeeded``."""

    id = _Fact[int]("id")
    """The execution."""
    outcome = _Fact[str]("outcome")
    """``failed``, ``cancelled`` or ``expired``."""
    error = _Fact[str]("error")
    """What the last attempt said."""


class SchemaMissing(PgfifoError, code="QF015"):
    """pgfifo's schema is not installed in this database, or the role may not see it."""

    database = _Fact[str]("database")
    """The database that was asked."""
    server = _Fact[str]("server")
    """What the server said."""


class SchemaMismatch(PgfifoError, code="QF016"):
    """Schema and package do not understand each other; the message says which to upgrade."""

    version = _Fact[int]("version")
    """The version of the schema in the database."""
    needed = _Fact[int]("needed")
    """The oldest schema version that this package works with."""
    client = _Fact[int]("client")
    """The client version that this package speaks."""
    min_client = _Fact[int]("min_client")
    """The oldest client version that the schema accepts."""
    package = _Fact[int]("package")
    """The schema version that this package would have installed, in place of a newer one."""


class CommitUnknown(PgfifoError, code="QF017"):
    """The connection broke after a change was sent and before the answer came: it may be made or not."""

    action = _Fact[str]("action")
    """The action."""
    request_id = _Fact[str]("request_id")
    """The request id of the call, if it had one."""


class InTransaction(PgfifoError, code="QF018"):
    """The call waits for other transactions, which the caller's own open transaction would hold up."""


class IsolationLevel(PgfifoError, code="QF019"):
    """The call decides about slots, which an old snapshot must not do: it runs at READ COMMITTED only."""

    isolation = _Fact[str]("isolation")
    """The caller's isolation level."""


class TooManyLanes(PgfifoError, code="QF020"):
    """One batch touches more lanes than the server's lock table has room for."""

    lanes = _Fact[int]("lanes")
    """How many lanes the batch touches."""
    limit = _Fact[int]("limit")
    """How many one batch may touch."""


class UnknownExecution(PgfifoError, code="QF021"):
    """No execution has this id; it may be older than its retention."""

    id = _Fact[int]("id")
    """The id that was asked for."""


class InvalidValue(PgfifoError, ValueError, code="QF022"):
    """An argument can not be right; the message names it, and its value."""

    name = _Fact[str]("name")
    """The argument or attribute."""
    value = _Fact[object]("value")
    """The value that was given."""
    index = _Fact[int]("index")
    """In a batch: the place of the first such item, counted from 0."""


class Busy(PgfifoError, code="QF023"):
    """Somebody's open transaction holds what this change needs; it was given up after a short wait."""

    pids = _Fact[list[int]]("pids")
    """The server processes that hold it."""


class WaitTimeout(PgfifoError, TimeoutError, code="QF024"):
    """The execution that was waited for had not ended in the time that was given; it goes on.

    The message says why, as far as `Client.explain` knows.
    """

    id = _Fact[int]("id")
    """The execution."""
    state = _Fact[str]("state")
    """Where it was in its life."""
    timeout = _Fact[float]("timeout")
    """How long was waited, in seconds."""
    reasons = _Fact[list[str]]("reasons")
    """What holds it up, as `Explanation.reasons`; None where that could not be looked up."""
    explanation = _Fact[str]("explanation")
    """The same as a paragraph."""


class InvalidPayload(PgfifoError, ValueError, code="QF025"):
    """A payload does not fit the schema of its action, or what its handler takes it as."""

    action = _Fact[str]("action")
    """The action."""
    id = _Fact[int]("id")
    """The execution, where a handler was to get it."""
    index = _Fact[int]("index")
    """In a batch: the place of the first such item, counted from 0."""
    reason = _Fact[str]("reason")
    """What does not fit, and where."""


class NotPermitted(PgfifoError, code="QF026"):
    """The role may call this function, but not for this action, worker or execution.

    Where it may not call the function at all, PostgreSQL raises ``psycopg.errors.InsufficientPrivilege``.
    """

    role = _Fact[str]("role")
    """The role of the session: who logged in, or what ``set role`` says."""
    action = _Fact[str]("action")
    """The action, where it is about one."""
    owner = _Fact[str]("owner")
    """The role whose worker it is, where it is about one."""


class EventsGone(PgfifoError, code="QF027"):
    """What would come after a cursor is not on record any more: removed by retention, or undone by a restore.

    Nobody can tell what was missed. Look at how things stand, and follow on from `cursor`, or from now.
    """

    action = _Fact[str]("action")
    """The action whose rows were removed; None where whole days were, or after a restore."""
    cursor = _Fact[str]("cursor")
    """Where to go on with what is left; None after a restore: begin anew."""
    epoch = _Fact[int]("epoch")
    """After a restore: the epoch that holds now."""


class SnapshotTooOld(PgfifoError):
    """The caller's transaction began before something that this call has to see; run the transaction again.

    PostgreSQL's own code for this is 40001 (serialization_failure), which programs that repeat their
    transactions look for. It is made from psycopg's error for calls of pgfifo only.
    """

    sqlstate = "40001"


_MISSING = {"3F000", "42P01", "42883"}  # no such schema, table, function
_OURS = re.compile(r"\bpgfifo\b")
_NOT_MY_SESSION = (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)
_POOLER = """
HINT:  Is there a pooler in transaction mode, such as PgBouncer, in between? Then a client needs
prepare_threshold=None, a worker poll_only=True or listen_dsn=…, and a command --poll-only or --listen-dsn."""
_OPPOSITE = """: two transactions wait for each other, and this one has to give way
HINT:  Roll back and run the whole transaction again: nothing of it has happened. It does not come to this
where all transactions enqueue to their lanes in one order, or in one batch."""


def translated(error: psycopg.Error, *, database: str | None = None) -> psycopg.Error:
    """Return the error to raise for what psycopg raised during a call of pgfifo.

    Args:
        error: What psycopg raised.
        database: The database's name, for the message.

    Returns:
        SnapshotTooOld for SQLSTATE 40001, SchemaMissing for an undefined schema, table or function of
        pgfifo's, an error of the same class that says what to do about a deadlock, and about a prepared
        statement that is not there or there already, and in all other cases the error itself.
    """
    state = error.sqlstate
    if state == "40001" and not isinstance(error, PgfifoError):
        return SnapshotTooOld(
            error.diag.message_primary or "this transaction began too early",
            detail=_parsed(error.diag.message_detail),
            hint=error.diag.message_hint or "Roll back and run the whole transaction again.",
        )
    if state in _MISSING and _OURS.search(error.diag.message_primary or ""):
        return schema_missing(database, error.diag.message_primary)
    if isinstance(error, _NOT_MY_SESSION):
        return type(error)(f"{error.diag.message_primary}{_POOLER}")
    if isinstance(error, psycopg.errors.DeadlockDetected):
        return type(error)(f"{error.diag.message_primary}{_OPPOSITE}")
    return error


def schema_missing(database: str | None = None, said: str | None = None) -> SchemaMissing:
    """Return the error for a database that pgfifo is not installed in, or not as this package needs it.

    Args:
        database: Its name.
        said: What the server said.
    """
    where = f"database {database!r}" if database else "this database"
    return SchemaMissing(
        f"pgfifo is not installed in {where}" + (f", or not completely: {said}" if said else ""),
        detail={"database": database, "server": said},
        hint="Run `pgfifo install`, or Client(…).install(), against this database.",
    )
