"""A real Chromium, and the application served by a real server, for tests and for screenshots."""

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from pgfifo.client_async import AsyncClient
from pgfifo.web import Settings, create_app

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


def chromium() -> str | None:
    """Return the path of the distribution's Chromium; None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a screen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        try:
            yield running
        finally:
            running.close()


@contextmanager
def served(dsn: str, *, interval: float = 2, **settings: Any) -> Iterator[str]:
    """The application on a port of its own, in a thread; yields its address. Pages are new each interval."""
    given: dict[str, Any] = {"allow_changes": True, "unauthenticated": True} | settings
    app = create_app(AsyncClient(dsn, prepare_threshold=None), settings=Settings(**given))
    app.state.live.interval, app.state.desk.fresh = interval, interval * 0.75
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            app, log_config=None, ws="none", lifespan="on", timeout_graceful_shutdown=1, server_header=False
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
