"""Judge a run of the demo: by the checker of histories, and whether the kill has shown what it is to show."""

from collections.abc import Collection

from pgfifo.verify.checker import judge
from pgfifo.verify.history import Check, History


def verdict(history: History, killed: str, held: Collection[int]) -> list[Check]:
    """Make all the checks, the promises first; what this run has not put to the test is left out.

    Args:
        history: what producers and handlers wrote down, and pgfifo's record.
        killed: the name of the worker that was killed.
        held: the ids that were its own when it died.
    """
    *checks, own = judge(history)
    tested = [check for check in checks if check.exercised or not check.holds]
    return [*tested, run_again(history, killed, held), own]


def run_again(history: History, killed: str, held: Collection[int]) -> Check:
    """Say whether what the killed worker held was started again by another worker, and finished.

    That this happened in its place is for the check of the order to say.
    """
    findings = []
    if not held:
        findings.append(f"{killed} held nothing when it was killed, so this run has not shown it")
    for id_ in sorted(held):
        runs = [each for each in history.attempts if each.id == id_]
        last = max(runs, key=lambda each: each.attempt, default=None)
        if last is None or last.worker == killed or last.attempt < 2 or last.end is None:
            findings.append(f"execution {id_}, which {killed} held, was not run again")
    return Check("run again after the kill", f"{len(held)} that {killed} held, each in its place", findings)
