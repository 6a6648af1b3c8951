"""Metrics for Prometheus (``pip install 'pgfifo[metrics]'``): of the queue, of a worker, and of who enqueues.

::

    prometheus_client.REGISTRY.register(pgfifo.metrics.collector(fifo))  # the queue, at each scrape
    pgfifo.metrics.instrument()                                          # what this process enqueues
    pgfifo.Worker(dsn, actions, watch=pgfifo.metrics.WorkerMetrics())    # what this worker does

docs/monitoring.md explains each metric.
"""

try:
    import prometheus_client as _needed  # noqa: F401 - to say what is missing
except ImportError as error:
    raise ModuleNotFoundError(
        "pgfifo.metrics needs prometheus-client: pip install 'pgfifo[metrics]'", name=error.name
    ) from error

from pgfifo.metrics.database import CONTENT_TYPE, collector, exposition
from pgfifo.metrics.producer import instrument, uninstrument
from pgfifo.metrics.worker import WorkerMetrics

__all__ = ["CONTENT_TYPE", "WorkerMetrics", "collector", "exposition", "instrument", "uninstrument"]
