"""What callers give, looked at before it is sent; errors name argument and value, and say what to do."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Any, SupportsIndex, TypeVar

from pgfifo.errors import InvalidValue

T = TypeVar("T")

BIGINT = 2**63 - 1
"""The largest id."""
INTEGER = 2**31 - 1
"""The largest attempt, and the largest limit."""

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
    detail = {"name": name, "value": brief(value)} | ({} if index is None else {"index": index})
    return InvalidValue(f"{name}{place} {what}: {brief(value)}", detail=detail, hint=hint)


def number(
    value: object,
    name: str,
    index: int | None = None,
    *,
    least: int = 0,
    most: int = BIGINT,
    hint: str | None = None,
) -> int:
    """Return a whole number of a range."""
    hint = hint or f"Give a whole number from {least:,} to {most:,}."
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise wrong(name, value, "is no whole number", hint, index)
    found = operator.index(value)
    if not least <= found <= most:
        raise wrong(name, value, "is out of range", hint, index)
    return found


def id_(value: object, name: str = "id", index: int | None = None) -> int:
    """Return an id of an execution, which need not exist."""
    hint = "Give the id of an execution, as enqueue has returned it: job.id."
    return number(value, name, index, least=-BIGINT, hint=hint)


def ids(values: Iterable[object], name: str = "ids") -> list[int]:
    """Return ids of executions as a list."""
    return [id_(value, name, index) for index, value in enumerate(listed(values, name, "ids"))]


def text(value: object, name: str, index: int | None = None, *, hint: str = "Give a text.") -> str:
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


def texts(values: Iterable[object], name: str) -> list[str]:
    """Return texts as a list."""
    return [text(value, name, index) for index, value in enumerate(listed(values, name, "texts"))]


def texts_or_none(values: Iterable[object], name: str) -> list[str | None]:
    """Return texts, some of which may be None, as a list."""
    each = enumerate(listed(values, name, "texts"))
    return [None if value is None else text(value, name, index) for index, value in each]


def flag(value: object, name: str) -> bool:
    """Return a bool; what merely counts as one is probably a mistake."""
    if not isinstance(value, bool):
        raise wrong(name, value, "is neither True nor False", "Give one of them.")
    return value


def time(value: object, name: str, index: int | None = None) -> datetime:
    """Return a time that says in which zone it is."""
    if not isinstance(value, datetime):
        hint = "Give a datetime with a time zone, such as datetime.now(timezone.utc) + timedelta(…)."
        raise wrong(name, value, "is no time", hint, index)
    if value.utcoffset() is None:
        detail = {"name": name, "value": str(value)} | ({} if index is None else {"index": index})
        raise InvalidValue(
            f"{name} {value} does not say in which time zone",
            detail=detail,
            hint="Use datetime.now(timezone.utc) + timedelta(…), or .astimezone().",
        )
    return value


def times(values: Iterable[object], name: str) -> list[datetime | None]:
    """Return times, some of which may be None, as a list."""
    each = enumerate(listed(values, name, "times"))
    return [None if value is None else time(value, name, index) for index, value in each]


def mapping(value: object, name: str, index: int | None = None) -> Mapping[str, Any]:
    """Return a mapping, such as headers."""
    if not isinstance(value, Mapping):
        raise wrong(name, value, "is no mapping", 'Give a dict, such as {"trace": "4bf9"}.', index)
    return value


def mappings(values: Iterable[object], name: str) -> list[Mapping[str, Any] | None]:
    """Return mappings, some of which may be None, as a list."""
    each = enumerate(listed(values, name, "mappings"))
    return [None if value is None else mapping(value, name, index) for index, value in each]


def line(values: Iterable[T], name: str) -> Iterable[T]:
    """Return what has an order, not gone through yet."""
    if isinstance(values, AbstractSet):
        raise wrong(name, values, "is a set, which has no order", "Give a list: the first one starts first.")
    return several(values, name, "payloads")


def several(values: Iterable[T], name: str, of: str) -> Iterable[T]:
    """Return what can be gone through; one text or one mapping is not many.

    Args:
        values: What was given.
        name: The argument.
        of: What each of them is, for the message.
    """
    if isinstance(values, str | bytes | bytearray | Mapping) or not isinstance(values, Iterable):
        hint = f"Give a list of {of}; a single one in brackets."
        raise wrong(name, values, f"is no list of {of}", hint)
    return values


def listed(values: Iterable[T], name: str, of: str) -> list[T]:
    """Return what can be gone through as a list; see `several`."""
    return list(several(values, name, of))


def brief(value: Any) -> str:  # noqa: ANN401 - whatever it is
    """Return a value as an error shows it."""
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001 - somebody's __repr__
        shown = f"<{type(value).__name__}>"
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"
