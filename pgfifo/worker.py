"""The worker: a process, a thread or a coroutine that runs an application's handlers."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from pgfifo import dsn as dsns
from pgfifo._engine import CANCEL_GRACE, KILL_GRACE, Engine
from pgfifo._plan import Plan
from pgfifo._words import count
from pgfifo.durations import Duration, seconds
from pgfifo.errors import InvalidValue

if TYPE_CHECKING:
    from pgfifo._around import Layer
    from pgfifo._run import Run
    from pgfifo._together import Together
    from pgfifo._watching import Health, Watch
    from pgfifo.actions import Actions
    from pgfifo.execution import Execution

logger = logging.getLogger("pgfifo")

_MOST_AT_ONCE = 10_000
_PATIENCE = CANCEL_GRACE + KILL_GRACE + 5.0
_INTERRUPTED = 130


class Worker:
    """Runs the executions of some actions, in the order of their lanes, up to so many at once.

    ::

        Worker(dsn, actions).run()              # a process's whole purpose; SIGTERM and SIGINT stop it
        await Worker(dsn, actions).run_async()  # in an event loop

        with Worker(dsn, actions):              # in a thread beside the application
            ...

    Async handlers run in the event loop, others in threads. It claims only what it has room for, and hands in
    what has finished and claims what is next in one call.

    Told to stop, it claims no more and waits ``shutdown_timeout`` seconds for what runs. What is not done by
    then is interrupted and, if that ends it within a few seconds, goes back to its place without counting as
    failed. What does not end even then keeps its slot: `run` ends the process, and others give the executions
    back when they see that; `stop` says false, and the worker stays registered until the last handler has
    returned.
    """

    _engine_type: type[Engine] = Engine

    def __init__(
        self,
        dsn: str,
        actions: Actions,
        *,
        name: str | None = None,
        concurrency: int | Mapping[str, int] = 10,
        poll_interval: Duration = 1.0,
        heartbeat: Duration = 5.0,
        lease: Duration = 30.0,
        shutdown_timeout: Duration = 30.0,
        listen_dsn: str | None = None,
        poll_only: bool = False,
        until_empty: bool = False,
        declare: bool = True,
        on_start: Callable[[int], None] | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Prepare the worker; nothing is connected yet.

        Args:
            dsn: The database.
            actions: The handlers; the worker serves all of these actions.
            name: What it is called in the list of workers. Defaults to host and pid.
            concurrency: How many executions run at once. A mapping caps single actions, and ``"*"`` is the
                total: ``{"*": 20, "index": 2}``. Defaults to 10.
            poll_interval: Seconds between looks for work while nothing wakes it. Defaults to 1.
            heartbeat: Seconds between heartbeats. A cancel arrives with one; a notification asks for it at
                once, where the worker can listen. Defaults to 5.
            lease: Seconds without a heartbeat until it counts as dead. Defaults to 30.
            shutdown_timeout: Seconds that what runs has to end in, once it is told to stop. Defaults to 30.
            listen_dsn: The same database without the pooler, where ``dsn`` leads to PgBouncer in transaction
                mode.
            poll_only: Whether ``dsn`` leads to such a pooler and there is no other way: no notifications, and
                only its lease tells when it is dead. Defaults to false.
            until_empty: End when none of its actions has anything waiting, running, held or to be tried again
                any more, here or in another worker. What waits in a paused lane, or is to join its lane for
                the first time, later, is not waited for. Defaults to false.
            declare: Declare the actions with the values that the code gives them. Defaults to true; if
                false, unknown actions are refused.
            on_start: Called with the worker's id when it is registered.
            watch: What measures it, such as `pgfifo.metrics.WorkerMetrics`. Defaults to nothing.

        Raises:
            InvalidValue: An argument cannot be right.
        """
        conninfo = dsns.normalise(dsn)
        application = f"pgfifo worker {name}" if name else "pgfifo worker"
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        total, caps = _limits(concurrency, actions)
        if not len(actions):
            raise InvalidValue("a worker needs at least one action", detail={"name": "actions"})
        if poll_only and listen_dsn:
            raise InvalidValue(
                "poll_only and listen_dsn exclude each other",
                detail={"name": "listen_dsn"},
                hint="Give listen_dsn alone: the worker listens there.",
            )
        direct = None if poll_only else dsns.normalise(listen_dsn, "listen_dsn") if listen_dsn else conninfo
        self._plan = Plan(
            conninfo=dsns.with_defaults(conninfo, application),
            direct=None if direct is None else dsns.with_defaults(direct, application),
            name=self.name,
            actions={action.name: action for action in actions},
            declared=declare,
            concurrency=total,
            caps=caps,
            poll_interval=_positive(poll_interval, "poll_interval"),
            heartbeat=_positive(heartbeat, "heartbeat"),
            lease=_positive(lease, "lease"),
            shutdown_timeout=seconds(shutdown_timeout, "shutdown_timeout"),
            until_empty=until_empty,
            until_idle=False,
            watch=watch,
        )
        if self._plan.heartbeat * 2 > self._plan.lease:
            raise InvalidValue(
                f"a heartbeat each {self._plan.heartbeat:g} s does not fit a lease of {self._plan.lease:g} s",
                detail={"name": "heartbeat", "heartbeat": self._plan.heartbeat, "lease": self._plan.lease},
                hint="Give it at least two heartbeats in a lease.",
            )
        self._on_start = on_start
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_asked = False
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = threading.Event()
        self._registered_here = asyncio.Event()
        self._error: BaseException | None = None
        self.id: int | None = None
        self.interrupted = False
        """Whether SIGINT has stopped `run`: a program that ends then says so with status 130."""

    @property
    def running(self) -> list[Execution]:
        """What runs now."""
        engine = self._engine
        return engine.running if engine is not None else []

    @property
    def health(self) -> Health:
        """How it is, for a probe: ``ready``, ``live`` (but not ready), ``stuck``, or ``stopped``.

        ``stuck`` means that its event loop or its heartbeat has stood still for the length of a lease, and
        for 30 seconds at least: a coroutine that does not give way does that, too.
        """
        engine = self._engine
        return "stopped" if engine is None else engine.health

    def request_stop(self) -> None:
        """Have it stop, from any thread or signal handler; returns at once."""
        with contextlib.suppress(RuntimeError):  # its loop is closed: it has stopped
            self._stop_asked = True
            loop, engine = self._loop, self._engine
            if loop is not None and engine is not None:
                loop.call_soon_threadsafe(engine.stop)

    def _signalled(self, number: int) -> None:
        self.interrupted = self.interrupted or number == signal.SIGINT
        self.request_stop()

    # As a process

    def run(self) -> None:
        """Work until stopped.

        In the main thread SIGTERM and SIGINT stop it, and a second SIGINT ends the process at once. There
        also, if a handler does not return within ``shutdown_timeout`` and a few seconds, it ends the process
        with status 1.

        Raises:
            psycopg.OperationalError: The server cannot be reached at the start.
            UnknownAction: ``declare`` is false, and an action is not known.
            SchemaMissing: pgfifo is not installed there.
            SchemaMismatch: Package and schema do not fit.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        with asyncio.Runner(loop_factory=new_loop) as runner:
            loop = runner.get_loop()
            with _stopped_by_signals(loop, self._signalled) if in_main_thread else contextlib.nullcontext():
                runner.run(self._run(_end_process if in_main_thread else _nothing))

    # In an event loop

    async def run_async(self) -> None:
        """Work until stopped, or cancelled: then what runs is interrupted at once, and given back.

        Raises:
            psycopg.OperationalError: The server cannot be reached at the start.
            UnknownAction: ``declare`` is false, and an action is not known.
            SchemaMissing: pgfifo is not installed there.
            SchemaMismatch: Package and schema do not fit.
        """
        await self._run(_nothing)

    async def __aenter__(self) -> Worker:
        self._task = asyncio.create_task(self.run_async())
        ready = asyncio.create_task(self._registered_here.wait())
        await asyncio.wait({self._task, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self._task.done():
            await self._task
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.request_stop()
        if self._task is not None:
            await self._task

    # In a thread

    def start(self) -> None:
        """Work in a thread of its own; returns when the worker is registered.

        At the end of the interpreter it is stopped.

        Raises:
            RuntimeError: It works already.
            psycopg.OperationalError: The server cannot be reached.
            UnknownAction: ``declare`` is false, and an action is not known.
            SchemaMissing: pgfifo is not installed there.
            SchemaMismatch: Package and schema do not fit.
        """
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("this worker works already")
        self._ready.clear()
        self._thread = threading.Thread(
            target=self._run_thread, name=f"pgfifo-worker-{self.name}", daemon=True
        )
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            self._raise_error()
        atexit.register(self.stop)

    def stop(self, timeout: Duration | None = None) -> bool:
        """Stop what `start` began, and wait for the end.

        Args:
            timeout: How many seconds to wait. Defaults to ``shutdown_timeout`` and a few more.

        Returns:
            Whether everything has ended. If not, the worker claims no more, and stays registered until the
            last handler has returned.

        Raises:
            psycopg.Error: What had ended the worker before.
        """
        thread = self._thread
        if thread is None:
            return True
        self.request_stop()
        patience = self._plan.shutdown_timeout + _PATIENCE if timeout is None else seconds(timeout, "timeout")
        thread.join(patience)
        if thread.is_alive():
            return False
        self._thread = None
        atexit.unregister(self.stop)
        self._raise_error()
        return True

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.stop():
            logger.error("worker %s stays registered until the last of its handlers has returned", self.name)

    def _run_thread(self) -> None:
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(self._run(_nothing))
        except BaseException as error:  # whatever it is: `start` or `stop` raises it in its caller's thread
            self._error = error
            if self._ready.is_set():
                logger.exception("worker %s ended", self.name)
        finally:
            self._ready.set()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    async def _run_until_idle(self, layer: Layer) -> None:
        """Work until nothing more can start now, with a layer around all actions."""
        actions = {
            name: replace(action, layers=(layer, *action.layers))
            for name, action in self._plan.actions.items()
        }
        await self._run(_nothing, replace(self._plan, actions=actions, until_idle=True))

    async def _run(self, overdue: Callable[[list[Run | Together]], None], plan: Plan | None = None) -> None:
        with self._lock:
            if self._engine is not None:
                raise RuntimeError("this worker works already")
            engine = self._engine = self._engine_type(
                plan or self._plan, ready=self._registered, overdue=overdue, deadly=overdue is _end_process
            )
        try:
            self._loop = asyncio.get_running_loop()
            if self._stop_asked:
                engine.stop()
            await engine.run()
        finally:
            self._engine = self._loop = self.id = None
            self._registered_here.clear()
            self._stop_asked = False

    def _registered(self, worker: int) -> None:
        self.id = worker
        self._ready.set()
        self._registered_here.set()
        logger.info("worker %s (%s) serves %s", worker, self.name, ", ".join(self._plan.actions))
        if self._on_start is not None:
            self._on_start(worker)


def _limits(concurrency: int | Mapping[str, int], actions: Actions) -> tuple[int, dict[str, int]]:
    """Return the total and the caps of single actions."""
    given = {"*": concurrency} if isinstance(concurrency, int) else {"*": 10, **concurrency}
    for name, value in given.items():
        if name != "*":
            actions[name]  # raises for an unknown one
        if type(value) is not int or not 1 <= value <= _MOST_AT_ONCE:
            raise InvalidValue(
                f"concurrency {value!r} is not a number from 1 to {_MOST_AT_ONCE}",
                detail={"name": "concurrency", "value": value, "action": name},
            )
    total = given.pop("*")
    return total, {name: value for name, value in given.items() if value < total}


def _positive(value: Duration, name: str) -> float:
    result = seconds(value, name)
    if result <= 0:
        raise InvalidValue(f"{name} must be above 0", detail={"name": name, "value": str(value)})
    return result


def new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop in which a worker can run."""
    # psycopg waits for sockets with add_reader, which the default loop of Windows has not.
    return asyncio.SelectorEventLoop() if sys.platform == "win32" else asyncio.new_event_loop()


@contextlib.contextmanager
def _stopped_by_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[int], None]) -> Iterator[None]:
    """Have SIGTERM and SIGINT stop the worker, gracefully, and a second SIGINT the process."""
    interrupts = 0

    def handle(number: int) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            _end_process_now(_INTERRUPTED)
        stop(number)  # first, since whoever reads the log may be gone
        again = "; once more ends it at once" if number == signal.SIGINT else ""
        logger.info("%s: stopping%s", signal.Signals(number).name, again)

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        try:
            loop.add_signal_handler(number, handle, number)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda caught, _frame: handle(caught))
    try:
        yield
    finally:
        for number in numbers:
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, before[number] or signal.SIG_DFL)


def _nothing(runs: list[Run | Together]) -> None:
    """Wait on for the handlers that do not return; the worker stays registered."""


def _end_process(runs: list[Run | Together]) -> None:
    """End the process before its executions are given back: only then is it sure that they do not run."""
    logger.error("ending the process: %s did not return", count(len(runs), "handler"))
    _end_process_now(1)


def _end_process_now(status: int) -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
