"""A worker in plain SQL for tests that force interleavings, and what its calls cost, counted in buffers."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg

Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class Start:
    """An execution that a claim has started."""

    id: int
    attempt: int
    group: str
    start_no: int

    def ended(self, outcome: str = "succeeded", **more: object) -> dict[str, object]:
        """Return the item that hands it back."""
        return {"id": self.id, "attempt": self.attempt, "outcome": outcome, **more}


class SqlWorker:
    """A registered worker whose calls are made one by one, on one session."""

    def __init__(self, conn: Connection, *actions: str, locked: bool = False) -> None:
        self.conn = conn
        self.actions = list(actions)
        query = "select pgfifo.worker_start('test', 'here', 1, %s, 100, '30 s', %s)"
        self.id: int = value(conn, query, self.actions, locked)
        self.more: str | None = None
        """What the last call said about when to call again."""
        self.refused: list[tuple[int, str]] = []
        """What of the last call's finished items was not accepted."""

    def work(
        self, limit: int = 1, ended: Iterable[dict[str, object]] = (), *, call: int | None = None
    ) -> list[Start]:
        """Hand back what has ended and claim, in one call."""
        rows = self.conn.execute(
            "select kind, id, attempt, group_text, start_no, status"
            " from pgfifo.work(%s, %s, %s, %s, %s::jsonb)",
            [self.id, self.actions, limit, call, json.dumps(list(ended))],
        ).fetchall()
        self.more = next((status for kind, *_, status in rows if kind == "more"), None)
        self.refused = [(key, status) for kind, key, _, _, _, status in rows if kind == "finish"]
        return [Start(*row[1:5]) for row in rows if row[0] == "start"]

    def drain(self, limit: int = 100, rounds: int = 10_000) -> list[Start]:
        """Run everything there is to the end; return it in the order of its starts."""
        done: list[Start] = []
        held: list[Start] = []
        for _ in range(rounds):
            held = self.work(limit, [start.ended() for start in held])
            done += held
            if not held and self.more != "now":
                return done
        raise AssertionError(f"no end after {rounds} calls: {done[-5:]}")


def value(conn: Connection, query: str, *arguments: object) -> Any:
    """Return the one value that a query is about."""
    row = conn.execute(query, arguments or None).fetchone()
    assert row is not None, query
    return row[0]


def enqueue(conn: Connection, action: str, group: str | None = None, payload: str = "{}") -> int:
    """Enqueue one and return its id."""
    return int(value(conn, "select pgfifo.enqueue(%s, %s::jsonb, %s)", action, payload, group))


def enqueue_one_by_one(conn: Connection, action: str, group: str, count: int) -> None:
    """Enqueue so many in one lane, each in a transaction of its own."""
    loop = (
        f"for i in 1 .. {count} loop perform pgfifo.enqueue('{action}', '{{}}', '{group}'); commit; end loop;"
    )
    conn.execute(f"do $$ begin {loop} end $$")


def enqueue_groups(conn: Connection, action: str, groups: Iterable[str]) -> None:
    """Enqueue one per group given, in batches that are allowed."""
    left = list(groups)
    while left:
        batch, left = left[:500], left[500:]
        conn.execute(
            "select from pgfifo.enqueue_many(%s, array_fill('{}'::jsonb, array[%s]), %s)",
            [action, len(batch), batch],
        )


def policy(conn: Connection, action: str, group: str | None = None, **values: object) -> None:
    """Set limits and rules of an action or of one lane."""
    conn.execute("select from pgfifo.set_policy(%s, %s::jsonb, %s)", [action, json.dumps(values), group])


def advance(conn: Connection, seconds: float) -> None:
    """Move pgfifo's clock."""
    conn.execute("select pgfifo.advance(make_interval(secs => %s))", [seconds])


def maintain(conn: Connection) -> dict[str, Any]:
    """Do a round of maintenance whose sweep begins with the first lane."""
    conn.execute("update pgfifo.ticks set swept_to = 0")
    done: dict[str, Any] = value(conn, "select pgfifo.maintain()")
    return done


def lane(conn: Connection, action: str, group: str) -> int:
    """Return the id of a lane."""
    query = (
        "select l.id from pgfifo.lanes l join pgfifo.actions a on a.id = l.action_id"
        " where a.name = %s and l.group_text = %s"
    )
    return int(value(conn, query, action, group))


def hold_lanes(conn: Connection, action: str, groups: str = "%") -> int:
    """Take the slot locks of lanes in this transaction, as an application's open `cancel` does."""
    assert not conn.autocommit
    query = (
        "select count(*) filter (where pg_try_advisory_xact_lock("
        "'pgfifo.lanes'::regclass::oid::integer, pgfifo._key(l.id)))"
        " from pgfifo.lanes l join pgfifo.actions a on a.id = l.action_id"
        " where a.name = %s and l.group_text like %s"
    )
    return int(value(conn, query, action, groups))


def buffers(conn: Connection, query: str) -> int:
    """Run a query and return how many buffers it touched, everything in its functions included."""
    plan = value(conn, f"explain (analyze, buffers, timing off, format json) {query}")[0]["Plan"]
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


_call_numbers = itertools.count(1_000_000_000)


def claim_cost(worker: SqlWorker, limit: int = 1, times: int = 5) -> int:
    """Return the buffers that a claim touches at best, numbered as a real worker's are.

    What it starts is handed back by the next.
    """
    cost = []
    ended: list[dict[str, object]] = []
    for _ in range(times):
        query = "select id, attempt from pgfifo.runs where worker_id = %s and state = 'running'"
        ended = [
            {"id": key, "attempt": attempt, "outcome": "succeeded"}
            for key, attempt in worker.conn.execute(query, [worker.id])
        ]
        names = "array[" + ", ".join(f"'{name}'" for name in worker.actions) + "]"
        call = f"pgfifo.work({worker.id}, {names}, {limit}, {next(_call_numbers)}, '{json.dumps(ended)}')"
        cost.append(buffers(worker.conn, f"select * from {call}"))
    return min(cost)


def violations(conn: Connection) -> list[tuple[Any, ...]]:
    """Return what `pgfifo.check` finds that must never be."""
    return conn.execute(
        "select kind, lane, detail from pgfifo.check() where severity = 'violation'"
    ).fetchall()
