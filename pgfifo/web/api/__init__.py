"""The JSON API, under /api/v1, and its document."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi

import pgfifo
from pgfifo.web.api import actions, executions, looking, policies, whole
from pgfifo.web.api.routing import EXAMPLE, TAGS, problems
from pgfifo.web.problems import MEDIA_TYPE
from pgfifo.web.security import COOKIE, OPEN_PATHS

DESCRIPTION = """Look at the queue, and change it.

Every answer has what was asked for under `data`; a page of a list has under `next` where to go on. What goes
wrong is told by a problem document (RFC 9457, `application/problem+json`), whose `type` and `code` are for
programs. Times are ISO 8601 in UTC, durations are seconds. Ids are integers of up to 63 bits."""

router = APIRouter(prefix="/api/v1")
for each in (actions, executions, policies, looking, whole):
    router.include_router(each.router)


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document; it is made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title="pgfifo",
            version=pgfifo.__version__,
            summary="An ordered queue with limits, inside PostgreSQL.",
            description=DESCRIPTION,
            routes=app.routes,
            tags=TAGS,
        )
        parts = made.setdefault("components", {})
        parts.setdefault("schemas", {})["Problem"] = _PROBLEM
        parts["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer", "description": "A token of the server."},
            "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "After a login."},
        }
        made["security"] = [{"token": []}, {"session": []}]
        for path, methods in made["paths"].items():
            for operation in methods.values():
                if "requestBody" in operation:
                    told = {str(status): each for status, each in problems(415).items()}
                    operation["responses"] |= told
                if path in OPEN_PATHS:
                    operation["security"] = []
        app.openapi_schema = made
    # Where it is mounted: some versions of FastAPI put that here, others into what is returned.
    return app.openapi_schema | ({"servers": app.servers} if app.servers else {})


_PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": f"What went wrong: `{MEDIA_TYPE}`, RFC 9457.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {
            "type": "string",
            "description": "What kind of problem, as `urn:pgfifo:problem:unknown-action`.",
        },
        "title": {"type": "string", "description": "The kind in words."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "What is wrong this time."},
        "hint": {"type": "string", "description": "What to do about it."},
        "code": {"type": "string", "description": "The SQLSTATE, as `QF006`."},
        "context": {"type": "object", "description": "The values that the detail speaks of."},
        "errors": {
            "type": "array",
            "description": "What in the request does not fit.",
            "items": {
                "type": "object",
                "properties": {
                    "in": {"type": "string", "description": "`body`, `query`, `path` or `header`."},
                    "at": {"type": "string", "description": "Where in it, as a JSON pointer."},
                    "message": {"type": "string"},
                },
            },
        },
    },
    "examples": [EXAMPLE],
}
