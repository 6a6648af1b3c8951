"""Every public function at every isolation level: it does what it says, or is refused and says why.

The functions are read from the catalog, so a new one is called too. What is not refused above READ COMMITTED
is called there on a snapshot from before all sorts of things were done to the same lanes.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import psycopg_pool
import pytest

import pgfifo
from pgfifo import errors
from tests.support.calls import Function, functions, plausible
from tests.support.engine import Engine, Start
from tests.test_worker import drain

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

ABOVE = ("repeatable read", "serializable")
# fmt: off
REFUSED = {
    "apply_policies", "cancel", "cancel_many", "cancel_where", "claim", "close", "complete",
    "create_roles", "declare_action", "drop_shared_limit", "finish", "finish_execution",
    "grant_enqueue", "grant_role", "heartbeat", "maintain", "open", "override_default_policy",
    "override_pack_policy", "override_policy", "pause", "pause_everything", "release", "remove_action",
    "reschedule", "resume", "resume_everything", "retry", "retry_many", "retry_where", "revoke_enqueue",
    "revoke_role", "set_default_policy", "set_pack_policy", "set_policy", "set_shared_limit",
    "slot_enter", "slot_leave", "slot_look", "work", "worker_relock", "worker_stop",
}
# fmt: on
"""What decides about executions, or changes what such decisions go by: at READ COMMITTED only."""
ROLE = "somebody_else"
VOLATILE = """
    select p.proname::text from pg_proc p
    where p.pronamespace = 'pgfifo'::regnamespace and p.provolatile = 'v'
"""
UNFINISHED = "select count(*) from pgfifo.executions where finished_at is null and not is_slot"


class Situation:
    """An action of its own with something of everything in it, and arguments for a function's call."""

    def __init__(self, engine: Engine, action: str) -> None:
        self.engine = engine
        self.action = action
        engine.policy(action, group_by=["g"], max_concurrent=3, backoff_initial=0.01)
        self.ended = self.enqueue("a")
        for _ in range(4):
            self.enqueue("a")
        self.worker = engine.worker(action)
        [start] = engine.claim(self.worker, 1, [action])
        engine.hand_in(self.worker, start)
        self.running: Start = engine.claim(self.worker, 1, [action])[0]
        self.waiting = self.enqueue("a")
        self.later = engine.enqueue_later("1 h", action, '{"g":"a"}')
        self.holder = int(engine.one("select pgfifo.worker_start('s', 'h', 1, '{}', 1, p_kind => 'slot')"))
        query = 'select id from pgfifo.slot_enter(%s, 9, %s, \'{"g": "s"}\')'
        self.slot = int(engine.one(query, self.holder, action))
        query = "select pgfifo.set_schedule(%s, %s, '0 3 * * *', p_payload => '{\"g\": 1}')"
        engine.one(query, f"{action}.nightly", action)
        self.import_ = int(engine.one("select pgfifo.import_start(%s, 'file', 'x')", action))
        engine.one('select pgfifo.set_shared_limit(%s, \'{"max_concurrent": 9, "actions": []}\')', action)

    def enqueue(self, group: str) -> int:
        return self.engine.enqueue(self.action, {"g": group})

    def disturb(self) -> None:
        """Do to the lanes and settings what others do all day."""
        engine, action = self.engine, self.action
        engine.policy(action, max_concurrent=2)
        self.enqueue("a")
        self.enqueue("b")
        other = engine.worker(action)
        started = engine.claim(other, 3, [action])
        engine.hand_in(other, *started[:1])
        for each in started[1:]:
            engine.release(each)
        engine.cancel(self.enqueue("a"))
        engine.pause(action)
        engine.resume(action)
        engine.one("select pgfifo.worker_stop(%s)", other)
        engine.one("select pgfifo.set_schedule('fresh', %s, '0 4 * * *', p_payload => '{\"g\": 1}')", action)
        engine.one("select pgfifo.remove_schedule('fresh')")
        engine.one("select pgfifo.progress(%s, %s, 0.1)", self.running.id, self.running.attempt)
        engine.one("select pgfifo.pause_schedule(%s)", f"{action}.nightly")
        engine.one("select pgfifo.resume_schedule(%s)", f"{action}.nightly")
        engine.maintain()

    def call(self, conn: Connection, function: Function) -> None:
        """Call a function with arguments that make sense."""
        function.call(conn, self._arguments(function))

    def _arguments(self, function: Function) -> dict[str, object]:
        action, of = self.action, function.name
        known: dict[str, Any] = {
            "p_action": action,
            "p_actions": [action],
            "p_after": None,
            "p_attempt": 1,
            "p_cursor": None,
            "p_filter": json.dumps({"action": action}),
            "p_finished": json.dumps([{"id": self.running.id, "attempt": 1, "outcome": "succeeded"}]),
            "p_group": '{"g":"a"}' if of in ("pause", "resume", "open", "close") else None,
            "p_id": self.waiting,
            "p_ids": [self.waiting],
            "p_import": self.import_,
            "p_name": f"{action}.nightly" if "schedule" in of else action,
            "p_payload": '{"g": "a"}',
            "p_payloads": ['{"g": "a"}', '{"g": "b"}'],
            "p_to": ROLE,
            "p_from": ROLE,
            "p_worker": self.holder if of.startswith("slot_") else self.worker,
        }
        if of in ("complete", "finish", "release", "progress", "finish_execution"):
            known["p_id"] = self.running.id
        elif of in ("retry", "retry_many"):
            known |= {"p_id": self.ended, "p_ids": [self.ended]}
        elif of == "reschedule":
            known["p_id"] = self.later
        elif of.startswith("slot_"):
            known["p_id"] = self.slot
        elif of == "import_commit":
            known["p_from"] = None
        elif of == "tick_schedule":
            query = "select id, version from pgfifo._schedules where name = %s"
            [(known["p_id"], known["p_version"])] = self.engine.rows(query, f"{action}.nightly")
            known |= {"p_due": None, "p_ticks": [], "p_next": "2040-01-01", "p_error": None}
        elif of == "remove_action":
            known["p_action"] = "idle"
        arguments = plausible(function, known)
        if of == "declare_schedules":
            declared = {"name": f"{action}.declared", "cron": "0 5 * * *", "payload": {"g": 1}}
            arguments["p_schedules"] = json.dumps({action: [declared]})
        elif of.startswith("revoke_"):
            arguments["p_from"] = ROLE
        elif of == "worker_start":
            arguments["p_actions"] = [action]
        return arguments


