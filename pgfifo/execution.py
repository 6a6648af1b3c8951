"""The execution that a handler is given."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Literal, overload

import psycopg

from pgfifo._unwrap import unwrap, unwrap_async
from pgfifo.errors import InvalidValue, PayloadTooLarge, translated
from pgfifo.groups import lane, parse
from pgfifo.jsontext import dumps
from pgfifo.outcome import NO_RESULT, RESULT_LIMIT, failed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping
    from datetime import datetime

Reason = Literal["cancel", "lost", "shutdown", "timeout"]
"""Why to stop: somebody cancelled it, it is no longer this worker's, the worker ends, or its time is up."""

Progress = tuple[float | None, str | None]
"""A fraction from 0 to 1, and a message."""

_UNREAD = object()
_COMPLETE = "select pgfifo.complete(%s, %s, %s::jsonb)"


class ExecutionCancelled(asyncio.CancelledError):
    """Raised by `Execution.raise_if_cancelled` to end the handler.

    Like asyncio's error, which it is too, it is no `Exception`: an ``except Exception`` does not swallow it.
    """


class Execution:
    """One start of one execution, as its handler sees it.

    Attributes:
        id: The execution.
        attempt: Which start of it this is, counted from 1.
        token: Epoch, id and attempt in one text, for whatever must reject a worker that lost its lease: of
            two tokens of an execution the one with the higher attempt is right.
        action: The action's name.
        group_text: The lane's group as text; empty if the action has none.
        payload_text: The payload as JSON text, with its numbers as exact as they were enqueued.
        tags: The execution's tags.
        enqueued_at: When it was enqueued, by the server's clock.
        wait_seconds: How long it waited for this start.
        timeout: How long this attempt may run, in seconds; None for no limit.
        kill_after: How long after that it is killed, in seconds, where the policy says so; else None.
        cancel_reason: None, or why it should stop: ``cancel``, ``lost``, ``shutdown`` or ``timeout``.
        completed: Whether `complete` was called; not whether its transaction was committed.
        last_progress: What `progress` was told last: the fraction and the message.
        in_batch: Whether a handler of batches has it, together with others or alone.
        said: What `succeed` or `fail` was told last, in a tuple of one.
        trace: The ids of this attempt's trace and span, where it is traced (`pgfifo.otel`).
    """

    __slots__ = (
        "__weakref__",
        "_headers",
        "_headers_text",
        "_payload",
        "action",
        "attempt",
        "cancel_reason",
        "completed",
        "enqueued_at",
        "group_text",
        "id",
        "in_batch",
        "kill_after",
        "last_progress",
        "payload_text",
        "said",
        "tags",
        "timeout",
        "token",
        "trace",
        "wait_seconds",
    )

    def __init__(
        self,
        id: int,  # noqa: A002 - its name everywhere
        attempt: int,
        token: str,
        action: str,
        group_text: str,
        payload_text: str,
        headers_text: str | None,
        tags: list[str] | None,
        enqueued_at: datetime,
        wait_seconds: float,
    ) -> None:
        self.id = id
        self.attempt = attempt
        self.token = token
        self.action = action
        self.group_text = group_text
        self.payload_text = payload_text
        self._payload: object = _UNREAD
        self._headers_text = headers_text
        self._headers: Mapping[str, Any] | None = None
        self.tags: tuple[str, ...] = tuple(tags) if tags else ()
        self.enqueued_at = enqueued_at
        self.wait_seconds = wait_seconds
        self.timeout: float | None = None
        self.kill_after: float | None = None
        self.cancel_reason: Reason | None = None
        self.completed = False
        self.last_progress: Progress | None = None
        self.in_batch = False
        self.said: tuple[object] | None = None
        self.trace: tuple[str, str] | None = None

    @property
    def payload(self) -> Any:  # noqa: ANN401 - any JSON value
        """What was enqueued."""
        if self._payload is _UNREAD:
            self._payload = json.loads(self.payload_text)
        return self._payload

    @property
    def headers(self) -> Mapping[str, Any]:
        """What the producer sent along beside the payload."""
        if self._headers is None:
            value = json.loads(self._headers_text) if self._headers_text else {}
            self._headers = value if isinstance(value, dict) else {}
        return self._headers

    @property
    def group(self) -> Mapping[str, object]:
        """The lane's group by path, as ``{"env": "prod"}``; empty if there is none, or it is a free text."""
        group = parse(self.group_text)
        return group if isinstance(group, dict) else {}

    @property
    def cancel_requested(self) -> bool:
        """Whether the handler should stop; `cancel_reason` says why. Coroutines get a CancelledError, too."""
        return self.cancel_reason is not None

    def raise_if_cancelled(self) -> None:
        """End the handler here if it should stop.

        Raises:
            ExecutionCancelled: It should.
        """
        if self.cancel_reason is not None:
            raise ExecutionCancelled(self.cancel_reason)

    def progress(self, fraction: float | None = None, message: str | None = None) -> None:
        """Say how far the handler is, for whoever looks: ``pgfifo show``, `Client.execution`.

        It may be called as often as one likes, from any thread: it waits for nothing, and the worker passes
        on what was said last, about once a second.

        Args:
            fraction: From 0 to 1. Without it, what was said before stays.
            message: What is going on, up to 1,000 characters. Without it, what was said before stays.

        Raises:
            InvalidValue: The fraction is not a number from 0 to 1, or there is neither.
        """
        self.last_progress = progressed(self.last_progress, fraction, message)

    def succeed(self, result: object = None) -> None:
        """Say, in a handler of batches, that this one has succeeded; it is handed in when the handler ends.

        Args:
            result: The result, any JSON value. Defaults to none.

        Raises:
            InvalidValue: The handler is none of batches: it returns its result.
        """
        self._say("succeed", NO_RESULT if result is None else result)

    def fail(self, error: BaseException | str) -> None:
        """Say, in a handler of batches, that this one has failed; it is handed in when the handler ends.

        Where failures are held (``failure_mode = 'hold'``), nothing that is said of those behind it counts:
        they go back to their places.

        Args:
            error: What it failed of; a `Retry` or `Abort` as if it were raised.

        Raises:
            InvalidValue: The handler is none of batches: it raises its error.
        """
        self._say("fail", failed(error) if isinstance(error, str) else error)

    def _say(self, what: str, said: object) -> None:
        if not self.in_batch:
            raise InvalidValue(
                f"{what} is for handlers of batches; {self.action!r} has none",
                detail={"name": what, "action": self.action},
                hint="Return the result, or raise the error.",
            )
        self.said = (said,)

    @overload
    def complete(self, conn: psycopg.Connection[Any], result: object = None) -> None: ...
    @overload
    def complete(self, conn: psycopg.AsyncConnection[Any], result: object = None) -> Awaitable[None]: ...
    @overload
    def complete(self, conn: Any, result: object = None) -> Any: ...  # noqa: ANN401 - SQLAlchemy's, Django's
    def complete(self, conn: Any, result: object = None) -> Awaitable[None] | None:
        """Let the execution succeed within the handler's own transaction: writes and outcome commit together.

        Call it last, and commit. The lane is locked from the call to the commit. It has succeeded then,
        whatever happens to the handler, the worker, or the connection; its slot is given on when the handler
        has ended. If the transaction is rolled back instead, the attempt has failed.

        Args:
            conn: The connection or session whose transaction it is to be part of, at READ COMMITTED:
                psycopg's, SQLAlchemy's or Django's. With an asynchronous one, await the call.
            result: The result, any JSON value. Defaults to none.

        Raises:
            LeaseLost: The execution is not this worker's any more, or this attempt was completed before. Roll
                back.
            IsolationLevel: The transaction is not at READ COMMITTED.
            InvalidValue: The result is not JSON.
            PayloadTooLarge: The result has more than 1 MiB.
            Busy: Somebody's open transaction has held the lane for 5 seconds.
        """
        parameters = (self.id, self.attempt, None if result is None else _checked(self.action, result))
        if _is_async(conn):
            return self._complete(conn, parameters)
        try:
            unwrap(conn).execute(_COMPLETE, parameters)
        except psycopg.Error as error:
            raise translated(error) from None
        self.completed = True
        return None

    async def _complete(self, conn: object, parameters: tuple[object, ...]) -> None:
        try:
            await (await unwrap_async(conn)).execute(_COMPLETE, parameters)
        except psycopg.Error as error:
            raise translated(error) from None
        self.completed = True

    def __repr__(self) -> str:
        return f"<pgfifo.Execution {self.id} attempt {self.attempt} of {lane(self.action, self.group_text)}>"


