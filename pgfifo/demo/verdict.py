"""Judge a run: what the handlers wrote down against what pgfifo says happened.

Pure functions over two kinds of evidence. The journals are the handlers' own: a line when one begins and one
when it ends, by the server's clock, written without pgfifo. The history is pgfifo's. A check returns what it
found in words; nothing found is what it hopes for.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

SHOWN = 3
"""How many ids are named where there are many."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A line of a journal: a handler began, or it ended.

    Attributes:
        event: ``begin`` or ``end``.
        id: the execution's id.
        attempt: which start of it this is.
        action: its action.
        lane: its group, as text.
        at: the server's clock, in seconds.
        worker: the name of the worker.
    """

    event: str
    id: int
    attempt: int
    action: str
    lane: str
    at: float
    worker: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a handler, put together from its two lines.

    Attributes:
        id: the execution's id.
        attempt: which start of it this is.
        action: its action.
        lane: its group, as text.
        worker: the name of the worker.
        begin: when it began.
        end: when it ended; for one whose worker was killed, when the worker had gone.
        finished: whether the handler itself wrote down its end.
    """

    id: int
    attempt: int
    action: str
    lane: str
    worker: str
    begin: float
    end: float
    finished: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What pgfifo says of an execution.

    Attributes:
        id: its id.
        action: its action.
        lane: its group, as text.
        state: its outcome, or the state it is in.
        attempt: how often it was started.
    """

    id: int
    action: str
    lane: str
    state: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that a verdict rests on.

    Attributes:
        enqueued: the ids that the producers got back after their commits, per action and in no order.
        limits: the slots of a lane, per action.
        runs: what the handlers did.
        outcomes: pgfifo's history; an id may only be there once, which is checked.
        killed: the name of the worker that was killed.
        held: the ids that were its own when it died.
        findings: what pgfifo's own `order_violations` and `check()` say.
    """

    enqueued: Mapping[str, Collection[int]]
    limits: Mapping[str, int]
    runs: Sequence[Run]
    outcomes: Sequence[Outcome]
    killed: str
    held: Collection[int]
    findings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold.

    Attributes:
        name: what it is, in a few words.
        seen: what was seen when it holds.
        findings: what does not hold; empty when all is well.
    """

    name: str
    seen: str
    findings: Sequence[str] = field(default=())

    @property
    def holds(self) -> bool:
        """Tell whether nothing was found."""
        return not self.findings


def runs_of(marks: Iterable[Mark], gone: Mapping[str, float]) -> list[Run]:
    """Put the lines of the journals together to runs, in the order in which they began.

    Args:
        marks: the lines of all the workers.
        gone: when a killed worker's process had ended, by the server's clock and the worker's name.

    Raises:
        ValueError: a journal contradicts itself (an end without a begin, the same begin twice).
    """
    begins: dict[tuple[int, int], Mark] = {}
    ends: dict[tuple[int, int], Mark] = {}
    for mark in marks:
        book = begins if mark.event == "begin" else ends
        if (mark.id, mark.attempt) in book:
            raise ValueError(f"execution {mark.id}, attempt {mark.attempt}: two lines say {mark.event}")
        book[mark.id, mark.attempt] = mark
    for key in ends.keys() - begins.keys():
        raise ValueError(f"execution {key[0]}, attempt {key[1]} ended without a begin")
    runs = []
    for key, begin in begins.items():
        end = ends.get(key)
        over = end.at if end else gone.get(begin.worker, inf)
        runs.append(
            Run(*key, begin.action, begin.lane, begin.worker, begin.at, over, finished=end is not None)
        )
    return sorted(runs, key=lambda run: (run.begin, run.id))


def judge(evidence: Evidence) -> list[Check]:
    """Make all the checks, the promises first."""
    return [
        finished_once(evidence),
        agrees(evidence),
        in_order(evidence),
        within_slots(evidence),
        run_again(evidence),
        own_checks(evidence),
    ]


def finished_once(evidence: Evidence) -> Check:
    """Everything that was enqueued has exactly one outcome, and it succeeded."""
    findings = []
    enqueued = {id_ for ids in evidence.enqueued.values() for id_ in ids}
    count = Counter(outcome.id for outcome in evidence.outcomes)
    missing = sorted(enqueued - count.keys())
    if missing:
        findings.append(f"{len(missing):,} are gone without a trace: {_some(missing)}")
    twice = sorted(id_ for id_, times in count.items() if times > 1)
    if twice:
        findings.append(f"{len(twice):,} have more than one outcome: {_some(twice)}")
    strange = sorted(count.keys() - enqueued)
    if strange:
        findings.append(f"{len(strange):,} were never enqueued: {_some(strange)}")
    states: dict[str, list[int]] = defaultdict(list)
    for outcome in evidence.outcomes:
        states[outcome.state].append(outcome.id)
    for state, ids in sorted(states.items()):
        if state != "succeeded":
            findings.append(f"{len(ids):,} are {state} instead of succeeded: {_some(ids)}")
    return Check("finished exactly once", f"{len(enqueued):,} of {len(enqueued):,} succeeded", findings)


def agrees(evidence: Evidence) -> Check:
    """What pgfifo calls a success is a run that a handler finished; nothing else ran but lost attempts."""
    findings = []
    by_key = {(run.id, run.attempt): run for run in evidence.runs}
    final = {outcome.id: outcome.attempt for outcome in evidence.outcomes}
    for outcome in evidence.outcomes:
        run = by_key.get((outcome.id, outcome.attempt))
        if outcome.state == "succeeded" and (run is None or not run.finished):
            findings.append(f"execution {outcome.id}: no handler says that it ran attempt {outcome.attempt}")
        if run is not None and (run.action, run.lane) != (outcome.action, outcome.lane):
            lanes = f"{run.action} {run.lane}, not in {outcome.action} {outcome.lane}"
            findings.append(f"execution {outcome.id} ran in {lanes}")
    for run in evidence.runs:
        if run.id not in final:
            findings.append(f"execution {run.id} ran, and pgfifo does not know it")
        elif run.attempt != final[run.id] and run.worker != evidence.killed:
            findings.append(f"execution {run.id} ran more than once, though {run.worker} was never killed")
    return Check("journals and history agree", f"{len(evidence.runs):,} runs", findings)


def in_order(evidence: Evidence) -> Check:
    """In a lane, the handlers began in the order in which the executions were enqueued.

    With one slot, each begins after every older one, and what is run again does so before any younger one.
    With n slots, the order of claims is promised and not which thread is quicker: when one begins, up to
    n - 1 older ones, which have slots as well, may still be on their way to their handlers.
    """
    findings = []
    lanes = _lanes(evidence)
    for (action, lane), (ids, runs) in lanes.items():
        slots = evidence.limits[action]
        waiting = sorted(ids)
        for run in runs:
            older = bisect_left(waiting, run.id)
            if older == len(waiting) or waiting[older] != run.id:
                continue  # it has begun before
            del waiting[older]
            if older >= slots:
                overtaken = _some(waiting[:older])
                findings.append(f"{action} {lane}: {run.id} began before {older} older ones: {overtaken}")
        if slots == 1:
            findings += [
                f"{action} {lane}: {after.id} began again after the younger {before.id}"
                for before, after in pairwise(runs)
                if after.attempt > 1 and after.id < before.id
            ]
    return Check("in order", f"0 order violations in {len(lanes):,} lanes", findings)


def within_slots(evidence: Evidence) -> Check:
    """In a lane, never more handlers ran at once than it has slots.

    What a worker ran when it was killed keeps its slot until it is run again.
    """
    findings = []
    most: Counter[str] = Counter()
    for (action, lane), (_, runs) in _lanes(evidence).items():
        again = {(run.id, run.attempt - 1): run.begin for run in runs}
        ends = [max(run.end, again.get((run.id, run.attempt), 0) if not run.finished else 0) for run in runs]
        steps = [(end, 0, run.id) for end, run in zip(ends, runs, strict=True)]
        steps += [(run.begin, 1, run.id) for run in runs]
        active: Counter[int] = Counter()
        for _, begins, id_ in sorted(steps):
            active[id_] += 1 if begins else -1
            now = active.total()
            most[action] = max(most[action], now)
            if begins and now > evidence.limits[action]:
                running = _some(sorted(active.elements()))
                allowed = evidence.limits[action]
                findings.append(f"{action} {lane}: {now} handlers at once, {allowed} allowed: {running}")
    seen = ", ".join(f"{action} {most[action]} of {limit}" for action, limit in evidence.limits.items())
    return Check("within the slots", f"0 slot violations (at most {seen} at once)", findings)


def run_again(evidence: Evidence) -> Check:
    """What the killed worker held was started again by another worker, and finished.

    That this happened in its place is `in_order`'s business.
    """
    findings = []
    if not evidence.held:
        findings.append(f"{evidence.killed} held nothing when it was killed, so this run has not shown it")
    runs: dict[int, list[Run]] = defaultdict(list)
    for run in evidence.runs:
        runs[run.id].append(run)
    for id_ in sorted(evidence.held):
        last = max(runs[id_], key=lambda run: run.attempt, default=None)
        if last is None or last.worker == evidence.killed or last.attempt < 2 or not last.finished:
            findings.append(f"execution {id_}, which {evidence.killed} held, was not run again")
    seen = f"{len(evidence.held)} that {evidence.killed} held, each in its place"
    return Check("run again after the kill", seen, findings)


def own_checks(evidence: Evidence) -> Check:
    """Say what pgfifo's own records say."""
    return Check("pgfifo's own checks", "order_violations and check() are empty", list(evidence.findings))


def _lanes(evidence: Evidence) -> dict[tuple[str, str], tuple[set[int], list[Run]]]:
    """Sort the evidence by lanes: all ids, and the runs in the order of their begins."""
    lanes: dict[tuple[str, str], tuple[set[int], list[Run]]] = defaultdict(lambda: (set(), []))
    for outcome in evidence.outcomes:
        lanes[outcome.action, outcome.lane][0].add(outcome.id)
    for run in evidence.runs:
        ids, runs = lanes[run.action, run.lane]
        ids.add(run.id)
        runs.append(run)
    for _, runs in lanes.values():
        runs.sort(key=lambda run: (run.begin, run.id))
    return lanes


def _some(ids: Sequence[int]) -> str:
    """Name the first few of many."""
    more = f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else ""
    return ", ".join(map(str, ids[:SHOWN])) + more
