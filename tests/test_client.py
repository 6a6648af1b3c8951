"""The client: each call does what it says, in the transaction it should, and says clearly when it cannot."""

import gc
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.rows import class_row, dict_row, namedtuple_row
from psycopg.types.string import TextLoader

import pgfifo
from pgfifo import errors
from tests.support.database import in_background, wait_for

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


@pytest.fixture
def fifo(dsn: str) -> Iterator[pgfifo.Client]:
    with pgfifo.Client(dsn, application_name="the client") as client:
        yield client


def worker(conn: Connection, *actions: str) -> int:
    row = conn.execute(
        "select pgfifo.worker_start('w', 'h', 1, %s::text[], 10, p_locked => false)", (list(actions),)
    ).fetchone()
    assert row is not None
    return int(row[0])


def claim(conn: Connection, number: int, action: str, limit: int = 1) -> list[tuple[int, int]]:
    query = "select id, attempt from pgfifo.claim(%s, %s::text[], %s)"
    return conn.execute(query, (number, [action], limit)).fetchall()


def waiting(conn: Connection) -> list[int]:
    return [row[0] for row in conn.execute("select id from pgfifo._executions order by id")]


def sessions(conn: Connection, name: str = "the client") -> list[int]:
    query = "select pid from pg_stat_activity where application_name = %s and datname = current_database()"
    return [row[0] for row in conn.execute(query, (name,))]


def is_blocked(conn: Connection, name: str = "the client") -> bool:
    query = "select pid from pg_stat_activity where application_name = %s and wait_event_type = 'Lock'"
    return conn.execute(query, (name,)).fetchone() is not None


def terminate(conn: Connection, name: str = "the client") -> None:
    conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = %s and datname = current_database()",
        (name,),
    )


# Producing


def test_an_enqueued_execution_is_there_with_all_that_was_given(fifo: pgfifo.Client) -> None:
    fifo.set_policy("deploy", group_by=["env"])
    job = fifo.enqueue("deploy", {"env": "prod", "sha": "abc"}, headers={"trace": "1"}, tags=["a", "b"])
    assert job == pgfifo.Enqueued(job.id, created=True, lane=pgfifo.Lane("deploy", '{"env":"prod"}'))
    assert str(job.lane) == "deploy env=prod"
    assert job.lane.group == {"env": "prod"}
    info = fifo.execution(job.id)
    assert (info.action, info.lane, info.state, info.attempt) == ("deploy", job.lane, "waiting", 0)
    assert (info.payload, info.headers, info.tags) == (
        {"env": "prod", "sha": "abc"},
        {"trace": "1"},
        ["a", "b"],
    )
    assert not info.finished


@pytest.mark.parametrize(
    "payload",
    [
        [1, "two", None],
        "text",
        7,
        1.5,
        True,
        {"ü": "€😀", 'quo"te': "back\\slash", "a": {"b": [{}]}},
        10**30,
        "{a,b}",
    ],
)
def test_any_json_value_arrives_as_it_was(fifo: pgfifo.Client, payload: object) -> None:
    one = fifo.enqueue("deploy", payload)
    many = fifo.enqueue_many("deploy", [payload, payload])
    for job in (one, *many):
        assert fifo.execution(job.id).payload == payload


def test_no_payload_is_an_empty_object(fifo: pgfifo.Client) -> None:
    jobs = [fifo.enqueue("deploy"), *fifo.enqueue_many("deploy", [None, {}])]
    assert [fifo.execution(job.id).payload for job in jobs] == [{}, {}, {}]


def test_json_text_keeps_what_python_would_round(fifo: pgfifo.Client, conn: Connection) -> None:
    exact = '{"n": 0.1000000000000000055511151231257827}'
    fifo.enqueue("deploy", pgfifo.JsonText(exact))
    fifo.enqueue_many("deploy", [pgfifo.JsonText(exact)])
    assert conn.execute("select payload::text from pgfifo._executions").fetchall() == [(exact,)] * 2


def test_a_given_group_chooses_the_lane(fifo: pgfifo.Client) -> None:
    fifo.set_policy("deploy", group_by=["env"])
    lanes = [
        fifo.enqueue("deploy", group=group).lane for group in ("prod", {"env": "prod"}, '{"env": "prod"}')
    ]
    assert set(lanes) == {pgfifo.Lane("deploy", '{"env":"prod"}')}
    with pytest.raises(pgfifo.GroupMismatch) as caught:
        fifo.enqueue("deploy", group={"region": "eu"})
    assert caught.value.group_by == ["env"]
    assert "env" in (caught.value.hint or "")


def test_a_batch_keeps_its_order_and_tells_each_items_lane(fifo: pgfifo.Client) -> None:
    fifo.set_policy("deliver", group_by=["customer"])
    jobs = fifo.enqueue_many(
        "deliver",
        ({"customer": n % 3, "n": n} for n in range(30)),
        headers=[{"n": n} if n % 2 else None for n in range(30)],
        tags=["batch"],
    )
    assert [job.id for job in jobs] == sorted(job.id for job in jobs)
    assert [job.lane.group for job in jobs] == [{"customer": n % 3} for n in range(30)]
    for n, job in enumerate(jobs):
        info = fifo.execution(job.id)
        assert info.payload["n"] == n
        assert info.headers == ({"n": n} if n % 2 else None)
        assert info.tags == ["batch"]
    assert fifo.position(jobs[5].id).position == 2


def test_a_batch_takes_one_group_for_all_or_one_for_each(fifo: pgfifo.Client) -> None:
    assert {job.lane.group_text for job in fifo.enqueue_many("call", [1, 2], group="a")} == {"a"}
    jobs = fifo.enqueue_many("call", [1, 2, 3], groups=["b", None, {"k": 1}])
    assert [job.lane.group_text for job in jobs] == ["b", "", '{"k":1}']


def test_an_empty_batch_is_no_call(fifo: pgfifo.Client) -> None:
    assert fifo.enqueue_many("deploy", []) == []
    assert fifo.stats() == []


