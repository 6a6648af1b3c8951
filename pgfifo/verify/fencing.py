"""Fencing: who has lost an execution cannot change it any more, and nobody loses one without a cause."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from math import inf

from pgfifo.verify.history import Attempt, Check, Index


def fenced(index: Index) -> Check:
    """Check that attempts only grow, that late hand-ins were refused, and that nobody was robbed.

    Without a late one it has not been put to the test, however many were taken.
    """
    findings = [*_attempts_grow(index), *_late(index), *_twice(index), *_robbed(index)]
    refused = sum(any(said.answer == "lost" for said in each.handed) for each in index.history.attempts)
    taken = sum(each.taken is not None for each in index.history.attempts)
    seen = f"{taken:,} hand-ins taken, {refused:,} late ones refused"
    return Check("fenced", seen, findings, exercised=refused > 0)


def _attempts_grow(index: Index) -> Iterable[str]:
    """Find tokens that were given twice, or that are smaller than an earlier one."""
    for attempts in index.by_id.values():
        for before, after in pairwise(attempts):
            if before.attempt == after.attempt:
                yield f"{_named(after)} was given to {before.worker} and to {after.worker}"
            elif after.claim.answered < before.claim.called:
                yield f"{_named(after)} was started before attempt {before.attempt}"


def _late(index: Index) -> Iterable[str]:
    """Find hand-ins that were taken though the attempt was not the worker's any more."""
    deaths: dict[tuple[str, int | None], float] = defaultdict(lambda: inf)
    for death in index.history.deaths:
        key = (death.worker, death.registration)
        deaths[key] = min(deaths[key], death.at)
    for attempts in index.by_id.values():
        for each in attempts:
            after = index.next_of(each)
            for said in each.handed:
                if said.answer != "taken":
                    continue
                if after is not None and after.claim.answered < said.call.called:
                    yield (
                        f"{_named(each)} was handed in by {each.worker} as {said.outcome}, and taken, "
                        f"after attempt {after.attempt} had been given to {after.worker}"
                    )
                elif deaths[each.worker, each.registration] < said.call.called:
                    yield (
                        f"{_named(each)} was handed in by {each.worker} as {said.outcome}, and taken, "
                        "after that had been declared dead"
                    )


def _twice(index: Index) -> Iterable[str]:
    """Find executions with two ends that were both taken; saying the same again is none."""
    for id_, attempts in index.by_id.items():
        ends = {
            (each.attempt, said.outcome)
            for each in attempts
            for said in each.handed
            if said.answer == "taken" and said.final
        }
        if len(ends) > 1:
            told = " and ".join(f"{outcome} (attempt {attempt})" for attempt, outcome in sorted(ends))
            yield f"execution {id_} has ended twice, each time taken: {told}"


def _robbed(index: Index) -> Iterable[str]:
    """Find attempts that were taken from a worker which was alive, as far as anybody can tell."""
    for attempt in index.history.attempts:
        if attempt.taken is not None:
            continue
        after = index.next_of(attempt)
        refused = next((each.call for each in attempt.handed if each.answer == "lost"), None)
        if refused is None and (after is None or attempt.handed):
            continue
        at = min(
            refused.answered if refused is not None else inf,
            after.claim.answered if after is not None else inf,
        )
        faults = index.faults[attempt.worker]
        if not any(fault.since <= at and fault.until >= attempt.claim.called for fault in faults):
            yield f"{_named(attempt)} was taken from {attempt.worker}, to which nothing had happened"


def _named(attempt: Attempt) -> str:
    return f"execution {attempt.id}, attempt {attempt.attempt},"
