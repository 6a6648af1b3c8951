"""What producers and consumers in Python share: jobs, handlers, the journal, and the talk with the harness.

The harness starts `python -m bench.peers.<system> '<specification as JSON>'`, waits for `ready`, answers
`go`, and takes one line of JSON (setup, produce) or ends the process when it has seen enough (consume).
Clocks are CLOCK_MONOTONIC, which all processes of a machine share, Node's `hrtime` too.
"""

import asyncio
import dataclasses
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

RECORD = struct.Struct("<qqqii")
"""What a handler writes: number, begin and end in nanoseconds, process, and what has become of it."""
DONE, FAILED, BEGUN = 0, 1, 2
LONG = 5_000
"""A handler that works for so many milliseconds says when it begins, too."""


class DeliberateFailureError(Exception):
    """What handlers raise that are told to fail at their first attempt."""


@dataclasses.dataclass(frozen=True)
class Produce:
    """What to enqueue.

    Attributes:
        count: how many.
        keys: over how many keys, in turns.
        prefix: what keys are called.
        first: the number of the first; numbers go up by one.
        chunk: how many in one commit; 1 is one by one, with the call for one; 0 as many as keep their order.
        connections: how many connections do it at once.
        interval: milliseconds between two of them; 0 for as fast as it goes.
        apart: milliseconds after each, so that no two have the same time.
        work: milliseconds that a handler takes.
        fail_every: every so many-th fails at its first attempt; 0 for none.
        delay_every: every so many-th is delayed; 0 for none.
        delay: by up to so many milliseconds.
        queue: the name of the queue, task or action.
        ordered: whether a key means order and a limit; without, the system is asked for nothing.
        limit: how many of a key may run at once.
        paused: pause the queue before.
        stamps: a file for the time at which each enqueue had committed.
        seconds: stop after so many; 0 for never.
        part: "prompt" or "delayed" leaves out the others.
    """

    count: int
    keys: int = 100
    prefix: str = "k"
    first: int = 0
    chunk: int = 1
    connections: int = 1
    interval: float = 0
    apart: float = 0
    work: float = 0
    fail_every: int = 0
    delay_every: int = 0
    delay: float = 0
    queue: str = "bench"
    ordered: bool = True
    limit: int = 1
    paused: bool = False
    stamps: str | None = None
    seconds: float = 0
    part: str = ""


@dataclasses.dataclass(frozen=True)
class Consume:
    """What to run.

    Attributes:
        journal: the file that handlers write to.
        keys: the keys that there are, where a system must know.
        prefix: what they are called.
        extra: keys beside these.
        also: queues that are served, too, and have nothing to do.
        queue: the name of the queue, task or action.
        ordered: as when it was enqueued.
        limit: how many of a key may run at once.
        concurrency: how many at once in this process; 0 leaves it to the system's options.
        backoff: milliseconds before what has failed is tried again.
    """

    journal: str
    keys: int = 100
    prefix: str = "k"
    extra: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    queue: str = "bench"
    ordered: bool = True
    limit: int = 1
    concurrency: int = 0
    backoff: float = 50


