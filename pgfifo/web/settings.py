"""What an application is made with. Every default is the safe one."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pgfifo.errors import InvalidValue

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from starlette.requests import HTTPConnection

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Authenticate = Callable[["HTTPConnection"], "str | Awaitable[str | None] | None"]

SHORTEST_TOKEN = 16
LOOPBACK = ("127.0.0.0/8", "::1/128")
LOCAL_NAMES = ("localhost",)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST = re.compile(r"[0-9A-Za-z._-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the application behaves.

    At least one way of telling who somebody is has to be given: `tokens`, `proxy_header` or `authenticate`;
    or `unauthenticated`, that everybody who reaches it may use it.

    Attributes:
        allow_changes: Whether anything can be changed: enqueues, cancels, pauses, policies. Defaults to
            false: it only reads.
        tokens: A name for each token, and the token, 16 characters or more: sent as ``Authorization: Bearer``
            by programs, typed into the login page by people. The name goes into the audit.
        proxy_header: The header in which a reverse proxy names the user that it has authenticated, such as
            ``X-Forwarded-User``. Believed only if the proxy is one of `trusted_proxies`.
        trusted_proxies: Addresses and networks of such proxies; ``unix`` for a Unix socket. Defaults to this
            machine.
        authenticate: Your own: takes the request (``starlette.requests.HTTPConnection``), returns the user's
            name, or None for nobody; plain or async.
        unauthenticated: Whether those who name nobody are let in too.
        allowed_hosts: Host names under which it may be called; ``*`` for any. Addresses always may. Defaults
            to ``localhost`` alone where a browser on the same machine is let in without a secret (it could be
            led there by a name that somebody else's site owns), else to any.
        title: What the pages are called.
        root_path: The path under which a reverse proxy shows it, such as ``/queue``. Not needed for an
            application that it is mounted in.
        max_body: The most bytes that a request may have. Defaults to 16 MiB.
        timeout: After how many seconds a call is given up. Defaults to 30.
        registry: What ``/metrics`` tells besides the queue: a registry of prometheus-client. Defaults to
            none.
        session: For how many seconds somebody who has logged in on the page stays so. Defaults to 12 hours.
    """

    allow_changes: bool = False
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy_header: str | None = None
    trusted_proxies: Sequence[str] = LOOPBACK
    authenticate: Authenticate | None = None
    unauthenticated: bool = False
    allowed_hosts: Sequence[str] | None = None
    title: str = "pgfifo"
    root_path: str = ""
    max_body: int = 16 * 1024 * 1024
    timeout: float = 30.0
    registry: CollectorRegistry | None = None
    session: float = 12 * 3600.0
    networks: tuple[Network, ...] = field(init=False, repr=False)
    """`trusted_proxies`, read."""
    hosts: frozenset[str] = field(init=False, repr=False)
    """`allowed_hosts`, in lower case, with the default."""

    def __post_init__(self) -> None:
        if not (self.tokens or self.proxy_header or self.authenticate or self.unauthenticated):
            raise InvalidValue(
                "it is not said who may use the application",
                detail={"name": "settings"},
                hint="Give tokens, proxy_header or authenticate; or unauthenticated=True, for everybody.",
            )
        for name, token in self.tokens.items():
            if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
                raise InvalidValue(
                    f"the token of {name!r} is not {SHORTEST_TOKEN} or more ASCII characters without spaces",
                    detail={"name": "tokens"},
                    hint="Make one with: python -c 'import secrets; print(secrets.token_urlsafe())'",
                )
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise InvalidValue(
                f"the root path {self.root_path!r} does not look like /queue",
                detail={"name": "root_path", "value": self.root_path},
                hint="It begins with a slash and does not end with one.",
            )
        if self.proxy_header is not None and not _HEADER.fullmatch(self.proxy_header):
            raise InvalidValue(
                f"{self.proxy_header!r} is no name of a header",
                detail={"name": "proxy_header", "value": self.proxy_header},
                hint="Write it like X-Forwarded-User.",
            )
        for host in self.allowed_hosts or ():
            if host != "*" and not _HOST.fullmatch(host) and not _is_address(host):
                raise InvalidValue(
                    f"{host!r} is no host name",
                    detail={"name": "allowed_hosts", "value": host},
                    hint="Write it like queue.example.com, in ASCII, without a scheme, a port or a path.",
                )
        object.__setattr__(
            self, "networks", tuple(_network(each) for each in self.trusted_proxies if each != "unix")
        )
        hosts = self.allowed_hosts
        if hosts is None:
            hosts = LOCAL_NAMES if self.unauthenticated or self.proxy_header else ("*",)
        object.__setattr__(self, "hosts", frozenset(each.lower() for each in hosts))

    def trusts(self, address: str | None) -> bool:
        """Tell whether a request comes from a trusted proxy.

        Args:
            address: The peer's address; None for a Unix socket.
        """
        if address is None:
            return "unix" in self.trusted_proxies
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return any(peer in network for network in self.networks)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidValue(
            f"{text!r} is no address and no network",
            detail={"name": "trusted_proxies", "value": text},
            hint="Write it like 10.0.0.7, 10.0.0.0/8 or ::1; or unix.",
        ) from None
