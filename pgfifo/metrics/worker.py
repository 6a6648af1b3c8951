"""What a worker measures of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from pgfifo.metrics.catalog import WORKER

if TYPE_CHECKING:
    from pgfifo._run import Run
    from pgfifo._together import Together


class _OfAction(NamedTuple):
    """An action's own, looked up once: the labels of a metric take longer to find than it takes to count."""

    started: Counter
    wait: Histogram
    run: Histogram
    busy: Gauge


class WorkerMetrics:
    """Measures the workers of this process that are given it.

    ::

        Worker(dsn, actions, watch=pgfifo.metrics.WorkerMetrics()).run()

    One for all workers of a process and registry. ``pgfifo worker --metrics-port`` makes one by itself.
    Where prometheus-client's multiprocess mode is on, all metrics are sums over the processes.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Make the metrics.

        Args:
            registry: Where they are registered. Defaults to prometheus-client's own.

        Raises:
            ValueError: They are in that registry already.
        """
        self._started = _counter("pgfifo_worker_started_total", registry)
        self._finished = _counter("pgfifo_worker_finished_total", registry)
        self._wait = _histogram("pgfifo_worker_wait_seconds", registry)
        self._run = _histogram("pgfifo_worker_run_seconds", registry)
        self._call = _histogram("pgfifo_worker_call_seconds", registry)
        self._busy = _gauge("pgfifo_worker_busy", registry)
        self._concurrency = _gauge("pgfifo_worker_concurrency", registry)
        self._actions: dict[str, _OfAction] = {}
        self._outcomes: dict[tuple[str, str], Counter] = {}

    def begin(self, concurrency: int) -> None:
        """Take note that a worker begins."""
        self._concurrency.inc(concurrency)

    def end(self, concurrency: int) -> None:
        """Take note that it has ended."""
        self._concurrency.dec(concurrency)

    def called(self, seconds: float) -> None:
        """Take note of how long a call took."""
        self._call.observe(seconds)

    def started(self, run: Run | Together) -> None:
        """Take note of a start, or of that of a batch."""
        own = self._of(run.execution.action)
        own.busy.inc()
        for member in run.members:
            own.started.inc()
            own.wait.observe(member.execution.wait_seconds)

    def ran(self, action: str, seconds: float) -> None:
        """Take note of how long a handler ran."""
        self._of(action).run.observe(seconds)

    def ended(self, action: str) -> None:
        """Take note that a handler has ended."""
        self._of(action).busy.dec()

    def finished(self, action: str, outcome: str) -> None:
        """Take note of what is on record of an attempt."""
        key = action, outcome
        if key not in self._outcomes:
            self._outcomes[key] = self._finished.labels(action, outcome)
        self._outcomes[key].inc()

    def _of(self, action: str) -> _OfAction:
        found = self._actions.get(action)
        if found is None:
            found = self._actions[action] = _OfAction(
                self._started.labels(action),
                self._wait.labels(action),
                self._run.labels(action),
                self._busy.labels(action),
            )
        return found


def _counter(name: str, registry: CollectorRegistry) -> Counter:
    return Counter(name, WORKER[name].text, WORKER[name].labels, registry=registry)


def _gauge(name: str, registry: CollectorRegistry) -> Gauge:
    return Gauge(name, WORKER[name].text, WORKER[name].labels, registry=registry, multiprocess_mode="livesum")


def _histogram(name: str, registry: CollectorRegistry) -> Histogram:
    meaning = WORKER[name]
    return Histogram(name, meaning.text, meaning.labels, registry=registry, buckets=meaning.buckets)
