"""The queue's state as Prometheus metrics, read from the database at each scrape."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import psycopg
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from pgfifo._connections import brief
from pgfifo.metrics.catalog import DATABASE

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

    from pgfifo.client import Client
    from pgfifo.client_async import AsyncClient
    from pgfifo.models import Metric

logger = logging.getLogger("pgfifo")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What `exposition` returns."""


class _Queue(Collector):
    """A collector that asks a client."""

    def __init__(self, client: Client, lanes: int) -> None:
        self._client = client
        self._lanes = lanes

    def describe(self) -> Iterable[Family]:
        """Return what it may collect, without asking the database: a registry wants to know."""
        return _families()

    def collect(self) -> Iterator[Family]:
        """Read the numbers; where the database does not answer, ``pgfifo_up`` says so and is alone."""
        try:
            found = self._client.metrics(self._lanes)
        except psycopg.Error as error:
            found = None
            _complain(error)
        yield from _filled(found)


class _Read(Collector):
    """A collector of what was read before."""

    def __init__(self, found: Iterable[Metric] | None) -> None:
        self._found = found

    def collect(self) -> Iterator[Family]:
        """Return it."""
        yield from _filled(self._found)


def collector(client: Client, *, lanes: int = 0) -> Collector:
    """Return a collector of the queue's metrics, for a registry of prometheus-client.

    ::

        prometheus_client.REGISTRY.register(pgfifo.metrics.collector(fifo))

    One process of an installation is enough: they are the same whoever asks. Each scrape is one call.

    Args:
        client: Whose database; a role that is an ``observer`` will do.
        lanes: How many of the longest lines to tell of besides, lane by lane; 1,000 at most. Defaults to
            none.
    """
    return _Queue(client, lanes)


async def exposition(
    client: AsyncClient, *, lanes: int = 0, registry: CollectorRegistry | None = None
) -> bytes:
    """Return the queue's metrics in Prometheus' text format, for a page of a web application's.

    Args:
        client: Whose database.
        lanes: As in `collector`.
        registry: What else to print, such as ``prometheus_client.REGISTRY``. Defaults to nothing.
    """
    try:
        found = await client.metrics(lanes)
    except psycopg.Error as error:
        found = None
        _complain(error)
    return text(found) + (b"" if registry is None else generate_latest(registry))


def text(found: Iterable[Metric] | None) -> bytes:
    """Return metrics in Prometheus' text format; None where they could not be read."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Read(found))
    return generate_latest(registry)


def _filled(found: Iterable[Metric] | None) -> Iterator[Family]:
    families = {family.name: family for family in _families()}
    families["pgfifo_up"].add_sample("pgfifo_up", {}, float(found is not None))
    for each in found or ():
        # The name of a counter's family is without its ending.
        families[each.name.removesuffix("_total")].add_sample(each.name, each.labels, each.value)
    for family in families.values():
        if family.samples:
            yield family


def _families() -> list[Family]:
    made: list[Family] = []
    for name, meaning in DATABASE.items():
        kind = CounterMetricFamily if meaning.kind == "counter" else GaugeMetricFamily
        made.append(kind(name, meaning.text, labels=meaning.labels))
    return made


def _complain(error: psycopg.Error) -> None:
    logger.warning("the metrics of the queue could not be read: %s", brief(error))
