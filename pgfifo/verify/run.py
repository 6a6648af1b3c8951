"""A verification: load and harm on somebody's own set-up, with actions and processes of its own."""

import math
import os
import random
import secrets
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psycopg

from pgfifo.client import Client
from pgfifo.dsn import with_defaults
from pgfifo.errors import Busy, UnknownAction
from pgfifo.verify.assemble import assemble
from pgfifo.verify.checker import judge
from pgfifo.verify.children import BrokenError, Children, Interrupts
from pgfifo.verify.history import Check, History
from pgfifo.verify.load import RULES, SEVERAL, policy
from pgfifo.verify.record import record, swept
from pgfifo.verify.recorder import Recorder, now, read

Harm = Literal["kill", "pause"]

ROOM = 16
"""How many executions a worker runs at once."""

_TICK = 0.1
_SAY_EVERY = 5.0
_UP = 30.0
_CLEAN = 60.0
_LIMITS = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Settings:
    """How much happens.

    Attributes:
        duration: for how many seconds producers enqueue.
        producers: how many processes enqueue.
        workers: how many worker processes there are.
        chaos: what is done to workers.
        rate: transactions of each producer a second.
        lease: seconds without a heartbeat after which a worker counts as dead.
        seed: the same one makes the same executions and the same harm, though never the same moments.
        folder: where to leave the journals. Defaults to nowhere.
        poll_only: whether the DSN leads to a pooler in transaction mode.
    """

    duration: float = 60.0
    producers: int = 8
    workers: int = 4
    chaos: frozenset[Harm] = frozenset()
    rate: float = 20.0
    lease: float = 5.0
    seed: str = "1"
    folder: Path | None = None
    poll_only: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What was done, and what came of it.

    Attributes:
        done: counts of what was done and seen.
        rates: how much of it in a second.
        checks: the promises.
        notes: what this run could not show.
    """

    done: Mapping[str, int]
    rates: Mapping[str, float]
    checks: list[Check]
    notes: list[str]

    @property
    def held(self) -> bool:
        """Whether no promise was broken."""
        return all(check.holds for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Return all of it for programs."""
        return {
            "held": self.held,
            "done": dict(self.done),
            "per_second": {name: round(value, 1) for name, value in self.rates.items()},
            "promises": [
                {
                    "name": each.name,
                    "held": each.holds,
                    "exercised": each.exercised,
                    "seen": each.seen,
                    "violations": [*each.findings],
                }
                for each in self.checks
            ],
            "notes": self.notes,
        }


def verify(dsn: str, settings: Settings, say: Callable[[str], None]) -> Report:
    """Enqueue, run and do harm for a time; judge what clients saw; leave nothing behind, however it ends.

    Args:
        dsn: the database, with pgfifo installed; the role must be allowed to set policies.
        settings: how much happens.
        say: told what happens.

    Raises:
        BrokenError: it does not work here.
        psycopg.Error: the database cannot be reached, or refuses something.
        KeyboardInterrupt: interrupted.
    """
    interrupts = Interrupts()
    with ExitStack() as stack:
        stack.enter_context(interrupts.heard())
        folder = settings.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgfifo-verify-")))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.glob("*.jsonl")):
                raise BrokenError(f"{folder} has the journals of another run")
        prepared = None if settings.poll_only else 5
        fifo = stack.enter_context(Client(dsn, prepare_threshold=prepared))
        _refuse_others(fifo)
        _clean(fifo, 0.0)
        with interrupts.waiting():
            stack.callback(_leave_nothing, fifo, interrupts, say)
            for action in RULES:
                fifo.set_policy(action, **policy(action))
            for action, rules in RULES.items():
                if rules.shared is not None:
                    fifo.set_shared_limit(action, max_concurrent=rules.shared, actions=[action])
        environment = {
            **os.environ,
            "PGFIFO_DSN": dsn,
            "PGFIFO_VERIFY_FOLDER": str(folder),
            "PGFIFO_VERIFY_LEASE": str(settings.lease),
            "PGFIFO_VERIFY_ROOM": str(ROOM),
            "PGFIFO_VERIFY_POLL_ONLY": "1" if settings.poll_only else "",
        }
        children = Children(folder, environment, interrupts)
        stack.callback(children.end)
        conn = stack.enter_context(
            psycopg.connect(with_defaults(dsn, "pgfifo verify"), autocommit=True, prepare_threshold=prepared)
        )
        return _Run(settings, fifo, conn, folder, children, say).tell()


