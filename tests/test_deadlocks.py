"""Opposite orders in callers' transactions deadlock, and say so; pgfifo's calls among themselves never do."""

import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
import pytest

import pgfifo
from tests.support.calls import Function, functions, plausible
from tests.support.database import in_background, wait_until_blocked
from tests.support.engine import Engine

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

SECONDS = float(os.environ.get("PGFIFO_TEST_SECONDS", "1.5"))
ACTIONS = ["pack.a", "pack.b", "single"]
GROUPS = ["x", "y", None]
ROLE = "some_team"
SHORT = "200ms"
"""How long a circle of waits may last: longer than those that are given up by themselves."""
# fmt: off
OFTEN = [
    "open", "resume_everything", "enqueue", "enqueue_many", "enqueue_many", "enqueue_many", "work",
    "work", "work", "work", "claim", "finish", "cancel_many", "slot_enter", "slot_leave", "maintain",
]
# fmt: on
"""Without these there would be little to meet over."""


def test_durability_opposite_orders_in_two_transactions_end_in_an_error_and_nothing_is_lost(
    dsn: str, conn: Connection, connect: Connect
) -> None:
    engine = Engine(conn)
    with pgfifo.Client(dsn) as fifo:
        before = [fifo.enqueue("deploy", {}, group=group).id for group in ("a", "b")]
        one, other = connect(autocommit=False), connect(autocommit=False)
        made = {
            one: [fifo.enqueue("deploy", {"by": 1}, group="a", connection=one).id],
            other: [fifo.enqueue("deploy", {"by": 2}, group="b", connection=other).id],
        }
        waiting = in_background(lambda: fifo.enqueue("deploy", {"by": 1}, group="b", connection=one).id)
        wait_until_blocked(conn, one.info.backend_pid)
        # Whoever has waited for a second looks whether it can ever end: this one, or the first.
        victim, survivor = one, other
        try:
            made[other].append(fifo.enqueue("deploy", {"by": 2}, group="a", connection=other).id)
        except psycopg.errors.DeadlockDetected as error:
            victim, survivor, refused = other, one, error
        if victim is one:
            with pytest.raises(psycopg.errors.DeadlockDetected) as told:
                waiting.result()
            refused = told.value
        else:
            made[one].append(waiting.result())
        assert refused.sqlstate == "40P01"
        assert "deadlock detected" in str(refused)
        assert "run the whole transaction again" in str(refused)
        victim.rollback()
        survivor.commit()
        again = [
            fifo.enqueue("deploy", {"again": True}, group=group, connection=victim).id for group in ("a", "b")
        ]
        victim.commit()
    worker = engine.worker()
    assert sorted(engine.drain(worker)) == sorted([*before, *made[survivor], *again])
    engine.assert_promises()


