"""Enqueues with a key: what is there already is found, whoever put it there, and whenever."""

import json
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
    names = "".join(f", p_{name} => %s{'::interval' * (name == 'delay')}" for name in keys)
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
    actions = [name for (name,) in conn.execute("select name from pgfifo.actions")]
    return counted == unfinished == len(SqlWorker(conn, *actions).drain()) and violations(conn) == []


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


# dedup_key: one of its kind in an action, until it has ended


def test_a_dedup_key_finds_what_waits_runs_or_is_held_and_is_free_again_at_its_end(conn: Connection) -> None:
    policy(conn, "a", backoff="constant", backoff_initial=60, backoff_jitter=0)
    first = put(conn, "g", dedup_key="k", payload='{"n": 1}')
    again = (first[0], False, "g")
    assert first[1]
    assert put(conn, "g", dedup_key="k", payload='{"n": 2}') == again
    assert put(conn, "another lane", dedup_key="k") == again
    assert put(conn, action="b", dedup_key="k")[1], "a key of one action was taken for that of another"
    worker = SqlWorker(conn, "a")
    (start,) = worker.work()
    assert put(conn, dedup_key="k") == again
    worker.work(0, [start.ended("failed")])
    assert put(conn, dedup_key="k") == again
    advance(conn, 61)
    (start,) = worker.work()
    worker.work(0, [start.ended("released")])
    assert put(conn, dedup_key="k") == again
    (start,) = worker.work()
    assert start.id == first[0]
    worker.work(0, [start.ended()])
    second = put(conn, dedup_key="k")
    assert second == (second[0], True, "g")
    conn.execute("select pgfifo.cancel(%s)", [second[0]])
    assert put(conn, dedup_key="k")[1]
    assert is_clean(conn)


