"""Order: in a lane, executions start in the order in which their enqueues were committed."""

import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from pgfifo import errors
from pgfifo.verify.history import Stay
from pgfifo.verify.order import order_faults
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine, Hand, Start, item
from tests.support.model import Journal, Line

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

SNAPSHOTS = [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]


# -- what the judge itself is worth ----------------------------------------------------------------


def test_order_judge_finds_planted_violations_and_no_others() -> None:
    def stay(ticket: int, start_no: int | None, joined_no: int = 0) -> Stay:
        return Stay(1, ticket, 1, ticket, joined_no, start_no, 1, start_no)

    assert order_faults([stay(1, 1), stay(2, 2), stay(3, None)]) == []
    assert len(order_faults([stay(1, 2), stay(2, 1)])) == 1
    assert len(order_faults([stay(1, None), stay(2, 1)])) == 1, "one that still waits has been overtaken too"
    # Ticket 1 was started, came back after start 2 and was started again as number 4: only 3 overtook it.
    assert len(order_faults([stay(1, 1), stay(2, 2), stay(3, 3), stay(1, 4, joined_no=2)])) == 1
    assert order_faults([stay(1, 1), stay(2, 2), stay(3, 3), stay(1, 4, joined_no=3)]) == []


# -- the origin's scenarios ------------------------------------------------------------------------


def test_order_of_ten_executions_with_one_slot(conn: Connection) -> None:
    engine = Engine(conn)
    journal = Journal()
    ids = [engine.enqueue(payload={"n": n}) for n in range(10)]
    worker = engine.worker()
    for n, expected in enumerate(ids):
        (start,) = engine.claim(worker, 5)
        journal.begin("deploy", start.id)
        assert start.id == expected, f"execution {expected} lost its turn to {start.id}"
        assert start.payload == {"n": n}
        stats = engine.stats()
        assert (stats["active_count"], stats["queue_length"]) == (1, 9 - n)
        assert engine.claim(worker, 5) == [], "with one slot, a second execution was started beside the first"
        journal.end("deploy", start.id)
        assert engine.hand_in(worker, start) == {}
    assert journal.begun == journal.ended == {"deploy": ids}
    assert engine.started() == ids
    engine.assert_promises()


def test_order_does_not_depend_on_the_speed_of_workers(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3)
    ids = engine.fill(30)
    slow, medium, fast = (Engine(connect()) for _ in range(3))
    workers = {engine: engine.worker() for engine in (slow, medium, fast)}
    # How many turns of the others pass before one is done: speed without a clock.
    pace = {slow: 7, medium: 3, fast: 1}
    running: dict[Engine, tuple[dict[str, object], int]] = {}
    share = dict.fromkeys(workers, 0)
    line = Line(limit=3)
    line.enqueue(*ids)
    done = 0
    for turn in range(1000):
        for each, worker in workers.items():
            finished, due = running.get(each, ({}, 0))
            if finished and turn < due:
                continue
            if finished:
                line.succeed(int(str(finished["id"])))
                done += 1
            answer = each.work(worker, 1, finished=[finished] if finished else None)
            running.pop(each, None)
            for start in answer.starts:
                line.start(start.id)
                running[each] = (item(start), turn + pace[each])
                share[each] += 1
        if done == 30:
            break
    assert done == 30, "the line came to a stop"
    assert all(share.values()), f"a worker got nothing to do: {list(share.values())}"
    assert share[fast] > share[slow], "the fast worker waited for the slow one"
    assert engine.started() == ids
    engine.assert_promises()


