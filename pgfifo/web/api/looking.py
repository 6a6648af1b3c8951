"""What else there is to see: workers, slots, schedules, the audit, events, and what happened each minute."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, cast

from fastapi import Path, Query

from pgfifo import models
from pgfifo.web.api.actions import Changed, InQuery
from pgfifo.web.api.routing import CHANGING, NAMING, new_router, problems
from pgfifo.web.bodies import Limit, Minutes, OfAction, WhyBody
from pgfifo.web.dependencies import Changing, Fifo
from pgfifo.web.shapes import Json, answer, many, one, page

router = new_router("looking")

Schedule = Annotated[str, Path(description="The schedule's name.", examples=["nightly"])]


@router.get("/workers", summary="Workers", response_model=many(models.WorkerInfo))
async def workers(fifo: Fifo) -> Json:
    """The worker processes, living and recently gone."""
    return answer(await fifo.workers())


@router.get("/slots", summary="Slots", response_model=many(models.SlotInfo), responses=NAMING)
async def slots(fifo: Fifo, action: OfAction = None, group: InQuery = None) -> Json:
    """Who holds slots, workers and programs alike, and which programs wait for one."""
    return answer(await fifo.slots(action, group=group))


@router.get("/minutes", summary="What happened each minute", response_model=many(models.Minute))
async def minutes(fifo: Fifo, action: OfAction = None, minutes: Minutes = 60) -> Json:
    """Counts and sums of times per action and minute; a minute in which nothing happened is left out."""
    return answer(await fifo.minutes(action, minutes))


@router.get(
    "/wait-times",
    summary="How long executions waited",
    response_model=many(models.WaitTimes),
    responses=NAMING,
)
async def wait_times(
    fifo: Fifo,
    action: OfAction = None,
    minutes: Annotated[int, Query(description="How many minutes back.", ge=1, le=1440)] = 60,
) -> Json:
    """Percentiles of waits: a row per action and minute, and one with no minute for all of them."""
    return answer(await fifo.wait_times(action, minutes))


@router.get(
    "/audit",
    summary="Audit",
    response_model=page(models.AuditEntry, int, "`before` for the next page; null at the end."),
)
async def audit(
    fifo: Fifo,
    action: OfAction = None,
    what: Annotated[str | None, Query(description="Only this, such as `pause`.")] = None,
    before: Annotated[int | None, Query(description="Only ids below this one.", ge=0, le=2**63 - 1)] = None,
    limit: Limit = 100,
) -> Json:
    """What people and programs did to how the queue runs, the newest in front."""
    found = await fifo.audit(action, what=what, before=before, limit=limit)
    return answer(found, next=found[-1].id if len(found) == limit else None)


@router.get(
    "/events",
    summary="Events",
    response_model=page(models.Event, str, "`cursor` to go on with, now or when more has happened."),
    responses=NAMING | problems(410),
)
async def events(
    fifo: Fifo,
    action: OfAction = None,
    group: InQuery = None,
    cursor: Annotated[str, Query(description="Go on after this `next`; `begin` is all on record.")] = "begin",
    kind: Annotated[list[models.EventKind] | None, Query(description="Only these.")] = None,
    id: Annotated[int | None, Query(description="Only of this execution.")] = None,  # noqa: A002 - its name
    limit: Limit = 100,
) -> Json:
    """What has happened, in order per lane; nothing is missed, and nothing told twice."""
    found: list[models.Event] = []
    told = fifo.events(action, group, cursor=cursor, kinds=kind, id=id, follow=False)
    async with aclosing(cast("AsyncGenerator[models.Event]", told)):  # it may have a connection
        async for each in told:
            found.append(each)
            if len(found) == limit:
                break
    return answer(found, next=found[-1].cursor if found else cursor)


@router.get("/schedules", summary="Schedules", response_model=many(models.ScheduleInfo), responses=NAMING)
async def schedules(fifo: Fifo, action: OfAction = None) -> Json:
    """What is enqueued again and again, by name."""
    return answer(await fifo.schedules(action))


@router.post(
    "/schedules/{name:path}/pause",
    summary="Pause a schedule",
    response_model=one(Changed),
    responses=CHANGING | NAMING,
)
async def pause_schedule(name: Schedule, fifo: Changing, body: WhyBody | None = None) -> Json:
    """Let a schedule's ticks pass until it is resumed."""
    return answer({"changed": await fifo.pause_schedule(name, reason=(body or WhyBody()).reason)})


@router.post(
    "/schedules/{name:path}/resume",
    summary="Resume a schedule",
    response_model=one(Changed),
    responses=CHANGING | NAMING,
)
async def resume_schedule(name: Schedule, fifo: Changing) -> Json:
    """End a schedule's pause. What passed meanwhile was not missed."""
    return answer({"changed": await fifo.resume_schedule(name)})
