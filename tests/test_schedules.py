"""Schedules: each tick is enqueued once, however many workers run; and when, also where clocks change."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pgfifo
from pgfifo import Actions, Execution, InvalidValue
from pgfifo.scheduling import Cron, tick
from pgfifo.testing import Fifo
from tests.support.database import in_background, wait_for, wait_until_blocked
from tests.support.engine import Engine
from tests.test_worker import working

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def fifo(dsn: str, conn: Connection) -> Iterator[Fifo]:
    # Early in a minute: the next one begins when a test says so.
    conn.execute("select pgfifo.advance(date_trunc('minute', pgfifo._now()) + '61 s' - pgfifo._now())")
    with Fifo(dsn) as client:
        yield client


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


@pytest.fixture
def actions() -> Actions:
    return Actions()


def ticking(conn: Connection) -> int:
    """Do what a worker's heartbeat does when schedules are due."""
    return tick(lambda query, parameters: conn.execute(query.encode(), parameters).fetchall())


def ticks(fifo: Fifo, name: str | None = None) -> list[str]:
    """The ticks that gave an execution, oldest first."""
    found = [info.headers for info in reversed(fifo.executions(limit=1000)) if info.headers]
    return [each["pgfifo.tick"] for each in found if name in (None, each["pgfifo.schedule"])]


def now(conn: Connection) -> datetime:
    row = conn.execute("select pgfifo._now()").fetchone()
    assert row is not None
    time: datetime = row[0]
    return time.astimezone(UTC)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


# When


def local(expression: str, day: tuple[int, int, int], count: int = 5) -> list[str]:
    cron = Cron(expression, "Europe/Berlin")
    found = islice(cron.after(datetime(*day, 0, 50, tzinfo=BERLIN)), count)
    return [f"{time.astimezone(BERLIN):%d. %H:%M %Z}" for time in found]


SPRING, AUTUMN = (2026, 3, 29), (2026, 10, 25)


@pytest.mark.parametrize(
    ("expression", "day", "expected"),
    [
        # What would come in the hour that there is not comes at its end, once.
        ("30 2 * * *", SPRING, ["29. 03:00 CEST", "30. 02:30 CEST"]),
        ("0 2,3 * * *", SPRING, ["29. 03:00 CEST", "30. 02:00 CEST", "30. 03:00 CEST"]),
        ("0 3 * * *", SPRING, ["29. 03:00 CEST", "30. 03:00 CEST"]),
        # In the hour that comes twice, the first time counts.
        ("30 2 * * *", AUTUMN, ["25. 02:30 CEST", "26. 02:30 CET"]),
        ("0 1-3 * * *", AUTUMN, ["25. 01:00 CEST", "25. 02:00 CEST", "25. 03:00 CET", "26. 01:00 CET"]),
        # With a wildcard for the hour or the minute real time counts.
        ("*/30 * * * *", SPRING, ["29. 01:00 CET", "29. 01:30 CET", "29. 03:00 CEST", "29. 03:30 CEST"]),
        ("30 * * * *", SPRING, ["29. 01:30 CET", "29. 03:30 CEST"]),
        ("30 * * * *", AUTUMN, ["25. 01:30 CEST", "25. 02:30 CEST", "25. 02:30 CET", "25. 03:30 CET"]),
        ("0 */2 * * *", AUTUMN, ["25. 02:00 CEST", "25. 02:00 CET", "25. 04:00 CET"]),
    ],
)
def test_ticks_where_clocks_are_put_forward_and_back(
    expression: str, day: tuple[int, int, int], expected: list[str]
) -> None:
    assert local(expression, day, len(expected)) == expected


@given(
    minute=st.sampled_from(["*", "*/7", "0", "30", "15,45"]),
    hour=st.sampled_from(["*", "*/2", "2", "1-3", "0,2,3"]),
    day=st.sampled_from([SPRING, AUTUMN, (2026, 6, 1)]),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    start=st.integers(0, 2 * 24 * 60 * 60),
)
@settings(max_examples=150, deadline=None)
def test_ticks_come_one_after_the_other_from_wherever_one_begins(
    minute: str, hour: str, day: tuple[int, int, int], zone: str, start: int
) -> None:
    """Or one would be enqueued twice: each is worked out from the one before it."""
    cron = Cron(f"{minute} {hour} * * *", zone)
    begin = datetime(*day, tzinfo=UTC) - timedelta(days=1) + timedelta(seconds=start)
    found = list(islice(cron.after(begin), 60))
    assert found[0] > begin
    assert all(first < second for first, second in pairwise(found))
    one_by_one = [found[0]]
    while len(one_by_one) < len(found):
        one_by_one.append(next(cron.after(one_by_one[-1])))
    assert one_by_one == found
    assert cron.last(found[0], found[-1] + timedelta(seconds=1)) == found[-1]


