"""Slots: no start takes a lane above the limit in force at that start, whatever is changed meanwhile."""

import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.types.json import Jsonb

from pgfifo import errors
from pgfifo.verify.history import Stay
from pgfifo.verify.slots import slot_faults
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine, Hand, Start, item, race
from tests.support.model import Gate, Journal, Line

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

ABOVE_READ_COMMITTED = [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]


def test_slots_judge_finds_planted_violations_and_no_others() -> None:
    def stay(id_: int, start_no: int, end_no: int | None, limit: int = 2) -> Stay:
        return Stay(1, id_, 1, id_, 0, start_no, limit, end_no)

    assert slot_faults([stay(1, 1, 1), stay(2, 2, 4), stay(3, 3, 3), stay(4, 4, None)]) == []
    assert len(slot_faults([stay(1, 1, 3), stay(2, 2, None), stay(3, 3, 3)])) == 1
    assert len(slot_faults([stay(1, 1, None), stay(2, 2, None, limit=1)])) == 1
    assert len(slot_faults([stay(1, 1, 1), stay(2, 1, 1)])) == 1, "one start number was given twice"


# -- many at once ------------------------------------------------------------------------------------


def test_slots_of_a_thousand_executions_with_ten_claiming_connections(
    conn: Connection, connect: Connect
) -> None:
    """Never more than five are active, and the statistics are those of a model that saw each call."""
    engine = Engine(conn)
    engine.policy(max_concurrent=5)
    line = Line(limit=5)
    gate = Gate()
    lock = threading.Lock()
    journal = Journal()
    started: dict[int, int] = {}
    produced = threading.Event()

    def produce(own: Engine, count: int) -> None:
        for n in range(count):
            # One at a time, so that the model can follow; overlapping ones are test_order's business.
            with gate.act(), lock:
                line.enqueue(*(own.fill(4) if n % 10 == 0 else [own.enqueue()]))

    def consume(hand: Hand, seed: int) -> None:
        choose = random.Random(seed)
        mine: list[Start] = []
        while True:
            last = produced.is_set()
            with gate.act():
                ended = mine if last else mine[: choose.randrange(len(mine) + 1)]
                journal.end("deploy", *(start.id for start in ended))
                handed_in = [start.id for start in ended] + [int(str(x["id"])) for x in hand.to_hand_in]
                answer = hand.turn(choose.randrange(1, 4), ended)
                journal.begin("deploy", *answer.ids)
                with lock:
                    for id_ in set(handed_in) - set(answer.refused):
                        line.succeed(id_)
                    for start in answer.starts:
                        line.waiting.remove(start.id)
                        line.running.add(start.id)
                        started[start.start_no] = start.id
            mine = [start for start in mine if start not in ended] + answer.starts
            if last and not mine and hand.is_idle(answer):
                return

    def observe(own: Engine) -> int:
        """Read without any gate: these hold at every instant."""
        looks = 0
        while not produced.is_set():
            stats = own.stats()
            assert stats["active_count"] <= 5, "more than five were active"
            assert stats["total_enqueued"] == (
                stats["total_completed"] + stats["queue_length"] + stats["active_count"]
            ), f"an execution was counted twice or not at all: {stats}"
            looks += 1
        return looks

    producers = [in_background(partial(produce, Engine(connect()), 100)) for _ in range(7)]
    producers.append(in_background(partial(produce, Engine(connect()), 69)))
    consumers = [in_background(partial(consume, Hand(connect()), n)) for n in range(10)]
    observer = in_background(partial(observe, Engine(connect())))
    compared = 0
    while not all(producer.done for producer in producers):
        with gate.look():
            stats = engine.stats()
            assert {name: stats[name] for name in line.numbers()} == line.numbers()
            compared += 1
        threading.Event().wait(0.005)  # let the others act
    for producer in producers:
        producer.result()
    produced.set()
    for consumer in consumers:
        consumer.result(60)
    assert observer.result() > 0
    assert compared > 5
    ids = [id_ for _, id_ in sorted(started.items())]
    assert len(ids) == 1000
    assert ids == sorted(ids), "executions were not started in the order of the line"
    assert journal.most["deploy"] <= 5, "more than five handlers ran at once"
    assert sorted(journal.ended["deploy"]) == ids
    stats = engine.stats()
    assert {name: stats[name] for name in line.numbers()} == line.numbers()
    assert line.succeeded == 1000
    engine.assert_promises()


