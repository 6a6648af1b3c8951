"""What a worker's process shows to probes and scrapes: pages over HTTP, and a file."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

logger = logging.getLogger("pgfifo")

State = Literal["ready", "live", "stuck"]
"""What a probe is told; see `pgfifo.worker.Worker.health`."""
Source = Callable[[], State]
Page = Callable[[str], tuple[int, str, bytes]]
"""Takes the request's Accept header; returns status, content type and body."""

FRESH = 15.0
"""Seconds after which a health file that nobody has written anew is that of a process that is stuck."""

_EVERY = 1.0
_PATIENCE = 10.0
_TEXT = "text/plain; charset=utf-8"


@contextlib.contextmanager
def pages(host: str, port: int, of: Mapping[str, Page]) -> Iterator[int]:
    """Serve pages from a thread for as long as the block lasts.

    Args:
        host: The address to listen at.
        port: The port; 0 for one that is free.
        of: The pages by their paths.

    Yields:
        The port.

    Raises:
        OSError: It cannot be listened at.
    """
    import http.server  # of a few milliseconds, and nobody else needs it
    import socketserver

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True
        server_bind = socketserver.TCPServer.server_bind  # which asks no name server who it is

        def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - as there
            error = sys.exception()
            if not isinstance(error, OSError):  # whoever asked has gone
                logger.error("a page could not be shown to %s", client_address, exc_info=error)

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _PATIENCE
        server_version = "pgfifo"
        sys_version = ""

        def do_GET(self) -> None:
            page = of.get(self.path.partition("?")[0])
            found = f"There are: {', '.join(sorted(of))}\n".encode()
            status, kind, body = (
                (404, _TEXT, found) if page is None else page(self.headers.get("Accept") or "")
            )
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the base class calls it so

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            logger.debug("%s " + format, self.address_string(), *args)

    server = Server((host, port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.2,), name="pgfifo-probes", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def health_pages(source: Source) -> dict[str, Page]:
    """Return the pages ``/healthz`` (503 when it is stuck) and ``/readyz`` (503 unless it is ready)."""

    def page(good: tuple[State, ...]) -> Page:
        def show(_accept: str) -> tuple[int, str, bytes]:
            state = source()
            return (200 if state in good else 503), _TEXT, f"{state}\n".encode()

        return show

    return {"/healthz": page(("ready", "live")), "/readyz": page(("ready",))}


def metrics_page(accept: str) -> tuple[int, str, bytes]:
    """Return what prometheus-client has registered, of all processes where its multiprocess mode is on."""
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    encode, kind = choose_encoder(accept)
    return 200, kind, encode(registry)


@contextlib.contextmanager
def health_file(path: Path, source: Source) -> Iterator[None]:
    """Write the state into a file each second for as long as the block lasts, then remove the file.

    Args:
        path: The file. It always has one whole word.
        source: Says the state.

    Raises:
        OSError: It cannot be written.
    """
    over = threading.Event()
    draft = path.with_name(f".{path.name}.{os.getpid()}")

    def write() -> None:
        try:
            draft.write_text(f"{source()}\n")
            draft.replace(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None  # whoever reads it knows no draft

    def go_on() -> None:
        well = True
        while not over.wait(_EVERY):
            try:
                write()
                well = True
            except OSError as error:
                if well:
                    logger.warning("the health file cannot be written: %s", error)
                well = False

    write()
    thread = threading.Thread(target=go_on, name="pgfifo-health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_PATIENCE)
        for left in (path, draft):
            left.unlink(missing_ok=True)


def read_health(folder: Path, count: int) -> State:
    """Return the state of several processes from their files in a folder: the worst of all.

    Args:
        folder: Where they are.
        count: How many there are to be. Who has none yet, or none any more, is live and not ready.
    """
    states: list[State] = []
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        with contextlib.suppress(OSError):  # it was removed meanwhile
            fresh = time.time() - path.stat().st_mtime <= FRESH
            word = path.read_text().strip()
            states.append(
                "ready" if fresh and word == "ready" else "live" if fresh and word == "live" else "stuck"
            )
    if "stuck" in states:
        return "stuck"
    return "ready" if len(states) >= count and set(states) == {"ready"} else "live"
