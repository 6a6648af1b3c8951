-- One bounded round of upkeep: at most one a second counts as a tick, by election; the others return at once. Declares
-- lost workers dead and takes back what they held, marks lanes whose limits changed or whose overrides ended, counts what was
-- given back to shared limits, sweeps a slice of lanes, lets what is long due join its line, removes idle lanes, forgets old
-- requests, counts what happens in each minute, makes and drops history partitions, forgets old entries of the audit. Waits for no lock longer than 50 ms. Call
-- it about once a second, again at once while "more".
create or replace function pgfifo.maintain() returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_tick pgfifo.ticks;
  v_now timestamptz := pgfifo._now();
  v_new boolean;
  v_rescue record;
  v_sweep record;
  v_retain record;
  v_out jsonb;
  v_action_id integer;
  v_prune boolean;
  v_admitted integer;
  v_count record;
  v_measured timestamptz;
  v_forgotten integer;
begin
  perform pgfifo._require_read_committed('maintain');
  if current_setting('pgfifo.home', true) is distinct from 'pgfifo._home'::regclass::oid::text then
    perform pgfifo._come_home();
  end if;
  if not pg_try_advisory_xact_lock('pgfifo.ticks'::regclass::oid::integer, 0) then
    return '{"elected": false, "more": false}';
  end if;
  select t.* into strict v_tick from pgfifo.ticks t order by t.tick desc limit 1;
  -- A clock that jumps makes one tick, forwards or backwards: liveness is counted in rounds that happened.
  v_new := v_now - v_tick.at not between interval '0' and interval '990 ms';
  select * into v_rescue from pgfifo._rescue(v_tick.tick + v_new::integer);
  v_out := jsonb_build_object('elected', true, 'tick', v_tick.tick + v_new::integer, 'dead', v_rescue.o_dead, 'taken_back', v_rescue.o_taken,
    'more', v_rescue.o_more);
  if v_new then
    perform pgfifo._end_overrides(v_now, interval '50 ms');
    for v_action_id in select distinct r.action_id from pgfifo.remarks r loop
      perform pgfifo._remark(v_action_id);
    end loop;
    select * into v_sweep from pgfifo._sweep(v_tick.swept_to, 1000);
    perform pgfifo._shared_round(v_now);
    v_admitted := pgfifo._admit_late(v_sweep.o_late, v_rescue.o_taken = 0 and v_sweep.o_removed = 0);
    perform pgfifo._expire_late(v_tick.swept_to, v_sweep.o_to);
    perform pgfifo._forget_requests();
    select * into strict v_count from pgfifo._count_minute(v_tick.counted_minute, v_tick.counted_to, 2000, v_now);
    v_measured := pgfifo._measure(v_tick.measured_to, v_now);
    v_prune := v_now - v_tick.pruned_at not between interval '0' and interval '10 s';
    if v_prune then
      select * into v_retain from pgfifo._retain();
      perform pgfifo._forget_minutes(v_now);
      v_forgotten := pgfifo._forget_audit(v_now);
      -- One by one, by their keys: without the offset the planner joins with all that runs, or has run.
      delete from pgfifo.cancellations c where c.requested_at < v_now - interval '1 min' and not exists (select from pgfifo._executions e where e.id = c.id offset 0);
      delete from pgfifo.reports p where not exists (
        select from (select r.* from pgfifo.runs r where r.id = p.id offset 0) r where r.attempt = p.attempt and r.state = 'running' offset 0);
      delete from pgfifo._workers w where w.state <> 'alive' and w.ended_at < v_now - interval '1 day'
        and not exists (select from pgfifo.runs r where r.worker_id = w.id offset 0)
        and not exists (select from pgfifo._executions e where e.owner = w.id offset 0);
      v_out := v_out || jsonb_build_object('partitions_dropped', v_retain.o_dropped, 'history_deleted', v_retain.o_deleted, 'audit_deleted', v_forgotten);
    end if;
    insert into pgfifo.ticks (tick, at, swept_to, sweep_found, pruned_at, counted_minute, counted_to, measured_to)
    values (v_tick.tick + 1, v_now, v_sweep.o_to, v_tick.sweep_found + v_sweep.o_found, case when v_prune then v_now else v_tick.pruned_at end,
      v_count.p_minute, v_count.p_to, v_measured);
    delete from pgfifo.ticks t where t.tick = v_tick.tick;
    v_out := v_out || jsonb_build_object('schedules_due',
      exists (select from pgfifo._schedules s where s.paused_at is null and (s.next_at is null or s.next_at <= v_now)),
      'sweep_found', v_sweep.o_found, 'lanes_removed', v_sweep.o_removed, 'admitted', v_admitted);
  end if;
  return v_out;
end $$;
comment on function pgfifo.maintain is 'Do one bounded round of upkeep; call it about once a second.';
