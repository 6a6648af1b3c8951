"""Write down what a client sees: JSON lines, a file for each process, with times from one clock.

The clock is the machine's monotonic one, which all processes of a machine share and nobody can set. Each line
is written in one go, so a process that is killed leaves whole lines behind it; what it had asked for without
having seen an answer is on record by the question.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from pgfifo.client import Client
    from pgfifo.execution import Execution
    from pgfifo.models import Enqueued


def now() -> float:
    """Return the time, in seconds, on the clock of all recorders of this machine."""
    return time.monotonic()


class Recorder:
    """The journal of one client: a process, or a part of one."""

    def __init__(self, folder: Path, who: str) -> None:
        """Open the journal, which may be there already.

        Args:
            folder: where the journals of one history are.
            who: whose it is; part of the file's name.
        """
        self.who = who
        self._descriptor = os.open(folder / f"{who}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, kind: str, **facts: object) -> None:
        """Write down that something happened now; from any thread."""
        line = {"kind": kind, "at": now(), "who": self.who, **facts}
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")

    @contextmanager
    def running(self, execution: "Execution") -> Iterator[None]:
        """Write down when a handler begins, and when it has ended, however it does."""
        which = {"id": execution.id, "attempt": execution.attempt}
        self.note("begin", **which, action=execution.action, lane=execution.group_text)
        returned = False
        try:
            yield
            returned = True
        finally:
            self.note("end", **which, returned=returned)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class Producer:
    """A producer that writes down what it is told."""

    def __init__(self, recorder: Recorder, conn: psycopg.Connection[Any], fifo: "Client") -> None:
        """Begin.

        Args:
            recorder: where to.
            conn: an autocommit connection.
            fifo: a client on that connection.
        """
        self._recorder = recorder
        self._conn = conn
        self._fifo = fifo
        self._transactions = 0

    @contextmanager
    def transaction(self, *, roll_back: bool = False) -> Iterator[int]:
        """Run a block in a transaction. What leaves the block as an error has rolled it back.

        Args:
            roll_back: roll it back in any case.

        Yields:
            The transaction's number, for `enqueue`.
        """
        self._transactions += 1
        number = self._transactions
        self._conn.execute("begin")
        try:
            yield number
        except BaseException:
            self._recorder.note("ending", tx=number, commit=False)
            self._conn.rollback()
            self._recorder.note("ended", tx=number, commit=False)
            raise
        self._recorder.note("ending", tx=number, commit=not roll_back)
        self._conn.execute("rollback" if roll_back else "commit")
        self._recorder.note("ended", tx=number, commit=not roll_back)

    def enqueue(
        self, tx: int, action: str, payload: Mapping[str, Any], *, delay: float = 0.0, key: str | None = None
    ) -> "Enqueued":
        """Enqueue within a transaction of `transaction`.

        Args:
            tx: its number.
            action: the action.
            payload: the payload.
            delay: seconds after which it is to join its line. Defaults to none.
            key: the dedup_key. Defaults to none.
        """
        called = now()
        made = self._fifo.enqueue(action, payload, delay=delay or None, dedup_key=key)
        if made.created:
            self._note(tx, called, action, made.id, made.lane.group_text, delay)
        return made

    def enqueue_many(self, tx: int, action: str, payloads: Sequence[Mapping[str, Any]]) -> "list[Enqueued]":
        """Enqueue several by one call, within a transaction of `transaction`."""
        called = now()
        made = self._fifo.enqueue_many(action, payloads)
        for each in made:
            self._note(tx, called, action, each.id, each.lane.group_text)
        return made

    def retry(self, tx: int, before: "Enqueued") -> int:
        """Put a finished execution back, within a transaction of `transaction`."""
        called = now()
        made = self._fifo.retry(before.id)
        self._note(tx, called, before.lane.action, made, before.lane.group_text)
        return made

    def _note(self, tx: int, called: float, action: str, made: int, lane: str, delay: float = 0.0) -> None:
        self._recorder.note("enqueue", tx=tx, called=called, id=made, action=action, lane=lane, delay=delay)

    def cancel(self, id_: int) -> str | None:
        """Cancel an execution by a call of its own."""
        self._recorder.note("cancelling", id=id_)
        answer = self._fifo.cancel(id_)
        self._recorder.note("cancelled", id=id_, answer=answer)
        return answer


def read(folder: Path) -> list[dict[str, Any]]:
    """Return all whole lines of the journals in a folder, in the order of their times."""
    lines = []
    for path in sorted(folder.glob("*.jsonl")):
        text = path.read_text()
        lines += [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return sorted(lines, key=lambda line: line["at"])
