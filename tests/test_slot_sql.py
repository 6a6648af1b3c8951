"""Slots in programs' own hands, in SQL: in the line with all others, started in their owners' names."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.types.json import Jsonb

import pgfifo
from tests.support.database import in_background, told, wait_for, wait_until_blocked
from tests.support.engine import Engine

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

ROW = "select id, state, attempt, token, look_after, error, started from pgfifo."


class Slot(NamedTuple):
    """What the calls answer."""

    id: int
    state: str
    attempt: int
    token: str | None
    look_after: float | None
    error: str | None
    started: list[int] | None


class Holder:
    """A program that takes slots, with a connection of its own."""

    def __init__(self, conn: Connection, *, locked: bool = False, lease: str = "30 s") -> None:
        self.engine = Engine(conn)
        query = "select pgfifo.worker_start('test', 'here', 1, '{}', 1, %s, %s, 'slot')"
        self.id = int(self.engine.one(query, lease, locked))
        self.numbers: list[int] = []

    def enter(self, action: str = "deploy", group: str | None = None, no: int | None = None) -> Slot:
        self.numbers.append(len(self.numbers) + 1 if no is None else no)
        query = ROW + "slot_enter(%s, %s, %s, p_group => %s)"
        [row] = self.engine.rows(query, self.id, self.numbers[-1], action, group)
        return Slot(*row)

    def attempt(self, action: str = "deploy") -> Slot | None:
        """Take a slot if it can be had at once."""
        self.numbers.append(len(self.numbers) + 1)
        [row] = self.engine.rows(
            ROW + "slot_enter(%s, %s, %s, p_try => true)", self.id, self.numbers[-1], action
        )
        return None if row[0] is None else Slot(*row)

    def look(self, slot: Slot) -> Slot:
        [row] = self.engine.rows(ROW + "slot_look(%s, %s)", self.id, slot.id)
        return Slot(*row)

    def leave(self, slot: Slot, outcome: str = "succeeded", error: str | None = None) -> str:
        query = "select (pgfifo.slot_leave(%s, %s, %s, %s)).state"
        return str(self.engine.one(query, self.id, slot.id, outcome, error))

    def beat(self, *numbers: int, held: list[int] | None = None, upto: int | None = None) -> dict[int, str]:
        rows = self.engine.rows(
            "select id, signal from pgfifo.heartbeat(%s, %s, %s::bigint[], %s::bigint[])",
            self.id,
            max(self.numbers) if upto is None else upto,
            held or [],
            list(numbers),
        )
        return dict(rows)


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


@pytest.fixture
def holder(connect: Connect) -> Holder:
    return Holder(connect())


def marks(engine: Engine) -> int:
    return int(engine.one("select count(*) from pgfifo.marks"))


# In the line with all others


def test_a_free_slot_is_had_at_once_and_counts_like_any_execution(engine: Engine, holder: Holder) -> None:
    slot = holder.enter(group="prod")
    assert (slot.state, slot.attempt, slot.token) == ("running", 1, f"1-{slot.id}-1")
    assert slot.started == [slot.id]
    assert engine.stats()["active_count"] == 1
    assert engine.show(slot.id)["is_slot"] is True
    assert holder.look(slot).state == "running"
    assert holder.leave(slot) == "succeeded"
    assert holder.leave(slot) == "succeeded", "said again, it is the same"
    shown = engine.show(slot.id)
    assert (shown["state"], shown["attempt"], shown["is_slot"]) == ("succeeded", 1, True)
    assert engine.stats()["total_succeeded"] == 1
    engine.assert_promises()


def test_order_slots_and_executions_start_in_the_order_of_one_line(
    engine: Engine, holder: Holder, connect: Connect
) -> None:
    other = Holder(connect())
    first = engine.enqueue()
    worker = engine.worker()
    assert engine.work(worker, 10).ids == [first]
    one, second, two, third = holder.enter(), engine.enqueue(), other.enter(), engine.enqueue()
    assert [engine.position(id_) for id_ in (one.id, second, two.id, third)] == [1, 2, 3, 4]
    assert (one.state, two.state) == ("waiting", "waiting")
    # The worker's finish lets the slot go to the program that is next, and gives the worker nothing.
    done = [{"id": first, "attempt": 1, "outcome": "succeeded"}]
    assert engine.work(worker, 10, finished=done).ids == []
    assert (holder.look(one).state, other.look(two).state) == ("running", "waiting")
    assert holder.leave(one) == "succeeded"
    assert other.look(two).state == "waiting", "an older execution waits for a worker"
    assert engine.work(worker, 10).ids == [second]
    done = [{"id": second, "attempt": 1, "outcome": "failed", "retry": False}]
    assert engine.work(worker, 0, finished=done).refused == {}
    assert other.look(two).state == "running", "who waits moves the lane on where no worker claims"
    assert engine.work(worker, 10).ids == []
    assert other.leave(two) == "succeeded"
    assert engine.work(worker, 10).ids == [third]
    assert engine.started() == [first, one.id, second, two.id, third]
    engine.assert_promises()


def test_slots_do_not_count_against_the_limit_of_who_claims(
    engine: Engine, holder: Holder, connect: Connect
) -> None:
    engine.policy(max_concurrent=4)
    locker = connect(autocommit=False)
    engine.enqueue(group="x")
    lane = engine.one("select id from pgfifo.lanes where group_text = 'x'")
    locker.execute("select pg_advisory_xact_lock('pgfifo.lanes'::regclass::oid::int, %s::int)", [lane])
    worker = engine.worker()
    other = Holder(connect())
    other.engine.conn.execute("set lock_timeout = '50ms'")
    # Nobody moves the lane on now: its slot lock is held.
    ids = [engine.enqueue(group="x")]
    ids += [holder.enter(group="x").id, other.enter(group="x").id]
    ids.append(engine.enqueue(group="x"))
    assert set(engine.states(ids)) == {"waiting"}
    locker.rollback()
    engine.policy(max_concurrent=5)
    assert engine.work(worker, 3).ids == [ids[0] - 1, ids[0], ids[3]]
    assert set(engine.states(ids)) == {"running"}
    engine.assert_promises()


def test_slots_who_waits_does_not_pass_an_execution_that_needs_a_worker(
    engine: Engine, holder: Holder, connect: Connect
) -> None:
    other = Holder(connect())
    engine.policy(max_concurrent=3)
    one, between, two = holder.enter(), engine.enqueue(), other.enter()
    assert (one.state, two.state) == ("running", "waiting")
    before = marks(engine)
    assert before > 0, "the lane has something for a worker"
    for _ in range(3):
        assert other.look(two).state == "waiting"
    assert marks(engine) == before, "looking leaves nothing behind"
    worker = engine.worker()
    assert engine.work(worker, 1).ids == [between]
    engine.work(worker, 1)
    assert other.look(two).state == "running"
    engine.assert_promises()


def test_where_no_worker_is_nothing_is_left_for_one(engine: Engine, holder: Holder, connect: Connect) -> None:
    other = Holder(connect())
    for _ in range(5):
        one, two = holder.enter(), other.enter()
        assert (one.state, two.state) == ("running", "waiting")
        holder.leave(one)
        assert other.look(two).state == "running"
        other.leave(two)
    assert marks(engine) == 0, "marks that no worker will ever delete"
    assert engine.one("select count(*) from pgfifo.arrivals") == 0
    engine.assert_promises()


def test_limits_closing_and_pauses_hold_as_for_any_enqueue(engine: Engine, holder: Holder) -> None:
    engine.policy(max_queue_length=1)
    first, second = holder.enter(), holder.enter()
    with pytest.raises(pgfifo.QueueFull):
        holder.enter()
    holder.leave(second)
    engine.pause()
    second = holder.enter()
    holder.leave(first)
    assert holder.look(second).state == "waiting"
    engine.resume()
    assert holder.look(second).state == "running"
    engine.policy(on_limit="cancel", max_queue_length="unlimited")
    with pytest.raises(pgfifo.ConcurrencyLimit):
        holder.enter()
    assert holder.attempt() is None
    engine.one("select pgfifo.close('deploy')")
    with pytest.raises(pgfifo.ActionClosed):
        holder.enter()
    holder.leave(second)
    with pytest.raises(pgfifo.ActionClosed):
        holder.attempt()
    engine.assert_promises()


def test_a_raised_limit_is_noticed_by_who_waits(engine: Engine, holder: Holder) -> None:
    first, second = holder.enter(), holder.enter()
    assert holder.look(second).state == "waiting"
    engine.policy(max_concurrent=2)
    assert holder.look(second).state == "running"
    holder.leave(first)
    holder.leave(second)
    engine.assert_promises()


@pytest.mark.parametrize("mover", ["worker", "who waits"])
def test_order_relaxed_a_late_one_is_started_in_its_owners_name(
    engine: Engine, holder: Holder, connect: Connect, mover: str
) -> None:
    """It commits after a younger one of its lane has been started."""
    engine.policy(ordering="relaxed", max_concurrent=10)
    engine.enqueue()
    worker = engine.worker()
    engine.drain(worker)
    slow = Engine(connect(autocommit=False))
    late = slow.enqueue()
    slow.one(
        "update pgfifo._executions set owner = %s, owner_no = 1 where id = %s returning id", holder.id, late
    )
    younger = engine.enqueue()
    assert engine.work(worker, 5).ids == [younger]
    slow.conn.commit()
    slot = Slot(late, "waiting", 0, None, None, None, None)
    if mover == "worker":
        engine.advance(
            "2 s"
        )  # the mark lies behind the point from which claims look, and is found a moment later
        assert engine.work(worker, 5).ids == []
        assert engine.state(late) == "running"
    assert holder.look(slot).state == "running"
    assert engine.one("select worker_id from pgfifo.runs where id = %s", late) == holder.id
    assert holder.leave(slot) == "succeeded"
    engine.assert_promises(strict=False)


def test_a_rate_holds_for_slots_and_leaves_nothing_for_workers_that_are_not_there(
    engine: Engine, holder: Holder
) -> None:
    engine.policy(rate="1/10min", burst=1, max_concurrent=5)
    first, second = holder.enter(), holder.enter()
    assert (first.state, second.state) == ("running", "waiting")
    assert second.look_after is not None
    assert 540 < second.look_after <= 600
    assert holder.attempt() is None
    for _ in range(3):
        assert holder.look(second).state == "waiting"
    engine.advance("11 min")
    assert holder.look(second).state == "running"
    holder.leave(first)
    holder.leave(second)
    assert marks(engine) == 0
    assert engine.one("select count(*) from pgfifo.timers") == 0
    engine.assert_promises()


def test_shared_slots_are_drawn_and_given_back(engine: Engine, holder: Holder, connect: Connect) -> None:
    shared = Jsonb({"max_concurrent": 1, "actions": ["deploy"]})
    engine.enqueue("deploy", group="z")
    engine.drain(engine.worker())
    engine.rows("select * from pgfifo.set_shared_limit('api', %s)", shared)
    dying = Holder(connect(), lease="3 s")
    first = dying.enter(group="a")
    second, third = holder.enter(group="b"), holder.enter(group="c")
    assert (first.state, second.state, third.state) == ("running", "waiting", "waiting")
    assert holder.attempt() is None
    dying.leave(first)
    engine.advance("2 s")
    started = [holder.look(each).state for each in (second, third)]
    assert sorted(started) == ["running", "waiting"]
    running, waiting = (second, third) if started[0] == "running" else (third, second)
    holder.leave(running)
    engine.advance("2 s")
    engine.maintain()
    assert holder.look(waiting).state == "running"
    holder.leave(waiting)
    # One whose owner has died before his turn draws nothing for long.
    blocker = holder.enter(group="d")
    lost = dying.enter(group="e")
    death = "update pgfifo._workers set state = 'dead', ended_at = pgfifo._now() where id = %s returning id"
    engine.one(death, dying.id)
    holder.leave(blocker)
    engine.tick(3)
    assert engine.state(lost.id) == "failed"
    last = holder.attempt()
    assert last is not None
    holder.leave(last)
    engine.assert_promises()


# At once or not at all


def test_a_try_takes_what_is_free_and_leaves_no_trace_otherwise(
    engine: Engine, holder: Holder, connect: Connect
) -> None:
    other = Holder(connect())
    held = holder.attempt()
    assert held is not None
    assert held.state == "running"
    before = engine.rows("select * from pgfifo.ledger")
    assert other.attempt() is None
    assert engine.rows("select * from pgfifo.ledger") == before
    holder.leave(held)
    waiting = engine.enqueue()
    assert other.attempt() is None, "it would pass an execution that waits for a worker"
    assert engine.states([waiting]) == ["waiting"]
    assert engine.stats()["total_enqueued"] == 2
    engine.cancel(waiting)
    assert other.attempt() is not None
    engine.assert_promises()


def test_a_try_does_not_wait_for_somebodys_open_enqueue(
    engine: Engine, holder: Holder, connect: Connect
) -> None:
    engine.enqueue()
    engine.drain(engine.worker())
    producer = connect(autocommit=False)
    producer.execute("select pgfifo.enqueue('deploy')")
    assert holder.attempt() is None, "whoever enqueues there is before it"
    producer.rollback()
    assert holder.attempt() is not None


def test_a_try_whose_answer_was_lost_is_answered_again(engine: Engine, holder: Holder) -> None:
    held = holder.attempt()
    query = ROW + "slot_enter(%s, %s, 'deploy', p_try => true)"
    [again] = engine.rows(query, holder.id, holder.numbers[-1])
    assert held is not None
    assert again[:2] == (held.id, "running")
    assert engine.stats()["total_enqueued"] == 1


def test_a_try_waits_a_moment_for_a_claim_in_flight(engine: Engine, holder: Holder, connect: Connect) -> None:
    """A worker that looks at the lane in this moment is no reason to say that there is no slot."""
    engine.enqueue()
    worker = engine.worker()
    engine.drain(worker)
    claiming = connect(autocommit=False)
    lane = engine.one("select id from pgfifo.lanes")
    claiming.execute("select pg_advisory_xact_lock('pgfifo.lanes'::regclass::oid::int, %s::int)", [lane])
    trying = in_background(holder.attempt)
    wait_until_blocked(engine.conn, holder.engine.pid)
    claiming.rollback()
    slot = trying.result()
    assert slot is not None
    assert slot.state == "running"


@pytest.mark.parametrize("rounds", [20])
def test_slots_of_tries_at_once_one_wins(engine: Engine, connect: Connect, rounds: int) -> None:
    holders = [Holder(connect()) for _ in range(4)]
    for _ in range(rounds):
        running = [in_background(each.attempt) for each in holders]
        had = [(each, slot) for each, found in zip(holders, running, strict=True) if (slot := found.result())]
        assert len(had) == 1, "a free slot, and not exactly one had it"
        [(winner, slot)] = had
        assert winner.leave(slot) == "succeeded"
    engine.assert_promises()


def test_who_holds_all_slots_of_a_lane_himself_is_told_so_at_once(engine: Engine, holder: Holder) -> None:
    engine.policy(group_by=["env"])
    held = holder.enter(group="prod")
    query = ROW + "slot_enter(%s, 50, 'deploy', '{}', 'env=prod', p_holding => %s::bigint[])"
    with pytest.raises(pgfifo.AlreadyHeld, match=r"holds the only slot of deploy env=prod already") as raised:
        engine.rows(query.replace("'env=prod'", "'prod'"), holder.id, [held.id])
    assert (raised.value.action, raised.value.group) == ("deploy", '{"env":"prod"}')
    other = query.replace("'env=prod'", "'test'")
    assert engine.rows(other, holder.id, [held.id])[0][1] == "running", "another lane is another lock"
    assert engine.stats()["total_enqueued"] == 2


# Answers that were lost, and what is given up


def test_durability_the_same_number_again_finds_the_first(
    engine: Engine, holder: Holder, connect: Connect
) -> None:
    first = holder.enter(no=1)
    assert holder.enter(no=1).id == first.id
    # Also while the first is in flight: its session waits, and the client has asked again on another one.
    producer = connect(autocommit=False)
    producer.execute("select pgfifo.enqueue('deploy')")
    calls = [connect(), connect()]
    query = ROW + "slot_enter(%s, 2, 'deploy')"
    running = [in_background(partial(Engine(each).rows, query, holder.id)) for each in calls]
    for each in calls:
        wait_until_blocked(engine.conn, each.info.backend_pid)
    producer.rollback()
    [one], [two] = running[0].result(), running[1].result()
    assert one[0] == two[0] != first.id
    assert engine.stats()["total_enqueued"] == 2
    engine.assert_promises()


def test_what_heartbeats_do_not_list_any_more_is_ended(engine: Engine, holder: Holder) -> None:
    held, waiting = holder.enter(no=1), holder.enter(no=2)
    assert holder.beat(1, 2, held=[held.id]) == {}
    assert holder.beat(1, held=[held.id], upto=1) == {}, "asked for after that heartbeat's list was made"
    assert engine.states([held.id, waiting.id]) == ["running", "waiting"]
    assert holder.beat(2) == {}
    assert engine.state(held.id) == "failed"
    assert engine.show(held.id)["error"] == "holder lost: given up"
    assert holder.look(waiting).state == "running"
    assert holder.beat(held=[held.id]) == {held.id: "lost"}
    assert engine.states([held.id, waiting.id]) == ["failed", "failed"]
    assert engine.stats()["active_count"] == 0
    engine.assert_promises()


def test_who_gives_up_his_place_is_cancelled_and_holds_up_nobody(
    engine: Engine, holder: Holder, connect: Connect
) -> None:
    other = Holder(connect())
    held, given_up, next_ = holder.enter(), holder.enter(), other.enter()
    assert holder.leave(given_up, "cancelled", "the wait timed out") == "cancelled"
    assert engine.show(given_up.id)["reason"] == "the wait timed out"
    assert engine.position(next_.id) == 1
    holder.leave(held)
    assert other.look(next_).state == "running"
    engine.assert_promises()


def test_a_number_and_a_worker_of_the_right_kind_are_needed(engine: Engine, holder: Holder) -> None:
    with pytest.raises(pgfifo.InvalidValue, match="kind slot"):
        engine.rows(ROW + "slot_enter(%s, null, 'deploy')", holder.id)
    engine.enqueue()
    with pytest.raises(pgfifo.InvalidValue, match="kind slot"):
        engine.rows(ROW + "slot_enter(%s, 1, 'deploy')", engine.worker())
    for arguments in ("'{deploy}', 1, p_kind => 'slot'", "'{}', 1", "'{deploy}', 1, p_kind => 'other'"):
        with pytest.raises(pgfifo.InvalidValue):
            engine.one(f"select pgfifo.worker_start('n', 'h', 1, {arguments})")
    with pytest.raises(pgfifo.InvalidValue, match="succeeded, failed or cancelled"):
        holder.leave(holder.enter("other"), "released")
    with pytest.raises(pgfifo.UnknownExecution):
        engine.rows(ROW + "slot_look(%s, 1)", holder.id)


@pytest.mark.parametrize("call", ["slot_enter(%s, 1, 'deploy')", "slot_look(%s, 1)", "slot_leave(%s, 1)"])
def test_slots_no_call_decides_on_an_old_snapshot(holder: Holder, connect: Connect, call: str) -> None:
    conn = connect(autocommit=False)
    conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    with pytest.raises(pgfifo.IsolationLevel):
        conn.execute("select * from pgfifo." + call, [holder.id])


def test_who_waits_for_an_open_enqueue_does_so_in_time(
    engine: Engine, holder: Holder, connect: Connect
) -> None:
    producer = connect(autocommit=False)
    engine.enqueue()
    producer.execute("select pgfifo.enqueue('deploy')")
    query = ROW + "slot_enter(%s, 1, 'deploy', p_wait => '20 ms')"
    with pytest.raises(pgfifo.SlotTimeout, match="open transaction"):
        holder.engine.rows(query, holder.id)
    assert holder.engine.one("show lock_timeout") == "0"
    producer.rollback()
    assert engine.stats()["total_enqueued"] == 1


# Holders that are gone


def test_fencing_a_holder_that_died_has_failed_and_the_next_one_has_the_slot(
    engine: Engine, connect: Connect
) -> None:
    dying, living = Holder(connect(), lease="3 s"), Holder(connect(), lease="1 h")
    held, queued, next_ = dying.enter(), dying.enter(), living.enter()
    engine.tick(5)
    assert engine.states([held.id, queued.id]) == ["failed", "failed"]
    for lost in (held, queued):
        assert engine.show(lost.id)["error"].startswith("holder lost: worker")
    assert engine.show(held.id)["attempt"] == 1, "never run again"
    assert living.look(next_).state == "running"
    with pytest.raises(pgfifo.LeaseLost):
        dying.leave(held)
    with pytest.raises(pgfifo.LeaseLost):
        dying.look(queued)
    assert dying.engine.one("select count(*) from pgfifo.slots where worker_id = %s", dying.id) == 0
    engine.assert_promises()


def test_fencing_what_was_started_for_a_holder_who_is_declared_dead_meanwhile_is_taken_back(
    engine: Engine, connect: Connect
) -> None:
    """The claim has seen him alive, and commits after his death was declared and acted on."""
    engine.enqueue()
    worker = engine.worker(lease="1 h")
    [first] = engine.claim(worker)
    dying = Holder(connect(), lease="2 s")
    waiting = dying.enter()
    claiming = Engine(connect(autocommit=False))
    done = [{"id": first.id, "attempt": 1, "outcome": "succeeded"}]
    assert claiming.work(worker, 1, finished=done).ids == []
    assert claiming.state(waiting.id) == "running"
    engine.tick(4)
    assert engine.one("select state from pgfifo._workers where id = %s", dying.id) == "dead"
    claiming.conn.commit()
    assert engine.state(waiting.id) == "running"
    engine.tick()
    assert engine.state(waiting.id) == "failed"
    engine.assert_promises()


def test_a_place_of_the_dead_at_the_head_of_the_line_is_passed(engine: Engine, connect: Connect) -> None:
    engine.enqueue()
    worker = engine.worker(lease="1 h")
    [first] = engine.claim(worker)
    dying = Holder(connect(), lease="2 s")
    waiting, after = dying.enter(), engine.enqueue()
    engine.one(
        "update pgfifo._workers set state = 'dead', ended_at = pgfifo._now() where id = %s returning id",
        dying.id,
    )
    done = [{"id": first.id, "attempt": 1, "outcome": "succeeded"}]
    answer = engine.work(worker, 1, finished=done)
    assert answer.ids == [after] or engine.work(worker, 1).ids == [after]
    assert engine.state(waiting.id) == "failed"
    assert engine.show(waiting.id)["error"] == "holder lost"
    engine.assert_promises()


def test_the_end_of_the_session_is_the_end_of_the_holder(engine: Engine, connect: Connect) -> None:
    conn = connect()
    dying, living = Holder(conn, locked=True), Holder(connect(), locked=True)
    held, next_ = dying.enter(), living.enter()
    engine.tick(2)
    assert engine.state(held.id) == "running"
    pid = conn.info.backend_pid
    conn.close()
    gone = "select count(*) = 0 from pg_stat_activity where pid = %s"
    wait_for(lambda: engine.one(gone, pid), message="the session to be gone")
    engine.tick(3)
    assert engine.state(held.id) == "failed"
    assert living.look(next_).state == "running"


def test_signing_off_ends_what_is_held_and_leaves_no_row(engine: Engine, holder: Holder) -> None:
    held, waiting = holder.enter(), holder.enter()
    holder.engine.one("select pgfifo.worker_stop(%s)", holder.id)
    assert engine.states([held.id, waiting.id]) == ["failed", "failed"]
    assert engine.rows("select from pgfifo._workers") == []
    engine.assert_promises()


def test_signing_off_beside_a_claim_in_flight_leaves_nothing_behind(
    engine: Engine, holder: Holder, connect: Connect
) -> None:
    """The lane is locked by a claim that has just started it in the holder's name."""
    engine.enqueue()
    worker = engine.worker(lease="1 h")
    [first] = engine.claim(worker)
    waiting = holder.enter()
    claiming = Engine(connect(autocommit=False))
    claiming.work(worker, 1, finished=[{"id": first.id, "attempt": 1, "outcome": "succeeded"}])
    holder.engine.one("select pgfifo.worker_stop(%s)", holder.id)
    claiming.conn.commit()
    assert engine.state(waiting.id) == "running"
    engine.tick(2)
    assert engine.state(waiting.id) == "failed"
    engine.assert_promises()


