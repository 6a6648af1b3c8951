"""The application: what it is made of."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response

import pgfifo
from pgfifo.client_async import AsyncClient
from pgfifo.web import api, health, login, pages
from pgfifo.web.problems import ProblemError, problem_of, told
from pgfifo.web.security import Guard
from pgfifo.web.settings import Settings

if TYPE_CHECKING:
    from psycopg_pool import AsyncConnectionPool

    from pgfifo.dsn import Dsn


def create_app(
    database: str | Dsn | AsyncConnectionPool[Any] | AsyncClient | None = None, *, settings: Settings
) -> FastAPI:
    """Make the application: the API under /api/v1, health, metrics, and the pages.

    It can be served by itself, or be mounted in an application of FastAPI's, Starlette's, or any other that
    speaks ASGI. It connects when it is first used.

    Args:
        database: A client of one's own, or what `pgfifo.AsyncClient` takes: a DSN, a pool, or None.
        settings: Who may use it, and for what.

    Returns:
        An ASGI application.
    """
    # Nothing is prepared, as there may be a pooler in between.
    fifo = database if isinstance(database, AsyncClient) else AsyncClient(database, prepare_threshold=None)
    probe, scraped = health.beside(fifo), health.beside(fifo)
    made_here = [each for each in (fifo, probe, scraped) if each is not database]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for each in made_here:
            await each.close()

    app = FastAPI(
        title=settings.title,
        version=pgfifo.__version__,
        openapi_url="/api/openapi.json",
        docs_url=None,  # they fetch their scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        middleware=[Middleware(Guard, settings=settings)],
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.fifo = fifo
    app.state.probe = probe
    app.state.scraped = scraped
    app.state.error_page = None
    for kind in (psycopg.Error, ProblemError, RequestValidationError, HTTPException, TimeoutError):
        app.add_exception_handler(kind, _told)
    app.include_router(health.router)
    app.include_router(login.router)
    app.include_router(api.router)
    app.openapi = functools.partial(api.document, app)  # type: ignore[method-assign]
    pages.install(app)
    return app


async def _told(request: Request, error: Exception) -> Response:
    """Tell what went wrong."""
    return told(request, problem_of(error))