class _Run:
    """One run."""

    def __init__(
        self,
        settings: Settings,
        fifo: Client,
        conn: psycopg.Connection[Any],
        folder: Path,
        children: Children,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._fifo = fifo
        self._conn = conn
        self._folder = folder
        self._children = children
        self._say = say
        self._chance = random.Random(f"{settings.seed} chaos")  # noqa: S311 - nobody's secret
        self._recorder = Recorder(folder, "verify")
        self._name = secrets.token_hex(3)
        self._workers: list[str] = []
        self._paused: dict[str, float] = {}
        self._started = 0
        self._begin = now()
        self._next: dict[str, float] = {}
        self._blind = False

    def tell(self) -> Report:
        """Let it happen, and judge it."""
        settings = self._settings
        before = swept(self._conn)
        self._blind = before is None
        for _ in range(settings.workers):
            self._start_worker()
        self._await_workers()
        self._begin = now()
        until = self._begin + settings.duration
        producers = [f"producer-{number + 1}" for number in range(settings.producers)]
        for name in producers:
            arguments = [name, settings.seed, str(settings.rate), str(until)]
            self._children.start(name, "-m", "pgfifo.verify.produce", *arguments)
        self._say(
            f"{settings.producers} producers enqueue and {settings.workers} workers run for "
            f"{settings.duration:g} s"
            + (f", with chaos: {', '.join(sorted(settings.chaos))}." if settings.chaos else ".")
        )
        self._plan(settings.duration)
        self._pass_time(until)
        self._resume_all()
        self._fifo_limit(RULES[SEVERAL].slots)
        for name in producers:
            self._await_end(name)
        enqueued = now()
        self._say("The producers are done; the workers run what is left.")
        self._drain()
        last_look = now()
        for name in self._workers:
            self._recorder.note("stopping", worker=name)
        self._children.expected.update(self._workers)
        self._children.stop(*self._workers)
        history = assemble(
            read(self._folder),
            RULES,
            record(self._conn, RULES, before),
            lease=settings.lease,
            patience=10.0 + settings.lease,
            until=last_look,
        )
        return self._report(history, enqueued - self._begin, last_look - self._begin)

    # Workers and harm

    def _start_worker(self) -> None:
        self._started += 1
        name = f"verify-{self._name}-{self._started}"
        self._children.start(name, "-m", "pgfifo.verify.serve", PGFIFO_VERIFY_WORKER=name)
        self._workers.append(name)

    def _alive(self) -> dict[str, int]:
        """Return the workers that the database takes for living, with how many executions each has."""
        return {
            each.name: each.executions
            for each in self._fifo.workers()
            if each.name in self._workers and each.state == "alive"
        }

    def _await_workers(self) -> None:
        deadline = time.monotonic() + _UP
        while len(self._alive()) < len(self._workers):
            self._children.refuse_dead()
            if time.monotonic() > deadline:
                raise BrokenError("the workers do not come up")
            time.sleep(_TICK)

    def _plan(self, duration: float) -> None:
        """Say when what is done for the first time: in a short run, too."""
        self._next = {"limit": self._begin + 0.3 * duration}
        if "kill" in self._settings.chaos:
            self._next["kill"] = self._begin + 0.2 * duration
        if "pause" in self._settings.chaos:
            self._next["pause"] = self._begin + 0.35 * duration

    def _pass_time(self, until: float) -> None:
        said = now()
        while (at := now()) < until:
            self._children.refuse_dead()
            for what in [what for what, when in self._next.items() if when <= at]:
                done = self._do(what)
                pause = self._chance.uniform(0.5, 1.5) * (
                    2.0 if what == "limit" else 2.0 + self._settings.lease
                )
                self._next[what] = at + (pause if done else _TICK)
            self._resume_dead()
            if at - said >= _SAY_EVERY:
                said = at
                stats = [each for each in self._fifo.stats() if each.action in RULES]
                self._say(
                    f"{at - self._begin:5.0f} s  enqueued {sum(each.total_enqueued for each in stats):7,}"
                    f"  finished {sum(each.total_completed for each in stats):7,}"
                    f"  active {sum(each.active_count for each in stats):4,}"
                )
            time.sleep(_TICK)

    def _do(self, what: str) -> bool:
        """Do something; false if it was not possible now."""
        if what == "limit":
            return self._fifo_limit(self._chance.choice(_LIMITS))
        holding = [
            name
            for name, executions in sorted(self._alive().items())
            if executions and name not in self._paused and name not in self._children.expected
        ]
        if not holding:
            return False
        name = self._chance.choice(holding)
        return self._kill(name) if what == "kill" else self._pause(name)

    def _kill(self, name: str) -> bool:
        process = self._children.all[name]
        self._children.expected.add(name)
        self._recorder.note("fault", worker=name, fault="kill")
        process.kill()
        process.wait()
        self._recorder.note("fault over", worker=name, fault="kill")
        self._workers.remove(name)
        self._start_worker()
        return True

    def _pause(self, name: str) -> bool:
        """Stop a worker that has something to run; it goes on when it counts as dead."""
        if len(self._paused) + 1 >= self._settings.workers:
            return False
        self._recorder.note("fault", worker=name, fault="pause")
        os.kill(self._children.all[name].pid, signal.SIGSTOP)
        self._paused[name] = now()
        if not self._alive().get(name):
            self._resume(name)
            return False
        return True

    def _resume_dead(self) -> None:
        if not self._paused:
            return
        alive = self._alive()
        for name, since in [*self._paused.items()]:
            if name not in alive or now() - since > 5 * self._settings.lease:
                self._resume(name)

    def _resume(self, name: str) -> None:
        del self._paused[name]
        os.kill(self._children.all[name].pid, signal.SIGCONT)
        self._recorder.note("fault over", worker=name, fault="pause")

    def _resume_all(self) -> None:
        deadline = now() + 5 * self._settings.lease
        while self._paused and now() < deadline:
            self._resume_dead()
            time.sleep(_TICK)
        for name in [*self._paused]:
            self._resume(name)

    def _fifo_limit(self, slots: int) -> bool:
        self._recorder.note("limiting", action=SEVERAL, slots=slots)
        try:
            self._fifo.set_policy(SEVERAL, max_concurrent=slots)
        except Busy:
            pass  # whether it is in force nobody needs to know: it may be or not, from now on
        else:
            self._recorder.note("limited", action=SEVERAL, slots=slots)
        return True

    # The end

    def _await_end(self, name: str) -> None:
        deadline = time.monotonic() + _UP
        while self._children.all[name].poll() is None:
            if time.monotonic() > deadline:
                raise BrokenError(f"{name} does not come to its end")
            time.sleep(_TICK)
        self._children.refuse_dead()

    def _drain(self) -> None:
        """Wait until everything is done, or nothing moves any more."""
        patience = 10.0 + 3 * self._settings.lease
        moved, before = now(), -1
        while now() - moved < patience:
            self._children.refuse_dead()
            stats = [each for each in self._fifo.stats() if each.action in RULES]
            if not sum(each.queue_length + each.active_count + each.delayed_count for each in stats):
                return
            finished = sum(each.total_completed for each in stats)
            if finished != before:
                moved, before = now(), finished
            time.sleep(_TICK)
        self._say(f"Nothing has moved for {patience:g} s. That is all.")

    def _report(self, history: History, producing: float, whole: float) -> Report:
        fates = Counter(each.fate for each in history.enqueues)
        handed = Counter(said.outcome for each in history.attempts if (said := each.taken) is not None)
        refused = sum(any(said.answer == "lost" for said in each.handed) for each in history.attempts)
        harm = Counter(each.kind for each in history.faults)
        states = Counter(each.state for each in history.record.outcomes) if history.record else Counter()
        done = {
            "seconds": math.ceil(whole),
            "committed": fates["committed"],
            "rolled_back": fates["rolled back"],
            "starts": len(history.attempts),
            "succeeded": states["succeeded"],
            "failed": states["failed"],
            "cancelled": states["cancelled"],
            "failed_attempts": handed["failed"],
            "limit_changes": len(history.limits),
            "kills": harm["kill"],
            "pauses": harm["pause"],
            "late_hand_ins_refused": refused,
        }
        rates = {"enqueues": fates["committed"] / producing, "starts": len(history.attempts) / whole}
        notes = ["this role may not ask whether the sweep had to help"] if self._blind else []
        notes += [
            f"there was no {kind}: no worker had anything to run at the time"
            for kind in sorted(self._settings.chaos - harm.keys())
        ]
        if harm["pause"] and not refused:
            notes.append(
                "no stopped worker had anything left to hand in: this run has not shown a zombie refused"
            )
        return Report(done, rates, judge(history), notes)


def _refuse_others(fifo: Client) -> None:
    """Refuse to run beside another verification: they would not know whose executions are whose."""
    others = [each for each in fifo.workers() if each.state == "alive" and set(each.actions) & RULES.keys()]
    if others:
        raise BrokenError(
            f"another verification is under way in this database: worker {others[0].name} on {others[0].host}"
        )


def _leave_nothing(fifo: Client, interrupts: Interrupts, say: Callable[[str], None]) -> None:
    """Remove the actions, when all processes have ended."""
    with interrupts.waiting():
        left = _clean(fifo, _CLEAN)
    if left:
        say(f"Some of it is left: {left}. The next verification removes it before it begins.")


def _clean(fifo: Client, patience: float) -> str:
    """Remove what a verification has made; return what stands in the way, if anything does."""
    deadline = time.monotonic() + patience
    for limit in {each.name for each in fifo.shared_limits()} & RULES.keys():
        fifo.drop_shared_limit(limit)
    for action in RULES:
        while True:
            try:
                _end_all(fifo, action)
                fifo.remove_action(action)
            except UnknownAction:
                break
            except Busy as busy:
                if time.monotonic() > deadline:
                    return busy.message
                fifo.maintain()  # killed workers have to be noticed first
                time.sleep(_TICK)
    return ""


def _end_all(fifo: Client, action: str) -> None:
    """End everything of an action that has no outcome."""
    fifo.close_action(action, reason="the verification is over")
    fifo.cancel_where(action=action, reason="the verification is over")
    for each in fifo.executions(action=action, state="running", limit=1000):
        fifo.finish_execution(each.id, "cancelled", reason="the verification is over")