# Others interfere


def test_a_slot_is_never_given_back_to_the_line(engine: Engine, holder: Holder) -> None:
    slot = holder.enter()
    assert engine.one("select pgfifo.release(%s, 1)", slot.id) == "failed"
    assert holder.beat(1, held=[slot.id]) == {slot.id: "lost"}
    assert holder.leave(slot) == "failed", "it was said by who had the token"
    slot = holder.enter()
    assert engine.one("select pgfifo.finish(%s, 1, 'failed', p_error => 'enough')", slot.id) == "failed"
    assert engine.show(slot.id)["error"] == "enough"


def test_an_operator_ends_it_and_its_holder_hears_that_it_is_lost(engine: Engine, holder: Holder) -> None:
    slot, next_ = holder.enter(), holder.enter()
    engine.one("select pgfifo.finish_execution(%s, 'failed', 'stuck')", slot.id)
    assert holder.beat(1, 2, held=[slot.id]) == {slot.id: "lost"}
    assert holder.leave(slot) == "lost"
    assert holder.look(next_).state == "running"
    engine.assert_promises()


def test_a_cancel_ends_a_place_and_asks_a_holder(engine: Engine, holder: Holder) -> None:
    held, waiting = holder.enter(), holder.enter()
    assert engine.cancel(waiting.id, "not tonight") == "cancelled"
    seen = holder.look(waiting)
    assert (seen.state, seen.error) == ("cancelled", "not tonight")
    assert engine.cancel(held.id) == "requested"
    assert holder.beat(1, held=[held.id]) == {held.id: "cancel"}
    assert holder.leave(held, "failed", "KeyboardInterrupt") == "cancelled"
    held = holder.enter()
    engine.cancel(held.id)
    assert holder.leave(held) == "succeeded", "if it succeeds all the same, it succeeded"
    engine.assert_promises()


