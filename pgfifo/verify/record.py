"""What pgfifo itself says of some actions when all is over. Only public views are asked."""

from collections.abc import Collection
from typing import Any

import psycopg

from pgfifo.verify.history import Outcome, Record, Stay

_OUTCOMES = """
    select e.id, e.action, e.group_text, e.state, e.attempt, e.failures from pgfifo.executions e
    where e.action = any (%s)
"""
_STAYS = """
    with ours as (
      select distinct e.lane_id, e.action, e.group_text from pgfifo.executions e where e.action = any (%s))
    select o.action, o.group_text, s.id, s.attempt, s.ticket, s.joined_no,
      s.start_no, s.start_limit, s.end_no, s.batch_no
    from pgfifo.starts s join ours o on o.lane_id = s.lane_id
    union all
    -- What has come back to the line is left out: since when it waits, no view tells.
    select e.action, e.group_text, e.id, 1, e.ticket, 0, null, null, null, null from pgfifo.executions e
    where e.action = any (%s) and e.state = 'waiting' and e.attempt = 0
"""
_CHECK = "select severity, kind, lane, detail from pgfifo.check() where severity = 'violation'"
_SWEPT = "select sweep_found from pgfifo.ticks order by tick desc limit 1"


def swept(conn: psycopg.Connection[Any]) -> int | None:
    """Return how many lanes only the sweep has set going so far; None where this role may not ask.

    Args:
        conn: an autocommit connection.
    """
    try:
        row = conn.execute(_SWEPT).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return None
    return int(row[0]) if row else 0


def record(conn: psycopg.Connection[Any], actions: Collection[str], before: int | None) -> Record:
    """Return what is on record.

    Args:
        conn: an autocommit connection.
        actions: of which actions.
        before: what `swept` returned before anything happened.
    """
    names = list(actions)
    with conn.transaction():
        conn.execute("set local jit = off")  # compiling these would take longer than running them
        checked = conn.execute(_CHECK).fetchall()
        outcomes = conn.execute(_OUTCOMES, [names]).fetchall()
        stays = conn.execute(_STAYS, [names, names]).fetchall()
    after = swept(conn)
    found = [
        f"violation: {kind} in {lane}: {detail}"
        for _, kind, lane, detail in checked
        if lane is not None and lane.split()[0] in actions
    ]
    return Record(
        outcomes=[Outcome(*row) for row in outcomes],
        stays=[Stay((action, lane), *rest) for action, lane, *rest in stays],
        wakeups_lost=None if before is None or after is None else after - before,
        findings=found,
    )
