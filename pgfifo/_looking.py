"""Looks at the arguments of all public methods of a client, by the names of their parameters.

A test asks that each name is known here or in `ELSEWHERE`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from pgfifo import _given
from pgfifo.durations import seconds
from pgfifo.filters import states

Check = Callable[[Any, str], object]
"""Takes a value and the argument's name; returns the value to go on with, or raises InvalidValue."""

_NAME = functools.partial(_given.text, hint='Give a name, such as "deploy".')

CHECKS: dict[str, Check] = {
    "id": _given.id_,
    "ids": _given.ids,
    "before": _given.id_,
    "from_id": _given.id_,
    "to_id": _given.id_,
    "attempt": functools.partial(_given.number, most=_given.INTEGER),
    "limit": functools.partial(_given.number, most=_given.INTEGER),
    "number": _given.number,
    "upto": _given.number,
    "count": _given.number,
    "offset": functools.partial(_given.number, most=_given.INTEGER),
    "search": _given.text,
    "having": _given.text,
    "sort": _given.text,
    "lanes": functools.partial(_given.number, most=_given.INTEGER),
    "minutes": functools.partial(_given.number, most=_given.INTEGER),
    "first_id": _given.id_,
    "last_id": _given.id_,
    "after": _given.number,
    "action": _NAME,
    "pack": _NAME,
    "name": functools.partial(_given.text, hint='Give a name, such as "billing-api".'),
    "outcome": _given.text,
    "reason": _given.text,
    "what": _given.text,
    "scope": _given.text,
    "error": _given.text,
    "source": _given.text,
    "fingerprint": _given.text,
    "role": _given.text,
    "to": _given.text,
    "from_": _given.text,
    "request_id": _given.text,
    "dedup_key": _given.text,
    "item_key": _given.text,
    "on_item": _given.text,
    "tags": _given.texts,
    "kinds": _given.texts,
    "cursor": _given.text,
    "follow": _given.flag,
    "request_ids": _given.texts_or_none,
    "dedup_keys": _given.texts_or_none,
    "item_keys": _given.texts_or_none,
    "headers": _given.mapping,
    "run_at": _given.time,
    "run_ats": _given.times,
    "delay": seconds,
    "open_after": seconds,
    "snapshot_after": seconds,
    "items": _given.line,
    "groups": functools.partial(_given.listed, of="groups"),
    "state": states,
    "force": _given.flag,
    "testing": _given.flag,
    "repair": _given.flag,
    "check": _given.flag,
    "retry": _given.flag,
    "head": _given.flag,
    "split": _given.flag,
    "prune": _given.flag,
    "dry_run": _given.flag,
}
"""How arguments are looked at, by their names. None passes where it is an argument's default."""

_OF_METHODS: dict[tuple[str, str], Check] = {
    ("enqueue_many", "headers"): _given.mappings,
    ("finish", "after"): seconds,
    ("finish", "count"): _given.flag,
}
"""Where a name means something else."""

ELSEWHERE = {
    "actor",
    "actions",
    "connection",
    "cron",
    "group",
    "lasting",
    "missed",
    "payload",
    "policies",
    "result",
    "time_zone",
    "timeout",
    "values",
    "where",
}
"""Arguments that are looked at where they are turned into what SQL takes."""

C = TypeVar("C", bound=type)


def looked_at(client: C) -> C:
    """Have the arguments of all public methods of a class looked at."""
    for name, method in list(vars(client).items()):
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(client, name, _looking(method))
    return client


def _looking(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that looks at its arguments first."""
    known = inspect.signature(method).parameters
    own = {name: check for (of, name), check in _OF_METHODS.items() if of == method.__name__}
    checks = CHECKS | own
    # The one for each argument that is given by position; the first is self.
    by_place = [(name, checks.get(name)) for name in known][1:]
    nullable = {name for name, parameter in known.items() if parameter.default is None}
    nullable |= checks.keys() - known.keys()  # a key of **where

    def looked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        for name, value in kwargs.items():
            check = checks.get(name)
            if check is not None and not (value is None and name in nullable):
                kwargs[name] = check(value, name)
        return [
            value if check is None or (value is None and name in nullable) else check(value, name)
            for value, (name, check) in zip(args, by_place, strict=False)
        ] + list(args[len(by_place) :])  # too many: the method itself says so

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def looking_async(self: object, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any method
            return await method(self, *looked(args, kwargs), **kwargs)

        return looking_async

    @functools.wraps(method)
    def looking(self: object, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any method
        return method(self, *looked(args, kwargs), **kwargs)

    return looking
