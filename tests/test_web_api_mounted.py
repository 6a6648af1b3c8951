"""The web application inside of others: FastAPI's, Starlette's, Django's, and behind a proxy's path."""

import subprocess
import sys
import textwrap
from typing import Any

import fastapi
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import pgfifo
from tests.support.web import TOKEN, Api, problem


@pytest.fixture
def dsn(dsn: str) -> str:
    with pgfifo.Client(dsn) as fifo:
        fifo.enqueue("mail")
    return dsn


def whole(api: Api, prefix: str) -> None:
    """Go through what depends on where it is mounted."""
    about = api("GET", f"{prefix}/api/v1/about")
    assert about.json()["data"]["user"] == "ann"
    assert api.stranger("GET", f"{prefix}/healthz").status_code == 200
    problem(api.stranger("GET", f"{prefix}/api/v1/about"), 401)
    made = api("POST", f"{prefix}/api/v1/actions/mail/executions", json={"payload": 1})
    assert made.status_code == 201
    assert made.headers["location"].startswith(f"{prefix}/api/v1/executions/")
    assert api("GET", made.headers["location"]).status_code == 200
    page = api.stranger("GET", f"{prefix}/api/v1/about", headers={"Accept": "text/html"})
    assert page.headers["location"] == f"{prefix}/login?next=%2Fapi%2Fv1%2Fabout"
    entered = api.stranger("POST", f"{prefix}/login", data={"token": TOKEN, "next": "/api/v1/about"})
    assert entered.headers["location"] == f"{prefix}/api/v1/about"
    assert f"Path={prefix}" in entered.headers["set-cookie"]
    assert api.stranger("GET", entered.headers["location"]).status_code == 200


def test_it_is_mounted_in_an_application_of_fastapi(dsn: str) -> None:
    with Api(dsn) as api:
        outer = fastapi.FastAPI()
        outer.mount("/admin/queue", api.app)

        @outer.get("/hello")
        async def hello() -> str:
            return "hello"

        api.use(outer)
        assert api.stranger("GET", "/hello").json() == "hello"
        whole(api, "/admin/queue")
        document = api("GET", "/admin/queue/api/openapi.json").json()
        assert document["servers"] == [{"url": "/admin/queue"}]
        assert "/api/v1/about" in document["paths"]


def test_it_is_mounted_in_an_application_of_starlette(dsn: str) -> None:
    with Api(dsn) as api:

        async def hello(_: Any) -> PlainTextResponse:
            return PlainTextResponse("hello")

        api.use(Starlette(routes=[Mount("/queue", api.app), Route("/hello", hello)]))
        assert api.stranger("GET", "/hello").text == "hello"
        whole(api, "/queue")


@pytest.mark.parametrize("strips", [True, False])
def test_a_proxy_shows_it_under_a_path_that_it_strips_or_not(dsn: str, strips: bool) -> None:
    with Api(dsn, root_path="/queue") as api:

        async def proxy(scope: Any, receive: Any, send: Any) -> None:
            if strips and scope["type"] == "http":
                scope["path"] = scope["path"].removeprefix("/queue")
                scope["raw_path"] = scope["path"].encode()
            await api.app(scope, receive, send)

        api.use(proxy)
        whole(api, "/queue")


def test_it_is_mounted_beside_django(dsn: str) -> None:
    program = f"""
        import asyncio, os
        import django, httpx
        from django.conf import settings
        settings.configure(
            DEBUG=False, SECRET_KEY="x" * 50, ALLOWED_HOSTS=["*"], ROOT_URLCONF="__main__", USE_TZ=True
        )
        django.setup()
        from django.core.asgi import get_asgi_application
        from django.http import HttpResponse
        from django.urls import path
        from starlette.applications import Starlette
        from starlette.routing import Mount
        from pgfifo.web import Settings, create_app

        urlpatterns = [path("hello", lambda request: HttpResponse("hello"))]
        queue = create_app(os.environ["PGFIFO_DSN"], settings=Settings(tokens={{"ann": {TOKEN!r}}}))
        application = Starlette(routes=[Mount("/queue", queue), Mount("/", get_asgi_application())])

        async def main():
            transport = httpx.ASGITransport(application)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                print((await client.get("/hello")).text)
                answer = await client.get(
                    "/queue/api/v1/actions/mail/queue-stats", headers={{"Authorization": "Bearer {TOKEN}"}}
                )
                print(answer.json()["data"]["queue_length"])
                print((await client.get("/queue/api/v1/about")).status_code)

        asyncio.run(main())
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={"PGFIFO_DSN": dsn, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.split() == ["hello", "1", "401"], found.stderr
