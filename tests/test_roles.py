"""Roles: who may call what, held against the catalog and tried by logging in as each of them."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

import pgfifo
from pgfifo import schema
from tests.support.cli import CommandLine
from tests.support.database import in_background, wait_for, wait_until_blocked
from tests.support.engine import Engine

Connection = psycopg.Connection[Any]
ROLES = ("producer", "worker", "observer", "admin")

FUNCTIONS = """
    select p.proname::text, p.oid from pg_proc p
    where p.pronamespace = 'pgfifo'::regnamespace and p.proname !~ '^_(role|may_enqueue)_'
"""
RELATIONS = """
    select c.relname::text, c.relkind::text from pg_class c
    where c.relnamespace = 'pgfifo'::regnamespace and c.relkind in ('v', 'r', 'p', 'S')
"""
CALLED_BY_VIEWS = {"_try_json", "_time", "_shown", "_rate_at", "_rate_allows"}
CALLED_BY_DOCTOR = {
    *("_doctor_settings", "_doctor_locks", "_doctor_snapshots", "_doctor_books", "_doctor_name"),
    *("_counted", "_number", "_moment", "_span", "_quoted"),
}
NOT_TO_BE_CALLED = {"_any_action"}  # the right to execute it says something, and that is all

_numbers = itertools.count(1)


@pytest.fixture
def owner(fresh_dsn: str) -> Iterator[Connection]:
    """The schema's owner, in a database of the test's own."""
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def role(owner: Connection) -> Iterator[Callable[..., str]]:
    """Makes roles that can log in, with what they are granted; they are gone after the test."""
    made: list[str] = []

    def make(*may: str, actions: tuple[str, ...] = (), name: str | None = None) -> str:
        made.append(name or f"test role {next(_numbers)}")
        owner.execute(sql.SQL("create role {} login").format(sql.Identifier(made[-1])))
        for each in may:
            owner.execute("select pgfifo.grant_role(%s, %s)", [each, made[-1]])
        for action in actions:
            owner.execute("select pgfifo.grant_enqueue(%s, %s)", [action, made[-1]])
        return made[-1]

    yield make
    for name in made:
        owner.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


@pytest.fixture
def login(fresh_dsn: str) -> Iterator[Callable[[str], Connection]]:
    """Connects as a role."""
    opened: list[Connection] = []

    def connect(name: str) -> Connection:
        opened.append(psycopg.connect(fresh_dsn, user=name, autocommit=True))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


def assigned(conn: Connection) -> dict[str, set[str]]:
    return {
        name: set(roles.split()) for name, roles in conn.execute("select * from pgfifo._rights()").fetchall()
    }


def public_names(conn: Connection) -> set[str]:
    functions = {name for name, _ in conn.execute(FUNCTIONS)}
    relations = {name for name, kind in conn.execute(RELATIONS) if kind == "v"}
    return {name for name in functions | relations if not name.startswith("_")} | {"audit"}


def allowed(conn: Connection, name: str) -> set[str]:
    """Return the names of functions that a role may execute, and of views that it may read."""
    functions = conn.execute(
        f"select f.proname from ({FUNCTIONS}) f where has_function_privilege(%s, f.oid, 'execute')", [name]
    )
    relations = conn.execute(
        f"select c.relname from ({RELATIONS}) c where c.relkind <> 'S'"
        " and has_table_privilege(%s, format('pgfifo.%%I', c.relname), 'select')",
        [name],
    )
    return {found for (found,) in functions} | {found for (found,) in relations}


def test_roles_each_public_function_and_view_is_assigned(conn: Connection) -> None:
    """Whoever adds one says in sql/internal/rights.sql whom it is for."""
    listed = [name for (name,) in conn.execute("select o_name from pgfifo._rights()").fetchall()]
    assert len(listed) == len(set(listed)), "assigned twice"
    called = CALLED_BY_VIEWS | CALLED_BY_DOCTOR
    assert set(listed) - called - NOT_TO_BE_CALLED == public_names(conn)
    words = {word for roles in assigned(conn).values() for word in roles}
    assert words == {"enqueue", "owner", *ROLES}
    assert all(roles == {"owner"} or "owner" not in roles for roles in assigned(conn).values())


@pytest.mark.parametrize("may", ROLES)
def test_roles_may_execute_what_they_are_assigned_and_nothing_else(
    owner: Connection, role: Callable[..., str], may: str
) -> None:
    expected = {
        name
        for name, roles in assigned(owner).items()
        if may in roles or (may == "admin" and "owner" not in roles)
    }
    assert allowed(owner, role(may)) == expected


def test_roles_that_enqueue_to_one_action_may_execute_no_more_than_that_takes(
    owner: Connection, role: Callable[..., str]
) -> None:
    expected = {name for name, roles in assigned(owner).items() if "enqueue" in roles}
    assert allowed(owner, role(actions=("deploy",))) == expected
    assert not any(name.startswith(("cancel", "import", "list")) for name in expected)


def test_roles_have_no_right_on_any_table_sequence_or_the_schema_itself(
    owner: Connection, role: Callable[..., str]
) -> None:
    name = role(*ROLES, actions=("deploy",))
    assert not owner.execute("select has_schema_privilege(%s, 'pgfifo', 'create')", [name]).fetchone()[0]  # type: ignore[index]
    for relation, kind in owner.execute(RELATIONS).fetchall():
        rights = (
            "usage, select, update"
            if kind == "S"
            else "insert, update, delete, truncate, references, trigger"
        )
        check = "has_sequence_privilege" if kind == "S" else "has_table_privilege"
        for right in rights.split(", "):
            query = f"select {check}(%s, format('pgfifo.%%I', %s::text), %s)"
            assert owner.execute(query, [name, relation, right]).fetchone() == (False,), (relation, right)
        if kind in ("r", "p") and relation != "audit":
            query = "select has_any_column_privilege(%s, format('pgfifo.%%I', %s::text), 'select')"
            assert owner.execute(query, [name, relation]).fetchone() == (False,), relation


def test_roles_nobody_may_anything_without_a_grant(owner: Connection, role: Callable[..., str]) -> None:
    assert allowed(owner, role()) == set()


def test_roles_producer_enqueues_and_cancels_and_cannot_claim_or_look(
    owner: Connection, role: Callable[..., str], login: Callable[[str], Connection]
) -> None:
    producer = Engine(login(role("producer")))
    assert producer.enqueue("deploy")
    kept = producer.enqueue("deploy")
    assert producer.cancel(kept)
    for query in (
        "select pgfifo.worker_start('w', 'h', 1, '{deploy}', 1)",
        "select pgfifo.work(1, '{deploy}', 1)",
        "select pgfifo.claim(1, '{deploy}')",
        "select pgfifo.finish(1, 1, 'succeeded')",
        "select pgfifo.set_policy('deploy', '{\"max_concurrent\": 9}')",
        "select payload from pgfifo.executions",
        "select pgfifo.list_executions('{}')",
        "select pgfifo.grant_role('admin', 'pg_monitor')",
        "select * from pgfifo._executions",
        "insert into pgfifo.marks values (1, 1, 1)",
        "select nextval('pgfifo.execution_ids')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            producer.rows(query)


def test_roles_worker_works_and_cannot_change_policies(
    owner: Connection, role: Callable[..., str], fresh_dsn: str
) -> None:
    """Its whole life, with progress and a completion, under a role that may only work."""
    name = role("worker")
    actions = pgfifo.Actions()
    with pgfifo.Client(fresh_dsn) as fifo:
        ids = [fifo.enqueue("deploy", {"n": n}).id for n in range(3)]
    dsn = make_conninfo(fresh_dsn, user=name)

    @actions.action("deploy", max_attempts=2)
    def deploy(execution: pgfifo.Execution) -> int:
        execution.progress(0.5, "half")
        with psycopg.connect(dsn) as conn:
            execution.complete(conn, {"id": execution.id})
        return execution.id

    pgfifo.Worker(dsn, actions, until_empty=True).run()
    with pgfifo.Client(fresh_dsn) as fifo:
        ended = owner.execute("select id, state, result from pgfifo.executions order by id").fetchall()
        assert ended == [(each, "succeeded", {"id": each}) for each in ids]
        assert fifo.check() == []
    with psycopg.connect(dsn, autocommit=True) as conn:
        for query in (
            "select pgfifo.set_policy('deploy', '{\"max_concurrent\": 9}')",
            "select pgfifo.override_policy('deploy', '{\"max_concurrent\": 9}', '1 h')",
            "select pgfifo.pause('deploy')",
            "select pgfifo.close('deploy')",
            "select pgfifo.finish_execution(1, 'succeeded')",
            "select pgfifo.enqueue('deploy')",
            "select pgfifo.raise_epoch()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(query)


def test_roles_observer_reads_every_view_also_where_something_is_overridden_and_shared(
    owner: Connection, role: Callable[..., str], login: Callable[[str], Connection]
) -> None:
    """What a view calls runs with its reader's rights; some of it is called only where there is a row."""
    engine = Engine(owner)
    engine.enqueue("deploy")
    for query in (
        'select pgfifo.set_policy(\'deploy\', \'{"rate": "5/s", "quota": "7/day UTC"}\')',
        "select pgfifo.override_policy('deploy', '{\"rate\": \"3/s\", \"max_concurrent\": 4}', '1 h')",
        'select pgfifo.set_shared_limit(\'api\', \'{"rate": "3/s", "actions": ["deploy"]}\')',
        "select pgfifo.set_schedule('nightly', 'deploy', '0 3 * * *')",
    ):
        engine.rows(query)
    engine.drain(engine.worker("deploy"))
    engine.enqueue("deploy")
    observer = login(role("observer"))
    for name, roles in assigned(owner).items():
        if "observer" in roles and owner.execute(
            "select to_regclass('pgfifo.' || %s)", [name]
        ).fetchone() != (None,):
            observer.execute(sql.SQL("select * from pgfifo.{}").format(sql.Identifier(name)))
    assert observer.execute("select max_concurrent from pgfifo.lane_stats").fetchall() == [(4,)]
    assert observer.execute("select name, rate from pgfifo.shared_limits").fetchall() == [("api", "3/s")]
    assert observer.execute(
        "select action, value from pgfifo.overrides where attribute = 'rate'"
    ).fetchall() == [("deploy", "3/s")]
    assert observer.execute("select count(*) from pgfifo.check()").fetchone() == (0,)
    assert observer.execute("select count(*) from pgfifo.explain(2)").fetchone() == (1,)
    with pytest.raises(pgfifo.NotPermitted, match="repair"):
        observer.execute("select pgfifo.check(true)")


