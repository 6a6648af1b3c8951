-- Finish one execution that has succeeded and about which nothing is special: a few small statements, each of which costs less
-- to begin than the one that finishes many together (see _finish_batch). Both decide alike; where that one has to do it after
-- all, o_lanes is null and nothing is changed.
-- A worker's word counts if (id, attempt, worker) is what runs, seen under the lane's slot lock, which is had at once or not
-- at all. Dies here: nothing happened; the worker hands it in again, or is found dead.
-- p_turn: how long turns last, where the caller may hand slots on (see work), else null. Then o_next is the next of its line,
-- started in its slot: it needs no mark, since the lane is as full as it was.
create or replace function pgfifo._finish_single(p_worker bigint, p_item jsonb, p_turn interval, p_actions integer[], p_names text[], p_max integer[],
  p_call bigint, p_epoch integer, p_now timestamptz, out o_status jsonb, out o_lanes bigint[], out o_actions integer[], out o_versions bigint[],
  out o_next pgfifo.work_row)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id constant bigint := (p_item ->> 'id')::bigint;
  v_lane_id bigint;
  v_run record;
  v_lane record;
  v_ledger pgfifo.ledger;
  v_nth integer;
  v_next record;
  v_ticket bigint;
  v_started integer := 0;
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
  select l.action_id, l.group_text, g.row, g.ledger,
      p_turn is not null and (exists (select from pgfifo.policies p where p.scope = 'lane' and p.lane_id = v_lane_id) or exists (select from pgfifo._overrides)) as differs
    into strict v_lane
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
  if p_turn is not null and not v_lane.differs
    and v_ledger.held = 0 and v_ledger.returned = 0 and v_ledger.yielded = 0 and v_ledger.delayed = 0 and v_ledger.pending_xid is null
    and p_now >= coalesce(v_run.turn_from, v_run.started_at)
    and (p_now <= coalesce(v_run.turn_from, v_run.started_at) + p_turn or not pgfifo._others_wait(p_actions, p_now))
  then
    v_nth := array_position(p_actions, v_lane.action_id);
    if p_max[v_nth] - v_ledger.running + v_ledger.riding + 1 > 0 then
      -- Read with its content, under the slot lock: whoever changes what waits holds that, too.
      select e.id, e.ticket, e.owner, e.past, e.payload, e.headers, e.tags, e.enqueued_at, e.run_at into v_next
      from pgfifo._executions e where e.lane_id = v_lane_id and e.ticket > v_ledger.consumed order by e.lane_id, e.ticket limit 1;
      if v_next.id is not null and v_next.owner is null and v_next.past is null then
        insert into pgfifo.runs (id, lane_id, ticket, state, attempt, worker_id, call_no, start_no, start_limit, is_strict, version, started_at, turn_from)
        values (v_next.id, v_lane_id, v_next.ticket, 'running', 1, p_worker, p_call, v_ledger.starts + 1, p_max[v_nth], true, v_ledger.version + 1, p_now,
          coalesce(v_run.turn_from, v_run.started_at));
        v_ticket := v_next.ticket;
        v_started := 1;
        o_next.kind := 'start';
        o_next.id := v_next.id;
        o_next.attempt := 1;
        o_next.token := p_epoch || '-' || v_next.id || '-1';
        o_next.action := p_names[v_nth];
        o_next.group_text := v_lane.group_text;
        o_next.payload := v_next.payload;
        o_next.headers := v_next.headers;
        o_next.tags := v_next.tags;
        o_next.enqueued_at := v_next.enqueued_at;
        o_next.wait_seconds := greatest(0, extract(epoch from p_now - greatest(v_next.enqueued_at, v_next.run_at)));
        o_next.lane_id := v_lane_id;
        o_next.start_no := v_ledger.starts + 1;
      end if;
    end if;
  end if;
  with gone as (
    delete from pgfifo.ledger g where g.ctid = v_lane.row)
  insert into pgfifo.ledger (lane_id, version, running, held, riding, yielded, returned, waiting, delayed, consumed, mark_floor, pending_mark,
    pending_xid, held_from, returned_from, delayed_from, starts, enqueued, joined, succeeded, failed, cancelled, expired, changed_at)
  values (v_lane_id, v_ledger.version + 1, v_ledger.running - 1 + v_started, v_ledger.held, v_ledger.riding, v_ledger.yielded, v_ledger.returned,
    v_ledger.waiting - v_started, v_ledger.delayed, coalesce(v_ticket, v_ledger.consumed),
    v_ledger.mark_floor, v_ledger.pending_mark, v_ledger.pending_xid, v_ledger.held_from, v_ledger.returned_from, v_ledger.delayed_from,
    v_ledger.starts + v_started, v_ledger.enqueued, v_ledger.joined, v_ledger.succeeded + 1, v_ledger.failed, v_ledger.cancelled,
    v_ledger.expired, p_now);
  o_lanes := '{}';
  o_actions := '{}';
  o_versions := '{}';
  if v_ledger.waiting > 0 and v_started = 0 then
    o_lanes := array[v_lane_id];
    o_actions := array[v_lane.action_id];
    o_versions := array[v_ledger.version + 1];
  end if;
end $$;
