"""Policies as a file: what is written reads as the same again, and what is wrong is said with its line."""

import tomllib
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

import pgfifo
from pgfifo import errors, policyfile
from pgfifo.errors import InvalidValue
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine
from tests.test_policies import NOT_OF_LANES, VALUES, set_scope

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

FILE = """\
# Policies of pgfifo: what operators have set. To bring a database to this: pgfifo policy apply FILE

[everything]
max_attempts = 3
declared_actions_only = true

[packs.web]
rate = "100/s"
burst = 1

[actions."billing.invoice"]
group_by = ["customer", "target.region"]
max_concurrent = 2
spacing = "250ms"
quota = "1000/day Europe/Berlin"
max_wait = "1h30m"
backoff_factor = 1.5

[[actions."billing.invoice".lanes]]
group = { customer = 7, "target.region" = "eu" }
max_concurrent = 1

[[actions."billing.invoice".lanes]]
group = "{\\"customer\\":null,\\"target.region\\":null}"
max_concurrent = 3

[actions.deploy]
max_queue_length = "unlimited"

[[actions.deploy.lanes]]
group = "a free key"
max_attempts = 1

[limit."a.b"]
max_concurrent = 20
rate = "5/min"
burst = 1
actions = ["deploy"]
packs = ["billing", "web"]

[limit.all]
rate = "100/s"
everything = true
"""

DOCUMENT: dict[str, Any] = {
    "everything": {"max_attempts": 3, "declared_actions_only": True},
    "packs": {"web": {"rate": "100/s", "burst": 1}},
    "actions": {
        "billing.invoice": {
            "group_by": ["customer", "target.region"],
            "max_concurrent": 2,
            "spacing": 0.25,
            "quota": "1000/day Europe/Berlin",
            "max_wait": 5400,
            "backoff_factor": 1.5,
            "lanes": [
                {"group": '{"customer":7,"target.region":"eu"}', "max_concurrent": 1},
                {"group": '{"customer":null,"target.region":null}', "max_concurrent": 3},
            ],
        },
        "deploy": {"max_queue_length": "unlimited", "lanes": [{"group": "a free key", "max_attempts": 1}]},
    },
    "limit": {
        "a.b": {
            "max_concurrent": 20,
            "rate": "5/min",
            "burst": 1,
            "actions": ["deploy"],
            "packs": ["billing", "web"],
        },
        "all": {"rate": "100/s", "everything": True},
    },
}


def export(engine: Engine) -> dict[str, Any]:
    found = engine.one("select pgfifo.export_policies()")
    assert isinstance(found, dict)
    return found


def forget_all(conn: Connection) -> None:
    """Take all policies and actions away."""
    for table in (
        "policies",
        "lanes",
        "ledger",
        "actions",
        "scans",
        "_shared_limits",
        "shared_draws",
        "shared_ledger",
    ):
        conn.execute(f"delete from pgfifo.{table}".encode())


def apply(engine: Engine, document: object, **how: bool) -> list[tuple[Any, ...]]:
    """Apply a document; return what differed: place, attribute, old, new."""
    flags = [how.get(name, False) for name in ("prune", "dry_run", "force")]
    rows = engine.rows(
        "select scope, coalesce(pack, action, limit_name), group_text, attribute, old, new"
        " from pgfifo.apply_policies(%s, %s, %s, %s)",
        Jsonb(document),
        *flags,
    )
    return [row[:1] + tuple(x for x in row[1:3] if x is not None) + row[3:] for row in rows]


# The file


def test_a_file_is_what_the_database_says_and_back(conn: Connection) -> None:
    engine = Engine(conn)
    apply(engine, policyfile.loads(FILE))
    assert export(engine) == DOCUMENT
    assert policyfile.dumps(export(engine)) == FILE
    assert apply(engine, policyfile.loads(FILE), prune=True, dry_run=True) == []


def test_a_file_of_nothing_is_a_heading(conn: Connection) -> None:
    text = policyfile.dumps(export(Engine(conn)))
    assert text.startswith("# Policies of pgfifo")
    assert tomllib.loads(text) == {}
    assert policyfile.loads("") == {"packs": {}, "actions": {}}


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
group_values = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | texts | st.floats(-1000, 1000)
names = st.from_regex(r"[^\s\x00-\x1f\x7f-\x9f]{1,20}", fullmatch=True)


def values(attributes: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(VALUES[name]) for name in attributes})