@pytest.mark.parametrize("ordering", ["strict", "relaxed"])
@pytest.mark.parametrize("group", ["g", "another lane"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_of_two_with_one_dedup_key_the_second_waits_for_how_the_first_ends(
    conn: Connection, connect: Connect, ordering: str, group: str, end: str
) -> None:
    policy(conn, "a", ordering=ordering)
    one, two = connect(autocommit=False), connect()
    first = put(one, "g", dedup_key="k")
    asked = in_background(lambda: put(two, group, dedup_key="k"))
    wait_until_blocked(conn, two.info.backend_pid)
    getattr(one, end)()
    second = asked.result()
    assert second == ((first[0], False, "g") if end == "commit" else (second[0], True, group))
    assert [key for key, _ in contents(conn)] == [second[0]]
    assert is_clean(conn)


def test_a_dedup_key_is_taken_until_the_end_of_its_execution_has_committed(
    conn: Connection, connect: Connect
) -> None:
    first = put(conn, dedup_key="k")
    (start,) = SqlWorker(conn, "a").work()
    finishing = connect(autocommit=False)
    finishing.execute("select pgfifo.finish(%s, %s, 'succeeded')", [start.id, start.attempt])
    assert put(conn, dedup_key="k") == (first[0], False, "g")
    finishing.commit()
    assert put(conn, dedup_key="k")[1]


def test_a_dedup_key_whose_holder_comes_and_ends_while_another_waits_for_it_is_enqueued(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a", ordering="relaxed")
    one, two = connect(autocommit=False), connect()
    first = put(one, "g", dedup_key="k")
    asked = in_background(lambda: put(two, "h", dedup_key="k"))
    wait_until_blocked(conn, two.info.backend_pid)
    one.execute("select pgfifo.cancel(%s)", [first[0]])
    one.commit()
    second = asked.result()
    assert second == (second[0], True, "h"), "told of one that had ended, and nothing is enqueued"
    assert is_clean(conn)


def test_a_dedup_key_whose_holder_ends_between_two_statements_of_an_enqueue_is_enqueued(
    fresh_dsn: str,
) -> None:
    with (
        psycopg.connect(fresh_dsn, autocommit=True) as conn,
        psycopg.connect(fresh_dsn) as one,
        psycopg.connect(fresh_dsn, autocommit=True, application_name="two") as two,
    ):
        policy(conn, "a")
        conn.execute(
            """
            create function public.stop() returns trigger language plpgsql as $$
            begin
              if current_setting('application_name') = 'two' then
                perform pg_advisory_xact_lock(99);
              end if;
              return null;
            end $$;
            create trigger stop after insert on pgfifo._executions
              for each statement execute function public.stop()
            """
        )
        first = put(one, "g", dedup_key="k")
        asked = in_background(lambda: put(two, "h", dedup_key="k"))
        wait_until_blocked(conn, two.info.backend_pid)
        conn.execute("select pg_advisory_lock(99)")
        one.commit()  # the second has lost to it, and stops before it looks
        wait_for(
            lambda: value(conn, "select count(*) from pg_locks where locktype = 'advisory' and not granted"),
            message="the second to have inserted nothing",
        )
        conn.execute("select pgfifo.cancel(%s)", [first[0]])
        conn.execute("select pg_advisory_unlock(99)")
        second = asked.result()
        assert second == (second[0], True, "h"), "told of one that had ended, and nothing is enqueued"
        assert is_clean(conn)


def test_a_batch_finds_dedup_keys_of_others_and_its_own(conn: Connection) -> None:
    policy(conn, "a", max_queue_length=3)
    known = put(conn, "b", dedup_key="old")[0]
    found = put_many(
        conn, ("a", "x"), ("b", "old"), ("b", None), ("a", "x"), ("c", "y"), ("b", "y"), key="dedup_key"
    )
    new = [key for key, created in found if created]
    assert [created for _, created in found] == [True, False, True, False, True, False]
    assert [key for key, _ in found] == [new[0], known, new[1], new[0], new[2], new[2]]
    put(conn, "b")
    with pytest.raises(pgfifo.QueueFull) as full:
        put_many(conn, ("b", "old"), ("a", "x"), ("b", "new"), key="dedup_key")
    assert (full.value.index, full.value.current) == (2, 3)
    assert is_clean(conn)


def test_batches_with_the_same_dedup_keys_in_other_orders_do_not_deadlock(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a")
    middle, up, down = connect(autocommit=False), connect(), connect()
    put(middle, "m", dedup_key="2")
    upwards = in_background(lambda: put_many(up, ("u", "1"), ("u", "2"), ("u", "3"), key="dedup_key"))
    wait_until_blocked(conn, up.info.backend_pid)
    downwards = in_background(lambda: put_many(down, ("d", "3"), ("d", "2"), ("d", "1"), key="dedup_key"))
    wait_until_blocked(conn, down.info.backend_pid)
    middle.commit()
    found = [*upwards.result(), *downwards.result()[::-1]]
    assert [key for key, _ in found[:3]] == [key for key, _ in found[3:]]
    assert sum(created for _, created in found) == 2
    assert is_clean(conn)


def test_dedup_keys_from_everywhere_at_once_are_each_there_once(conn: Connection, connect: Connect) -> None:
    policy(conn, "a", max_concurrent=3)
    names = ["x", "y", "z"]

    def produce(number: int) -> None:
        session = connect()
        rng = random.Random(number)
        for _ in range(60):
            lane, some = f"{rng.randrange(3)}", rng.sample(names, 2)
            with session.transaction(force_rollback=rng.random() < 0.2):
                put_many(session, *[(lane, name) for name in some], key="dedup_key")

    def consume(number: int) -> None:
        session = connect()
        worker = SqlWorker(session, "a")
        held = worker.work(2)
        while not all(each.done for each in producers):
            query = "select count(dedup_key) = count(distinct dedup_key) from pgfifo._executions"
            assert value(session, query), "two of one kind at once"
            held = worker.work(2, [start.ended() for start in held])
        worker.work(0, [start.ended() for start in held])

    producers = [in_background(partial(produce, n)) for n in range(4)]
    consumers = [in_background(partial(consume, n)) for n in range(2)]
    for each in [*producers, *consumers]:
        each.result(60)
    assert is_clean(conn)


def test_a_dedup_key_that_an_old_snapshot_cannot_see_is_an_error_to_repeat(
    conn: Connection, connect: Connect
) -> None:
    put(conn)
    late = connect(autocommit=False)
    late.execute("set transaction isolation level repeatable read")
    late.execute("select from pgfifo.queue_stats")
    first = put(conn, "h", dedup_key="k")
    with pytest.raises(psycopg.errors.SerializationFailure):
        put(late, "g", dedup_key="k")
    late.rollback()
    assert put(late, dedup_key="k") == (first[0], False, "h")


def test_a_request_that_found_another_of_its_kind_keeps_that_answer(conn: Connection) -> None:
    first = put(conn, dedup_key="k")
    assert put(conn, dedup_key="k", request_id="r") == (first[0], False, "g")
    assert len(SqlWorker(conn, "a").drain()) == 1
    assert put(conn, dedup_key="k", request_id="r") == (first[0], False, "g"), (
        "a request made again is a new one"
    )
    assert contents(conn) == []
    found = conn.execute(
        "select id, created from pgfifo.enqueue_many('a', array_fill('{}'::jsonb, array[4]),"
        " p_request_ids => array['1', '2', '2', '3'], p_dedup_keys => array['d', 'd', null, null])"
    ).fetchall()
    assert [created for _, created in found] == [True, False, False, True]
    assert found[0][0] == found[1][0] == found[2][0]
    again = put_many(conn, ("g", "3"), ("g", "2"), ("g", "1"), key="request_id")
    assert again == [(found[3][0], False), (found[0][0], False), (found[0][0], False)]


# item_key: one for each item of a lane among what waits


def replace(conn: Connection, group: str = "g", *, on_item: str = "replace", **more: Any) -> Found:
    return put(conn, group, item_key="k", on_item=on_item, **more)


@pytest.mark.parametrize(
    ("on_item", "left"), [("immutable", 1), ("replace", {"b": 2}), ("merge_patch", {"b": 2})]
)
def test_an_item_keeps_its_place_and_its_payload_becomes_what_was_asked_for(
    conn: Connection, on_item: str, left: object
) -> None:
    first = put(conn, item_key="k", payload="1")
    other = put(conn)
    again = put(conn, item_key="k", payload='{"b": 2}', on_item=on_item)
    assert again == (first[0], False, "g")
    assert contents(conn) == [(first[0], left), (other[0], {})]
    assert put(conn, "h", item_key="k")[1], "an item of another lane"
    assert [start.id for start in SqlWorker(conn, "a").work(1)] == [first[0]], "it lost its place"


RFC_7396 = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "result"), RFC_7396)
def test_a_merge_patch_is_that_of_rfc_7396(
    conn: Connection, target: object, patch: object, result: object
) -> None:
    put(conn, item_key="k", payload=json.dumps(target))
    put(conn, item_key="k", payload=json.dumps(patch), on_item="merge_patch")
    assert [payload for _, payload in contents(conn)] == [result]


def test_only_what_was_never_started_counts_as_an_item(conn: Connection) -> None:
    policy(conn, "a", backoff="constant", backoff_initial=60, backoff_jitter=0)
    worker = SqlWorker(conn, "a")
    seen = []
    for outcome in ("succeeded", "failed", "released"):
        seen.append(replace(conn, payload=f'"{outcome}"'))
        (start,) = worker.work()
        assert start.id == seen[-1][0]
        assert replace(conn, payload='"while it runs"')[1], "what runs was taken for waiting"
        conn.execute("select pgfifo.cancel(max(id)) from pgfifo._executions")
        worker.work(0, [start.ended(outcome)])
        if outcome == "failed":
            assert replace(conn, payload='"while it is held"')[1]
            conn.execute("select pgfifo.cancel(id) from pgfifo._executions")
    assert [payload for _, payload in contents(conn)] == ["released"]
    assert replace(conn, payload='"after"')[1], "what had been started was changed"
    assert [payload for _, payload in contents(conn)] == ["released", "after"]
    assert is_clean(conn)


def test_an_item_that_has_yet_to_join_counts_as_waiting(conn: Connection, connect: Connect) -> None:
    first = replace(conn, payload='"old"', delay="1 hour")
    assert replace(conn, payload='"new"') == (first[0], False, "g")
    assert contents(conn) == [(first[0], "new")]
    assert value(conn, "select state from pgfifo.executions") == "delayed", "its time was taken from it"
    # Who cancels it locks its row and then its lane: who replaces it must not do so in the other order.
    holder, producer = connect(autocommit=False), connect()
    holder.execute("select from pgfifo._executions where id = %s for update", [first[0]])
    asked = in_background(lambda: replace(producer, payload='"newer"'))
    wait_until_blocked(conn, producer.info.backend_pid)
    assert value(holder, "select pgfifo.cancel(%s)", first[0]) == "cancelled"
    holder.commit()
    second = asked.result()
    assert second == (second[0], True, "g")
    # Due ones join by the hand of the very enqueue that finds them.
    third = replace(conn, "h", payload='"old"', delay="1 hour")
    advance(conn, 3601)
    assert replace(conn, "h", payload='"new"') == (third[0], False, "h")
    assert value(conn, "select state from pgfifo.executions where id = %s", third[0]) == "waiting"
    assert is_clean(conn)


def test_a_dedup_key_belongs_to_delayed_ones_too(conn: Connection) -> None:
    first = put(conn, dedup_key="k", delay="1 hour")
    assert put(conn, dedup_key="k") == (first[0], False, "g")
    assert put(conn, "h", dedup_key="l", request_id="r", delay="2 hours")[1]
    assert put_many(conn, ("g", "k"), ("h", "l"), ("g", "m"), key="dedup_key")[2][1]
    assert value(conn, "select sum(delayed_count) from pgfifo.queue_stats") == 2
    advance(conn, 7201)
    assert len(SqlWorker(conn, "a").drain()) == 3
    assert is_clean(conn)


def test_a_late_arrival_of_a_relaxed_lane_was_never_started(conn: Connection, connect: Connect) -> None:
    policy(conn, "a", ordering="relaxed", max_concurrent=3)
    worker = SqlWorker(conn, "a")
    put(conn)
    assert len(worker.drain()) == 1
    late = connect(autocommit=False)
    older = put(late)
    put(conn)
    assert len(worker.work(1)) == 1
    late.commit()
    policy(conn, "a", max_concurrent=1)
    worker.work(1)  # takes note of it, and has no slot
    assert value(conn, "select attempt from pgfifo.runs where id = %s", older[0]) == 0
    conn.execute("update pgfifo._executions set item_key = 'k' where id = %s", [older[0]])
    assert replace(conn, payload='"new"') == (older[0], False, "g")


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_claim_does_not_start_an_item_that_is_being_replaced(
    conn: Connection, connect: Connect, end: str
) -> None:
    first = replace(conn, payload='"old"')
    producer = connect(autocommit=False)
    assert replace(producer, payload='"new"') == (first[0], False, "g")
    worker = SqlWorker(conn, "a")
    assert worker.work() == [], "started while its payload was being replaced"
    assert worker.more == "soon"
    getattr(producer, end)()
    (start,) = worker.work()
    assert value(conn, "select payload from pgfifo.executions where id = %s", start.id) == (
        "new" if end == "commit" else "old"
    )


def test_a_replacement_that_meets_a_claim_in_flight_does_not_report_success(
    conn: Connection, connect: Connect
) -> None:
    first = replace(conn, payload='"old"')
    claiming, producer = connect(autocommit=False), connect()
    worker = SqlWorker(conn, "a")
    worker.conn = claiming
    (start,) = worker.work()
    asked = in_background(lambda: replace(producer, payload='"new"'))
    wait_until_blocked(conn, producer.info.backend_pid)
    claiming.commit()
    second = asked.result()
    assert second == (second[0], True, "g"), (
        "told that it was replaced, and it had started with the old payload"
    )
    assert contents(conn) == [(first[0], "old"), (second[0], "new")]
    worker.work(0, [start.ended()])
    claiming.commit()
    assert is_clean(conn)


def test_an_item_whose_lane_somebody_holds_says_who(conn: Connection, connect: Connect) -> None:
    first = replace(conn)
    holder, producer = connect(autocommit=False), connect()
    holder.execute("select pgfifo.cancel(%s)", [first[0]])
    with pytest.raises(pgfifo.Busy) as busy:
        replace(producer)
    assert busy.value.pids == [holder.info.backend_pid]
    holder.commit()
    assert replace(producer)[1]


def test_two_with_one_item_key_at_once_are_one(conn: Connection, connect: Connect) -> None:
    for ordering in ("strict", "relaxed"):
        policy(conn, "a", ordering=ordering)
        one, two = connect(autocommit=False), connect()
        first = replace(one, ordering, payload='"first"')
        asked = in_background(partial(replace, two, ordering, payload='"second"'))
        wait_until_blocked(conn, two.info.backend_pid)
        one.commit()
        assert asked.result() == (first[0], False, ordering)
        assert contents(conn)[-1] == (first[0], "second")


def test_items_of_a_batch_are_laid_over_each_other_in_order(conn: Connection) -> None:
    known = put(conn, item_key="old", payload='{"a": 1}')[0]
    rows = conn.execute(
        "select id, created from pgfifo.enqueue_many('a', array["
        """ '{"n": 1, "x": 1}', '{"b": 2}', '{"n": null, "y": 2}', '{}', '{"a": null}', '{"n": 5}' """
        "]::jsonb[], array_fill('g'::text, array[6]),"
        " p_item_keys => array['new', 'old', 'new', null, 'old', 'new'], p_on_item => 'merge_patch')"
    ).fetchall()
    new = rows[0][0]
    assert rows == [
        (new, True),
        (known, False),
        (new, False),
        (rows[3][0], True),
        (known, False),
        (new, False),
    ]
    assert contents(conn) == [(known, {"b": 2}), (new, {"x": 1, "y": 2, "n": 5}), (rows[3][0], {})]
    assert is_clean(conn)


def test_a_merged_payload_is_not_larger_than_allowed(conn: Connection) -> None:
    policy(conn, "a", max_payload=40)
    put(conn, item_key="k", payload='{"a": "0123456789"}')
    with pytest.raises(pgfifo.PayloadTooLarge) as large:
        put(conn, item_key="k", payload='{"b": "01234567890123456789"}', on_item="merge_patch")
    assert large.value.index is None
    assert [payload for _, payload in contents(conn)] == [{"a": "0123456789"}]


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_an_item_on_an_old_snapshot_is_refused(conn: Connection, connect: Connect, isolation: str) -> None:
    late = connect(autocommit=False)
    late.execute(f"set transaction isolation level {isolation}")
    with pytest.raises(pgfifo.IsolationLevel):
        replace(late)


def test_what_makes_no_sense_with_keys_is_refused(fifo: pgfifo.Client) -> None:
    with pytest.raises(pgfifo.InvalidValue, match="on_item"):
        fifo.enqueue("a", on_item="overwrite")  # type: ignore[arg-type]
    with pytest.raises(pgfifo.InvalidValue, match="exclude") as both:
        fifo.enqueue_many("a", [1, 2], dedup_keys=["x", "x"], item_keys=[None, "y"])
    assert both.value.index == 1
    for name in ("dedup_keys", "item_keys"):
        with pytest.raises(pgfifo.InvalidValue, match=name[:-1]):
            fifo.enqueue_many("a", [1], **{name: [""]})  # type: ignore[arg-type]
    assert fifo.stats() == []


def test_items_that_start_while_they_are_replaced_never_start_with_what_was_replaced_before(
    conn: Connection, connect: Connect
) -> None:
    policy(conn, "a", max_concurrent=2)
    stop: list[bool] = []
    reported: dict[int, int] = {}

    def produce(number: int) -> None:
        session = connect()
        rng = random.Random(number)
        for n in range(150):
            text = json.dumps({"from": number, "n": n})
            key, _, _ = replace(session, f"{rng.randrange(2)}", payload=text)
            # By now this payload is in force; a start from here on has it or a later one.
            row = session.execute(
                "select e.payload from pgfifo._executions e where id = %s union all"
                " select h.payload from pgfifo.history h where id = %s",
                [key, key],
            ).fetchone()
            assert row is not None
            if row[0]["from"] == number:
                assert row[0]["n"] == n
                reported[key] = reported.get(key, 0) + 1

    def consume() -> int:
        worker = SqlWorker(connect(), "a")
        total, held = 0, worker.work(2)
        while held or not stop:
            before = {
                start.id: value(worker.conn, "select payload from pgfifo._executions where id = %s", start.id)
                for start in held
            }
            for start in held:
                after = value(worker.conn, "select payload from pgfifo._executions where id = %s", start.id)
                assert after == before[start.id], "the payload changed while it ran"
            total += len(held)
            held = worker.work(2, [start.ended() for start in held])
        return total

    consumer = in_background(consume)
    producers = [in_background(partial(produce, n)) for n in range(3)]
    for each in producers:
        each.result(60)
    stop.append(True)
    consumer.result(60)
    assert len(reported) > 1
    assert is_clean(conn)
