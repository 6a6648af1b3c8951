"""A restored copy of a database begins paused, and no token of before is given out a second time."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import pgfifo
from pgfifo import Actions, Execution
from pgfifo.embedded import PrivateServer
from tests.support.cli import CommandLine
from tests.support.database import Databases, in_background, wait_until_blocked
from tests.support.sqlworker import SqlWorker, advance, enqueue, policy, value, violations

Connection = psycopg.Connection[Any]

PAUSED = "select paused from pgfifo.queue_stats where action = 'a'"
TOKEN = "select token from pgfifo.work(%s, array['a'], 1) where kind = 'start'"
COPIES = "select detail from pgfifo.check() where kind = 'copy'"
HOME = "select database_id, table_id, timeline, system_id, written_by from pgfifo._home"


@pytest.fixture
def original(fresh_dsn: str) -> Iterator[Connection]:
    """A database where no time can be moved: so it could be anybody's."""
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        conn.execute("update pgfifo.installation set testing = false")
        yield conn


@pytest.fixture
def used(original: Connection) -> SqlWorker:
    """Three are enqueued there, and a worker has one of them."""
    for _ in range(3):
        enqueue(original, "a")
    worker = SqlWorker(original, "a")
    assert value(original, TOKEN, worker.id) == "1-1-1"
    return worker


Copy = Callable[[], Connection]


@pytest.fixture(params=["dump", "template"])
def copied(
    request: pytest.FixtureRequest, server: PrivateServer, databases: Databases, original: Connection
) -> Iterator[Copy]:
    """Restore a dump of the original, or use it as a template."""
    opened: list[Connection] = []
    name = original.info.dbname
    if request.param == "dump" and not server.has("pg_dump"):
        pytest.skip("this distribution of PostgreSQL has no pg_dump")

    def copy() -> Connection:
        if request.param == "dump":
            made = databases.create()
            server.run("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", made, stdin=server.run("pg_dump", name))
        else:
            original.close()
            made = databases.create(name)
        opened.append(psycopg.connect(server.dsn(made), autocommit=True))
        return opened[-1]

    yield copy
    for conn in opened:
        made = conn.info.dbname
        conn.close()
        databases.drop(made)


def test_a_restored_copy_starts_nothing_until_it_is_resumed(
    original: Connection, used: SqlWorker, copied: Copy
) -> None:
    name = original.info.dbname
    copy = copied()
    [(said,)] = copy.execute(COPIES).fetchall()
    assert f"a copy of {name} " in said, "nobody is told before the first worker comes"
    explained = value(copy, "select data from pgfifo.explain(3)")
    assert "copy" in explained["reasons"]
    assert f"a copy of {name} " in explained["why"]
    zombie = SqlWorker(copy, "a")
    for worker in (used.id, zombie.id):
        assert copy.execute(TOKEN, [worker]).fetchall() == [], "what was meant for another place was started"
    assert value(copy, PAUSED)
    explained = value(copy, "select data from pgfifo.explain(3)")
    assert [(each["scope"], each["by"]) for each in explained["paused"]] == [("everything", "pgfifo")]
    assert f"copy of database {name}" in value(copy, "select explanation from pgfifo.explain(3)")
    enqueue(copy, "a")  # is taken, and waits
    assert copy.execute("select pgfifo.resume('a')").fetchone() == (False,)
    assert value(copy, PAUSED), "to resume an action is not to say that all may run here"

    assert value(copy, "select pgfifo.resume_everything()")
    assert copy.execute(COPIES).fetchall() == []
    assert not value(copy, PAUSED)
    copy.execute("update pgfifo.installation set testing = true")  # to move its clock
    for _ in range(35):  # what ran elsewhere comes back when its worker's lease is over, and its backoff
        advance(copy, 1.1)
        copy.execute("select pgfifo.maintain()")
        copy.execute("select from pgfifo.heartbeat(%s)", [zombie.id])
    assert value(copy, TOKEN, zombie.id) == "2-1-2"
    zombie.work(0, [{"id": 1, "attempt": 2, "outcome": "succeeded"}])
    assert [start.id for start in zombie.drain()] == [2, 3, 4]
    assert violations(copy) == []
    # It is a database of its own now, whoever comes.
    with psycopg.connect(copy.info.dsn, autocommit=True, password=copy.info.password or None) as again:
        assert SqlWorker(again, "a").work() == []
        assert not value(again, PAUSED)
        assert value(again, "select epoch from pgfifo.schema_info()") == 2


def test_a_restored_copy_can_be_resumed_before_the_first_worker_comes(used: SqlWorker, copied: Copy) -> None:
    copy = copied()
    assert value(copy, "select pgfifo.resume_everything()")
    assert copy.execute(COPIES).fetchall() == []
    enqueue(copy, "b")
    worker = SqlWorker(copy, "b")
    assert not value(copy, PAUSED), "the first worker found a copy that had been resumed"
    assert len(worker.work()) == 1
    assert not value(copy, "select pgfifo.resume_everything()")


def test_the_original_goes_on(original: Connection, used: SqlWorker, server: PrivateServer) -> None:
    name, home = original.info.dbname, original.execute(HOME).fetchone()
    original.execute(f'alter database "{name}" connection limit 50')
    with psycopg.connect(server.dsn(name), autocommit=True) as again:
        used.conn = again
        used.work(0, [{"id": 1, "attempt": 1, "outcome": "succeeded"}])
        assert [start.id for start in used.drain()] == [2, 3]
        assert again.execute(HOME).fetchone() == home
        assert again.execute("select severity, kind from pgfifo.check()").fetchall() == []