def test_roles_a_team_enqueues_to_its_own_actions_only(
    owner: Connection, role: Callable[..., str], login: Callable[[str], Connection]
) -> None:
    name = role(actions=("deploy", "billing.invoice"))
    team = Engine(login(name))
    assert team.enqueue("deploy")
    assert team.enqueue("billing.invoice")
    for query in (
        "select pgfifo.enqueue('billing.refund')",
        "select pgfifo.enqueue_one('Deploy')",
        "select pgfifo.enqueue_many('other', array['{}'::jsonb])",
        "select pgfifo.enqueue(null)",
        "select pgfifo.enqueue('deploy\u200b')",
    ):
        with pytest.raises(pgfifo.NotPermitted) as caught:
            team.rows(query)
        assert (caught.value.role, caught.value.sqlstate) == (name, "QF026")
    assert owner.execute("select count(*) from pgfifo.actions").fetchone() == (2,), (
        "one was created all the same"
    )
    assert owner.execute("select pgfifo.revoke_enqueue('deploy', %s)", [name]).fetchone() == (True,)
    with pytest.raises(pgfifo.NotPermitted):
        team.enqueue("deploy")
    assert team.enqueue("billing.invoice")
    assert owner.execute("select pgfifo.revoke_enqueue('billing.invoice', %s)", [name]).fetchone() == (True,)
    assert allowed(owner, name) == set()


