"""Progress: a lane with something waiting and a free slot gets going by itself. No wake-up is lost.

The hunts race the calls that meet at a wake-up, some thousands of times; for each of their interleavings
there is a test with two sessions that forces it. All end by asking the sweep whether it had to help.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.database import in_background, wait_for, wait_until_blocked
from tests.support.engine import Call, Engine, Hand, Start, item, race

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

ENQUEUE = "select pgfifo.enqueue('deploy')"
CLAIM = "select id, attempt from pgfifo.work($1, '{deploy}', 5) where kind = 'start'"
FINISH = "select id, status from pgfifo.work($1, '{}', 0, null, $2) where kind = 'finish'"
FINISH_AND_CLAIM = "select id, attempt from pgfifo.work($1, '{deploy}', 5, null, $2) where kind = 'start'"


# -- hunts -------------------------------------------------------------------------------------------


class Hunt:
    """A lane with one slot, of which the first execution runs when a round begins."""

    def __init__(self, conn: Connection, connect: Connect) -> None:
        self.engine = Engine(conn)
        self.engine.policy(backoff_initial=0)
        self.sessions = [connect() for _ in range(3)]
        self.worker, self.other = self.engine.worker(), self.engine.worker()
        self.choose = random.Random(1)
        self.running = 0
        self.attempt = 1

    def begin(self) -> None:
        """Let one execution run and nothing wait."""
        new = self.engine.enqueue()
        self.running = self.next(f"the only execution, {new},")
        assert self.running == new

    def items(self) -> list[dict[str, object]]:
        return [{"id": self.running, "attempt": self.attempt, "outcome": "succeeded"}]

    def race(self, *calls: Call) -> None:
        """Race, in any order; what was started goes on under `running`."""
        order = list(calls)
        self.choose.shuffle(order)
        answers = race(*order)
        before, self.running = self.running, 0
        for (_, query, parameters), answer in zip(order, answers, strict=True):
            assert not isinstance(answer, str), f"{query} failed with {answer}"
            if query == FINISH:
                if answer:  # somebody had the lane locked: hand it in again, as a worker does
                    self.running = before
                    self.hand_in()
            elif "work" in query and answer:
                assert self.running == 0, "two executions took the only slot"
                self.running, self.attempt = int(str(answer[0][0])), int(str(answer[0][1]))
                self.worker_of_running = int(str(parameters[0]))
        if self.running:
            self.hand_in(self.worker_of_running)

    def hand_in(self, worker: int | None = None) -> None:
        refused = self.engine.work(worker or self.worker, 0, [], self.items()).refused
        assert refused == {}
        self.running = 0

    def fail(self) -> None:
        """Let what runs fail: it is held."""
        items = [{"id": self.running, "attempt": self.attempt, "outcome": "failed"}]
        assert self.engine.work(self.worker, 0, [], items).refused == {}

    def next(self, what: str) -> int:
        """Claim; there must be something to start, without anybody's help."""
        found: list[Start] = []

        def claim() -> bool:
            found.extend(self.engine.claim(self.worker, 5))
            return bool(found)

        wait_for(claim, 30, f"{what} to start: its wake-up was lost")
        (start,) = found
        self.attempt = start.attempt
        return start.id

    def end(self, expected: int) -> None:
        """Whatever is left must start and end; then nothing is there."""
        while self.engine.one("select count(*) from pgfifo._executions"):
            self.running = self.next("what waits")
            self.hand_in()
        if expected % 50 == 0:
            assert self.engine.stats()["total_completed"] == expected


def test_progress_hunt_enqueue_against_the_last_completion(conn: Connection, connect: Connect) -> None:
    hunt = Hunt(conn, connect)
    finishing, producing, claiming = hunt.sessions
    for turn in range(1, 1001):
        hunt.begin()
        calls: list[Call] = [
            (finishing, FINISH, [hunt.worker, hunt.items()]),
            (producing, ENQUEUE, []),
            (claiming, CLAIM, [hunt.other]),
        ]
        hunt.race(*calls[: 2 + turn % 2])
        hunt.end(2 * turn)
    hunt.engine.assert_promises()


