-- The slot locks of the lanes of what a worker hands back. Which lanes: a hint, read without a lock; an execution never changes
-- its lane. In the order of their keys, each with one short wait; a lane that cannot be had is not among those returned.
create or replace function pgfifo._lock_ended(p_items jsonb) returns bigint[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c_lanes constant integer := 'pgfifo.lanes'::regclass::oid::integer;
  v_lane bigint;
  v_locked bigint[];
  v_others bigint[];
begin
  select array_agg(t.lane_id) filter (where t.is_locked), array_agg(t.lane_id) filter (where not t.is_locked) into v_locked, v_others
  from (
    select d.lane_id, pg_try_advisory_xact_lock(c_lanes, d.key) as is_locked
    from (select r.lane_id, pgfifo._key(r.lane_id) as key
          from jsonb_to_recordset(p_items) i(id bigint)
          cross join lateral (select r.lane_id from pgfifo.runs r where r.id = i.id offset 0) r
          group by r.lane_id order by 2) d) t;
  v_locked := coalesce(v_locked, '{}');
  if v_others is not null then
    foreach v_lane in array v_others loop
      if pgfifo._lock('pgfifo.lanes'::regclass, pgfifo._key(v_lane), interval '50 ms') then
        v_locked := v_locked || v_lane;
      end if;
    end loop;
  end if;
  return v_locked;
end $$;

-- Finish what a worker hands back. Returns the status of each item that is not ok ('lost', 'retry' or 'unstarted'), and the lanes that
-- have something waiting now: the caller refills them or leaves a mark, in this transaction.
-- p_locked: their lanes whose slot locks the caller has, see _lock_ended; what is in another lane is for later ('retry').
-- (id, attempt, worker) must still be what runs, seen under these locks: the statements that decide begin after them.
-- What is said of a batch counts in its order: see _put_off for what is 'unstarted'.
-- Dies here: nothing happened; the worker hands the same items in again, or is found dead and they are taken back.
create or replace function pgfifo._finish_batch(p_worker bigint, p_items jsonb, p_locked bigint[], out o_status jsonb, out o_lanes bigint[], out o_actions integer[],
  out o_versions bigint[])
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_done bigint[];
  v_attempts integer[];
  v_item record;
  v_run pgfifo.runs;
  -- An xid before events are numbered: see events.
  v_xid constant xid8 := pg_current_xact_id();
  v_now timestamptz := pgfifo._now();
  v_requested boolean;
  v_rode boolean := false;
  v_runs bigint;
  v_contents bigint;
  v_refused jsonb := '[]';
begin
  -- Rows are looked up one by one through their keys (offset 0 keeps other conditions out of the way of the index), and
  -- read again and deleted where they were found: under the slot lock nobody moves them.
  with items as materialized (
    select distinct on (i.id, i.attempt) i.id, i.attempt, i.result, i.result_error
    from jsonb_to_recordset(p_items) i(id bigint, attempt integer, outcome text, result jsonb, result_error text)
    where i.outcome = 'succeeded'),
  ended as materialized (
    select i.id, i.attempt, i.result, i.result_error, r.run, e.content, g.row, g.version, g.starts, g.waiting, r.lane_id, l.action_id, l.group_text,
      c.requested_at, c.reason
    from items i
    cross join lateral (
      select r.ctid as run, r.lane_id, r.attempt, r.worker_id, r.state, r.version, r.draws, r.batch_no from pgfifo.runs r where r.id = i.id offset 0) r
    cross join lateral (select e.ctid as content from pgfifo._executions e where e.id = i.id offset 0) e
    cross join lateral (select l.action_id, l.group_text from pgfifo.lanes l where l.id = r.lane_id offset 0) l
    cross join lateral (
      select g.ctid as row, g.version, g.starts, g.waiting from pgfifo.ledger g
      where g.lane_id = r.lane_id and g.version >= r.version order by g.lane_id desc, g.version desc limit 1) g
    left join lateral (select c.requested_at, c.reason from pgfifo.cancellations c where c.id = i.id offset 0) c on true
    where r.attempt = i.attempt and r.worker_id = p_worker and r.state = 'running' and r.draws is null and r.batch_no is null and r.lane_id = any (p_locked)),
  runs_gone as (
    delete from pgfifo.runs r where r.ctid = any (array(select w.run from ended w)) returning 1),
  content_gone as (
    delete from pgfifo._executions e where e.ctid = any (array(select w.content from ended w)) returning 1),
  kept as (
    insert into pgfifo.history (id, action_id, lane_id, group_text, outcome, attempt, failures, ticket, worker_id, joined_no, start_no,
      start_limit, is_strict, end_no, enqueued_at, started_at, finished_at, cancel_requested_at, retry_of, payload, headers, tags, result,
      result_error, reason, attempts, owner, start_event)
    select w.id, w.action_id, w.lane_id, w.group_text, 'succeeded', r.attempt, r.failures, r.ticket, p_worker, r.joined_no, r.start_no,
      r.start_limit, r.is_strict, w.starts, e.enqueued_at, r.started_at, v_now, w.requested_at, e.retry_of, e.payload, e.headers, e.tags,
      case when r.completed then r.result else w.result end, w.result_error, w.reason, r.attempts, e.owner,
      r.event_no
    from ended w
    cross join lateral (select r.* from pgfifo.runs r where r.ctid = w.run) r
    cross join lateral (select e.* from pgfifo._executions e where e.ctid = w.content) e),
  newest as materialized (
    select w.row, w.lane_id, w.action_id, w.version, w.waiting, count(*)::integer as n from ended w
    group by w.row, w.lane_id, w.action_id, w.version, w.waiting),
  pruned as (
    delete from pgfifo.ledger g where g.ctid = any (array(select o.row from newest o))),
  appended as (
    insert into pgfifo.ledger (lane_id, version, running, held, riding, yielded, returned, waiting, delayed, consumed, mark_floor, pending_mark,
      pending_xid, held_from, returned_from, delayed_from, starts, enqueued, joined, succeeded, failed, cancelled, expired, changed_at)
    select g.lane_id, g.version + 1, g.running - o.n, g.held, g.riding, g.yielded, g.returned, g.waiting, g.delayed, g.consumed, g.mark_floor,
      g.pending_mark, g.pending_xid, g.held_from, g.returned_from, g.delayed_from, g.starts, g.enqueued, g.joined, g.succeeded + o.n, g.failed,
      g.cancelled, g.expired, v_now
    from newest o cross join lateral (select g.* from pgfifo.ledger g where g.ctid = o.row) g)
  select d.ids, d.attempts, d.asked, n.lanes, n.actions, n.versions, (select count(*) from runs_gone), (select count(*) from content_gone)
    into v_done, v_attempts, v_requested, o_lanes, o_actions, o_versions, v_runs, v_contents
  from (select array_agg(w.id) as ids, array_agg(w.attempt) as attempts, bool_or(w.requested_at is not null) as asked from ended w) d,
    (select array_agg(o.lane_id) as lanes, array_agg(o.action_id) as actions, array_agg(o.version + 1) as versions from newest o where o.waiting > 0) n;
  if v_runs <> coalesce(cardinality(v_done), 0) or v_contents <> v_runs then
    raise exception using errcode = 'XX000',
      message = format('finish found %s executions, and deleted %s runs and %s contents', coalesce(cardinality(v_done), 0), v_runs, v_contents);
  end if;
  o_lanes := coalesce(o_lanes, '{}');
  o_actions := coalesce(o_actions, '{}');
  o_versions := coalesce(o_versions, '{}');
  if v_requested then
    delete from pgfifo.cancellations c where c.id = any (v_done);
  end if;
  if cardinality(v_done) = jsonb_array_length(p_items) then
    return;
  end if;

  -- The rest one by one: failures, releases, cancellations, and what is not ours any more; other attempts of what is done
  -- are answered too.
  for v_item in
    select i.* from jsonb_to_recordset(p_items)
      i(id bigint, attempt integer, outcome text, result jsonb, error text, retry boolean, result_error text, "after" double precision, count boolean)
    where v_done is null or i.id <> all (v_done) or i.outcome is distinct from 'succeeded' or i.attempt is distinct from v_attempts[array_position(v_done, i.id)]
  loop
    select * into v_run from pgfifo.runs r where r.id = v_item.id;
    if v_run.batch_no is not null and not v_rode then
      -- What has succeeded of batches, together.
      select f.o_done, f.o_attempts, o_lanes || f.o_freed, o_actions || f.o_freed_actions, o_versions || f.o_freed_versions
        into v_done, v_attempts, o_lanes, o_actions, o_versions
      from pgfifo._finish_riders(p_worker, p_items, p_locked, o_lanes) f;
      v_rode := true;
      select * into v_run from pgfifo.runs r where r.id = v_item.id;
    end if;
    continue when v_rode and v_item.attempt = v_attempts[array_position(v_done, v_item.id)];
    if v_item.outcome is null or v_item.outcome not in ('succeeded', 'failed', 'released', 'cancelled') then
      raise exception using errcode = 'QF022',
        message = format('an execution ends as succeeded, failed, released or cancelled, not as %s', coalesce(quote_literal(v_item.outcome), 'null')),
        detail = json_build_object('id', v_item.id, 'outcome', v_item.outcome)::text;
    elsif v_run.id is not null and v_run.attempt = v_item.attempt and v_run.worker_id = p_worker and v_run.lane_id <> all (p_locked) then
      v_refused := v_refused || jsonb_build_object('id', v_item.id, 'attempt', v_item.attempt, 'status', 'retry');
    elsif v_run.id is not null and v_run.attempt = v_item.attempt and v_run.worker_id = p_worker and v_run.state = 'running' then
      perform pgfifo._finish_one(v_run, v_item.outcome, v_item.result, v_item.error, v_item.retry, v_item.result_error, false,
        v_item.after, v_item.count);
      -- Only lanes, never a null: next to one, <> all is not true any more, and the lanes after it would get no mark.
      if v_run.lane_id <> all (o_lanes)
        and (select g.waiting from pgfifo.ledger g where g.lane_id = v_run.lane_id order by g.lane_id desc, g.version desc limit 1) > 0
      then
        o_lanes := o_lanes || v_run.lane_id;
        o_actions := o_actions || (select l.action_id from pgfifo.lanes l where l.id = v_run.lane_id);
        o_versions := o_versions || coalesce(v_run.version, 0);
      end if;
    elsif not pgfifo._was_finished(v_item.id, v_item.attempt, p_worker,
      case when v_item.outcome = 'failed' and not coalesce(v_item.count, true) then 'snoozed' else v_item.outcome end)
    then
      if not pgfifo._was_put_off(v_item.id, v_item.attempt, p_worker) then
        v_refused := v_refused || jsonb_build_object('id', v_item.id, 'attempt', v_item.attempt, 'status', 'lost');
      elsif v_item.outcome <> 'released' then
        v_refused := v_refused || jsonb_build_object('id', v_item.id, 'attempt', v_item.attempt, 'status', 'unstarted');
      end if;
    end if;
  end loop;
  o_status := nullif(v_refused, '[]');
end $$;

-- Did this worker end this very attempt before, and in this way? Then saying so again is ok: its first answer was lost on
-- the way. Another outcome than the first time is no repetition. What was to be cancelled ended so, however it failed.
create or replace function pgfifo._was_finished(p_id bigint, p_attempt integer, p_worker bigint, p_outcome text) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with said as (
    select jsonb_build_array(jsonb_build_object('attempt', p_attempt, 'worker', p_worker, 'outcome', p_outcome)) as entry)
  select exists (select from pgfifo.history h where h.id = p_id
      and (h.attempt = p_attempt and h.worker_id = p_worker and not h.lost
           and (h.outcome = p_outcome or (h.outcome = 'cancelled' and p_outcome <> 'succeeded'))
        or exists (select from said s where h.attempts @> s.entry)))
    or exists (select from pgfifo.runs r where r.id = p_id
      and (r.attempt = p_attempt and r.held_by = p_worker and r.held_outcome = p_outcome
        or exists (select from said s where r.attempts @> s.entry)))
    or exists (select from pgfifo._executions e, said s where e.id = p_id and e.past -> 'attempts' @> s.entry)
$$;
