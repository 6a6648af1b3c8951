"""max_wait: from its time on an execution cannot start, and every reader says that it has expired."""

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

import pgfifo
from pgfifo import errors
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine, Hand

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def numbers(engine: Engine, action: str = "deploy") -> tuple[int, int, int]:
    """Waiting, active, expired; and the sum that must hold at every instant."""
    stats = engine.stats(action)
    completed = (
        stats["total_succeeded"] + stats["total_failed"] + stats["total_cancelled"] + stats["total_expired"]
    )
    assert stats["total_completed"] == completed
    assert (
        stats["total_enqueued"]
        == completed + stats["queue_length"] + stats["active_count"] + stats["delayed_count"]
    )
    states = dict(
        engine.rows("select state, count(*) from pgfifo.executions where action = %s group by 1", action)
    )
    assert (states.get("waiting", 0), states.get("expired", 0)) == (
        stats["queue_length"],
        stats["total_expired"],
    )
    return stats["queue_length"], stats["active_count"], stats["total_expired"]


def written(engine: Engine) -> list[int]:
    """The ids whose outcome 'expired' is on record."""
    return [
        id_ for (id_,) in engine.rows("select id from pgfifo.history where outcome = 'expired' order by id")
    ]


def test_from_its_time_on_every_reader_says_expired_though_nobody_touched_it(
    dsn: str, conn: Connection
) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60)
    engine.pause()
    old = engine.fill(3)
    engine.advance("40 s")
    young = engine.fill(2)
    before = engine.show(old[0])
    assert numbers(engine) == (5, 0, 0)
    assert engine.lane()["oldest_enqueued_at"] == before["enqueued_at"]
    engine.advance("20 s")
    assert numbers(engine) == (2, 0, 3)
    show = engine.show(old[1])
    assert (show["state"], show["attempt"], show["reason"]) == ("expired", 0, None)
    assert show["finished_at"] == show["enqueued_at"] + timedelta(seconds=60)
    assert "max_wait" in show["error"]
    assert [engine.position(id_) for id_ in old + young] == [None, None, None, 1, 2]
    assert engine.lane()["oldest_enqueued_at"] == engine.show(young[0])["enqueued_at"]
    assert written(engine) == [], "a reader wrote"
    with pgfifo.Client(dsn) as fifo:
        assert fifo.stats("deploy").total_expired == 3
        info = fifo.execution(old[0])
        assert (info.state, info.finished) == ("expired", True)
        with pytest.raises(pgfifo.ExecutionFailed) as caught:
            fifo.wait(old[0], timeout=5)
        assert caught.value.outcome == "expired"
    engine.tick()
    assert written(engine) == old, "maintenance has not written down what nobody touches"
    assert engine.show(old[1]) == show | {"ticket": show["ticket"]}, (
        "the outcome reads differently when it is written"
    )
    assert numbers(engine) == (2, 0, 3)
    engine.resume()
    assert engine.drain(engine.worker()) == young
    engine.assert_promises()


def test_a_claim_passes_over_what_has_expired(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60, max_concurrent=2)
    old = engine.fill(5)
    engine.advance("59 s")
    young = engine.fill(4)
    worker = engine.worker()
    started = engine.claim(worker, 1)
    assert [start.id for start in started] == old[:1], "it was started a second too late"
    engine.advance("1 s")
    again = engine.claim(worker, 5)
    assert [start.id for start in again] == young[:1]
    assert written(engine) == old[1:]
    assert numbers(engine) == (3, 2, 4)
    engine.advance("1 h")
    assert numbers(engine) == (0, 2, 7)
    assert engine.hand_in(worker, *started, *again) == {}
    assert engine.drain(worker) == []
    assert numbers(engine) == (0, 0, 7)
    assert engine.started() == [old[0], young[0]]
    engine.assert_promises()


