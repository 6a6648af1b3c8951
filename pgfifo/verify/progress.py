"""Progress: a lane with something to start, a free slot and a worker with room does not stand still."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import inf

from pgfifo.verify.history import Attempt, Check, Index, Lane, Span, place

Step = tuple[float, int, int]
"""A time, and by how much what waits and what may be active changes."""


def progresses(index: Index) -> Check:
    """Check that no lane stood still for longer than patience allows, and that no wake-up was lost."""
    history = index.history
    findings, seen, longest = [], [], 0.0
    lost = history.record.wakeups_lost if history.record is not None else None
    if lost is not None:
        seen.append("0 wake-ups lost")
        if lost:
            findings.append(f"{lost} lanes were set going by the sweep only: wake-ups were lost")
    if history.duties:
        closed = _no_room(index)
        for (action, lane), steps in _steps(index).items():
            if history.rules[action].paced:
                continue
            for still in _standing(index, action, steps, closed):
                length = still.answered - still.called
                longest = max(longest, length)
                if length > history.patience:
                    findings.append(
                        f"{place(action, lane)} stood still for {length:.1f} s, with something to start, "
                        "a free slot and a worker with room"
                    )
        seen.append(f"the longest halt {longest:.1f} s (with a free slot and a worker with room)")
    # Who has not written down when which worker had room knows of wake-ups only.
    name = "no lane stood still" if history.duties else "no wake-up was lost"
    return Check(name, ", ".join(seen) or "not asked", findings, exercised=bool(seen))


def _steps(index: Index) -> dict[Lane, list[Step]]:
    """Return when something surely waits for its start in each lane, and when something may have a slot."""
    steps: dict[Lane, list[Step]] = defaultdict(list)
    for enqueue in index.enqueues.values():
        if enqueue.fate != "committed":
            continue
        attempts = index.by_id.get(enqueue.id, ())
        outcome = index.outcomes.get(enqueue.id)
        line = steps[enqueue.action, enqueue.lane]
        first = attempts[0].claim.called if attempts else inf
        if (attempts and attempts[0].attempt > 1) or (not attempts and outcome and outcome.attempt):
            # It was started by a call that nobody saw answered: it may have had a slot all the time.
            _during(line, enqueue.commit.called, first, waits=False)
            continue
        left = min(first, *(each.call.called for each in index.cancels.get(enqueue.id, ())), inf)
        _during(line, enqueue.commit.answered + enqueue.delay, left, waits=True)
    for attempts in index.by_id.values():
        for attempt in attempts:
            line = steps[attempt.action, attempt.lane]
            back = _back_at(index, attempt)
            again = index.next_of(attempt)
            until = again.claim.called if again is not None else inf
            outcome = index.outcomes.get(attempt.id)
            last = again.attempt - 1 if again is not None else outcome.attempt if outcome is not None else 0
            if last > attempt.attempt:
                back = until  # it was started in between, by a call that nobody saw answered
            _during(line, attempt.claim.called, min(back, until), waits=False)
            if again is not None:
                cancelled = min((each.call.called for each in index.cancels.get(attempt.id, ())), default=inf)
                _during(line, back, min(until, cancelled), waits=True)
    return steps


def _during(line: list[Step], since: float, until: float, *, waits: bool) -> None:
    if since < until:
        line += [(since, waits, not waits), (until, -waits, -(not waits))]


def _back_at(index: Index, attempt: Attempt) -> float:
    """Return when an attempt's slot is surely free again, or its execution due to be started again."""
    rules, history = index.history.rules[attempt.action], index.history
    put_off = next((each.call for each in attempt.handed if each.answer == "unstarted"), None)
    if put_off is not None:
        return put_off.answered
    said = attempt.taken
    if said is not None:
        return said.call.answered + (rules.backoff if said.outcome == "failed" and not said.final else 0.0)
    fault = index.fault_in(attempt)
    since = max(fault.since if fault else -inf, attempt.claim.called)
    for each in attempt.handed:
        since = max(since, each.call.called)
    if fault is None and not attempt.handed:
        return inf  # it runs, or nobody knows what has become of it
    # A dead worker is noticed by its lease, in rounds of maintenance, each about a second.
    return since + 2 * history.lease + rules.backoff


def _no_room(index: Index) -> list[Span]:
    """Return when it is not sure that a worker had room: in order, without overlaps."""
    history = index.history
    changes: list[tuple[float, int]] = []
    by_worker: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in history.attempts:
        by_worker[attempt.worker].append(attempt)
    for duty in history.duties:
        # Room is there while it serves, is not full, and nothing has happened to it.
        events = [(duty.since, 1, 0), (duty.until, -1, 0)]
        for fault in index.faults[duty.worker]:
            events += [(fault.since, -1, 0), (fault.until, 1, 0)]
        for attempt in by_worker[duty.worker]:
            over = max((each.call.answered for each in attempt.handed), default=attempt.end or inf)
            events += [(attempt.claim.called, 0, 1), (over, 0, -1)]
        serving = active = 0
        had = False
        for at, serves, runs in sorted(events):
            serving, active = serving + serves, active + runs
            has = serving > 0 and active < duty.room
            if has != had:
                changes.append((at, 1 if has else -1))
                had = has
    for outage in history.outages:
        changes += [(outage.called, -len(history.duties) - 1), (outage.answered, len(history.duties) + 1)]
    closed, since, room = [], -inf, 0
    for at, change in sorted(changes):
        before, room = room, room + change
        if before > 0 >= room:
            since = at
        elif before <= 0 < room:
            closed.append(Span(since, at))
    if room <= 0:
        closed.append(Span(since))
    return closed


def _standing(index: Index, action: str, steps: Sequence[Step], closed: Sequence[Span]) -> Iterable[Span]:
    """Return the times in which a lane stood still though it could have gone on."""
    until = index.history.until
    changes = [(since, 0, 0) for _, since, _ in index.limits_of(action)]
    changes += [(last, 0, 0) for _, _, last in index.limits_of(action)]
    waits = active = 0
    since: float | None = None
    for at, waiting, using in sorted([*steps, *(each for each in changes if abs(each[0]) < inf)]):
        waits, active = waits + waiting, active + using
        fewest = min(
            (slots for slots, first, last in index.limits_of(action) if first <= at <= last), default=0
        )
        could = waits > 0 and active < fewest and at < until
        if could and since is None:
            since = at
        elif not could and since is not None:
            yield from _without(Span(since, min(at, until)), closed)
            since = None
    if since is not None and until < inf:
        yield from _without(Span(since, until), closed)


def _without(still: Span, closed: Sequence[Span]) -> Iterable[Span]:
    since = still.called
    for each in closed:
        if each.answered <= since:
            continue
        if each.called >= still.answered:
            break
        if each.called > since:
            yield Span(since, each.called)
        since = each.answered
    if since < still.answered:
        yield Span(since, still.answered)
