"""The conventions of the SQL, held by queries over the catalog and a look at the text."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgfifo.schema import sql_text

Connection = psycopg.Connection[Any]

SQL = Path(__file__).resolve().parents[1] / "sql"
FILES = sorted(path.relative_to(SQL).as_posix() for path in SQL.glob("**/*.sql"))

# Functions without a pinned search_path, and why. In all of them every name is qualified.
UNPINNED = {
    "_caller": "inlined where rights are asked for",
    "_key": "inlined into every statement that locks; a set clause would forbid that",
    "_selects": "inlined into statements that look at many rows",
    "_now": "inlined into every statement that asks for the time",
}
# Helpers that run with their owner's rights, and why.
DEFINERS = {
    "_time": "called by views, whose functions run with the rights of whoever reads them",
    "_doctor_books": "the part of doctor that needs the owner's rights",
    "_doctor_name": "the same",
}
# What runs with its caller's rights although it is public, and why.
CALLERS_RIGHTS = {
    "format_group": "reads nothing",
    "doctor": "PostgreSQL itself decides whose sessions its caller may see",
}

FUNCTIONS = """
    select p.proname, p.prosecdef, p.proconfig, p.proacl, p.proargnames, p.proargmodes,
      obj_description(p.oid, 'pg_proc'), pg_get_functiondef(p.oid)
    from pg_proc p where p.pronamespace = 'pgfifo'::regnamespace order by 1
