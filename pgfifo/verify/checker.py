"""Decide from a history whether the promises held.

Pure functions over facts (`history`). A check returns what it found in words; nothing found is what it hopes
for. It never accuses wrongly: where two calls overlapped, both orders are possible, and only what no order of
their effects explains is a violation.
"""

from pgfifo.verify.fencing import fenced
from pgfifo.verify.history import Check, History, Index
from pgfifo.verify.order import in_order
from pgfifo.verify.outcomes import agrees, finished_once
from pgfifo.verify.progress import progresses
from pgfifo.verify.slots import within_slots


def judge(history: History) -> list[Check]:
    """Make all the checks: order, slots, one outcome, fencing, progress."""
    index = Index(history)
    checks = [
        in_order(index),
        within_slots(index),
        finished_once(index),
        agrees(index),
        fenced(index),
        progresses(index),
    ]
    if history.record is not None:
        checks.append(
            Check("pgfifo's own checks", "order, slots and check() are clean", list(history.record.findings))
        )
    return checks


def violations(history: History) -> list[str]:
    """Return everything that does not hold, in words; tests assert that this is empty."""
    return [f"{check.name}: {finding}" for check in judge(history) for finding in check.findings]
