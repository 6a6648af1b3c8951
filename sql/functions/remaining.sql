-- What of these actions is still to be worked off, for a worker that is to end when nothing is: waiting, active, and of the
-- delayed ones those that have been tried before or are due by now. startable: whether any of it, active ones aside, is in
-- a lane that is not paused. What is to join a line for the first time, later, is not counted.
create or replace function pgfifo.remaining(p_actions text[], out waiting bigint, out active bigint, out coming bigint, out startable boolean)
returns record
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_now timestamptz := pgfifo._now();
begin
  select coalesce(sum(t.queue_length), 0), coalesce(sum(t.active_count), 0), coalesce(sum(c.n), 0),
      coalesce(bool_or((t.queue_length > 0 or c.n > 0) and not t.paused), false)
    into waiting, active, coming, startable
  from pgfifo.lane_stats t
  cross join lateral (
    select case when t.delayed_count = 0 then 0 else g.yielded
      + (select count(*) from pgfifo._executions e where e.lane_id = t.lane_id and e.ticket is null and e.past is not null)
      + (select count(*) from pgfifo._executions e
         where e.lane_id = t.lane_id and e.ticket is null and e.past is null and e.run_at >= g.delayed_from and e.run_at <= v_now) end as n
    from pgfifo.ledger g where g.lane_id = t.lane_id order by g.lane_id desc, g.version desc limit 1) c
  where t.action = any (p_actions);
end $$;
comment on function pgfifo.remaining is 'Say how much of these actions is still to be worked off, delayed ones that were never started aside.';
