"""Handlers that take their payload as a class, and payloads that are checked before they are sent."""

import asyncio
import builtins
import datetime
import enum
import functools
import importlib.util
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, TypedDict

import msgspec
import psycopg
import pydantic
import pytest

import pgfifo
from pgfifo import Actions, Execution, InvalidPayload, InvalidValue
from tests import typed_handlers
from tests.test_worker import drain, enqueue, look

Connection = psycopg.Connection[Any]


class Kind(enum.Enum):
    CARD = "card"
    CASH = "cash"


@dataclass(frozen=True)
class Line:
    article: str
    amount: Decimal


@dataclass(frozen=True)
class Order:
    number: int
    lines: list[Line] = field(default_factory=list)
    kind: Kind = Kind.CARD
    due: datetime.date | None = None

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("number is negative")


class Deploy(pydantic.BaseModel):
    env: str
    replicas: int = pydantic.Field(default=1, ge=1)


@pydantic.dataclasses.dataclass
class Suite:
    suite: str


class Struct(msgspec.Struct):
    n: int


class Record(TypedDict):
    n: int


ORDER = {"number": 7, "lines": [{"article": "tea", "amount": 1.10}], "kind": "cash", "due": "2026-01-31"}
BUILT = Order(7, [Line("tea", Decimal("1.10"))], Kind.CASH, datetime.date(2026, 1, 31))


@pytest.fixture
def actions() -> Actions:
    return Actions()


@pytest.fixture
def seen() -> list[Any]:
    return []


# What a handler gets


@pytest.mark.parametrize(
    ("model", "payload", "expected"),
    [
        (Order, ORDER, BUILT),
        (Order | None, None, None),
        (Annotated[Order, "as ordered"], ORDER, BUILT),
        (Deploy, {"env": "prod", "replicas": 2}, Deploy(env="prod", replicas=2)),
        (Deploy | Suite, {"suite": "all"}, Suite("all")),
        (Suite, {"suite": "all", "unknown": 1}, Suite("all")),
        (Struct, {"n": 1}, Struct(1)),
        (Record, {"n": 1}, {"n": 1}),
    ],
)
@pytest.mark.parametrize("order", ["payload", "payload first", "execution first"])
def test_a_payload_is_built_as_what_the_handler_is_annotated_with(
    dsn: str,
    conn: Connection,
    actions: Actions,
    seen: list[Any],
    model: Any,
    payload: object,
    expected: object,
    order: str,
) -> None:
    def take(given: model) -> None:
        seen.append((given, None))

    def take_both(given: model, execution: Execution) -> None:
        seen.append((given, execution))

    async def take_both_turned(execution: Execution, given: model) -> None:
        seen.append((given, execution))

    handlers: dict[str, Any] = {
        "payload": take,
        "payload first": take_both,
        "execution first": take_both_turned,
    }
    actions.add("work", handlers[order])
    assert actions["work"].handler is handlers[order]
    id_ = enqueue(conn, "work", payload)
    drain(dsn, actions)
    assert look(conn, id_, "state", "error") == ("succeeded", None)
    [(given, execution)] = seen
    assert given == expected
    assert type(given) is type(expected)
    assert (execution is None) == (order == "payload")
    assert execution is None or execution.id == id_


def test_numbers_are_as_exact_as_they_were_enqueued(
    dsn: str, conn: Connection, actions: Actions, seen: list[Any]
) -> None:
    actions.add("work", typed_handlers.take)
    typed_handlers.seen = seen
    conn.execute(
        """select pgfifo.enqueue('work', '{"article": "tea", "amount": 0.1000000000000000000001}')"""
    )
    drain(dsn, actions)
    assert seen == [typed_handlers.Line("tea", Decimal("0.1000000000000000000001"))]


@pytest.mark.parametrize("form", ["coroutine", "method", "object", "partial"])
def test_every_form_of_handler_is_read(
    dsn: str, conn: Connection, actions: Actions, seen: list[Any], form: str
) -> None:
    class Owner:
        def method(self, order: Order) -> None:
            seen.append(order)

        async def __call__(self, order: Order) -> None:
            seen.append(order)

    async def coroutine(order: Order) -> None:
        await asyncio.sleep(0)
        seen.append(order)

    def three(extra: str, order: Order, execution: Execution, other: str = "") -> None:
        assert (extra, other, execution.payload) == ("extra", "", ORDER)
        seen.append(order)

    forms: dict[str, Any] = {
        "coroutine": coroutine,
        "method": Owner().method,
        "object": Owner(),
        "partial": functools.partial(three, "extra"),
    }
    actions.add("work", forms[form])
    id_ = enqueue(conn, "work", ORDER)
    drain(dsn, actions)
    assert (look(conn, id_, "state"), seen) == ("succeeded", [BUILT])


