"""Enqueues with a key: what is there already is found, whoever put it there, and whenever."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg
import pytest

import pgfifo
from tests.support.database import in_background, wait_for, wait_until_blocked
from tests.support.sqlworker import SqlWorker, advance, maintain, policy, value, violations

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]
Found = tuple[int, bool, str]


@pytest.fixture
def fifo(dsn: str) -> Iterator[pgfifo.Client]:
    with pgfifo.Client(dsn, application_name="the client") as client:
        yield client


def put(
    conn: Connection, group: str = "g", *, action: str = "a", payload: str = "{}", **keys: object
) -> Found:
    """Enqueue one with keys; return its id, whether it is new, and its group."""
    names = "".join(f", p_{name} => %s" for name in keys)
    row = conn.execute(
        f"select id, created, group_text from pgfifo.enqueue_one(%s, %s::jsonb, %s{names})",
        [action, payload, group, *keys.values()],
    ).fetchone()
    assert row is not None
    found: Found = row
    return found


def put_many(conn: Connection, *items: tuple[str, str | None], key: str) -> list[tuple[int, bool]]:
    """Enqueue a batch of (group, key); return ids and whether they are new."""
    groups, keys = zip(*items, strict=True)
    query = (
        "select id, created from pgfifo.enqueue_many('a', array_fill('{}'::jsonb, array[%s]), %s,"
        f" p_{key}s => %s::text[]) order by ordinal"
    )
    return conn.execute(query, [len(items), list(groups), list(keys)]).fetchall()


def contents(conn: Connection) -> list[tuple[int, Any]]:
    """Return what is not finished, with its payload."""
    return conn.execute("select id, payload from pgfifo._executions order by id").fetchall()


def is_clean(conn: Connection) -> bool:
    """Say whether each execution counts, has a mark, and can be run."""
    unfinished = len(contents(conn))
    counted = value(conn, "select coalesce(sum(queue_length), 0) from pgfifo.queue_stats")
    return counted == unfinished == len(SqlWorker(conn, "a").drain()) and violations(conn) == []


# request_id: the same request is not a second execution


def test_a_request_made_again_gives_back_the_first_ones_id_and_changes_nothing(conn: Connection) -> None:
    first = put(conn, request_id="r", payload='{"n": 1}')
    assert first == (first[0], True, "g")
    assert put(conn, request_id="r", payload='{"n": 2}') == (first[0], False, "g")
    assert put(conn, "elsewhere", request_id="r") == (first[0], False, "g")
    assert value(conn, "select pgfifo.enqueue('a', p_request_id => 'r')") == first[0]
    assert put_many(conn, ("g", "r"), key="request_id") == [(first[0], False)]
    assert contents(conn) == [(first[0], {"n": 1})]
    assert is_clean(conn)


def test_a_request_of_another_action_is_another_request(conn: Connection) -> None:
    mail, invoice = put(conn, action="a", request_id="r"), put(conn, action="b", request_id="r")
    assert (mail[1], invoice[1]) == (True, True)


@pytest.mark.parametrize("ordering", ["strict", "relaxed"])
@pytest.mark.parametrize("group", ["g", "another lane"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_of_two_requests_at_once_the_second_waits_for_how_the_first_ends(
    conn: Connection, connect: Connect, ordering: str, group: str, end: str
) -> None:
    policy(conn, "a", ordering=ordering)
    one, two = connect(autocommit=False), connect()
    first = put(one, "g", request_id="r")
    asked = in_background(lambda: put(two, group, request_id="r"))
    wait_until_blocked(conn, two.info.backend_pid)
    getattr(one, end)()
    second = asked.result()
    if end == "commit":
        assert second == (first[0], False, "g"), "one request became two executions"
    else:
        assert second == (second[0], True, group), "a request was lost with one that was rolled back"
    assert [key for key, _ in contents(conn)] == [second[0]]
    assert is_clean(conn)


def test_a_request_rolled_back_to_a_savepoint_was_never_made(conn: Connection) -> None:
    with conn.transaction(), conn.transaction(force_rollback=True):
        put(conn, request_id="r")
    assert put(conn, request_id="r")[1]
    with conn.transaction():
        first = put(conn, request_id="s")
        assert put(conn, request_id="s") == (first[0], False, "g")


def test_a_request_is_known_whatever_has_become_of_its_execution(conn: Connection) -> None:
    policy(conn, "a", group_by=["k"])
    first = put(conn, "x", request_id="r")
    worker = SqlWorker(conn, "a")
    (start,) = worker.work()
    assert put(conn, "y", request_id="r") == (first[0], False, '{"k":"x"}')
    worker.work(0, [start.ended()])
    assert put(conn, "y", request_id="r") == (first[0], False, '{"k":"x"}')
    conn.execute("delete from pgfifo.history")
    assert put(conn, "x", request_id="r") == (first[0], False, '{"k":"x"}')
    assert contents(conn) == []


def test_a_request_is_forgotten_after_its_retention_and_not_before(conn: Connection) -> None:
    for action, retention in (("a", 7200), ("b", 0), ("c", "unlimited")):
        policy(conn, action, retention=retention)
        put(conn, action=action, request_id="r")

    def made_again() -> list[bool]:
        maintain(conn)
        return [put(conn, action=action, request_id="r")[1] for action in "abc"]

    advance(conn, 3595)
    assert made_again() == [False, False, False], "a repeated request found itself forgotten within the hour"
    advance(conn, 10)
    assert made_again() == [False, True, False]
    advance(conn, 3500)
    assert made_again() == [False, False, False]
    advance(conn, 200)
    assert made_again() == [True, True, False]


def test_a_request_made_again_meets_no_limit_that_came_between(conn: Connection) -> None:
    policy(conn, "a", max_queue_length=1)
    first = put(conn, request_id="r")
    policy(conn, "a", max_payload=10)
    again = (first[0], False, "g")
    assert put(conn, request_id="r", payload='{"text": "longer than ten bytes"}') == again
    conn.execute("select pgfifo.close('a')")
    assert put(conn, request_id="r") == again
    conn.execute("select pgfifo.open('a')")
    with pytest.raises(pgfifo.QueueFull) as full:
        put(conn, request_id="another")
    assert full.value.index is None, "one enqueue has no index"
    assert value(conn, "select count(*) from pgfifo.requests") == 1, "what was refused was kept as made"


def test_a_request_in_flight_fills_the_line_once(conn: Connection, connect: Connect) -> None:
    policy(conn, "a", max_queue_length=1)
    one, two = connect(autocommit=False), connect()
    first = put(one, request_id="r")
    asked = in_background(lambda: put(two, request_id="r"))
    wait_until_blocked(conn, two.info.backend_pid)
    one.commit()
    assert asked.result() == (first[0], False, "g"), "told that the line is full of its own request"


def test_a_batch_knows_requests_made_before_and_within_it(conn: Connection) -> None:
    known = put(conn, "b", request_id="old")[0]
    found = put_many(
        conn, ("a", "x"), ("b", "old"), ("c", None), ("b", "x"), ("a", "y"), ("d", "old"), key="request_id"
    )
    new = [key for key, created in found if created]
    assert [created for _, created in found] == [True, False, True, False, True, False]
    assert [key for key, _ in found] == [new[0], known, new[1], new[0], new[2], known]
    assert new == sorted(new)
    again = put_many(conn, ("a", "y"), ("a", "x"), key="request_id")
    assert again == [(new[2], False), (new[0], False)]
    assert [key for key, _ in contents(conn)] == [known, *new]
    assert is_clean(conn)


def test_a_refused_batch_leaves_no_requests(conn: Connection) -> None:
    policy(conn, "a", max_queue_length=2)
    put(conn, "g", request_id="old")
    items = [("g", "old"), ("g", "x"), ("h", "y"), ("g", "x"), ("g", "z")]
    with pytest.raises(pgfifo.QueueFull) as refused:
        put_many(conn, *items, key="request_id")
    assert (refused.value.index, refused.value.group) == (4, "g"), (
        "items that were there already were counted"
    )
    assert value(conn, "select count(*) from pgfifo.requests") == 1
    assert [created for _, created in put_many(conn, *items[:-1], key="request_id")] == [
        False,
        True,
        True,
        False,
    ]
    assert is_clean(conn)


def test_batches_with_the_same_requests_in_other_orders_do_not_deadlock(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a")
    middle, up, down = connect(autocommit=False), connect(), connect()
    put(middle, "m", request_id="2")
    upwards = in_background(lambda: put_many(up, ("u", "1"), ("u", "2"), ("u", "3"), key="request_id"))
    wait_until_blocked(conn, up.info.backend_pid)
    downwards = in_background(lambda: put_many(down, ("d", "3"), ("d", "2"), ("d", "1"), key="request_id"))
    wait_until_blocked(conn, down.info.backend_pid)
    middle.commit()
    assert [created for _, created in upwards.result()] == [True, False, True]
    assert [created for _, created in downwards.result()] == [False, False, False]
    assert is_clean(conn)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_request_that_an_old_snapshot_cannot_see_is_an_error_to_repeat(
    conn: Connection, connect: Connect, isolation: str
) -> None:
    put(conn)
    late = connect(autocommit=False)
    late.execute(f"set transaction isolation level {isolation}")
    late.execute("select from pgfifo.queue_stats")
    first = put(conn, request_id="r")
    with pytest.raises(psycopg.errors.SerializationFailure):
        put(late, request_id="r")
    late.rollback()
    assert put(late, request_id="r") == (first[0], False, "g")


@pytest.mark.parametrize("key", ["", "x" * 1025, "ü" * 513])
def test_a_key_that_is_empty_or_too_long_is_refused(fifo: pgfifo.Client, key: str) -> None:
    with pytest.raises(pgfifo.InvalidValue, match="request_id") as one:
        fifo.enqueue("a", request_id=key)
    assert one.value.index is None
    with pytest.raises(pgfifo.InvalidValue, match="request_id") as many:
        fifo.enqueue_many("a", [1, 2, 3], request_ids=["x", key, key])
    assert many.value.index == 1
    assert fifo.enqueue("a", request_id="x" * 1024).created


def test_requests_from_everywhere_at_once_are_each_made_once(conn: Connection, connect: Connect) -> None:
    policy(conn, "a", ordering="relaxed")
    names = [f"r{n}" for n in range(40)]

    def produce(number: int) -> dict[str, int]:
        session = connect()
        rng = random.Random(number)
        got: dict[str, int] = {}
        for name in rng.sample(names, len(names)):
            if rng.random() < 0.3:
                with session.transaction(force_rollback=True):
                    put(session, f"{number % 3}", request_id=name)
            elif rng.random() < 0.3:
                pair = [(f"{rng.randrange(3)}", name), (f"{rng.randrange(3)}", name)]
                (got[name], _), (again, created) = put_many(session, *pair, key="request_id")
                assert again == got[name]
                assert not created
            else:
                got[name] = put(session, f"{rng.randrange(3)}", request_id=name)[0]
        for name in names:
            got.setdefault(name, put(session, "last", request_id=name)[0])
        return got

    told = [each.result() for each in [in_background(partial(produce, n)) for n in range(6)]]
    assert all(answer == told[0] for answer in told), "one request has two ids"
    assert sorted(told[0].values()) == [key for key, _ in contents(conn)]
    assert is_clean(conn)


def blocked(conn: Connection) -> bool:
    query = (
        "select exists (select from pg_stat_activity where application_name = 'the client'"
        " and wait_event_type = 'Lock')"
    )
    return bool(value(conn, query))


def cut(conn: Connection) -> None:
    conn.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'the client'"
    )


@pytest.mark.parametrize("many", [False, True])
def test_an_enqueue_with_a_request_id_is_repeated_when_the_connection_breaks(
    fifo: pgfifo.Client, conn: Connection, connect: Connect, many: bool
) -> None:
    fifo.enqueue("a")
    lock = connect(autocommit=False)
    lock.execute("lock table pgfifo._executions in access exclusive mode")
    asked = in_background(
        lambda: (
            fifo.enqueue_many("a", [1, 2], request_ids=["r", "s"])
            if many
            else [fifo.enqueue("a", request_id="r")]
        )
    )
    wait_for(lambda: blocked(conn), message="the enqueue to wait for the lock")
    cut(conn)
    wait_for(lambda: blocked(conn), message="the enqueue to be made again")
    lock.rollback()
    jobs = asked.result()
    assert [job.created for job in jobs] == [True] * len(jobs)
    assert [key for key, _ in contents(conn)][1:] == [job.id for job in jobs]


def test_an_enqueue_that_commits_and_whose_answer_is_lost_is_found_when_it_is_repeated(
    fifo: pgfifo.Client, conn: Connection, connect: Connect
) -> None:
    # Somebody else does what the first try would have done, had it come to its commit.
    fifo.enqueue("a")
    first = connect(autocommit=False)
    first.execute("lock table pgfifo.requests in access exclusive mode")
    asked = in_background(lambda: fifo.enqueue("a", request_id="r"))
    wait_for(lambda: blocked(conn), message="the enqueue to wait for the lock")
    cut(conn)
    wait_for(lambda: blocked(conn), message="the enqueue to be made again")
    committed = put(first, "g", request_id="r")
    first.commit()
    job = asked.result()
    assert (job.id, job.created, job.lane.group_text) == (committed[0], False, "g")
    assert len(contents(conn)) == 2


def test_an_enqueue_with_a_request_id_that_never_gets_an_answer_says_how_to_go_on(
    fifo: pgfifo.Client, conn: Connection, connect: Connect
) -> None:
    fifo.enqueue("a")
    lock = connect(autocommit=False)
    lock.execute("lock table pgfifo._executions in access exclusive mode")
    asked = in_background(lambda: fifo.enqueue("a", request_id="r"))
    for _ in range(3):
        wait_for(lambda: blocked(conn), message="the enqueue to wait for the lock")
        cut(conn)
    with pytest.raises(pgfifo.CommitUnknown) as caught:
        asked.result()
    assert (caught.value.action, caught.value.request_id) == ("a", "r")
    assert "request_id" in (caught.value.hint or "")
    lock.rollback()
    alone = connect(application_name="the client")
    lock.execute("lock table pgfifo._executions in access exclusive mode")
    asked = in_background(lambda: fifo.enqueue("a", request_id="r", connection=alone))
    wait_for(lambda: blocked(conn), message="the enqueue to wait for the lock")
    cut(conn)
    with pytest.raises(pgfifo.CommitUnknown) as joined:
        asked.result()
    assert joined.value.request_id == "r"
    lock.rollback()
    assert fifo.enqueue("a", request_id="r").created
