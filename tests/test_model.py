"""The engine against a model: everything that can be done, in any order, compared after each step.

The model (tests/support/queue.py) is the queue in plain Python. A step does one thing to both; then what
the engine shows (every execution, the statistics of lanes and actions, what shared limits have given
out, places in the line) must be what the model says, `check()` must find nothing, and no lane may have
been left behind by a claim that had room.

`make test` runs the same few examples each time; `make model` looks for new ones, as many as it is told
(PGFIFO_TEST_EXAMPLES).
"""

import os
from collections.abc import Sequence
from inspect import signature
from typing import Any

import hypothesis.strategies as st
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.types.json import Jsonb

from pgfifo import errors
from tests.support.database import clean
from tests.support.engine import Answer, Engine, Start
from tests.support.queue import OUTCOMES, Execution, Item, Queue, Rate, Shared, Worker

EXAMPLES = int(os.environ.get("PGFIFO_TEST_EXAMPLES", "0"))
UNIT = 600
"""Seconds of one unit of the model's time. All that really passes in an example is much less."""
NOON = "2031-03-01 12:00:00+00"
ACTIONS = ["p.a", "p.b", "c"]
GROUPS = ["", "x"]
LANES = [(action, group) for action in ACTIONS for group in GROUPS]
BUSY = [LANES[0], LANES[0], LANES[0], LANES[1], *LANES]
"""One lane gets more than the others, so that a few steps lead somewhere."""

LOOK = (
    "select id, action, group_text, state, attempt, failures, ticket, payload,"
    " cancel_requested_at is not null, retry_of, worker_id, start_no, request_id, dedup_key, item_key"
    " from pgfifo.executions order by id"
)
LIVING = ("delayed", "waiting", "running", "held")


def seconds(units: float) -> str:
    """Say so many units of time as an interval."""
    return f"{units * UNIT:g} s"


class Row:
    """What the engine shows of one execution."""

    def __init__(self, columns: Sequence[Any]) -> None:
        (
            self.id,
            self.action,
            self.group,
            self.state,
            self.attempt,
            self.failures,
            self.ticket,
            self.payload,
            self.cancel_requested,
            self.retry_of,
            self.worker,
            self.start_no,
            self.request_id,
            self.dedup_key,
            self.item_key,
        ) = columns


# -- what is given to the operations -------------------------------------------------------------------------

pick = st.integers(0, 1000)
"""Which one of those there are."""
lane_keys = st.sampled_from(BUSY)
delays = st.sampled_from([0, 0, 0, 1, 2])
sizes = st.sampled_from([None, None, 2, 3])
"""How many are a batch, of all actions but one."""
payloads = st.dictionaries(st.sampled_from(["m", "n"]), st.one_of(st.none(), st.integers(0, 3)), max_size=2)
keys = st.sampled_from([None, None, None, "k1", "k2"])


@st.composite
def items(draw: st.DrawFn) -> Item:
    """Draw an item to enqueue, with one of the keys or none."""
    item = Item(draw(st.sampled_from(GROUPS)), draw(payloads), draw(delays))
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["request_id", "dedup_key", "item_key"]))
        setattr(item, kind, draw(st.sampled_from(["k1", "k2"])))
        if kind != "request_id":
            item.request_id = draw(keys)
    return item


ENDS = ["succeeded", "failed", "failed", "released", "cancelled", "abort", "snooze", "later", "lost"]
RATES: dict[str, Rate] = {"1/10min": (1, 1), "2/20min": (2, 2), "3/30min": (3, 3), "1/20min": (1, 2)}
VALUES: dict[str, list[Any]] = {
    "max_concurrent": [1, 2, 3],
    "max_queue_length": [1, 3, "unlimited"],
    "max_action_queue_length": [2, 5, "unlimited"],
    "on_limit": ["cancel", "enqueue"],
    "rate": [*RATES, "unlimited"],
    "burst": [1, 2],
    "spacing": [0, 1, 2],
    "gap": [0, 1, 2],
    "quota": [3, 6, "unlimited"],
    "max_wait": [1, 2, 4, "unlimited"],
    "max_attempts": [1, 2, 5],
    "failure_mode": ["hold", "yield", "tail"],
    "backoff": ["constant", "exponential"],
    "backoff_initial": [1, 2],
    "on_exhausted": ["continue", "pause"],
    "retention": [6, "unlimited"],
    "lane_retention": [0, 1, "unlimited"],
    "ordering": ["strict", "relaxed"],
}
DURATIONS = {"spacing", "gap", "max_wait", "backoff_initial", "retention", "lane_retention"}
NOT_OF_LANES = {"max_action_queue_length", "retention", "lane_retention", "ordering"}
NEVER_FOR_A_TIME = {"max_wait", "ordering"}
scopes = st.sampled_from(["lane", "lane", "action", "action", "pack", "everything"])


@st.composite
def policies(draw: st.DrawFn) -> tuple[str, str, str, dict[str, Any], bool]:
    """Draw a scope, an action and group that say which, values, and whether that is for a time only."""
    scope, (action, group), for_a_time = draw(scopes), draw(lane_keys), draw(st.booleans())
    if scope == "pack":
        action = "p.a"
    attributes = [
        a
        for a in VALUES
        if not (scope == "lane" and a in NOT_OF_LANES) and not (for_a_time and a in NEVER_FOR_A_TIME)
    ]
    chosen = draw(st.lists(st.sampled_from(attributes), min_size=1, max_size=2, unique=True))
    values = {a: draw(st.sampled_from([*VALUES[a], None])) for a in chosen}
    if scope == "everything" and values.get("backoff_initial", 1) is None:
        values["backoff_initial"] = 1  # the built-in one is a second: no time at all here
    return scope, action, group, values, for_a_time


