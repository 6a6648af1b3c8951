"""Servers that are killed, lose their primary, run out of disk, or are worked on, with a queue in use."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo.embedded import PrivateServer
from pgfifo.embedded.identity import identity_for
from pgfifo.schema import install
from pgfifo.verify.assemble import assemble
from pgfifo.verify.history import History
from pgfifo.verify.recorder import now, read
from tests.faults.ground import Ground, kinds
from tests.faults.load import RULES
from tests.faults.servers import Ballast, Blow, either, kill_all, move_to, small_filesystem
from tests.support.database import in_background, wait_for
from tests.support.server import make_server

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="signals and filesystems as Linux has them"),
]

Connection = psycopg.Connection[Any]
Say = Callable[[str], None]

BAD = "select kind, lane, detail from pgfifo.check() where severity = 'violation'"


@pytest.fixture
def say(request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> Say:
    """Say something that is to be read, also where all is well."""

    def speak(text: str) -> None:
        with capfd.disabled():
            print(f"\n  {request.node.name}: {text}", end="", flush=True)

    return speak


def connected(dsn: str) -> Connection:
    return psycopg.connect(dsn, autocommit=True)


def one(conn: Connection, query: str, *arguments: object) -> Any:
    row = conn.execute(query, arguments or None).fetchone()
    assert row is not None, query
    return row[0]


def seen_by(ground: Ground) -> History:
    """Stop all workers; return what was seen, which is not to be judged: the server has forgotten some."""
    names = [name for name, process in ground.children.all.items() if process.poll() is None]
    ground.children.expected.update(names)
    ground.children.stop(*names)
    return assemble(read(ground.folder), RULES)


# The server crashes


@pytest.mark.parametrize("synchronous_commit", ["on", "off"])
def test_the_postmaster_and_its_children_are_killed_under_load(
    tmp_path: Path, say: Say, synchronous_commit: str
) -> None:
    """With synchronous_commit off for everybody, a crash forgets what the WAL writer has not written yet."""
    with make_server(synchronous_commit=synchronous_commit, wal_writer_delay="10s") as server:
        with connected(server.dsn()) as conn:
            conn.execute("set synchronous_commit = on")
            install(conn)
        ground = Ground(server.dsn(), tmp_path)
        try:
            blows = []
            for _ in range(2):
                ground.worker()
            with ground.load(producers=3):
                for _ in range(4):
                    time.sleep(2)
                    with ground.outage():
                        blows.append(kill_all(server))
                        server.start()
                        blows[-1].is_up()
                time.sleep(1)
            ground.settle()
            history = ground.judge()
            assert kinds(history)["succeeded"] > 100
            with connected(server.dsn()) as conn:
                dead = one(conn, "select count(*) from pgfifo.workers where state = 'dead'")
            assert dead == 0, "a worker that lives was declared dead because the server was away"
            assert all(each.attempt < 3 for each in history.attempts)
            for blow in blows:
                say(str(blow.recovery(history)))
        finally:
            ground.close()


# The primary is lost


@contextlib.contextmanager
def pair(*, synchronous: bool) -> Iterator[tuple[PrivateServer, PrivateServer]]:
    """A primary and its standby, with pgfifo."""
    with make_server(wal_retrieve_retry_interval="100ms") as primary:
        with connected(primary.dsn()) as conn:
            install(conn)
        with primary.standby() as standby, connected(primary.dsn()) as conn:
            if synchronous:
                conn.execute("alter system set synchronous_standby_names = '*'")
                conn.execute("select pg_reload_conf()")
            state = "select coalesce(max(sync_state), 'none') from pg_stat_replication"
            expected = "sync" if synchronous else "async"
            wait_for(lambda: one(conn, state) == expected, message=f"the standby to be {expected}")
            conn.close()
            yield primary, standby


def promote(standby: PrivateServer) -> None:
    with connected(standby.dsn()) as conn:
        assert one(conn, "select pg_promote()")


@pytest.mark.parametrize("seed", range(3))
def test_the_primary_is_killed_and_its_synchronous_standby_promoted_under_load(
    tmp_path: Path, say: Say, seed: int
) -> None:
    """Nothing that was acknowledged is lost; order and slots hold across the failover."""
    with pair(synchronous=True) as (primary, standby):
        ground = Ground(either(primary, standby), tmp_path)
        try:
            for _ in range(2):
                ground.worker()
            with ground.load(producers=3):
                time.sleep(2 + seed / 3)
                with ground.outage():
                    blow = kill_all(primary)
                    promote(standby)
                    blow.is_up()
                time.sleep(4)
            ground.settle()
            history = ground.judge()
            with connected(standby.dsn()) as conn:
                assert one(conn, "select epoch from pgfifo.schema_info()") == 2
                assert one(conn, "select count(*) from pgfifo.workers where state = 'dead'") == 0
            before = sum(
                each.commit.answered < blow.at for each in history.enqueues if each.fate == "committed"
            )
            assert before > 50
            say(f"{blow.recovery(history)}; {before} acknowledged before, none lost")
        finally:
            ground.close()


def test_a_standby_that_lags_is_promoted_under_load(tmp_path: Path, say: Say) -> None:
    """What was acknowledged last is gone; what is there is whole, in order, and gets going by itself."""
    with pair(synchronous=False) as (primary, standby):
        ground = Ground(either(primary, standby), tmp_path)
        try:
            for _ in range(2):
                ground.worker()
            with ground.load(producers=3):
                time.sleep(2)
                standby.stop()
                behind = now()
                time.sleep(1)
                with ground.outage():
                    blow = kill_all(primary)
                    standby.start()
                    promote(standby)
                    blow.is_up()
                time.sleep(4)
            ground.settle()
            with connected(standby.dsn()) as conn:
                assert one(conn, "select epoch from pgfifo.schema_info()") == 2
                assert conn.execute(BAD).fetchall() == []
                assert one(conn, "select count(*) from pgfifo.workers where state = 'dead'") == 0
                there = {id_ for (id_,) in conn.execute("select id from pgfifo.executions")}
            history = seen_by(ground)
            known = {each.id: each for each in history.enqueues if each.fate == "committed"}
            lost = [each for each in known.values() if each.id not in there]
            assert lost, "nothing was lost, so this has shown nothing"
            assert min(each.commit.answered for each in lost) > behind - 0.5, "lost before it lagged"
            say(f"{blow.recovery(history)}; {len(lost)} acknowledged enqueues of 1 s of lag are gone")
        finally:
            ground.close()


# The disk is full


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small filesystem."""
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(small_filesystem("192m"))
        except (PermissionError, FileNotFoundError) as error:
            pytest.skip(f"no small filesystem can be mounted here: {error}")
        yield place


