"""What all routes of the API have: a time limit, and the problems that they may answer with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from pgfifo.web.problems import MEDIA_TYPE, phrase

TAGS = [
    {"name": "actions", "description": "Kinds of work, their numbers and lanes; pause, resume, close, open."},
    {"name": "executions", "description": "Enqueue, look up, cancel, put back."},
    {
        "name": "policies",
        "description": "Limits and rules: in force, own, overrides, shared limits, history.",
    },
    {"name": "looking", "description": "Workers, slots, schedules, audit, events, minutes."},
    {"name": "whole", "description": "All of the queue at once."},
    {"name": "health", "description": "For supervisors, load balancers and Prometheus."},
]

EXAMPLE = {
    "type": "urn:pgfifo:problem:unknown-action",
    "title": "Unknown action",
    "status": 404,
    "detail": "there is no action 'deplo'",
    "hint": "Did you mean 'deploy'?",
    "code": "QF006",
    "context": {"action": "deplo", "nearest": "deploy"},
}

_CONTENT = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}


class _Route(APIRoute):
    """A route whose answer is not waited for longer than the settings say."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what handles a request."""
        inner = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            async with asyncio.timeout(request.app.state.settings.timeout):
                return await inner(request)

        return bounded


def new_router(tag: str) -> APIRouter:
    """Return a router for a part of the API."""
    return APIRouter(
        tags=[tag],
        route_class=_Route,
        responses=problems(401, 403, 422, 503)
        | {"default": {"description": "Any other problem", "content": _CONTENT}},
        generate_unique_id_function=lambda route: route.name,
    )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of problems that a route may answer with, for the document."""
    return {each: {"description": phrase(each), "content": _CONTENT} for each in statuses}


def example(document: dict[str, Any], status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Return the description of an answer with an example, for the document."""
    return {status: {"content": {"application/json": {"example": document}}}}


CHANGING = problems(409)
"""Of what changes something."""
ENQUEUING = problems(409, 413, 429)
"""Of what enqueues."""
NAMING = problems(404)
"""Of what is about one thing."""
