"""What the commands print: tables and JSON to stdout, everything else to stderr."""

import json
import logging
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import IO, Any

from pgfifo._words import count as count  # noqa: PLC0414 - from here the commands take what they print with

Row = Mapping[str, Any]

_BOLD, _RED, _DIM = "1", "31", "2"
_AT_ONCE = 1000
_NUMBERED = {"id", "pid", "ticket", "worker_id", "retry_of", "start_no", "lane_id", "import"}
"""Fields whose numbers count nothing: they are shown as they are typed."""


def note(text: str) -> None:
    """Say something beside the result."""
    print(text, file=sys.stderr)  # noqa: T201


def error(message: str, hint: str | None = None) -> None:
    """Say what is wrong, and what to do about it."""
    sys.stdout.flush()
    note(f"{paint('Error', _RED, sys.stderr)}: {message}")
    if hint:
        note(hint)


def did(text: str, undo: str | None = None) -> None:
    """Say what a command has changed, and how to undo it."""
    note(text)
    if undo:
        note(paint(f"Undo: {undo}", _DIM, sys.stderr))


def out(text: str) -> None:
    """Print a line of the result."""
    sys.stdout.write(text + "\n")


def flush() -> None:
    """Write out what is printed, so that a reader who has gone is noticed here."""
    sys.stdout.flush()


def paint(text: str, style: str, stream: IO[str]) -> str:
    """Return a text in a colour, where that can be seen and is wanted."""
    wanted = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{style}m{text}\x1b[0m" if wanted else text


def as_json(value: object) -> str:
    """Return a value as JSON in one line; times as ISO 8601, durations in seconds."""
    return json.dumps(value, ensure_ascii=False, default=_plain)


def print_json(value: object) -> None:
    """Print one thing as JSON."""
    out(as_json(value))


def print_json_rows(rows: Iterable[Row]) -> None:
    """Print things as a JSON array, one line for each, while they come in."""
    before = "["
    for row in rows:
        sys.stdout.write(f"{before}\n{as_json(row)}")
        before = ","
    out("[]" if before == "[" else "\n]")


def print_table(rows: Iterable[Row], empty: str, *, wide: Sequence[str] = ()) -> int:
    """Print rows as a table, while they come in: each thousand has columns as wide as it needs.

    Args:
        rows: what to print; the keys of the first are the headings.
        empty: what to say on stderr when there are none.
        wide: columns that are cut off on a terminal that is too narrow.

    Returns:
        How many there were.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    coming = iter(rows)
    count = 0
    while part := list(islice(coming, _AT_ONCE)):
        lines = table(part, wide=wide, width=width)
        for line in lines[1:] if count else lines:
            out(line)
        count += len(part)
    if not count:
        note(empty)
    return count


def table(rows: Sequence[Row], *, wide: Sequence[str] = (), width: int | None = None) -> list[str]:
    """Return rows as the lines of a table, numbers to the right.

    Args:
        rows: what to show; the keys of the first are the headings.
        wide: columns that may be cut off.
        width: how many characters there is room for. Defaults to any number.
    """
    names = list(rows[0])
    cells = [[show(row[name], name) for name in names] for row in rows]
    sizes = [max(len_shown(name), *(len_shown(line[at]) for line in cells)) for at, name in enumerate(names)]
    if width is not None:
        spare = width - sum(sizes) - 2 * (len(names) - 1)
        for at, name in enumerate(names):
            if spare < 0 and name in wide:
                cut = max(12, len_shown(name), sizes[at] + spare)
                spare += sizes[at] - min(cut, sizes[at])
                sizes[at] = min(cut, sizes[at])
    right = [all(isinstance(row[name], int | float | Decimal | None) for row in rows) for name in names]
    lines = []
    for line in [[name.replace("_", " ") for name in names], *cells]:
        fitted = [_fit(text, sizes[at], right=right[at]) for at, text in enumerate(line)]
        lines.append("  ".join(fitted).rstrip())
    lines[0] = paint(lines[0], _BOLD, sys.stdout)
    return lines


def print_fields(row: Row, *, lists: Collection[str] = ()) -> None:
    """Print one thing, a line for each of its fields.

    Args:
        row: what to print.
        lists: fields that are lists with a line for each entry.
    """
    size = max(map(len, row))
    for name, value in row.items():
        label = name.replace("_", " ")
        for text in map(show, value) if name in lists else [show(value, name)]:
            out(f"{paint(label.ljust(size), _BOLD, sys.stdout)}  {text}")
            label = ""


def attempt_line(attempt: Row) -> str:
    """Return in a line what became of an attempt: ``2 failed at 2026-11-23 05:08:26 after 6s: no route``."""
    began, ended = (
        datetime.fromisoformat(attempt[name]) if attempt.get(name) else None
        for name in ("started_at", "ended_at")
    )
    said = f"{attempt.get('attempt')} {attempt.get('outcome') or 'ended'}"
    if ended is not None:
        said += f" at {show(ended)}"
    if began is not None and ended is not None:
        said += f" after {span(max(0.0, (ended - began).total_seconds()))}"
    if attempt.get("worker") is not None:
        said += f" on worker {attempt['worker']}"
    return said + (f": {attempt['error']}" if attempt.get("error") else "")


def print_paragraph(text: str) -> None:
    """Print sentences, in lines as wide as a terminal; elsewhere in one."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    plain = printable(text)
    out(textwrap.fill(plain, width, break_long_words=False) if width else plain)


def show(value: object, name: str = "") -> str:
    """Return a value as people read it.

    Args:
        value: the value.
        name: the field that it is of.
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name not in _NUMBERED:
        return f"{value:,}"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, timedelta):
        return span(value.total_seconds())
    if isinstance(value, list | tuple):
        return ", ".join(show(each, name) for each in value) or "-"
    if isinstance(value, dict):
        return as_json(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(str(value))


def span(seconds: float) -> str:
    """Return a length of time in one or two units, as ``2h 5m``."""
    whole = round(seconds)
    if whole < 1:
        return "0s" if seconds < 0.0005 else f"{seconds * 1000:.0f}ms"
    parts = []
    for name, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count}{name}")
        elif parts:
            break
    return " ".join(parts[:2])


def len_shown(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def _fit(text: str, size: int, *, right: bool) -> str:
    """Return a text in exactly so many columns."""
    over = len_shown(text) - size
    if over > 0:
        while len_shown(text) > size - 1:
            text = text[:-1]
        text += "…"
    fill = " " * (size - len_shown(text))
    return fill + text if right else text + fill


def printable(text: str) -> str:
    """Return a text without what would move the cursor or end the line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class _TextFormatter(logging.Formatter):
    """Lines of text, in which what came from outside (what a command printed, say) moves no cursor."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or the lines: a traceback keeps its own."""
        lines = super().format(record).split("\n")
        return "\n".join("\t".join(map(printable, line.split("\t"))) for line in lines)


def log_text(level: str) -> None:
    """Have everything that is logged go to stderr, as text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_TextFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=level.upper())


def _plain(value: object) -> object:
    """Return what JSON has for a value of the database's."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return str(value)