def test_order_and_slots_of_ten_thousand_executions(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=10)
    ids = [new for _ in range(10) for new in engine.fill(1000)]
    journal = Journal()
    claimed: list[tuple[int, int]] = []

    def consume(hand: Hand) -> None:
        ended: list[Start] = []
        while ended or hand.to_hand_in or len(claimed) < len(ids):
            answer = hand.turn(5, ended)
            journal.begin("deploy", *answer.ids)
            claimed.extend((start.start_no, start.id) for start in answer.starts)
            journal.end("deploy", *answer.ids)
            ended = answer.starts

    threads = [in_background(partial(consume, Hand(connect()))) for _ in range(3)]
    for thread in threads:
        thread.result(300)
    assert journal.most["deploy"] <= 10, "more handlers ran at once than there are slots"
    assert sorted(journal.ended["deploy"]) == ids, "executions were lost or run twice"
    assert [id_ for _, id_ in sorted(claimed)] == ids, "starts were not in the order of the line"
    assert engine.started() == ids
    stats = engine.stats()
    assert (stats["total_enqueued"], stats["total_succeeded"]) == (10_000, 10_000)
    engine.assert_promises()


# -- producers -------------------------------------------------------------------------------------


def test_order_of_overlapping_transactions_is_the_order_of_their_commits(
    conn: Connection, connect: Connect
) -> None:
    engine, first, second = Engine(conn), Engine(connect(autocommit=False)), Engine(connect(autocommit=False))
    engine.fill(1)
    engine.drain(worker := engine.worker())
    early = first.enqueue(payload={"by": "first"})
    later = in_background(lambda: second.enqueue(payload={"by": "second"}))
    wait_until_blocked(conn, second.pid)
    assert engine.claim(worker) == [], "what is not committed was started"
    first.conn.commit()
    late = later.result()
    assert [start.id for start in engine.claim(worker)] == [early], (
        "the first to commit was not the first to start"
    )
    second.conn.commit()
    engine.hand_in(worker, *engine.work(worker, 0).starts)
    assert late > early
    assert engine.states([early, late]) == ["running", "waiting"]
    engine.assert_promises()


def test_order_survives_the_rollback_of_the_first_of_two_producers(
    conn: Connection, connect: Connect
) -> None:
    engine, first, second = Engine(conn), Engine(connect(autocommit=False)), Engine(connect())
    gone = first.enqueue()
    waiting = in_background(second.enqueue)
    wait_until_blocked(conn, second.pid)
    first.conn.rollback()
    kept = waiting.result()
    worker = engine.worker()
    assert engine.drain(worker) == [kept], "a rolled-back enqueue held up the next one"
    assert engine.rows("select 1 from pgfifo.executions where id = %s", gone) == [], "a rollback left a trace"
    assert engine.stats()["total_enqueued"] == 1
    engine.assert_promises()


def test_order_of_a_batch_and_a_single_enqueue_that_overlap(conn: Connection, connect: Connect) -> None:
    engine, batch, single = Engine(conn), Engine(connect(autocommit=False)), Engine(connect())
    # The lanes are there: nobody waits for somebody who makes one.
    first = engine.enqueue_many("deploy", [{}] * 2, ["a", "b"])
    many = batch.enqueue_many("deploy", [{}] * 4, ["a", "b", "a", "b"])
    waiting = in_background(lambda: single.enqueue(group="b"))
    wait_until_blocked(conn, single.pid)
    batch.conn.commit()
    one = waiting.result()
    engine.drain(engine.worker())
    assert engine.started(group="a") == [first[0], many[0], many[2]]
    assert engine.started(group="b") == [first[1], many[1], many[3], one], "an enqueue cut into a batch"
    engine.assert_promises()


def test_order_within_one_transaction_is_the_order_of_its_calls(conn: Connection) -> None:
    engine = Engine(conn)
    with conn.transaction():
        ids = [engine.enqueue()]
        ids += engine.fill(3)
        with conn.transaction(force_rollback=True):
            engine.enqueue()
        ids.append(engine.enqueue())
    assert engine.drain(engine.worker()) == ids
    engine.assert_promises()


