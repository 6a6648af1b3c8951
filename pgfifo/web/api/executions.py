"""Executions: enqueue them, look them up, cancel them, put them back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Header, Query, Request
from pydantic import Field, create_model

from pgfifo import models
from pgfifo.client_async import AsyncClient
from pgfifo.web import lists
from pgfifo.web.api.actions import Changed, InQuery
from pgfifo.web.api.routing import CHANGING, ENQUEUING, NAMING, new_router
from pgfifo.web.bodies import (
    Action,
    CancelManyBody,
    CancelWhereBody,
    EnqueueBody,
    EnqueueManyBody,
    FilterBody,
    FinishBody,
    Id,
    Limit,
    Moment,
    OfAction,
    RescheduleBody,
    RetryBody,
    RetryManyBody,
    RetryWhereBody,
    WhyBody,
    moment,
    named,
)
from pgfifo.web.dependencies import Changing, Fifo, Producing
from pgfifo.web.problems import ProblemError, of_status
from pgfifo.web.shapes import Document, Json, answer, many, one, page, plain, shape

router = new_router("executions")

_Whole = create_model(
    "ExecutionWithReasons",
    __base__=shape(models.ExecutionInfo),
    __doc__="One execution, where it stands in its line, and why it is not running.",
    position=(shape(models.Position), Field(description="How far it is from its turn.")),
    explanation=(shape(models.Explanation), Field(description="Why it is not running.")),
)


class CancelAnswer(Document):
    """What has become of one execution that was to be cancelled."""

    id: int = Field(description="The execution.")
    answer: str = Field(
        description="`cancelled`; `requested`: its worker is asked to; the outcome that it already has; "
        "`unknown`; or `busy`: another transaction holds its lane."
    )


class Rescheduled(Document):
    """When an execution would have joined its lane, or would have been tried again."""

    previous: datetime = Field(description="When it would have been.")


class RetryOf(Document):
    """A new execution in place of a finished one."""

    id: int = Field(description="The new execution.")
    retry_of: int = Field(description="The finished one.")


_ENQUEUED = {
    "data": {
        "id": 4711,
        "created": True,
        "lane": {"action": "deploy", "group_text": '{"env":"prod"}', "group": {"env": "prod"}},
    }
}


@router.post(
    "/actions/{action:path}/executions",
    summary="Enqueue",
    status_code=201,
    response_model=one(models.Enqueued),
    responses=ENQUEUING
    | {
        200: {"description": "It was there already.", "model": one(models.Enqueued)},
        201: {
            "description": "It is new; `Location` is where it can be looked up.",
            "content": {"application/json": {"example": _ENQUEUED}},
        },
    },
)
async def enqueue(
    action: Action,
    body: EnqueueBody,
    fifo: Producing,
    request: Request,
    idempotency_key: Annotated[str | None, Header(description="The same as `request_id`.")] = None,
) -> Json:
    """Put one execution at the end of its lane, now or later; a new action's name creates it."""
    if body.request_id is not None and idempotency_key not in (None, body.request_id):
        raise ProblemError(
            of_status(
                422,
                "The body's request_id and the header Idempotency-Key do not agree.",
                hint="Send one of them, or the same in both.",
            )
        )
    [group] = await named(fifo, action, body.group)
    found = await fifo.enqueue(
        action,
        body.content(),
        group=group,
        headers=body.headers,
        tags=body.tags,
        request_id=body.request_id if body.request_id is not None else idempotency_key,
        dedup_key=body.dedup_key,
        item_key=body.item_key,
        run_at=body.run_at,
        delay=body.delay,
        on_item=body.on_item,
    )
    where = request.url_for("execution", id=found.id).path
    return answer(found, status=201 if found.created else 200, headers={"Location": where})


@router.post(
    "/actions/{action:path}/executions/batch",
    summary="Enqueue many",
    status_code=201,
    response_model=many(models.Enqueued),
    responses=ENQUEUING,
)
async def enqueue_many(action: Action, body: EnqueueManyBody, fifo: Producing) -> Json:
    """Put executions at the ends of their lanes, all or nothing; `context.index` is the first refused."""
    columns: dict[str, list[Any]] = {
        name: [getattr(item, name.removesuffix("s")) for item in body.items]
        for name in ("request_ids", "dedup_keys", "item_keys", "run_ats")
    }
    columns["groups"] = await named(fifo, action, *(item.group for item in body.items))
    columns["headers"] = [item.headers for item in body.items]
    more: dict[str, Any] = {
        name: values for name, values in columns.items() if any(each is not None for each in values)
    }
    found = await fifo.enqueue_many(
        action,
        [item.content() for item in body.items],
        tags=body.tags,
        delay=body.delay,
        on_item=body.on_item,
        split=body.split,
        **more,
    )
    return answer(found, status=201)


