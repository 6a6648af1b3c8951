"""Limits and rules: what is in force, what was set where, and who has set it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, Path, Query
from pydantic import Field
from starlette.responses import Response

from pgfifo import models
from pgfifo.web.api.actions import InQuery
from pgfifo.web.api.routing import CHANGING, NAMING, new_router
from pgfifo.web.bodies import Action, Limit, LimitBody, OfAction, OverrideBody, PolicyBody, Scope
from pgfifo.web.dependencies import Changing, Fifo
from pgfifo.web.shapes import Document, Json, answer, many, one

router = new_router("policies")

Force = Annotated[
    bool, Query(description="Change `group_by` even though something waits; that stays in its old lanes.")
]
Pack = Annotated[str, Path(description="What stands before the last dot of the actions' names.")]
Name = Annotated[str, Path(description="The shared limit's name.", examples=["billing-api"])]


class Policies(Document):
    """What operators have set, scope by scope."""

    everything: dict[str, Any] = Field(default={}, description="The defaults.")
    packs: dict[str, Any] = Field(default={}, description="Of packs, by name.")
    actions: dict[str, Any] = Field(
        default={}, description="Of actions, by name; `lanes` has those of lanes."
    )
    limit: dict[str, Any] = Field(default={}, description="Shared limits, by name.")


@router.get(
    "/actions/{action:path}/policy",
    summary="Policy in force",
    response_model=many(models.PolicyValue),
    responses=NAMING,
)
async def effective_policy(action: Action, fifo: Fifo, group: InQuery = None) -> Json:
    """Each attribute that is in force for an action or one lane, and who says so."""
    return answer(await fifo.effective_policy(action, group))


@router.patch(
    "/actions/{action:path}/policy",
    summary="Set a policy",
    response_model=many(models.PolicyChange),
    responses=CHANGING,
)
async def set_policy(
    action: Action,
    body: PolicyBody,
    fifo: Changing,
    group: InQuery = None,
    force: Force = False,
) -> Json:
    """Set attributes of an action's policy, or of one lane's; null unsets one. A new action is created."""
    return answer(await fifo.set_policy(action, group, force=force, **body.given()))


@router.put(
    "/actions/{action:path}/override",
    summary="Override a policy for a time",
    response_model=many(models.PolicyChange),
    responses=CHANGING | NAMING,
)
async def override_policy(action: Action, body: OverrideBody, fifo: Changing, group: InQuery = None) -> Json:
    """Let values of an action, or of one lane, win over every scope's for a time; null ends one now."""
    values = body.values.given()
    return answer(
        await fifo.override_policy(action, group, lasting=body.lasting, reason=body.reason, **values)
    )


@router.get("/policies", summary="Own policies", response_model=one(Policies))
async def own_policies(fifo: Fifo) -> Json:
    """What operators have set, scope by scope, and shared limits; nothing that is inherited or declared."""
    return answer(await fifo.export_policies())


@router.put(
    "/policies",
    summary="Apply a document of policies",
    response_model=many(models.PolicyDifference),
    responses=CHANGING | NAMING,
)
async def apply_policies(
    body: Annotated[dict[str, Any], Body(description="In the form that `GET` returns.")],
    fifo: Changing,
    prune: Annotated[bool, Query(description="Unset what it does not name.")] = False,
    dry_run: Annotated[bool, Query(description="Change nothing.")] = False,
    force: Force = False,
) -> Json:
    """Bring policies and shared limits to what a document says, all or nothing; returns what differed."""
    return answer(await fifo.apply_policies(body, prune=prune, dry_run=dry_run, force=force))


@router.get("/policies/default", summary="Defaults in force", response_model=many(models.PolicyValue))
async def default_policy(fifo: Fifo) -> Json:
    """What holds where no action, pack or lane says anything."""
    return answer(await fifo.effective_policy())


@router.patch(
    "/policies/default", summary="Set defaults", response_model=many(models.PolicyChange), responses=CHANGING
)
async def set_default_policy(body: PolicyBody, fifo: Changing) -> Json:
    """Set defaults for all actions, and so for each of their lanes; null gives the built-in one back."""
    return answer(await fifo.set_default_policy(**body.given()))


@router.patch(
    "/packs/{pack:path}/policy",
    summary="Set a pack's policy",
    response_model=many(models.PolicyChange),
    responses=CHANGING,
)
async def set_pack_policy(pack: Pack, body: PolicyBody, fifo: Changing) -> Json:
    """Set defaults for all actions of a pack, and so for each of their lanes; null unsets one."""
    return answer(await fifo.set_pack_policy(pack, **body.given()))


@router.get(
    "/policies/history",
    summary="History of policies",
    response_model=many(models.PolicyRecord),
    responses=NAMING,
)
async def policy_history(
    fifo: Fifo,
    action: OfAction = None,
    group: InQuery = None,
    pack: Annotated[str | None, Query(description="Only those of this pack.")] = None,
    scope: Annotated[Scope | None, Query(description="Only those made there.")] = None,
    limit: Limit = 100,
) -> Json:
    """Who changed which attribute, when, from what to what; the newest in front."""
    return answer(await fifo.policy_history(action, group, pack=pack, scope=scope, limit=limit))


@router.get("/overrides", summary="Overrides in force", response_model=many(models.PolicyOverride))
async def overrides(fifo: Fifo) -> Json:
    """Values that win over every policy for a time, those that end first in front."""
    return answer(await fifo.overrides())


@router.get("/limits", summary="Shared limits", response_model=many(models.SharedLimit))
async def shared_limits(fifo: Fifo) -> Json:
    """Limits that several actions draw from, and how much of them is taken."""
    return answer(await fifo.shared_limits())


@router.patch(
    "/limits/{name}",
    summary="Set a shared limit",
    response_model=many(models.SharedLimitChange),
    responses=CHANGING | NAMING,
)
async def set_shared_limit(name: Name, body: LimitBody, fifo: Changing) -> Json:
    """Set a limit that several actions draw from; a new name creates it."""
    return answer(await fifo.set_shared_limit(name, **body.given()))


@router.delete(
    "/limits/{name}",
    summary="Drop a shared limit",
    status_code=204,
    response_class=Response,
    responses=CHANGING | NAMING,
)
async def drop_shared_limit(name: Name, fifo: Changing) -> Response:
    """Take a shared limit away; what waited for it goes on."""
    await fifo.drop_shared_limit(name)
    return Response(status_code=204)
