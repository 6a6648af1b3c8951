"""The whole queue in plain Python: lines, slots, policies, limits over time, keys, workers, a set clock.

It says what ought to be, as the documentation does, and knows nothing of how the engine does it. Time is
counted in units that are long beside everything that really takes time, and passes only when told. Where
the engine is free (which lane comes first, when exactly a delayed execution joins its line, when an idle
lane goes) the model is told what it did, and says whether it may.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pgfifo import errors

INFINITE = math.inf
OUTCOMES = ("succeeded", "failed", "cancelled", "expired")
DAY = 144
"""Units of ten minutes in a day."""
NOON = 72
"""When the model's time begins: at noon."""

DEFAULTS: dict[str, Any] = {
    "max_concurrent": 1,
    "max_queue_length": INFINITE,
    "max_action_queue_length": INFINITE,
    "on_limit": "enqueue",
    "rate": None,
    "burst": None,
    "spacing": 0,
    "gap": 0,
    "max_wait": INFINITE,
    "max_attempts": 5,
    "failure_mode": "hold",
    "backoff": "exponential",
    "backoff_initial": 1,
    "backoff_factor": 2,
    "backoff_cap": 3,
    "on_exhausted": "continue",
    "retention": 7 * DAY,
    "lane_retention": DAY,
    "ordering": "strict",
}


@dataclass(eq=False)
class Pace:
    """How far the starts of a lane, or of a shared limit, are ahead of their rate."""

    used_up: float | None = None
    """When the rate would be used up by what has started."""
    last_start: float | None = None
    last_end: float | None = None

    def allows(self, rate: "Rate", burst: int | None, now: float) -> int:
        """Say how many starts a rate allows now."""
        most = rate[0] if burst is None else burst
        return max(0, math.floor(most - (self._counted(rate, most, now) - now) / (rate[1] / rate[0])))

    def take(self, rate: "Rate | None", burst: int | None, now: float) -> None:
        """Count a start."""
        if rate is not None:
            most = rate[0] if burst is None else burst
            self.used_up = self._counted(rate, most, now) + rate[1] / rate[0]
        else:
            self.used_up = None
        self.last_start = now

    def _counted(self, rate: "Rate", most: int, now: float) -> float:
        # A rate may have become faster: nothing waits for longer than a whole burst of the new one takes.
        if self.used_up is None or self.last_start is None:
            return now
        return max(now, min(self.used_up, self.last_start + most * rate[1] / rate[0]))


Rate = tuple[int, int]
"""Starts, and in how many units."""


@dataclass(eq=False)
class Shared:
    """A shared limit."""

    name: str
    most: int | None = None
    rate: Rate | None = None
    burst: int | None = None
    actions: set[str] = field(default_factory=set)
    packs: set[str] = field(default_factory=set)
    everything: bool = False
    pace: Pace = field(default_factory=Pace)

    def covers(self, action: str) -> bool:
        """Say whether an action draws from it."""
        return self.everything or action in self.actions or pack_of(action) in self.packs


@dataclass(eq=False)
class Execution:
    """One execution, whatever its state."""

    id: int
    lane: "Lane"
    payload: dict[str, Any]
    state: str
    ticket: int | None
    joined: float
    """When it joined the line, or was enqueued."""
    due: float = 0
    """When a delayed one joins, or a held one may start again."""
    serial: int = 0
    """Of two with the same time, the one that was told it first comes first."""
    attempt: int = 0
    failures: int = 0
    is_yielded: bool = False
    """It is delayed, and keeps its place."""
    worker: int | None = None
    call: int | None = None
    draws: list[Shared] = field(default_factory=list)
    has_gap: bool = False
    """Its lane had a gap when it started."""
    batch: int | None = None
    """The id of the first one of the batch that it runs in; all of one batch have one slot."""
    cancel_requested: bool = False
    is_completed: bool = False
    """Its handler has committed its success: whatever is said from now on, it has succeeded."""
    dedup_key: str | None = None
    item_key: str | None = None
    request_id: str | None = None
    retry_of: int | None = None
    owner: int | None = None
    """The program that holds the slot itself, or waits for it; no worker runs it."""
    finished: float = 0

    @property
    def is_finished(self) -> bool:
        return self.state in OUTCOMES

    @property
    def place(self) -> int:
        assert self.ticket is not None
        return self.ticket


@dataclass(eq=False)
class Lane:
    """One line and its slots."""

    action: str
    group: str
    exists: bool = False
    paused: bool = False
    stopped: bool = False
    """A failure has paused it (on_exhausted)."""
    closed: bool = False
    enqueued: int = 0
    ended: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    pace: Pace = field(default_factory=Pace)
    touched: float = 0
    """When something last happened in it."""

    @property
    def target(self) -> str:
        return f"lane:{self.action}/{self.group}"