def test_a_refused_batch_leaves_nothing_and_names_the_first_bad_item(
    fifo: pgfifo.Client, conn: Connection
) -> None:
    fifo.set_policy("deliver", group_by=["customer"], max_payload=100)
    with pytest.raises(pgfifo.GroupTooLong) as long:
        fifo.enqueue_many(
            "deliver",
            [{"customer": 1}, {"customer": "x" * 80}, {"customer": 2}],
            groups=[None, "y" * 2000, None],
        )
    assert long.value.index == 1
    with pytest.raises(pgfifo.PayloadTooLarge) as large:
        fifo.enqueue_many("deliver", [{"customer": 1}, {"customer": 2, "x": "y" * 200}])
    assert large.value.index == 1
    assert large.value.limit == 100
    with pytest.raises(pgfifo.InvalidValue) as odd:
        fifo.enqueue_many("deliver", [{"customer": 1}, {"customer": {1, 2}}])
    assert odd.value.index == 1
    assert waiting(conn) == []


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"groups": ["a"]}, "groups"),
        ({"headers": [None] * 3}, "headers"),
        ({"request_ids": []}, "request_ids"),
        ({"group": "a", "groups": ["a", "b"]}, "groups"),
        ({"tags": "alone"}, "tags"),
        ({"split": True, "connection": object()}, "split"),
    ],
)
def test_arguments_of_a_batch_that_do_not_fit_are_named(
    fifo: pgfifo.Client, arguments: dict[str, Any], name: str
) -> None:
    with pytest.raises(pgfifo.InvalidValue) as caught:
        fifo.enqueue_many("deliver", [1, 2], **arguments)
    assert caught.value.detail["name"] == name


def test_a_time_without_a_zone_is_refused(fifo: pgfifo.Client, conn: Connection) -> None:
    with pytest.raises(pgfifo.InvalidValue, match="time zone"):
        fifo.enqueue("deploy", run_at=datetime(2030, 1, 1))
    assert waiting(conn) == []


def test_a_full_queue_says_how_full(fifo: pgfifo.Client, conn: Connection) -> None:
    fifo.set_policy("deploy", max_queue_length=2)
    jobs = fifo.enqueue_many("deploy", [1, 2])
    with pytest.raises(pgfifo.QueueFull) as caught:
        fifo.enqueue("deploy", 3)
    assert (caught.value.action, caught.value.limit, caught.value.current) == ("deploy", 2, 2)
    assert waiting(conn) == [job.id for job in jobs]


def test_a_batch_over_many_lanes_is_refused_or_split_where_that_is_allowed(
    fifo: pgfifo.Client, conn: Connection
) -> None:
    fifo.set_policy("deliver", group_by=["customer"])
    [(most,)] = conn.execute("select pgfifo.max_batch_lanes()").fetchall()
    items = [{"customer": n % (most * 2 + 50), "n": n} for n in range(most * 3)]
    with pytest.raises(pgfifo.TooManyLanes) as caught:
        fifo.enqueue_many("deliver", items)
    assert caught.value.limit == most
    assert waiting(conn) == []
    jobs = fifo.enqueue_many("deliver", items, split=True)
    assert [job.id for job in jobs] == waiting(conn)
    assert [job.lane.group for job in jobs] == [{"customer": item["customer"]} for item in items]


def test_a_split_batch_that_fails_later_says_what_is_in(fifo: pgfifo.Client, conn: Connection) -> None:
    fifo.set_policy("deliver", group_by=["customer"])
    [(most,)] = conn.execute("select pgfifo.max_batch_lanes()").fetchall()
    items = [{"customer": n} for n in range(most * 2)]
    fifo.set_policy("deliver", items[-1], max_queue_length=1)
    fifo.enqueue("deliver", items[-1])
    with pytest.raises(pgfifo.QueueFull) as caught:
        fifo.enqueue_many("deliver", items, split=True)
    assert caught.value.index == len(items) - 1
    assert caught.value.detail["enqueued"] == len(waiting(conn)) - 1 == most


# In the caller's transaction


def test_an_enqueue_on_the_callers_connection_commits_and_rolls_back_with_it(
    fifo: pgfifo.Client, connect: Connect, conn: Connection
) -> None:
    mine = connect(autocommit=False)
    fifo.enqueue("deploy", connection=mine)
    fifo.enqueue_many("deploy", [1, 2], connection=mine)
    assert waiting(conn) == [], "it was committed before the caller did"
    mine.rollback()
    assert waiting(conn) == [], "a rolled-back enqueue left something"
    job = fifo.enqueue("deploy", connection=mine)
    mine.commit()
    assert waiting(conn) == [job.id]


def test_an_enqueue_in_a_rolled_back_savepoint_leaves_nothing(
    fifo: pgfifo.Client, connect: Connect, conn: Connection
) -> None:
    mine = connect(autocommit=False)
    kept = fifo.enqueue("deploy", connection=mine)
    with mine.transaction():
        fifo.enqueue("deploy", connection=mine)
        raise psycopg.Rollback
    mine.commit()
    assert waiting(conn) == [kept.id]


@pytest.mark.parametrize("row_factory", [dict_row, namedtuple_row, class_row(dict)])
def test_the_callers_row_factory_and_cursor_are_the_callers(
    fifo: pgfifo.Client, connect: Connect, row_factory: Any
) -> None:
    mine = connect(row_factory=row_factory, cursor_factory=psycopg.ClientCursor)
    job = fifo.enqueue("deploy", {"a": 1}, connection=mine)
    assert [each.id for each in fifo.enqueue_many("deploy", [1, 2], connection=mine)] == [
        job.id + 1,
        job.id + 2,
    ]
    assert fifo.cancel(job.id, connection=mine) == "cancelled"
    assert mine.row_factory is row_factory


def test_the_callers_way_to_read_json_is_the_callers(fifo: pgfifo.Client, connect: Connect) -> None:
    mine = connect()
    mine.adapters.register_loader("jsonb", TextLoader)  # as Django does
    [change] = fifo.set_policy("deploy", max_concurrent=3, connection=mine)
    assert change.new == 3
    assert pgfifo.Client(mine).execution(fifo.enqueue("deploy", {"a": 1}).id).payload == {"a": 1}
    assert mine.execute("""select '{"a": 1}'::jsonb""").fetchone() == ('{"a": 1}',)


def test_an_enqueue_works_in_the_callers_pipeline(
    fifo: pgfifo.Client, connect: Connect, conn: Connection
) -> None:
    mine = connect(autocommit=False)
    with mine.pipeline():
        job = fifo.enqueue("deploy", connection=mine)
    mine.commit()
    assert waiting(conn) == [job.id]


