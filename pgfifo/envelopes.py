"""Lines of a file that say more than a payload: group, keys, time, headers and tags of an execution each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

KEYS = ("payload", "group", "headers", "tags", "request_id", "dedup_key", "item_key", "run_at")
"""What a line may say. What it leaves out, or gives as null (the payload aside), is as for all lines."""

_LONGEST_KEY = 1024


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a line says of its execution, as far as it is needed in Python.

    Attributes:
        tags: its tags; None for those of all lines.
        run_at: when it joins its lane; None for what holds for all lines.
    """

    tags: tuple[str, ...] | None
    run_at: datetime | None


@dataclass(frozen=True, slots=True)
class Run:
    """Lines in a row that one call of enqueue_many can take.

    Attributes:
        start: the place of the first one in its batch, from 0.
        texts: the lines.
        tags: the tags of each.
        run_ats: when each joins its lane; None for now, or for what holds for all.
    """

    start: int
    texts: Sequence[str]
    tags: tuple[str, ...] | None
    run_ats: Sequence[datetime | None]


def opened(line: Mapping[str, Any]) -> Envelope:
    """Look at a line.

    Raises:
        ValueError: it says something that cannot be; the message says what.
    """
    for key in line:
        if key not in KEYS:
            raise ValueError(f"{key[:100]!r} is no key of an envelope; there are {', '.join(KEYS)}")
    given = {key: value for key, value in line.items() if value is not None}
    for key, (is_good, what) in _MUST_BE.items():
        if key in given and not is_good(given[key]):
            raise ValueError(f"{key} must be {what}")
    if "dedup_key" in given and "item_key" in given:
        raise ValueError("dedup_key and item_key exclude each other")
    run_at = given.get("run_at")
    return Envelope(
        tuple(given["tags"]) if "tags" in given else None, None if run_at is None else _time(run_at)
    )


def runs(
    texts: Sequence[str], envelopes: Sequence[Envelope], tags: Sequence[str] | None, *, timed: bool
) -> Iterator[Run]:
    """Cut lines where what is said once for a whole call changes.

    Args:
        texts: the lines.
        envelopes: what they say.
        tags: the tags of lines that say none.
        timed: a time is given for the lines that say none, so those that do go into other calls.
    """
    common = None if tags is None else tuple(tags)

    def kind(envelope: Envelope) -> tuple[tuple[str, ...] | None, bool]:
        of_its_own = common if envelope.tags is None else envelope.tags
        return of_its_own, timed and envelope.run_at is not None

    start = 0
    for end in range(1, len(texts) + 1):
        if end < len(texts) and kind(envelopes[end]) == kind(envelopes[start]):
            continue
        times = [envelope.run_at for envelope in envelopes[start:end]]
        yield Run(start, texts[start:end], kind(envelopes[start])[0], times)
        start = end


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"run_at: {text[:100]!r} is no time, such as 2026-01-31T12:00:00+01:00") from None
    if found.tzinfo is None:
        raise ValueError(f"run_at: {text[:100]!r} names no time zone, as 2026-01-31T12:00:00+01:00 does")
    return found


def _is_key(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value.encode()) <= _LONGEST_KEY


_A_KEY = f"text of 1 to {_LONGEST_KEY:,} bytes"
_MUST_BE: dict[str, tuple[Callable[[object], bool], str]] = {
    "group": (lambda value: isinstance(value, str | dict), 'an object, such as {"env": "prod"}, or text'),
    "headers": (lambda value: isinstance(value, dict), "an object"),
    "tags": (
        lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
        "an array of texts",
    ),
    "request_id": (_is_key, _A_KEY),
    "dedup_key": (_is_key, _A_KEY),
    "item_key": (_is_key, _A_KEY),
    "run_at": (lambda value: isinstance(value, str), "a time as text, such as 2026-01-31T12:00:00+01:00"),
}
