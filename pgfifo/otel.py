"""Spans for OpenTelemetry (``pip install 'pgfifo[otel]'``): one for each enqueue, one for each attempt.

::

    pgfifo.otel.instrument()         # where executions are enqueued
    pgfifo.otel.instrument(actions)  # where they run; what their handlers enqueue, too

The trace goes along with the execution: W3C trace context in its headers (``traceparent``, ``tracestate``).
Headers of the caller's own with these names stay as they are. Without a call of `instrument` nothing of this
is loaded or done; where the application has no OpenTelemetry SDK, no headers are written.

The names are those of OpenTelemetry's semantic conventions for messaging; docs/monitoring.md has them.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

try:
    from opentelemetry import context as contexts
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ModuleNotFoundError(
        "pgfifo.otel needs opentelemetry-api: pip install 'pgfifo[otel]'", name=error.name
    ) from error

from pgfifo import _producing
from pgfifo.outcome import Outcome
from pgfifo.retrying import Retry

if TYPE_CHECKING:
    from pgfifo.actions import Actions
    from pgfifo.execution import Execution

__all__ = ["Relation", "instrument", "uninstrument"]

Relation = Literal["child", "link"]
"""How the span of an attempt belongs to that of its enqueue."""

_W3C = TraceContextTextMapPropagator()
_FIELDS = ("traceparent", "tracestate")

_in_batch: ContextVar[bool] = ContextVar("pgfifo_traced_batch", default=False)
_producers: list[_producing.Layer] = []
_registries: weakref.WeakSet[Actions] = weakref.WeakSet()


def instrument(
    actions: Actions | None = None,
    *,
    relation: Relation = "child",
    tracer_provider: trace.TracerProvider | None = None,
) -> None:
    """Trace what all clients of this process enqueue, and the attempts of a registry's actions.

    The middleware that is registered after this call runs within the span of the attempt, so call it first.
    In a batch each execution has a span of its own; what the handler does is within that of the first one.
    Called again it changes nothing.

    Args:
        actions: The registry, with those that it includes. Defaults to none.
        relation: ``child``: attempts belong to the trace of their enqueue. ``link``: each begins a trace of
            its own, with a link; for those that wait for days. Defaults to child.
        tracer_provider: Whose tracer. Defaults to the global one, whenever it is set.
    """
    from pgfifo import __version__

    tracer = trace.get_tracer("pgfifo", __version__, tracer_provider)
    if not _producers:
        _producers.append(_Enqueues(tracer).layer)
        _producing.layers.append(_producers[0])
    if actions is not None and actions not in _registries:
        _registries.add(actions)
        actions.middleware(_Attempts(tracer, relation))


def uninstrument() -> None:
    """Stop tracing what clients enqueue; registries keep their middleware."""
    while _producers:
        _producing.layers.remove(_producers.pop())


class _Enqueues:
    """Spans around calls that enqueue."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def layer(self, call: _producing.Call) -> Iterator[None]:
        """Enqueue within a span, whose context goes along."""
        attributes: dict[str, Any] = _common(call.action, "enqueue", "send")
        if call.many:
            attributes["messaging.batch.message_count"] = call.count
        with self._tracer.start_as_current_span(
            f"enqueue {call.action}", kind=trace.SpanKind.PRODUCER, attributes=attributes
        ) as span:
            carrier: dict[str, str] = {}
            _W3C.inject(carrier)
            if carrier:
                call.headers = [_with(carrier, headers) for headers in call.headers]
            try:
                yield
            except BaseException as error:
                span.set_attribute("error.type", _kind(error))
                raise  # the span takes note of it
            if not call.many:
                [enqueued] = call.enqueued
                span.set_attribute("messaging.message.id", str(enqueued.id))
                span.set_attribute("pgfifo.group", enqueued.lane.group_text)
                span.set_attribute("pgfifo.created", enqueued.created)


class _Attempts:
    """The middleware that makes a span of each attempt."""

    def __init__(self, tracer: trace.Tracer, relation: Relation) -> None:
        self._tracer = tracer
        self._relation = relation

    def __call__(self, execution: Execution) -> Iterator[None]:
        """Run the handler within a span."""
        if execution.trace is not None:  # of a registry that includes this one
            yield
            return
        span = self._begin(execution)
        context = span.get_span_context()
        if context.is_valid:
            execution.trace = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
        # Of a batch only the first is what the handler is in.
        rides = execution.in_batch and _in_batch.get()
        token = None if rides else contexts.attach(trace.set_span_in_context(span))
        mark = None if rides else _in_batch.set(execution.in_batch)
        try:
            result: object = yield
            _note_result(span, execution, result)
        except GeneratorExit:
            span.set_attribute("pgfifo.outcome", "released")
            raise
        except BaseException as error:
            _note_error(span, execution, error)
            raise
        finally:
            if mark is not None and token is not None:
                _in_batch.reset(mark)
                contexts.detach(token)
            span.end()

    def _begin(self, execution: Execution) -> trace.Span:
        headers = execution.headers
        carrier = {name: value for name in _FIELDS if isinstance(value := headers.get(name), str)}
        # In no context of the worker's own.
        context = _W3C.extract(carrier, contexts.Context())
        links = []
        if self._relation == "link":
            enqueue = trace.get_current_span(context).get_span_context()
            links = [trace.Link(enqueue)] if enqueue.is_valid else []
            context = contexts.Context()
        attributes = _common(execution.action, "process", "process") | {
            "messaging.message.id": str(execution.id),
            "pgfifo.attempt": execution.attempt,
            "pgfifo.group": execution.group_text,
            "pgfifo.wait_seconds": execution.wait_seconds,
        }
        return self._tracer.start_span(
            f"process {execution.action}", context, trace.SpanKind.CONSUMER, attributes, links
        )


def _common(action: str, name: str, kind: str) -> dict[str, Any]:
    return {
        "messaging.system": "pgfifo",
        "messaging.destination.name": action,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
    }


def _with(carrier: Mapping[str, str], headers: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return headers with a trace context, unless they have one."""
    if headers and any(name in headers for name in _FIELDS):
        return headers
    return {**(headers or {}), **carrier}


def _note_result(span: trace.Span, execution: Execution, result: object) -> None:
    if isinstance(result, Outcome) and result.kind != "succeeded":  # of a command
        if result.kind == "failed" and result.count:
            said = (result.error or "").partition("\n")[0]
            _fail(span, "ExecutionFailed", said)
        else:
            span.set_attribute("pgfifo.outcome", "postponed" if result.kind == "failed" else result.kind)
    elif execution.cancel_reason == "timeout":
        _fail(span, "timeout", "it ran for longer than its time limit")
    else:
        span.set_attribute("pgfifo.outcome", "succeeded")


def _note_error(span: trace.Span, execution: Execution, error: BaseException) -> None:
    if isinstance(error, Retry) and not error.count:
        span.set_attribute("pgfifo.outcome", "postponed")
        return
    reason = execution.cancel_reason
    if isinstance(error, asyncio.CancelledError) and reason is not None and reason != "timeout":
        outcomes = {"cancel": "cancelled", "lost": "lost", "shutdown": "released"}
        span.set_attribute("pgfifo.outcome", outcomes[reason])
        return
    span.record_exception(error)
    _fail(span, "timeout" if reason == "timeout" else _kind(error), f"{type(error).__name__}: {error}")


def _fail(span: trace.Span, kind: str, said: str) -> None:
    span.set_attribute("pgfifo.outcome", "failed")
    span.set_attribute("error.type", kind)
    span.set_status(trace.Status(trace.StatusCode.ERROR, said))


def _kind(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
