-- End executions of one lane that have no row in runs: they wait and were never started. The caller holds the lane's slot
-- lock since an earlier statement. Returns how many of them were still there. What is left of their places needs no mark:
-- nothing becomes startable by it.
create or replace function pgfifo._end_waiting(p_ids bigint[], p_lane_id bigint, p_outcome text, p_reason text, p_result jsonb default null) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ended integer;
begin
  with content as (
    delete from pgfifo._executions e where e.ctid = any (array(
      select e.ctid from unnest(p_ids) i(id) cross join lateral (select e.ctid from pgfifo._executions e where e.id = i.id offset 0) e))
    returning e.*),
  newest as (
    select g.* from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1)
  insert into pgfifo.history (id, action_id, lane_id, group_text, outcome, attempt, failures, ticket, end_no, enqueued_at, finished_at,
    cancel_requested_at, retry_of, payload, headers, tags, result, error, reason)
  select e.id, l.action_id, e.lane_id, l.group_text, p_outcome, 0, 0, e.ticket, g.starts, e.enqueued_at, pgfifo._now(),
    case when p_outcome = 'cancelled' then pgfifo._now() end, e.retry_of, e.payload, e.headers, e.tags, p_result,
    case when p_outcome = 'failed' then p_reason end, left(p_reason, 1000)
  from content e join pgfifo.lanes l on l.id = e.lane_id cross join newest g;
  get diagnostics v_ended = row_count;
  if v_ended > 0 then
    perform pgfifo._append(p_lane_id, p_waiting => -v_ended, p_succeeded => case when p_outcome = 'succeeded' then v_ended else 0 end,
      p_failed => case when p_outcome = 'failed' then v_ended else 0 end, p_cancelled => case when p_outcome = 'cancelled' then v_ended else 0 end);
  end if;
  if pgfifo._awaited() then
    perform pgfifo._tell(p_ids);
  end if;
  return v_ended;
end $$;
