"""Lists of executions: what the view has, in the order of ids, without reading all of it."""

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo import errors
from tests.support.engine import Engine, item
from tests.support.sqlworker import buffers

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


Wanted = dict[str, object]


def listed(conn: Connection, wanted: Wanted, limit: int = 100, *, oldest: bool = False) -> list[int]:
    query = "select id from pgfifo.list_executions(%s::jsonb, %s, %s)"
    return [id_ for (id_,) in conn.execute(query, [json.dumps(wanted), limit, oldest])]


def expected(conn: Connection, condition: str, limit: int = 100, *, oldest: bool = False) -> list[int]:
    """The same from the view."""
    order = "asc" if oldest else "desc"
    query = f"select id from pgfifo.executions where {condition} order by id {order} limit {limit}"
    return [id_ for (id_,) in conn.execute(query)]


@pytest.fixture
def engine(conn: Connection) -> Engine:
    """Executions in every state there is, of three actions, in several lanes."""
    engine = Engine(conn)
    engine.policy("a", max_concurrent=6, backoff_initial=3600)
    for n in range(40):
        tags = "array['odd']" if n % 2 else "null"
        conn.execute(f"select pgfifo.enqueue('a', '{{\"n\": {n}}}', %s, p_tags => {tags})", [str(n % 3)])
    worker = engine.worker("a", concurrency=50)
    starts = engine.claim(worker, 18, ["a"])
    engine.hand_in(worker, *starts[:4])
    engine.hand_in(worker, *starts[4:6], outcome="failed", retry=False)
    engine.hand_in(worker, *starts[6:9], outcome="failed")
    engine.work(worker, 0, [], [item(start, "released") for start in starts[9:11]])
    engine.policy("y", failure_mode="yield", backoff_initial=3600)
    engine.enqueue("y")
    engine.finish(engine.claim(engine.worker("y"), 1, ["y"])[0], "failed")
    engine.policy("w", max_wait=60)
    engine.fill(3, "w")
    engine.advance("2 min")
    engine.fill(2, "w")
    conn.execute("select pgfifo.enqueue('d', p_run_at => now() + interval '1 day')")
    for id_ in expected(conn, "state = 'waiting' and action = 'a'", 3):
        engine.cancel(id_)
    states = {state for (state,) in conn.execute("select distinct state from pgfifo.executions")}
    assert states == {"waiting", "running", "held", "delayed", "succeeded", "failed", "cancelled", "expired"}
    return engine


def of_state(state: str) -> Wanted:
    return {"state": state}


STATES = ["delayed", "waiting", "running", "held", "succeeded", "failed", "cancelled", "expired"]
FILTERS: list[tuple[Wanted, str]] = [
    ({}, "true"),
    *[(of_state(state), f"state = '{state}'") for state in STATES],
    *[(of_state(state) | {"action": "a"}, f"state = '{state}' and action = 'a'") for state in STATES],
    ({"state": ["running", "failed", "delayed"]}, "state in ('running', 'failed', 'delayed')"),
    ({"state": ["succeeded", "failed", "cancelled", "expired"]}, "finished_at is not null"),
    ({"action": "a"}, "action = 'a'"),
    ({"action": "w"}, "action = 'w'"),
    ({"action": "a", "group": "1"}, "action = 'a' and group_text = '1'"),
    (
        {"action": "a", "group": "1", "state": "failed"},
        "action = 'a' and group_text = '1' and state = 'failed'",
    ),
    ({"action": "a", "group": "none such"}, "false"),
    ({"tags": ["odd"]}, "tags @> '{odd}'"),
    ({"tags": ["odd"], "state": "waiting"}, "tags @> '{odd}' and state = 'waiting'"),
    ({"tags": ["odd"], "state": ["held", "running"]}, "tags @> '{odd}' and state in ('held', 'running')"),
    ({"tags": ["odd", "even"]}, "false"),
    ({"state": []}, "false"),
]


@pytest.mark.parametrize(("wanted", "condition"), FILTERS, ids=[str(wanted) for wanted, _ in FILTERS])
def test_a_list_is_what_the_view_has(engine: Engine, wanted: Wanted, condition: str) -> None:
    conn = engine.conn
    for oldest in (False, True):
        for limit in (0, 1, 3, 100):
            found = listed(conn, wanted, limit, oldest=oldest)
            assert found == expected(conn, condition, limit, oldest=oldest), (oldest, limit)
    whole = expected(conn, condition)
    for last in whole[::5]:
        assert listed(conn, {**wanted, "to_id": last - 1}) == [id_ for id_ in whole if id_ < last]
        assert listed(conn, {**wanted, "from_id": last}, oldest=True) == sorted(i for i in whole if i >= last)


