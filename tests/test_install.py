"""Install, upgrade and uninstall: safe from many at once, the same everywhere, gone without a trace."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgfifo import errors, schema
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine
from tests.support.server import psql_folder

Connection = psycopg.Connection[Any]

# What an installation consists of, as text that does not depend on when and where it was made. History's
# partitions come and go by the day.
CATALOG = """
with ours as (
  select c.oid, c.relname, c.relkind from pg_class c
  where c.relnamespace = 'pgfifo'::regnamespace and c.relname !~ '^history_[0-9]{8}')
select 'schema ' || nspname, nspacl::text from pg_namespace where nspname = 'pgfifo'
union all
select 'relation ' || o.relname,
  concat_ws(' ', o.relkind, c.reloptions, c.relacl, obj_description(o.oid, 'pg_class'),
    pg_get_partkeydef(o.oid))
from ours o join pg_class c on c.oid = o.oid
union all
select format('column %s.%s', o.relname, a.attname),
  concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
    pg_get_expr(d.adbin, d.adrelid), col_description(o.oid, a.attnum))
from ours o join pg_attribute a on a.attrelid = o.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = o.oid and d.adnum = a.attnum
where o.relkind <> 'S'
union all
select format('constraint %s.%s', o.relname, k.conname), pg_get_constraintdef(k.oid)
from ours o join pg_constraint k on k.conrelid = o.oid and k.contype <> 'n'
union all
select 'index ' || o.relname, pg_get_indexdef(o.oid) from ours o where o.relkind in ('i', 'I')
union all
select 'view ' || o.relname, pg_get_viewdef(o.oid) from ours o where o.relkind = 'v'
union all
select 'sequence ' || o.relname,
  row(s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqcache, s.seqcycle)::text
from ours o join pg_sequence s on s.seqrelid = o.oid
union all
select 'function ' || p.oid::regprocedure,
  concat_ws(' ', pg_get_functiondef(p.oid), p.proacl, obj_description(p.oid, 'pg_proc'))
from pg_proc p where p.pronamespace = 'pgfifo'::regnamespace
order by 1, 2
"""


def catalog(dsn: str) -> list[Any]:
    """Return everything that the schema consists of, and what its one row says."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        rows: list[Any] = list(conn.execute(CATALOG))
        if rows:
            rows += conn.execute(
                "select version, min_client, script_hash from pgfifo.installation"
            ).fetchall()
        return rows


