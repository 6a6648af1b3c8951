"""`doctor`: each trouble is made for real, is found with who and since when, and is gone when it is over."""

import json
import re
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgfifo import Client, Diagnosis
from pgfifo.embedded import PrivateServer
from pgfifo.models import DiagnosisKind
from tests.support.cli import CommandLine
from tests.support.database import Databases, in_background, wait_for, wait_until_blocked
from tests.support.engine import Engine
from tests.support.sqlworker import hold_lanes, lane
from tests.test_docs import rows as table_rows
from tests.test_docs import section

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

OF_THE_TESTS = {"fsync", "idle_in_transaction_session_timeout", "testing"}
"""What is wrong with the server and the clock of every test. (Where others moved it, partitions are gone.)"""


@pytest.fixture(autouse=True)
def a_round_of_maintenance(conn: Connection) -> None:
    """As a worker does one each second; the last one may be minutes ago, when the database was made."""
    conn.execute("select pgfifo.maintain()")


@pytest.fixture
def engine(conn: Connection) -> Engine:
    engine = Engine(conn)
    for action in ("deploy", "deliver", "slow", "other"):
        engine.policy(action)
    return engine


@pytest.fixture
def fifo(dsn: str) -> Iterator[Client]:
    with Client(dsn) as client:
        yield client


