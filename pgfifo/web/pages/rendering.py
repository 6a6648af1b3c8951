"""Templates: whole pages, and the part of a page that is live."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, Response

import pgfifo
from pgfifo.web.dependencies import settings_of, user_of
from pgfifo.web.pages import charts, formats
from pgfifo.web.pages.looking import NEEDED
from pgfifo.web.problems import Problem, ProblemError, of_status

STATIC = {
    "pgfifo.css": "text/css; charset=utf-8",
    "pgfifo.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

_files = {name: files("pgfifo.web").joinpath("static", name).read_bytes() for name in STATIC}
_version = hashlib.sha256(b"\0".join(_files.values())).hexdigest()[:12]

environment = Environment(
    loader=PackageLoader("pgfifo.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@pass_context
def _url(context: Context, path: str, **parameters: object) -> str:
    """Return the address of a page."""
    return str(context["root"]) + formats.query(path, parameters)


@pass_context
def _execution_url(context: Context) -> Callable[[int], str]:
    """Return what makes addresses of executions, for macros, which do not know where they are."""
    return lambda number: str(context["root"]) + formats.query("/execution", {"id": number})


environment.filters |= formats.FILTERS
environment.globals |= {
    "lane_name": formats.lane,
    "url": _url,
    "execution_url": _execution_url,
    "now": formats.now,
    "spark": charts.spark,
    "version": pgfifo.__version__,
    "asset_version": _version,
}

environment.globals["m"] = environment.get_template("macros.html").module

Values = Mapping[str, Any]


def common(request: HTTPConnection) -> dict[str, Any]:
    """Return what every template may ask for."""
    settings = settings_of(request)
    user = user_of(request)
    return {
        "root": request.scope.get("root_path", ""),
        "title": settings.title,
        "user": user,
        "page_name": "",
        "allow_changes": settings.allow_changes,
        "may": NEEDED if settings.allow_changes else (),
        "problem": None,
        "flash": None,
        "live_url": None,
    }


def page(request: HTTPConnection, template: str, values: Values, status: int = 200) -> HTMLResponse:
    """Return a whole page."""
    text = environment.get_template(template).render(common(request) | dict(values))
    return HTMLResponse(text, status)


def live_part(template: str, values: Values) -> str:
    """Return what of a page is live."""
    found = environment.get_template(template)
    made = found.new_context(dict(values))
    return "".join(found.blocks["live"](made)).strip()


def error_page(request: HTTPConnection, problem: Problem) -> Response:
    """Return the page that tells somebody what went wrong."""
    # Who is a stranger sees nothing of what there is.
    template = "refused.html" if request.scope.get("pgfifo.user") is None else "error.html"
    response = page(request, template, {"problem": problem}, problem.status)
    response.headers.update(problem.headers)
    return response


def asset(name: str) -> Response:
    """Return a file of the pages; its address changes with it, so browsers may keep it."""
    if name not in _files:
        raise ProblemError(of_status(404))
    return Response(
        _files[name],
        media_type=STATIC[name],
        headers={"Cache-Control": "public, max-age=31536000, immutable"},
    )
