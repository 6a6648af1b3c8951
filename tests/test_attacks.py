"""Ways to get what was not granted: shadowed names, settings, SQL in texts, others' executions."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

import pgfifo
from pgfifo.schema import sql_text
from tests.support.calls import HOSTILE, Connection, functions, plausible
from tests.support.engine import Engine

MALLORY = "mallory the guest"
RELATIONS = "select relname::text from pg_catalog.pg_class where relnamespace = 'pgfifo'::regnamespace"


@pytest.fixture
def owner(fresh_dsn: str) -> Iterator[Connection]:
    """The schema's owner (here a superuser), in a database of the test's own."""
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def mallory(owner: Connection, fresh_dsn: str) -> Iterator[Callable[..., Connection]]:
    """Logs in as somebody who was granted something and who may create objects in a schema of his own."""
    name = sql.Identifier(MALLORY)
    owner.execute(sql.SQL("create role {} login").format(name))
    owner.execute(sql.SQL("create schema evil authorization {}").format(name))
    opened: list[Connection] = []

    def login(*may: str) -> Connection:
        for each in may:
            owner.execute("select pgfifo.grant_role(%s, %s)", [each, MALLORY])
        opened.append(psycopg.connect(fresh_dsn, user=MALLORY, autocommit=True))
        return opened[-1]

    yield login
    for each in opened:
        each.close()
    owner.execute(sql.SQL("drop schema evil cascade; drop owned by {0}; drop role {0}").format(name))


def fill(owner: Connection) -> dict[str, Any]:
    """Have something of everything there, and say what."""
    engine = Engine(owner)
    owner.execute('select pgfifo.set_policy(\'ship\', \'{"group_by": ["env"], "rate": "900/s"}\')')
    owner.execute("select pgfifo.declare_action('deploy')")
    owner.execute("select pgfifo.override_policy('deploy', '{\"max_concurrent\": 4}', '1 h')")
    owner.execute('select pgfifo.set_shared_limit(\'api\', \'{"rate": "900/s", "actions": ["deploy"]}\')')
    owner.execute("select pgfifo.set_schedule('api', 'deploy', '0 3 * * *')")
    owner.execute("select pgfifo.import_start('deploy', 'file', 'x')")
    owner.execute("select pgfifo.enqueue('ship', '{\"env\": \"a\"}')")
    first = engine.fill(5)[0]
    engine.enqueue_later("1 h")
    worker = engine.worker("deploy")
    engine.claim(worker, 2)
    return {
        "p_id": first,
        "p_ids": [first],
        "p_worker": worker,
        "p_attempt": 1,
        "p_import": 1,
        "p_to": MALLORY,
    }


def call_everything(conn: Connection, owner: Connection, known: dict[str, Any]) -> int:
    """Call each public function and read each view; return how many of the calls ended well."""
    well = 0
    # What there is is asked of the owner: a hostile path would be this test's own undoing.
    with psycopg.connect(owner.info.dsn) as catalog:
        calls = list(functions(catalog))
        views = [name for (name,) in catalog.execute(f"{RELATIONS} and relkind = 'v'".encode()).fetchall()]
    for function in calls:
        if function.name in ("raise_epoch", "advance", "create_roles"):
            continue
        try:
            function.call(conn, plausible(function, known))
        except (pgfifo.PgfifoError, psycopg.errors.InsufficientPrivilege):
            continue
        well += 1
    for view in views:
        if not view.startswith("_"):
            try:
                conn.execute(sql.SQL("select v::text from pgfifo.{} v").format(sql.Identifier(view)))
            except psycopg.errors.InsufficientPrivilege:
                continue
            well += 1
    return well


def plant(conn: Connection, words: set[str]) -> int:
    """Make functions and operators like PostgreSQL's own in schema evil, which note that they were called."""
    conn.execute("create sequence evil.called; grant usage on schema evil to public")
    conn.execute("grant usage on sequence evil.called to public")
    made = 0
    rows = conn.execute(
        "select p.proname::text, pg_catalog.pg_get_function_identity_arguments(p.oid),"
        " pg_catalog.format_type(p.prorettype, null) from pg_catalog.pg_proc p"
        " where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and not p.proretset"
        " and p.proname = any (%s) and p.prorettype <> 'internal'::regtype and p.provariadic = 0",
        [list(words)],
    ).fetchall()
    for name, arguments, returned in rows:
        body = "begin perform pg_catalog.nextval('evil.called'); return null; end"
        # Parameters without their names: some are keywords.
        types = ", ".join(
            part.split(" ", 1)[1] if part.startswith(("IN ", "OUT ")) else part
            for part in arguments.split(", ")
        )
        query = f"create function evil.{name}({types}) returns {returned} language plpgsql as $b$ {body} $b$"
        try:
            conn.execute(query.encode())
            made += 1
        except psycopg.Error:
            continue
    operators = conn.execute(
        "select o.oprname::text, o.oprleft::regtype::text, o.oprright::regtype::text,"
        " o.oprresult::regtype::text from pg_catalog.pg_operator o"
        " where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprkind = 'b'"
        " and o.oprleft = any (%(types)s::regtype[]) and o.oprright = any (%(types)s::regtype[])",
        {
            "types": [
                "text",
                "name",
                "int4",
                "int8",
                "numeric",
                "float8",
                "bool",
                "jsonb",
                "timestamptz",
                "interval",
                "oid",
            ]
        },
    ).fetchall()
    for number, (name, left, right, result) in enumerate(operators):
        function = f"evil.operator_{number}"
        conn.execute(
            f"create function {function}({left}, {right}) returns {result} language plpgsql as"
            f" $b$ begin perform pg_catalog.nextval('evil.called'); return null; end $b$".encode()
        )
        conn.execute(
            f"create operator evil.{name} (leftarg = {left}, rightarg = {right},"
            f" procedure = {function})".encode()
        )
        made += 1
    return made