def test_annotations_that_are_text_are_read_where_the_handler_is_defined(actions: Actions) -> None:
    for name in ("take", "take_turned"):
        added = actions.add(name, getattr(typed_handlers, name))
        assert added.call is not added.handler, f"{name} gets the execution in place of its payload"
    for name in ("plain", "only_for_the_type_checker", "anything", "unannotated"):
        added = actions.add(name, getattr(typed_handlers, name))
        assert added.call is added.handler, f"{name} does not get the execution"


def test_handlers_that_do_not_say_which_is_the_payload_are_refused(actions: Actions) -> None:
    def two(first: object, second: object) -> None: ...

    def both(first: Order, second: Deploy) -> None: ...

    def three(first: Execution, second: Deploy, third: Order) -> None: ...

    def values(order: dict[str, int]) -> None: ...

    def text(order: str) -> None: ...

    def missing(order: "NoSuchClass") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    @dataclass
    class Broken:
        line: "NoSuchLine"  # type: ignore[name-defined]  # noqa: F821

    def broken(order: Broken) -> None: ...

    said: dict[Any, str] = {
        two: "which of its parameters is the payload",
        both: "which of its parameters is the payload",
        three: "cannot be called with one argument",
        values: r"takes order as dict\[str, int\], which is neither an Execution nor a dataclass",
        text: "takes order as str",
        missing: "takes order as NoSuchClass, and there is no such name",
        broken: "takes a Broken, which cannot be built: name 'NoSuchLine'",
    }
    for handler, message in said.items():
        with pytest.raises(InvalidValue, match=message):
            actions.add("work", handler)
    assert actions.names == []


# What does not fit


@pytest.mark.parametrize(
    ("model", "payload", "reason"),
    [
        (Order, {"number": "7"}, "Expected `int`, got `str` - at `$.number`"),
        (Order, {}, "Object missing required field `number`"),
        (Order, {"number": -1}, "number is negative"),
        (Order, [1], "Expected `object`, got `array`"),
        (
            Order,
            {"number": 1, "lines": [{"article": 1}]},
            "Expected `str`, got `int` - at `$.lines[0].article`",
        ),
        (Deploy, {"replicas": 0}, "Field required - at `$.env`; Input should be greater than or equal to 1"),
    ],
)
def test_a_payload_that_does_not_fit_has_failed_without_another_attempt(
    dsn: str,
    conn: Connection,
    actions: Actions,
    seen: list[Any],
    caplog: pytest.LogCaptureFixture,
    model: Any,
    payload: object,
    reason: str,
) -> None:
    @actions.middleware
    def around(execution: Execution) -> Iterator[None]:
        try:
            yield
        except InvalidPayload as error:
            seen.append(error)
            raise

    actions.on_failed(lambda _, error: seen.append(error))

    def take(given: model) -> None:
        seen.append("called")

    async def take_async(given: model) -> None:
        seen.append("called")

    actions.add("sync", take)
    actions.add("async", take_async)
    for name in actions.names:
        seen.clear()
        caplog.clear()
        id_ = enqueue(conn, name, payload)
        drain(dsn, actions)
        state, attempt, error = look(conn, id_, "state", "attempt", "error")
        assert (state, attempt) == ("failed", 1)
        assert error.startswith(f"InvalidPayload: the payload of execution {id_} ({name}) is no ")
        assert reason in error
        assert "Traceback" not in error
        assert [type(each) for each in seen] == [InvalidPayload] * 2
        assert seen[0].id == id_
        assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1


def test_an_invalid_payload_that_a_handler_sends_on_is_a_failure_as_any(
    dsn: str, conn: Connection, actions: Actions
) -> None:
    actions.add("next", print, schema={"type": "object"})

    @actions.action("work", max_attempts=2, backoff_initial=0)
    def work(execution: Execution) -> None:
        with pgfifo.Client(dsn, actions=actions) as fifo:
            fifo.enqueue("next", [1])

    id_ = enqueue(conn, "work")
    drain(dsn, actions)
    assert look(conn, id_, "state", "attempt") == ("failed", 2)


# What is sent


