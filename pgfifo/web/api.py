"""The JSON API, under /api/v1."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field, create_model

from pgfifo import models
from pgfifo.web.dependencies import Fifo
from pgfifo.web.shapes import Json, answer, many, one, plain, shape

DESCRIPTION = "Look at the queue, and change it. Every answer has what was asked for under `data`."

router = APIRouter(prefix="/api/v1")

Action = Annotated[str, Path(description="The action's name.", examples=["deploy"])]

_QueueStats = create_model(
    "QueueStats",
    __base__=shape(models.ActionStats),
    action_ref=(str, Field(description="The action, as attune called it.")),
)


@router.get("/actions", tags=["actions"], summary="List actions", response_model=many(models.ActionStats))
async def actions(fifo: Fifo) -> Json:
    """The numbers of each action, by name; all of one instant."""
    return answer(await fifo.stats())


@router.get(
    "/actions/{action:path}/queue-stats",
    tags=["actions"],
    summary="Numbers of an action",
    response_model=one(_QueueStats),
)
async def queue_stats(action: Action, fifo: Fifo) -> Json:
    """The numbers of one action, all of one instant; zeros and null where nothing was ever enqueued."""
    found = await fifo.stats(action)
    return answer({"action_ref": found.action} | plain(found))