def test_the_last_tick_is_found_however_long_ago_the_first_was() -> None:
    first = at("2026-01-01T00:00:00+00:00")
    for expression, far, expected in [
        ("* * * * *", "2027-06-01T12:00:30+00:00", "2027-06-01T12:00:00+00:00"),
        ("0 0 * * *", "2027-06-01T12:00:30+00:00", "2027-06-01T00:00:00+00:00"),
        ("0 0 1 * *", "2027-06-20T12:00:30+00:00", "2027-06-01T00:00:00+00:00"),
        ("0 0 1 1 *", "2026-12-20T12:00:30+00:00", "2026-01-01T00:00:00+00:00"),
        ("0 0 1 1 *", "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00"),
    ]:
        assert Cron(expression).last(first, at(far)) == at(expected)


def test_words_stand_for_common_expressions() -> None:
    begin = at("2026-01-05T10:20:30+00:00")
    for word, expected in {
        "@hourly": "2026-01-05T11:00:00+00:00",
        "@Daily": "2026-01-06T00:00:00+00:00",
        "@weekly": "2026-01-11T00:00:00+00:00",
        "@monthly": "2026-02-01T00:00:00+00:00",
        "@yearly": "2027-01-01T00:00:00+00:00",
    }.items():
        assert next(Cron(word).after(begin)) == at(expected)


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "often",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "0 0 30 2 *",
        "@sometimes",
        "*/0 * * * *",
        "L * * * *",
        None,
        5,
    ],
)
def test_an_expression_that_is_none_is_refused(fifo: Fifo, actions: Actions, cron: Any) -> None:
    actions.add("backup", print)
    with pytest.raises(InvalidValue, match="cron"):
        actions.schedule(cron)(print)
    with pytest.raises(InvalidValue, match="cron"):
        fifo.set_schedule("nightly", "backup", cron)
    assert fifo.schedules() == []


# Ticking


def test_each_tick_is_enqueued_with_what_the_schedule_says(fifo: Fifo, conn: Connection) -> None:
    assert (
        fifo.set_schedule(
            "nightly",
            "backup",
            "30 2 * * *",
            time_zone="Europe/Berlin",
            payload={"kind": "full"},
            group="g",
            headers={"trace": "t"},
            tags=["a"],
        )
        == "created"
    )
    [before] = fifo.schedules()
    assert (before.next_at, before.last_tick, before.last_id, before.missed) == (None, None, None, "one")
    assert ticking(conn) == 0
    [known] = fifo.schedules()
    assert known.next_at == next(Cron("30 2 * * *", "Europe/Berlin").after(now(conn)))
    assert ticking(conn) == 0
    fifo.advance(timedelta(days=1))
    info = fifo.assert_enqueued("backup", count=1)
    assert (info.payload, info.group_text, info.tags) == ({"kind": "full"}, "g", ["a"])
    tick_at = known.next_at.astimezone(UTC)
    assert info.headers == {
        "trace": "t",
        "pgfifo.schedule": "nightly",
        "pgfifo.tick": f"{tick_at:%Y-%m-%dT%H:%M:%SZ}",
    }
    [after] = fifo.schedules("backup")
    assert (after.last_tick, after.last_id, after.last_error) == (known.next_at, info.id, None)
    assert after.next_at is not None
    assert timedelta(hours=22) < after.next_at - known.next_at < timedelta(hours=26)
    for _ in range(3):
        fifo.advance("1d")
    assert len(ticks(fifo)) == 4


