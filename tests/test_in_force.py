"""What is kept of policies for claims and enqueues is never older than what is in force."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgfifo import errors
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

CHANGES = {
    "everything": "select pgfifo.set_default_policy('{\"max_concurrent\": 3}')",
    "pack": "select pgfifo.set_pack_policy('web', '{\"max_concurrent\": 3}')",
    "action": "select pgfifo.set_policy('web.get', '{\"max_concurrent\": 3}')",
    "an override": "select pgfifo.override_policy('web.get', '{\"max_concurrent\": 3}', '1 hour')",
}
SCOPES = list(CHANGES)
AFTER: dict[str, list[int]] = {"everything": [], "pack": [], "action": [3], "an override": []}
"""What is kept after a change: it has been forgotten, and of one action kept anew."""


@pytest.fixture
def engine(conn: Connection) -> Engine:
    """The engine, with six waiting in one lane of web.get, nothing said of it anywhere."""
    engine = Engine(conn)
    engine.fill(6, action="web.get", group="prod")
    return engine


def kept(engine: Engine) -> list[int]:
    """The limits that are kept."""
    return [row[0] for row in engine.rows("select f.max_concurrent from pgfifo._in_force f")]


def test_in_force_is_kept_by_the_first_claim_and_read_by_the_next(engine: Engine) -> None:
    worker = engine.worker("web.get")
    assert kept(engine) == []
    first = engine.claim(worker, 1, actions=["web.get"])
    assert (len(first), kept(engine)) == (1, [1])
    before = engine.one("select f.xmin from pgfifo._in_force f")
    engine.hand_in(worker, *first)
    assert len(engine.claim(worker, 1, actions=["web.get"])) == 1
    assert engine.one("select f.xmin from pgfifo._in_force f") == before, "it was written again"


@pytest.mark.parametrize("scope", SCOPES)
def test_in_force_a_change_at_any_scope_applies_to_the_very_next_claim(engine: Engine, scope: str) -> None:
    worker = engine.worker("web.get")
    assert len(engine.claim(worker, 6, actions=["web.get"])) == 1
    engine.conn.execute(CHANGES[scope])
    assert kept(engine) == AFTER[scope]
    assert len(engine.claim(worker, 6, actions=["web.get"])) == 2
    assert kept(engine) == [3]
    engine.assert_promises()


@pytest.mark.parametrize("scope", SCOPES)
def test_in_force_a_change_that_rolls_back_leaves_what_was_kept(
    engine: Engine, connect: Connect, scope: str
) -> None:
    worker = engine.worker("web.get")
    engine.claim(worker, 1, actions=["web.get"])
    operator = connect(autocommit=False)
    operator.execute(CHANGES[scope])
    assert kept(engine) == [1]
    # Nothing of the action starts while its limits are changing, nor is anything kept.
    assert engine.claim(worker, 6, actions=["web.get"]) == []
    operator.rollback()
    assert kept(engine) == [1]
    engine.assert_promises()


@pytest.mark.parametrize("scope", SCOPES)
def test_in_force_nothing_is_kept_while_a_change_is_under_way(
    engine: Engine, connect: Connect, scope: str
) -> None:
    """A claim before the commit would keep the old limit: the change has only taken away what was there."""
    worker = engine.worker("web.get")
    operator = connect(autocommit=False)
    operator.execute(CHANGES[scope])
    assert engine.claim(worker, 6, actions=["web.get"]) == []
    assert kept(engine) == []
    operator.commit()
    assert len(engine.claim(worker, 6, actions=["web.get"])) == 3
    engine.assert_promises()


@pytest.mark.parametrize("scope", SCOPES)
def test_in_force_a_change_waits_for_a_claim_that_is_keeping_the_old(
    engine: Engine, connect: Connect, scope: str
) -> None:
    """The row that an open claim has written is not to be seen yet, and yet the change takes it away."""
    worker = engine.worker("web.get")
    claimer, operator = Engine(connect(autocommit=False)), Engine(connect())
    assert len(claimer.claim(worker, 1, actions=["web.get"])) == 1
    change = in_background(lambda: operator.conn.execute(CHANGES[scope]))
    wait_until_blocked(engine.conn, operator.pid)
    assert kept(engine) == []
    claimer.conn.commit()
    change.result()
    assert kept(engine) == AFTER[scope]
    assert len(engine.claim(worker, 6, actions=["web.get"])) == 2
    engine.assert_promises()


@pytest.mark.parametrize("is_kept", [True, False])
def test_in_force_changes_of_one_and_of_all_actions_wait_for_each_other(
    engine: Engine, connect: Connect, is_kept: bool
) -> None:
    """Each forgets what is kept of the action: none of them may see the other's half of it."""
    worker = engine.worker("web.get")
    if is_kept:
        engine.claim(worker, 1, actions=["web.get"])
    one, all_ = connect(autocommit=False), Engine(connect())
    one.execute(CHANGES["action"])
    change = in_background(lambda: all_.conn.execute(CHANGES["everything"]))
    wait_until_blocked(engine.conn, all_.pid)
    one.rollback()
    change.result()
    assert kept(engine) == []
    engine.claim(worker, 6, actions=["web.get"])
    engine.assert_promises()
    with one.transaction():
        one.execute("select pgfifo.set_policy('another', '{}')")
        two = Engine(connect())
        two.conn.execute(CHANGES["action"])  # of two different actions: beside each other


