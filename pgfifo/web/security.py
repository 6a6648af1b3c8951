"""Who somebody is, and what is refused before anything else looks at a request.

`Guard` stands in front of all of the application. In this order it refuses requests under a foreign host name
(DNS rebinding), addresses that are not text, changes that a page of another site has sent (CSRF), bodies that
are too large, and whoever cannot say who he is. It also puts the headers on that keep browsers from doing
what nobody has asked for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import inspect
import ipaddress
import time
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote_to_bytes, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgfifo.web.problems import Problem, of_status, problem_of, told, wants_page
from pgfifo.web.settings import LOCAL_NAMES, Settings

How = Literal["token", "session", "proxy", "application", "nobody"]

COOKIE = "pgfifo_session"
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/login"})
"""What can be had without saying who one is."""
OPEN_FOLDER = "/static/"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_LONGEST_NAME = 200
_DIGITS = 18
_CONTENT = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' data:",
    "font-src 'self'",
    "connect-src 'self'",
    "form-action 'self'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
)
_HEADERS = {
    "content-security-policy": "; ".join(_CONTENT),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: with that, forms of our own would say Origin: null.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class User:
    """Who sends a request.

    Attributes:
        name: His name, which the audit keeps as actor; empty if he has none.
        how: How it is known: by his ``token``, a ``session`` of the page that began with it, a ``proxy``, the
            ``application`` around this one; ``nobody`` where nobody has to say.
    """

    name: str
    how: How


class Guard:
    """The middleware around the application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # there are no websockets here
        if self._settings.root_path:
            scope["root_path"] = self._settings.root_path
        began = False

        async def sending(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["method"] == "HEAD":  # the server leaves the body out
            scope = dict(scope, method="GET")
        request = HTTPConnection(scope)
        self._believe_proxy(request)
        try:
            refusal = await self._refusal(request)
            if refusal is not None:
                await refusal(scope, receive, sending)
                return
            await self._app(scope, self._bounded(request, receive), sending)
        except Exception as error:
            if began:
                raise
            await told(request, problem_of(error))(scope, receive, sending)

    def _believe_proxy(self, request: HTTPConnection) -> None:
        """Take from a trusted proxy how the browser reached it."""
        if request.headers.get("x-forwarded-proto") == "https" and self._from_proxy(request):
            request.scope["scheme"] = "https"

    def _from_proxy(self, request: HTTPConnection) -> bool:
        return self._settings.trusts(request.client.host if request.client else None)

    async def _refusal(self, request: HTTPConnection) -> Response | None:
        """Return why a request is not handed on; None if it is."""
        path = path_of(request.scope)
        if not self._known_host(request.headers.get("host")):
            return told(
                request,
                of_status(
                    421,
                    "This server is not called by that name.",
                    hint="Name it: allowed_hosts in the settings, --allowed-host of pgfifo serve.",
                ),
            )
        if not _is_text(request.scope):
            return told(
                request,
                of_status(
                    400,
                    "The address is not UTF-8.",
                    hint="Encode what is not ASCII as UTF-8, each byte as % and two digits.",
                ),
            )
        if request.scope["method"] not in SAFE_METHODS and self._foreign(request):
            return told(
                request,
                of_status(
                    403,
                    "A page of another site has sent this, and may not change anything here.",
                    hint="If a proxy calls this server by another name: allow the name that people use.",
                ),
            )
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > _DIGITS or int(length) > self._settings.max_body:
            return told(request, _too_large(self._settings))
        user = await self._user(request)
        request.scope["pgfifo.user"] = user
        if user is None and path not in OPEN_PATHS and not path.startswith(OPEN_FOLDER):
            return self._unknown(request)
        return None

    def _known_host(self, host: str | None) -> bool:
        hosts = self._settings.hosts
        if "*" in hosts:
            return True
        if not host:
            return False
        name = _host_of(f"//{host}") if "@" not in host else None
        if name is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            name = name.rstrip(".")
            return name in hosts or ("localhost" in hosts and name.endswith(".localhost"))
        return True  # an address belongs to nobody who could give it another meaning

    def _foreign(self, request: HTTPConnection) -> bool:
        """Tell whether a browser sends this for a page of another site.

        A browser says so itself, and no page can keep it from that: in Sec-Fetch-Site, or, where the
        connection is not secure, in Origin. What says neither is no browser.
        """
        site = request.headers.get("sec-fetch-site")
        if site is not None:
            return site not in ("same-origin", "none")
        origin = request.headers.get("origin")
        if origin is None:
            return False
        # A proxy may have put another Host in place of the name that it is called by, which was allowed then.
        proxied = _host_of(origin) in self._settings.hosts - {*LOCAL_NAMES}
        return not proxied and origin.partition("://")[2].lower() != request.headers.get("host", "").lower()

    async def _user(self, request: HTTPConnection) -> User | None:
        """Return who it is; None if he has to say and does not."""
        settings = self._settings
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and settings.tokens:
            name = owner(settings, given.strip())
            return None if name is None else User(name, "token")
        if settings.authenticate is not None:
            found = settings.authenticate(request)
            name = await found if inspect.isawaitable(found) else found
            if name is not None:
                return User(name, "application")
        if settings.proxy_header and self._from_proxy(request):
            named = request.headers.getlist(settings.proxy_header)
            # Two of them: one is somebody's who has got his own past the proxy.
            if len(named) == 1 and (name := _readable(named[0])):
                return User(name, "proxy")
        name = of_session(settings, request.cookies.get(COOKIE, ""))
        if name is not None:
            return User(name, "session")
        return User("", "nobody") if settings.unauthenticated else None

    def _unknown(self, request: HTTPConnection) -> Response:
        """Return the answer for somebody who does not say who he is: the login page for people."""
        if self._settings.tokens and request.scope["method"] == "GET" and wants_page(request):
            query = request.scope["query_string"].decode("latin-1")
            there = path_of(request.scope) + (f"?{query}" if query else "")
            root = request.scope.get("root_path", "")
            return RedirectResponse(f"{root}/login?next={quote(there, safe='')}", 303)
        return told(
            request,
            of_status(
                401,
                "It is not known who sends this.",
                hint="Send Authorization: Bearer with a token of this server."
                if self._settings.tokens
                else None,
                headers={"WWW-Authenticate": "Bearer"},
            ),
        )

    def _bounded(self, request: HTTPConnection, receive: Receive) -> Receive:
        """Return what receives no more than a body may have."""
        left = self._settings.max_body

        async def receiving() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                problem = _too_large(self._settings)
                raise HTTPException(problem.status, problem.detail)
            return message

        return receive if request.scope["method"] in SAFE_METHODS else receiving


def _too_large(settings: Settings) -> Problem:
    return of_status(413, f"The request has more than {settings.max_body:,} bytes.")


def _is_text(scope: Scope) -> bool:
    """Tell whether the path and the query are UTF-8; what is not would be taken for another name.

    It looks at what was sent: the path comes decoded, with replacement characters for what is no text.
    """
    try:
        for sent in (scope.get("raw_path") or b"", scope["query_string"]):
            unquote_to_bytes(sent.decode("ascii")).decode()
    except UnicodeDecodeError:
        return False
    return True


def _host_of(url: str) -> str | None:
    """Return the host in an address, in lower case; None if there is none."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def path_of(scope: Scope) -> str:
    """Return a request's path inside of this application, wherever it is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    inside = path.removeprefix(root) if root and (path == root or path.startswith(f"{root}/")) else path
    return inside or "/"


def owner(settings: Settings, token: str) -> str | None:
    """Return whose token this is; it takes as long whatever is guessed."""
    digest = hashlib.sha256(token.encode()).digest()
    found = None
    for name, known in settings.tokens.items():
        if hmac.compare_digest(digest, hashlib.sha256(known.encode()).digest()):
            found = name
    return found


def new_session(settings: Settings, name: str) -> str:
    """Return the cookie of somebody who has shown his token.

    It holds his name and when it ends, under a seal made with his token: no server has to remember it, and it
    ends with the token.
    """
    what = f"{_encoded(name.encode())}.{int(time.time() + settings.session)}"
    return f"{what}.{_seal(settings.tokens[name], what)}"


def of_session(settings: Settings, cookie: str) -> str | None:
    """Return whose session a cookie is; None if it is none, or over."""
    what, _, seal = cookie.rpartition(".")
    encoded, _, ends = what.partition(".")
    try:
        name = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except (ValueError, binascii.Error):
        return None
    token = settings.tokens.get(name)
    if token is None or not hmac.compare_digest(seal.encode(), _seal(token, what).encode()):
        return None
    return name if int(ends) > time.time() else None


def _seal(token: str, what: str) -> str:
    key = hashlib.sha256(b"a session of pgfifo\0" + token.encode()).digest()
    return _encoded(hmac.digest(key, what.encode(), "sha256"))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _readable(name: str) -> str | None:
    """Return a user's name from a header, if it can be one."""
    try:
        name = name.encode("latin-1").decode()
    except UnicodeError:
        return None
    name = name.strip()
    return name if name and len(name) <= _LONGEST_NAME and name.isprintable() else None
