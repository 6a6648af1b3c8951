"""Policy and queue together: rates, slots, shared limits, cancels, changes of limits, and twenty clients.

What happened is judged from what is on record and from the handlers' own journal, not from what the ledger
believes. `make model` runs it for longer (PGFIFO_TEST_SECONDS).
"""

import os
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

import pgfifo
from pgfifo import errors
from tests.support.engine import Engine, Start, item
from tests.support.model import Journal

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

SECONDS = float(os.environ.get("PGFIFO_TEST_SECONDS", "3"))
ACTIONS = ["pack.hold", "pack.yield", "pack.tail", "paced"]
GROUPS = ["x", "y", "z"]
MOST = 4
"""The highest limit that a lane ever has."""
SHARED = 6
"""The highest limit that the pack's actions ever share."""
RATE, BURST = 20, 3
SHARED_RATE, SHARED_BURST = 100, 10


class Everything:
    """Twenty clients, each with a connection of its own, and what they know."""

    def __init__(self, connect: Connect, dsn: str) -> None:
        self.connect = connect
        self.dsn = dsn
        self.stop = threading.Event()
        self.journal = Journal()
        self.all_lanes = Journal()
        """What runs of the pack's actions, as if that were one lane."""
        self.ids: list[int] = []
        self.problems: list[BaseException] = []

    def run(self, seconds: float) -> None:
        """Let them all do as they like, for so long."""
        parts: list[Callable[[random.Random, Engine], None]] = [
            *[self.produce] * 4,
            *[self.work] * 9,
            *[self.hold_slots] * 2,
            *[self.cancel] * 2,
            self.change_limits,
            self.share,
            self.pause,
        ]
        assert len(parts) == 20
        threads = [
            threading.Thread(target=self._guard, args=(part, random.Random(seed)))
            for seed, part in enumerate(parts)
        ]
        watcher = threading.Thread(target=self._guard, args=(self.watch, random.Random(0)))
        for thread in (*threads, watcher):
            thread.start()
        self.stop.wait(seconds)
        self.stop.set()
        for thread in (*threads, watcher):
            thread.join()
        if self.problems:
            raise self.problems[0]

    def _guard(self, part: Callable[[random.Random, Engine], None], dice: random.Random) -> None:
        try:
            part(dice, Engine(self.connect()))
        except BaseException as problem:  # noqa: BLE001  # the test raises it
            self.problems.append(problem)
            self.stop.set()

    # -- what they do ----------------------------------------------------------------------------------------

    def produce(self, dice: random.Random, engine: Engine) -> None:
        """Enqueue, one by one and in batches, now and for later; some of it is rolled back."""
        while not self.stop.is_set():
            action, count = dice.choice(ACTIONS), dice.randint(1, 4)
            with suppress(errors.QueueFull, errors.ConcurrencyLimit, errors.RateLimit):
                if dice.random() < 0.1:
                    new = [engine.enqueue_later("0.05 s", action, dice.choice(GROUPS))]
                else:
                    with engine.conn.transaction(force_rollback=dice.random() < 0.1) as block:
                        new = engine.enqueue_many(
                            action, [{}] * count, [dice.choice(GROUPS) for _ in range(count)]
                        )
                    if block.force_rollback:
                        new = []
                self.ids += new
            self.stop.wait(dice.random() * 0.04)

    def work(self, dice: random.Random, engine: Engine) -> None:
        """Claim and finish, with all sorts of outcomes. Now and then one dies with what it holds."""
        worker = engine.worker(*ACTIONS)
        held: list[Start] = []
        while not self.stop.is_set():
            dice.shuffle(held)
            ended = held[: dice.randint(0, len(held))]
            held = held[len(ended) :]
            outcomes = ["succeeded"] * 12 + ["failed", "failed", "released", "cancelled", "snoozed"]
            items = [_ended(start, dice.choice(outcomes)) for start in ended]
            self._end(ended)
            answer = engine.work(worker, dice.randint(0, 4), ACTIONS, items)
            assert "lost" not in answer.refused.values()
            self._begin(answer.starts)
            held += answer.starts
            while answer.refused:  # somebody had the lane: it is over, and handed in again
                answer = engine.work(worker, 0, [], [i for i in items if i["id"] in answer.refused])
            if dice.random() < 0.02:
                # In order: what it had is over before anybody else may have it.
                self._end(held)
                held = []
                engine.one("select pgfifo.worker_stop(%s)", worker)
                worker = engine.worker(*ACTIONS)
            self.stop.wait(dice.random() * 0.02)
        self._end(held)
        engine.one("select pgfifo.worker_stop(%s)", worker)

    def hold_slots(self, dice: random.Random, _engine: Engine) -> None:
        """Take slots for code of one's own, in the same lanes."""
        with pgfifo.Client(self.dsn) as fifo:
            while not self.stop.is_set():
                action, group = dice.choice(ACTIONS), dice.choice(GROUPS)
                with (
                    suppress(errors.SlotTimeout, errors.QueueFull, errors.ConcurrencyLimit, errors.RateLimit),
                    fifo.slot(action, group=group, timeout=0.3) as slot,
                ):
                    assert slot.id is not None
                    start = Start(slot.id, 1, "", action, group, None, 0)
                    self._begin([start])
                    self.stop.wait(dice.random() * 0.02)
                    self._end([start])

    def cancel(self, dice: random.Random, engine: Engine) -> None:
        """Cancel what waits and what runs, one by one and by filter; put some of it back."""
        while not self.stop.is_set():
            self.stop.wait(dice.random() * 0.05)
            if not self.ids:
                continue
            known = [dice.choice(self.ids[-200:]) for _ in range(3)]
            if dice.random() < 0.2:
                filter_ = {"action": dice.choice(ACTIONS), "from_id": min(known), "to_id": min(known) + 5}
                engine.rows("select * from pgfifo.cancel_where(%s)", Jsonb(filter_))
            elif dice.random() < 0.3:
                again = engine.retry_many(known[:1], head=dice.random() < 0.5)
                self.ids += [new for answer, new in again if answer == "retried" and new is not None]
            else:
                engine.cancel_many(known)

    def change_limits(self, dice: random.Random, engine: Engine) -> None:
        """Change limits of actions and lanes, for good and for a moment."""
        while not self.stop.is_set():
            action, group = dice.choice(ACTIONS), dice.choice([None, *GROUPS])
            number = dice.randint(1, MOST)
            with suppress(errors.Busy):
                if dice.random() < 0.3:
                    query = "select * from pgfifo.override_policy(%s, %s, '0.1 s', %s)"
                    engine.rows(query, action, Jsonb({"max_concurrent": number}), group)
                elif dice.random() < 0.3:
                    engine.policy(action, on_limit=dice.choice(["cancel", "enqueue", "enqueue", None]))
                else:
                    engine.policy(action, group, max_concurrent=number)
            self.stop.wait(dice.random() * 0.1)

    def share(self, dice: random.Random, engine: Engine) -> None:
        """Change what the actions of the pack share."""
        while not self.stop.is_set():
            with suppress(errors.Busy):
                share(engine, max_concurrent=dice.randint(1, SHARED))
            self.stop.wait(dice.random() * 0.2)

    def pause(self, dice: random.Random, engine: Engine) -> None:
        """Stop actions and lanes for a moment; do maintenance."""
        while not self.stop.is_set():
            action, group = dice.choice(ACTIONS), dice.choice([None, *GROUPS])
            with suppress(errors.Busy, errors.GroupMismatch):
                engine.pause(action, group)
                self.stop.wait(dice.random() * 0.05)
                engine.resume(action, group)
            engine.maintain()
            self.stop.wait(dice.random() * 0.1)

    def watch(self, _dice: random.Random, engine: Engine) -> None:
        """Look at the rows themselves, in one snapshot after the other."""
        query = (
            "select (select count(*) from pgfifo.runs where state = 'running' and draws is not null),"
            " (select sum(total_enqueued - total_completed - queue_length - active_count - delayed_count)"
            " from pgfifo.lane_stats)"
        )
        while not self.stop.is_set():
            ((running, difference),) = engine.rows(query)
            assert running <= SHARED, f"{running} that share {SHARED} slots were running"
            assert not difference, "the totals do not add up"

    # -- what they write down --------------------------------------------------------------------------------

    def _begin(self, starts: Iterable[Start]) -> None:
        for start in starts:
            self.journal.begin(f"{start.action} {start.group}", start.id)
            if start.action.startswith("pack."):
                self.all_lanes.begin("", start.id)

    def _end(self, starts: Iterable[Start]) -> None:
        for start in starts:
            self.journal.end(f"{start.action} {start.group}", start.id)
            if start.action.startswith("pack."):
                self.all_lanes.end("", start.id)


