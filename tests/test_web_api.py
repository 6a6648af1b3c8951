"""The HTTP API, in the process of the tests: what is asked and answered, and what it does to the queue."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

import pgfifo
from pgfifo.web import Settings, create_app

TOKEN = "a-token-of-ann-0001"
AS_ANN = {"Authorization": f"Bearer {TOKEN}"}


@asynccontextmanager
async def api(dsn: str, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which may change things and knows Ann by her token."""
    given: dict[str, Any] = {"allow_changes": True, "tokens": {"ann": TOKEN}} | settings
    async with pgfifo.AsyncClient(dsn) as fifo:
        transport = httpx.ASGITransport(create_app(fifo, settings=Settings(**given)))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=AS_ANN
        ) as client:
            yield client


def run(dsn: str, story: Callable[..., Any], **settings: Any) -> None:
    """Run a story with a client."""
    import asyncio

    async def whole() -> None:
        async with api(dsn, **settings) as client:
            await story(client)

    asyncio.run(whole())


def test_queue_stats_have_the_fields_of_the_origin(dsn: str) -> None:
    with pgfifo.Client(dsn) as fifo:
        fifo.set_policy("deploy", max_concurrent=3)

    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.get("/api/v1/actions/deploy/queue-stats")
        assert answer.status_code == 200
        assert (
            answer.json()["data"]
            | {
                "action_ref": "deploy",
                "queue_length": 0,
                "active_count": 0,
                "max_concurrent": 3,
                "oldest_enqueued_at": None,
                "total_enqueued": 0,
                "total_completed": 0,
            }
            == answer.json()["data"]
        )
        missing = await client.get("/api/v1/actions/deplo/queue-stats")
        assert missing.status_code == 404
        assert missing.headers["content-type"] == "application/problem+json"
        assert missing.json()["type"] == "urn:pgfifo:problem:unknown-action"

    run(dsn, story)


def test_changes_are_in_the_audit_under_the_users_name(dsn: str) -> None:
    with pgfifo.Client(dsn) as fifo:
        fifo.set_policy("deploy", max_concurrent=3)
        assert fifo.acting_as("ann").pause("deploy", reason="release")
        fifo.resume("deploy")
        (resumed, paused) = fifo.audit("deploy")[:2]
    assert (paused.what, paused.actor) == ("pause", "ann")
    assert (resumed.what, resumed.actor) == ("resume", None)
