"""Arguments that cannot be right are refused by name, with the value and what to give; nothing is sent."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo._given import brief
from pgfifo._looking import CHECKS, ELSEWHERE

Connection = psycopg.Connection[Any]

METHODS = {
    name: method
    for name, method in inspect.getmembers(pgfifo.Client, inspect.isfunction)
    if not name.startswith("_") and len(inspect.signature(method).parameters) > 1
}
ODD: list[Any] = [
    None,
    True,
    -1,
    1.5,
    2**31,
    2**63,
    10**400,
    10**5000,
    "",
    "abc",
    "a\0b",
    "\ud800",
    b"abc",
    [],
    [1],
    ["a"],
    [None],
    [["a"]],
    {"a": 1},
    {"a": {1}},
    {1: 2},
    {1, 2},
    object(),
    object,
    float("nan"),
    datetime(2026, 1, 1),
    datetime.max,
    datetime(2026, 1, 1, tzinfo=UTC),
]


@pytest.fixture
def fifo(dsn: str) -> Any:
    with pgfifo.Client(dsn) as client:
        yield client


@pytest.fixture
def somebody(conn: Connection) -> Iterator[None]:
    """A role that may be given rights: no test after this one finds that it has them."""
    conn.execute("create role somebody")
    yield
    conn.execute("drop owned by somebody; drop role somebody")


def good(fifo: pgfifo.Client) -> dict[str, Any]:
    """A value that is right, for each argument that has no default."""
    fifo.set_schedule("api", "deploy", "@daily")
    return {
        "action": "deploy",
        "actions": pgfifo.Actions(),
        "actor": "ann",
        "items": [{"n": 1}],
        "id": fifo.enqueue("deploy").id,
        "ids": [fifo.enqueue("deploy").id],
        "attempt": 1,
        "outcome": "succeeded",
        "pack": "core",
        "name": "api",
        "source": "events.jsonl",
        "fingerprint": "1:abc",
        "number": fifo.import_start("deploy", "f", "p"),
        "upto": 1,
        "count": 1,
        "policies": {"default": {"max_attempts": 3}},
        "first_id": 1,
        "last_id": 1,
        "cron": "0 2 * * *",
        "role": "producer",
        "to": "somebody",
        "from_": "somebody",
    }


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.usefixtures("somebody")
def test_no_argument_whatever_it_is_raises_anything_but_an_error_of_pgfifos(
    fifo: pgfifo.Client, name: str
) -> None:
    """What is wrong may be refused or make no difference; a driver's error would leave its reader alone."""
    parameters = inspect.signature(METHODS[name]).parameters
    call = getattr(fifo, name)
    right = good(fifo)
    needed = {
        key: right[key]
        for key, parameter in parameters.items()
        if key != "self" and parameter.default is parameter.empty and key not in ("values", "where")
    }
    keys = [key for key in parameters if key not in ("self", "values", "where")]
    if "where" in parameters:
        needed["action"] = "deploy"
        keys += ["action", "group", "state", "tags", "from_id", "to_id", "enqueued_since", "finished_before"]
    if "values" in parameters:
        values = pgfifo.SharedLimitValues if name == "set_shared_limit" else pgfifo.Policy
        keys += list(values.__annotations__)
    waits = {"timeout": 0} if "timeout" in parameters else {}
    for key in keys:
        for odd in ODD:
            if key == "timeout" and (odd is None or type(odd) is int):
                continue  # it would wait
            try:
                call(**(waits | needed | {key: odd}))
            except pgfifo.PgfifoError:
                pass
            except Exception as error:  # noqa: BLE001 - that is the test
                raised = f"{type(error).__module__}.{type(error).__name__}: {error}"
                pytest.fail(f"{name}({key}={brief(odd)}) raised {raised}")


def test_every_argument_of_every_method_is_looked_at() -> None:
    for name, method in METHODS.items():
        for key in inspect.signature(method).parameters:
            assert key in CHECKS or key in ELSEWHERE or key == "self", f"nobody looks at {name}({key}=…)"


