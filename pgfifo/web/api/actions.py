"""Actions and lanes: their numbers, and whether they go."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Depends, Query
from pydantic import Field, create_model

from pgfifo import groups, models
from pgfifo.client_async import AsyncClient
from pgfifo.groups import Group
from pgfifo.web import lists
from pgfifo.web.api.routing import CHANGING, NAMING, example, new_router
from pgfifo.web.bodies import Action, LaneBody, Limit, Minutes, OfAction, group_of, named
from pgfifo.web.dependencies import Changing, Fifo
from pgfifo.web.problems import Problem, ProblemError
from pgfifo.web.shapes import Document, Json, answer, many, one, page, plain, several, shape

router = new_router("actions")

InQuery = Annotated[Group | None, Depends(group_of)]

_QueueStats = create_model(
    "QueueStats",
    __base__=shape(models.ActionStats),
    __doc__="The numbers of one action, all of one instant.",
    action_ref=(str, Field(description="The action.")),
)
_Places: Any = list[lists.listed(models.Place, "ListedPlace")]  # type: ignore[misc]  # made, as the one below
_Line = create_model(
    "LaneWithLine",
    __base__=Document,
    __doc__="One lane, who is active in it, and who waits, in the order in which they will start.",
    stats=(shape(models.LaneStats), Field(description="Its numbers.")),
    active=(several(models.SlotInfo), Field(description="Who holds its slots.")),
    line=(_Places, Field(description="Who waits, the next in front.")),
)


class Changed(Document):
    """Whether a call has changed anything."""

    changed: bool = Field(description="False if it was so already.")


@router.get("/actions", summary="List actions", response_model=many(models.ActionOverview))
async def list_actions(fifo: Fifo) -> Json:
    """The numbers of each action, by name; quick also with 100,000 lanes."""
    return answer(await fifo.overview())


_STATS: dict[str, Any] = {
    "data": {
        "action_ref": "deploy",
        "queue_length": 2,
        "active_count": 1,
        "max_concurrent": 1,
        "oldest_enqueued_at": "2026-01-31T12:00:00.123456Z",
        "total_enqueued": 17,
        "total_completed": 14,
        "last_updated": "2026-01-31T12:00:03.5Z",
    }
}


@router.get(
    "/actions/{action:path}/queue-stats",
    summary="Numbers of an action",
    response_model=one(_QueueStats, "QueueStatsAnswer"),
    responses=NAMING | example(_STATS),
)
async def queue_stats(action: Action, fifo: Fifo) -> Json:
    """The numbers of one action, all of one instant; zeros and null where nothing was ever enqueued."""
    found = await fifo.stats(action)
    return answer({"action_ref": found.action} | plain(found))


@router.get(
    "/actions/{action:path}/pace",
    summary="How an action gets on",
    response_model=one(models.Pace),
    responses=NAMING,
)
async def pace(action: Action, fifo: Fifo, minutes: Minutes = 10) -> Json:
    """Counts, rates, and mean wait and run times of the last full minutes."""
    return answer(await fifo.pace(action, minutes))


@router.get(
    "/actions/{action:path}/lane",
    summary="One lane with its line",
    response_model=one(_Line),
    responses=NAMING,
)
async def lane(
    action: Action,
    fifo: Fifo,
    group: InQuery = None,
    include: Annotated[
        list[Literal["payload"]] | None,
        Query(description="Tell the payloads of those who wait too: they may be large."),
    ] = None,
    limit: Limit = 100,
) -> Json:
    """A lane's numbers, who holds its slots, and who waits, in the order in which they will start."""
    group = "" if group is None else group
    stats = await fifo.lanes(action, group)
    if not stats:
        name = groups.lane(action, groups.to_text(group) or "")
        raise ProblemError(Problem(404, "unknown-lane", "Unknown lane", f"There is no lane {name!r}."))
    slots = await fifo.slots(action, group=group)
    waiting = await lists.line(fifo, action, group, limit=limit, include=include or ())
    return answer(
        {
            "stats": plain(stats[0]),
            "active": [plain(each) for each in slots if each.state != "waiting"],
            "line": lists.documents(waiting, include or ()),
        }
    )


@router.get(
    "/lanes",
    summary="List lanes",
    response_model=page(models.LaneStats, int, "The `offset` of the next page; null at the end."),
    responses=NAMING,
)
async def list_lanes(
    fifo: Fifo,
    action: OfAction = None,
    search: Annotated[str | None, Query(description="Only those whose group has this in it.")] = None,
    having: Annotated[
        Literal["waiting", "active", "paused"] | None,
        Query(description="Only those in which something waits or is active, or that are paused themselves."),
    ] = None,
    sort: Annotated[
        Literal["depth", "oldest", "active", "group"],
        Query(
            description="The deepest first, those whose head has waited longest, those with the most active, "
            "or by action and group."
        ),
    ] = "depth",
    limit: Limit = 100,
    offset: Annotated[int, Query(description="How many to leave out.", ge=0, le=1_000_000)] = 0,
) -> Json:
    """The numbers of lanes, those first that somebody should look at."""
    found = await fifo.find_lanes(action, search=search, having=having, sort=sort, limit=limit, offset=offset)
    return answer(found, next=offset + limit if len(found) == limit else None)


@router.post(
    "/actions/{action:path}/pause", summary="Pause", response_model=one(Changed), responses=CHANGING | NAMING
)
async def pause(action: Action, fifo: Changing, body: LaneBody | None = None) -> Json:
    """Let nothing more of an action, or of one lane, start; what is active goes on."""
    body = body or LaneBody()
    return _changed(await fifo.pause(action, await _lane(fifo, action, body), reason=body.reason))


@router.post(
    "/actions/{action:path}/resume",
    summary="Resume",
    response_model=one(Changed),
    responses=CHANGING | NAMING,
)
async def resume(action: Action, fifo: Changing, body: LaneBody | None = None) -> Json:
    """End a pause."""
    return _changed(await fifo.resume(action, await _lane(fifo, action, body)))


@router.post(
    "/actions/{action:path}/close", summary="Close", response_model=one(Changed), responses=CHANGING | NAMING
)
async def close(action: Action, fifo: Changing, body: LaneBody | None = None) -> Json:
    """Let no enqueue into an action, or into one lane, any more; what waits is worked off."""
    body = body or LaneBody()
    return _changed(await fifo.close_action(action, await _lane(fifo, action, body), reason=body.reason))


@router.post(
    "/actions/{action:path}/open", summary="Open", response_model=one(Changed), responses=CHANGING | NAMING
)
async def open_(action: Action, fifo: Changing, body: LaneBody | None = None) -> Json:
    """Let enqueues in again."""
    return _changed(await fifo.open_action(action, await _lane(fifo, action, body)))


async def _lane(fifo: AsyncClient, action: str, body: LaneBody | None) -> Group | None:
    """Return which lane a body means; None for the whole action."""
    [group] = await named(fifo, action, None if body is None else body.group)
    return group


def _changed(changed: Any) -> Json:  # noqa: ANN401 - a bool
    return answer({"changed": changed})
