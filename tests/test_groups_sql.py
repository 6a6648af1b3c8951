"""Groups: the same values make the same lane, however they are written; what does not fit is refused."""

import json
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgfifo import errors
from tests.support.engine import Engine

Connection = psycopg.Connection[Any]


def group_of(conn: Connection, payload: str, given: str | None = None) -> str:
    row = conn.execute("select pgfifo.group_text('deploy', %s::jsonb, %s)", [payload, given]).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize(
    ("group_by", "payload", "expected"),
    [
        (["env"], '{"env": "prod"}', '{"env":"prod"}'),
        (["env"], '{"env": 1}', '{"env":1}'),
        (["env"], '{"env": 1.0}', '{"env":1}'),
        (["env"], '{"env": 1e0}', '{"env":1}'),
        (["env"], '{"env": 10e-1}', '{"env":1}'),
        (["env"], '{"env": 1.50}', '{"env":1.5}'),
        (["env"], '{"env": 100}', '{"env":100}'),
        (["env"], '{"env": 1e2}', '{"env":100}'),
        (["env"], '{"env": -0.0}', '{"env":0}'),
        (["env"], '{"env": "1"}', '{"env":"1"}'),
        (["env"], '{"env": true}', '{"env":true}'),
        (["env"], '{"env": null}', '{"env":null}'),
        (["env"], "{}", '{"env":null}'),
        (["env"], "[]", '{"env":null}'),
        (["env"], '"env"', '{"env":null}'),
        (["env"], "null", '{"env":null}'),
        (["env"], '{"env": ""}', '{"env":""}'),
        (["env"], '{"env": "ä€😀"}', '{"env":"ä€😀"}'),
        (["env"], '{"env": "\\u00e4"}', '{"env":"ä"}'),
        (["env"], '{"env": "a\\"b\\\\c\\n"}', '{"env":"a\\"b\\\\c\\n"}'),
        (
            ["env"],
            '{"env": {"b": 1.0, "a": [1.0, {"d": 2, "c": null}]}}',
            '{"env":{"a":[1,{"c":null,"d":2}],"b":1}}',
        ),
        (["ä"], '{"ä": 1}', '{"ä":1}'),
        (["target.region"], '{"target": {"region": "eu"}}', '{"target.region":"eu"}'),
        (["target.region"], '{"target.region": "eu"}', '{"target.region":null}'),
        (["target.region"], '{"target": "eu"}', '{"target.region":null}'),
        (["target.region"], '{"target": ["eu"]}', '{"target.region":null}'),
        (["a.b.c"], '{"a": {"b": {"c": false}}}', '{"a.b.c":false}'),
        (["env", "app"], '{"env": "prod", "app": "x", "more": 1}', '{"app":"x","env":"prod"}'),
        (["b", "B", "a.z", "a"], '{"a": {"z": 1}, "B": 2}', '{"B":2,"a":{"z":1},"a.z":1,"b":null}'),
        ([], '{"env": "prod"}', ""),
    ],
)
def test_groups_are_canonical(conn: Connection, group_by: list[str], payload: str, expected: str) -> None:
    engine = Engine(conn)
    engine.policy(group_by=group_by)
    assert group_of(conn, payload) == expected
    conn.execute("select pgfifo.enqueue('deploy', %s::jsonb)", [payload])
    conn.execute("select pgfifo.enqueue_many('deploy', array[%s::jsonb])", [payload])
    assert engine.lane(group=expected)["queue_length"] == 2, "one value made two lanes"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("prod", '{"env":"prod"}'),
        ('"prod"', '{"env":"prod"}'),
        ('{"env": "prod"}', '{"env":"prod"}'),
        ('{"env":1.0}', '{"env":1}'),
        ("1", '{"env":1}'),
        ("1.0", '{"env":1}'),
        ("1e0", '{"env":1}'),
        ("null", '{"env":null}'),
        ("true", '{"env":true}'),
        ("", '{"env":""}'),
        ("ä b", '{"env":"ä b"}'),
        ("[1]", '{"env":"[1]"}'),
        ("{no json", '{"env":"{no json"}'),
        ("NaN", '{"env":"NaN"}'),
        ("01", '{"env":"01"}'),
    ],
)
def test_groups_given_for_one_path(conn: Connection, given: str, expected: str) -> None:
    Engine(conn).policy(group_by=["env"])
    assert group_of(conn, '{"env": "ignored"}', given) == expected


