"""The pages for people: looking at every line, live; and, where it is allowed, acting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import psycopg
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from pgfifo.errors import PgfifoError
from pgfifo.models import LaneStats
from pgfifo.web.dependencies import Changing, Form, settings_of
from pgfifo.web.pages import formats, rendering
from pgfifo.web.pages.changing import CHANGES, Change, Messages
from pgfifo.web.pages.formats import query
from pgfifo.web.pages.live import Hub
from pgfifo.web.pages.looking import PAGES, Desk, Page
from pgfifo.web.problems import Problem, ProblemError, of_status, problem_of, wants_page

_LANES = 1000


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
        elif lane := await _lane(desk, asked):
            there = query("/lane", {"action": lane.action, "group": lane.group_text})
        else:
            there = query("/lanes", {"q": asked})
        return RedirectResponse(request.scope.get("root_path", "") + there, 303)

    @router.get("/change/{verb}")
    async def ask(request: Request, verb: str, _: Changing) -> Response:
        """Say what will happen, and ask."""
        change = _change(verb)
        given = dict(request.query_params)
        if verb not in await desk.rights():
            raise ProblemError(
                of_status(
                    403,
                    "The database role of this server may not do this.",
                    hint="Grant it the right: see the roles of pgfifo, or give the server another DSN.",
                )
            )
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
        change = _change(verb)
        try:
            done = await change.do(fifo, form)
        except (ProblemError, psycopg.Error, PgfifoError) as error:
            again = _again(request, verb, change, form, problem_of(error))
            if again is None:
                raise
            return again
        desk.forget()
        sign = "&" if "?" in done.there else "?"
        there = f"{done.there}{sign}done={messages.keep(done)}"
        return RedirectResponse(request.scope.get("root_path", "") + there, 303)

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        """Send a file that pages are made of."""
        return rendering.asset(name)

    app.include_router(router)


def _again(request: Request, verb: str, change: Change, form: Form, problem: Problem) -> Response | None:
    """Return the form as it was filled in, with what is wrong; None if it cannot be mended there."""
    if problem.status != 422 or not wants_page(request):
        return None
    fields = {name: form[name] for name in change.fields if form.get(name)}
    try:
        ask = change.ask(fields)
    except (ProblemError, PgfifoError):
        return None
    if not ask.inputs:
        return None
    inputs = tuple(replace(each, value=form.get(each.name, "")) for each in ask.inputs)
    context = {"ask": replace(ask, inputs=inputs), "verb": verb, "fields": fields, "problem": problem}
    return rendering.page(request, "change.html", context, problem.status)


def _change(verb: str) -> Change:
    found = CHANGES.get(verb)
    if found is None:
        raise ProblemError(of_status(404, "There is no such change."))
    return found


async def _may(desk: Desk, request: Request) -> frozenset[str]:
    """Return the changes that can be made here: the server allows them, and the database its role."""
    return await desk.rights() if settings_of(request).allow_changes else frozenset()


async def _lane(desk: Desk, asked: str) -> LaneStats | None:
    """Return the lane that pages show under this name."""
    for each in await desk.overview():
        action, name = each.action, asked.removeprefix(f"{each.action} ")
        if name != asked:
            for lane in await desk.fifo.find_lanes(action, search=name, limit=_LANES):
                if formats.lane(action, lane.group_text) == asked:
                    return lane
    return None


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
            "may": await _may(desk, request),
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
            may = await _may(desk, request)
            return rendering.live_part(page.template, shared | {"may": may} | await page.load(desk, asked))

        key = query(f"{shared['root']}{path}", asked)
        if hub.full(key):
            raise ProblemError(of_status(503, "Too many pages are live already."))
        events = hub.follow(key, render, request.headers.get("last-event-id"))
        return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    return follow
