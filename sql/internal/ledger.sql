-- Append one version to a lane's ledger. The caller holds the lane's slot lock since an earlier statement; that makes the
-- newest version that this statement sees the newest there is. For single steps; claim and finish have set-based twins.
-- p_held_from, p_returned_from: where the held (yielded) or returned one that is added stands. p_held_floor, p_returned_floor: what the
-- caller has found to be the first of those that were there. p_delayed_from: the new bound of those that have yet to join.
create or replace function pgfifo._append(
  p_lane_id bigint,
  p_running integer default 0,
  p_held integer default 0,
  p_returned integer default 0,
  p_waiting integer default 0,
  p_starts integer default 0,
  p_succeeded integer default 0,
  p_failed integer default 0,
  p_cancelled integer default 0,
  p_held_from timestamptz default null,
  p_returned_from bigint default null,
  p_held_floor timestamptz default null,
  p_returned_floor bigint default null,
  p_yielded integer default 0,
  p_delayed integer default 0,
  p_delayed_from timestamptz default null,
  p_expired integer default 0,
  p_consumed bigint default null,
  p_enqueued integer default 0,
  p_riding integer default 0
) returns pgfifo.ledger
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_new pgfifo.ledger;
begin
  with newest as (
    select g.* from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1),
  pruned as (
    delete from pgfifo.ledger g using newest o where g.lane_id = o.lane_id and g.version = o.version)
  insert into pgfifo.ledger (lane_id, version, running, held, riding, yielded, returned, waiting, delayed, consumed, mark_floor, pending_mark,
    pending_xid, held_from, returned_from, delayed_from, starts, enqueued, joined, succeeded, failed, cancelled, expired, changed_at)
  select o.lane_id, o.version + 1, o.running + p_running, o.held + p_held, o.riding + p_riding, o.yielded + p_yielded, o.returned + p_returned, o.waiting + p_waiting,
    o.delayed + p_delayed, greatest(o.consumed, p_consumed), o.mark_floor, o.pending_mark, o.pending_xid,
    -- greatest and least pass over nulls: without one before, the bound is where the new one stands.
    case when o.held + o.yielded + p_held + p_yielded > 0
         then least(case when o.held + o.yielded > 0 then greatest(o.held_from, p_held_floor) end, p_held_from) end,
    case when o.returned + p_returned > 0 then least(case when o.returned > 0 then greatest(o.returned_from, p_returned_floor) end, p_returned_from) end,
    coalesce(p_delayed_from, o.delayed_from), o.starts + p_starts, o.enqueued + p_enqueued, o.joined, o.succeeded + p_succeeded,
    o.failed + p_failed, o.cancelled + p_cancelled, o.expired + p_expired, pgfifo._now()
  from newest o
  returning * into strict v_new;
  return v_new;
end $$;

-- A mark for a lane, in a transaction that has an xid before the id is drawn: scans rely on that.
create or replace function pgfifo._mark(p_lane_id bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_current_xact_id();
  insert into pgfifo.marks (action_id, id, lane_id)
  select l.action_id, nextval('pgfifo.mark_ids'), l.id from pgfifo.lanes l where l.id = p_lane_id;
end $$;

-- A mark that becomes due later. Never before the point from which timers are scanned, unless that is where the clock was
-- before it was set back: the next scan notices, and begins anew.
create or replace function pgfifo._timer(p_lane_id bigint, p_due_at timestamptz, p_tries integer default 0) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_current_xact_id();
  insert into pgfifo.timers (action_id, due_at, id, lane_id, tries)
  select l.action_id,
    greatest(p_due_at, (select case when s.hot_timer <= pgfifo._now() + interval '1 s' then s.hot_timer end
      from pgfifo.scans s where s.action_id = l.action_id order by s.action_id desc, s.version desc limit 1)),
    nextval('pgfifo.mark_ids'), l.id, p_tries
  from pgfifo.lanes l where l.id = p_lane_id;
end $$;
