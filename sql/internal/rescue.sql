-- Find workers that are gone, and take back what they held. Two rounds on purpose: a worker is declared dead under its
-- fence, exclusive, and that commits; only a later round returns its executions, lane by lane. Between the two every call
-- of the worker fails, so nothing it held can be finished by it, and nothing has been given on yet.
-- Gone is: its heartbeat missed the lease, counted in ticks that happened; or its session lock is free, on the same run of
-- the server it was taken on, for longer than the grace of one second. A lock that is held proves nothing. A lock that is
-- free proves nothing either while others come back whose sessions were cut as well: after an outage of the network the first
-- one back must not declare the others dead, who are about to connect, each after a pause or a time limit of its own. So for 15
-- rounds after one came back, only the lease counts for those who were not heard of since.
create or replace function pgfifo._rescue(p_tick bigint, out o_dead integer, out o_taken integer, out o_more boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_worker record;
  v_free boolean;
  v_left integer;
  c_return constant integer := 15;
begin
  o_dead := 0;
  o_taken := 0;
  o_more := false;
  for v_worker in
    select w.* from pgfifo._workers w where w.state <> 'alive' and w.ended_at < pgfifo._now()
      and (exists (select from pgfifo.runs r where r.worker_id = w.id) or exists (select from pgfifo._executions e where e.owner = w.id)) order by w.id
  loop
    -- Its declaration has committed: this snapshot shows it, and this transaction did not write it. One that signed off
    -- has lost nothing; what it left was in lanes that somebody had locked at that moment.
    o_taken := o_taken + pgfifo._take_back(v_worker.id, case v_worker.state when 'dead' then 'failed' else 'released' end,
      case v_worker.state when 'dead' then format('worker %s (%s, pid %s) was lost', v_worker.id, v_worker.host, v_worker.pid) end, 1000);
    select (select count(*) from pgfifo.runs r where r.worker_id = v_worker.id)
        + (select count(*) from pgfifo._executions e where e.owner = v_worker.id) into v_left;
    o_more := o_more or v_left > 0;
  end loop;
  for v_worker in
    select w.* from pgfifo._workers w where w.state = 'alive' order by w.id
  loop
    v_free := false;
    if v_worker.locked and v_worker.locked_on = pg_postmaster_start_time() then
      -- A transaction-level probe, shared so that probes do not meet; given up at our commit. A session that looks after
      -- its own worker gets the lock it holds a second time: that is no sign of death.
      v_free := pg_try_advisory_xact_lock_shared('pgfifo._workers'::regclass::oid::integer, pgfifo._key(v_worker.id))
        and not exists (select from pg_locks l where l.locktype = 'advisory' and l.pid = pg_backend_pid() and l.mode = 'ExclusiveLock'
          and l.classid = 'pgfifo._workers'::regclass and l.objid = pgfifo._key(v_worker.id)::oid and l.objsubid = 2);
      if v_free and v_worker.lock_missed_tick is null then
        update pgfifo._workers w set lock_missed_tick = p_tick where w.id = v_worker.id;
      elsif not v_free and v_worker.lock_missed_tick is not null then
        update pgfifo._workers w set lock_missed_tick = null where w.id = v_worker.id;
      end if;
    end if;
    if v_free and p_tick > v_worker.lock_missed_tick and exists (select from pgfifo._workers w
      where w.state = 'alive' and w.relocked_tick >= v_worker.seen_tick and w.relocked_tick >= p_tick - c_return)
    then
      v_free := false;
    end if;
    if p_tick - v_worker.seen_tick > extract(epoch from v_worker.lease) or (v_free and p_tick > v_worker.lock_missed_tick) then
      -- A claim or heartbeat under way holds the fence: then it lives.
      if pg_try_advisory_xact_lock('pgfifo.runs'::regclass::oid::integer, pgfifo._key(v_worker.id)) then
        update pgfifo._workers w set state = 'dead', ended_at = pgfifo._now()
        where w.id = v_worker.id and w.state = 'alive' and w.seen_tick = v_worker.seen_tick
          and w.locked_on is not distinct from v_worker.locked_on;
        if found then
          o_dead := o_dead + 1;
          o_more := true;
        end if;
      end if;
    end if;
  end loop;
end $$;
