"""What a worker does all day: hand in what has finished and claim what to run next, one call after the other.

Completions that gather while a call is on its way go into the next one, so the busier a worker is, the fewer
calls it makes per execution; an idle one makes them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg

from pgfifo._connections import AsyncLink, Pauses, Row, brief, is_passing
from pgfifo._listener import Listener
from pgfifo._run import Run
from pgfifo._threads import Threads
from pgfifo.actions import Action
from pgfifo.command import kept
from pgfifo.errors import LeaseLost, PayloadTooLarge, translated
from pgfifo.execution import Execution
from pgfifo.heartbeat import Heartbeat, Identity, Registration
from pgfifo.outcome import RELEASED

logger = logging.getLogger("pgfifo")

CANCEL_GRACE = 5.0
"""Seconds that handlers have to end in when they were interrupted at the end of ``shutdown_timeout``."""
KILL_GRACE = 1.0
"""Seconds after that, for commands that were killed then."""

_WORK = """
    select kind, id, attempt, token, action, group_text, payload::text, headers::text, tags, enqueued_at,
      wait_seconds, status, (detail ->> 'seconds')::float8
    from pgfifo.work(%s, %s, %s, %s, %s::jsonb, %s)
"""
_LEFT = """
    select coalesce(sum(queue_length), 0)::bigint, coalesce(sum(active_count), 0)::bigint
    from pgfifo.queue_stats where action = any (%s)
"""
_STARTABLE = """
    select exists (select from pgfifo.lane_stats where action = any (%s) and queue_length > 0 and not paused)
"""
_CHECK_JSON = "select %s::jsonb is null"

_SOON = 0.02
_LONGEST_SOON = 0.25
_BATCH = 1000
_BATCH_BYTES = 4 * 1024 * 1024
_SIGN_OFF_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a worker was told to do; see `pgfifo.worker.Worker`.

    Attributes:
        conninfo: The database for claims.
        direct: The database without a transaction pooler in between, if it can be reached so.
        name: The worker's name.
        actions: What it runs, by name.
        declared: Whether to declare them.
        concurrency: How many at once.
        caps: How many of an action at once, where that is less.
        poll_interval: Seconds.
        heartbeat: Seconds.
        lease: Seconds.
        shutdown_timeout: Seconds.
        until_empty: Whether to end when nothing is left.
    """

    conninfo: str
    direct: str | None
    name: str
    actions: Mapping[str, Action]
    declared: bool
    concurrency: int
    caps: Mapping[str, int]
    poll_interval: float
    heartbeat: float
    lease: float
    shutdown_timeout: float
    until_empty: bool

    def identity(self) -> Identity:
        """Return what the worker says of itself."""
        return Identity(
            conninfo=self.direct or self.conninfo,
            locked=self.direct is not None,
            name=self.name,
            actions=list(self.actions),
            concurrency=self.concurrency,
            interval=self.heartbeat,
            lease=self.lease,
            declared={name: action.values for name, action in self.actions.items()} if self.declared else {},
        )