def test_a_worker_ticks_without_being_told(dsn: str, fifo: Fifo, actions: Actions, conn: Connection) -> None:
    ran: list[str] = []

    @actions.schedule("* * * * *")
    @actions.action("beat")
    def beat(execution: Execution) -> None:
        ran.append(execution.headers["pgfifo.tick"])

    with working(dsn, actions):
        wait_for(lambda: fifo.schedules()[0].next_at, message="the next tick to be worked out")
        conn.execute("select pgfifo.advance('1 min')")
        wait_for(lambda: len(ran) == 1, message="the tick")
        conn.execute("select pgfifo.advance('1 min')")
        wait_for(lambda: len(ran) == 2, message="the next tick")
    assert ran == ticks(fifo)
    assert len(set(ran)) == 2


@pytest.mark.parametrize(("missed", "expected"), [("skip", 0), ("one", 1), ("all", 180)])
def test_ticks_that_nobody_was_there_for(fifo: Fifo, conn: Connection, missed: Any, expected: int) -> None:
    """Three hours of a schedule that ticks each minute; then it goes on as ever."""
    fifo.set_schedule("beat", "beat", "* * * * *", missed=missed)
    ticking(conn)
    conn.execute("select pgfifo.advance(date_trunc('minute', pgfifo._now()) + '3 h 5 s' - pgfifo._now())")
    while ticking(conn):
        pass
    found = ticks(fifo)
    assert len(set(found)) == len(found)
    # The last one is not a minute late, and so was not missed.
    assert len(found) == max(expected, 1)
    assert found[-1] == f"{now(conn).replace(second=0):%Y-%m-%dT%H:%M:%SZ}"
    if missed == "all":
        assert found == sorted(found)
        assert [at(b) - at(a) for a, b in pairwise(found)] == [timedelta(minutes=1)] * 179
    fifo.advance(60)
    assert len(ticks(fifo)) == len(found) + 1


def test_a_tick_that_was_missed_by_more_than_a_minute_is_skipped_where_one_wants_that(
    fifo: Fifo, conn: Connection
) -> None:
    both: list[Any] = ["skip", "one"]
    for missed in both:
        fifo.set_schedule(missed, "report", "0 0 1 1 *", missed=missed)
    ticking(conn)
    due = fifo.schedules()[0].next_at
    assert due is not None
    conn.execute("select pgfifo.advance(%s - pgfifo._now() + '5 min')", (due,))
    while ticking(conn):
        pass
    assert [info.headers["pgfifo.schedule"] for info in fifo.executions() if info.headers] == ["one"]
    assert [each.last_tick for each in fifo.schedules()] == [due, due]


def test_each_tick_is_enqueued_once_by_many_at_a_time(fifo: Fifo, connect: Connect) -> None:
    """Twenty sessions, each round at once; none may be lost, none enqueued twice."""
    for number in range(3):
        fifo.set_schedule(f"beat{number}", "beat", "* * * * *", missed="all")
    sessions = [connect() for _ in range(20)]
    ticking(sessions[0])
    for _ in range(5):
        sessions[0].execute("select pgfifo.advance('2 min')")
        rounds = [in_background(lambda own=own: ticking(own)) for own in sessions]  # type: ignore[misc]
        assert sum(each.result() for each in rounds) <= 6
        ticking(sessions[0])
    for number in range(3):
        found = ticks(fifo, f"beat{number}")
        assert len(found) == len(set(found)) == 10


def test_a_tick_waits_for_nobody_who_ticks_already(engine: Engine, connect: Connect, fifo: Fifo) -> None:
    """Compare and set: what was worked out for a tick that has come already does not count."""
    fifo.set_schedule("beat", "beat", "* * * * *")
    ticking(engine.conn)
    engine.advance("1 min")
    columns = "id, version, next_at, now"
    [(id_, version, due, time)] = engine.rows(f"select {columns} from pgfifo.due_schedules()")
    call = "select pgfifo.tick_schedule(%s, %s, %s, %s::timestamptz[], %s)"
    following = time + timedelta(minutes=1)
    first = Engine(connect(autocommit=False))
    assert len(first.one(call, id_, version, due, [due], following)) == 1
    assert engine.one(call, id_, version, due, [due], following) is None
    first.conn.rollback()
    assert ticks(fifo) == [], "the enqueue was not part of the tick"
    assert len(first.one(call, id_, version, due, [due], following)) == 1
    first.conn.commit()
    assert engine.one(call, id_, version, due, [due], following) is None
    assert len(ticks(fifo)) == 1
    engine.conn.execute("update pgfifo._schedules set next_at = %s", (due,))  # as after a restore
    assert engine.one(call, id_, version, due, [due], following) == [fifo.executions()[0].id]
    assert len(ticks(fifo)) == 1
    for odd in ([time + timedelta(hours=1)], [due - timedelta(hours=1)]):
        with pytest.raises(InvalidValue):
            engine.one(call, id_, version, due, odd, following)
    with pytest.raises(InvalidValue):
        engine.one(call, id_, version, due, [due], due)


