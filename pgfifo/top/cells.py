"""How values are shown: as text, whatever is in them, in as many columns as there is room for."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from pgfifo import groups
from pgfifo.cli.output import printable, span

_BARS = "▁▂▃▄▅▆▇█"


def cell(value: object, style: str = "", *, right: bool = False) -> Text:
    """Return a value as it stands in a table: never markup, and nothing that moves the cursor."""
    shown = "-" if value is None else f"{value:,}" if isinstance(value, int) else printable(str(value))
    return Text(shown, style, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")


def number(value: int | None, style: str = "") -> Text:
    """Return a number, in a few characters: 12,345, 1.23M."""
    if value is not None and value >= 10_000_000:
        return cell(f"{value / 1e6:.4g}M", style, right=True)
    return cell(value, style, right=True)


def of(taken: int, slots: int) -> Text:
    """Return how many of the slots are taken."""
    return cell(f"{taken:,}/{short(slots)}", "bold" if taken and taken >= slots else "", right=True)


def short(value: int) -> str:
    """Return a number in at most five characters or so: 950, 12.3k, 1.2M."""
    if value < 10_000:
        return str(value)
    return f"{value / 1e3:.3g}k" if value < 999_500 else f"{value / 1e6:.3g}M"


def rate(value: float | None) -> Text:
    """Return how many a second."""
    shown = "-" if value is None else f"{value:.0f}" if value >= 100 or value == 0 else f"{value:.2g}"
    return cell(shown, right=True)


def age(at: str | None, now: datetime) -> str:
    """Return how long ago a time was."""
    return "-" if at is None else span(max(0.0, (now - moment(at)).total_seconds()))


def moment(at: str) -> datetime:
    """Return a time as the database has it in JSON."""
    return datetime.fromisoformat(at)


def group(text: str) -> str:
    """Return a group as people read it; a dash for none."""
    return groups.display(text) or "-"


def spark(values: Sequence[float], width: int) -> str:
    """Return the last values as bars, the highest of them to the full."""
    last = list(values)[-width:]
    most = max(last, default=0)
    if not most:
        return "▁" * len(last)
    return "".join(_BARS[min(len(_BARS) - 1, round(value / most * (len(_BARS) - 1)))] for value in last)


def fitted(text: str, width: int) -> str:
    """Return a text in exactly so many columns of the terminal."""
    if cell_len(text) > width:
        return set_cell_size(text, max(0, width - 1)) + "…"
    return set_cell_size(text, width)


def joined(parts: Iterable[str | None]) -> str:
    """Return what there is of the parts, with dots between."""
    return " · ".join(part for part in parts if part)