class Engine:
    """One run of a worker, in one event loop."""

    def __init__(
        self, plan: Plan, *, ready: Callable[[int], None], overdue: Callable[[list[Run]], None]
    ) -> None:
        """Prepare it.

        Args:
            plan: What to do.
            ready: Called with the worker's id when it is registered, and again when it had to register anew.
            overdue: Called when executions still run after all that could be done to end them.
        """
        self._plan = plan
        self._ready = ready
        self._overdue = overdue
        self._names = list(plan.actions)
        self._heartbeat = Heartbeat(
            plan.identity(),
            registered=self._registered,
            failed=self._heart_failed,
            ended=self._heart_ended,
            stopping=self._interrupt_later,
        )
        self._threads = Threads(plan.concurrency, f"pgfifo-{plan.name}")
        self._listener: Listener | None = None
        self._link: AsyncLink | None = None
        self._registration: Registration | None = None
        self._failure: Exception | None = None

        self._runs: set[Run] = set()  # whose handlers run, also those that are no longer ours
        self._running: Counter[str] = Counter()  # by action
        self._done: deque[Run] = deque()  # appended to by handlers' threads
        self._finished: deque[Run] = deque()  # to hand in
        self._refused: list[Run] = []  # to hand in again, then:
        self._refused_until = 0.0

        self._woken = asyncio.Event()
        self._poked = False
        self._stop = asyncio.Event()
        self._signed_off = asyncio.Event()
        self._closed = False

        self._look_at = 0.0  # when to look for work next, by the loop's clock
        self._look_again = True  # or: at once
        self._called = False  # somebody says that there is work
        self._vain = 0  # how often in a row it was gone before we came
        self._soons = 0  # how often in a row lanes were locked
        self._check_at = 0.0

    # Life

    async def run(self) -> None:
        """Work until told to stop, or until nothing is left if that was the plan.

        Raises:
            psycopg.Error: What cannot be got over, such as a schema that is not there.
        """
        self._loop = asyncio.get_running_loop()
        with kept():
            try:
                await self._begin()
                serving = asyncio.create_task(self._serve())
                try:
                    await self._supervise(serving)
                finally:
                    serving.cancel()
                    await asyncio.gather(serving, return_exceptions=True)
            finally:
                await self._end()

    def stop(self) -> None:
        """Claim no more and end when what runs has ended. Call it in the loop's thread."""
        self._stop.set()
        self._woken.set()

    @property
    def running(self) -> list[Execution]:
        """What runs now."""
        return [run.execution for run in list(self._runs)]

    async def _begin(self) -> None:
        self._heartbeat.start()
        while self._registration is None and self._failure is None and not self._stop.is_set():
            await self._pause(None)
            self._woken.clear()
        if self._failure is not None:
            raise self._failure
        if self._stop.is_set():
            return
        self._link = await self._connect()
        if self._plan.direct is not None:
            self._listener = Listener(self._plan.direct, self._names, self._notified)
            await self._listener.connect()

    async def _supervise(self, serving: asyncio.Task[None]) -> None:
        """Wait for the end of the work; once told to stop, for a limited time."""
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        for patience in (self._plan.shutdown_timeout, CANCEL_GRACE):
            if not serving.done():
                await asyncio.wait({serving}, timeout=patience)
            if not serving.done():
                self._interrupt(self._runs)
        if not serving.done():
            await asyncio.wait({serving}, timeout=KILL_GRACE)
        if not serving.done() and self._runs:
            logger.error(
                "%d executions still run %g s after worker %s was to stop: %s",
                len(self._runs),
                self._plan.shutdown_timeout,
                self._plan.name,
                ", ".join(str(run.execution.id) for run in self._runs),
            )
            self._overdue(list(self._runs))
        while not serving.done() and self._runs:
            await asyncio.wait({serving}, timeout=1.0)
        if not serving.done():  # it has only outcomes to hand in, to a server that may be gone
            await asyncio.wait({serving}, timeout=_SIGN_OFF_TIMEOUT)
        if serving.done():
            serving.result()

    async def _end(self) -> None:
        """Give back what can be given back, and leave."""
        for patience in (CANCEL_GRACE, KILL_GRACE):
            self._interrupt(self._runs)
            await self._wait_for_handlers(self._loop.time() + patience)
        self._closed = True
        self._collect()
        try:
            async with asyncio.timeout(_SIGN_OFF_TIMEOUT):
                await self._hand_in_rest()
        except (TimeoutError, psycopg.Error):
            logger.warning("%d outcomes could not be handed in", len(self._finished) + len(self._refused))
        for run in (*self._finished, *self._refused):
            self._let_go(run)
        self._threads.close()
        if self._listener is not None:
            await self._listener.close()
        self._heartbeat.close()
        if not self._runs:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SIGN_OFF_TIMEOUT):
                    await self._signed_off.wait()
        if self._link is not None:
            await self._link.close()

    async def _wait_for_handlers(self, until: float) -> None:
        while self._runs and self._loop.time() < until:
            self._woken.clear()
            self._collect()
            if self._runs:
                await self._pause(until)

    async def _hand_in_rest(self) -> None:
        registration = self._registration
        while (self._finished or self._refused) and registration is not None and not registration.dead:
            if not self._finished:
                await asyncio.sleep(_SOON)
            self._refused_until = 0.0
            await self._call(registration, 0)

    # The loop

    async def _serve(self) -> None:
        while True:
            self._woken.clear()
            self._collect()
            if self._failure is not None:
                raise self._failure
            registration = self._registration
            if registration is None or registration.dead:
                if self._stop.is_set() and not self._runs:
                    return
                await self._pause(None)  # until the heartbeat has registered anew
                continue
            now = self._loop.time()
            free = 0 if self._stop.is_set() else self._plan.concurrency - len(self._runs)
            to_hand_in = self._finished or (self._refused and now >= self._refused_until)
            if to_hand_in or (free > 0 and (self._look_again or now >= self._look_at)):
                await self._call(registration, free)
            elif self._refused or self._runs:
                await self._rest(free)
            elif self._stop.is_set() or (self._plan.until_empty and await self._is_empty(now)):
                return
            else:
                await self._rest(free)

    async def _rest(self, free: int) -> None:
        """Sleep until something happens."""
        deadlines = []
        if free > 0:
            if self._listener is not None and await self._listener.fall_asleep(self._open_actions()):
                self._look_again = True  # what came before we were asleep has woken nobody
                return
            deadlines.append(self._look_at)
            if self._plan.until_empty and not self._runs:
                deadlines.append(self._check_at)
        if self._refused:
            deadlines.append(self._refused_until)
        await self._pause(min(deadlines, default=None))

    async def _pause(self, until: float | None) -> None:
        """Wait to be woken, or for a time of the loop's clock."""
        if self._woken.is_set():
            return
        timer = None if until is None else self._loop.call_at(until, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _open_actions(self) -> list[str]:
        caps = self._plan.caps
        return [name for name in self._names if name not in caps or self._running[name] < caps[name]]

    def _notified(self) -> None:
        """There is work, somebody says."""
        self._called = True
        self._look_at = min(self._look_at, self._loop.time() + self._haste())
        self._woken.set()

    def _haste(self) -> float:
        """Return how many seconds to take when called: more where work was always gone before we came."""
        return 0.0 if self._vain < 3 else min(0.001 * 2.0**self._vain, _LONGEST_SOON)

    # One call

    async def _call(self, registration: Registration, free: int) -> None:
        """Hand in what has finished and claim up to so many."""
        batch = self._take_batch()
        registration.calls += 1
        self._look_again = False
        called, self._called = self._called, False
        try:
            rows = await self._ask(registration, free, batch)
        except LeaseLost:
            self._heartbeat.declared_dead(registration)
            for run in batch:
                _log_lost(run)
            return
        except BaseException:
            self._finished.extendleft(reversed(batch))
            raise
        starts, refused, more = self._read(registration, rows)
        with registration.lock:
            if registration.dead:
                return  # what was claimed is taken back, as is everything else
            registration.arrived = registration.calls
            again = [run for run in batch if refused and refused.get(_key(run)) == "retry"]
            for run in batch:
                if run not in again and registration.held.get(run.execution.id) is run:
                    del registration.held[run.execution.id]
            doubles = [
                registration.held[id_] for run in starts if (id_ := run.execution.id) in registration.held
            ]
            for run in starts:
                registration.held[run.execution.id] = run
        if refused:
            self._put_aside(again)
            for run in batch:
                if refused.get(_key(run)) == "lost":
                    _log_lost(run)
        if doubles:  # an older attempt that was taken from us and has come back as a new one
            self._interrupt_later([run for run in doubles if run.stop("lost")])
        self._plan_next_look(free, len(starts), more, called=called)
        for run in starts:
            self._start(run)
        if starts and self._listener is not None:
            await self._listener.wake_up()

    def _take_batch(self) -> list[Run]:
        if self._refused and self._loop.time() >= self._refused_until:
            self._finished.extend(self._refused)
            self._refused.clear()
        batch: list[Run] = []
        size = 0
        while self._finished and len(batch) < _BATCH and size < _BATCH_BYTES:
            run = self._finished.popleft()
            batch.append(run)
            if run.outcome is not None and run.outcome.result is not None:
                size += len(run.outcome.result)
        return batch

    async def _ask(self, registration: Registration, free: int, batch: list[Run]) -> list[Row]:
        """Make one call, until it is answered: with its number, it may be repeated.

        Raises:
            LeaseLost: The worker was declared dead.
            psycopg.Error: The server will not answer this.
        """
        parameters = self._parameters(registration, free, batch)
        pauses = Pauses()
        complained = False
        while True:
            try:
                if self._link is None:
                    self._link = await self._connect()
                rows = await self._link.rows(_WORK, parameters)
                if complained:
                    logger.info("worker %s reaches the queue again", self._plan.name)
                return rows
            except (psycopg.DataError, psycopg.errors.StatementTooComplex, PayloadTooLarge) as error:
                if self._link is None or not await self._drop_bad_results(self._link, batch):
                    raise translated(error) from None
                parameters = self._parameters(registration, free, batch)
            except psycopg.Error as error:
                if registration.dead:
                    raise LeaseLost("the worker was declared dead") from error
                if not is_passing(error):
                    raise translated(error) from None
                if not complained:
                    complained = True
                    said = "worker %s could not reach the queue, trying again: %s"
                    logger.warning(said, self._plan.name, brief(error))
                if self._link is not None and not self._link.is_of_use_after(error):
                    link, self._link = self._link, None
                    await link.close()
                await asyncio.sleep(pauses.next())

    def _parameters(self, registration: Registration, free: int, batch: list[Run]) -> tuple[object, ...]:
        caps = self._plan.caps
        return (
            registration.worker,
            self._names,
            free,
            registration.calls,
            f"[{','.join(map(_as_json, batch))}]" if batch else None,
            [max(0, caps[name] - self._running[name]) if name in caps else None for name in self._names]
            if caps
            else None,
        )

    async def _drop_bad_results(self, link: AsyncLink, batch: list[Run]) -> bool:
        """Take the results that PostgreSQL refuses out of a batch; false if there are none."""
        found = False
        for run in batch:
            if run.outcome is None or run.outcome.result is None:
                continue
            try:
                await link.rows(_CHECK_JSON, (run.outcome.result,))
            except psycopg.Error as error:
                if is_passing(error) and not isinstance(error, psycopg.errors.StatementTooComplex):
                    raise
                run.outcome = run.outcome.without_result(str(error))
                found = True
        return found

    def _read(
        self, registration: Registration, rows: Iterable[Row]
    ) -> tuple[list[Run], dict[tuple[int, int], str], tuple[str, float] | None]:
        """Sort an answer: what to start, what was refused, and when to ask again."""
        starts = []
        refused = {}
        more = None
        actions = self._plan.actions
        for (
            kind,
            id_,
            attempt,
            token,
            action,
            group,
            payload,
            headers,
            tags,
            at,
            waited,
            status,
            seconds,
        ) in rows:
            if kind == "start":
                execution = Execution(id_, attempt, token, action, group, payload, headers, tags, at, waited)
                starts.append(Run(execution, actions[action], registration))
            elif kind == "finish":
                refused[id_, attempt] = status
            else:
                more = (status, seconds or 0.0)
        return starts, refused, more

    def _put_aside(self, runs: list[Run]) -> None:
        """Keep outcomes that could not be taken, because their lanes were locked, for a moment."""
        if runs:
            for run in runs:
                run.refused += 1
            self._refused.extend(runs)
            times = min(run.refused for run in runs)
            self._refused_until = self._loop.time() + min(_SOON * 2.0 ** (times - 1), _LONGEST_SOON)

    def _plan_next_look(self, free: int, found: int, more: tuple[str, float] | None, *, called: bool) -> None:
        if free > 0:
            self._vain = min(self._vain + 1, 20) if called and not found else 0
        poll = self._plan.poll_interval * random.uniform(0.9, 1.1)  # noqa: S311 - nobody's secret
        status, seconds = more or ("", 0.0)
        if status == "now" or (found and found >= free):
            self._look_again = True
        self._soons = min(self._soons + 1, 20) if status == "soon" and not found else 0
        if status == "soon":
            poll = min(poll, _SOON * 1.5**self._soons, _LONGEST_SOON)
        elif status == "later":
            poll = min(poll, max(seconds, 0.001))
        if self._called:  # while the call was on its way, which may have been too early to see it
            poll = min(poll, self._haste())
        self._look_at = self._loop.time() + poll

    # Handlers

    def _start(self, run: Run) -> None:
        self._runs.add(run)
        self._running[run.execution.action] += 1
        if self._stop.is_set():
            run.outcome = RELEASED  # claimed while we were told to stop
            self._done.append(run)
            self._woken.set()
        elif run.action.is_async:
            run.task = self._loop.create_task(self._run_async(run))
        else:
            self._threads.submit(partial(self._run_sync, run))

    async def _run_async(self, run: Run) -> None:
        run.outcome = await run.call_async()
        self._done.append(run)
        self._woken.set()

    def _run_sync(self, run: Run) -> None:
        run.outcome = run.call()
        self._done.append(run)
        if self._closed:
            self._let_go(run)
        elif not self._poked:
            self._poked = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._poke)

    def _poke(self) -> None:
        # In this order: what is appended before the flag falls is collected after the event.
        self._poked = False
        self._woken.set()

    def _collect(self) -> None:
        """Take note of the handlers that have ended."""
        while self._done:
            run = self._done.popleft()
            self._runs.discard(run)
            self._running[run.execution.action] -= 1
            if run.registration.dead or run.execution.cancel_reason == "lost":
                _log_lost(run)
                self._let_go(run)
            else:
                self._finished.append(run)

    def _let_go(self, run: Run) -> None:
        """Forget an execution whose outcome is not handed in."""
        held = run.registration.held
        with run.registration.lock:
            if held.get(run.execution.id) is run:
                del held[run.execution.id]

    def _interrupt(self, runs: Iterable[Run]) -> None:
        """Ask handlers to stop because the worker ends; tasks are told again if they were told before."""
        for run in list(runs):
            run.stop("shutdown")
            run.cancel_task()

    def _interrupt_later(self, runs: list[Any]) -> None:
        """Cancel the tasks of what was asked to stop; from any thread."""
        if runs:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_cancel_tasks, runs)

    # The heartbeat's thread

    def _registered(self, registration: Registration) -> None:
        self._loop.call_soon_threadsafe(self._take_registration, registration)

    def _take_registration(self, registration: Registration) -> None:
        self._registration = registration
        self._look_again = True
        # What ended under the old number is not ours to hand in.
        for run in (*self._finished, *self._refused):
            _log_lost(run)
        self._finished.clear()
        self._refused.clear()
        self._ready(registration.worker)
        self._woken.set()

    def _heart_failed(self, error: Exception) -> None:
        def take() -> None:
            self._failure = error
            self._woken.set()

        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(take)

    def _heart_ended(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._signed_off.set)

    # Other calls

    async def _connect(self) -> AsyncLink:
        return await AsyncLink.connect(self._plan.conninfo, pooled=self._plan.direct != self._plan.conninfo)

    async def _is_empty(self, now: float) -> bool:
        """Return whether nothing waits, runs or is held any more, here or elsewhere.

        What waits in a paused lane, or of a paused action, is not waited for.
        """
        if now < self._check_at or self._link is None:
            return False
        self._check_at = now + min(self._plan.poll_interval, _LONGEST_SOON)
        try:
            [(waiting, active)] = await self._link.rows(_LEFT, (self._names,))
            if active or not waiting:
                return not active
            [(startable,)] = await self._link.rows(_STARTABLE, (self._names,))
        except psycopg.Error as error:
            if not is_passing(error):
                raise translated(error) from None
            return False  # the next call says it and connects again
        if not startable:
            logger.warning("worker %s ends; %d executions wait in paused lanes", self._plan.name, waiting)
        return not startable


def _key(run: Run) -> tuple[int, int]:
    return run.execution.id, run.execution.attempt


def _as_json(run: Run) -> str:
    assert run.outcome is not None  # noqa: S101 - only what has ended is handed in
    return run.outcome.as_json(run.execution.id, run.execution.attempt)


def _cancel_tasks(runs: Iterable[Run]) -> None:
    for run in runs:
        run.cancel_task()


def _log_lost(run: Run) -> None:
    kind = run.outcome.kind if run.outcome is not None else "unknown"
    logger.warning(
        "%s was lost to another worker; its outcome (%s) counts for nothing", run, kind, extra=run.ids()
    )
