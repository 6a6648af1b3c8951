-- Finish one execution that has succeeded and about which nothing is special: a few small statements, each of which costs less
-- to begin than the one that finishes many together (see _finish_batch). Both decide alike; where that one has to do it after
-- all, o_lanes is null and nothing is changed.
-- A worker's word counts if (id, attempt, worker) is what runs, seen under the lane's slot lock, which is had at once or not
-- at all. Dies here: nothing happened; the worker hands it in again, or is found dead.
create or replace function pgfifo._finish_single(p_worker bigint, p_item jsonb, p_now timestamptz, out o_status jsonb, out o_lanes bigint[], out o_actions integer[],
  out o_versions bigint[])
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id constant bigint := (p_item ->> 'id')::bigint;
  v_lane_id bigint;
  v_run record;
  v_lane record;
  v_ledger pgfifo.ledger;
  -- An xid before events are numbered: see events.
  v_xid constant xid8 := pg_current_xact_id();
begin
  -- A hint, since an execution never changes its lane; then its slot lock; then look.
  select r.lane_id into v_lane_id from pgfifo.runs r where r.id = v_id;
  if v_lane_id is null or not pg_try_advisory_xact_lock('pgfifo.lanes'::regclass::oid::integer, pgfifo._key(v_lane_id)) then
    return;
  end if;
  -- Looked up by its key alone: no plan can walk over what this worker has had before. Nobody moves it under the slot lock.
  select r.ctid as row, r.*, exists (select from pgfifo.cancellations c where c.id = v_id) as is_cancelled into v_run from pgfifo.runs r where r.id = v_id;
  if v_run.attempt = (p_item ->> 'attempt')::integer and v_run.worker_id = p_worker and v_run.state = 'running' and v_run.draws is null
    and v_run.batch_no is null and v_run.version is not null and not v_run.is_cancelled
  then
    delete from pgfifo.runs r where r.ctid = v_run.row;
  else
    return;
  end if;
  -- The newest version as one value: each step of a plan pays for each column that it passes on.
  select l.action_id, l.group_text, g.row, g.ledger into strict v_lane
  from pgfifo.lanes l
  cross join lateral (
    select g.ctid as row, g as ledger from pgfifo.ledger g where g.lane_id = l.id and g.version >= v_run.version order by g.lane_id desc, g.version desc limit 1) g
  where l.id = v_lane_id;
  v_ledger := v_lane.ledger;
  with gone as (
    delete from pgfifo._executions e where e.id = v_id
    returning e.enqueued_at, e.retry_of, e.payload, e.headers, e.tags, e.owner)
  insert into pgfifo.history (id, action_id, lane_id, group_text, outcome, attempt, failures, ticket, worker_id, joined_no, start_no,
    start_limit, is_strict, end_no, enqueued_at, started_at, finished_at, retry_of, payload, headers, tags, result, result_error, attempts, owner,
    start_event)
  select v_id, v_lane.action_id, v_lane_id, v_lane.group_text, 'succeeded', v_run.attempt, v_run.failures, v_run.ticket, p_worker, v_run.joined_no,
    v_run.start_no, v_run.start_limit, v_run.is_strict, v_ledger.starts, e.enqueued_at, v_run.started_at, p_now, e.retry_of, e.payload, e.headers, e.tags,
    case when v_run.completed then v_run.result else nullif(p_item -> 'result', 'null') end, p_item ->> 'result_error', v_run.attempts, e.owner,
    v_run.event_no
  from gone e;
  if not found then
    raise exception using errcode = 'XX000', message = format('execution %s has no content', v_id);
  end if;
  with gone as (
    delete from pgfifo.ledger g where g.ctid = v_lane.row)
  insert into pgfifo.ledger (lane_id, version, running, held, riding, yielded, returned, waiting, delayed, consumed, mark_floor, pending_mark,
    pending_xid, held_from, returned_from, delayed_from, starts, enqueued, joined, succeeded, failed, cancelled, expired, changed_at)
  values (v_lane_id, v_ledger.version + 1, v_ledger.running - 1, v_ledger.held, v_ledger.riding, v_ledger.yielded, v_ledger.returned, v_ledger.waiting,
    v_ledger.delayed, v_ledger.consumed, v_ledger.mark_floor, v_ledger.pending_mark, v_ledger.pending_xid, v_ledger.held_from, v_ledger.returned_from,
    v_ledger.delayed_from, v_ledger.starts, v_ledger.enqueued, v_ledger.joined, v_ledger.succeeded + 1, v_ledger.failed, v_ledger.cancelled,
    v_ledger.expired, p_now);
  o_lanes := '{}';
  o_actions := '{}';
  o_versions := '{}';
  if v_ledger.waiting > 0 then
    o_lanes := array[v_lane_id];
    o_actions := array[v_lane.action_id];
    o_versions := array[v_ledger.version + 1];
  end if;
end $$;