def test_progress_hunt_enqueue_against_a_completion_that_claims(conn: Connection, connect: Connect) -> None:
    hunt = Hunt(conn, connect)
    finishing, producing, claiming = hunt.sessions
    for turn in range(1, 501):
        hunt.begin()
        hunt.race(
            (finishing, FINISH_AND_CLAIM, [hunt.worker, hunt.items()]),
            (producing, ENQUEUE, []),
            (claiming, CLAIM, [hunt.other]),
        )
        for id_, worker in hunt.engine.rows("select id, worker_id from pgfifo.runs"):
            hunt.running = id_  # the lane was locked, and the finish must be repeated
            hunt.hand_in(worker)
        hunt.end(2 * turn)
    hunt.engine.assert_promises()


def test_progress_hunt_enqueue_against_the_cancel_of_what_is_before_it(
    conn: Connection, connect: Connect
) -> None:
    """The cancelled one is held: it gives a slot back at the very moment at which another one arrives."""
    hunt = Hunt(conn, connect)
    hunt.engine.policy(backoff_initial=3600, backoff_cap=3600)
    cancelling, producing, claiming = hunt.sessions
    for turn in range(1, 501):
        hunt.begin()
        hunt.fail()
        held, hunt.running = hunt.running, 0
        hunt.race(
            (cancelling, "select pgfifo.cancel($1)", [held]),
            (producing, ENQUEUE, []),
            (claiming, CLAIM, [hunt.other]),
        )
        hunt.end(2 * turn)
    hunt.engine.assert_promises()


def test_progress_hunt_claim_against_a_raised_limit(conn: Connection, connect: Connect) -> None:
    """One runs, one waits and nobody marks it; the limit goes up while a claim looks."""
    hunt = Hunt(conn, connect)
    raising, claiming, third = hunt.sessions
    for turn in range(1, 501):
        hunt.begin()
        hunt.engine.enqueue()
        assert hunt.engine.claim(hunt.other, 5) == []  # takes the mark: the lane is full
        query = "select count(*) from pgfifo.set_policy('deploy', $1, $2)"
        calls: list[Call] = [
            (raising, query, [{"max_concurrent": 2}, "" if turn % 2 else None]),
            (claiming, CLAIM, [hunt.other]),
        ]
        order = [*calls[:: hunt.choose.choice([1, -1])], (third, CLAIM, [hunt.other])]
        answers = race(*order)
        claims = [rows for (_, sent, _), rows in zip(order, answers, strict=True) if sent == CLAIM]
        started = [int(str(row[0])) for rows in claims for row in rows]
        second = started[0] if started else hunt.next("what waited for a higher limit")
        assert len(started) <= 1
        hunt.hand_in()
        hunt.running, hunt.attempt = second, 1
        hunt.hand_in(hunt.other if started else hunt.worker)
        hunt.engine.policy(group="" if turn % 2 else None, max_concurrent=None)
        assert hunt.engine.stats()["total_completed"] == 2 * turn
    hunt.engine.assert_promises()


def test_progress_hunt_claim_against_a_resume(conn: Connection, connect: Connect) -> None:
    hunt = Hunt(conn, connect)
    resuming, claiming, producing = hunt.sessions
    engine = hunt.engine
    engine.enqueue()
    engine.drain(hunt.worker)
    for turn in range(1, 401):
        group = "" if turn % 2 else None
        engine.pause(group=group)
        engine.enqueue()
        assert engine.claim(hunt.worker, 5) == []
        hunt.race(
            (resuming, "select pgfifo.resume('deploy', $1)", [group]),
            (claiming, CLAIM, [hunt.other]),
            (producing, ENQUEUE, []),
        )
        hunt.end(1 + 2 * turn)
    engine.assert_promises()


