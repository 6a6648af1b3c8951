"""What goes wrong, as a problem document (RFC 9457): never a traceback, never a password."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from math import ceil
from typing import Any

import psycopg
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from pgfifo import errors
from pgfifo.dsn import redact

logger = logging.getLogger("pgfifo.web")

MEDIA_TYPE = "application/problem+json"
TYPE = "urn:pgfifo:problem:"

STATUS: dict[type[errors.PgfifoError], int] = {
    errors.QueueFull: 429,
    errors.ConcurrencyLimit: 409,
    errors.RateLimit: 429,
    errors.QuotaExceeded: 429,
    errors.ActionClosed: 409,
    errors.UnknownAction: 404,
    errors.GroupMismatch: 422,
    errors.GroupTooLong: 422,
    errors.PayloadTooLarge: 413,
    errors.LeaseLost: 409,
    errors.AlreadyHeld: 409,
    errors.SlotTimeout: 504,
    errors.SlotLost: 409,
    errors.ExecutionFailed: 409,
    errors.SchemaMissing: 503,
    errors.SchemaMismatch: 503,
    errors.CommitUnknown: 503,
    errors.InTransaction: 500,
    errors.IsolationLevel: 500,
    errors.TooManyLanes: 422,
    errors.UnknownExecution: 404,
    errors.InvalidValue: 422,
    errors.Busy: 409,
    errors.WaitTimeout: 504,
    errors.InvalidPayload: 422,
    errors.NotPermitted: 403,
    errors.EventsGone: 410,
    errors.SnapshotTooOld: 503,
}
"""The status that each error of pgfifo's is answered with."""

_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")
_AGAIN_SECONDS = 5
_KEPT_BACK = {"database", "server"}
"""Values of errors that say more about the database than whoever asks has to know."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        status: The HTTP status.
        name: What kind it is, as ``unknown-action``; the end of the document's ``type``.
        title: The kind in words, the same for all of it.
        detail: What is wrong this time, in one sentence.
        hint: What to do about it.
        code: The SQLSTATE, if PostgreSQL or pgfifo raised it.
        context: The values that the detail speaks of.
        errors: What in the request is wrong, and where.
        headers: Headers of the response, such as Retry-After.
    """

    status: int
    name: str
    title: str
    detail: str
    hint: str | None = None
    code: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    errors: list[dict[str, Any]] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the document."""
        said: dict[str, Any] = {
            "type": TYPE + self.name,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        more = {"hint": self.hint, "code": self.code, "context": self.context or None, "errors": self.errors}
        return said | {name: value for name, value in more.items() if value is not None}


class ProblemError(Exception):
    """Raised to answer a request with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def of_status(status: int, detail: str | None = None, **more: Any) -> Problem:  # noqa: ANN401 - of Problem
    """Return a problem that is told by its HTTP status alone."""
    said = phrase(status)
    return Problem(status, said.lower().replace(" ", "-"), said, detail or f"{said}.", **more)


def phrase(status: int) -> str:
    """Return what a status means; the same in all versions of Python, since problems are named by it."""
    return {413: "Content Too Large", 422: "Unprocessable Content"}.get(status) or HTTPStatus(status).phrase


def problem_of(error: Exception) -> Problem:
    """Return what to tell about an error; what nobody outside has to know is logged instead."""
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, RequestValidationError):
        return _of_request(error)
    if isinstance(error, HTTPException) and error.status_code == 404:
        return of_status(
            404,
            "There is nothing at this address.",
            hint="An execution's id is an integer. What there is for programs is in /api/openapi.json.",
        )
    if isinstance(error, HTTPException):
        return of_status(error.status_code, error.detail, headers=error.headers or {})
    if isinstance(error, TimeoutError) and not isinstance(error, errors.PgfifoError):
        return of_status(
            504,
            "The database did not answer in time; a change may have been made or not.",
            hint="Look first.",
        )
    if isinstance(error, psycopg.Error):
        found = errors.translated(error)
        return _of_pgfifo(found) if isinstance(found, errors.PgfifoError) else _of_postgres(found)
    logger.error("%s", error, exc_info=error)
    return of_status(500, "Something went wrong here; the server's log says what.")