def share(engine: Engine, **values: object) -> None:
    engine.rows("select * from pgfifo.set_shared_limit('pack', %s)", Jsonb(values))


def _ended(start: Start, outcome: str) -> dict[str, object]:
    if outcome == "snoozed":
        return item(start, "failed", after=0.05, count=False)
    return item(start, outcome)


def rate_faults(times: Iterable[datetime], rate: float, burst: int) -> list[str]:
    """Find starts that came too early for a rate: beyond the burst and what the time allows."""
    faults = []
    step, used_up = 1 / rate, 0.0
    for at in sorted(moment.timestamp() for moment in times):
        used_up = max(used_up, at)
        # A thousandth of a step: floats have a quarter of a microsecond left for today's times.
        if used_up - at > (burst - 1 + 0.001) * step:
            faults.append(f"{at:.6f}: {used_up - at:.6f} s ahead of {rate:g}/s with a burst of {burst}")
        used_up += step
    return faults


def test_the_judge_of_rates_finds_what_is_planted() -> None:
    def moments(*seconds: float) -> list[datetime]:
        return [datetime.fromtimestamp(1_900_000_000 + second) for second in seconds]

    assert rate_faults(moments(0, 0, 0.1, 0.2, 0.3), 10, 2) == []
    assert rate_faults(moments(0, 0.05, 0.1, 0.15), 10, 3) == []
    assert len(rate_faults(moments(0, 0, 0), 10, 2)) == 1
    assert len(rate_faults(moments(0, 0.05), 10, 1)) == 1