def test_waiting_for_longer_than_max_wait_expires(engine: Engine, holder: Holder) -> None:
    engine.policy(max_wait=10)
    held, waiting = holder.enter(), holder.enter()
    engine.advance("20 s")
    assert holder.leave(held) == "succeeded"
    assert holder.look(waiting).state == "expired"
    engine.assert_promises()


# Who is told


def test_owners_are_told_when_somebody_else_starts_them(
    engine: Engine, holder: Holder, connect: Connect
) -> None:
    listening = connect()
    listening.execute("listen pgfifo_slots")
    engine.enqueue()
    worker = engine.worker()
    [first] = engine.claim(worker)
    slot = holder.enter()

    def heard() -> list[str]:
        return [each.payload for each in told(listening)]

    assert heard() == []
    engine.work(worker, 1, finished=[{"id": first.id, "attempt": 1, "outcome": "succeeded"}])
    assert heard() == [f"{holder.id} {slot.id}"]
    holder.leave(slot)
    assert heard() == [], "his own calls tell him in their answers"
    held = holder.enter()
    engine.one("update pgfifo._workers set locked = true where id = %s returning id", holder.id)
    engine.cancel(held.id)
    assert heard() == [str(holder.id)], "he is to ask what to stop"


def test_who_holds_and_who_waits_can_be_seen(engine: Engine, holder: Holder) -> None:
    engine.policy(max_concurrent=2)
    worker = engine.worker()
    engine.enqueue()
    engine.claim(worker)
    held, waiting = holder.enter(), holder.enter()
    engine.enqueue()
    rows = engine.rows("select id, state, is_slot, worker_id from pgfifo.slots order by ticket")
    assert rows == [
        (held.id - 1, "running", False, worker),
        (held.id, "running", True, holder.id),
        (waiting.id, "waiting", True, holder.id),
    ]
    assert engine.rows("select kind, count(*)::int from pgfifo.workers group by 1 order by 1") == [
        ("slot", 1),
        ("worker", 1),
    ]
