"""What calls give back: frozen, with the names of SQL's columns."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from pgfifo import groups

if TYPE_CHECKING:
    from datetime import datetime

OnItem = Literal["immutable", "replace", "merge_patch"]
"""What becomes of the payload of one that waits, when another is enqueued with its item_key."""

State = Literal["delayed", "waiting", "running", "held", "succeeded", "failed", "cancelled", "expired"]
"""Where an execution is in its life; the last four are outcomes."""


@functools.cache
def select(model: type, source: str) -> str:
    """Return the query that reads a model's fields, in the order of its arguments, from a view or call."""
    return f"select {', '.join(field.name for field in fields(model))} from {source}"  # noqa: S608 - no values


@dataclass(frozen=True, slots=True)
class Lane:
    """One line of executions: an action and a group.

    Attributes:
        action: The action.
        group_text: The canonical group; empty if the action has none.
    """

    action: str
    group_text: str = ""

    @property
    def group(self) -> dict[str, object] | str:
        """The group as a mapping from path to value, or the text itself where it is a free key."""
        return groups.parse(self.group_text)

    def __str__(self) -> str:
        return groups.lane(self.action, self.group_text)


@dataclass(frozen=True, slots=True)
class Enqueued:
    """An accepted execution.

    Attributes:
        id: Its id.
        created: False if it was there before: an enqueue with the same request_id or key.
        lane: The lane it was put into.
    """

    id: int
    created: bool
    lane: Lane