"""


@pytest.fixture
def conn(fresh_dsn: str) -> Iterator[Connection]:
    """The catalog as it was installed: no test has been there, and has granted something or replaced it."""
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        yield conn


def public_functions() -> set[str]:
    return {Path(name).stem for name in FILES if name.startswith("functions/")}


def test_functions_are_commented_pinned_and_revoked(conn: Connection) -> None:
    problems = []
    for name, definer, config, acl, arguments, modes, comment, _ in conn.execute(FUNCTIONS):
        public = not name.startswith("_")
        settings = config or []
        if public and not comment:
            problems.append(f"{name}: no comment")
        if comment and not (comment[0].isupper() and comment.endswith((".", "?"))):
            problems.append(f"{name}: its comment is no sentence")
        if "search_path=pg_catalog, pg_temp" not in settings and name not in UNPINNED:
            problems.append(f"{name}: search_path is not pinned to pg_catalog, pg_temp")
        if public and not definer and name not in CALLERS_RIGHTS:
            problems.append(f"{name}: public, and not security definer")
        if definer and not public and name not in DEFINERS:
            problems.append(f"{name}: private, and security definer")
        if acl is None or re.search(r"(?:^|[{,])=", str(acl)):
            problems.append(f"{name}: everybody may execute it")
        for argument, mode in zip(arguments or [], modes or ["i"] * len(arguments or []), strict=True):
            if mode in ("i", "b") and not argument.startswith("p_"):
                problems.append(f"{name}: parameter {argument} does not begin with p_")
            if mode == "o" and not public and not argument.startswith("o_"):
                problems.append(f"{name}: out parameter {argument} does not begin with o_")
    assert problems == []


def test_exceptions_are_not_stale(conn: Connection) -> None:
    pinned = {name: bool(config) for name, _, config, *_ in conn.execute(FUNCTIONS)}
    definers = {name: definer for name, definer, *_ in conn.execute(FUNCTIONS)}
    assert {name: pinned.get(name) for name in UNPINNED} == dict.fromkeys(UNPINNED, False)
    assert {name: definers.get(name) for name in CALLERS_RIGHTS} == dict.fromkeys(CALLERS_RIGHTS, False)
    assert {name: definers.get(name) for name in DEFINERS} == dict.fromkeys(DEFINERS, True)


def test_functions_that_are_inlined_qualify_their_operators_and_functions(conn: Connection) -> None:
    for name, *_, body in conn.execute(FUNCTIONS):
        if name in UNPINNED:
            assert "pg_catalog." in body, f"{name} trusts its caller's search_path"


def test_volatility_is_said_every_time() -> None:
    heads = re.findall(r"create or replace function ([\w.]+)\(.*?\nas \$\$", sql_text(), re.DOTALL)
    whole = re.findall(r"create or replace function [\w.]+\(.*?\nas \$\$", sql_text(), re.DOTALL)
    silent = [
        name
        for name, head in zip(heads, whole, strict=True)
        if not re.search(r"^language (sql|plpgsql) (immutable|stable|volatile)\b", head, re.MULTILINE)
    ]
    assert len(heads) > 60
    assert silent == []


def test_locals_of_functions_have_their_prefixes() -> None:
    declared = re.findall(r"\ndeclare\n(.*?)\nbegin\n", sql_text(), re.DOTALL)
    names = [
        name
        for block in declared
        for name in re.findall(r"^  (\w+) ", block, re.MULTILINE)
        if name != "constant"
    ]
    assert len(names) > 100
    assert [name for name in names if not name.startswith(("v_", "c_", "f_"))] == []


def test_relations_types_and_columns_that_people_meet_are_commented(conn: Connection) -> None:
    silent = conn.execute(
        "select c.relname from pg_class c where c.relnamespace = 'pgfifo'::regnamespace"
        " and c.relkind in ('r', 'p', 'v', 'm') and c.relname not like '\\_%%' and not c.relispartition"
        " and obj_description(c.oid, 'pg_class') is null"
    ).fetchall()
    assert silent == []
    columns = conn.execute(
        "select c.relname, a.attname"
        " from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0"
        " where c.relnamespace = 'pgfifo'::regnamespace and not a.attisdropped"
        " and (c.relkind in ('v', 'c') or c.relname = 'audit') and c.relname not like '\\_%%'"
        " and col_description(c.oid, a.attnum) is null"
    ).fetchall()
    assert columns == [], "columns without a comment"


def test_nobody_may_touch_tables_and_views_before_he_is_granted_it(conn: Connection) -> None:
    granted = conn.execute(
        "select c.relname from pg_class c, aclexplode(c.relacl) g"
        " where c.relnamespace = 'pgfifo'::regnamespace and g.grantee <> c.relowner"
    ).fetchall()
    assert granted == []
    schema = conn.execute(
        "select g.grantee from pg_namespace n, aclexplode(n.nspacl) g"
        " where n.nspname = 'pgfifo' and g.grantee <> n.nspowner"
    ).fetchall()
    assert schema == []


def test_each_public_function_stands_in_a_file_of_its_name(conn: Connection) -> None:
    names = {name for name, *_ in conn.execute(FUNCTIONS) if not name.startswith("_")}
    assert names == public_functions()
    for name in names:
        text = (SQL / "functions" / f"{name}.sql").read_text()
        assert text.startswith("--"), f"{name}.sql does not begin with prose"
        assert f"create or replace function pgfifo.{name}(" in text
        assert f"comment on function pgfifo.{name} is" in text


def test_each_file_is_listed_once_in_install_sql() -> None:
    listed = re.findall(r"^\\ir (\S+)$", (SQL / "install.sql").read_text(), re.MULTILINE)
    expected = {name for name in FILES if name != "install.sql" and not name.startswith("migrations/")}
    assert sorted(listed) == sorted(expected)


@pytest.mark.parametrize("name", FILES)
def test_text_is_in_the_common_form(name: str) -> None:
    text = (SQL / name).read_text()
    problems = []
    if "\t" in text:
        problems.append("a tab")
    if not text.endswith("\n") or text.endswith("\n\n"):
        problems.append("does not end with one line feed")
    code = re.sub(r"--.*|'(?:[^']|'')*'|\"[^\"]*\"", "", text)
    words = set(
        re.findall(
            r"\b(?:SELECT|FROM|WHERE|INSERT|UPDATE|DELETE|CREATE|BEGIN|END|AND|OR|NULL|RETURN)\b", code
        )
    )
    if words:
        problems.append(f"upper case keywords: {', '.join(sorted(words))}")
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > 190:
            problems.append(f"line {number} has {len(line)} characters")
        if line != line.rstrip():
            problems.append(f"line {number} ends with white space")
    assert problems == []


def test_errors_have_a_code_of_ours_a_detail_and_mostly_a_hint() -> None:
    raises = re.findall(r"raise exception using(.*?);\n", sql_text(), re.DOTALL)
    assert len(raises) > 20
    for text in raises:
        code = re.search(r"errcode = (?:'(\w+)'|v_code)", text)
        assert code, text
        if code[1] == "XX000":
            continue  # a bug of ours: nothing a person could do
        assert code[1] is None or re.fullmatch(r"QF0\d\d", code[1]), text
        assert "detail = " in text, text