@contextlib.contextmanager
def at(conn: Connection, level: str) -> Iterator[None]:
    """Run a block in a transaction, with a snapshot of now where the level has one; roll it back."""
    conn.execute(f"set transaction isolation level {level}".encode())
    conn.execute("select count(*) from pgfifo.lanes")
    try:
        yield
    finally:
        conn.rollback()


def said(call: Callable[[], None]) -> str:
    """Return how a call ended."""
    try:
        call()
    except errors.IsolationLevel as refusal:
        return "refused" if "READ COMMITTED" in (refusal.hint or "") else "refused without a hint"
    except psycopg.Error as error:
        return f"{type(error).__name__} {error}"
    return "done"


def is_about_roles(function: Function) -> bool:
    """Return whether it changes what is no database's own: whatever it does is rolled back here."""
    return "role" in function.name or function.name in ("grant_enqueue", "revoke_enqueue")


def test_each_function_does_what_it_says_or_is_refused(conn: Connection, connect: Connect) -> None:
    engine = Engine(conn)
    engine.one("select pgfifo.declare_action('idle')")
    situation = Situation(engine, "deploy")
    ended: dict[str, dict[str, str]] = {}
    for level in ("read committed", *ABOVE):
        other = connect(autocommit=False)
        told = ended[level] = {}
        for function in functions(conn):
            with at(other, level):
                if is_about_roles(function):
                    other.execute(f"create role {ROLE}")
                told[function.name] = said(partial(situation.call, other, function))
        other.close()
    assert {name: how for name, how in ended["read committed"].items() if how != "done"} == {}
    for level in ABOVE:
        assert {name for name, how in ended[level].items() if how == "refused"} == REFUSED
        strange = {name: how for name, how in ended[level].items() if how not in ("refused", "done")}
        assert strange == {}, level


@pytest.mark.parametrize("level", ["repeatable read", pytest.param("serializable", marks=pytest.mark.faults)])
def test_what_is_not_refused_decides_nothing_on_what_was(
    conn: Connection, connect: Connect, level: str
) -> None:
    engine = Engine(conn)
    other = connect(autocommit=False)
    writers = {name for (name,) in engine.rows(VOLATILE)} - REFUSED
    actions = []
    for function in functions(conn):
        if function.name not in writers:
            continue
        situation = Situation(engine, f"for_{function.name}")
        actions.append(situation.action)
        with at(other, level):
            situation.disturb()
            how = said(partial(situation.call, other, function))
            if how == "done":
                how = said(other.commit)
        retryable = how.startswith(("SerializationFailure ", "SnapshotTooOld "))
        assert how == "done" or retryable, f"{function.name}: {how}"
        engine.one("select pgfifo.worker_stop(%s)", situation.worker)
    # No lane (they are named after the functions) has been broken, and all of them drain.
    assert [row for row in engine.check() if row[0] == "violation"] == []
    engine.advance("2 h")
    engine.maintain()
    engine.drain(engine.worker(*actions, lease="1 day"), actions)
    assert engine.one(UNFINISHED) == 0