def test_in_force_of_two_claims_that_find_nothing_one_keeps_it_and_none_waits(
    engine: Engine, connect: Connect
) -> None:
    engine.fill(2, action="web.get", group="test")
    first, second = engine.worker("web.get"), engine.worker("web.get")
    keeping = Engine(connect(autocommit=False))
    assert len(keeping.claim(first, 1, actions=["web.get"])) == 1
    assert [each.group for each in engine.claim(second, 5, actions=["web.get"])] == ["test"]
    keeping.conn.commit()
    assert kept(engine) == [1]
    engine.assert_promises()


def test_in_force_an_override_ends_by_the_clock(engine: Engine) -> None:
    engine.conn.execute(CHANGES["an override"])
    worker = engine.worker("web.get", lease="1 day")
    assert len(engine.claim(worker, 2, actions=["web.get"])) == 2
    assert kept(engine) == [3]
    engine.advance("1 hour")
    assert engine.claim(worker, 6, actions=["web.get"]) == []
    assert kept(engine) == [1]
    engine.assert_promises()


def test_in_force_an_override_of_a_length_ends_by_the_clock_of_an_enqueue(engine: Engine) -> None:
    engine.policy("web.get", max_queue_length=5)
    engine.rows("select * from pgfifo.override_policy('web.get', '{\"max_queue_length\": 9}', '1 hour')")
    assert len(engine.claim(engine.worker("web.get"), 1, actions=["web.get"])) == 1
    engine.enqueue("web.get", group="prod")
    engine.advance("1 hour")
    with pytest.raises(errors.QueueFull):
        engine.enqueue("web.get", group="prod")


def test_in_force_enqueues_read_what_is_kept_and_ask_where_nothing_is(engine: Engine) -> None:
    engine.policy("web.get", max_queue_length=6)
    with pytest.raises(errors.QueueFull):
        engine.enqueue("web.get", group="prod")
    worker = engine.worker("web.get")
    started = engine.claim(worker, 1, actions=["web.get"])
    engine.enqueue("web.get", group="prod")
    with pytest.raises(errors.QueueFull):
        engine.enqueue("web.get", group="prod")
    engine.policy("web.get", max_queue_length=7)
    engine.enqueue("web.get", group="prod")
    engine.hand_in(worker, *started)
    engine.assert_promises()


def test_in_force_an_enqueue_sees_the_changes_of_its_own_transaction(
    engine: Engine, connect: Connect
) -> None:
    engine.claim(engine.worker("web.get"), 1, actions=["web.get"])
    conn = connect(autocommit=False)
    conn.execute("select pgfifo.set_policy('web.get', '{\"max_queue_length\": 1}')")
    with pytest.raises(psycopg.errors.Error, match="full"):
        conn.execute("select pgfifo.enqueue('web.get', '{}', 'prod')")
    conn.rollback()
    conn.execute("select pgfifo.enqueue('web.get', '{}', 'prod')")
    conn.commit()
    engine.assert_promises()


def test_in_force_that_is_wrong_is_found_and_mended(engine: Engine) -> None:
    engine.claim(engine.worker("web.get"), 1, actions=["web.get"])
    engine.conn.execute("update pgfifo._in_force set max_concurrent = 9")
    found = [row for row in engine.check() if row[1] == "policy"]
    assert [row[0] for row in found] == ["violation"]
    engine.rows("select * from pgfifo.check(true)")
    assert [row for row in engine.check() if row[1] == "policy"] == []


def test_in_force_knows_pace_pause_and_limits(engine: Engine) -> None:
    """What is kept tells each of them, or claims and enqueues would not look for it."""
    worker = engine.worker("web.get")
    said: list[tuple[dict[str, object], str]] = [
        ({"rate": "5/s"}, "has_pace"),
        ({"spacing": 1}, "has_pace"),
        ({"gap": 1}, "has_pace"),
        ({"on_limit": "cancel"}, "has_limits"),
        ({"max_action_queue_length": 100}, "has_limits"),
        ({"quota": "100/day"}, "has_limits"),
    ]
    for values, flag in said:
        for call in ("set_default_policy(%s)", "set_pack_policy('web', %s)", "set_policy('web.get', %s)"):
            engine.rows(f"select pgfifo.{call}", Jsonb(values))
            engine.claim(worker, 1, actions=["web.get"])
            flags = engine.rows("select f.has_pace, f.has_limits from pgfifo._in_force f")
            assert flags == [(flag == "has_pace", flag == "has_limits")], (values, call)
            engine.rows(f"select pgfifo.{call}", Jsonb(dict.fromkeys(values)))
    engine.conn.execute("select pgfifo.pause('web.get')")
    assert engine.claim(worker, 1, actions=["web.get"]) == []
    assert engine.one("select f.is_paused from pgfifo._in_force f") is True
    engine.assert_promises()
