"""Middleware goes around every attempt, hooks come after it; neither changes what is recorded by accident."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgfifo import Actions, Command, Execution, ExecutionFailed, InvalidValue, UnknownAction
from pgfifo._connections import AsyncLink, Row
from tests.support.database import wait_for
from tests.test_worker import drain, enqueue, look

Connection = psycopg.Connection[Any]


@pytest.fixture
def actions() -> Actions:
    return Actions()


@pytest.fixture
def told() -> list[object]:
    """What middleware, handlers and hooks have seen, in this order."""
    return []


def add_both(actions: Actions, handler: Any, **values: Any) -> list[str]:
    """Register a handler as a function and as a coroutine; return the names."""

    async def as_coroutine(execution: Execution) -> object:
        await asyncio.sleep(0)
        return handler(execution)

    actions.add("sync", handler, **values)
    actions.add("async", as_coroutine, **values)
    return ["sync", "async"]


# Middleware


def test_middleware_goes_around_handlers_of_both_kinds_the_first_outermost(
    dsn: str, conn: Connection, actions: Actions, told: list[object]
) -> None:
    @actions.middleware
    def outer(execution: Execution) -> Iterator[None]:
        told.append("outer before")
        result = yield
        told.append(("outer after", result))

    def handler(execution: Execution) -> str:
        told.append("handler")
        return "done"

    names = add_both(actions, handler)

    @actions.middleware
    def inner(execution: Execution) -> Iterator[None]:
        told.append("inner before")
        result = yield
        told.append(("inner after", result))

    for name in names:
        told.clear()
        id_ = enqueue(conn, name)
        drain(dsn, actions)
        assert told == [
            "outer before",
            "inner before",
            "handler",
            ("inner after", "done"),
            ("outer after", "done"),
        ]
        assert look(conn, id_, "state", "result") == ("succeeded", "done")


def test_middleware_that_is_async_goes_around_coroutines(
    dsn: str, conn: Connection, actions: Actions, told: list[object]
) -> None:
    @actions.middleware
    async def around(execution: Execution) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        told.append("before")
        try:
            result = yield
            told.append(result)
        except RuntimeError as error:
            told.append(str(error))
            raise

    @actions.action("work", max_attempts=1)
    async def work(execution: Execution) -> str:
        if execution.payload == "fail":
            raise RuntimeError("no")
        return "done"

    good, bad = enqueue(conn, "work"), enqueue(conn, "work", "fail")
    drain(dsn, actions)
    assert told == ["before", "done", "before", "no"]
    assert (look(conn, good, "state"), look(conn, bad, "state")) == ("succeeded", "failed")


def test_middleware_runs_where_the_handler_runs_and_in_its_context(
    dsn: str, conn: Connection, actions: Actions, told: list[object]
) -> None:
    current: contextvars.ContextVar[int] = contextvars.ContextVar("current")

    @actions.middleware
    def around(execution: Execution) -> Iterator[None]:
        thread = threading.get_ident()
        token = current.set(execution.id)
        yield
        current.reset(token)
        assert threading.get_ident() == thread

    for name in add_both(actions, lambda _: told.append(current.get())):
        id_ = enqueue(conn, name)
        drain(dsn, actions)
        assert look(conn, id_, "state", "error") == ("succeeded", None)
        assert told.pop() == id_


@pytest.mark.parametrize("swallow", [True, False])
def test_middleware_sees_what_is_raised_and_cannot_make_a_success_of_it(
    dsn: str, conn: Connection, actions: Actions, told: list[object], swallow: bool
) -> None:
    @actions.middleware
    def around(execution: Execution) -> Iterator[None]:
        try:
            yield
        except ZeroDivisionError as error:
            told.append(type(error))
            if not swallow:
                raise

    def divide(execution: Execution) -> float:
        return 1 / 0

    for name in add_both(actions, divide, max_attempts=1):
        id_ = enqueue(conn, name)
        drain(dsn, actions)
        state, error = look(conn, id_, "state", "error")
        assert state == "failed"
        assert error.startswith("ZeroDivisionError")
        assert "in divide\n" in error
        assert "_run.py" not in error
    assert told == [ZeroDivisionError] * 2


def test_middleware_may_fail_an_attempt(dsn: str, conn: Connection, actions: Actions) -> None:
    """Before the handler, after it, and with another error in place of its own."""

    @actions.middleware
    def around(execution: Execution) -> Iterator[None]:
        if execution.payload == "before":
            raise PermissionError("not on Sundays")
        try:
            yield
        except ZeroDivisionError as error:
            raise RuntimeError("translated") from error
        if execution.payload == "after":
            raise RuntimeError("not like this")

    for name in add_both(actions, lambda e: 1 / 0 if e.payload == "instead" else None, max_attempts=1):
        before, after, instead = (enqueue(conn, name, p) for p in ("before", "after", "instead"))
        drain(dsn, actions)
        assert look(conn, before, "error").startswith("PermissionError: not on Sundays")
        assert look(conn, after, "error").startswith("RuntimeError: not like this")
        assert look(conn, instead, "error").startswith("RuntimeError: translated")
        assert {look(conn, id_, "state") for id_ in (before, after, instead)} == {"failed"}


@pytest.mark.parametrize("times", [0, 2])
@pytest.mark.parametrize("kind", ["sync", "async", "async in async"])
def test_middleware_that_does_not_yield_once_is_named(
    dsn: str, conn: Connection, actions: Actions, told: list[object], kind: str, times: int
) -> None:
    if kind == "async in async":

        @actions.middleware
        async def odd_async(execution: Execution) -> AsyncIterator[None]:
            for _ in range(times):
                yield
    else:

        @actions.middleware
        def odd(execution: Execution) -> Iterator[None]:
            for _ in range(times):
                yield

    async def work_async(execution: Execution) -> None:
        told.append("called")

    def work(execution: Execution) -> None:
        told.append("called")

    actions.add("work", work if kind == "sync" else work_async, max_attempts=1)
    id_ = enqueue(conn, "work")
    drain(dsn, actions)
    state, error = look(conn, id_, "state", "error")
    assert state == "failed"
    assert "test_middleware_that_does_not_yield_once_is_named.<locals>.odd" in error
    assert ("more than once" if times else "before its yield") in error
    assert told == ["called"] * (times > 0)


def test_middleware_sees_a_cancel_pass_by(
    dsn: str, conn: Connection, actions: Actions, told: list[object]
) -> None:
    """And may not keep it from its end."""

    @actions.middleware
    def around(execution: Execution) -> Iterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            told.append(execution.cancel_reason)

    @actions.action("work")
    async def work(execution: Execution) -> None:
        await asyncio.to_thread(conn.execute, "select pgfifo.cancel(%s)", (execution.id,))
        await asyncio.sleep(60)

    id_ = enqueue(conn, "work")
    drain(dsn, actions)
    assert look(conn, id_, "state") == "cancelled"
    assert told == ["cancel"]


def test_a_registry_that_is_included_keeps_its_middleware_inside(
    dsn: str, conn: Connection, actions: Actions, told: list[object]
) -> None:
    other = Actions()
    other.add("theirs", lambda _: None)
    actions.add("ours", lambda _: None)
    actions.include(other)

    @other.middleware
    def inner(execution: Execution) -> Iterator[None]:
        told.append(("inner", execution.action))
        yield

    @actions.middleware
    def outer(execution: Execution) -> Iterator[None]:
        told.append(("outer", execution.action))
        yield

    @other.on_failed
    def hook(execution: Execution, error: BaseException) -> None:
        """Do nothing."""

    enqueue(conn, "theirs")
    drain(dsn, actions)
    enqueue(conn, "ours")
    drain(dsn, actions)
    assert told == [("outer", "theirs"), ("inner", "theirs"), ("outer", "ours")]
    assert actions["theirs"].on_failed == [hook]
    assert actions["ours"].on_failed == []


def test_a_subset_keeps_its_middleware_and_hooks(
    dsn: str, conn: Connection, actions: Actions, told: list[object]
) -> None:
    """As the command line makes one: pgfifo worker app:actions --action NAME."""
    actions.add("one", lambda _: 1 / 0, max_attempts=1)
    actions.add("two", lambda _: None)
    actions.on_failed(lambda execution, _: told.append(f"{execution.action} failed"))

    @actions.middleware
    def around(execution: Execution) -> Iterator[None]:
        told.append(execution.action)
        yield

    some = actions.subset(["one"])
    assert some.names == ["one"]
    assert some["one"].values == {"max_attempts": 1}
    enqueue(conn, "one")
    drain(dsn, some)
    assert told == ["one", "one failed"]
    with pytest.raises(UnknownAction):
        actions.subset(["tow"])


def test_middleware_that_cannot_be_right_is_refused(actions: Actions) -> None:
    @contextmanager
    def decorated(execution: Execution) -> Iterator[None]:
        yield

    async def coroutine(execution: Execution) -> None:
        """Do nothing."""

    for odd in (decorated, coroutine, lambda _: None, None):
        with pytest.raises(InvalidValue, match="no generator function"):
            actions.middleware(odd)  # type: ignore[type-var]

    async def around(execution: Execution) -> AsyncIterator[None]:
        yield

    actions.middleware(around)
    actions.add("coroutine", coroutine)
    with pytest.raises(InvalidValue, match=r"is async, and the handler of 'sync' is not"):
        actions.add("sync", lambda _: None)
    sync = Actions()
    sync.add("sync", lambda _: None)
    with pytest.raises(InvalidValue, match=r"is async, and the handler of 'sync' is not"):
        actions.include(sync)
    with pytest.raises(InvalidValue, match=r"is async, and the handler of 'sync' is not"):
        sync.middleware(around)
    assert actions.names == ["coroutine"]


# Hooks


def test_hooks_are_called_after_each_failure_and_at_the_last(
    dsn: str, conn: Connection, actions: Actions, told: list[object]
) -> None:
    def fail(execution: Execution) -> None:
        raise KeyError(execution.attempt)

    def state(execution: Execution) -> str:
        with psycopg.connect(dsn) as own:
            return str(look(own, execution.id, "state"))

    @actions.on_failed
    def failed(execution: Execution, error: BaseException) -> None:
        assert error.__traceback__ is not None
        told.append(("failed", execution.attempt, repr(error)))

    @actions.on_failed
    async def failed_async(execution: Execution, error: BaseException) -> None:
        told.append(("async", execution.attempt, repr(error)))

    @actions.on_exhausted
    def exhausted(execution: Execution, error: BaseException) -> None:
        told.append((state(execution), execution.attempt, repr(error)))

    for name in add_both(actions, fail, max_attempts=2, backoff_initial=0, backoff_jitter=0):
        told.clear()
        enqueue(conn, name)
        drain(dsn, actions)
        assert told == [
            ("failed", 1, "KeyError(1)"),
            ("async", 1, "KeyError(1)"),
            ("failed", 2, "KeyError(2)"),
            ("async", 2, "KeyError(2)"),
            ("failed", 2, "KeyError(2)"),
        ]


def test_hooks_are_told_of_a_command_that_failed(
    dsn: str, conn: Connection, actions: Actions, told: list[BaseException]
) -> None:
    actions.add("work", Command("echo no paper >&2; exit 65"))
    actions.on_exhausted(lambda _, error: told.append(error))
    id_ = enqueue(conn, "work")
    drain(dsn, actions)
    [error] = told
    assert isinstance(error, ExecutionFailed)
    assert (error.id, error.outcome, error.error) == (id_, "failed", "exit status 65: no paper")


def test_hooks_are_not_called_for_what_did_not_fail(
    dsn: str, conn: Connection, actions: Actions, told: list[object]
) -> None:
    """Nor for a failure that counts for nothing, because the execution was not ours any more."""
    actions.on_failed(lambda execution, _: told.append(execution.payload))
    actions.on_exhausted(lambda execution, _: told.append(execution.payload))

    @actions.action("work", max_attempts=1)
    def work(execution: Execution) -> None:
        if execution.payload == "lost" and execution.attempt == 1:
            conn.execute("select pgfifo.release(%s, %s)", (execution.id, execution.attempt))
            raise RuntimeError("too late")
        if execution.payload == "failed":
            raise RuntimeError("in time")

    ids = [enqueue(conn, "work", payload) for payload in ("succeeded", "lost", "failed")]
    drain(dsn, actions)
    assert [look(conn, id_, "state") for id_ in ids] == ["succeeded", "succeeded", "failed"]
    assert told == ["failed", "failed"]


def test_hooks_are_not_called_for_an_attempt_that_has_come_back_as_another(
    dsn: str,
    conn: Connection,
    actions: Actions,
    told: list[object],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first attempt fails while the claim that starts the second is on its way back."""
    begun = threading.Event()
    rows = AsyncLink.rows

    async def late(self: AsyncLink, query: str, parameters: tuple[object, ...] = ()) -> list[Row]:
        found = await rows(self, query, parameters)
        if any(row[:1] == ("start",) and row[2] == 2 for row in found):
            begun.set()
            await asyncio.to_thread(wait_for, lambda: "attempt 1, failed" in caplog.text)
        return found

    monkeypatch.setattr(AsyncLink, "rows", late)
    actions.on_failed(lambda execution, _: told.append(execution.attempt))

    @actions.action("work")
    def work(execution: Execution) -> None:
        if execution.attempt == 1:
            conn.execute("select pgfifo.release(%s, 1)", (execution.id,))
            assert begun.wait(30)
            raise RuntimeError("too late")

    id_ = enqueue(conn, "work")
    drain(dsn, actions, poll_interval=0.01)
    assert look(conn, id_, "state", "attempt", "failures") == ("succeeded", 2, 0)
    assert told == []
    assert "attempt 1, was lost" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("the mail server"), SystemExit(3)])
