"""Shared limits: slots and rates that several actions draw from."""

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgfifo import errors
from tests.support.engine import Engine, item

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def share(engine: Engine, name: str = "api", **values: object) -> None:
    engine.rows("select * from pgfifo.set_shared_limit(%s, %s)", name, Jsonb(values))


def active(engine: Engine, name: str = "api") -> int:
    return int(engine.one("select active_count from pgfifo.shared_limits where name = %s", name))


def prepare(engine: Engine, *actions: str, slots: int = 10) -> None:
    for action in actions:
        engine.policy(action, max_concurrent=slots)


def test_shared_slots_hold_across_actions_and_are_given_back(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "a", "b", "c")
    share(engine, max_concurrent=3, actions=["a", "b"])
    a, b, c = engine.fill(5, "a"), engine.fill(5, "b"), engine.fill(5, "c")
    actions = ["a", "b", "c"]
    worker = engine.worker(*actions)
    starts = engine.claim(worker, 50, actions)
    assert Counter(s.action for s in starts)["c"] == 5, "a lane that does not draw was stopped"
    drawn = [s for s in starts if s.action != "c"]
    assert len(drawn) == 3
    assert active(engine) == 3
    assert engine.claim(worker, 50, actions) == []
    engine.hand_in(worker, *[s for s in starts if s.action == "c"])
    seen = Counter(s.action for s in drawn)
    while drawn:
        answer = engine.work(worker, 50, actions, [item(drawn[0])])
        drawn = drawn[1:] + answer.starts
        seen.update(s.action for s in answer.starts)
        assert active(engine) == len(drawn) <= 3
    assert seen == {"a": 5, "b": 5}
    assert engine.started("a") == a
    assert engine.started("b") == b
    assert engine.started("c") == c
    assert active(engine) == 0
    engine.assert_promises()


def test_an_exhausted_shared_limit_lets_nobody_overtake_in_the_lane(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "a", "b")
    share(engine, max_concurrent=1, actions=["a", "b"])
    engine.fill(1, "b")
    worker = engine.worker("a", "b")
    (holder,) = engine.claim(worker, 5, ["b"])
    ids = engine.fill(3, "a")
    assert engine.claim(worker, 5, ["a"]) == []
    engine.hand_in(worker, holder)
    for expected in ids:
        (start,) = engine.claim(worker, 5, ["a"])
        assert start.id == expected
        engine.hand_in(worker, start)
    engine.assert_promises()


def test_lanes_that_compete_for_a_shared_slot_take_turns(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "a")
    share(engine, max_concurrent=1, actions=["a"])
    for group in ("x", "y", "z"):
        engine.fill(4, "a", group)
    worker = engine.worker("a")
    turns = []
    (start,) = engine.claim(worker, 5, ["a"])
    while True:
        turns.append(start.group)
        answer = engine.work(worker, 5, ["a"], [item(start)])
        if not answer.starts:
            break
        (start,) = answer.starts
    assert len(turns) == 12
    assert all(len(set(turns[n : n + 3])) == 3 for n in range(1, 8)), turns
    assert engine.one("select count(*) from pgfifo.shared_waits") == 0
    engine.assert_promises()


def test_a_waiting_lane_sleeps_until_it_is_called(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "a")
    share(engine, max_concurrent=1, actions=["a"])
    for number in range(20):
        engine.fill(2, "a", str(number))
    worker = engine.worker("a")
    (start,) = engine.claim(worker, 1, ["a"])
    assert engine.claim(worker, 50, ["a"]) == []
    assert engine.one("select count(*) from pgfifo.marks") == 0, (
        "lanes that can not start are looked at again and again"
    )
    engine.tick(3)
    assert engine.one("select count(*) from pgfifo.marks") == 0
    assert engine.sweep_found() == 0
    engine.hand_in(worker, start)
    assert len(engine.claim(worker, 50, ["a"])) == 1
    engine.assert_promises()


def test_a_lane_whose_action_nobody_serves_does_not_keep_the_others_waiting(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "served", "abandoned")
    share(engine, max_concurrent=1, actions=["served", "abandoned"])
    engine.fill(1, "served")
    engine.fill(3, "abandoned")
    both = engine.worker("served", "abandoned")
    (holder,) = engine.claim(both, 1, ["served"])
    assert engine.claim(both, 5, ["abandoned"]) == [], "and now it waits, first in its turn"
    engine.fill(3, "served")
    worker = engine.worker("served")
    assert engine.claim(worker, 5, ["served"]) == []
    engine.hand_in(both, holder)
    done = 0
    for _ in range(20):
        starts = engine.claim(worker, 5, ["served"])
        done += len(starts)
        engine.hand_in(worker, *starts)
        engine.tick()
    assert done == 3
    engine.assert_promises()


