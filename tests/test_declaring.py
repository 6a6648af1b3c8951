"""What a deployment does when it starts: declare its actions, while producers are at work."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import pgfifo

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def declare(conn: Connection, action: str, values: str) -> None:
    """Declare as a starting worker does."""
    conn.execute("select pgfifo.declare_action(%s, %s::jsonb)", [action, values])


def test_a_worker_starts_beside_a_producer_with_an_open_transaction(
    conn: Connection, connect: Connect
) -> None:
    producer = connect(autocommit=False)
    producer.execute("select pgfifo.enqueue('invoice')")
    producer.commit()
    producer.execute("select pgfifo.enqueue('invoice')")
    declare(conn, "invoice", '{"max_attempts": 3, "max_concurrent": 2}')
    found = conn.execute(
        "select value from pgfifo.effective_policy('invoice') where attribute = 'max_attempts'"
    ).fetchone()
    assert found == (3,), "a deployment would have to wait for every open transaction that has enqueued"


def test_a_new_grouping_waits_for_the_enqueue_in_flight_and_names_it(
    conn: Connection, connect: Connect
) -> None:
    producer = connect(autocommit=False)
    producer.execute("select pgfifo.enqueue('invoice')")
    producer.commit()
    producer.execute("select pgfifo.enqueue('invoice')")
    with pytest.raises(pgfifo.Busy) as caught:
        declare(conn, "invoice", '{"group_by": ["customer"]}')
    assert caught.value.pids == [producer.info.backend_pid], "nobody could tell whom to wait for"
    producer.rollback()
    conn.execute("select pgfifo.cancel(id) from pgfifo.executions where action = 'invoice'")
    declare(conn, "invoice", '{"group_by": ["customer"]}')


def test_only_declared_actions_can_be_enqueued_where_that_is_asked_for(conn: Connection) -> None:
    conn.execute("select * from pgfifo.set_default_policy('{\"declared_actions_only\": true}')")
    with pytest.raises(pgfifo.UnknownAction):
        conn.execute("select pgfifo.enqueue('delpoy')")
    with pytest.raises(pgfifo.UnknownAction):
        conn.execute("select * from pgfifo.enqueue_many('delpoy', array['{}']::jsonb[])")
    assert conn.execute("select count(*) from pgfifo.actions").fetchone() == (0,), "a typo became an action"
    declare(conn, "deploy", "{}")
    conn.execute("select pgfifo.enqueue('deploy')")
    conn.execute("select * from pgfifo.set_default_policy('{\"declared_actions_only\": null}')")
    conn.execute("select pgfifo.enqueue('delpoy')")


def test_a_new_epoch_makes_tokens_that_no_older_one_equals(conn: Connection) -> None:
    declare(conn, "deploy", "{}")
    (worker,) = conn.execute(
        "select pgfifo.worker_start('w', 'h', 1, array['deploy'], 1, '30 s', false)"
    ).fetchone() or (None,)
    tokens = []
    for _ in range(2):
        conn.execute("select pgfifo.enqueue('deploy')")
        row = conn.execute(
            "select id, attempt, token from pgfifo.claim(%s, array['deploy'], 1)", [worker]
        ).fetchone()
        assert row is not None
        conn.execute("select pgfifo.finish(%s, %s, 'succeeded')", row[:2])
        tokens.append(row[2])
        conn.execute("select pgfifo.raise_epoch()")
        # What it holds, it has to say first.
        conn.execute("select pgfifo.heartbeat(%s)", [worker])
    assert [token.split("-")[0] for token in tokens] == ["1", "2"], "a restored copy would repeat its tokens"
