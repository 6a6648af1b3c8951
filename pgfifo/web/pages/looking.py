"""What each page shows, and where it reads that. Nothing here changes anything."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pgfifo.client_async import AsyncClient
from pgfifo.errors import UnknownAction, UnknownExecution
from pgfifo.models import ActionOverview, ExecutionInfo, LaneStats, Minute, Pace, State, WaitTimes, WorkerInfo
from pgfifo.policies import checked
from pgfifo.web import lists
from pgfifo.web.pages import charts, formats
from pgfifo.web.problems import ProblemError, of_status

T = TypeVar("T")
Parameters = Mapping[str, str]
Context = dict[str, Any]

ROWS = 50
_FEW = 8
_SLOTS = 32
_SHARE = 9
_SAMPLES = 8
_LATELY = timedelta(seconds=30)
_FARTHEST = 200
_SECONDS_OF_PACES = 1800.0
_KEPT = 100

NEEDED = {
    "pause": "pause",
    "resume": "resume",
    "pause-everything": "pause_everything",
    "resume-everything": "resume_everything",
    "cancel": "cancel",
    "retry": "retry",
    "limit": "set_policy",
}
"""Which function each change of the pages calls."""
_RIGHTS = """
    select p.proname::text as name from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    where n.nspname = 'pgfifo' and p.proname = any (%s::text[])
    group by p.proname having bool_or(pg_catalog.has_function_privilege(p.oid, 'execute'))
"""

OUTCOMES: tuple[State, ...] = ("succeeded", "failed", "cancelled", "expired")
STATES: tuple[State, ...] = ("waiting", "running", "held", "delayed", *OUTCOMES)
SORTS = {"depth": "Depth", "oldest": "Longest wait", "active": "Active", "group": "Group"}


@dataclass
class Desk:
    """What pages read, and several of them at once need: asked for once, however many look.

    Attributes:
        fifo: The queue.
        fresh: For how many seconds something is new, at least.
    """

    fifo: AsyncClient
    fresh: float = 1.5
    _kept: dict[str, tuple[float, Any]] = field(default_factory=dict)
    _asking: dict[str, asyncio.Lock] = field(default_factory=dict)
    _paces: dict[str, tuple[float, Pace]] = field(default_factory=dict)
    _changes: int = 0
    _samples: deque[tuple[datetime, dict[str, int]]] = field(default_factory=lambda: deque(maxlen=_SAMPLES))

    async def shared(self, name: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Return what was asked for a moment ago at most, or ask; what took long is kept for longer."""
        async with self._asking.setdefault(name, asyncio.Lock()):
            until, value = self._kept.get(name, (0.0, None))
            began = time.monotonic()
            if began >= until:
                changes = self._changes
                value = await ask()
                ended = time.monotonic()
                if changes == self._changes:
                    self._kept[name] = (ended + max(self.fresh, _SHARE * (ended - began)), value)
            found: T = value
        if len(self._kept) > _KEPT:
            self._drop_old()
        return found

    def _drop_old(self) -> None:
        """Drop what is not new any more, and the locks that nobody needs for it."""
        now = time.monotonic()
        self._kept = {name: kept for name, kept in self._kept.items() if now < kept[0]}
        for name in [name for name, lock in self._asking.items() if not lock.locked()]:
            if name not in self._kept:
                del self._asking[name]

    def forget(self) -> None:
        """Forget what was kept, also what is being asked for just now: something was changed."""
        self._changes += 1
        self._kept.clear()

    async def overview(self) -> list[ActionOverview]:
        """Return the numbers of all actions, a moment old at most."""
        return await self.shared("overview", self._overview)

    async def _overview(self) -> list[ActionOverview]:
        found = await self.fifo.overview()
        if found:
            at = found[0].at
            while self._samples and not timedelta(0) < at - self._samples[0][0] < _LATELY:
                self._samples.popleft()
            self._samples.append((at, {each.action: each.total_started for each in found}))
        return found

    @property
    def names(self) -> list[str]:
        """The actions there were when somebody looked last."""
        return sorted(self._samples[-1][1]) if self._samples else []

    async def paces(self, actions: Sequence[str]) -> dict[str, Pace]:
        """Return the pace of actions in the hour before some minute of this one, which charts go on from."""
        now = time.monotonic()
        for name in actions:
            if name not in self._paces or now > self._paces[name][0]:
                self._paces.pop(name, None)
                with suppress(UnknownAction):  # it was removed just now
                    pace = await self.fifo.pace(name, charts.MINUTES)
                    self._paces[name] = now + _SECONDS_OF_PACES, pace
        return {name: self._paces[name][1] for name in actions if name in self._paces}

    async def rights(self) -> frozenset[str]:
        """Return the changes that the database role may make."""
        return await self.shared("rights", self._rights)

    async def _rights(self) -> frozenset[str]:
        names = list(NEEDED.values())
        allowed = await self.fifo._rows(_RIGHTS, (names,), str)  # noqa: SLF001 - no call
        return frozenset(verb for verb, name in NEEDED.items() if name in allowed)

    async def workers(self) -> list[WorkerInfo]:
        """Return the workers, a moment old at most."""
        return await self.shared("workers", self.fifo.workers)

    def starts_per_second(self, actions: Sequence[str]) -> float | None:
        """Return how many started per second of late; None before two looks."""
        if len(self._samples) < 2:
            return None
        (first_at, first), (last_at, last) = self._samples[0], self._samples[-1]
        seconds = (last_at - first_at).total_seconds()
        if seconds <= 0:
            return None
        return sum(max(0, last.get(each, 0) - first.get(each, 0)) for each in actions) / seconds