def test_many_lanes_that_nobody_has_looked_at_do_not_keep_a_free_shared_slot_from_all(
    conn: Connection,
) -> None:
    """Whoever is called for it has a mark behind theirs; it would be free until all were looked at."""
    engine = Engine(conn)
    engine.policy("a", max_concurrent=1)
    share(engine, max_concurrent=1, actions=["a"])
    engine.enqueue_many("a", [{}] * 400, [f"{n:03}" for n in range(400)])
    worker = engine.worker("a")
    (held,) = engine.claim(worker, 5, ["a"])
    # Their turn lasts a second, however long the first claim took.
    conn.execute("update pgfifo.shared_waits set called_at = pgfifo._now() where called_at is not null")
    answer = engine.work(worker, 5, ["a"], [item(held)])
    assert answer.starts == [], "it is the turn of those who were called"
    engine.advance("1100 ms")
    started = [held.id]
    for _ in range(3):
        (held,) = engine.claim(worker, 5, ["a"])
        started.append(held.id)
        engine.hand_in(worker, held)
    looked_at = engine.one("select count(*) from pgfifo.shared_waits")
    assert looked_at < 390, "they had all been looked at: the test says nothing"
    rest = engine.drain(worker, ["a"])
    assert len(set(started + rest)) == 400
    engine.assert_promises()


@pytest.mark.parametrize("end", ["failed", "released", "lost", "finished by an operator", "cancelled"])
def test_a_shared_slot_comes_back_however_an_attempt_ends(conn: Connection, end: str) -> None:
    engine = Engine(conn)
    prepare(engine, "a", "b")
    engine.policy("a", backoff="constant", backoff_initial=60, backoff_jitter=0)
    share(engine, max_concurrent=1, packs=[], actions=["a", "b"])
    engine.fill(1, "a")
    first = engine.worker("a", "b")
    (start,) = engine.claim(first, 1, ["a"])
    (other,) = engine.fill(1, "b")
    second = engine.worker("b")
    assert engine.claim(second, 1, ["b"]) == []
    if end == "failed":
        assert engine.finish(start, "failed") == "held", "it keeps its lane's slot"
    elif end == "released":
        engine.policy("a", max_concurrent=1)
        engine.release(start)
        engine.pause("a")
    elif end == "lost":
        for _ in range(33):
            engine.heartbeat(second)
            engine.tick()
    elif end == "cancelled":
        engine.cancel(start.id)
        engine.hand_in(first, start, outcome="cancelled")
    else:
        engine.one("select pgfifo.finish_execution(%s, 'failed', 'stuck')", start.id)
    engine.tick()
    assert [s.id for s in engine.claim(second, 1, ["b"])] == [other], "its shared slot leaked"
    assert active(engine) == 1
    engine.assert_promises()


def test_the_next_attempt_of_a_held_one_draws_again(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "a", "b")
    engine.policy("a", backoff="constant", backoff_initial=5, backoff_jitter=0)
    share(engine, max_concurrent=1, actions=["a", "b"])
    engine.fill(1, "a")
    worker = engine.worker("a", "b")
    (start,) = engine.claim(worker, 1, ["a"])
    engine.finish(start, "failed")
    engine.fill(1, "b")
    (other,) = engine.claim(worker, 1, ["b"])
    engine.advance("6 s")
    assert engine.claim(worker, 5, ["a"]) == [], "a retry started over a shared limit"
    engine.hand_in(worker, other)
    (again,) = engine.claim(worker, 5, ["a"])
    assert again.attempt == 2
    assert active(engine) == 1
    engine.assert_promises()