def test_a_change_in_flight_wins_over_a_tick_that_was_read_before(
    engine: Engine, connect: Connect, fifo: Fifo
) -> None:
    fifo.set_schedule("beat", "beat", "* * * * *", payload=1)
    ticking(engine.conn)
    engine.advance("1 min")
    [(id_, version, due, time)] = engine.rows("select id, version, next_at, now from pgfifo.due_schedules()")
    call = "select pgfifo.tick_schedule(%s, %s, %s, %s::timestamptz[], %s)"
    following = time + timedelta(minutes=1)
    changing = connect(autocommit=False)
    fifo.set_schedule("beat", "beat", "* * * * *", payload=2, connection=changing)
    assert engine.one(call, id_, version, due, [due], following) is None
    changing.commit()
    assert engine.one(call, id_, version, due, [due], following) is None
    assert ticking(engine.conn) == 1
    assert [info.payload for info in fifo.executions()] == [2]


def test_a_producer_that_keeps_the_lane_does_not_keep_a_heartbeat(
    engine: Engine, connect: Connect, fifo: Fifo
) -> None:
    fifo.set_schedule("beat", "beat", "* * * * *")
    ticking(engine.conn)
    engine.advance("1 min")
    producer = Engine(connect(autocommit=False))
    producer.enqueue("beat")
    assert ticking(engine.conn) == 0
    assert engine.one("show lock_timeout") == "0"
    producer.conn.commit()
    assert ticking(engine.conn) == 1
    assert len(ticks(fifo)) == 1


