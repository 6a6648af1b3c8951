"""A proxy in front of a server, which understands enough of the protocol to cut a connection somewhere.

The message format is that of the PostgreSQL manual, "Frontend/Backend Protocol": a type byte, a length of
four bytes that counts itself, and the content; only the first message of a connection has no type.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psycopg.conninfo

Point = Literal["before the request", "before the reply", "within the reply", "before its end"]
"""Where a connection is cut: the server never hears of it; or it has done it, and the client hears nothing of
that, half of it, or all but that it was committed."""

POINTS: tuple[Point, ...] = ("before the request", "before the reply", "within the reply", "before its end")


@dataclass
class Fault:
    """Cut the connection at a point of the statements that contain a text; of the `nth` such, and so many on.

    Attributes:
        text: what the statement contains.
        point: where the connection is cut.
        nth: the first of them that is cut, counted from 1.
        times: how many are cut from there on.
        seen: how many there were.
        cut: how many were cut.
    """

    text: str
    point: Point
    nth: int = 1
    times: int = 1
    seen: int = 0
    cut: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def strikes(self, statement: str) -> bool:
        """Count a statement; return whether it is to be cut."""
        if self.text not in statement:
            return False
        with self._lock:
            self.seen += 1
            strikes = self.nth <= self.seen < self.nth + self.times
            self.cut += strikes
            return strikes


class Chance(Fault):
    """Cut the connection at a random point of random statements."""

    def __init__(self, share: float, seed: int) -> None:
        """Choose.

        Args:
            share: how many of the statements, between 0 and 1.
            seed: where the dice begin.
        """
        super().__init__("", "before the request")
        self._share, self._dice = share, random.Random(seed)

    def strikes(self, statement: str) -> bool:  # noqa: ARG002 - whatever it is
        """Throw the dice, for whether and where."""
        with self._lock:
            self.seen += 1
            strikes = self._dice.random() < self._share
            self.point = self._dice.choice(POINTS)
            self.cut += strikes
            return strikes


class _CutError(Exception):
    """The connection is to be cut now."""


class Proxy:
    """Passes everything on between clients and a server, but for what its faults say.

    Attributes:
        dsn: how to reach the server through it.
        faults: what goes wrong; may be changed at any time.
        refuses: whether new connections are refused.
    """

    def __init__(self, folder: Path, dsn: str) -> None:
        """Begin to listen.

        Args:
            folder: where its socket is; a short path.
            dsn: the server, reached through a Unix socket.
        """
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
        self._server = f"{parts['host']}/.s.PGSQL.{parts['port']}"
        self.dsn = psycopg.conninfo.make_conninfo(dsn, host=str(folder), port="5432")
        self.faults: list[Fault] = []
        self.refuses = False
        self._hushed: set[socket.socket] = set()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / ".s.PGSQL.5432"))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.refuses = True
        _close(self._listener)
        self.cut_all()

    def hush(self) -> None:
        """Let all connections there are go silent: they stay open, and nothing comes through any more.

        That is what a host that has vanished looks like to the server, and a proxy that hangs to a client.
        """
        with self._lock:
            self._hushed |= self._open

    def is_hushed(self, side: socket.socket) -> bool:
        """Return whether nothing comes through."""
        return side in self._hushed

    def cut_all(self) -> None:
        """Cut all connections there are."""
        with self._lock:
            doomed, self._open, self._hushed = self._open, set(), set()
        for each in doomed:
            _close(each)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refuses:
                    _close(client)
                    continue
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        with self._lock:
            self._open |= {client, server}
        conversation = _Conversation(self, client, server)
        try:
            server.connect(self._server)
            threading.Thread(
                target=self._run, args=(conversation.replies, client, server), daemon=True
            ).start()
            self._run(conversation.requests, client, server)
        finally:
            with self._lock:
                if client not in self._hushed:
                    self._open -= {client, server}

    def _run(self, passing: Callable[[], None], client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError, _CutError):
            passing()
        if self.is_hushed(client):
            return  # nobody hears of the other's end, until all are cut
        _close(client)
        _close(server)


class _Conversation:
    """One connection: what the client sends, and what it is answered."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._prepared: dict[bytes, str] = {}
        self._doomed: Point | None = None

    def requests(self) -> None:
        """Pass on what the client sends."""
        first = _exactly(self._client, 4)
        self._server.sendall(first + _exactly(self._client, struct.unpack("!I", first)[0] - 4))
        for kind, message in _messages(self._client):
            if self._proxy.is_hushed(self._client):
                continue
            if self._doomed is None:
                point = self._strike(kind, message)
                if point == "before the request":
                    raise _CutError
                self._doomed = point
            self._server.sendall(message)

    def replies(self) -> None:
        """Pass on what the server answers."""
        for kind, message in _messages(self._server):
            if self._proxy.is_hushed(self._server):
                continue
            if self._doomed == "within the reply" and kind == b"D":
                self._client.sendall(message[: len(message) // 2])
                self._doomed = "before the reply"
            if self._doomed is not None:
                # With ReadyForQuery the transaction of an autocommit statement is over.
                if kind == b"Z":
                    raise _CutError
                if self._doomed == "before its end":
                    self._client.sendall(message)
                continue
            self._client.sendall(message)

    def _strike(self, kind: bytes, message: bytes) -> Point | None:
        statement = ""
        if kind == b"Q":
            statement = message[5:].decode(errors="replace")
        elif kind == b"P":
            name, query = message[5:].split(b"\0")[:2]
            self._prepared[name] = query.decode(errors="replace")
        elif kind == b"B":
            statement = self._prepared.get(message[5:].split(b"\0")[1], "")
        for fault in self._proxy.faults if statement else ():
            if fault.strikes(statement):
                return fault.point
        return None


def _messages(source: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    while True:
        head = _exactly(source, 5)
        yield head[:1], head + _exactly(source, struct.unpack("!I", head[1:])[0] - 4)


def _exactly(source: socket.socket, count: int) -> bytes:
    parts = b""
    while len(parts) < count:
        more = source.recv(count - len(parts))
        if not more:
            raise _CutError
        parts += more
    return parts


def _close(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
