"""What all routes of the API have: a time limit, and the problems that they may answer with."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.responses import Response

from pgfifo.web.problems import MEDIA_TYPE, Problem, ProblemError, escaped, of_status, phrase

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
    """A route that refuses what it would not look at, and whose answer is not waited for too long."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what handles a request."""
        inner = super().get_route_handler()

        # A supervisor or a scraper may add what it likes.
        known = None if "health" in self.tags else _parameters(self.dependant)

        async def bounded(request: Request) -> Response:
            if known is not None:
                _refuse_unknown(request, known)
            if self.body_field is not None:
                _refuse_other_than_json(request)
            async with asyncio.timeout(request.app.state.settings.timeout):
                return await inner(request)

        return bounded


def _parameters(of: Dependant) -> set[str]:
    """Return the names of the parameters of the query that a route looks at, or what it depends on."""
    return {each.alias for each in of.query_params}.union(*(_parameters(each) for each in of.dependencies))


def _refuse_unknown(request: Request, known: set[str]) -> None:
    unknown = [name[:100] for name in dict.fromkeys(request.query_params) if name not in known]
    if unknown:
        errors = [
            {"in": "query", "at": f"/{escaped(each)}", "message": "There is no such parameter"}
            for each in unknown
        ]
        near = difflib.get_close_matches(unknown[0], sorted(known), 1)
        takes = f"It takes {', '.join(sorted(known))}." if known else "It takes none."
        hint = f"Did you mean {near[0]!r}? {takes}" if near else takes
        detail = f"The query has no parameter {unknown[0]!r}."
        raise ProblemError(
            Problem(422, "invalid-request", "Invalid request", detail, hint=hint, errors=errors)
        )


def _refuse_other_than_json(request: Request) -> None:
    headers = request.headers
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        said = f"is sent as {kind}" if kind else "does not say what it is"
        hint = "Send it with Content-Type: application/json."
        raise ProblemError(of_status(415, f"The body has to be JSON, and {said}.", hint=hint))


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
