"""What screens read: quick with many lanes, and true to the statistics and to what claims do."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

import pgfifo
from tests.support.engine import Engine
from tests.support.sqlworker import buffers

Connection = psycopg.Connection[Any]


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


@pytest.fixture
def fifo(dsn: str) -> Iterator[pgfifo.Client]:
    with pgfifo.Client(dsn) as client:
        yield client


def busy(engine: Engine) -> int:
    """Have lanes in every state there is; return the worker."""
    engine.policy("a.x", max_concurrent=3, backoff_initial=600)
    engine.policy("a.y", max_concurrent=2, failure_mode="yield", backoff_initial=600)
    for n, group in enumerate(("one", "two", "three", "four")):
        engine.fill(n + 2, "a.x", group)
        engine.fill(2, "a.y", group)
    engine.enqueue_later("1 h", "a.x", "one")
    worker = engine.worker("a.x", "a.y", lease="1 hour")
    started = engine.claim(worker, 9, ["a.x", "a.y"])
    engine.hand_in(worker, started[0])
    engine.hand_in(worker, started[1], outcome="failed")
    engine.hand_in(worker, started[2], outcome="failed")
    engine.release(started[3])
    engine.one("""select pgfifo.set_policy('a.x', '{"max_concurrent": 7}', 'two')""")
    engine.one("""select pgfifo.override_policy('a.y', '{"max_concurrent": 5}', '1 h', 'one')""")
    engine.pause("a.x", "three")
    engine.enqueue("nothing.else")
    engine.pause("nothing.else")
    engine.one("select pgfifo.declare_action('empty')")
    return worker


def agree(conn: Connection, call: str) -> list[dict[str, Any]]:
    """Compare the overview with the view that adds up lane by lane; return it."""
    with conn.cursor(row_factory=dict_row) as cursor:
        overview = cursor.execute(f"select * from pgfifo.{call}").fetchall()
        stats = {row["action"]: row for row in cursor.execute("select * from pgfifo.queue_stats")}
    assert [row["action"] for row in overview] == sorted(stats)
    for row in overview:
        assert row.keys() - stats[row["action"]].keys() == {"at", "total_started"}
        assert {name: row[name] for name in stats[row["action"]]} == stats[row["action"]]
    return overview


def test_the_overview_says_what_the_statistics_say(conn: Connection, engine: Engine) -> None:
    busy(engine)
    assert sum(row["total_started"] for row in agree(conn, "overview()")) == 9
    assert agree(conn, "overview(p_exact => true)")
    assert [row[0] for row in engine.rows("select action from pgfifo.overview('a.x')")] == ["a.x"]


def test_stats_of_one_and_of_all_are_those_of_the_view(
    fifo: pgfifo.Client, conn: Connection, engine: Engine
) -> None:
    engine.policy("a.x", max_wait=60)
    busy(engine)
    engine.policy("a.y", group="four", max_wait=90)
    for passed in ("0 s", "61 s", "40 s"):
        engine.advance(passed)
        agree(conn, "overview(p_exact => true)")
        with conn.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute("select * from pgfifo.queue_stats order by action").fetchall()
        assert [asdict(each) for each in fifo.stats()] == rows
        assert [asdict(fifo.stats(row["action"])) for row in rows] == rows
    expired = {each.action: each.total_expired for each in fifo.stats()}
    assert expired["a.x"] > 0
    assert expired["a.y"] > 0
    assert not any(each.total_expired for each in fifo.overview()), "nobody has written it down yet"
    with pytest.raises(pgfifo.UnknownAction):
        fifo.stats("a.z")


def test_lanes_are_found_by_what_is_wrong_with_them(fifo: pgfifo.Client, engine: Engine) -> None:
    busy(engine)
    engine.one("""select pgfifo.set_policy('deploy', '{"group_by": ["env"]}')""")
    engine.enqueue("deploy", {"env": "prod"})
    lanes = {(lane.action, lane.group_text): lane for lane in fifo.lanes()}
    deepest = fifo.find_lanes()
    assert {(lane.action, lane.group_text): lane for lane in deepest} == lanes
    depths = [lane.queue_length for lane in deepest]
    assert depths == sorted(depths, reverse=True)
    assert depths[0] > 1
    waits = [lane.oldest_enqueued_at for lane in fifo.find_lanes(sort="oldest", having="waiting")]
    assert waits == sorted(each.oldest_enqueued_at for each in lanes.values() if each.oldest_enqueued_at)
    active = [lane.active_count for lane in fifo.find_lanes(sort="active")]
    assert active == sorted(active, reverse=True)
    assert fifo.find_lanes(sort="group") == list(lanes.values())
    assert fifo.find_lanes(sort="group", limit=2, offset=3) == list(lanes.values())[3:5]
    assert fifo.find_lanes(limit=3, offset=2) == deepest[2:5]
    for search in ("prod", "env=prod", "PROD", '{"env":"prod"}'):
        assert [str(lane.lane) for lane in fifo.find_lanes(search=search)] == ["deploy env=prod"], search
    assert fifo.find_lanes("a.x", search="prod") == []
    assert [lane.group_text for lane in fifo.find_lanes("a.x", having="paused")] == ["three"]
    assert all(lane.active_count for lane in fifo.find_lanes(having="active"))
    waiting = [lane for lane in lanes.values() if lane.queue_length]
    assert fifo.find_lanes(having="waiting", sort="group") == waiting
    assert fifo.find_lanes("empty") == []
    with pytest.raises(pgfifo.UnknownAction):
        fifo.find_lanes("deplyo")
    wrongs: list[dict[str, Any]] = [{"sort": "size"}, {"having": "bugs"}, {"limit": -1}, {"offset": -1}]
    for wrong in wrongs:
        with pytest.raises(pgfifo.InvalidValue):
            fifo.find_lanes(**wrong)
    for call in ("p_sort => null", "p_limit => null", "p_offset => -1", "p_state => 'x'"):
        with pytest.raises(pgfifo.InvalidValue):
            engine.rows(f"select * from pgfifo.list_lanes({call})")


def test_the_line_is_in_the_order_of_the_starts(fifo: pgfifo.Client, engine: Engine) -> None:
    ids = engine.fill(4, group="g")
    assert [(place.pos, place.id) for place in fifo.line("deploy", "g")] == list(enumerate(ids, 1))
    worker = engine.worker(lease="1 hour")
    [start] = engine.claim(worker)
    engine.release(start)
    engine.enqueue_later("1 h", group="g")
    places = fifo.line("deploy", "g")
    assert [(place.id, place.attempt) for place in places] == [(ids[0], 1), *((each, 0) for each in ids[1:])]
    assert [place.pos for place in places] == [fifo.position(each).position for each in ids]
    assert places[0].eta_seconds is None, "nothing tells"
    assert [place.id for place in fifo.line("deploy", "g", limit=2)] == ids[:2]
    assert fifo.line("deploy", "nobody") == []
    for wrong in (-1, 10_001):
        with pytest.raises(pgfifo.InvalidValue):
            fifo.line("deploy", "g", limit=wrong)
    [again] = engine.claim(worker)
    engine.hand_in(worker, again)
    assert [place.id for place in fifo.line("deploy", "g")] == ids[1:]


def test_the_line_says_when_as_positions_do(fifo: pgfifo.Client, engine: Engine) -> None:
    ids = engine.fill(30)
    worker = engine.worker(lease="1 hour")
    engine.tick(3)
    for _ in range(5):
        [start] = engine.claim(worker)
        engine.advance("15 s")
        engine.tick()
        engine.hand_in(worker, start)
    engine.advance("60 s")
    engine.tick(3)
    places = fifo.line("deploy")
    assert [place.id for place in places] == ids[5:]
    for place in places[::7]:
        position = fifo.position(place.id)
        assert position.eta_seconds is not None
        assert place.eta_seconds == pytest.approx(position.eta_seconds, rel=0.1)
        assert place.eta_basis == position.eta_basis


def test_wait_times_are_percentiles_of_what_was_waited(fifo: pgfifo.Client, engine: Engine) -> None:
    engine.policy(max_concurrent=100)
    worker = engine.worker(lease="1 hour", concurrency=100)
    engine.advance(engine.one("select 60.2 - extract(second from pgfifo._now()) || ' s'"))
    engine.tick()
    # Long, beside what these calls themselves take on a busy machine.
    for waited, count in (("4 s", 50), ("80 s", 45), ("160 s", 4), ("600 s", 1)):
        engine.fill(count)
        engine.advance(waited)
        engine.hand_in(worker, *engine.claim(worker, count))
    engine.advance("70 s")
    engine.tick(6)
    rows = fifo.wait_times("deploy")
    [whole] = [row for row in rows if row.minute is None]
    assert whole.measured == 100
    assert whole.p50 == pytest.approx(4, rel=0.3)
    assert whole.p95 == pytest.approx(80, rel=0.3)
    assert whole.p99 == pytest.approx(160, rel=0.3)
    assert sum(row.measured for row in rows if row.minute is not None) == 100
    assert fifo.wait_times() == rows
    minutes = fifo.minutes("deploy")
    assert sum(minute.measured for minute in minutes) == 100
    assert minutes == fifo.minutes()
    assert fifo.minutes("another") == []
    with pytest.raises(pgfifo.InvalidValue):
        fifo.wait_times(minutes=1441)
    with pytest.raises(pgfifo.UnknownAction):
        fifo.wait_times("deplyo")
    engine.advance("25 h")
    engine.tick(12)
    assert engine.one("select count(*) from pgfifo._waits") == 0, "these are kept for a day"
    assert fifo.minutes("deploy", minutes=10_080) == minutes


@pytest.mark.parametrize("seconds", [0, 0.0005, 0.001, 0.0011, 0.5, 1, 59, 86_400, 1e9])
def test_the_class_of_a_wait_is_an_eighth_wide_to_each_side(engine: Engine, seconds: float) -> None:
    middle = engine.one(
        "select pgfifo._wait_of_class(width_bucket(%s::float8, pgfifo._wait_classes())::smallint)", seconds
    )
    if seconds <= 0.001:
        assert middle == pytest.approx(0.001)
    else:
        assert middle == pytest.approx(min(seconds, 10**5.95), rel=0.13)


def test_screens_touch_little_of_each_lane(engine: Engine) -> None:
    engine.enqueue_many("deploy", [{}] * 500, [f"g{n}" for n in range(500)])
    engine.conn.execute("vacuum analyze")
    read = engine.conn
    assert buffers(read, "select * from pgfifo.overview()") < 500 * 5
    assert buffers(read, "select * from pgfifo.list_lanes(p_sort => 'depth', p_limit => 10)") < 500 * 2
    assert buffers(read, "select * from pgfifo.list_lanes(p_sort => 'oldest', p_limit => 10)") < 500 * 5
    assert buffers(read, "select * from pgfifo.line('deploy', 'g7')") < 500 * 2
