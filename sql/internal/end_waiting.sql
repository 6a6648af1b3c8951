-- End an execution that has no row in runs: one that waits and was never started. The caller holds its lane's slot lock
-- since an earlier statement. False if it is not there any more. What is left of its place needs no mark: nothing becomes
-- startable by it.
create or replace function pgfifo._end_waiting(p_id bigint, p_lane_id bigint, p_outcome text, p_reason text, p_result jsonb default null) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  with content as (
    delete from pgfifo._executions e where e.id = p_id returning e.*),
  newest as (
    select g.* from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1)
  insert into pgfifo.history (id, action_id, lane_id, group_text, outcome, attempt, failures, ticket, end_no, enqueued_at, finished_at,
    cancel_requested_at, retry_of, payload, headers, tags, result, error, reason)
  select e.id, l.action_id, e.lane_id, l.group_text, p_outcome, 0, 0, e.ticket, g.starts, e.enqueued_at, pgfifo._now(),
    case when p_outcome = 'cancelled' then pgfifo._now() end, e.retry_of, e.payload, e.headers, e.tags, p_result,
    case when p_outcome = 'failed' then p_reason end, left(p_reason, 1000)
  from content e join pgfifo.lanes l on l.id = e.lane_id cross join newest g;
  if not found then
    return false;
  end if;
  perform pgfifo._append(p_lane_id, p_waiting => -1, p_succeeded => (p_outcome = 'succeeded')::integer,
    p_failed => (p_outcome = 'failed')::integer, p_cancelled => (p_outcome = 'cancelled')::integer);
  if pgfifo._awaited() then
    perform pgfifo._tell(array[p_id]);
  end if;
  return true;
end $$;