def test_the_disk_of_the_data_is_full_for_a_while(tmp_path: Path, disk: Path, say: Say) -> None:
    """Calls fail, one after the other; when there is room again, all goes on where it was."""
    with make_server(log_min_messages="error") as server:
        data = disk / "data"
        data.mkdir()
        identity_for(server.binaries).give(data)
        with connected(server.dsn()) as conn:
            conn.execute(f"create tablespace small location '{data}'")
            conn.execute("create database app tablespace small")
        with connected(server.dsn("app")) as conn:
            install(conn)
        ground = Ground(server.dsn("app"), tmp_path)
        ballast = Ballast(disk)
        try:
            for _ in range(2):
                ground.worker()
            with ground.load(producers=3, rate=80):
                time.sleep(2)
                with ground.outage():
                    ballast.fill()
                    wait_for(lambda: "No space left on device" in server.log(), 60, "the disk to be full")
                    time.sleep(3)
                    ballast.remove()
                    again = Blow()
                time.sleep(3)
            refusals = server.log().count("No space left on device")
            ground.settle()
            history = ground.judge()
            assert kinds(history)["succeeded"] > 100
            say(f"{refusals} calls had no room; after there was some: {again.recovery(history).calls}")
        finally:
            ballast.remove()
            ground.close()


def test_the_disk_of_the_wal_is_full_and_the_server_goes_down(tmp_path: Path, disk: Path, say: Say) -> None:
    """PostgreSQL panics then, and does not come up before there is room."""
    with make_server(max_wal_size="64MB", min_wal_size="32MB", wal_recycle=False) as server:
        with connected(server.dsn()) as conn:
            install(conn)
        server.stop()
        move_to(server, "pg_wal", disk)
        server.start()
        ground = Ground(server.dsn(), tmp_path)
        ballast = Ballast(disk)
        try:
            for _ in range(2):
                ground.worker()
            with ground.load(producers=3, rate=80):
                time.sleep(2)
                with ground.outage():
                    ballast.fill()
                    writing = in_background(lambda: _write_until_it_breaks(server.dsn()))
                    writing.result(60)
                    wait_for(lambda: not server.running, 60, "the server to go down")
                    ballast.remove()
                    server.start()
                    again = Blow()
                time.sleep(3)
            ground.settle()
            history = ground.judge()
            assert "PANIC" in server.log()
            assert kinds(history)["succeeded"] > 100
            say(f"after the server was up again: {again.recovery(history).calls}")
        finally:
            ballast.remove()
            ground.close()


