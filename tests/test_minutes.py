"""The rollup per minute: each enqueue, start and end is counted once. And pace and ETA, which rest on it."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo import errors
from tests.support.engine import Engine, Start
from tests.support.sqlworker import buffers

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

COUNTS = ("enqueued", "started", "succeeded", "failed", "cancelled", "expired")


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


def to_the_minute(engine: Engine) -> None:
    """Move the clock to just after the beginning of the next minute."""
    engine.advance(engine.one("select 60.2 - extract(second from pgfifo._now()) || ' s'"))


def count(engine: Engine) -> None:
    """Have the minute that goes on now counted and measured."""
    to_the_minute(engine)
    engine.tick(3)


def sums(engine: Engine, action: str = "deploy") -> dict[str, int]:
    """Return what has been counted in all minutes."""
    columns = ", ".join(f"coalesce(sum({name}), 0)::bigint" for name in COUNTS)
    [row] = engine.rows(f"select {columns} from pgfifo.minutes where action = %s", action)
    return dict(zip(COUNTS, row, strict=True))


def totals(engine: Engine, action: str = "deploy") -> dict[str, int]:
    """Return the same from the statistics, and from the recorded starts."""
    stats = engine.stats(action)
    found = {name: stats[f"total_{name}"] for name in COUNTS if name != "started"}
    attempts = "select coalesce(sum(attempt), 0)::bigint from pgfifo.executions where action = %s"
    return found | {"started": engine.one(attempts, action)}


def minutes(engine: Engine) -> list[tuple[Any, ...]]:
    return engine.rows(f"select minute, {', '.join(COUNTS)} from pgfifo.minutes order by action, minute")


# Counting


def test_minutes_have_what_happened_in_them(engine: Engine) -> None:
    count(engine)
    begun = engine.one("select pgfifo._minute(pgfifo._now())")
    engine.policy(max_concurrent=3, max_attempts=1)
    ids = engine.fill(5)
    worker = engine.worker(lease="1 hour")
    first, second = engine.claim(worker, 2)
    engine.hand_in(worker, first)
    count(engine)
    engine.hand_in(worker, second, outcome="failed")
    engine.cancel(ids[4])
    engine.enqueue(group="another")
    count(engine)
    assert [(row[0] - begun).total_seconds() for row in minutes(engine)] == [0, 60]
    assert [row[1:] for row in minutes(engine)] == [(5, 2, 1, 0, 0, 0), (1, 0, 0, 1, 1, 0)]
    count(engine)
    assert len(minutes(engine)) == 2, "a minute in which nothing happened has a row"


def test_minutes_add_up_to_the_totals_whatever_happened(engine: Engine) -> None:
    engine.policy(max_concurrent=2, backoff_initial=20, max_attempts=3, max_wait=600)
    groups = [str(n) for n in range(7)]
    worker = engine.worker(lease="1 hour")
    for round_ in range(12):
        ids = engine.enqueue_many("deploy", [{}] * 14, groups * 2)
        engine.enqueue_later("30 s", group="3")
        starts = engine.claim(worker, 9)
        engine.hand_in(worker, *starts[:5])
        engine.hand_in(worker, *starts[5:7], outcome="failed")
        engine.hand_in(worker, *starts[7:8], outcome="released")
        engine.cancel(ids[round_])
        engine.advance("17 s")
        engine.tick(3)
    engine.advance("20 min")
    engine.tick(2)
    count(engine)
    assert sums(engine) == totals(engine)
    assert sums(engine)["expired"] > 0
    assert sums(engine)["started"] > sums(engine)["succeeded"] > 0


def test_minutes_keep_what_happened_in_lanes_that_are_gone(engine: Engine) -> None:
    engine.policy(lane_retention=0)
    worker = engine.worker(lease="1 hour")
    count(engine)
    for n in range(5):
        engine.enqueue(group=str(n))
    assert len(engine.drain(worker)) == 5
    engine.tick(3)
    assert engine.rows("select from pgfifo.lanes") == [], "the lanes went before the minute was counted"
    count(engine)
    assert sums(engine) == totals(engine)
    assert engine.rows("select from pgfifo._tallies") == []
    engine.enqueue(group="1")
    count(engine)
    assert sums(engine) == totals(engine)


def test_minutes_count_an_enqueue_that_commits_late_once(engine: Engine, connect: Connect) -> None:
    engine.enqueue()
    other = Engine(connect(autocommit=False))
    other.fill(3, group="late")
    count(engine)
    assert sums(engine)["enqueued"] == 1
    other.conn.commit()
    count(engine)
    assert sums(engine)["enqueued"] == 4
    count(engine)
    assert sums(engine) == totals(engine)


def test_minutes_are_counted_once_though_a_round_of_maintenance_is_lost(
    engine: Engine, connect: Connect
) -> None:
    engine.fill(3)
    worker = engine.worker(lease="1 hour")
    engine.hand_in(worker, *engine.claim(worker))
    to_the_minute(engine)
    engine.advance("5 s")
    other = Engine(connect(autocommit=False))
    assert other.maintain()["elected"]
    assert sums(other)["enqueued"] == 3
    other.conn.rollback()  # as if it had been killed before its commit
    assert sums(engine)["enqueued"] == 0
    count(engine)
    count(engine)
    assert sums(engine) == totals(engine)
    assert engine.one("select sum(measured) from pgfifo.minutes") == 1


def test_minutes_are_counted_in_slices_that_miss_no_lane(engine: Engine) -> None:
    engine.enqueue_many("deploy", [{}] * 10, [str(n) for n in range(10)])
    step = "select p_minute, p_to from pgfifo._count_minute(%s, %s, 4, pgfifo._now())"
    at, to = engine.one("select 'epoch'::timestamptz"), None
    seen = []
    for _ in range(3):
        [(at, to)] = engine.rows(step, at, to)
        seen.append(sums(engine)["enqueued"])
    assert seen == [4, 8, 10]
    assert to is None
    [(again, to)] = engine.rows(step, at, to)
    assert (again, to) == (at, None), "a minute was begun twice"
    assert sums(engine)["enqueued"] == 10


def test_minutes_count_arrivals_that_no_claim_has_folded_in_bounded_steps(engine: Engine) -> None:
    engine.policy()
    loop = "for i in 1 .. 1500 loop perform pgfifo.enqueue('deploy'); end loop;"
    engine.conn.execute(f"do $$ begin {loop} end $$".encode())
    count(engine)
    assert sums(engine)["enqueued"] == 1000
    worker = engine.worker(lease="1 hour")
    engine.claim(worker)
    count(engine)
    for start in engine.claim(worker, 1):
        engine.hand_in(worker, start)
    count(engine)
    assert sums(engine)["enqueued"] == 1500


# Measuring


def run(engine: Engine, worker: int, seconds: float, **ended: Any) -> Start:
    """Claim one, let so much time pass, and hand it in."""
    (start,) = engine.claim(worker)
    engine.advance(f"{seconds} s")
    engine.hand_in(worker, start, **ended)
    return start


def test_waits_and_runs_are_measured(engine: Engine) -> None:
    count(engine)
    engine.policy(max_attempts=2, backoff_initial=30, backoff_jitter=0)
    engine.fill(2)
    worker = engine.worker(lease="1 hour")
    engine.advance("4 s")
    run(engine, worker, 5)  # waited 4, ran 5
    run(engine, worker, 3, outcome="failed")  # waited 9
    engine.advance("30 s")
    run(engine, worker, 7)  # the same again, ran 7
    engine.cancel(engine.enqueue())
    count(engine)
    [(measured, waited, ran)] = engine.rows("select measured, wait_seconds, run_seconds from pgfifo.minutes")
    assert measured == 2, "what was cancelled, or tried again, was measured"
    # And what the test itself took.
    assert 0 <= waited - (4 + 9) < 10
    assert 0 <= ran - (5 + 7) < 10


def test_measuring_catches_up_in_steps_and_measures_nothing_twice(engine: Engine) -> None:
    engine.policy(max_concurrent=10)
    engine.fill(10)
    worker = engine.worker(lease="1 hour")
    for start in engine.claim(worker, 10):
        engine.hand_in(worker, start)
        engine.advance("4 s")
    step = "select pgfifo._measure(%s, pgfifo._now())"
    total = "select coalesce(sum(measured), 0)::integer from pgfifo.minutes"
    to = engine.one("select 'epoch'::timestamptz")
    seen = []
    for _ in range(6):
        to = engine.one(step, to)
        seen.append(engine.one(total))
    assert seen == sorted(seen)
    assert seen[0] < 5, "a round is not bounded"
    assert seen[-1] == 10
    engine.one(step, to)
    assert engine.one(total) == 10


def test_minutes_are_forgotten_after_a_week(engine: Engine) -> None:
    engine.fill(3)
    count(engine)
    engine.advance("6 days 23 hours")
    engine.tick(12)
    assert len(minutes(engine)) == 1
    engine.advance("2 hours")
    engine.tick(12)
    assert minutes(engine) == []


# Pace


def test_pace_adds_up_the_last_minutes(dsn: str, engine: Engine) -> None:
    count(engine)
    engine.policy(max_concurrent=3)
    worker = engine.worker(lease="1 hour")
    engine.fill(6)
    run(engine, worker, 10)
    count(engine)
    engine.fill(2)
    run(engine, worker, 20)
    run(engine, worker, 5, outcome="failed", retry=False)
    count(engine)
    with pgfifo.Client(dsn) as fifo:
        pace = fifo.pace("deploy", 2)
        assert (pace.until - pace.since).total_seconds() == 120
        assert (pace.enqueued, pace.started, pace.succeeded, pace.failed) == (8, 3, 2, 1)
        assert (pace.enqueued_per_minute, pace.started_per_minute, pace.finished_per_minute) == (4, 1.5, 1.5)
        assert pace.mean_run_seconds == pytest.approx(35 / 3, abs=2)
        assert pace.mean_wait_seconds is not None
        last = fifo.pace("deploy", minutes=1)
        assert (last.enqueued, last.started, last.until) == (2, 2, pace.until)
        count(engine)
        last = fifo.pace("deploy", minutes=1)
        assert (last.enqueued, last.finished_per_minute, last.mean_run_seconds) == (0, 0, None)
        with pytest.raises(pgfifo.UnknownAction):
            fifo.pace("deplyo")
        for bad in (0, 10_081):
            with pytest.raises(pgfifo.InvalidValue):
                fifo.pace("deploy", bad)


def test_pace_says_what_had_not_ended_whatever_has_happened_since(dsn: str, engine: Engine) -> None:
    count(engine)
    engine.fill(4)
    engine.enqueue(group="another")
    worker = engine.worker(lease="1 hour")
    run(engine, worker, 1)
    with pgfifo.Client(dsn) as fifo:
        assert fifo.pace("deploy").backlog == 0
        count(engine)
        assert fifo.pace("deploy").backlog == 4
        engine.enqueue_later("1 hour")
        run(engine, worker, 1)
        engine.enqueue(group="third")
        engine.claim(worker, 2)
        assert fifo.pace("deploy").backlog == 4, "that was later"
        lanes = "array(select id from pgfifo.lanes)"
        engine.rows(f"select pgfifo._count_lanes({lanes}, pgfifo._minute(pgfifo._now()), pgfifo._now())")
        assert fifo.pace("deploy").backlog == 4, "it is counted, but for a minute that goes on"
        count(engine)
        assert fifo.pace("deploy").backlog == 5


def test_pace_of_an_action_that_nobody_has_counted_yet_is_nothing(engine: Engine) -> None:
    engine.fill(3)
    [row] = engine.rows(
        "select enqueued, started, backlog, mean_run_seconds, until from pgfifo.pace('deploy')"
    )
    assert row[:4] == (0, 0, 0, None)
    assert row[4] is not None
    with pytest.raises(errors.InvalidValue):
        engine.one("select pgfifo.pace('deploy', null)")


# When it will start


def eta(engine: Engine, id_: int) -> tuple[float | None, str | None]:
    [row] = engine.rows("select eta_seconds, eta_basis from pgfifo.position(%s)", id_)
    data = engine.one("select data -> 'eta' from pgfifo.explain(%s)", id_)
    assert (data["seconds"] if data else None) == (None if row[0] is None else pytest.approx(row[0], rel=0.1))
    assert (data["basis"] if data else None) == row[1]
    return row


def test_eta_rests_on_the_starts_of_its_lane_while_something_waited(engine: Engine) -> None:
    count(engine)
    ids = engine.fill(100)
    worker = engine.worker(lease="1 hour")
    assert eta(engine, ids[99]) == (None, None), "there is no pace yet"
    count(engine)
    for _ in range(20):
        run(engine, worker, 6)
    seconds, basis = eta(engine, ids[99])
    assert basis == "lane"
    assert seconds == pytest.approx(80 * 6, rel=0.15)
    assert eta(engine, ids[20])[0] == pytest.approx(6, rel=0.2)
    said = engine.one("select explanation from pgfifo.explain(%s)", ids[99])
    assert "a minute it would start in about" in said
    assert "its lane had 20 starts in the last 2m" in said
    # Cancelling some brings it nearer; it makes nothing quicker.
    for id_ in ids[30:70]:
        engine.cancel(id_)
    assert eta(engine, ids[99])[0] == pytest.approx(40 * 6, rel=0.15)


def test_eta_forgets_what_is_long_ago(engine: Engine) -> None:
    engine.fill(200)
    last = engine.fill(1)[0]
    worker = engine.worker(lease="1 hour")
    count(engine)
    for _ in range(60):  # for a quarter of an hour, four a minute
        run(engine, worker, 15)
        engine.tick(1)
    for _ in range(12):  # then, for as long, slower
        run(engine, worker, 75)
        engine.tick(1)
    seconds, basis = eta(engine, last)
    assert basis == "lane"
    assert seconds == pytest.approx(129 * 76, rel=0.25), "the pace is an old one"


def test_eta_rests_on_the_actions_runs_where_the_lane_is_new(engine: Engine) -> None:
    engine.policy(max_concurrent=2)
    engine.fill(4)
    worker = engine.worker(lease="1 hour")
    for _ in range(4):
        run(engine, worker, 10)
    count(engine)
    ids = engine.enqueue_many("deploy", [{}] * 6, ["new"] * 6)
    assert [eta(engine, id_)[1] for id_ in ids] == ["action"] * 6
    assert [eta(engine, id_)[0] for id_ in ids] == pytest.approx([0, 0, 5, 10, 15, 20], rel=0.2)
    engine.policy(group="new", spacing=30)
    assert eta(engine, ids[5])[0] == pytest.approx(4 * 30)
    engine.policy(group="new", spacing=None, rate="1/m")
    assert eta(engine, ids[5])[0] == pytest.approx(4 * 60)


def test_eta_is_none_where_nothing_moves(engine: Engine) -> None:
    engine.fill(4)
    worker = engine.worker(lease="1 hour")
    count(engine)
    for _ in range(3):
        run(engine, worker, 10)
    count(engine)
    last = engine.fill(1)[0]
    assert eta(engine, last)[0] is not None
    engine.pause()
    assert eta(engine, last) == (None, None), "it is paused"
    engine.resume()
    engine.one("select pgfifo.worker_stop(%s)", worker)
    assert eta(engine, last) == (None, None), "nobody is there"
    worker = engine.worker(lease="3 hours")
    assert eta(engine, last)[0] is not None
    (stuck,) = engine.claim(worker)
    for _ in range(15):
        engine.advance("50 s")
        engine.tick(3)
    assert eta(engine, last) == (None, None), "one that is stuck has its slot for ages"
    assert eta(engine, stuck.id) == (None, None), "it runs"


def test_flat_cost_of_position_behind_a_long_line(conn: Connection, engine: Engine) -> None:
    """It counts 10,000 at most, and looks at nothing that waits behind."""
    ids = engine.fill(10_500)

    def cost(id_: int) -> int:
        return min(buffers(conn, f"select * from pgfifo.position({id_})") for _ in range(7))

    near, far = cost(ids[50]), cost(ids[-1])
    engine.fill(30_000)
    last = engine.fill(1)[0]
    assert cost(ids[50]) <= near * 1.2 + 20
    assert cost(last) <= far * 1.2 + 40


def test_flat_cost_of_counting_lanes_in_which_nothing_happens(conn: Connection, engine: Engine) -> None:
    for _ in range(4):
        engine.enqueue_many("deploy", [{}] * 500, [str(n) for n in range(500)])
    count(engine)
    engine.tick(1)
    lanes = "array(select id from pgfifo.lanes)"
    call = f"select pgfifo._count_lanes({lanes}, pgfifo._minute(pgfifo._now()), pgfifo._now())"
    assert buffers(conn, call) < 500 * 20
    written = "select count(distinct xmin::text) from pgfifo._tallies"
    before = engine.one(written)
    conn.execute(call.encode())
    assert engine.one(written) == before, "rows of lanes in which nothing happened were written"
