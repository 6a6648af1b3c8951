"""Events: all that happens is told, once, and in the order of its lane, whatever commits beside what."""

import asyncio
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import psycopg
import pytest
from psycopg.types.json import Jsonb

import pgfifo
from pgfifo import errors
from pgfifo.cli.events import Kind
from pgfifo.models import EventKind
from tests.support.database import in_background, told, wait_for, wait_until_blocked
from tests.support.engine import Engine, item
from tests.support.sqlworker import buffers

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


class Event(NamedTuple):
    """A row of what events answers."""

    kind: str
    at: Any
    action: str | None
    group: str | None
    id: int | None
    attempt: int | None
    detail: dict[str, Any]
    cursor: str


class Feed:
    """Somebody who follows."""

    def __init__(self, engine: Engine, cursor: str | None = None, **filter: object) -> None:  # noqa: A002
        self.engine = engine
        self.filter = filter or None
        self.cursor = cursor
        self.last: dict[str, Any] = {}
        if cursor is None:
            self.read()

    def read(self, limit: int = 1000) -> list[Event]:
        """Read on, once."""
        rows = self.engine.rows(
            "select * from pgfifo.events(%s, %s, %s)",
            self.cursor,
            limit,
            None if self.filter is None else Jsonb(self.filter),
        )
        *events, last = [Event(*row) for row in rows]
        assert last.kind == "cursor"
        self.cursor, self.last = last.cursor, last.detail
        return events

    def all(self, limit: int = 1000) -> list[Event]:
        """Read until there is nothing more now."""
        events = self.read(limit)
        while self.last["more"]:
            events += self.read(limit)
        return events


def brief(events: list[Event]) -> list[tuple[str, int | None]]:
    return [(event.kind, event.id) for event in events]


def test_the_life_of_executions(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff_initial=0)
    feed = Feed(engine)
    first, second = engine.fill(2)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    engine.one("select pgfifo.progress(%s, 1, 0.5, 'half')", first)
    engine.finish(start, "failed", "boom")
    (start,) = engine.claim(worker)
    events = feed.all()
    assert brief(events) == [
        ("enqueued", first),
        ("enqueued", second),
        ("started", first),
        ("lane_started", None),
        ("progress", first),
        ("attempt_ended", first),
        ("started", first),
    ]
    assert [event.attempt for event in events[2:]] == [1, None, 1, 1, 2]
    assert events[4].detail == {"fraction": 0.5, "message": "half"}
    assert events[5].detail == {"outcome": "failed", "error": "boom", "worker": worker}
    assert {(event.action, event.group) for event in events} == {("deploy", "")}
    assert events[0].at == engine.show(first)["enqueued_at"]
    engine.release(start)
    engine.cancel(first, "enough")
    engine.drain(worker)
    events = feed.all()
    assert brief(events) == [
        ("attempt_ended", first),
        ("finished", first),
        ("started", second),
        ("lane_started", None),
        ("finished", second),
        ("lane_empty", None),
        ("changed", first),
    ]
    assert (events[6].detail["what"], events[6].detail["answer"]) == ("cancel", "cancelled")
    assert events[0].detail["outcome"] == "released"
    assert events[1].detail == {"outcome": "cancelled", "error": "boom", "reason": "enough"}
    assert events[4].detail["outcome"] == "succeeded"
    assert feed.all() == []
    engine.assert_promises()


@pytest.mark.parametrize("mode", ["hold", "yield", "tail"])
@pytest.mark.parametrize("often", [True, False])
def test_all_attempts_are_told_in_every_failure_mode(conn: Connection, mode: str, often: bool) -> None:
    """Also those that began and ended since the last look, and of what is on its way to the line's end."""
    engine = Engine(conn)
    engine.policy(failure_mode=mode, backoff_initial=1, backoff_jitter=0, backoff="constant", max_attempts=4)
    feed = Feed(engine, kind=["started", "attempt_ended", "finished"])
    told: list[Event] = []
    (only,) = engine.fill(1)
    worker = engine.worker()
    for _ in range(4):
        (start,) = engine.claim(worker)
        told += feed.all() if often else []
        engine.finish(start, "failed", "boom")
        told += feed.all() if often else []
        engine.advance("1 s")
        if mode == "tail" and often:
            engine.tick()
            told += feed.all()
    told += feed.all()
    expected: list[tuple[str, int | None]] = [
        ("started", 1),
        ("attempt_ended", 1),
        ("started", 2),
        ("attempt_ended", 2),
    ]
    expected += [("started", 3), ("attempt_ended", 3), ("started", 4), ("finished", 4)]
    assert [(event.kind, event.attempt) for event in told] == expected
    assert told[-1].detail["outcome"] == "failed"
    assert {event.id for event in told} == {only}


