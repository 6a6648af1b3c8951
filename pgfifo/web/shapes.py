"""What the API says as JSON: made from the classes of `pgfifo.models`, so that they stay one."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import typing
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.responses import Response

from pgfifo import groups, models

_MORE: dict[str, tuple[Any, Any]] = {
    "group_text": (
        "group",
        (
            dict[str, Any] | str | None,
            Field(description="The same group as a mapping from path to value; or a free key, as it is."),
        ),
    ),
}
"""Members that a document has beside an attribute, for those who do not want to take it apart."""

_TOLD_BY: dict[type, type] = {models.LaneStats: models.ActionStats}
"""Whose docstring has the attributes that a class shares with another."""


class Document(BaseModel):
    """Base of what the API answers with."""

    model_config = ConfigDict(extra="forbid")


@functools.cache
def shape(model: type) -> type[BaseModel]:
    """Return the shape of a class of `pgfifo.models`, with the descriptions of its docstring."""
    told = _attributes(_TOLD_BY.get(model, model)) | _attributes(model)
    hints = typing.get_type_hints(model, vars(models) | {"datetime": datetime})
    members: dict[str, Any] = {}
    for each in dataclasses.fields(model):
        members[each.name] = (_shaped(hints[each.name]), Field(description=told[each.name]))
        if each.name in _MORE:
            name, member = _MORE[each.name]
            members[name] = member
    summary = (inspect.getdoc(model) or "").partition("\n")[0]
    return create_model(model.__name__, __base__=Document, __doc__=summary, **members)


def several(model: type) -> Any:  # noqa: ANN401 - a type
    """Return the type of a list of a class of `pgfifo.models`."""
    return list[shape(model)]  # type: ignore[misc]


def one(model: type, name: str | None = None, **more: Any) -> type[BaseModel]:  # noqa: ANN401 - of create_model
    """Return the shape of an answer with one thing.

    Args:
        model: What is under ``data``: a class of `pgfifo.models`, or a shape.
        name: What the shape is called.
        **more: Members beside ``data``.
    """
    inner = model if _is_shape(model) else shape(model)
    return _answer(name or f"{model.__name__}Answer", inner, more)


def many(model: type, name: str | None = None, **more: Any) -> type[BaseModel]:  # noqa: ANN401 - as above
    """Return the shape of an answer with a list of things; arguments as in `one`."""
    inner = model if _is_shape(model) else shape(model)
    return _answer(name or f"{model.__name__}List", list[inner], more)  # type: ignore[valid-type]


def page(model: type, cursor: Any, description: str) -> type[BaseModel]:  # noqa: ANN401 - a type
    """Return the shape of one page of a list.

    Args:
        model: As in `many`.
        cursor: The type of ``next``.
        description: What ``next`` is.
    """
    return many(model, f"{model.__name__}Page", next=(cursor | None, Field(description=description)))


_answers: dict[str, type[BaseModel]] = {}


def _answer(name: str, inner: Any, more: dict[str, Any]) -> type[BaseModel]:  # noqa: ANN401 - a type
    """Return the shape of an answer; asked for again under the same name, the same."""
    if name not in _answers:
        data = (inner, Field(description="What was asked for."))
        _answers[name] = create_model(name, __base__=Document, data=data, **more)
    return _answers[name]


def _is_shape(model: type) -> bool:
    return issubclass(model, BaseModel)


def _shaped(hint: Any) -> Any:  # noqa: ANN401 - a type
    """Return the type of a member: a class of ours as its shape, also inside of others."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return shape(hint)
    return hint


def _attributes(model: type) -> dict[str, str]:
    """Return the descriptions in the docstrings of a class and of those it is made from."""
    told: dict[str, str] = {}
    for each in reversed(model.__mro__):
        lines = (each.__doc__ or "").partition("Attributes:\n")[2].splitlines()
        name = None
        for line in lines:
            if (found := re.match(r"^        (\w+): (.*)$", line)) is not None:
                name = found[1]
                told[name] = found[2]
            elif name and line.startswith("            "):
                told[name] += f" {line.strip()}"
    return told


def plain(value: object) -> Any:  # noqa: ANN401 - JSON
    """Return a class of `pgfifo.models` as its document."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found: dict[str, Any] = {}
        for each in dataclasses.fields(value):
            inner = getattr(value, each.name)
            found[each.name] = plain(inner) if dataclasses.is_dataclass(inner) else inner
            if each.name == "group_text":
                found["group"] = None if inner is None else groups.parse(inner)
        return found
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value


def instant(value: datetime) -> str:
    """Return a time as ISO 8601 in UTC."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _default(value: object) -> object:
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"no JSON for a {type(value).__name__}")


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """Return it as text."""
        return json.dumps(
            content, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default
        ).encode()


def answer(data: object, *, status: int = 200, headers: dict[str, str] | None = None, **more: object) -> Json:
    """Return an answer.

    Args:
        data: What was asked for: classes of `pgfifo.models`, lists of them, or what JSON has.
        status: The status.
        headers: More headers.
        **more: What stands beside ``data``.
    """
    return Json({"data": plain(data)} | more, status, headers)
