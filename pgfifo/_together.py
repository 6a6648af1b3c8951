"""A batch in the hands of this process: consecutive executions of one lane, for one call of a handler."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any

from pgfifo._around import called
from pgfifo._run import ROLLED_BACK, Run
from pgfifo.execution import ExecutionCancelled
from pgfifo.outcome import CANCELLED, NO_RESULT, RELEASED, Outcome

if TYPE_CHECKING:
    from pgfifo._around import Middleware
    from pgfifo.actions import Action
    from pgfifo.execution import Execution, Reason
    from pgfifo.heartbeat import Registration

logger = logging.getLogger("pgfifo")

Steps = Generator[None, Any, None] | AsyncGenerator[None, Any]
"""A middleware that is under way around one execution."""


class Together:
    """Runs that are one call of a handler. To the engine it is what a `Run` is, and counts as one.

    Attributes:
        members: The runs, in the order of their lane; each has an outcome of its own when the call has ended.
        action: What runs them.
        registration: The worker's life in which they were claimed.
        task: The task of an async handler.
        started: Whether the handler was called.
        timer: What ends its time, or comes after that.
        outcome: None while it runs.
    """

    __slots__ = ("action", "members", "outcome", "registration", "started", "task", "timer")

    def __init__(self, members: list[Run]) -> None:
        self.members = members
        self.action: Action = members[0].action
        self.registration: Registration = members[0].registration
        self.task: asyncio.Task[None] | None = None
        self.started = False
        self.timer: asyncio.TimerHandle | None = None
        self.outcome: Outcome | None = None
        for member in members:
            member.together = self

    @property
    def execution(self) -> Execution:
        """The first of them: all are of one lane, and have the same time limit."""
        return self.members[0].execution

    @property
    def overran(self) -> bool:
        """Whether its time is up."""
        return self.members[0].overran

    @overran.setter
    def overran(self, value: bool) -> None:
        for member in self.members:
            member.overran = value

    def end(self, outcome: Outcome) -> None:
        """Give all of them the same outcome, without a call."""
        for member in self.members:
            member.outcome = outcome
        self.outcome = outcome

    def stop(self, reason: Reason) -> bool:
        """Ask all of them to stop, from any thread."""
        told = [member.stop(reason) for member in self.members]
        return any(told)

    def cancel_task(self) -> None:
        """Raise CancelledError in an async handler, when there is no member left that is to go on."""
        if self.task is not None and self.started and self.outcome is None:
            unsaid = [run.execution for run in self.members if run.execution.said is None]
            if unsaid and all(execution.cancel_reason is not None for execution in unsaid):
                self.task.cancel()

    def ids(self) -> dict[str, object]:
        """Return what says which execution is the first, as attributes of a log record."""
        return self.members[0].ids()

    def __str__(self) -> str:
        more = len(self.members) - 1
        return f"{self.members[0]}{f' with {more} more of its batch' if more else ''}"

    # The call

    def call(self) -> Outcome:
        """Run a sync handler; raises nothing."""
        running = self._run(self._call)
        try:
            running.send(None)
        except StopIteration:
            return NO_RESULT
        raise AssertionError("a sync handler's middleware is sync")  # the registry sees to that

    async def call_async(self) -> Outcome:
        """Run an async handler; raises nothing."""
        await self._run(self._call_async)
        return NO_RESULT

    async def _call(self, runs: list[Run], payloads: list[Any]) -> object:
        result = self._handle(runs, payloads)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise TypeError("the handler is not async and returned an awaitable; nothing has awaited it")
        return result

    async def _call_async(self, runs: list[Run], payloads: list[Any]) -> object:
        return await self._handle(runs, payloads)

    def _handle(self, runs: list[Run], payloads: list[Any]) -> Any:  # noqa: ANN401 - what the handler returns
        assert self.action.many is not None  # noqa: S101 - only such actions have batches
        return self.action.many([run.execution for run in runs], payloads)

    async def _run(self, handle: Callable[[list[Run], list[Any]], Awaitable[object]]) -> None:
        """Call the handler with the members up to the first that cannot go, each in its own middleware."""
        ends: dict[Run, object] = {}
        around: dict[Run, list[tuple[Middleware, Steps]]] = {}
        going: list[Run] = []
        payloads: list[Any] = []
        for run in self.members:
            if run.execution.cancel_reason is not None:
                ends[run] = ExecutionCancelled(run.execution.cancel_reason)
                continue
            around[run] = []
            try:
                await _enter(self.action.middleware, run.execution, around[run])
                payload = self.action.many.payload(run.execution) if self.action.many is not None else None
            except BaseException as error:  # noqa: BLE001 - what is raised here is the failure of that one
                ends[run] = error
                break
            going.append(run)
            payloads.append(payload)
        if going:
            self.started = True
            try:
                result = await handle(going, payloads)
            except BaseException as error:  # noqa: BLE001 - SystemExit in a handler is its failure, not our end
                self._note(going, ends, error)
            else:
                self._note(going, ends, None, result)
        for run in reversed(self.members):  # as they are nested
            end = ends.get(run, RELEASED)
            run.outcome = await self._finished(run, end, around.get(run, []))

    def _note(
        self, runs: list[Run], ends: dict[Run, object], error: BaseException | None, result: object = None
    ) -> None:
        """Note how each of those ended that the handler was called with: an outcome, an error or a result."""
        for run in runs:
            if run.execution.said is not None:
                ends[run] = run.execution.said[0]
            elif run.execution.completed:
                ends[run] = ROLLED_BACK  # if that was committed, it has succeeded whatever is handed in now
        listed = result if isinstance(result, list | tuple) and len(result) == len(runs) else None
        if error is None and listed is not None and not self.overran:
            for run, one in zip(runs, listed, strict=True):
                ends.setdefault(run, one)
            return
        unsaid = [run for run in runs if run not in ends]
        if error is None and result is None and not self.overran:
            ends |= dict.fromkeys(unsaid, NO_RESULT)
            return
        if error is None:
            error = TimeoutError() if self.overran else TypeError(_odd_result(result, len(runs)))
        stopping = isinstance(error, asyncio.CancelledError) or self.overran
        asked = [run for run in unsaid if run.execution.cancel_reason is not None] if stopping else []
        if asked:
            for run in unsaid:
                if run.execution.cancel_reason == "cancel":
                    ends[run] = CANCELLED
            rest = [run for run in unsaid if run not in ends]
            if self.overran and rest:
                ends[rest[0]] = ExecutionCancelled("timeout")
        elif unsaid:
            ends[unsaid[0]] = error
        else:
            said = "%s: the handler raised when all of the batch had an outcome"
            logger.error(said, self, exc_info=error, extra=self.ids())

    async def _finished(self, run: Run, end: object, around: list[tuple[Middleware, Steps]]) -> Outcome:
        """Return the outcome of a member, after its middleware has been told of its end."""
        while around:
            middleware, steps = around.pop()
            try:
                await _leave(middleware, steps, run, end)
            except BaseException as error:  # noqa: BLE001 - it is the failure of this one
                if error is not end:
                    end = error
        if isinstance(end, asyncio.CancelledError):
            return run.cancelled(end)
        if isinstance(end, BaseException):
            return run.raised(end)
        return run.succeeded(end)


async def _enter(
    middleware: list[Middleware], execution: Execution, around: list[tuple[Middleware, Steps]]
) -> None:
    for each in middleware:
        steps = each(execution)
        assert isinstance(steps, Generator | AsyncGenerator)  # noqa: S101 - the registry refuses everything else
        try:
            await anext(steps) if isinstance(steps, AsyncGenerator) else next(steps)
        except (StopIteration, StopAsyncIteration):
            raise RuntimeError(
                f"the middleware {called(each)} ended before its yield; the handler was not called"
            ) from None
        around.append((each, steps))


async def _leave(middleware: Middleware, steps: Steps, run: Run, end: object) -> None:
    """Tell a middleware how the execution has ended; raises what it raises."""
    error: BaseException | None = None
    if isinstance(end, BaseException):
        error = end
    elif isinstance(end, Outcome) and end.kind == "failed" and end is not ROLLED_BACK:
        error = run.failure_of(end)
    elif isinstance(end, Outcome) and end.kind == "cancelled":
        error = ExecutionCancelled("cancel")
    elif isinstance(end, Outcome) and end.kind == "released":
        await _close(steps)  # nobody has come to it
        return
    try:
        if error is not None:
            await steps.athrow(error) if isinstance(steps, AsyncGenerator) else steps.throw(error)
        else:
            result = None if isinstance(end, Outcome) else end
            await steps.asend(result) if isinstance(steps, AsyncGenerator) else steps.send(result)
    except (StopIteration, StopAsyncIteration):
        return
    except BaseException as raised:
        if raised is not error:
            raise
        return
    await _close(steps)
    if error is None:
        raise RuntimeError(f"the middleware {called(middleware)} yields more than once")


async def _close(steps: Steps) -> None:
    if isinstance(steps, AsyncGenerator):
        await steps.aclose()
    else:
        steps.close()


def _odd_result(result: object, count: int) -> str:
    got = f"{len(result)} results" if isinstance(result, list | tuple) else f"a {type(result).__name__}"
    return f"the handler returned {got} for {count} executions; it returns a list with one for each, or None"