def test_what_commits_late_is_told_late_and_not_missed(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.enqueue(group="a")
    engine.enqueue(group="b")
    feed = Feed(engine)
    slow = Engine(connect(autocommit=False))
    early = slow.enqueue(group="a")
    late = engine.enqueue(group="b")
    assert feed.all() == [], "told past somebody who is still under way"
    assert feed.last["held_back"]
    worker = engine.worker()
    engine.claim(worker, 2)
    assert feed.all() == []
    slow.conn.commit()
    events = feed.all()
    assert brief(events)[:2] == [("enqueued", early), ("enqueued", late)]
    assert sorted(kind for kind, _ in brief(events)[2:]) == [
        "lane_started",
        "lane_started",
        "started",
        "started",
    ]
    assert not feed.last["held_back"]
    other = Engine(connect(autocommit=False))
    other.enqueue(group="a")
    other.conn.rollback()
    assert feed.all() == []
    assert not feed.last["held_back"], "somebody who has gone holds events back"


def test_a_finish_in_an_open_transaction_is_told_after_its_commit(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    ids = [engine.enqueue(group=group) for group in "ab"]
    worker = engine.worker()
    starts = engine.claim(worker, 2)
    feed = Feed(engine)
    handler = Engine(connect(autocommit=False))
    handler.finish(starts[0])
    engine.finish(starts[1])
    assert feed.all() == []
    handler.conn.commit()
    assert brief(feed.all()) == [
        ("finished", ids[0]),
        ("lane_empty", None),
        ("finished", ids[1]),
        ("lane_empty", None),
    ]


def test_a_reader_inside_of_a_transaction_misses_nothing(conn: Connection, connect: Connect) -> None:
    """Its xid is older than what it reads then, so it proves nothing; what is proven it tells."""
    engine = Engine(conn)
    engine.enqueue()
    reader = Engine(connect(autocommit=False))
    feed = Feed(reader)
    reader.conn.rollback()
    reader.enqueue("other")  # an xid
    id_ = engine.enqueue()
    assert feed.all() == []
    reader.conn.rollback()
    reader.conn.execute("set transaction isolation level repeatable read")
    reader.one("select count(*) from pgfifo.executions")
    later = engine.enqueue()
    assert brief(feed.all()) in ([], [("enqueued", id_)])
    reader.conn.rollback()
    told = brief(feed.all())
    assert told[-1] == ("enqueued", later)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
def test_each_row_has_the_cursor_to_go_on_after_it(conn: Connection, limit: int) -> None:
    engine = Engine(conn)
    engine.policy(backoff_initial=0)
    begin = Feed(engine).cursor
    ids = engine.fill(4) + engine.fill(3, group="g")
    worker = engine.worker()
    for _ in range(3):
        for start in engine.claim(worker, 2):
            engine.finish(start, random.choice(["failed", "succeeded"]))
    engine.pause()
    engine.resume()
    whole = Feed(engine, begin).all(limit)
    kinds = Counter(kind for kind, _ in brief(whole))
    assert kinds["enqueued"] == len(ids)
    assert (kinds["paused"], kinds["resumed"]) == (1, 1)
    assert kinds["lane_started"] >= 2
    plain = [event[:-1] for event in whole]
    for n, event in enumerate(whole):
        assert [each[:-1] for each in Feed(engine, event.cursor).all(limit)] == plain[n + 1 :]


def test_from_the_beginning_everything_on_record_is_told(conn: Connection) -> None:
    engine = Engine(conn)
    ids = engine.fill(3)
    engine.drain(engine.worker())
    again = engine.fill(2)
    events = Feed(engine, "begin").all()
    assert [event.id for event in events if event.kind == "enqueued"] == ids + again
    assert [event.id for event in events if event.kind == "finished"] == ids


def test_filters_tell_the_same_events_and_fewer(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy("a")
    engine.policy("b")
    begin = Feed(engine).cursor
    ids = {
        key: engine.fill(2, action, group)
        for key, action, group in (("ag", "a", "g"), ("ah", "a", "h"), ("bg", "b", "g"))
    }
    worker = engine.worker("a", "b")
    engine.drain(worker, ("a", "b"))
    engine.pause("a")
    engine.pause("b", "g")
    whole = Feed(engine, begin).all()

    def told(**filter: object) -> list[tuple[str, int | None]]:  # noqa: A002
        return brief(Feed(engine, begin, **filter).all(3))

    def kept(condition: Callable[[Event], bool]) -> list[tuple[str, int | None]]:
        return sorted(
            brief([event for event in whole if condition(event) and "lane" not in event.kind]), key=str
        )

    for filter_, condition in (
        ({"action": "a"}, lambda event: event.action == "a"),
        ({"action": "a", "group": "g"}, lambda event: (event.action, event.group) == ("a", "g")),
        ({"action": "b", "group": "g"}, lambda event: (event.action, event.group) == ("b", "g")),
        ({"id": ids["ah"][1]}, lambda event: event.id == ids["ah"][1]),
        ({"kind": "finished"}, lambda event: event.kind == "finished"),
        (
            {"kind": ["paused", "started"], "action": "a"},
            lambda event: event.kind in ("paused", "started") and event.action == "a",
        ),
    ):
        found = [each for each in told(**filter_) if "lane" not in each[0]]
        assert sorted(found, key=str) == kept(condition), filter_
        assert found, filter_
    assert told(kind=[]) == []
    wrong: list[dict[str, object]] = [
        {"kind": "born"},
        {"group": "g"},
        {"colour": 1},
        {"id": "x"},
        {"action": 7},
    ]
    for bad in wrong:
        with pytest.raises(errors.InvalidValue):
            told(**bad)
    with pytest.raises(errors.UnknownAction):
        told(action="c")


def waits(conn: Connection, query: str, *parameters: object) -> Any:
    """Run a statement in the background, on a connection of its own."""
    return in_background(lambda: conn.execute(query, parameters))


def test_whoever_draws_a_number_owns_an_xid_before(conn: Connection, connect: Connect) -> None:
    """That is what proves that nobody can commit below a number: held up at the draw, each has its xid."""
    engine = Engine(conn)
    engine.policy(max_concurrent=10, backoff_initial=0, failure_mode="tail")
    engine.policy("yields", failure_mode="yield")
    engine.policy("holds", failure_mode="hold")
    actions = ["deploy", "yields", "holds"]
    for action in actions:
        engine.fill(10, action)
    worker = engine.worker(*actions)
    claimed = engine.claim(worker, 7, actions)
    starts = {start.action: start for start in claimed}
    done, released, cancelled = [start for start in claimed if start.action == "deploy"][:3]
    engine.cancel(engine.fill(1, "deploy")[0])
    (over,) = engine.rows("select max(id) from pgfifo.history")[0]
    waiting = engine.one("select max(id) from pgfifo._executions")
    calls: list[tuple[str, str, list[object]]] = [
        ("execution_ids", "pgfifo.enqueue('deploy')", []),
        ("execution_ids", "pgfifo.enqueue('deploy', p_delay => interval '1 h')", []),
        ("execution_ids", "pgfifo.enqueue_many('deploy', array['{}', '{}']::jsonb[])", []),
        ("execution_ids", "pgfifo.retry(%s)", [over]),
        ("event_ids", "pgfifo.work(%s, '{deploy}', 1)", [worker]),
        ("event_ids", "pgfifo.work(%s, '{}', 0, null, %s)", [worker, Jsonb([item(done)])]),
        ("event_ids", "pgfifo.finish(%s, 1, 'succeeded')", [done.id]),
        ("event_ids", "pgfifo.finish(%s, 1, 'failed')", [done.id]),
        ("event_ids", "pgfifo.finish(%s, 1, 'failed')", [starts["yields"].id]),
        ("event_ids", "pgfifo.finish(%s, 1, 'failed')", [starts["holds"].id]),
        ("event_ids", "pgfifo.release(%s, 1)", [released.id]),
        ("event_ids", "pgfifo.progress(%s, 1, 0.5)", [cancelled.id]),
        ("event_ids", "pgfifo.cancel(%s)", [waiting]),
        ("audit_id_seq", "pgfifo.cancel(%s)", [cancelled.id]),
        ("audit_id_seq", "pgfifo.pause('deploy')", []),
        ("audit_id_seq", "pgfifo.set_policy('deploy', '{\"max_concurrent\": 3}')", []),
    ]
    caller, blocker = connect(autocommit=False), connect(autocommit=False)
    xid = "select backend_xid is not null from pg_stat_activity where pid = %s"
    for sequence, call, parameters in calls:
        blocker.execute(f"alter sequence pgfifo.{sequence} cache 1")
        calling = waits(caller, f"select {call}", *parameters)
        wait_until_blocked(conn, caller.info.backend_pid)
        assert engine.one(xid, caller.info.backend_pid), f"{call} drew a number before it had an xid"
        blocker.rollback()
        calling.result()
        caller.rollback()


def test_who_begins_now_is_told_what_is_being_written_now(conn: Connection, connect: Connect) -> None:
    """To begin is to wait for who is under way: what he commits is before it, or told."""
    engine = Engine(conn)
    engine.enqueue()
    slow, beginner = Engine(connect(autocommit=False)), connect()
    slow.enqueue()
    beginning = waits(beginner, "select * from pgfifo.events()")
    sleeping = "select wait_event = 'PgSleep' from pg_stat_activity where pid = %s"
    wait_for(lambda: engine.one(sleeping, beginner.info.backend_pid), message="the beginner to wait")
    slow.conn.commit()
    (row,) = beginning.result().fetchall()
    assert not row[6]["held_back"]
    after = engine.enqueue()
    assert brief(Feed(engine, row[7]).all()) == [("enqueued", after)]


def test_all_tell_the_same_however_often_they_look(conn: Connection) -> None:
    """One looks after each step, one in small pages, one once at the end; numbers may have gaps."""
    engine = Engine(conn)
    rng = random.Random(conn.info.backend_pid)
    actions = ("hold", "yield", "tail")
    for mode in actions:
        engine.policy(
            mode, failure_mode=mode, backoff_initial=1, backoff="constant", max_concurrent=2, max_attempts=4
        )
    begin = Feed(engine)
    often = Feed(engine)
    worker = engine.worker(*actions, lease="1 h")
    told: list[Event] = []
    running: list[Any] = []
    expected: list[tuple[str, str]] = []
    for step in range(90):
        chance = rng.random()
        if step < 80 and chance < 0.3:
            engine.fill(rng.randint(1, 3), rng.choice(actions), rng.choice("ab"))
        elif chance < 0.6:
            busy = {
                (action, group)
                for action, group, active in engine.rows(
                    "select action, group_text, active_count from pgfifo.lane_stats"
                )
                if active
            }
            starts = engine.claim(worker, rng.randint(1, 4), actions)
            expected += sorted({(start.action, start.group) for start in starts} - busy)
            running += starts
        elif chance < 0.9 and running:
            start = running.pop(rng.randrange(len(running)))
            engine.hand_in(worker, start, outcome=rng.choice(["succeeded", "failed", "failed", "released"]))
        elif chance < 0.94:
            unfinished = engine.rows(
                "select id from pgfifo.executions where state in ('waiting', 'delayed', 'held')"
            )
            if unfinished:
                engine.cancel(rng.choice(unfinished)[0])
        elif chance < 0.97:
            engine.one("select setval('pgfifo.event_ids', nextval('pgfifo.event_ids') + 30000)")
        engine.tick()
        told += often.all(rng.randint(1, 20))
    once = Feed(engine, begin.cursor).all(100_000)
    paged = Feed(engine, begin.cursor).all(3)
    assert len(once) > 50

    def plain(events: list[Event], *kinds: str) -> list[tuple[Any, ...]]:
        # Whether a lane is empty, and when the next attempt is due, is told as it is when one looks.
        return [
            (*event[:-2], {name: value for name, value in event.detail.items() if name != "due_at"})
            for event in events
            if event.kind in kinds
        ]

    changes = ("started", "attempt_ended", "finished", "lane_started")
    assert plain(told, *changes) == plain(once, *changes)
    assert plain(told, "enqueued") == plain(once, "enqueued")
    assert plain(paged, *changes) == plain(once, *changes)
    assert plain(paged, "lane_empty") == plain(once, "lane_empty")
    begun = [(event.action, event.group) for event in told if event.kind == "lane_started"]
    assert Counter(begun) == Counter(expected)
    for event, before in zip(told[1:], told[:-1], strict=True):
        if event.kind == "lane_started":
            assert (before.kind, before.action, before.group) == ("started", event.action, event.group)
    engine.assert_promises()


def test_what_ended_while_it_was_held_has_all_its_events(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff_initial=60)
    feed = Feed(engine, kind=["started", "attempt_ended", "finished"])
    (only,) = engine.fill(1)
    engine.finish(engine.claim(engine.worker())[0], "failed", "boom")
    engine.cancel(only)
    events = feed.all()
    assert [(event.kind, event.attempt) for event in events] == [
        ("started", 1),
        ("attempt_ended", 1),
        ("finished", 1),
    ]
    assert events[1].detail["outcome"] == "failed"
    assert events[2].detail["outcome"] == "cancelled"


def test_a_cursor_from_before_what_retention_has_removed_is_refused(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy("short", retention=60)
    engine.policy("long")
    feed, other = Feed(engine), Feed(engine, action="long")
    gone = engine.fill(2, "short")
    kept = engine.fill(2, "long")
    engine.drain(engine.worker("short", "long"), ("short", "long"))
    after = Feed(engine)
    engine.advance("1 h")
    engine.maintain()
    assert engine.rows("select id from pgfifo.history where id = any (%s)", gone) == []
    with pytest.raises(pgfifo.EventsGone, match="retention has removed executions of short") as caught:
        feed.read()
    assert caught.value.action == "short"
    assert caught.value.cursor is not None
    left = Feed(engine, caught.value.cursor)
    assert [event.id for event in left.all() if event.kind == "finished"] == kept, "what is left was not told"
    assert [event.id for event in other.all() if event.kind == "finished"] == kept, (
        "others' rows were removed"
    )
    assert after.all() == [], "had been told all that was removed"
    assert [event.id for event in Feed(engine, "begin").all() if event.kind == "finished"] == kept


def test_a_cursor_of_an_earlier_epoch_is_refused(conn: Connection) -> None:
    engine = Engine(conn)
    feed = Feed(engine)
    engine.one("select pgfifo.raise_epoch()")
    with pytest.raises(pgfifo.EventsGone, match="epoch 1, and the epoch is 2 now"):
        feed.read()


def test_numbers_are_on_disk_before_a_cursor_has_them(conn: Connection, connect: Connect) -> None:
    """A crash takes back what a sequence gave to who rolled back, and gives it out again, below a cursor."""
    engine = Engine(conn)
    reader = Engine(connect())
    reader.one("select set_config('synchronous_commit', 'off', false)")
    loser = Engine(connect(autocommit=False))
    feed = Feed(reader)
    for _ in range(5):
        loser.one("select count(nextval('pgfifo.event_ids')) from generate_series(1, 100)")
        upto = engine.one("select pg_current_wal_insert_lsn()")
        loser.conn.rollback()
        feed.read()
        assert engine.one("select pg_current_wal_flush_lsn() >= %s::pg_lsn", upto)


def test_a_read_costs_what_happened_since(conn: Connection, connect: Connect) -> None:
    """Not what has ended, is dead beside a long transaction, or what a follower has yet to catch up with."""
    engine = Engine(conn)
    engine.policy(max_concurrent=50, failure_mode="tail", backoff_initial=0, retention=86400)
    worker = engine.worker()
    begin = Feed(engine).cursor

    def run(count: int) -> None:
        engine.fill(count)
        finished: list[dict[str, object]] = []
        while True:
            answer = engine.work(worker, 50, ["deploy"], finished)
            finished = [
                item(start, "failed" if start.attempt == 1 and start.id % 10 == 0 else "succeeded")
                for start in answer.starts
            ]
            if not finished and answer.more is None:
                return

    def cost(cursor: str | None) -> int:
        call = f"select * from pgfifo.events('{cursor}', 100)"
        return min(buffers(conn, call) for _ in range(3))

    def live() -> int:
        feed = Feed(engine)
        run(10)
        return cost(feed.cursor)

    run(300)
    conn.execute("analyze")
    small = cost(begin), live()
    # Pages of the past look ahead by 10,000 events: what comes is further away than that.
    engine.one("select setval('pgfifo.event_ids', nextval('pgfifo.event_ids') + 10000)")
    holder = connect(autocommit=False)
    holder.execute("set transaction isolation level repeatable read")
    holder.execute("select count(*) from pgfifo.executions")
    run(3000)
    beside = live()
    holder.rollback()
    conn.execute("vacuum pgfifo.runs, pgfifo._executions")
    large = cost(begin), beside
    assert large[0] <= 1.5 * small[0] + 40, f"a page of the past touched {small[0]} buffers, then {large[0]}"
    assert large[1] <= 1.5 * small[1] + 40, f"a live read touched {small[1]} buffers, then {large[1]}"


def test_lanes_begin_and_become_empty(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    feed = Feed(engine, kind=["lane_started", "lane_empty"])
    engine.fill(3, group="g")
    engine.fill(1, group="h")
    assert feed.all() == []
    worker = engine.worker()
    starts = engine.claim(worker, 10)
    assert sorted((event.kind, event.group) for event in feed.all()) == [
        ("lane_started", "g"),
        ("lane_started", "h"),
    ]
    by_lane = defaultdict(list)
    for start in starts:
        by_lane[start.group].append(start)
    engine.hand_in(worker, by_lane["g"][0])
    (third,) = engine.claim(worker, 10)
    assert feed.all() == [], "it was busy before, and is"
    engine.hand_in(worker, by_lane["h"][0])
    assert [(event.kind, event.group) for event in feed.all()] == [("lane_empty", "h")]
    engine.hand_in(worker, by_lane["g"][1], third)
    assert [(event.kind, event.group) for event in feed.all()] == [("lane_empty", "g")]
    engine.fill(1, group="h")
    engine.drain(worker)
    assert sorted((event.kind, event.group) for event in feed.all()) == [
        ("lane_empty", "h"),
        ("lane_started", "h"),
    ]


def test_changes_of_operators_are_told_with_who_and_why(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue(group="g")
    feed = Feed(engine)
    conn.execute("select set_config('pgfifo.actor', 'ada', false)")
    engine.one("select pgfifo.pause('deploy', 'g', 'fire')")
    engine.one("select pgfifo.resume('deploy', 'g')")
    engine.one("select pgfifo.close('deploy', null, 'moving')")
    engine.one("select pgfifo.open('deploy')")
    engine.policy(max_concurrent=2)
    events = feed.all()
    assert [event.kind for event in events] == ["paused", "resumed", "closed", "opened", "changed"]
    assert (events[0].group, events[0].detail["reason"], events[0].detail["actor"]) == ("g", "fire", "ada")
    assert (events[2].group, events[2].detail["who"]) == (None, "postgres")
    assert (events[4].detail["what"], events[4].detail["to"]) == ("set_policy", {"max_concurrent": 2})


def test_what_expires_is_told_when_it_is_written_down(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_wait=60)
    (only,) = engine.fill(1)
    feed = Feed(engine)
    engine.advance("1 h")
    assert feed.all() == []
    engine.tick()
    (finished, _empty) = feed.all()
    assert (finished.kind, finished.id, finished.detail["outcome"]) == ("finished", only, "expired")


def test_cursors_that_cannot_be_are_refused(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue()
    cursor = Feed(engine).cursor
    assert cursor is not None
    for bad in ("", "x", "1.2", cursor + "-", "1.0.0-1.1.1-2.2.2-3", "1.0.0-1.1.1;drop table x"):
        with pytest.raises(errors.InvalidValue):
            engine.rows("select * from pgfifo.events(%s)", bad)
    with pytest.raises(errors.InvalidValue, match="future"):
        engine.rows("select * from pgfifo.events('1.0.0-900.1.1-900.1.1')")
    for limit in (0, -1, 100001, None):
        with pytest.raises(errors.InvalidValue):
            engine.rows("select * from pgfifo.events(null, %s)", limit)


def test_nothing_is_missed_and_nothing_told_twice_beside_everything(
    conn: Connection, connect: Connect
) -> None:
    """Producers that roll back and commit late, handlers that fail in every mode, and three followers."""
    engine = Engine(conn)
    for mode in ("hold", "yield", "tail"):
        engine.policy(mode, failure_mode=mode, backoff_initial=0.01, max_concurrent=2, max_attempts=3)
    actions = ("hold", "yield", "tail")
    stop, done = threading.Event(), threading.Event()
    feeds = {limit: Feed(Engine(connect())) for limit in (5, 100, 1000)}
    told: dict[int, list[Event]] = {limit: [] for limit in feeds}
    committed: list[int] = []

    def follow(limit: int) -> None:
        feed = feeds[limit]
        while True:
            last = done.is_set()
            told[limit] += feed.read(limit)
            if last and not feed.last["more"] and not feed.last["held_back"]:
                return

    def produce(seed: int) -> None:
        rng = random.Random(seed)
        own = Engine(connect(autocommit=False))
        for _ in range(60):
            ids = own.fill(rng.randint(1, 3), rng.choice(actions), rng.choice("ab"))
            if rng.random() < 0.3:
                own.conn.execute("select pg_sleep(0.01)")
            if rng.random() < 0.2:
                own.conn.rollback()
            else:
                own.conn.commit()
                committed.extend(ids)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        own = Engine(connect())
        worker = own.worker(*actions)
        finished: list[dict[str, object]] = []
        while True:
            last = stop.is_set()
            answer = own.work(worker, 4, actions, finished)
            retry = [each for each in finished if answer.refused.get(int(str(each["id"]))) == "retry"]
            finished = retry + [
                item(start, rng.choice(["succeeded", "succeeded", "failed", "released"]))
                for start in answer.starts
            ]
            if last and not finished and answer.more is None:
                return

    followers = [in_background(lambda limit=limit: follow(limit)) for limit in feeds]  # type: ignore[misc]
    workers = [in_background(lambda n=n: work(n)) for n in range(3)]  # type: ignore[misc]
    producers = [in_background(lambda n=n: produce(n)) for n in range(3)]  # type: ignore[misc]
    for producer in producers:
        producer.result(60)
    stop.set()
    for each in workers:
        each.result(60)
    conn.execute("select pg_sleep(0.05)")
    engine.drain(engine.worker(*actions), actions)
    done.set()
    for follower in followers:
        follower.result(60)
    starts = {(id_, attempt) for id_, attempt in engine.rows("select id, attempt from pgfifo.starts")}
    outcomes = dict(engine.rows("select id, outcome from pgfifo.history"))
    ended = {
        (id_, attempt)
        for id_, attempt in engine.rows(
            "select h.id, (x ->> 'attempt')::integer"
            " from pgfifo.history h, jsonb_array_elements(h.attempts) x"
        )
    }
    assert sorted(outcomes) == sorted(committed)
    begun = [
        [(e.action, e.group, e.detail["start_no"]) for e in events if e.kind == "lane_started"]
        for events in told.values()
    ]
    assert begun[0] == begun[1] == begun[2]
    for events in told.values():
        counted = Counter((event.kind, event.id, event.attempt) for event in events if event.id is not None)
        assert [each for each, times in counted.items() if times > 1] == [], "told twice"
        assert sorted(event.id or 0 for event in events if event.kind == "enqueued") == sorted(committed)
        assert {(e.id, e.attempt) for e in events if e.kind == "started"} == starts
        assert {(e.id, e.attempt) for e in events if e.kind == "attempt_ended"} == ended
        assert {e.id: e.detail["outcome"] for e in events if e.kind == "finished"} == outcomes
        _assert_order(events)
    engine.assert_promises()


def _assert_order(events: list[Event]) -> None:
    """Each execution is enqueued, then started, then ended; and lanes start as they have recorded it."""
    states: dict[int, str] = {}
    numbers: dict[tuple[str | None, str | None], int] = defaultdict(int)
    for event in events:
        if event.id is None:
            continue
        before = states.get(event.id)
        if event.kind == "enqueued":
            assert before is None
        elif event.kind == "started":
            assert before in ("enqueued", "attempt_ended")
            lane = event.action, event.group
            assert event.detail["start_no"] > numbers[lane]
            numbers[lane] = event.detail["start_no"]
        elif event.kind == "attempt_ended":
            assert before == "started"
        elif event.kind == "finished":
            assert before is not None
            assert before != "finished"
        states[event.id] = event.kind


# From Python and the shell


def test_the_kinds_are_the_same_everywhere(conn: Connection) -> None:
    kinds = [kind.value for kind in Kind]
    assert kinds == list(get_args(EventKind))
    Feed(Engine(conn), kind=kinds)


def test_a_client_follows_and_is_told_at_once(dsn: str, conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue()
    engine.drain(engine.worker())
    seen: list[pgfifo.Event] = []
    with pgfifo.Client(dsn) as fifo:

        def follow() -> None:
            for event in fifo.events("deploy"):
                seen.append(event)
                if event.kind == "finished" and event.attempt == 1:
                    return

        following = in_background(follow)
        asleep = (
            "select count(*) from pg_locks where locktype = 'advisory' and classid = 'pgfifo.marks'::regclass"
        )
        wait_for(lambda: engine.one(asleep) == 1, message="the follower to sleep")
        id_ = engine.enqueue()
        wait_for(lambda: seen, 30, "the enqueue to be told")
        assert seen[0].lane == pgfifo.Lane("deploy")
        engine.drain(engine.worker())
        following.result()
        found = [event for event in seen if event.id == id_ or event.kind == "lane_started"]
        assert [event.kind for event in found][:2] == ["enqueued", "started"]
        rest = list(fifo.events(cursor=seen[0].cursor, kinds=["finished"], follow=False))
        assert rest[-1].id == id_
        assert list(fifo.events(cursor=rest[-1].cursor, kinds=["finished"], follow=False)) == []
        for bad in ({"kinds": ["born"]}, {"cursor": "x"}, {"group": "g"}):
            with pytest.raises(pgfifo.InvalidValue):
                list(fifo.events(follow=False, **bad))
        with pytest.raises(pgfifo.UnknownAction):
            next(iter(fifo.events("deplo")))


def test_a_client_goes_on_when_its_connections_break(dsn: str, conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue()
    seen: list[int | None] = []
    with pgfifo.Client(dsn) as fifo:

        def follow() -> None:
            for event in fifo.events(kinds=["enqueued"]):
                seen.append(event.id)
                if len(seen) == 3:
                    return

        following = in_background(follow)
        asleep = (
            "select count(*) from pg_locks where locktype = 'advisory' and classid = 'pgfifo.marks'::regclass"
        )
        wait_for(lambda: engine.one(asleep) == 1, message="the follower to sleep")
        ids = [engine.enqueue()]
        wait_for(lambda: seen == ids, 30, "the first")
        conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'pgfifo' and pid <> pg_backend_pid()"
        )
        ids += engine.fill(2)
        following.result()
        assert seen == ids


def test_an_async_client_follows(dsn: str, conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue()

    async def main() -> list[str]:
        async with pgfifo.AsyncClient(dsn) as fifo:
            seen: list[str] = []
            loop = asyncio.get_running_loop()
            async for event in fifo.events(kinds=["enqueued", "lane_started"], cursor="begin"):
                seen.append(event.kind)
                if len(seen) == 1:
                    await loop.run_in_executor(None, engine.drain, engine.worker())
                    await loop.run_in_executor(None, engine.enqueue)
                if seen.count("enqueued") == 2:
                    return seen
        raise AssertionError

    assert asyncio.run(main())[0] == "enqueued"


def test_who_does_not_sleep_costs_no_notifications(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.enqueue()
    follower = connect()
    follower.execute("listen pgfifo")
    follower.execute("listen pgfifo_events")
    engine.drain(engine.worker())
    assert told(follower) == []
    follower.execute("select pgfifo.follow()")
    engine.enqueue()
    engine.drain(engine.worker())
    assert {each.channel for each in told(follower)} == {"pgfifo", "pgfifo_events"}
    follower.execute("select pgfifo.unfollow()")
    held = "select count(*) from pg_locks where pid = %s and locktype = 'advisory'"
    assert engine.one(held, follower.info.backend_pid) == 0
    engine.enqueue()
    engine.drain(engine.worker())
    assert told(follower) == []