@dataclass(frozen=True, slots=True)
class Page:
    """A page that looks.

    Attributes:
        name: Which entry of the navigation it belongs to.
        template: How it is shown.
        load: Returns what it shows.
        parameters: The parameters that it knows.
    """

    name: str
    template: str
    load: Callable[[Desk, Parameters], Awaitable[Context]]
    parameters: tuple[str, ...] = ()


async def overview(desk: Desk, asked: Parameters) -> Context:
    """All actions."""
    actions = await desk.overview()
    minutes = await desk.shared("minutes", lambda: desk.fifo.minutes(None, charts.MINUTES + 1))
    waits = await desk.shared("waits", lambda: desk.fifo.wait_times(None, charts.MINUTES))
    sort = _one_of(asked.get("sort"), ("name", "depth", "oldest"))
    shown = sorted(actions, key=_ORDERS[sort])
    search = asked.get("q", "").strip().lower()
    shown = [each for each in shown if search in each.action.lower()]
    page = _page(asked)
    of_minutes: dict[str, list[Minute]] = {}
    of_waits: dict[str, list[WaitTimes]] = {}
    for minute in minutes:
        of_minutes.setdefault(minute.action, []).append(minute)
    for wait in waits:
        of_waits.setdefault(wait.action, []).append(wait)
    paces = await desk.paces([each.action for each in actions[:_FARTHEST]])
    rows = []
    for each in shown[(page - 1) * ROWS : page * ROWS]:
        of = of_waits.get(each.action, [])
        rows.append(
            {
                "stats": each,
                "hour": charts.hour([each], of_minutes.get(each.action, []), of, paces),
                "waits": next((wait for wait in of if wait.minute is None), None),
                "per_second": desk.starts_per_second([each.action]),
            }
        )
    total = charts.hour(actions, minutes, [], paces)
    workers = [worker for worker in await desk.workers() if worker.state == "alive"]
    return {
        "rows": rows,
        "sort": sort,
        "q": asked.get("q", ""),
        "page": page,
        "more": len(shown) > page * ROWS,
        "actions": actions,
        "total": _total(actions),
        "charts": total.charts()[:2],
        "failed_lately": sum(each.failed for each in minutes),
        "per_second": desk.starts_per_second([each.action for each in actions]),
        "workers": workers,
        "served": {name for worker in workers for name in worker.actions},
        "busy": sum(worker.executions for worker in workers),
        "capacity": sum(worker.concurrency for worker in workers),
        "failures": await _listed(desk, {"state": "failed"}, _FEW),
        "changes": await desk.fifo.audit(limit=_FEW),
    }


_ORDERS: dict[str, Callable[[ActionOverview], Any]] = {
    "name": lambda each: each.action,
    "depth": lambda each: (-each.queue_length, each.action),
    "oldest": lambda each: (each.oldest_enqueued_at or datetime.max.replace(tzinfo=UTC), each.action),
}


def _total(actions: Sequence[ActionOverview]) -> dict[str, Any]:
    names = ("queue_length", "active_count", "slots_taken", "slots_total", "delayed_count", "lanes")
    return {name: sum(getattr(each, name) for each in actions) for name in names} | {
        "oldest_enqueued_at": min(
            (each.oldest_enqueued_at for each in actions if each.oldest_enqueued_at), default=None
        ),
        "paused": sum(each.paused for each in actions),
    }


