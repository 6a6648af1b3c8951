"""Where people type in their token, once; the browser then sends a cookie."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from pgfifo.web.dependencies import CurrentSettings, Form
from pgfifo.web.pages import rendering
from pgfifo.web.security import COOKIE, new_session, owner

router = APIRouter(include_in_schema=False)


@router.get("/login")
async def page(request: Request, next: str = "/") -> Response:  # noqa: A002 - its name
    """Ask for the token."""
    return _page(request, next)


@router.post("/login")
async def log_in(request: Request, settings: CurrentSettings, form: Form) -> Response:
    """Begin a session, and go where somebody wanted to go."""
    there = form.get("next", "/")
    name = owner(settings, form.get("token", "").strip())
    if name is None:
        return _page(request, there, "This is no token of this server.", 401)
    root = request.scope.get("root_path", "")
    response = RedirectResponse(root + _inside(there), 303)
    response.set_cookie(
        COOKIE,
        new_session(settings, name),
        max_age=int(settings.session),
        path=root or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


@router.post("/logout")
async def log_out(request: Request) -> Response:
    """End the session in this browser."""
    root = request.scope.get("root_path", "")
    response = RedirectResponse(f"{root}/login", 303)
    response.delete_cookie(COOKIE, path=root or "/", httponly=True, samesite="strict")
    return response


def _page(request: Request, there: str, wrong: str = "", status: int = 200) -> Response:
    return rendering.page(request, "login.html", {"there": _inside(there), "wrong": wrong}, status)


def _inside(there: str) -> str:
    """Return where to go on to: a path of this application, and of no other site."""
    inside = there.startswith("/") and not there.startswith("//") and "\\" not in there
    return there if inside and there.isprintable() else "/"
