"""Durations as people write them: ``30s``, ``5m``, ``1h30m``, ``2d``, seconds as a number, or a timedelta."""

from __future__ import annotations

import math
import re
from datetime import timedelta

from pgfifo._given import brief
from pgfifo.errors import InvalidValue

Duration = float | timedelta | str

LONGEST = 3_155_760_000.0
"""The longest duration, in seconds: 100 years."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*")
_HINT = "Write it like 30s, 5m, 1h30m or 2d, as a number of seconds, or as a timedelta."


def seconds(value: Duration, name: str = "duration") -> float:
    """Return a duration in seconds.

    Args:
        value: Seconds, a timedelta, or text such as ``1h30m``. Units are ms, s, m, h, d and w; a bare number
            is seconds.
        name: What the error message calls it.

    Raises:
        InvalidValue: It is not a duration, is negative, has no end, or is longer than 100 years.
    """
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, str):
        result = _from_text(value, name)
    elif type(value) in (int, float):
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    else:
        raise _wrong(value, name, "is not a duration")
    if not math.isfinite(result):
        raise _wrong(value, name, "has no end")
    if result < 0:
        raise _wrong(value, name, "is negative")
    if result > LONGEST:
        raise _wrong(value, name, "is longer than 100 years")
    return result


def optional_seconds(value: Duration | None, name: str = "duration") -> float | None:
    """Return a duration in seconds, or None for none; see `seconds`."""
    return None if value is None else seconds(value, name)


def _from_text(text: str, name: str) -> float:
    stripped = text.strip().lower()
    unsigned = stripped.removeprefix("-")
    total, at = 0.0, 0
    if re.fullmatch(r"\d+(?:\.\d+)?", unsigned):
        total, at = float(unsigned), len(unsigned)
    while at < len(unsigned):
        part = _PART.match(unsigned, at)
        if part is None:
            break
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    if not unsigned or at < len(unsigned):
        raise _wrong(text, name, "is not a duration")
    return total if unsigned == stripped else -total


def _wrong(value: object, name: str, what: str) -> InvalidValue:
    shown = brief(value)
    return InvalidValue(f"{name} {shown} {what}", detail={"name": name, "value": shown}, hint=_HINT)


def text(value: float) -> str:
    """Return a number of seconds in the form that `seconds` reads: ``1h30m``, ``250ms``, ``1.5s``, ``0s``."""
    if value < 0:
        return "-" + text(-value)
    if 0 < value < 1:
        return f"{value * 1000:.6f}".rstrip("0").rstrip(".") + "ms"
    whole = int(value)
    rest = round(value - whole, 3)
    parts = []
    for unit in ("d", "h", "m"):
        count, whole = divmod(whole, int(_UNITS[unit]))
        if count:
            parts.append(f"{count}{unit}")
    if whole + rest or not parts:
        parts.append(f"{whole + rest:.6g}s")
    return "".join(parts)