def test_slots_are_not_given_twice_to_claims_of_the_same_instant(conn: Connection, connect: Connect) -> None:
    """Thousands of claims, four at once on one free slot: each time exactly one of them gets it."""
    engine = Engine(conn)
    ids = engine.fill(800)
    sessions = [connect() for _ in range(4)]
    workers = [engine.worker() for _ in sessions]
    claim = "select id, attempt from pgfifo.work($1, '{deploy}', 2) where kind = 'start'"
    order = []
    for turn in range(800):
        answers = race(*((own, claim, [worker]) for own, worker in zip(sessions, workers, strict=True)))
        got = [(worker, row[0]) for worker, rows in zip(workers, answers, strict=True) for row in rows if row]
        if not got:  # each met the lane locked by another one
            assert engine.stats()["active_count"] == 0
            got = [(workers[0], str(start.id)) for start in engine.claim(workers[0], 2)]
        assert len(got) == 1, f"turn {turn}: {len(got)} executions took the only slot"
        ((worker, id_),) = got
        order.append(int(str(id_)))
        engine.work(worker, 0, finished=[{"id": order[-1], "attempt": 1, "outcome": "succeeded"}])
    assert order == ids
    engine.assert_promises()


# -- isolation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ABOVE_READ_COMMITTED)
@pytest.mark.parametrize(
    "call",
    [
        "pgfifo.work({worker}, '{{deploy}}', 1)",
        "pgfifo.work({worker}, null, 0, null, jsonb_build_array(jsonb_build_object('id', {running})))",
        "pgfifo.claim({worker}, '{{deploy}}')",
        "pgfifo.finish({running}, 1, 'succeeded')",
        "pgfifo.release({running}, 1)",
        "pgfifo.cancel({waiting})",
        "pgfifo.cancel({running})",
        "pgfifo.heartbeat({worker}, 100, '{{}}')",
        "pgfifo.worker_stop({worker})",
        "pgfifo.pause('deploy')",
        "pgfifo.pause('deploy', '')",
        "pgfifo.resume('deploy')",
        "pgfifo.set_policy('deploy', '{{\"max_concurrent\": 9}}')",
        "pgfifo.set_policy('deploy', '{{\"max_concurrent\": 9}}', '')",
        "pgfifo.set_default_policy('{{\"max_concurrent\": 9}}')",
        "pgfifo.set_pack_policy('p', '{{\"max_concurrent\": 9}}')",
        "pgfifo.maintain()",
        "pgfifo.check(true)",
    ],
)
def test_slots_calls_that_decide_are_refused_on_snapshots_of_their_own(
    conn: Connection, connect: Connect, call: str, level: IsolationLevel
) -> None:
    engine = Engine(conn)
    running, waiting, *_ = engine.fill(3)
    worker = engine.worker()
    engine.work(worker, 1, call=1)
    before = snapshot(conn)
    other = connect(autocommit=False)
    other.isolation_level = level
    with pytest.raises(errors.IsolationLevel, match="READ COMMITTED"):
        other.execute(f"select {call}".format(worker=worker, running=running, waiting=waiting))
    other.rollback()
    other.execute("select 1")
    with pytest.raises(errors.IsolationLevel):
        other.execute(f"select {call}".format(worker=worker, running=running, waiting=waiting))
    other.commit()
    assert snapshot(conn) == before, "a refused call changed something"


def snapshot(conn: Connection) -> list[Any]:
    """Return everything that a call could have changed."""
    tables = [
        "runs",
        "ledger",
        "marks",
        "timers",
        "arrivals",
        "policies",
        "_workers",
        "history",
        "_executions",
    ]
    return [conn.execute(f"select t::text from pgfifo.{table} t order by 1").fetchall() for table in tables]