def test_a_copy_of_what_no_worker_has_ever_served_is_ready_for_use(
    original: Connection, databases: Databases, server: PrivateServer
) -> None:
    """A template database, say, from which those of an application are made."""
    policy(original, "a", max_concurrent=2)
    template = original.info.dbname
    original.close()
    name = databases.create(template)
    with psycopg.connect(server.dsn(name), autocommit=True) as copy:
        enqueue(copy, "a")
        started = copy.execute(TOKEN, [SqlWorker(copy, "a").id]).fetchall()
    databases.drop(name)
    assert started == [("1-1-1",)]


@pytest.mark.parametrize("same_files", [True, False])
def test_another_cluster_is_a_copy_unless_its_files_are_the_old_ones(
    original: Connection, used: SqlWorker, server: PrivateServer, same_files: bool
) -> None:
    """pg_upgrade makes a new cluster out of the old one's files; a restore may hit upon the same oids."""
    written = ", written_by = default" if same_files else ""
    original.execute(f"update pgfifo._home set system_id = system_id + 1{written}")
    with psycopg.connect(server.dsn(original.info.dbname), autocommit=True) as upgraded:
        worker = SqlWorker(upgraded, "a")
        used.conn = upgraded
        used.work(0, [{"id": 1, "attempt": 1, "outcome": "succeeded"}])
        upgraded.execute("select from pgfifo.heartbeat(%s)", [worker.id])
        expected = [("2-2-1",)] if same_files else []
        assert upgraded.execute(TOKEN, [worker.id]).fetchall() == expected
        assert value(upgraded, PAUSED) != same_files


def test_sessions_that_come_at_once_start_nothing_before_a_copy_is_noticed(
    original: Connection, used: SqlWorker, server: PrivateServer
) -> None:
    dsn = server.dsn(original.info.dbname)
    original.execute("update pgfifo._home set table_id = 1")  # that of another database
    with psycopg.connect(dsn) as first, psycopg.connect(dsn, autocommit=True) as second:
        first.execute("select from pgfifo.heartbeat(%s)", [used.id])  # has noticed, and is not through
        claim = in_background(lambda: second.execute(TOKEN, [used.id]).fetchall())
        wait_until_blocked(original, second.info.backend_pid)
        first.commit()
        assert claim.result() == [], "started beside the session that was just pausing everything"
        assert value(original, "select epoch from pgfifo.schema_info()") == 2, "noticed twice"


def test_no_start_commits_after_the_pause_of_everything(conn: Connection, connect: Any) -> None:
    for action in ("a", "b"):
        enqueue(conn, action)
    claiming, pausing = connect(autocommit=False), connect()
    worker = SqlWorker(conn, "a", "b")
    worker.conn = claiming
    assert len(worker.work()) == 1
    paused = in_background(lambda: value(pausing, "select pgfifo.pause_everything('flood')"))
    wait_until_blocked(conn, pausing.info.backend_pid)
    claiming.commit()
    assert paused.result()
    worker.conn = conn
    assert worker.work() == []
    enqueue(conn, "new")
    assert SqlWorker(conn, "new").work() == [], "an action that comes later is started"
    conn.execute("select pgfifo.pause('b')")
    assert not value(conn, "select pgfifo.pause_everything()"), "paused twice"
    assert value(conn, "select pgfifo.resume_everything()")
    assert not value(conn, "select pgfifo.resume_everything()")
    assert value(conn, "select paused_reason is null and paused from pgfifo.queue_stats where action = 'b'")
    assert worker.work() == []
    assert value(conn, "select pgfifo.resume('b')")
    assert len(worker.work()) == 1
    assert violations(conn) == []


def test_the_command_line_resumes_a_restored_copy(
    original: Connection,
    used: SqlWorker,
    server: PrivateServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original.execute("update pgfifo._home set table_id = 1, database_name = 'production'")
    original.execute("select pgfifo.finish(1, 1, 'succeeded')")
    dsn = server.dsn(original.info.dbname)
    actions = Actions()
    ran: list[str] = []

    @actions.action("a")
    def _handle(execution: Execution) -> None:
        ran.append(execution.token)

    cli = CommandLine(dsn, monkeypatch, capsys)
    said = cli("check")
    assert (said.code, "is a copy of production" in said.out) == (1, True), said
    pgfifo.Worker(dsn, actions, until_empty=True).run()
    assert ran == []
    said = cli.ok("resume", "a")
    assert "Everything is still paused (this is a copy of database production" in said.err
    assert "pgfifo resume --everything" in said.err
    assert cli("resume", "a", "--everything").code == 2
    assert cli("pause").code == 2
    cli.ok("pause", "a", "--reason", "mine")
    said = cli.ok("resume", "--everything")
    assert "Resumed everything." in said.err
    assert "Still paused by themselves: a." in said.err
    assert said.undo == [["pause", "--everything"]]
    cli.ok("resume", "a")
    pgfifo.Worker(dsn, actions, until_empty=True, poll_interval=0.05).run()
    assert ran == ["2-2-1", "2-3-1"]
    said = cli.ok("pause", "--everything", "--reason", "flood")
    assert said.undo == [["resume", "--everything"]]
    with pgfifo.Client(dsn) as fifo:
        assert not fifo.pause_everything()
        assert fifo.resume_everything()
        assert fifo.audit(what="pause")[0].detail == {"scope": "everything", "reason": "flood"}