async def action(desk: Desk, asked: Parameters) -> Context:
    """One action and its lanes."""
    name = _wanted(asked, "name")
    # Beside each other: where there are many lanes, both add all of them up.
    stats, of_lanes = await asyncio.gather(_stats(desk, name), _lanes(desk, asked, name))
    waits = await desk.fifo.wait_times(name, charts.MINUTES)
    minutes = await desk.fifo.minutes(name, charts.MINUTES + 1)
    return {
        "stats": stats,
        "hour": charts.hour([stats], minutes, waits, await desk.paces([name])),
        "waits": next((wait for wait in waits if wait.minute is None), None),
        "per_second": desk.starts_per_second([name]),
        "policy": _by_attribute(await desk.fifo.effective_policy(name)),
        "failures": await _listed(desk, {"action": name, "state": "failed"}, _FEW),
        "serving": [each for each in await desk.workers() if each.state == "alive" and name in each.actions],
        **of_lanes,
    }


async def lanes(desk: Desk, asked: Parameters) -> Context:
    """The lanes of all actions."""
    return await _lanes(desk, asked, None)


async def _lanes(desk: Desk, asked: Parameters, name: str | None) -> Context:
    sort = _one_of(asked.get("sort"), tuple(SORTS))
    having = _one_of(asked.get("having"), ("", "waiting", "active", "paused"))
    page = _page(asked)
    found: list[LaneStats] = await desk.shared(
        repr(("lanes", name, asked.get("q"), having, sort, page)),
        lambda: desk.fifo.find_lanes(
            name,
            search=asked.get("q") or None,
            having=having or None,  # type: ignore[arg-type]  # it is one of these
            sort=sort,  # type: ignore[arg-type]  # as above
            limit=ROWS + 1,
            offset=(page - 1) * ROWS,
        ),
    )
    return {
        "lanes": found[:ROWS],
        "deepest": max((lane.queue_length for lane in found), default=0),
        "sorts": SORTS,
        "sort": sort,
        "having": having,
        "q": asked.get("q", ""),
        "page": page,
        "more": len(found) > ROWS,
    }


async def lane(desk: Desk, asked: Parameters) -> Context:
    """One lane: who has its slots, and its line."""
    name, group = _wanted(asked, "action"), asked.get("group", "")
    fifo = desk.fifo
    found = await fifo.lanes(name, group)
    of: Context = {"action": name, "group": group}
    line = await lists.line(fifo, name, group, limit=ROWS, glimpse=True) if found else []
    active = await _listed(desk, of | {"state": ["running", "held"]}, _SLOTS) if found else []
    names = {worker.id: worker.name for worker in await desk.workers()}
    if any(each.worker_id not in names for each in active):  # programs that hold the slots themselves
        holders = await fifo.slots(name, group=group)
        names |= {each.worker_id: each.holder for each in holders if each.worker_id and each.holder}
    return {
        "action": name,
        "group_text": found[0].group_text if found else group,
        "stats": found[0] if found else None,
        "line": line,
        "active": sorted(active, key=lambda each: each.start_no or 0),
        "names": names,
        "why": await _explained(fifo, line[0].id) if line else None,
        "delayed": await _listed(desk, of | {"state": "delayed"}, _FEW) if found else [],
        "ended": await _listed(desk, of | {"state": OUTCOMES}, _FEW) if found else [],
        "policy": _by_attribute(await fifo.effective_policy(name, group)) if found else {},
        "slots_shown": _SLOTS,
    }


async def executions(desk: Desk, asked: Parameters) -> Context:
    """Executions that a filter selects, the youngest first."""
    name, group, state = asked.get("action"), asked.get("group"), asked.get("state", "")
    if state and state not in STATES:
        raise ProblemError(
            of_status(422, f"There is no state {state!r}.", hint=f"There are: {', '.join(STATES)}.")
        )
    before = _id(asked["before"]) if asked.get("before") else None
    where = {"action": name or None, "group": (group or None) if name else None, "state": state or None}
    found = await _listed(desk, where, ROWS + 1, before)
    return {
        "executions": found[:ROWS],
        "more": len(found) > ROWS,
        "action": name or "",
        "group_text": group or "",
        "state": state,
        "states": STATES,
        "before": before,
    }


async def execution(desk: Desk, asked: Parameters) -> Context:
    """One execution."""
    number = _id(_wanted(asked, "id"))
    found = await desk.fifo.execution(number)
    workers = {worker.id: worker.name for worker in await desk.workers()}
    why = None if found.finished else await _explained(desk.fifo, number)
    ended = None if why is None or why.data["attempt"] != found.attempt else why.data["ended"]
    return {
        "it": found,
        "why": why,
        "names": workers,
        "story": _story(found, workers, ended),
        "bars": _bars(found, ended),
    }