class Caller:
    """Calls any of the public functions, each call a transaction, with arguments that meet others'."""

    def __init__(self, connect: Connect, seed: int) -> None:
        self.conn = connect()
        self.conn.execute(f"set deadlock_timeout = '{SHORT}'")
        self.engine = Engine(self.conn)
        self.dice = random.Random(seed)
        self.worker = self.holder = 0
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def call(self, function: Function) -> None:
        """Call one; whatever it says of the arguments is fine."""
        if not self.worker or self.dice.random() < 0.02:
            self._register()
        try:
            function.call(self.conn, self._arguments(function))
        except pgfifo.PgfifoError as error:
            self.refused[f"{function.name} {error.sqlstate}"] += 1
            if isinstance(error, pgfifo.LeaseLost | pgfifo.UnknownAction):
                self.worker = 0
        else:
            self.done[function.name] += 1

    def _register(self) -> None:
        for action in ACTIONS:
            self.engine.one("select pgfifo.declare_action(%s)", action)
        with suppress(pgfifo.UnknownAction):  # somebody has removed it just now
            self.worker = self.engine.worker(*ACTIONS)
            self.holder = self.engine.one(
                "select pgfifo.worker_start('s', 'h', 1, '{}', 1, p_kind => 'slot')"
            )

    def _arguments(self, function: Function) -> dict[str, object]:
        dice, of = self.dice, function.name
        action = dice.choice(ACTIONS)
        last = self.engine.one("select coalesce(max(id), 1) from pgfifo._executions")
        some = [max(1, last - dice.randrange(40)) for _ in range(3)]
        runs = self.engine.rows(
            "select id, attempt from pgfifo.runs where state = 'running' and worker_id = %s limit 5",
            self.worker,
        )
        outcomes = ["succeeded"] * 4 + ["failed", "released", "cancelled"]
        items = [{"id": id_, "attempt": attempt, "outcome": dice.choice(outcomes)} for id_, attempt in runs]
        mine = dice.choice(runs) if runs and dice.random() < 0.7 else (some[0], 1)
        limits = {
            "max_concurrent": dice.randint(1, 4),
            "failure_mode": dice.choice(["hold", "yield", "tail"]),
        }
        known: dict[str, Any] = {
            "p_action": action,
            "p_actions": ACTIONS if dice.random() < 0.7 else [action],
            "p_after": None,
            "p_attempt": mine[1],
            "p_cursor": None,
            "p_delay": dice.choice([None, None, "10 ms"]),
            "p_dry_run": False,
            "p_filter": json.dumps(
                dice.choice([{"action": action}, {"action": action, "from_id": min(some)}])
            ),
            "p_finished": json.dumps(items),
            "p_force": True,
            "p_from": None,
            "p_group": dice.choice(GROUPS),
            "p_groups": None,
            "p_id": mine[0] if of in ("finish", "release", "complete", "progress") else dice.choice(some),
            "p_ids": some,
            "p_lasting": "20 ms",
            "p_limit": dice.randint(1, 5),
            "p_name": dice.choice(["one", "two"]),
            "p_no": dice.randint(1, 10**9),
            "p_pack": "pack",
            "p_repair": dice.random() < 0.3,
            "p_role": dice.choice(["producer", "worker", "admin"]),
            "p_to": ROLE,
            "p_try": dice.random() < 0.3,
            "p_values": json.dumps(limits),
            "p_worker": self.holder if of.startswith("slot_") else self.worker,
            "p_held": [id_ for id_, _ in runs],
            "p_batches": dice.choice([None, [3] * len(ACTIONS)]),
        }
        if of == "cancel_where" and dice.random() < 0.8:
            known["p_dry_run"] = True  # else hardly anything would wait
        elif of == "tick_schedule":
            query = "select id, version, next_at from pgfifo._schedules order by random() limit 1"
            for id_, version, due in self.engine.rows(query):
                known |= {"p_id": id_, "p_version": version, "p_due": due}
            known |= {"p_ticks": [], "p_next": "2040-01-01", "p_error": None}
        elif of == "slot_look":
            query = "select id from pgfifo.slots where is_slot and worker_id = %s limit 1"
            for (id_,) in self.engine.rows(query, self.holder):
                known["p_id"] = id_
        elif of == "reschedule":
            query = "select id from pgfifo.executions where state = 'delayed' limit 1"
            for (id_,) in self.engine.rows(query):
                known["p_id"] = id_
        arguments = plausible(function, known)
        if of == "enqueue_many":
            count = dice.randint(2, 6)
            arguments["p_payloads"] = ["{}"] * count
            arguments["p_groups"] = [dice.choice(["x", "y", "z"]) for _ in range(count)]
        elif of == "set_policy":
            ordering = {"ordering": dice.choice(["strict", "relaxed"])} if dice.random() < 0.2 else {}
            arguments["p_values"] = json.dumps(
                limits | {"max_queue_length": dice.choice([None, 50])} | ordering
            )
        elif of == "set_shared_limit":
            members = dice.sample(ACTIONS, 2)
            arguments["p_values"] = json.dumps({"max_concurrent": dice.randint(1, 5), "actions": members})
        elif of == "apply_policies":
            arguments["p_policies"] = json.dumps({"actions": {action: limits}})
            arguments["p_prune"] = dice.random() < 0.1
        elif of == "worker_start":
            arguments["p_actions"] = ACTIONS
        elif of.startswith("revoke_"):
            arguments["p_from"] = ROLE
        elif of == "declare_schedules":
            arguments["p_schedules"] = json.dumps({action: [{"name": f"of.{action}", "cron": "* * * * *"}]})
        return arguments


@pytest.mark.timeout(360 + SECONDS * 3)
def test_no_two_calls_deadlock(conn: Connection, connect: Connect) -> None:
    done = hammer(conn, connect, SECONDS)
    assert len(done) > 20


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_no_two_calls_deadlock_for_longer(conn: Connection, connect: Connect) -> None:
    done = hammer(conn, connect, 90)
    # An action that nobody has anything in, to be removed, is there now and then only.
    rare = {"create_roles", "remove_action"}
    assert {each.name for each in functions(conn)} - {*done} <= rare, "never called with success"


def hammer(conn: Connection, connect: Connect, seconds: float) -> Counter[str]:
    """Have twelve callers call everything at once, with arguments that meet; return what was done how often.

    Then everything comes to its end.
    """
    conn.execute(f"create role {ROLE}")
    try:
        everything = {each.name: each for each in functions(conn) if each.name != "create_roles"}
        callers = [Caller(connect, seed) for seed in range(12)]
        problems: list[str] = []
        stop = threading.Event()

        def run(caller: Caller) -> None:
            while not stop.is_set():
                name = caller.dice.choice(OFTEN if caller.dice.random() < 0.6 else [*everything])
                try:
                    caller.call(everything[name])
                except psycopg.Error as error:
                    problems.append(f"{name}: {type(error).__name__} {error}")
                    stop.set()

        running = [in_background(partial(run, caller)) for caller in callers]
        stop.wait(seconds)
        stop.set()
        for each in running:
            each.result(60)
        assert problems == []
    finally:
        conn.execute(f"drop owned by {ROLE}; drop role {ROLE}")
    engine = Engine(conn)
    engine.one("select pgfifo.resume_everything()")
    for action in ACTIONS:
        engine.one("select pgfifo.declare_action(%s)", action)
        for group in GROUPS:
            with suppress(pgfifo.GroupMismatch):  # there is no such lane
                engine.one("select pgfifo.open(%s, %s)", action, group)
                engine.one("select pgfifo.resume(%s, %s)", action, group)
    for (id_,) in engine.rows("select id from pgfifo._workers where state = 'alive'"):
        engine.one("select pgfifo.worker_stop(%s)", id_)
    unfinished = "select count(*) from pgfifo.executions where finished_at is null"
    worker = engine.worker(*ACTIONS, lease="1 day")
    for _ in range(200):
        if not engine.one(unfinished):
            break
        engine.advance("10 min")
        engine.maintain()
        engine.drain(worker, ACTIONS)
    assert engine.one(unfinished) == 0
    engine.assert_promises(strict=False)
    done: Counter[str] = Counter()
    for caller in callers:
        done += caller.done
    return done