def test_progress_hunt_of_many_lanes_and_sessions(conn: Connection, connect: Connect) -> None:
    """Lanes that are nearly always empty: every enqueue meets a completion. Then everything must be gone."""
    engine = Engine(conn)
    lanes = [f"lane {n}" for n in range(4)]
    engine.enqueue_many("deploy", [{}] * 4, lanes)
    engine.drain(engine.worker())
    produced = 4

    def produce(own: Engine, seed: int) -> int:
        choose = random.Random(seed)
        for _ in range(250):
            own.enqueue(group=choose.choice(lanes))
        return 250

    def consume(hand: Hand) -> int:
        ended = hand.turn(2).starts
        done = 0
        while True:
            last = all(producer.done for producer in producers)
            answer = hand.turn(2, ended)
            done += len(answer.starts)
            ended = answer.starts
            if last and hand.is_idle(answer):
                return done

    producers = [in_background(partial(produce, Engine(connect()), n)) for n in range(3)]
    consumers = [in_background(partial(consume, Hand(connect()))) for _ in range(3)]
    produced += sum(producer.result(60) for producer in producers)
    for consumer in consumers:
        consumer.result(60)
    last = Hand(conn)
    answer = last.turn(20)
    wait_for(
        lambda: engine.drain(last.id, limit=20) == [] and engine.stats()["queue_length"] == 0,
        5,
        "the rest to start",
    )
    last.turn(0, answer.starts)
    assert engine.stats()["total_completed"] == produced
    engine.assert_promises()


# -- the interleavings, forced -------------------------------------------------------------------------


def test_progress_an_enqueue_that_commits_after_the_last_completion_starts(
    conn: Connection, connect: Connect
) -> None:
    """The finish saw nothing waiting; the mark comes with the commit of the enqueue."""
    engine, producer = Engine(conn), Engine(connect(autocommit=False))
    engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    new = producer.enqueue()
    assert engine.work(worker, 5, finished=[{"id": start.id, "attempt": 1, "outcome": "succeeded"}]).ids == []
    producer.conn.commit()
    assert engine.drain(worker) == [new], "an enqueue that overlapped the last completion was never started"
    engine.assert_promises()


def test_progress_an_enqueue_whose_mark_was_taken_while_the_lane_was_full_starts(
    conn: Connection, connect: Connect
) -> None:
    """A claim takes the mark and finds the lane full; the finish that empties it waits for the lane."""
    engine = Engine(conn)
    engine.enqueue()
    worker, other = engine.worker(), engine.worker()
    (start,) = engine.claim(worker)
    new = engine.enqueue()
    claiming, finishing = Engine(connect(autocommit=False)), Engine(connect())
    assert claiming.claim(other) == []
    finish = in_background(lambda: finishing.finish(start))
    wait_until_blocked(conn, finishing.pid)
    claiming.conn.commit()
    assert finish.result() == "succeeded"
    assert engine.drain(worker) == [new], "the claim took the mark and the completion left none"
    engine.assert_promises()


