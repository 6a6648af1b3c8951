"""Serve the HTTP API and the pages."""

import asyncio
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import address, check_schema
from pgfifo.cli.exits import INTERRUPTED, Refused, usage
from pgfifo.cli.options import OPERATE, Dsn, duration
from pgfifo.cli.output import log_text, note

if TYPE_CHECKING:
    from pgfifo.client_async import AsyncClient
    from pgfifo.web import Settings

_VARIABLE = "PGFIFO_WEB_TOKEN"


def _text(*names: str, metavar: str, help: str) -> Any:  # noqa: ANN401, A002 - typer's own
    return typer.Option(*names, metavar=metavar, help=help, show_default=False)


@app.command(rich_help_panel=OPERATE)
def serve(
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="The port; 0 takes any that is free.")
    ] = 8484,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Let it be used for changes; without, it only reads.")
    ] = False,
    token_file: Annotated[
        Path | None,
        _text(
            "--token-file",
            metavar="FILE",
            help="The tokens that let somebody in, one a line, as NAME:TOKEN or TOKEN; the name is for the "
            f"audit. Also by {_VARIABLE}.",
        ),
    ] = None,
    proxy_header: Annotated[
        str | None,
        _text(
            "--proxy-header",
            metavar="NAME",
            help="The header in which a reverse proxy names who it has let in, as X-Forwarded-User.",
        ),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        _text(
            "--trusted-proxy",
            metavar="ADDRESS",
            help="The proxy's address or network; may be repeated. [default: this machine]",
        ),
    ] = None,
    no_authentication: Annotated[
        bool,
        typer.Option("--no-authentication", help="Let everybody in, also where other machines reach it."),
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        _text(
            "--allowed-host",
            metavar="NAME",
            help="A host name that it is called by, beside localhost; may be repeated; * is any.",
        ),
    ] = None,
    root_path: Annotated[
        str,
        _text("--root-path", metavar="PATH", help="The path that a reverse proxy shows it under, as /queue."),
    ] = "",
    title: Annotated[
        str, typer.Option("--title", metavar="TEXT", help="What the pages are called.")
    ] = "pgfifo",
    connections: Annotated[
        int,
        typer.Option(
            "--connections",
            metavar="N",
            min=1,
            help="The most connections to the database, beside those of /readyz and /metrics.",
        ),
    ] = 10,
    shutdown_timeout: Annotated[
        float, duration("--shutdown-timeout", "How long requests may go on after a stop. [default: 5s]")
    ] = 5.0,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option("--log-level", help="What to log, to stderr; info has each request."),
    ] = "warning",
    dsn: Dsn = None,
) -> None:
    """Serve the HTTP API and the pages, until Ctrl-C or SIGTERM.

    It listens on this machine only, and only reads, unless told otherwise. On another address it wants to
    know who somebody is: by a token, or by a reverse proxy.

    What may be done is in the end the right of the database role: with a DSN of an observer, it only reads.
    """
    try:
        import uvicorn
        from prometheus_client import REGISTRY

        from pgfifo.client_async import AsyncClient
        from pgfifo.metrics import instrument
        from pgfifo.web import Settings, create_app
    except ModuleNotFoundError as missing:
        if missing.name is not None and missing.name.startswith("pgfifo"):
            raise
        raise Refused(
            f"serve needs {missing.name}, which is not installed", "pip install 'pgfifo[web]'"
        ) from None
    from pgfifo.client import Client

    tokens = _tokens(token_file)
    if not (tokens or proxy_header or no_authentication or _loopback(host)):
        raise usage(
            f"on {host} other machines reach it, and nothing says who may use it",
            "Give --token-file or --proxy-header; or --no-authentication, if everybody may.",
        )
    more: dict[str, Any] = {"trusted_proxies": trusted_proxy} if trusted_proxy else {}
    if allowed_host:
        more["allowed_hosts"] = ["localhost", host, *allowed_host]
    settings: Settings = Settings(
        allow_changes=allow_changes,
        tokens=tokens,
        proxy_header=proxy_header,
        unauthenticated=no_authentication or not (tokens or proxy_header),
        title=title,
        root_path=root_path,
        registry=REGISTRY,
        **more,
    )
    instrument()
    log_text(log_level)
    with address(dsn) as found, closing(_listening(host, port)) as listening:
        with Client(found, prepare_threshold=None) as fifo:
            check_schema(fifo)
        client = AsyncClient(
            found, prepare_threshold=None, max_size=connections, application_name="pgfifo serve"
        )
        config = uvicorn.Config(
            create_app(client, settings=settings),
            log_config=None,
            access_log=log_level in ("debug", "info"),
            loop="asyncio",
            ws="none",
            lifespan="on",
            proxy_headers=False,  # whose headers are believed is the settings' business
            server_header=False,
            timeout_graceful_shutdown=max(1, round(shutdown_timeout)),
        )
        server = _server(config)
        where, bound = listening.getsockname()[:2]
        shown = f"[{where}]" if ":" in where else where
        note(
            f"Serving http://{shown}:{bound}{root_path}/ "
            f"({'with changes' if allow_changes else 'read-only'}{_known_by(settings)}). Ctrl-C stops it."
        )
        asyncio.run(_run(server, listening, client))
    if server.interrupted:
        raise typer.Exit(INTERRUPTED)


async def _run(server: Any, listening: socket.socket, client: "AsyncClient") -> None:  # noqa: ANN401 - as below
    """Run the server until it is stopped; live pages are told so, and end."""
    loop = asyncio.get_running_loop()
    server.stopping = lambda: loop.call_soon_threadsafe(server.config.app.state.live.close)
    async with client:
        await server.serve(sockets=[listening])


def _server(config: Any) -> Any:  # noqa: ANN401 - uvicorn may not be there
    """Return the server, which ends quietly for signals and keeps which it was."""
    import uvicorn

    class Server(uvicorn.Server):
        interrupted = False
        stopping: Callable[[], object] = staticmethod(lambda: None)

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for each, handler in before.items():
                    signal.signal(each, handler)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.interrupted = self.interrupted or sig == signal.SIGINT
            self.stopping()
            super().handle_exit(sig, frame)

    return Server(config)


def _tokens(file: Path | None) -> dict[str, str]:
    """Return the tokens of a file and of the environment, by name."""
    lines = os.environ.get(_VARIABLE, "").splitlines()
    if file is not None:
        try:
            lines += file.read_text().splitlines()
        except UnicodeDecodeError:
            raise usage(f"{file}: it is not text") from None
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, lines)):
        if line.startswith("#"):
            continue
        name, colon, token = line.partition(":")
        name, token = (name.strip(), token.strip()) if colon else ("token", name)
        if found.setdefault(name, token) != token:
            raise usage(f"there are two tokens called {name!r}", "Give each a name: NAME:TOKEN")
    if file is not None and not found:
        raise usage(f"{file}: there is no token in it")
    return found


def _loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; who calls it before the server runs has to wait."""
    try:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        return socket.create_server(where[:2], family=family)
    except socket.gaierror as error:
        raise usage(f"--host {host}: {error.strerror}") from None
    except OSError as error:
        raise Refused(f"{host}:{port}: {os.strerror(error.errno) if error.errno else error}") from None


def _known_by(settings: "Settings") -> str:
    """Return how it knows who somebody is."""
    ways = [
        *(["a token"] if settings.tokens else []),
        *(["a proxy"] if settings.proxy_header else []),
    ]
    if settings.unauthenticated:
        return ", for everybody who reaches it"
    return f", by {' or '.join(ways)}"
