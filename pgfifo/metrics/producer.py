"""What the clients of this process enqueue, and what is refused, which leaves no trace in the database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from pgfifo import _producing
from pgfifo.errors import InvalidValue, PgfifoError, UnknownAction
from pgfifo.metrics.catalog import PRODUCER

_MOST_ACTIONS = 1000
"""From so many on they are told together: where users choose the names, they must not fill the memory."""
_OTHERS = "(others)"

_installed: list[_Counting] = []


class _Counting:
    """The counters of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._enqueued, self._rejected = (
            Counter(name, meaning.text, meaning.labels, registry=registry)
            for name, meaning in PRODUCER.items()
        )
        self._actions: set[str] = set()

    @contextmanager
    def layer(self, call: _producing.Call) -> Iterator[None]:
        """Count what becomes of a call."""
        try:
            yield
        except PgfifoError as error:
            # What nobody has checked is no label.
            unknown = isinstance(error, UnknownAction | InvalidValue)
            self._rejected.labels("" if unknown else self._action(call.action), _reason(error)).inc()
            raise
        new = sum(each.created for each in call.enqueued)
        if new:
            self._enqueued.labels(self._action(call.action)).inc(new)

    def unregister(self) -> None:
        """Take the counters out of their registry."""
        self.registry.unregister(self._enqueued)
        self.registry.unregister(self._rejected)

    def _action(self, action: str) -> str:
        if action not in self._actions:
            if len(self._actions) >= _MOST_ACTIONS:
                return _OTHERS
            self._actions.add(action)
        return action


def instrument(registry: CollectorRegistry = REGISTRY) -> None:
    """Count what all clients of this process enqueue from now on, and what is refused, by action and reason.

    Called again it changes nothing. `pgfifo worker --metrics-port` does it by itself.

    Args:
        registry: Where to. Defaults to prometheus-client's own.
    """
    if not _installed:
        _installed.append(_Counting(registry))
        _producing.layers.append(_installed[0].layer)


def uninstrument() -> None:
    """Undo `instrument`; the counters are gone."""
    while _installed:
        counting = _installed.pop()
        _producing.layers.remove(counting.layer)
        counting.unregister()


def _reason(error: PgfifoError) -> str:
    """Return an error's name as a label: QueueFull is queue_full."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()