def test_slots_a_role_that_defaults_to_serializable_works_all_the_same(fresh_dsn: str) -> None:
    import pgfifo

    with psycopg.connect(fresh_dsn, autocommit=True) as owner:
        owner.execute("create role careful login superuser")
        try:
            owner.execute("alter role careful set default_transaction_isolation = 'serializable'")
            with psycopg.connect(fresh_dsn, user="careful", autocommit=True) as plain:
                level = plain.execute("show transaction_isolation").fetchone()
                assert level == ("serializable",)
                engine = Engine(plain)
                new = engine.enqueue()
                worker = engine.worker()
                with pytest.raises(errors.IsolationLevel) as caught:
                    engine.claim(worker)
                assert "default_transaction_isolation" in (caught.value.hint or "")
                plain.execute("set default_transaction_isolation = 'read committed'")
                assert engine.drain(worker) == [new]
            dsn = psycopg.conninfo.make_conninfo(fresh_dsn, user="careful")
            with pgfifo.Client(dsn) as fifo:
                job = fifo.enqueue("deploy", {})
                fifo.set_policy("deploy", max_concurrent=2)
                assert fifo.cancel(job.id) == "cancelled"
        finally:
            owner.execute("drop role careful")


# -- limits that change ------------------------------------------------------------------------------


def test_slots_a_raised_limit_fills_at_once(conn: Connection) -> None:
    engine = Engine(conn)
    ids = engine.fill(6)
    worker = engine.worker()
    assert [start.id for start in engine.claim(worker, 10)] == ids[:1]
    assert engine.claim(worker, 10) == []
    engine.policy(max_concurrent=4)
    assert [start.id for start in engine.claim(worker, 10)] == ids[1:4], "a raised limit was not used"
    assert engine.stats()["max_concurrent"] == 4
    engine.policy(group="", max_concurrent=5)
    assert [start.id for start in engine.claim(worker, 10)] == ids[4:5], "a lane's own limit was not used"
    assert engine.stats()["max_concurrent"] == 4
    assert engine.lane()["max_concurrent"] == 5
    engine.assert_promises()


@pytest.mark.parametrize("scope", ["pack", "everything"])
def test_slots_a_limit_raised_for_many_actions_fills_all_their_lanes(conn: Connection, scope: str) -> None:
    engine = Engine(conn)
    actions = ["web.get", "web.post"]
    for action in actions:
        engine.enqueue_many(action, [{}] * 6, ["a", "b"] * 3)
    worker = engine.worker(*actions)
    assert len(engine.work(worker, 100, actions).starts) == 4
    if scope == "pack":
        engine.one("select count(*) from pgfifo.set_pack_policy('web', %s)", Jsonb({"max_concurrent": 3}))
    else:
        engine.one("select count(*) from pgfifo.set_default_policy(%s)", Jsonb({"max_concurrent": 3}))
    assert len(engine.work(worker, 100, actions).starts) == 8, "lanes of the scope stayed under the old limit"
    engine.assert_promises()


def test_slots_a_lowered_limit_drains(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=4)
    ids = engine.fill(8)
    worker = engine.worker()
    starts = engine.claim(worker, 10)
    engine.policy(max_concurrent=2)
    for active, start in zip((3, 2), starts, strict=False):
        assert engine.work(worker, 10, finished=[item(start)]).starts == [], "started above the new limit"
        assert engine.stats()["active_count"] == active
    answer = engine.work(worker, 10, finished=[item(starts[2])])
    assert answer.ids == [ids[4]], "a slot under the new limit was not used"
    engine.assert_promises()


def test_slots_held_ones_give_way_when_the_limit_falls_below_what_is_held(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3, backoff="constant", backoff_initial=10, backoff_jitter=0)
    ids = engine.fill(5)
    worker = engine.worker()
    for start in engine.claim(worker, 3):
        assert engine.finish(start, "failed") == "held"
    engine.policy(max_concurrent=1)
    assert engine.claim(worker, 5) == []
    engine.advance("11 s")
    order = []
    for _ in ids:
        (start,) = engine.claim(worker, 5)
        assert engine.lane()["active_count"] == 1, "more were active than the new limit"
        order.append(start.id)
        engine.hand_in(worker, start)
    assert order == ids
    engine.assert_promises()


def test_slots_a_held_one_does_not_start_before_an_older_one_that_has_no_slot(conn: Connection) -> None:
    """Lowered from 2 to 1 while the second is held, and then the first comes back to the line."""
    engine = Engine(conn)
    engine.policy(max_concurrent=2, backoff="constant", backoff_initial=10, backoff_jitter=0)
    ids = engine.fill(3)
    worker = engine.worker()
    first, second = engine.claim(worker, 2)
    engine.finish(second, "failed")
    engine.policy(max_concurrent=1)
    engine.release(first)
    assert engine.claim(worker, 5) == [], "the held one's slot is the only one"
    engine.advance("11 s")
    assert engine.drain(worker) == ids, "a retry jumped over an older execution"
    engine.assert_promises()