@pytest.mark.parametrize(
    ("payload", "stored"),
    [
        (BUILT, ORDER | {"lines": [{"article": "tea", "amount": "1.10"}]}),
        ([Line("tea", Decimal(1))], [{"article": "tea", "amount": "1"}]),
        (Deploy(env="prod"), {"env": "prod", "replicas": 1}),
        ({"tested": Suite("all")}, {"tested": {"suite": "all"}}),
        (Struct(1), {"n": 1}),
    ],
)
def test_instances_are_enqueued_and_returned_as_json(
    dsn: str, actions: Actions, payload: object, stored: object
) -> None:
    actions.add("work", lambda _: payload)
    with pgfifo.Client(dsn) as fifo:
        jobs = [fifo.enqueue("work", payload), *fifo.enqueue_many("work", [payload])]
        drain(dsn, actions)
        for job in jobs:
            info = fifo.execution(job.id)
            assert (info.payload, info.result, info.result_error) == (stored, stored, None)


@pytest.mark.parametrize("odd", [Order, Deploy, object(), uuid.uuid4(), Line("a", Any)])  # type: ignore[arg-type]
def test_what_is_no_instance_of_any_is_refused(dsn: str, odd: object) -> None:
    with pgfifo.Client(dsn) as fifo, pytest.raises(InvalidValue, match="cannot be stored"):
        fifo.enqueue("work", odd)


# Schemas

SCHEMA = {
    "type": "object",
    "required": ["env"],
    "properties": {"env": {"enum": ["prod", "test"]}, "replicas": {"type": "integer", "minimum": 1}},
}


@pytest.fixture
def fifo(dsn: str, actions: Actions) -> Iterator[pgfifo.Client]:
    actions.add("deploy", print, schema=SCHEMA)
    actions.add("other", print)
    with pgfifo.Client(dsn, actions=actions) as client:
        yield client


def test_a_payload_is_checked_against_its_schema_before_it_is_sent(fifo: pgfifo.Client) -> None:
    fifo.enqueue("deploy", {"env": "prod"})
    fifo.enqueue("deploy", pgfifo.JsonText('{"env": "test", "replicas": 3}'))
    fifo.enqueue("deploy", Deploy(env="test"))
    fifo.enqueue("other", 1)
    fifo.enqueue("unknown", 1)
    fifo.enqueue_many("deploy", [{"env": "prod"}, {"env": "test"}])
    before = fifo.stats("deploy").total_enqueued
    with pytest.raises(
        InvalidPayload, match=r"the payload does not fit the schema of deploy: 'env' is a required"
    ) as error:
        fifo.enqueue("deploy")
    assert (error.value.action, error.value.index, error.value.sqlstate) == ("deploy", None, "QF025")
    assert isinstance(error.value, ValueError)
    with pytest.raises(InvalidPayload, match=r"is not one of \['prod', 'test'\] - at `\$\.env`"):
        fifo.enqueue("deploy", {"env": "prdo"})
    with pytest.raises(InvalidPayload, match="is a required"):
        fifo.enqueue_and_wait("deploy")
    with pytest.raises(InvalidPayload, match="the payload of item 1 does not fit") as error:
        fifo.enqueue_many("deploy", ({"env": "prod", "replicas": n} for n in (1, 0)))
    assert error.value.index == 1
    with pytest.raises(InvalidPayload) as error:
        fifo.enqueue("deploy", {"env": "x" * 100_000})
    assert len(str(error.value)) < 500
    assert fifo.stats("deploy").total_enqueued == before


def test_a_payload_is_checked_by_the_asynchronous_client_too(dsn: str, actions: Actions) -> None:
    actions.add("deploy", print, schema=SCHEMA)

    async def live() -> None:
        async with pgfifo.AsyncClient(dsn, actions=actions) as fifo:
            await fifo.enqueue("deploy", {"env": "prod"})
            with pytest.raises(InvalidPayload):
                await fifo.enqueue("deploy", {"env": 1})

    asyncio.run(live())


@pytest.mark.parametrize("schema", ["object", [], {"type": "objekt"}, {"required": "env"}])
def test_a_schema_that_is_none_is_refused_at_the_decorator(actions: Actions, schema: Any) -> None:
    with pytest.raises(InvalidValue, match="the schema of 'deploy' is no JSON Schema"):
        actions.action("deploy", schema=schema)(print)
    assert actions.names == []


def test_without_jsonschema_a_worker_works_and_a_client_says_what_is_missing(
    dsn: str, actions: Actions, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("jsonschema"):
            raise ImportError(name)
        return really(name, *arguments, **more)

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(builtins, "__import__", without)
    actions.add("deploy", print, schema=SCHEMA)
    drain(dsn, actions)
    with pytest.raises(InvalidValue, match="jsonschema is not installed") as error:
        pgfifo.Client(dsn, actions=actions)
    assert "pgfifo[schema]" in str(error.value.hint)
    other = Actions()
    other.add("other", print)
    pgfifo.Client(dsn, actions=other).close()
