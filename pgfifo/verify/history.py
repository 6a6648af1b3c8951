"""What clients really saw: the facts that a verdict rests on.

All times are seconds of one clock that only goes forward, the machine's monotonic one (see `recorder`).
Neither the server's clock nor the calendar of any host is asked, so either may jump. A call is known by two
times: its effect on the database, if it had one, lies between them. What the checker says follows from that.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal

Lane = tuple[str, str]
"""An action, and the group as text."""

Key = tuple[int, int]
"""An execution's id and the number of an attempt."""

Answer = Literal["taken", "lost", "retry", "unstarted", "none"]
"""What became of an end that was handed in: it counts; it was refused, as the attempt is not the worker's any
more; it was to be said again; it does not count, as one before it in its batch had failed, and the execution
is back at its place; nobody knows."""

Fate = Literal["committed", "rolled back", "unknown"]
"""What became of a transaction; ``unknown`` when its commit was asked for and never answered."""


@dataclass(frozen=True, slots=True)
class Span:
    """A call.

    Attributes:
        called: when it was made.
        answered: when its answer was there; infinity if none ever was.
    """

    called: float
    answered: float = inf


@dataclass(frozen=True, slots=True)
class Rules:
    """What is known of an action's policy, as far as it is the same for the whole history.

    Attributes:
        slots: how many slots a lane has, at first.
        mode: what a failed attempt does to its lane: ``hold``, ``yield`` or ``tail``.
        strict: whether the order of enqueues is strict.
        backoff: the longest time from a failed attempt to the next one, in seconds.
        max_attempts: after how many failures it has failed.
        shared: how many may be active at once over all its lanes, by a shared limit; None: any number.
        paced: whether more than slots decides when a lane goes on, a rate or a shared limit; then nobody can
            say from outside that it has stood still.
    """

    slots: int = 1
    mode: Literal["hold", "yield", "tail"] = "hold"
    strict: bool = True
    backoff: float = 0.0
    max_attempts: int = 5
    shared: int | None = None
    paced: bool = False


@dataclass(frozen=True, slots=True)
class Enqueue:
    """An execution as its producer saw it come to be.

    Attributes:
        id: its id.
        action: its action.
        lane: its group, as text.
        call: the enqueue itself.
        commit: the commit or rollback; where each statement commits by itself, the same as ``call``.
        fate: what became of it.
        delay: after how many seconds it joins the line; 0: with its enqueue.
        producer: who.
    """

    id: int
    action: str
    lane: str
    call: Span
    commit: Span
    fate: Fate = "committed"
    delay: float = 0.0
    producer: str = ""


@dataclass(frozen=True, slots=True)
class HandIn:
    """A worker said how an attempt had ended.

    Attributes:
        outcome: what it said: succeeded, failed, released or cancelled.
        call: the call in which it did.
        answer: what became of it.
        final: whether no further attempt may follow, if it is taken.
    """

    outcome: str
    call: Span
    answer: Answer = "taken"
    final: bool = True


@dataclass(frozen=True, slots=True)
class Attempt:
    """A start as a worker saw it, and what came of it.

    Attributes:
        id: the execution.
        attempt: which start of it this is.
        action: its action.
        lane: its group, as text.
        worker: the name of the worker.
        claim: the call that started it.
        begin: when its handler began; None if it never did.
        end: when its handler had ended; None if it never did.
        handed: what was said of its end, as often as that was done.
        registration: the number that the worker had in the database then, where that is known.
        batch: the id of the first of those that the same call has started as one batch with it, which have
            one slot; None where it has its own.
    """

    id: int
    attempt: int
    action: str
    lane: str
    worker: str
    claim: Span
    begin: float | None = None
    end: float | None = None
    handed: tuple[HandIn, ...] = ()
    registration: int | None = None
    batch: int | None = None

    @property
    def key(self) -> Key:
        """The execution's id and the number of the attempt."""
        return self.id, self.attempt

    @property
    def taken(self) -> HandIn | None:
        """What was said of its end and was taken, if anything was."""
        return next((each for each in self.handed if each.answer == "taken"), None)

    @property
    def maybe_taken(self) -> HandIn | None:
        """What was said of its end and was taken, or may have been."""
        return self.taken or next((each for each in self.handed if each.answer == "none"), None)


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody cancelled an execution; the answer is None if none ever came."""

    id: int
    call: Span
    answer: str | None


@dataclass(frozen=True, slots=True)
class LimitChange:
    """Somebody set how many slots each lane of an action has."""

    action: str
    slots: int
    call: Span


@dataclass(frozen=True, slots=True)
class Fault:
    """Something was done to a worker, or happened to it.

    Attributes:
        worker: its name.
        kind: ``kill``, ``pause``, or whatever else may cost it what it holds.
        since: a moment before.
        until: a moment after: its process had ended, or goes on.
    """

    worker: str
    kind: str
    since: float
    until: float = inf


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat of a worker, answered or not."""

    worker: str
    registration: int
    call: Span