def called(owner: Connection) -> bool:
    """Tell whether anything that was planted has been called."""
    return bool(owner.execute("select is_called from evil.called").fetchone() == (True,))


def test_attacks_nothing_of_the_callers_schema_is_called_by_anybody(
    owner: Connection, mallory: Callable[..., Connection]
) -> None:
    """What is in other schemas, first on the path, is not found, not by the schema's owner either."""
    words = set(re.findall(r"\b([a-z_0-9]+)\(", sql_text()))
    conn = mallory("producer", "worker", "observer", "admin")
    assert plant(conn, words) > 300
    known = fill(owner)
    for victim in (conn, owner):
        victim.execute("set search_path = evil, pg_catalog")
        assert call_everything(victim, owner, known) > 40
    owner.execute("reset search_path")
    assert not called(owner)
    conn.execute("set search_path = evil, pg_catalog")
    conn.execute("select 1 = 1")
    assert called(owner), "what was planted does not work: this test shows nothing"
    with owner.transaction():  # the installer's script neither
        owner.execute("select setval('evil.called', 1, false)")
        owner.execute("set local search_path = evil, pg_catalog")
        owner.execute(sql_text().encode())
    assert not called(owner)


def test_attacks_temporary_tables_of_the_same_names_are_not_found(
    owner: Connection, mallory: Callable[..., Connection]
) -> None:
    conn = mallory("producer", "worker", "observer", "admin")
    known = fill(owner)
    names = f"{RELATIONS} and relkind in ('r', 'p', 'v')"
    for (name,) in owner.execute(names.encode()).fetchall():
        conn.execute(sql.SQL("create temporary table {} (id int)").format(sql.Identifier(name)))
    conn.execute("create temporary table pg_class (id int); create temporary table pg_locks (id int)")
    conn.execute("create temporary table pg_proc (id int); create temporary table pg_roles (id int)")
    conn.execute("create domain pg_temp.text as int; create domain pg_temp.jsonb as int")
    conn.execute("set search_path = pg_temp, pg_catalog")
    query = "select pgfifo.enqueue('deploy', '{}'::pg_catalog.jsonb)"
    assert conn.execute(query.encode()).fetchone()
    conn.execute("set search_path = pg_catalog, pg_temp")
    assert call_everything(conn, owner, known) > 40
    assert [each for each in Engine(owner).check() if each[0] == "violation"] == []


