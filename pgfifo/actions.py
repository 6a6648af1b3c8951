"""The registry of an application's actions: names, handlers, and the policy values that the code suggests.

It needs no connection, so any module may import it. `Client.declare` writes the values into the database as
defaults (an operator's values win), and a worker runs the handlers.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from pgfifo._around import (
    Hook,
    Layer,
    Middleware,
    called,
    is_async_middleware,
    is_middleware,
)
from pgfifo._payloads import check_schema
from pgfifo._typed import Many, caller
from pgfifo.errors import InvalidValue, UnknownAction
from pgfifo.policies import Policy, checked
from pgfifo.scheduling import Missed, Schedule, schedule

if TYPE_CHECKING:
    from pgfifo.execution import Execution
    from pgfifo.groups import Group

Handler = Callable[..., Any]
"""A function of the execution, of its payload as a dataclass or model, or of both; sync or async."""

H = TypeVar("H", bound=Callable[..., Any])
M = TypeVar("M", bound=Middleware)
K = TypeVar("K", bound=Hook)

_LARGEST_BATCH = 1000
_NAME = re.compile(r"[^\s\x00-\x1f\x7f-\x9f]{1,200}")


@dataclass(frozen=True, slots=True)
class Action:
    """One action of a registry.

    Attributes:
        name: Its name, such as ``billing.invoice``.
        handler: What runs its executions.
        values: The policy values that the code declares, in the form that SQL takes.
        is_async: Whether the handler is a coroutine function.
        layers: The registries it belongs to, the outermost first: their middleware and their hooks.
        call: The handler as a function of the execution, which builds the payload where it asks for that.
        schema: The JSON Schema that clients check payloads against.
        schedules: When it is enqueued by itself.
        batch: How many consecutive executions of a lane one call of the handler gets at most; None where it
            gets one execution.
        many: How the handler is called with a batch.
    """

    name: str
    handler: Handler
    values: Mapping[str, object] = field(default_factory=dict)
    is_async: bool = False
    layers: tuple[Layer, ...] = ()
    call: Callable[[Execution], Any] | None = None
    schema: Mapping[str, Any] | None = None
    schedules: tuple[Schedule, ...] = ()
    batch: int | None = None
    many: Many | None = None

    @property
    def middleware(self) -> list[Middleware]:
        """What goes around its attempts, the outermost first."""
        return [each for layer in self.layers for each in layer.middleware]

    @property
    def on_failed(self) -> list[Hook]:
        """What is called after an attempt that failed, in this order."""
        return [hook for layer in reversed(self.layers) for hook in layer.on_failed]

    @property
    def on_exhausted(self) -> list[Hook]:
        """What is called when it has failed for good, in this order."""
        return [hook for layer in reversed(self.layers) for hook in layer.on_exhausted]


class Actions:
    """A registry of actions.

    ::

        actions = pgfifo.Actions()

        @actions.action("deploy", group_by=["env"], max_concurrent=1)
        def deploy(execution: pgfifo.Execution) -> dict:
            return {"url": release(**execution.payload)}
    """

    def __init__(self) -> None:
        self._actions: dict[str, Action] = {}
        self._layer = Layer()

    def action(
        self,
        name: str,
        *,
        batch: int | None = None,
        schema: Mapping[str, Any] | None = None,
        **values: Unpack[Policy],
    ) -> Callable[[H], H]:
        """Register the decorated function as an action's handler, and hand it back unchanged.

        It takes the execution; or the payload, built as the dataclass, pydantic model, TypedDict, attrs or
        msgspec class that its parameter is annotated with; or both. A payload that does not fit is a failure
        without another attempt.

        Args:
            name: The action's name: 1 to 200 characters without white space. What stands before the last dot
                is its pack.
            batch: For a handler that takes a list: up to so many consecutive executions of one lane, in their
                order, are one run of it, in one slot; 1 to 1,000. It returns a list of results, one for each
                (an exception for one that failed), or says for each with `Execution.succeed` and
                `Execution.fail`, or returns None: all have succeeded. What it raises is the failure of the
                first that has no outcome; those behind that one go back to their places. Defaults to one
                execution for each call, and no list.
            schema: A JSON Schema that clients who know these actions check payloads against, before they
                enqueue; needs jsonschema (``pip install 'pgfifo[schema]'``). Defaults to none.
            **values: Policy attributes; see `Policy`. Durations are seconds, a timedelta or text (``1h30m``).

        Raises:
            InvalidValue: The name is none or is taken, the function takes something else, the schema is none,
                or a value cannot be right.
        """
        if not isinstance(name, str):
            raise InvalidValue(
                f"an action's name is text, not {name!r}",
                detail={"name": "name"},
                hint='Write @actions.action("name").',
            )
        declared = checked(values)

        def register(handler: H) -> H:
            self._add(name, handler, declared, schema, batch)
            return handler

        return register

    def add(
        self,
        name: str,
        handler: Handler,
        *,
        batch: int | None = None,
        schema: Mapping[str, Any] | None = None,
        **values: Unpack[Policy],
    ) -> Action:
        """Register a handler that is not decorated; the arguments and errors are those of `action`.

        Returns:
            The new action.
        """
        return self._add(name, handler, checked(values), schema, batch)

    def schedule(
        self,
        cron: str,
        *,
        time_zone: str = "UTC",
        name: str | None = None,
        payload: object = None,
        group: Group | None = None,
        headers: Mapping[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        missed: Missed = "one",
    ) -> Callable[[H], H]:
        """Have the action of the decorated handler enqueued whenever a cron expression says so.

        ::

            @actions.schedule("30 2 * * mon-fri", time_zone="Europe/Berlin", payload={"kind": "full"})
            @actions.action("backup")
            def backup(execution): ...

        It stands above the action. It is declared with the action; an operator's schedule of the same name
        wins over it. Each tick is enqueued once, however many workers run.

        Args:
            cron: Minute, hour, day of the month, month, day of the week; or ``@hourly``, ``@daily``,
                ``@weekly``, ``@monthly``, ``@yearly``.
            time_zone: In which time zone that is meant, as ``Europe/Berlin``. Defaults to UTC.
            name: The schedule's name. Defaults to the action's, for the first of its schedules.
            payload: The payload of each execution. Defaults to ``{}``.
            group: The group. Defaults to what the payload says.
            headers: The headers, beside ``pgfifo.schedule`` and ``pgfifo.tick``.
            tags: The tags.
            missed: What becomes of ticks that nobody was there for: ``skip`` them, enqueue ``one`` for all of
                them, or ``all``. Defaults to one.

        Raises:
            InvalidValue: An argument cannot be right, the handler is none of this registry's, or the name is
                taken.
        """

        def add(handler: H) -> H:
            found = [action for action in self if action.handler is handler]
            if not found:
                raise InvalidValue(
                    f"{called(handler)} is no handler of this registry",
                    detail={"name": "handler"},
                    hint="Write @actions.schedule(…) above @actions.action(…).",
                )
            action = found[-1]
            new = schedule(name or action.name, cron, time_zone, payload, group, headers, tags, missed)
            for other in self:
                if new.name in (each.name for each in other.schedules):
                    raise InvalidValue(
                        f"the schedule {new.name!r} is there already, for {other.name!r}",
                        detail={"name": "name", "value": new.name},
                        hint="Give it a name of its own: name=…",
                    )
            self._actions[action.name] = replace(action, schedules=(*action.schedules, new))
            return handler

        return add

    def include(self, other: Actions) -> None:
        """Take over all actions of another registry.

        They keep the middleware and the hooks of that registry; this one's middleware goes around it.

        Raises:
            InvalidValue: A name is in both, or a handler does not go with this registry's middleware.
        """
        for action in other:
            self._refuse_taken(action.name)
        taken = [replace(action, layers=(self._layer, *action.layers)) for action in other]
        for action in taken:
            _refuse_async_around_sync(action, self._layer.middleware)
        self._actions.update({action.name: action for action in taken})

    def middleware(self, middleware: M) -> M:
        """Put the decorated generator function around every attempt of this registry's actions.

        ::

            @actions.middleware
            def timed(execution):
                begun = time.monotonic()
                try:
                    yield  # here the handler runs; what it returns is the value of this expression
                finally:
                    observe(execution.action, time.monotonic() - begun)

        The first one registered is the outermost. Each runs where the handler runs: in its thread, or in the
        event loop. What the handler raises is raised at the ``yield``. A middleware may raise something else
        in its place, or after a success; it cannot make a success of a failure, nor change the result. An
        ``async def`` one can ``await``, and goes with coroutines only.

        Args:
            middleware: A function of the execution that yields exactly once.

        Raises:
            InvalidValue: It is no generator function, or is async where a handler is not.
        """
        if not is_middleware(middleware):
            raise InvalidValue(
                f"{called(middleware)} is no generator function",
                detail={"name": "middleware"},
                hint="A middleware takes the execution and yields once; it needs no @contextmanager.",
            )
        for action in self:
            _refuse_async_around_sync(action, [middleware])
        self._layer.middleware.append(middleware)
        return middleware

    def on_failed(self, hook: K) -> K:
        """Call the decorated function after each attempt that failed, when the failure is recorded.

        It gets the execution and the error: what the handler raised, or an `ExecutionFailed` for one that
        raised nothing, such as a command. Functions run in threads, coroutines in the event loop. What a
        hook raises is logged and changes nothing. A worker that is killed in between has called none.

        Args:
            hook: A function of the execution and the error.
        """
        self._layer.on_failed.append(hook)
        return hook

    def on_exhausted(self, hook: K) -> K:
        """Call the decorated function when an execution has failed for good, after `on_failed`.

        As `on_failed`. An execution whose last attempt was lost with its worker has nobody to call it; those
        are found by their state, ``failed``.

        Args:
            hook: A function of the execution and the last attempt's error.
        """
        self._layer.on_exhausted.append(hook)
        return hook

    def subset(self, names: Iterable[str]) -> Actions:
        """Return a registry with some of the actions, each with its middleware and hooks.

        Args:
            names: Which.

        Raises:
            UnknownAction: One is not registered.
        """
        some = Actions()
        some._actions = {name: self[name] for name in names}
        return some

    def _add(
        self,
        name: str,
        handler: Handler,
        values: Mapping[str, object],
        schema: Mapping[str, Any] | None,
        batch: int | None,
    ) -> Action:
        if not _NAME.fullmatch(name):
            raise InvalidValue(
                f"{name!r} is no name for an action",
                detail={"name": "name", "value": str(name)},
                hint="Use 1 to 200 characters without white space, such as deploy or billing.invoice.",
            )
        self._refuse_taken(name)
        if batch is not None and (type(batch) is not int or not 1 <= batch <= _LARGEST_BATCH):
            raise InvalidValue(
                f"batch must be a whole number from 1 to {_LARGEST_BATCH:,}, not {batch!r}",
                detail={"name": "batch", "value": repr(batch)},
            )
        call = caller(name, handler) if batch is None else None
        many = None if batch is None else Many(name, handler)
        if schema is not None:
            check_schema(name, schema)
        added = Action(
            name, handler, values, _is_async(handler), (self._layer,), call, schema, (), batch, many
        )
        _refuse_async_around_sync(added, self._layer.middleware)
        self._actions[name] = added
        return added

    def _refuse_taken(self, name: str) -> None:
        if name in self._actions:
            raise InvalidValue(
                f"the action {name!r} has a handler already, {called(self._actions[name].handler)}",
                detail={"name": "name", "value": name},
                hint="Each action has one handler.",
            )

    @property
    def names(self) -> list[str]:
        """The names of all actions, in the order in which they were registered."""
        return list(self._actions)

    def __getitem__(self, name: str) -> Action:
        """Return the action of that name.

        Raises:
            UnknownAction: There is none.
        """
        try:
            return self._actions[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._actions, 1)
            raise UnknownAction(
                f"no handler is registered for action {name!r}",
                detail={"action": name, "nearest": near[0] if near else None},
                hint=f"Did you mean {near[0]!r}?"
                if near
                else f"There are: {', '.join(self._actions) or 'none'}.",
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._actions

    def __iter__(self) -> Iterator[Action]:
        return iter(self._actions.values())

    def __len__(self) -> int:
        return len(self._actions)

    def __repr__(self) -> str:
        return f"<pgfifo.Actions: {', '.join(self._actions) or 'none'}>"


def _refuse_async_around_sync(action: Action, middleware: Iterable[Middleware]) -> None:
    for each in middleware:
        if is_async_middleware(each) and not action.is_async:
            raise InvalidValue(
                f"the middleware {called(each)} is async, and the handler of {action.name!r} is not",
                detail={"name": "middleware", "action": action.name},
                hint="A middleware without async goes around both; or keep the coroutines in a registry of "
                "their own, with their middleware, and include it.",
            )


def _is_async(handler: object) -> bool:
    while isinstance(handler, functools.partial):
        handler = handler.func
    call = getattr(type(handler), "__call__", None)  # noqa: B004 - for objects whose call is a coroutine function
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)