@pytest.mark.parametrize(
    ("group_by", "given"),
    [
        (["env"], '{"app":"x"}'),
        (["env"], "{}"),
        (["env"], '{"env":1,"app":2}'),
        (["app", "env"], '{"env":1}'),
        (["app", "env"], "prod"),
        (["app", "env"], "1"),
        (["target.region"], '{"target":{"region":"eu"}}'),
    ],
)
def test_groups_that_do_not_fit_are_refused(conn: Connection, group_by: list[str], given: str) -> None:
    engine = Engine(conn)
    engine.policy(group_by=group_by)
    with pytest.raises(errors.GroupMismatch) as caught:
        engine.enqueue(group=given)
    for path in group_by:
        assert path in caught.value.message
    good = json.dumps(dict.fromkeys(group_by, 1))
    with pytest.raises(errors.GroupMismatch) as caught:
        engine.enqueue_many("deploy", [{}] * 3, [good, given, given])
    assert caught.value.detail["index"] == 1
    assert engine.rows("select 1 from pgfifo.executions") == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("prod", "prod"),
        ('{"b":1.0,"a":2}', '{"a":2,"b":1}'),
        ("1.0", "1.0"),
        ("", ""),
        ("{no json", "{no json"),
    ],
)
def test_groups_without_group_by_are_free_text(conn: Connection, given: str, expected: str) -> None:
    engine = Engine(conn)
    engine.enqueue(group=given)
    assert engine.lane(group=expected)["queue_length"] == 1


@pytest.mark.parametrize(
    ("text", "fits"),
    [("x" * 1014, True), ("x" * 1015, False), ("ä" * 507, True), ("ä" * 508, False)],
    ids=["ascii", "ascii, too long", "two bytes each", "two bytes each, too long"],
)
def test_groups_hold_at_most_1024_bytes(conn: Connection, text: str, fits: bool) -> None:
    engine = Engine(conn)
    engine.policy(group_by=["env"])
    if fits:
        engine.enqueue(payload={"env": text})
        assert len(engine.rows("select group_text from pgfifo.lanes")[0][0].encode()) == 1024
        return
    for enqueue in (
        lambda: engine.enqueue(payload={"env": text}),
        lambda: engine.enqueue(group=text),
        lambda: engine.enqueue_many("deploy", [{"env": text}]),
    ):
        with pytest.raises(errors.GroupTooLong, match="at most 1024"):
            enqueue()
    with pytest.raises(errors.GroupTooLong) as caught:
        engine.enqueue_many("deploy", [{"env": "a"}, {"env": text}])
    assert caught.value.detail["index"] == 1


def test_groups_keep_one_line_each(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(group_by=["env"])
    prod = [
        engine.enqueue(payload={"env": 1}),
        engine.enqueue(payload={"env": 1.0}),
        engine.enqueue(group="1e0"),
    ]
    test = engine.enqueue(payload={"env": "1"})
    worker = engine.worker()
    assert [start.id for start in engine.claim(worker, 10)] == [prod[0], test]
    assert {start.group for start in engine.claim(worker)} == set()
    assert engine.one("select pgfifo.format_group(%s)", '{"env":1}') == "env=1"


NUMBERS = st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
KEYS = st.text("abä.", max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | NUMBERS.map(float) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(JSON)
def test_groups_of_equal_values_are_equal_and_stay_the_same(conn: Connection, value: object) -> None:
    """Canonical text is a fixed point: read as a value and written again, nothing changes."""
    row = conn.execute(
        "select c, pgfifo._canonical(c::jsonb), c::jsonb = v"
        " from (select v, pgfifo._canonical(v) as c from (select %s::jsonb as v) x) y",
        [json.dumps(value)],
    ).fetchone()
    assert row is not None
    assert row[0] == row[1]
    assert row[2] is True


def test_groups_are_readable_in_queries_that_would_run_in_parallel(conn: Connection) -> None:
    force = "force_parallel_mode" if conn.info.server_version < 160000 else "debug_parallel_query"
    conn.execute(f"set {force} = on")
    groups = """'{"n":' || relpages || '}') from pg_catalog.pg_class limit 1"""
    row = conn.execute(f"select pgfifo.format_group({groups}").fetchone()
    assert row is not None
    assert row[0].startswith("n=")
    conn.execute(f"select pgfifo.group_text('deploy', '{{}}', {groups}")
