"""The demo's verdict: that of the checker of histories, and whether the kill has shown what it is to show."""

from dataclasses import replace

from pgfifo.demo.verdict import run_again, verdict
from pgfifo.verify.history import Attempt, Fault, HandIn, History, Record, Rules, Span

LANE = '{"customer":"a"}'


def run(attempt: int, begin: float, end: float | None, worker: str) -> Attempt:
    handed = (HandIn("succeeded", Span(end), "none"),) if end is not None else ()
    return Attempt(2, attempt, "deliver", LANE, worker, Span(-1, begin), begin, end, handed)


# Worker `slow` was killed at 5.0 while it ran 2.
AGAIN = History(
    rules={"deliver": Rules()},
    attempts=[run(1, 3, None, "slow"), run(2, 6, 7, "fast")],
    faults=[Fault("slow", "kill", 5, 5.1)],
    record=Record(),
)


def test_what_was_held_ran_again_elsewhere() -> None:
    check = run_again(AGAIN, "slow", [2])
    assert check.holds
    assert check.seen == "1 that slow held, each in its place"
    assert [each.name for each in verdict(AGAIN, "slow", [2])][-2:] == [check.name, "pgfifo's own checks"]


def test_what_was_not_put_to_the_test_is_no_line_of_the_verdict() -> None:
    names = [each.name for each in verdict(AGAIN, "slow", [2]) if each.holds]
    assert "fenced" not in names, "the demo's workers hand in unheard"
    assert "no lane stood still" not in names, "nobody knows when they had room"
    assert "within the slots" in names


def test_held_execution_that_was_not_run_again_is_found() -> None:
    said = ["execution 2, which slow held, was not run again"]
    for attempts in (
        [],
        AGAIN.attempts[:1],
        [AGAIN.attempts[0], run(2, 6, None, "fast")],
        [run(2, 6, 7, "slow")],
    ):
        assert run_again(replace(AGAIN, attempts=attempts), "slow", [2]).findings == said


def test_kill_that_hit_nothing_proves_nothing() -> None:
    assert "held nothing" in run_again(AGAIN, "slow", []).findings[0]
