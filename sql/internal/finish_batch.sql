-- Finish what a worker hands back. Returns the status of each item that is not ok ('lost' or 'retry'), and the lanes that
-- have something waiting now: the caller refills them or leaves a mark, in this transaction.
-- 1. Which lanes: a hint, read without a lock; an execution never changes its lane.
-- 2. Their slot locks, in the order of their keys, each with one short wait; what cannot be had is for later ('retry').
-- 3. Then look: (id, attempt, worker) must still be what runs. The statements that decide begin after the locks.
-- Dies here: nothing happened; the worker hands the same items in again, or is found dead and they are taken back.
create or replace function pgfifo._finish_batch(p_worker bigint, p_items jsonb, out o_status jsonb, out o_lanes bigint[])
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lane bigint;
  v_locked bigint[] := '{}';
  v_done bigint[];
  v_count integer := jsonb_array_length(p_items);
  v_item record;
  v_run pgfifo.runs;
  v_ended integer;
  v_refused jsonb := '[]';
begin
  for v_lane in
    select r.lane_id from jsonb_to_recordset(p_items) i(id bigint) join pgfifo.runs r on r.id = i.id
    group by r.lane_id order by pgfifo._key(r.lane_id)
  loop
    if pgfifo._lock('pgfifo.lanes'::regclass, pgfifo._key(v_lane), interval '50 ms') then
      v_locked := v_locked || v_lane;
    end if;
  end loop;

  with items as materialized (
    select distinct on (i.id) i.id, i.attempt, i.result, i.result_error
    from jsonb_to_recordset(p_items) i(id bigint, attempt integer, outcome text, result jsonb, result_error text)
    where i.outcome = 'succeeded'),
  gone as (
    delete from pgfifo.runs r using items i
    where r.id = i.id and r.attempt = i.attempt and r.worker_id = p_worker and r.state = 'running' and r.lane_id = any (v_locked)
    returning r.*, i.result, i.result_error),
  newest as materialized (
    select o.*, d.n
    from (select g.lane_id, count(*)::integer as n from gone g group by g.lane_id) d
    cross join lateral (select * from pgfifo.ledger g where g.lane_id = d.lane_id order by g.lane_id desc, g.version desc limit 1) o),
  content as (
    delete from pgfifo._executions e using gone g where e.id = g.id returning e.*),
  kept as (
    insert into pgfifo.history (id, action_id, lane_id, group_text, outcome, attempt, failures, ticket, worker_id, joined_no, start_no,
      start_limit, is_strict, end_no, enqueued_at, started_at, finished_at, cancel_requested_at, retry_of, payload, headers, tags, result,
      result_error, error, reason, attempts)
    select e.id, l.action_id, e.lane_id, l.group_text, 'succeeded', g.attempt, g.failures, g.ticket, p_worker, g.joined_no, g.start_no,
      g.start_limit, g.is_strict, o.starts, e.enqueued_at, g.started_at, pgfifo._now(), c.requested_at, e.retry_of, e.payload, e.headers,
      e.tags, g.result, g.result_error, null, c.reason, g.attempts
    from gone g
    join content e on e.id = g.id
    join newest o on o.lane_id = g.lane_id
    join pgfifo.lanes l on l.id = g.lane_id
    left join pgfifo.cancellations c on c.id = g.id
    returning id, cancel_requested_at),
  pruned as (
    delete from pgfifo.ledger g using newest o where g.lane_id = o.lane_id and g.version = o.version),
  appended as (
    insert into pgfifo.ledger (lane_id, version, running, held, returned, waiting, delayed, consumed, mark_floor, pending_mark,
      pending_xid, starts, enqueued, succeeded, failed, cancelled, expired, changed_at)
    select o.lane_id, o.version + 1, o.running - o.n, o.held, o.returned, o.waiting, o.delayed, o.consumed, o.mark_floor,
      o.pending_mark, o.pending_xid, o.starts, o.enqueued, o.succeeded + o.n, o.failed, o.cancelled, o.expired, pgfifo._now()
    from newest o
    returning lane_id, waiting)
  select (select array_agg(k.id) from kept k), (select array_agg(a.lane_id) from appended a where a.waiting > 0),
      (select count(*) from gone)
    into v_done, o_lanes, v_ended;
  if v_ended <> coalesce(cardinality(v_done), 0) then
    raise exception using errcode = 'XX000', message = format('%s of %s finished executions have no content', v_ended - coalesce(cardinality(v_done), 0), v_ended);
  end if;
  o_lanes := coalesce(o_lanes, '{}');
  delete from pgfifo.cancellations c where c.id = any (v_done);
  if coalesce(cardinality(v_done), 0) = v_count then
    return;
  end if;

  -- The rest one by one: failures, releases, cancellations, and what is not ours any more.
  for v_item in
    select i.* from jsonb_to_recordset(p_items)
      i(id bigint, attempt integer, outcome text, result jsonb, error text, retry boolean, result_error text)
    where i.id <> all (coalesce(v_done, '{}'))
  loop
    select * into v_run from pgfifo.runs r where r.id = v_item.id;
    if v_item.outcome is null or v_item.outcome not in ('succeeded', 'failed', 'released', 'cancelled') then
      raise exception using errcode = 'QF022',
        message = format('an execution ends as succeeded, failed, released or cancelled, not as %s', coalesce(quote_literal(v_item.outcome), 'null')),
        detail = json_build_object('id', v_item.id, 'outcome', v_item.outcome)::text;
    elsif v_run.id is not null and v_run.attempt = v_item.attempt and v_run.worker_id = p_worker and v_run.lane_id <> all (v_locked) then
      v_refused := v_refused || jsonb_build_object('id', v_item.id, 'attempt', v_item.attempt, 'status', 'retry');
    elsif v_run.id is not null and v_run.attempt = v_item.attempt and v_run.worker_id = p_worker and v_run.state = 'running' then
      perform pgfifo._finish_one(v_run, v_item.outcome, v_item.result, v_item.error, v_item.retry, v_item.result_error);
      if v_run.lane_id <> all (o_lanes) then
        o_lanes := o_lanes || (select n.lane_id from
          (select g.lane_id, g.waiting from pgfifo.ledger g where g.lane_id = v_run.lane_id order by g.lane_id desc, g.version desc limit 1) n
          where n.waiting > 0);
      end if;
    elsif not pgfifo._was_finished(v_item.id, v_item.attempt, p_worker) then
      v_refused := v_refused || jsonb_build_object('id', v_item.id, 'attempt', v_item.attempt, 'status', 'lost');
    end if;
  end loop;
  o_lanes := array_remove(o_lanes, null);
  o_status := nullif(v_refused, '[]');
end $$;

-- Did this worker end this very attempt before? Then saying so again is ok: its first answer was lost on the way.
create or replace function pgfifo._was_finished(p_id bigint, p_attempt integer, p_worker bigint) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with said as (
    select jsonb_build_array(jsonb_build_object('attempt', p_attempt, 'worker', p_worker, 'outcome', o.outcome)) as entry
    from unnest(array['failed', 'released']) o(outcome))
  select exists (select from pgfifo.history h where h.id = p_id and (h.attempt = p_attempt and h.worker_id = p_worker and not h.lost
      or exists (select from said s where h.attempts @> s.entry)))
    or exists (select from pgfifo.runs r where r.id = p_id and (r.attempt = p_attempt and r.held_by = p_worker and r.held_outcome = 'failed'
      or exists (select from said s where r.attempts @> s.entry)))
$$;
