"""Transactions that stay open for long: only who must waits for them, and nothing costs more beside them."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import pgfifo
from tests.support.cli import program
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine
from tests.test_flat_cost import bound, claim_cost, fill, finish_cost

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]


def measured(engine: Engine) -> tuple[int, int]:
    """Return what a claim and a finish touch, where fifty wait."""
    worker = engine.worker(lease="1 day")
    engine.fill(50)
    engine.claim(worker, 2)
    costs = claim_cost(engine, worker), finish_cost(engine, worker)
    engine.one("select pgfifo.worker_stop(%s)", worker)
    return costs


def test_flat_cost_and_progress_beside_transactions_that_write_and_do_not_end(
    conn: Connection, connect: Connect
) -> None:
    """One has enqueued to a lane of its own, one has an xid: what dies meanwhile cannot be cleared away."""
    engine = Engine(conn)
    engine.policy(max_concurrent=2)
    before = measured(engine)
    producer, writer = connect(autocommit=False), connect(autocommit=False)
    theirs = Engine(producer).enqueue("deploy", group="theirs")
    writer.execute("select pg_current_xact_id()")
    fill(engine, 400)
    worker = engine.worker(lease="1 day")
    started = 0
    while starts := engine.claim(worker, 2):
        engine.hand_in(worker, *starts)
        started += len(starts)
        if started % 100 == 0:
            engine.advance("200 ms")  # the points from which marks are scanned move on in time
    assert started == 450, "a transaction that is open keeps what has committed from being started"
    after = measured(engine)
    for what, least, most in zip(("claim", "finish"), before, after, strict=True):
        assert most < bound(least), f"a {what} touches {most} pages, before {least}"
    producer.commit()
    writer.rollback()
    engine.advance("2 s")
    assert theirs in engine.drain(worker)
    engine.assert_promises()


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_every_promise_holds_beside_long_transactions(fresh_dsn: str) -> None:
    """A snapshot, a writer, and a producer that has enqueued, all open from beginning to end, for a minute.

    Only producers of that producer's own lane wait; claims and finishes touch as little as before.
    """
    with (
        psycopg.connect(fresh_dsn, autocommit=True) as conn,
        psycopg.connect(fresh_dsn) as snapshot,
        psycopg.connect(fresh_dsn) as writer,
        psycopg.connect(fresh_dsn) as producer,
        psycopg.connect(fresh_dsn, autocommit=True) as second,
        pgfifo.Client(fresh_dsn) as fifo,
    ):
        engine = Engine(conn)
        engine.policy(max_concurrent=2)
        before = measured(engine)
        conn.execute("create table theirs (id bigint)")
        snapshot.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        snapshot.execute("select count(*) from pgfifo.executions")
        writer.execute("insert into theirs values (1)")
        first = fifo.enqueue("held_up", {}, connection=producer).id
        waiting = in_background(lambda: Engine(second).enqueue("held_up"))
        wait_until_blocked(conn, second.info.backend_pid)
        size = ["--duration", "60", "--producers", "4", "--workers", "3", "--lease", "5s", "--rate", "8"]
        done = subprocess.run(
            [program(), "verify", "--dsn", fresh_dsn, "--json", "--yes", "--chaos", "kill,pause", *size],
            capture_output=True,
            timeout=400,
            check=False,
        )
        still_waits = not waiting.done
        engine.one('select pgfifo.cancel_where(\'{"action": "deploy"}\')')
        after = measured(engine)
        producer.commit()
        ids = [first, waiting.result()]
        snapshot.rollback()
        writer.rollback()
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
        assert json.loads(done.stdout)["done"]["starts"] > 1000
        assert still_waits
        for what, least, most in zip(("claim", "finish"), before, after, strict=True):
            assert most < bound(least), f"a {what} touches {most} pages, before {least}"
        worker = engine.worker("held_up")
        assert engine.drain(worker, ["held_up"]) == ids