@dataclass(frozen=True, slots=True)
class Position:
    """How far an execution is from its turn.

    Attributes:
        position: 1 is next; None if it is not waiting.
        exact: False if it is so far back that this is a lower bound only.
        eta_seconds: In how many seconds it will probably start; an estimate. None where nothing tells, or
            nothing moves.
        eta_basis: What the estimate rests on: ``lane``, the starts of its lane in the last minutes; or
            ``action``, how long the action's executions have run, where little is known of the lane.
    """

    position: int | None
    exact: bool
    eta_seconds: float | None = None
    eta_basis: Literal["lane", "action"] | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How an action has got on in its last minutes.

    Attributes:
        since: When the first of these minutes began.
        until: When the last of them ended.
        enqueued: How many were enqueued.
        started: How many starts there were; one that is tried again starts again.
        succeeded: How many succeeded.
        failed: How many failed for good.
        cancelled: How many were cancelled.
        expired: How many expired.
        backlog: How many had not ended at the end of them.
        enqueued_per_minute: Enqueued, on average.
        started_per_minute: Started, on average.
        finished_per_minute: Ended with whatever outcome, on average.
        mean_wait_seconds: From the enqueue to the first start, of those that succeeded or failed; None if
            there were none.
        mean_run_seconds: From the last start to the end, of these.
    """

    since: datetime
    until: datetime
    enqueued: int
    started: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    backlog: int
    enqueued_per_minute: float
    started_per_minute: float
    finished_per_minute: float
    mean_wait_seconds: float | None
    mean_run_seconds: float | None


@dataclass(frozen=True, slots=True)
class ActionOverview:
    """One action's numbers for a screen: those of `ActionStats`, and how many were started.

    Attributes:
        action: The action.
        queue_length: How many wait; also what has waited for too long, until somebody writes its end down.
        active_count: How many are active: running and held.
        max_concurrent: The slots of one lane, where no lane has a policy of its own.
        oldest_enqueued_at: When the oldest that waits was enqueued.
        running_count: How many a worker has.
        held_count: How many keep their slot through a backoff.
        delayed_count: How many are not in the line yet.
        slots_taken: How many slots are taken: as active_count, but a batch has one.
        slots_total: How many slots its lanes have together.
        lanes: How many lanes there are.
        paused: Whether the action is paused.
        paused_reason: Why, as whoever paused it said.
        paused_lanes: How many of its lanes are paused; all, if the action is.
        closed: Whether the action takes no enqueues.
        total_enqueued: How many were ever enqueued.
        total_started: How many starts there were.
        total_succeeded: How many succeeded.
        total_failed: How many failed for good.
        total_cancelled: How many were cancelled.
        total_expired: How many expired.
        at: The server's time of the answer.
    """

    action: str
    queue_length: int
    active_count: int
    max_concurrent: int
    oldest_enqueued_at: datetime | None
    running_count: int
    held_count: int
    delayed_count: int
    slots_taken: int
    slots_total: int
    lanes: int
    paused: bool
    paused_reason: str | None
    paused_lanes: int
    closed: bool
    total_enqueued: int
    total_started: int
    total_succeeded: int
    total_failed: int
    total_cancelled: int
    total_expired: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Place:
    """One that waits in a line, and its place.

    Attributes:
        pos: 1 is next.
        id: The execution.
        attempt: How often it was started before.
        enqueued_at: When it was enqueued.
        payload: What was enqueued.
        tags: Its tags.
        is_slot: Whether a program waits for the slot itself, and no worker runs it.
        eta_seconds: In how many seconds it will probably start, as `Position` has it.
        eta_basis: What the estimate rests on.
    """

    pos: int
    id: int
    attempt: int
    enqueued_at: datetime
    payload: Any
    tags: list[str] | None
    is_slot: bool
    eta_seconds: float | None
    eta_basis: Literal["lane", "action"] | None


@dataclass(frozen=True, slots=True)
class Minute:
    """What happened to one action in one minute.

    Attributes:
        action: The action.
        minute: When it began.
        enqueued: How many were enqueued.
        started: How many starts there were.
        succeeded: How many succeeded.
        failed: How many failed for good.
        cancelled: How many were cancelled.
        expired: How many expired.
        measured: How many succeeded or failed in it, of those whose times are in the sums.
        wait_seconds: The sum of their waits, from the enqueue to the first start.
        run_seconds: The sum of their runs, from the last start to the end.
    """

    action: str
    minute: datetime
    enqueued: int
    started: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    measured: int
    wait_seconds: float
    run_seconds: float


@dataclass(frozen=True, slots=True)
class WaitTimes:
    """How long executions of an action waited for their first start.

    Attributes:
        action: The action.
        minute: In which minute they ended; None: in all that were asked for.
        measured: How many that were.
        p50: The seconds that half of them waited at most; right to an eighth, as are the others.
        p95: The seconds that 95 % waited at most.
        p99: The seconds that 99 % waited at most.
    """

    action: str
    minute: datetime | None
    measured: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an execution is not running. As text it is the paragraph.

    Attributes:
        id: The execution.
        state: Where it is in its life.
        reasons: What holds it up, as words for programs: ``paused``, ``slots``, ``no_worker``, …; none if it
            runs. docs/explain.md has all of them.
        explanation: One paragraph for people.
        data: What the paragraph was made of; docs/explain.md has the keys.
    """

    id: int
    state: State
    reasons: list[str]
    explanation: str
    data: dict[str, Any]

    def __str__(self) -> str:
        return self.explanation


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What a bulk cancel has done, or in a dry run would do.

    Attributes:
        cancelled: How many waited or were held, and have ended.
        requested: How many run; their workers are asked to stop them.
        busy: How many lanes somebody kept for a second, so that they were passed by.
    """

    cancelled: int
    requested: int
    busy: int


@dataclass(frozen=True, slots=True)
class RetryAnswer:
    """What has become of one execution that was to be put back.

    Attributes:
        id: The execution.
        answer: ``retried``; or why not: the state of one that is not finished, ``again`` where a retry of it
            is not finished, ``full`` or ``closed`` of its lane, ``quota`` where one is used up, ``limit``
            where it could not start at once and nothing may wait, ``taken`` where another retry has its old
            place, ``slot`` where it stood for a slot that a program held, ``busy`` where another transaction
            holds its lane, ``unknown`` where there is no such execution.
        retry_id: The new execution; with ``again`` that earlier one.
    """

    id: int
    answer: str
    retry_id: int | None


@dataclass(frozen=True, slots=True)
class Retried:
    """What a bulk retry has done, or in a dry run would do.

    Attributes:
        retried: How many were put back.
        refused: How many were not: their lane is full or closed, another limit of enqueues was reached, or
            their old place is taken.
        busy: How many are in lanes that somebody kept for a second, so that they were passed by.
        ids: The new executions; empty in a dry run.
    """

    retried: int
    refused: int
    busy: int
    ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Stats:
    action: str
    queue_length: int
    active_count: int
    max_concurrent: int
    oldest_enqueued_at: datetime | None
    total_enqueued: int
    total_completed: int
    last_updated: datetime | None
    running_count: int
    held_count: int
    delayed_count: int
    total_succeeded: int
    total_failed: int
    total_cancelled: int
    total_expired: int
    paused: bool
    paused_reason: str | None
    closed: bool
    slots_taken: int


@dataclass(frozen=True, slots=True)
class ActionStats(_Stats):
    """One action's numbers, all of one instant.

    Attributes:
        action: The action.
        queue_length: How many wait.
        active_count: How many are active: running and held.
        max_concurrent: The slots of one lane.
        oldest_enqueued_at: When the oldest that waits was enqueued.
        total_enqueued: total_completed + queue_length + active_count + delayed_count, at every instant.
        total_completed: total_succeeded + total_failed + total_cancelled + total_expired.
        last_updated: When something last happened.
        running_count: How many a worker has.
        held_count: How many keep their slot through a backoff.
        delayed_count: How many are not in the line yet.
        total_succeeded: How many succeeded.
        total_failed: How many failed for good.
        total_cancelled: How many were cancelled.
        total_expired: How many expired.
        paused: Whether the action is paused.
        paused_reason: Why, as whoever paused it said; of a lane also which execution has failed for good.
        closed: Whether the action takes no enqueues.
        slots_taken: How many slots are taken: as active_count, but a batch has one.
        lanes: How many lanes there are.
        slots_total: How many slots they have together.
        paused_lanes: How many of them are paused; all, if the action is.
    """

    lanes: int
    slots_total: int
    paused_lanes: int


@dataclass(frozen=True, slots=True)
class LaneStats(_Stats):
    """One lane's numbers, all of one instant: those of `ActionStats`, and which lane it is.

    Attributes:
        group_text: The canonical group; empty if the action has none.
        lane_id: The lane's number; a lane that was removed and comes back has a new one.
    """

    group_text: str
    lane_id: int

    @property
    def lane(self) -> Lane:
        """The lane."""
        return Lane(self.action, self.group_text)


@dataclass(frozen=True, slots=True)
class ExecutionInfo:
    """One execution, waiting, active or finished.

    Attributes:
        id: Its id.
        action: Its action.
        group_text: Its canonical group; empty if the action has none.
        state: Where it is in its life; the last four states are outcomes.
        attempt: How often it was started.
        failures: How many of the attempts failed, or were lost with their worker.
        payload: What was enqueued.
        headers: What the producer sent along beside it.
        tags: Its tags.
        ticket: The number that orders the line.
        enqueued_at: When it was enqueued; all times are the server's.
        started_at: When its last attempt started.
        finished_at: When it was finished.
        worker_id: Which worker has or had it.
        result: What its handler returned.
        result_error: Why the result could not be kept.
        error: What its last failed attempt said.
        cancel_requested_at: When somebody asked to cancel it while it was active.
        retry_of: The finished execution that it repeats.
        start_no: The number of its last start, counted in its lane.
        lane_id: Its lane's number.
        due_at: When a delayed one joins its lane, or a held one is tried again.
        reason: Why it was cancelled, or finished by hand.
        attempts: What is on record of its earlier attempts.
        progress: How far a running one is, from 0 to 1, if its handler says so.
        progress_message: What its handler says it is doing.
        progress_at: When it said so.
        request_id: The request_id it was enqueued with; None once it has ended.
        dedup_key: The key that no other of its action has until it has ended; None then.
        item_key: The key that no other of its lane has while it waits; None once it has ended.
    """

    id: int
    action: str
    group_text: str
    state: State
    attempt: int
    failures: int
    payload: Any
    headers: dict[str, Any] | None
    tags: list[str] | None
    ticket: int | None
    enqueued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    worker_id: int | None
    result: Any
    result_error: str | None
    error: str | None
    cancel_requested_at: datetime | None
    retry_of: int | None
    start_no: int | None
    lane_id: int
    due_at: datetime | None
    reason: str | None
    attempts: list[dict[str, Any]] | None
    progress: float | None
    progress_message: str | None
    progress_at: datetime | None
    request_id: str | None
    dedup_key: str | None
    item_key: str | None

    @property
    def lane(self) -> Lane:
        """The lane."""
        return Lane(self.action, self.group_text)

    @property
    def finished(self) -> bool:
        """Whether it has an outcome."""
        return self.finished_at is not None


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """One attribute that a policy call looked at.

    Attributes:
        attribute: Its name.
        old: What the scope said before; None inherited.
        new: What it says now.
        note: What to know about it, such as how many executions stay in their old lanes.
    """

    attribute: str
    old: Any
    new: Any
    note: str | None


@dataclass(frozen=True, slots=True)
class PolicyValue:
    """One attribute of the policy in force.

    Attributes:
        attribute: Its name. A quota is that of its scope, so there may be several.
        value: Its value; durations are in seconds.
        source: Who says so: ``override``, ``lane``, ``action``, ``declared``, ``pack``, ``everything`` or
            ``default``.
        origin: Which one: ``deploy env=prod`` of a lane, ``deploy`` of an action, the pack's name; of an
            override its scope in front: ``lane deploy env=prod``, ``everything``. None if there is but one.
        until: When it ends, of an override.
        remaining: How many seconds that is from now, by the server's clock.
    """

    attribute: str
    value: Any
    source: str
    origin: str | None
    until: datetime | None
    remaining: float | None


@dataclass(frozen=True, slots=True)
class PolicyOverride:
    """A value that wins over every policy for a time.

    Attributes:
        scope: What it is for: ``lane``, ``action``, ``pack`` or ``everything``.
        action: The action, of a lane or an action.
        group_text: The canonical group, of a lane.
        pack: The pack, of a pack.
        attribute: The attribute's name.
        value: Its value; durations are in seconds.
        until: When it ends by itself.
        remaining: How many seconds that is from now, by the server's clock.
        set_at: When it was set.
        set_by: The session's user who set it.
        actor: The person behind the role, if one was named.
        reason: Why.
    """

    scope: str
    action: str | None
    group_text: str | None
    pack: str | None
    attribute: str
    value: Any
    until: datetime
    remaining: float
    set_at: datetime
    set_by: str
    actor: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """A change of one attribute, from the audit.

    Attributes:
        at: When.
        who: The session's user.
        application: The session's application name.
        actor: The person behind the role, if one was named.
        scope: Where: ``lane``, ``action``, ``declared``, ``pack`` or ``everything``.
        action: The action, of a lane or an action.
        group_text: The canonical group, of a lane.
        pack: The pack, of a pack.
        attribute: The attribute's name.
        old: Its value before; None inherited, or was not overridden.
        new: Its value since then; None inherits, or ended an override.
        until: Until when, of an override.
        reason: Why, of an override.
    """

    at: datetime
    who: str
    application: str
    actor: str | None
    scope: str
    action: str | None
    group_text: str | None
    pack: str | None
    attribute: str
    old: Any
    new: Any
    until: datetime | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class PolicyDifference:
    """A value that a document of policies says otherwise than the database did.

    Attributes:
        scope: Where: ``lane``, ``action``, ``pack`` or ``everything``; ``limit`` is a shared limit.
        action: The action, of a lane or an action.
        group_text: The canonical group, of a lane.
        pack: The pack, of a pack.
        limit_name: The shared limit, of a limit.
        attribute: The attribute's name.
        old: What the scope said before; None inherited.
        new: What the document says; None inherits.
        note: What to know about it.
    """

    scope: str
    action: str | None
    group_text: str | None
    pack: str | None
    limit_name: str | None
    attribute: str
    old: Any
    new: Any
    note: str | None


@dataclass(frozen=True, slots=True)
class SharedLimit:
    """A limit that several actions draw from, and how much of it is taken.

    Attributes:
        name: Its name.
        max_concurrent: How many that draw from it may be active at once; None any number.
        rate: How many of them may start per time, such as ``100/s``; None any number.
        burst: How many of them may start at once after a quiet time; None the number in ``rate``.
        active_count: How many are active that drew from it.
        waiting_lanes: How many lanes it keeps waiting.
        next_start_at: When the rate allows the next start; None if it does now.
        actions: The actions that draw from it by name.
        packs: The packs whose actions draw from it.
        everything: Whether every action draws from it.
        changed_at: When it was last changed.
    """

    name: str
    max_concurrent: int | None
    rate: str | None
    burst: int | None
    active_count: int
    waiting_lanes: int
    next_start_at: datetime | None
    actions: list[str]
    packs: list[str]
    everything: bool
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class SharedLimitChange:
    """One attribute that `set_shared_limit` looked at.

    Attributes:
        attribute: Its name.
        old: Its value before; None is no number, or that the limit is new.
        new: Its value now; None is no number.
    """

    attribute: str
    old: Any
    new: Any


Role = Literal["producer", "worker", "observer", "admin"]
"""What a role of the database can be granted to do as."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a role of the database was granted.

    Attributes:
        role: The role.
        may: What it may do as; ``enqueue``: put executions into one action.
        action: The action that it may enqueue to; None for what is not about one.
    """

    role: str
    may: Literal["producer", "worker", "observer", "admin", "enqueue"]
    action: str | None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """What somebody did to how the queue runs.

    Attributes:
        id: Number of the entry.
        at: When.
        who: The session's user.
        application: The session's application name.
        actor: The person behind the role, if one was named.
        what: What was done: ``set_policy``, ``pause``, ``cancel``, …
        action: The action it was done to.
        group_text: The canonical group, if it was done to one lane.
        detail: Values before and after, ids, reasons.
    """

    id: int
    at: datetime
    who: str
    application: str
    actor: str | None
    what: str
    action: str | None
    group_text: str | None
    detail: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Metric:
    """One number for a monitoring system.

    Attributes:
        name: What it is, as ``pgfifo_queue_length``; docs/monitoring.md explains each.
        labels: What it is about, such as ``{"action": "deploy"}``.
        value: The number; what ends in ``_total`` only grows.
    """

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker process.

    Attributes:
        id: Its number.
        name: Its name.
        host: Where it runs.
        pid: Its process id there.
        actions: What it serves.
        concurrency: How many executions it runs at once.
        state: ``alive``, ``stopped`` or ``dead``.
        started_at: When it registered.
        last_seen: When it last gave a sign.
        executions: How many executions it has.
    """

    id: int
    name: str
    host: str
    pid: int
    actions: list[str]
    concurrency: int
    state: str
    started_at: datetime
    last_seen: datetime
    executions: int


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """What is enqueued again and again.

    Attributes:
        name: Its name.
        action: The action that is enqueued.
        cron: When: minute, hour, day of the month, month, day of the week.
        time_zone: In which time zone that is meant.
        payload: The payload of each execution.
        group_text: The group, if one was given; else it is what the payload says.
        headers: The headers of each execution, beside ``pgfifo.schedule`` and ``pgfifo.tick``.
        tags: The tags of each execution.
        missed: What becomes of ticks that nobody was there to enqueue: ``skip``, ``one`` or ``all``.
        declared: Whether it comes from code, and not from an operator.
        next_at: The next tick; None while it is paused, or not worked out yet.
        last_tick: The last tick that came.
        last_id: The last execution that it enqueued.
        last_error: Why the last tick enqueued nothing, or when is not understood.
        paused: Whether it is paused.
        paused_by: Who paused it.
        paused_reason: Why.
        changed_at: When it was last set, paused or resumed.
    """

    name: str
    action: str
    cron: str
    time_zone: str
    payload: Any
    group_text: str | None
    headers: dict[str, Any] | None
    tags: list[str] | None
    missed: str
    declared: bool
    next_at: datetime | None
    last_tick: datetime | None
    last_id: int | None
    last_error: str | None
    paused: bool
    paused_by: str | None
    paused_reason: str | None
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """A slot that somebody holds, or a program that waits for one.

    Attributes:
        action: The action.
        group_text: The lane's group as text; empty if the action has none.
        id: The execution that has the slot or waits for it.
        state: ``running`` or ``held``: it has a slot. ``waiting``: it waits.
        attempt: Which start of it this is; 0 while it waits.
        is_slot: Whether a program itself holds it or waits for it; else a worker runs a handler.
        since: Since when it has the slot, or waits.
        worker_id: In whose name; of a held one, who had it last.
        holder: What that worker or program is called.
        host: The host it runs on.
        pid: Its process id there.
        last_seen: When it last gave a sign.
    """

    action: str
    group_text: str
    id: int
    state: str
    attempt: int
    is_slot: bool
    since: datetime
    worker_id: int | None
    holder: str | None
    host: str | None
    pid: int | None
    last_seen: datetime | None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that `check` found.

    Attributes:
        severity: ``violation``: a promise was broken. ``overdue``: nobody was there to act. ``repaired``: a
            check with repair has mended it.
        kind: Which of the checks found it.
        lane: Where, if it belongs to a lane.
        detail: What exactly.
    """

    severity: Literal["violation", "overdue", "repaired"]
    kind: str
    lane: str | None
    detail: str


DiagnosisKind = Literal[
    "action",
    "bloat",
    "check",
    "clock",
    "connections",
    "copy",
    "lock",
    "maintenance",
    "mark",
    "partition",
    "paused",
    "prepared",
    "producer",
    "replication",
    "rights",
    "schema",
    "sequence",
    "setting",
    "snapshot",
    "stuck",
    "sweep",
    "worker",
]
"""What a finding of `doctor` can be about."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Something that `doctor` found.

    Attributes:
        severity: ``critical``: something stands still, or will be lost. ``warning``: it will get worse, or a
            person has to decide. ``info``: worth knowing.
        kind: Which of the checks found it.
        subject: What it is about, in a word or two: a lane, an action, a setting, a process.
        detail: What exactly was found.
        meaning: What that does.
        mend: What mends it: a line for a shell, or a statement that ends with a semicolon.
        data: The same for programs; the keys are those of the kind.
    """

    severity: Literal["critical", "warning", "info"]
    kind: DiagnosisKind
    subject: str
    detail: str
    meaning: str
    mend: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class OrderViolation:
    """A start that came before an older execution of its lane.

    Attributes:
        id: The execution that started too early.
        attempt: Which of its attempts did.
        ticket: Its ticket.
        action: Its action.
        group_text: Its canonical group; empty if the action has none.
        start_no: The number of that start, counted in its lane.
        overtaken: The older execution, which was in the line and startable.
        overtaken_ticket: That one's ticket.
    """

    id: int
    attempt: int
    ticket: int
    action: str
    group_text: str
    start_no: int
    overtaken: int
    overtaken_ticket: int


EventKind = Literal[
    "enqueued",
    "started",
    "attempt_ended",
    "finished",
    "progress",
    "lane_started",
    "lane_empty",
    "paused",
    "resumed",
    "closed",
    "opened",
    "changed",
]
"""What an event tells; `changed` is anything else that the audit has."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has happened.

    Attributes:
        kind: What.
        at: When, by the server's clock; for people, the order is that of the events.
        action: To which action; None if it concerns more than one.
        group_text: To which lane: its canonical group, empty if the action has none; or None.
        id: To which execution; None if it concerns a lane or more.
        attempt: In which of its attempts.
        detail: What there is to say: how an attempt ended, an execution's outcome, who paused a lane and why.
        cursor: Where to go on after it.
    """

    kind: EventKind
    at: datetime
    action: str | None
    group_text: str | None
    id: int | None
    attempt: int | None
    detail: dict[str, Any]
    cursor: str

    @property
    def lane(self) -> Lane | None:
        """The lane, if it concerns one."""
        return None if self.action is None or self.group_text is None else Lane(self.action, self.group_text)


@dataclass(frozen=True, slots=True)
class SchemaInfo:
    """What is installed.

    Attributes:
        version: The schema's version.
        min_client: The oldest client version that it answers.
        epoch: The first part of every token; raised after a restore.
    """

    version: int
    min_client: int
    epoch: int


@dataclass(frozen=True, slots=True)
class ImportStatus:
    """How far a file has been imported.

    Attributes:
        action: What its lines are enqueued for.
        source: Where it came from, as it was given.
        fingerprint: What tells its content from another's.
        upto: The last line that is in.
        finished_at: When all of it was in; None until then.
        enqueued: How many executions it has made so far.
        first_id: The first of them; None while there is none.
        last_id: The last of them. Those of others may be in between.
    """

    action: str
    source: str
    fingerprint: str
    upto: int
    finished_at: datetime | None
    enqueued: int
    first_id: int | None
    last_id: int | None