@dataclasses.dataclass(frozen=True)
class Job:
    """One thing to enqueue."""

    key: str
    payload: dict[str, Any]
    delay: float
    """Milliseconds."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """All that a program is told."""

    role: str
    dsn: str
    options: dict[str, Any]
    produce: Produce | None
    consume: Consume | None

    @staticmethod
    def read(text: str) -> "Spec":
        told = json.loads(text)
        consume = told.get("consume")
        if consume:
            consume |= {"extra": tuple(consume["extra"]), "also": tuple(consume["also"])}
        return Spec(
            told["role"],
            told["dsn"],
            told["options"],
            Produce(**told["produce"]) if told.get("produce") else None,
            Consume(**consume) if consume else None,
        )


def jobs(task: Produce) -> list[Job]:
    """Webhook events of so many customers, about 200 bytes each."""
    made = []
    for place in range(task.count):
        number = task.first + place
        customer = number % task.keys
        payload = {
            "customer": f"{task.prefix}{customer}",
            "n": number,
            "work": task.work,
            "fail": bool(task.fail_every) and number % task.fail_every == 0,
            "event": "invoice.paid",
            "invoice": 100_000 + number,
            "amount": 1000 + number % 977,
            "url": f"https://customer-{customer}.example.com/hooks/invoices",
        }
        delayed = bool(task.delay_every) and number % task.delay_every == 1
        if task.part and delayed != (task.part == "delayed"):
            continue
        # Spread over the time by a number of its own, not by chance: each system gets the same.
        delay = task.delay * (1 + number * 7919 % 100) / 100 if delayed else 0.0
        made.append(Job(f"{task.prefix}{customer}", payload, delay))
    return made


def keys(task: Consume) -> list[str]:
    """The keys of a run."""
    return [f"{task.prefix}{n}" for n in range(task.keys)] + list(task.extra)


def chunks(made: Sequence[Job], size: int) -> Iterator[Sequence[Job]]:
    """Parts of so many."""
    for start in range(0, len(made), size):
        yield made[start : start + size]


class Handlers:
    """The handlers' work, and their journal."""

    def __init__(self, task: Consume) -> None:
        self._file = os.open(task.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._pid = os.getpid()
        self._failed: set[int] = set()

    def note(self, number: int, begin: int, end: int, state: int = DONE) -> None:
        """Write one record, at once and whole, so that it outlives the process."""
        os.write(self._file, RECORD.pack(number, begin, end, self._pid, state))

    def _fails(self, payload: dict[str, Any]) -> bool:
        if not payload["fail"] or payload["n"] in self._failed:
            return False
        self._failed.add(payload["n"])
        return True

    async def run(self, payload: dict[str, Any]) -> None:
        """A handler for an event loop: it gives way at least once."""
        begin = time.monotonic_ns()
        work = payload["work"]
        if work >= LONG:
            self.note(payload["n"], begin, 0, BEGUN)
        await asyncio.sleep(work / 1000)
        failed = self._fails(payload)
        self.note(payload["n"], begin, time.monotonic_ns(), FAILED if failed else DONE)
        if failed:
            raise DeliberateFailureError

    def run_sync(self, payload: dict[str, Any]) -> None:
        """A handler for a thread."""
        begin = time.monotonic_ns()
        work = payload["work"]
        if work >= LONG:
            self.note(payload["n"], begin, 0, BEGUN)
        if work:
            time.sleep(work / 1000)
        failed = self._fails(payload)
        self.note(payload["n"], begin, time.monotonic_ns(), FAILED if failed else DONE)
        if failed:
            raise DeliberateFailureError


class Stage:
    """The producer's or consumer's side of the talk with the harness."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what a library prints is no answer

    def go(self) -> None:
        """Say that everything is prepared, and wait for the start."""
        self._say("ready")
        if not sys.stdin.readline():
            os._exit(1)
        # From here on the process ends when the harness closes its end.
        threading.Thread(target=self._until_closed, daemon=True).start()

    def tell(self, **what: object) -> None:
        """Answer."""
        self._say(json.dumps(what))

    def _say(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()

    @staticmethod
    def _until_closed() -> None:
        sys.stdin.read()
        os._exit(0)


class Stamps:
    """When each enqueue had committed."""

    def __init__(self, task: Produce) -> None:
        self._path = task.stamps
        self._times: list[tuple[int, int]] = []

    def note(self, made: Sequence[Job]) -> None:
        """These are committed now."""
        if self._path:
            now = time.monotonic_ns()
            self._times += [(job.payload["n"], now) for job in made]

    def write(self) -> None:
        """Leave them to the harness."""
        if self._path:
            lines = "".join(f"{number} {at}\n" for number, at in self._times)
            Path(self._path).write_text(lines)


Send = Callable[[Sequence[Job]], Awaitable[object]]
SendAndWait = Callable[[Sequence[Job]], object]


async def send_all(task: Produce, stage: Stage, senders: Sequence[Send]) -> None:
    """Send all jobs with so many senders at once, each a connection, and tell how long it took."""
    made = list(chunks(jobs(task), task.chunk))
    stamps = Stamps(task)
    sent = [0] * len(senders)
    stage.go()

    async def share(nth: int, send: Send, parts: Sequence[Sequence[Job]]) -> None:
        begun = time.monotonic()
        for place, part in enumerate(parts):
            if task.seconds and time.monotonic() - begun > task.seconds:
                return
            if task.interval:
                await asyncio.sleep(max(0.0, begun + place * task.interval / 1000 - time.monotonic()))
            await send(part)
            stamps.note(part)
            sent[nth] += len(part)
            if task.apart:
                await asyncio.sleep(task.apart / 1000)

    began = time.monotonic_ns()
    await asyncio.gather(*(share(n, send, made[n :: len(senders)]) for n, send in enumerate(senders)))
    ended = time.monotonic_ns()
    stamps.write()
    stage.tell(began=began, ended=ended, sent=sum(sent))


def send_all_in_threads(task: Produce, stage: Stage, senders: Sequence[SendAndWait]) -> None:
    """As `send_all`, for senders that block, each in a thread of its own."""
    made = list(chunks(jobs(task), task.chunk))
    stamps = Stamps(task)
    wrong: list[BaseException] = []
    sent = [0] * len(senders)

    def share(nth: int, send: SendAndWait, parts: Sequence[Sequence[Job]]) -> None:
        try:
            begun = time.monotonic()
            for place, part in enumerate(parts):
                if task.seconds and time.monotonic() - begun > task.seconds:
                    return
                if task.interval:
                    time.sleep(max(0.0, begun + place * task.interval / 1000 - time.monotonic()))
                send(part)
                stamps.note(part)
                sent[nth] += len(part)
                if task.apart:
                    time.sleep(task.apart / 1000)
        except BaseException as error:
            wrong.append(error)
            raise

    stage.go()
    began = time.monotonic_ns()
    threads = [
        threading.Thread(target=share, args=(n, send, made[n :: len(senders)]))
        for n, send in enumerate(senders)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = time.monotonic_ns()
    if wrong:
        raise wrong[0]
    stamps.write()
    stage.tell(began=began, ended=ended, sent=sum(sent))


def main(
    setup: Callable[[Spec], object],
    produce: Callable[[Spec, Produce, Stage], object],
    consume: Callable[[Spec, Consume, Stage], object],
) -> None:
    """Do what the specification says."""
    spec = Spec.read(sys.argv[1])
    stage = Stage()
    if spec.role == "setup":
        setup(spec)
        stage.tell(done=True)
    elif spec.role == "produce":
        assert spec.produce is not None
        produce(spec, spec.produce, stage)
    else:
        assert spec.consume is not None
        consume(spec, spec.consume, stage)