@dataclass(frozen=True, slots=True)
class Death:
    """A worker was told that this registration of it had been declared dead."""

    worker: str
    registration: int
    at: float


@dataclass(frozen=True, slots=True)
class Duty:
    """A worker was there to claim.

    Attributes:
        worker: its name.
        since: when it was registered.
        until: when it began to stop, or was gone.
        room: how many executions it runs at once.
    """

    worker: str
    since: float
    until: float
    room: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What pgfifo says of an execution afterwards.

    Attributes:
        id: its id.
        action: its action.
        lane: its group, as text.
        state: its outcome, or the state that it is in.
        attempt: how often it was started.
        failures: how many attempts failed or were lost; None where that was not asked.
    """

    id: int
    action: str
    lane: str
    state: str
    attempt: int
    failures: int | None = None


@dataclass(frozen=True, slots=True)
class Stay:
    """A start on pgfifo's record, or, without a number, one stay in the line that goes on.

    Attributes:
        lane: the lane; whatever names it.
        id: the execution.
        attempt: which start of it this is.
        ticket: its place in the line.
        joined_no: the lane's count of starts when it came back to the line; 0 if it came with its ticket.
        start_no: the number of this start in its lane.
        limit: how many slots the lane had at that start.
        end_no: the lane's count of starts when it left its slot; None while it has it.
        batch_no: the number of the start that led its batch, which had one slot; None where it had its own.
    """

    lane: object
    id: int
    attempt: int
    ticket: int
    joined_no: int
    start_no: int | None
    limit: int | None
    end_no: int | None
    batch_no: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What pgfifo itself says, when all is over.

    Attributes:
        outcomes: of all executions of the actions; an id may only be there once, which is checked.
        stays: all starts on record, and what still waits.
        wakeups_lost: how many lanes only the sweep has set going; None where nobody may ask.
        findings: what pgfifo's own checks say, in words.
    """

    outcomes: Sequence[Outcome] = ()
    stays: Sequence[Stay] = ()
    wakeups_lost: int | None = None
    findings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class History:
    """Everything that a verdict rests on. Who has no evidence of a kind leaves it out.

    Attributes:
        rules: the actions it is about.
        enqueues: what producers saw.
        attempts: what workers saw.
        cancels: what was cancelled.
        limits: changes of slots.
        faults: what happened to workers.
        beats: the workers' heartbeats.
        deaths: what workers were told of their deaths.
        duties: when which worker was there; empty: progress is not judged by time.
        outages: when nobody could get anything done (the server was down, say).
        record: what pgfifo says; None: it was not asked.
        lease: without a heartbeat for so many seconds a worker counts as dead.
        patience: how many seconds a lane may stand still though it could go on.
        until: when the last look was taken.
    """

    rules: Mapping[str, Rules]
    enqueues: Sequence[Enqueue] = ()
    attempts: Sequence[Attempt] = ()
    cancels: Sequence[Cancel] = ()
    limits: Sequence[LimitChange] = ()
    faults: Sequence[Fault] = ()
    beats: Sequence[Beat] = ()
    deaths: Sequence[Death] = ()
    duties: Sequence[Duty] = ()
    outages: Sequence[Span] = ()
    record: Record | None = None
    lease: float = 30.0
    patience: float = 10.0
    until: float = inf


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold.

    Attributes:
        name: what it is, in a few words.
        seen: what was seen when it holds.
        findings: what does not hold; empty when all is well.
        exercised: whether anything happened that could have broken it. If not, that it holds says nothing.
    """

    name: str
    seen: str
    findings: Sequence[str] = field(default=())
    exercised: bool = True

    @property
    def holds(self) -> bool:
        """Tell whether nothing was found."""
        return not self.findings


class Index:
    """A history, sorted as the checks need it."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.enqueues = {each.id: each for each in history.enqueues if each.fate != "rolled back"}
        self.by_id: dict[int, list[Attempt]] = defaultdict(list)
        self.by_lane: dict[Lane, list[Attempt]] = defaultdict(list)
        for attempt in history.attempts:
            self.by_id[attempt.id].append(attempt)
            self.by_lane[attempt.action, attempt.lane].append(attempt)
        for attempts in self.by_id.values():
            attempts.sort(key=lambda each: (each.attempt, each.claim.called))
        self.cancels: dict[int, list[Cancel]] = defaultdict(list)
        for cancel in history.cancels:
            self.cancels[cancel.id].append(cancel)
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        for fault in sorted([*history.faults, *_silences(history)], key=lambda each: each.since):
            self.faults[fault.worker].append(fault)
        record = history.record
        self.outcomes = {each.id: each for each in record.outcomes} if record else {}
        self._limits: dict[str, list[tuple[int, float, float]]] = {}

    def lines(self) -> dict[Lane, list[Enqueue]]:
        """Return what was enqueued and not rolled back, lane by lane, the oldest ticket first."""
        lines: dict[Lane, list[Enqueue]] = defaultdict(list)
        for enqueue in self.enqueues.values():
            lines[enqueue.action, enqueue.lane].append(enqueue)
        for line in lines.values():
            line.sort(key=lambda each: each.id)
        return lines

    def next_of(self, attempt: Attempt) -> Attempt | None:
        """Return the next attempt of the same execution that anybody saw."""
        return next((each for each in self.by_id[attempt.id] if each.attempt > attempt.attempt), None)

    def fault_in(self, attempt: Attempt) -> Fault | None:
        """Return what happened to the worker first, between this start and the first word of its end."""
        over = min((each.call.called for each in attempt.handed), default=inf)
        return next(
            (
                fault
                for fault in self.faults[attempt.worker]
                if fault.until >= attempt.claim.called and fault.since <= over
            ),
            None,
        )

    def is_zombie_at(self, attempt: Attempt, at: float) -> bool:
        """Return whether something had happened by then that may have cost the worker this attempt."""
        fault = self.fault_in(attempt)
        return fault is not None and fault.since <= at

    def held_until(self, attempt: Attempt) -> float:
        """Return until when it surely had its slot, provided that nobody broke a promise.

        That is until its end was first handed in; until something happened to its worker; or until the next
        attempt of it was claimed.
        """
        over = min((each.call.called for each in attempt.handed), default=inf)
        fault = self.fault_in(attempt)
        after = self.next_of(attempt)
        return min(over, fault.since if fault else inf, after.claim.called if after else inf)

    def limits_of(self, action: str) -> list[tuple[int, float, float]]:
        """Return how many slots each lane of an action had, and between which times that may have been so."""
        if action not in self._limits:
            changes = sorted(
                (each for each in self.history.limits if each.action == action),
                key=lambda each: each.call.called,
            )
            values = [self.history.rules[action].slots, *(each.slots for each in changes)]
            since = [-inf, *(each.call.called for each in changes)]
            until = [*(each.call.answered for each in changes), inf]
            self._limits[action] = list(zip(values, since, until, strict=True))
        return self._limits[action]

    def most_slots(self, action: str, since: float = -inf, until: float = inf) -> int:
        """Return the most slots that a lane can have had at some moment in a span of time."""
        return max(slots for slots, first, last in self.limits_of(action) if first <= until and last >= since)

    def least_slots(self, action: str) -> int:
        """Return the fewest slots that a lane ever had."""
        return min(slots for slots, _, _ in self.limits_of(action))