def as_given(values: dict[str, Any]) -> Jsonb:
    """Write values as the engine takes them."""
    given = dict(values)
    for attribute, value in values.items():
        if attribute in DURATIONS and isinstance(value, int):
            given[attribute] = value * UNIT
        elif attribute == "quota" and isinstance(value, int):
            given[attribute] = f"{value}/day"
    return Jsonb(given)


def as_meant(values: dict[str, Any]) -> dict[str, Any]:
    """Write values as the model takes them."""
    return {a: RATES.get(v, v) if a == "rate" else v for a, v in values.items()}


DECISIONS = [
    "finish",
    "complete",
    "ask_again",
    "cancel",
    "cancel",
    "cancel_where",
    "finish_by_hand",
    "retry",
    "retry",
    "reschedule",
]
OPERATIONS = [
    "pause",
    "resume",
    "resume",
    "close",
    "open_",
    "open_",
    "add_worker",
    "stop_worker",
    "lose_worker",
    "heartbeat",
]
OPERATIONS += ["settle", "settle", "drain"]
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "which": pick,
    "how": st.sampled_from(["succeeded", "failed", "cancelled", "released"]),
    "stale": st.sampled_from([False, False, True]),
    "many": st.integers(1, 3),
    "lane": lane_keys,
    "whole": st.booleans(),
    "state": st.sampled_from([None, *LIVING]),
    "outcome": st.sampled_from(["succeeded", "failed", "cancelled"]),
    "head": st.booleans(),
    "delay": st.sampled_from([0, 1, 2]),
    "actions": st.sampled_from([ACTIONS, ["p.a"], ["c", "p.b"]]),
    "rounds": st.integers(4, 5),
    "forgotten": pick,
}