async def workers(desk: Desk, _: Parameters) -> Context:
    """The worker processes, and what they run."""
    found = await desk.workers()
    running = await lists.executions(desk.fifo, {"state": "running"}, limit=_FARTHEST)
    of: dict[int | None, list[ExecutionInfo]] = {}
    for each in reversed(running):
        of.setdefault(each.worker_id, []).append(each)
    gone = [each for each in found if each.state != "alive"]
    return {
        "workers": [each for each in found if each.state == "alive"],
        "gone": gone[::-1][:ROWS],
        "running": of,
        "cut": len(running) == _FARTHEST,
    }


async def policies(desk: Desk, asked: Parameters) -> Context:
    """Policies in force, and how they came to be so."""
    name, group = asked.get("action") or None, asked.get("group") or None
    if name is None:
        group = None
    fifo = desk.fifo
    return {
        "action": name,
        "group_text": group or "",
        "has_group": group is not None,
        "values": await fifo.effective_policy(name, group),
        "history": await fifo.policy_history(name, group=group, limit=ROWS),
        "limits": await fifo.shared_limits(),
        "overrides": await fifo.overrides(),
        "actions": desk.names,
        "changeable": CHANGEABLE,
    }


async def audit(desk: Desk, asked: Parameters) -> Context:
    """Who did what."""
    limit = 500 if asked.get("all") else 100
    found = await desk.fifo.audit(asked.get("action") or None, what=asked.get("what") or None, limit=limit)
    return {
        "entries": found,
        "action": asked.get("action", ""),
        "what": asked.get("what", ""),
        "more": len(found) == limit and not asked.get("all"),
    }


PAGES: dict[str, Page] = {
    "/": Page("overview", "overview.html", overview, ("q", "sort", "page")),
    "/action": Page("overview", "action.html", action, ("name", "q", "having", "sort", "page")),
    "/lanes": Page("lanes", "lanes.html", lanes, ("q", "having", "sort", "page")),
    "/lane": Page("lanes", "lane.html", lane, ("action", "group")),
    "/executions": Page("executions", "executions.html", executions, ("action", "group", "state", "before")),
    "/execution": Page("executions", "execution.html", execution, ("id",)),
    "/workers": Page("workers", "workers.html", workers),
    "/policies": Page("policies", "policies.html", policies, ("action", "group")),
    "/audit": Page("audit", "audit.html", audit, ("action", "what", "all")),
}
"""The pages by their paths. Names go in parameters: there is none that a path could not hold otherwise."""


async def _stats(desk: Desk, name: str) -> ActionOverview:
    for each in await desk.overview():
        if each.action == name:
            return each
    return (await desk.fifo.overview(name))[0]  # it is new; or it is unknown, and the error says so


async def _listed(desk: Desk, where: Context, limit: int, before: int | None = None) -> list[ExecutionInfo]:
    """Return executions for a table, with as much of their payloads as it shows."""
    return await lists.executions(desk.fifo, where, limit=limit, before=before, glimpse=True)


async def _explained(fifo: AsyncClient, number: int) -> Any:  # noqa: ANN401 - Explanation or None
    try:
        return await fifo.explain(number)
    except UnknownExecution:
        return None


def _by_attribute(values: Sequence[Any]) -> dict[str, Any]:
    return {each.attribute: each for each in values}


CHANGEABLE = (
    "max_concurrent",
    "max_queue_length",
    "rate",
    "burst",
    "spacing",
    "gap",
    "timeout",
    "max_wait",
    "max_attempts",
)
"""The limits that can be changed on the pages; all others on the command line, where there is more room."""


def limit_value(attribute: str, text: str) -> object:
    """Return what somebody has typed as the value of a limit: nothing is to inherit it.

    Raises:
        InvalidValue: It cannot have this value.
        ProblemError: It cannot be changed here.
    """
    if attribute not in CHANGEABLE:
        raise ProblemError(of_status(422, "This cannot be changed here.", hint="Use pgfifo policy set."))
    text = text.strip()
    if not text or text == "inherited":
        return None
    value: object = text
    if text.replace(",", "").isdecimal():
        value = int(text.replace(",", ""))
    checked({attribute: value})
    return value