@pytest.fixture
def serializable(fresh_dsn: str) -> str:
    """A database where the role's transactions are serializable, unless somebody says otherwise."""
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        name, user = conn.info.dbname, conn.info.user
        conn.execute(
            f'alter role "{user}" in database "{name}" set default_transaction_isolation = serializable'
        )
    return fresh_dsn


def do_everything(fifo: pgfifo.Client) -> None:
    """Make calls of all kinds."""
    fifo.set_policy("deploy", max_concurrent=2)
    made = fifo.enqueue_many("deploy", [{}] * 10, request_ids=[f"r{n}" for n in range(10)])
    assert fifo.cancel(made[0].id) == "cancelled"
    fifo.retry(made[0].id)
    fifo.cancel_many([made[1].id, made[2].id])
    fifo.cancel_where(action="deploy", to_id=made[3].id)
    fifo.retry_where(action="deploy", state="cancelled")
    later = fifo.enqueue("deploy", {}, delay=timedelta(days=1))
    fifo.reschedule(later.id, delay=60)
    fifo.override_policy("deploy", lasting=60, max_concurrent=3)
    fifo.set_shared_limit("api", max_concurrent=3, actions=["deploy"])
    fifo.drop_shared_limit("api")
    fifo.pause("deploy")
    fifo.resume("deploy")
    fifo.close_action("deploy")
    fifo.open_action("deploy")
    fifo.set_schedule("nightly", "deploy", "0 3 * * *")
    fifo.apply_policies(fifo.export_policies())
    fifo.maintain()
    with fifo.transaction() as conn:
        assert conn.execute("show transaction_isolation").fetchone() == ("read committed",)
        fifo.cancel(made[9].id, connection=conn)
    with pytest.raises(pgfifo.SlotTimeout), fifo.slot("deploy", timeout=0.05):
        pass
    stats = fifo.stats("deploy")
    assert stats.total_enqueued == stats.total_completed + stats.queue_length + stats.delayed_count
    assert [*fifo.events(cursor="begin", follow=False)]
    assert fifo.check() == []


def test_order_and_slots_where_the_roles_default_is_serializable(serializable: str) -> None:
    actions = pgfifo.Actions()
    seen: list[int] = []

    @actions.action("deploy", max_concurrent=2)
    def deploy(execution: pgfifo.Execution) -> None:
        seen.append(execution.id)
        with pgfifo.Client(serializable) as fifo, fifo.slot("other", timeout=30):
            pass

    with pgfifo.Client(serializable) as fifo:
        do_everything(fifo)
        drain(serializable, actions)
        assert fifo.stats("deploy").queue_length == 0
        assert fifo.wait(seen[-1], timeout=60) is None
        assert fifo.check() == []
    with (
        psycopg_pool.ConnectionPool(serializable, min_size=0, max_size=3, open=True) as pool,
        pgfifo.Client(pool) as fifo,
    ):
        fifo.remove_action("other")
        assert fifo.cancel(fifo.enqueue("mail", {}).id) == "cancelled"

    async def call() -> None:
        async with pgfifo.AsyncClient(serializable) as fifo:
            async with fifo.slot("mail", timeout=60):
                made = await fifo.enqueue("deploy", {})
            async with pgfifo.Worker(serializable, actions):
                await fifo.wait(made.id, timeout=60)
            await fifo.cancel_where(action="deploy")
            assert await fifo.check() == []

    asyncio.run(call())


def test_a_connection_of_the_callers_above_read_committed_is_told_what_it_cannot_do(
    serializable: str,
) -> None:
    with psycopg.connect(serializable, autocommit=True) as mine:
        fifo = pgfifo.Client(mine)
        made = fifo.enqueue("deploy", {})
        with pytest.raises(pgfifo.IsolationLevel) as told:
            fifo.cancel(made.id)
        assert "set default_transaction_isolation = 'read committed'" in (told.value.hint or "")
        mine.execute("set default_transaction_isolation = 'read committed'")
        assert fifo.cancel(made.id) == "cancelled"
