"""Order: in a lane, executions start in the order in which their enqueues were committed."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from math import inf

from pgfifo.verify.history import Attempt, Check, Enqueue, Index, Lane, Stay, place, some


def in_order(index: Index) -> Check:
    """Check the order of tickets, starts and handlers, by what clients saw and by pgfifo's record."""
    findings = [*tickets(index), *starts(index), *begun_again(index), *handlers(index)]
    record = index.history.record
    if record is not None:
        strict = [each for each in record.stays if _is_strict(index, each)]
        findings += (f"on record: {fault}" for fault in order_faults(strict))
    lanes = index.lines().keys() | index.by_lane.keys()
    return Check("in order", f"0 order violations in {len(lanes):,} lanes", findings, exercised=bool(lanes))


def _is_strict(index: Index, stay: Stay) -> bool:
    rules = index.history.rules.get(stay.lane[0]) if isinstance(stay.lane, tuple) else None
    return rules is None or rules.strict


def tickets(index: Index) -> Iterable[str]:
    """Find tickets that are not in the order of the commits, in strict lanes.

    Two commits whose calls overlap may have come in either order. So the younger ticket is a violation only
    if its commit had been answered before the other one's was asked for; or if it was drawn first.
    """
    for (action, lane), line in index.lines().items():
        if not index.history.rules[action].strict:
            continue
        first_commit: Enqueue | None = None
        first_drawn: Enqueue | None = None
        for older in reversed(line):
            if first_commit is not None and first_commit.commit.answered < older.commit.called:
                yield (
                    f"{place(action, lane)}: {first_commit.id} was committed before the commit of {older.id} "
                    "was asked for, and has the younger ticket"
                )
            if first_drawn is not None and first_drawn.call.answered < older.call.called:
                yield (
                    f"{place(action, lane)}: {first_drawn.id} had its ticket before {older.id} was enqueued, "
                    "and has the younger one"
                )
            if older.fate == "committed" and (
                first_commit is None or older.commit.answered < first_commit.commit.answered
            ):
                first_commit = older
            if first_drawn is None or older.call.answered < first_drawn.call.answered:
                first_drawn = older


def starts(index: Index) -> Iterable[str]:
    """Find starts that surely came while an older execution was in the line.

    A strict lane's older ticket is in the line from its commit on, which comes before the younger one's; a
    relaxed lane's only counts if it was committed before the younger one was enqueued. It leaves the line
    with its first start, or when somebody may have cancelled it. What joins the line later has another
    ticket than its id: the record judges that.
    """
    first: dict[int, Attempt] = {id_: attempts[0] for id_, attempts in index.by_id.items()}
    for (action, lane), all_of_them in index.lines().items():
        line = [each for each in all_of_them if not each.delay]
        strict = index.history.rules[action].strict
        # Of the younger ones, whose start was answered first; in a relaxed lane, of those enqueued later.
        quickest: Attempt | None = None
        later = sorted((each for each in line if each.id in first), key=lambda each: each.call.called)
        quickest_from: list[Attempt] = []
        for each in reversed(later):
            mine = first[each.id]
            best = quickest_from[-1] if quickest_from else mine
            quickest_from.append(mine if mine.claim.answered < best.claim.answered else best)
        quickest_from.reverse()
        for older in reversed(line):
            own = first.get(older.id)
            left = _left_the_line(index, older, own)
            if not strict:
                at = bisect_right(later, older.commit.answered, key=lambda each: each.call.called)
                quickest = quickest_from[at] if at < len(later) else None
            if older.fate == "committed" and quickest is not None and quickest.claim.answered < left:
                when = "and never was" if own is None else f"by {left - quickest.claim.answered:.3f} s"
                yield f"{place(action, lane)}: {quickest.id} was started before the older {older.id} {when}"
            if (
                strict
                and own is not None
                and (quickest is None or own.claim.answered < quickest.claim.answered)
            ):
                quickest = own


def _left_the_line(index: Index, enqueue: Enqueue, first: Attempt | None) -> float:
    """Return until when an execution surely was in the line."""
    left = min((each.call.called for each in index.cancels.get(enqueue.id, ())), default=inf)
    if first is not None:
        # If nobody saw its first attempt, the answer that told of it never came.
        return min(left, first.claim.called) if first.attempt == 1 else -inf
    outcome = index.outcomes.get(enqueue.id)
    # Started all the same, by a call that was never answered; or lost, which others find.
    unseen = index.history.record is not None and (outcome is None or outcome.attempt > 0)
    return -inf if unseen else left


