"""Clocks that are wrong by hours, of workers and producers and of the server, which alone counts."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgfifo.schema
from pgfifo.embedded import PrivateServer
from tests.faults.clocks import LIBRARY, Clock, wrong
from tests.faults.ground import Ground, kinds
from tests.faults.load import ONE, YIELDING
from tests.support.cli import program
from tests.support.database import wait_for
from tests.support.server import make_server

pytestmark = [pytest.mark.faults, pytest.mark.skipif(LIBRARY is None, reason="there is no libfaketime")]


def off_by(conn: psycopg.Connection[Any]) -> float:
    """Return by how many seconds the server's clock is wrong."""
    row = conn.execute("select clock_timestamp()").fetchone()
    assert row is not None
    return float((row[0] - datetime.now(UTC)).total_seconds())


def test_workers_whose_clocks_are_wrong_by_hours_and_days(ground: Ground) -> None:
    """What a user would lose: starts too early or never, and living workers that count as dead."""
    names = [ground.worker(environment=wrong(by)) for by in ("+5h", "-3h", "+40d")]
    shown = {ground.log(name)[:10] for name in names}
    assert len(shown) > 1, "their clocks are all right"
    with ground.load(fails=0.2):
        time.sleep(3 * ground.lease)
    ground.settle()
    history = ground.judge()
    assert not history.deaths
    assert all(len(ground.registrations(name)) == 1 for name in names)
    assert kinds(history)["succeeded"] > 50


@pytest.mark.parametrize("by", ["+5h", "-5h"])
def test_a_producer_whose_clock_is_wrong_delays_by_the_servers(ground: Ground, by: str) -> None:
    ground.worker()
    done = subprocess.run(
        [program(), "enqueue", ONE, '{"lane": 0}', "--delay", "2s", "--json"],
        env=os.environ | wrong(by) | {"PGFIFO_DSN": ground.dsn},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout
    [made] = ground.fifo.executions()
    ground.wait_for_state(made.id, "succeeded", 20)
    made = ground.fifo.execution(made.id)
    assert made.started_at is not None
    assert 1 <= (made.started_at - made.enqueued_at).total_seconds() < 15


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """The clock of the server."""
    with tempfile.TemporaryDirectory() as folder:
        yield Clock(Path(folder))


@pytest.fixture
def own(clock: Clock) -> Iterator[PrivateServer]:
    """A server whose clock can be set."""
    server = make_server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clock.environment.items():
            patch.setenv(name, value)
        server.start()
    try:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            pgfifo.schema.install(conn)
        yield server
    finally:
        server.close()


@pytest.mark.parametrize("jumps", [("+1h", "+0", "-1h", "+0"), ("-1h", "+1h", "-1h")], ids=["there", "far"])
def test_the_servers_clock_jumps_by_hours_under_load(
    own_ground: Ground, clock: Clock, jumps: tuple[str, ...]
) -> None:
    """Leases, scans and timers: nothing may stand still, start too often or be given away."""
    names = [own_ground.worker() for _ in range(3)]
    with own_ground.load(), own_ground.connected() as conn:
        for to in jumps:
            time.sleep(2)
            clock.jump(to)
            hours = float(to.removesuffix("h"))
            wait_for(lambda hours=hours: abs(off_by(conn) / 3600 - hours) < 0.1, 10)  # type: ignore[misc]
            time.sleep(own_ground.lease)
    own_ground.settle()
    history = own_ground.judge()
    assert not history.deaths, "a clock that jumped has killed a worker"
    assert all(len(own_ground.registrations(name)) == 1 for name in names)
    assert kinds(history)["succeeded"] > 100


def test_a_clock_that_goes_back_lengthens_the_backoffs_under_way_and_nothing_else(
    own_ground: Ground, clock: Clock
) -> None:
    """Times are the server's: what is to be tried again at two is. It may be told to at once."""
    with own_ground.connected() as conn:
        own_ground.worker()
        for action in (ONE, YIELDING):
            own_ground.fifo.set_policy(action, backoff_initial=5, backoff_cap=5)
        ids = [own_ground.enqueue(action, 0, harm="fail") for action in (ONE, YIELDING)]
        for id_, state in zip(ids, ("held", "delayed"), strict=True):
            own_ground.wait_for_state(id_, state)
        clock.jump("-1h")
        wait_for(lambda: off_by(conn) < -3000, 10)
        time.sleep(2.5)  # each process of the server looks for itself, once in a second
        others = [own_ground.enqueue(action, 1, harm="fail") for action in (ONE, YIELDING)]
        for id_ in others:
            own_ground.wait_for_state(id_, "succeeded")
        assert [own_ground.state(id_) for id_ in ids] == ["held", "delayed"]
        for id_ in ids:
            own_ground.fifo.reschedule(id_, delay=0)
            own_ground.wait_for_state(id_, "succeeded")
    own_ground.settle()
    own_ground.judge()
