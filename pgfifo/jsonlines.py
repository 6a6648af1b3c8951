"""Read a file of one JSON object a line, strictly as PostgreSQL's jsonb would, without keeping it in memory.

What passes `check_line` is handed on as the text that stood in the file: parsed once to know that it is good,
never written anew. Each rule here is one of jsonb's, so that a file is refused before its first line is
enqueued, and not by the server half-way through.
"""

import codecs
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from pgfifo.jsontext import read

MAX_LINE = 16 * 1024 * 1024
"""The longest line that is read, in bytes."""

Examine = Callable[[str, dict[str, Any]], None]
"""A further look at a line that is good JSON: its text, and what it says. Raises ValueError to refuse it."""

SHOWN = 20
"""How many bad lines a report keeps."""

_MARKED = 1000
_BLANK = b" \t\r\n"
_KINDS = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}
_UTF_16 = "UTF-16, not UTF-8; try: iconv -f UTF-16 -t UTF-8 FILE | pgfifo enqueue ACTION --file -"
_FOREIGN = (
    (b"\x1f\x8b", "compressed with gzip; try: gunzip -c FILE | pgfifo enqueue ACTION --file -"),
    (codecs.BOM_UTF16_LE, _UTF_16),
    (codecs.BOM_UTF16_BE, _UTF_16),
)


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot be enqueued.

    Attributes:
        number: its number; the first line is 1.
        reason: what is wrong with it.
    """

    number: int
    reason: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"line {self.number:,}: {self.reason}"


@dataclass(slots=True)
class Report:
    """What a check found.

    Attributes:
        lines: how many lines were read, good, bad and blank ones.
        good: how many hold a JSON object.
        blank: how many hold nothing.
        bad: how many cannot be enqueued.
        first_bad: the first `SHOWN` of those.
    """

    lines: int = 0
    good: int = 0
    blank: int = 0
    bad: int = 0
    first_bad: list[BadLine] = field(default_factory=list)

    def add_bad(self, line: BadLine) -> None:
        """Count a bad line, and keep it if it is among the first."""
        self.bad += 1
        if len(self.first_bad) < SHOWN:
            self.first_bad.append(line)


@dataclass(slots=True)
class Batch:
    """Some lines that follow each other.

    Attributes:
        texts: the good ones, as JSON text.
        numbers: their line numbers.
        upto: the number of the last line read, good or not.
        bad: the ones that are not good.
        blank: how many hold nothing.
        size: how many bytes of the file it covers.
    """

    texts: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    upto: int = 0
    bad: list[BadLine] = field(default_factory=list)
    blank: int = 0
    size: int = 0


class Changed(Exception):  # noqa: N818 - it has
    """What is read is not what was read before.

    Attributes:
        first: the first line that may be another.
        last: the last line of those, or of what there is now.
    """

    def __init__(self, first: int, last: int) -> None:
        super().__init__(f"changed in lines {first:,} to {last:,}")
        self.first = first
        self.last = last


class Readable(Protocol):
    """What lines can be read from, such as a file opened as bytes."""

    def readline(self, limit: int, /) -> bytes:
        """Return the next line, or so many bytes of it."""


class Lines:
    """The lines of a binary stream, with their numbers and a running fingerprint of what has been read.

    Attributes:
        number: the number of the last line that was read; the first is 1.
        offset: how many bytes have been read.
        end: how many bytes there are to read; None if nobody knows.
        marks: the fingerprint after every so many lines, in short.
    """

    def __init__(self, stream: Readable, *, end: int | None = None, like: "Lines | None" = None) -> None:
        """Begin to read.

        Args:
            stream: where to read.
            end: stop after so many bytes, however long the file has become since. Defaults to reading all.
            like: what was read before, to its end, and should be the same. Defaults to nothing.
        """
        self.number = 0
        self.offset = 0
        self.end = end
        self._stream = stream
        self._like = like
        self._digest = hashlib.sha256()
        self.marks: list[bytes] = []

    def __iter__(self) -> Iterator[bytes]:
        """Yield each line with its line feed; of one longer than `MAX_LINE` only so much.

        Raises:
            Changed: it is not what was read before; said before any line is passed on that nobody has
                compared for longer than `_MARKED` lines.
        """
        while raw := self._read():
            self.number += 1
            line = raw
            while len(raw) == MAX_LINE and not raw.endswith(b"\n"):
                raw = self._read()
            if self.number % _MARKED == 0:
                self._mark()
            yield line
        if self._like is not None and self.fingerprint() != self._like.fingerprint():
            raise self._changed()

    def _mark(self) -> None:
        """Note the fingerprint at this line, or compare it with the one that was noted."""
        mark = self._digest.digest()[:8]
        at = len(self.marks)
        if self._like is not None and self._like.marks[at : at + 1] != [mark]:
            raise self._changed()
        self.marks.append(mark)

    def _changed(self) -> Changed:
        return Changed(len(self.marks) * _MARKED + 1, self.number)

    def fingerprint(self) -> str:
        """Name what has been read so far by its length and its hash."""
        return f"{self.offset}:{self._digest.hexdigest()}"

    def _read(self) -> bytes:
        """Read up to the end of a line."""
        limit = MAX_LINE if self.end is None else min(MAX_LINE, self.end - self.offset)
        raw = self._stream.readline(limit)
        self.offset += len(raw)
        self._digest.update(raw)
        return raw


def check_line(raw: bytes, examine: Examine | None = None) -> str:
    """Return the JSON object of a line as text, exactly as it stands there; an empty text for a blank line.

    Args:
        raw: the line, with or without its end.
        examine: has the last word on what is good so far. Defaults to nobody.

    Raises:
        ValueError: jsonb would not take it, or it is not an object; the message says why.
    """
    if len(raw) >= MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE // 1024 // 1024} MiB")
    try:
        text = raw.strip(_BLANK).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1}") from None
    if not text:
        return ""
    value = read(text)
    if type(value) is not dict:
        raise ValueError(f"{_KINDS[type(value)]}, not an object")
    if examine:
        examine(text, value)
    return text


def check(
    lines: Lines, *, examine: Examine | None = None, progress: Callable[[Lines], None] | None = None
) -> Report:
    """Read everything and report what is bad, keeping none of it.

    Args:
        lines: what to read.
        examine: has the last word on each good line. Defaults to nobody.
        progress: called now and then. Defaults to nobody.
    """
    report = Report()
    for raw in lines:
        try:
            text = _check_numbered(raw, lines.number, examine)
        except ValueError as error:
            report.add_bad(BadLine(lines.number, str(error)))
        else:
            if text:
                report.good += 1
            else:
                report.blank += 1
        if progress and lines.number % 1000 == 0:
            progress(lines)
    report.lines = lines.number
    return report


def batches(
    lines: Lines, *, rows: int, size: int, after: int = 0, examine: Examine | None = None
) -> Iterator[Batch]:
    """Yield the lines in batches.

    Args:
        lines: what to read.
        rows: the most good lines in a batch.
        size: the most bytes in a batch, unless a single line is longer.
        after: the number of the last line to pass over unread.
        examine: has the last word on each good line. Defaults to nobody.
    """
    batch = Batch(upto=after)
    for raw in lines:
        if lines.number <= after:
            continue
        if batch.texts and batch.size + len(raw) > size:
            yield batch
            batch = Batch()
        batch.upto = lines.number
        batch.size += len(raw)
        try:
            text = _check_numbered(raw, lines.number, examine)
        except ValueError as error:
            batch.bad.append(BadLine(lines.number, str(error)))
        else:
            if text:
                batch.texts.append(text)
                batch.numbers.append(lines.number)
            else:
                batch.blank += 1
        if len(batch.texts) >= rows:
            yield batch
            batch = Batch()
    if batch.size:
        yield batch


def _check_numbered(raw: bytes, number: int, examine: Examine | None) -> str:
    """Check a line; the first may begin with a byte order mark, or show that the file is something else."""
    if number == 1:
        for start, what in _FOREIGN:
            if raw.startswith(start):
                raise ValueError(what)
        raw = raw.removeprefix(codecs.BOM_UTF8)
    return check_line(raw, examine)