@dataclass
class Worker:
    """A worker process."""

    id: int
    actions: list[str]
    lease: int
    seen: int
    """The round of maintenance at its last heartbeat."""
    state: str = "alive"
    kind: str = "worker"
    call: int = 0
    seen_call: int = 0


@dataclass
class Item:
    """What is enqueued."""

    group: str = ""
    payload: dict[str, Any] = field(default_factory=dict)
    delay: float = 0
    request_id: str | None = None
    dedup_key: str | None = None
    item_key: str | None = None


def pack_of(action: str) -> str | None:
    """Return the pack of an action."""
    return action.rpartition(".")[0] or None


def merge_patch(target: Any, patch: Any) -> Any:
    """Lay a patch over a value (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


class Queue:
    """Everything, and what may be done to it."""

    def __init__(self, actions: Iterable[str], groups: Iterable[str]) -> None:
        self.now: float = 0
        self.serial = 0
        self.round_no = 0
        self.actions = list(actions)
        self.lanes = {(a, g): Lane(a, g) for a in self.actions for g in groups}
        self.paused: set[str] = set()
        self.closed: set[str] = set()
        self.past = {action: dict.fromkeys(OUTCOMES, 0) for action in self.actions}
        """The totals of lanes that have been removed."""
        self.executions: dict[int, Execution] = {}
        self.workers: dict[int, Worker] = {}
        self.shared: dict[str, Shared] = {}
        self.policies: dict[str, dict[str, Any]] = {}
        self.overrides: dict[str, dict[str, tuple[Any, float]]] = {}
        self.requests: dict[tuple[str, str], tuple[int, float]] = {}
        self.tallies: dict[str, tuple[int, int]] = {}
        """Of each target with a quota: the day, and how many were enqueued in it."""

    # -- policies --------------------------------------------------------------------------------------------

    def scopes(self, action: str, lane: Lane | None = None) -> list[str]:
        """Return the scopes of an action or a lane, the most specific one first."""
        pack = pack_of(action)
        return [
            *([lane.target] if lane else []),
            f"action:{action}",
            *([f"pack:{pack}"] if pack else []),
            "everything",
        ]

    def value(self, attribute: str, action: str, lane: Lane | None = None) -> Any:
        """Return what is in force: an override, or else what the most specific scope says, or the default."""
        scopes = self.scopes(action, lane)
        for scope in scopes:
            value, until = self.overrides.get(scope, {}).get(attribute, (None, 0))
            if value is not None and until > self.now:
                return _meant(attribute, value)
        for scope in scopes:
            value = self.policies.get(scope, {}).get(attribute)
            if value is not None:
                return _meant(attribute, value)
        return DEFAULTS[attribute]

    def of(self, lane: Lane, attribute: str) -> Any:
        """Return what is in force in a lane."""
        return self.value(attribute, lane.action, lane)

    def quota(self, scope: str) -> float:
        """Return the quota of one scope: these are not inherited."""
        value, until = self.overrides.get(scope, {}).get("quota", (None, 0))
        if value is None or until <= self.now:
            value = self.policies.get(scope, {}).get("quota")
        return _meant("quota", value) if value is not None else INFINITE

    def set_policy(self, scope: str, values: Mapping[str, Any]) -> None:
        """Set attributes of a scope; None inherits again."""
        own = self.policies.setdefault(scope, {})
        for attribute, value in values.items():
            own.pop(attribute, None) if value is None else own.__setitem__(attribute, value)
        self.expire()

    def override(self, scope: str, values: Mapping[str, Any], lasting: float) -> None:
        """Let values win for a time; None ends an override."""
        own = self.overrides.setdefault(scope, {})
        for attribute, value in values.items():
            own.pop(attribute, None) if value is None else own.__setitem__(
                attribute, (value, self.now + lasting)
            )

    # -- looking ---------------------------------------------------------------------------------------------

    def all(self, lane: Lane, *states: str) -> list[Execution]:
        """Return a lane's executions in these states."""
        return [e for e in self.executions.values() if e.lane is lane and e.state in states]

    def waiting(self, lane: Lane) -> list[Execution]:
        """Return the line."""
        return sorted(self.all(lane, "waiting"), key=lambda e: e.place)

    def active(self, lane: Lane) -> int:
        """Say how many slots are taken: a batch has one."""
        return len({e.batch or e.id for e in self.all(lane, "running")}) + len(self.all(lane, "held"))

    def mates(self, execution: Execution) -> list[Execution]:
        """Return the others of its batch that run."""
        running = [e for e in self.all(execution.lane, "running") if e is not execution]
        return sorted((e for e in running if e.batch and e.batch == execution.batch), key=lambda e: e.place)

    def is_paused(self, lane: Lane) -> bool:
        return lane.action in self.paused or lane.paused or lane.stopped

    def is_due(self, execution: Execution) -> bool:
        return execution.due <= self.now

    def draws(self, action: str) -> list[Shared]:
        """Return the shared limits that an action draws from."""
        return [shared for shared in self.shared.values() if shared.covers(action)]

    def running_of(self, worker: int) -> list[Execution]:
        """Return what a worker runs."""
        return [e for e in self.executions.values() if e.worker == worker and e.state == "running"]

    def shared_active(self, shared: Shared) -> int:
        """Say how many are running that drew from a shared limit."""
        return sum(e.state == "running" and shared in e.draws for e in self.executions.values())

    def in_the_way(self, lane: Lane) -> list[tuple[str, float]]:
        """Return what limits a lane's starts over time and across lanes, and how many each allows now."""
        out: list[tuple[str, float]] = []
        rate, spacing, gap = self.of(lane, "rate"), self.of(lane, "spacing"), self.of(lane, "gap")
        if rate is not None:
            out.append(("rate", lane.pace.allows(rate, self.of(lane, "burst"), self.now)))
        if spacing:
            last = lane.pace.last_start
            out.append(("spacing", 0 if last is not None and last + spacing > self.now else 1))
        if gap and lane.pace.last_end is not None and lane.pace.last_end + gap > self.now:
            out.append(("gap", 0))
        for shared in self.draws(lane.action):
            if shared.most is not None:
                out.append(("shared_slots", max(0, shared.most - self.shared_active(shared))))
            if shared.rate is not None:
                out.append(("shared_rate", shared.pace.allows(shared.rate, shared.burst, self.now)))
        return out

    def next_of(self, lane: Lane) -> Execution | None:
        """Return the one that would have to start next in a lane, if anything could start now."""
        if self.is_paused(lane):
            return None
        held = [e for e in self.all(lane, "held") if self.is_due(e)]
        candidates = sorted([*held, *self.waiting(lane)], key=lambda e: e.place)
        if not candidates or any(most < 1 for _, most in self.in_the_way(lane)):
            return None
        first = candidates[0]
        limit = self.of(lane, "max_concurrent")
        # Held ones that are due give their slots up, for an older one or for a limit that was lowered.
        kept = self.active(lane) - len(held)
        return first if kept < limit else None

    def left_behind(self, actions: Iterable[str], *, shared: bool) -> list[str]:
        """Say what a worker that has room left should have started, or let join.

        Args:
            actions: What it serves.
            shared: Whether lanes that draw from shared limits count: these take turns, and have to be called.
        """
        out = []
        for lane in self.lanes.values():
            if lane.action not in actions or lane.action in self.paused:
                continue
            late = [e.id for e in self.all(lane, "delayed") if self.is_due(e)]
            if late:
                out.append(f"{late} of {lane.target} are due and did not join")
            first = self.next_of(lane)
            if first is not None and (shared or not self.draws(lane.action)):
                out.append(f"{first.id} of {lane.target} could start and did not")
        return out

    # -- producing -------------------------------------------------------------------------------------------

    def enqueue(self, action: str, items: list[Item], on_item: str) -> "Enqueue":
        """Work out what an enqueue does: `refusals` says which errors may come of it, or must."""
        return Enqueue(self, action, items, on_item)

    def add(self, execution: Execution) -> None:
        """Take in a new execution."""
        lane = execution.lane
        lane.exists = True
        lane.enqueued += 1
        self.executions[execution.id] = execution
        self.touch(lane)

    def join(self, execution: Execution, ticket: int) -> None:
        """Let a delayed execution that is due join: the end of its line, or its place, if it has one."""
        assert execution.state == "delayed", f"{execution.id} joined, and was {execution.state}"
        assert self.is_due(execution), f"{execution.id} joined before its time"
        if not execution.is_yielded:
            tickets = [
                e.place for e in self.executions.values() if e.lane is execution.lane and e.ticket is not None
            ]
            assert not tickets or ticket > max(tickets), f"{execution.id} did not join the end of its line"
            earlier = [
                e.id
                for e in self.all(execution.lane, "delayed")
                if not e.is_yielded
                and (e.due, e.serial, e.id) < (execution.due, execution.serial, execution.id)
            ]
            assert not earlier, f"{execution.id} joined before {earlier}, whose times were earlier"
            execution.ticket = ticket
            execution.joined = self.now
        execution.is_yielded = False
        execution.state = "waiting"
        self.touch(execution.lane)

    def retry(self, old: Execution, new_id: int, *, head: bool) -> None:
        """Put a finished execution back: at the end of its line, or with its old ticket."""
        lane = old.lane
        self.count_quotas(lane)
        ticket = old.ticket if head and old.ticket is not None else new_id
        self.add(Execution(new_id, lane, old.payload, "waiting", ticket, self.now, retry_of=old.id))

    def retry_answers(self, old: Execution, *, head: bool) -> set[str]:
        """Say what may come of putting an execution back: mostly that is one thing."""
        lane = old.lane
        living = [e for e in self.executions.values() if not e.is_finished]
        if not old.is_finished:
            return {old.state}
        if old.owner is not None:
            return {"slot"}
        if lane.closed or lane.action in self.closed:
            return {"closed"}
        if any(e.retry_of == old.id for e in living):
            return {"again"}
        may = {"retried"}
        if head and old.ticket is not None:
            if any(e.lane is lane and e.ticket == old.ticket for e in living):
                return {"taken"}
        else:
            length = len(self.waiting(lane)) + len(self.joining(lane))
            if length >= self.of(lane, "max_queue_length"):
                return {"full"}
            if self.of(lane, "on_limit") == "cancel":
                if self.could_start(lane) <= length:
                    return {"limit"}
                if self.draws(lane.action):
                    may.add("limit")  # others may wait for it, or will in a moment
            others = sum(len(self.waiting(x)) for x in self.lanes.values() if x.action == lane.action)
            if others + len(self.joining(lane)) >= self.value("max_action_queue_length", lane.action):
                return (may | {"full"}) - {"retried"}
        if any(self.used(scope) + 1 > self.quota(scope) for scope in self.scopes(lane.action, lane)):
            return (may | {"quota"}) - {"retried"}
        return may

    def could_start(self, lane: Lane) -> float:
        """Say how many of those that wait, with those that come now, could start at once."""
        if self.is_paused(lane):
            return 0
        free = self.of(lane, "max_concurrent") - self.active(lane)
        return float(min([free, *(most for _, most in self.in_the_way(lane))]))

    def used(self, scope: str) -> int:
        """Say how much of a scope's quota is used."""
        day, used = self.tallies.get(scope, (-1, 0))
        return used if day == self.day else 0

    def count_quotas(self, lane: Lane) -> None:
        """Count one that is accepted, in each scope that has a quota."""
        for scope in self.scopes(lane.action, lane):
            if self.quota(scope) < INFINITE:
                self.tallies[scope] = (self.day, self.used(scope) + 1)

    def joining(self, lane: Lane) -> list[Execution]:
        """Return those that join the end of a line before whatever is enqueued now."""
        due = [e for e in self.all(lane, "delayed") if self.is_due(e) and not e.is_yielded]
        return sorted(due, key=lambda e: (e.due, e.serial, e.id))

    def reschedule(self, execution: Execution, delay: float) -> None:
        """Give a delayed or held execution another time."""
        assert execution.state in ("delayed", "held")
        self.serial += 1
        execution.due = self.now + delay
        execution.serial = self.serial
        self.touch(execution.lane)

    # -- consuming -------------------------------------------------------------------------------------------

    def give_up_slot(self, execution: Execution) -> None:
        """Let a held execution give its slot up and wait at its place."""
        lane = execution.lane
        assert execution.state == "held", f"{execution.id} waits, and was {execution.state}"
        assert self.is_due(execution), f"{execution.id} gave its slot up before its time"
        older = [e for e in self.waiting(lane) if e.place < execution.place]
        assert older or self.active(lane) > self.of(lane, "max_concurrent"), (
            f"{execution.id} gave its slot up for nobody"
        )
        execution.state = "waiting"
        self.touch(lane)

    def start(
        self, execution: Execution, worker: int, call: int | None, leader: Execution | None = None
    ) -> None:
        """Record a start: it must be allowed, and its turn; or it rides in the slot of another one."""
        lane = execution.lane
        assert execution.state in ("waiting", "held"), (
            f"{execution.id} was started, and was {execution.state}"
        )
        assert execution.state != "held" or self.is_due(execution), (
            f"{execution.id} was started within its backoff"
        )
        assert not self.is_paused(lane), f"{execution.id} was started in {lane.target}, which is paused"
        before = [e.id for e in self.waiting(lane) if e.place < execution.place]
        assert not before, f"{execution.id} was started before {before}, which waited"
        # Who moves a lane on for programs starts nothing that needs a worker; what is held keeps its slot.
        if execution.state == "waiting" and execution.owner is None:
            held = [e.id for e in self.all(lane, "held") if self.is_due(e) and e.place < execution.place]
            assert not held, f"{execution.id} was started before {held}, which had their slots and were due"
        if leader is None:
            self._take_slot(execution)
        else:
            assert execution.attempt == 0, f"{execution.id} was started before, and rides with {leader.id}"
            assert execution.owner is None, f"{execution.id} is a program's, and rides with {leader.id}"
            assert leader.lane is lane, f"{execution.id} rides with {leader.id} of another lane"
            assert leader.state == "running", f"{execution.id} rides with {leader.id}, which does not run"
            execution.batch = leader.batch = leader.id
        execution.state = "running"
        execution.attempt += 1
        execution.worker = worker
        execution.call = call
        self.touch(lane)

    def _take_slot(self, execution: Execution) -> None:
        """Take a slot, and whatever else a start takes."""
        lane = execution.lane
        active, limit = self.active(lane) + (execution.state == "waiting"), self.of(lane, "max_concurrent")
        assert active <= limit, f"{execution.id} made {active} active of {limit} in {lane.target}"
        for what, most in self.in_the_way(lane):
            assert most >= 1, f"{execution.id} was started over the {what} of {lane.target}"
        rate = self.of(lane, "rate")
        if rate is not None or self.of(lane, "spacing"):
            lane.pace.take(rate, self.of(lane, "burst"), self.now)
        execution.draws = self.draws(lane.action)
        for shared in execution.draws:
            shared.pace.take(shared.rate, shared.burst, self.now)
        execution.has_gap = bool(self.of(lane, "gap"))

    def finish(
        self,
        execution: Execution,
        outcome: str,
        *,
        retry: bool = True,
        after: float | None = None,
        count: bool = True,
        lost: bool = False,
    ) -> str:
        """End an attempt: to an outcome, into a backoff, or back to its place. Return which."""
        lane = execution.lane
        assert execution.state == "running"
        mates = self.mates(execution)
        self._leave_slot(execution)
        failures = execution.failures + (outcome == "failed" and count)
        if outcome == "succeeded" or execution.is_completed:
            return self.end(execution, "succeeded")
        if execution.cancel_requested or outcome == "cancelled":
            execution.failures = failures
            return self.end(execution, "cancelled")
        if execution.owner is not None:
            execution.failures += 1
            return self.end(execution, "failed")
        if outcome == "released":
            execution.state = "waiting"
            self.touch(lane)
            return "returned"
        execution.failures = failures
        is_final = not retry or (count and failures >= self.of(lane, "max_attempts"))
        stops = self.of(lane, "on_exhausted") == "pause"
        if lost or (stops if is_final else self.of(lane, "failure_mode") == "hold"):
            self._put_off(mates)
        if is_final:
            if stops and not lane.paused:
                lane.stopped = True
            return self.end(execution, "failed")
        self.serial += 1
        execution.serial = self.serial
        execution.due = self.now + (self._backoff(lane, max(failures, 1)) if after is None else after)
        mode = self.of(lane, "failure_mode")
        execution.state = "held" if mode == "hold" else "delayed"
        execution.is_yielded = mode == "yield"
        if mode == "tail":
            execution.ticket = None
        self.touch(lane)
        return execution.state

    def _backoff(self, lane: Lane, failures: int) -> float:
        initial, factor = self.of(lane, "backoff_initial"), self.of(lane, "backoff_factor")
        grown = initial if self.of(lane, "backoff") == "constant" else initial * factor ** (failures - 1)
        return float(min(grown, self.of(lane, "backoff_cap")))

    def _put_off(self, mates: list[Execution]) -> None:
        """Have the others of a batch go back to their places: nothing may overtake who has failed."""
        for mate in mates:
            self._leave_slot(mate)
            if mate.is_completed:
                self.end(mate, "succeeded")
            elif mate.cancel_requested:
                self.end(mate, "cancelled")
            else:
                mate.state = "waiting"
                self.touch(mate.lane)

    def _leave_slot(self, execution: Execution) -> None:
        """Give back what it drew; the lane rests from now on, if it keeps a gap. Of a batch, the last."""
        lane, mates = execution.lane, self.mates(execution)
        if mates and (execution.draws or execution.has_gap):
            mates[0].draws, mates[0].has_gap = execution.draws, execution.has_gap
        elif (execution.draws or execution.has_gap) and self.of(lane, "gap"):
            lane.pace.last_end = self.now
        execution.draws = []
        execution.has_gap = False
        execution.batch = None
        execution.worker = None
        execution.call = None

    def end(self, execution: Execution, outcome: str, at: float | None = None) -> str:
        """Give an execution its one outcome."""
        assert not execution.is_finished, f"{execution.id} ended twice"
        if execution.state == "running":
            self._leave_slot(execution)
        execution.state = outcome
        execution.finished = self.now if at is None else at
        execution.dedup_key = execution.item_key = execution.request_id = None
        execution.lane.ended[outcome] += 1
        self.touch(execution.lane)
        return outcome

    def cancel(self, execution: Execution) -> str:
        """Cancel: at once, or by request while it runs."""
        if execution.is_finished:
            return execution.state
        if execution.state == "running":
            execution.cancel_requested = True
            return "requested"
        return self.end(execution, "cancelled")

    def finish_by_hand(self, execution: Execution, outcome: str) -> bool:
        """End an execution by an operator's word."""
        if execution.is_finished:
            return False
        outcome = "succeeded" if execution.is_completed else outcome
        execution.failures += outcome == "failed" and execution.state == "running"
        self.end(execution, outcome)
        return True

    # -- workers ---------------------------------------------------------------------------------------------

    def take_back(self, worker: int, outcome: str, only: Iterable[int] | None = None) -> list[Execution]:
        """Take executions back from a worker: 'failed' counts as a failure, 'released' does not."""
        taken = [e for e in self.running_of(worker) if only is None or e.id in only]
        for execution in sorted(taken, key=lambda e: e.place):
            if execution.state == "running":  # else another one of its batch has put it off
                self.finish(execution, outcome, lost=True)
        if only is None:
            for execution in [e for e in self.executions.values() if e.owner == worker and not e.is_finished]:
                self.end(execution, "failed")
        return taken

    def round(self, number: int) -> None:
        """One round of maintenance: take back from the dead of earlier rounds, then look who has died."""
        if number == self.round_no:
            return
        self.round_no = number
        for worker in self.workers.values():
            if worker.state != "alive":
                self.take_back(worker.id, "failed" if worker.state == "dead" else "released")
        for worker in self.workers.values():
            if worker.state == "alive" and number - worker.seen > worker.lease:
                worker.state = "dead"
        for (action, request), (_, at) in list(self.requests.items()):
            if self.now - at >= max(self.value("retention", action), 6):
                del self.requests[action, request]

    def lane_removed(self, lane: Lane) -> None:
        """Record that an idle lane has gone; its totals are its action's from now on."""
        assert not self.all(lane, "waiting", "delayed", "running", "held"), (
            f"{lane.target} was removed with what was in it"
        )
        assert not lane.paused, f"{lane.target} was removed, and its pause with it"
        assert not lane.stopped, f"{lane.target} was removed, and its pause with it"
        assert not lane.closed, f"{lane.target} was removed, though it is closed"
        assert not self.policies.get(lane.target), f"{lane.target} was removed, and its policy with it"
        overrides = [a for a, (_, until) in self.overrides.get(lane.target, {}).items() if until > self.now]
        assert not overrides, f"{lane.target} was removed, and its overrides with it"
        assert self.now - lane.touched >= self.of(lane, "lane_retention"), (
            f"{lane.target} was removed too early"
        )
        for what, most in self.in_the_way(lane):
            assert most >= 1 or what.startswith("shared"), (
                f"{lane.target} was removed, and its {what} with it"
            )
        for outcome, count in lane.ended.items():
            self.past[lane.action][outcome] += count
        self.overrides.pop(lane.target, None)
        self.tallies.pop(lane.target, None)
        self.lanes[lane.action, lane.group] = new = Lane(lane.action, lane.group)
        for execution in self.executions.values():
            if execution.lane is lane:
                execution.lane = new

    def forgotten(self, execution: Execution) -> None:
        """Record that a finished execution is not on record any more."""
        assert execution.is_finished, f"{execution.id} is lost; it was {execution.state}"
        age = self.now - execution.finished
        assert age >= self.value("retention", execution.lane.action), (
            f"{execution.id} is gone before its retention was over"
        )
        del self.executions[execution.id]

    # -- time ------------------------------------------------------------------------------------------------

    def touch(self, lane: Lane) -> None:
        """Note that something happened in a lane."""
        lane.touched = self.now

    def advance(self, units: float) -> None:
        """Let time pass."""
        self.now += units
        self.expire()

    def expire(self) -> None:
        """Whoever has waited for max_wait, and was never started, has expired."""
        for execution in list(self.executions.values()):
            if execution.state == "waiting" and execution.attempt == 0:
                ends = execution.joined + self.of(execution.lane, "max_wait")
                if ends <= self.now:
                    self.end(execution, "expired", at=ends)

    @property
    def day(self) -> int:
        """The calendar day."""
        return int(self.now + NOON) // DAY

    # -- statistics ------------------------------------------------------------------------------------------

    def lane_numbers(self, lane: Lane) -> dict[str, Any]:
        """Return a lane's statistics, under their names in the view."""
        counts = {state: len(self.all(lane, state)) for state in ("waiting", "running", "held", "delayed")}
        return {
            "queue_length": counts["waiting"],
            "active_count": counts["running"] + counts["held"],
            "slots_taken": self.active(lane),
            "running_count": counts["running"],
            "held_count": counts["held"],
            "delayed_count": counts["delayed"],
            "max_concurrent": self.of(lane, "max_concurrent"),
            "total_enqueued": lane.enqueued,
            "total_completed": sum(lane.ended.values()),
            **{f"total_{outcome}": count for outcome, count in lane.ended.items()},
            "paused": self.is_paused(lane),
            "closed": lane.closed or lane.action in self.closed,
        }

    def action_numbers(self, action: str) -> dict[str, Any]:
        """Return an action's statistics, under their names in the view."""
        lanes = [lane for lane in self.lanes.values() if lane.action == action and lane.exists]
        numbers = [self.lane_numbers(lane) for lane in lanes]
        names = [
            "queue_length",
            "active_count",
            "slots_taken",
            "running_count",
            "held_count",
            "delayed_count",
        ]
        totals = ["total_enqueued", "total_completed", *(f"total_{outcome}" for outcome in OUTCOMES)]
        out = {name: sum(n[name] for n in numbers) for name in (*names, *totals)}
        for outcome, count in self.past[action].items():
            out[f"total_{outcome}"] += count
            out["total_completed"] += count
            out["total_enqueued"] += count
        return {
            **out,
            "max_concurrent": self.value("max_concurrent", action),
            "lanes": len(lanes),
            "slots_total": sum(n["max_concurrent"] for n in numbers),
            "paused": action in self.paused,
            "paused_lanes": sum(n["paused"] for n in numbers),
            "closed": action in self.closed,
        }