def test_a_tick_that_is_refused_is_told_and_the_next_one_may_do_better(
    fifo: Fifo, conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    fifo.set_policy("beat", max_queue_length=1)
    fifo.set_schedule("beat", "beat", "* * * * *", missed="all")
    ticking(conn)
    fifo.advance("3m")
    [info] = fifo.schedules()
    assert len(ticks(fifo)) == 1
    assert "the line of beat is full" in str(info.last_error)
    assert "gave nothing" in caplog.text
    fifo.cancel(fifo.executions()[0].id)
    fifo.advance("1m")
    assert len(ticks(fifo)) == 2
    assert fifo.schedules()[0].last_error is None


def test_an_expression_that_nobody_understands_is_told_and_disturbs_no_other(
    fifo: Fifo, conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """SQL takes it; it does not read expressions."""
    conn.execute("select pgfifo.set_schedule('broken', 'beat', 'now and then')")
    fifo.set_schedule("fine", "beat", "* * * * *")
    fifo.advance("1m")
    assert len(ticks(fifo, "fine")) == 1
    broken, _ = fifo.schedules()
    assert (broken.name, broken.next_at) == ("broken", None)
    assert "is no cron expression" in str(broken.last_error)
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "schedule broken ticks no more" in record.message
    fifo.set_schedule("broken", "beat", "* * * * *")
    fifo.advance("1m")
    assert len(ticks(fifo, "broken")) == 1
    assert fifo.schedules()[0].last_error is None


def test_a_tick_that_is_overdue_is_found_by_check(fifo: Fifo, conn: Connection) -> None:
    fifo.set_schedule("beat", "beat", "* * * * *")
    ticking(conn)
    assert fifo.check() == []
    conn.execute("select pgfifo.advance('3 min')")
    assert [(each.severity, each.kind) for each in fifo.check()] == [("overdue", "schedule")]


# Operating


def test_a_schedule_is_paused_and_resumed_and_what_passes_was_not_missed(
    fifo: Fifo, conn: Connection
) -> None:
    fifo.set_schedule("beat", "beat", "* * * * *", missed="all")
    ticking(conn)
    assert fifo.pause_schedule("beat", reason="incident 12")
    assert not fifo.pause_schedule("beat")
    [info] = fifo.schedules()
    assert (info.paused, info.paused_reason, info.next_at) == (True, "incident 12", None)
    fifo.advance("5m")
    assert fifo.resume_schedule("beat")
    assert not fifo.resume_schedule("beat")
    fifo.advance("1m")
    assert len(ticks(fifo)) == 1
    fifo.remove_schedule("beat")
    fifo.advance("5m")
    assert len(ticks(fifo)) == 1
    whats = [what for (what,) in conn.execute("select what from pgfifo.audit order by id").fetchall()]
    assert whats == ["set_schedule", "pause_schedule", "resume_schedule", "remove_schedule"]


def test_a_change_of_the_expression_counts_from_now_and_of_the_rest_leaves_the_next_tick(
    fifo: Fifo, conn: Connection
) -> None:
    fifo.set_schedule("nightly", "backup", "0 2 * * *")
    ticking(conn)
    due = fifo.schedules()[0].next_at
    assert fifo.set_schedule("nightly", "backup", "0 2 * * *", payload={"n": 1}) == "changed"
    assert fifo.set_schedule("nightly", "backup", "0 2 * * *", payload={"n": 1}) == "same"
    assert fifo.schedules()[0].next_at == due
    fifo.set_schedule("nightly", "backup", "0 2 * * *", payload={"n": 1}, time_zone="Asia/Tokyo")
    assert fifo.schedules()[0].next_at is None
    ticking(conn)
    tokyo = fifo.schedules()[0].next_at
    assert tokyo is not None
    assert tokyo.astimezone(ZoneInfo("Asia/Tokyo")).hour == 2
    fifo.set_schedule("nightly", "other", "0 2 * * *", time_zone="Asia/Tokyo")
    assert [each.action for each in fifo.schedules()] == ["other"]


def test_what_cannot_be_right_is_refused(fifo: Fifo, conn: Connection) -> None:
    fifo.set_policy("deploy", group_by=["env"], max_payload=100)
    for arguments, error in [
        ({"time_zone": "Mars/Olympus"}, InvalidValue),
        ({"time_zone": "../../etc/passwd"}, InvalidValue),
        ({"missed": "some"}, InvalidValue),
        ({"group": {"enviroment": "prod"}}, pgfifo.GroupMismatch),
        ({"payload": "x" * 200}, pgfifo.PayloadTooLarge),
        ({"payload": {1}}, InvalidValue),
        ({"headers": "trace"}, InvalidValue),
        ({"tags": "a"}, InvalidValue),
    ]:
        with pytest.raises(error):
            fifo.set_schedule("nightly", "deploy", "0 2 * * *", **arguments)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="name"):
        fifo.set_schedule("two words", "deploy", "0 2 * * *")
    assert fifo.schedules() == []
    fifo.set_schedule("nightly", "deploy", "0 2 * * *", group={"env": "prod"})
    for call in (fifo.remove_schedule, fifo.pause_schedule, fifo.resume_schedule):
        with pytest.raises(InvalidValue, match="there is no schedule 'nigthly'") as caught:
            call("nigthly")
        assert caught.value.hint == "Did you mean 'nightly'?"
    with pytest.raises(pgfifo.UnknownAction):
        fifo.schedules("depoly")
    for odd in ("'Mars/Olympus', '{}'", "'UTC', null"):
        with pytest.raises(InvalidValue):
            conn.execute(f"select pgfifo.set_schedule('x', 'deploy', '0 2 * * *', {odd})".encode())


def test_both_clients_have_schedules(dsn: str) -> None:
    async def live() -> None:
        async with pgfifo.AsyncClient(dsn) as fifo:
            assert await fifo.set_schedule("nightly", "backup", "@daily") == "created"
            assert [each.name for each in await fifo.schedules()] == ["nightly"]
            assert await fifo.pause_schedule("nightly")
            assert await fifo.resume_schedule("nightly")
            await fifo.remove_schedule("nightly")
            assert await fifo.schedules() == []

    asyncio.run(live())


# From code


def declared(actions: Actions, *schedules: tuple[str, str]) -> Actions:
    """Return a registry with an action and such schedules, as (name, expression)."""
    actions.add("backup", print)
    for name, cron in schedules:
        actions.schedule(cron, name=name)(print)
    return actions


def test_what_code_declares_is_replaced_as_a_whole_and_an_operators_wins(fifo: Fifo, dsn: str) -> None:
    fifo.declare(declared(Actions(), ("one", "0 1 * * *"), ("two", "0 2 * * *")))
    fifo.declare(declared(Actions(), ("one", "0 1 * * *"), ("two", "0 2 * * *")))
    assert [(each.name, each.cron, each.declared) for each in fifo.schedules()] == [
        ("one", "0 1 * * *", True),
        ("two", "0 2 * * *", True),
    ]
    fifo.set_schedule("one", "backup", "0 5 * * *")
    fifo.set_schedule("mine", "backup", "0 6 * * *")
    fifo.declare(declared(Actions(), ("one", "0 1 * * *"), ("three", "0 3 * * *")))
    wanted = [("mine", "0 6 * * *", False), ("one", "0 5 * * *", False), ("three", "0 3 * * *", True)]
    assert [(each.name, each.cron, each.declared) for each in fifo.schedules()] == wanted
    other = Actions()
    other.add("other", print)
    fifo.declare(other)
    assert len(fifo.schedules()) == 3, "a registry without the action has removed its schedules"
    fifo.remove_schedule("one")
    fifo.declare(declared(Actions(), ("one", "0 1 * * *")))
    assert [(each.name, each.cron) for each in fifo.schedules()] == [
        ("mine", "0 6 * * *"),
        ("one", "0 1 * * *"),
    ]
    pgfifo.Worker(dsn, declared(Actions(), ("four", "0 4 * * *")), until_empty=True).run()
    pgfifo.Worker(dsn, declared(Actions(), ("five", "0 4 * * *")), until_empty=True, declare=False).run()
    assert [each.name for each in fifo.schedules()] == ["four", "mine"]


def test_a_schedule_can_move_to_another_action_and_belongs_to_one(fifo: Fifo) -> None:
    fifo.declare(declared(Actions(), ("one", "0 1 * * *")))
    both = Actions()
    both.add("backup", print)

    @both.schedule("0 1 * * *", name="one")
    @both.action("restore")
    def restore(execution: Execution) -> None: ...

    other = Actions()
    other.include(both.subset(["restore"]))
    with pytest.raises(InvalidValue, match="the schedule one is declared already, for action backup"):
        fifo.declare(other)
    fifo.declare(both)
    assert [(each.name, each.action) for each in fifo.schedules()] == [("one", "restore")]


def test_twenty_processes_declare_at_once(fifo: Fifo, dsn: str) -> None:
    def declare() -> None:
        with pgfifo.Client(dsn) as own:
            own.declare(declared(Actions(), ("one", "0 1 * * *"), ("two", "0 2 * * *")))

    for each in [in_background(declare) for _ in range(20)]:
        each.result()
    assert [each.name for each in fifo.schedules()] == ["one", "two"]


def test_declaring_what_is_there_waits_for_nobody(fifo: Fifo, connect: Connect, engine: Engine) -> None:
    fifo.declare(declared(Actions(), ("one", "0 1 * * *")))
    holder = connect(autocommit=False)
    fifo.set_schedule("other", "backup", "0 2 * * *", connection=holder)
    fifo.declare(declared(Actions(), ("one", "0 1 * * *")))
    waiting = connect()
    late = in_background(lambda: pgfifo.Client(waiting).declare(declared(Actions(), ("new", "0 1 * * *"))))
    wait_until_blocked(engine.conn, waiting.info.backend_pid)
    holder.commit()
    late.result()
    assert [each.name for each in fifo.schedules()] == ["new", "other"]


def test_decorators_in_the_wrong_order_and_names_that_are_taken_are_refused(actions: Actions) -> None:
    with pytest.raises(InvalidValue, match="is no handler of this registry") as caught:

        @actions.action("backup")
        @actions.schedule("@daily")
        def backup(execution: Execution) -> None: ...

    assert caught.value.hint == "Write @actions.schedule(…) above @actions.action(…)."
    actions.add("backup", print)
    actions.schedule("@daily")(print)
    with pytest.raises(InvalidValue, match="the schedule 'backup' is there already"):
        actions.schedule("@hourly")(print)
    actions.schedule("@hourly", name="hourly", payload={"n": 1}, tags=["t"], missed="all")(print)
    assert [each.name for each in actions["backup"].schedules] == ["backup", "hourly"]
    assert actions.subset(["backup"])["backup"].schedules == actions["backup"].schedules