def test_a_rolled_back_claim_takes_no_shared_slot(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    prepare(engine, "a")
    share(engine, max_concurrent=1, actions=["a"])
    (first,) = engine.fill(1, "a")
    worker = engine.worker("a")
    other = Engine(connect(autocommit=False))
    assert len(other.claim(worker, 1, ["a"])) == 1
    other.conn.rollback()
    assert active(engine) == 0
    assert [s.id for s in engine.claim(worker, 1, ["a"])] == [first]


def test_a_claim_beside_one_that_has_the_limit_looks_again_soon(conn: Connection, connect: Connect) -> None:
    """Another lane's claim has the shared limit: this one starts nothing over it, and is not lost."""
    engine = Engine(conn)
    prepare(engine, "a", "b")
    share(engine, max_concurrent=5, actions=["a", "b"])
    engine.fill(1, "a")
    (second,) = engine.fill(1, "b")
    worker = engine.worker("a", "b")
    other = Engine(connect(autocommit=False))
    assert len(other.claim(worker, 1, ["a"])) == 1
    answer = engine.work(worker, 5, ["b"])
    assert answer.ids == []
    assert answer.more in ("soon", "later")
    other.conn.commit()
    engine.advance("1 s")
    assert engine.work(worker, 5, ["b"]).ids == [second]
    engine.assert_promises()


def test_a_shared_rate_holds_for_all_that_draw_together(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "a", "b", slots=100)
    share(engine, rate="4/min", burst=1, actions=["a", "b"])
    for action in ("a", "b"):
        for group in ("x", "y"):
            engine.fill(3, action, group)
    worker = engine.worker("a", "b")
    for _ in range(200):
        engine.hand_in(worker, *engine.claim(worker, 50, ["a", "b"]))
        engine.advance("1 s")
    found = [at for (at,) in engine.rows("select started_at from pgfifo.executions order by 1")]
    assert len(found) == 12
    steps = [(late - early).total_seconds() for early, late in itertools.pairwise(found)]
    assert all(15 <= step < 25 for step in steps), steps
    assert engine.one("select count(*) from pgfifo.timers") == 0, (
        "timers were left for lanes that wait no more"
    )
    engine.assert_promises()


def test_a_shared_rate_counts_no_starts_from_before_it_was_set(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "a")
    share(engine, max_concurrent=1, actions=["a"])
    engine.fill(8, "a")
    worker = engine.worker("a")
    (start,) = engine.claim(worker, 5, ["a"])
    engine.hand_in(worker, start)
    share(engine, max_concurrent=None, rate="5/h")
    assert len(engine.claim(worker, 10, ["a"])) == 5, "a rate that was just set was taken for used up"
    engine.assert_promises()


def test_the_pack_draws_with_the_actions_that_are_yet_to_come(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "billing.invoice")
    share(engine, max_concurrent=1, packs=["billing"])
    engine.fill(2, "billing.invoice")
    engine.fill(2, "billing.refund")
    actions = ["billing.invoice", "billing.refund"]
    worker = engine.worker(*actions)
    assert len(engine.claim(worker, 5, actions)) == 1
    engine.assert_promises()


def test_two_shared_limits_both_hold(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "a", "b")
    share(engine, "both", max_concurrent=3, actions=["a", "b"])
    share(engine, "only-a", max_concurrent=1, actions=["a"])
    engine.fill(4, "a")
    engine.fill(4, "b")
    worker = engine.worker("a", "b")
    held = engine.claim(worker, 50, ["a", "b"])
    assert Counter(s.action for s in held) == {"a": 1, "b": 2}
    done: Counter[str] = Counter()
    while held:
        start = held.pop(0)
        done[start.action] += 1
        held += engine.work(worker, 50, ["a", "b"], [item(start)]).starts
        running = Counter(s.action for s in held)
        assert running["a"] <= 1
        assert sum(running.values()) <= 3
    assert done == {"a": 4, "b": 4}
    engine.assert_promises()


def test_a_raised_limit_fills_at_once_and_a_lowered_one_drains(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "a")
    share(engine, max_concurrent=1, actions=["a"])
    engine.fill(8, "a")
    worker = engine.worker("a")
    held = engine.claim(worker, 50, ["a"])
    share(engine, max_concurrent=4)
    held += engine.claim(worker, 50, ["a"])
    assert len(held) == 4
    share(engine, max_concurrent=2)
    for expected in (3, 2, 2):
        answer = engine.work(worker, 50, ["a"], [item(held.pop())])
        held += answer.starts
        assert len(held) == expected
    engine.assert_promises()


def test_what_waited_goes_on_when_the_limit_is_dropped_or_draws_no_more(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "a", "b")
    share(engine, max_concurrent=1, actions=["a", "b"])
    engine.fill(2, "a")
    engine.fill(2, "b")
    worker = engine.worker("a", "b")
    (start,) = engine.claim(worker, 1, ["a"])
    assert engine.claim(worker, 5, ["a", "b"]) == []
    share(engine, actions=["a"])
    assert len(engine.claim(worker, 5, ["b"])) == 2
    engine.one("select pgfifo.drop_shared_limit('api')")
    assert len(engine.claim(worker, 5, ["a"])) == 1
    engine.hand_in(worker, start)
    engine.assert_promises()


def test_what_started_before_it_drew_gives_nothing_back(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "a")
    engine.fill(3, "a")
    worker = engine.worker("a")
    before = engine.claim(worker, 1, ["a"])
    share(engine, max_concurrent=1, actions=["a"])
    (drawn,) = engine.claim(worker, 5, ["a"])
    engine.hand_in(worker, *before)
    assert active(engine) == 1
    assert engine.claim(worker, 5, ["a"]) == []
    engine.hand_in(worker, drawn)
    assert active(engine) == 0
    assert len(engine.claim(worker, 5, ["a"])) == 1
    engine.assert_promises()


def test_check_knows_a_leaked_shared_slot(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "a")
    share(engine, max_concurrent=2, actions=["a"])
    engine.fill(1, "a")
    worker = engine.worker("a")
    engine.claim(worker, 1, ["a"])
    assert engine.check() == []
    conn.execute("update pgfifo.runs set draws = null")
    assert [(severity, kind, lane) for severity, kind, lane, _ in engine.check()] == [
        ("violation", "shared limit", "api")
    ]


FAULTS = {
    "a slot that nobody holds": "update pgfifo.shared_ledger set active = active + 1",
    "a slot that is held and not counted": "update pgfifo.shared_ledger set active = active - 1",
    "a return below the floor": "update pgfifo.shared_ledger set active = active + 1,"
    " returns_floor = nextval('pgfifo.mark_ids') + 1; insert into pgfifo.shared_returns"
    " select g.limit_id, g.returns_floor - 1 from pgfifo.shared_ledger g",
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_check_repairs_a_shared_limit_that_was_counted_wrong(conn: Connection, fault: str) -> None:
    engine = Engine(conn)
    prepare(engine, "a", "b")
    share(engine, max_concurrent=2, actions=["a", "b"])
    engine.fill(3, "a")
    engine.fill(1, "b")
    worker = engine.worker("a", "b")
    starts = engine.claim(worker, 1, ["a"])
    conn.execute(fault.encode())
    assert [(severity, kind, lane) for severity, kind, lane, _ in engine.check()] == [
        ("violation", "shared limit", "api")
    ]
    said = engine.rows("select * from pgfifo.check(true)")
    assert ("repaired", "shared limit", "api") in [row[:3] for row in said]
    assert (engine.check(), active(engine)) == ([], 1)
    assert [row[:2] for row in engine.rows("select * from pgfifo.check(true)")] == [], "mended twice"
    starts += engine.claim(worker, 5, ["a", "b"])
    assert len(starts) == 2, "its slots are not as many as before"
    engine.hand_in(worker, *starts)
    assert len(engine.drain(worker, ["a", "b"])) == 2
    assert active(engine) == 0
    engine.assert_promises()


def test_check_that_repairs_a_shared_limit_calls_who_waits_for_it(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "a")
    share(engine, max_concurrent=1, actions=["a"])
    engine.fill(1, "a")
    conn.execute("update pgfifo.shared_ledger set active = 1")
    worker = engine.worker("a")
    assert engine.claim(worker, 1, ["a"]) == []
    assert engine.claim(worker, 1, ["a"]) == []
    engine.rows("select * from pgfifo.check(true)")
    called = engine.one("select called_at is not null from pgfifo.shared_waits")
    assert called, "nobody calls the lane that waits"
    assert len(engine.claim(worker, 1, ["a"])) == 1


def test_check_repairs_no_shared_limit_under_a_claim_and_miscounts_none_beside_a_finish(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    prepare(engine, "a")
    share(engine, max_concurrent=5, actions=["a"])
    engine.fill(4, "a")
    worker = engine.worker("a")
    starts = engine.claim(worker, 2, ["a"])
    conn.execute("update pgfifo.shared_ledger set active = active + 2")
    claiming = Engine(connect(autocommit=False))
    assert len(claiming.claim(worker, 1, ["a"])) == 1
    said = engine.rows("select * from pgfifo.check(true)")
    assert "repaired" not in [row[0] for row in said], "counted without the lock of who takes"
    claiming.conn.commit()
    finishing = Engine(connect(autocommit=False))
    finishing.hand_in(worker, starts[0])
    said = engine.rows("select * from pgfifo.check(true)")
    assert [row[0] for row in said if row[1] == "shared limit"] == ["violation", "repaired"]
    assert active(engine) == 3
    finishing.conn.commit()
    assert (active(engine), engine.check()) == (2, [])
    engine.claim(worker, 1, ["a"])
    assert (active(engine), engine.check()) == (3, [])
    engine.assert_promises()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_concurrent": 0}, "max_concurrent"),
        ({"rate": "fast"}, "rate"),
        ({"actions": "a"}, "actions"),
        ({"colour": 1}, "colour"),
        ({"actions": []}, "needs max_concurrent"),
    ],
)
def test_bad_values_are_refused_with_what_is_wrong(
    conn: Connection, values: dict[str, object], said: str
) -> None:
    with pytest.raises(errors.InvalidValue, match=said):
        Engine(conn).rows("select * from pgfifo.set_shared_limit('api', %s)", Jsonb(values))


def test_an_unknown_action_does_not_draw(conn: Connection) -> None:
    engine = Engine(conn)
    prepare(engine, "deploy")
    with pytest.raises(errors.UnknownAction, match="deploy"):
        share(engine, max_concurrent=1, actions=["deplyo"])
    assert engine.one("select count(*) from pgfifo.shared_limits") == 0


def test_shared_limits_hold_under_workers_that_claim_fail_cancel_and_change_them(
    conn: Connection, connect: Connect
) -> None:
    """Twenty clients; a watcher looks at the rows themselves, in one snapshot after the other."""
    engine = Engine(conn)
    actions = ["a", "b", "c"]
    for action in actions:
        engine.policy(
            action,
            max_concurrent=3,
            backoff="constant",
            backoff_initial=0.05,
            backoff_jitter=0,
            max_attempts=50,
        )
    share(engine, max_concurrent=5, rate="400/s", burst=20, actions=["a", "b"])
    ids = []
    for action in actions:
        for number in range(6):
            ids += engine.fill(20, action, str(number))
    stop = threading.Event()
    problems: list[str] = []
    most = {"limit": 5}

    def watch() -> None:
        watcher = Engine(connect())
        while not stop.is_set():
            running = watcher.one(
                "select count(*) from pgfifo.runs r join pgfifo.lanes l on l.id = r.lane_id"
                " join pgfifo.actions a on a.id = l.action_id"
                " where r.state = 'running' and a.name in ('a', 'b')"
            )
            if running > most["limit"]:
                problems.append(f"{running} of {most['limit']} were running")

    def consume(seed: int) -> None:
        dice = random.Random(seed)
        own = Engine(connect())
        worker = own.worker(*actions, lease="1 h")
        held: list[Any] = []
        while not stop.is_set():
            dice.shuffle(held)
            ended = held[: dice.randint(0, len(held))]
            held = held[len(ended) :]
            outcomes = [item(s, dice.choice(["succeeded"] * 8 + ["failed", "released"])) for s in ended]
            answer = own.work(worker, dice.randint(0, 4), actions, outcomes)
            held += answer.starts + [s for s in ended if answer.refused.get(s.id) == "retry"]
            if dice.random() < 0.02 and ids:
                own.cancel(dice.choice(ids))
        while held:
            refused = own.work(worker, 0, actions, [item(s, "released") for s in held]).refused
            held = [s for s in held if refused.get(s.id) == "retry"]

    threads = [threading.Thread(target=watch)] + [
        threading.Thread(target=consume, args=(n,)) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while time.monotonic() < until and not problems:
        if engine.stats("a")["total_completed"] + engine.stats("b")["total_completed"] + engine.stats("c")[
            "total_completed"
        ] == len(ids):
            break
        most["limit"] = 9
        share(engine, max_concurrent=9)
        time.sleep(0.1)
        share(engine, max_concurrent=5)
        time.sleep(0.1)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    worker = engine.worker(*actions)
    for _ in range(300):
        starts = engine.claim(worker, 10, actions)
        engine.hand_in(worker, *starts)
        if sum(engine.stats(action)["total_completed"] for action in actions) == len(ids):
            break
        engine.advance("0.1 s")
    assert sum(engine.stats(action)["total_completed"] for action in actions) == len(ids), (
        "somebody was forgotten"
    )
    assert active(engine) == 0
    engine.assert_promises()