@pytest.mark.timeout(360 + SECONDS * 3)
def test_order_slots_rates_and_shared_limits_hold_under_twenty_clients_that_change_them(
    conn: Connection, connect: Connect, dsn: str
) -> None:
    engine = Engine(conn)
    for action in ACTIONS:
        mode = action.partition(".")[2] or "hold"
        engine.policy(action, failure_mode=mode, max_concurrent=2, max_attempts=3, max_queue_length=40)
        engine.policy(action, backoff="constant", backoff_initial=0.03, backoff_jitter=0)
    engine.policy("paced", rate=f"{RATE}/s", burst=BURST, spacing=0.005)
    share(
        engine,
        max_concurrent=SHARED,
        rate=f"{SHARED_RATE}/s",
        burst=SHARED_BURST,
        packs=["pack"],
    )
    clients = Everything(connect, dsn)
    clients.run(SECONDS)

    # What is left is worked off by one worker.
    for action in ACTIONS:
        engine.resume(action)
        for group in GROUPS:
            with suppress(errors.GroupMismatch):
                engine.resume(action, group)
        engine.policy(action, on_limit=None)
    worker = engine.worker(*ACTIONS, lease="1 h")
    unfinished = "select sum(total_enqueued - total_completed) from pgfifo.queue_stats"
    for _ in range(2000):
        starts = engine.claim(worker, 20, ACTIONS)
        clients._begin(starts)
        clients._end(starts)
        assert engine.hand_in(worker, *starts) == {}
        if not starts:
            if not engine.one(unfinished):
                break
            engine.tick()
    assert engine.one(unfinished) == 0, "somebody was forgotten"

    # Nothing lost, nothing made up, and each has one outcome.
    finished = Counter(id_ for (id_,) in engine.rows("select id from pgfifo.history"))
    assert set(finished) >= set(clients.ids)
    assert set(finished.values()) == {1}
    strangers = set(finished) - set(clients.ids)
    slots = {id_ for (id_,) in engine.rows("select id from pgfifo.executions where is_slot")}
    assert strangers <= slots, "an enqueue that was rolled back or refused left an execution"
    assert len(clients.ids) > 20, "hardly anything was enqueued"

    # The handlers' own word: never more at once than the highest limit.
    assert max(clients.journal.most.values()) <= MOST
    assert clients.all_lanes.most[""] <= SHARED

    # What is on record: order and slots by the lanes' own clocks; rates by the times of the starts.
    engine.assert_promises()
    assert engine.one("select active_count from pgfifo.shared_limits") == 0
    paced: dict[int, list[datetime]] = defaultdict(list)
    shared: list[datetime] = []
    for action, lane, at in engine.rows(
        "select a.name, s.lane_id, s.started_at from pgfifo.starts s join pgfifo.lanes l on l.id = s.lane_id"
        " join pgfifo.actions a on a.id = l.action_id"
    ):
        if action == "paced":
            paced[lane].append(at)
        else:
            shared.append(at)
    for times in paced.values():
        assert rate_faults(times, RATE, BURST) == []
        assert rate_faults(times, 1 / 0.005, 1) == [], "two starts were nearer than the spacing"
    assert rate_faults(shared, SHARED_RATE, SHARED_BURST) == []
