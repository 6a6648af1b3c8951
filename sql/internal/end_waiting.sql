-- End executions that have no row in runs: they wait and were never started. The caller holds their lanes' slot locks since an
-- earlier statement. Returns those that were still there, and their lanes. What is left of their places needs no mark: nothing
-- becomes startable by it.
create or replace function pgfifo._end_waiting(
  p_ids bigint[],
  p_outcome text,
  p_reason text,
  p_result jsonb default null,
  out o_ids bigint[],
  out o_lanes bigint[]
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  with content as (
    delete from pgfifo._executions e where e.id = any (p_ids) returning e.*),
  kept as (
    insert into pgfifo.history (id, action_id, lane_id, group_text, outcome, attempt, failures, ticket, end_no, enqueued_at, finished_at,
      cancel_requested_at, retry_of, payload, headers, tags, result, error, reason)
    select e.id, l.action_id, e.lane_id, l.group_text, p_outcome, 0, 0, e.ticket, g.starts, e.enqueued_at, pgfifo._now(),
      case when p_outcome = 'cancelled' then pgfifo._now() end, e.retry_of, e.payload, e.headers, e.tags, p_result,
      case when p_outcome = 'failed' then p_reason end, left(p_reason, 1000)
    from content e
    cross join lateral (select l.action_id, l.group_text from pgfifo.lanes l where l.id = e.lane_id offset 0) l
    cross join lateral (select g.starts from pgfifo.ledger g where g.lane_id = e.lane_id order by g.lane_id desc, g.version desc limit 1) g
    returning id, lane_id)
  select coalesce(array_agg(k.id), '{}'), coalesce(array_agg(k.lane_id), '{}') into o_ids, o_lanes from kept k;
  perform pgfifo._append(l.lane_id, p_waiting => -l.n, p_succeeded => l.n * (p_outcome = 'succeeded')::integer,
    p_failed => l.n * (p_outcome = 'failed')::integer, p_cancelled => l.n * (p_outcome = 'cancelled')::integer)
  from (select i as lane_id, count(*)::integer as n from unnest(o_lanes) i group by i) l;
  if o_ids <> '{}' and pgfifo._awaited() then
    perform pgfifo._tell(o_ids);
  end if;
end $$;
