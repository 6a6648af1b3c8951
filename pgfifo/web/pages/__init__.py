"""The pages for people: looking at every line, live; and, where it is allowed, acting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from pgfifo.web.dependencies import Changing, Form
from pgfifo.web.pages import rendering
from pgfifo.web.pages.changing import CHANGES, Change, Messages
from pgfifo.web.pages.formats import query
from pgfifo.web.pages.live import Hub
from pgfifo.web.pages.looking import PAGES, Desk, Page
from pgfifo.web.problems import ProblemError, of_status


def install(app: FastAPI) -> None:
    """Add the pages to an application.

    Args:
        app: As `create_app` makes it: with a client and settings.
    """
    desk, hub, messages = Desk(app.state.fifo), Hub(), Messages()
    app.state.error_page = rendering.error_page
    app.state.desk, app.state.live = desk, hub
    router = APIRouter(include_in_schema=False)
    for path, page in PAGES.items():
        router.add_api_route(path, _looking(path, page, desk, messages), methods=["GET"])
        router.add_api_route("/live" + path, _following(path, page, desk, hub), methods=["GET"])

    @router.get("/go")
    async def go(request: Request) -> Response:
        """Go to the execution whose number somebody has typed, or to what is called so."""
        asked = request.query_params.get("for", "").strip()
        number = asked.removeprefix("#").replace(",", "")
        if number.isdecimal():
            there = query("/execution", {"id": number})
        elif any(each.action == asked for each in await desk.overview()):
            there = query("/action", {"name": asked})
        else:
            there = query("/lanes", {"q": asked})
        return RedirectResponse(request.scope.get("root_path", "") + there, 303)

    @router.get("/change/{verb}")
    async def ask(request: Request, verb: str, _: Changing) -> Response:
        """Say what will happen, and ask."""
        change = _change(verb)
        given = dict(request.query_params)
        fields = {name: given[name] for name in change.fields if given.get(name)}
        context = {
            "ask": change.ask(fields | {"value": given.get("value", "")}),
            "verb": verb,
            "fields": fields,
            "page_name": "",
        }
        return rendering.page(request, "change.html", context)

    @router.post("/change/{verb}")
    async def do(request: Request, verb: str, fifo: Changing, form: Form) -> Response:
        """Do it, and go where it can be seen."""
        done = await _change(verb).do(fifo, form)
        desk.forget()
        sign = "&" if "?" in done.there else "?"
        there = f"{done.there}{sign}done={messages.keep(done)}"
        return RedirectResponse(request.scope.get("root_path", "") + there, 303)

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        """Send a file that pages are made of."""
        return rendering.asset(name)

    app.include_router(router)


def _change(verb: str) -> Change:
    found = CHANGES.get(verb)
    if found is None:
        raise ProblemError(of_status(404, "There is no such change."))
    return found


def _asked(page: Page, request: Request) -> dict[str, str]:
    given = request.query_params
    return {name: given[name] for name in page.parameters if given.get(name)}


def _looking(
    path: str, page: Page, desk: Desk, messages: Messages
) -> Callable[[Request], Awaitable[Response]]:
    async def look(request: Request) -> Response:
        asked = _asked(page, request)
        context = await page.load(desk, asked) | {
            "page_name": page.name,
            "asked": asked,
            "path": path,
            "live_url": query("/live" + path, asked),
            "flash": messages.take(request.query_params.get("done")),
        }
        return rendering.page(request, page.template, context)

    return look


def _following(path: str, page: Page, desk: Desk, hub: Hub) -> Callable[[Request], Awaitable[Response]]:
    async def follow(request: Request) -> Response:
        asked = _asked(page, request)
        shared: dict[str, Any] = rendering.common(request) | {
            "page_name": page.name,
            "asked": asked,
            "path": path,
        }
        del shared["user"]  # what is live is the same for everybody

        async def render() -> str:
            return rendering.live_part(page.template, shared | await page.load(desk, asked))

        key = query(f"{shared['root']}{path}", asked)
        if hub.full(key):
            raise ProblemError(of_status(503, "Too many pages are live already."))
        events = hub.follow(key, render, request.headers.get("last-event-id"))
        return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    return follow
