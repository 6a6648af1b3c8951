"""Slots: never more of a lane active at once than it has slots, and what is lost or held keeps its slot."""

import heapq
from collections import Counter
from collections.abc import Iterable
from math import inf
from typing import NamedTuple

from pgfifo.verify.history import Attempt, Check, Index, Stay, place, some
from pgfifo.verify.order import by_lane


class _Stay(NamedTuple):
    """A time in which an execution surely had a slot; it was given to it after ``earliest``."""

    since: float
    until: float
    earliest: float
    id: int


def within_slots(index: Index) -> Check:
    """Check the slots: of starts, of handlers by their own clock, and of pgfifo's record."""
    findings: list[str] = []
    most: Counter[str] = Counter()
    for (action, lane), attempts in index.by_lane.items():
        where = place(action, lane)
        starts = _one_a_batch(index, attempts)
        findings += (
            f"{where}: {given} had slots at once, {allowed} allowed: {who}"
            for given, allowed, who in _too_many(index, action, starts)
        )
        runs = [
            _Stay(each.begin, _ran_until(index, each), each.claim.called, each.id)
            for each in attempts
            if each.begin is not None
        ]
        most[action] = max(most[action], _at_once(runs))
        findings += (
            f"{where}: {given} handlers at once, {allowed} allowed: {who}"
            for given, allowed, who in _too_many(index, action, runs)
        )
    findings += _over_shared_limits(index)
    record = index.history.record
    if record is not None:
        findings += (f"on record: {fault}" for fault in slot_faults(record.stays))
    seen = ", ".join(f"{action} {most[action]} of {_said(index, action)}" for action in index.history.rules)
    said = f"0 slot violations (at most {seen} at once)"
    return Check("within the slots", said, findings, exercised=any(most.values()))


def _one_a_batch(index: Index, attempts: Iterable[Attempt]) -> list[_Stay]:
    """Return the stays in slots: a batch has one slot until the last of it has left it."""
    stays: list[_Stay] = []
    batches: dict[tuple[str, float, int], _Stay] = {}
    for each in attempts:
        stay = _Stay(each.claim.answered, _kept_until(index, each), each.claim.called, each.id)
        if each.batch is None:
            stays.append(stay)
            continue
        key = (each.worker, each.claim.called, each.batch)
        before = batches.get(key, stay)
        batches[key] = stay._replace(until=max(before.until, stay.until), id=each.batch)
    return [*stays, *batches.values()]


def _over_shared_limits(index: Index) -> Iterable[str]:
    """Find moments with more of an action active, over all its lanes, than its shared limit allows.

    What is held through a backoff has given its part of the limit back.
    """
    for action, rules in index.history.rules.items():
        if rules.shared is None:
            continue
        active: list[float] = []
        starts = [
            (each.claim.answered, index.held_until(each), each.id)
            for (of, _), attempts in index.by_lane.items()
            if of == action
            for each in attempts
        ]
        for since, until, id_ in sorted(starts):
            while active and active[0] <= since:
                heapq.heappop(active)
            if until > since:
                heapq.heappush(active, until)
            if len(active) > rules.shared:
                yield f"{action}: {id_} made {len(active)} of {rules.shared} that share a limit"


def _said(index: Index, action: str) -> str:
    values = sorted({slots for slots, _, _ in index.limits_of(action)})
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _kept_until(index: Index, attempt: Attempt) -> float:
    """Return until when an attempt's execution surely had its slot.

    Where a failed attempt keeps it through its backoff, and a lost one does, that is until the next attempt.
    """
    held = index.held_until(attempt)
    if attempt.batch is not None and (attempt.taken is None or attempt.taken.outcome != "failed"):
        # Of a batch that was lost only the first one is held, and nobody here knows which that is.
        return held
    after = index.next_of(attempt)
    rules = index.history.rules[attempt.action]
    if after is None or after.attempt != attempt.attempt + 1 or rules.mode != "hold":
        return held
    fault = index.fault_in(attempt)
    failed = any(each.outcome == "failed" for each in attempt.handed) or (
        fault is not None and fault.kind == "kill"
    )
    # It gives the slot up when the limit is lowered; and for an older one that has come back, as may happen
    # with several slots, when what a stopped worker had claimed is given back.
    sure = rules.slots == 1 or all(each.kind == "kill" for each in index.history.faults)
    return after.claim.called if failed and sure and len(index.limits_of(attempt.action)) == 1 else held


def _ran_until(index: Index, attempt: Attempt) -> float:
    """Return until when a handler surely ran with a slot of its own."""
    end = attempt.end if attempt.end is not None else inf
    fault = index.fault_in(attempt)
    if fault is not None and (attempt.end is None or attempt.taken is None):
        # Stopped, or cut off, for as long as its lease, it has lost its slot, whatever its handler believes.
        end = min(end, fault.since)
    return end


def _too_many(index: Index, action: str, stays: Iterable[_Stay]) -> Iterable[tuple[int, int, str]]:
    """Find moments with more than the lane can have had slots: how many, how many were allowed, and who.

    Of those that have slots at a moment, one was given its slot last. It was given after the latest of their
    earliest times, and not after that moment; so it was one too many if the lane never had so many slots in
    between.
    """
    active: list[tuple[float, _Stay]] = []
    for stay in sorted(stays):
        if stay.until <= stay.since:
            continue
        while active and active[0][0] <= stay.since:
            heapq.heappop(active)
        heapq.heappush(active, (stay.until, stay))
        if len(active) <= index.least_slots(action):
            continue
        allowed = index.most_slots(action, max(each.earliest for _, each in active), stay.since)
        if len(active) > allowed:
            yield len(active), allowed, some(sorted(each.id for _, each in active))


def _at_once(stays: Iterable[_Stay]) -> int:
    """Return how many there were at once, at most."""
    most = 0
    ends: list[float] = []
    for stay in sorted(stays):
        while ends and ends[0] <= stay.since:
            heapq.heappop(ends)
        if stay.until > stay.since:
            heapq.heappush(ends, stay.until)
        most = max(most, len(ends))
    return most


def slot_faults(stays: Iterable[Stay]) -> list[str]:
    """Find starts on record that were one too many, and numbers that were given twice."""
    faults = []
    for lane in by_lane(stays):
        ends: list[float] = []
        batches: dict[int, float] = {}  # the last of a batch gives its slot back
        for stay in lane:
            if stay.batch_no is not None:
                batches[stay.batch_no] = max(batches.get(stay.batch_no, 0), _end(stay))
        before = 0
        for stay in sorted((s for s in lane if s.start_no is not None), key=lambda s: s.start_no or 0):
            if stay.start_no is None or stay.limit is None:
                continue
            name = place(*stay.lane) if isinstance(stay.lane, tuple) else str(stay.lane)
            if stay.start_no == before:
                faults.append(f"lane {name}: start number {before} was given twice")
            before = stay.start_no
            if stay.batch_no is not None and stay.batch_no not in batches:
                continue  # it rides in the slot of the first of them
            while ends and ends[0] < stay.start_no:
                heapq.heappop(ends)
            heapq.heappush(ends, _end(stay) if stay.batch_no is None else batches.pop(stay.batch_no))
            if len(ends) > stay.limit:
                faults.append(f"lane {name}: start {stay.start_no} made {len(ends)} of {stay.limit}")
    return faults


def _end(stay: Stay) -> float:
    return inf if stay.end_no is None else stay.end_no
