"""How values look on the pages: every one of them is text when it comes out, whatever was in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from pgfifo import groups
from pgfifo.policies import DURATIONS

_LONGEST_JSON = 20_000
_LONGEST_LINE = 140
_NOTHING = "–"  # noqa: RUF001 - a dash where there is no figure

_STEPS = ((60.0, "s"), (60.0, "m"), (24.0, "h"), (1e9, "d"))


def now() -> datetime:
    """Return the time that ages are counted to."""
    return datetime.now(UTC)


def number(value: float | None) -> str:
    """Return a count with its thousands apart."""
    return _NOTHING if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """Return something per time: with one digit behind the point where it is small."""
    if value is None:
        return _NOTHING
    return f"{value:,.1f}" if 0 < value < 99.95 else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Return a time that passes in at most two units: 340 ms, 4.2 s, 5 m 12 s, 3 h 4 m."""
    if seconds is None:
        return _NOTHING
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return whole(seconds)


def whole(seconds: float) -> str:
    """Return the same in whole seconds, as ages are told that go on on the page."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for size, unit in _STEPS:
        left, rest = divmod(left, int(size))
        parts.append(f"{rest} {unit}")
        if not left:
            break
    shown = parts[::-1][:2]
    return shown[0] if len(shown) > 1 and shown[1].startswith("0 ") else " ".join(shown)


def age(at: datetime | None) -> Markup:
    """Return how long ago something was; the page's script goes on counting."""
    return _time(at, "age", lambda moment: whole((now() - moment).total_seconds()))


def until(at: datetime | None) -> Markup:
    """Return in how long something is to come."""
    return _time(at, "until", lambda moment: whole((moment - now()).total_seconds()))


def clock(at: datetime | None) -> Markup:
    """Return a time of the day, or the day too if it is another one."""
    same = at is not None and at.date() == now().date()
    return _time(at, "clock", lambda moment: f"{moment:%H:%M:%S}" if same else f"{moment:%Y-%m-%d %H:%M:%S}")


def _time(at: datetime | None, kind: str, shown: Callable[[datetime], str]) -> Markup:
    if at is None:
        return Markup('<span class="none">{}</span>').format(_NOTHING)
    at = at.astimezone(UTC)
    return Markup('<time data-kind="{}" datetime="{}" title="{} UTC">{}</time>').format(
        kind, at.isoformat(timespec="milliseconds"), f"{at:%Y-%m-%d %H:%M:%S.%f}"[:-3], shown(at)
    )


def moment(text: object) -> datetime | None:
    """Return a time that JSON has as text; None if there is none."""
    try:
        return datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None


def pretty(value: object) -> str:
    """Return JSON on several lines, as much of it as somebody reads."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if len(text) <= _LONGEST_JSON:
        return text
    return f"{text[:_LONGEST_JSON]}\n… {len(text) - _LONGEST_JSON:,} more characters"


def line(value: object) -> str:
    """Return JSON, or text, on one short line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text[: 4 * _LONGEST_LINE].split())
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}…"


def headline(text: str) -> str:
    """Return the first line of a text that has something on it."""
    return line(text.strip().partition("\n")[0])


def soon(seconds: float | None) -> str:
    """Return when something will probably be."""
    if seconds is None:
        return _NOTHING
    return "now" if seconds < 1 else f"~ {duration(seconds)}"


def setting(value: object, attribute: str = "") -> str:
    """Return a policy's value: durations, which are in seconds, as people write them."""
    if value is None:
        return "inherited"
    if attribute in DURATIONS and isinstance(value, int | float):
        return duration(value) if value else "0 s"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def group(text: str) -> str:
    """Return a group as people read it."""
    return groups.display(text)


def lane(action: str, group_text: str | None) -> str:
    """Return the name of a lane."""
    return groups.lane(action, group_text or "")


def query(path: str, values: Mapping[str, Any]) -> str:
    """Return a path with these parameters, those left out that have no value."""
    kept = {name: value for name, value in values.items() if value not in (None, "")}
    return f"{path}?{urlencode(kept)}" if kept else path


FILTERS: dict[str, Callable[..., Any]] = {
    "number": number,
    "rate": rate,
    "duration": duration,
    "age": age,
    "until": until,
    "clock": clock,
    "pretty": pretty,
    "line": line,
    "headline": headline,
    "soon": soon,
    "setting": setting,
    "group": group,
}
"""What the templates call them."""
