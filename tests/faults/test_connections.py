"""Networks and servers that go away for longer than the lease, and hosts that vanish without a word."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import pgfifo.schema
from pgfifo.embedded import PrivateServer
from pgfifo.embedded.cluster import StopMode
from pgfifo.verify.history import History
from tests.faults.ground import Ground, kinds
from tests.faults.load import ONE, SEVERAL
from tests.support.database import wait_for
from tests.support.proxy import Proxy
from tests.support.server import make_server

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform == "win32", reason="the proxies speak on Unix sockets"),
]


def assert_nobody_died(ground: Ground, history: History, *names: str) -> None:
    """Assert that no worker was declared dead: each lived through it, and all it ran was its own."""
    assert not history.deaths, "a worker that lived was declared dead"
    assert [len(ground.registrations(name)) for name in names] == [1] * len(names)


def test_a_server_that_is_restarted_again_and_again_under_load(
    own_ground: Ground, own: PrivateServer
) -> None:
    names = [own_ground.worker() for _ in range(3)]
    modes: list[StopMode] = ["fast", "immediate", "fast", "immediate"]
    with own_ground.load():
        for mode in modes:
            time.sleep(1.5)
            with own_ground.outage():
                own.restart(mode)
    own_ground.settle()
    history = own_ground.judge()
    assert_nobody_died(own_ground, history, *names)
    assert len(history.outages) == len(modes)
    assert kinds(history)["succeeded"] > 50


def test_a_server_that_is_away_for_longer_than_the_lease(own_ground: Ground, own: PrivateServer) -> None:
    names = [own_ground.worker() for _ in range(3)]
    ids = [own_ground.enqueue(ONE, n, seconds=0.5) for n in range(3)]
    wait_for(lambda: {own_ground.state(id_) for id_ in ids} == {"running"})
    with own_ground.load(), own_ground.outage():
        own.stop()
        time.sleep(3 * own_ground.lease)
        own.start()
    own_ground.settle()
    history = own_ground.judge()
    assert_nobody_died(own_ground, history, *names)
    assert [own_ground.fifo.execution(id_).attempt for id_ in ids] == [1] * 3


def test_a_network_that_is_away_for_longer_than_the_lease(fresh_dsn: str, tmp_path: Path) -> None:
    """The server goes on, and knows nothing of it; the workers get through again one after the other."""
    with contextlib.ExitStack() as stack:
        ground = Ground(fresh_dsn, tmp_path, lease=8.0)
        stack.callback(ground.close)
        folders = [stack.enter_context(tempfile.TemporaryDirectory(prefix="pf")) for _ in range(3)]
        proxies = [stack.enter_context(Proxy(Path(folder), fresh_dsn)) for folder in folders]
        names = [ground.worker(dsn=proxy.dsn) for proxy in proxies]
        ids = [ground.enqueue(SEVERAL, n, seconds=2) for n in range(6)]
        wait_for(lambda: {ground.state(id_) for id_ in ids} == {"running"})
        with ground.load():
            with ground.outage():
                for proxy in proxies:
                    proxy.refuses = True
                    proxy.cut_all()
                time.sleep(1.5 * ground.lease)
                proxies[0].refuses = False
            for proxy in proxies[1:]:
                time.sleep(1.5)
                proxy.refuses = False
            time.sleep(2)
        ground.settle()
        history = ground.judge()
        assert_nobody_died(ground, history, *names)
        assert [ground.fifo.execution(id_).attempt for id_ in ids] == [1] * 6


def test_sessions_that_are_ended_in_a_loop_under_load(ground: Ground) -> None:
    names = [ground.worker() for _ in range(3)]
    others = "datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()"
    ended = 0
    with ground.load(producers=4), ground.connected() as conn:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            query = f"select count(pg_terminate_backend(pid)) from pg_stat_activity where {others}"
            row = conn.execute(query).fetchone()
            ended += row[0] if row else 0
            time.sleep(0.4)
    ground.settle()
    history = ground.judge()
    assert_nobody_died(ground, history, *names)
    assert ended > 100
    assert kinds(history)["succeeded"] > 50


def test_a_worker_whose_connections_go_silent_is_replaced_and_fenced(ground: Ground) -> None:
    """The proxy is there, takes what is sent, and answers nothing."""
    with (
        tempfile.TemporaryDirectory(prefix="pf") as folder,
        Proxy(Path(folder), ground.dsn) as proxy,
    ):
        cut_off = ground.worker(dsn=proxy.dsn)
        slow = ground.enqueue(ONE, 7, seconds=1.0)
        wait_for(lambda: ground.state(slow) == "running")
        with ground.harmed(cut_off, "silence"):
            proxy.refuses = True
            proxy.hush()
            ground.worker()
            with ground.load():
                time.sleep(2 * ground.lease)
            ground.wait_for_state(slow, "succeeded")
            proxy.refuses = False
            # Nobody cuts what is silent: the worker itself leaves it, the heartbeat first.
            wait_for(lambda: len(ground.registrations(cut_off)) == 2, 30, "it to register again")
        ground.settle()
        history = ground.judge()
        assert ground.fifo.execution(slow).attempt == 2
        assert history.deaths


# A network of its own for a worker, whose cable can be pulled

_MINE = os.getpid()  # nobody else's, where several run at once
SPACE, DEVICE = f"pgfifo-{_MINE}", f"pf{_MINE}"
HERE, THERE = (f"10.213.{_MINE % 250}.{end}" for end in (1, 2))


def network(*words: str) -> bool:
    """Do something to the networks of this machine; tell whether that is allowed."""
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


@pytest.fixture
def cable() -> Iterator[None]:
    """A network namespace with a cable to this one."""
    network("netns", "del", SPACE)
    if not (
        shutil.which("ip")
        and os.geteuid() == 0
        and network("netns", "add", SPACE)
        and network("link", "add", DEVICE, "type", "veth", "peer", "name", "far", "netns", SPACE)
        and network("addr", "add", f"{HERE}/30", "dev", DEVICE)
        and network("link", "set", DEVICE, "up")
        and network("-n", SPACE, "addr", "add", f"{THERE}/30", "dev", "far")
        and network("-n", SPACE, "link", "set", "far", "up")
    ):
        network("netns", "del", SPACE)
        pytest.skip("this machine allows no network namespaces")
    yield
    network("netns", "del", SPACE)


@pytest.fixture
def far_ground(cable: None, tmp_path: Path) -> Iterator[Ground]:
    """The database of a server that can be reached over that cable."""
    server = make_server(listen_addresses=HERE)
    with (server.data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {THERE}/32 trust\n")
    with server:
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            pgfifo.schema.install(conn)
        place = Ground(server.dsn(), tmp_path)
        try:
            yield place
        finally:
            place.close()


def far_worker(ground: Ground) -> str:
    """Start a worker at the other end of the cable."""
    return ground.worker(
        dsn=f"host={HERE} port=5432 user=postgres dbname=postgres",
        environment={"FAULTS_NETWORK": f"/run/netns/{SPACE}"},
    )


def far_sessions(ground: Ground) -> int:
    """Return how many sessions the server has with the other end of the cable."""
    with ground.connected() as conn:
        row = conn.execute(f"select count(*) from pg_stat_activity where client_addr = '{THERE}'").fetchone()
        assert row is not None
        return int(row[0])


def test_a_host_that_vanishes_for_ever_is_replaced_and_its_sessions_end(far_ground: Ground) -> None:
    """The cable is pulled before the host dies, so no word of its end gets out."""
    far = far_worker(far_ground)
    lost = far_ground.enqueue(ONE, 0, harm="hang")
    wait_for(lambda: far_ground.state(lost) == "running")
    behind = far_ground.enqueue(ONE, 0)
    sessions = far_sessions(far_ground)
    assert sessions >= 3
    network("-n", SPACE, "link", "set", "far", "down")
    far_ground.kill(far)
    assert far_sessions(far_ground) == sessions, "the server has heard of its end"
    far_ground.worker()
    far_ground.wait_for_state(lost, "succeeded")
    far_ground.wait_for_state(behind, "succeeded")
    wait_for(lambda: far_sessions(far_ground) == 0, 60, "the server to give up the sessions of the vanished")
    far_ground.settle()
    far_ground.judge()
    assert far_ground.fifo.execution(lost).attempt == 2


def test_a_host_that_is_cut_off_for_longer_than_its_lease_comes_back_fenced(far_ground: Ground) -> None:
    far = far_worker(far_ground)
    slow = far_ground.enqueue(ONE, 0, seconds=1)
    wait_for(lambda: far_ground.state(slow) == "running")
    with far_ground.harmed(far, "cut off"):
        network("-n", SPACE, "link", "set", "far", "down")
        far_ground.worker()
        far_ground.wait_for_state(slow, "succeeded")
        network("-n", SPACE, "link", "set", "far", "up")
        wait_for(lambda: len(far_ground.registrations(far)) == 2, 60, "the host to come back")
    with far_ground.load():
        time.sleep(2)
    far_ground.settle()
    history = far_ground.judge()
    assert far_ground.fifo.execution(slow).attempt == 2
    assert far_ground.registrations(far)[0][1] == "dead"
    assert history.deaths
