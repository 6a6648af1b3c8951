"""Bulk cancel: what a filter selects and nothing else, in bounded pieces, beside everything that runs."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.types.json import Jsonb

import pgfifo
from pgfifo import errors
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine, Hand

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


class Done(NamedTuple):
    """What one call did."""

    cancelled: int
    requested: int
    busy: int
    next: str | None


def call(
    engine: Engine, after: str | None = None, limit: int = 1000, dry_run: bool = False, **where: object
) -> Done:
    query = "select * from pgfifo.cancel_where(%s, 'because', %s, %s, %s)"
    return Done(*engine.rows(query, Jsonb(where), dry_run, after, limit)[0])


def sum_of(engine: Engine, limit: int = 1000, dry_run: bool = False, **where: object) -> tuple[int, int]:
    """Call until there is nothing more; return how many were cancelled and requested."""
    done = call(engine, None, limit, dry_run, **where)
    total = [done.cancelled, done.requested]
    while done.next is not None:
        done = call(engine, done.next, limit, dry_run, **where)
        total = [total[0] + done.cancelled, total[1] + done.requested]
    return total[0], total[1]


def left(engine: Engine) -> list[int]:
    return [
        id_ for (id_,) in engine.rows("select id from pgfifo.executions where finished_at is null order by 1")
    ]


def test_each_key_of_a_filter_selects_what_it_says(conn: Connection) -> None:
    engine = Engine(conn)
    early = engine.fill(3, "a", "g")
    engine.advance("1 hour")
    middle = engine.fill(3, "a", "h")
    engine.advance("1 hour")
    late = engine.fill(3, "b")
    tagged = engine.one("select pgfifo.enqueue('b', p_tags => '{red,big}')")
    now = engine.one("select pgfifo._now()")
    where: dict[str, Any]
    for where, ids in (
        ({"action": "a"}, early + middle),
        ({"action": "a", "group": "g"}, early),
        ({"action": "a", "group": "none"}, []),
        ({"state": "waiting"}, early + middle + late + [tagged]),
        ({"state": ["running", "held", "delayed"]}, []),
        ({"tags": ["red"]}, [tagged]),
        ({"tags": ["red", "big"], "action": "b"}, [tagged]),
        ({"tags": ["red", "small"]}, []),
        ({"enqueued_since": 5400}, middle + late + [tagged]),
        ({"enqueued_before": 5400}, early),
        ({"enqueued_since": str(now - timedelta(minutes=90)), "enqueued_before": 1800}, middle),
        ({"from_id": middle[1], "to_id": late[0]}, [*middle[1:], late[0]]),
        ({"action": "a", "from_id": late[0]}, []),
        # Nothing that is not finished has a time at which it finished.
        ({"finished_before": 0}, []),
    ):
        with conn.transaction(force_rollback=True):
            assert call(engine, dry_run=True, **where) == (len(ids), 0, 0, None), where
            before = left(engine)
            assert call(engine, **where) == (len(ids), 0, 0, None), where
            assert left(engine) == [id_ for id_ in before if id_ not in ids], where
            if ids:
                assert engine.show(ids[0])["reason"] == "because"
            engine.assert_promises()
    assert engine.one("select count(*) from pgfifo.history") == 0, "a dry run or a rollback left something"


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"state": None},
        {"akshun": "a"},
        {"action": 1},
        {"group": "g"},
        {"action": "a", "group": 1},
        {"state": "succeeded"},
        {"state": ["waiting", 1]},
        {"state": {}},
        {"tags": "red"},
        {"tags": [1]},
        {"enqueued_since": "yesterday-ish"},
        {"enqueued_since": True},
        {"from_id": "7"},
        {"from_id": -1},
        {"to_id": 1e30},
    ],
)
def test_a_filter_that_says_nothing_or_nonsense_is_refused(conn: Connection, where: dict[str, Any]) -> None:
    engine = Engine(conn)
    engine.enqueue("a")
    for dry_run in (False, True):
        with pytest.raises(errors.InvalidValue):
            call(engine, dry_run=dry_run, **where)
    for filter_ in ("null", "[]", '"a"', None):
        with pytest.raises(errors.InvalidValue):
            engine.rows("select * from pgfifo.cancel_where(%s)", filter_)
    with pytest.raises(errors.UnknownAction) as caught:
        call(engine, action="aa")
    assert caught.value.nearest == "a"
    for after, limit in (("x", 10), ("1.2", 10), (None, 0), (None, 10001)):
        with pytest.raises(errors.InvalidValue):
            call(engine, after, limit, action="a")
    assert engine.stats("a")["queue_length"] == 1


def test_all_states_end_or_are_asked_and_the_numbers_are_exact(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3, backoff_initial=3600)
    running, held, returned, *waiting = engine.fill(6)
    behind = engine.enqueue("other")
    worker = engine.worker("deploy", "other")
    starts = engine.claim(worker, 3)
    engine.finish(starts[1], "failed", "boom")
    engine.release(starts[2])
    assert call(engine, dry_run=True, action="deploy") == (5, 1, 0, None)
    assert call(engine, action="deploy", state=["held"], dry_run=True) == (1, 0, 0, None)
    assert call(engine, action="deploy", state=["waiting"], dry_run=True) == (4, 0, 0, None)
    assert call(engine, action="deploy", state=["running"], dry_run=True) == (0, 1, 0, None)
    assert call(engine, action="deploy") == (5, 1, 0, None)
    assert call(engine, action="deploy") == (0, 0, 0, None), "asked twice"
    stats = engine.stats()
    assert (stats["queue_length"], stats["active_count"], stats["total_cancelled"]) == (0, 1, 5)
    assert engine.states([held, returned, *waiting]) == ["cancelled"] * 5
    assert engine.show(held)["error"] == "boom"
    assert engine.heartbeat(worker, held=[running]) == {running: "cancel"}
    assert engine.hand_in(worker, starts[0], outcome="cancelled") == {}
    assert engine.show(running)["reason"] == "because"
    assert engine.drain(worker, ("deploy", "other")) == [behind]
    engine.assert_promises()


def test_a_held_one_that_is_cancelled_gives_its_slot_on(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(backoff_initial=3600)
    held, behind = engine.fill(2)
    worker = engine.worker()
    engine.finish(engine.claim(worker)[0], "failed")
    assert engine.claim(worker) == [], "the lane is full; this takes the marks that there were"
    assert call(engine, state="held") == (1, 0, 0, None)
    assert engine.drain(worker) == [behind]
    assert engine.state(held) == "cancelled"
    engine.assert_promises()


def test_pieces_are_bounded_and_together_all_of_it(conn: Connection) -> None:
    engine = Engine(conn)
    ids = engine.enqueue_many("deploy", [{}] * 240, [str(n % 80) for n in range(240)])
    keep = [engine.one("select pgfifo.enqueue('deploy', p_group => '3', p_tags => '{keep}')")]
    pieces: list[Done] = []
    after = None
    while True:
        with conn.transaction():
            pieces.append(call(engine, after, 50, action="deploy", to_id=ids[-1]))
            locks = engine.one(
                "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
            )
        assert locks <= 70, "one call holds more locks than a call may"
        after = pieces[-1].next
        if after is None:
            break
    assert len(pieces) > 4
    assert all(piece.cancelled <= 50 for piece in pieces)
    assert sum(piece.cancelled for piece in pieces) == 240
    assert left(engine) == keep
    assert engine.one("select count(*) from pgfifo.audit where what = 'cancel'") == len(
        [piece for piece in pieces if piece.cancelled]
    )
    engine.assert_promises()


def test_one_long_lane_goes_piece_by_piece(conn: Connection) -> None:
    engine = Engine(conn)
    engine.fill(100)
    assert sum_of(engine, 7, dry_run=True, action="deploy") == (100, 0)
    assert sum_of(engine, 7, action="deploy") == (100, 0)
    assert left(engine) == []
    engine.assert_promises()


def test_what_comes_in_after_the_first_call_is_left_alone(conn: Connection) -> None:
    engine = Engine(conn)
    engine.fill(20)
    done = call(engine, None, 5, action="deploy")
    assert done.next is not None
    new = engine.fill(5) + engine.fill(5, group="new lane")
    while done.next is not None:
        done = call(engine, done.next, 5, action="deploy")
    assert left(engine) == new, "a producer that goes on keeps a bulk cancel going for ever"


def test_a_claim_in_flight_is_waited_for_and_what_it_started_is_asked(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    first, *others = engine.fill(3)
    worker = engine.worker()
    claiming, canceller = Engine(connect(autocommit=False)), Engine(connect())
    claiming.claim(worker)
    cancel = in_background(lambda: call(canceller, action="deploy"))
    wait_until_blocked(conn, canceller.pid)
    claiming.conn.commit()
    assert cancel.result() == (2, 1, 0, None)
    assert engine.states([first, *others]) == ["running", "cancelled", "cancelled"]
    engine.assert_promises()


def test_a_lane_that_somebody_keeps_is_passed_by_and_counted(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.fill(2, group="a")
    kept = engine.fill(2, group="b")
    engine.fill(2, group="c")
    holder = Engine(connect(autocommit=False))
    holder.cancel(kept[0])
    done = call(engine, action="deploy")
    assert done.next is not None, "it waited for a lane with another one in its hands"
    assert (done.cancelled, done.busy) == (2, 0)
    assert call(engine, done.next, action="deploy") == (2, 0, 1, None)
    assert left(engine) == kept
    holder.conn.rollback()
    assert call(engine, action="deploy") == (2, 0, 0, None)
    engine.assert_promises()


def test_beside_workers_and_producers_each_execution_ends_once(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    engine.enqueue_many("deploy", [{}] * 400, [str(n % 8) for n in range(400)])
    stop = threading.Event()

    def work() -> None:
        hand = Hand(connect())
        answer = hand.turn(5)
        while answer.starts or not stop.is_set():
            answer = hand.turn(5, answer.starts)

    def produce() -> None:
        producer = Engine(connect())
        for n in range(100):
            producer.enqueue(group=str(n % 8))

    threads = [in_background(work), in_background(work), in_background(produce)]
    canceller = Engine(connect())
    for _ in range(6):
        sum_of(canceller, 37, action="deploy")
    threads[2].result()
    stop.set()
    for thread in threads:
        thread.result()
    engine.drain(engine.worker())
    stats = engine.stats()
    assert stats["total_enqueued"] == 500 == stats["total_completed"]
    assert stats["total_cancelled"] > 0
    engine.assert_promises()


def test_the_predicate_is_inlined(conn: Connection) -> None:
    plan = conn.execute(
        "explain (verbose) select 1 from pgfifo._executions e"
        " where pgfifo._selects(null::pgfifo._selection, e.id, 'waiting', e.tags, e.enqueued_at, null)"
    ).fetchall()
    assert "_selects" not in str(plan), "it is called for every row that is looked at"


def test_it_decides_at_read_committed_only_and_counts_anywhere(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.fill(2)
    old = Engine(connect(autocommit=False))
    old.conn.execute("set transaction isolation level repeatable read")
    assert call(old, dry_run=True, action="deploy") == (2, 0, 0, None)
    with pytest.raises(errors.IsolationLevel):
        call(old, action="deploy")


def test_the_client_goes_on_until_all_is_done(dsn: str, conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(group_by=["env"])
    engine.enqueue_many("deploy", [{"env": n % 70} for n in range(140)])
    started = datetime.now(UTC)
    with pgfifo.Client(dsn) as fifo:
        one: Any = {"action": "deploy", "group": {"env": 3}}
        assert fifo.cancel_where(**one, dry_run=True) == pgfifo.Cancelled(2, 0, 0)
        assert fifo.cancel_where(action="deploy", state=["running"]) == pgfifo.Cancelled(0, 0, 0)
        assert fifo.cancel_where(tags=["x"], enqueued_since=timedelta(hours=1)).cancelled == 0
        assert fifo.cancel_where(action="deploy", enqueued_before="1h").cancelled == 0
        later = started + timedelta(hours=1)
        assert fifo.cancel_where(action="deploy", enqueued_before=later, reason="move").cancelled == 140
        assert {each.reason for each in fifo.executions("deploy", limit=200)} == {"move"}
        bad: dict[str, Any]
        for bad in (
            {},
            {"action": None},
            {"akshun": "a"},
            {"tags": "red"},
            {"enqueued_since": datetime.now()},
            {"enqueued_since": "soon"},
            {"state": "finished"},
        ):
            with pytest.raises(pgfifo.InvalidValue):
                fifo.cancel_where(**bad)
    engine.assert_promises()
