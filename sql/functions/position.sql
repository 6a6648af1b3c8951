-- How far an execution is from its turn: 1 is next, null when it does not wait. Counted up to 10,000; beyond that the
-- answer is a lower bound and exact is false. What was returned to its place comes before the line.
-- eta_seconds: when it will probably start, from the pace of its lane in the last minutes (eta_basis 'lane'), or, where too little
-- is known of that, from how long its action's run (eta_basis 'action'). An estimate; null where nothing tells or nothing moves.
create or replace function pgfifo.position(p_id bigint, out pos bigint, out exact boolean, out eta_seconds double precision, out eta_basis text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_at record;
begin
  select e.lane_id, e.ticket, e.owner, r.state, r.attempt, coalesce(e.joined_at, e.enqueued_at) as joined_at into v_at
  from pgfifo._executions e left join pgfifo.runs r on r.id = e.id
  where e.id = p_id;
  if not found then
    if not exists (select from pgfifo.history h where h.id = p_id) then
      perform pgfifo._unknown_execution(p_id);
    end if;
    return;
  end if;
  if v_at.ticket is null or v_at.state <> 'returned'
    or (coalesce(v_at.attempt, 0) = 0 and v_at.joined_at <= pgfifo._now() - pgfifo._max_wait(v_at.lane_id))
  then
    return;
  end if;
  select count(*) + 1 into pos from pgfifo._ahead(v_at.lane_id, v_at.ticket, 10000);
  exact := pos <= 10000;
  select e.o_seconds, e.o_basis into eta_seconds, eta_basis from pgfifo._eta(v_at.lane_id, pos, v_at.owner is not null, pgfifo._now()) e;
end $$;
comment on function pgfifo.position is 'Say how far an execution is from its turn, 1 is next; and when that will probably be.';
