"""The floors: the least that anybody does who keeps a queue in a table; no order, limits or history.

F1 claims and deletes in one statement and one commit: what a crash interrupts is lost. F1b claims in one
commit and deletes in the next: what at-least-once costs anyone. Both get the index they need, statistics,
and a vacuumed table.
"""

from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg
from psycopg.types.json import Jsonb

from bench.meter import Sample

Connection = psycopg.Connection[Any]

TABLES: LiteralString = """
create table f1 (id bigint generated always as identity primary key, lane bigint not null,
  enqueued_at timestamptz not null default now(), payload jsonb not null);
create table f1b (id bigint generated always as identity primary key, lane bigint not null,
  enqueued_at timestamptz not null default now(), claimed_by bigint, claimed_at timestamptz,
  payload jsonb not null);
create index f1b_waiting on f1b (id) where claimed_by is null;
create sequence bare_ids;
create table bare (like pgfifo._executions including defaults);
alter table bare add primary key (id);
"""

FILL: LiteralString = (
    "insert into {} (lane, payload) select n %% 100, p from unnest(%s::jsonb[]) with ordinality u(p, n)"
)

F1: LiteralString = """
delete from f1 where id = any (array(select id from f1 order by id limit %s for update skip locked))
returning id, lane, payload
"""
F1B_CLAIM: LiteralString = """
update f1b set claimed_by = 1, claimed_at = now()
where id = any (array(
  select id from f1b where claimed_by is null order by id limit %s for update skip locked))
returning id, lane, payload
"""
F1B_DONE: LiteralString = "delete from f1b where id = any (%s)"

BARE_ONE: LiteralString = """
insert into bare (id, lane_id, ticket, enqueued_at, payload)
select i.id, %s, i.id, clock_timestamp(), %s from (select nextval('bare_ids') as id) i returning id
"""
BARE_MANY: LiteralString = """
insert into bare (id, lane_id, ticket, enqueued_at, payload)
select i.id, i.lane, i.id, clock_timestamp(), i.payload
from (select nextval('bare_ids') as id, n %% 100 as lane, p as payload
      from unnest(%s::jsonb[]) with ordinality u(p, n)) i
"""


def prepare(conn: Connection) -> None:
    """Make the floors' tables, in pgfifo's database but not in its schema."""
    conn.execute(TABLES)


def fill(conn: Connection, table: LiteralString, payloads: Sequence[Jsonb]) -> None:
    """Put rows into a floor's table and tell the planner about them."""
    conn.execute(psycopg.sql.SQL(FILL).format(psycopg.sql.Identifier(table)), [list(payloads)])
    conn.execute(psycopg.sql.SQL("vacuum analyze {}").format(psycopg.sql.Identifier(table)))


def drain_f1(conn: Connection, batch: int, sample: Sample, most: int | None = None) -> None:
    """Claim and delete in one statement until nothing is left, or so many are done."""
    while most is None or sample.done < most:
        rows = conn.execute(F1, [batch], prepare=True).fetchall()
        sample.statements += 1
        if not rows:
            return
        sample.done += len(rows)


def drain_f1b(conn: Connection, batch: int, sample: Sample, most: int | None = None) -> None:
    """Claim in one commit and delete in the next until nothing is left, or so many are done."""
    while most is None or sample.done < most:
        rows = conn.execute(F1B_CLAIM, [batch], prepare=True).fetchall()
        sample.statements += 1
        if not rows:
            return
        conn.execute(F1B_DONE, [[row[0] for row in rows]], prepare=True)
        sample.statements += 1
        sample.done += len(rows)


def plans(conn: Connection, batch: int) -> dict[str, list[str]]:
    """How the server runs the floors' statements."""
    asked: dict[str, tuple[LiteralString, list[Any]]] = {
        "F1": (F1, [batch]),
        "F1b, claim": (F1B_CLAIM, [batch]),
        "F1b, delete": (F1B_DONE, [list(range(batch))]),
    }
    told = {}
    for name, (query, parameters) in asked.items():
        rows = psycopg.ClientCursor(conn).execute("explain " + query, parameters).fetchall()
        told[name] = [line if len(line) < 160 else line[:150] + " …" for (line,) in rows]
    return told