@router.get(
    "/executions",
    summary="List executions",
    response_model=page(
        lists.listed(models.ExecutionInfo, "ListedExecution"),
        int,
        "`before` for the next page; null at the end.",
    ),
    responses=NAMING,
)
async def list_executions(
    fifo: Fifo,
    action: OfAction = None,
    group: InQuery = None,
    state: Annotated[list[models.State] | None, Query(description="Only in one of these states.")] = None,
    tag: Annotated[list[str] | None, Query(description="Only with all of these tags.")] = None,
    enqueued_since: Annotated[Moment | None, moment("Enqueued at this time or later:")] = None,
    enqueued_before: Annotated[Moment | None, moment("Enqueued before this time:")] = None,
    finished_since: Annotated[Moment | None, moment("Finished at this time or later:")] = None,
    finished_before: Annotated[Moment | None, moment("Finished before this time:")] = None,
    before: Annotated[int | None, Query(description="Only ids below this one.", ge=1, le=2**63 - 1)] = None,
    include: Annotated[
        list[lists.Content] | None,
        Query(description="Tell these of each one too: they may be large, and are left out otherwise."),
    ] = None,
    limit: Limit = 100,
) -> Json:
    """Executions that fit all that is said, the youngest first; their content only if it is asked for."""
    where = {
        "action": action,
        "group": group,
        "state": state,
        "tags": tag,
        "enqueued_since": enqueued_since,
        "enqueued_before": enqueued_before,
        "finished_since": finished_since,
        "finished_before": finished_before,
    }
    found = await lists.executions(fifo, where, before=before, limit=limit, include=include or ())
    rows = lists.documents(found, include or ())
    return answer(rows, next=found[-1].id if len(found) == limit else None)


@router.get("/executions/{id:int}", summary="One execution", response_model=one(_Whole), responses=NAMING)
async def execution(id: Id, fifo: Fifo) -> Json:  # noqa: A002 - its name
    """An execution with its attempts, where it stands in its line, and why it is not running."""
    found = await fifo.execution(id)
    more = {"position": plain(await fifo.position(id)), "explanation": plain(await fifo.explain(id))}
    return answer(plain(found) | more)


@router.post(
    "/executions/{id:int}/cancel",
    summary="Cancel",
    response_model=one(CancelAnswer),
    responses=CHANGING | NAMING,
)
async def cancel(id: Id, fifo: Changing, body: WhyBody | None = None) -> Json:  # noqa: A002 - its name
    """Cancel an execution: at once if it waits; if it is active, its worker is asked to."""
    return answer({"id": id, "answer": await fifo.cancel(id, reason=(body or WhyBody()).reason)})


@router.post(
    "/executions/{id:int}/retry",
    summary="Put back",
    status_code=201,
    response_model=one(RetryOf),
    responses=ENQUEUING | NAMING,
)
async def retry(id: Id, fifo: Changing, body: RetryBody | None = None) -> Json:  # noqa: A002 - its name
    """Put a finished execution back: a new one with the same content; the old one keeps its outcome."""
    made = await fifo.retry(id, head=(body or RetryBody()).head)
    return answer({"id": made, "retry_of": id}, status=201)


@router.post(
    "/executions/{id:int}/reschedule",
    summary="Reschedule",
    response_model=one(Rescheduled),
    responses=CHANGING | NAMING,
)
async def reschedule(id: Id, fifo: Changing, body: RescheduleBody | None = None) -> Json:  # noqa: A002
    """Change when a delayed execution joins its lane, or when a held one is tried again."""
    body = body or RescheduleBody()
    return answer({"previous": await fifo.reschedule(id, run_at=body.run_at, delay=body.delay)})


@router.post(
    "/executions/{id:int}/finish",
    summary="Finish by hand",
    response_model=one(Changed),
    responses=CHANGING | NAMING,
)
async def finish(id: Id, body: FinishBody, fifo: Changing) -> Json:  # noqa: A002 - its name
    """End an execution as an operator, whatever it is doing; whoever has it loses it."""
    changed = await fifo.finish_execution(id, body.outcome, reason=body.reason, result=body.result)
    return answer({"changed": changed})


@router.post(
    "/executions/cancel", summary="Cancel many", response_model=many(CancelAnswer), responses=CHANGING
)
async def cancel_many(body: CancelManyBody, fifo: Changing) -> Json:
    """Cancel executions by their ids, with an answer for each."""
    said = await fifo.cancel_many(body.ids, reason=body.reason)
    return answer([{"id": each, "answer": what} for each, what in zip(body.ids, said, strict=True)])


@router.post(
    "/executions/cancel-where",
    summary="Cancel by a filter",
    response_model=one(models.Cancelled),
    responses=CHANGING | NAMING,
)
async def cancel_where(body: CancelWhereBody, fifo: Changing) -> Json:
    """Cancel all executions that fit a filter, a bounded piece at a time."""
    where = await _where(fifo, body.where)
    return answer(await fifo.cancel_where(reason=body.reason, dry_run=body.dry_run, **where))


@router.post(
    "/executions/retry", summary="Put many back", response_model=many(models.RetryAnswer), responses=CHANGING
)
async def retry_many(body: RetryManyBody, fifo: Changing) -> Json:
    """Put finished executions back by their ids, as many as can be, with an answer for each."""
    return answer(await fifo.retry_many(body.ids, head=body.head))


@router.post(
    "/executions/retry-where",
    summary="Put back by a filter",
    response_model=one(models.Retried),
    responses=CHANGING | NAMING,
)
async def retry_where(body: RetryWhereBody, fifo: Changing) -> Json:
    """Put back all finished executions that fit a filter; if it names no state, those that failed."""
    where = await _where(fifo, body.where)
    return answer(await fifo.retry_where(head=body.head, dry_run=body.dry_run, **where))


async def _where(fifo: AsyncClient, body: FilterBody) -> dict[str, Any]:
    """Return what a filter says, as the client takes it."""
    said = body.given()
    if said.get("action") is not None and "group" in said:
        [said["group"]] = await named(fifo, said["action"], said["group"])
    return said