def test_roles_of_the_session_decide_whoever_owns_the_functions_in_between(
    owner: Connection, role: Callable[..., str], login: Callable[[str], Connection]
) -> None:
    """A role that is bound to one action is so behind a definer's function too, and after `set role`."""
    team, member = role(actions=("deploy",)), role()
    owner.execute(sql.SQL("grant {} to {}").format(sql.Identifier(team), sql.Identifier(member)))
    owner.execute(
        "create function public.by_way_of(text) returns bigint language sql security definer"
        " as 'select pgfifo.enqueue($1)'"
    )
    conn = login(member)
    for _ in range(2):
        assert conn.execute("select public.by_way_of('deploy')").fetchone()
        with pytest.raises(pgfifo.NotPermitted):
            conn.execute("select public.by_way_of('other')")
        with pytest.raises(pgfifo.NotPermitted):
            conn.execute("select pgfifo.enqueue('other')")
        conn.execute(sql.SQL("set role {}").format(sql.Identifier(team)))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("set role postgres")


def test_roles_workers_do_not_speak_for_those_of_another_role(
    owner: Connection, role: Callable[..., str], login: Callable[[str], Connection]
) -> None:
    """Ids and attempts can be guessed; so a worker and what it runs belong to the role that registered it."""
    Engine(owner).enqueue("deploy")
    mine, theirs = Engine(login(role("worker"))), login(role("worker"))
    worker = mine.worker("deploy")
    [row] = mine.claim(worker)
    for query in (
        "select pgfifo.work(%(worker)s, '{deploy}', 1)",
        "select pgfifo.heartbeat(%(worker)s, 99, '{}')",
        "select pgfifo.worker_relock(%(worker)s)",
        "select pgfifo.worker_stop(%(worker)s)",
        "select pgfifo.finish(%(id)s, 1, 'failed')",
        "select pgfifo.complete(%(id)s, 1)",
        "select pgfifo.release(%(id)s, 1)",
        "select pgfifo.slot_look(%(worker)s, %(id)s)",
        "select pgfifo.slot_leave(%(worker)s, %(id)s)",
    ):
        with pytest.raises(pgfifo.NotPermitted) as caught:
            theirs.execute(query, {"worker": worker, "id": row.id})
        assert caught.value.owner
    assert mine.rows("select pgfifo.finish(%s, 1, 'succeeded') ", row.id) == [("succeeded",)]
    # The owner of the schema, and an admin, may step in.
    Engine(owner).enqueue("deploy")
    [row] = mine.claim(worker)
    admin = login(role("admin"))
    assert admin.execute("select pgfifo.release(%s, %s)", [row.id, row.attempt]).fetchone() == ("returned",)


