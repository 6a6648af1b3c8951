"""Put the lines of the recorders together to a history."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from pgfifo.verify.history import (
    Answer,
    Attempt,
    Beat,
    Cancel,
    Death,
    Duty,
    Enqueue,
    Fate,
    Fault,
    HandIn,
    History,
    Key,
    LimitChange,
    Record,
    Rules,
    Span,
)

Line = Mapping[str, Any]

_ANSWERS: Mapping[str, Answer] = {
    "taken": "taken",
    "lost": "lost",
    "retry": "retry",
    "unstarted": "unstarted",
    "none": "none",
}


def assemble(
    lines: Iterable[Line],
    rules: Mapping[str, Rules],
    record: Record | None = None,
    *,
    lease: float = 30.0,
    patience: float = 10.0,
    until: float = inf,
) -> History:
    """Return what the recorders of a history have seen.

    Args:
        lines: what `recorder.read` returns: in the order of their times.
        rules: the actions that it is about.
        record: what pgfifo says; None: it was not asked.
        lease: without a heartbeat for so many seconds a worker counts as dead.
        patience: how many seconds a lane may stand still though it could go on.
        until: when the last look was taken.
    """
    kinds: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        kinds[line["kind"]].append(line)
    faults = [*_faults(kinds)]
    return History(
        rules=rules,
        enqueues=[*_enqueues(kinds)],
        attempts=[*_attempts(kinds)],
        cancels=[
            Cancel(asked["id"], Span(asked["at"], at), answer)
            for asked, at, answer in _answered(kinds["cancelling"], kinds["cancelled"], "id", "answer")
        ],
        limits=[
            LimitChange(asked["action"], asked["slots"], Span(asked["at"], at))
            for asked, at, _ in _answered(kinds["limiting"], kinds["limited"], "slots", "slots")
        ],
        faults=faults,
        beats=[
            Beat(
                line["who"], line["registration"], Span(line["called"], line["at"] if line["heard"] else inf)
            )
            for line in kinds["beat"]
        ],
        deaths=[Death(line["who"], line["registration"], line["at"]) for line in kinds["dead"]],
        duties=[*_duties(kinds, faults, until)],
        outages=[Span(line["since"], line["at"]) for line in kinds["outage"]],
        record=record,
        lease=lease,
        patience=patience,
        until=until,
    )


def _answered(
    asked: list[Line], answered: list[Line], key: str, what: str
) -> Iterable[tuple[Line, float, Any]]:
    """Bring questions and answers together: each client asks one after the other."""
    waiting: dict[tuple[str, Any], list[Line]] = defaultdict(list)
    for line in answered:
        waiting[line["who"], line[key]].append(line)
    for line in asked:
        found = next((each for each in waiting[line["who"], line[key]] if each["at"] >= line["at"]), None)
        if found is None:
            yield line, inf, None
        else:
            waiting[line["who"], line[key]].remove(found)
            yield line, found["at"], found[what]


def _enqueues(kinds: Mapping[str, list[Line]]) -> Iterable[Enqueue]:
    """Return what was enqueued. A transaction that nobody saw end may have, if it was to be committed."""
    ending = {(line["who"], line["tx"]): line for line in kinds["ending"]}
    ended = {(line["who"], line["tx"]): line for line in kinds["ended"]}
    for line in kinds["enqueue"]:
        call = Span(line["called"], line["at"])
        asked = ending.get((line["who"], line["tx"]))
        answer = ended.get((line["who"], line["tx"]))
        commit = call
        fate: Fate = "rolled back"  # nobody has asked for its commit
        if asked is not None:
            commit = Span(asked["at"], answer["at"] if answer is not None else inf)
            if asked["commit"]:
                fate = "committed" if answer is not None else "unknown"
        yield Enqueue(
            line["id"],
            line["action"],
            line["lane"],
            call,
            commit,
            fate,
            line["delay"],
            line["who"],
        )


def _attempts(kinds: Mapping[str, list[Line]]) -> Iterable[Attempt]:
    begins = {(line["who"], line["id"], line["attempt"]): line["at"] for line in kinds["begin"]}
    ends = {(line["who"], line["id"], line["attempt"]): line["at"] for line in kinds["end"]}
    well = {(line["who"], line["id"], line["attempt"]) for line in kinds["end"] if line["returned"]}
    told: set[tuple[str, int, int]] = set()
    handed: dict[tuple[str, Key], list[HandIn]] = defaultdict(list)
    answers = {(line["who"], line["call"]): line for line in kinds["handed in"]}
    for line in kinds["handing in"]:
        answer = answers.get((line["who"], line["call"]))
        call = Span(line["at"], answer["at"] if answer is not None else inf)
        refused = {tuple(key): said for *key, said in answer["refused"]} if answer is not None else {}
        for id_, attempt, outcome, final in line["items"]:
            said = refused.get((id_, attempt), "taken") if answer is not None else "none"
            handed[line["who"], (id_, attempt)].append(HandIn(outcome, call, _ANSWERS[said], final))
    for line in kinds["claimed"]:
        for id_, attempt, action, lane, batch in line["starts"]:
            who = line["who"]
            yield Attempt(
                id_,
                attempt,
                action,
                lane,
                who,
                Span(line["called"], line["at"]),
                begins.get((who, id_, attempt)),
                ends.get((who, id_, attempt)),
                tuple(handed[who, (id_, attempt)]),
                line["registration"],
                batch,
            )
            told.add((who, id_, attempt))
    # Of a worker whose calls nobody has listened to, only its handlers tell.
    for line in kinds["begin"]:
        who, id_, attempt = line["who"], line["id"], line["attempt"]
        if (who, id_, attempt) in told:
            continue
        begin, end = line["at"], ends.get((who, id_, attempt))
        returned = end is not None and (who, id_, attempt) in well
        yield Attempt(
            id_,
            attempt,
            line["action"],
            line["lane"],
            who,
            Span(-inf, begin),
            begin,
            end,
            (HandIn("succeeded", Span(end), "none"),) if end is not None and returned else (),
        )


def _faults(kinds: Mapping[str, list[Line]]) -> Iterable[Fault]:
    """Return what was done to workers; a second line says when it was over."""
    for asked, at, _ in _answered(kinds["fault"], kinds["fault over"], "worker", "worker"):
        yield Fault(asked["worker"], asked["fault"], asked["at"], at)


def _duties(kinds: Mapping[str, list[Line]], faults: Iterable[Fault], until: float) -> Iterable[Duty]:
    stops: dict[str, float] = {}
    for line in kinds["stopping"]:
        stops.setdefault(line["worker"], line["at"])
    for fault in faults:
        if fault.kind == "kill":
            stops[fault.worker] = min(stops.get(fault.worker, inf), fault.since)
    for line in kinds["serving"]:
        yield Duty(line["who"], line["at"], min(stops.get(line["who"], inf), until), line["room"])
