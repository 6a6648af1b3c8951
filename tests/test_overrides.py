"""Overrides win over every scope for a time and end by themselves; and who set what, and where it is from."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgfifo import errors
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine, Hand, race
from tests.test_policies import NOT_OF_LANES, VALUES, set_scope

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

CALLS = {
    "everything": "select attribute, old, new from pgfifo.override_default_policy(%s, %s)",
    "pack": "select attribute, old, new from pgfifo.override_pack_policy('web', %s, %s)",
    "action": "select attribute, old, new from pgfifo.override_policy('web.get', %s, %s)",
    "lane": "select attribute, old, new from pgfifo.override_policy('web.get', %s, %s, 'prod')",
}
SCOPES = list(CALLS)
OVERRIDABLE = [name for name in VALUES if name not in ("ordering", "max_wait")]


def override(
    engine: Engine, scope: str = "action", lasting: str | None = "1 hour", **values: object
) -> list[tuple[Any, ...]]:
    """Override values at a scope of the action web.get, group prod."""
    return engine.rows(CALLS[scope], Jsonb(values), lasting)


def in_force(engine: Engine, attribute: str = "max_concurrent", group: str | None = "prod") -> Any:
    value, source = engine.effective("web.get", group)[attribute]
    return value, source


@pytest.fixture
def engine(conn: Connection) -> Engine:
    """The engine, with a lane prod of the action web.get."""
    engine = Engine(conn)
    engine.enqueue("web.get", group="prod")
    return engine


# What they win over


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("attribute", OVERRIDABLE)
def test_overrides_win_over_every_scope_until_their_time_is_over(
    engine: Engine, scope: str, attribute: str
) -> None:
    try:
        set_scope(engine, scope, {attribute: VALUES[attribute][0]})
    except errors.InvalidValue:
        with pytest.raises(errors.InvalidValue, match="belongs to"):
            override(engine, scope, **{attribute: VALUES[attribute][0]})
        return
    value = VALUES[attribute][-1]
    for each, own in zip(("everything", "pack", "declared", "action"), VALUES[attribute], strict=False):
        set_scope(engine, each, {attribute: own})
    before = in_force(engine, attribute)
    assert override(engine, scope, **{attribute: value}) == [(attribute, None, value)]
    assert in_force(engine, attribute) == (value, "override")
    view = "_lane_policies" if attribute not in NOT_OF_LANES else "_action_policies"
    read = f"select pgfifo._shown(%s, to_jsonb(p) -> %s) from pgfifo.{view} p"
    assert engine.one(read, attribute, attribute) == value, "claims read another value than is shown"
    engine.advance("59 min")
    assert in_force(engine, attribute) == (value, "override")
    engine.advance("61 s")
    assert in_force(engine, attribute) == before, "it did not end by itself"


def test_overrides_of_a_narrower_target_win_over_those_of_a_wider(engine: Engine) -> None:
    engine.policy("web.get", "prod", max_concurrent=9)
    for at, scope in enumerate(SCOPES):
        override(engine, scope, f"{60 - at} min", max_concurrent=10 + at)
        assert in_force(engine) == (10 + at, "override")
        assert engine.lane("web.get", "prod")["max_concurrent"] == 10 + at
    assert in_force(engine, group=None) == (12, "override")
    engine.advance("57 min")
    assert in_force(engine) == (12, "override"), "what is wider should hold when the narrower one is over"
    engine.advance("4 min")
    assert in_force(engine) == (9, "lane")


def test_overrides_reach_only_their_target(engine: Engine) -> None:
    engine.enqueue("web.get", group="test")
    engine.enqueue("web.put")
    engine.enqueue("web.x.y")
    override(engine, "lane", max_concurrent=5)
    assert engine.lane("web.get", "test")["max_concurrent"] == 1
    override(engine, "action", max_concurrent=6)
    assert engine.lane("web.get", "test")["max_concurrent"] == 6
    assert engine.stats("web.put")["max_concurrent"] == 1
    override(engine, "pack", max_concurrent=7)
    assert engine.stats("web.put")["max_concurrent"] == 7
    assert engine.stats("web.x.y")["max_concurrent"] == 1


def test_overrides_of_quotas_hold_at_their_scope(engine: Engine) -> None:
    for scope in SCOPES:
        set_scope(engine, scope, {"quota": "1/day"})
    override(engine, "pack", quota="5/month Europe/Berlin")
    columns = "action_quota[1], pack_quota, everything_quota[1]"
    assert engine.rows(f"select {columns} from pgfifo._action_policies") == [
        ("1", ["5", "month", "Europe/Berlin"], "1")
    ]
    override(engine, "lane", quota="6/day")
    assert engine.rows("select quota from pgfifo._lane_policies") == [(["6", "day", "UTC"],)]
    shown = engine.rows(
        "select source, origin, value from pgfifo.effective_policy('web.get', 'prod')"
        " where attribute = 'quota'"
    )
    assert shown == [
        ("override", "lane web.get prod", "6/day UTC"),
        ("action", "web.get", "1/day UTC"),
        ("override", "pack web", "5/month Europe/Berlin"),
        ("everything", None, "1/day UTC"),
    ]


def test_overrides_can_be_given_more_time_replaced_and_ended(engine: Engine) -> None:
    override(engine, max_concurrent=5, max_attempts=2)
    engine.advance("50 min")
    assert override(engine, max_concurrent=6) == [("max_concurrent", 5, 6)]
    engine.advance("30 min")
    assert engine.maintain()["elected"]
    assert in_force(engine) == (6, "override"), "the end of the first one ended the second"
    assert in_force(engine, "max_attempts") == (5, "default")
    assert override(engine, lasting=None, max_concurrent=None, rate=None) == [
        ("max_concurrent", 6, None),
        ("rate", None, None),
    ]
    assert in_force(engine) == (1, "default")
    assert engine.rows("select * from pgfifo.overrides") == []


def test_overrides_are_listed_with_the_time_that_is_left(engine: Engine) -> None:
    engine.rows("select set_config('pgfifo.actor', 'ann', false)")
    engine.rows(
        "select * from pgfifo.override_policy('web.get', %s, '1 hour', 'prod', 'incident')",
        Jsonb({"rate": "5/2h"}),
    )
    override(engine, "pack", "2 hours", timeout="unlimited")
    engine.advance("10 min")
    rows = engine.rows(
        "select scope, action, group_text, pack, attribute, value, round(remaining), set_by, actor, reason"
        " from pgfifo.overrides order by until"
    )
    who = engine.one("select session_user")
    assert rows == [
        ("lane", "web.get", "prod", None, "rate", "5/2h", 3000, who, "ann", "incident"),
        ("pack", None, None, "web", "timeout", "unlimited", 6600, who, "ann", None),
    ]


@pytest.mark.parametrize(
    ("values", "lasting", "message"),
    [
        ({"max_concurrent": 3}, None, "lasts for a time"),
        ({"max_concurrent": 3}, "0 s", "lasts for a time"),
        ({"max_concurrent": 3}, "-1 hour", "lasts for a time"),
        ({"max_concurrent": 3}, "3 years", "lasts for a time"),
        ({"max_concurrent": 0}, "1 hour", "whole number"),
        ({"group_by": ["env"]}, "1 hour", "cannot be overridden"),
        ({"ordering": "relaxed"}, "1 hour", "cannot be overridden"),
        ({"max_wait": 3}, "1 hour", "cannot be overridden"),
        ({"audit_retention": "2 d"}, "1 hour", "belongs to everything"),
        ({"colour": "red"}, "1 hour", "no attribute"),
        ([], "1 hour", "JSON object"),
    ],
)
def test_overrides_that_cannot_be_are_refused_in_words(
    engine: Engine, values: object, lasting: str | None, message: str
) -> None:
    with pytest.raises(errors.InvalidValue, match=message):
        engine.rows(CALLS["action"], Jsonb(values), lasting)
    assert engine.rows("select * from pgfifo.overrides") == []


def test_overrides_of_unknown_actions_are_refused(engine: Engine) -> None:
    with pytest.raises(errors.UnknownAction) as caught:
        engine.rows("select pgfifo.override_policy('web.got', '{\"max_concurrent\": 3}', '1 hour')")
    assert "'web.get'" in (caught.value.hint or "")
    with pytest.raises(errors.InvalidValue, match="no name for a pack"):
        engine.rows("select pgfifo.override_pack_policy('a b', '{\"max_concurrent\": 3}', '1 hour')")


def test_overrides_are_named_when_a_policy_below_them_is_set(engine: Engine) -> None:
    override(engine, "pack", max_concurrent=3)
    [(_, _, _, note)] = engine.policy("web.get", "prod", max_concurrent=7)
    assert note.startswith("an override of max_concurrent holds until "), (
        "nobody said that this has no effect yet"
    )
    [(_, _, _, note)] = engine.policy("web.get", max_attempts=7)
    assert note is None
    engine.advance("2 hours")
    [(_, _, _, note)] = engine.policy("web.get", "prod", max_concurrent=8)
    assert note is None


def test_overrides_of_a_time_limit_reach_the_workers(engine: Engine) -> None:
    override(engine, "pack", timeout=60)
    worker = engine.worker("web.get")
    asked = "select detail from pgfifo.work(%s, array['web.get'], 1, 1) where kind = 'limit'"
    assert engine.rows(asked, worker) == [({"timeout": 60},)]


# Their end: nobody does anything, and what waits gets going


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("noticed_by", ["a claim", "maintenance"])
def test_overrides_that_lowered_a_limit_end_and_the_lane_gets_going(
    engine: Engine, scope: str, noticed_by: str
) -> None:
    engine.policy("web.get", max_concurrent=3)
    override(engine, scope, max_concurrent=1)
    engine.fill(3, "web.get", "prod")
    worker = engine.worker("web.get")
    assert len(engine.claim(worker, 5, ["web.get"])) == 1
    assert engine.claim(worker, 5, ["web.get"]) == []
    engine.advance("1 hour")
    if noticed_by == "maintenance":
        engine.maintain()
        assert engine.rows("select * from pgfifo._overrides") == []
    assert len(engine.claim(worker, 5, ["web.get"])) == 2, "its lane was not looked at again"
    assert engine.claim(worker, 5, ["web.get"]) == []
    engine.tick(3)
    engine.assert_promises()


@pytest.mark.parametrize("scope", SCOPES)
def test_overrides_say_when_they_end_to_workers_that_find_nothing(engine: Engine, scope: str) -> None:
    """Or what may start then waits for their poll."""
    override(engine, scope, "1 h", max_concurrent=2)
    override(engine, scope, "40 s", max_concurrent=1)
    override(engine, scope, "20 s", timeout=5)
    engine.fill(2, "web.get", "prod")
    engine.enqueue("other")
    worker, other = engine.worker("web.get"), engine.worker("other")
    assert len(engine.claim(worker, 1, ["web.get"])) == 1
    answer = engine.work(worker, 5, ["web.get"])
    assert (answer.ids, answer.more) == ([], "later")
    assert answer.seconds == pytest.approx(40, abs=5), "a worker is not told when to look again"
    assert engine.drain(other, ["other"])
    elsewhere = engine.work(other, 5, ["other"])
    said = "later" if scope == "everything" else None
    assert elsewhere.more == said, "told of what is none of its business"
    override(engine, scope, None, max_concurrent=None, timeout=None)
    assert engine.work(other, 5, ["other"]).more is None


@pytest.mark.parametrize("scope", SCOPES)
def test_overrides_that_a_claim_in_flight_keeps_from_ending_are_tried_again_soon(
    engine: Engine, connect: Connect, scope: str
) -> None:
    engine.policy("web.get", max_concurrent=3)
    engine.fill(3, "web.get", "prod")
    override(engine, scope, max_concurrent=1)
    claiming = Engine(connect(autocommit=False))
    worker = engine.worker("web.get")
    assert len(claiming.claim(worker, 1, ["web.get"])) == 1
    engine.advance("1 hour")
    other = engine.worker("web.get")
    answer = engine.work(other, 5, ["web.get"])
    assert (answer.ids, answer.more) == ([], "soon"), "the lane waits for a poll"
    claiming.conn.commit()
    assert len(engine.claim(other, 5, ["web.get"])) == 2
    engine.assert_promises()


@pytest.mark.parametrize("scope", ["pack", "everything"])
def test_overrides_that_end_reach_actions_that_came_after_them(engine: Engine, scope: str) -> None:
    override(engine, scope, max_concurrent=1)
    engine.policy("web.new", max_concurrent=3)
    engine.fill(3, "web.new")
    worker = engine.worker("web.new")
    assert len(engine.claim(worker, 5, ["web.new"])) == 1
    engine.advance("1 hour")
    assert len(engine.claim(worker, 5, ["web.new"])) == 2
    engine.assert_promises()


@pytest.mark.parametrize("scope", SCOPES)
def test_overrides_that_raised_a_limit_end_and_nothing_starts_above_the_old_one(
    engine: Engine, scope: str
) -> None:
    override(engine, scope, max_concurrent=3)
    engine.fill(5, "web.get", "prod")
    worker = engine.worker("web.get")
    starts = engine.claim(worker, 5, ["web.get"])
    assert len(starts) == 3, "it did not apply to what was waiting"
    engine.advance("1 hour")
    for start in starts[:2]:
        engine.finish(start)
        assert engine.claim(worker, 5, ["web.get"]) == [], "started above the limit that holds again"
    engine.finish(starts[2])
    assert len(engine.claim(worker, 5, ["web.get"])) == 1
    engine.assert_promises()


@pytest.mark.parametrize("scope", SCOPES)
def test_overrides_that_are_ended_or_begun_apply_at_once_to_what_waits(engine: Engine, scope: str) -> None:
    engine.fill(5, "web.get", "prod")
    worker = engine.worker("web.get")
    assert len(engine.claim(worker, 10, ["web.get"])) == 1
    override(engine, scope, max_concurrent=4)
    assert len(engine.claim(worker, 10, ["web.get"])) == 3
    override(engine, scope, max_concurrent=1)
    engine.policy("web.get", max_concurrent=5)
    assert engine.claim(worker, 10, ["web.get"]) == []
    override(engine, scope, None, max_concurrent=None)
    assert len(engine.claim(worker, 10, ["web.get"])) == 1
    engine.assert_promises()


@pytest.mark.parametrize("scope", SCOPES)
def test_overrides_end_under_the_lock_of_a_claim_in_flight(
    engine: Engine, connect: Connect, scope: str
) -> None:
    """A claim that read the clock before the end may still find its lane full, and eats the marks it sees."""
    engine.policy("web.get", max_concurrent=3)
    engine.fill(2, "web.get", "prod")
    override(engine, scope, max_concurrent=1)
    claiming = Engine(connect(autocommit=False))
    worker = engine.worker("web.get")
    assert len(claiming.claim(worker, 1, ["web.get"])) == 1
    engine.advance("1 hour")
    engine.maintain()
    assert engine.one("select count(*) from pgfifo._overrides") == 1, (
        "its lanes were marked beside that claim"
    )
    claiming.conn.commit()
    engine.tick()
    assert engine.one("select count(*) from pgfifo._overrides") == 0
    assert len(engine.claim(worker, 5, ["web.get"])) == 2
    engine.assert_promises()


@pytest.mark.parametrize("scope", SCOPES)
def test_overrides_wait_for_a_claim_in_flight(engine: Engine, connect: Connect, scope: str) -> None:
    engine.policy("web.get", max_concurrent=3)
    engine.fill(5, "web.get", "prod")
    worker = engine.worker("web.get")
    claiming, operator = Engine(connect(autocommit=False)), Engine(connect())
    assert len(claiming.claim(worker, 2, ["web.get"])) == 2
    change = in_background(lambda: override(operator, scope, max_concurrent=1))
    wait_until_blocked(engine.conn, operator.pid)
    claiming.conn.commit()
    change.result()
    assert engine.claim(worker, 5, ["web.get"]) == [], (
        "started above the limit that has been in force since before"
    )
    engine.assert_promises()


def test_overrides_are_as_if_never_set_when_their_transaction_rolls_back(
    engine: Engine, connect: Connect
) -> None:
    operator = Engine(connect(autocommit=False))
    override(operator, max_concurrent=5)
    operator.conn.rollback()
    assert in_force(engine) == (1, "default")
    assert engine.rows("select * from pgfifo.policy_history()") == []


def test_overrides_keep_an_idle_lane_until_they_end(engine: Engine) -> None:
    engine.policy("web.get", lane_retention=10)
    engine.drain(engine.worker("web.get"), ["web.get"])
    override(engine, "lane", max_concurrent=5)
    for _ in range(30):
        engine.tick()
    assert in_force(engine) == (5, "override"), "the lane went, and the override with it"
    engine.advance("1 hour")
    engine.tick(3)
    assert engine.rows("select * from pgfifo.lanes") == []
    assert engine.rows("select * from pgfifo._overrides") == []


def test_overrides_that_come_and_go_under_load_break_no_promise(engine: Engine, connect: Connect) -> None:
    groups = ["prod", "a", "b"]
    for _ in range(60):
        for group in groups:
            engine.enqueue("web.get", group=group)
    hands = [Hand(connect(), "web.get") for _ in range(3)]
    operators = [connect() for _ in range(2)]
    running: dict[int, list[Any]] = {hand.id: [] for hand in hands}
    left = 181
    for turn in range(400):
        scope, other = SCOPES[turn % 4], SCOPES[(turn // 2) % 4]
        changes = [
            (operator, CALLS[each].replace("%s, %s", "$1, $2", 1), [{"max_concurrent": 1 + turn % 4}, "2 s"])
            for operator, each in zip(operators, (scope, other), strict=True)
        ]
        claims = [
            (
                hand.engine.conn,
                "select id, attempt from pgfifo.work($1, array['web.get'], 2) where kind = 'start'",
                [hand.id],
            )
            for hand in hands
        ]
        answers = race(*changes, *claims)
        assert not [answer for answer in answers if isinstance(answer, str)]
        for hand, answer in zip(hands, answers[2:], strict=True):
            running[hand.id] += [(row[0], row[1]) for row in answer]
            if running[hand.id] and turn % 3:
                for id_, attempt in running[hand.id]:
                    finished = engine.one("select pgfifo.finish(%s, %s, 'succeeded')", id_, attempt)
                    assert finished == "succeeded"
                    left -= 1
                running[hand.id] = []
        engine.advance("900 ms")
        if turn % 5 == 0:
            engine.maintain()
        if not left:
            break
    assert left == 0, "something that could start was not looked at"
    engine.assert_promises()


# Where each value is from


def test_policies_say_exactly_where_each_value_is_from(engine: Engine) -> None:
    set_scope(engine, "everything", {"max_attempts": 2, "retention": 20})
    set_scope(engine, "pack", {"timeout": 60, "rate": "5/min"})
    set_scope(engine, "declared", {"backoff": "constant"})
    set_scope(engine, "action", {"gap": 3})
    set_scope(engine, "lane", {"spacing": 3})
    override(engine, "everything", "90 s", max_attempts=5)
    rows = engine.rows(
        "select attribute, value, source, origin, round(remaining),"
        " until - pgfifo._now() between '80 s' and '90 s'"
        " from pgfifo.effective_policy('web.get', 'prod')"
    )
    found = {row[0]: row[1:] for row in rows}
    assert found["retention"] == (20, "everything", None, None, None)
    assert found["timeout"] == (60, "pack", "web", None, None)
    assert found["backoff"] == ("constant", "declared", "web.get", None, None)
    assert found["gap"] == (3, "action", "web.get", None, None)
    assert found["spacing"] == (3, "lane", "web.get prod", None, None)
    assert found["max_attempts"] == (5, "override", "everything", 90, True)
    assert found["kill_after"] == (10, "default", None, None, None)
    assert found["burst"] == (5, "default", None, None, None), (
        "without a burst of its own it is that of the rate"
    )


def test_policies_print_the_group_of_a_lane(conn: Connection) -> None:
    engine = Engine(conn)
    engine.policy(group_by=["env", "app"])
    group = '{"env": "prod", "app": "x"}'
    engine.policy(group=group, max_concurrent=3)
    origin = "select origin from pgfifo.effective_policy('deploy', %s) where attribute = 'max_concurrent'"
    assert engine.one(origin, group) == "deploy app=x,env=prod"


# Who changed it


def test_policies_have_a_history_of_who_changed_what_from_what_to_what(
    engine: Engine, connect: Connect
) -> None:
    other = Engine(connect(application_name="deployer"))
    other.rows("select set_config('pgfifo.actor', 'ann', false)")
    set_scope(other, "declared", {"max_concurrent": 2})
    set_scope(other, "declared", {"max_concurrent": 3, "max_attempts": 9})
    set_scope(other, "action", {"max_concurrent": 4, "rate": "5/s"})
    set_scope(other, "action", {"max_concurrent": 4, "rate": None})
    set_scope(other, "lane", {"max_concurrent": 5})
    set_scope(other, "pack", {"max_concurrent": 6})
    set_scope(other, "everything", {"max_concurrent": 7})
    override(other, "lane", max_concurrent=8)
    columns = "scope, action, group_text, pack, attribute, old, new, until is not null"
    query = f"select {columns} from pgfifo.policy_history"
    own: list[tuple[Any, ...]] = [
        ("lane", "web.get", "prod", None, "max_concurrent", None, 8, True),
        ("everything", None, None, None, "max_concurrent", None, 7, False),
        ("pack", None, None, "web", "max_concurrent", None, 6, False),
        ("lane", "web.get", "prod", None, "max_concurrent", None, 5, False),
        ("action", "web.get", None, None, "rate", "5/s", None, False),
        ("action", "web.get", None, None, "max_concurrent", None, 4, False),
        ("action", "web.get", None, None, "rate", None, "5/s", False),
        ("declared", "web.get", None, None, "max_attempts", None, 9, False),
        ("declared", "web.get", None, None, "max_concurrent", 2, 3, False),
        ("declared", "web.get", None, None, "max_concurrent", None, 2, False),
    ]
    assert engine.rows(f"{query}()") == own
    assert engine.rows(f"{query}(p_limit => 2)") == own[:2]
    assert engine.rows(f"{query}('web.get')") == [row for row in own if row[1]]
    assert engine.rows(f"{query}('web.get', 'prod')") == [row for row in own if row[2]]
    assert engine.rows(f"{query}(p_pack => 'web')") == [row for row in own if row[3]]
    assert engine.rows(f"{query}(p_scope => 'everything')") == [row for row in own if row[0] == "everything"]
    who = engine.rows("select distinct who, application, actor from pgfifo.policy_history()")
    assert who == [(engine.one("select session_user"), "deployer", "ann")]
    with pytest.raises(errors.UnknownAction):
        engine.rows(f"{query}('web.got')")
    with pytest.raises(errors.InvalidValue, match="together with its action"):
        engine.rows(f"{query}(null, 'prod')")


def test_policies_that_are_set_to_what_they_are_leave_no_trace(engine: Engine) -> None:
    engine.policy("web.get", rate="60/s", quota="5/day", max_wait="unlimited")
    before = engine.rows("select * from pgfifo.audit")
    engine.policy("web.get", rate="60/s", quota="5/day UTC", max_wait="unlimited", gap=None)
    assert engine.rows("select * from pgfifo.audit") == before


def test_policies_are_read_by_key_however_many_there_are(conn: Connection) -> None:
    """With the plans of empty tables, as functions have them."""
    engine = Engine(conn)
    conn.execute("set enable_seqscan = off")
    conn.execute("set plan_cache_mode = force_generic_plan")
    conn.execute(
        "prepare action(integer[]) as"
        " select p.max_concurrent, p.rate_n from pgfifo._action_policies p where p.action_id = any ($1)"
    )
    conn.execute(
        "prepare lane(bigint) as"
        " select p.max_concurrent, p.rate_n from pgfifo._lane_policies p where p.lane_id = $1"
    )

    def walked(plan: Any) -> float:
        """How many rows the busiest step of a plan has seen."""
        removed = sum(count for name, count in plan.items() if name.startswith("Rows Removed"))
        own = (plan["Actual Rows"] + removed) * plan["Actual Loops"]
        return float(max([own, *map(walked, plan.get("Plans", []))]))

    engine.rows("execute action('{5}')")
    engine.rows("execute lane(5)")
    read = "select count(*) from generate_series(1, 200) n, lateral pgfifo"
    engine.policy("web.a1", max_concurrent=2)
    engine.rows(f"{read}.set_policy('web.a' || n, '{{\"max_concurrent\": 2}}') p")
    engine.rows(f"{read}.set_pack_policy('p' || n, '{{\"max_concurrent\": 2}}') p")
    engine.rows(f"{read}.set_policy('web.a1', '{{\"max_concurrent\": 2}}', n::text) p")
    engine.rows(f"{read}.override_policy('web.a1', '{{\"rate\": \"5/s\"}}', '1 hour', n::text) p")
    for what, key in (("action", "'{5}'"), ("lane", "5")):
        [found] = engine.one(f"explain (analyze, format json) execute {what}({key})")
        assert found["Plan"]["Actual Rows"] == 1
        assert walked(found["Plan"]) <= 5, f"the policies of {what}s are searched, not looked up"