def test_attacks_by_casts_run_as_the_caller_before_the_function_does(
    owner: Connection, mallory: Callable[..., Connection]
) -> None:
    """A cast needs a type of one's own; then it is the caller's own code, with the caller's own rights."""
    conn = mallory("producer")
    conn.execute("create type evil.trick as (t text)")
    conn.execute(
        "create function evil.untrick(evil.trick) returns text language sql"
        " as $$ select 'as_' || replace(current_user, ' ', '_') $$"
    )
    conn.execute("create cast (evil.trick as text) with function evil.untrick(evil.trick) as implicit")
    conn.execute("select pgfifo.enqueue(row('deploy')::evil.trick, '{}')")
    assert owner.execute("select name from pgfifo.actions").fetchall() == [("as_mallory_the_guest",)]


SETTINGS = [
    ("standard_conforming_strings", "off"),
    ("transform_null_equals", "on"),
    ("array_nulls", "off"),
    ("IntervalStyle", "sql_standard"),
    ("DateStyle", "German"),
    ("TimeZone", "Pacific/Kiritimati"),
    ("extra_float_digits", "-15"),
    ("bytea_output", "escape"),
    ("quote_all_identifiers", "on"),
    ("xmloption", "document"),
    ("default_transaction_read_only", "off"),
    ("row_security", "off"),
    ("plan_cache_mode", "force_custom_plan"),
    ("plpgsql.extra_errors", "all"),
    ("plpgsql.check_asserts", "off"),
    ("enable_indexscan", "off"),
    ("synchronous_commit", "off"),
    ("pgfifo.notify", "off"),
    ("pgfifo.actor", "'; drop table pgfifo.audit; --"),
    ("pgfifo.before", '{"role": "postgres"}'),
]


def test_attacks_by_settings_of_the_session_change_no_answer(
    owner: Connection, mallory: Callable[..., Connection]
) -> None:
    """A function's text is read under its caller's settings; none of them may change what it means."""
    known = fill(owner)
    queries = [
        "select pgfifo.enqueue('a\\b'''), pgfifo.group_text('ship', '{\"env\": \"a\\\\\\\"b\"}')",
        "select pgfifo.format_group('{\"env\":\"a b\"}'), pgfifo.group_text('ship', '{\"env\": 1.10}')",
        "select attribute, new from pgfifo.set_policy('deploy', '{\"rate\": \"5/2.5min\"}')",
        "select attribute, new from pgfifo.set_policy('deploy', '{\"quota\": \"7/day UTC\"}')",
        "select attribute, new from pgfifo.set_policy('deploy', '{\"backoff_base\": \"1:30:00\"}')",
        "select attribute, new from pgfifo.set_policy('deploy', '{\"timeout\": 0.1}')",
        "select attribute, value from pgfifo.effective_policy('deploy') order by 1",
        "select attribute, value from pgfifo.overrides order by 1",
        "select name, rate from pgfifo.shared_limits",
        "select pgfifo.export_policies()",
        "select action, queue_length, active_count from pgfifo.lane_stats order by 1",
        "select kind, lane from pgfifo.check()",
        "select pgfifo.enqueue('deploi_')",
        "select pgfifo.pause('depl%')",
        'select count(*) from pgfifo.list_executions(\'{"enqueued_since": "2020-01-02T00:00:00Z"}\')',
    ]
    answers: list[list[object]] = []
    for some in ([], SETTINGS[:6], SETTINGS[6:12], SETTINGS[12:]):
        # Anew each time: plans and functions are kept by sessions.
        conn = mallory("producer", "worker", "observer", "admin")
        for name, value in some:
            conn.execute("select set_config(%s, %s, false)", [name, value])
        answers.append([_ask(conn, query) for query in queries])
        assert answers[-1] == answers[0], some
        conn.close()
    conn = mallory()
    for name, value in SETTINGS:
        conn.execute("select set_config(%s, %s, false)", [name, value])
    assert call_everything(conn, owner, known) > 40
    assert [each for each in Engine(owner).check() if each[0] == "violation"] == []


def _ask(conn: Connection, query: str) -> object:
    """Return what a query says, or why not; ids, which differ each time, left out."""
    literals = re.findall(r"'((?:[^']|'')*)'", query)
    asked = re.sub(r"'(?:[^']|'')*'", "%s", query.replace("%", "%%"))
    values = [literal.replace("''", "'") for literal in literals]
    try:
        with conn.transaction(force_rollback=True):
            rows = conn.execute(asked.encode(), values).fetchall()
    except psycopg.Error as error:
        return error.sqlstate, error.diag.message_primary
    return [[each for each in row if not isinstance(each, int)] for row in rows]