@pytest.mark.parametrize("level", SNAPSHOTS)
def test_order_holds_for_enqueues_with_a_snapshot_of_their_own(
    conn: Connection, connect: Connect, level: IsolationLevel
) -> None:
    """Nothing of the other's commit is seen, and the ids are in the order of the commits all the same."""
    engine = Engine(conn)
    engine.fill(1)
    engine.drain(worker := engine.worker())
    old = connect(autocommit=False)
    old.isolation_level = level
    first, second = Engine(connect(autocommit=False)), Engine(old)
    assert second.one("select 1") == 1  # its snapshot is older than everything that follows
    early = first.enqueue()
    waiting = in_background(second.enqueue)
    wait_until_blocked(conn, second.pid)
    first.conn.commit()
    late = waiting.result()
    third = Engine(connect())
    behind = in_background(third.enqueue)
    wait_until_blocked(conn, third.pid)
    old.commit()
    assert engine.drain(worker) + engine.drain(worker) == [early, late, behind.result()]
    engine.assert_promises()


@pytest.mark.parametrize("level", SNAPSHOTS)
def test_order_at_old_snapshots_a_removed_lane_is_an_error_and_nothing_is_lost(
    conn: Connection, connect: Connect, level: IsolationLevel
) -> None:
    engine = Engine(conn)
    engine.policy()
    engine.fill(1, group="prod")
    engine.drain(worker := engine.worker())
    old = connect(autocommit=False)
    old.isolation_level = level
    producer = Engine(old)
    assert producer.lane(group="prod")["queue_length"] == 0
    engine.policy(lane_retention=0)
    engine.tick(3)
    assert engine.stats()["lanes"] == 0
    with pytest.raises(psycopg.errors.SerializationFailure):
        producer.enqueue(group="prod")
    old.rollback()
    again = producer.enqueue(group="prod")
    old.commit()
    assert engine.drain(worker) == [again], "an enqueue vanished with the lane it was meant for"
    assert engine.stats()["total_enqueued"] == 2
    engine.assert_promises()


@pytest.mark.parametrize("level", SNAPSHOTS)
@pytest.mark.parametrize("many", [False, True])
def test_order_at_old_snapshots_a_new_lane_is_an_error_and_nothing_is_lost(
    conn: Connection, connect: Connect, level: IsolationLevel, many: bool
) -> None:
    engine = Engine(conn)
    engine.fill(1, group="other")
    old = connect(autocommit=False)
    old.isolation_level = level
    producer = Engine(old)
    assert producer.one("select 1") == 1
    first = engine.enqueue(group="prod")

    def enqueue() -> int:
        return producer.fill(1, group="prod")[0] if many else producer.enqueue(group="prod")

    with pytest.raises(psycopg.errors.SerializationFailure):
        enqueue()
    old.rollback()
    second = enqueue()
    old.commit()
    engine.drain(engine.worker())
    assert engine.started(group="prod") == [first, second]
    engine.assert_promises()


def test_order_of_many_producers_that_commit_and_roll_back(conn: Connection, connect: Connect) -> None:
    """Six producers, three lanes: each lane starts what was committed, in the order of the commits."""
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    lanes = ["a", "b", "c"]
    committed: dict[str, list[int]] = {lane: [] for lane in lanes}
    lock = threading.Lock()

    def produce(own: Connection, seed: int) -> None:
        choose = random.Random(seed)
        producer = Engine(own)
        for _ in range(60):
            lane = choose.choice(lanes)
            if choose.random() < 0.3:
                new = producer.fill(choose.randrange(1, 4), group=lane)
            else:
                new = [producer.enqueue(group=lane)]
            if choose.random() < 0.25:
                own.rollback()
                continue
            # The lane's enqueue lock is still ours: nobody else of this lane commits between these lines.
            with lock:
                committed[lane] += new
            own.commit()

    stop = threading.Event()
    journal = Journal()

    def consume(hand: Hand) -> None:
        ended: list[Start] = []
        while True:
            last = stop.is_set()
            answer = hand.turn(4, ended)
            for start in answer.starts:
                journal.begin(start.group, start.id)
            for start in answer.starts:
                journal.end(start.group, start.id)
            ended = answer.starts
            if last and hand.is_idle(answer):
                return

    producers = [in_background(partial(produce, connect(autocommit=False), n)) for n in range(6)]
    consumers = [in_background(partial(consume, Hand(connect()))) for _ in range(2)]
    for producer in producers:
        producer.result(60)
    stop.set()
    for consumer in consumers:
        consumer.result(60)
    engine.drain(engine.worker())
    for lane in lanes:
        assert engine.started(group=lane) == committed[lane], f"lane {lane} was not started in commit order"
        assert journal.most[lane] <= 2
    assert engine.stats()["total_enqueued"] == sum(map(len, committed.values()))
    engine.assert_promises()


