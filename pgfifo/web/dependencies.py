"""What routes ask for: who sends the request, the queue, and whether it may be changed."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from pgfifo.client_async import AsyncClient
from pgfifo.web.problems import ProblemError, of_status
from pgfifo.web.security import User
from pgfifo.web.settings import Settings


def settings_of(request: HTTPConnection) -> Settings:
    """Return the application's settings."""
    settings: Settings = request.app.state.settings
    return settings


def user_of(request: HTTPConnection) -> User:
    """Return who sends the request."""
    user: User | None = request.scope.get("pgfifo.user")
    return user or User("", "nobody")


def client_of(request: Request) -> AsyncClient:
    """Return the queue, to look at."""
    fifo: AsyncClient = request.app.state.fifo
    return fifo


def require_write(request: Request) -> AsyncClient:
    """Return the queue, to enqueue.

    Raises:
        ProblemError: The application only reads.
    """
    if not settings_of(request).allow_changes:
        raise ProblemError(
            of_status(
                403,
                "This server only reads.",
                hint="Start it with --allow-changes, or make it with Settings(allow_changes=True).",
            )
        )
    return client_of(request)


def require_change(request: Request) -> AsyncClient:
    """Return the queue, to change it in the name of whoever sends the request; the audit has it as actor.

    Raises:
        ProblemError: The application only reads.
    """
    fifo = require_write(request)
    name = user_of(request).name
    return fifo.acting_as(name) if name else fifo


async def form_of(request: Request) -> dict[str, str]:
    """Return the fields of a form; of those with one name, the last."""
    try:
        text = (await request.body()).decode()
        return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=1000))
    except ValueError:
        raise ProblemError(of_status(400, "The form cannot be read.")) from None


CurrentSettings = Annotated[Settings, Depends(settings_of)]
CurrentUser = Annotated[User, Depends(user_of)]
Fifo = Annotated[AsyncClient, Depends(client_of)]
"""The queue, for a route that only looks."""
Producing = Annotated[AsyncClient, Depends(require_write)]
"""The queue, for a route that enqueues, which no audit records: 403 where the application only reads."""
Changing = Annotated[AsyncClient, Depends(require_change)]
"""The queue, for a route that changes something: 403 where the application only reads."""
Form = Annotated[dict[str, str], Depends(form_of)]
"""The fields of a form that a page of ours has sent."""
