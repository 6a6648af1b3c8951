"""The checker of histories finds what is planted, of every kind, and nothing where all is well."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from pgfifo.verify.assemble import assemble
from pgfifo.verify.checker import judge, violations
from pgfifo.verify.history import (
    Attempt,
    Beat,
    Cancel,
    Death,
    Duty,
    Enqueue,
    Fate,
    Fault,
    HandIn,
    History,
    LimitChange,
    Outcome,
    Record,
    Rules,
    Span,
    Stay,
)

ONE, THREE, YIELDS, RELAXED, PACED = "one", "three", "yields", "relaxed", "paced"
RULES = {
    ONE: Rules(slots=1, backoff=1.0),
    THREE: Rules(slots=3, backoff=1.0),
    YIELDS: Rules(slots=1, mode="yield", backoff=1.0),
    RELAXED: Rules(slots=1, strict=False),
    PACED: Rules(slots=3, shared=2, paced=True),
}
LANE = '{"k":1}'


def enqueue(
    id_: int, at: float, action: str = ONE, *, committed: float | None = None, fate: Fate = "committed"
) -> Enqueue:
    """One that was called at this time, answered 0.1 s later, and committed 0.2 s later or as said."""
    commit = at + 0.2 if committed is None else committed
    return Enqueue(id_, action, LANE, Span(at, at + 0.1), Span(commit, commit + 0.05), fate)


def attempt(
    id_: int,
    start: float,
    end: float | None,
    action: str = ONE,
    *,
    n: int = 1,
    worker: str = "w1",
    outcome: str = "succeeded",
    answer: Any = "taken",
    final: bool | None = None,
) -> Attempt:
    """One whose claim came 0.1 s before the start, whose handler ran for that time, and then handed in."""
    handed: tuple[HandIn, ...] = ()
    if end is not None:
        is_final = outcome in ("succeeded", "cancelled") if final is None else final
        handed = (HandIn(outcome, Span(end + 0.01, end + 0.05), answer, is_final),)
    return Attempt(id_, n, action, LANE, worker, Span(start - 0.1, start - 0.01), start, end, handed, 1)


def outcome(
    id_: int, state: str = "succeeded", n: int = 1, action: str = ONE, failures: int | None = None
) -> Outcome:
    return Outcome(id_, action, LANE, state, n, failures)


def stay(
    id_: int, start_no: int | None, end_no: int | None = None, *, joined: int = 0, limit: int = 1
) -> Stay:
    return Stay((ONE, LANE), id_, 1, id_, joined, start_no, limit, end_no)


def without(items: Sequence[Any], *ids: int) -> list[Any]:
    return [each for each in items if each.id not in ids]


# Worker w2 was killed at 20 while it ran 3; w3 was stopped from 31 to 45 while it ran 5, and came too late.
ENQUEUES = [
    *(enqueue(n, n) for n in (1, 2, 3, 4, 5, 6)),
    *(enqueue(n, n, THREE) for n in (11, 12, 13, 14)),
    *(enqueue(n, n, RELAXED) for n in (21, 22)),
    enqueue(7, 7, fate="rolled back"),
    enqueue(8, 8.5),
    *(enqueue(n, n, YIELDS) for n in (31, 32)),
]
ATTEMPTS = [
    attempt(1, 10, 11),
    attempt(2, 12, 13, outcome="failed"),
    attempt(2, 14, 15, n=2),
    attempt(3, 17, None, worker="w2"),
    attempt(3, 24, 25, n=2),
    attempt(4, 26, 27),
    attempt(5, 30, 45.1, worker="w3", answer="lost"),
    attempt(5, 40, 41, n=2),
    attempt(6, 42, 43),
    attempt(11, 20, 29, THREE),
    attempt(12, 20.1, 29, THREE),
    attempt(13, 20.2, 22, THREE),
    attempt(14, 23, 24, THREE),
    attempt(21, 30, 31, RELAXED),
    attempt(22, 32, 33, RELAXED),
    attempt(31, 34, 35, YIELDS, outcome="failed"),
    attempt(32, 36, 37, YIELDS),
    attempt(31, 38, 39, YIELDS, n=2),
]
OUTCOMES = [
    outcome(1),
    outcome(2, n=2),
    outcome(3, n=2),
    outcome(4),
    outcome(5, n=2),
    outcome(6),
    outcome(8, "cancelled", 0),
    *(outcome(n, action=THREE) for n in (11, 12, 13, 14)),
    *(outcome(n, action=RELAXED) for n in (21, 22)),
    outcome(31, n=2, action=YIELDS),
    outcome(32, action=YIELDS),
]
GOOD = History(
    rules=RULES,
    enqueues=ENQUEUES,
    attempts=ATTEMPTS,
    cancels=[Cancel(8, Span(9, 9.1), "cancelled")],
    faults=[Fault("w2", "kill", 20, 20.1), Fault("w3", "pause", 31, 45)],
    beats=[Beat("w1", 1, Span(at, at + 0.1)) for at in range(100)],
    deaths=[Death("w3", 1, 45.05)],
    record=Record(OUTCOMES, [stay(1, 1, 1), stay(2, 2, 2), stay(4, 3, 3), stay(6, 4, 4)]),
    lease=5.0,
    until=100.0,
)
ORDER, SLOTS, ONCE, AGREE, FENCED, PROGRESS, OWN = range(7)


def found(history: History) -> dict[int, list[str]]:
    return {number: [*check.findings] for number, check in enumerate(judge(history)) if not check.holds}


def changed(attempts: Sequence[Attempt] = (), drop: Sequence[int] = (), **more: Any) -> History:
    """The good history with other attempts of some executions."""
    ids = {each.id for each in attempts} | set(drop)
    return replace(GOOD, attempts=[*without(ATTEMPTS, *ids), *attempts], **more)


def recorded(*outcomes: Outcome, drop: Sequence[int] = (), **more: Any) -> Record:
    ids = {each.id for each in outcomes} | set(drop)
    assert GOOD.record is not None
    return replace(GOOD.record, outcomes=[*without(OUTCOMES, *ids), *outcomes], **more)


def test_a_good_history_holds_with_a_kill_a_zombie_failures_and_a_cancel() -> None:
    checks = judge(GOOD)
    assert violations(GOOD) == []
    assert checks[ORDER].seen == "0 order violations in 4 lanes"
    assert "one 1 of 1, three 3 of 3" in checks[SLOTS].seen
    assert checks[ONCE].seen == "15 committed: 14 succeeded, 1 cancelled"
    assert "1 late ones refused" in checks[FENCED].seen
    assert all(check.exercised for check in checks[:PROGRESS])


def test_what_nothing_put_to_the_test_says_so() -> None:
    intime = changed(
        [attempt(5, 40, 41, n=2)], faults=[Fault("w2", "kill", 20, 20.1)], record=recorded(outcome(5, n=2))
    )
    fenced = judge(intime)[FENCED]
    assert (fenced.exercised, "0 late ones refused" in fenced.seen) == (False, True)
    nothing = judge(History(rules=RULES))
    assert [check.exercised for check in nothing] == [False] * len(nothing)
    assert violations(History(rules=RULES)) == []


def test_progress_without_the_workers_word_is_about_wake_ups_only() -> None:
    check = judge(replace(GOOD, record=recorded(wakeups_lost=0)))[PROGRESS]
    assert (check.name, check.seen, check.exercised) == ("no wake-up was lost", "0 wake-ups lost", True)
    assert judge(GOOD)[PROGRESS].exercised is False, (
        "nobody asked the sweep, and no worker said when it had room"
    )


# Order


def test_order_a_commit_before_that_of_an_older_ticket_is_found() -> None:
    late = [enqueue(5, 5, committed=8), *without(ENQUEUES, 5)]
    assert found(replace(GOOD, enqueues=late))[ORDER] == [
        f"one {LANE}: 6 was committed before the commit of 5 was asked for, and has the younger ticket"
    ]


def test_order_commits_that_overlap_prove_nothing() -> None:
    close = [enqueue(5, 5, committed=6.22), *without(ENQUEUES, 5)]
    assert found(replace(GOOD, enqueues=close)) == {}


def test_order_a_ticket_that_was_drawn_later_and_is_older_is_found() -> None:
    assert "had its ticket before 5 was enqueued" in str(
        found(replace(GOOD, enqueues=[enqueue(5, 6.15, committed=6.22), *without(ENQUEUES, 5)]))[ORDER]
    )


def test_order_a_younger_one_started_first_is_found() -> None:
    swapped = [attempt(2, 10, 11), attempt(1, 12, 13)]
    findings = found(changed(swapped, record=recorded(outcome(2))))[ORDER]
    assert f"one {LANE}: 2 was started before the older 1 by 1.910 s" in findings
    assert f"one {LANE}: 2 began before 1 older ones: 1" in findings


def test_order_one_that_waits_for_ever_was_overtaken() -> None:
    left = changed(drop=[4], record=recorded(outcome(4, "waiting", 0)))
    assert found(left)[ORDER][0] == f"one {LANE}: 5 was started before the older 4 and never was"


def test_order_one_that_was_cancelled_before_is_overtaken_by_nobody() -> None:
    history = changed(
        drop=[4],
        record=recorded(outcome(4, "cancelled", 0)),
        cancels=[*GOOD.cancels, Cancel(4, Span(25.5, 25.6), "cancelled")],
    )
    assert found(history) == {}
    late = replace(history, cancels=[*GOOD.cancels, Cancel(4, Span(35.5, 35.6), "cancelled")])
    assert "5 was started before the older 4" in str(found(late)[ORDER])


def test_order_a_start_whose_answer_nobody_saw_is_no_violation() -> None:
    unseen = changed([attempt(4, 28, 29, n=2)], record=recorded(outcome(4, n=2)))
    assert found(unseen) == {}


def test_order_started_again_after_a_younger_one_is_found() -> None:
    behind = changed([attempt(3, 17, None, worker="w2"), attempt(3, 28, 29, n=2)])
    assert f"one {LANE}: 3 was started again after the younger 4" in found(behind)[ORDER]
    assert f"one {LANE}: 3 began again after the younger 4" in found(behind)[ORDER]


def test_order_where_a_failed_one_yields_a_younger_one_may_come_between() -> None:
    assert found(GOOD) == {}  # 31, 32, 31 again
    held = replace(GOOD, rules=RULES | {YIELDS: Rules(slots=1, backoff=1.0)})
    assert found(held).keys() == {ORDER, SLOTS}


def test_order_relaxed_only_counts_what_was_committed_before_the_other_was_enqueued() -> None:
    swapped = [attempt(22, 30, 31, RELAXED), attempt(21, 32, 33, RELAXED)]
    assert "22 was started before the older 21" in str(found(changed(swapped))[ORDER])
    overlapping = [enqueue(21, 21, RELAXED, committed=23), *without(ENQUEUES, 21)]
    assert found(changed(swapped, enqueues=overlapping)) == {}


@pytest.mark.parametrize(("first", "fine"), [((14, 12, 13, 11), False), ((13, 12, 11, 14), True)])
def test_order_with_three_slots_threads_may_be_quicker_but_only_by_two(
    first: tuple[int, ...], fine: bool
) -> None:
    # Claimed in one call, in order, so only the handlers tell.
    claim = Span(19, 19.1)
    runs = [
        replace(attempt(id_, 20 + 2 * at, 21 + 2 * at, THREE), claim=claim if id_ != 14 else Span(19, 19.2))
        for at, id_ in enumerate(first)
    ]
    findings = found(changed(runs))
    assert (ORDER not in findings) is fine, findings


def test_order_on_record_is_judged_too() -> None:
    record = recorded(stays=[stay(1, 2, 2), stay(2, 1, 1)])
    assert found(replace(GOOD, record=record)) == {
        ORDER: [f"on record: lane one {LANE}: ticket 2 was started (no. 1) before 1"]
    }
    back = recorded(stays=[stay(1, 4, 4, joined=2), stay(2, 3, 3)])
    assert found(replace(GOOD, record=back)).keys() == {ORDER}
    waits = recorded(stays=[stay(1, None), stay(2, 1, 1)])
    assert found(replace(GOOD, record=waits)).keys() == {ORDER}


# Slots


def test_slots_two_starts_in_a_lane_with_one_are_found() -> None:
    early = [replace(attempt(2, 10.9, 13, outcome="failed")), attempt(2, 14, 15, n=2)]
    assert found(changed(early)) == {
        SLOTS: [
            f"one {LANE}: 2 had slots at once, 1 allowed: 1, 2",
            f"one {LANE}: 2 handlers at once, 1 allowed: 1, 2",
        ]
    }


def batch(*ids: int, start: float = 50, end: float = 53) -> list[Attempt]:
    """Some that one call started as a batch: they run one after the other and are handed in together."""
    claim, handed = Span(start - 0.1, start - 0.01), Span(end + 0.01, end + 0.05)
    each = (end - start) / len(ids)
    return [
        Attempt(
            *(id_, 1, ONE, LANE, "w1", claim, start + n * each, start + (n + 1) * each),
            (HandIn("succeeded", handed),),
            *(1, ids[0]),
        )
        for n, id_ in enumerate(ids)
    ]


def test_slots_a_batch_has_one_until_the_last_of_it_is_handed_in() -> None:
    rules = {ONE: RULES[ONE]}
    members = batch(1, 2, 3)
    assert violations(History(rules, attempts=members)) == []
    after = attempt(4, 54, 55)
    assert violations(History(rules, attempts=[*members, after])) == []
    beside = attempt(4, 51, 55)
    found = violations(History(rules, attempts=[*members, beside]))
    assert any("2 had slots at once, 1 allowed: 1, 4" in each for each in found), found
    apart = [replace(each, batch=None) for each in members]
    found = violations(History(rules, attempts=apart))
    assert any("had slots at once" in each for each in found), (
        "three starts that are no batch are two too many"
    )


def test_slots_of_a_batch_lost_with_its_worker_only_the_first_is_held() -> None:
    first, second = (replace(each, handed=()) for each in batch(1, 2))
    again = [attempt(1, 60, 61, n=2), attempt(2, 62, 63, n=2)]
    fault = Fault("w1", "kill", 52.5, 52.6)
    lost = [first, replace(second, end=None)]
    history = History({ONE: RULES[ONE]}, attempts=[*lost, *again], faults=[fault])
    assert violations(history) == [], "the first was done before the second began, and was not handed in"
    apart = [replace(each, batch=None) for each in lost]
    found = violations(replace(history, attempts=[*apart, *again]))
    assert any("1 began again after the younger 2" in each for each in found), found


def test_slots_what_a_zombie_says_of_its_batch_keeps_no_slot() -> None:
    refused = [
        replace(each, handed=(replace(each.handed[0], outcome=said, answer="lost", final=False),))
        for each, said in zip(batch(1, 2, end=70), ("succeeded", "failed"), strict=True)
    ]
    again = [attempt(1, 60, 61, n=2), attempt(2, 62, 63, n=2)]
    fault = Fault("w1", "pause", 52, 69)
    assert violations(History({ONE: RULES[ONE]}, attempts=[*refused, *again], faults=[fault])) == []


def test_what_was_put_off_by_a_failure_in_its_batch_has_no_end_and_is_taken_from_nobody() -> None:
    first, second = batch(1, 2)
    failed = replace(first, handed=(HandIn("failed", first.handed[0].call, final=False),))
    put_off = (HandIn("succeeded", second.handed[0].call, "unstarted"),)
    back = replace(second, begin=None, end=None, handed=put_off)
    again = [attempt(1, 54, 55, n=2), attempt(2, 56, 57, n=2)]
    record = Record(outcomes=[outcome(1, n=2), outcome(2, n=2)])
    history = History(
        {ONE: RULES[ONE]},
        enqueues=[enqueue(1, 1), enqueue(2, 2)],
        attempts=[failed, back, *again],
        record=record,
        duties=[Duty("w1", 49, 100, 10)],
        until=100.0,
    )
    assert violations(history) == []
    late = replace(history, attempts=[failed, back, again[0], attempt(2, 96, 97, n=2)])
    assert any("stood still" in each for each in violations(late)), violations(late)


def test_slots_more_than_share_a_limit_over_all_lanes_are_found() -> None:
    of_lanes = [replace(attempt(n, 50 + n / 10, 55, PACED), lane=f'{{"k":{n}}}') for n in (1, 2, 3)]
    rules = {PACED: RULES[PACED]}
    assert violations(History(rules, attempts=of_lanes[:2])) == []
    assert violations(History(rules, attempts=of_lanes)) == [
        "within the slots: paced: 3 made 3 of 2 that share a limit"
    ]


def test_slots_a_handler_that_ends_after_it_was_handed_in_is_found_by_its_own_clock() -> None:
    overran = replace(attempt(1, 10, 11), end=12.5)
    assert found(changed([overran])) == {SLOTS: [f"one {LANE}: 2 handlers at once, 1 allowed: 1, 2"]}


def test_slots_a_fourth_of_three_is_found() -> None:
    fourth = attempt(14, 21, 24, THREE)
    assert "4 had slots at once, 3 allowed: 11, 12, 13 and 1 more" in found(changed([fourth]))[SLOTS][0]


def test_slots_what_is_held_through_a_backoff_keeps_its_slot() -> None:
    others = [attempt(n, 20, 29, THREE) for n in (11, 12)]
    failed = [attempt(13, 20.1, 22, THREE, outcome="failed"), attempt(13, 25, 26, THREE, n=2)]
    record = recorded(outcome(13, n=2, action=THREE))
    given_on = changed([*others, *failed, attempt(14, 23, 24, THREE)], record=record, faults=GOOD.faults[:1])
    given_on = replace(given_on, attempts=[each for each in given_on.attempts if each.worker != "w3"])
    assert "4 had slots at once, 3 allowed" in found(given_on)[SLOTS][0]
    kept = [each for each in given_on.attempts if each.id != 14]
    assert SLOTS not in found(replace(given_on, attempts=[*kept, attempt(14, 27, 28, THREE)]))


def test_slots_of_a_killed_workers_execution_given_on_before_it_runs_again_are_found() -> None:
    assert SLOTS in found(changed([attempt(4, 22, 23)]))


@pytest.mark.parametrize(("lowered", "fine"), [(20.05, False), (30.0, True)])
def test_slots_after_a_limit_was_lowered_nothing_starts_until_fewer_are_active(
    lowered: float, fine: bool
) -> None:
    limits = [LimitChange(THREE, 2, Span(lowered, lowered + 0.01))]
    third = attempt(13, 21, 22, THREE)
    findings = found(changed([third], limits=limits))
    assert (findings == {}) is fine, findings


def test_slots_a_start_beside_a_change_of_the_limit_may_have_seen_either() -> None:
    raised = [LimitChange(ONE, 2, Span(10.85, 11.5)), LimitChange(ONE, 1, Span(11.6, 11.7))]
    early = [attempt(2, 10.9, 10.95, outcome="failed"), attempt(2, 14, 15, n=2)]
    assert SLOTS not in found(changed(early, limits=raised))


def test_slots_on_record_are_judged_too() -> None:
    record = recorded(stays=[stay(1, 1, 2), stay(2, 2, 2)])
    assert found(replace(GOOD, record=record)) == {
        SLOTS: [f"on record: lane one {LANE}: start 2 made 2 of 1"]
    }
    twice = recorded(stays=[stay(1, 1, 1), stay(2, 1, 1)])
    assert "start number 1 was given twice" in str(found(replace(GOOD, record=twice)))


# One outcome


def test_durability_a_lost_execution_is_found() -> None:
    assert found(changed(drop=[6], record=recorded(drop=[6]))) == {ONCE: ["1 is gone without a trace: 6"]}


def test_durability_a_lost_record_of_what_ran_is_found() -> None:
    assert found(replace(GOOD, record=recorded(drop=[6]))).keys() == {ONCE, AGREE}


def test_durability_an_unknown_commit_may_have_gone_either_way() -> None:
    unknown = [enqueue(9, 9, fate="unknown"), *ENQUEUES]
    assert found(replace(GOOD, enqueues=unknown)) == {}
    there = changed([attempt(9, 50, 51)], enqueues=unknown, record=recorded(outcome(9)))
    assert found(there) == {}


def test_durability_a_trace_of_a_rolled_back_enqueue_is_found() -> None:
    assert found(replace(GOOD, record=recorded(outcome(7, "expired", 0)))) == {
        ONCE: ["1 is on record though their enqueue was rolled back: 7"]
    }
    assert "7 was started though its enqueue was rolled back" in str(
        found(changed([attempt(7, 50, 51)]))[AGREE]
    )


def test_durability_what_was_never_enqueued_is_found() -> None:
    strange = found(changed([attempt(99, 50, 51)], record=recorded(outcome(99))))
    assert strange == {
        ONCE: ["1 is on record and were never enqueued: 99"],
        AGREE: ["execution 99 was started and never enqueued"],
    }


@pytest.mark.parametrize("state", ["waiting", "running", "held", "delayed"])
def test_durability_what_has_no_outcome_in_the_end_is_found(state: str) -> None:
    left = changed(drop=[6], record=recorded(outcome(6, state, 0)))
    assert found(left)[ONCE] == [f"1 is still {state} at the end: 6"]


def test_durability_two_outcomes_are_found() -> None:
    assert GOOD.record is not None
    twice = replace(GOOD.record, outcomes=[*OUTCOMES, OUTCOMES[0]])
    assert found(replace(GOOD, record=twice)) == {ONCE: ["1 is on record more than once: 1"]}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            outcome(6, "failed", failures=5),
            "was handed in as succeeded, which was taken; the record says failed",
        ),
        (outcome(6, n=2), "the record says succeeded in attempt 2"),
        (outcome(8, "expired", 0), "its cancel was answered with cancelled; the record says expired"),
        (outcome(6, n=0), "attempt 1 was started; the record has 0"),
    ],
)
def test_durability_a_record_that_contradicts_what_clients_were_told_is_found(
    wrong: Outcome, said: str
) -> None:
    assert said in str(found(replace(GOOD, record=recorded(wrong)))[AGREE])


def test_durability_a_success_that_no_worker_knows_of_is_found() -> None:
    assert "no worker says so" in str(found(changed(drop=[6]))[AGREE])


def test_durability_a_success_whose_answer_was_lost_is_none() -> None:
    assert found(changed([attempt(6, 42, 43, answer="none")])) == {}


def test_durability_a_cancel_that_nobody_asked_for_is_found() -> None:
    assert "nobody had cancelled it" in str(
        found(changed(drop=[6], record=recorded(outcome(6, "cancelled", 0))))[AGREE]
    )


def test_durability_giving_up_before_all_attempts_is_found() -> None:
    failed = attempt(6, 42, 43, outcome="failed")
    early = changed([failed], record=recorded(outcome(6, "failed", failures=1)))
    assert found(early) == {AGREE: ["execution 6 has failed after 1 of 5 attempts"]}
    assert found(replace(early, record=recorded(outcome(6, "failed", failures=5)))) == {}
    gave_up = attempt(6, 42, 43, outcome="failed", final=True)
    assert found(changed([gave_up], record=recorded(outcome(6, "failed", failures=1)))) == {}


def test_durability_a_start_after_the_outcome_is_found() -> None:
    again = [attempt(6, 42, 43), attempt(6, 50, 51, n=2, answer="lost")]
    assert "6 was started again (attempt 2) after it had succeeded in attempt 1" in str(
        found(changed(again))[AGREE]
    )
    cancelled = changed([attempt(8, 50, 51)], record=recorded(outcome(8)))
    assert "after it had been cancelled" in str(found(cancelled)[AGREE])


def test_durability_a_start_in_another_lane_is_found() -> None:
    assert "was started in one {}, not in one" in str(
        found(changed([replace(attempt(6, 42, 43), lane="{}")]))[AGREE]
    )


# Fencing


def test_fencing_a_zombies_finish_that_is_taken_is_found() -> None:
    zombie = [attempt(5, 30, 45.1, worker="w3"), attempt(5, 40, 41, n=2)]
    findings = found(changed(zombie))
    assert (
        "execution 5, attempt 1, was handed in by w3 as succeeded, and taken, "
        "after attempt 2 had been given to w1" in findings[FENCED]
    )
    assert any("has ended twice" in each for each in findings[FENCED])


def test_fencing_a_finish_taken_from_a_worker_that_is_dead_is_found() -> None:
    dead = attempt(5, 30, 45.1, worker="w3")
    assert "after that had been declared dead" in str(
        found(changed([dead], record=recorded(outcome(5))))[FENCED]
    )


def test_fencing_the_same_end_said_twice_by_the_same_attempt_is_fine() -> None:
    once = attempt(6, 42, 43)
    assert found(changed([replace(once, handed=once.handed * 2)])) == {}


def test_fencing_one_attempt_given_to_two_workers_is_found() -> None:
    twice = [attempt(6, 42, 43), attempt(6, 46, 47, worker="w4")]
    assert "execution 6, attempt 1, was given to w1 and to w4" in found(changed(twice))[FENCED]


def test_fencing_a_token_smaller_than_an_earlier_one_is_found() -> None:
    backwards = [attempt(2, 14, 15), attempt(2, 12, 13, n=2, outcome="failed")]
    assert "execution 2, attempt 2, was started before attempt 1" in found(changed(backwards))[FENCED]


def test_fencing_an_execution_taken_from_a_living_worker_is_found() -> None:
    robbed = changed(
        [attempt(6, 42, 43, answer="lost"), attempt(6, 44, 45, n=2)], record=recorded(outcome(6, n=2))
    )
    assert found(robbed) == {
        FENCED: ["execution 6, attempt 1, was taken from w1, to which nothing had happened"]
    }
    silent = replace(robbed, beats=[beat for beat in GOOD.beats if not 37 <= beat.call.called <= 44])
    assert found(silent) == {}
    cut_off = replace(robbed, beats=[*GOOD.beats, Beat("w1", 1, Span(42.5))])
    assert found(cut_off) == {}


# Progress


def served(**more: Any) -> History:
    """One lane with one slot, and one worker with room."""
    rest: dict[str, Any] = {
        "rules": {ONE: Rules(slots=1, backoff=1.0)},
        "enqueues": [enqueue(1, 1), enqueue(2, 2)],
        "attempts": [attempt(1, 5, 6), attempt(2, 7, 8)],
        "duties": [Duty("w1", 0, 100, 5)],
        "until": 100.0,
    }
    return History(**(rest | more))


def test_progress_of_a_lane_that_goes_on_is_fine() -> None:
    assert violations(served()) == []
    assert "the longest halt 3." in judge(served())[PROGRESS].seen


def test_progress_a_lane_that_stands_still_is_found() -> None:
    late = served(attempts=[attempt(1, 5, 6), attempt(2, 27, 28)])
    assert found(late) == {
        PROGRESS: [
            f"one {LANE} stood still for 20.8 s, with something to start, a free slot and a worker with room"
        ]
    }


@pytest.mark.parametrize(
    "excuse",
    [
        {"duties": [Duty("w1", 0, 8, 5), Duty("w2", 25, 100, 5)]},
        {"faults": [Fault("w1", "pause", 6.5, 26)]},
        {"outages": [Span(9, 25)]},
        {"limits": [LimitChange(ONE, 0, Span(7, 7.1)), LimitChange(ONE, 1, Span(26, 26.1))]},
        {"duties": [Duty("w1", 0, 100, 0)]},
    ],
    ids=["nobody was there", "the worker was stopped", "the server was down", "it was paused", "no room"],
)
def test_progress_there_are_reasons_to_stand_still(excuse: dict[str, Any]) -> None:
    assert violations(served(attempts=[attempt(1, 5, 6), attempt(2, 27, 28)], **excuse)) == []


def test_progress_a_retry_that_does_not_come_when_it_is_due_is_found() -> None:
    retried = [attempt(1, 5, 6, outcome="failed"), attempt(1, 20, 21, n=2), attempt(2, 22, 23)]
    assert "stood still for 12.8 s" in str(found(served(attempts=retried))[PROGRESS])
    assert violations(served(attempts=retried, rules={ONE: Rules(backoff=10.0)})) == []


def test_progress_what_a_dead_worker_had_is_waited_for_only_so_long() -> None:
    def again(at: float) -> History:
        runs = [attempt(1, 5, None, worker="w2"), attempt(1, at, at + 1, n=2), attempt(2, at + 2, at + 3)]
        return served(attempts=runs, faults=[Fault("w2", "kill", 5.5, 5.6)], lease=5.0)

    assert violations(again(20)) == []
    assert found(again(40)).keys() == {PROGRESS}


def test_progress_a_wake_up_that_only_the_sweep_made_good_is_found() -> None:
    assert found(replace(GOOD, record=recorded(wakeups_lost=2))) == {
        PROGRESS: ["2 lanes were set going by the sweep only: wake-ups were lost"]
    }


def test_what_pgfifo_finds_itself_counts() -> None:
    assert found(replace(GOOD, record=recorded(findings=["violation: ledger in one"]))) == {
        OWN: ["violation: ledger in one"]
    }


# From lines to facts


def line(kind: str, at: float, who: str = "w1", **facts: Any) -> dict[str, Any]:
    return {"kind": kind, "at": at, "who": who, **facts}


def enqueued(id_: int, at: float, tx: int) -> dict[str, Any]:
    return line("enqueue", at, "p1", tx=tx, called=at - 0.5, id=id_, action=ONE, lane=LANE, delay=0)


LINES = [
    enqueued(1, 1, 1),
    line("ending", 2, "p1", tx=1, commit=True),
    line("ended", 2.5, "p1", tx=1, commit=True),
    enqueued(2, 3, 2),
    line("ending", 4, "p1", tx=2, commit=False),
    line("ended", 4.1, "p1", tx=2, commit=False),
    enqueued(3, 5, 3),
    line("ending", 5.1, "p1", tx=3, commit=True),  # and then the connection broke
    enqueued(4, 5.5, 4),  # and then the producer was killed
    line("serving", 0, registration=7, room=5),
    line("claimed", 6, called=5.9, registration=7, starts=[[1, 1, ONE, LANE, None], [3, 1, ONE, LANE, None]]),
    line("begin", 6.1, id=1, attempt=1, action=ONE, lane=LANE),
    line("end", 6.2, id=1, attempt=1, returned=True),
    line("begin", 6.1, "plain", id=9, attempt=1, action=ONE, lane=LANE),  # a worker that nobody listens to
    line("end", 6.2, "plain", id=9, attempt=1, returned=True),
    line("begin", 6.3, "plain", id=9, attempt=2, action=ONE, lane=LANE),
    line("handing in", 6.3, call="7.2", items=[[1, 1, "succeeded", True]]),
    line("handed in", 6.4, call="7.2", refused=[]),
    line("handing in", 6.5, call="7.3", items=[[3, 1, "succeeded", True]]),
    line("handed in", 6.6, call="7.3", refused=[[3, 1, "lost"]]),
    line("dead", 6.6, registration=7),
    line("beat", 6.7, called=6.65, registration=8, heard=True),
    line("beat", 7.7, called=7.7, registration=8, heard=False),
    line("cancelling", 8, "p1", id=3),
    line("cancelled", 8.1, "p1", id=3, answer="requested"),
    line("cancelling", 8.2, "p1", id=3),
    line("limiting", 9, "chaos", action=ONE, slots=2),
    line("limited", 9.2, "chaos", action=ONE, slots=2),
    line("fault", 10, "chaos", worker="w1", fault="kill"),
    line("fault over", 10.1, "chaos", worker="w1", fault="kill"),
]


def test_lines_of_recorders_become_facts() -> None:
    history = assemble(LINES, RULES, until=20)
    assert [(each.id, each.fate, each.commit) for each in history.enqueues] == [
        (1, "committed", Span(2, 2.5)),
        (2, "rolled back", Span(4, 4.1)),
        (3, "unknown", Span(5.1, inf)),
        (4, "rolled back", Span(5.0, 5.5)),
    ]
    assert history.attempts == [
        Attempt(1, 1, ONE, LANE, "w1", Span(5.9, 6), 6.1, 6.2, (HandIn("succeeded", Span(6.3, 6.4)),), 7),
        Attempt(
            3, 1, ONE, LANE, "w1", Span(5.9, 6), None, None, (HandIn("succeeded", Span(6.5, 6.6), "lost"),), 7
        ),
        Attempt(
            9, 1, ONE, LANE, "plain", Span(-inf, 6.1), 6.1, 6.2, (HandIn("succeeded", Span(6.2), "none"),)
        ),
        Attempt(9, 2, ONE, LANE, "plain", Span(-inf, 6.3), 6.3),
    ]
    assert history.cancels == [Cancel(3, Span(8, 8.1), "requested"), Cancel(3, Span(8.2), None)]
    assert history.limits == [LimitChange(ONE, 2, Span(9, 9.2))]
    assert history.faults == [Fault("w1", "kill", 10, 10.1)]
    assert history.deaths == [Death("w1", 7, 6.6)]
    assert history.beats == [Beat("w1", 8, Span(6.65, 6.7)), Beat("w1", 8, Span(7.7))]
    assert history.duties == [Duty("w1", 0, 10, 5)]