def test_roles_workers_of_two_roles_hold_slots_of_one_lane(
    fresh_dsn: str, owner: Connection, role: Callable[..., str]
) -> None:
    """Who leaves moves the other's on; who may only look can do neither."""
    with (
        pgfifo.Client(make_conninfo(fresh_dsn, user=role("worker"))) as mine,
        pgfifo.Client(make_conninfo(fresh_dsn, user=role("worker"))) as theirs,
        pgfifo.Client(make_conninfo(fresh_dsn, user=role("observer"))) as looking,
    ):

        def take() -> bool:
            with theirs.slot("deploy", timeout=30) as slot:
                return slot.held

        with mine.slot("deploy"):
            waiting = in_background(take)
            wait_for(lambda: len(looking.slots()) == 2, message="the other to wait")
            with pytest.raises(psycopg.errors.InsufficientPrivilege), looking.slot("deploy"):
                pass
        assert waiting.result()
    Engine(owner).assert_promises()


def test_roles_come_with_nobody_being_asked_for_createrole(
    empty_dsn: str, role: Callable[..., str], owner: Connection
) -> None:
    name = role()
    database = psycopg.conninfo.conninfo_to_dict(empty_dsn)["dbname"]
    owner.execute(
        sql.SQL("grant create on database {} to {}").format(
            sql.Identifier(str(database)), sql.Identifier(name)
        )
    )
    before = owner.execute("select count(*) from pg_roles").fetchone()
    with psycopg.connect(empty_dsn, user=name, autocommit=True) as conn:
        schema.install(conn)
        assert owner.execute("select count(*) from pg_roles").fetchone() == before
        with pytest.raises(pgfifo.NotPermitted, match="may not make roles") as caught:
            conn.execute("select pgfifo.create_roles()")
        assert "create role pgfifo_producer nologin" in (caught.value.hint or "")
        # Somebody with CREATEROLE made them: then its owner grants them what they are for.
        try:
            for each in ROLES:
                owner.execute(f"create role pgfifo_{each} nologin")
            assert conn.execute("select pgfifo.create_roles()").fetchone() == ([],)
            granted = conn.execute("select role, may from pgfifo.grants order by role").fetchall()
            assert granted == [(f"pgfifo_{each}", each) for each in sorted(ROLES)]
            schema.uninstall(conn)
            left = owner.execute("select count(*) from pg_roles where rolname like 'pgfifo\\_%'").fetchone()
            assert left == (4,), "roles are the whole server's: other databases may use them"
        finally:
            schema.uninstall(conn)
            for each in ROLES:
                owner.execute(f"drop role pgfifo_{each}")
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))