def test_the_moment_is_exact(conn: Connection) -> None:
    """What starts was enqueued less than max_wait before its start, by the recorded times."""
    engine = Engine(conn)
    engine.policy(max_wait=0.05)
    worker = engine.worker()
    for _ in range(40):
        engine.enqueue()
        if engine.one("select random() < 0.5"):
            conn.execute("select pg_sleep(0.03)")
        for start in engine.claim(worker):
            engine.hand_in(worker, start)
    late = "select id from pgfifo.history where started_at - enqueued_at >= interval '50 ms' and attempt > 0"
    assert engine.rows(late) == []
    assert (
        engine.one(
            "select count(*) from pgfifo.history where finished_at <> enqueued_at + interval '50 ms'"
            " and outcome = 'expired'"
        )
        == 0
    )
    engine.assert_promises()


@pytest.mark.parametrize("how", ["released", "held", "lost"])
def test_what_was_started_once_does_not_expire(conn: Connection, how: str) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60, backoff_initial=3600, backoff_jitter=0)
    first, second = engine.fill(2)
    worker = engine.worker(lease="5 s")
    (start,) = engine.claim(worker)
    if how == "released":
        engine.release(start)
    elif how == "held":
        engine.finish(start, "failed")
    else:
        engine.tick(10)
        worker = engine.worker()
    engine.advance("2 h")
    assert engine.states([first, second]) == ["waiting" if how == "released" else "held", "expired"]
    (again,) = engine.claim(worker)
    assert (again.id, again.attempt) == (first, 2)
    assert written(engine) == [second]
    engine.assert_promises()


def test_one_in_its_old_place_waits_anew_and_hides_nobody_who_has_expired(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=100)
    one, two, three = (engine.enqueue() for _ in range(3))
    engine.cancel(two)
    engine.advance("50 s")
    again = engine.retry(two, head=True)
    engine.advance("60 s")
    assert engine.states([one, again, three]) == ["expired", "waiting", "expired"]
    lane = engine.lane()
    assert (lane["queue_length"], lane["total_expired"]) == (1, 2), "what has expired was counted as waiting"
    engine.policy(max_wait=1000)
    assert engine.states([one, again, three]) == ["expired", "waiting", "expired"], (
        "an outcome was taken back"
    )
    assert engine.drain(engine.worker()) == [again]
    engine.assert_promises()


def test_expired_ones_do_not_count_against_the_length(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60, max_queue_length=3)
    engine.pause()
    old = engine.fill(3)
    with pytest.raises(errors.QueueFull):
        engine.enqueue()
    engine.advance("60 s")
    young = engine.fill(3)
    with pytest.raises(errors.QueueFull) as caught:
        engine.enqueue()
    assert (caught.value.limit, caught.value.current) == (3, 3)
    with pytest.raises(errors.QueueFull):
        engine.fill(1)
    assert written(engine) == [], "an enqueue waited for, or held, the lane's slot lock"
    assert numbers(engine) == (3, 0, 3)
    engine.advance("60 s")
    engine.tick()
    assert written(engine) == old + young
    last = engine.fill(3)
    engine.resume()
    engine.policy(max_concurrent=3)
    assert engine.drain(engine.worker()) == last
    engine.assert_promises()


@pytest.mark.parametrize("scope", ["lane", "action", "pack", "everything", "declared"])
@pytest.mark.parametrize("new", [3600, "unlimited", None, 1])
def test_another_max_wait_changes_no_outcome(conn: Connection, scope: str, new: object) -> None:
    engine = Engine(conn)

    def say(value: object) -> None:
        values = Jsonb({"max_wait": value})
        if scope == "lane":
            engine.policy("web.get", "g", max_wait=value)
        elif scope == "action":
            engine.policy("web.get", max_wait=value)
        elif scope == "pack":
            engine.rows("select * from pgfifo.set_pack_policy('web', %s)", values)
        elif scope == "everything":
            engine.rows("select * from pgfifo.set_default_policy(%s)", values)
        else:
            engine.one("select pgfifo.declare_action('web.get', %s)", values)

    engine.enqueue("web.get", group="g")
    engine.drain(engine.worker("web.get"), ["web.get"])
    say(60)
    engine.pause("web.get")
    old = engine.fill(3, "web.get", "g")
    engine.advance("50 s")
    young = engine.fill(2, "web.get", "g")
    engine.advance("10 s")
    shown = [engine.show(id_) for id_ in old]
    assert {show["state"] for show in shown} == {"expired"}
    say(new)
    assert [engine.show(id_) for id_ in old] == shown, "an outcome has changed"
    engine.advance("49.9 s")
    expected = "expired" if new == 1 else "waiting"
    assert engine.states(young) == [expected] * 2
    engine.advance("0.2 s")
    assert engine.states(young) == [expected] * 2, "the old value is still in force"
    engine.resume("web.get")
    assert engine.drain(engine.worker("web.get"), ["web.get"]) == ([] if new == 1 else young)
    engine.assert_promises()


