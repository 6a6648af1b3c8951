"""Whether the server lives, and whether it can work: for supervisors and load balancers."""

from __future__ import annotations

import asyncio
from typing import Annotated

import psycopg
from fastapi import Query, Request
from starlette.responses import Response

from pgfifo import compatibility
from pgfifo.client_async import AsyncClient
from pgfifo.dsn import Dsn, redact
from pgfifo.errors import SchemaMismatch, SchemaMissing
from pgfifo.metrics import CONTENT_TYPE, exposition
from pgfifo.web.api.routing import new_router, problems
from pgfifo.web.dependencies import CurrentSettings
from pgfifo.web.problems import ProblemError, logger, of_status

router = new_router("health")

_PATIENCE = 3.0


def beside(fifo: AsyncClient) -> AsyncClient:
    """Return a client for `readyz` or `metrics`, with a connection of its own: what hangs has all the others.

    Where the connections are a pool of the application's around this one, it is the same client.
    """
    pool = fifo._own  # noqa: SLF001 - of this package
    if pool is None:
        return fifo
    return AsyncClient(Dsn(pool.conninfo, "argument"), max_size=1, prepare_threshold=None)


@router.get("/healthz", summary="Whether the process lives")
async def healthz() -> dict[str, str]:
    """Answer; the database is not asked."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Whether the database can be reached and its schema fits",
    responses=problems(503),
)
async def readyz(request: Request) -> dict[str, str]:
    """Ask the database, for three seconds at most."""
    try:
        async with asyncio.timeout(_PATIENCE):
            found = await request.app.state.probe.schema_info()
            compatibility.check(found.version, found.min_client)
    except (psycopg.Error, TimeoutError) as error:
        # Nobody has said who he is: what exactly is wrong is for the log.
        logger.warning("not ready: %s", redact(str(error)) or type(error).__name__)
        unfit = isinstance(error, SchemaMissing | SchemaMismatch)
        detail = "pgfifo's schema is missing or does not fit." if unfit else "The database cannot be reached."
        raise ProblemError(of_status(503, detail, headers={"Retry-After": "5"})) from error
    return {"status": "ready"}


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"example": "pgfifo_up 1.0"}}}},
)
async def metrics(
    request: Request,
    settings: CurrentSettings,
    lanes: Annotated[
        int,
        Query(description="How many of the longest lines to tell of besides, lane by lane.", ge=0, le=1000),
    ] = 0,
) -> Response:
    """The queue's metrics in Prometheus' text format; `pgfifo_up` is 0 where the database does not answer."""
    told = await exposition(request.app.state.scraped, lanes=lanes, registry=settings.registry)
    return Response(told, media_type=CONTENT_TYPE)