def _of_request(error: RequestValidationError) -> Problem:
    """Return what of a request does not fit; the values themselves are not repeated."""
    found = [
        {"in": str(each["loc"][0]), "at": _pointer(each["loc"][1:]), "message": each["msg"]}
        for each in error.errors()
    ]
    first = found[0] if found else {"in": "request", "at": "", "message": "it cannot be read"}
    status = 400 if any(each["type"] == "json_invalid" for each in error.errors()) else 422
    return Problem(
        status,
        "invalid-request",
        "Invalid request",
        f"{first['in']} {first['at']}: {first['message']}".replace(" :", ":"),
        errors=found,
    )


def _pointer(where: tuple[int | str, ...]) -> str:
    return "".join(f"/{escaped(str(each))}" for each in where)


def escaped(name: str) -> str:
    """Return a name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _of_pgfifo(error: errors.PgfifoError) -> Problem:
    kind = type(error)
    status = next((STATUS[each] for each in kind.__mro__ if each in STATUS), 500)
    if isinstance(error, errors.InvalidValue) and "nearest" in error.detail:
        status = 404
    words = _WORD.sub(" ", kind.__name__)
    context = {name: value for name, value in error.detail.items() if name not in _KEPT_BACK}
    if isinstance(context.get("name"), str):  # what SQL calls p_cursor is the API's cursor
        context["name"] = context["name"].removeprefix("p_")
    return Problem(
        status,
        words.replace(" ", "-").lower(),
        words.capitalize(),
        redact(error.message),
        hint=None if error.hint is None else redact(error.hint),
        code=error.sqlstate,
        context=context,
        headers=_retry_after(error),
    )


def _retry_after(error: errors.PgfifoError) -> dict[str, str]:
    """Return when to try again, where that is known or worth a try."""
    if isinstance(error, errors.RateLimit | errors.QuotaExceeded):
        until = error.until if isinstance(error, errors.RateLimit) else error.resets_at
        if until is None:
            return {}
        seconds = (datetime.fromisoformat(until) - datetime.now(UTC)).total_seconds()
        return {"Retry-After": str(max(1, ceil(seconds)))}
    if isinstance(error, errors.QueueFull | errors.Busy | errors.SnapshotTooOld):
        return {"Retry-After": "1"}
    if isinstance(error, errors.SchemaMissing | errors.SchemaMismatch):
        return {"Retry-After": str(_AGAIN_SECONDS)}
    return {}


def _of_postgres(error: psycopg.Error) -> Problem:
    """Return what to tell about an error of PostgreSQL's own, by the class of its code."""
    state = error.sqlstate
    said = redact((error.diag.message_primary or str(error)).strip())
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return of_status(
            403,
            "The database role of this server may not do this.",
            hint="Grant it the right: see the roles of pgfifo, or give the server another DSN.",
            code=state,
        )
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return of_status(
            403, "This server is connected to a read replica, which takes no changes.", code=state
        )
    if unreachable(error):
        logger.warning("the database cannot be reached: %s", said)
        return of_status(
            503,
            "The database cannot be reached.",
            code=state,
            headers={"Retry-After": str(_AGAIN_SECONDS)},
        )
    if isinstance(error, psycopg.errors.QueryCanceled):
        return of_status(504, "The database did not answer in time.", code=state)
    if state is not None and state[:2] == "22":  # a value that no argument can have
        return of_status(422, said, code=state)
    if state is not None and state[:2] == "40":
        return of_status(
            503, "It met another transaction; try again.", code=state, headers={"Retry-After": "1"}
        )
    logger.error("%s: %s", state, said, exc_info=error)
    return of_status(500, "Something went wrong in the database; the server's log says what.", code=state)


def unreachable(error: psycopg.Error) -> bool:
    """Tell whether there is no server to talk to, or it does not let this role in."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    return state[:2] in ("08", "28") or state[:3] == "57P" or state in ("3D000", "53300")


class ProblemResponse(Response):
    """A problem document."""

    media_type = MEDIA_TYPE

    def __init__(self, problem: Problem) -> None:
        body = json.dumps(problem.document(), ensure_ascii=False, default=str).encode(errors="replace")
        super().__init__(body, problem.status, dict(problem.headers))


def wants_page(request: HTTPConnection) -> bool:
    """Tell whether a person asks, with a browser."""
    return "text/html" in request.headers.get("accept", "")


def told(request: HTTPConnection, problem: Problem) -> Response:
    """Return the answer that tells a problem: to programs a document, to people a page."""
    page = request.app.state.error_page
    if page is not None and wants_page(request):
        response: Response = page(request, problem)
        return response
    return ProblemResponse(problem)