def test_operating_in_the_callers_transaction_rolls_back_with_it(
    fifo: pgfifo.Client, connect: Connect
) -> None:
    job = fifo.enqueue("deploy")
    mine = connect(autocommit=False)
    assert fifo.cancel(job.id, connection=mine) == "cancelled"
    assert fifo.pause("deploy", connection=mine)
    fifo.set_policy("deploy", max_concurrent=7, connection=mine)
    mine.rollback()
    stats = fifo.stats("deploy")
    assert (stats.queue_length, stats.total_cancelled, stats.paused, stats.max_concurrent) == (1, 0, False, 1)


def test_an_enqueue_above_read_committed_whose_snapshot_is_too_old_says_so(
    fifo: pgfifo.Client, connect: Connect
) -> None:
    mine = connect(autocommit=False)
    mine.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    mine.execute("select 1")
    fifo.enqueue("new")
    with pytest.raises(pgfifo.SnapshotTooOld) as caught:
        fifo.enqueue("new", connection=mine)
    assert caught.value.sqlstate == "40001"
    assert "again" in (caught.value.hint or "")


def test_deciding_calls_in_a_transaction_above_read_committed_are_refused(
    fifo: pgfifo.Client, connect: Connect
) -> None:
    job = fifo.enqueue("deploy")
    mine = connect(autocommit=False)
    mine.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    with pytest.raises(pgfifo.IsolationLevel):
        fifo.cancel(job.id, connection=mine)


def test_what_is_no_connection_is_refused_by_its_name(fifo: pgfifo.Client) -> None:
    with pytest.raises(pgfifo.InvalidValue, match=r"builtins\.str"):
        fifo.enqueue("deploy", connection="postgresql://…")


def test_calls_that_belong_together_can_have_a_transaction(fifo: pgfifo.Client, conn: Connection) -> None:
    with fifo.transaction() as mine:
        fifo.enqueue("deploy", connection=mine)
        raise psycopg.Rollback
    assert waiting(conn) == []
    with fifo.transaction() as mine:
        fifo.enqueue("deploy", connection=mine)
        fifo.enqueue("index", connection=mine)
        assert waiting(conn) == []
    assert len(waiting(conn)) == 2


# Looking and operating


def test_an_execution_is_found_in_every_state(fifo: pgfifo.Client, conn: Connection) -> None:
    jobs = fifo.enqueue_many("deploy", [{"n": n} for n in range(4)])
    number = worker(conn, "deploy")
    [(first, attempt)] = claim(conn, number, "deploy")
    assert first == jobs[0].id
    info = fifo.execution(first)
    assert (info.state, info.attempt, info.worker_id, info.start_no) == ("running", 1, number, 1)
    assert info.started_at is not None
    assert fifo.finish(first, attempt, "succeeded", result={"url": "x"}) == "succeeded"
    info = fifo.execution(first)
    assert (info.state, info.result, info.finished) == ("succeeded", {"url": "x"}, True)
    assert fifo.cancel(jobs[3].id, reason="not needed") == "cancelled"
    assert fifo.execution(jobs[3].id).reason == "not needed"
    assert [each.id for each in fifo.executions("deploy")] == [job.id for job in reversed(jobs)]
    assert [each.id for each in fifo.executions(state="waiting")] == [jobs[2].id, jobs[1].id]
    assert [each.id for each in fifo.executions(state=["succeeded", "cancelled"])] == [jobs[3].id, jobs[0].id]
    assert [each.id for each in fifo.executions(before=jobs[2].id, limit=1)] == [jobs[1].id]
    with pytest.raises(pgfifo.InvalidValue, match="exploded"):
        fifo.executions(state="exploded")  # type: ignore[arg-type]


def test_executions_of_one_group_are_found_in_each_way_to_write_it(fifo: pgfifo.Client) -> None:
    fifo.set_policy("deploy", group_by=["env"])
    prod = fifo.enqueue("deploy", {"env": "prod"})
    fifo.enqueue("deploy", {"env": "test"})
    for group in ("prod", {"env": "prod"}, '{"env": "prod"}'):
        assert [each.id for each in fifo.executions("deploy", group=group)] == [prod.id]
        assert [each.lane for each in fifo.lanes("deploy", group)] == [prod.lane]
    with pytest.raises(pgfifo.InvalidValue, match="together with its action"):
        fifo.executions(group="prod")


def test_an_execution_that_is_not_there_is_said_so_by_every_call(fifo: pgfifo.Client) -> None:
    for call in (fifo.execution, fifo.position, fifo.cancel):
        with pytest.raises(pgfifo.UnknownExecution) as caught:
            call(4711)
        assert caught.value.id == 4711


def test_many_are_cancelled_in_parts_and_answered_in_their_order(
    fifo: pgfifo.Client, conn: Connection
) -> None:
    jobs = fifo.enqueue_many("deploy", [{}] * 2500)
    ids = [job.id for job in jobs]
    (running,) = claim(conn, worker(conn, "deploy"), "deploy")
    assert running[0] == ids[0]
    answers = fifo.cancel_many((id_ for id_ in [*ids, 10**15, ids[1]]), reason="enough")
    assert answers == ["requested", *["cancelled"] * 2499, "unknown", "cancelled"]
    assert fifo.execution(ids[1000]).reason == "enough"
    assert fifo.cancel_many([]) == []


def test_many_in_many_lanes_are_cancelled_in_smaller_parts(fifo: pgfifo.Client, conn: Connection) -> None:
    [(most,)] = conn.execute("select pgfifo.max_batch_lanes()").fetchall()
    fifo.set_policy("deliver", group_by=["customer"])
    jobs = fifo.enqueue_many("deliver", [{"customer": n} for n in range(most + 50)], split=True)
    with fifo.transaction() as mine, pytest.raises(pgfifo.TooManyLanes):
        fifo.cancel_many([job.id for job in jobs], connection=mine)
    assert set(fifo.cancel_many([job.id for job in jobs])) == {"cancelled"}


def test_many_cancelled_in_the_callers_transaction_roll_back_with_it(
    fifo: pgfifo.Client, connect: Connect, conn: Connection
) -> None:
    ids = [job.id for job in fifo.enqueue_many("deploy", [{}] * 1100)]
    mine = connect(autocommit=False)
    assert fifo.cancel_many(ids, connection=mine) == ["cancelled"] * 1100
    mine.rollback()
    assert waiting(conn) == ids


