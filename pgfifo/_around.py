"""What goes around attempts, and what is called after them: middleware and hooks.

A middleware is a generator function of one argument, the execution, that yields once: where it yields the
handler runs. A sync one goes around handlers of both kinds, an async one around coroutines only.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgfifo.execution import Execution

Middleware = Callable[["Execution"], Iterator[None] | AsyncIterator[None]]
"""A generator function, or an async one, that yields once; what it gets there is the handler's result."""

Hook = Callable[["Execution", BaseException], Any]
"""A function, or a coroutine function, of the execution and the error of its attempt."""


@dataclass(slots=True)
class Layer:
    """What one registry puts around and after the attempts of its actions.

    Attributes:
        middleware: The outermost first.
        on_failed: In the order of calling.
        on_exhausted: In the order of calling.
    """

    middleware: list[Middleware] = field(default_factory=list)
    on_failed: list[Hook] = field(default_factory=list)
    on_exhausted: list[Hook] = field(default_factory=list)


def is_async_middleware(middleware: object) -> bool:
    """Return whether it can only go around coroutines."""
    return inspect.isasyncgenfunction(innermost(middleware))


def is_middleware(middleware: object) -> bool:
    """Return whether it is a generator function of either kind."""
    function = innermost(middleware)
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def innermost(function: object) -> object:
    """Return the function that a callable comes down to."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function):
        return function
    return getattr(type(function), "__call__", None)  # noqa: B004 - an object whose call is the generator function


def called(function: object) -> str:
    """Return the name of a function, for people."""
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"


def run_around(
    middleware: Iterable[Middleware], handler: Callable[[Execution], Any], execution: Execution
) -> Any:  # noqa: ANN401 - what the handler returns
    """Call a sync handler within its middleware, the first of it outermost."""
    first, *rest = middleware
    steps = first(execution)
    assert isinstance(steps, Generator)  # noqa: S101 - the registry refuses async ones for sync handlers
    try:
        next(steps)
    except StopIteration:
        raise _did_not_yield(first) from None
    try:
        result = run_around(rest, handler, execution) if rest else handler(execution)
    except BaseException as error:
        traceback = error.__traceback__
        try:
            steps.throw(error)
        except StopIteration:
            pass  # it has seen the error; what failed stays failed
        except BaseException as raised:
            if raised is not error:
                raise
        else:
            steps.close()
        error.__traceback__ = traceback
        raise
    try:
        steps.send(result)
    except StopIteration:
        return result
    steps.close()
    raise _yielded_twice(first)


async def run_around_async(
    middleware: Iterable[Middleware],
    handler: Callable[[Execution], Awaitable[Any]],
    execution: Execution,
) -> Any:  # noqa: ANN401 - what the handler returns
    """Await an async handler within its middleware, the first of it outermost."""
    first, *rest = middleware
    steps = first(execution)
    assert isinstance(steps, Generator | AsyncGenerator)  # noqa: S101 - the registry refuses everything else
    try:
        await anext(steps) if isinstance(steps, AsyncGenerator) else next(steps)
    except (StopIteration, StopAsyncIteration):
        raise _did_not_yield(first) from None
    try:
        result = await (run_around_async(rest, handler, execution) if rest else handler(execution))
    except BaseException as error:
        traceback = error.__traceback__
        try:
            await steps.athrow(error) if isinstance(steps, AsyncGenerator) else steps.throw(error)
        except (StopIteration, StopAsyncIteration):
            pass  # it has seen the error; what failed stays failed
        except BaseException as raised:
            if raised is not error:
                raise
        else:
            await _close(steps)
        error.__traceback__ = traceback
        raise
    try:
        await steps.asend(result) if isinstance(steps, AsyncGenerator) else steps.send(result)
    except (StopIteration, StopAsyncIteration):
        return result
    await _close(steps)
    raise _yielded_twice(first)


async def _close(steps: Generator[None, Any, None] | AsyncGenerator[None, Any]) -> None:
    if isinstance(steps, AsyncGenerator):
        await steps.aclose()
    else:
        steps.close()


def _did_not_yield(middleware: Middleware) -> RuntimeError:
    return RuntimeError(
        f"the middleware {called(middleware)} ended before its yield; the handler was not called"
    )


def _yielded_twice(middleware: Middleware) -> RuntimeError:
    return RuntimeError(f"the middleware {called(middleware)} yields more than once")
