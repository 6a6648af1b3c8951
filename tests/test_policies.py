"""Policies: the most specific value wins, attribute by attribute; what is wrong is refused in words."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgfifo import errors
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine, race

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

DEFAULTS: dict[str, Any] = {
    "group_by": [],
    "max_concurrent": 1,
    "ordering": "strict",
    "max_queue_length": "unlimited",
    "max_action_queue_length": "unlimited",
    "on_limit": "enqueue",
    "rate": "unlimited",
    "burst": None,
    "spacing": 0,
    "gap": 0,
    "quota": "unlimited",
    "max_wait": "unlimited",
    "timeout": "unlimited",
    "kill_after": 10,
    "max_attempts": 5,
    "failure_mode": "hold",
    "backoff": "exponential",
    "backoff_initial": 1,
    "backoff_factor": 2,
    "backoff_cap": 300,
    "backoff_jitter": 0.1,
    "on_exhausted": "continue",
    "retention": 7 * 86400,
    "lane_retention": 86400,
    "max_payload": 2**20,
    "declared_actions_only": False,
    "audit_retention": 365 * 86400,
}

# An attribute, and five values of it that can be told apart.
VALUES: dict[str, list[Any]] = {
    "max_concurrent": [2, 3, 4, 5, 6],
    "ordering": ["relaxed", "strict", "relaxed", "strict", "relaxed"],
    "max_queue_length": [20, 30, "unlimited", 50, 60],
    "max_action_queue_length": [20, 30, "unlimited", 50],
    "on_limit": ["cancel", "enqueue", "cancel", "enqueue", "cancel"],
    "rate": ["100/s", "10/min", "unlimited", "5/2h", "7/1500ms"],
    "burst": [1, 2, 3, 4, 5],
    "spacing": [1, 2, 0, 4, 5],
    "gap": [1, 2, 0, 4, 5],
    "max_wait": [20, 30, "unlimited", 50, 60],
    "timeout": [20, 30, "unlimited", 50, 60],
    "kill_after": [20, 30, "unlimited", 0, 60],
    "max_attempts": [2, 3, 4, 6, 7],
    "failure_mode": ["yield", "tail", "hold", "yield", "tail"],
    "on_exhausted": ["pause", "continue", "pause", "continue", "pause"],
    "backoff": ["constant", "exponential", "constant", "exponential", "constant"],
    "backoff_initial": [2, 3, 4, 5, 6],
    "backoff_factor": [3, 4, 5, 6, 7],
    "backoff_cap": [20, 30, 40, 50, 60],
    "backoff_jitter": [0.2, 0.3, 0.4, 0.5, 0.6],
    "retention": [20, "unlimited", 40, 50],
    "lane_retention": [20, 30, 40, "unlimited"],
    "max_payload": [2000, 3000, 4000, 5000],
}
NOT_OF_LANES = ["ordering", "max_action_queue_length", "retention", "lane_retention", "max_payload"]


def set_scope(engine: Engine, scope: str, values: dict[str, Any]) -> None:
    """Set values at a scope of the action web.get, group prod."""
    calls = {
        "everything": "select count(*) from pgfifo.set_default_policy(%(values)s)",
        "pack": "select count(*) from pgfifo.set_pack_policy('web', %(values)s)",
        "declared": "select pgfifo.declare_action('web.get', %(values)s)",
        "action": "select count(*) from pgfifo.set_policy('web.get', %(values)s)",
        "lane": "select count(*) from pgfifo.set_policy('web.get', %(values)s, 'prod')",
    }
    engine.conn.execute(calls[scope], {"values": Jsonb(values)})


def test_policies_defaults_are_those_of_the_table(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue()
    assert engine.effective("deploy") == {name: (value, "default") for name, value in DEFAULTS.items()}
    assert engine.effective(None) == engine.effective("deploy"), "the defaults without an action are others"


def test_policies_without_an_action_those_of_everything_are_shown(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy("deploy", max_concurrent=3)
    values = Jsonb({"max_attempts": 2, "declared_actions_only": True})
    engine.rows("select * from pgfifo.set_default_policy(%s)", values)
    shown = engine.effective(None)
    assert [shown[name] for name in ("max_concurrent", "max_attempts", "declared_actions_only")] == [
        (1, "default"),
        (2, "everything"),
        (True, "everything"),
    ]
    assert engine.effective("deploy")["declared_actions_only"] == (True, "everything")
    with pytest.raises(errors.InvalidValue, match="only together with its action"):
        engine.effective(None, "prod")


@pytest.mark.parametrize("attribute", VALUES)
def test_policies_inherit_attribute_by_attribute(conn: Connection, attribute: str) -> None:
    engine = Engine(conn)
    engine.enqueue("web.get", group="prod")
    engine.enqueue("other")
    scopes = ["everything", "pack", "declared", "action", "lane"]
    if attribute in NOT_OF_LANES:
        scopes.remove("lane")
    for scope, value in zip(scopes, VALUES[attribute], strict=False):
        set_scope(engine, scope, {attribute: value})
        assert engine.effective("web.get", "prod")[attribute] == (value, scope)
        expected = (value, scope) if scope == "everything" else (VALUES[attribute][0], "everything")
        assert engine.effective("other")[attribute] == expected, "a value reached actions of another scope"
    if attribute not in NOT_OF_LANES:
        assert engine.effective("web.get")[attribute] == (VALUES[attribute][3], "action")
    for scope, wider, value in reversed(
        list(zip(scopes, ["default", *scopes], [DEFAULTS[attribute], *VALUES[attribute]], strict=False))
    ):
        set_scope(engine, scope, {attribute: None})
        assert engine.effective("web.get", "prod")[attribute] == (value, wider), "null did not inherit again"
    assert engine.effective("web.get", "prod") == {n: (v, "default") for n, v in DEFAULTS.items()}


def test_policies_change_only_what_is_named(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_concurrent=3, max_attempts=9)
    changed = engine.policy(max_concurrent=4, retention="1 day")
    assert changed == [("max_concurrent", 3, 4, None), ("retention", None, 86400, None)]
    effective = engine.effective("deploy")
    assert effective["max_attempts"] == (9, "action"), "a value that was not named was lost"
    assert effective["retention"] == (86400, "action")


def test_policies_a_pack_is_the_part_before_the_last_dot(conn: Connection) -> None:
    engine = Engine(conn)
    for action in ("core.http.get", "core.http", "core.http.x.y", "core", "http"):
        engine.enqueue(action)
    engine.conn.execute("select pgfifo.set_pack_policy('core.http', '{\"max_concurrent\": 7}')")
    got = {
        action: engine.stats(action)["max_concurrent"] for action in ("core.http.get", "core.http", "core")
    }
    assert got == {"core.http.get": 7, "core.http": 1, "core": 1}
    assert engine.stats("core.http.x.y")["max_concurrent"] == 1, "packs do not nest"


def test_policies_durations_are_seconds_or_intervals(conn: Connection) -> None:
    engine = Engine(conn)
    for given, seconds in ((90, 90), (1.5, 1.5), ("5 min", 300), ("01:00:00", 3600), ("2 days", 172800)):
        engine.policy(retention=given)
        assert engine.effective("deploy")["retention"][0] == seconds


@pytest.mark.parametrize(
    ("given", "shown", "n", "period"),
    [
        ("100/s", "100/s", 100, 1),
        (" 10 / minute ", "10/min", 10, 60),
        ("5/2H", "5/2h", 5, 7200),
        ("60/60s", "60/min", 60, 60),
        ("1/90s", "1/90s", 1, 90),
        ("3/1.5s", "3/1500ms", 3, 1.5),
        ("1000000/ms", "1000000/ms", 1000000, 0.001),
        ("7/week", "7/7d", 7, 604800),
        ("1/36h", "1/36h", 1, 129600),
        ("unlimited", "unlimited", float("inf"), 1),
    ],
)
def test_policies_a_rate_is_starts_per_time(
    conn: Connection, given: str, shown: str, n: float, period: float
) -> None:
    engine = Engine(conn)
    engine.policy(rate=given)
    assert engine.effective("deploy")["rate"] == (shown, "action")
    assert engine.rows("select rate_n, rate_period from pgfifo._action_policies") == [(n, period)]
    engine.policy(rate=shown)
    assert engine.effective("deploy")["rate"] == (shown, "action"), "what is shown cannot be given back"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("1000/day Europe/Berlin", "1000/day Europe/Berlin"),
        ("0050/month  europe/berlin", "50/month Europe/Berlin"),
        ("7/day", "7/day UTC"),
        ("unlimited", "unlimited"),
    ],
)
def test_policies_a_quota_is_enqueues_per_calendar_period(conn: Connection, given: str, shown: str) -> None:
    engine = Engine(conn)
    assert engine.policy(quota=given) == [("quota", None, shown, None)]
    assert engine.policy(quota=shown) == [("quota", shown, shown, None)]


def test_policies_a_quota_is_that_of_its_scope(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue("web.get", group="prod")
    for scope in ("everything", "pack", "declared", "lane"):
        set_scope(engine, scope, {"quota": f"{len(scope)}/day"})
    found = "select action_quota[1], pack_quota[1], everything_quota[1] from pgfifo._action_policies"
    assert engine.rows(found) == [("8", "4", "10")]
    assert engine.rows("select quota[1] from pgfifo._lane_policies") == [("4",)]
    set_scope(engine, "action", {"quota": "unlimited"})
    assert engine.rows(found) == [("infinity", "4", "10")], "an operator's word did not win over the code's"


BAD: list[tuple[str, Any]] = [
    ("max_concurrent", 0),
    ("max_concurrent", -1),
    ("max_concurrent", 1_000_001),
    ("max_concurrent", 1.5),
    ("max_concurrent", "3"),
    ("max_concurrent", "unlimited"),
    ("max_concurrent", True),
    ("max_concurrent", [3]),
    ("max_attempts", 0),
    ("max_attempts", 2.5),
    ("max_queue_length", 0),
    ("max_queue_length", "lots"),
    ("ordering", "loose"),
    ("ordering", 1),
    ("failure_mode", "drop"),
    ("failure_mode", 1),
    ("on_exhausted", "stop"),
    ("on_limit", "drop"),
    ("rate", 100),
    ("rate", "100"),
    ("rate", "0/s"),
    ("rate", "1000001/s"),
    ("rate", "1/0s"),
    ("rate", "1/0.1ms"),
    ("rate", "1/year"),
    ("rate", "1/366d"),
    ("rate", "-1/s"),
    ("rate", "1.5/s"),
    ("rate", [1, 1]),
    ("burst", 0),
    ("burst", "unlimited"),
    ("spacing", -1),
    ("spacing", "unlimited"),
    ("gap", "400 days"),
    ("max_wait", 0),
    ("max_wait", "-1 s"),
    ("timeout", 0),
    ("timeout", "2 years"),
    ("kill_after", -1),
    ("quota", 100),
    ("quota", "100"),
    ("quota", "0/day"),
    ("quota", "100/week"),
    ("quota", "100/day Europe/Berln"),
    ("quota", "10000000000/day"),
    ("backoff", "linear"),
    ("backoff_initial", -1),
    ("backoff_initial", "unlimited"),
    ("backoff_initial", "two years"),
    ("backoff_initial", 40_000_000),
    ("backoff_cap", -0.1),
    ("backoff_cap", {}),
    ("backoff_factor", 0.5),
    ("backoff_factor", 1001),
    ("backoff_factor", "2"),
    ("backoff_jitter", 1.1),
    ("backoff_jitter", -0.1),
    ("retention", -1),
    ("retention", "next week"),
    ("retention", 1e12),
    ("lane_retention", "-1 day"),
    ("audit_retention", "-1 day"),
    ("max_payload", 0),
    ("max_payload", 2**30),
    ("group_by", "customer"),
    ("group_by", [1]),
    ("group_by", [""]),
    ("group_by", ["a..b"]),
    ("group_by", [".a"]),
    ("group_by", [None]),
    ("colour", "red"),
    ("colour", None),
]


@pytest.mark.parametrize(("attribute", "value"), BAD)
@pytest.mark.parametrize("scope", ["everything", "declared", "action", "lane"])
def test_policies_bad_values_are_refused_in_words_and_change_nothing(
    conn: Connection, scope: str, attribute: str, value: Any
) -> None:
    engine = Engine(conn)
    engine.enqueue("web.get", group="prod")
    before = engine.effective("web.get", "prod")
    with pytest.raises(errors.InvalidValue) as caught:
        set_scope(engine, scope, {"max_attempts": 9, attribute: value})
    assert attribute in caught.value.message, "the message does not name the attribute"
    assert caught.value.detail.get("name") == attribute
    assert caught.value.hint
    assert engine.effective("web.get", "prod") == before, "half of a refused change was made"


@pytest.mark.parametrize(
    ("scope", "attribute"),
    [
        ("pack", "group_by"),
        ("everything", "group_by"),
        ("lane", "group_by"),
        *(("lane", attribute) for attribute in NOT_OF_LANES),
        *((scope, "declared_actions_only") for scope in ("lane", "action", "declared", "pack")),
        *((scope, "audit_retention") for scope in ("lane", "action", "declared", "pack")),
    ],
)
def test_policies_some_attributes_belong_to_some_scopes(conn: Connection, scope: str, attribute: str) -> None:
    engine = Engine(conn)
    engine.enqueue("web.get", group="prod")
    others: dict[str, Any] = {"group_by": ["env"], "declared_actions_only": True, "audit_retention": 1e6}
    value = others.get(attribute) or VALUES[attribute][0]
    with pytest.raises(errors.InvalidValue, match="belongs to"):
        set_scope(engine, scope, {attribute: value})


@pytest.mark.parametrize("values", ["null", "[]", "3", '"x"'])
def test_policies_are_objects(conn: Connection, values: str) -> None:
    with pytest.raises(errors.InvalidValue, match="JSON object"):
        conn.execute("select pgfifo.set_policy('deploy', %s::jsonb)", [values])
    with pytest.raises(errors.InvalidValue):
        conn.execute("select pgfifo.set_pack_policy('a b', '{}')")
    for name in ("", "a b", "x" * 201, None):
        with pytest.raises(errors.InvalidValue, match="no name for an action"):
            conn.execute("select pgfifo.set_policy(%s, '{}')", [name])


def test_policies_of_unknown_actions_are_refused_with_the_nearest_name(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue("billing.invoice")
    for call in ("effective_policy('biling.invoice')", "pause('biling.invoice')", "resume('biling.invoice')"):
        with pytest.raises(errors.UnknownAction) as caught:
            conn.execute(f"select * from pgfifo.{call}")
        assert "'billing.invoice'" in (caught.value.hint or ""), "the nearest name was not suggested"
    with pytest.raises(errors.UnknownAction):
        conn.execute("select * from pgfifo.effective_policy('zzz')")
    with pytest.raises(errors.GroupMismatch, match="no lane"):
        engine.pause("billing.invoice", "nobody")


def test_policies_declared_values_give_way_to_operators(conn: Connection) -> None:
    engine = Engine(conn)
    set_scope(engine, "declared", {"max_concurrent": 3, "max_attempts": 7})
    set_scope(engine, "action", {"max_concurrent": 5})
    set_scope(engine, "declared", {"max_concurrent": 4, "retention": "1 day"})
    effective = engine.effective("web.get")
    assert effective["max_concurrent"] == (5, "action"), "a deploy of the code undid what an operator had set"
    assert effective["retention"] == (86400, "declared")
    assert effective["max_attempts"] == (5, "default"), "a declaration is replaced as a whole"


def test_policies_a_declaration_that_says_less_is_a_change(conn: Connection) -> None:
    engine = Engine(conn)
    set_scope(engine, "declared", {"group_by": ["env", "app"], "rate": "60/s"})
    set_scope(engine, "declared", {"group_by": ["env"], "rate": "1/min"})
    effective = engine.effective("web.get")
    assert (effective["group_by"][0], effective["rate"][0]) == (["env"], "1/min")


def test_policies_declaring_the_same_again_changes_and_locks_nothing(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    values = {"max_concurrent": 3, "group_by": ["env"], "max_queue_length": 10, "retention": "unlimited"}
    set_scope(engine, "declared", values)
    before = engine.rows("select changed_at from pgfifo.policies")
    producer = Engine(connect(autocommit=False))
    producer.enqueue("web.get", {"env": "prod"})
    conn.execute("set lock_timeout = '1ms'")
    set_scope(engine, "declared", values)
    assert engine.rows("select changed_at from pgfifo.policies") == before
    producer.conn.rollback()


def test_policies_declared_by_many_processes_at_once(conn: Connection, connect: Connect) -> None:
    sessions = [connect() for _ in range(8)]
    for turn in range(20):
        declare = f"select pgfifo.declare_action('a{turn}', '{{\"max_concurrent\": 3}}')"
        answers = race(*((own, declare, []) for own in sessions))
        assert [answer for answer in answers if isinstance(answer, str)] == []
    assert Engine(conn).stats("a7")["max_concurrent"] == 3


def test_policies_group_by_changes_only_while_nothing_waits_unless_forced(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(group_by=["env"])
    old = [engine.enqueue(payload={"env": "prod", "app": "a"}) for _ in range(2)]
    with pytest.raises(errors.Busy, match="2 executions wait"):
        engine.policy(group_by=["app"])
    rows = engine.policy(group_by=["app"], force=True)
    assert rows == [("group_by", ["env"], ["app"], "2 waiting executions stay in their old lanes")]
    new = engine.enqueue(payload={"env": "prod", "app": "a"})
    assert sorted(engine.drain(engine.worker())) == [*old, new]
    assert engine.started(group='{"env":"prod"}') == old
    engine.policy(group_by=["env", "app", "env"])
    assert engine.effective("deploy")["group_by"][0] == ["app", "env"], "paths are kept sorted and once"
    engine.assert_promises()


def test_policies_group_by_that_does_not_hold_may_be_declared_while_something_waits(conn: Connection) -> None:
    """What somebody has set wins over what the code declares: a worker starts all the same."""
    engine = Engine(conn)
    declare = "select from pgfifo.declare_action('deploy', %s)"
    engine.policy(group_by=["env"])
    engine.enqueue(payload={"env": "prod"})
    engine.rows(declare, Jsonb({"group_by": ["env"]}))
    engine.rows(declare, Jsonb({"group_by": ["app"]}))
    assert engine.effective("deploy")["group_by"][0] == ["env"]
    with pytest.raises(errors.Busy, match="1 execution waits"):
        engine.policy(group_by=None)  # then the declared one would hold
    engine.rows(declare, Jsonb({"group_by": ["env"]}))
    engine.policy(group_by=None)
    assert engine.effective("deploy")["group_by"] == (["env"], "declared")
    with pytest.raises(errors.Busy, match="1 execution waits"):
        engine.rows(declare, Jsonb({"group_by": ["app"]}))


def test_policies_group_by_waits_for_enqueues_in_flight(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(group_by=["env"])
    producer, operator = Engine(connect(autocommit=False)), Engine(connect())
    producer.enqueue(payload={"env": "prod"})
    change = in_background(lambda: operator.policy(group_by=["app"]))
    wait_until_blocked(conn, operator.pid)
    producer.conn.commit()
    with pytest.raises(errors.Busy, match="1 execution waits"):
        change.result()


def test_policies_changes_are_audited(conn: Connection) -> None:
    engine = Engine(conn)
    engine.enqueue(group="prod")
    engine.policy(max_concurrent=3)
    engine.policy(group="prod", max_concurrent=4)
    engine.pause(group="prod")
    engine.resume(group="prod")
    rows = engine.rows("select what, action, group_text, detail -> 'to' from pgfifo.audit order by id")
    assert rows[:2] == [
        ("set_policy", "deploy", None, {"max_concurrent": 3}),
        ("set_policy", "deploy", "prod", {"max_concurrent": 4}),
    ]
    assert [row[0] for row in rows if row[0] in ("pause", "resume")] == ["pause", "resume"]


# -- max_queue_length ----------------------------------------------------------------------------------


def test_policies_the_eleventh_waiting_one_is_rejected_and_nothing_changed(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_queue_length=10)
    running, *_ = engine.fill(1)
    worker = engine.worker()
    (start,) = engine.claim(worker)
    ids = engine.fill(9)
    ids.append(engine.enqueue())
    before = engine.stats()
    with pytest.raises(errors.QueueFull) as caught:
        engine.enqueue()
    error = caught.value
    assert (error.action, error.limit, error.current) == ("deploy", 10, 10)
    assert "10 waiting, at most 10 allowed" in error.message
    assert engine.stats() == before
    assert running == start.id
    engine.hand_in(worker, start)
    (start,) = engine.claim(worker)
    ids.append(engine.enqueue())  # one was started, so there is a place
    with pytest.raises(errors.QueueFull):
        engine.enqueue()
    engine.cancel(ids[5])
    ids.append(engine.enqueue())
    with pytest.raises(errors.QueueFull):
        engine.enqueue()
    engine.policy(max_queue_length="unlimited")
    ids.append(engine.enqueue())
    engine.hand_in(worker, start)
    engine.drain(worker)
    engine.assert_promises()


def test_policies_of_twenty_producers_at_once_exactly_ten_get_in(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_queue_length=10)
    sessions = [connect() for _ in range(20)]
    for turn in range(5):
        group = f"lane {turn}"
        call = "select pgfifo.enqueue('deploy', '{}', $1)"
        answers = race(*((own, call, [group]) for own in sessions))
        full = [answer for answer in answers if answer == "QF001"]
        assert (len(answers) - len(full), len(full)) == (10, 10), "the limit was missed"
        assert engine.lane(group=group)["queue_length"] == 10
    engine.assert_promises()


def test_policies_enqueues_to_a_relaxed_line_with_a_limit_are_counted_one_by_one(
    conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    engine.policy(ordering="relaxed", max_queue_length=2)
    engine.enqueue()
    first, second = Engine(connect(autocommit=False)), Engine(connect())
    first.enqueue()
    waiting = in_background(second.enqueue)
    wait_until_blocked(conn, second.pid)
    first.conn.commit()
    with pytest.raises(errors.QueueFull):
        waiting.result()
    assert engine.stats()["queue_length"] == 2


def test_policies_a_batch_that_does_not_fit_is_rejected_as_a_whole(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_queue_length=3)
    engine.fill(2, group="b")
    before = [engine.stats(), engine.rows("select last_value from pgfifo.execution_ids")]
    with pytest.raises(errors.QueueFull) as caught:
        engine.enqueue_many("deploy", [{}] * 6, ["a", "b", "a", "b", "a", "a"])
    assert (caught.value.index, caught.value.group) == (3, "b"), (
        "the first item that does not fit is not named"
    )
    assert [engine.stats(), engine.rows("select last_value from pgfifo.execution_ids")] == before
    with pytest.raises(errors.QueueFull) as caught:
        engine.fill(4)
    assert caught.value.index == 3
    assert engine.stats() == before[0], "a part of a rejected batch got in"
    assert len(engine.enqueue_many("deploy", [{}] * 4, ["a", "b", "a", "a"])) == 4
    engine.assert_promises()


def test_policies_a_line_counts_what_the_same_transaction_has_put_in(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_queue_length=3)
    with conn.transaction(force_rollback=True):
        engine.fill(2)
        engine.enqueue()
        with pytest.raises(errors.QueueFull), conn.transaction():
            engine.enqueue()
    assert len(engine.fill(3)) == 3, "what was rolled back still counts"


def test_policies_a_limited_line_needs_read_committed(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.policy(max_queue_length=3)
    other = connect(autocommit=False)
    other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    for enqueue in (Engine(other).enqueue, lambda: Engine(other).fill(1)):
        with pytest.raises(errors.IsolationLevel, match="max_queue_length"):
            enqueue()
        other.rollback()


def test_policies_a_limit_set_over_a_longer_line_lets_it_drain(conn: Connection) -> None:
    engine = Engine(conn)
    ids = engine.fill(5)
    engine.policy(max_queue_length=2)
    with pytest.raises(errors.QueueFull, match="5 waiting, at most 2"):
        engine.enqueue()
    engine.policy(group="", max_queue_length=6)
    ids.append(engine.enqueue())
    with pytest.raises(errors.QueueFull):
        engine.enqueue()
    assert engine.drain(engine.worker()) == ids
    engine.assert_promises()


# -- payloads ------------------------------------------------------------------------------------------


def test_policies_payloads_over_their_limit_are_refused(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(max_payload=100)
    engine.enqueue(payload={"x": "y" * 80})
    with pytest.raises(errors.PayloadTooLarge, match="at most 100"):
        engine.enqueue(payload={"x": "y" * 100})
    with pytest.raises(errors.PayloadTooLarge) as caught:
        engine.enqueue_many("deploy", [{}, {"x": "y" * 100}, {"x": "y" * 100}])
    assert caught.value.detail["index"] == 1
    with pytest.raises(errors.InvalidValue, match="missing"):
        conn.execute("select pgfifo.enqueue('deploy', null)")
    for payload in ("null", "1", '"text"', "[1]", "{}"):
        conn.execute("select pgfifo.enqueue('deploy', %s::jsonb)", [payload])
    assert engine.stats()["queue_length"] == 6