@pytest.mark.parametrize("group", [None, ""])
def test_slots_a_change_of_the_limit_waits_for_a_claim_in_flight(
    conn: Connection, connect: Connect, group: str | None
) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3)
    engine.fill(6)
    worker = engine.worker()
    claiming, operator = Engine(connect(autocommit=False)), Engine(connect())
    assert len(claiming.claim(worker, 2)) == 2
    change = in_background(lambda: operator.policy(group=group, max_concurrent=1))
    wait_until_blocked(conn, operator.pid)
    assert engine.claim(worker, 5) == [], "a claim overtook the change that waits"
    claiming.conn.commit()
    change.result()
    assert engine.stats()["active_count"] == 2
    assert engine.claim(worker, 5) == [], "started above the limit that has been in force since before"
    engine.assert_promises()


@pytest.mark.parametrize("group", [None, ""])
def test_slots_a_claim_passes_by_while_a_change_of_the_limit_is_open(
    conn: Connection, connect: Connect, group: str | None
) -> None:
    engine = Engine(conn)
    engine.fill(4)
    worker = engine.worker()
    operator = Engine(connect(autocommit=False))
    operator.policy(group=group, max_concurrent=3)
    answer = engine.work(worker, 5)
    assert (answer.starts, answer.more) == ([], "soon"), "a limit that is being changed was used"
    operator.conn.commit()
    assert len(engine.claim(worker, 5)) == 3
    engine.assert_promises()


@pytest.mark.parametrize("group", [None, ""])
def test_slots_nothing_starts_after_a_pause_has_committed(
    conn: Connection, connect: Connect, group: str | None
) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3)
    ids = engine.fill(6)
    worker = engine.worker()
    claiming, operator = Engine(connect(autocommit=False)), Engine(connect())
    assert len(claiming.claim(worker, 1)) == 1
    pause = in_background(lambda: operator.pause(group=group))
    wait_until_blocked(conn, operator.pid)
    claiming.conn.commit()
    assert pause.result() is True
    assert engine.claim(worker, 5) == [], "something was started in what is paused"
    assert operator.pause(group=group) is False
    assert engine.lane()["paused"] is True
    assert engine.lane()["queue_length"] == 5
    assert operator.resume(group=group) is True
    assert operator.resume(group=group) is False
    assert [start.id for start in engine.claim(worker, 5)] == ids[1:3]
    engine.assert_promises()


def test_slots_of_other_lanes_go_on_when_one_lane_is_paused(conn: Connection) -> None:
    engine = Engine(conn)
    engine.fill(2, group="a")
    (other, _) = engine.fill(2, group="b")
    engine.pause(group="a")
    worker = engine.worker()
    assert [start.id for start in engine.claim(worker, 5)] == [other]
    assert engine.stats()["paused"] is False
    assert engine.lane(group="a")["paused"] is True


def test_slots_while_limits_change_under_load(conn: Connection, connect: Connect) -> None:
    """Each start stands between two changes; it must have been admitted under the limit of the first."""
    engine = Engine(conn)
    engine.policy(max_concurrent=3)
    ids = engine.fill(900)
    stop = threading.Event()
    journal = Journal()

    def consume(hand: Hand) -> None:
        choose = random.Random(hand.id)
        mine: list[Start] = []
        while not stop.is_set() or mine or hand.to_hand_in:
            ended = [start for start in mine if choose.random() < 0.6]
            journal.end("deploy", *(start.id for start in ended))
            answer = hand.turn(choose.randrange(1, 5), ended, choose.choice(["succeeded"] * 9 + ["released"]))
            journal.begin("deploy", *answer.ids)
            mine = [start for start in mine if start not in ended] + answer.starts
            if hand.engine.stats()["queue_length"] == 0:
                stop.set()

    consumers = [in_background(partial(consume, Hand(connect()))) for _ in range(5)]
    choose = random.Random(7)
    changes = [(0, 3)]
    operator = connect(autocommit=False)
    while not stop.is_set():
        limit = choose.choice([1, 2, 3, 5, 8])
        operator.execute("select pgfifo.set_policy('deploy', %s)", [Jsonb({"max_concurrent": limit})])
        # No claim is in flight now: what has been started, was started before this change.
        row = operator.execute("select starts from pgfifo.ledger").fetchone()
        assert row is not None
        changes.append((row[0], limit))
        operator.commit()
        stop.wait(0.01)
    for consumer in consumers:
        consumer.result(60)
    engine.drain(engine.worker())
    changes.append((10**9, 0))
    in_force = iter(changes)
    (_, limit), (until, coming) = next(in_force), next(in_force)
    for stay in sorted(engine.stays(), key=lambda stay: stay.start_no or 0):
        assert stay.start_no is not None
        while stay.start_no > until:
            limit, (until, coming) = coming, next(in_force)
        assert stay.limit == limit, (
            f"start {stay.start_no} was admitted under {stay.limit}, in force was {limit}"
        )
    assert journal.most["deploy"] <= 8
    assert engine.stats()["total_succeeded"] == len(ids)
    assert len(changes) > 5
    engine.assert_promises()


