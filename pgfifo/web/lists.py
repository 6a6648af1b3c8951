"""Executions as lists have them: without what may be large, unless it is asked for, or with a glimpse of it.

A payload or a result may have a megabyte, and a list a thousand rows. What is left out is not read either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel, Field, create_model

from pgfifo import groups
from pgfifo.client_async import AsyncClient
from pgfifo.filters import Filter, filter_json
from pgfifo.groups import Group
from pgfifo.models import ExecutionInfo, Place
from pgfifo.web.shapes import plain, shape

Content = Literal["payload", "headers", "result", "attempts"]
CONTENT: tuple[Content, ...] = ("payload", "headers", "result", "attempts")
"""What may be large in an execution."""

_GLIMPSE = 600
"""How many characters of a payload are a glimpse of it; pages show fewer."""


def listed(model: type, name: str) -> type[BaseModel]:
    """Return the shape of a class of `pgfifo.models` in a list, where its content may be left out."""
    whole = shape(model)
    members: dict[str, Any] = {}
    for each in CONTENT:
        if (member := whole.model_fields.get(each)) is not None:
            description = f"{member.description} Only there if `include` names it."
            members[each] = (member.annotation, Field(default=None, description=description))
    return create_model(name, __base__=whole, __doc__=whole.__doc__, **members)


async def executions(
    fifo: AsyncClient,
    where: Mapping[str, Any],
    *,
    limit: int,
    before: int | None = None,
    include: Collection[Content] = (),
    glimpse: bool = False,
) -> list[ExecutionInfo]:
    """List executions, the youngest first.

    Args:
        fifo: The queue.
        where: Keys of `Filter`.
        limit: The most rows.
        before: Only ids below this one.
        include: What of their content to read; all else of it is None.
        glimpse: Whether to read the beginning of payloads, as text.
    """
    wanted = dict(where) if before is None else {**where, "to_id": before - 1}
    query = _select(ExecutionInfo, "pgfifo.list_executions(%s::jsonb, %s::integer)", include, glimpse=glimpse)
    arguments = (filter_json(cast("Filter", wanted), empty=True), limit)
    return await fifo._rows(query, arguments, ExecutionInfo)  # noqa: SLF001 - which reads whole ones


async def line(
    fifo: AsyncClient,
    action: str,
    group: Group | None,
    *,
    limit: int,
    include: Collection[Content] = (),
    glimpse: bool = False,
) -> list[Place]:
    """Return who waits in a lane, in the order in which they will start; arguments as in `executions`."""
    query = _select(Place, "pgfifo.line(%s::text, %s::text, %s::integer)", include, glimpse=glimpse)
    arguments = (action, groups.to_text(group), limit)
    return await fifo._rows(query, arguments, Place)  # noqa: SLF001 - as above


def documents(found: Sequence[ExecutionInfo | Place], include: Collection[Content]) -> list[dict[str, Any]]:
    """Return the documents of a list: what was not read is not in them."""
    left_out = {*CONTENT} - {*include}
    return [{name: value for name, value in plain(each).items() if name not in left_out} for each in found]


def _select(model: type, source: str, include: Collection[Content], *, glimpse: bool) -> str:
    """Return the query that reads a model's fields, with null for content that nobody has asked for."""
    columns = []
    for each in dataclasses.fields(model):
        if each.name not in CONTENT or each.name in include:
            columns.append(each.name)
        elif each.name == "payload" and glimpse:
            columns.append(f"left(payload::text, {_GLIMPSE}) as payload")
        else:
            columns.append(f"null as {each.name}")
    return f"select {', '.join(columns)} from {source}"  # noqa: S608 - no values
