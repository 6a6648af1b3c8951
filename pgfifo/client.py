"""The client: a method is a signature, a docstring and one call of SQL.

Made by tools/gen_sync.py from its asynchronous twin: change that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Unpack, overload

import psycopg

from pgfifo import compatibility, groups, policyfile, schema
from pgfifo._batch import Batch, smaller
from pgfifo._given import BIGINT, wrong
from pgfifo._looking import looked_at
from pgfifo._producing import producing
from pgfifo.actions import Actions
from pgfifo.calls import fetch
from pgfifo.durations import Duration, optional_seconds
from pgfifo.errors import InvalidValue, PgfifoError, TooManyLanes, UnknownExecution, translated
from pgfifo.filters import Filter, Which, filter_json
from pgfifo.following import Following
from pgfifo.groups import Group
from pgfifo.jsontext import array, dumps
from pgfifo.models import (
    ActionOverview,
    ActionStats,
    AuditEntry,
    Cancelled,
    Diagnosis,
    Enqueued,
    Event,
    EventKind,
    ExecutionInfo,
    Explanation,
    Finding,
    Grant,
    ImportStatus,
    Lane,
    LaneStats,
    Metric,
    Minute,
    OnItem,
    OrderViolation,
    Pace,
    Place,
    PolicyChange,
    PolicyDifference,
    PolicyOverride,
    PolicyRecord,
    PolicyValue,
    Position,
    Retried,
    RetryAnswer,
    Role,
    ScheduleInfo,
    SchemaInfo,
    SharedLimit,
    SharedLimitChange,
    SlotInfo,
    WaitTimes,
    WorkerInfo,
    select,
)
from pgfifo.policies import Policy, SharedLimitValues, checked, checked_limit
from pgfifo.scheduling import Missed, declaration, schedule
from pgfifo.slots import Holding, Slot, wish
from pgfifo.waiting import EXPLAIN

_EXECUTIONS = "pgfifo.executions"
_AT_ONCE = 1000

_LASTING = "make_interval(secs => %s::float8)"
_OVERRIDE = f"pgfifo.override_policy(%s::text, %s::jsonb, {_LASTING}, %s::text, %s::text)"
_OVERRIDE_PACK = f"pgfifo.override_pack_policy(%s::text, %s::jsonb, {_LASTING}, %s::text)"
_OVERRIDE_DEFAULT = f"pgfifo.override_default_policy(%s::jsonb, {_LASTING}, %s::text)"
_ENQUEUE = """
    select id, created, group_text
    from pgfifo.enqueue_one(%s::text, %s::jsonb, %s::text, %s::jsonb, %s::text[],
      %s::text, %s::text, %s::text, %s::timestamptz, make_interval(secs => %s::float8),
      %s::text)
"""
_FOR_TESTING = """
    update pgfifo.installation i set testing = true
    where i.testing or not exists (select from pgfifo.actions) returning 1
"""
_ENQUEUE_MANY = """
    select id, created, group_text
    from pgfifo.enqueue_many(%s::text, %s::jsonb[], %s::text[], %s::jsonb[], %s::text[],
      %s::text[], %s::text[], %s::text[], %s::timestamptz[], make_interval(secs => %s::float8),
      %s::text)
    order by ordinal
