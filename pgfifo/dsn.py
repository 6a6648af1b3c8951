"""Which database: the caller's argument, PGFIFO_DSN, DATABASE_URL, or libpq's own variables, in this order.

URLs as frameworks write them are accepted (``postgres://``, ``postgresql+psycopg://``), and libpq's
``host=… dbname=…``. Nothing here, and no message of pgfifo's, shows a password: see `redact`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgfifo.errors import InvalidValue

Source = Literal["argument", "PGFIFO_DSN", "DATABASE_URL", "libpq", "default"]

_LIBPQ = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE")
_SCHEME = re.compile(r"\s*(?:postgres|postgresql)(?:\+\w+)?://", re.IGNORECASE)
_ANY_SCHEME = re.compile(r"\s*([A-Za-z][\w+.-]*)://")
_SECRET = re.compile(
    # user:SECRET@host, also where the secret has an @ or a / in it by mistake
    r"(?P<url>://[^:@/?#\s]*:)\S*(?=@)"
    # password=SECRET or 'SECRET', and ?password=SECRET&
    r"|(?P<key>\b(?:ssl)?password\s*=\s*)(?:'(?:[^'\\]|\\.)*'?|(?:[^\s&'\\]|\\.)+)",
    re.IGNORECASE,
)
_LAST_PORT = 65535
_DEFAULTS = {
    # Somebody waits at the other end of a first connection: not libpq's two minutes.
    "connect_timeout": "10",
    # A peer that is gone without a word is noticed within about half a minute.
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": "30000",
}


@dataclass(frozen=True, slots=True)
class Dsn:
    """A database, and who said that it is this one.

    Attributes:
        conninfo: What libpq takes; it may hold a password. Empty: libpq's variables and defaults decide.
        source: ``argument``, the name of the variable, ``libpq`` for its own variables, ``default`` if there
            was nothing at all.
    """

    conninfo: str
    source: Source

    def __str__(self) -> str:
        return describe(self.conninfo)

    def __repr__(self) -> str:
        return f"Dsn({redact(self.conninfo)!r}, {self.source!r})"


def resolve(dsn: str | None = None, environ: Mapping[str, str] | None = None) -> Dsn:
    """Return the database to use.

    Args:
        dsn: What the caller was given, if anything; an empty text is nothing.
        environ: The environment; defaults to the process's own.

    Raises:
        InvalidValue: It cannot be read.
    """
    variables = os.environ if environ is None else environ
    if dsn:
        return Dsn(normalise(dsn), "argument")
    if value := variables.get("PGFIFO_DSN"):
        return Dsn(normalise(value, "PGFIFO_DSN"), "PGFIFO_DSN")
    if value := variables.get("DATABASE_URL"):
        return Dsn(normalise(value, "DATABASE_URL"), "DATABASE_URL")
    _refuse_no_port(variables.get("PGPORT"), "PGPORT is")
    return Dsn("", "libpq" if any(variables.get(name) for name in _LIBPQ) else "default")


def normalise(dsn: str, name: str = "dsn") -> str:
    """Return a DSN in the form that libpq takes.

    Args:
        dsn: A URL (``postgres://``, ``postgresql://``, ``postgresql+driver://``) or ``host=… dbname=…``.
        name: What the error message calls it.

    Raises:
        InvalidValue: It cannot be read; the message does not show a password.
    """
    scheme = _ANY_SCHEME.match(dsn)
    if scheme and not _SCHEME.match(dsn):
        raise InvalidValue(
            f"{name} begins with {scheme[1]}://, which is no PostgreSQL database",
            detail={"name": name},
            hint="It looks like postgresql://user@host/database.",
        )
    text = _SCHEME.sub("postgresql://", dsn, count=1)
    try:
        if scheme:
            _refuse_loose_at(text)
        given = conninfo_to_dict(text)
    except (psycopg.Error, ValueError) as error:
        shown = f"{name} {redact(dsn)}" if scheme else name
        raise InvalidValue(
            f"{shown} cannot be read: {_reason(error, text)}",
            detail={"name": name},
            hint="It looks like postgresql://user@host/database or host=… dbname=…. In a URL's password, "
            "write @ : / ? # % as %40 %3A %2F %3F %23 %25.",
        ) from None
    _refuse_no_port(given.get("port"), f"the port in {name} is")
    return text


def _refuse_no_port(port: object, what: str) -> None:
    """Refuse ports that cannot be, of which libpq or the resolver would say something about the host.

    They are not shown: what somebody has put in a port's place may be a password's end.
    """
    for each in str(port or "").split(","):
        number = each.strip()
        if number and not (number.isascii() and number.isdigit() and 1 <= int(number[:6]) <= _LAST_PORT):
            raise InvalidValue(
                f"{what} no number from 1 to {_LAST_PORT}",
                detail={"name": "port"},
                hint="PostgreSQL listens at 5432, unless it is told otherwise.",
            )


def _refuse_loose_at(url: str) -> None:
    """Refuse what libpq would read as another host, and then show parts of the password as its name."""
    authority, slash, path = url.partition("://")[2].partition("?")[0].partition("/")
    if authority.count("@") > 1 or (slash and "@" in path):
        raise ValueError("there is an @ that belongs to no host")


def _reason(error: Exception, dsn: str) -> str:
    """Return libpq's reason; of what it quotes, only a parameter's name cannot be part of a password."""

    def shown(quoted: re.Match[str]) -> str:
        return quoted[0] if re.search(rf"[?&\s]{re.escape(quoted[1])}=", dsn) else '"…"'

    return re.sub(r'"([^"]*)"', shown, str(error).strip())


def redact(text: str) -> str:
    """Return a text without the passwords of the DSNs in it."""
    return _SECRET.sub(lambda found: (found["url"] or found["key"]) + "***", text)


def describe(conninfo: str) -> str:
    """Return which database a DSN means, for people: ``app on db.example:5433 as bob``; no password."""
    given = conninfo_to_dict(conninfo)
    host = given.get("host") or given.get("hostaddr") or os.environ.get("PGHOST")
    port = given.get("port") or os.environ.get("PGPORT")
    user = given.get("user") or os.environ.get("PGUSER")
    name = given.get("dbname") or os.environ.get("PGDATABASE") or user
    where = f"{host}:{port}" if host and port and "/" not in str(host) else host
    shown = str(name) if name else "the default database"
    return shown + (f" on {where}" if where else "") + (f" as {user}" if user else "")


def with_defaults(conninfo: str, application: str = "pgfifo") -> str:
    """Return a DSN with what pgfifo's own connections should have and the caller did not say.

    Args:
        conninfo: What `normalise` returned.
        application: The application name that the server shows, unless the DSN or PGAPPNAME gives one.
    """
    given = conninfo_to_dict(conninfo)
    added: dict[str, str] = {}
    if "service" not in given and not os.environ.get("PGSERVICE"):
        added.update({name: value for name, value in _DEFAULTS.items() if name not in given})
        if os.environ.get("PGCONNECT_TIMEOUT"):
            added.pop("connect_timeout", None)
    if "fallback_application_name" not in given:
        added["fallback_application_name"] = application
    return make_conninfo(conninfo, **added)