class Machine(RuleBasedStateMachine):
    """Does each thing to the engine and to the model."""

    conn: psycopg.Connection[Any]
    """For what is done."""
    dsn: str

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def teardown(self) -> None:
        """Part with the connection that looks."""
        if hasattr(self, "look"):
            self.look.conn.close()

    @initialize()
    def begin(self) -> None:
        """Begin with two workers, and two lanes in which something waits and something runs."""
        clean(self.conn)
        self.engine = Engine(self.conn)
        self.conn.execute("set jit = off; select setseed(0.5)")
        # To look takes most of the time, and of that the planning; a session of its own does it once.
        options = "-c jit=off -c plan_cache_mode=force_generic_plan -c max_parallel_workers_per_gather=0"
        self.look = Engine(psycopg.connect(self.dsn, autocommit=True, prepare_threshold=0, options=options))
        self.engine.one("select pgfifo.advance(%s::timestamptz - pgfifo._now())", NOON)
        self.queue = Queue(ACTIONS, GROUPS)
        for action in ACTIONS:
            self.engine.one("select pgfifo.declare_action(%s)", action)
        self.set_policy("everything", "", "", {"backoff_initial": 1}, for_a_time=False)
        self.engine.rows(
            'select * from pgfifo.set_default_policy(\'{"backoff_cap": 1800, "backoff_jitter": 0}\')'
        )
        self.round()
        self.add_worker(ACTIONS)
        self.add_worker(["p.a", "c"])
        self.set_policy("action", "p.a", "", {"max_concurrent": 2}, for_a_time=False)
        for lane in LANES[:2]:
            self._enqueue(lane[0], [Item(lane[1]) for _ in range(4)], "immutable", one=False)
        self._work(self._living_workers()[0], 3, [])

    # -- producing -------------------------------------------------------------------------------------------

    @rule(lane=lane_keys, count=st.integers(1, 3))
    def enqueue_plain(self, lane: tuple[str, str], count: int) -> None:
        """Enqueue what has no keys and no time: the way most go."""
        action, group = lane
        self._enqueue(action, [Item(group) for _ in range(count)], "immutable", one=count == 1)

    @rule(
        action=st.sampled_from(["p.a", *ACTIONS]),
        batch=st.lists(items(), min_size=1, max_size=4),
        on_item=st.sampled_from(["immutable", "replace", "merge_patch"]),
    )
    def enqueue(self, action: str, batch: list[Item], on_item: str) -> None:
        """Enqueue with keys and times."""
        self._enqueue(action, batch, on_item, one=len(batch) == 1)

    def _enqueue(self, action: str, batch: list[Item], on_item: str, *, one: bool) -> None:
        expected = self.queue.enqueue(action, batch, on_item)
        may, must = expected.refusals()
        due = {e.id for lane in set(expected.lanes) for e in self.queue.joining(lane)}
        answers, error = self._call_enqueue(action, batch, on_item, one=one)
        if error is not None:
            note(f"  refused: {error}")
            assert type(error) in may, f"expected were {may}"
            return
        assert not must, f"it was accepted: {answers}; expected were {may}"
        note(f"  {answers}")
        rows = self._rows()
        self._follow_joins(rows)
        late = [id_ for id_ in due if not expected.is_repeated and rows[id_].ticket is None]
        assert not late, f"{late} were due, and did not join before what was enqueued"
        expected.accept(answers)

    def _call_enqueue(
        self, action: str, batch: list[Item], on_item: str, *, one: bool
    ) -> tuple[list[tuple[int, bool]], errors.PgfifoError | None]:
        try:
            return (self._enqueue_one if one else self._enqueue_many)(action, batch, on_item), None
        except errors.PgfifoError as error:
            return [], error

    def _enqueue_one(self, action: str, batch: list[Item], on_item: str) -> list[tuple[int, bool]]:
        (item,) = batch
        return [
            (id_, created)
            for id_, created in self.engine.rows(
                "select id, created from pgfifo.enqueue_one(%s, %s, %s, null, null, %s, %s, %s, null, %s,"
                " %s)",
                action,
                Jsonb(item.payload),
                item.group or None,
                item.request_id,
                item.dedup_key,
                item.item_key,
                seconds(item.delay) if item.delay else None,
                on_item,
            )
        ]

    def _enqueue_many(self, action: str, batch: list[Item], on_item: str) -> list[tuple[int, bool]]:
        rows = self.engine.rows(
            "select id, created from pgfifo.enqueue_many(%s, %s::jsonb[], %s::text[], null, null, %s::text[],"
            " %s::text[], %s::text[], (select array_agg(pgfifo._now() + d order by n)"
            " from unnest(%s::interval[]) with ordinality u(d, n)), null, %s) order by ordinal",
            action,
            [Jsonb(item.payload) for item in batch],
            [item.group or None for item in batch],
            *[
                _or_none([getattr(item, key) for item in batch])
                for key in ("request_id", "dedup_key", "item_key")
            ],
            _or_none([seconds(item.delay) if item.delay else None for item in batch]),
            on_item,
        )
        return [(id_, created) for id_, created in rows]

    # -- consuming -------------------------------------------------------------------------------------------

    @precondition(lambda self: self._living_workers())
    @rule(which=pick, limit=st.sampled_from([1, 1, 2, 5, 20]), size=sizes)
    def claim(self, which: int, limit: int, size: int | None) -> None:
        """Claim, and hand in nothing."""
        self._work(_chosen(self._living_workers(), which), limit, [], size=size)

    @precondition(lambda self: self._living_workers() and self._all("waiting"))
    @rule(which=pick, size=sizes)
    def claim_much(self, which: int, size: int | None) -> None:
        """Claim what there is."""
        self._work(_chosen(self._living_workers(), which), 20, [], size=size)

    @precondition(lambda self: self._all("running"))
    @rule(
        which=pick, limit=st.sampled_from([0, 1, 5]), how=st.sampled_from(["succeeded", "failed"]), size=sizes
    )
    def end_and_claim(self, which: int, limit: int, how: str, size: int | None) -> None:
        """Hand in all that a worker has, with one outcome, and claim."""
        worker = self.queue.workers[_chosen(self._all("running"), which).worker]
        if worker in self._living_workers():
            ends = [(0, how)] * len(self.queue.running_of(worker.id))
            self._work(worker, limit, ends, each=True, size=size)

    @precondition(lambda self: self._all("running"))
    @rule(
        which=pick,
        limit=st.sampled_from([0, 1, 5]),
        ends=st.lists(st.tuples(pick, st.sampled_from(ENDS)), min_size=1, max_size=4),
        capped=st.booleans(),
        size=sizes,
    )
    def work(
        self, which: int, limit: int, ends: list[tuple[int, str]], capped: bool, size: int | None
    ) -> None:
        """Hand in some of what a worker has, in all sorts of ways, and claim."""
        worker = self.queue.workers[_chosen(self._all("running"), which).worker]
        if worker in self._living_workers():
            self._work(worker, limit, ends, capped=capped, size=size)

    def _work(
        self,
        worker: Worker,
        limit: int,
        ends: list[tuple[int, str]],
        *,
        each: bool = False,
        capped: bool = False,
        size: int | None = None,
    ) -> list[int]:
        running = sorted(self.queue.running_of(worker.id), key=lambda e: e.id)
        said: dict[Execution, str] = {}
        for n, (number, how) in enumerate(ends):
            if running:
                said.setdefault(_chosen(running, n if each else number), how)
        given = [_item(execution, how) for execution, how in said.items()]
        refused = self._hand_in(said)
        worker.call += 1
        caps = [1] * len(worker.actions) if capped else None
        batches = [None if action == "c" else size for action in worker.actions] if size else None
        note(f"  worker {worker.id} hands in {given} and claims {limit}, in batches of {size}")
        answer = self.engine.work(worker.id, limit, worker.actions, given, worker.call, caps, batches)
        note(f"  started {answer.starts}, more: {answer.more}")
        assert answer.refused == refused
        self._claimed(worker, limit, answer, 1 if capped else limit, size or 1)
        return answer.ids

    def _hand_in(self, said: dict[Execution, str]) -> dict[int, str]:
        """Do what comes of what is handed in, in this order; return what is not taken, and why."""
        # What has succeeded comes first, of batches once the first of their members is come by.
        done = {
            execution for execution, how in said.items() if how == "succeeded" and execution.batch is None
        }
        for execution in done:
            self.queue.finish(execution, "succeeded")
        refused = {}
        rode = False
        for execution, how in said.items():
            if execution.batch is not None and not rode:
                rode = True
                done |= self._finish_batches(said)
            if execution in done:
                continue
            if how == "lost":
                refused[execution.id] = "lost"
            elif execution.state == "running":
                self._end(execution, how)
            elif not (
                how in ("released", execution.state)
                or (execution.state == "cancelled" and how != "succeeded")
            ):
                refused[execution.id] = "unstarted"  # one before it in its batch has failed
        return refused

    def _finish_batches(self, said: dict[Execution, str]) -> set[Execution]:
        """Of each batch, end what has succeeded before the first one that has not."""
        done, broken = [], set()
        for execution, how in said.items():
            if execution.batch is None or how == "lost":
                continue
            if execution.batch not in broken and (execution.is_completed or how == "succeeded"):
                done.append(execution)
            else:
                broken.add(execution.batch)
        for execution in done:
            self.queue.finish(execution, "succeeded")
        return set(done)

    def _end(self, execution: Execution, how: str) -> None:
        if how == "abort":
            self.queue.finish(execution, "failed", retry=False)
        elif how == "snooze":
            self.queue.finish(execution, "failed", after=1, count=False)
        elif how == "later":
            self.queue.finish(execution, "failed", after=0)
        else:
            self.queue.finish(execution, how)

    def _claimed(self, worker: Worker, limit: int, answer: Answer, cap: int, size: int) -> None:
        """Follow a claim: what it started must have been allowed, and nothing may have been left behind."""
        rows = self._rows()
        self._follow_joins(rows)
        self._follow_starts(rows, worker.id, worker.call, answer.starts)
        runs = [start for start in answer.starts if start.batch is None]
        assert len(runs) <= limit
        by_action = [sum(start.action == action for start in runs) for action in worker.actions]
        assert max(by_action) <= cap
        for start in runs:
            self._look_at_batch(self.queue.executions[start.id], size if start.action != "c" else 1)
        self._follow_rounds()
        if len(runs) < limit and answer.more not in ("now", "soon"):
            served = [a for a, n in zip(worker.actions, by_action, strict=True) if n < cap]
            behind = self.queue.left_behind(served, shared=False)
            assert not behind, f"{behind}; more is {answer.more}"

    def _look_at_batch(self, first: Execution, size: int) -> None:
        """With what was just started from the line ride as many as there are; with what came back, none."""
        members = [first, *self.queue.mates(first)]
        assert len(members) <= size
        assert len(members) == 1 or first.attempt == 1, (
            f"{first.id} had been started before, and leads others"
        )
        line = [e for e in self.queue.waiting(first.lane) if e.place > members[-1].place]
        ends = len(members) == size or not line or line[0].attempt > 0 or line[0].owner is not None
        came_back = first.attempt > 1 or first.retry_of is not None
        assert ends or came_back, f"{line[0].id} comes after {members[-1].id}, and does not ride with it"

    def finish(self, which: int, how: str, stale: bool) -> None:
        """Finish or release one by itself, or try to, with another attempt's number."""
        if not self._all("running"):
            return
        execution = _chosen(self._all("running"), which)
        attempt = execution.attempt + stale
        fenced = stale or self.queue.workers[execution.worker or 0].state != "alive"
        query = "select pgfifo.release(%s, %s)" if how == "released" else "select pgfifo.finish(%s, %s, %s)"
        arguments = [execution.id, attempt] if how == "released" else [execution.id, attempt, how]
        note(f"  {execution.id}")
        if fenced:
            with pytest.raises(errors.LeaseLost):
                self.engine.one(query, *arguments)
        else:
            assert self.engine.one(query, *arguments) == self.queue.finish(execution, how)

    def complete(self, which: int) -> None:
        """Commit the success of one together with its handler's own writes."""
        running = self._all("running")
        if running:
            execution = _chosen(running, which)
            is_mine = self.queue.workers[execution.worker].state == "alive" and not execution.is_completed
            note(f"  {execution.id}")
            if is_mine:
                self.engine.one("select pgfifo.complete(%s, %s)", execution.id, execution.attempt)
                execution.is_completed = True
            else:
                with pytest.raises(errors.LeaseLost):
                    self.engine.one("select pgfifo.complete(%s, %s)", execution.id, execution.attempt)

    def ask_again(self, which: int) -> None:
        """Claim with a number that was used before: the answer is the same."""
        if not self._all("running"):
            return
        execution = _chosen(self._all("running"), which)
        worker = self.queue.workers[execution.worker or 0]
        if worker.state != "alive" or worker.kind != "worker":
            return
        same = sorted(e.id for e in self.queue.running_of(worker.id) if e.call == execution.call)
        if execution.call is not None:
            answer = self.engine.work(worker.id, 20, worker.actions, call=execution.call)
            assert sorted(answer.ids) == same
            for start in answer.starts:
                assert (start.batch is None) == (self.queue.executions[start.id].batch is None), start
            self._follow_rounds()

    # -- slots in programs' own hands ------------------------------------------------------------------------

    @rule(lane=lane_keys, which=pick, trying=st.booleans())
    def enter_slot(self, lane: tuple[str, str], which: int, trying: bool) -> None:
        """Wait in a lane's line for a slot to hold, or try to get one at once."""
        holders = self._holders()
        if not holders:
            new = int(self.engine.one("select pgfifo.worker_start('', '', 1, '{}', 1, '3 s', false, 'slot')"))
            holders = [
                self.queue.workers.setdefault(new, Worker(new, [], 3, self.queue.round_no, kind="slot"))
            ]
        holder = _chosen(holders, which)
        holder.call += 1
        expected = self.queue.enqueue(lane[0], [Item(lane[1])], "immutable")
        may, must = expected.refusals()
        due = {e.id for e in self.queue.joining(expected.lanes[0])}
        query = "select id, state from pgfifo.slot_enter(%s, %s, %s, '{}', %s, p_try => %s)"
        refused = None
        try:
            ((id_, state),) = self.engine.rows(
                query, holder.id, holder.call, lane[0], lane[1] or None, trying
            )
        except errors.PgfifoError as error:
            refused = error
        if refused is not None:
            note(f"  refused: {refused}")
            assert type(refused) in may, f"expected were {may}"
        elif id_ is None:
            assert trying
        else:
            note(f"  {id_} is {state}")
            assert not must
            rows = self._rows()
            self._follow_joins(rows)
            assert not [e for e in due if rows[e].ticket is None]
            expected.accept([(id_, True)])
            self.queue.executions[id_].owner = holder.id
            self._follow_starts(rows, 0, None, [])
            assert state == self.queue.executions[id_].state
            assert state == "running" or not trying
        self._follow_rounds()

    @precondition(lambda self: any(e.owner for e in self._all("waiting", "running")))
    @rule(which=pick, leave=st.sampled_from([None, "succeeded", "failed", "cancelled"]))
    def look_or_leave(self, which: int, leave: str | None) -> None:
        """Look whether a slot has come, or leave it, or the line."""
        self._look_or_leave(_chosen([e for e in self._all("waiting", "running") if e.owner], which), leave)

    def _look_or_leave(self, execution: Execution, leave: str | None) -> None:
        if execution.owner not in {holder.id for holder in self._holders()}:
            return
        note(f"  {execution.id}")
        if leave is None:
            state = self.engine.one(
                "select state from pgfifo.slot_look(%s, %s)", execution.owner, execution.id
            )
        else:
            query = "select state from pgfifo.slot_leave(%s, %s, %s)"
            state = self.engine.one(query, execution.owner, execution.id, leave)
            if execution.state == "running":
                self.queue.finish(execution, leave)
            else:
                self.queue.cancel(execution)
        rows = self._rows()
        self._follow_joins(rows)
        self._follow_starts(rows, 0, None, [])
        assert state == execution.state
        self._follow_rounds()

    # -- deciding about single ones --------------------------------------------------------------------------

    @precondition(lambda self: self.queue.executions)
    @rule(data=st.data(), what=st.sampled_from(DECISIONS))
    def decide(self, data: st.DataObject, what: str) -> None:
        """Decide about one or a few, whatever they are doing."""
        self._do(data, what)

    @rule(data=st.data(), what=st.sampled_from(OPERATIONS))
    def operate(self, data: st.DataObject, what: str) -> None:
        """Do what is done now and then."""
        self._do(data, what)

    def _do(self, data: st.DataObject, what: str) -> None:
        method = getattr(self, what)
        method(**{name: data.draw(ARGUMENTS[name], label=name) for name in signature(method).parameters})

    def cancel(self, which: int, many: int) -> None:
        """Cancel some, whatever they are doing."""
        chosen = [_chosen(list(self.queue.executions.values()), which + n * 7) for n in range(many)]
        chosen = list({e.id: e for e in chosen}.values())
        note(f"  {[e.id for e in chosen]}")
        answers = self.engine.cancel_many([e.id for e in chosen])
        assert answers == [self.queue.cancel(e) for e in chosen]

    def cancel_where(self, lane: tuple[str, str], whole: bool, state: str | None) -> None:
        """Cancel what a filter selects."""
        filter_ = (
            {"action": lane[0]} | ({} if whole else {"group": lane[1]}) | ({"state": state} if state else {})
        )
        cancelled = requested = 0
        after = None
        while True:
            query = "select * from pgfifo.cancel_where(%s, p_after => %s, p_limit => 3)"
            ((some, asked, busy, after),) = self.engine.rows(query, Jsonb(filter_), after)
            assert busy == 0
            cancelled, requested = cancelled + some, requested + asked
            if after is None:
                break
        expected = {"cancelled": 0, "requested": 0}
        for execution in list(self.queue.executions.values()):
            own = execution.lane
            selected = own.action == lane[0] and (whole or own.group == lane[1])
            if (
                selected
                and execution.state in ([state] if state else LIVING)
                and not execution.cancel_requested
            ):
                expected[self.queue.cancel(execution)] += 1
        assert {"cancelled": cancelled, "requested": requested} == expected

    def finish_by_hand(self, which: int, outcome: str) -> None:
        """End one by an operator's word."""
        execution = _chosen(list(self.queue.executions.values()), which)
        note(f"  {execution.id}")
        answer = self.engine.one("select pgfifo.finish_execution(%s, %s, 'by hand')", execution.id, outcome)
        assert answer == self.queue.finish_by_hand(execution, outcome)

    def retry(self, which: int, many: int, head: bool) -> None:
        """Put finished ones back."""
        if not self._all(*OUTCOMES):
            return
        done = self._all(*OUTCOMES)
        chosen = list({e.id: e for e in (_chosen(done, which + n * 3) for n in range(many))}.values())
        note(f"  {[e.id for e in chosen]}")
        answers = self.engine.retry_many([e.id for e in chosen], head)
        self._follow_joins(self._rows())
        for execution, (answer, new) in zip(chosen, answers, strict=True):
            may = self.queue.retry_answers(execution, head=head)
            if execution.state == "expired":
                may.add("busy")  # its outcome has yet to be written
            assert answer in may, f"{execution.id}: {answer}, and not {may}"
            if answer == "retried":
                assert new is not None
                self.queue.retry(execution, new, head=head)

    def reschedule(self, which: int, delay: int) -> None:
        """Give one another time."""
        execution = _chosen(self._all("delayed", "held") or list(self.queue.executions.values()), which)
        note(f"  {execution.id}")
        if execution.state in ("delayed", "held"):
            self.engine.reschedule(execution.id, seconds(delay) if delay else None)
            self.queue.reschedule(execution, delay)
        else:
            with pytest.raises(errors.InvalidValue):
                self.engine.reschedule(execution.id, seconds(delay))

    # -- operating -------------------------------------------------------------------------------------------

    def pause(self, lane: tuple[str, str], whole: bool) -> None:
        """Pause an action or a lane."""
        own = self.queue.lanes[lane]
        if whole or own.exists:
            changed = self.engine.pause(lane[0], None if whole else lane[1])
            assert changed == (lane[0] not in self.queue.paused if whole else not (own.paused or own.stopped))
            if whole:
                self.queue.paused.add(lane[0])
            else:
                own.paused = not own.stopped

    def resume(self, lane: tuple[str, str], whole: bool) -> None:
        """Let an action go on, with those of its lanes that a failure has stopped; or a lane."""
        own = self.queue.lanes[lane]
        if whole or own.exists:
            changed = self.engine.resume(lane[0], None if whole else lane[1])
            stopped = [each for each in self.queue.lanes.values() if each.action == lane[0] and each.stopped]
            assert changed == (
                lane[0] in self.queue.paused or stopped != [] if whole else own.paused or own.stopped
            )
            if whole:
                self.queue.paused.discard(lane[0])
                for each in stopped:
                    each.stopped = False
            else:
                own.paused = own.stopped = False

    def close(self, lane: tuple[str, str], whole: bool) -> None:
        """Let nothing into an action or a lane, whether it is there or not."""
        own = self.queue.lanes[lane]
        changed = self.engine.one("select pgfifo.close(%s, %s)", lane[0], None if whole else lane[1])
        assert changed == (lane[0] not in self.queue.closed if whole else not own.closed)
        if whole:
            self.queue.closed.add(lane[0])
        else:
            own.closed = True
            if not own.exists:
                own.exists = True
                self.queue.touch(own)

    def open_(self, lane: tuple[str, str], whole: bool) -> None:
        """Let enqueues in again."""
        own = self.queue.lanes[lane]
        changed = self.engine.one("select pgfifo.open(%s, %s)", lane[0], None if whole else lane[1])
        assert changed == (lane[0] in self.queue.closed if whole else own.closed)
        if whole:
            self.queue.closed.discard(lane[0])
        else:
            own.closed = False

    @rule(policy=policies(), lasting=st.integers(1, 3))
    def change_policy(self, policy: tuple[str, str, str, dict[str, Any], bool], lasting: int) -> None:
        """Set limits and rules of a scope, for good or for a time."""
        scope, action, group, values, for_a_time = policy
        self.set_policy(scope, action, group, values, for_a_time=for_a_time, lasting=lasting)

    def set_policy(
        self,
        scope: str,
        action: str,
        group: str,
        values: dict[str, Any],
        *,
        for_a_time: bool,
        lasting: int = 1,
    ) -> None:
        """Set them."""
        given: list[object] = [as_given(values)]
        if scope in ("lane", "action"):
            given.insert(0, action)
        elif scope == "pack":
            given.insert(0, "p")
        name = {"lane": "", "action": "", "pack": "_pack", "everything": "_default"}[scope]
        words = ["%s"] * len(given)
        if for_a_time:
            words.append("p_lasting => %s")
            given.append(seconds(lasting))
        if scope == "lane":
            words.append("p_group => %s")
            given.append(group)
            lane = self.queue.lanes[action, group]
            if not lane.exists:
                lane.exists = True
            self.queue.touch(lane)
        name = f"override{name}_policy" if for_a_time else f"set{name}_policy"
        self.engine.rows(f"select * from pgfifo.{name}({', '.join(words)})", *given)
        target = {"lane": f"lane:{action}/{group}", "action": f"action:{action}", "pack": "pack:p"}.get(
            scope, scope
        )
        if for_a_time:
            self.queue.override(target, as_meant(values), lasting)
        else:
            self.queue.set_policy(target, as_meant(values))

    @rule(
        name=st.sampled_from(["s1", "s2"]),
        most=st.sampled_from([None, 1, 2, 3]),
        rate=st.sampled_from([None, *RATES]),
        burst=st.sampled_from([None, 1, 2]),
        draws=st.sampled_from([["p.a"], ["p.a", "c"], ["p"], []]),
        drop=st.booleans(),
    )
    def share(
        self, name: str, most: int | None, rate: str | None, burst: int | None, draws: list[str], drop: bool
    ) -> None:
        """Set or drop a shared limit."""
        queue = self.queue
        if drop and name in queue.shared:
            self.engine.one("select pgfifo.drop_shared_limit(%s)", name)
            del queue.shared[name]
            return
        if most is None and rate is None:
            most = 2
        values = {
            "max_concurrent": most,
            "rate": rate,
            "burst": burst,
            "actions": [each for each in draws if each != "p"],
            "packs": [each for each in draws if each == "p"],
            "everything": not draws,
        }
        self.engine.rows("select * from pgfifo.set_shared_limit(%s, %s)", name, Jsonb(values))
        shared = queue.shared.setdefault(name, Shared(name))
        shared.most, shared.rate, shared.burst = most, RATES[rate] if rate else None, burst
        shared.actions, shared.packs, shared.everything = {*draws} - {"p"}, {*draws} & {"p"}, not draws

    # -- time and workers ------------------------------------------------------------------------------------

    @rule(units=st.sampled_from([1, 1, 1, 2, 3, 7]))
    def advance(self, units: int) -> None:
        """Let time pass."""
        self.engine.advance(seconds(units))
        self.queue.advance(units)

    @rule(heard=st.booleans())
    def round(self, heard: bool = True) -> None:
        """Do a round of maintenance; before it workers say that they live, or not."""
        if heard:
            self._heartbeats()
        self.engine.advance("1.1 s")
        answer = self.engine.maintain()
        assert answer["elected"]
        self._follow_rounds()

    def add_worker(self, actions: list[str]) -> None:
        """Register a worker."""
        if len(self._living_workers()) >= 4:
            return
        self._register(actions)

    def _register(self, actions: list[str]) -> None:
        new = self.engine.worker(*actions, lease="3 s")
        self.queue.workers[new] = Worker(new, list(actions), 3, self.queue.round_no)

    def stop_worker(self, which: int) -> None:
        """Sign a worker off."""
        if len(self._living_workers()) < 2:
            return
        worker = _chosen(self._living_workers(), which)
        note(f"  {worker.id}")
        count = self.engine.one("select pgfifo.worker_stop(%s)", worker.id)
        worker.state = "stopped"
        assert count == len(self.queue.take_back(worker.id, "released"))

    def lose_worker(self, which: int, rounds: int) -> None:
        """Have a worker fall silent, so that it is taken for dead; and then have it say something."""
        lost = _chosen(list(self.queue.workers.values()), which)
        for _ in range(rounds):
            self._heartbeats(but=lost.id)
            self.round(heard=False)
        assert lost.state != "alive"
        with pytest.raises(errors.LeaseLost):
            self.engine.heartbeat(lost.id)
        with pytest.raises(errors.LeaseLost):
            self.engine.work(lost.id, 5, lost.actions)

    def heartbeat(self, which: int, forgotten: int) -> None:
        """Have a worker say what it holds, one left out: that one never reached it, if it never said so."""
        if not self._living_workers():
            return
        worker = _chosen(self._living_workers(), which)
        running = self.queue.running_of(worker.id)
        left_out = [_chosen(running, forgotten)] if running else []
        held = [e.id for e in running if e not in left_out]
        note(f"  worker {worker.id} holds {held}, up to call {worker.call}")
        signals = self.engine.heartbeat(worker.id, worker.call, [*held, 10**9])
        worker.seen = self.queue.round_no
        unknown = [e.id for e in left_out if e.call is not None and e.call > worker.seen_call]
        self.queue.take_back(worker.id, "released", unknown)
        worker.seen_call = worker.call
        cancelled = {e.id: "cancel" for e in running if e.id in held and e.cancel_requested}
        assert signals == cancelled | {10**9: "lost"}

    def settle(self) -> None:
        """Claim for all actions until nothing starts: then nothing may be startable, in whatever turns."""
        worker = self._server_of_all()
        quiet = 0
        while quiet < 4:
            self.round()
            quiet = 0 if self._work(worker, 20, []) else quiet + 1
        behind = self.queue.left_behind(ACTIONS, shared=True)
        assert not behind, behind

    def drain(self) -> None:
        """Let everything go on, and work it off: nothing may be left in the end."""
        for action in ACTIONS:
            self.resume((action, ""), whole=True)
            for group in GROUPS:
                self.resume((action, group), whole=False)
        worker = self._server_of_all()
        for _ in range(60):
            if not self._all(*LIVING):
                return
            self.settle()
            for execution in [e for e in self._all("running", "waiting") if e.owner]:
                self._look_or_leave(execution, "succeeded")
            for each in self._living_workers():
                self._work(
                    each,
                    20 if each is worker else 0,
                    [(0, "succeeded")] * len(self._all("running")),
                    each=True,
                )
            self.advance(1)
        raise AssertionError(f"{[(e.id, e.state) for e in self._all(*LIVING)]} never came to an end")

    def _server_of_all(self) -> Worker:
        for worker in self._living_workers():
            if worker.actions == ACTIONS:
                return worker
        self._register(ACTIONS)
        return self._server_of_all()

    def _heartbeats(self, but: int | None = None) -> None:
        for worker in (*self._living_workers(), *self._holders()):
            if worker.id != but:
                self.engine.heartbeat(worker.id)
                worker.seen = self.queue.round_no

    # -- following what the engine is free to do -------------------------------------------------------------

    def _rows(self) -> dict[int, Row]:
        return {row[0]: Row(row) for row in self.look.conn.execute(LOOK).fetchall()}

    def _follow_joins(self, rows: dict[int, Row]) -> None:
        """Delayed executions that were due may have joined their lines, in the order of their times."""
        joined = [
            e
            for e in self._all("delayed")
            if e.id in rows
            and (rows[e.id].state != "delayed" or (rows[e.id].ticket is not None and not e.is_yielded))
        ]
        for execution in sorted(joined, key=lambda e: rows[e.id].ticket or 0):
            self.queue.join(execution, rows[execution.id].ticket)

    def _follow_starts(
        self, rows: dict[int, Row], worker: int, call: int | None, starts: Sequence[Start]
    ) -> None:
        """A claim may start what it may, and have held ones that are due give up their slots."""
        for execution in self._all("held"):
            if rows[execution.id].state == "waiting":
                self.queue.give_up_slot(execution)
        started = [e for e in self._all("waiting", "held") if rows[e.id].attempt > e.attempt]
        own = sorted(e.id for e in started if e.owner is None)
        assert own == sorted(start.id for start in starts), "not what the answer says was started"
        batches = {start.id: (start.action, start.group, start.batch) for start in starts if start.batch}
        leaders = {
            (start.action, start.group, start.start_no): self.queue.executions[start.id] for start in starts
        }
        for execution in sorted(
            started, key=lambda e: (rows[e.id].action, rows[e.id].group, rows[e.id].start_no)
        ):
            if execution.owner is None:
                leader = leaders[batches[execution.id]] if execution.id in batches else None
                self.queue.start(execution, worker, call, leader)
            else:
                self.queue.start(execution, execution.owner, None)
                if self.queue.workers[execution.owner].state != "alive":
                    self.queue.finish(execution, "released")

    def _follow_rounds(self) -> None:
        """What rounds of maintenance have done."""
        self.queue.round(self.look.one("select max(tick) from pgfifo.ticks"))
        rows = self._rows()
        self._follow_joins(rows)
        for execution in list(self.queue.executions.values()):
            if execution.id not in rows:
                self.queue.forgotten(execution)
        there = {tuple(row) for row in self.look.rows("select action, group_text from pgfifo.lane_stats")}
        for lane in list(self.queue.lanes.values()):
            if lane.exists and (lane.action, lane.group) not in there:
                self.queue.lane_removed(lane)

    def _all(self, *states: str) -> list[Execution]:
        return [e for e in self.queue.executions.values() if e.state in states]

    def _living_workers(self) -> list[Worker]:
        return [w for w in self.queue.workers.values() if w.state == "alive" and w.kind == "worker"]

    def _holders(self) -> list[Worker]:
        return [w for w in self.queue.workers.values() if w.state == "alive" and w.kind == "slot"]

    # -- comparing -------------------------------------------------------------------------------------------

    @invariant()
    def agree(self) -> None:
        """Compare everything."""
        self._compare_executions()
        self._compare_numbers()
        violations = [row for row in self.look.check() if row[0] == "violation"]
        assert violations == []
        assert self.look.sweep_found() == 0, "a wake-up was lost: only the sweep found the lane"

    def _compare_executions(self) -> None:
        rows = self._rows()
        assert set(rows) == set(self.queue.executions)
        for id_, expected in self.queue.executions.items():
            row = rows[id_]
            seen = (
                row.action,
                row.group,
                row.state,
                row.attempt,
                row.failures,
                row.ticket,
                row.payload,
                row.retry_of,
            )
            assert seen == (
                expected.lane.action,
                expected.lane.group,
                expected.state,
                expected.attempt,
                expected.failures,
                expected.ticket,
                expected.payload,
                expected.retry_of,
            ), id_
            if not expected.is_finished:
                more = (row.cancel_requested, row.request_id, row.dedup_key, row.item_key, row.worker)
                assert more == (
                    expected.cancel_requested,
                    expected.request_id,
                    expected.dedup_key,
                    expected.item_key,
                    expected.worker,
                ), id_

    def _compare_numbers(self) -> None:
        lanes = {
            (row["action"], row["group_text"]): row for row in self._named("select * from pgfifo.lane_stats")
        }
        assert set(lanes) == {key for key, lane in self.queue.lanes.items() if lane.exists}
        for key, row in lanes.items():
            expected = self.queue.lane_numbers(self.queue.lanes[key])
            assert {name: row[name] for name in expected} == expected, key
            assert row["total_enqueued"] == sum(
                row[name] for name in ("total_completed", "queue_length", "active_count", "delayed_count")
            )
        for row in self._named("select * from pgfifo.queue_stats"):
            expected = self.queue.action_numbers(row["action"])
            assert {name: row[name] for name in expected} == expected, row["action"]
        taken = dict(self.look.rows("select name, active_count from pgfifo.shared_limits"))
        assert taken == {name: self.queue.shared_active(shared) for name, shared in self.queue.shared.items()}
        longest = max((self.queue.waiting(lane) for lane in self.queue.lanes.values()), key=len)
        if longest:
            assert self.look.position(longest[-1].id) == len(longest)
        self.steps += 1
        if longest and self.steps % 8 == 0:
            assert self.look.one("select explanation from pgfifo.explain(%s)", longest[-1].id)

    def _named(self, query: str) -> list[dict[str, Any]]:
        cursor = self.look.conn.execute(query)
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _item(execution: Execution, how: str) -> dict[str, object]:
    """What a worker hands in of an attempt that ended so."""
    item: dict[str, object] = {"id": execution.id, "attempt": execution.attempt, "outcome": how}
    if how == "lost":
        return item | {"attempt": execution.attempt + 1, "outcome": "succeeded"}
    if how == "abort":
        return item | {"outcome": "failed", "retry": False}
    if how == "snooze":
        return item | {"outcome": "failed", "after": UNIT, "count": False}
    return item | {"outcome": "failed", "after": 0} if how == "later" else item


def _chosen(things: Sequence[Any], number: int) -> Any:
    return things[number % len(things)]


def _or_none(values: list[Any]) -> list[Any] | None:
    return values if any(value is not None for value in values) else None


def test_the_engine_does_what_the_model_does(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        Machine.conn, Machine.dsn = conn, dsn
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=EXAMPLES or 20,
                stateful_step_count=60 if EXAMPLES else 40,
                derandomize=not EXAMPLES,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
                print_blob=bool(EXAMPLES),
                report_multiple_bugs=False,
            ),
        )
