-- End executions that have no row in runs: they wait, or have yet to join their line. The caller holds their lanes' slot locks
-- since an earlier statement. Returns those that were still there, and their lanes. One that has yet to join may be joining in
-- somebody's open transaction, and with a slot lock in hand nobody waits for that: such rows are left. (Where it matters the
-- caller has taken their locks before.) What is left of their places needs no mark: nothing becomes startable by it.
-- p_wait: how long those that have expired were allowed to wait; they ended when that was over.
create or replace function pgfifo._end_waiting(
  p_ids bigint[],
  p_outcome text,
  p_reason text,
  p_result jsonb default null,
  p_wait interval default null,
  out o_ids bigint[],
  out o_lanes bigint[]
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tickets bigint[];
begin
  with content as (
    delete from pgfifo._executions e where e.ctid = any (array(
      select x.ctid from pgfifo._executions x where x.id = any (p_ids) for update skip locked))
    returning e.*),
  kept as (
    insert into pgfifo.history (id, action_id, lane_id, group_text, outcome, attempt, failures, ticket, end_no, enqueued_at, started_at,
      finished_at, cancel_requested_at, retry_of, payload, headers, tags, result, error, reason, attempts, owner)
    select e.id, l.action_id, e.lane_id, l.group_text, p_outcome, coalesce(p.attempt, 0), coalesce(p.failures, 0), e.ticket, g.starts, e.enqueued_at,
      p.started_at, coalesce(coalesce(e.joined_at, e.enqueued_at) + p_wait, pgfifo._now()), case when p_outcome = 'cancelled' then pgfifo._now() end,
      e.retry_of, e.payload, e.headers, e.tags, p_result,
      case p_outcome when 'failed' then p_reason when 'expired' then 'waited for longer than max_wait' when 'cancelled' then p.last_error end,
      left(p_reason, 1000), p.attempts, e.owner
    from content e
    left join lateral jsonb_populate_record(null::pgfifo.runs, e.past) p on e.past is not null
    cross join lateral (select l.action_id, l.group_text from pgfifo.lanes l where l.id = e.lane_id offset 0) l
    cross join lateral (select g.starts from pgfifo.ledger g where g.lane_id = e.lane_id order by g.lane_id desc, g.version desc limit 1) g
    returning id, lane_id, ticket)
  select coalesce(array_agg(k.id), '{}'), coalesce(array_agg(k.lane_id), '{}'), array_agg(k.ticket) into o_ids, o_lanes, v_tickets from kept k;
  -- Asked for while it ran, and not seen before it was sent to the end of the line.
  delete from pgfifo.cancellations c where c.id = any (o_ids);
  perform pgfifo._append(l.lane_id, p_waiting => -l.joined, p_delayed => l.joined - l.n, p_succeeded => l.n * (p_outcome = 'succeeded')::integer,
    p_failed => l.n * (p_outcome = 'failed')::integer, p_cancelled => l.n * (p_outcome = 'cancelled')::integer,
    p_expired => l.n * (p_outcome = 'expired')::integer)
  from (select i.lane_id, count(*)::integer as n, count(i.ticket)::integer as joined from unnest(o_lanes, v_tickets) i(lane_id, ticket) group by i.lane_id) l;
  if o_ids <> '{}' and pgfifo._awaited() then
    perform pgfifo._tell(o_ids);
  end if;
end $$;