def test_roles_are_made_and_listed_and_taken_back_on_the_command_line(
    owner: Connection,
    role: Callable[..., str],
    fresh_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = role(name="team")
    cli = CommandLine(fresh_dsn, monkeypatch, capsys)
    assert cli("roles", "list").err.startswith("Nothing is granted")
    try:
        said = cli("roles", "create")
        assert said.code == 0
        assert "Made pgfifo_producer, pgfifo_worker, pgfifo_observer, pgfifo_admin." in said.err
        assert cli("roles", "create").err.startswith("Nothing to do")
        said = cli("roles", "grant", "enqueue", name, "--action", "deploy", "--action", "other")
        assert said.undo == [
            ["roles", "revoke", "enqueue", "team", "--action", "deploy", "--action", "other"]
        ]
        assert cli("roles", "grant", "enqueue", name, "--action", "deploy").err.startswith("Nothing to do")
        shown = cli("roles", "list", "--json")
        assert '{"role": "team", "may": "enqueue", "action": "deploy"}' in shown.out
        assert cli(*said.undo[0]).code == 0
        assert "team" not in cli("roles", "list").out
        assert cli("roles", "grant", "worker", name).undo == [["roles", "revoke", "worker", "team"]]
        assert cli("roles", "grant", "worker", name, "--action", "deploy").code == 2
        assert cli("roles", "grant", "enqueue", name).code == 2
        assert cli("roles", "grant", "king", name).code == 2
        assert cli("roles", "grant", "worker", "nobody at all").code == 2
        with pgfifo.Client(fresh_dsn) as fifo:
            assert {entry.what for entry in fifo.audit()} == {"grant", "revoke"}
    finally:
        for each in ROLES:
            owner.execute(f"drop owned by pgfifo_{each}; drop role pgfifo_{each}")


def test_roles_get_what_a_new_version_brings(owner: Connection, role: Callable[..., str]) -> None:
    name = role("worker", actions=("deploy",))
    before = allowed(owner, name)
    owner.execute(sql.SQL("revoke all on function pgfifo.work from {}").format(sql.Identifier(name)))
    owner.execute(sql.SQL("grant execute on function pgfifo.advance to {}").format(sql.Identifier(name)))
    owner.execute(schema.sql_text().encode())
    assert allowed(owner, name) == before
    assert owner.execute("select may, action from pgfifo.grants order by may").fetchall() == [
        ("enqueue", "deploy"),
        ("worker", None),
    ]


def test_roles_rights_go_with_the_role(owner: Connection, role: Callable[..., str]) -> None:
    """A role with rights here cannot be dropped unnoticed, and one that is made again begins with nothing."""
    name = role("observer", actions=("deploy",))
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        owner.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))
    owner.execute(sql.SQL("drop owned by {0}; drop role {0}; create role {0}").format(sql.Identifier(name)))
    assert allowed(owner, name) == set()
    assert owner.execute("select * from pgfifo.grants").fetchall() == []