def progressed(before: Progress | None, fraction: float | None, message: str | None) -> Progress:
    """Return what is known of the progress after one more word of it.

    Raises:
        InvalidValue: The fraction is not a number from 0 to 1, or there is neither.
    """
    if fraction is None and message is None:
        raise InvalidValue(
            "progress is a number from 0 to 1, a message, or both", detail={"name": "fraction"}
        )
    if fraction is not None and (type(fraction) not in (int, float) or not 0 <= fraction <= 1):
        raise InvalidValue(
            f"progress is a number from 0 to 1, not {fraction!r}",
            detail={"name": "fraction", "value": repr(fraction)},
        )
    earlier = before or (None, None)
    text = earlier[1] if message is None else str(message).replace("\0", "")[:1000]
    return (earlier[0] if fraction is None else float(fraction), text)


def _checked(action: str, result: object) -> str:
    """Return a result as JSON, if it is not too large."""
    text = dumps(result, "result")
    size = len(text.encode())
    if size > RESULT_LIMIT:
        raise PayloadTooLarge(
            f"the result has {size} bytes of JSON; the limit is {RESULT_LIMIT}",
            detail={"action": action, "limit": RESULT_LIMIT, "bytes": size},
            hint="Keep it where it belongs, and return a reference to it.",
        )
    return text


def _is_async(connection: object) -> bool:
    """Return whether it is psycopg's AsyncConnection, or SQLAlchemy's, or an AsyncSession."""
    return isinstance(connection, psycopg.AsyncConnection) or hasattr(
        connection, "sync_session" if hasattr(connection, "get_bind") else "get_raw_connection"
    )
