"""Where people type in their token, once; the browser then sends a cookie."""

from __future__ import annotations

from html import escape
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from pgfifo.web.dependencies import CurrentSettings, Form
from pgfifo.web.security import COOKIE, new_session, owner

router = APIRouter(include_in_schema=False)

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title></head>
<body>
<h1>{title}</h1>
<form method="post" action="{root}/login">
<p role="alert">{wrong}</p>
<p><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus></p>
<input type="hidden" name="next" value="{there}">
<p><button>Log in</button></p>
</form>
</body>
</html>
"""


@router.get("/login")
async def page(request: Request, settings: CurrentSettings, next: str = "/") -> Response:  # noqa: A002 - its name
    """Ask for the token."""
    return _page(request, settings.title, next)


@router.post("/login")
async def log_in(request: Request, settings: CurrentSettings, form: Form) -> Response:
    """Begin a session, and go where somebody wanted to go."""
    there = form.get("next", "/")
    name = owner(settings, form.get("token", "").strip())
    if name is None:
        return _page(request, settings.title, there, "This is no token of this server.", 401)
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


def _page(request: Request, title: str, there: str, wrong: str = "", status: int = 200) -> HTMLResponse:
    values = {
        "title": title,
        "root": request.scope.get("root_path", ""),
        "there": _inside(there),
        "wrong": wrong,
    }
    return HTMLResponse(_PAGE.format_map({name: escape(value) for name, value in values.items()}), status)


def _inside(there: str) -> str:
    """Return where to go on to: a path of this application, and of no other site."""
    parts = urlsplit(there)
    inside = there.startswith("/") and not there.startswith("//") and "\\" not in there
    return there if inside and not parts.netloc and there.isprintable() else "/"