"""


@looked_at
class Client(Holding, Following):
    """Enqueue, look, and operate.

    ::

        with pgfifo.Client("postgresql://…") as fifo:
            job = fifo.enqueue("deploy", {"env": "prod", "sha": "abc123"})

    It connects when it is first used, and never starts a server. Reads, and calls that may be made twice, are
    repeated on a fresh connection when the connection breaks. Many threads can use it at
    once; after a fork, each process has connections of its own.
    """

    # Schema

    def install(self, *, testing: bool = False) -> None:
        """Install the schema, or bring it to this package's version; do nothing where it is there already.

        It is safe from many processes at once.

        Args:
            testing: Whether it is for tests: pgfifo's clock can be moved there, and all be removed. Defaults
                to false, which leaves that as it is.

        Raises:
            SchemaMismatch: The schema is newer than this package.
            InvalidValue: It is to be for testing, and is in use already.
        """
        with self._lend() as conn:
            [(current,)] = fetch(conn, "select to_regclass('pgfifo.installation') is not null", ())
            if current:
                query = "select script_hash = %s::text from pgfifo.installation"
                current = fetch(conn, query, (schema.script_hash(),)) == [(True,)]
        if not current:
            self._script(schema.sql_text())
        if testing and not self._rows(_FOR_TESTING, (), _nothing):
            raise InvalidValue(
                "this installation of pgfifo is in use, and is not for testing",
                detail={"name": "testing"},
                hint="Use a database of its own for tests.",
            )

    def upgrade(self) -> None:
        """Bring the schema to this package's version.

        Raises:
            SchemaMissing: There is none.
            SchemaMismatch: It is newer than this package.
        """
        self.schema_info()
        self.install()

    def uninstall(self) -> None:
        """Remove the schema with everything in it: what waits, what runs, and the history."""
        self._script("drop schema if exists pgfifo cascade")

    def create_roles(self) -> list[str]:
        """Make the roles pgfifo_producer, _worker, _observer and _admin, and grant them what they are for.

        For the schema's owner. Roles belong to the whole server: those that are there are used as they are.

        Returns:
            The names of those that are new.

        Raises:
            NotPermitted: One is missing, and the owner has no CREATEROLE; the hint says what to do then.
        """
        return self._row("select pgfifo.create_roles()", (), list)

    def grant_role(self, role: Role, to: str, *, connection: object = None) -> bool:
        """Let a role of the database be a producer, worker, observer or admin.

        Args:
            role: What it may do as.
            to: The role of the database; its members may do the same.
            connection: The caller's connection; the grant commits or rolls back with its transaction.

        Returns:
            Whether that changed anything.

        Raises:
            InvalidValue: There is no such role.
        """
        return self._row(
            "select pgfifo.grant_role(%s::text, %s::text)", (role, to), bool, connection=connection
        )

    def revoke_role(self, role: Role, from_: str, *, connection: object = None) -> bool:
        """Undo `grant_role`.

        Args:
            role: What it shall not do any more.
            from_: The role of the database.
            connection: The caller's connection; it commits or rolls back with its transaction.

        Returns:
            Whether that changed anything.

        Raises:
            InvalidValue: There is no such role.
        """
        return self._row(
            "select pgfifo.revoke_role(%s::text, %s::text)", (role, from_), bool, connection=connection
        )

    def grant_enqueue(self, action: str, to: str, *, connection: object = None) -> bool:
        """Let a role of the database enqueue to one action, and to others only as far as granted too.

        Args:
            action: The action; a new name creates it.
            to: The role of the database.
            connection: The caller's connection; the grant commits or rolls back with its transaction.

        Returns:
            Whether that changed anything.

        Raises:
            InvalidValue: There is no such role.
        """
        return self._row(
            "select pgfifo.grant_enqueue(%s::text, %s::text)", (action, to), bool, connection=connection
        )

    def revoke_enqueue(self, action: str, from_: str, *, connection: object = None) -> bool:
        """Undo `grant_enqueue`.

        Args:
            action: The action.
            from_: The role of the database.
            connection: The caller's connection; it commits or rolls back with its transaction.

        Returns:
            Whether that changed anything.

        Raises:
            InvalidValue: There is no such role.
            UnknownAction: There is no such action; the hint names the nearest.
        """
        return self._row(
            "select pgfifo.revoke_enqueue(%s::text, %s::text)", (action, from_), bool, connection=connection
        )

    def grants(self) -> list[Grant]:
        """Return which roles of the database were granted what."""
        return self._rows(select(Grant, "pgfifo.grants order by role, may, action"), (), Grant)

    def schema_info(self) -> SchemaInfo:
        """Return what is installed, also where this package does not fit it.

        Raises:
            SchemaMissing: There is none.
        """
        with self._lend() as conn:
            try:
                [row] = fetch(conn, compatibility.SCHEMA_INFO, ())
            except psycopg.Error as error:
                raise translated(error, database=conn.info.dbname) from error
        return SchemaInfo(*row)

    # Producing

    def declare(self, actions: Actions) -> None:
        """Write the decorators' values into the database, as defaults: an operator's values win over them.

        Their schedules too: those that these actions do not have any more are removed.

        Args:
            actions: The registry. Its actions are created where they are new; the others stay as they are.

        Raises:
            Busy: A change of ``group_by`` or ``ordering`` has to wait for somebody's open enqueue.
        """
        if not isinstance(actions, Actions):
            raise wrong("actions", actions, "is no registry of actions", "Give a pgfifo.Actions.")
        declared = [(action.name, dumps(dict(action.values), "policy")) for action in actions]
        if declared:
            self._rows(
                "select pgfifo.declare_action(d.name, d.policy) from unnest(%s::text[], %s::jsonb[])"
                " with ordinality as d(name, policy, n) order by d.n",
                [array([name for name, _ in declared]), array([policy for _, policy in declared])],
                _nothing,
            )
            schedules = {action.name: action.schedules for action in actions}
            self._rows("select pgfifo.declare_schedules(%s::jsonb)", (declaration(schedules),), _nothing)

    @producing
    def enqueue(
        self,
        action: str,
        payload: object = None,
        *,
        group: Group | None = None,
        headers: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        request_id: str | None = None,
        dedup_key: str | None = None,
        item_key: str | None = None,
        run_at: datetime | None = None,
        delay: Duration | None = None,
        on_item: OnItem = "immutable",
        connection: object = None,
    ) -> Enqueued:
        """Put one execution at the end of its lane, now or later.

        Args:
            action: The action; a new name creates it, with inherited defaults.
            payload: Any JSON value, or an instance of a dataclass or model; None stands for ``{}``.
            group: Instead of what the payload says: a mapping from path to value, or text.
            headers: What travels beside the payload, such as a trace context.
            tags: Texts to find it by.
            request_id: A name for this request, unique within its action. Made again with the same one, as
                long as the action's ``retention`` (an hour at least), it gives back the first one's id and
                changes nothing. With it the call is repeated by itself when the connection breaks.
            dedup_key: A name for this piece of work, unique within its action. While one with it is delayed,
                waiting or active, nothing is enqueued, and that one's id comes back.
            item_key: A name for what it is about, unique within its lane among those that wait. While one
                with it waits and was never started, that one keeps its place, `on_item` says what its payload
                becomes, and its id comes back; nothing of the lane starts until this has committed.
            run_at: When it is to join the end of its lane, with a time zone. Until then it is delayed: in
                nobody's way, and not counted by ``max_queue_length``. Defaults to now.
            delay: Instead of a time: so many seconds from now, by the server's clock; or a timedelta, or
                text (``1h30m``).
            on_item: ``immutable``: the payload of the one that waits stays; ``replace``: it becomes this one;
                ``merge_patch``: this one is laid over it (RFC 7396). Defaults to ``immutable``.
            connection: The caller's psycopg, SQLAlchemy or Django connection or session. The enqueue commits
                or rolls back with its transaction. Without one it is committed when the call returns.

        Returns:
            Its id, its lane, and whether it is new or was there already.

        Raises:
            QueueFull: The lane has ``max_queue_length`` waiting executions.
            ActionClosed: The action or the lane was closed.
            GroupMismatch: The group does not fit the action's ``group_by``.
            GroupTooLong: The group has more than 1,024 bytes.
            PayloadTooLarge: The payload is larger than ``max_payload``.
            InvalidPayload: The payload does not fit the schema of the action, which this client knows.
            InvalidValue: An argument cannot be right, such as a payload that is not JSON.
            CommitUnknown: The connection broke before the answer came; with a `request_id`, several times.
            SnapshotTooOld: The caller's transaction, above READ COMMITTED, began too early.
            IsolationLevel: An `item_key` in a transaction above READ COMMITTED.
            Busy: An `item_key`, and somebody's open transaction holds the lane of the one that waits.
            SchemaMissing: pgfifo is not installed in this database.
            SchemaMismatch: Schema and package do not fit.
        """
        text = "{}" if payload is None else dumps(payload)
        if self._payloads is not None:
            self._payloads.check(action, [text])
        return self._row(
            _ENQUEUE,
            (
                action,
                text,
                groups.to_text(group),
                None if headers is None else dumps(headers, "header"),
                None if tags is None else list(tags),
                request_id,
                dedup_key,
                item_key,
                run_at,
                delay,
                on_item,
            ),
            lambda id, created, group_text: Enqueued(id, created, Lane(action, group_text)),  # noqa: A006
            connection=connection,
            once=request_id is None,
            request_id=request_id,
        )

    @producing
    def enqueue_many(
        self,
        action: str,
        items: Iterable[object],
        *,
        group: Group | None = None,
        groups: Sequence[Group | None] | None = None,
        headers: Sequence[Mapping[str, Any] | None] | None = None,
        tags: Sequence[str] | None = None,
        request_ids: Sequence[str | None] | None = None,
        dedup_keys: Sequence[str | None] | None = None,
        item_keys: Sequence[str | None] | None = None,
        run_ats: Sequence[datetime | None] | None = None,
        delay: Duration | None = None,
        on_item: OnItem = "immutable",
        connection: object = None,
        split: bool = False,
    ) -> list[Enqueued]:
        """Put many executions of one action at the ends of their lanes, all or nothing.

        Args:
            action: The action; a new name creates it, with inherited defaults.
            items: The payloads, in the order in which they are to start; None stands for ``{}``.
            group: One group for all of them.
            groups: One group for each, or None for what its payload says.
            headers: One mapping for each, or None.
            tags: Texts to find them by, for the whole batch.
            request_ids: One for each, or None; see `enqueue`. If each has one, the call repeats by itself.
            dedup_keys: One for each, or None; see `enqueue`.
            item_keys: One for each, or None; see `enqueue`.
            run_ats: A time for each, or None for now; see `enqueue`.
            delay: Delay all of them by so many seconds; or a timedelta, or text (``1h30m``).
            on_item: For all of them; see `enqueue`.
            connection: As in `enqueue`.
            split: Allow more than one transaction, if there are more lanes than one may touch. When a later
                part is refused, the earlier ones stay: ``error.detail["enqueued"]`` says how many items.

        Returns:
            For each item its id, its lane, and whether it is new, in input order.

        Raises:
            TooManyLanes: The batch touches more lanes than one may; `split` would allow to divide it.
            CommitUnknown: The connection broke before the answer came.
            PgfifoError: What `enqueue` raises; ``error.detail["index"]`` is the first item that is refused.
        """
        batch = Batch(
            action,
            items,
            group,
            groups,
            headers,
            tags,
            request_ids,
            dedup_keys,
            item_keys,
            run_ats,
            delay,
            on_item,
        )
        if not len(batch):
            return []
        if self._payloads is not None:
            self._payloads.check(action, batch.payloads, many=True)
        if split and connection is not None:
            raise InvalidValue(
                "split needs transactions of its own, and connection= has only one",
                detail={"name": "split"},
                hint="Leave one of them out.",
            )
        lanes: dict[str, Lane] = {}

        def make(id: int, created: bool, group_text: str) -> Enqueued:  # noqa: A002
            lane = lanes.get(group_text)
            if lane is None:
                lane = lanes[group_text] = Lane(action, group_text)
            return Enqueued(id, created, lane)

        once = request_ids is None or None in request_ids
        first = None if once or not request_ids else request_ids[0]
        done: list[Enqueued] = []
        size = len(batch)
        while len(done) < len(batch):
            start = len(done)
            try:
                done += self._rows(
                    _ENQUEUE_MANY,
                    batch.arguments(start, start + size),
                    make,
                    connection=connection,
                    once=once,
                    request_id=first,
                )
            except TooManyLanes as error:
                if not split or size == 1:
                    raise
                size = smaller(size, error)
            except PgfifoError as error:
                if start:
                    error.detail["enqueued"] = start
                    if isinstance(error.detail.get("index"), int):
                        error.detail["index"] += start
                raise
        return done

    def slot(
        self,
        action: str,
        payload: object = None,
        *,
        group: Group | None = None,
        timeout: Duration | None = None,
        headers: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        connection: object = None,
    ) -> Slot:
        """Use a slot of a lane as a lock around code of this program's own.

        ::

            with fifo.slot("migrate-db", group="prod", timeout=60) as slot:
                ...  # no more than the lane's max_concurrent are in here, or in a worker

        It waits in the lane's line, in order, among other programs and the executions that workers run; there
        need not be any worker. Leaving it, on an exception too, gives the slot on; when this process is
        killed, others notice within a few seconds. It counts as an execution, in limits, statistics and the
        history: succeeded, or failed with what was raised, and never run by anybody else.

        A thread in the background says every few seconds that this process lives, on a connection of its own
        that all slots of this client share. Should it not be heard of for 30 seconds, the slot is lost.

        Args:
            action: The action; a new name creates it, with inherited defaults: one slot.
            payload: What people see who look, and what the group is made of; None stands for ``{}``.
            group: Instead of what the payload says: a mapping from path to value, or text.
            timeout: How long to wait, in seconds, as a timedelta or text (``1m30s``). Defaults to no limit.
            headers: As in `enqueue`.
            tags: As in `enqueue`.
            connection: The caller's connection for the calls, in autocommit mode. Defaults to the client's
                own.

        Returns:
            A slot that is not held yet: it is waited for when the ``with`` is entered.

        Raises:
            SlotTimeout: On entering: no slot became free in time. The place in the line is given up.
            AlreadyHeld: On entering: this thread or task holds all slots of that lane itself.
            SlotLost: On leaving: it was taken from this process, which was not heard of for too long, or
                somebody has ended it. What runs in an async ``with`` is cancelled then.
            ExecutionFailed: On entering: somebody has cancelled its place in the line. On leaving: somebody
                has asked to cancel it, and what ran in the async ``with`` was cancelled.
            InTransaction: On entering: the connection is in a transaction, or begins one.
            PgfifoError: On entering: what `enqueue` raises.
        """
        return Slot(self, wish(action, payload, group, headers, tags, timeout, connection))

    def try_slot(
        self,
        action: str,
        payload: object = None,
        *,
        group: Group | None = None,
        headers: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        connection: object = None,
    ) -> Slot | None:
        """Take a slot of a lane if one can be had at once.

        ::

            slot = fifo.try_slot("report")
            if slot is not None:
                with slot:
                    ...

        Args:
            action: As in `slot`; so are all others.
            payload: As in `slot`.
            group: As in `slot`.
            headers: As in `slot`.
            tags: As in `slot`.
            connection: As in `slot`.

        Returns:
            The slot, which is held from now on, until it is left or released. None where it would have to be
            waited for, for whatever reason; then nothing has changed.

        Raises:
            InTransaction: The connection is in a transaction, or begins one with its next statement.
            PgfifoError: What `enqueue` raises, unless it says that there is no room now.
        """
        slot = Slot(self, wish(action, payload, group, headers, tags, None, connection))
        return None if slot._acquire(at_once=True) is None else slot  # noqa: SLF001 - it is ours

    def wait(
        self,
        id: int,  # noqa: A002
        *,
        timeout: Duration | None = None,
        connection: object = None,
    ) -> Any:  # noqa: ANN401 - any JSON value
        """Wait for the end of an execution, and return its result.

        Where a connection can be kept for it the end is heard of at once: half of ``max_size`` at a time,
        unless a pooler is in between. Otherwise it is looked for, after 20 milliseconds first and then after
        a tenth of the time that was waited, each second at the latest.

        Args:
            id: The execution.
            timeout: How long to wait, in seconds, as a timedelta or text (``1m30s``). Defaults to no limit.
            connection: The caller's connection to look on, in autocommit mode. Defaults to the client's own.

        Returns:
            The result. None also where it could not be kept: ``execution(id).result_error`` says why.

        Raises:
            ExecutionFailed: It has failed, was cancelled or has expired; with its outcome and its error.
            WaitTimeout: It had not ended in time. It goes on.
            UnknownExecution: There is no such execution yet, or its retention is over.
            InTransaction: The connection is in a transaction, or begins one with its next statement.
        """
        return self._outcome(id, timeout, connection)

    def enqueue_and_wait(
        self,
        action: str,
        payload: object = None,
        *,
        timeout: Duration | None = None,
        group: Group | None = None,
        headers: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        request_id: str | None = None,
        dedup_key: str | None = None,
        item_key: str | None = None,
        run_at: datetime | None = None,
        delay: Duration | None = None,
        connection: object = None,
    ) -> Any:  # noqa: ANN401 - any JSON value
        """Put one execution at the end of its lane, wait for its end, and return its result.

        Args:
            action: As in `enqueue`; so are all that are not told here.
            payload: As in `enqueue`.
            timeout: How long to wait, in seconds, as a timedelta or text (``1m30s``). Defaults to no limit.
            group: As in `enqueue`.
            headers: As in `enqueue`.
            tags: As in `enqueue`.
            request_id: As in `enqueue`.
            dedup_key: As in `enqueue`.
            item_key: As in `enqueue`.
            run_at: As in `enqueue`.
            delay: As in `enqueue`.
            connection: The caller's connection, in autocommit mode. Defaults to the client's own.

        Returns:
            The result, as `wait` does.

        Raises:
            ExecutionFailed: It has failed, was cancelled or has expired; with its outcome and its error.
            WaitTimeout: It had not ended in time. It goes on; ``error.id`` says which it is.
            InTransaction: The connection is in a transaction, or begins one with its next statement.
            PgfifoError: What `enqueue` raises.
        """
        given = self._outside_of_transactions(connection)
        job = self.enqueue(
            action,
            payload,
            group=group,
            headers=headers,
            tags=tags,
            request_id=request_id,
            dedup_key=dedup_key,
            item_key=item_key,
            run_at=run_at,
            delay=delay,
            connection=given,
        )
        return self._outcome(job.id, timeout, given)

    def cancel(
        self,
        id: int,  # noqa: A002
        *,
        reason: str | None = None,
        connection: object = None,
    ) -> str:
        """Cancel an execution: at once if it waits; if it is active, its worker is asked to.

        Args:
            id: The execution.
            reason: Why, for those who look it up.
            connection: The caller's connection; the cancel commits or rolls back with its transaction.

        Returns:
            ``cancelled``, ``requested``, or the outcome that it already has.

        Raises:
            UnknownExecution: There is no such execution, or it is older than its retention.
            IsolationLevel: The caller's transaction is above READ COMMITTED.
        """
        return self._row(
            "select pgfifo.cancel(%s::bigint, %s::text)", (id, reason), _text, connection=connection
        )

    def cancel_many(
        self, ids: Iterable[int], *, reason: str | None = None, connection: object = None
    ) -> list[str]:
        """Cancel many executions, each as `cancel` does.

        They are cancelled in parts of up to 1,000, each in a transaction of its own; with `connection`, or
        where the client has but one connection, in one part. It does no harm to call it again.

        Args:
            ids: The executions.
            reason: Why, for those who look them up.
            connection: The caller's connection; the cancels commit or roll back with its transaction. Then
                there may be up to 10,000 ids, in as many lanes as one transaction may touch.

        Returns:
            An answer for each, in input order: ``cancelled``, ``requested``, the outcome that it already
            has, ``unknown`` where there is no such execution, or ``busy`` where another transaction holds its
            lane.

        Raises:
            InvalidValue: Something in the list is no id; nothing was cancelled.
            TooManyLanes: With `connection`, the ids are in more lanes than one transaction may touch.
            IsolationLevel: The caller's transaction is above READ COMMITTED.
        """
        given = list(ids)
        joined = connection is not None or self._one is not None
        size = len(given) if joined else _AT_ONCE
        answers: list[str] = []
        while len(answers) < len(given):
            part = given[len(answers) : len(answers) + size]
            try:
                answers += self._rows(
                    "select answer from pgfifo.cancel_many(%s::bigint[], %s::text) order by ordinal",
                    (part, reason),
                    _text,
                    connection=connection,
                )
            except TooManyLanes as error:
                if joined:
                    raise
                size = smaller(len(part), error)
        return answers

    def cancel_where(
        self, *, reason: str | None = None, dry_run: bool = False, **where: Unpack[Filter]
    ) -> Cancelled:
        """Cancel all executions that fit a filter: those that wait at once; workers are asked for the others.

        It goes through them a bounded piece at a time, each in a transaction of its own. What is enqueued
        after the call began is left alone.

        Args:
            reason: Why, for those who look them up.
            dry_run: Only count them.
            **where: Keys of `Filter`; at least one.

        Returns:
            How many were cancelled, of how many the worker was asked, and how many lanes were passed by.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            InvalidValue: The filter says nothing, or something that cannot be.
        """
        selection = filter_json(where)
        cancelled = requested = busy = 0
        after: str | None = None
        while True:
            part = self._row(
                "select cancelled, requested, busy, next from pgfifo.cancel_where("
                "%s::jsonb, %s::text, %s::boolean, %s::text, 5000)",
                (selection, reason, dry_run, after),
                _values,
            )
            cancelled, requested, busy = cancelled + part[0], requested + part[1], busy + part[2]
            after = part[3]
            if after is None:
                return Cancelled(cancelled, requested, busy)

    def reschedule(
        self,
        id: int,  # noqa: A002
        *,
        run_at: datetime | None = None,
        delay: Duration | None = None,
        connection: object = None,
    ) -> datetime:
        """Change when a delayed execution joins its lane, or when a held one is tried again.

        Args:
            id: The execution.
            run_at: When, with a time zone. Defaults to now.
            delay: Instead of a time: in so many seconds, or a timedelta, or text (``1h30m``).
            connection: The caller's connection; the change commits or rolls back with its transaction.

        Returns:
            When it would have been.

        Raises:
            InvalidValue: It is neither delayed nor held, or an argument cannot be right.
            Busy: It is joining its lane in somebody's open transaction.
            UnknownExecution: There is no such execution, or it is older than its retention.
            IsolationLevel: The caller's transaction is above READ COMMITTED.
            CommitUnknown: The connection broke before the answer came.
        """
        return self._row(
            "select pgfifo.reschedule(%s::bigint, %s::timestamptz, make_interval(secs => %s::float8))",
            (id, run_at, delay),
            _time,
            connection=connection,
            once=True,
        )

    def retry(self, id: int, *, head: bool = False, connection: object = None) -> int:  # noqa: A002
        """Put a finished execution back: a new one with the same content, at the end of its line.

        The old one keeps its outcome; the new one has its id as ``retry_of``.

        Args:
            id: The finished execution.
            head: Put it into its old place instead, before all younger ones that wait.
            connection: The caller's connection; the new one commits or rolls back with its transaction.

        Returns:
            The new execution's id.

        Raises:
            UnknownExecution: There is no such execution, or it is older than its retention.
            InvalidValue: It is not finished, or a retry of it is not, or has its old place.
            QueueFull: The line, or those of the action, are full; an old place is not asked for.
            QuotaExceeded: A quota is used up; a retry counts for it like an enqueue.
            ConcurrencyLimit: It could not start at once, with ``on_limit = 'cancel'``; an old place is not
                asked for.
            RateLimit: The same, because of a rate, a spacing or a gap.
            ActionClosed: The action or the lane was closed.
            Busy: Another transaction holds its lane, or what a quota of its is counted by.
            IsolationLevel: The caller's transaction is above READ COMMITTED.
            CommitUnknown: The connection broke before the answer came.
        """
        return self._row(
            "select pgfifo.retry(%s::bigint, %s::boolean)", (id, head), int, connection=connection, once=True
        )

    def retry_many(
        self, ids: Iterable[int], *, head: bool = False, connection: object = None
    ) -> list[RetryAnswer]:
        """Put many finished executions back, each as `retry` does, and as many as can be.

        They are put back in parts of up to 1,000, each in a transaction of its own; with `connection`, or
        where the client has but one connection, in one part. It does no harm to call it again: one whose
        retry is not finished is not put back a second time.

        Args:
            ids: The finished executions, in the order in which they are to start.
            head: Put them into their old places instead.
            connection: The caller's connection; they commit or roll back with its transaction. Then there may
                be up to 10,000 ids, of as many lanes as one transaction may touch.

        Returns:
            An answer for each, in input order.

        Raises:
            InvalidValue: Something in the list is no id; nothing was put back.
            TooManyLanes: With `connection`, the ids are of more lanes than one transaction may touch.
            IsolationLevel: The caller's transaction is above READ COMMITTED.
        """
        given = list(ids)
        joined = connection is not None or self._one is not None
        size = len(given) if joined else _AT_ONCE
        answers: list[RetryAnswer] = []
        while len(answers) < len(given):
            part = given[len(answers) : len(answers) + size]
            try:
                answers += self._rows(
                    "select id, answer, retry_id from pgfifo.retry_many(%s::bigint[], %s::boolean)"
                    " order by ordinal",
                    (part, head),
                    RetryAnswer,
                    connection=connection,
                )
            except TooManyLanes as error:
                if joined:
                    raise
                size = smaller(len(part), error)
        return answers

    def retry_where(self, *, head: bool = False, dry_run: bool = False, **where: Unpack[Filter]) -> Retried:
        """Put back all finished executions that fit a filter; if it names no state, those that failed.

        It goes through them a bounded piece at a time, each in a transaction of its own, action by action in
        the order in which they ended. One that was put back before is passed over, so it does no harm to call
        it again.

        Args:
            head: Put them into their old places, not at the ends of their lines.
            dry_run: Only count them.
            **where: Keys of `Filter`; at least one.

        Returns:
            How many were put back, and how many could not be; and the new ones.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            InvalidValue: The filter says nothing, or something that cannot be.
        """
        selection = filter_json(where)
        retried = refused = busy = 0
        ids: list[int] = []
        after: str | None = None
        while True:
            part = self._row(
                "select retried, refused, busy, next, retry_ids from pgfifo.retry_where("
                "%s::jsonb, %s::boolean, %s::boolean, %s::text, 5000)",
                (selection, head, dry_run, after),
                _values,
            )
            retried, refused, busy = retried + part[0], refused + part[1], busy + part[2]
            ids += part[4]
            after = part[3]
            if after is None:
                return Retried(retried, refused, busy, ids)

    def finish(
        self,
        id: int,  # noqa: A002
        attempt: int,
        outcome: Literal["succeeded", "failed", "cancelled"],
        *,
        result: object = None,
        error: str | None = None,
        retry: bool = True,
        after: Duration | None = None,
        count: bool = True,
        connection: object = None,
    ) -> str:
        """Finish an active execution, in the name of the worker that has it.

        Args:
            id: The execution.
            attempt: The attempt that is spoken for; with the id, the fencing token.
            outcome: ``succeeded``, ``failed`` or ``cancelled``.
            result: What it gave, any JSON value.
            error: What went wrong.
            retry: Whether a failed one may be tried again, as its policy says.
            after: When it is tried again: in so many seconds, or a timedelta, or text (``1m30s``). Defaults
                to the backoff of its policy.
            count: Whether it counts as a failure. Without that it is only put off.
            connection: The caller's connection; the end commits or rolls back with its transaction.

        Returns:
            The outcome; or ``held`` when it waits for its next attempt, ``delayed`` if without its slot.

        Raises:
            LeaseLost: This attempt is over, or another has begun; nothing was changed.
            IsolationLevel: The caller's transaction is above READ COMMITTED.
            InvalidValue: The result is not JSON.
            CommitUnknown: The connection broke before the answer to a failure came.
        """
        return self._row(
            "select pgfifo.finish(%s::bigint, %s::integer, %s::text, %s::jsonb, %s::text, %s::boolean,"
            " make_interval(secs => %s::float8), %s::boolean)",
            (
                *(id, attempt, outcome, None if result is None else dumps(result, "result")),
                *(error, retry, after, count),
            ),
            _text,
            connection=connection,
            once=outcome
            == "failed",  # said twice, the second would find it held, and take that for a lost lease
        )

    def finish_execution(
        self,
        id: int,  # noqa: A002
        outcome: Literal["succeeded", "failed", "cancelled"],
        *,
        reason: str | None = None,
        result: object = None,
        connection: object = None,
    ) -> bool:
        """End an execution as an operator, whatever it is doing: running, held or waiting.

        Whoever has it loses it: what he says of it later is refused with `LeaseLost`, and his handler is
        told to stop, at once or by his next heartbeat. Until then it may go on beside the next one of its
        lane.

        Args:
            id: The execution.
            outcome: ``succeeded``, ``failed`` or ``cancelled``.
            reason: Why, for those who look it up.
            result: What it gave, any JSON value; for ``succeeded`` only.
            connection: The caller's connection; the end commits or rolls back with its transaction.

        Returns:
            Whether it was ended by this call: False if it had an outcome already.

        Raises:
            UnknownExecution: There is no such execution, or it is older than its retention.
            IsolationLevel: The caller's transaction is above READ COMMITTED.
            InvalidValue: The outcome is none, or the result does not go with it.
            Busy: Somebody's open transaction keeps its lane.
        """
        return self._row(
            "select pgfifo.finish_execution(%s::bigint, %s::text, %s::text, %s::jsonb)",
            (id, outcome, reason, None if result is None else dumps(result, "result")),
            bool,
            connection=connection,
        )

    def release(self, id: int, attempt: int, *, connection: object = None) -> None:  # noqa: A002
        """Give an active execution back to its place in the line, unharmed.

        Args:
            id: The execution.
            attempt: The attempt that is spoken for.
            connection: The caller's connection; it commits or rolls back with its transaction.

        Raises:
            LeaseLost: This attempt is over, or another has begun; nothing was changed.
            IsolationLevel: The caller's transaction is above READ COMMITTED.
            CommitUnknown: The connection broke before the answer came.
        """
        self._row(
            "select pgfifo.release(%s::bigint, %s::integer)",
            (id, attempt),
            _nothing,
            connection=connection,
            once=True,
        )

    # Looking

    def execution(self, id: int) -> ExecutionInfo:  # noqa: A002
        """Look an execution up, waiting, active or finished.

        Args:
            id: The execution.

        Raises:
            UnknownExecution: There is no such execution, or it is older than its retention.
        """
        rows = self._rows(select(ExecutionInfo, _EXECUTIONS) + " where id = %s::bigint", (id,), ExecutionInfo)
        if not rows:
            raise UnknownExecution(
                f"there is no execution {id}",
                detail={"id": id},
                hint="It may be older than its action's retention.",
            )
        return rows[0]

    def executions(
        self,
        action: str | None = None,
        *,
        before: int | None = None,
        limit: int = 100,
        **where: Unpack[Which],
    ) -> list[ExecutionInfo]:
        """List executions, the youngest first.

        Args:
            action: Only this action's; defaults to all.
            before: Only ids below this one, to go on after the last of a list.
            limit: The most rows. Defaults to 100.
            **where: Keys of `Filter`: only those that fit; ``state="waiting"``, ``tags=["nightly"]``.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            InvalidValue: A group without an action, or a state that does not exist.
        """
        wanted: Filter = {"action": action, **where}  # type: ignore[typeddict-item]  # None says nothing
        if before is not None:
            wanted["to_id"] = min(before - 1, wanted.get("to_id") or before)
        return self._rows(
            select(ExecutionInfo, "pgfifo.list_executions(%s::jsonb, %s::integer)"),
            (filter_json(wanted, empty=True), limit),
            ExecutionInfo,
        )

    def position(self, id: int) -> Position:  # noqa: A002
        """Return how far an execution is from its turn, and when that will probably be.

        Args:
            id: The execution.

        Raises:
            UnknownExecution: There is no such execution, or it is older than its retention.
        """
        query = "select pos, coalesce(exact, true), eta_seconds, eta_basis from pgfifo.position(%s::bigint)"
        return self._row(query, (id,), Position)

    def explain(self, id: int) -> Explanation:  # noqa: A002
        """Say why an execution is not running, for people and for programs. Only reads.

        Args:
            id: The execution.

        Raises:
            UnknownExecution: There is no such execution, or it is older than its retention.
        """
        return self._row(EXPLAIN, (id,), Explanation)

    @overload
    def stats(self) -> list[ActionStats]: ...
    @overload
    def stats(self, action: str) -> ActionStats: ...
    def stats(self, action: str | None = None) -> list[ActionStats] | ActionStats:
        """Return the numbers of one action, or of each; all of one instant.

        Args:
            action: The action; without it a list of all, by name, is returned.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
        """
        query = select(ActionStats, "pgfifo.overview(%s::text, p_exact => true)")
        if action is None:
            return self._rows(query, (None,), ActionStats)
        return self._row(query, (action,), ActionStats)

    def lanes(
        self, action: str | None = None, group: Group | None = None, *, limit: int = 1000
    ) -> list[LaneStats]:
        """Return the numbers of lanes, by action and group; all of one instant.

        Args:
            action: Only this action's; defaults to all.
            group: Only this group's; needs the action.
            limit: The most rows. Defaults to 1,000.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            InvalidValue: A group without an action.
        """
        conditions, arguments = self._lanes_condition(action, group)
        return self._rows(
            select(LaneStats, "pgfifo.lane_stats") + f" where {' and '.join(conditions)}"
            " order by action, group_text limit %s::bigint",
            [*arguments, limit],
            LaneStats,
        )

    def _lanes_condition(self, action: str | None, group: Group | None) -> tuple[list[str], list[object]]:
        """Return the conditions that choose an action's or a lane's rows, and their arguments."""
        if action is None:
            if group is not None:
                raise InvalidValue(
                    "a group says which lane only together with its action", detail={"name": "group"}
                )
            return ["true"], []
        self._refuse_unknown(action)
        if group is None:
            return ["action = %s::text"], [action]
        text = self._row(
            "select pgfifo.group_text(%s::text, null, %s::text)", (action, groups.to_text(group)), _text
        )
        return ["action = %s::text", "group_text = %s::text"], [action, text]

    def _refuse_unknown(self, action: str) -> None:
        self._rows("select from pgfifo.effective_policy(%s::text)", (action,), _nothing)

    def pace(self, action: str, minutes: int = 10) -> Pace:
        """Return how an action has got on in its last full minutes; the view ``minutes`` has each of them.

        Args:
            action: The action.
            minutes: How many minutes, 1 to 10,080: they are kept for a week. Defaults to 10.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            InvalidValue: Too few or too many minutes.
        """
        return self._row(select(Pace, "pgfifo.pace(%s::text, %s::integer)"), (action, minutes), Pace)

    def overview(self, action: str | None = None) -> list[ActionOverview]:
        """Return the numbers of each action, or of one, as `stats` does; quicker where executions expire.

        What has waited for longer than its ``max_wait`` counts as waiting until somebody writes its end down.

        Args:
            action: Only this one.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
        """
        return self._rows(select(ActionOverview, "pgfifo.overview(%s::text)"), (action,), ActionOverview)

    def find_lanes(
        self,
        action: str | None = None,
        *,
        search: str | None = None,
        having: Literal["waiting", "active", "paused"] | None = None,
        sort: Literal["depth", "oldest", "active", "group"] = "depth",
        limit: int = 100,
        offset: int = 0,
    ) -> list[LaneStats]:
        """Return a page of lanes, those first that somebody should look at; quick with 100,000 of them.

        Args:
            action: Only this action's; defaults to all.
            search: Only those whose group has this in it: ``prod``, or ``env=prod``.
            having: Only those in which something waits or is active, or that are paused themselves.
            sort: The deepest first, those whose head has waited longest, those with the most active, or by
                action and group. Defaults to ``"depth"``.
            limit: The most rows. Defaults to 100.
            offset: How many to leave out, for further pages.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            InvalidValue: An order or a state that does not exist.
        """
        return self._rows(
            select(
                LaneStats,
                "pgfifo.list_lanes(%s::text, %s::text, %s::text, %s::text, %s::integer, %s::integer)",
            ),
            (action, search, having, sort, limit, offset),
            LaneStats,
        )

    def line(self, action: str, group: Group | None = None, *, limit: int = 100) -> list[Place]:
        """Return who waits in a lane, in the order in which they will start.

        Args:
            action: The action.
            group: The lane; without it, that of an action without groups.
            limit: The most rows, up to 10,000. Defaults to 100.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            GroupMismatch: The group does not fit the action's ``group_by``.
        """
        return self._rows(
            select(Place, "pgfifo.line(%s::text, %s::text, %s::integer)"),
            (action, groups.to_text(group), limit),
            Place,
        )

    def minutes(self, action: str | None = None, minutes: int = 60) -> list[Minute]:
        """Return what happened in each of the last minutes; one in which nothing did is left out.

        Args:
            action: Only this action's; defaults to all.
            minutes: How many minutes: they are kept for a week. Defaults to 60.
        """
        return self._rows(
            select(
                Minute,
                "pgfifo.minutes where (%s::text is null or action = %s)"
                " and minute >= now() - make_interval(mins => %s::integer) order by action, minute",
            ),
            (action, action, minutes),
            Minute,
        )

    def wait_times(self, action: str | None = None, minutes: int = 60) -> list[WaitTimes]:
        """Return how long executions that ended in the last minutes had waited for their first start.

        Args:
            action: Only this action's; defaults to all.
            minutes: How many minutes, 1 to 1,440: these times are kept for a day. Defaults to 60.

        Returns:
            Of each action, a row per minute, and one with no minute for all of them.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            InvalidValue: Too few or too many minutes.
        """
        return self._rows(
            select(WaitTimes, "pgfifo.wait_times(%s::text, %s::integer)"), (action, minutes), WaitTimes
        )

    def metrics(self, lanes: int = 0) -> list[Metric]:
        """Return what a monitoring system is to know, all of it as of one instant.

        `pgfifo.metrics` makes Prometheus metrics of it.

        Args:
            lanes: How many of the longest lines to tell of besides, lane by lane; 1,000 at most. Defaults to
                none: the number of lanes has no limit.

        Raises:
            InvalidValue: Too many lanes.
        """
        return self._rows(select(Metric, "pgfifo.metrics(%s::integer)"), (lanes,), Metric)

    def events(
        self,
        action: str | None = None,
        group: Group | None = None,
        *,
        cursor: str | None = None,
        kinds: Sequence[EventKind] | None = None,
        id: int | None = None,  # noqa: A002
        follow: bool = True,
    ) -> Iterator[Event]:
        """Iterate over what happens: nothing is missed, and nothing told twice.

        ::

            for event in fifo.events("deploy"):
                print(event.kind, event.lane, event.id)

        Per lane, events come in the order in which they happened; among lanes there is none. A transaction
        that writes and stays open, whatever it does, holds events up until it ends. On the primary only.

        Args:
            action: Only this action's; defaults to all.
            group: Only this lane's; needs the action.
            cursor: Go on after this `Event.cursor`; ``"begin"`` for all that is on record. Defaults to now.
            kinds: Only these; defaults to all.
            id: Only this execution's.
            follow: Wait for more, for ever. Without it, the end is where nothing more has happened yet; what
                somebody holds back is waited for, about a second.

        Returns:
            The events. Keep the cursor of the last one that was dealt with, to go on there another time.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            InvalidValue: A kind that does not exist, a group without an action, or no cursor.
            EventsGone: Retention has removed what comes after the cursor, or the database was restored.
        """
        selection = dumps(
            {
                "action": action,
                "group": groups.to_text(group),
                "id": id,
                "kind": None if kinds is None else list(kinds),
            },
            "filter",
        )
        return self._follow(cursor, selection, None if action is None else [action], follow=follow)

    def workers(self) -> list[WorkerInfo]:
        """Return the worker processes, living and recently gone."""
        return self._rows(
            select(WorkerInfo, "pgfifo.workers") + " where kind = 'worker' order by id", (), WorkerInfo
        )

    def slots(self, action: str | None = None, *, group: Group | None = None) -> list[SlotInfo]:
        """Return who holds slots, workers and programs alike, and which programs wait for one.

        Args:
            action: Only this action's; defaults to all.
            group: Only this lane's.

        Returns:
            Lane by lane, those who hold slots first, then who waits, in the order of the line.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            GroupMismatch: The group does not fit the action's ``group_by``.
        """
        conditions, arguments = self._lanes_condition(action, group)
        return self._rows(
            select(SlotInfo, "pgfifo.slots")
            + f" where {' and '.join(conditions)} order by action, group_text, state = 'waiting', ticket",
            arguments,
            SlotInfo,
        )

    def order_violations(self, action: str | None = None, *, limit: int = 100) -> list[OrderViolation]:
        """Return recorded starts that broke the order of their lane; there should be none.

        Args:
            action: Only this action's; defaults to all.
            limit: The most rows. Defaults to 100.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
        """
        conditions, arguments = self._lanes_condition(action, None)
        return self._rows(
            select(OrderViolation, "pgfifo.order_violations")
            + f" where {' and '.join(conditions)} order by id limit %s::bigint",
            [*arguments, limit],
            OrderViolation,
        )

    def check(self, *, repair: bool = False) -> list[Finding]:
        """Compare what is recorded with what was promised, and the books with the rows.

        Args:
            repair: Also mend what can be mended.

        Returns:
            What was found; nothing, if all is well.
        """
        return self._rows(select(Finding, "pgfifo.check(%s::boolean)"), (repair,), Finding)

    def doctor(
        self, *, open_after: Duration = 30.0, snapshot_after: Duration = 300.0, check: bool = True
    ) -> list[Diagnosis]:
        """Look for trouble all around, and say what it means and what mends it. Only reads.

        What the caller's role may not see, such as other roles' queries, is left out and said so.

        Args:
            open_after: For how long a transaction may hold a lock that others need, and a lane stand still,
                before that is worth a word. Defaults to 30 seconds.
            snapshot_after: The same for transactions that keep dead rows. Defaults to 5 minutes.
            check: Also do what `check` does, which looks at all there is.

        Returns:
            What was found, the worst first; nothing, if all is well.

        Raises:
            InvalidValue: A time that is not one.
        """
        interval = "make_interval(secs => %s::float8)"
        return self._rows(
            select(Diagnosis, f"pgfifo.doctor({interval}, {interval}, %s::boolean)"),
            (open_after, snapshot_after, check),
            Diagnosis,
        )

    # Operating

    def set_policy(
        self,
        action: str,
        group: Group | None = None,
        *,
        force: bool = False,
        connection: object = None,
        **values: Unpack[Policy],
    ) -> list[PolicyChange]:
        """Set attributes of an action's policy, or of one lane's.

        Args:
            action: The action; a new name creates it.
            group: The lane; without it, the whole action.
            force: Change ``group_by`` even though something waits; that stays in its old lanes.
            connection: The caller's connection; the change commits or rolls back with its transaction.
            **values: Attributes of `Policy`. One that is None inherits again; the others stay as they are.

        Returns:
            What was and what is now, for each attribute that was given.

        Raises:
            InvalidValue: An attribute does not exist, or cannot have this value.
            Busy: A change of ``group_by`` or ``ordering`` has to wait for somebody's open enqueue.
        """
        return self._rows(
            select(PolicyChange, "pgfifo.set_policy(%s::text, %s::jsonb, %s::text, %s::boolean)"),
            (action, dumps(checked(values), "policy"), groups.to_text(group), force),
            PolicyChange,
            connection=connection,
        )

    def set_pack_policy(
        self, pack: str, *, connection: object = None, **values: Unpack[Policy]
    ) -> list[PolicyChange]:
        """Set defaults for all actions of a pack, and so for each of their lanes.

        Args:
            pack: What stands before the last dot of the actions' names.
            connection: The caller's connection; the change commits or rolls back with its transaction.
            **values: Attributes of `Policy`, except ``group_by``, ``declared_actions_only`` and
                ``audit_retention``. One that is None inherits again.

        Returns:
            What was and what is now, for each attribute that was given.

        Raises:
            InvalidValue: An attribute does not exist here, or cannot have this value.
            Busy: A change of ``ordering`` has to wait for somebody's open enqueue.
        """
        return self._rows(
            select(PolicyChange, "pgfifo.set_pack_policy(%s::text, %s::jsonb)"),
            (pack, dumps(checked(values, "a pack"), "policy")),
            PolicyChange,
            connection=connection,
        )

    def set_default_policy(
        self, *, connection: object = None, **values: Unpack[Policy]
    ) -> list[PolicyChange]:
        """Set defaults for all actions, and so for each of their lanes.

        Args:
            connection: The caller's connection; the change commits or rolls back with its transaction.
            **values: Attributes of `Policy`, except ``group_by``. One that is None gets its built-in
                default back.

        Returns:
            What was and what is now, for each attribute that was given.

        Raises:
            InvalidValue: An attribute does not exist here, or cannot have this value.
            Busy: A change of ``ordering`` has to wait for somebody's open enqueue.
        """
        return self._rows(
            select(PolicyChange, "pgfifo.set_default_policy(%s::jsonb)"),
            (dumps(checked(values, "everything"), "policy"),),
            PolicyChange,
            connection=connection,
        )

    def override_policy(
        self,
        action: str,
        group: Group | None = None,
        *,
        lasting: Duration | None = None,
        reason: str | None = None,
        connection: object = None,
        **values: Unpack[Policy],
    ) -> list[PolicyChange]:
        """Let values of an action, or of one lane, win over every scope's for a time.

        When it is over, the policies hold again and what waits is looked at again, without anybody's doing.

        Args:
            action: The action.
            group: The lane; without it, all lanes of the action, also those with values of their own.
            lasting: For how long: seconds, a timedelta or text (``1h``), up to a year.
            reason: Why, for those who look.
            connection: The caller's connection; the change commits or rolls back with its transaction.
            **values: Attributes of `Policy`, except ``group_by``, ``ordering`` and ``max_wait``. One that is
                None ends its override now.

        Returns:
            What the override said before and says now, for each attribute that was given.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            InvalidValue: An attribute does not exist, cannot be overridden, or cannot have this value; or it
                was not said for how long.
        """
        return self._rows(
            select(PolicyChange, _OVERRIDE),
            (
                action,
                dumps(checked(values), "policy"),
                optional_seconds(lasting, "lasting"),
                groups.to_text(group),
                reason,
            ),
            PolicyChange,
            connection=connection,
        )

    def override_pack_policy(
        self,
        pack: str,
        *,
        lasting: Duration | None = None,
        reason: str | None = None,
        connection: object = None,
        **values: Unpack[Policy],
    ) -> list[PolicyChange]:
        """Let values win over every scope's in all lanes of a pack's actions for a time.

        Args:
            pack: What stands before the last dot of the actions' names.
            lasting: For how long: seconds, a timedelta or text (``1h``), up to a year.
            reason: Why, for those who look.
            connection: The caller's connection; the change commits or rolls back with its transaction.
            **values: Attributes as in `override_policy`.

        Returns:
            What the override said before and says now, for each attribute that was given.

        Raises:
            InvalidValue: An attribute does not exist, cannot be overridden, or cannot have this value; or it
                was not said for how long.
        """
        return self._rows(
            select(PolicyChange, _OVERRIDE_PACK),
            (pack, dumps(checked(values, "a pack"), "policy"), optional_seconds(lasting, "lasting"), reason),
            PolicyChange,
            connection=connection,
        )

    def override_default_policy(
        self,
        *,
        lasting: Duration | None = None,
        reason: str | None = None,
        connection: object = None,
        **values: Unpack[Policy],
    ) -> list[PolicyChange]:
        """Let values win over every scope's in all lanes there are for a time.

        Args:
            lasting: For how long: seconds, a timedelta or text (``1h``), up to a year.
            reason: Why, for those who look.
            connection: The caller's connection; the change commits or rolls back with its transaction.
            **values: Attributes as in `override_policy`.

        Returns:
            What the override said before and says now, for each attribute that was given.

        Raises:
            InvalidValue: An attribute does not exist, cannot be overridden, or cannot have this value; or it
                was not said for how long.
        """
        return self._rows(
            select(PolicyChange, _OVERRIDE_DEFAULT),
            (dumps(checked(values, "everything"), "policy"), optional_seconds(lasting, "lasting"), reason),
            PolicyChange,
            connection=connection,
        )

    def set_shared_limit(
        self, name: str, *, connection: object = None, **values: Unpack[SharedLimitValues]
    ) -> list[SharedLimitChange]:
        """Set a limit that several actions draw from: slots, a rate, or both, over all their lanes.

        An execution starts when its lane and every shared limit that its action draws from allow it.

        Args:
            name: The limit; a new name creates it.
            connection: The caller's connection; the change commits or rolls back with its transaction.
            **values: Attributes of `SharedLimitValues`. One that is left out stays as it is; None takes a
                number away; a list replaces the one before.

        Returns:
            What was and what is now, for each attribute that was given.

        Raises:
            InvalidValue: An attribute does not exist, or cannot have this value; or nothing would be limited.
            UnknownAction: One of ``actions`` does not exist; the hint names the nearest.
            Busy: The change has to wait for somebody's open transaction.
        """
        return self._rows(
            select(SharedLimitChange, "pgfifo.set_shared_limit(%s::text, %s::jsonb)"),
            (name, dumps(checked_limit(values), "shared limit")),
            SharedLimitChange,
            connection=connection,
        )

    def drop_shared_limit(self, name: str, *, connection: object = None) -> None:
        """Take a shared limit away; what waited for it goes on.

        Args:
            name: The limit.
            connection: The caller's connection; the change commits or rolls back with its transaction.

        Raises:
            InvalidValue: There is no such limit; the hint names those that there are.
            Busy: The change has to wait for somebody's open transaction.
        """
        self._rows("select pgfifo.drop_shared_limit(%s::text)", (name,), _nothing, connection=connection)

    def shared_limits(self) -> list[SharedLimit]:
        """Return the limits that several actions draw from, and how much of them is taken."""
        return self._rows(select(SharedLimit, "pgfifo.shared_limits order by name"), (), SharedLimit)

    def export_policies(self) -> dict[str, Any]:
        """Return what operators have set, scope by scope, in the form that `apply_policies` takes.

        Returns:
            ``{"everything": {…}, "packs": {"billing": {…}}, "actions": {"deploy": {…, "lanes": [{"group": …,
            …}]}}, "limit": {"api": {…}}}``, the last being shared limits. Nothing that is inherited, declared
            by code or overridden for a time, and no pauses.
        """
        return self._row("select pgfifo.export_policies()", (), dict)

    def apply_policies(
        self,
        policies: Mapping[str, Any],
        *,
        prune: bool = False,
        dry_run: bool = False,
        force: bool = False,
        connection: object = None,
    ) -> list[PolicyDifference]:
        """Bring policies and shared limits to what a document says, all or nothing.

        Args:
            policies: The document, in the form of `export_policies`; a group may be a mapping too.
            prune: Unset what it does not name, at every scope, and drop limits. Without it, that stays.
            dry_run: Change nothing, and take no lock.
            force: Change ``group_by`` even though something waits; that stays in its old lanes.
            connection: The caller's connection; the change commits or rolls back with its transaction.

        Returns:
            What differed.

        Raises:
            InvalidValue: It names an attribute that does not exist, or a value that cannot be; the message
                says where.
            TooManyLanes: It changes the policies of more lanes than one transaction may lock.
            Busy: A change has to wait for somebody's open transaction.
        """
        return self._rows(
            select(
                PolicyDifference,
                "pgfifo.apply_policies(%s::jsonb, %s::boolean, %s::boolean, %s::boolean)",
            ),
            (dumps(policyfile.document(policies), "policies"), prune, dry_run, force),
            PolicyDifference,
            connection=connection,
        )

    def overrides(self) -> list[PolicyOverride]:
        """Return the overrides that are in force, those that end first in front."""
        return self._rows(
            select(
                PolicyOverride, "pgfifo.overrides order by until, scope, action, group_text, pack, attribute"
            ),
            (),
            PolicyOverride,
        )

    def policy_history(
        self,
        action: str | None = None,
        group: Group | None = None,
        *,
        pack: str | None = None,
        scope: Literal["lane", "action", "declared", "pack", "everything"] | None = None,
        limit: int = 100,
    ) -> list[PolicyRecord]:
        """Return who changed which attribute, when, from what to what, newest first.

        Args:
            action: Only those of this action: its own, its lanes', and those its code declared.
            group: Only those of this lane of it.
            pack: Only those of this pack.
            scope: Only those made there.
            limit: At most so many. Defaults to 100.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            InvalidValue: A group without an action.
        """
        return self._rows(
            select(
                PolicyRecord, "pgfifo.policy_history(%s::text, %s::text, %s::text, %s::text, %s::integer)"
            ),
            (action, groups.to_text(group), pack, scope, limit),
            PolicyRecord,
        )

    def audit(
        self,
        action: str | None = None,
        *,
        what: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[AuditEntry]:
        """Return what people and programs did to how the queue runs, newest first.

        Args:
            action: Only what was done to this action.
            what: Only this, such as ``pause``.
            before: Only entries whose id is below this one, to go on after the last of a list.
            limit: At most so many. Defaults to 100.
        """
        return self._rows(
            select(
                AuditEntry,
                "pgfifo.audit where (%s::text is null or action = %s) and (%s::text is null or what = %s)"
                " and id < %s::bigint order by id desc limit %s::integer",
            ),
            (action, action, what, what, BIGINT if before is None else before, limit),
            AuditEntry,
        )

    def effective_policy(self, action: str | None = None, group: Group | None = None) -> list[PolicyValue]:
        """Return each attribute that is in force, and who says so.

        Args:
            action: The action; without it, what holds where no action, pack or lane says anything.
            group: The lane; without it, what holds for lanes without values of their own.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            InvalidValue: A group without an action.
        """
        return self._rows(
            select(PolicyValue, "pgfifo.effective_policy(%s::text, %s::text)"),
            (action, groups.to_text(group)),
            PolicyValue,
        )

    def pause(
        self,
        action: str,
        group: Group | None = None,
        *,
        reason: str | None = None,
        connection: object = None,
    ) -> bool:
        """Let nothing more of an action, or of one lane, start; what is active goes on.

        Args:
            action: The action.
            group: The lane; without it, the whole action.
            reason: Why, for those who look.
            connection: The caller's connection; the pause commits or rolls back with its transaction.

        Returns:
            Whether that changed anything: False if it was paused already.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
        """
        return self._row(
            "select pgfifo.pause(%s::text, %s::text, %s::text)",
            (action, groups.to_text(group), reason),
            bool,
            connection=connection,
        )

    def resume(self, action: str, group: Group | None = None, *, connection: object = None) -> bool:
        """End a pause.

        Args:
            action: The action.
            group: The lane; without it, the whole action.
            connection: The caller's connection; the change commits or rolls back with its transaction.

        Returns:
            Whether that changed anything: False if it was not paused.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
        """
        return self._row(
            "select pgfifo.resume(%s::text, %s::text)",
            (action, groups.to_text(group)),
            bool,
            connection=connection,
        )

    def pause_everything(self, *, reason: str | None = None, connection: object = None) -> bool:
        """Let nothing more start at all; what is active goes on. What is paused by itself stays so after it.

        Args:
            reason: Why, for those who look.
            connection: The caller's connection; the pause commits or rolls back with its transaction.

        Returns:
            Whether that changed anything: False if everything was paused already.
        """
        return self._row("select pgfifo.pause_everything(%s::text)", (reason,), bool, connection=connection)

    def resume_everything(self, *, connection: object = None) -> bool:
        """End the pause of everything, also that in which a restored copy of a database begins.

        Args:
            connection: The caller's connection; the change commits or rolls back with its transaction.

        Returns:
            Whether that changed anything: False if not everything was paused.
        """
        return self._row("select pgfifo.resume_everything()", (), bool, connection=connection)

    def close_action(
        self,
        action: str,
        group: Group | None = None,
        *,
        reason: str | None = None,
        connection: object = None,
    ) -> bool:
        """Let no enqueue into an action, or into one lane, any more; what waits is worked off.

        Once it has committed, no enqueue commits: it waits for those that are in flight.

        Args:
            action: The action.
            group: The lane, which need not exist yet; without it, the whole action.
            reason: Why, for those who are refused.
            connection: The caller's connection; the change commits or rolls back with its transaction.

        Returns:
            Whether that changed anything: False if it was closed already.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            Busy: Somebody's transaction that has enqueued stayed open for a second.
        """
        return self._row(
            "select pgfifo.close(%s::text, %s::text, %s::text)",
            (action, groups.to_text(group), reason),
            bool,
            connection=connection,
        )

    def open_action(self, action: str, group: Group | None = None, *, connection: object = None) -> bool:
        """Let enqueues into a closed action, or a closed lane, again.

        Args:
            action: The action.
            group: The lane; without it, the whole action. Each is opened for itself.
            connection: The caller's connection; the change commits or rolls back with its transaction.

        Returns:
            Whether that changed anything: False if it was not closed.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
        """
        return self._row(
            "select pgfifo.open(%s::text, %s::text)",
            (action, groups.to_text(group)),
            bool,
            connection=connection,
        )

    # Schedules

    def remove_action(self, action: str, *, connection: object = None) -> None:
        """Remove an action that is not used any more, with its policies, schedules, statistics and history.

        Only the audit remembers it. A later enqueue makes a new action of that name, with inherited defaults.

        Args:
            action: The action.
            connection: The caller's connection; the change commits or rolls back with its transaction.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
            Busy: Something of it has no outcome yet, a living worker serves it, or somebody's transaction
                that has enqueued stayed open for a second.
        """
        self._row(
            "select pgfifo.remove_action(%s::text)", (action,), _nothing, connection=connection, once=True
        )

    def set_schedule(
        self,
        name: str,
        action: str,
        cron: str,
        *,
        time_zone: str = "UTC",
        payload: object = None,
        group: Group | None = None,
        headers: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        missed: Missed = "one",
        connection: object = None,
    ) -> str:
        """Have an action enqueued whenever a cron expression says so, each tick once, while any worker runs.

        Args:
            name: The schedule's name; set again, it changes. It wins over what code declares under it.
            action: The action; a new name creates it.
            cron: Minute, hour, day of the month, month, day of the week; or ``@hourly``, ``@daily``,
                ``@weekly``, ``@monthly``, ``@yearly``.
            time_zone: In which time zone that is meant, as ``Europe/Berlin``. Defaults to UTC.
            payload: The payload of each execution; None stands for ``{}``.
            group: The group. Defaults to what the payload says.
            headers: The headers, beside ``pgfifo.schedule`` and ``pgfifo.tick``.
            tags: The tags.
            missed: What becomes of ticks that nobody was there for: ``skip`` them, enqueue ``one`` for all of
                them, or ``all``. Defaults to one.
            connection: The caller's connection; it commits or rolls back with its transaction.

        Returns:
            ``created``, ``changed`` or ``same``.

        Raises:
            GroupMismatch: The group does not fit the action's ``group_by``.
            PayloadTooLarge: The payload is larger than ``max_payload``.
            InvalidValue: An argument cannot be right.
        """
        made = schedule(name, cron, time_zone, payload, group, headers, tags, missed)
        return self._row(
            "select pgfifo.set_schedule(%s::text, %s::text, %s::text, %s::text, %s::jsonb, %s::text,"
            " %s::jsonb, %s::text[], %s::text)",
            (
                made.name,
                action,
                made.cron.expression,
                made.cron.time_zone,
                made.payload,
                made.group,
                made.headers,
                list(made.tags) or None,
                made.missed,
            ),
            _text,
            connection=connection,
        )

    def schedules(self, action: str | None = None) -> list[ScheduleInfo]:
        """Return what is enqueued again and again, by name.

        Args:
            action: Only this action's; defaults to all.

        Raises:
            UnknownAction: There is no such action; the hint names the nearest.
        """
        conditions, arguments = self._lanes_condition(action, None)
        return self._rows(
            select(ScheduleInfo, "pgfifo.schedules") + f" where {' and '.join(conditions)} order by name",
            arguments,
            ScheduleInfo,
        )

    def remove_schedule(self, name: str, *, connection: object = None) -> None:
        """Remove a schedule. What it has enqueued stays.

        Args:
            name: The schedule. One that code declares comes back when the code is started next: pause it.
            connection: The caller's connection; it commits or rolls back with its transaction.

        Raises:
            InvalidValue: There is no such schedule; the hint names the nearest.
            CommitUnknown: The connection broke before the answer came.
        """
        self._row(
            "select pgfifo.remove_schedule(%s::text)", (name,), _nothing, connection=connection, once=True
        )

    def pause_schedule(self, name: str, *, reason: str | None = None, connection: object = None) -> bool:
        """Let a schedule's ticks pass until it is resumed.

        Args:
            name: The schedule.
            reason: Why, for those who look.
            connection: The caller's connection; it commits or rolls back with its transaction.

        Returns:
            Whether that changed anything: False if it was paused already.

        Raises:
            InvalidValue: There is no such schedule; the hint names the nearest.
        """
        return self._row(
            "select pgfifo.pause_schedule(%s::text, %s::text)", (name, reason), bool, connection=connection
        )

    def resume_schedule(self, name: str, *, connection: object = None) -> bool:
        """End a schedule's pause. What passed meanwhile was not missed.

        Args:
            name: The schedule.
            connection: The caller's connection; it commits or rolls back with its transaction.

        Returns:
            Whether that changed anything: False if it was not paused.

        Raises:
            InvalidValue: There is no such schedule; the hint names the nearest.
        """
        return self._row("select pgfifo.resume_schedule(%s::text)", (name,), bool, connection=connection)

    def maintain(self) -> dict[str, Any]:
        """Do one bounded round of maintenance: due timers, dead workers, pruning; workers do so every second.

        Returns:
            What was done; ``more`` is True if there is more to do at once.
        """
        return self._row("select pgfifo.maintain()", (), dict)

    # Importing files

    def import_start(self, action: str, source: str, fingerprint: str) -> int:
        """Begin to import a file, so that it can be gone on with exactly where it stopped.

        Args:
            action: What its lines are enqueued for.
            source: Where it comes from, for people.
            fingerprint: What tells its content from another's.

        Returns:
            The import's number.

        Raises:
            CommitUnknown: The connection broke before the answer came; nothing has been enqueued.
        """
        return self._row(
            "select pgfifo.import_start(%s::text, %s::text, %s::text)",
            (action, source, fingerprint),
            int,
            once=True,
        )

    def import_commit(
        self, number: int, upto: int, after: int | None = None, *, connection: object = None
    ) -> None:
        """Record how far an import comes with a transaction, before it enqueues the lines up to there.

        Args:
            number: The import.
            upto: The last line that this transaction enqueues.
            after: The line that it goes on after; what the import has come to must be exactly that.
            connection: The connection with that transaction.

        Raises:
            InvalidValue: The import has come further already: somebody else is at it.
        """
        self._rows(
            "select pgfifo.import_commit(%s::bigint, %s::bigint, %s::bigint)",
            (number, upto, after),
            _nothing,
            connection=connection,
            once=True,
        )

    def import_enqueued(
        self, number: int, count: int, first_id: int, last_id: int, *, connection: object = None
    ) -> None:
        """Record what a transaction has enqueued for an import, after `import_commit`.

        Args:
            number: The import.
            count: How many executions it has made.
            first_id: The first of them.
            last_id: The last of them.
            connection: The connection with that transaction.
        """
        self._rows(
            "select pgfifo.import_enqueued(%s::bigint, %s::bigint, %s::bigint, %s::bigint)",
            (number, count, first_id, last_id),
            _nothing,
            connection=connection,
            once=True,
        )

    def import_status(self, number: int) -> ImportStatus:
        """Return how far an import has come.

        Args:
            number: The import.

        Raises:
            InvalidValue: There is no such import.
        """
        rows = self._rows(select(ImportStatus, "pgfifo.import_status(%s::bigint)"), (number,), ImportStatus)
        if not rows:
            raise InvalidValue(f"there is no import {number}", detail={"name": "number", "value": number})
        return rows[0]

    def import_finish(self, number: int) -> None:
        """Record that all of a file is in.

        Args:
            number: The import.
        """
        self._rows("select pgfifo.import_finish(%s::bigint)", (number,), _nothing)


def _nothing(*_values: object) -> None:
    return None


def _text(value: str) -> str:
    return value


def _time(value: datetime) -> datetime:
    return value


def _values(*values: Any) -> tuple[Any, ...]:  # noqa: ANN401 - whatever the columns have
    return values