def test_progress_a_completion_whose_worker_claims_nothing_leaves_a_mark(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue()
    worker, other = engine.worker(), engine.worker()
    (start,) = engine.claim(worker)
    new = engine.enqueue()
    assert engine.claim(other) == [], "the lane is full; this takes the mark of the enqueue"
    assert engine.hand_in(worker, start) == {}
    assert engine.drain(other) == [new], "nobody looks at a lane that has got a free slot"
    engine.assert_promises()


def test_progress_a_claim_beside_an_open_completion_loses_nothing(conn: Connection, connect: Connect) -> None:
    """The claim finds the lane locked by a completion; the mark is still there when that has committed."""
    engine = Engine(conn)
    engine.enqueue()
    worker, other = engine.worker(), engine.worker()
    (start,) = engine.claim(worker)
    new = engine.enqueue()
    finishing = Engine(connect(autocommit=False))
    finishing.finish(start)
    answer = engine.work(other, 5)
    assert (answer.starts, answer.more) == ([], "soon"), "a worker was sent to sleep beside a locked lane"
    finishing.conn.commit()
    assert engine.drain(other) == [new]
    engine.assert_promises()


def test_progress_a_completion_that_rolls_back_keeps_what_waits_startable(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    ids = engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    finishing = Engine(connect(autocommit=False))
    finishing.finish(start)
    finishing.conn.rollback()
    assert engine.claim(worker) == []
    engine.hand_in(worker, start)
    assert [start.id, *engine.drain(worker)] == ids
    engine.assert_promises()


def test_progress_a_slot_given_back_by_a_cancel_is_used(conn: Connection, connect: Connect) -> None:
    """A held one is cancelled in an open transaction; a claim passes by and takes no mark with it."""
    engine = Engine(conn)
    engine.policy(backoff_initial=3600)
    first, second = engine.fill(2)
    worker = engine.worker()
    engine.finish(engine.claim(worker)[0], "failed")
    canceller = Engine(connect(autocommit=False))
    assert canceller.cancel(first) == "cancelled"
    assert engine.claim(worker) == []
    canceller.conn.commit()
    assert engine.drain(worker) == [second], "a cancelled execution kept its slot"
    engine.assert_promises()


@pytest.mark.parametrize("group", [None, ""])
@pytest.mark.parametrize("what", ["raise", "resume"])
def test_progress_a_claim_that_saw_the_old_policy_takes_no_wake_up_with_it(
    conn: Connection, connect: Connect, what: str, group: str | None
) -> None:
    """The change waits for a claim that is open under the old policy; then the lane is looked at again."""
    engine = Engine(conn)
    engine.enqueue()
    worker = engine.worker()
    (start,) = engine.claim(worker)
    if what == "resume":
        engine.hand_in(worker, start)
        engine.pause(group=group)
    new = engine.enqueue()
    claiming, operator = Engine(connect(autocommit=False)), Engine(connect())
    assert claiming.claim(worker, 5) == []

    def change() -> None:
        if what == "raise":
            operator.policy(group=group, max_concurrent=2)
        else:
            operator.resume(group=group)

    changing = in_background(change)
    wait_until_blocked(conn, operator.pid)
    claiming.conn.commit()
    changing.result()
    assert [start.id for start in engine.claim(worker, 5)] == [new], "nobody looked at the lane again"
    engine.assert_promises()


def test_progress_all_held_ones_that_are_due_start_though_the_claims_are_small(conn: Connection) -> None:
    """Three are due at once, and each claim takes one: the others' timers must not go with the first."""
    engine = Engine(conn)
    engine.policy(max_concurrent=3, backoff="constant", backoff_initial=10, backoff_jitter=0)
    ids = engine.fill(3)
    worker = engine.worker()
    for start in engine.claim(worker, 3):
        engine.finish(start, "failed")
    engine.advance("11 s")
    order = [start.id for _ in ids for start in engine.claim(worker, 1)]
    assert order == ids, "held executions that were due were not started"
    engine.assert_promises()


def test_progress_held_ones_of_other_lanes_start_though_the_claims_are_small(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=2, backoff="constant", backoff_initial=10, backoff_jitter=0)
    ids = engine.enqueue_many("deploy", [{}] * 6, ["a", "a", "b", "b", "c", "c"])
    worker = engine.worker()
    for start in engine.claim(worker, 6):
        engine.finish(start, "failed")
    engine.advance("11 s")
    order = [start.id for _ in range(4) for start in engine.claim(worker, 2)]
    assert sorted(order) == ids, "held executions that were due were not started"
    engine.assert_promises()


def test_progress_a_batch_over_many_lanes_is_worked_off_by_small_claims(conn: Connection) -> None:
    engine = Engine(conn)
    lanes = [f"{n}" for n in range(200)]
    ids = engine.enqueue_many("deploy", [{}] * 400, lanes * 2)
    assert sorted(engine.drain(engine.worker(), limit=7)) == ids
    engine.assert_promises()


def test_progress_per_action_limits_leave_the_rest_to_others(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy("index", max_concurrent=10)
    engine.policy("deploy", max_concurrent=10)
    index, deploy = engine.fill(6, "index"), engine.fill(6)
    worker = engine.worker("index", "deploy")
    answer = engine.work(worker, 10, ["index", "deploy"], limits=[2, None])
    assert sorted(answer.ids) == [*index[:2], *deploy], "a cap on one action held up another one"
    rest = engine.work(worker, 10, ["index", "deploy"], limits=[0, None])
    assert rest.starts == []
    assert [start.id for start in engine.claim(worker, 10, ["index"])] == index[2:]
    engine.assert_promises()


def test_progress_a_worker_says_when_the_next_timer_is_due(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff="constant", backoff_initial=60, backoff_jitter=0)
    engine.enqueue()
    worker = engine.worker()
    engine.finish(engine.claim(worker)[0], "failed")
    answer = engine.work(worker, 5)
    assert answer.more == "later"
    assert answer.seconds is not None
    assert 55 < answer.seconds <= 60


# -- the net below the net -----------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [False, True])
def test_progress_the_sweep_finds_a_lane_without_a_mark_and_counts_it(conn: Connection, seen: bool) -> None:
    """Once with an enqueue that no claim has met, once with one that is counted in the ledger."""
    engine = Engine(conn)
    if seen:
        ids = engine.fill(2)
        worker = engine.worker()
        (start,) = engine.claim(worker)
        assert start.id == ids.pop(0)
        engine.hand_in(worker, start)
    else:
        ids = engine.fill(1)
        worker = engine.worker()
    conn.execute("delete from pgfifo.marks")
    assert engine.claim(worker) == []
    engine.tick(5)
    assert engine.sweep_found() == 1, "the sweep did not find the lane, or found it twice"
    assert engine.drain(worker) == ids
    assert engine.check() == []


def test_progress_relaxed_what_commits_late_is_counted_though_only_finishes_lead_to_the_lane(
    conn: Connection, connect: Connect
) -> None:
    """Claims have gone past its mark, and what leads them to the lane counts nothing."""
    engine = Engine(conn)
    engine.policy(ordering="relaxed")
    worker = engine.worker()
    ids = [engine.enqueue()]
    (running,) = engine.claim(worker)
    slow = Engine(connect(autocommit=False))
    ids.append(slow.enqueue())
    late_mark = slow.one("select max(id) from pgfifo.marks")
    for _ in range(4):
        ids.append(engine.enqueue())
        engine.advance("150 ms")
        assert engine.claim(worker) == [], "the lane is full"
    hot, safe = engine.rows("select hot_mark, safe_mark from pgfifo.scans")[0]
    assert safe < late_mark < hot, "the scan must have gone past the late mark for this to show anything"
    slow.conn.commit()
    started, starts = [running.id], [running]
    for n in range(13):
        if n >= 3:  # before, so long as nothing leads to the lane but finishes
            engine.advance("150 ms")
        starts = engine.work(worker, finished=[item(each) for each in starts]).starts
        started += [each.id for each in starts]
    assert started == ids
    more = engine.fill(2)
    assert engine.drain(worker) == more, (
        "it was started and never counted, so the lane believes that nothing waits"
    )
    engine.assert_promises(strict=False)


def test_progress_a_timer_that_fired_while_a_claim_was_on_its_way_is_not_lost(
    conn: Connection, connect: Connect
) -> None:
    """The claim that comes by its mark had read the clock before the timer was due."""
    engine = Engine(conn)
    engine.policy(backoff="constant", backoff_initial=60)
    slow, quick = engine.worker(), engine.worker()
    held = engine.enqueue(group="held")
    engine.finish(engine.claim(slow)[0], "failed")
    other = engine.enqueue(group="other")
    late, early = Engine(connect()), Engine(connect(autocommit=False))
    early.conn.execute("lock table pgfifo.marks in access exclusive mode")
    claim = in_background(lambda: late.claim(slow, 5))
    wait_until_blocked(conn, late.pid)
    early.advance("2 minutes")
    assert [start.id for start in early.claim(quick, 1)] == [other], (
        "it was to leave the timer's mark to others"
    )
    early.conn.commit()
    started = [start.id for start in claim.result()] or [start.id for start in engine.claim(slow, 5)]
    assert started == [held], "its backoff is over, and nobody starts it"
    assert engine.sweep_found() == 0


def test_progress_the_sweep_finds_a_held_one_whose_timer_is_gone(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff="constant", backoff_initial=1)
    new = engine.enqueue()
    worker = engine.worker()
    engine.finish(engine.claim(worker)[0], "failed")
    conn.execute("delete from pgfifo.timers")
    engine.tick(10)
    assert engine.sweep_found() == 1
    assert engine.drain(worker) == [new]


def test_progress_the_sweep_leaves_alone_what_is_full_paused_or_marked(conn: Connection) -> None:
    engine = Engine(conn)
    engine.fill(2, group="full")
    engine.claim(engine.worker())
    engine.fill(2, group="paused")
    engine.pause(group="paused")
    assert engine.claim(engine.worker(), 5) == []
    engine.fill(2, group="marked")
    marks = engine.rows("select count(*) from pgfifo.marks")
    engine.tick(5)
    assert engine.sweep_found() == 0
    assert engine.rows("select count(*) from pgfifo.marks") == marks, "the sweep piles up marks"


@pytest.mark.parametrize("seen", [False, True])
def test_progress_check_with_repair_mends_a_lane_without_a_mark(conn: Connection, seen: bool) -> None:
    engine = Engine(conn)
    ids = engine.fill(2)
    worker = engine.worker()
    if seen:
        engine.release(engine.claim(worker)[0])
    conn.execute("delete from pgfifo.marks")
    assert engine.claim(worker) == []
    engine.rows("select * from pgfifo.check(p_repair => true)")
    assert engine.drain(worker) == ids, "check(repair) did not get the lane going"


# -- lanes that go ---------------------------------------------------------------------------------------


def test_progress_an_enqueue_beside_the_removal_of_its_lane_is_not_lost(
    conn: Connection, connect: Connect
) -> None:
    """The enqueue waits for its lock while the lane is removed under it: it starts over with a new lane."""
    engine = Engine(conn)
    engine.policy(lane_retention=0)
    engine.fill(1, group="prod")
    worker = engine.worker()
    engine.drain(worker)
    engine.advance("5 s")
    remover, producer = Engine(connect(autocommit=False)), Engine(connect())
    assert remover.maintain()["lanes_removed"] == 1
    enqueue = in_background(lambda: producer.enqueue(group="prod"))
    wait_until_blocked(conn, producer.pid)
    remover.conn.commit()
    new = enqueue.result()
    assert engine.drain(worker) == [new], "an enqueue was lost with the lane that was removed under it"
    assert engine.stats()["total_enqueued"] == 2
    engine.assert_promises()


def test_progress_a_lane_with_an_enqueue_under_way_is_not_removed(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(lane_retention=0)
    engine.fill(1, group="prod")
    worker = engine.worker()
    engine.drain(worker)
    producer = Engine(connect(autocommit=False))
    new = producer.enqueue(group="prod")
    engine.tick(5)
    assert engine.stats()["lanes"] == 1
    producer.conn.commit()
    assert engine.drain(worker) == [new]
    engine.assert_promises()


def test_progress_hunt_enqueue_against_the_removal_of_idle_lanes(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(lane_retention=0)
    worker = engine.worker(lease="1 hour")
    engine.fill(1, group="prod")
    engine.drain(worker)
    producing, maintaining, claiming = connect(), connect(), connect()
    maintain = "select pgfifo.maintain() ->> 'lanes_removed'"
    removed = 0
    for turn in range(300):
        engine.advance("5 s")
        calls: list[Call] = [
            (producing, "select pgfifo.enqueue('deploy', '{}', 'prod')", []),
            (maintaining, maintain, []),
            (claiming, CLAIM, [worker]),
        ]
        if turn % 2:  # who is sent first, wins more often: each of the two is so in half of the rounds
            calls.insert(0, calls.pop(1))
        answers = dict(zip((query for _, query, _ in calls), race(*calls), strict=True))
        removed += int(str(answers[maintain][0][0] or 0))
        started = [int(str(row[0])) for row in answers[CLAIM]]
        items = [{"id": id_, "attempt": 1, "outcome": "succeeded"} for id_ in started]
        assert engine.work(worker, 0, [], items).refused == {}
        order = started + engine.drain(worker)
        assert len(order) == 1, f"round {turn}: the enqueue was lost with its lane"
    assert removed > 0
    assert engine.stats()["total_completed"] == 301
    engine.assert_promises()


def test_progress_limits_of_every_action_can_change_while_new_ones_come_to_be(
    conn: Connection, connect: Connect
) -> None:
    """A limit for everything is set while an action is being created: it holds for the new one too."""
    engine = Engine(conn)
    creating = Engine(connect(autocommit=False))
    creating.fill(3, "fresh")
    engine.one("select count(*) from pgfifo.set_default_policy(%s)", Jsonb({"max_concurrent": 2}))
    creating.conn.commit()
    assert len(engine.claim(engine.worker("fresh"), 5, ["fresh"])) == 2