def test_attacks_settings_that_would_lift_checks_are_not_for_everybody(
    mallory: Callable[..., Connection],
) -> None:
    conn = mallory("producer", "worker", "observer", "admin")
    for query in (
        "set session_replication_role = replica",
        "set role postgres",
        "set session authorization postgres",
        "select set_config('role', 'postgres', false)",
        "alter function pgfifo.enqueue reset search_path",
        "create or replace function pgfifo._now() returns timestamptz language sql as 'select now()'",
        "create table pgfifo.mine (id int)",
        "create function pgfifo.mine() returns int language sql as 'select 1'",
        "create rule mine as on delete to pgfifo._executions do instead nothing",
        "alter table pgfifo.audit disable trigger all",
        "copy pgfifo.audit to program 'true'",
        "truncate pgfifo.audit",
        "delete from pgfifo.audit",
        "comment on schema pgfifo is 'mine'",
        "drop function pgfifo.enqueue",
        "grant usage on schema pgfifo to public",
        "select pgfifo.grant_role('admin', current_user)",
        "select pgfifo.advance('1 h')",
        "select pgfifo.raise_epoch()",
        "select pgfifo._append(1)",
    ):
        try:
            conn.execute(query.encode())
        except psycopg.errors.InsufficientPrivilege:
            continue
        except psycopg.Error as error:
            raise AssertionError(f"{query}: {error}") from error
        granted = conn.execute("select has_schema_privilege('public', 'pgfifo', 'usage')").fetchone()
        assert query.startswith("grant"), f"{query} was let through"  # PostgreSQL warns, and grants nothing
        assert granted == (False,)


def test_attacks_sql_in_each_text_argument_of_each_function_stays_text(
    owner: Connection, mallory: Callable[..., Connection]
) -> None:
    """Argument by argument: each gets texts that would do something if they were ever run."""
    conn = mallory("producer", "worker", "observer", "admin")
    known = fill(owner)
    tables = "select count(*) from pg_class where relnamespace = 'pgfifo'::regnamespace"
    before = owner.execute(tables.encode()).fetchone()
    tried = 0
    for function in functions(conn):
        if function.name in ("create_roles", "advance"):
            continue
        caller = owner if function.name.startswith(("grant", "revoke", "raise")) else conn
        for parameter in function.parameters:
            if parameter.type.removesuffix("[]") not in ("text", "jsonb"):
                continue
            for each in (HOSTILE * 2)[tried % len(HOSTILE) :][:3]:
                value: Any = each
                if parameter.type.startswith("jsonb"):
                    value = json.dumps({each: each, "action": each})
                if parameter.type.endswith("[]"):
                    value = [value]
                arguments = plausible(function, known) | {parameter.name: value}
                tried += 1
                try:
                    with caller.transaction(force_rollback=True):
                        function.call(caller, arguments)
                except pgfifo.PgfifoError:
                    continue
                except psycopg.Error as error:
                    # A text for a type of its own, which PostgreSQL has refused to read before our code ran.
                    readable = error.diag.context is None and error.sqlstate in ("22P02", "22007")
                    wrong = function.name == "work" and error.sqlstate in ("22023", "22P02")
                    if not readable and not wrong:
                        pytest.fail(f"{function.name}({parameter.name} => {each!r}): {error}")
    assert tried > 300
    assert owner.execute(tables.encode()).fetchone() == before
    assert [each for each in Engine(owner).check() if each[0] == "violation"] == []