@pytest.mark.parametrize("odd", ["12", b"12", {1: 2}, 7, [1, "2"], [True], [2**63], [1.0], [None]])
def test_what_is_no_list_of_ids_is_refused_before_anything_is_cancelled(
    fifo: pgfifo.Client, odd: Any
) -> None:
    job = fifo.enqueue("deploy")
    with pytest.raises(pgfifo.InvalidValue, match="ids"):
        fifo.cancel_many(odd)
    assert fifo.execution(job.id).state == "waiting"


def test_an_unknown_action_is_refused_by_every_call_with_the_nearest(fifo: pgfifo.Client) -> None:
    fifo.enqueue("deploy")
    for call in (
        fifo.stats,
        fifo.lanes,
        fifo.executions,
        fifo.effective_policy,
        fifo.pause,
        fifo.resume,
        fifo.close_action,
        fifo.open_action,
        fifo.order_violations,
    ):
        with pytest.raises(pgfifo.UnknownAction) as caught:
            call("deplo")
        assert caught.value.nearest == "deploy"
    assert [stats.action for stats in fifo.stats()] == ["deploy"], "asking created an action"


def test_positions_count_from_the_next_one(fifo: pgfifo.Client, conn: Connection) -> None:
    jobs = fifo.enqueue_many("deploy", [1, 2, 3])
    assert [fifo.position(job.id).position for job in jobs] == [1, 2, 3]
    claim(conn, worker(conn, "deploy"), "deploy")
    assert [fifo.position(job.id) for job in jobs] == [
        pgfifo.Position(None, exact=True),
        pgfifo.Position(1, exact=True),
        pgfifo.Position(2, exact=True),
    ]


def test_statistics_of_actions_and_lanes(fifo: pgfifo.Client, conn: Connection) -> None:
    fifo.set_policy("deploy", group_by=["env"], max_concurrent=2)
    fifo.enqueue_many("deploy", [{"env": env} for env in ("prod", "prod", "prod", "test")])
    claim(conn, worker(conn, "deploy"), "deploy", 10)
    stats = fifo.stats("deploy")
    assert (stats.queue_length, stats.active_count, stats.max_concurrent) == (1, 3, 2)
    assert (stats.lanes, stats.slots_total, stats.total_enqueued, stats.total_completed) == (2, 4, 4, 0)
    assert stats.oldest_enqueued_at is not None
    assert fifo.stats() == [fifo.stats("deploy")]
    prod, test = fifo.lanes("deploy")
    assert (str(prod.lane), prod.queue_length, prod.active_count) == ("deploy env=prod", 1, 2)
    assert (str(test.lane), test.queue_length, test.active_count) == ("deploy env=test", 0, 1)
    assert fifo.lanes(limit=1) == [prod]


def test_policies_are_set_inherited_and_shown_with_their_source(fifo: pgfifo.Client) -> None:
    changes = fifo.set_policy("core.deploy", max_concurrent=3, retention="2d")
    assert {(c.attribute, c.new) for c in changes} == {("max_concurrent", 3), ("retention", 172800)}
    fifo.set_pack_policy("core", max_attempts=2)
    fifo.set_default_policy(backoff="constant")
    fifo.set_policy("core.deploy", "blue", max_concurrent=5)

    def inforce(group: str | None = None) -> dict[str, tuple[object, str]]:
        return {v.attribute: (v.value, v.source) for v in fifo.effective_policy("core.deploy", group)}

    assert inforce()["max_concurrent"] == (3, "action")
    assert inforce("blue")["max_concurrent"] == (5, "lane")
    assert inforce()["max_attempts"] == (2, "pack")
    assert inforce()["backoff"] == ("constant", "everything")
    assert inforce()["ordering"] == ("strict", "default")
    fifo.set_policy("core.deploy", max_concurrent=None)
    assert inforce()["max_concurrent"] == (1, "default")


def test_overrides_win_for_a_time_and_are_listed(fifo: pgfifo.Client, conn: Connection) -> None:
    fifo.set_policy("core.deploy", {"env": "prod"}, force=True, group_by=None, max_concurrent=2)
    [change] = fifo.override_policy("core.deploy", "blue", lasting="1h", reason="incident", max_concurrent=5)
    assert (change.attribute, change.old, change.new) == ("max_concurrent", None, 5)
    fifo.override_pack_policy("core", lasting=timedelta(hours=2), rate="5/s")
    fifo.override_default_policy(lasting=60, max_attempts=2)
    shown = {v.attribute: v for v in fifo.effective_policy("core.deploy", "blue")}
    rate = shown["rate"]
    assert (rate.value, rate.source, rate.origin) == ("5/s", "override", "pack core")
    assert rate.until is not None
    assert rate.remaining is not None
    assert 7000 < rate.remaining <= 7200
    found = [(o.scope, o.action, o.group_text, o.pack, o.attribute, o.value) for o in fifo.overrides()]
    assert found == [
        ("everything", None, None, None, "max_attempts", 2),
        ("lane", "core.deploy", "blue", None, "max_concurrent", 5),
        ("pack", None, None, "core", "rate", "5/s"),
    ]
    assert fifo.overrides()[1].reason == "incident"
    conn.execute("select pgfifo.advance('90 min')")
    assert [each.attribute for each in fifo.overrides()] == ["rate"]
    fifo.override_pack_policy("core", rate=None)
    assert fifo.overrides() == []
    with pytest.raises(pgfifo.InvalidValue, match="lasts for a time"):
        fifo.override_policy("core.deploy", max_concurrent=5)
    with pytest.raises(pgfifo.InvalidValue, match="lasting 'soon'"):
        fifo.override_policy("core.deploy", lasting="soon", max_concurrent=5)


