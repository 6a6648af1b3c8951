"""What the screens show, each read by one statement, on a connection that comes back when it is lost."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row

from pgfifo.dsn import redact, with_defaults
from pgfifo.errors import translated

if TYPE_CHECKING:
    from typing import LiteralString

_PATIENCE = 15.0
"""Seconds until a connection that does not answer is taken for lost."""

ACTIONS = """
    select pgfifo._time() as now, coalesce((select json_agg(o) from pgfifo.overview() o), '[]') as actions
"""
LANES = """
    select pgfifo._time() as now, coalesce((
      select json_agg(l)
      from pgfifo.list_lanes(%(action)s::text, %(search)s::text, null, %(sort)s::text, 100) l), '[]') as lanes
"""
WORKERS = """
    select pgfifo._time() as now, coalesce((
      select json_agg(w order by w.state = 'alive' desc, w.executions desc, w.id)
      from (select w.*, w.state = 'alive' and w.last_seen + w.lease < pgfifo._time() as silent
            from pgfifo.workers w
            where (w.kind = 'worker' or w.executions > 0)
              and (w.state = 'alive' or w.executions > 0 or w.ended_at > pgfifo._time() - interval '10 min')
            order by w.state = 'alive' desc, w.executions desc, w.id limit 200) w), '[]') as workers,
      coalesce((
      select json_agg(s order by s.since)
      from (select s.worker_id, s.id, s.action, s.group_text, s.since from pgfifo.slots s
            where s.worker_id is not null and s.state = 'running'
            order by s.since limit 1000) s), '[]') as runs
"""
LANE = """
    with w as materialized (
      select * from pgfifo.line(%(action)s::text, nullif(%(group)s::text, ''), 100))
    select pgfifo._time() as now,
      (select to_json(l) from pgfifo.lane_stats l
       where l.action = %(action)s::text and l.group_text = %(group)s::text) as lane,
      coalesce((
        select json_agg(s) from (
          select s.id, s.state, s.attempt, s.since, s.holder, s.host, s.pid from pgfifo.slots s
          where s.action = %(action)s::text and s.group_text = %(group)s::text and s.state <> 'waiting'
          order by s.since limit 100) s), '[]') as active,
      coalesce((
        select json_agg(json_build_object('pos', w.pos, 'id', w.id, 'attempt', w.attempt,
            'enqueued_at', w.enqueued_at, 'eta', w.eta_seconds, 'payload', left(w.payload::text, 300))
          order by w.pos)
        from w), '[]') as line,
      (select x.data ->> 'why' from w cross join lateral pgfifo.explain(w.id) x where w.pos = 1) as why
"""
FINISHED = """
    select pgfifo._time() as now,
      (select to_json(l) from pgfifo.lane_stats l
       where l.action = %(action)s::text and l.group_text = %(group)s::text) as lane,
      coalesce((
        select json_agg(json_build_object('id', e.id, 'state', e.state, 'attempt', e.attempt,
            'finished_at', e.finished_at, 'error', left(coalesce(e.error, e.reason), 300)))
        from pgfifo.list_executions(jsonb_build_object('action', %(action)s::text, 'group', %(group)s::text,
          'state', '["succeeded", "failed", "cancelled", "expired"]'::jsonb), 100) e), '[]') as finished
"""
EXECUTION = """
    select pgfifo._time() as now, x.explanation,
      (select json_build_object('id', e.id, 'action', e.action, 'group_text', e.group_text, 'state', e.state,
         'attempt', e.attempt, 'failures', e.failures, 'ticket', e.ticket, 'tags', e.tags,
         'enqueued_at', e.enqueued_at, 'started_at', e.started_at, 'finished_at', e.finished_at,
         'due_at', e.due_at, 'worker_id', e.worker_id, 'retry_of', e.retry_of, 'progress', e.progress,
         'progress_message', e.progress_message, 'cancel_requested_at', e.cancel_requested_at,
         'payload', left(e.payload::text, 4000), 'result', left(e.result::text, 4000),
         'error', left(e.error, 4000), 'reason', e.reason,
         'attempts', (select json_agg(a.attempt) from (
           select a.attempt from jsonb_array_elements(e.attempts) a(attempt) limit 20) a))
       from pgfifo.executions e where e.id = %(id)s::bigint) as execution
    from pgfifo.explain(%(id)s::bigint) x
"""


class Lost(Exception):  # noqa: N818 - it is one
    """There is no connection; the message says why."""


class Source:
    """Reads what screens show. Each call is one statement."""

    def __init__(self, conninfo: str) -> None:
        """Say which database; nothing is connected yet.

        Args:
            conninfo: a DSN.
        """
        self._conninfo = with_defaults(conninfo, "pgfifo top")
        self._conn: psycopg.AsyncConnection[Any] | None = None

    async def read(self, query: "LiteralString", arguments: dict[str, object]) -> dict[str, Any]:
        """Return the row of a query.

        Args:
            query: one of this module's.
            arguments: its arguments.

        Raises:
            Lost: there is no connection; the next call tries to connect again.
            psycopg.Error: the database refuses it.
        """
        try:
            return await asyncio.wait_for(self._read(query, arguments), _PATIENCE)
        except TimeoutError:
            await self.close()
            raise Lost(f"the server has not answered for {_PATIENCE:.0f} s") from None
        except psycopg.Error as error:
            if self._conn is not None and not self._conn.closed and not _ends_sessions(error):
                raise translated(error) from None
            await self.close()
            said = error.diag.message_primary or str(error) or type(error).__name__
            raise Lost(redact(" ".join(said.split()))) from None

    async def _read(self, query: "LiteralString", arguments: dict[str, object]) -> dict[str, Any]:
        if self._conn is None:
            # Nothing is prepared, as there may be a pooler in between.
            self._conn = await psycopg.AsyncConnection.connect(
                self._conninfo, autocommit=True, prepare_threshold=None
            )
        async with self._conn.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(query, arguments)
            row = await cursor.fetchone()
        return row or {}

    async def close(self) -> None:
        """Close the connection, if there is one."""
        conn, self._conn = self._conn, None
        if conn is not None:
            with suppress(psycopg.Error):
                await conn.close()


def _ends_sessions(error: psycopg.Error) -> bool:
    """Tell whether the server has ended the session with this error, though the socket may be open still."""
    return (error.sqlstate or "").startswith(("57P", "08"))
