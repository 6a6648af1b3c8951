"""What callers give, looked at before anything is sent.

The error says which argument, which value, and what to give.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex, TypeVar

from pgfifo.errors import InvalidValue

T = TypeVar("T")

BIGINT = 2**63 - 1
"""The largest id, and the largest limit."""

_LONGEST = 80


def wrong(name: str, value: object, what: str, hint: str, index: int | None = None) -> InvalidValue:
    """Return the error for an argument.

    Args:
        name: Which one.
        value: What was given.
        what: What is wrong with it, as the end of a sentence that begins with its name.
        hint: What to give.
        index: Its place in a list, counted from 0.
    """
    place = "" if index is None else f" {index}"
    detail = {"name": name, "value": _brief(value)} | ({} if index is None else {"index": index})
    return InvalidValue(f"{name}{place} {what}: {_brief(value)}", detail=detail, hint=hint)


def number(value: object, name: str, least: int = 0, most: int = BIGINT, index: int | None = None) -> int:
    """Return a whole number of a range."""
    hint = f"Give a whole number from {least:,} to {most:,}."
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise wrong(name, value, "is no whole number", hint, index)
    found = operator.index(value)
    if not least <= found <= most:
        raise wrong(name, value, "is out of range", hint, index)
    return found


def id_(value: object, name: str = "id", index: int | None = None) -> int:
    """Return an id of an execution."""
    try:
        return number(value, name, -BIGINT, index=index)
    except InvalidValue as error:
        error.hint = "Give the id of an execution, as enqueue has returned it: job.id."
        raise


def ids(values: Iterable[object], name: str = "ids") -> list[int]:
    """Return ids of executions as a list."""
    return [id_(value, name, index) for index, value in enumerate(listed(values, name, "ids"))]


def text(value: object, name: str, hint: str = "Give a text.", index: int | None = None) -> str:
    """Return a text that PostgreSQL can keep."""
    if not isinstance(value, str):
        raise wrong(name, value, "is no text", hint, index)
    if "\0" in value:
        raise wrong(name, value, "holds a NUL character", "PostgreSQL has none in text; remove it.", index)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            what = "holds half of a surrogate pair, which is no character"
            raise wrong(name, value, what, "Remove it.", index) from None
    return value


def text_or_none(
    value: object, name: str, hint: str = "Give a text, or None.", index: int | None = None
) -> str | None:
    """Return a text that PostgreSQL can keep, or None."""
    return None if value is None else text(value, name, hint, index)


def flag(value: object, name: str) -> bool:
    """Return a bool; what merely counts as one is probably a mistake."""
    if not isinstance(value, bool):
        raise wrong(name, value, "is neither True nor False", "Give one of them.")
    return value


def listed(values: Iterable[T], name: str, of: str) -> list[T]:
    """Return what can be gone through as a list; one text or one mapping is not many.

    Args:
        values: What was given.
        name: The argument.
        of: What the list is one of, for the hint.
    """
    if isinstance(values, str | bytes | bytearray | Mapping) or not isinstance(values, Iterable):
        hint = f"Give a list of {of}; a single one in brackets."
        raise wrong(name, values, f"is no list of {of}", hint)
    return list(values)


def _brief(value: Any) -> str:  # noqa: ANN401 - whatever it is
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001 - somebody's __repr__
        shown = f"<{type(value).__name__}>"
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"
