"""The pages and the file that a worker's process has for probes and scrapes."""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pgfifo.cli.exits import Refused
from pgfifo.probes import Source, health_file, health_pages, metrics_page, pages, read_health
from pgfifo.processes import PROBES

if TYPE_CHECKING:
    from pgfifo.metrics import WorkerMetrics
    from pgfifo.probes import Page

logger = logging.getLogger("pgfifo")

_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
_LARGEST_PORT = 65535


@dataclass(frozen=True)
class Listening:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def listening(text: str) -> Listening:
    """Read a port, or an address and a port: ``9464``, ``127.0.0.1:9464``, ``[::]:9464``."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= _LARGEST_PORT):
        raise typer.BadParameter(f"{text!r} is no port; write 9464, or 127.0.0.1:9464.")
    return Listening(host.strip("[]") or "0.0.0.0", int(port))  # noqa: S104 - whoever asks comes from elsewhere


@dataclass(frozen=True)
class Probes:
    """What was asked for."""

    metrics: Listening | None
    health: Listening | None
    file: Path | None

    def watch(self) -> "WorkerMetrics | None":
        """Return what measures the worker of this process, if that was asked for."""
        if self.metrics is None:
            return None
        from pgfifo.metrics import WorkerMetrics, instrument

        instrument()
        return WorkerMetrics()

    def prepare(self) -> None:
        """Refuse metrics where prometheus-client is not installed; before anything is started."""
        if self.metrics is not None:
            try:
                import pgfifo.metrics  # noqa: F401 - to know
            except ImportError as error:
                raise Refused(str(error)) from None

    @contextmanager
    def shown(self, source: Source) -> Iterator[None]:
        """Show it for as long as the block lasts; one of several processes leaves that to its parent."""
        with ExitStack() as stack:
            try:
                if folder := os.environ.pop(PROBES, None):  # not for programs that handlers start
                    own = Path(folder) / "health" / str(os.getpid())
                    stack.enter_context(health_file(own, source))
                else:
                    if self.file is not None:
                        stack.enter_context(health_file(self.file, source))
                    for where, of in self._pages(source).items():
                        self._serve(stack, where, of)
            except OSError as error:
                name = f"{error.filename}: " if error.filename else ""
                raise Refused(f"{name}{error.strerror or error}") from None
            yield

    @contextmanager
    def of_several(self, count: int) -> Iterator[Mapping[str, str]]:
        """Show what so many processes have to show; yields what their environment needs."""
        if self == Probes(None, None, None):
            yield {}
            return
        with tempfile.TemporaryDirectory(prefix="pgfifo-") as folder:
            health, metrics = Path(folder, "health"), Path(folder, "metrics")
            health.mkdir()
            metrics.mkdir()
            environment = {PROBES: folder}
            if self.metrics is not None:
                environment[_MULTIPROCESS] = os.environ.setdefault(_MULTIPROCESS, str(metrics))
            with self.shown(partial(read_health, health, count)):
                yield environment

    def _pages(self, source: Source) -> "dict[Listening, dict[str, Page]]":
        found: dict[Listening, dict[str, Page]] = {}
        if self.metrics is not None:
            found[self.metrics] = {"/metrics": metrics_page, **health_pages(source)}
        if self.health is not None:
            found.setdefault(self.health, {}).update(health_pages(source))
        return found

    def _serve(self, stack: ExitStack, where: Listening, of: "dict[str, Page]") -> None:
        try:
            port = stack.enter_context(pages(where.host, where.port, of))
        except OSError as error:
            raise Refused(
                f"{where} cannot be listened at: {error.strerror or error}", "Choose another port."
            ) from None
        logger.info("listening at http://%s: %s", Listening(where.host, port), ", ".join(sorted(of)))