def test_times_are_those_of_the_row(engine: Engine) -> None:
    conn = engine.conn
    query = "select enqueued_at from pgfifo.executions order by id offset 20 limit 1"
    middle = conn.execute(query).fetchone()
    assert middle is not None
    for key, condition in (("enqueued_since", ">="), ("enqueued_before", "<")):
        text = middle[0].isoformat()
        assert listed(conn, {key: text}) == expected(conn, f"enqueued_at {condition} '{text}'")
        for state in ("running", "failed", "waiting"):
            found = listed(conn, {key: text, "state": state})
            assert found == expected(conn, f"enqueued_at {condition} '{text}' and state = '{state}'")
    (ended,) = conn.execute("select max(finished_at) from pgfifo.history").fetchone() or (None,)
    assert ended is not None
    text = ended.isoformat()
    assert listed(conn, {"finished_since": text}) == expected(conn, f"finished_at >= '{text}'")
    assert listed(conn, {"finished_before": text}) == expected(conn, f"finished_at < '{text}'")


def test_a_row_of_the_list_is_a_row_of_the_view(engine: Engine) -> None:
    rows = engine.rows("select * from pgfifo.list_executions()")
    assert rows == engine.rows("select * from pgfifo.executions order by id desc limit 100")


def test_more_than_a_piece_is_put_together_in_order(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy("a", max_wait=60)
    old = engine.fill(700, "a")
    engine.advance("2 min")
    young = engine.fill(30, "a")
    # All 700 look like waiting ones until the view says that they have expired.
    assert listed(conn, {"state": "waiting"}, 40) == young[::-1]
    assert listed(conn, {"state": "waiting"}, 40, oldest=True) == young
    assert listed(conn, {"state": "expired"}, 1000) == old[::-1]


@pytest.mark.parametrize("limit", ["-1", "null"])
def test_what_is_no_limit_is_refused(conn: Connection, limit: str) -> None:
    with pytest.raises(errors.InvalidValue, match="p_limit cannot be"):
        conn.execute(f"select from pgfifo.list_executions('{{}}', {limit})")


def test_a_filter_that_cannot_be_is_refused(conn: Connection) -> None:
    for wanted in ('{"state": "lost"}', '{"colour": "red"}', '{"group": "x"}', "[]"):
        with pytest.raises(errors.InvalidValue):
            conn.execute("select from pgfifo.list_executions(%s::jsonb)", [wanted])
    with pytest.raises(errors.UnknownAction):
        listed(conn, {"action": "never"})


def test_the_client_lists_what_the_view_has(engine: Engine, dsn: str) -> None:
    with pgfifo.Client(dsn) as fifo:
        assert [each.id for each in fifo.executions()] == expected(engine.conn, "true")
        page = fifo.executions("a", limit=7)
        assert len(page) == 7
        rest = fifo.executions("a", before=page[-1].id)
        assert [each.id for each in [*page, *rest]] == expected(engine.conn, "action = 'a'")
        failed = fifo.executions("a", state=["failed", "held"])
        condition = "action = 'a' and state in ('failed', 'held')"
        assert [each.id for each in failed] == expected(engine.conn, condition)


# What it costs


@pytest.mark.long
def test_flat_cost_of_a_list_whatever_waits_and_has_finished(conn: Connection) -> None:
    """Counted in buffers, first with little and then with a lot of everything that is not asked for."""
    engine = Engine(conn)

    def grow(count: int) -> None:
        groups = "array(select (g % 20)::text from generate_series(1, 10000) g)"
        payloads = "array_fill('{}'::jsonb, array[10000])"
        query = f"select id from pgfifo.enqueue_many('big', {payloads}, {groups})"
        for _ in range(count // 10_000):
            ids = [id_ for (id_,) in conn.execute(query)]
            for start in range(0, 5000, 2500):
                conn.execute("select count(*) from pgfifo.cancel_many(%s)", [ids[start : start + 2500]])

    grow(10_000)
    engine.policy("rare", max_concurrent=4, backoff_initial=3600)
    engine.fill(30, "rare")
    worker = engine.worker("rare")
    starts = engine.claim(worker, 4, ["rare"])
    engine.finish(starts[0], "failed", retry=False)
    engine.finish(starts[1], "failed")

    asked = [
        "{}",
        '{"action": "big"}',
        '{"action": "rare"}',
        '{"action": "big", "group": "7"}',
        '{"state": "waiting"}',
        '{"state": ["running", "held"]}',
        '{"state": "held", "action": "rare"}',
        '{"state": "failed"}',
        '{"state": "failed", "action": "rare"}',
        '{"state": "cancelled"}',
        '{"state": "expired"}',
        '{"state": "delayed"}',
        '{"state": ["succeeded", "failed", "cancelled", "expired"]}',
    ]

    def costs() -> dict[str, int]:
        conn.execute("analyze")
        orders = (("", "false"), ("oldest ", "true"))
        calls = {
            f"{name}{wanted}": f"select * from pgfifo.list_executions('{wanted}', 20, {oldest})"
            for wanted in asked
            for name, oldest in orders
        }
        return {name: min(buffers(conn, call) for _ in range(3)) for name, call in calls.items()}

    before = costs()
    grow(80_000)
    after = costs()
    for wanted, cost in after.items():
        # A level more in an index, a page that has filled up: not more.
        assert cost <= before[wanted] * 1.5 + 60, f"{wanted} touched {before[wanted]} buffers, now {cost}"