class Enqueue:
    """What one enqueue does: who is new, whom it finds, and what may be in the way."""

    def __init__(self, queue: Queue, action: str, items: list[Item], on_item: str) -> None:
        self.queue = queue
        self.action = action
        self.items = items
        self.on_item = on_item
        self.lanes = [queue.lanes[action, item.group] for item in items]
        known = [queue.requests.get((action, item.request_id or "")) for item in items]
        self.is_repeated = all(known)
        """Every request was made before, so the answer is that of the first time, and nothing is asked."""
        self.found: list[Execution | int | None] = [None] * len(items)
        """What is there already, of each item: an execution; or an id, of a request that was made before."""
        self._settle([answer[0] if answer else None for answer in known])

    def _settle(self, known: list[int | None]) -> None:
        requests: dict[Any, int] = {}
        keys: dict[Any, int] = {}
        self.twins: dict[int, int] = {}
        """Items that get the id of an earlier one of the same call."""
        for n, item in enumerate(self.items):
            self.found[n] = known[n]
            if known[n] is None and item.request_id is not None:
                self._twin(n, requests, item.request_id)
            if known[n] is None and n not in self.twins:
                self.found[n] = self._keyed(item, self.lanes[n])
                if self.found[n] is None and item.item_key is not None:
                    self._twin(n, keys, (item.group, item.item_key))
                if self.found[n] is None and item.dedup_key is not None:
                    self._twin(n, keys, item.dedup_key)
        self.new = [n for n in range(len(self.items)) if self.found[n] is None and n not in self.twins]

    def _twin(self, n: int, first: dict[Any, int], key: Any) -> None:
        if key in first:
            self.twins[n] = first[key]
        else:
            first[key] = n

    def _keyed(self, item: Item, lane: Lane) -> Execution | None:
        for execution in self.queue.executions.values():
            if execution.is_finished:
                continue
            same_item = (
                item.item_key is not None and execution.item_key == item.item_key and execution.lane is lane
            )
            if same_item and execution.attempt == 0:
                return execution
            if (
                item.dedup_key is not None
                and execution.dedup_key == item.dedup_key
                and execution.lane.action == self.action
            ):
                return execution
        return None

    def refusals(self) -> tuple[set[type[Exception]], bool]:
        """Return the errors that may come of it, and whether one of them must."""
        queue = self.queue
        if self.is_repeated:
            return set(), False
        if self.action in queue.closed or any(lane.closed for lane in self.lanes):
            return {errors.ActionClosed}, True
        now = {
            lane: sum(self.lanes[n] is lane and not self.items[n].delay for n in self.new)
            for lane in set(self.lanes)
        }
        lengths = {lane: len(queue.waiting(lane)) + len(queue.joining(lane)) for lane in now}
        for lane, asked in now.items():
            if asked and lengths[lane] + asked > queue.of(lane, "max_queue_length"):
                return {errors.QueueFull}, True
        may: set[type[Exception]] = set()
        for lane, asked in now.items():
            if not asked or queue.of(lane, "on_limit") != "cancel":
                continue
            if asked > queue.could_start(lane) - lengths[lane]:
                return {errors.ConcurrencyLimit, errors.RateLimit}, True
            if queue.draws(lane.action):
                may |= {
                    errors.ConcurrencyLimit,
                    errors.RateLimit,
                }  # others may wait for it, or will in a moment
        most = queue.value("max_action_queue_length", self.action)
        asked = sum(now.values())
        others = sum(len(queue.waiting(lane)) for lane in queue.lanes.values() if lane.action == self.action)
        others += sum(len(queue.joining(lane)) for lane in now)
        if asked and others + asked > most:
            return may | {errors.QueueFull}, True
        for scope, count in self._counts().items():
            if count and queue.used(scope) + count > queue.quota(scope):
                return may | {errors.QuotaExceeded}, True
        return may, False

    def _counts(self) -> dict[str, int]:
        """How many are new in each scope, the narrowest first."""
        counts: dict[str, int] = {}
        for n in self.new:
            for scope in self.queue.scopes(self.action, self.lanes[n]):
                counts[scope] = counts.get(scope, 0) + 1
        return counts

    def accept(self, answers: list[tuple[int, bool]]) -> None:
        """Record what has come of it: the id that each item got, and whether it is new."""
        queue = self.queue
        if self.is_repeated:
            assert [id_ for id_, _ in answers] == self.found
            assert not any(created for _, created in answers)
            return
        for n in self.new:
            queue.count_quotas(self.lanes[n])
        for lane in self.lanes:
            if not lane.exists:
                lane.exists = True
                queue.touch(lane)
        queue.serial += 1
        for n, (id_, created) in enumerate(answers):
            item, found = self.items[n], self.found[n]
            assert created == (n in self.new), (
                f"item {n} is {'' if created else 'not '}new, as the answer says"
            )
            if n in self.new:
                self._add(n, id_)
            elif n in self.twins:
                assert id_ == answers[self.twins[n]][0], (
                    f"item {n} did not get the id of the first with its key"
                )
                if item.item_key is not None and item.request_id not in self._requests_before(n):
                    self._lay_over(queue.executions[id_], item)
            elif isinstance(found, Execution):
                assert id_ == found.id, f"item {n} found {id_}, and not {found.id}"
                if item.item_key is not None and found.item_key == item.item_key:
                    self._lay_over(found, item)
            else:
                assert id_ == found, f"item {n} was requested before as {found}, and is {id_}"
        for item, (id_, _) in zip(self.items, answers, strict=True):
            if item.request_id is not None:
                queue.requests.setdefault((self.action, item.request_id), (id_, queue.now))

    def _requests_before(self, n: int) -> set[str | None]:
        return {item.request_id for item in self.items[:n] if item.request_id is not None}

    def _add(self, n: int, id_: int) -> None:
        item, queue = self.items[n], self.queue
        new = Execution(
            id_,
            self.lanes[n],
            json.loads(
                json.dumps(
                    item.payload
                    if self.on_item != "merge_patch" or not item.item_key
                    else merge_patch({}, item.payload)
                )
            ),
            "delayed" if item.delay else "waiting",
            None if item.delay else id_,
            queue.now,
            due=queue.now + item.delay,
            serial=queue.serial,
            dedup_key=item.dedup_key,
            item_key=item.item_key,
            request_id=item.request_id,
        )
        queue.add(new)

    def _lay_over(self, execution: Execution, item: Item) -> None:
        if self.on_item == "replace":
            execution.payload = dict(item.payload)
        elif self.on_item == "merge_patch":
            execution.payload = merge_patch(execution.payload, item.payload)


def _meant(attribute: str, value: Any) -> Any:
    """What a policy's value means: 'unlimited' is no limit."""
    if value == "unlimited":
        return None if attribute == "rate" else INFINITE
    return value