# -- what comes back to its place ------------------------------------------------------------------


def test_order_what_is_released_starts_before_younger_ones(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    ids = engine.fill(5)
    worker = engine.worker()
    first, second = engine.claim(worker, 2)
    engine.release(first)
    assert engine.position(ids[0]) == 1
    engine.hand_in(worker, second)
    assert [start.id for start in engine.claim(worker, 2)] == [ids[0], ids[2]], (
        "a younger one jumped the line"
    )
    engine.assert_promises()


def test_order_what_a_stopped_worker_held_comes_back_to_its_place(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3)
    ids = engine.fill(6)
    leaving = engine.worker()
    taken = engine.claim(leaving, 3)
    assert engine.one("select pgfifo.worker_stop(%s)", leaving) == 3
    assert [start.id for start in taken] == ids[:3]
    assert engine.drain(engine.worker()) == ids, "what a worker gave back was overtaken"
    engine.assert_promises()


# -- relaxed ---------------------------------------------------------------------------------------


def test_order_relaxed_enqueues_overlap_without_waiting(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(ordering="relaxed")
    engine.fill(1)
    worker = engine.worker()
    assert len(engine.drain(worker)) == 1
    first, second = Engine(connect(autocommit=False)), Engine(connect(autocommit=False))
    early = first.enqueue()
    late = second.enqueue()  # would block here if the lane were strict
    second.conn.commit()
    first.conn.commit()
    assert engine.drain(worker) == [early, late], "of two that are there, the older starts first"
    engine.assert_promises(strict=False)


def test_order_relaxed_an_enqueue_committed_before_another_began_starts_first(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    engine.policy(ordering="relaxed", max_concurrent=1)
    engine.fill(1)
    worker = engine.worker()
    engine.drain(worker)
    open_one = Engine(connect(autocommit=False))
    undecided = open_one.enqueue()
    before = engine.enqueue()
    after = engine.enqueue()
    assert [engine.claim(worker)[0].id] == [before]
    open_one.conn.commit()
    assert engine.stats()["queue_length"] == 2
    held = [start for start in [engine.show(before)] if start["state"] == "running"]
    assert len(held) == 1
    assert engine.one("select pgfifo.finish(%s, 1, 'succeeded')", before) == "succeeded"
    assert engine.drain(worker) == [undecided, after], "the late committer was lost or came last"
    engine.assert_promises(strict=False)


def test_order_relaxed_a_late_committer_is_not_lost(conn: Connection, connect: Connect) -> None:
    """Younger ones were started, finished and forgotten before the older one's transaction committed."""
    engine = Engine(conn)
    engine.policy(ordering="relaxed", max_concurrent=2)
    engine.fill(1)
    worker = engine.worker()
    engine.drain(worker)
    late = [Engine(connect(autocommit=False)) for _ in range(3)]
    undecided = [producer.enqueue() for producer in late]
    younger = engine.fill(20)
    assert engine.drain(worker) == younger
    for producer in late:
        producer.conn.commit()
    assert engine.stats()["queue_length"] == 3
    # The scan that finds late marks runs once a second, or less often where it takes long.
    engine.advance("1 min")
    assert engine.drain(worker) == undecided, "an enqueue that committed late was lost"
    assert engine.stats()["queue_length"] == 0
    engine.assert_promises(strict=False)


def test_order_relaxed_late_committers_are_found_after_the_action_became_strict(
    conn: Connection, connect: Connect
) -> None:
    """The claim that meets the late arrival is already a strict one, whose line begins behind it."""
    engine = Engine(conn)
    engine.policy(ordering="relaxed", max_concurrent=1)
    engine.fill(1)
    worker = engine.worker()
    engine.drain(worker)
    late = Engine(connect(autocommit=False))
    undecided = late.enqueue()
    younger = engine.enqueue()
    (running,) = engine.claim(worker)
    assert running.id == younger
    late.conn.commit()
    engine.policy(ordering="strict")
    last = engine.enqueue()
    engine.advance("1 s")
    engine.hand_in(worker, running)
    assert engine.drain(worker) == [undecided, last], "switching to strict order lost an execution for ever"
    engine.assert_promises(strict=False)


def test_order_relaxed_thousands_of_arrivals_are_all_counted(conn: Connection) -> None:
    """More arrivals than one claim folds, while the point up to which they are folded moves on."""
    engine = Engine(conn)
    engine.policy(ordering="relaxed", max_concurrent=1)
    with conn.transaction(), conn.cursor() as cursor:
        cursor.execute("select count(pgfifo.enqueue('deploy')) from generate_series(1, 2600)")
    worker = engine.worker()
    order: list[int] = []
    finished: list[dict[str, object]] = []
    for turn in range(20):
        answer = engine.work(worker, 1, finished=finished)
        order += answer.ids
        finished = [item(start) for start in answer.starts]
        assert len(order) == turn + 1, "the line came to a stop: a wake-up was lost"
    assert engine.rows("select count(*) from pgfifo.arrivals") == [(0,)], "arrivals stayed uncounted for ever"
    assert engine.one("select waiting from pgfifo.ledger") == 2600 - 20
    engine.policy(max_concurrent=500)
    engine.work(worker, 0, finished=finished)
    assert len(order + engine.drain(worker, limit=500)) == 2600
    engine.assert_promises(strict=False)


def test_order_switching_between_strict_and_relaxed_waits_for_enqueues_in_flight(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    engine.fill(1)
    producer = Engine(connect(autocommit=False))
    producer.enqueue()
    with pytest.raises(errors.Busy) as caught:
        engine.policy(ordering="relaxed")
    assert str(producer.pid) in str(caught.value), "the message does not say who is in the way"
    assert engine.effective("deploy")["ordering"][0] == "strict", "a refused change was made"
    operator = Engine(connect())
    change = in_background(lambda: operator.policy(ordering="relaxed"))
    wait_until_blocked(conn, operator.pid)
    producer.conn.commit()
    change.result()
    assert engine.effective("deploy")["ordering"][0] == "relaxed"


def test_order_of_two_snapshots_from_before_the_action_became_strict(
    conn: Connection, connect: Connect
) -> None:
    """Both see a relaxed action, whose enqueues would not wait for each other."""
    engine = Engine(conn)
    engine.policy(ordering="relaxed")
    (there,) = engine.fill(1)
    first, second = (Engine(connect(autocommit=False)) for _ in range(2))
    for each in first, second:
        each.conn.isolation_level = IsolationLevel.REPEATABLE_READ
        each.one("select count(*) from pgfifo.executions")
    engine.policy(ordering="strict")
    older = first.enqueue()
    waiting = in_background(second.enqueue)
    wait_until_blocked(conn, second.pid)
    first.conn.commit()
    younger = waiting.result()
    second.conn.commit()
    assert engine.drain(engine.worker()) == [there, older, younger]
    engine.assert_promises()


def test_order_under_load_while_ordering_is_switched(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3)
    stop = threading.Event()
    enqueued: list[int] = []

    def produce(own: Connection, seed: int) -> None:
        choose = random.Random(seed)
        producer = Engine(own)
        for _ in range(120):
            new = [producer.enqueue()] if choose.random() < 0.7 else producer.fill(2)
            if choose.random() < 0.2:
                own.rollback()
            else:
                own.commit()
                enqueued.extend(new)

    started: list[int] = []

    def consume(hand: Hand) -> None:
        ended: list[Start] = []
        while True:
            last = stop.is_set()
            answer = hand.turn(2, ended)
            started.extend(answer.ids)
            ended = answer.starts
            if last and hand.is_idle(answer):
                return

    producers = [in_background(partial(produce, connect(autocommit=False), n)) for n in range(4)]
    consumers = [in_background(partial(consume, Hand(connect()))) for _ in range(2)]
    switches = 0
    while not all(producer.done for producer in producers):
        try:
            engine.policy(ordering=("relaxed", "strict")[switches % 2])
            switches += 1
        except errors.Busy:
            pass
    for producer in producers:
        producer.result()
    stop.set()
    for consumer in consumers:
        consumer.result(60)
    engine.advance("1 s")
    started += engine.drain(engine.worker())
    assert switches > 2
    assert sorted(started) == sorted(enqueued), "executions were lost or run twice"
    assert engine.stats()["queue_length"] == 0
    engine.assert_promises(strict=False)


# -- planted violations ----------------------------------------------------------------------------


def test_order_planted_violations_are_found_by_view_and_check(conn: Connection) -> None:
    engine = Engine(conn)
    first, second, third = engine.fill(3)
    engine.drain(engine.worker())
    assert engine.check() == []
    conn.execute(
        "update pgfifo.history h set start_no = o.start_no from pgfifo.history o"
        " where h.id in (%s, %s) and o.id in (%s, %s) and h.id <> o.id",
        [first, second, first, second],
    )
    found = engine.rows("select id, overtaken from pgfifo.order_violations")
    assert found == [(second, first)], f"{second} was made to overtake {first}, and the view says {found}"
    assert [(severity, kind) for severity, kind, _, _ in engine.check()] == [("violation", "order")]
    assert len(order_faults(engine.stays())) == 1
    assert engine.state(third) == "succeeded"


def test_order_planted_violation_against_one_that_still_waits_is_found(conn: Connection) -> None:
    engine = Engine(conn)
    first, second = engine.fill(2)
    engine.claim(engine.worker())
    # As if the claim had taken the second.
    conn.execute("update pgfifo.runs set id = %s, ticket = %s", [second, second])
    assert engine.rows("select id, overtaken from pgfifo.order_violations") == [(second, first)]
    assert ("violation", "order") in [(severity, kind) for severity, kind, _, _ in engine.check()]


def test_order_planted_violation_against_one_that_came_back_is_found(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    ids = engine.fill(3)
    worker = engine.worker()
    first, second = engine.claim(worker, 2)
    engine.release(first)
    engine.hand_in(worker, second)
    again, third = engine.claim(worker, 2)
    assert (again.id, third.id) == (ids[0], ids[2])
    assert engine.check() == []
    # As if the third had been started while the first was back in the line.
    conn.execute("update pgfifo.runs set start_no = 7 - start_no where id in (%s, %s)", [again.id, third.id])
    assert engine.rows("select id, overtaken from pgfifo.order_violations") == [(third.id, again.id)]


def test_advice_of_a_claim_says_nothing_of_an_execution(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue_later("1 h")
    engine.fill(1)
    worker = engine.worker()
    rows = engine.rows("select * from pgfifo.work(%s, '{deploy}', 5)", worker)
    assert [row[0] for row in rows] == ["start", "more"]
    assert all(value is None for value in rows[1][1:13]), rows[1]