def test_a_delayed_one_waits_from_when_it_joins(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60)
    engine.pause()
    delayed = engine.one("select pgfifo.enqueue('deploy', p_delay => '100 s')")
    first = engine.enqueue()
    engine.advance("100 s")
    assert engine.states([first, delayed]) == ["expired", "delayed"]
    engine.advance("50 s")
    second = engine.enqueue()  # lets it join, ahead of itself
    assert engine.states([first, delayed, second]) == ["expired", "waiting", "waiting"]
    assert [engine.position(id_) for id_ in (delayed, second)] == [1, 2]
    engine.advance("50 s")
    assert engine.states([delayed, second]) == ["waiting", "waiting"]
    engine.advance("11 s")
    assert engine.states([delayed, second]) == ["expired", "expired"]
    assert numbers(engine) == (0, 0, 3)
    engine.resume()
    assert engine.drain(engine.worker()) == []
    assert written(engine) == sorted([first, delayed, second])
    engine.assert_promises()


def test_an_expired_one_gives_up_its_keys(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60)
    engine.pause()
    put = "select id, created from pgfifo.enqueue_one('deploy', %s, %s, {} => %s, p_on_item => 'replace')"
    dedup, item = put.format("p_dedup_key"), put.format("p_item_key")
    old = [
        engine.rows(dedup, Jsonb(1), "a", "k")[0][0],
        engine.rows(item, Jsonb(1), "b", "k")[0][0],
    ]
    assert engine.rows(dedup, Jsonb(2), "c", "k") == [(old[0], False)]
    assert engine.rows(item, Jsonb(2), "b", "k") == [(old[1], False)]
    engine.advance("60 s")
    new = [
        engine.rows(dedup, Jsonb(3), "c", "k")[0][0],
        engine.rows(item, Jsonb(3), "b", "k")[0][0],
    ]
    assert not set(new) & set(old), "an enqueue was joined to one that had expired"
    assert written(engine) == old
    assert [engine.show(id_)["payload"] for id_ in old + new] == [1, 2, 3, 3]
    engine.resume()
    assert sorted(engine.drain(engine.worker())) == new
    engine.assert_promises()


def test_a_slot_is_not_kept_from_by_what_has_expired(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60)
    holder = engine.one("select pgfifo.worker_start('s', 'here', 1, '{}', 1, '1 h', false, 'slot')")
    enter = "select state from pgfifo.slot_enter(%s, %s, 'deploy')"
    tried = "select state from pgfifo.slot_enter(%s, %s, 'deploy', p_try => true)"
    engine.fill(2)
    assert engine.one(enter, holder, 1) == "waiting"
    engine.advance("30 s")
    assert engine.one(enter, holder, 2) == "waiting"
    assert engine.one(tried, holder, 3) is None
    second = engine.one("select max(id) from pgfifo._executions")
    engine.advance("30 s")
    # Nobody but those who wait for slots is here: they move the lane on.
    assert engine.one("select state from pgfifo.slot_look(%s, %s)", holder, second - 1) == "expired"
    assert engine.one("select state from pgfifo.slot_look(%s, %s)", holder, second) == "running"
    assert engine.one("select pgfifo.finish(%s, 1, 'succeeded')", second) == "succeeded"
    engine.fill(2)
    engine.advance("60 s")
    assert engine.one(tried, holder, 4) == "running"
    engine.assert_promises()


