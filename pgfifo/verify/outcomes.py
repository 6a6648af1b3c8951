"""Durability: what was committed ends in exactly one outcome, the one that clients were told of."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from pgfifo.verify.history import Attempt, Check, Enqueue, Index, Outcome, place, some

FINAL = ("succeeded", "failed", "cancelled", "expired")
"""The outcomes; every other state is on the way to one."""


def finished_once(index: Index) -> Check:
    """Everything that was committed has exactly one outcome; what was rolled back left no trace."""
    record = index.history.record
    if record is None:
        seen = "not asked: pgfifo's record is not at hand"
        return Check("finished exactly once", seen, exercised=False)
    findings = []
    committed = {each.id for each in index.history.enqueues if each.fate == "committed"}
    rolled_back = {each.id for each in index.history.enqueues if each.fate == "rolled back"}
    count = Counter(outcome.id for outcome in record.outcomes)
    for ids, said in (
        (committed - count.keys(), "gone without a trace"),
        ({id_ for id_, times in count.items() if times > 1}, "on record more than once"),
        (rolled_back & count.keys(), "on record though their enqueue was rolled back"),
        (count.keys() - index.enqueues.keys() - rolled_back, "on record and were never enqueued"),
    ):
        if ids:
            findings.append(f"{len(ids):,} {_are(ids)} {said}: {some(sorted(ids))}")
    states: dict[str, set[int]] = defaultdict(set)
    for outcome in record.outcomes:
        states[outcome.state].add(outcome.id)
    for state in sorted(states.keys() - set(FINAL)):
        ids = states[state]
        findings.append(f"{len(ids):,} {_are(ids)} still {state} at the end: {some(sorted(ids))}")
    ended = ", ".join(f"{len(states[state]):,} {state}" for state in FINAL if states[state])
    seen = f"{len(committed):,} committed: {ended or 'nothing'}"
    return Check("finished exactly once", seen, findings, exercised=bool(committed))


def _are(ids: set[int]) -> str:
    return "is" if len(ids) == 1 else "are"


def agrees(index: Index) -> Check:
    """What clients saw and what pgfifo says is the same story."""
    findings = [*_strangers(index), *_after_the_end(index)]
    for outcome in index.outcomes.values():
        findings += _contradictions(index, outcome)
    starts = len(index.history.attempts)
    return Check("clients and record agree", f"{starts:,} starts", findings, exercised=starts > 0)


def _strangers(index: Index) -> Iterable[str]:
    rolled_back = {each.id for each in index.history.enqueues if each.fate == "rolled back"}
    for id_, attempts in sorted(index.by_id.items()):
        if id_ in rolled_back:
            yield f"execution {id_} was started though its enqueue was rolled back"
        elif index.history.enqueues and id_ not in index.enqueues:
            yield f"execution {id_} was started and never enqueued"
        elif index.history.record is not None and id_ not in index.outcomes:
            yield f"execution {id_} was started, and pgfifo does not know it"
        else:
            known: Outcome | Enqueue | None = index.outcomes.get(id_) or index.enqueues.get(id_)
            for each in attempts:
                if known is not None and (each.action, each.lane) != (known.action, known.lane):
                    yield (
                        f"execution {id_} was started in {place(each.action, each.lane)}, "
                        f"not in {place(known.action, known.lane)}"
                    )


def _contradictions(index: Index, outcome: Outcome) -> Iterable[str]:
    """Compare an outcome on record with what its clients were told, and with what was asked for."""
    id_, state = outcome.id, outcome.state
    attempts = index.by_id.get(id_, [])
    for each in attempts:
        said = each.taken
        if each.attempt > outcome.attempt:
            yield f"execution {id_}: attempt {each.attempt} was started; the record has {outcome.attempt}"
        if (
            said is not None
            and not (said.outcome == "failed" and state == "cancelled")  # somebody had cancelled it
            and said.outcome in FINAL
            and said.final
            and (state, outcome.attempt)
            != (
                said.outcome,
                each.attempt,
            )
        ):
            yield (
                f"execution {id_}: attempt {each.attempt} was handed in as {said.outcome}, which was taken; "
                f"the record says {state} in attempt {outcome.attempt}"
            )
    for cancel in index.cancels.get(id_, ()):
        if cancel.answer in FINAL and state != cancel.answer:
            yield f"execution {id_}: its cancel was answered with {cancel.answer}; the record says {state}"
    last = next((each for each in attempts if each.attempt == outcome.attempt), None)
    if state == "succeeded":
        if last is None or not any(
            each.outcome == "succeeded" and each.answer in ("taken", "none") for each in last.handed
        ):
            yield f"execution {id_} has succeeded, and no worker says so of attempt {outcome.attempt}"
    elif state == "cancelled" and id_ not in index.cancels:
        yield f"execution {id_} was cancelled, and nobody had cancelled it"
    elif state == "failed":
        yield from _failed_in_vain(index, outcome, last)


def _failed_in_vain(index: Index, outcome: Outcome, last: Attempt | None) -> Iterable[str]:
    most = index.history.rules[outcome.action].max_attempts
    gave_up = last is not None and any(each.outcome == "failed" and each.final for each in last.handed)
    if outcome.failures is not None and outcome.failures < most and not gave_up:
        yield f"execution {outcome.id} has failed after {outcome.failures} of {most} attempts"


def _after_the_end(index: Index) -> Iterable[str]:
    """Find starts after an outcome that somebody had been told before."""
    for id_, attempts in sorted(index.by_id.items()):
        ends = [
            (said.call.answered, f"{said.outcome} in attempt {each.attempt}")
            for each in attempts
            if (said := each.taken) is not None and said.final
        ]
        ends += [
            (cancel.call.answered, cancel.answer)
            for cancel in index.cancels.get(id_, ())
            if cancel.answer in FINAL
        ]
        if not ends:
            continue
        at, how = min(ends)
        for each in attempts:
            if each.claim.called > at:
                yield f"execution {id_} was started again (attempt {each.attempt}) after it had {_had(how)}"


def _had(how: str) -> str:
    return f"been {how}" if how.startswith("cancelled") else how