def test_an_error_in_a_hook_changes_nothing_and_is_logged_once(
    dsn: str,
    conn: Connection,
    actions: Actions,
    told: list[object],
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    def fail(execution: Execution) -> None:
        raise ValueError("the handler")

    @actions.on_failed
    def broken(execution: Execution, failure: BaseException) -> None:
        raise error

    @actions.on_failed
    async def broken_too(execution: Execution, failure: BaseException) -> None:
        raise error

    actions.on_exhausted(lambda execution, _: told.append(execution.id))
    actions.add("work", fail, max_attempts=1)
    id_ = enqueue(conn, "work")
    drain(dsn, actions)
    state, kept = look(conn, id_, "state", "error")
    assert state == "failed"
    assert kept.startswith("ValueError: the handler")
    assert told == [id_], "a broken hook kept the next one from being called"
    complaints = [record for record in caplog.records if "hook" in record.message]
    assert [record.levelno for record in complaints] == [logging.ERROR] * 2
    assert ["broken" in complaints[0].message, "broken_too" in complaints[1].message] == [True, True]
    assert complaints[0].__dict__["pgfifo_id"] == id_


def test_a_worker_that_ends_waits_for_its_hooks(dsn: str, conn: Connection, actions: Actions) -> None:
    slow, ended = threading.Event(), threading.Event()

    @actions.on_exhausted
    async def hook(execution: Execution, error: BaseException) -> None:
        await asyncio.to_thread(slow.wait, 0.2)
        ended.set()

    actions.add("work", lambda _: 1 / 0, max_attempts=1)
    enqueue(conn, "work")
    drain(dsn, actions)
    assert ended.is_set()
