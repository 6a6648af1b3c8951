"""What goes around the calls that enqueue, where somebody asked for it: counting them, and tracing them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sized
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from pgfifo.models import Enqueued


@dataclass(slots=True)
class Call:
    """One call of `enqueue` or `enqueue_many`.

    Attributes:
        action: The action.
        count: How many executions it is to enqueue.
        many: Whether it is `enqueue_many`.
        headers: The headers of each, which may be replaced before the call is made.
        enqueued: What it returned; empty until then.
    """

    action: str
    count: int
    many: bool
    headers: list[Mapping[str, Any] | None]
    enqueued: list[Enqueued] = field(default_factory=list)


Layer = Callable[[Call], AbstractContextManager[object]]
"""Returns what is entered around a call; what the call raises is raised through it."""

layers: list[Layer] = []
"""What goes around each such call of this process, the outermost first."""

P = ParamSpec("P")
R = TypeVar("R")


def producing(method: Callable[P, R]) -> Callable[P, R]:
    """Have the layers go around a method of a client that enqueues. Where there are none, it is as it was."""
    many = "items" in inspect.signature(method).parameters

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def produce_async(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - what the method returns
            if not layers:
                return await method(*args, **kwargs)
            call, args = _call(many, args, kwargs)
            with ExitStack() as stack:
                _enter(stack, call, kwargs)
                result = await method(*args, **kwargs)
                call.enqueued = result if many else [result]
            return result

        return produce_async  # type: ignore[return-value]

    @functools.wraps(method)
    def produce(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as above
        if not layers:
            return method(*args, **kwargs)
        call, args = _call(many, args, kwargs)
        with ExitStack() as stack:
            _enter(stack, call, kwargs)
            result: Any = method(*args, **kwargs)
            call.enqueued = result if many else [result]
        return result

    return produce


def _call(many: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, tuple[Any, ...]]:
    """Return what a call is about, and its arguments with items that can be counted."""
    action = args[1] if len(args) > 1 else kwargs.get("action")
    headers = kwargs.get("headers")
    if not many:
        return Call(str(action), 1, many, [headers]), args
    given = args[2] if len(args) > 2 else kwargs.get("items", ())
    items = given if isinstance(given, Sized) else list(given)
    if len(args) > 2:
        args = (*args[:2], items, *args[3:])
    else:
        kwargs["items"] = items
    each = [None] * len(items) if headers is None else list(headers)
    return Call(str(action), len(items), many, each), args


def _enter(stack: ExitStack, call: Call, kwargs: dict[str, Any]) -> None:
    given = list(call.headers)
    for layer in layers:
        stack.enter_context(layer(call))
    if call.headers != given:
        kwargs["headers"] = call.headers if call.many else call.headers[0]