def test_it_cannot_be_overridden_for_a_time(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue()
    with pytest.raises(errors.InvalidValue):
        engine.rows("select * from pgfifo.override_policy('deploy', '{\"max_wait\": 5}', '1 h')")


def test_a_lanes_own_max_wait_wins(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=10)
    engine.policy(group="long", max_wait=100)
    engine.policy(group="never", max_wait="unlimited")
    ids = [engine.enqueue(group=group) for group in ("short", "long", "never")]
    engine.advance("10 s")
    assert engine.states(ids) == ["expired", "waiting", "waiting"]
    engine.advance("90 s")
    assert engine.states(ids) == ["expired", "expired", "waiting"]
    engine.advance("10 days")
    assert engine.drain(engine.worker()) == ids[2:]
    engine.assert_promises()


def test_a_change_of_max_wait_gives_up_on_a_lane_that_somebody_keeps(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=600)
    engine.enqueue(group="a")
    kept = engine.enqueue(group="b")
    engine.advance("5 min")
    other = engine.enqueue(group="b")
    engine.advance("5 min")
    holder = Engine(connect(autocommit=False))
    holder.cancel(other)
    with pytest.raises(errors.Busy) as caught:
        engine.policy(max_wait=6000)
    assert caught.value.pids == [holder.pid]
    holder.conn.rollback()
    assert engine.state(kept) == "expired"
    engine.policy(max_wait=6000)
    assert engine.states([kept, other]) == ["expired", "waiting"]


def test_cancel_and_finish_by_hand_come_too_late(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60)
    ids = engine.fill(4)
    engine.advance("60 s")
    assert engine.cancel(ids[2]) == "expired"
    assert engine.one("select pgfifo.finish_execution(%s, 'succeeded')", ids[1]) is False
    assert written(engine) == ids[1:3], "more than was asked for was touched"
    where = Jsonb({"action": "deploy"})
    for dry_run in (True, False):
        query = "select cancelled, requested from pgfifo.cancel_where(%s, p_dry_run => %s)"
        assert engine.rows(query, where, dry_run) == [(0, 0)]
    assert engine.states(ids) == ["expired"] * 4
    assert engine.rows("select 1 from pgfifo.audit where what in ('cancel', 'finish')") == []
    assert numbers(engine) == (0, 0, 4)
    engine.assert_promises()


def test_a_cancel_that_waits_for_the_lane_finds_it_expired_then(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60)
    first, second = engine.fill(2)
    holder, canceller = Engine(connect(autocommit=False)), Engine(connect())
    holder.cancel(first)
    cancel = in_background(lambda: canceller.cancel(second))
    wait_until_blocked(conn, canceller.pid)
    engine.advance("60 s")
    holder.conn.commit()
    assert cancel.result() == "expired"
    engine.assert_promises()


def test_thousands_are_passed_over_in_bounded_pieces(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60)
    engine.fill(3500)
    engine.advance("60 s")
    young = engine.fill(2)
    other = engine.enqueue("other")
    worker = engine.worker("deploy", "other")
    answer = engine.work(worker, 5, ("deploy", "other"))
    assert answer.ids == [other], "a lane with much to pass over held up another, or was started out of order"
    assert len(written(engine)) <= 1100
    assert answer.more in ("now", "soon"), "nobody would come back soon"
    assert numbers(engine)[0] == 2
    assert engine.drain(worker) == young
    assert len(written(engine)) == 3500
    assert numbers(engine) == (0, 0, 3500)
    engine.assert_promises()


def test_beside_an_open_cancel_maintenance_passes_the_lane_by(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60)
    first, second = engine.fill(2)
    holder = Engine(connect(autocommit=False))
    holder.cancel(second)
    engine.advance("60 s")
    conn.execute("set statement_timeout = '5s'")
    engine.tick()
    assert written(engine) == []
    holder.conn.rollback()
    engine.tick(2)
    assert written(engine) == [first, second]


def test_a_relaxed_lane_expires_late_arrivals_too(conn: Connection, connect: Connect) -> None:
    """An older one that commits behind the consumed mark, after its time."""
    engine = Engine(conn)
    engine.policy(max_wait=60, ordering="relaxed")
    engine.policy(group="", max_concurrent=1)  # makes the lane
    late = Engine(connect(autocommit=False))
    early = late.fill(2)
    younger = engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    assert start.id == younger[0]
    engine.advance("60 s")
    late.conn.commit()
    assert numbers(engine) == (0, 1, 3)
    assert engine.states(early) == ["expired"] * 2
    engine.hand_in(worker, start)
    assert engine.drain(worker) == []
    assert written(engine) == [*early, younger[1]]
    assert numbers(engine) == (0, 0, 3)
    engine.assert_promises(strict=False)


def test_a_clock_that_was_set_back_starts_nothing_too_late(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60, max_concurrent=5)
    engine.advance("1 h")
    ahead = engine.fill(1)
    engine.advance("-1 h")
    behind = engine.fill(2)
    engine.advance("60 s")
    assert engine.states(ahead + behind) == ["waiting", "expired", "expired"]
    assert [start.id for start in engine.claim(engine.worker(), 5)] == ahead
    assert written(engine) == behind
    engine.assert_promises()


def test_unserved_actions_and_full_lanes_are_written_down_by_maintenance(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60)
    full = engine.fill(3)
    (start,) = engine.claim(engine.worker())
    engine.policy("nobody", max_wait=60)
    unserved = engine.fill(2, "nobody")
    engine.advance("60 s")
    engine.tick()
    assert written(engine) == full[1:] + unserved
    assert engine.state(start.id) == "running"
    engine.assert_promises()


def test_an_idle_lane_goes_after_what_was_in_it_has_expired(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60, lane_retention=1)
    engine.fill(3, group="g")
    engine.advance("1 h")
    engine.tick()
    assert engine.drain(engine.worker()) == []
    engine.tick(5)
    assert engine.rows("select 1 from pgfifo.lanes") == []
    assert engine.stats()["total_expired"] == 3


def test_beside_workers_producers_and_a_moving_clock(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=30, max_concurrent=2)
    seen: list[int] = []

    def work() -> None:
        hand = Hand(connect())
        answer = hand.turn(3)
        for _ in range(150):
            seen.extend(answer.ids)
            answer = hand.turn(3, answer.starts)
        seen.extend(answer.ids)
        while hand.to_hand_in or answer.starts:
            answer = hand.turn(0, answer.starts)

    def produce() -> None:
        producer = Engine(connect())
        for n in range(200):
            producer.enqueue(group=str(n % 4))

    threads = [in_background(work), in_background(work), in_background(produce)]
    while not all(thread.done for thread in threads):
        engine.advance(f"{random.choice([0, 1, 5, 20])} s")
        numbers_now = engine.stats()
        assert numbers_now["total_enqueued"] == sum(
            numbers_now[name] for name in ("total_completed", "queue_length", "active_count")
        )
    for thread in threads:
        thread.result()
    engine.drain(engine.worker())
    waiting, active, expired = numbers(engine)
    assert (waiting, active) == (0, 0)
    assert expired + len(seen) <= 200 <= expired + len(seen) + 200
    late = "select id from pgfifo.history where attempt > 0 and started_at - enqueued_at >= interval '30 s'"
    assert engine.rows(late) == [], "started after its time"
    engine.assert_promises()


@pytest.mark.parametrize("seed", range(6))
def test_against_a_model(conn: Connection, seed: int) -> None:
    """A queue of enqueue times in Python, and every number and state after each step.

    In minutes: what really passes between two looks must never make a difference.
    """
    rng = random.Random(seed)
    engine = Engine(conn)
    waits = rng.choice([10, 30])
    engine.policy(max_wait=waits * 60, max_concurrent=rng.choice([1, 3]))
    worker = engine.worker()
    line: list[tuple[int, datetime]] = []
    running: dict[int, Any] = {}
    started: set[int] = set()
    delayed: list[tuple[int, datetime]] = []
    expired: set[int] = set()

    def join() -> None:
        # Those that are due join with whatever looks at the lane; when, is told by their rows.
        joined = dict(engine.rows("select id, joined_at from pgfifo._executions where joined_at is not null"))
        for id_, at in list(delayed):
            if id_ in joined:
                assert joined[id_] >= at
                delayed.remove((id_, at))
                line.append((id_, joined[id_]))
        tickets = dict(engine.rows("select id, ticket from pgfifo._executions"))
        line.sort(key=lambda each: tickets.get(each[0], 0))

    def settle() -> None:
        join()
        now = engine.one("select pgfifo._now()")
        for id_, at in list(line):
            if id_ not in started and at + timedelta(minutes=waits) <= now:
                line.remove((id_, at))
                expired.add(id_)

    for _ in range(60):
        step = rng.choice(
            [
                "enqueue",
                "delay",
                "enqueue",
                "claim",
                "finish",
                "release",
                "advance",
                "cancel",
                "maintain",
                "longer",
            ]
        )
        settle()
        if step == "enqueue":
            line += [(id_, engine.show(id_)["enqueued_at"]) for id_ in engine.fill(rng.randint(1, 4))]
        elif step == "delay":
            joins = engine.one("select pgfifo._now()") + timedelta(minutes=rng.choice([2, 7]))
            delayed.append((engine.one("select pgfifo.enqueue('deploy', p_run_at => %s)", joins), joins))
        elif step == "claim":
            starts = engine.claim(worker, rng.randint(1, 4))
            join()
            for start in starts:
                assert start.id == line[0][0], (
                    f"seed {seed}: {start.id} was started, and {line[0][0]} was next"
                )
                line.pop(0)
                running[start.id] = start
                started.add(start.id)
        elif step == "finish" and running:
            _, start = running.popitem()
            engine.hand_in(worker, start)
        elif step == "release" and running:
            id_, start = running.popitem()
            engine.release(start)
            line.append((id_, engine.show(id_)["enqueued_at"]))
        elif step == "advance":
            engine.advance(f"{rng.choice([1, 4, 9])} min")
        elif step == "cancel" and line:
            id_, at = rng.choice(line)
            assert engine.cancel(id_) == "cancelled"
            line.remove((id_, at))
        elif step == "maintain":
            engine.tick()
        elif step == "longer":
            waits += 5
            engine.policy(max_wait=waits * 60)
        settle()
        stats = engine.stats()
        assert (stats["queue_length"], stats["active_count"], stats["total_expired"]) == (
            len(line),
            len(running),
            len(expired),
        ), f"seed {seed}, after {step}"
        assert [engine.position(id_) for id_, _ in line] == list(range(1, len(line) + 1))
        assert set(engine.states(expired)) <= {"expired"}
    engine.assert_promises()


def test_a_claim_costs_the_same_over_expired_ones_under_a_held_snapshot(
    conn: Connection, connect: Connect
) -> None:
    """Dead entries of what has expired stay behind the consumed mark."""
    engine = Engine(conn)
    engine.policy(max_wait=60)
    worker = engine.worker()

    def buffers() -> int:
        engine.enqueue()
        plan = engine.one(
            "explain (analyze, buffers, format json) select * from pgfifo.work(%s, '{deploy}', 1)", worker
        )
        top = plan[0]["Plan"]
        used = int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])
        (running,) = engine.rows("select id, attempt from pgfifo.runs")
        engine.rows("select * from pgfifo.finish(%s, %s, 'succeeded')", *running)
        return used

    buffers()
    first = buffers()
    holder = connect(autocommit=False)
    holder.execute("set transaction isolation level repeatable read")
    holder.execute("select count(*) from pgfifo.executions")
    engine.fill(3000)
    engine.advance("60 s")
    engine.drain(worker)
    for _ in range(3):
        buffers()
    assert buffers() < first + 60, "claims walk over what has expired"