def test_shared_limits_are_set_listed_and_dropped(fifo: pgfifo.Client) -> None:
    fifo.set_policy("mail", max_attempts=3)
    changes = fifo.set_shared_limit(
        "api", max_concurrent=2, rate="100/s", actions=["mail"], packs=["billing"]
    )
    assert [(c.attribute, c.old, c.new) for c in changes] == [
        ("actions", None, ["mail"]),
        ("max_concurrent", None, 2),
        ("packs", None, ["billing"]),
        ("rate", None, "100/s"),
    ]
    [change] = fifo.set_shared_limit("api", rate=None)
    assert (change.attribute, change.old, change.new) == ("rate", "100/s", None)
    fifo.set_shared_limit("b", rate="5/min", burst=1, everything=True)
    api, other = fifo.shared_limits()
    assert (api.name, api.max_concurrent, api.rate, api.burst) == ("api", 2, None, None)
    assert (api.actions, api.packs, api.everything) == (["mail"], ["billing"], False)
    assert (api.active_count, api.waiting_lanes, api.next_start_at) == (0, 0, None)
    assert (other.rate, other.burst, other.everything) == ("5/min", 1, True)
    fifo.drop_shared_limit("api")
    assert [limit.name for limit in fifo.shared_limits()] == ["b"]
    with pytest.raises(pgfifo.InvalidValue, match="no shared limit 'api'") as error:
        fifo.drop_shared_limit("api")
    assert error.value.hint == "There are: b."
    with pytest.raises(pgfifo.InvalidValue, match="would limit nothing"):
        fifo.set_shared_limit("b", rate=None)
    with pytest.raises(pgfifo.UnknownAction, match="meil"):
        fifo.set_shared_limit("b", actions=["meil"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_concurent": 5}, "Did you mean 'max_concurrent'"),
        ({"max_concurrent": 0}, "max_concurrent cannot be 0"),
        ({"rate": "unlimited"}, "rate cannot be 'unlimited'"),
        ({"rate": "5/0s"}, "rate cannot be '5/0s'"),
        ({"actions": "mail"}, "actions is no list of texts: 'mail'"),
        ({"actions": None}, "actions is no list of texts: None"),
        ({"everything": 1}, "everything cannot be 1"),
    ],
)
def test_what_a_shared_limit_cannot_be_is_said(
    fifo: pgfifo.Client, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(pgfifo.InvalidValue) as error:
        fifo.set_shared_limit("api", **values)
    assert said in f"{error.value.message} {error.value.hint}"


def test_policies_are_exported_and_applied(fifo: pgfifo.Client, conn: Connection) -> None:
    document = {
        "everything": {"max_attempts": 3},
        "actions": {"deploy": {"gap": "1m", "lanes": [{"group": "blue", "rate": "5/s"}]}},
    }
    found = fifo.apply_policies(document, dry_run=True)
    assert [(each.scope, each.attribute, each.new) for each in found] == [
        ("everything", "max_attempts", 3),
        ("action", "gap", 60),
        ("lane", "rate", "5/s"),
    ]
    assert fifo.export_policies() == {"everything": {}, "packs": {}, "actions": {}, "limit": {}}
    with psycopg.connect(conn.info.dsn) as mine:
        assert fifo.apply_policies(document, connection=mine) == found
        mine.rollback()
    assert fifo.apply_policies(document) == found
    exported = fifo.export_policies()
    assert exported["actions"] == {"deploy": {"gap": 60, "lanes": [{"group": "blue", "rate": "5/s"}]}}
    assert fifo.apply_policies(exported, prune=True) == []
    assert len(fifo.apply_policies({}, prune=True)) == 3
    with pytest.raises(pgfifo.InvalidValue, match=r"packs\.web\.gap: gap -1 is negative"):
        fifo.apply_policies({"packs": {"web": {"gap": -1}}})


def test_changes_of_policies_and_other_doings_are_on_record(fifo: pgfifo.Client) -> None:
    fifo.set_policy("deploy", max_concurrent=3)
    fifo.set_policy("deploy", "blue", max_concurrent=4)
    fifo.override_policy("deploy", lasting="1h", reason="incident", max_concurrent=5)
    fifo.pause("deploy", reason="lunch")
    over, lane, action = fifo.policy_history("deploy")
    assert (over.scope, over.old, over.new, over.reason) == ("action", None, 5, "incident")
    assert over.until is not None
    assert (lane.group_text, lane.attribute, lane.new, lane.until) == ("blue", "max_concurrent", 4, None)
    assert (action.scope, action.application) == ("action", "the client")
    assert fifo.policy_history("deploy", "blue") == [lane]
    assert fifo.policy_history(limit=1) == [over]
    assert fifo.policy_history(scope="everything", pack="core") == []
    assert [entry.what for entry in fifo.audit()] == ["pause", "override_policy", "set_policy", "set_policy"]
    [entry] = fifo.audit("deploy", what="pause")
    assert entry.detail == {"group": None, "reason": "lunch"}


def test_what_the_code_declares_gives_way_to_what_an_operator_says(fifo: pgfifo.Client) -> None:
    actions = pgfifo.Actions()
    actions.add("deploy", print, group_by=["env"], max_concurrent=3)
    actions.add("index", print)
    fifo.set_policy("deploy", max_concurrent=9)
    fifo.declare(actions)
    fifo.declare(actions)
    shown = {v.attribute: (v.value, v.source) for v in fifo.effective_policy("deploy")}
    assert shown["max_concurrent"] == (9, "action")
    assert shown["group_by"] == (["env"], "declared")
    assert {stats.action for stats in fifo.stats()} == {"deploy", "index"}
    fifo.declare(pgfifo.Actions())


def test_every_policy_attribute_of_python_is_one_of_the_database_and_back(fifo: pgfifo.Client) -> None:
    fifo.enqueue("deploy")
    known = {value.attribute for value in fifo.effective_policy("deploy")}
    assert set(pgfifo.Policy.__annotations__) == known


@pytest.mark.parametrize(
    "values",
    [
        {"max_concurrent": 1_000_000},
        {"max_queue_length": "unlimited"},
        {"ordering": "relaxed"},
        {"max_attempts": 1},
        {"max_action_queue_length": 1},
        {"on_limit": "cancel"},
        {"rate": "1000000/365d"},
        {"rate": "1 / 0.001 second"},
        {"rate": "unlimited"},
        {"burst": 1_000_000},
        {"spacing": 365 * 86400},
        {"gap": "250ms"},
        {"quota": "1000000000/month america/new_york"},
        {"quota": "unlimited"},
        {"max_wait": 0.001},
        {"max_wait": "unlimited"},
        {"timeout": timedelta(hours=1)},
        {"kill_after": 0},
        {"failure_mode": "yield"},
        {"failure_mode": "tail"},
        {"backoff": "constant"},
        {"backoff_initial": "1m"},
        {"backoff_factor": 1},
        {"backoff_cap": 365 * 86400},
        {"backoff_jitter": 0},
        {"on_exhausted": "pause"},
        {"retention": "unlimited"},
        {"lane_retention": timedelta(days=1)},
        {"max_payload": 268_435_455},
        {"group_by": ["a", "b.c"]},
        {"group_by": []},
    ],
)
def test_every_value_that_python_lets_through_is_one_that_sql_takes(
    fifo: pgfifo.Client, values: dict[str, Any]
) -> None:
    [change] = fifo.set_policy("deploy", **values)
    assert fifo.set_policy("deploy", **{change.attribute: change.new}) != [], "what is read cannot be written"
    assert {change.attribute} == set(values)
    inherit: dict[str, Any] = {change.attribute: None}
    fifo.set_policy("deploy", **inherit)


def test_a_pause_stops_starts_until_it_is_resumed(fifo: pgfifo.Client, conn: Connection) -> None:
    fifo.set_policy("deploy", group_by=["env"])
    prod = fifo.enqueue("deploy", {"env": "prod"})
    test = fifo.enqueue("deploy", {"env": "test"})
    number = worker(conn, "deploy")
    assert fifo.pause("deploy", {"env": "prod"}, reason="freeze")
    assert not fifo.pause("deploy", {"env": "prod"})
    assert [each for each, _ in claim(conn, number, "deploy", 10)] == [test.id]
    assert fifo.resume("deploy", {"env": "prod"})
    assert not fifo.resume("deploy", {"env": "prod"})
    assert [each for each, _ in claim(conn, number, "deploy", 10)] == [prod.id]


def test_a_closed_action_takes_nothing_until_it_is_opened(fifo: pgfifo.Client, conn: Connection) -> None:
    job = fifo.enqueue("deploy", group="prod")
    assert fifo.close_action("deploy", reason="freeze")
    assert not fifo.close_action("deploy")
    with pytest.raises(pgfifo.ActionClosed, match="freeze"):
        fifo.enqueue("deploy")
    assert fifo.stats("deploy").closed
    assert claim(conn, worker(conn, "deploy"), "deploy") == [(job.id, 1)]
    assert fifo.open_action("deploy")
    assert fifo.close_action("deploy", "prod")
    with pytest.raises(pgfifo.ActionClosed) as caught:
        fifo.enqueue_many("deploy", [1, 2], groups=["test", "prod"])
    assert (caught.value.group, caught.value.index) == ("prod", 1)
    assert [lane.closed for lane in fifo.lanes("deploy")] == [True]
    assert fifo.open_action("deploy", "prod")
    assert not fifo.open_action("deploy", "prod")


def test_a_finish_that_comes_too_late_is_refused(fifo: pgfifo.Client, conn: Connection) -> None:
    job = fifo.enqueue("deploy")
    [(_, attempt)] = claim(conn, worker(conn, "deploy"), "deploy")
    fifo.release(job.id, attempt)
    assert fifo.execution(job.id).state == "waiting"
    for late in (
        lambda: fifo.finish(job.id, attempt, "succeeded"),
        lambda: fifo.release(job.id, attempt),
    ):
        with pytest.raises(pgfifo.LeaseLost) as caught:
            late()
        assert caught.value.id == job.id
    assert fifo.execution(job.id).state == "waiting"


def test_a_failed_attempt_is_held_and_a_last_one_failed(fifo: pgfifo.Client, conn: Connection) -> None:
    job = fifo.enqueue("deploy")
    [(_, attempt)] = claim(conn, worker(conn, "deploy"), "deploy")
    assert fifo.finish(job.id, attempt, "failed", error="no disk") == "held"
    info = fifo.execution(job.id)
    assert (info.state, info.failures, info.error) == ("held", 1, "no disk")
    assert info.due_at is not None
    other = fifo.enqueue("other")
    [(_, attempt)] = claim(conn, worker(conn, "other"), "other")
    assert fifo.finish(other.id, attempt, "failed", error="no", retry=False) == "failed"


def test_workers_checks_and_maintenance_can_be_asked_for(fifo: pgfifo.Client, conn: Connection) -> None:
    fifo.enqueue("deploy")
    number = worker(conn, "deploy")
    [info] = fifo.workers()
    assert (info.id, info.name, info.actions, info.state, info.executions) == (
        number,
        "w",
        ["deploy"],
        "alive",
        0,
    )
    assert fifo.check() == []
    assert fifo.order_violations() == []
    assert isinstance(fifo.maintain()["more"], bool)


def test_an_import_goes_on_where_it_stopped(fifo: pgfifo.Client, conn: Connection) -> None:
    number = fifo.import_start("deliver", "events.jsonl", "abc")
    with fifo.transaction() as mine:
        fifo.import_commit(number, 10, 0, connection=mine)
        jobs = fifo.enqueue_many("deliver", range(10), connection=mine)
        fifo.import_enqueued(number, 10, jobs[0].id, jobs[-1].id, connection=mine)
    with fifo.transaction() as mine:
        fifo.import_commit(number, 20, 10, connection=mine)
        fifo.enqueue_many("deliver", range(10), connection=mine)
        raise psycopg.Rollback
    status = fifo.import_status(number)
    made = (10, jobs[0].id, jobs[-1].id)
    assert status == pgfifo.ImportStatus("deliver", "events.jsonl", "abc", 10, None, *made)
    assert len(waiting(conn)) == status.upto
    with pytest.raises(pgfifo.InvalidValue):
        fifo.import_commit(number, 20, 15)
    fifo.import_finish(number)
    assert fifo.import_status(number).finished_at is not None
    with pytest.raises(pgfifo.InvalidValue, match="4711"):
        fifo.import_status(4711)


def test_a_finish_is_made_again_after_a_loss_only_where_that_gives_the_same_answer(
    fifo: pgfifo.Client, connect: Connect, conn: Connection
) -> None:
    fifo.set_policy("deploy", max_concurrent=3)
    jobs = fifo.enqueue_many("deploy", range(3))
    claim(conn, worker(conn, "deploy"), "deploy", 3)

    def broken(call: Callable[[], object]) -> object:
        lock = connect(autocommit=False)
        lock.execute("lock table pgfifo.runs in access exclusive mode")
        asked = in_background(call)
        wait_for(lambda: is_blocked(conn), message="the finish to wait for the lock")
        terminate(conn)
        lock.rollback()
        return asked.result()

    assert broken(lambda: fifo.finish(jobs[0].id, 1, "succeeded")) == "succeeded"
    with pytest.raises(pgfifo.CommitUnknown):
        broken(lambda: fifo.finish(jobs[1].id, 1, "failed"))
    with pytest.raises(pgfifo.CommitUnknown):
        broken(lambda: fifo.release(jobs[2].id, 1))


# Schema


def test_install_is_idempotent_and_safe_from_many_threads_at_once(empty_dsn: str) -> None:
    def install() -> None:
        with pgfifo.Client(empty_dsn) as client:
            client.install()

    for each in [in_background(install) for _ in range(8)]:
        each.result()
    with pgfifo.Client(empty_dsn) as client:
        client.install()
        client.upgrade()
        client.enqueue("deploy")
        assert client.schema_info().version >= 1
        client.uninstall()
        with pytest.raises(pgfifo.SchemaMissing):
            client.enqueue("deploy")
        client.uninstall()


def test_a_database_without_the_schema_is_named_with_the_command_to_run(empty_dsn: str) -> None:
    with pgfifo.Client(empty_dsn) as client:
        for call in (client.stats, lambda: client.enqueue("deploy"), client.upgrade, client.schema_info):
            with pytest.raises(pgfifo.SchemaMissing, match="pgfifo install") as caught:
                call()
            assert repr(caught.value.database) in str(caught.value)
        with psycopg.connect(empty_dsn) as mine:
            mine.execute("create table kept (n int)")
            with pytest.raises(pgfifo.SchemaMissing):
                client.enqueue("deploy", connection=mine)
            mine.execute("insert into kept values (1)")
            assert "does not exist" in str(caught.value), "what the server said was hidden"
            assert isinstance(caught.value.__cause__, psycopg.Error)
        client.install()
        assert client.enqueue("deploy").created, "the client did not look again after the installation"
        with psycopg.connect(empty_dsn, autocommit=True) as mine:
            mine.execute("drop function pgfifo.position")
        with pytest.raises(pgfifo.SchemaMissing, match=r"function pgfifo.position\(bigint\) does not"):
            client.position(1)


def test_a_schema_that_does_not_fit_is_refused_until_it_does(fresh_dsn: str) -> None:
    with pgfifo.Client(fresh_dsn) as client, psycopg.connect(fresh_dsn, autocommit=True) as admin:
        admin.execute("update pgfifo.installation set min_client = 99")
        with pytest.raises(pgfifo.SchemaMismatch, match="pip install --upgrade"):
            client.enqueue("deploy")
        with psycopg.connect(fresh_dsn) as mine, pytest.raises(pgfifo.SchemaMismatch):
            client.enqueue("deploy", connection=mine)
        admin.execute("update pgfifo.installation set min_client = 1, version = 0")
        with pytest.raises(pgfifo.SchemaMismatch, match="pgfifo upgrade"):
            client.enqueue("deploy")
        admin.execute("update pgfifo.installation set version = 99, script_hash = null")
        for call in (client.install, client.upgrade):
            with pytest.raises(pgfifo.SchemaMismatch, match="newer") as caught:
                call()
            assert caught.value.version == 99
        admin.execute("update pgfifo.installation set version = 1")
        assert client.enqueue("deploy").created


# Connections


def test_nothing_is_connected_before_the_first_call(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as admin:
        client = pgfifo.Client(fresh_dsn, application_name="lazy")
        assert sessions(admin, "lazy") == []
        client.stats()
        client.stats()
        assert len(sessions(admin, "lazy")) == 1
        client.close()
        wait_for(lambda: not sessions(admin, "lazy"), message="the connection to be closed")
        with pytest.raises(psycopg.InterfaceError, match="closed"):
            client.stats()


def test_many_threads_share_a_few_connections(dsn: str, conn: Connection) -> None:
    with pgfifo.Client(dsn, max_size=3, application_name="threads") as client:
        most = []

        def run(number: int) -> None:
            for n in range(10):
                client.enqueue("deploy", {"thread": number, "n": n})
            most.append(len(sessions(conn, "threads")) if number == 0 else 0)

        for each in [in_background(lambda n=n: run(n)) for n in range(12)]:  # type: ignore[misc]
            each.result()
        assert max(most) <= 3
        assert len(waiting(conn)) == 120


def test_a_client_whose_connections_are_all_in_use_says_so(dsn: str) -> None:
    with (
        pgfifo.Client(dsn, max_size=1, timeout=0.05) as client,
        client.transaction(),
        pytest.raises(psycopg.OperationalError, match="max_size"),
    ):
        client.stats()


def test_a_server_that_is_down_is_reported_at_once_and_without_a_password() -> None:
    with pgfifo.Client("postgresql://bob:s3cret@127.0.0.1:1/app") as client:
        with pytest.raises(psycopg.OperationalError) as caught:
            client.enqueue("deploy")
        assert "s3cret" not in f"{caught.value} {client!r}"
        assert not isinstance(caught.value, errors.PgfifoError)
        assert repr(client) == "<pgfifo.Client app on 127.0.0.1:1 as bob>"


def test_connections_that_the_server_ended_while_idle_are_not_noticed(
    fifo: pgfifo.Client, conn: Connection
) -> None:
    for _ in range(3):
        fifo.enqueue("deploy")
        terminate(conn)
        wait_for(lambda: not sessions(conn), message="the sessions to end")
    assert fifo.enqueue("deploy").created
    assert len(waiting(conn)) == 4


def test_a_read_whose_connection_breaks_is_made_again(
    fifo: pgfifo.Client, connect: Connect, conn: Connection
) -> None:
    fifo.enqueue("deploy")
    lock = connect(autocommit=False)
    lock.execute("lock table pgfifo.ledger in access exclusive mode")
    asked = in_background(lambda: fifo.stats("deploy"))
    wait_for(lambda: is_blocked(conn), message="the read to wait for the lock")
    terminate(conn)
    lock.rollback()
    assert asked.result().queue_length == 1


def test_a_cancel_whose_connection_breaks_is_made_again(
    fifo: pgfifo.Client, connect: Connect, conn: Connection
) -> None:
    job = fifo.enqueue("deploy")
    lock = connect(autocommit=False)
    lock.execute("lock table pgfifo.audit in access exclusive mode")
    asked = in_background(lambda: fifo.cancel(job.id))
    wait_for(lambda: is_blocked(conn), message="the cancel to wait for the lock")
    terminate(conn)
    lock.rollback()
    assert asked.result() == "cancelled"
    assert fifo.execution(job.id).state == "cancelled"


def test_an_enqueue_whose_connection_breaks_is_not_made_again_but_said_to_be_unknown(
    fifo: pgfifo.Client, connect: Connect, conn: Connection
) -> None:
    fifo.enqueue("deploy")
    calls: list[Callable[[], object]] = [
        lambda: fifo.enqueue("deploy", {"n": 2}),
        lambda: fifo.enqueue_many("deploy", [{"n": 2}]),
    ]
    for call in calls:
        lock = connect(autocommit=False)
        lock.execute("lock table pgfifo._executions in access exclusive mode")
        asked = in_background(call)
        wait_for(lambda: is_blocked(conn), message="the enqueue to wait for the lock")
        terminate(conn)
        lock.rollback()
        with pytest.raises(pgfifo.CommitUnknown) as caught:
            asked.result()
        assert caught.value.action == "deploy"
        assert caught.value.hint
    assert len(waiting(conn)) == 1


def test_a_broken_connection_of_the_caller_is_the_callers(
    fifo: pgfifo.Client, connect: Connect, conn: Connection
) -> None:
    mine = connect(autocommit=False, application_name="mine")
    fifo.enqueue("deploy", connection=mine)
    terminate(conn, "mine")
    with pytest.raises(psycopg.OperationalError) as caught:
        fifo.enqueue("deploy", connection=mine)
    assert not isinstance(caught.value, errors.PgfifoError), (
        "it was in a transaction: it is rolled back for certain"
    )
    alone = connect(application_name="alone")
    terminate(conn, "alone")
    with pytest.raises(pgfifo.CommitUnknown):
        fifo.enqueue("deploy", connection=alone)
    assert waiting(conn) == []


@pytest.mark.parametrize("threshold", [5, None])
def test_a_role_whose_default_is_serializable_works_all_the_same(
    fresh_dsn: str, threshold: int | None
) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as admin:
        admin.execute(
            f'alter database "{admin.info.dbname}" set default_transaction_isolation = serializable'
        )
    with pgfifo.Client(fresh_dsn, prepare_threshold=threshold) as client:
        use(client)
    with (
        psycopg_pool.ConnectionPool(fresh_dsn, min_size=0, max_size=2, open=True) as pool,
        closing(pgfifo.Client(pool)) as client,
    ):
        use(client)


def use(client: pgfifo.Client) -> None:
    job = client.enqueue("deploy")
    assert client.cancel(job.id) == "cancelled"
    assert client.pause("deploy")
    assert client.resume("deploy")
    client.set_policy("deploy", max_concurrent=2)
    assert client.execution(job.id).state == "cancelled"
    with client.transaction() as mine:
        kept = client.enqueue("deploy", connection=mine)
        assert client.cancel(kept.id, connection=mine) == "cancelled"


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_pool_of_the_callers_is_used_and_left_open(dsn: str, autocommit: bool) -> None:
    with psycopg_pool.ConnectionPool(
        dsn, min_size=0, max_size=2, open=True, kwargs={"autocommit": autocommit, "row_factory": dict_row}
    ) as pool:
        with pgfifo.Client(pool) as client:
            use(client)
        with pool.connection() as mine:
            row: Any = mine.execute("select 1 as one").fetchone()
            assert row == {"one": 1}


def test_a_client_on_one_connection_joins_its_transaction(connect: Connect, conn: Connection) -> None:
    mine = connect(autocommit=False)
    with pgfifo.Client(mine) as client:
        job = client.enqueue("deploy")
        assert client.execution(job.id).state == "waiting"
        with client.transaction():
            client.enqueue("deploy")
            raise psycopg.Rollback
        assert waiting(conn) == []
    mine.commit()
    assert waiting(conn) == [job.id]


@pytest.mark.parametrize("odd", [7, object(), b"postgresql://"])
def test_what_a_client_cannot_be_made_from_is_refused(odd: object) -> None:
    with pytest.raises(pgfifo.InvalidValue, match="cannot be made from"):
        pgfifo.Client(odd)  # type: ignore[arg-type]


def test_a_forgotten_client_leaves_no_connection_and_no_warning(dsn: str, conn: Connection) -> None:
    client = pgfifo.Client(dsn, application_name="forgotten")
    client.stats()
    del client
    gc.collect()
    wait_for(
        lambda: not sessions(conn, "forgotten"), message="the connection of a forgotten client to be closed"
    )


FORK = """
import os, sys, pgfifo
fifo = pgfifo.Client(sys.argv[1], application_name="fork")
fifo.enqueue("deploy", {"who": "parent"})
child = os.fork()
if child == 0:
    fifo.enqueue("deploy", {"who": "child"})
    fifo.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
fifo.enqueue("deploy", {"who": "parent again"})
with fifo.transaction() as conn:
    child = os.fork()
    if child == 0:
        fifo.enqueue("deploy", {"who": "second child"})
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    fifo.enqueue("deploy", {"who": "in a transaction"}, connection=conn)
print(len(fifo.executions()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_after_a_fork_parent_and_child_have_connections_of_their_own(dsn: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK, dsn],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "5", "")


def test_the_library_prints_nothing(fifo: pgfifo.Client, capfd: pytest.CaptureFixture[str]) -> None:
    fifo.install()
    fifo.enqueue("deploy")
    with pytest.raises(pgfifo.UnknownAction):
        fifo.stats("nothing")
    assert capfd.readouterr() == ("", "")


def test_enqueues_of_many_threads_are_each_there_once(fifo: pgfifo.Client) -> None:
    ids: list[int] = []
    lock = threading.Lock()

    def produce() -> None:
        mine = [fifo.enqueue("deploy").id for _ in range(20)]
        with lock:
            ids.extend(mine)

    for each in [in_background(produce) for _ in range(8)]:
        each.result()
    assert Counter(ids) == Counter(each.id for each in fifo.executions(limit=1000))


def test_who_acts_is_in_the_audit_and_can_wait_and_hold_a_slot(fifo: pgfifo.Client, conn: Connection) -> None:
    ann = fifo.acting_as("ann")
    job = ann.enqueue("deploy")
    assert ann.pause("deploy", reason="release")
    assert fifo.resume("deploy")
    assert [(each.what, each.actor) for each in fifo.audit("deploy")] == [("resume", None), ("pause", "ann")]
    fifo.cancel(job.id)
    with pytest.raises(pgfifo.ExecutionFailed):
        ann.wait(job.id, timeout=60)
    with ann.slot("report", timeout=60):
        assert fifo.stats("report").active_count == 1
    with pytest.raises(pgfifo.InvalidValue, match="one connection"):
        pgfifo.Client(conn).acting_as("ann")