def test_attacks_with_sql_as_names_and_data_leave_the_data_as_it_was_written(
    owner: Connection, mallory: Callable[..., Connection]
) -> None:
    """What is stored and used again, in filters, groups, paths and policies, is still the same text."""
    conn = mallory("producer", "worker", "observer", "admin")
    for number, each in enumerate(HOSTILE):
        action = f"act{number}" + re.sub(r"[\s\x00-\x1f]", "", each)
        engine = Engine(conn)
        engine.rows(
            "select pgfifo.set_policy(%s, %s)", action, json.dumps({"group_by": [each.replace(".", "")]})
        )
        payload = {each.replace(".", ""): each}
        new = engine.enqueue(action, payload)
        assert engine.rows("select pgfifo.pause(%s, null, %s)", action, each) == [(True,)]
        assert engine.rows("select pgfifo.resume(%s)", action)
        listed = engine.rows(
            "select id, payload from pgfifo.list_executions(%s)", json.dumps({"action": action})
        )
        assert listed == [(new, payload)]
        assert engine.rows("select pgfifo.explain(%s)", new)
        worker = engine.worker(action)
        [start] = engine.claim(worker, 1, [action])
        assert start.payload == payload
        assert engine.finish(start, "failed", each, retry=False) == "failed"
        assert engine.rows("select error, payload from pgfifo.executions where id = %s", new) == [
            (each, payload)
        ]
    assert [each for each in Engine(owner).check() if each[0] == "violation"] == []


def test_attacks_no_function_has_a_backslash_that_a_setting_could_turn_into_another_text(
    owner: Connection,
) -> None:
    """With standard_conforming_strings off, it begins an escape. In E'' it means the same under both."""
    bodies = owner.execute(
        "select proname, prosrc from pg_proc"
        " where pronamespace = 'pgfifo'::regnamespace and strpos(prosrc, chr(92)) > 0"
    ).fetchall()
    assert bodies
    for name, body in bodies:
        without_comments = re.sub(r"--.*", "", body)
        strings = re.findall(r"(?<!\w)(E?)'((?:[^'\\]|\\.|'')*)'", without_comments)
        loose = [text for prefix, text in strings if "\\" in text and prefix != "E"]
        assert loose == [], f"{name} has a backslash in a plain string"


def test_attacks_guessing_ids_and_tokens_ends_nothing_of_others(
    owner: Connection, mallory: Callable[..., Connection]
) -> None:
    """A worker of another role that knows every number there is gets nowhere, and nothing changes."""
    known = fill(owner)
    before = owner.execute("select * from pgfifo.runs order by id").fetchall()
    conn = mallory("worker")
    mine = Engine(conn).worker("deploy")
    outcomes: dict[int, str] = {}
    items = [{"id": n, "attempt": a, "outcome": "succeeded"} for n in range(1, 12) for a in (1, 2)]
    for row in conn.execute(
        "select id, status from pgfifo.work(%s, '{}', 0, null, %s)", [mine, json.dumps(items)]
    ).fetchall():
        outcomes[row[0]] = row[1]
    assert set(outcomes.values()) <= {"lost", None}
    for query in (
        "select pgfifo.finish(%(p_id)s, 1, 'succeeded')",
        "select pgfifo.complete(%(p_id)s, 1)",
        "select pgfifo.release(%(p_id)s, 1)",
        "select pgfifo.work(%(p_worker)s, '{deploy}', 1)",
        "select pgfifo.heartbeat(%(p_worker)s, 10, '{}')",
        "select pgfifo.worker_stop(%(p_worker)s)",
    ):
        with pytest.raises(pgfifo.NotPermitted):
            conn.execute(query, known)
    assert conn.execute("select pgfifo.progress(%(p_id)s, 1, 1.0)", known).fetchone() is not None
    assert owner.execute("select * from pgfifo.runs order by id").fetchall() == before


def test_attacks_a_forged_notification_stops_nothing(
    owner: Connection, mallory: Callable[..., Connection]
) -> None:
    """Whoever is in the database may notify; a worker asks the database what is true."""
    conn = mallory()
    for payload in ("cancel 1", "deploy", "x" * 7000, "cancel 99999999999999999999", "\x01"):
        conn.execute("select pg_notify('pgfifo', %s), pg_notify('pgfifo_done', %s)", [payload, payload])
    engine = Engine(owner)
    new = engine.enqueue()
    actions = pgfifo.Actions()

    def handler(execution: pgfifo.Execution) -> None:
        for payload in (f"cancel {execution.id}", f"{execution.id}", "cancel ", "cancel x"):
            conn.execute("select pg_notify('pgfifo', %s), pg_notify('pgfifo_done', %s)", [payload, payload])

    actions.add("deploy", handler)
    pgfifo.Worker(owner.info.dsn, actions, until_empty=True).run()
    assert engine.state(new) == "succeeded"