def _silences(history: History) -> Iterable[Fault]:
    """Find times in which a worker may have counted as dead, whoever is to blame: a busy machine, say.

    The server has seen an answered heartbeat at some time of its call. So a worker may have been dead from a
    lease after the call of one until the answer of the next; and where one failed in between, as when its
    session was ended, all that time.
    """
    beats: dict[str, list[Beat]] = defaultdict(list)
    for beat in sorted(history.beats, key=lambda each: each.call.called):
        beats[beat.worker].append(beat)
    for worker, all_of_it in beats.items():
        heard: float | None = None
        failed = False
        for beat in all_of_it:
            if beat.call.answered == inf:
                failed = True
                continue
            if heard is not None and (failed or beat.call.answered - heard >= history.lease):
                since = heard if failed else heard + history.lease
                yield Fault(worker, "silence", since, beat.call.answered)
            heard, failed = beat.call.called, False
        if heard is not None:
            yield Fault(worker, "silence", heard if failed else heard + history.lease)


def some(ids: Sequence[int], shown: int = 3) -> str:
    """Name the first few of many."""
    more = f" and {len(ids) - shown:,} more" if len(ids) > shown else ""
    return ", ".join(map(str, ids[:shown])) + more


def place(action: str, lane: str) -> str:
    """Name a lane."""
    return f"{action} {lane}" if lane else action