def _write_until_it_breaks(dsn: str) -> None:
    """Fill the rest of a segment of the WAL, so that a new one is needed."""
    with contextlib.suppress(psycopg.Error), connected(dsn) as conn:
        conn.execute("create table if not exists waste (t text)")
        while True:
            conn.execute("insert into waste select repeat(md5(n::text), 50) from generate_series(1, 5000) n")


# The server is worked on


@pytest.mark.parametrize(
    "command",
    [
        "vacuum (full, analyze) {}",
        "reindex table {}",
        "reindex table concurrently {}",
        "analyze {}",
        "vacuum {}",
    ],
)
def test_tables_are_worked_on_under_load(own_ground: Ground, command: str, say: Say) -> None:
    tables = """
        select c.oid::regclass::text from pg_class c
        where c.relnamespace = 'pgfifo'::regnamespace and c.relkind = 'r' order by c.relname
    """
    for _ in range(2):
        own_ground.worker()
    done = failed = 0
    with own_ground.load(producers=3), own_ground.connected() as conn:
        names = [name for (name,) in conn.execute(tables)]
        until = time.monotonic() + 8
        while time.monotonic() < until:
            for name in names:
                try:
                    conn.execute(command.format(name))
                    done += 1
                except psycopg.errors.DeadlockDetected:
                    failed += 1
    own_ground.settle()
    history = own_ground.judge()
    assert kinds(history)["succeeded"] > 100
    assert all(each.attempt < 3 for each in history.attempts), "a worker was declared dead"
    say(f"{done} times, {failed} deadlocks")


# A dump is restored


def test_a_dump_made_under_load_is_restored_whole(own: PrivateServer, own_ground: Ground, say: Say) -> None:
    """In the copy: no violation, nothing started before it is resumed, and then all of it runs."""
    if not own.has("pg_dump"):
        pytest.skip("this distribution of PostgreSQL has no pg_dump")
    for _ in range(2):
        own_ground.worker()
    with own_ground.load(producers=3, rate=150):
        time.sleep(2)
        dump = own.run("pg_dump", "postgres")
        time.sleep(0.5)
    own_ground.settle()
    own_ground.judge()
    with connected(own.dsn()) as conn:
        conn.execute("create database copy")
    own.run("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", "copy", stdin=dump)
    dsn = own.dsn("copy")
    actions = pgfifo.Actions()
    for action in RULES:
        actions.action(action)(lambda _: None)
    with pgfifo.Client(dsn) as fifo, connected(dsn) as conn:
        query = "select sum(queue_length), sum(active_count), sum(total_enqueued) from pgfifo.queue_stats"
        waiting, active, enqueued = conn.execute(query).fetchone() or (0, 0, 0)
        with pgfifo.Worker(dsn, actions, declare=False, poll_interval=0.1):
            wait_for(lambda: [each.paused for each in fifo.stats()] == [True] * 4, message="the pause")
            assert (
                one(conn, "select sum(total_completed) from pgfifo.queue_stats")
                == enqueued - waiting - active
            )
            assert fifo.resume_everything()
            left = "select sum(queue_length + active_count + delayed_count) from pgfifo.queue_stats"
            wait_for(lambda: one(conn, left) == 0, 60, "the copy to be empty")
        assert one(conn, "select sum(total_completed) from pgfifo.queue_stats") == enqueued
        assert conn.execute(BAD).fetchall() == []
    say(f"{enqueued} enqueued, {waiting} waiting and {active} active in the dump; all have ended")