# -- claims that do not come to their end --------------------------------------------------------------


def test_slots_of_a_claim_that_rolls_back_are_free_again(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    ids = engine.fill(4)
    worker = engine.worker()
    claiming = Engine(connect(autocommit=False))
    assert [start.id for start in claiming.claim(worker, 5)] == ids[:2]
    assert engine.work(worker, 5).more == "soon"
    claiming.conn.rollback()
    assert [start.id for start in engine.claim(worker, 5)] == ids[:2]
    engine.assert_promises()


def test_slots_of_a_claim_in_a_savepoint_that_rolls_back_are_free_again(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    ids = engine.fill(2)
    worker = engine.worker()
    claiming = Engine(connect(autocommit=False))
    with claiming.conn.transaction(force_rollback=True):
        assert [start.id for start in claiming.claim(worker)] == ids[:1]
    assert [start.id for start in engine.claim(worker)] == ids[:1]
    claiming.conn.rollback()
    engine.assert_promises()


# -- planted violations ------------------------------------------------------------------------------


def test_slots_planted_violations_are_found_by_view_and_check(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    engine.fill(4)
    engine.drain(engine.worker(), limit=1)
    assert engine.check() == []
    # As if the first two had still been active when the third was started.
    conn.execute("update pgfifo.history set end_no = 3 where start_no <= 2")
    found = engine.rows("select start_no, active, max_concurrent from pgfifo.slot_violations")
    assert found == [(3, 3, 2)]
    assert [(severity, kind) for severity, kind, _, _ in engine.check()] == [("violation", "slots")]
    assert len(slot_faults(engine.stays())) == 1


def test_slots_a_wrong_ledger_is_found_and_counted_again(conn: Connection) -> None:
    engine = Engine(conn)
    ids = engine.fill(3)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    conn.execute("update pgfifo.ledger set running = 0, waiting = 7, held = 1")
    assert ("violation", "ledger") in [(severity, kind) for severity, kind, _, _ in engine.check()]
    repaired = engine.rows("select kind from pgfifo.check(p_repair => true) where severity = 'repaired'")
    assert repaired == [("ledger",)]
    assert engine.check() == []
    assert engine.hand_in(worker, start) == {}
    assert [start.id, *engine.drain(worker)] == ids
    engine.assert_promises()


@pytest.mark.parametrize(
    "half", ["ticket = null", "owner = 1", "owner_no = 1", "dedup_key = 'k'", "dedup_action_id = 1"]
)
def test_slots_content_that_is_half_of_something_is_found(conn: Connection, half: LiteralString) -> None:
    engine = Engine(conn)
    engine.fill(1)
    conn.execute("update pgfifo._executions set " + half)
    assert "content" in [kind for _, kind, _, _ in engine.check()]


def test_slots_an_orphaned_run_is_found(conn: Connection) -> None:
    engine = Engine(conn)
    engine.fill(1)
    engine.claim(engine.worker())
    conn.execute("update pgfifo.runs set worker_id = 777")
    assert "orphan" in [kind for _, kind, _, _ in engine.check()]
    conn.execute("delete from pgfifo._executions")
    assert len([kind for _, kind, _, _ in engine.check() if kind == "orphan"]) == 2
