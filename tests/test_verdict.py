"""The demo's judge finds what is planted, and nothing else."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pgfifo.demo.verdict import Check, Evidence, Mark, Outcome, Run, judge, runs_of, within_slots

A, B = '{"customer":"a"}', '{"customer":"b"}'


def run(
    id_: int,
    begin: float,
    end: float,
    lane: str = A,
    *,
    action: str = "deliver",
    attempt: int = 1,
    worker: str = "fast",
) -> Run:
    return Run(id_, attempt, action, lane, worker, begin, end, finished=True)


# Worker `slow` was killed at 5.0 while it ran 2; 7 and 8 are in a lane with three slots.
RUNS = [
    run(1, 1, 2),
    replace(run(2, 3, 5, worker="slow"), finished=False),
    run(2, 6, 7, attempt=2),
    run(3, 7, 8),
    run(4, 1, 4, B),
    run(5, 4, 5, B),
    run(6, 1.1, 9, A, action="index"),
    run(7, 1.0, 3, A, action="index"),
    run(8, 1.2, 3, A, action="index"),
    run(9, 3, 4, A, action="index"),
]
GOOD = Evidence(
    enqueued={"deliver": [1, 2, 3, 4, 5], "index": [6, 7, 8, 9]},
    limits={"deliver": 1, "index": 3},
    runs=RUNS,
    outcomes=[
        Outcome(r.id, r.action, r.lane, "succeeded", r.attempt) for r in RUNS if (r.id, r.attempt) != (2, 1)
    ],
    killed="slow",
    held=[2],
)
FINISHED, AGREES, ORDER, SLOTS, AGAIN, OWN = range(6)


def findings(evidence: Evidence) -> dict[int, Sequence[str]]:
    return {number: check.findings for number, check in enumerate(judge(evidence)) if not check.holds}


def without(runs: Sequence[Run], id_: int, attempt: int = 1) -> list[Run]:
    return [r for r in runs if (r.id, r.attempt) != (id_, attempt)]


def with_outcome(id_: int, state: str) -> list[Outcome]:
    return [replace(o, state=state) if o.id == id_ else o for o in GOOD.outcomes]


def test_a_good_run_holds() -> None:
    checks = judge(GOOD)
    assert all(check.holds for check in checks), findings(GOOD)
    assert checks[FINISHED].seen == "9 of 9 succeeded"
    assert "deliver 1 of 1, index 3 of 3" in checks[SLOTS].seen


def test_lost_execution_is_found() -> None:
    gone = replace(
        GOOD,
        outcomes=[o for o in GOOD.outcomes if o.id != 5],
        runs=without(RUNS, 5),
    )
    assert findings(gone) == {FINISHED: ["1 are gone without a trace: 5"]}


def test_lost_record_of_a_run_is_found() -> None:
    gone = replace(GOOD, outcomes=[o for o in GOOD.outcomes if o.id != 5])
    assert findings(gone).keys() == {FINISHED, AGREES}


@pytest.mark.parametrize("state", ["waiting", "running", "held", "failed", "cancelled"])
def test_anything_but_success_is_found(state: str) -> None:
    assert findings(replace(GOOD, outcomes=with_outcome(3, state)))[FINISHED] == [
        f"1 are {state} instead of succeeded: 3"
    ]


def test_two_outcomes_are_found() -> None:
    twice = replace(GOOD, outcomes=[*GOOD.outcomes, GOOD.outcomes[0]])
    assert findings(twice)[FINISHED] == ["1 have more than one outcome: 1"]


def test_outcome_of_nothing_is_found() -> None:
    strange = replace(GOOD, outcomes=[*GOOD.outcomes, Outcome(99, "deliver", B, "succeeded", 1)])
    assert "never enqueued: 99" in findings(strange)[FINISHED][0]


def test_success_without_a_run_is_found() -> None:
    assert findings(replace(GOOD, runs=without(RUNS, 5)))[AGREES]


def test_second_run_without_a_kill_is_found() -> None:
    again = [*without(RUNS, 3), run(3, 7, 8), run(3, 8, 9, attempt=2)]
    outcomes = [replace(o, attempt=2) if o.id == 3 else o for o in GOOD.outcomes]
    assert findings(replace(GOOD, runs=again, outcomes=outcomes)) == {
        AGREES: ["execution 3 ran more than once, though fast was never killed"]
    }


def test_overtaking_in_a_lane_with_one_slot_is_found() -> None:
    swapped = [*without(without(RUNS, 4), 5), run(5, 1, 2, B), run(4, 2, 3, B)]
    assert findings(replace(GOOD, runs=swapped)) == {
        ORDER: ['deliver {"customer":"b"}: 5 began before 1 older ones: 4']
    }


def test_overtaking_one_that_never_began_is_found() -> None:
    assert findings(replace(GOOD, runs=without(RUNS, 4)))[ORDER] == [
        'deliver {"customer":"b"}: 5 began before 1 older ones: 4'
    ]


def test_running_again_behind_a_younger_one_is_found() -> None:
    behind = [*without(without(RUNS, 2, 2), 3), run(3, 5.1, 5.5), run(2, 6, 7, attempt=2)]
    found = findings(replace(GOOD, runs=behind))
    assert found[ORDER] == ['deliver {"customer":"a"}: 2 began again after the younger 3']
    assert found.keys() == {ORDER, SLOTS}


def test_slot_of_a_lost_run_that_is_given_on_before_it_runs_again_is_found() -> None:
    lost = [replace(run(10, 9, 10, A, action="index", worker="slow"), finished=False)]
    runs = [
        *lost,
        *(run(n, 9.5, 12, A, action="index") for n in (11, 12)),
        run(10, 14, 15, A, action="index", attempt=2),
    ]
    early = [*runs, run(13, 11, 11.5, A, action="index")]
    assert not within_slots(replace(GOOD, runs=runs)).findings
    assert within_slots(replace(GOOD, runs=early)).findings == [
        'index {"customer":"a"}: 4 handlers at once, 3 allowed: 10, 11, 12 and 1 more'
    ]


def test_with_three_slots_threads_may_be_quicker_but_only_by_two() -> None:
    def indexed(*ids: int) -> Evidence:
        runs = [r for r in RUNS if r.action != "index"]
        for at, id_ in enumerate(ids):
            runs.append(run(id_, at, at + 0.5, action="index"))
        return replace(GOOD, runs=runs)

    assert not findings(indexed(8, 7, 6, 9))
    assert not findings(indexed(8, 9, 6, 7))
    assert findings(indexed(9, 6, 7, 8)) == {
        ORDER: ['index {"customer":"a"}: 9 began before 3 older ones: 6, 7, 8']
    }


def test_handlers_that_overlap_in_a_lane_with_one_slot_are_found() -> None:
    overlap = [*without(RUNS, 5), run(5, 3.999, 5, B)]
    assert findings(replace(GOOD, runs=overlap)) == {
        SLOTS: ['deliver {"customer":"b"}: 2 handlers at once, 1 allowed: 4, 5']
    }


def test_overlap_with_the_killed_run_is_found() -> None:
    early = [*without(RUNS, 2, 2), run(2, 4.9, 7, attempt=2)]
    assert findings(replace(GOOD, runs=early)).keys() == {SLOTS}


def test_fourth_handler_in_a_lane_with_three_slots_is_found() -> None:
    fourth = [*without(RUNS, 9), run(9, 2.9, 4, A, action="index")]
    assert findings(replace(GOOD, runs=fourth)) == {
        SLOTS: ['index {"customer":"a"}: 4 handlers at once, 3 allowed: 6, 7, 8 and 1 more']
    }


def test_one_that_begins_at_the_instant_another_ends_is_no_violation() -> None:
    assert not findings(replace(GOOD, runs=[*without(RUNS, 5), run(5, 4.0, 5, B)]))


def test_held_execution_that_was_not_run_again_is_found() -> None:
    assert findings(replace(GOOD, runs=without(RUNS, 2, 2)))[AGAIN] == [
        "execution 2, which slow held, was not run again"
    ]


def test_kill_that_hit_nothing_proves_nothing() -> None:
    assert "held nothing" in findings(replace(GOOD, held=[]))[AGAIN][0]


def test_what_pgfifo_finds_itself_counts() -> None:
    assert findings(replace(GOOD, findings=["violation: order in deliver"])) == {
        OWN: ["violation: order in deliver"]
    }


def mark(event: str, id_: int, at: float, attempt: int = 1, worker: str = "fast") -> Mark:
    return Mark(event, id_, attempt, "deliver", A, at, worker)


def test_runs_are_put_together_from_all_journals() -> None:
    marks = [mark("end", 1, 2), mark("begin", 2, 3, worker="slow"), mark("begin", 1, 1)]
    assert runs_of(marks, {"slow": 5}) == [
        Run(1, 1, "deliver", A, "fast", 1, 2, finished=True),
        Run(2, 1, "deliver", A, "slow", 3, 5, finished=False),
    ]


def test_run_that_never_ended_is_still_there_at_the_end() -> None:
    assert runs_of([mark("begin", 1, 1)], {})[0].end == float("inf")


@pytest.mark.parametrize("marks", [[mark("end", 1, 1)], [mark("begin", 1, 1), mark("begin", 1, 2)]])
def test_journal_that_contradicts_itself_is_refused(marks: list[Mark]) -> None:
    with pytest.raises(ValueError, match="execution 1, attempt 1"):
        runs_of(marks, {})


def test_check_tells_whether_it_holds() -> None:
    assert Check("x", "seen").holds
    assert not Check("x", "seen", ["found"]).holds
