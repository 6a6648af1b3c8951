-- Sign a worker off. What it still holds goes back to its place, lane by lane, without counting a failure. Returns how many.
-- What is in a lane that somebody has locked right now is taken back by maintenance.
create or replace function pgfifo.worker_stop(p_worker bigint) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_count integer;
  v_role name;
begin
  perform pgfifo._require_read_committed('worker_stop');
  perform pgfifo._durable();
  select w.role into v_role from pgfifo._workers w where w.id = p_worker and w.state = 'alive';
  if not found then
    return 0;
  elsif v_role <> pgfifo._caller() then
    perform pgfifo._require_own(v_role, format('worker %s', p_worker));
  end if;
  -- Like a death certificate, by its own hand: exclusive, so no claim of this worker is under way.
  perform pg_advisory_xact_lock('pgfifo.runs'::regclass::oid::integer, pgfifo._key(p_worker));
  update pgfifo._workers w set state = 'stopped', ended_at = pgfifo._now() where w.id = p_worker and w.state = 'alive';
  v_count := pgfifo._take_back(p_worker, 'released', null, 10000);
  -- Programs that take a slot now and then would leave a row each time, and rescue looks at all of them.
  delete from pgfifo._workers w where w.id = p_worker and w.kind = 'slot' and not exists (select from pgfifo._executions e where e.owner = w.id);
  return v_count;
end $$;
comment on function pgfifo.worker_stop is 'Sign a worker off and return what it holds to its place.';