def test_roles_that_own_the_schema_are_left_alone(owner: Connection) -> None:
    """To take rights from the owner would stop every function, since all of them run with his."""
    name = owner.execute("select current_user::text").fetchone()
    assert name
    for query in ("select pgfifo.revoke_role('worker', %s)", "select pgfifo.grant_role('worker', %s)"):
        with pytest.raises(pgfifo.InvalidValue, match="owns the schema"):
            owner.execute(query, name)
    assert Engine(owner).enqueue("deploy")


@pytest.mark.parametrize("call", ["grant_enqueue('deploy', %s)", "grant_role('worker', %s)"])
def test_roles_two_who_grant_take_turns(
    owner: Connection, role: Callable[..., str], fresh_dsn: str, call: LiteralString
) -> None:
    """PostgreSQL refuses two changes of one function's rights at once, with an internal error."""
    one, other = role(), role()
    owner.execute("select pgfifo.set_policy('deploy', '{}')")
    with psycopg.connect(fresh_dsn) as first, psycopg.connect(fresh_dsn, autocommit=True) as second:
        first.execute(f"select pgfifo.{call}", [one])
        waiting = in_background(lambda: second.execute(f"select pgfifo.{call}", [other]))
        wait_until_blocked(owner, second.info.backend_pid)
        first.commit()
        waiting.result()
    assert owner.execute("select count(*) from pgfifo.grants").fetchone() == (2,)
    with psycopg.connect(fresh_dsn) as conn:
        conn.execute("set transaction isolation level repeatable read")
        with pytest.raises(pgfifo.IsolationLevel, match="revoke_enqueue"):
            conn.execute("select pgfifo.revoke_enqueue('deploy', %s)", [one])


def test_roles_installed_by_others_the_schema_still_belongs_to_one(
    empty_dsn: str, role: Callable[..., str], owner: Connection
) -> None:
    """A superuser's functions in another's schema would call, with his rights, what the other may replace."""
    name = role()
    with psycopg.connect(empty_dsn, autocommit=True) as root:
        root.execute(sql.SQL("create schema pgfifo authorization {}").format(sql.Identifier(name)))
        for _ in range(2):
            with root.transaction():
                root.execute("set local search_path = public")
                root.execute(schema.sql_text().encode())
                # The transaction goes on as it was.
                assert root.execute(
                    "select current_user::text, current_setting('search_path')"
                ).fetchone() == (
                    "postgres",
                    "public",
                )
        owners = root.execute(
            "select distinct r.rolname from pg_roles r where r.oid in ("
            " select p.proowner from pg_proc p where p.pronamespace = 'pgfifo'::regnamespace union"
            " select c.relowner from pg_class c where c.relnamespace = 'pgfifo'::regnamespace)"
        ).fetchall()
        assert owners == [(name,)]
        schema.uninstall(root)
        root.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