lane_values = values([name for name in VALUES if name not in NOT_OF_LANES])
durations = st.floats(0, 10**7, allow_subnormal=False)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wide=values(list(VALUES)),
    spacing=durations,
    keys=st.dictionaries(names, st.lists(texts, max_size=3, unique=True), max_size=3),
    groups=st.lists(st.dictionaries(texts, group_values, max_size=3), max_size=3),
)
def test_any_document_that_is_exported_is_applied_as_it_was(
    conn: Connection,
    wide: dict[str, Any],
    spacing: float,
    keys: dict[str, list[str]],
    groups: list[dict[str, Any]],
) -> None:
    engine = Engine(conn)
    forget_all(conn)
    set_scope(engine, "everything", wide | {"spacing": spacing})
    for name, free in keys.items():
        engine.policy(name, gap=spacing)
        engine.rows("select pgfifo.set_pack_policy('p', '{\"burst\": 3}')")
        for key in free:
            engine.policy(name, key, max_concurrent=3)
    for number, group in enumerate(groups):
        paths = [f"p{at}" for at in range(len(group))]
        engine.policy(f"g{number}", group_by=paths)
        text = pgfifo.groups.to_text(dict(zip(paths, group.values(), strict=True)))
        engine.policy(f"g{number}", text, spacing=spacing)
    before = export(engine)
    text = policyfile.dumps(before)
    forget_all(conn)
    apply(engine, policyfile.loads(text))
    assert export(engine) == before, text
    assert policyfile.dumps(export(engine)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[everything]\nmax_attempts = 3\nmax_concurent = 1",
            "line 3, everything.max_concurent: a policy has no attribute",
        ),
        ('[actions.deploy]\nrate = "fast"', "line 2, actions.deploy.rate: rate cannot be 'fast'"),
        ('[actions."a.b"]\ngap = -1', 'line 2, actions."a.b".gap: gap'),
        ("[packs.web]\ngroup_by = ['a']", "line 2, packs.web.group_by: group_by belongs to an action"),
        ("[actions.x]\ndeclared_actions_only = true", "belongs to everything"),
        ("[lanes]\n", "line 1, lanes is no part of a document"),
        ("everything = 3", "line 1, everything is no table"),
        ("[actions]\ndeploy = 3", "line 2, actions.deploy is no table"),
        ("[actions.deploy]\nlanes = 3", "line 2, actions.deploy.lanes is no array"),
        ("[[actions.deploy.lanes]]\nmax_concurrent = 1", "line 1, actions.deploy.lanes[0] has no group"),
        (
            "[[actions.x.lanes]]\ngroup='a'\ngap = 1\n[[actions.x.lanes]]\ngroup='b'\ngap = 'x'",
            "line 6, actions.x.lanes[1].gap",
        ),
        ("[actions.x]\ngroup_by = [\n  'a..b',\n]", "line 2, actions.x.group_by"),
        ("actions = { x = { gap = -1 } }", "actions.x.gap: gap"),
        ("[everything", "this is no TOML: "),
        ("[everything]\ngap = = 2", "this is no TOML: Invalid value (at line 2"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        policyfile.loads(text)
    assert message in caught.value.message
    assert caught.value.hint
    assert caught.value.detail["name"]


# Applying


def test_apply_changes_what_is_named_and_says_what_differed(conn: Connection) -> None:
    engine = Engine(conn)
    apply(engine, DOCUMENT)
    document = {
        "everything": {"max_attempts": 4},
        "actions": {
            "deploy": {"gap": 3, "lanes": [{"group": "a free key", "gap": 5}, {"group": "b", "gap": 6}]}
        },
        "packs": {"web": {"rate": None, "burst": 1}},
    }
    differs = [
        ("everything", "max_attempts", 3, 4),
        ("pack", "web", "rate", "100/s", None),
        ("action", "deploy", "gap", None, 3),
        ("lane", "deploy", "a free key", "gap", None, 5),
        ("lane", "deploy", "b", "gap", None, 6),
    ]
    assert apply(engine, document, dry_run=True) == differs
    assert export(engine) == DOCUMENT, "a dry run changed something"
    assert apply(engine, document) == differs
    assert apply(engine, document) == []
    assert engine.effective("billing.invoice")["max_concurrent"] == (2, "action"), "what is not named went"


def test_apply_with_prune_unsets_what_is_not_named_and_nothing_else(conn: Connection) -> None:
    engine = Engine(conn)
    apply(engine, DOCUMENT)
    engine.enqueue("deploy", group="a free key")
    engine.enqueue("deploy", group="paused")
    engine.pause("deploy", "paused")
    set_scope(engine, "declared", {"max_concurrent": 4})
    set_scope(engine, "action", {"max_concurrent": 5})
    engine.rows("select pgfifo.override_pack_policy('web', '{\"gap\": 5}', '1 hour')")
    document = {"packs": {"web": {"burst": 2}}, "actions": {"deploy": {"max_queue_length": 7}}}
    differs = apply(engine, document, prune=True, dry_run=True)
    assert ("everything", "declared_actions_only", True, None) in differs
    assert ("lane", "deploy", "a free key", "max_attempts", 1, None) in differs
    assert ("action", "billing.invoice", "group_by", ["customer", "target.region"], None) in differs
    assert apply(engine, document, prune=True) == differs
    assert export(engine) == {"everything": {}, "limit": {}} | document
    assert engine.effective("web.get")["max_concurrent"] == (4, "declared")
    assert engine.effective("web.get")["gap"] == (5, "override")
    assert engine.lane(group="paused")["paused"]
    assert apply(engine, document, prune=True) == []


def test_apply_prunes_lanes_whose_group_is_of_former_paths(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(group_by=["env"])
    engine.policy(group="prod", gap=3)
    engine.policy(group_by=["app"])
    assert apply(engine, {}, prune=True) == [
        ("action", "deploy", "group_by", ["app"], None),
        ("lane", "deploy", '{"env":"prod"}', "gap", 3, None),
    ]
    assert export(engine) == {"everything": {}, "packs": {}, "actions": {}, "limit": {}}


def test_apply_takes_the_groups_of_the_paths_that_it_sets(conn: Connection) -> None:
    engine = Engine(conn)
    lane = {"group": {"env": "prod"}, "gap": 3}
    apply(engine, {"actions": {"deploy": {"group_by": ["env"], "lanes": [lane]}}})
    assert engine.rows("select group_text from pgfifo.lanes") == [('{"env":"prod"}',)]
    with pytest.raises(errors.GroupMismatch):
        apply(engine, {"actions": {"deploy": {"group_by": ["app"], "lanes": [lane]}}}, dry_run=True)
    set_scope(engine, "declared", {"group_by": ["x"]})
    lane = {"group": {"x": 1}, "gap": 4}
    assert len(apply(engine, {"actions": {"web.get": {"lanes": [lane]}}})) == 1


def test_apply_sets_changes_and_drops_shared_limits(conn: Connection) -> None:
    engine = Engine(conn)
    document = {"limit": {"api": {"max_concurrent": 2, "rate": "60/1m", "actions": ["b", "a", "a"]}}}
    new: list[Any] = [
        ("limit", "api", "actions", [], ["b", "a", "a"]),
        ("limit", "api", "max_concurrent", None, 2),
        ("limit", "api", "rate", None, "60/min"),
    ]
    assert apply(engine, document, dry_run=True) == new
    assert export(engine) == {"everything": {}, "packs": {}, "actions": {}, "limit": {}}
    assert apply(engine, document) == new
    wanted = {"max_concurrent": 2, "rate": "60/min", "actions": ["a", "b"]}
    assert export(engine)["limit"] == {"api": wanted}, "who draws came to be, as any action in a document"
    assert apply(engine, document, prune=True) == [], "an order or a spelling is a difference"
    changed = {"limit": {"api": {"rate": None, "packs": ["x"]}, "other": {"rate": "1/s"}}}
    assert apply(engine, changed) == [
        ("limit", "api", "packs", [], ["x"]),
        ("limit", "api", "rate", "60/min", None),
        ("limit", "other", "rate", None, "1/s"),
    ]
    assert export(engine)["limit"]["api"] == {"max_concurrent": 2, "actions": ["a", "b"], "packs": ["x"]}
    pruned = {"limit": {"api": {"rate": "5/s"}}}
    differs: list[Any] = [
        ("limit", "api", "actions", ["a", "b"], []),
        ("limit", "api", "max_concurrent", 2, None),
        ("limit", "api", "packs", ["x"], []),
        ("limit", "api", "rate", None, "5/s"),
        ("limit", "other", "rate", "1/s", None),
    ]
    assert apply(engine, pruned, prune=True, dry_run=True) == differs
    assert apply(engine, pruned, prune=True) == differs
    assert export(engine)["limit"] == pruned["limit"]
    assert apply(engine, {}, prune=True) == [("limit", "api", "rate", "5/s", None)]
    assert engine.one("select count(*) from pgfifo.shared_limits") == 0


def test_apply_lets_go_on_what_a_dropped_limit_kept_waiting(conn: Connection) -> None:
    engine = Engine(conn)
    apply(engine, {"limit": {"api": {"max_concurrent": 1, "actions": ["a"]}}})
    engine.fill(1, "a", "x")
    engine.fill(1, "a", "y")
    worker = engine.worker("a")
    assert len(engine.claim(worker, 5, ["a"])) == 1
    assert engine.claim(worker, 5, ["a"]) == []
    apply(engine, {}, prune=True)
    assert len(engine.claim(worker, 5, ["a"])) == 1
    engine.assert_promises()


def test_apply_is_all_or_nothing(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(group_by=["env"])
    engine.enqueue(payload={"env": "prod"})
    before = export(engine)
    document = {"everything": {"max_attempts": 2}, "actions": {"deploy": {"group_by": ["app"]}}}
    notes = engine.rows("select note from pgfifo.apply_policies(%s, false, true)", Jsonb(document))
    assert notes == [(None,), ("1 waiting execution would stay in its old lane: it has to be forced",)]
    with pytest.raises(errors.Busy, match="1 execution waits"):
        apply(engine, document)
    assert export(engine) == before
    assert len(apply(engine, document, force=True)) == 2


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "the document is no table"),
        ({"lanes": {}}, "the document has no part lanes"),
        ({"everything": 3}, "everything is no table"),
        ({"everything": {"colour": "red"}}, "everything: colour is no attribute"),
        ({"packs": {"a b": {}}}, "no name for a pack"),
        ({"packs": {"web": {"gap": -1}}}, "packs.web: gap must be"),
        ({"actions": {"deploy": {"rate": 3}}}, "actions.deploy: rate must be"),
        ({"limit": 3}, "limit is no table"),
        ({"limit": {"api": 3}}, "limit.api is no table"),
        ({"limit": {"a b": {"rate": "5/s"}}}, "no name for a shared limit"),
        ({"limit": {"api": {"rate": "1/0s"}}}, "limit.api: rate must be"),
        ({"limit": {"api": {"gap": 1}}}, "limit.api: gap is no attribute of a shared limit"),
        ({"limit": {"api": {"actions": ["x"]}}}, "limit.api would limit nothing"),
        ({"actions": {"deploy": {"lanes": {}}}}, "actions.deploy.lanes is no array"),
        ({"actions": {"deploy": {"lanes": [{"gap": 1}]}}}, "a lane of actions.deploy has no group"),
        (
            {"actions": {"deploy": {"lanes": [{"group": "a", "ordering": "strict"}]}}},
            "actions.deploy.lanes a: ordering belongs",
        ),
        (
            {"actions": {"deploy": {"lanes": [{"group": "a", "gap": 1}, {"group": "a"}]}}},
            "the lane deploy a is there twice",
        ),
    ],
)
def test_apply_refuses_what_is_no_document_of_policies(
    conn: Connection, document: object, message: str
) -> None:
    engine = Engine(conn)
    with pytest.raises(InvalidValue) as caught:
        apply(engine, document)
    assert message in caught.value.message
    assert caught.value.hint
    assert export(engine) == {"everything": {}, "packs": {}, "actions": {}, "limit": {}}