@pytest.fixture
def cli(dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(dsn, monkeypatch, capsys)


def findings(conn: Connection, *kinds: str, after: str = "0 s", check: bool = False) -> list[Diagnosis]:
    """Return what doctor finds, without what is wrong with every test's server."""
    query = "select * from pgfifo.doctor(%s, %s, %s)"
    found = [Diagnosis(*row) for row in conn.execute(query, [after, after, check]).fetchall()]
    assert {each.kind for each in found} <= set(get_args(DiagnosisKind))
    return [
        each
        for each in found
        if each.subject not in OF_THE_TESTS and (each.kind in kinds if kinds else each.kind != "partition")
    ]


def only(conn: Connection, *kinds: str, after: str = "0 s", check: bool = False) -> Diagnosis:
    """Return the one finding that there is."""
    [found] = findings(conn, *kinds, after=after, check=check)
    assert found.detail.endswith("."), found
    assert found.meaning.endswith(".")
    return found


def mend(conn: Connection, found: Diagnosis) -> None:
    """Do what a finding says, as one who types it into psql."""
    assert ";" in found.mend, found
    conn.execute(found.mend.encode())


def test_a_queue_that_is_well_has_no_finding(conn: Connection, engine: Engine) -> None:
    worker = engine.worker()
    engine.fill(3)
    engine.drain(worker)
    assert findings(conn, after="30 s", check=True) == []


# Who holds something


def test_whoever_holds_an_enqueue_lock_is_named_with_his_query_and_those_who_wait(
    conn: Connection, connect: Connect
) -> None:
    conn.execute("select pgfifo.enqueue('deliver', '{}', 'ann')")
    holder = connect(autocommit=False, application_name="shop")
    holder.execute("select pgfifo.enqueue('deliver', '{}', 'ann')")
    found = only(conn, "producer")
    assert (found.severity, found.subject) == ("warning", "deliver ann")
    assert found.data["pid"] == holder.info.backend_pid
    assert found.data["application"] == "shop"
    assert "pid" in found.detail
    assert "holds the enqueue lock, since" in found.detail
    assert "select pgfifo.enqueue('deliver', '{}', 'ann')" in found.detail
    assert findings(conn, "producer", after="1 h") == [], "nobody has waited for long"

    second = connect()
    blocked = in_background(lambda: second.execute("select pgfifo.enqueue('deliver', '{}', 'ann')"))
    wait_until_blocked(conn, second.info.backend_pid)
    found = only(conn, "producer")
    assert (found.severity, found.data["waiting"]) == ("critical", 1)
    assert "; one waits for it, since" in found.detail
    mend(conn, found)
    blocked.result()
    wait_for(lambda: findings(conn, "producer") == [], message="the lock to be free")


def test_a_producer_behind_a_length_limit_is_told_whose_transaction_it_waits_for(
    conn: Connection, connect: Connect, engine: Engine
) -> None:
    engine.policy("deliver", max_action_queue_length=10)
    engine.enqueue("deliver", group="ann")
    holder = connect(autocommit=False)
    holder.execute("select pgfifo.enqueue('deliver', '{}', 'ann')")
    found = {each.subject: each.detail for each in findings(conn, "producer")}
    assert "the lock of a quota or a length" in found["deliver"]
    assert "the enqueue lock" in found["deliver ann"]
    holder.rollback()
    assert findings(conn, "producer") == []


def test_an_open_transaction_that_keeps_a_lane_from_starting_is_found(
    conn: Connection, connect: Connect, engine: Engine
) -> None:
    engine.enqueue_many("deliver", [{}] * 5, list("abcde"))
    holder = connect(autocommit=False)
    assert hold_lanes(holder, "deliver") == 5
    found = only(conn, "lock")
    assert found.severity == "critical"
    assert found.subject == "deliver a, deliver b, deliver c and 2 more"
    assert "holds the slot lock of 5 lanes" in found.detail
    holder.rollback()
    holder.execute("select from pgfifo.set_policy('deliver', '{\"max_concurrent\": 2}')")
    found = only(conn, "lock")
    assert found.subject == "deliver"
    assert "the lock of a change of limits" in found.detail
    mend(conn, found)
    wait_for(lambda: findings(conn, "lock") == [], message="the session to be gone")


def test_a_prepared_transaction_is_found_with_the_lane_that_it_holds(
    conn: Connection, connect: Connect
) -> None:
    conn.execute("select pgfifo.enqueue('deliver', '{}', 'ann')")
    producer = connect(autocommit=False)
    producer.execute("set local pgfifo.notify = off")
    producer.execute("select pgfifo.enqueue('deliver', '{}', 'ann')")
    producer.execute("prepare transaction 'it''s there'")
    found = only(conn, "prepared")
    assert found.subject == "it's there"
    held = only(conn, "producer")
    assert (held.subject, held.data["gid"], held.data["pid"]) == ("deliver ann", "it's there", None)
    assert held.detail.startswith("the prepared transaction 'it''s there' holds the enqueue lock, since")
    assert findings(conn, "prepared", "producer", after="1 h") == []
    assert found.mend.partition(";")[0] == "rollback prepared 'it''s there'"
    mend(conn, found)
    assert findings(conn, "prepared", "producer") == []


def test_an_old_snapshot_is_found_with_its_query(conn: Connection, connect: Connect) -> None:
    reader = connect(autocommit=False, application_name="report")
    reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    reader.execute("select 'a long report'")
    found = only(conn, "snapshot")
    assert found.subject == f"pid {reader.info.backend_pid}"
    assert "report, role postgres" in found.detail
    assert "a long report" in found.detail
    assert "has had a snapshot, since" in found.detail
    assert findings(conn, "snapshot", after="1 h") == []
    reader.rollback()
    assert findings(conn, "snapshot") == []
    writer = connect(autocommit=False)
    writer.execute("create temporary table t (n integer)")
    assert "a transaction open that writes, since" in only(conn, "snapshot").detail
    mend(conn, only(conn, "snapshot"))
    wait_for(lambda: findings(conn, "snapshot") == [], message="the session to be gone")


def test_a_replication_slot_that_nobody_reads_is_found(
    conn: Connection, server: PrivateServer, dsn: str
) -> None:
    conn.execute("select pg_create_physical_replication_slot('left_behind', true)")
    xmin, lsn = conn.execute("select pg_current_xact_id()::text::bigint, pg_current_wal_lsn()").fetchall()[0]
    with psycopg.connect(make_conninfo(dsn, replication="true"), autocommit=True) as standby:
        begin = f"START_REPLICATION SLOT left_behind PHYSICAL {lsn}"
        standby.pgconn.send_query(begin.encode())
        standby.pgconn.flush()
        copying = standby.pgconn.get_result()
        assert copying is not None
        assert copying.status == psycopg.pq.ExecStatus.COPY_BOTH
        # What a standby with hot_standby_feedback says: somebody there has a snapshot as old as this.
        feedback = struct.pack("!cqIIII", b"h", 0, xmin % 2**32, xmin >> 32, 0, 0)
        standby.pgconn.put_copy_data(feedback)
        standby.pgconn.flush()
        query = "select xmin is not null from pg_replication_slots where slot_name = 'left_behind'"
        wait_for(lambda: conn.execute(query).fetchone() == (True,), message="the slot to have a snapshot")
        assert findings(conn, "replication") == [], "somebody reads it"
        standby.pgconn.finish()
    wait_for(lambda: findings(conn, "replication"), message="the slot to be left")
    found = only(conn, "replication")
    assert found.subject == "left_behind"
    mend(conn, found)
    assert findings(conn, "replication") == []


# Work that nobody does


def test_a_dead_worker_that_still_has_something_is_found(conn: Connection, engine: Engine) -> None:
    worker = engine.worker()
    engine.fill(2)
    engine.claim(worker)
    assert findings(conn, "worker") == []
    engine.advance("31 s")
    found = only(conn, "worker")
    assert (found.severity, found.subject) == ("critical", f"worker {worker}")
    assert "it still has 1 execution" in found.detail
    heir = engine.worker()
    assert "once a second until" in found.mend, "one round is not enough"
    for _ in range(35):  # its lease is counted in rounds
        mend(conn, found)
        engine.advance("1 s")
        engine.heartbeat(heir)
    found = only(conn, "worker")
    assert (found.severity, found.subject) == ("info", "lost")
    assert "one worker was declared dead" in found.detail
    engine.advance("2 h")
    assert findings(conn, "worker")[0].subject == f"worker {heir}", "the other one has gone silent now"


def test_what_no_living_worker_serves_is_found(conn: Connection, engine: Engine) -> None:
    engine.enqueue_many("bill'em", [{}] * 3, ["x", "y", "y"])
    found = only(conn, "action")
    assert (found.severity, found.subject) == ("warning", "bill'em")
    assert "3 wait of bill'em in 2 lanes" in found.detail
    assert found.data == {"action": "bill'em", "waiting": 3, "lanes": 2, "marks": 2}
    assert found.mend == "pgfifo worker … --action 'bill'\"'\"'em'"
    worker = engine.worker("bill'em")
    assert findings(conn, "action") == []
    engine.one("select pgfifo.worker_stop(%s)", worker)
    assert "the last one, worker" in only(conn, "action").detail
    engine.pause("bill'em")
    assert findings(conn, "action") == [], "it is to stand still"


def test_a_lane_that_lost_its_wake_up_is_found_and_what_it_says_mends_it(
    conn: Connection, engine: Engine, cli: CommandLine
) -> None:
    worker = engine.worker(lease="1 hour")
    new = engine.enqueue(group="ann")
    for group in ("bob", "eve"):
        engine.enqueue(group=group)
    conn.execute("delete from pgfifo.marks where lane_id = %s", [lane(conn, "deploy", "ann")])
    engine.advance("20 min")
    found = {each.subject: each for each in findings(conn, "stuck", after="10 min")}
    assert found["deploy ann"].severity == "critical"
    assert f"execution {new} is next and there is a free slot" in found["deploy ann"].detail
    assert found["deploy ann"].detail.endswith("; no mark leads to it.")
    # The others wait for a worker that lives and does not claim; one of them stands for all.
    assert found.keys() == {"deploy ann", "deploy bob"}
    assert found["deploy bob"].detail.endswith("; nor in any other lane of its action.")
    assert findings(conn, "stuck", after="25 min") == [], "not for so long"
    [*_, program, words] = ["", *found["deploy ann"].mend.split(" ", 1)]
    assert program == "pgfifo"
    cli("check", *words.split()[1:])
    assert "no mark" not in only(conn, "stuck", after="10 min").detail
    engine.claim(worker, 5)
    assert findings(conn, "stuck", after="10 min") == []


def test_a_lane_that_waits_for_a_reason_is_not_stuck(conn: Connection, engine: Engine) -> None:
    worker = engine.worker("deploy", "slow", concurrency=2)
    engine.policy("slow", spacing=3600)
    for action in ("deploy", "slow"):
        engine.enqueue_many(action, [{}] * 2)
        assert len(engine.claim(worker, 1, [action])) == 1
    engine.enqueue(group="the worker is full")
    engine.advance("20 s")
    assert findings(conn, "stuck") == []


def test_a_lane_whose_turn_comes_late_is_not_stuck(conn: Connection, engine: Engine) -> None:
    worker = engine.worker(lease="1 hour")
    for group in ("first", "second"):
        engine.enqueue(group=group)
    engine.advance("20 s")
    assert only(conn, "stuck", after="10 s").subject == "deploy first"
    assert len(engine.claim(worker, 1)) == 1
    assert findings(conn, "stuck", after="10 s") == [], "others of its action move"


# What stops everything


def test_a_restored_copy_is_found_until_it_is_resumed(
    fresh_dsn: str, databases: Databases, server: PrivateServer
) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as original:
        original.execute("update pgfifo.installation set testing = false")
        Engine(original).policy()
        Engine(original).worker()
        name = original.info.dbname
        assert findings(original, "copy") == []
    copy = databases.create(name)
    try:
        with Client(server.dsn(copy)) as fifo, psycopg.connect(server.dsn(copy), autocommit=True) as conn:
            found = only(conn, "copy", "paused")
            assert (found.severity, found.kind, found.mend) == (
                "critical",
                "copy",
                "pgfifo resume --everything",
            )
            assert name in found.detail
            Engine(conn).worker()  # notices, and pauses everything
            assert only(conn, "copy", "paused").kind == "copy"
            fifo.resume_everything()
            assert findings(conn, "copy", "paused") == []
    finally:
        databases.drop(copy)


def test_pauses_are_found_with_who_and_why(conn: Connection, engine: Engine, fifo: Client) -> None:
    worker = engine.worker()
    fifo.pause_everything(reason="a move")
    found = only(conn, "paused")
    assert (found.severity, found.subject) == ("warning", "everything")
    assert 'by postgres: "a move"' in found.detail
    fifo.resume_everything()
    engine.policy(on_exhausted="pause", max_attempts=1)
    failed = engine.enqueue(group="ann")
    [start] = engine.claim(worker)
    engine.hand_in(worker, start, outcome="failed")
    found = only(conn, "paused")
    assert (found.severity, found.subject, found.data["id"]) == ("warning", "deploy ann", failed)
    assert found.mend == "pgfifo resume deploy --group ann"
    engine.resume(group="ann")
    engine.pause()
    assert only(conn, "paused").severity == "info", "somebody wanted that"
    engine.resume()
    assert findings(conn, "paused") == []


# Upkeep


def test_that_nobody_does_maintenance_is_found(conn: Connection, engine: Engine) -> None:
    engine.maintain()
    engine.enqueue()
    engine.advance("61 s")
    mend(conn, only(conn, "maintenance"))
    assert findings(conn, "maintenance") == []


def test_a_clock_that_was_moved_or_set_back_is_found(conn: Connection, engine: Engine) -> None:
    engine.advance("1 h")
    query = "select severity, detail from pgfifo.doctor() where kind = 'clock'"
    assert engine.rows(query) == [("critical", "pgfifo's clock was moved by 01:00:00.")]
    engine.maintain()
    engine.advance("-1 h")
    assert [severity for severity, _ in engine.rows(query)] == ["warning"]
    engine.maintain()
    assert engine.rows(query) == []


def test_what_the_sweep_had_to_find_is_told(conn: Connection, engine: Engine) -> None:
    engine.enqueue()
    conn.execute("delete from pgfifo.marks")
    engine.advance("1 min")
    assert findings(conn, "sweep") == []
    engine.maintain()
    assert "1 lane that nothing led to" in only(conn, "sweep").detail


def test_a_sequence_below_its_ids_is_found_and_mended(conn: Connection, engine: Engine) -> None:
    for _ in range(5):
        engine.enqueue()  # one after the other: each leaves a mark of its own
    conn.execute("select setval('pgfifo.execution_ids', 1), setval('pgfifo.mark_ids', 1)")
    found = findings(conn, "sequence")
    assert [each.subject for each in found] == ["execution_ids", "mark_ids"]
    conn.execute("alter sequence pgfifo.event_ids cache 10")
    try:
        found = findings(conn, "sequence")
        assert [each.severity for each in found] == ["critical"] * 3
    finally:
        for each in findings(conn, "sequence"):
            mend(conn, each)
    assert findings(conn, "sequence") == []


def test_marks_that_no_scan_finds_and_timers_that_nobody_fires_are_found(
    conn: Connection, engine: Engine, cli: CommandLine
) -> None:
    worker = engine.worker()
    engine.enqueue()
    conn.execute("update pgfifo.scans set safe_mark = 1000000000, hot_mark = 1000000000")
    found = only(conn, "mark")
    assert (found.subject, found.data["marks"]) == ("deploy", 1)
    conn.execute("update pgfifo.scans set safe_mark = 0, hot_mark = 0")
    assert findings(conn, "mark") == []
    [start] = engine.claim(worker)
    engine.hand_in(worker, start, outcome="failed")  # it is held for a second, and a timer stands for that
    engine.advance("2 min")
    engine.heartbeat(worker)
    found = only(conn, "mark")
    assert "one timer is of deploy due and not fired" in found.detail
    engine.claim(worker)
    assert findings(conn, "mark") == []


def test_a_missing_partition_is_found_and_maintenance_makes_it(fresh_dsn: str) -> None:
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        _miss_partitions(conn)


def _miss_partitions(conn: Connection) -> None:
    engine = Engine(conn)
    day = (datetime.now(UTC) + timedelta(days=2)).strftime("%Y%m%d")
    conn.execute(sql.SQL("drop table {}").format(sql.Identifier("pgfifo", f"history_{day}")))
    found = only(conn, "partition")
    assert (found.severity, found.subject) == ("warning", f"history_{day}")
    mend(conn, found)
    assert findings(conn, "partition") == []
    # Days that were missed stay with the default partition.
    engine.advance("20 days")
    engine.maintain()
    assert [each.severity for each in findings(conn, "partition")] == ["info", "info"]


def test_dead_rows_that_nobody_removes_are_found(conn: Connection, connect: Connect) -> None:
    conn.execute("alter table pgfifo.marks set (autovacuum_enabled = off)")
    try:
        assert only(conn, "bloat").detail == "autovacuum is off for marks."
        conn.execute("insert into pgfifo.marks select 1, n, 1 from generate_series(1, 60000) n")
        conn.execute("delete from pgfifo.marks")
        wait_for(lambda: len(findings(conn, "bloat")) == 2, message="the statistics of the tables")
        dead = next(each for each in findings(conn, "bloat") if each.data.get("dead"))
        assert "marks has 60,000 dead rows beside 0 living ones" in dead.detail
        mend(conn, dead)
        wait_for(lambda: len(findings(conn, "bloat")) == 1, message="the statistics of the tables")
    finally:
        conn.execute("alter table pgfifo.marks reset (autovacuum_enabled)")
    assert findings(conn, "bloat") == []


# The server


def test_settings_that_break_promises_are_found(conn: Connection, connect: Connect) -> None:
    query = "select severity from pgfifo.doctor() where kind = 'setting' and subject = %s"
    assert conn.execute(query, ["fsync"]).fetchall() == [("critical",)], "the tests' server is thrown away"
    changed = {"autovacuum": "warning", "track_counts": "warning", "fsync": "critical"}
    try:
        for name in changed:
            conn.execute(f"alter system set {name} = {'on' if name == 'fsync' else 'off'}")
        conn.execute("select pg_reload_conf()")
        wait_for(lambda: conn.execute("show fsync").fetchone() == ("on",), message="the settings")
        assert conn.execute(query, ["fsync"]).fetchall() == []
        for name in ("autovacuum", "track_counts"):
            assert conn.execute(query, [name]).fetchall() == [(changed[name],)], name
    finally:
        for name in changed:
            conn.execute(f"alter system reset {name}")
        conn.execute("select pg_reload_conf()")
        wait_for(lambda: conn.execute("show fsync").fetchone() == ("off",), message="the settings")
    assert conn.execute(query, ["autovacuum"]).fetchall() == []
    # Where a database may have its own value, the mend is one statement, without rights of the server.
    idle = "idle_in_transaction_session_timeout"
    mends = conn.execute("select mend from pgfifo.doctor() where subject = %s", [idle]).fetchall()[0][0]
    conn.execute(mends.encode())
    assert connect().execute(query, [idle]).fetchall() == []
    conn.execute(f"alter database {conn.info.dbname} reset {idle}".encode())
    careless = connect(options="-c synchronous_commit=off -c default_transaction_read_only=on")
    assert careless.execute(query, ["synchronous_commit"]).fetchall() == [("info",)]
    assert careless.execute(query, ["default_transaction_read_only"]).fetchall() == [("warning",)]
    careful = connect(options="-c idle_in_transaction_session_timeout=60000")
    assert careful.execute(query, [idle]).fetchall() == []
    assert conn.execute(query, [idle]).fetchall() == [("info",)]


def test_more_workers_than_there_are_connections_for_are_found(conn: Connection, engine: Engine) -> None:
    room = int(engine.one("select current_setting('max_connections')::integer")) - 3
    workers = [engine.worker("other") for _ in range((room + 2) // 3)]
    found = only(conn, "connections")
    assert found.severity == "warning"
    assert found.data["workers"] == len(workers)
    for worker in workers:
        engine.one("select pgfifo.worker_stop(%s)", worker)
    assert findings(conn, "connections") == []


def test_what_check_finds_is_in_it(conn: Connection, engine: Engine, fifo: Client) -> None:
    engine.worker()
    engine.enqueue()
    conn.execute("update pgfifo.ledger set waiting = waiting + 1")
    found = findings(conn, "check", check=True)
    assert {each.severity for each in found} == {"critical"}
    assert {each.subject for each in found} == {"deploy"}
    assert found[0].mend == "pgfifo check --repair"
    assert findings(conn, "check") == [], "it was not asked for"
    fifo.check(repair=True)
    assert findings(conn, "check", check=True) == []


# Roles


@contextmanager
def role(conn: Connection, *may: str) -> Iterator[str]:
    """A role that can log in."""
    conn.execute("create role onlooker login")
    try:
        for each in may:
            conn.execute("select pgfifo.grant_role(%s, 'onlooker')", [each])
        yield "onlooker"
    finally:
        conn.execute("drop owned by onlooker; drop role onlooker")


def test_an_observer_is_told_what_he_may_not_see(conn: Connection, connect: Connect) -> None:
    conn.execute("select pgfifo.enqueue('deliver', '{}', 'ann')")
    holder = connect(autocommit=False)
    holder.execute("select pgfifo.enqueue('deliver', '{\"secret\": 42}', 'ann')")
    blocked = connect()
    with role(conn, "observer") as name:
        with connect(user=name) as onlooker:
            assert findings(onlooker, "producer") == [], "since when, he may not see, and nobody waits"
            waiting = in_background(lambda: blocked.execute("select pgfifo.enqueue('deliver', '{}', 'ann')"))
            wait_until_blocked(conn, blocked.info.backend_pid)
            found = only(onlooker, "producer")
            assert found.data["pid"] == holder.info.backend_pid
            assert "since when you may not see" in found.detail
            assert "secret" not in json.dumps(found.data) + found.detail
            rights = only(onlooker, "rights")
            assert (rights.severity, rights.subject) == ("info", name)
            mend(conn, rights)
            assert "secret" in only(onlooker, "producer").detail
            assert findings(onlooker, "rights") == []
        holder.rollback()
        waiting.result()


def test_a_role_that_may_not_look_is_told_who_lets_it(conn: Connection, cli: CommandLine, dsn: str) -> None:
    with role(conn, "producer") as name:
        cli.use(make_conninfo(dsn, user=name))
        said = cli("doctor")
        assert said.code == 1
        assert "permission denied" in said.err
        assert "pgfifo roles grant observer onlooker" in said.err
        said = cli("doctor", "--crit-length", 5)
        assert said.code == 3
        assert said.out.startswith("PGFIFO UNKNOWN - permission denied")


# The command


SKIPPED = ("--skip", "setting", "--skip", "clock", "--skip", "partition")


def test_the_command_says_what_it_means_what_mends_it_and_ends_with_1(
    cli: CommandLine, engine: Engine
) -> None:
    assert cli.ok("doctor", *SKIPPED).err == "Nothing is wrong.\n"
    engine.enqueue("deliver")
    said = cli("doctor", *SKIPPED)
    assert said.code == 1
    assert said.out.splitlines()[:1] == ["WARNING   action: deliver"]
    assert "  Mend: pgfifo worker … --action deliver" in said.out.splitlines()
    assert said.err == "1 warning.\n"
    [found] = json.loads(cli("doctor", "--json", *SKIPPED).out)
    assert found.keys() == {"severity", "kind", "subject", "detail", "meaning", "mend", "data"}
    assert cli.ok("doctor", "--skip", "action", *SKIPPED).err == "Nothing is wrong.\n"
    engine.worker("deliver")
    assert cli.ok("doctor", *SKIPPED).err == "Nothing is wrong.\n"


def test_what_is_worth_knowing_does_not_fail_it(cli: CommandLine, engine: Engine) -> None:
    engine.worker()
    engine.enqueue()
    engine.pause()
    said = cli.ok("doctor", *SKIPPED)
    assert said.out.startswith("INFO      paused: deploy\n")
    assert said.err == "1 note.\n"


def test_who_has_locked_a_table_is_the_finding_and_is_not_waited_for(
    cli: CommandLine, conn: Connection, connect: Connect
) -> None:
    holder = connect(autocommit=False, application_name="migration")
    for table in ("pgfifo.lanes", "pgfifo.installation"):
        holder.execute(f"lock table {table} in access exclusive mode".encode())
        said = cli("doctor", "--json", *SKIPPED)
        assert said.code == 1
        [found] = json.loads(said.out)
        assert (found["severity"], found["kind"]) == ("critical", "lock")
        assert table.removeprefix("pgfifo.") in found["subject"]
        assert found["data"]["pid"] == holder.info.backend_pid
        assert f"pid {holder.info.backend_pid} (migration, role " in found["detail"]
        assert ", since " in found["detail"]
        assert f"lock table {table}" in found["detail"]
        said = cli("doctor", "--crit-length", 10)
        assert said.code == 2
        assert said.out.startswith(f"PGFIFO CRITICAL - pid {holder.info.backend_pid} (migration, role ")
        holder.rollback()
    reader = connect(autocommit=False)
    reader.execute("select count(*) from pgfifo.lanes")
    second = connect(autocommit=False)
    waits = in_background(lambda: second.execute("lock table pgfifo.lanes in access exclusive mode"))
    wait_until_blocked(conn, second.info.backend_pid)
    said = cli("doctor", *SKIPPED)
    assert said.code == 1
    assert f"waits for pid {reader.info.backend_pid} to lock lanes against everybody" in said.out
    assert f"Mend: select pg_terminate_backend({reader.info.backend_pid});" in said.out
    second.cancel()
    with pytest.raises(psycopg.errors.QueryCanceled):
        waits.result()
    reader.rollback()
    assert cli.ok("doctor", *SKIPPED).err == "Nothing is wrong.\n"


def test_hostile_names_are_printed_as_text(cli: CommandLine, engine: Engine) -> None:
    engine.enqueue("a[red]|\u202e", group="\x1b[2J")
    said = cli("doctor", *SKIPPED)
    assert "\x1b" not in said.all
    assert "a[red]|\\u202e" in said.out
    line = cli("doctor", *SKIPPED, "--warn-length", 1).out
    assert line.count("|") == 1
    assert "\x1b" not in line


def test_a_schema_that_does_not_fit_is_the_finding(
    cli: CommandLine, conn: Connection, empty_dsn: str, dsn: str
) -> None:
    for column, number, mended_by in (
        ("version", 0, "pgfifo upgrade"),
        ("min_client", 99, "pip install --upgrade pgfifo"),
    ):
        conn.execute(f"update pgfifo.installation set {column} = {number}")
        said = cli("doctor", "--json")
        assert said.code == 4
        [found] = json.loads(said.out)
        assert (found["severity"], found["kind"], found["subject"]) == ("critical", "schema", "version")
        assert found["mend"].endswith(mended_by)
        conn.execute("update pgfifo.installation set version = 1, min_client = 1")
    conn.execute("update pgfifo.installation set version = 2")
    said = cli.ok("doctor", *SKIPPED)
    assert said.out.startswith("INFO      schema: version 2\n")
    conn.execute("update pgfifo.installation set version = 1")
    cli.use(empty_dsn)
    said = cli("doctor")
    assert said.code == 4
    assert said.out.startswith("CRITICAL  schema: missing\n")
    assert "install" in said.out
    said = cli("doctor", "--warn-length", 1)
    assert said.code == 2
    assert said.out.startswith("PGFIFO CRITICAL - pgfifo is not installed")


def test_this_machine_s_clock_is_compared_with_the_server_s(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    monkeypatch.setattr("pgfifo.cli.doctor.time.time", lambda: real() - 90)
    said = cli.ok("doctor", "--skip", "setting", "--skip", "partition").out
    # To the half of what asking takes.
    assert re.search(r"this machine's clock is 1m (2\d|3\d)s behind the server's", said), said
    monkeypatch.setattr("pgfifo.cli.doctor.time.time", real)
    assert "clock" not in cli.ok("doctor", "--skip", "setting", "--skip", "partition").out


def test_as_a_plugin_it_prints_one_line_and_ends_with_the_usual_codes(
    cli: CommandLine, engine: Engine
) -> None:
    engine.worker("deliver", "deploy", lease="1 hour")
    engine.enqueue_many("deliver", [{}] * 7)
    engine.enqueue_many("deploy", [{}] * 2)
    said = cli("doctor", *SKIPPED, "--warn-length", 8, "--crit-length", 10, "--warn-wait", "1h")
    assert said.code == 0
    assert re.fullmatch(
        r"PGFIFO OK - at most 7 wait in an action, for \w+ \| length=7;8;10;0 oldest_wait=[\d.]+s;3600;;0"
        r" waiting=9;;;0 active=0;;;0 critical_findings=0;;;0 warnings=0;;;0\n",
        said.out,
    )
    assert said.err == ""
    said = cli("doctor", *SKIPPED, "--warn-length", 7, "--crit-length", 8)
    assert (said.code, said.out[:36]) == (1, "PGFIFO WARNING - 7 wait in deliver |")
    said = cli("doctor", *SKIPPED, "--crit-length", 7)
    assert (said.code, said.out[:37]) == (2, "PGFIFO CRITICAL - 7 wait in deliver |")
    assert cli("doctor", *SKIPPED, "--crit-length", 7, "--action", "deploy").code == 0
    engine.advance("2 h")
    said = cli("doctor", *SKIPPED, "--crit-wait", "1h", "--skip", "worker", "--skip", "action")
    assert said.code == 2
    assert "one has waited for 2h" in said.out
    said = cli("doctor", *SKIPPED, "--crit-wait", "3h")
    assert said.code == 1
    assert (
        "PGFIFO WARNING - 4 warnings: action deliver, action deploy, maintenance rounds and 1 more"
        in said.out
    )


def test_as_a_plugin_it_says_unknown_where_it_could_not_look(cli: CommandLine, engine: Engine) -> None:
    engine.enqueue("deliver")
    for words in (
        ["--crit-length", 1, "--action", "delivery"],
        ["--warn-length", 2, "--crit-length", 1],
        ["--warn-wait", "2h", "--crit-wait", "1h"],
        ["--crit-length", 1, "--json"],
        ["--crit-length", 1, "--skip", "everything"],
    ):
        said = cli("doctor", *words)
        assert said.code == 3, said
        assert said.out.startswith("PGFIFO UNKNOWN - ")
        assert said.out.count("\n") == 1
    cli.use("postgresql://nobody@127.0.0.1:1/none")
    said = cli("doctor", "--crit-length", 1)
    assert said.code == 2
    assert said.out.startswith("PGFIFO CRITICAL - ")
    assert cli("doctor").code == 3, "the command line's own code for a server that cannot be reached"


def test_what_is_not_asked_for_properly_is_refused(cli: CommandLine, fifo: Client) -> None:
    assert cli("doctor", "--skip", "everything").code == 2
    assert cli("doctor", "--action", "deploy").code == 2
    assert cli("doctor", "--open-after", "soon").code == 2
    with pytest.raises(psycopg.Error, match="must not be negative"):
        fifo._rows("select * from pgfifo.doctor(interval '-1 s')", (), tuple)


# The page


def test_the_page_tells_of_each_kind_of_finding() -> None:
    kinds = set(get_args(DiagnosisKind))
    assert {row[0] for row in table_rows(section("docs/doctor.md", "Findings"))} == kinds
