"""Batches: consecutive executions of one lane, started together as one run in one slot."""

import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest

from pgfifo import errors
from tests.support.database import in_background
from tests.support.engine import Answer, Engine, Hand, Start, item, race

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

BACKOFF: dict[str, Any] = {"backoff": "constant", "backoff_initial": 30, "backoff_jitter": 0}


def begin(conn: Connection, count: int, **values: Any) -> tuple[Engine, int, list[int]]:
    """Return an engine, a worker, and the ids of so many executions that wait."""
    engine = Engine(conn)
    engine.policy(**(BACKOFF | values))
    return engine, engine.worker(), engine.fill(count)


def batch(engine: Engine, worker: int, size: int = 100, limit: int = 10, **more: Any) -> list[Start]:
    return engine.work(worker, limit, batches=[size], **more).starts


def slots(engine: Engine) -> tuple[int, int]:
    """Return how many are active in the lane, and how many slots they have."""
    lane = engine.lane()
    return lane["active_count"], lane["slots_taken"]


def drain(engine: Engine, worker: int, size: int = 100) -> list[list[int]]:
    """Work all off; return the ids of each run."""
    runs: list[list[int]] = []
    finished: list[dict[str, object]] = []
    while True:
        answer = engine.work(worker, 1, batches=[size], finished=finished)
        assert not answer.refused
        runs += [answer.ids] if answer.ids else []
        finished = [item(start) for start in answer.starts]
        if not finished and answer.more not in ("now", "soon"):
            return runs


# -- the claim ---------------------------------------------------------------------------------------


def test_batches_take_consecutive_executions_of_one_lane_in_one_slot(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 5)
    answer = engine.work(worker, 10, batches=[3])
    assert answer.ids == ids[:3], "not one batch, or another one in the same slot"
    assert [start.batch for start in answer.starts] == [None, 1, 1]
    assert [start.start_no for start in answer.starts] == [1, 2, 3]
    assert (slots(engine), engine.lane()["queue_length"]) == ((3, 1), 2)
    engine.assert_promises()
    answer = engine.work(worker, 10, batches=[3], finished=[item(start) for start in answer.starts])
    assert (answer.refused, answer.ids) == ({}, ids[3:])
    assert engine.hand_in(worker, *answer.starts) == {}
    assert (slots(engine), engine.lane()["total_succeeded"]) == ((0, 0), 5)
    assert engine.started() == ids
    engine.assert_promises()


def test_batches_have_one_slot_each_in_a_lane_with_more(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 10, max_concurrent=3)
    starts = batch(engine, worker, 3)
    assert [start.id for start in starts] == ids[:9]
    assert [start.batch for start in starts] == [None, 1, 1, None, 4, 4, None, 7, 7]
    assert slots(engine) == (9, 3)
    assert engine.claim(worker, 5) == [], "a slot was given twice"
    # One member of each is not the end of any.
    assert engine.hand_in(worker, starts[0], starts[4], starts[8]) == {}
    assert slots(engine) == (6, 3)
    assert engine.claim(worker, 5) == [], "a slot was given on while its batch ran"
    assert engine.hand_in(worker, *starts[1:3]) == {}
    assert slots(engine) == (4, 2)
    assert [start.id for start in batch(engine, worker, 3)] == ids[9:]
    engine.assert_promises()


def test_batches_count_as_one_against_the_limits_of_a_claim(conn: Connection) -> None:
    engine = Engine(conn)
    lanes = {group: engine.fill(4, group=group) for group in ("a", "b", "c")}
    worker = engine.worker()
    starts = batch(engine, worker, 4, limit=2)
    for group in "ab":
        assert [start.id for start in starts if start.id in lanes[group]] == lanes[group]
    assert len(starts) == 8
    assert [start.id for start in batch(engine, worker, 4, limit=5, limits=[1])] == lanes["c"]
    engine.assert_promises()


