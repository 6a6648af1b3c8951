-- How far an execution is from its turn: 1 is next, null when it does not wait. Counted up to 10,000; beyond that the
-- answer is a lower bound and exact is false. What was returned to its place comes before the line.
create or replace function pgfifo.position(p_id bigint, out pos bigint, out exact boolean)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_at record;
  -- What had joined the line by then has expired, unless it was started before; minus infinity where nothing does.
  v_before timestamptz;
begin
  select e.lane_id, e.ticket, r.state, r.attempt, g.consumed, coalesce(e.joined_at, e.enqueued_at) as joined_at into v_at
  from pgfifo._executions e
  left join pgfifo.runs r on r.id = e.id
  cross join lateral (select g.consumed from pgfifo.ledger g where g.lane_id = e.lane_id order by g.lane_id desc, g.version desc limit 1) g
  where e.id = p_id;
  if not found then
    if not exists (select from pgfifo.history h where h.id = p_id) then
      perform pgfifo._unknown_execution(p_id);
    end if;
    return;
  end if;
  v_before := coalesce(pgfifo._now() - pgfifo._max_wait(v_at.lane_id), '-infinity');
  if v_at.ticket is null or v_at.state <> 'returned' or (v_at.joined_at <= v_before and coalesce(v_at.attempt, 0) = 0) then
    return;
  end if;
  select count(*) into pos from (
    (select 1 from pgfifo._executions e where e.lane_id = v_at.lane_id and e.ticket > v_at.consumed and e.ticket < v_at.ticket
       and coalesce(e.joined_at, e.enqueued_at) > v_before limit 10000)
    union all
    (select 1 from pgfifo.runs r join pgfifo._executions e on e.id = r.id where r.lane_id = v_at.lane_id and r.state = 'returned' and r.ticket < v_at.ticket
       and (r.attempt > 0 or coalesce(e.joined_at, e.enqueued_at) > v_before) limit 10000)) ahead;
  exact := pos < 10000;
  pos := pos + 1;
end $$;
comment on function pgfifo.position is 'Say how far an execution is from its turn; 1 is next.';