def test_apply_over_too_many_lanes_is_refused(conn: Connection) -> None:
    engine = Engine(conn)
    most = engine.one("select pgfifo.max_batch_lanes()")
    document = {"actions": {"deploy": {"lanes": [{"group": f"g{n}", "gap": 1} for n in range(most + 1)]}}}
    assert len(apply(engine, document, dry_run=True)) == most + 1
    with pytest.raises(errors.TooManyLanes):
        apply(engine, document)


def test_apply_reaches_what_waits_at_once(conn: Connection) -> None:
    engine = Engine(conn)
    engine.fill(4)
    engine.fill(4, "other")
    worker = engine.worker("deploy", "other")
    actions = ["deploy", "other"]
    assert len(engine.claim(worker, 10, actions)) == 2
    apply(engine, {"everything": {"max_concurrent": 2}, "actions": {"deploy": {"max_concurrent": 4}}})
    assert len(engine.claim(worker, 10, actions)) == 4
    engine.assert_promises()


def test_apply_of_two_at_once_is_one_after_the_other(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    documents: list[dict[str, Any]] = [
        {
            "everything": {"max_attempts": number},
            "actions": {name: {"gap": number, "lanes": [{"group": "x", "gap": number}]} for name in names},
        }
        for number, names in ((1, ["a", "b"]), (2, ["b", "a"]))
    ]
    apply(engine, documents[1])
    first, second = Engine(connect(autocommit=False)), Engine(connect())
    apply(first, documents[0])
    waiting = in_background(lambda: apply(second, documents[1] | {"everything": {"max_attempts": 3}}))
    wait_until_blocked(conn, second.pid)
    first.conn.commit()
    waiting.result()
    effective = engine.effective("a", "x")
    assert effective["max_attempts"][0] == 3
    engine.assert_promises()