def test_batches_are_of_the_actions_that_have_them(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy("mail", max_concurrent=2)
    deploys, mails = engine.fill(3), engine.fill(3, "mail")
    worker = engine.worker("deploy", "mail")
    answer = engine.work(worker, 10, ["mail", "deploy"], batches=[None, 10])
    assert sorted(answer.ids) == sorted(deploys + mails[:2])
    assert [start.batch for start in answer.starts if start.action == "mail"] == [None, None]
    engine.assert_promises()


@pytest.mark.parametrize("sizes", [[0], [1001], [2, 2], []])
def test_batches_have_a_size_for_each_action(conn: Connection, sizes: list[int]) -> None:
    engine, worker, _ = begin(conn, 3)
    with pytest.raises(errors.InvalidValue, match="p_batches"):
        engine.work(worker, 1, batches=sizes)


def test_batches_are_answered_again_where_the_answer_was_lost(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 4)
    first = engine.work(worker, 5, call=7, batches=[3])
    again = engine.work(worker, 5, call=7, batches=[3])
    assert again.ids == first.ids == ids[:3]
    assert {start.batch or start.start_no for start in again.starts} == {1}
    engine.assert_promises()


def test_batches_end_before_what_has_expired(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 2, max_wait=60)
    engine.advance("50 s")
    others = engine.fill(2)
    engine.advance("20 s")
    assert [start.id for start in batch(engine, worker)] == others
    assert engine.states(ids) == ["expired", "expired"]
    engine.assert_promises()


def test_batches_end_before_one_that_comes_back_from_a_tail(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 1, failure_mode="tail")
    engine.finish(engine.claim(worker)[0], "failed")
    others = engine.fill(2)
    engine.advance("31 s")
    last = engine.fill(2)
    assert drain(engine, worker) == [others, [ids[0]], last]
    assert engine.show(ids[0])["attempt"] == 2
    engine.assert_promises()


def test_batches_end_before_a_slot_that_a_program_waits_for(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 3)
    owner = int(engine.one("select pgfifo.worker_start('p', 'h', 2, '{}', 1, '30 s', false, 'slot')"))
    slot = int(engine.one("select id from pgfifo.slot_enter(%s, 1, 'deploy')", owner))
    engine.fill(2)
    starts = batch(engine, worker)
    assert [start.id for start in starts] == ids
    assert engine.work(worker, 5, batches=[100], finished=map(item, starts)).ids == []
    assert engine.state(slot) == "running"
    assert slots(engine) == (1, 1)
    engine.assert_promises()


def test_batches_have_no_more_than_16_mib(conn: Connection) -> None:
    engine = Engine(conn)
    # Nothing that could be compressed.
    query = (
        "select pgfifo.enqueue('deploy', jsonb_build_object('a', (select string_agg(sha512(convert_to("
        "n || '-' || %s, 'UTF8'))::text, '') from generate_series(1, 7000) n)))"
    )
    ids = [int(engine.one(query, n)) for n in range(20)]
    starts = batch(engine, engine.worker())
    sizes = engine.rows("select pg_column_size(payload) from pgfifo._executions order by id")
    expected = 1
    while sum(size for (size,) in sizes[1 : expected + 1]) <= 16 * 1024 * 1024:
        expected += 1
    assert 1 < expected < 20, "the payloads do not fit the test"
    assert [start.id for start in starts] == ids[:expected]
    engine.assert_promises()


def test_batches_in_a_relaxed_lane(conn: Connection, connect: Connect) -> None:
    engine, worker, _ = begin(conn, 0, ordering="relaxed")
    first = engine.fill(2)
    late = Engine(connect(autocommit=False))
    overtaken = late.enqueue()
    others = engine.fill(2)
    starts = batch(engine, worker)
    assert [start.id for start in starts] == first + others
    late.conn.commit()
    more = engine.fill(3)
    engine.hand_in(worker, *starts)
    assert drain(engine, worker) == [[overtaken], more]
    engine.assert_promises(strict=False)


def test_batches_only_one_of_many_claims_at_once_gets_a_lane(conn: Connection, connect: Connect) -> None:
    engine, _, ids = begin(conn, 200)
    sessions = [connect() for _ in range(6)]
    workers = [engine.worker() for _ in sessions]
    claim = "select id, attempt from pgfifo.work($1, '{deploy}', 3, p_batches => '{10}') where kind = 'start'"
    order: list[int] = []
    for _ in range(40):
        answers = race(*((own, claim, [worker]) for own, worker in zip(sessions, workers, strict=True)))
        got = [
            (worker, [int(str(row[0])) for row in rows])
            for worker, rows in zip(workers, answers, strict=True)
            if rows
        ] or [(workers[0], [start.id for start in batch(engine, workers[0], 10)])]
        assert len(got) == 1, "two batches in one slot"
        ((worker, some),) = got
        order += some
        engine.work(worker, 0, finished=[{"id": i, "attempt": 1, "outcome": "succeeded"} for i in some])
        if len(order) == len(ids):
            break
    assert order == ids
    engine.assert_promises()


# -- failures ----------------------------------------------------------------------------------------


def failed(start: Start, **more: object) -> dict[str, object]:
    return item(start, "failed", error="boom", **more)


def test_batches_under_hold_finish_up_to_the_first_failure_and_release_what_is_behind_it(
    conn: Connection,
) -> None:
    engine, worker, ids = begin(conn, 6)
    starts = batch(engine, worker, 5)
    items = [item(starts[0]), item(starts[1]), failed(starts[2]), *(item(s, "released") for s in starts[3:])]
    answer = engine.work(worker, 5, batches=[5], finished=items)
    assert (answer.ids, answer.refused) == ([], {})
    assert engine.states(ids) == ["succeeded", "succeeded", "held", "waiting", "waiting", "waiting"]
    assert slots(engine) == (1, 1)
    assert [engine.position(id_) for id_ in ids[3:]] == [1, 2, 3]
    for id_ in ids[3:5]:
        show = engine.show(id_)
        assert (show["attempt"], show["failures"], show["attempts"][0]["outcome"]) == (1, 0, "unstarted")
    engine.assert_promises()
    engine.advance("31 s")
    last = engine.fill(2)
    # What has come back starts alone; then there are batches again.
    assert drain(engine, worker, 5) == [[ids[2]], [ids[3]], [ids[4]], [ids[5], *last]]
    assert engine.started() == [*ids[:5], *ids[2:6], *last]
    engine.assert_promises()


def test_batches_under_hold_no_success_behind_a_failure_counts(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 4)
    starts = batch(engine, worker)
    items = [item(starts[0]), failed(starts[1]), item(starts[2]), item(starts[3], "failed")]
    answers = {starts[2].id: "unstarted", starts[3].id: "unstarted"}
    assert engine.work(worker, 0, [], items).refused == answers
    assert engine.states(ids) == ["succeeded", "held", "waiting", "waiting"]
    assert engine.work(worker, 0, [], items).refused == answers, "said again, it is something else"
    engine.assert_promises()


def test_batches_a_failure_with_a_slot_to_spare_holds_only_its_own(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 6, max_concurrent=2)
    starts = batch(engine, worker, 3)
    answer = engine.work(worker, 0, finished=[failed(starts[0]), item(starts[1])])
    assert answer.refused == {ids[1]: "unstarted"}
    assert slots(engine) == (4, 2), "the failed one and the other batch"
    engine.hand_in(worker, *starts[3:])
    assert [s.id for s in engine.claim(worker, 5)] == [ids[1]]
    engine.assert_promises()


@pytest.mark.parametrize("mode", ["yield", "tail"])
def test_batches_without_hold_go_on_behind_a_failure(conn: Connection, mode: str) -> None:
    engine, worker, ids = begin(conn, 4, failure_mode=mode)
    starts = batch(engine, worker, 3)
    assert engine.hand_in(worker, starts[0], outcome="failed") == {}
    assert slots(engine) == (2, 1)
    assert engine.claim(worker) == [], "the others of the batch still have the slot"
    assert engine.hand_in(worker, *starts[1:]) == {}
    assert engine.states(ids) == ["delayed", "succeeded", "succeeded", "waiting"]
    assert slots(engine) == (0, 0)
    engine.advance("31 s")
    expected = [[ids[0]], [ids[3]]] if mode == "yield" else [[ids[3]], [ids[0]]]
    assert drain(engine, worker) == expected
    engine.assert_promises()


def test_batches_go_on_behind_one_that_failed_for_good(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 3)
    starts = batch(engine, worker)
    assert engine.work(worker, 0, [], [failed(starts[0], retry=False), *map(item, starts[1:])]).refused == {}
    assert engine.states(ids) == ["failed", "succeeded", "succeeded"]
    engine.assert_promises()


def test_batches_stop_with_a_lane_that_stops(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 3, on_exhausted="pause")
    starts = batch(engine, worker)
    items = [item(starts[0]), failed(starts[1], retry=False), item(starts[2])]
    assert engine.work(worker, 0, [], items).refused == {ids[2]: "unstarted"}
    assert engine.states(ids) == ["succeeded", "failed", "waiting"]
    assert (slots(engine), engine.lane()["paused"]) == ((0, 0), True)
    engine.assert_promises()


def test_batches_a_wish_to_be_called_later_puts_off_what_is_behind_it(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 3)
    starts = batch(engine, worker)
    engine.work(worker, 0, [], [failed(starts[0], after=60, count=False)])
    assert engine.states(ids) == ["held", "waiting", "waiting"]
    assert [engine.show(id_)["failures"] for id_ in ids] == [0, 0, 0]
    engine.assert_promises()


# -- ends of other kinds -----------------------------------------------------------------------------


def test_batches_of_a_lost_worker_fail_with_their_first_one_and_then_run_alone(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 5)
    starts = batch(engine, worker, 4)
    engine.hand_in(worker, starts[0])
    engine.tick(40)
    assert engine.states(ids) == ["succeeded", "held", "waiting", "waiting", "waiting"]
    assert [engine.show(id_)["failures"] for id_ in ids] == [0, 1, 0, 0, 0]
    assert slots(engine) == (1, 1)
    with pytest.raises(errors.LeaseLost):
        engine.hand_in(worker, *starts[1:])
    engine.assert_promises()
    engine.advance("31 s")
    assert drain(engine, engine.worker()) == [[id_] for id_ in ids[1:]]
    engine.assert_promises()


def test_batches_one_that_kills_its_worker_is_found_and_the_others_get_through(conn: Connection) -> None:
    """Whatever it is in, only its own attempts are used up."""
    engine, _, ids = begin(conn, 5, max_attempts=3, backoff_initial=1)
    poison = ids[3]
    for _ in range(20):
        worker = engine.worker()
        for _ in range(10):
            starts = batch(engine, worker, 5)
            if any(start.id == poison for start in starts):
                break  # it dies before it has said anything of any of them
            engine.hand_in(worker, *starts)
            if not starts:
                engine.advance("2 s")
        if engine.state(poison) == "failed":
            break
        engine.tick(40)
    assert engine.states(ids) == ["succeeded"] * 3 + ["failed", "succeeded"]
    assert [engine.show(id_)["failures"] for id_ in ids] == [1, 0, 0, 3, 0]
    engine.assert_promises()


@pytest.mark.parametrize("how", ["signed off", "unknown"])
def test_batches_that_a_worker_gives_back_count_no_failure(conn: Connection, how: str) -> None:
    engine, worker, ids = begin(conn, 3)
    engine.work(worker, 1, call=1, batches=[10])
    if how == "unknown":
        engine.heartbeat(worker, 1, [])
    else:
        engine.one("select pgfifo.worker_stop(%s)", worker)
    assert engine.states(ids) == ["waiting"] * 3
    assert slots(engine) == (0, 0)
    assert [engine.show(id_)["failures"] for id_ in ids] == [0, 0, 0]
    assert drain(engine, engine.worker()) == [[id_] for id_ in ids]
    engine.assert_promises()


def test_batches_a_zombie_finishes_nothing_of_one(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 3)
    starts = batch(engine, worker)
    for start in starts:
        engine.release(start)
    other = engine.worker()
    (first,) = engine.claim(other)
    answers = engine.hand_in(worker, *starts)
    assert answers == dict.fromkeys(ids, "lost")
    assert engine.hand_in(other, first) == {}
    engine.assert_promises()


def test_batches_an_older_attempt_beside_the_one_that_counts_is_lost(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 3)
    starts = batch(engine, worker)
    old = starts[1]._replace(attempt=0)
    items = [item(old, result=1), *(item(start, result=start.start_no) for start in starts)]
    assert engine.work(worker, 0, [], items).refused == {ids[1]: "lost"}
    assert [engine.show(id_)["result"] for id_ in ids] == [1, 2, 3]
    assert engine.work(worker, 0, [], items[1:]).refused == {}, "the same, said again"
    engine.assert_promises()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_batches_a_member_that_leaves_leaves_the_slot_to_the_others(conn: Connection, which: int) -> None:
    """Cancelled, released or ended by hand, first, last or in between: the others go on, and nobody else."""
    for way in ("cancel", "release", "by hand", "finish"):
        engine, worker, ids = begin(conn, 4)
        starts = batch(engine, worker, 3)
        leaves = starts[which]
        if way == "cancel":
            assert engine.cancel(leaves.id) == "requested"
            assert engine.heartbeat(worker, held=ids[:3]) == {leaves.id: "cancel"}
            engine.hand_in(worker, leaves, outcome="cancelled")
        elif way == "release":
            engine.release(leaves)
        elif way == "by hand":
            assert engine.one("select pgfifo.finish_execution(%s, 'failed', 'stuck')", leaves.id)
        else:
            engine.finish(leaves)
        assert slots(engine) == (2, 1)
        assert engine.claim(worker, 5) == []
        others = [start for start in starts if start is not leaves]
        assert engine.hand_in(worker, *others) == {}
        assert slots(engine) == (0, 0)
        engine.assert_promises()
        drain(engine, worker)


def test_batches_who_was_to_be_cancelled_is_not_put_off(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 3)
    starts = batch(engine, worker)
    engine.cancel(ids[1])
    answers = engine.work(worker, 0, [], [failed(starts[0]), *map(item, starts[1:])]).refused
    assert answers == {ids[1]: "unstarted", ids[2]: "unstarted"}
    assert engine.states(ids) == ["held", "cancelled", "waiting"]
    assert slots(engine) == (1, 1)
    engine.assert_promises()


def test_batches_what_was_completed_has_succeeded_whatever_fails(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 4)
    starts = batch(engine, worker)
    with conn.transaction():
        for start in (starts[0], starts[2]):
            engine.one("select pgfifo.complete(%s, %s, '1')", start.id, start.attempt)
    refused = engine.work(worker, 0, [], [failed(start) for start in starts]).refused
    assert refused == {ids[2]: "unstarted", ids[3]: "unstarted"}
    assert engine.states(ids) == ["succeeded", "held", "succeeded", "waiting"]
    engine.assert_promises()


def test_batches_of_a_lost_worker_that_were_completed_have_succeeded(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 3)
    starts = batch(engine, worker)
    with conn.transaction():
        engine.one("select pgfifo.complete(%s, 1)", starts[0].id)
    engine.tick(40)
    assert engine.states(ids) == ["succeeded", "held", "waiting"]
    engine.assert_promises()


def test_batches_beyond_a_limit_that_was_lowered_go_on_and_nothing_else_starts(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 12, max_concurrent=3)
    starts = batch(engine, worker, 3)
    engine.policy(max_concurrent=1)
    engine.hand_in(worker, *starts[:6])
    assert slots(engine) == (3, 1)
    assert batch(engine, worker, 3) == []
    answer = engine.work(worker, 5, batches=[3], finished=map(item, starts[6:]))
    assert answer.ids == ids[9:]
    engine.assert_promises()


# -- limits over time and across lanes ---------------------------------------------------------------


def test_batches_are_one_start_of_a_rate(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 6, rate="1/10s", burst=1)
    starts = batch(engine, worker, 3)
    assert [start.id for start in starts] == ids[:3]
    engine.hand_in(worker, *starts)
    assert batch(engine, worker, 3) == []
    engine.advance("10 s")
    assert [start.id for start in batch(engine, worker, 3)] == ids[3:]
    engine.assert_promises()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_batches_draw_one_slot_of_a_shared_limit_until_the_last_has_ended(
    conn: Connection, order: tuple[int, ...]
) -> None:
    engine = Engine(conn)
    engine.one("select pgfifo.set_shared_limit('api', '{\"max_concurrent\": 1, \"everything\": true}')")
    engine.fill(3, group="a")
    others = engine.fill(2, group="b")
    worker = engine.worker()
    starts = batch(engine, worker)
    assert len(starts) == 3
    for n in order:
        assert batch(engine, worker) == [], "its shared slot was given on"
        engine.hand_in(worker, starts[n])
        assert [row for row in engine.check() if row[0] == "violation"] == []
    assert [start.id for start in batch(engine, worker)] == others
    engine.assert_promises()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_batches_that_fail_give_their_shared_slot_back(conn: Connection, which: int) -> None:
    engine = Engine(conn)
    engine.policy(**BACKOFF)
    engine.one("select pgfifo.set_shared_limit('api', '{\"max_concurrent\": 1, \"everything\": true}')")
    engine.fill(3, group="a")
    others = engine.fill(2, group="b")
    worker = engine.worker()
    starts = batch(engine, worker)
    engine.hand_in(worker, starts[which], outcome="failed")
    assert [start.id for start in batch(engine, worker)] == others, "a held one keeps no shared slot"
    engine.assert_promises()


def test_batches_of_a_lost_worker_give_their_shared_slot_back(conn: Connection) -> None:
    engine, worker, _ = begin(conn, 3)
    engine.one("select pgfifo.set_shared_limit('api', '{\"max_concurrent\": 1, \"everything\": true}')")
    assert len(batch(engine, worker)) == 3
    engine.tick(40)
    assert engine.one("select active_count from pgfifo.shared_limits") == 0
    engine.assert_promises()


def test_batches_keep_a_gap_from_the_end_of_their_last(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 3, gap=10)
    starts = batch(engine, worker, 2)
    engine.hand_in(worker, starts[0])
    engine.advance("11 s")
    engine.hand_in(worker, starts[1])
    assert batch(engine, worker) == []
    engine.advance("9 s")
    assert batch(engine, worker) == []
    engine.advance("2 s")
    assert [start.id for start in batch(engine, worker)] == ids[2:]
    engine.assert_promises()


# -- looking -----------------------------------------------------------------------------------------


def test_batches_are_told_of_by_show_slots_position_and_explain(conn: Connection) -> None:
    engine, worker, ids = begin(conn, 5)
    batch(engine, worker, 3)
    assert engine.states(ids) == ["running"] * 3 + ["waiting"] * 2
    assert [engine.position(id_) for id_ in ids] == [None, None, None, 1, 2]
    rows = engine.rows("select id, batch_no from pgfifo.slots order by id")
    assert rows == [(id_, 1) for id_ in ids[:3]]
    said = engine.one("select explanation from pgfifo.explain(%s)", ids[1])
    assert "one of a batch of 3 that run as one, in one slot" in said
    said, data = engine.rows("select * from pgfifo.explain(%s)", ids[3])[0]
    assert f"The only slot of its lane is taken: execution {ids[0]} and 2 more of its batch, running" in said
    assert "; and" not in said
    assert (data["slots"]["taken"], data["slots"]["active"]) == (1, 3)
    assert [(h["id"], h["batch"]) for h in data["slots"]["holders"]] == [(ids[0], 3)]


def test_batches_leave_the_others_of_a_worker_free(conn: Connection) -> None:
    engine, worker, _ = begin(conn, 30)
    batch(engine, worker, 30)
    waits = engine.enqueue(group="other")
    said = engine.one("select data -> 'reasons' from pgfifo.explain(%s)", waits)
    assert said == ["next"], "a batch counts as more than one of what its worker runs"


def test_batches_planted_violations_are_found(conn: Connection) -> None:
    engine, worker, _ = begin(conn, 6, max_concurrent=2)
    starts = batch(engine, worker, 3)
    engine.assert_promises()
    with conn.transaction(force_rollback=True):
        conn.execute("update pgfifo.runs set start_limit = 1")
        assert [row[1] for row in engine.check()] == ["slots"]
        assert engine.rows("select id from pgfifo.slot_violations") == [(starts[3].id,)]
    with conn.transaction(force_rollback=True):
        conn.execute("update pgfifo.ledger set riding = riding - 1")
        assert [row[1] for row in engine.check()] == ["ledger"]
        assert "repaired" in [row[0] for row in engine.rows("select * from pgfifo.check(true)")]
        assert engine.check() == []


# -- all of it at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hold", "yield", "tail"])
def test_batches_beside_everything_else(conn: Connection, connect: Connect, mode: str) -> None:
    """Workers who fail, release and sign off, while limits change and members are cancelled."""
    engine = Engine(conn)
    values = {"backoff_initial": 0.001, "max_attempts": 2, "failure_mode": mode, "max_concurrent": 2}
    engine.policy(**(BACKOFF | values))
    engine.one("select pgfifo.set_shared_limit('api', '{\"max_concurrent\": 3, \"everything\": true}')")
    groups = ["a", "b", "c"]
    ids = [id_ for group in groups for id_ in engine.fill(60, group=group)]
    stopped = threading.Event()

    def consume(hand: Hand, seed: int) -> None:
        choose = random.Random(seed)
        mine: list[Start] = []
        idle = 0
        while idle < 20:
            items = list(hand.to_hand_in)
            for start in mine:
                outcome = choose.choices(["succeeded", "failed", "released"], [20, 2, 1])[0]
                items.append(item(start, outcome))
            if choose.random() < 0.05:
                hand.engine.one("select pgfifo.worker_stop(%s)", hand.id)
                hand.id = hand.engine.worker()
                hand.to_hand_in, mine = [], []
                continue
            size = choose.choice([None, 1, 4, 16])
            answer: Answer = hand.engine.work(hand.id, choose.randrange(1, 4), finished=items, batches=[size])
            assert "lost" not in [answer.refused[s.id] for s in mine if s.id in answer.refused]
            again = {id_ for id_, status in answer.refused.items() if status == "retry"}
            hand.to_hand_in = [each for each in items if each["id"] in again]
            mine = answer.starts
            idle = 0 if mine or hand.to_hand_in else idle + 1
            if idle:
                threading.Event().wait(0.002)

    def meddle(own: Engine) -> None:
        choose = random.Random(5)
        while not stopped.is_set():
            own.cancel(choose.choice(ids))
            own.policy(max_concurrent=choose.randrange(1, 4))
            threading.Event().wait(0.01)
        own.policy(max_concurrent=2)

    hands = [in_background(partial(consume, Hand(connect()), n)) for n in range(4)]
    meddler = in_background(partial(meddle, Engine(connect())))
    for hand in hands:
        hand.result(60)
    stopped.set()
    meddler.result()
    engine.tick(3)
    drain(engine, engine.worker(), 8)
    assert not {"waiting", "running", "held", "delayed"} & set(engine.states(ids))
    assert engine.one("select sum(active_count + slots_taken) from pgfifo.lane_stats") == 0
    engine.assert_promises()