def install(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as conn:
        return schema.install(conn)


@contextmanager
def role(dsn: str, name: str) -> Iterator[str]:
    """A role without any privileges, and the DSN to connect as it."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"create role {name} login")
        try:
            yield make_conninfo(dsn, user=name)
        finally:
            conn.execute(f"drop owned by {name} cascade")
            conn.execute(f"drop role {name}")


def test_install_of_twenty_at_once_makes_one_installation(empty_dsn: str) -> None:
    barrier = threading.Barrier(20)

    def one() -> int:
        with psycopg.connect(empty_dsn, autocommit=True) as conn:
            barrier.wait()
            return schema.install(conn)

    installs = [in_background(one) for _ in range(20)]
    assert [each.result(60) for each in installs] == [schema.VERSION] * 20
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        engine = Engine(conn)
        assert engine.one("select count(*) from pgfifo.installation") == 1
        new = engine.enqueue()
        assert engine.drain(engine.worker()) == [new]
        engine.assert_promises()


def test_install_twice_changes_nothing_and_keeps_what_is_there(empty_dsn: str) -> None:
    install(empty_dsn)
    before = catalog(empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        engine = Engine(conn)
        engine.policy(max_concurrent=3)
        ids = engine.fill(3)
        oid = engine.one("select 'pgfifo.enqueue'::regproc::oid")
        xmin = engine.one("select xmin::text from pg_proc where oid = 'pgfifo.enqueue'::regproc")
        install(empty_dsn)
        assert engine.one("select 'pgfifo.enqueue'::regproc::oid") == oid
        assert engine.one("select xmin::text from pg_proc where oid = 'pgfifo.enqueue'::regproc") == xmin, (
            "every start of an application replaces the functions under the others"
        )
        assert [start.id for start in engine.claim(engine.worker(), 5)] == ids
    assert catalog(empty_dsn) == before


def test_install_again_over_a_changed_schema_mends_it(empty_dsn: str) -> None:
    """Functions and views are made anew; a schema that was in use is then what a fresh one is."""
    install(empty_dsn)
    fresh = catalog(empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        engine = Engine(conn)
        ids = engine.fill(3)
        (start,) = engine.claim(worker := engine.worker())
        conn.execute(
            "create or replace function pgfifo.max_batch_lanes() returns int language sql as 'select 7'"
        )
        conn.execute("drop view pgfifo.slot_violations cascade")
        conn.execute("drop function pgfifo.pause(text, text, text)")
        conn.execute("update pgfifo.installation set script_hash = 'another package', epoch = 5")
        assert schema.upgrade(conn) == schema.VERSION
        assert catalog(empty_dsn) == fresh, "an upgraded schema is not what a fresh one is"
        assert engine.one("select epoch from pgfifo.schema_info()") == 5, (
            "an upgrade let old tokens match again"
        )
        engine.hand_in(worker, start)
        conn.execute("select from pgfifo.heartbeat(%s)", [worker])
        assert [start.id, *engine.drain(worker)] == ids, "an upgrade lost executions"
        engine.assert_promises()


def test_install_with_psql_is_the_same(empty_dsn: str, server: Any, databases: Any) -> None:
    """`psql -1 -f sql/install.sql` for those who run migrations themselves, and `pgfifo sql` as one query."""
    install(empty_dsn)
    psql = psql_folder(server) / "psql"
    name = databases.create()
    dsn = server.dsn(name)
    try:
        script = Path(__file__).parents[1] / "sql" / "install.sql"
        command = [psql, "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", dsn, "-f", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        by_psql = catalog(dsn)
        assert by_psql[-1][2] is None, "without a hash the next install() looks again"
        install(dsn)
        assert catalog(dsn) == catalog(empty_dsn)
    finally:
        databases.drop(name)


def test_install_in_a_transaction_that_rolls_back_leaves_nothing(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as conn:
        schema.install(conn)
        Engine(conn).enqueue()
        conn.rollback()
        assert schema.version(conn) is None
        schema.install(conn)
        conn.commit()
        assert schema.version(conn) == schema.VERSION


def test_install_waits_for_another_one_and_finds_it_done(empty_dsn: str) -> None:
    with (
        psycopg.connect(empty_dsn) as first,
        psycopg.connect(empty_dsn, autocommit=True) as second,
        psycopg.connect(empty_dsn, autocommit=True) as observer,
    ):
        schema.install(first)
        other = in_background(lambda: schema.install(second))
        wait_until_blocked(observer, second.info.backend_pid)
        first.commit()
        assert other.result() == schema.VERSION


def test_install_refuses_a_newer_schema_and_changes_nothing(empty_dsn: str) -> None:
    install(empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("update pgfifo.installation set version = 99, script_hash = 'newer'")
        before = catalog(empty_dsn)
        for change in (schema.install, schema.upgrade):
            with pytest.raises(errors.SchemaMismatch, match="newer than this package") as caught:
                change(conn)
            assert caught.value.detail == {"version": 99, "package": schema.VERSION}
            assert "Upgrade the pgfifo package" in (caught.value.hint or ""), "which side is to be upgraded?"
        assert catalog(empty_dsn) == before
        assert schema.version(conn) == 99


def test_install_upgrade_of_nothing_is_an_error(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        assert schema.version(conn) is None
        with pytest.raises(errors.SchemaMissing, match="pgfifo install"):
            schema.upgrade(conn)
        assert schema.version(conn) is None


def test_install_uninstall_removes_everything_and_nothing_else(empty_dsn: str) -> None:
    everything = (
        "select 'class', relname::text from pg_class where relname !~ '^pg_toast'"
        " union all select 'function', oid::regprocedure::text from pg_proc"
        " union all select 'type', typname from pg_type where typname !~ '^pg_toast'"
        " union all select 'schema', nspname from pg_namespace order by 1, 2"
    )
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("create table orders (id int)")
        before = conn.execute(everything).fetchall()
        schema.install(conn)
        engine = Engine(conn)
        engine.fill(5)
        engine.claim(engine.worker())
        schema.uninstall(conn)
        assert conn.execute(everything).fetchall() == before
        schema.uninstall(conn)
        schema.install(conn)
        assert engine.rows("select * from pgfifo.queue_stats") == []


def test_install_needs_no_superuser(empty_dsn: str) -> None:
    """A managed PostgreSQL gives out a role that may create schemas and little else."""
    database = conninfo_to_dict(empty_dsn)["dbname"]
    with role(empty_dsn, "owner_of_queue") as dsn:
        with psycopg.connect(empty_dsn, autocommit=True) as conn:
            conn.execute(f'grant create on database "{database}" to owner_of_queue')
        with psycopg.connect(dsn, autocommit=True) as conn:
            schema.install(conn)
            engine = Engine(conn)
            ids = engine.fill(3)
            worker = engine.worker(locked=True)
            engine.maintain()
            assert engine.drain(worker) == ids
            engine.assert_promises()
            conn.execute("update pgfifo.installation set script_hash = 'another package'")
            assert schema.upgrade(conn) == schema.VERSION
            schema.uninstall(conn)


def test_install_lets_nobody_else_in_until_he_is_granted(empty_dsn: str) -> None:
    install(empty_dsn)
    with role(empty_dsn, "stranger") as dsn, psycopg.connect(dsn, autocommit=True) as stranger:
        engine = Engine(stranger)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            engine.enqueue()
        with psycopg.connect(empty_dsn, autocommit=True) as owner:
            owner.execute("grant usage on schema pgfifo to stranger")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                engine.enqueue()
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                engine.rows("select * from pgfifo.executions")
            owner.execute("select pgfifo.grant_role('producer', 'stranger')")
        new = engine.enqueue(payload={"from": "a stranger"})  # no rights on tables: the function has them
        assert new
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            engine.pause()


def test_install_functions_do_not_believe_the_callers_search_path(fresh_dsn: str) -> None:
    """A security definer function that finds the caller's own objects first is a way to become the owner."""
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        conn.execute("create schema evil")
        conn.execute(
            "create function evil.clock_timestamp() returns timestamptz language sql"
            " as $$ select 'epoch'::timestamptz $$"
        )
        conn.execute("create table evil.lanes (id int)")
        conn.execute("set search_path = evil, pg_catalog")
        engine = Engine(conn)
        new = engine.enqueue()
        assert engine.show(new)["enqueued_at"].year > 2000
        assert engine.drain(engine.worker()) == [new]


def test_install_the_clock_moves_only_in_testing_installations(empty_dsn: str) -> None:
    install(empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        with pytest.raises(errors.InvalidValue, match="testing"):
            conn.execute("select pgfifo.advance('1 hour')")
        with pytest.raises(psycopg.errors.CheckViolation):
            conn.execute("update pgfifo.installation set clock_offset = '1 hour'")


def test_install_script_is_the_same_every_time() -> None:
    assert schema.sql_text.__wrapped__() == schema.sql_text.__wrapped__()
    assert schema.script_hash() in schema.sql_text()
    assert "\\ir" not in schema.sql_text()
    assert json.dumps(schema.sql_text())  # nothing in it that is not text


def test_install_of_all_in_one_statement_makes_history_for_the_days_ahead(
    empty_dsn: str,
) -> None:
    install(empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        days = conn.execute(
            "select count(*) from pg_inherits where inhparent = 'pgfifo.history'::regclass"
            " and inhrelid <> 'pgfifo.history_default'::regclass"
        ).fetchone()
        assert days == (5,)
        engine = Engine(conn)
        engine.fill(1)
        engine.drain(engine.worker())
        assert engine.one("select count(*) from pgfifo.history_default") == 0
