"""What a worker does all day: hand in what has finished and claim what to run next, one call after the other.

Completions that gather while a call is on its way go into the next one, so the busier a worker is, the fewer
calls it makes per execution; an idle one makes them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import psycopg

from pgfifo._claims import Claims
from pgfifo._connections import Pauses, is_passing
from pgfifo._hooks import Hooks
from pgfifo._listener import Listener
from pgfifo._pace import LONGEST_SOON, SOON, Pace
from pgfifo._plan import Plan
from pgfifo._run import CURRENT, ROLLED_BACK, Run
from pgfifo._threads import Threads
from pgfifo._together import Together
from pgfifo._watching import LEAST_PATIENCE, Health
from pgfifo._words import count
from pgfifo.command import Command, kept
from pgfifo.errors import LeaseLost
from pgfifo.execution import Execution
from pgfifo.heartbeat import Heartbeat, Held, Registration
from pgfifo.outcome import RELEASED

logger = logging.getLogger("pgfifo")

CANCEL_GRACE = 5.0
"""Seconds that handlers have to end in when they were interrupted at the end of ``shutdown_timeout``."""
KILL_GRACE = 1.0
"""Seconds after that, for commands that were killed then."""
KILL_AFTER = 10.0
"""Seconds that handlers have to end in when their time is up, where the policy does not say."""

_NAMED = 20
_BATCH = 1000
_BATCH_BYTES = 4 * 1024 * 1024
_PATIENCE_TO_BEGIN = 2.0
_SIGN_OFF_TIMEOUT = 5.0
# A mark that was committed late is found within a second: see the scans.
_BELIEVED_AFTER = 1.5
_PULSE = 1.0


class Engine:
    """One run of a worker, in one event loop."""

    claims: type[Claims] = Claims
    heartbeat: type[Heartbeat] = Heartbeat

    def __init__(
        self,
        plan: Plan,
        *,
        ready: Callable[[int], None],
        overdue: Callable[[list[Run | Together]], None],
        deadly: bool,
    ) -> None:
        """Prepare it.

        Args:
            plan: What to do.
            ready: Called with the worker's id when it is registered, and again when it had to register anew.
            overdue: Called when executions still run after all that could be done to end them.
            deadly: Whether that ends the process, and so is a way to end what overran its time.
        """
        self._plan = plan
        self._ready = ready
        self._overdue = overdue
        self._deadly = deadly
        self._watch = plan.watch
        self._names = list(plan.actions)
        self._heartbeat = self.heartbeat(
            plan.identity(),
            registered=self._registered,
            failed=self._heart_failed,
            ended=self._heart_ended,
            stopping=self._interrupt_later,
        )
        self._threads = Threads(plan.concurrency, f"pgfifo-{plan.name}")
        self._hooks = Hooks(f"pgfifo-{plan.name}")
        self._listener: Listener | None = None
        self._claims = self.claims(plan)
        self._registration: Registration | None = None
        self._failure: Exception | None = None

        self._runs: set[Run | Together] = set()  # whose handlers run, also those that are no longer ours
        self._running: Counter[str] = Counter()  # by action
        self._done: deque[Run | Together] = deque()  # appended to by handlers' threads
        self._finished: deque[Run] = deque()  # to hand in
        self._refused: list[Run] = []  # to hand in again, then:
        self._refused_until = 0.0

        self._woken = asyncio.Event()
        self._poked = False
        self._stop = asyncio.Event()
        self._signed_off = asyncio.Event()
        self._closed = False
        self._doomed: set[Run | Together] = set()  # that only the end of the process can end
        self._only_doomed = asyncio.Event()

        self._check_at = 0.0  # when to look whether all is done
        self._quiet = False  # whether the last call has found nothing to start now
        self._quiet_until = math.inf  # when to believe that where it looks otherwise
        self._pulse = time.monotonic()  # when the loop was last seen to go on

    # Life

    async def run(self) -> None:
        """Work until told to stop, or until nothing is left if that was the plan.

        Raises:
            psycopg.Error: What cannot be got over, such as a schema that is not there.
        """
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(self._plan.poll_interval, self._loop.time)
        self._go_on()
        if self._watch is not None:
            self._watch.begin(self._plan.concurrency)
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
                self._pulse_timer.cancel()
                if self._watch is not None:
                    self._watch.end(self._plan.concurrency)

    def stop(self) -> None:
        """Claim no more and end when what runs has ended. Call it in the loop's thread."""
        self._stop.set()
        self._woken.set()

    @property
    def running(self) -> list[Execution]:
        """What runs now."""
        return [run.execution for runs in list(self._runs) for run in runs.members]

    @property
    def health(self) -> Health:
        """How it is; from any thread."""
        now, lease = time.monotonic(), self._plan.lease
        if now - min(self._pulse, self._heartbeat.pulse) > max(lease, LEAST_PATIENCE):
            return "stuck"
        registration = self._registration
        if registration is None or registration.dead or self._stop.is_set():
            return "live"
        return "ready" if now - self._heartbeat.heard <= lease else "live"

    def _go_on(self) -> None:
        self._pulse = time.monotonic()
        self._pulse_timer = self._loop.call_later(_PULSE, self._go_on)

    async def _begin(self) -> None:
        self._heartbeat.start()
        while self._registration is None and self._failure is None and not self._stop.is_set():
            await self._pause(None)
            self._woken.clear()
        if self._failure is not None:
            raise self._failure
        if self._stop.is_set():
            return
        await _insist(self._claims.connect)
        if self._plan.direct is not None:
            self._listener = Listener(self._plan.direct, self._names, self._notified, self._called)
            await _insist(self._listener.connect)

    async def _supervise(self, serving: asyncio.Task[None]) -> None:
        """Wait for the end of the work; once told to stop, for a limited time."""
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        if self._stop.is_set() and self._runs:
            logger.info(
                "worker %s waits up to %g s for %s: %s",
                self._plan.name,
                self._plan.shutdown_timeout,
                count(len(self._runs), "execution"),
                _named(self._runs),
            )
        only_doomed = asyncio.create_task(self._only_doomed.wait())
        ends = {serving, only_doomed}
        for patience in (self._plan.shutdown_timeout, CANCEL_GRACE):
            if not serving.done():
                await asyncio.wait(ends, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                self._interrupt(self._runs)
        if not serving.done():
            await asyncio.wait(ends, timeout=KILL_GRACE, return_when=asyncio.FIRST_COMPLETED)
        only_doomed.cancel()
        if not serving.done() and self._runs:
            if not self._only_doomed.is_set():
                logger.error(
                    "%s %g s after worker %s was to stop: %s",
                    count(len(self._runs), "execution still runs", "executions still run"),
                    self._plan.shutdown_timeout,
                    self._plan.name,
                    _named(self._runs),
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
            left = count(len(self._finished) + len(self._refused), "outcome")
            logger.warning("%s could not be handed in", left)
        for run in (*self._finished, *self._refused):
            self._let_go(run)
        self._threads.close()
        await self._hooks.finish(CANCEL_GRACE)
        if self._listener is not None:
            await self._listener.close()
        self._heartbeat.close()
        if not self._runs:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SIGN_OFF_TIMEOUT):
                    await self._signed_off.wait()
        await self._claims.close()

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
                await asyncio.sleep(SOON)
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
            if to_hand_in or (free > 0 and self._pace.due):
                await self._call(registration, free)
            elif self._refused or self._runs:
                if self._doomed and not self._refused and self._runs <= self._doomed:
                    self._only_doomed.set()
                await self._rest(free)
            elif self._stop.is_set():
                return
            elif self._plan.until_idle and self._quiet:
                if now >= self._quiet_until or not await self._claims.is_startable():
                    return
                await self._rest(free)
            elif self._plan.until_empty and now >= self._check_at:
                self._check_at = now + min(self._plan.poll_interval, LONGEST_SOON)
                if await self._claims.is_empty():
                    return
            else:
                await self._rest(free)

    async def _rest(self, free: int) -> None:
        """Sleep until something happens."""
        deadlines = []
        if free > 0:
            if self._listener is not None and await self._listener.fall_asleep(self._open_actions()):
                self._pace.at_once()  # what came before we were asleep has woken nobody
                return
            deadlines.append(self._pace.at)
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

    @property
    def _full(self) -> bool:
        return len(self._runs) >= self._plan.concurrency

    def _open_actions(self) -> list[str]:
        caps = self._plan.caps
        return [name for name in self._names if name not in caps or self._running[name] < caps[name]]

    def _notified(self) -> None:
        self._pace.call()
        self._woken.set()

    def _called(self, worker: str) -> None:
        if self._registration is not None and worker == str(self._registration.worker):
            self._heartbeat.beat_now()

    # One call

    async def _call(self, registration: Registration, free: int) -> None:
        """Hand in what has finished and claim up to so many."""
        batch = self._take_batch()
        self._pace.begin()
        begun = 0.0 if self._watch is None else time.perf_counter()
        try:
            answer = await self._claims.call(registration, free, self._running, batch)
        except LeaseLost:
            self._heartbeat.declared_dead(registration)
            for run in batch:
                self._lose(run)
            return
        except BaseException:  # also a cancellation: what was to be handed in is not lost by it
            self._finished.extendleft(reversed(batch))
            raise
        if self._watch is not None:
            self._watch.called(time.perf_counter() - begun)
            for run in batch:
                if run.key not in answer.refused and run.outcome is not None:
                    outcome = run.outcome.kind if run.outcome.count else "postponed"
                    self._watch.finished(run.execution.action, outcome)
        # A batch is one of those that run at once.
        starting = list(dict.fromkeys(run.together or run for run in answer.starts))
        self._pace.end(free, len(starting), answer.status, answer.seconds)
        self._quiet = not answer.starts and (not answer.status or answer.seconds > SOON)
        if not self._quiet or answer.status:
            self._quiet_until = math.inf if not self._quiet else self._loop.time()
        elif self._quiet_until == math.inf:
            self._quiet_until = self._loop.time() + _BELIEVED_AFTER
        with registration.lock:
            if registration.dead:
                return  # what was claimed is taken back, as is everything else
            registration.arrived = registration.calls
            for run in batch:
                if answer.refused.get(run.key) != "retry":
                    registration.forget(run.execution.id, run)
            doubles = [registration.held.get(run.execution.id) for run in answer.starts]
            for run in answer.starts:
                registration.held[run.execution.id] = run
        # An older attempt that was taken from us and has come back as a new one.
        self._interrupt_later([run for run in doubles if run is not None and run.stop("lost")])
        if answer.refused:
            self._put_aside([run for run in batch if answer.refused.get(run.key) == "retry"])
            for run in batch:
                refused = answer.refused.get(run.key)
                if refused == "lost":
                    self._lose(run)
                elif refused == "unstarted":
                    if self._watch is not None:
                        self._watch.finished(run.execution.action, "released")
                    said = "%s goes back to its place: one before it in its batch has failed"
                    logger.info(said, run, extra=run.ids())
        for each in starting:
            self._start(each)
        # Who has room left sleeps on, and hears of what comes; who is full, or looks again at once, need not.
        if answer.starts and self._listener is not None and (self._full or self._pace.due):
            await self._listener.wake_up()
        failed = [
            run
            for run in batch
            if run.outcome is not None
            and run.outcome.kind == "failed"
            and run.outcome.count
            and run.key not in answer.refused
        ]
        if failed:
            await self._call_hooks(failed)

    async def _call_hooks(self, failed: list[Run]) -> None:
        """Call the hooks of attempts whose failure is on record."""
        asking = [run for run in failed if run.action.on_exhausted or run.execution.completed]
        states = await self._claims.states(run.key for run in asking) if asking else {}
        for run in failed:
            state = states.get(run.key)
            if run.execution.completed:
                if state in ("succeeded", None):
                    continue  # what its handler has committed counts
                if run.outcome is ROLLED_BACK:
                    run.log_failure(ROLLED_BACK)
            hooks = run.action.on_failed
            if state == "failed":
                hooks += run.action.on_exhausted
            if hooks:
                self._hooks.call(run, hooks, run.failure())

    def _take_batch(self) -> list[Run]:
        if self._refused and self._loop.time() >= self._refused_until:
            self._finished.extend(self._refused)
            self._refused.clear()
        batch: list[Run] = []
        size = 0
        while self._finished and len(batch) < _BATCH and size < _BATCH_BYTES:
            run = self._finished.popleft()
            if run.registration.held.get(run.execution.id) is not run:
                self._lose(run)  # it was taken from us, and has come back as a new attempt
                continue
            batch.append(run)
            if run.outcome is not None and run.outcome.result is not None:
                size += len(run.outcome.result)
        return batch

    def _put_aside(self, runs: list[Run]) -> None:
        """Keep outcomes that could not be taken, because their lanes were locked, for a moment."""
        if runs:
            for run in runs:
                run.refused += 1
            self._refused.extend(runs)
            times = min(run.refused for run in runs)
            self._refused_until = self._loop.time() + min(SOON * 2.0 ** (times - 1), LONGEST_SOON)

    # Handlers

    def _start(self, run: Run | Together) -> None:
        self._runs.add(run)
        self._running[run.execution.action] += 1
        if self._watch is not None:
            self._watch.started(run)
        if self._stop.is_set():
            run.end(RELEASED)  # claimed while we were told to stop
            self._done.append(run)
            self._woken.set()
            return
        if run.execution.timeout is not None:
            run.timer = self._loop.call_later(run.execution.timeout, self._overrun, run)
        if run.action.is_async:
            run.task = self._loop.create_task(self._run_async(run))
        else:
            self._threads.submit(partial(self._run_sync, run))

    def _overrun(self, run: Run | Together) -> None:
        """Tell a run whose time is up to stop; it keeps its slot until it has."""
        if run.outcome is not None:
            return
        run.overran = True
        run.stop("timeout")
        run.cancel_task()
        logger.warning("%s is over its %g s and told to stop", run, run.execution.timeout, extra=run.ids())
        patience = KILL_AFTER if run.execution.kill_after is None else run.execution.kill_after
        if patience < math.inf and not isinstance(run.action.handler, Command):  # which kills by itself
            run.timer = self._loop.call_later(patience, self._doom, run, patience)

    def _doom(self, run: Run | Together, patience: float) -> None:
        """Have the process end, where we may, because a run does not."""
        if run.outcome is not None:
            return
        so = "; the worker stops, and then the process ends" if self._deadly else ""
        logger.error("%s still runs %g s after its time was up%s", run, patience, so, extra=run.ids())
        if self._deadly:
            self._doomed.add(run)
            self.stop()

    async def _run_async(self, run: Run | Together) -> None:
        CURRENT.set(run)
        begun = 0.0 if self._watch is None else time.perf_counter()
        run.outcome = await run.call_async()
        if self._watch is not None:
            self._watch.ran(run.execution.action, time.perf_counter() - begun)
        CURRENT.set(None)  # or the run, its task and that one's context would keep each other alive
        self._done.append(run)
        self._woken.set()

    def _run_sync(self, run: Run | Together) -> None:
        CURRENT.set(run)  # in a context of its own: see Threads
        begun = 0.0 if self._watch is None else time.perf_counter()
        run.outcome = run.call()
        if self._watch is not None:
            self._watch.ran(run.execution.action, time.perf_counter() - begun)
        self._done.append(run)
        if self._closed:
            for each in run.members:
                self._let_go(each)
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
            if self._watch is not None:
                self._watch.ended(run.execution.action)
            if run.timer is not None:
                run.timer.cancel()
            for each in run.members:
                if each.registration.dead or each.execution.cancel_reason == "lost":
                    self._lose(each)
                    self._let_go(each)
                else:
                    self._finished.append(each)

    def _lose(self, run: Run) -> None:
        """Say that an outcome counts for nothing, unless the handler has committed it itself."""
        if run.execution.completed:
            return
        kind = run.outcome.kind if run.outcome is not None else "unknown"
        logger.warning("%s was lost; its outcome (%s) counts for nothing", run, kind, extra=run.ids())
        if self._watch is not None:
            self._watch.finished(run.execution.action, "lost")

    def _let_go(self, run: Run) -> None:
        """Forget an execution whose outcome is not handed in."""
        with run.registration.lock:
            run.registration.forget(run.execution.id, run)

    def _interrupt(self, runs: Iterable[Run | Together]) -> None:
        """Ask handlers to stop because the worker ends; tasks are told again if they were told before."""
        for run in list(runs):
            run.stop("shutdown")
            run.cancel_task()

    def _interrupt_later(self, runs: Sequence[Held]) -> None:
        """Cancel the tasks of what was asked to stop; from any thread."""
        if runs:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_cancel_tasks, runs)

    # The heartbeat's thread

    def _registered(self, registration: Registration) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take_registration, registration)

    def _take_registration(self, registration: Registration) -> None:
        self._registration = registration
        self._pace.at_once()
        # What ended under the old number is not ours to hand in.
        for run in (*self._finished, *self._refused):
            self._lose(run)
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


def _cancel_tasks(runs: Iterable[Held]) -> None:
    for run in runs:
        run.cancel_task()


def _named(runs: Iterable[Run | Together]) -> str:
    """Name executions; many of them by the first."""
    ids = sorted(run.execution.id for each in runs for run in each.members)
    return ", ".join(map(str, ids[:_NAMED])) + (", …" if len(ids) > _NAMED else "")


async def _insist(connect: Callable[[], Awaitable[object]]) -> None:
    """Connect, if need be again for a while: the server was there a moment ago."""
    pauses = Pauses()
    until = asyncio.get_running_loop().time() + _PATIENCE_TO_BEGIN
    while True:
        try:
            await connect()
        except psycopg.Error as error:
            if not is_passing(error) or asyncio.get_running_loop().time() > until:
                raise
            await asyncio.sleep(pauses.next())
        else:
            return
