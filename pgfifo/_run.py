"""One execution in the hands of this process."""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from pgfifo._around import run_around, run_around_async
from pgfifo.errors import ExecutionFailed, InvalidPayload
from pgfifo.groups import lane
from pgfifo.outcome import CANCELLED, RELEASED, Outcome, asked, failed, succeeded
from pgfifo.outcome import raised as _raised
from pgfifo.retrying import Abort, Retry

if TYPE_CHECKING:
    from types import TracebackType

    from pgfifo._together import Together
    from pgfifo.actions import Action
    from pgfifo.execution import Execution, Progress, Reason
    from pgfifo.heartbeat import Registration

logger = logging.getLogger("pgfifo")

CURRENT: ContextVar[Run | Together | None] = ContextVar("pgfifo_current", default=None)
"""What this thread or task runs."""

_OUR_FILES = {__file__, str(Path(__file__).with_name("_around.py"))}


ROLLED_BACK = failed("the handler called complete in a transaction that was rolled back, and returned")


class Run:
    """An execution that was claimed, from its start until its outcome was handed in.

    Attributes:
        execution: What the handler sees.
        action: What runs it.
        registration: The worker's life in which it was claimed.
        task: The task of an async handler.
        started: Whether the handler was called.
        timer: What ends its time, or comes after that.
        overran: Whether its time is up.
        outcome: How it ended; None while it runs.
        error: What the handler raised, where a hook asks for it.
        refused: How often its outcome could not be taken yet.
        told: The progress that was passed on last.
        together: The batch that it is a member of, if it is one.
    """

    __slots__ = (
        "action",
        "error",
        "execution",
        "outcome",
        "overran",
        "refused",
        "registration",
        "started",
        "task",
        "timer",
        "together",
        "told",
    )

    def __init__(self, execution: Execution, action: Action, registration: Registration) -> None:
        self.execution = execution
        self.action = action
        self.registration = registration
        self.task: asyncio.Task[None] | None = None
        self.started = False
        self.timer: asyncio.TimerHandle | None = None
        self.overran = False
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self.refused = 0
        self.told: Progress | None = None
        self.together: Together | None = None

    @property
    def members(self) -> list[Run]:
        """What is handed in of it when it has ended."""
        return [self]

    def end(self, outcome: Outcome) -> None:
        """Give it an outcome without a call."""
        self.outcome = outcome

    @property
    def key(self) -> tuple[int, int]:
        """The execution's id and the attempt."""
        return self.execution.id, self.execution.attempt

    def stop(self, reason: Reason) -> bool:
        """Ask it to stop, from any thread; false if there is nobody to tell, or he knows already."""
        execution = self.execution
        if self.outcome is not None:
            return False
        known = execution.cancel_reason is not None
        if not known or reason == "lost":
            execution.cancel_reason = reason
        return not known

    def cancel_task(self) -> None:
        """Raise CancelledError in an async handler; one that has not begun sees for itself."""
        if self.together is not None:
            self.together.cancel_task()
        elif self.task is not None and self.started and self.outcome is None:
            self.task.cancel()

    def progress(self) -> tuple[int, float | None, str | None] | None:
        """Return the attempt and its progress, if that was not passed on yet; from any thread."""
        last = self.execution.last_progress
        if last is None or last == self.told or self.outcome is not None:
            return None
        return self.execution.attempt, *last

    def call(self) -> Outcome:
        """Run a sync handler; raises nothing."""
        if self.execution.cancel_reason is not None:
            return self._stopped()
        self.started = True
        try:
            handler, middleware = self.action.call or self.action.handler, self.action.middleware
            if middleware:
                result = run_around(middleware, handler, self.execution)
            else:
                result = handler(self.execution)
            if inspect.isawaitable(result):
                return self._told(_never_awaited(result))
            return self._ended(result)
        except asyncio.CancelledError as error:
            return self.cancelled(error)
        except BaseException as error:  # noqa: BLE001 - SystemExit in a handler is its failure, not our end
            return self.raised(error)

    async def call_async(self) -> Outcome:
        """Run an async handler; raises nothing."""
        if self.execution.cancel_reason is not None:
            return self._stopped()
        self.started = True
        try:
            handler, middleware = self.action.call or self.action.handler, self.action.middleware
            if middleware:
                return self._ended(await run_around_async(middleware, handler, self.execution))
            return self._ended(await handler(self.execution))
        except asyncio.CancelledError as error:
            return self.cancelled(error)
        except BaseException as error:  # noqa: BLE001 - as above
            return self.raised(error)

    def _ended(self, result: object) -> Outcome:
        if self.execution.completed:
            # If that was committed, it has succeeded whatever is handed in now. If not, nothing was done.
            return ROLLED_BACK
        if self.overran:
            return self._timed_out()
        return self.succeeded(result)

    def succeeded(self, result: object) -> Outcome:
        """Return the outcome of one whose handler returned this for it: a result, or an outcome."""
        outcome = succeeded(result)
        return self._told(outcome) if outcome.kind == "failed" and outcome is not ROLLED_BACK else outcome

    def cancelled(self, error: asyncio.CancelledError) -> Outcome:
        """Return the outcome of one whose handler was cancelled."""
        if self.execution.cancel_reason is None:
            return self.raised(error)  # nobody asked for it: something that the handler waited for
        return self._stopped()

    def _stopped(self) -> Outcome:
        if self.overran and self.execution.cancel_reason in ("timeout", "cancel"):
            return self._timed_out()
        return CANCELLED if self.execution.cancel_reason == "cancel" else RELEASED

    def _timed_out(self) -> Outcome:
        said = f"it ran for longer than its time limit of {self.execution.timeout:g} s"
        self.error = TimeoutError(said)
        return failed(f"TimeoutError: {said}")

    def raised(self, error: BaseException) -> Outcome:
        """Return the outcome of one whose handler raised this, and log it."""
        if isinstance(error, InvalidPayload) and error.id == self.execution.id:
            self.error = error
            return self._told(failed(f"InvalidPayload: {error.message}", retry=False))
        if isinstance(error, Retry | Abort):
            return self._asked(error)
        error.__traceback__ = _without_ours(error.__traceback__)
        said = "%s raised after it had called complete" if self.execution.completed else "%s failed"
        logger.error(said, self, exc_info=error, extra=self.ids())
        outcome = _raised(error)
        if self.action.on_failed or self.action.on_exhausted:
            self.error = error
        else:
            error.__traceback__ = None  # it holds the handler's locals
        return outcome

    def _asked(self, error: Retry | Abort) -> Outcome:
        outcome = asked(error)
        error.__traceback__ = None  # it holds the handler's locals
        if not outcome.count:
            logger.info("%s is put off: %s", self, outcome.error or "not now", extra=self.ids())
            return outcome
        self.error = error
        return self._told(outcome)

    def _told(self, outcome: Outcome) -> Outcome:
        self.log_failure(outcome)
        return outcome

    def log_failure(self, outcome: Outcome) -> None:
        """Log a failure that is told in words."""
        logger.warning("%s failed: %s", self, outcome.error, extra=self.ids())

    def failure(self) -> BaseException:
        """Return the error of an attempt that failed, for the hooks."""
        return self.error or self.failure_of(self.outcome)

    def failure_of(self, outcome: Outcome | None) -> BaseException:
        """Return an error for a failure that is told in words."""
        said = outcome.error if outcome is not None else None
        id_ = self.execution.id
        return ExecutionFailed(
            f"{self} failed: {said}", detail={"id": id_, "outcome": "failed", "error": said}
        )

    def ids(self) -> dict[str, object]:
        """Return what says which execution it is, as attributes of a log record."""
        execution = self.execution
        ids: dict[str, object] = {
            "pgfifo_id": execution.id,
            "pgfifo_attempt": execution.attempt,
            "pgfifo_action": execution.action,
            "pgfifo_group": execution.group_text,
            "pgfifo_worker": self.registration.worker,
        }
        if execution.trace is not None:
            ids["trace_id"], ids["span_id"] = execution.trace
        return ids

    def __str__(self) -> str:
        execution = self.execution
        where = lane(execution.action, execution.group_text)
        return f"execution {execution.id} ({where}), attempt {execution.attempt},"


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback from the first frame on that is not of this package's calls."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename in _OUR_FILES:
        traceback = traceback.tb_next
    return traceback


def _never_awaited(result: object) -> Outcome:
    if inspect.iscoroutine(result):
        result.close()
    return failed("TypeError: the handler is not async and returned an awaitable; nothing has awaited it")