CASES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda f: f.enqueue(5, {}), "action is no text: 5"),
    (lambda f: f.enqueue("x", headers=[1]), "headers is no mapping: [1]"),
    (lambda f: f.enqueue("x", tags="urgent"), "tags is no list of texts: 'urgent'"),
    (lambda f: f.enqueue("x", tags=["a", 2]), "tags 1 is no text: 2"),
    (lambda f: f.enqueue("x", group="a\0"), "group holds a NUL character: 'a\\x00'"),
    (lambda f: f.enqueue("x", request_id=7), "request_id is no text: 7"),
    (lambda f: f.enqueue("x", run_at="tomorrow"), "run_at is no time: 'tomorrow'"),
    (lambda f: f.enqueue_many("x", "abc"), "items is no list of payloads: 'abc'"),
    (lambda f: f.enqueue_many("x", {"n": 1}), "items is no list of payloads: {'n': 1}"),
    (lambda f: f.enqueue_many("x", {"a"}), "items is a set, which has no order: {'a'}"),
    (lambda f: f.enqueue_many("x", 5), "items is no list of payloads: 5"),
    (lambda f: f.enqueue_many("x", [1], headers={"a": 1}), "headers is no list of mappings: {'a': 1}"),
    (lambda f: f.enqueue_many("x", [1, 2], headers=[None, 5]), "headers 1 is no mapping: 5"),
    (lambda f: f.enqueue_many("x", [1], groups="a"), "groups is no list of groups: 'a'"),
    (lambda f: f.enqueue_many("x", [1], request_ids="a"), "request_ids is no list of texts: 'a'"),
    (lambda f: f.enqueue_many("x", [1], split="yes"), "split is neither True nor False: 'yes'"),
    (lambda f: f.execution("abc"), "id is no whole number: 'abc'"),
    (lambda f: f.execution(2**63), "id is out of range: 9223372036854775808"),
    (lambda f: f.cancel(True), "id is no whole number: True"),
    (lambda f: f.cancel_many([1, "b"]), "ids 1 is no whole number: 'b'"),
    (lambda f: f.finish(1, 2**31, "failed"), "attempt is out of range: 2147483648"),
    (lambda f: f.executions(limit=-1), "limit is out of range: -1"),
    (lambda f: f.executions(limit=None), "limit is no whole number: None"),
    (lambda f: f.executions(state="lost"), "'lost' is no state"),
    (lambda f: f.executions(before="9"), "before is no whole number: '9'"),
    (lambda f: f.lanes(limit=1.5), "limit is no whole number: 1.5"),
    (lambda f: f.stats(["x"]), "action is no text: ['x']"),
    (lambda f: f.pause("x", reason=5), "reason is no text: 5"),
    (lambda f: f.set_policy("x", force="no", max_concurrent=1), "force is neither True nor False: 'no'"),
    (lambda f: f.check(repair=1), "repair is neither True nor False: 1"),
    (lambda f: f.declare("x"), "actions is no registry of actions: 'x'"),
    (lambda f: f.import_status(-5), "number is out of range: -5"),
    (lambda f: f.cancel_where(from_id="a"), "from_id is no whole number: 'a'"),
]


@pytest.mark.parametrize(("call", "message"), CASES, ids=[message for _, message in CASES])
def test_the_error_names_the_argument_and_its_value_and_says_what_to_give(
    fifo: pgfifo.Client, conn: Connection, call: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(pgfifo.InvalidValue) as caught:
        call(fifo)
    assert caught.value.message == message
    assert caught.value.hint, "it does not say what to do"
    assert caught.value.detail["name"] in message or "state" in message
    assert conn.execute("select count(*) from pgfifo.executions").fetchone() == (0,)


def test_arguments_by_position_and_iterators_are_looked_at_too(fifo: pgfifo.Client) -> None:
    done = fifo.enqueue_many("x", (n for n in range(3)))
    assert len(done) == 3
    with pytest.raises(pgfifo.InvalidValue, match="limit"):
        fifo.lanes("x", limit=-3)
    with pytest.raises(TypeError):
        fifo.execution(1, 2)  # type: ignore[call-arg]

    class Number:
        """A whole number of another library's."""

        def __index__(self) -> int:
            return done[0].id

    assert fifo.execution(Number()).id == done[0].id  # type: ignore[arg-type]


def test_the_asynchronous_client_looks_at_its_arguments_when_it_is_awaited(dsn: str) -> None:
    async def live() -> None:
        async with pgfifo.AsyncClient(dsn) as fifo:
            call = fifo.execution("abc")  # type: ignore[arg-type]
            assert inspect.iscoroutine(call)
            with pytest.raises(pgfifo.InvalidValue, match="id is no whole number: 'abc'"):
                await call
            with pytest.raises(pgfifo.InvalidValue, match="limit"):
                await fifo.executions(limit=-1)

    asyncio.run(live())
