"""What the handlers wrote down themselves: whether order and limits held, and what can be timed by it."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers.common import BEGUN, DONE, RECORD


@dataclass(frozen=True, order=True)
class Run:
    """One run of a handler. Times are nanoseconds of the machine's monotonic clock."""

    begin: int
    end: int
    number: int
    process: int
    state: int


def read(path: Path) -> list[Run]:
    """All that is in a journal, as it was written; what was only begun is left out."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = len(content) // RECORD.size * RECORD.size
    return [
        Run(begin, end, number, process, state)
        for number, begin, end, process, state in RECORD.iter_unpack(content[:whole])
        if state != BEGUN
    ]


def count(path: Path) -> int:
    """How many records a journal has."""
    return path.stat().st_size // RECORD.size if path.exists() else 0


def has_begun(path: Path) -> bool:
    """Whether a handler that takes long has begun."""
    if not path.exists():
        return False
    content = path.read_bytes()
    whole = len(content) // RECORD.size * RECORD.size
    return any(state == BEGUN for *_, state in RECORD.iter_unpack(content[:whole]))


def by_key(runs: Iterable[Run], key: Callable[[int], object]) -> dict[object, list[Run]]:
    """Runs of each key, in the order of their beginnings."""
    found: dict[object, list[Run]] = {}
    for run in sorted(runs):
        found.setdefault(key(run.number), []).append(run)
    return found


def order_violations(runs: Iterable[Run], key: Callable[[int], object], limit: int = 1) -> int:
    """How many began although at least `limit` of their key that were enqueued later had begun before.

    With a limit of one that is each step back. With more, which of two threads is quicker is nobody's
    promise: so one that is overtaken by fewer than fit beside it does not count.
    """
    wrong = 0
    for found in by_key(runs, key).values():
        latest: list[int] = []  # the `limit` largest numbers so far, largest first
        for run in found:
            if len(latest) == limit and run.number < latest[-1]:
                wrong += 1
            elif run.number not in latest:
                latest = sorted([*latest, run.number], reverse=True)[:limit]
    return wrong


def most_at_once(runs: Iterable[Run], key: Callable[[int], object]) -> int:
    """The most runs of one key at one time."""
    most = 0
    for found in by_key(runs, key).values():
        edges = sorted([(run.begin, 1) for run in found] + [(run.end, -1) for run in found])
        active = 0
        for _, step in edges:
            active += step
            most = max(most, active)
    return most


def repeated(runs: Iterable[Run]) -> int:
    """How many ended well more than once."""
    ended = [run.number for run in runs if run.state == DONE]
    return len(ended) - len(set(ended))


def gaps(runs: Sequence[Run]) -> list[float]:
    """Milliseconds between the end of a run and the beginning of the next one."""
    found = sorted(runs)
    return [(after.begin - before.end) / 1e6 for before, after in itertools.pairwise(found)]


def rates(runs: Sequence[Run], parts: int) -> list[float]:
    """Runs a second in each of so many equal parts of the runs."""
    ends = sorted(run.end for run in runs)
    if len(ends) < parts * 2:
        return []
    marks = [ends[round(part * (len(ends) - 1) / parts)] for part in range(parts + 1)]
    each = len(ends) / parts
    return [each / ((after - before) / 1e9) for before, after in itertools.pairwise(marks)]


def quantile(values: Sequence[float], part: float) -> float:
    """The value that so large a part is at or below."""
    found = sorted(values)
    return found[min(len(found) - 1, int(part * len(found)))]