def begun_again(index: Index) -> Iterable[str]:
    """Find lanes with one slot in which a younger one was started between two attempts of an older one.

    Where a failed attempt keeps its slot, and where it is released and keeps its place, none comes between.
    """
    for (action, lane), attempts in index.by_lane.items():
        if index.most_slots(action) > 1 or index.history.rules[action].mode != "hold":
            continue
        again = [each for each in attempts if each.attempt > 1]
        by_answer = sorted(attempts, key=_answered)
        for late in again:
            before = index.by_id[late.id][0]
            since = bisect_right(by_answer, before.claim.answered, key=_answered)
            until = bisect_left(by_answer, late.claim.called, key=_answered)
            younger = next(
                (
                    each.id
                    for each in by_answer[since:until]
                    if each.id > late.id
                    and each.claim.called > before.claim.answered
                    and _plain(index, each.id)
                ),
                None,
            )
            if younger is not None and _plain(index, late.id):
                yield f"{place(action, lane)}: {late.id} was started again after the younger {younger}"


def _answered(attempt: Attempt) -> float:
    return attempt.claim.answered


def _plain(index: Index, id_: int) -> bool:
    """Tell whether an execution's id is its ticket."""
    enqueue = index.enqueues.get(id_)
    return enqueue is None or not enqueue.delay


def handlers(index: Index) -> Iterable[str]:
    """Find handlers that began in another order than that of the tickets.

    With one slot each begins after every older one, and what is run again does so before any younger one.
    With n slots, the order of starts is promised and not which thread is quicker: when one begins, up to
    n - 1 older ones, which have slots as well, may still be on their way to their handlers.
    """
    ids: dict[Lane, set[int]] = defaultdict(set)
    for enqueue in index.enqueues.values():
        if not enqueue.delay:
            ids[enqueue.action, enqueue.lane].add(enqueue.id)
    for (action, lane), attempts in index.by_lane.items():
        rules = index.history.rules[action]
        if rules.mode != "hold" or not rules.strict:
            continue  # an older one that yielded before its handler began is no violation
        slots = index.most_slots(action)
        runs = sorted(
            (each.begin, each.id, each.attempt)
            for each in attempts
            if each.begin is not None and _plain(index, each.id) and not index.is_zombie_at(each, each.begin)
        )
        begun = {id_ for _, id_, _ in runs}
        waiting = sorted(
            id_ for id_ in ids[action, lane] | begun if id_ in begun or _should_begin(index, id_)
        )
        for begin, id_, _ in runs:
            older = bisect_left(waiting, id_)
            if older == len(waiting) or waiting[older] != id_:
                continue  # it has begun before
            del waiting[older]
            if older < slots:
                continue
            # Enqueues of others that nobody knows to be committed do not count.
            overtaken = [each for each in waiting[:older] if _surely_there(index, each, begin)]
            if len(overtaken) >= slots:
                older_ones = f"{len(overtaken)} older ones: {some(overtaken)}"
                yield f"{place(action, lane)}: {id_} began before {older_ones}"
        if slots == 1:
            for (_, before, _), (_, after, attempt) in pairwise(runs):
                if attempt > 1 and after < before and not _together(index, before, after):
                    yield f"{place(action, lane)}: {after} began again after the younger {before}"


def _together(index: Index, younger: int, older: int) -> bool:
    """Tell whether two were of one batch: if that was lost, nothing of what had begun was handed in."""
    batches = {each.batch for each in index.by_id[older]} - {None}
    return any(each.batch in batches for each in index.by_id[younger])


def _should_begin(index: Index, id_: int) -> bool:
    """Tell whether what never began should have: it was neither cancelled nor lost on its way."""
    outcome = index.outcomes.get(id_)
    return id_ not in index.cancels and id_ not in index.by_id and (outcome is None or outcome.attempt == 0)


def _surely_there(index: Index, id_: int, at: float) -> bool:
    enqueue = index.enqueues.get(id_)
    return enqueue is None or (enqueue.fate == "committed" and enqueue.commit.called <= at)


def order_faults(stays: Iterable[Stay]) -> list[str]:
    """Find starts on record that overtook an older execution of their lane (strict lanes only)."""
    faults = []
    for lane in by_lane(stays):
        starts = sorted((s.start_no, s.ticket) for s in lane if s.start_no is not None)
        numbers = [number for number, _ in starts]
        highest, so_far = [0], 0
        for _, ticket in starts:
            so_far = max(so_far, ticket)
            highest.append(so_far)
        for stay in lane:
            until = len(starts) if stay.start_no is None else bisect_left(numbers, stay.start_no)
            since = bisect_right(numbers, stay.joined_no)
            if highest[until] <= stay.ticket:
                continue  # nothing younger was started before it, whenever it came
            faults += [
                f"lane {_lane(stay)}: ticket {ticket} was started (no. {number}) before {stay.ticket}"
                for number, ticket in starts[since:until]
                if ticket > stay.ticket
            ]
    return faults


def by_lane(stays: Iterable[Stay]) -> list[list[Stay]]:
    """Sort stays by their lanes."""
    lanes: dict[object, list[Stay]] = defaultdict(list)
    for stay in stays:
        lanes[stay.lane].append(stay)
    return list(lanes.values())


def _lane(stay: Stay) -> str:
    return place(*stay.lane) if isinstance(stay.lane, tuple) else str(stay.lane)
