"""Cancel executions that are named by their ids, however many."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

import typer

from pgfifo.cli.database import command, connected
from pgfifo.cli.exits import REFUSED, Refused, explained, usage
from pgfifo.cli.output import count, did, error, note
from pgfifo.cli.progress import shown

_AT_ONCE = 1000
_NAMED = 10  # more are counted
_TOLD = 20


def cancel_ids(words: Iterable[str], reason: str | None, dsn: str | None) -> None:
    """Cancel what is named, in parts; whatever happens, say how far it came."""
    tally = _Cancelled()
    with connected(dsn) as fifo, shown() as progress:
        progress.next("Cancelling", None)
        try:
            given = read_ids(words)
            while part := list(islice(given, _AT_ONCE)):
                tally.sent += len(part)
                for id_, answer in zip(part, fifo.cancel_many(part, reason=reason), strict=True):
                    tally.add(id_, answer)
                progress.count(tally.read, count(tally.read, "id"))
        except BaseException as caught:
            stopped = explained(caught)
            if stopped is None or not tally.sent:
                raise
            raise Refused(
                f"{stopped.message}; {tally}",
                "\n".join(filter(None, [stopped.hint, "It does no harm to give the same ids again."])),
                code=stopped.code,
            ) from caught
    tally.tell()
    if tally.refused:
        raise typer.Exit(REFUSED)


class _Cancelled:
    """What has become of the ids that were given."""

    def __init__(self) -> None:
        self.sent = 0
        self.read = 0
        self.refused = 0
        self._first: dict[str, list[int]] = {"cancelled": [], "requested": []}
        self._counts: Counter[str] = Counter()

    def add(self, id_: int, answer: str) -> None:
        """Count an answer, and tell of the first that were refused."""
        self.read += 1
        self._counts[answer] += 1
        if answer in self._first:
            if self._counts[answer] <= _NAMED + 1:
                self._first[answer].append(id_)
            return
        self.refused += 1
        if self.refused <= _TOLD:
            error(*_refusal(id_, answer))

    def __str__(self) -> str:
        """Say how far it came."""
        answers = ", ".join(f"{number:,} {answer}" for answer, number in self._counts.most_common())
        done = "nothing is done"
        if self.read:
            done = f"the first {count(self.read, 'id')} given are done ({answers})"
        return f"{done}, except perhaps the next {self.sent - self.read:,}" if self.sent > self.read else done

    def tell(self) -> None:
        """Say what was done."""
        if self.refused > _TOLD:
            why = [f"{n:,} {answer}" for answer, n in self._counts.items() if answer not in self._first]
            note(f"… {count(self.refused, 'refusal')} in all: {', '.join(why)}.")
        if self._counts["cancelled"]:
            stays = f"there is none; what it was stays: {command('show', 'ID')}"
            did(f"Cancelled {self._named('cancelled')}.", stays)
        if self._counts["requested"]:
            asked = self._named("requested")
            note(f"Asked the worker to stop {asked}; what succeeds all the same has succeeded.")
        if not self.read:
            note("Nothing to do: no ids.")

    def _named(self, answer: str) -> str:
        """Name executions, or count them where they are many."""
        number = self._counts[answer]
        if number > _NAMED:
            return count(number, "execution")
        return f"execution{'s' if number > 1 else ''} {', '.join(map(str, self._first[answer]))}"


def _refusal(id_: int, answer: str) -> tuple[str, str | None]:
    """Say why an execution was not cancelled, and what to do."""
    if answer == "unknown":
        return f"there is no execution {id_}", "It may never have been committed, or its retention is over."
    if answer == "busy":
        return f"another transaction holds the lane of execution {id_}", "Try again when that has ended."
    return f"execution {id_} has {answer} already", None


def read_ids(words: Iterable[str]) -> Iterator[int]:
    """Read ids, from stdin where a word is a dash."""
    for word in words:
        for text in (line.strip() for line in sys.stdin) if word == "-" else [word]:
            if text.isascii() and text.isdigit() and len(text) < 19:
                yield int(text)
            elif text:
                raise usage(f"{text!r} is no id of an execution")