def _story(
    it: ExecutionInfo, names: Mapping[int, str], ended: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return what has happened to an execution, in order: what, when, and what to say of it.

    Args:
        it: The execution.
        names: Of workers.
        ended: How and when its last attempt ended, if it is to be tried again.
    """

    def by(worker: object) -> str:
        return "" if worker is None else names.get(int(str(worker)), f"worker {worker}")

    story: list[dict[str, Any]] = [{"kind": "enqueued", "at": it.enqueued_at, "text": ""}]
    for each in it.attempts or ():
        story += [
            {
                "kind": "started",
                "at": formats.moment(each.get("started_at")),
                "text": f"attempt {each.get('attempt')}",
                "by": by(each.get("worker")),
            },
            {
                "kind": each.get("outcome") or "ended",
                "at": formats.moment(each.get("ended_at")),
                "text": f"attempt {each.get('attempt')}",
                "error": each.get("error"),
            },
        ]
    known = {each.get("attempt") for each in it.attempts or ()}
    if it.started_at is not None and it.attempt not in known:
        story.append(
            {
                "kind": "started",
                "at": it.started_at,
                "text": f"attempt {it.attempt}",
                "by": by(it.worker_id),
            }
        )
        if ended is not None:
            story.append(
                {
                    "kind": ended["outcome"] or "ended",
                    "at": formats.moment(ended["at"]),
                    "text": f"attempt {it.attempt}",
                    "error": it.error,
                }
            )
    if it.cancel_requested_at is not None and it.started_at is not None:
        story.append({"kind": "asked to stop", "at": it.cancel_requested_at, "text": it.reason or ""})
    if it.progress_at is not None:
        share = "" if it.progress is None else f"{it.progress:.0%} "
        story.append(
            {"kind": "reported", "at": it.progress_at, "text": f"{share}{it.progress_message or ''}"}
        )
    if it.finished_at is not None:
        story.append({"kind": it.state, "at": it.finished_at, "text": it.reason or "", "error": it.error})
    elif it.state == "held":
        story.append({"kind": "held", "at": it.due_at, "text": "is tried again", "to come": True})
    elif it.state == "delayed":
        story.append({"kind": "delayed", "at": it.due_at, "text": "joins its line", "to come": True})
    return sorted(story, key=lambda each: each["at"] or it.enqueued_at)


def _bars(it: ExecutionInfo, ended: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return an execution's time as bars, in thousandths of it: waits, attempts, and pauses in between."""
    end = it.finished_at or formats.now()
    whole = max((end - it.enqueued_at) / timedelta(microseconds=1), 1)
    spans: list[tuple[str, datetime, datetime]] = []
    at = it.enqueued_at
    runs = [
        (
            formats.moment(each.get("started_at")),
            formats.moment(each.get("ended_at")),
            str(each.get("outcome")),
        )
        for each in it.attempts or ()
    ]
    known = {each.get("attempt") for each in it.attempts or ()}
    if it.started_at is not None and it.attempt not in known:
        if ended is not None:
            runs.append((it.started_at, formats.moment(ended["at"]), str(ended["outcome"])))
        elif it.finished_at is not None or it.state == "running":
            runs.append((it.started_at, end, it.state))
    for began, over, outcome in runs:
        if began is None or over is None:
            continue
        spans += [("wait" if at == it.enqueued_at else "pause", at, began), (outcome, began, over)]
        at = over
    if it.finished_at is None and at < end:
        spans.append(("wait" if at == it.enqueued_at else "pause", at, end))
    elif at < end:
        spans.append(("wait", at, end))
    return [
        {
            "kind": kind,
            "x": (since - it.enqueued_at) / timedelta(microseconds=1) / whole * 1000,
            "width": max((to - since) / timedelta(microseconds=1) / whole * 1000, 2),
            "text": f"{kind} {formats.duration((to - since).total_seconds())}",
        }
        for kind, since, to in spans
        if to > since
    ]


def _wanted(asked: Parameters, name: str) -> str:
    value = asked.get(name, "")
    if not value:
        raise ProblemError(of_status(404, f"The address does not say which {name}."))
    return value


def _id(text: str) -> int:
    text = text.strip().removeprefix("#").replace(",", "")
    if not text.isdecimal() or not 0 < int(text) < 2**63:
        raise ProblemError(of_status(404, "That is no number of an execution.", hint="Give a number, as 42."))
    return int(text)


def _page(asked: Parameters) -> int:
    text = asked.get("page", "1")
    return min(max(int(text), 1), _FARTHEST) if text.isdecimal() and len(text) < 9 else 1


def _one_of(value: str | None, known: tuple[str, ...]) -> str:
    return value if value in known else known[0]
