"""Traces go through the queue: a span for each enqueue and each attempt, whatever handler or client."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import pgfifo
from pgfifo import logs, otel


@pytest.fixture
def fifo(dsn: str) -> Iterator[pgfifo.Client]:
    with pgfifo.Client(dsn) as client:
        yield client


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def actions(provider: TracerProvider) -> Iterator[pgfifo.Actions]:
    """A registry that is traced, as are this process's clients."""
    registry = pgfifo.Actions()
    otel.instrument(registry, tracer_provider=provider)
    otel.instrument(registry, tracer_provider=provider)  # once is enough
    yield registry
    otel.uninstrument()


@pytest.fixture
def ended(exporter: InMemorySpanExporter) -> Callable[[str], list[ReadableSpan]]:
    """Return the spans of that name, in the order of their ends."""
    return lambda name: [span for span in exporter.get_finished_spans() if span.name == name]


Ended = Callable[[str], list[ReadableSpan]]


def drain(dsn: str, actions: pgfifo.Actions) -> None:
    pgfifo.Worker(dsn, actions, until_empty=True, poll_interval=0.05).run()


def own(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def context(span: ReadableSpan) -> trace.SpanContext:
    found = span.get_span_context()
    assert found is not None
    return found


def assert_child(span: ReadableSpan, parent: ReadableSpan) -> None:
    assert span.parent is not None
    assert span.parent.span_id == context(parent).span_id
    assert context(span).trace_id == context(parent).trace_id


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_attempt_belongs_to_the_trace_of_its_enqueue(
    dsn: str, fifo: pgfifo.Client, actions: pgfifo.Actions, provider: TracerProvider, ended: Ended, kind: str
) -> None:
    inner = provider.get_tracer("test")

    def work() -> str:
        with inner.start_as_current_span("inside"):
            fifo.enqueue("later")
        return str(logs.ids()["trace_id"])

    if kind == "sync":
        actions.add("deploy", lambda _execution: work(), group_by=["env"])
    else:

        async def deploy(execution: pgfifo.Execution) -> str:
            await asyncio.sleep(0)
            return work()

        actions.add("deploy", deploy, group_by=["env"])
    fifo.declare(actions)
    with inner.start_as_current_span("request") as request:
        job = fifo.enqueue("deploy", {"env": "prod"}, headers={"origin": "web"})
    drain(dsn, actions)
    [enqueue], [process], [inside], [later] = map(
        ended, ("enqueue deploy", "process deploy", "inside", "enqueue later")
    )
    assert isinstance(request, ReadableSpan)
    assert_child(enqueue, request)
    assert_child(process, enqueue)
    assert_child(inside, process)
    assert_child(later, inside)
    assert (enqueue.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    common = {
        "messaging.system": "pgfifo",
        "messaging.destination.name": "deploy",
        "messaging.message.id": str(job.id),
        "pgfifo.group": '{"env":"prod"}',
    }
    assert own(enqueue) == common | {
        "messaging.operation.name": "enqueue",
        "messaging.operation.type": "send",
        "pgfifo.created": True,
    }
    waited = own(process).pop("pgfifo.wait_seconds")
    assert own(process) == common | {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "pgfifo.attempt": 1,
        "pgfifo.outcome": "succeeded",
        "pgfifo.wait_seconds": waited,
    }
    assert process.status.status_code == StatusCode.UNSET
    info = fifo.execution(job.id)
    assert info.result == trace.format_trace_id(context(process).trace_id), "its logs know the trace"
    assert info.headers is not None
    assert info.headers["origin"] == "web"


def test_what_the_caller_says_of_the_trace_stays(
    dsn: str, fifo: pgfifo.Client, actions: pgfifo.Actions, ended: Ended
) -> None:
    actions.add("deploy", lambda _execution: None)
    mine = f"00-{'a' * 32}-{'b' * 16}-01"
    fifo.enqueue("deploy", headers={"traceparent": mine})
    one, two = fifo.enqueue_many("deploy", [1, 2], headers=[{"traceparent": mine}, {"x": 1}])
    first, second = (fifo.execution(each.id).headers for each in (one, two))
    assert first == {"traceparent": mine}
    assert second is not None
    assert second["x"] == 1
    [batch] = ended("enqueue deploy")[1:]
    assert trace.format_span_id(context(batch).span_id) in second["traceparent"]
    drain(dsn, actions)
    parents = [span.parent.span_id for span in ended("process deploy") if span.parent is not None]
    assert parents == [int("b" * 16, 16)] * 2 + [context(batch).span_id]


def test_a_trace_that_cannot_be_read_hinders_nothing(
    dsn: str, fifo: pgfifo.Client, actions: pgfifo.Actions, ended: Ended
) -> None:
    actions.add("deploy", lambda _execution: None)
    fifo.enqueue_many("deploy", [1, 2], headers=[{"traceparent": "nonsense"}, {"traceparent": {"a": 1}}])
    drain(dsn, actions)
    assert [span.parent for span in ended("process deploy")] == [None, None]


def test_each_attempt_has_a_span_and_failures_say_of_what(
    dsn: str, fifo: pgfifo.Client, actions: pgfifo.Actions, ended: Ended
) -> None:
    @actions.action("fragile", max_attempts=3, backoff_initial=0.01)
    def fragile(execution: pgfifo.Execution) -> None:
        if execution.attempt == 1:
            raise pgfifo.Retry(after=0.01, count=False)
        if execution.attempt == 2:
            raise OSError("no route to host")

    fifo.declare(actions)
    fifo.enqueue("fragile")
    drain(dsn, actions)
    [enqueue] = ended("enqueue fragile")
    put_off, failed, succeeded = ended("process fragile")
    for number, span in enumerate((put_off, failed, succeeded), 1):
        assert_child(span, enqueue)
        assert own(span)["pgfifo.attempt"] == number
    assert own(put_off)["pgfifo.outcome"] == "postponed"
    assert put_off.status.status_code == StatusCode.UNSET
    assert own(failed)["pgfifo.outcome"] == "failed"
    assert own(failed)["error.type"] == "OSError"
    assert (failed.status.status_code, failed.status.description) == (
        StatusCode.ERROR,
        "OSError: no route to host",
    )
    [event] = failed.events
    assert (event.name, dict(event.attributes or {})["exception.type"]) == ("exception", "OSError")
    assert own(succeeded)["pgfifo.outcome"] == "succeeded"


def test_the_log_of_a_failure_has_its_trace(
    dsn: str,
    fifo: pgfifo.Client,
    actions: pgfifo.Actions,
    ended: Ended,
    caplog: pytest.LogCaptureFixture,
) -> None:
    @actions.action("fragile", max_attempts=1)
    async def fragile(execution: pgfifo.Execution) -> None:
        raise OSError

    fifo.declare(actions)
    fifo.enqueue("fragile")
    drain(dsn, actions)
    [span] = ended("process fragile")
    [failure] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert failure.trace_id == trace.format_trace_id(context(span).trace_id)  # type: ignore[attr-defined]
    assert failure.span_id == trace.format_span_id(context(span).span_id)  # type: ignore[attr-defined]


def test_what_is_cancelled_or_out_of_time_is_told_apart(
    dsn: str, fifo: pgfifo.Client, actions: pgfifo.Actions, ended: Ended
) -> None:
    @actions.action("slow", timeout=0.05, max_attempts=1)
    async def slow(execution: pgfifo.Execution) -> None:
        await asyncio.sleep(20)

    @actions.action("wanted")
    async def wanted(execution: pgfifo.Execution) -> None:
        assert await asyncio.to_thread(fifo.cancel, execution.id) == "requested"
        await asyncio.sleep(20)

    fifo.declare(actions)
    fifo.enqueue("slow")
    fifo.enqueue("wanted")
    drain(dsn, actions)
    [slow_span], [wanted_span] = ended("process slow"), ended("process wanted")
    assert own(slow_span)["error.type"] == "timeout"
    assert slow_span.status.status_code == StatusCode.ERROR
    assert own(wanted_span)["pgfifo.outcome"] == "cancelled"
    assert wanted_span.status.status_code == StatusCode.UNSET


def test_a_batch_has_a_span_for_each_and_works_within_the_first(
    dsn: str, fifo: pgfifo.Client, actions: pgfifo.Actions, provider: TracerProvider, ended: Ended
) -> None:
    inner = provider.get_tracer("test")

    @actions.action("index", batch=10, failure_mode="tail", max_attempts=1)
    def index(executions: list[pgfifo.Execution]) -> list[object]:
        with inner.start_as_current_span("inside"):
            return [ValueError("two") if execution.payload == 2 else None for execution in executions]

    fifo.declare(actions)
    jobs = [fifo.enqueue("index", n) for n in (1, 2, 3)]
    drain(dsn, actions)
    enqueues, spans = ended("enqueue index"), ended("process index")
    assert len(spans) == 3
    spans.reverse()  # they end as they are nested
    for job, enqueue, span in zip(jobs, enqueues, spans, strict=True):
        assert_child(span, enqueue)
        assert own(span)["messaging.message.id"] == str(job.id)
    assert [own(span)["pgfifo.outcome"] for span in spans] == ["succeeded", "failed", "succeeded"]
    [inside] = ended("inside")
    assert_child(inside, spans[0])
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_command_that_fails_is_an_error(
    dsn: str, fifo: pgfifo.Client, actions: pgfifo.Actions, ended: Ended
) -> None:
    actions.add("shell", pgfifo.Command(["sh", "-c", "echo broken >&2; exit 65"]))
    fifo.enqueue("shell")
    drain(dsn, actions)
    [span] = ended("process shell")
    assert own(span)["pgfifo.outcome"] == "failed"
    assert span.status.status_code == StatusCode.ERROR


def test_an_attempt_may_have_a_trace_of_its_own_with_a_link(
    dsn: str, fifo: pgfifo.Client, provider: TracerProvider, ended: Ended
) -> None:
    actions = pgfifo.Actions()
    otel.instrument(actions, relation="link", tracer_provider=provider)
    try:
        actions.add("deploy", lambda _execution: None)
        fifo.enqueue("deploy")
    finally:
        otel.uninstrument()
    drain(dsn, actions)
    [enqueue], [process] = ended("enqueue deploy"), ended("process deploy")
    assert process.parent is None
    assert [link.context.span_id for link in process.links] == [context(enqueue).span_id]
    assert context(process).trace_id != context(enqueue).trace_id


def test_a_registry_within_a_registry_is_traced_once(
    dsn: str, fifo: pgfifo.Client, actions: pgfifo.Actions, provider: TracerProvider, ended: Ended
) -> None:
    part = pgfifo.Actions()
    otel.instrument(part, tracer_provider=provider)
    part.add("deploy", lambda _execution: None)
    actions.include(part)
    fifo.enqueue("deploy")
    drain(dsn, actions)
    assert len(ended("process deploy")) == 1


def test_async_clients_batches_and_refusals(
    dsn: str, fifo: pgfifo.Client, actions: pgfifo.Actions, ended: Ended
) -> None:
    fifo.set_policy("deploy", max_queue_length=2)

    async def produce() -> None:
        async with pgfifo.AsyncClient(dsn) as client:
            await client.enqueue_many("deploy", (n for n in range(2)))
            with pytest.raises(pgfifo.QueueFull):
                await client.enqueue("deploy")
            with pytest.raises(pgfifo.InvalidValue):
                await client.enqueue_many("deploy", [1, 2], headers=[{}])

    asyncio.run(produce())
    batch, full, wrong = ended("enqueue deploy")
    assert own(batch)["messaging.batch.message_count"] == 2
    assert own(full)["error.type"] == "pgfifo.errors.QueueFull"
    assert full.status.status_code == StatusCode.ERROR
    assert [event.name for event in full.events] == ["exception"]
    assert wrong.status.status_code == StatusCode.ERROR
    for info in fifo.executions("deploy"):
        assert info.headers is not None
        assert trace.format_span_id(context(batch).span_id) in info.headers["traceparent"]


def test_without_an_sdk_nothing_is_written(dsn: str, fifo: pgfifo.Client) -> None:
    actions = pgfifo.Actions()
    otel.instrument(actions, tracer_provider=trace.NoOpTracerProvider())
    try:
        actions.add("deploy", lambda execution: execution.trace)
        job = fifo.enqueue("deploy")
    finally:
        otel.uninstrument()
    drain(dsn, actions)
    info = fifo.execution(job.id)
    assert (info.state, info.result, info.headers) == ("succeeded", None, None)


def test_nothing_of_it_is_loaded_before_it_is_asked_for() -> None:
    code = (
        "import sys, pgfifo.worker, pgfifo.logs, pgfifo.cli.app as app; app.load();"
        " print([m for m in sys.modules if m.startswith(('opentelemetry', 'prometheus'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("missing", ["prometheus_client", "opentelemetry"])
def test_who_lacks_an_extra_is_told_which(missing: str) -> None:
    module, extra = {
        "prometheus_client": ("metrics", "metrics"),
        "opentelemetry": ("otel", "otel"),
    }[missing]
    code = f"import sys; sys.modules[{missing!r}] = None\nimport pgfifo.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"pip install 'pgfifo[{extra}]'" in done.stderr.splitlines()[-1]
