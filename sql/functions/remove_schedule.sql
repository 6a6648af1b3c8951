-- Remove a schedule. What it has enqueued stays. One that code declares comes back when the code is started next.
create or replace function pgfifo.remove_schedule(p_name text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_schedule pgfifo._schedules := pgfifo._known_schedule(p_name);
begin
  delete from pgfifo._schedules s where s.id = v_schedule.id;
  perform pgfifo._audit('remove_schedule', (select a.name from pgfifo.actions a where a.id = v_schedule.action_id), null,
    jsonb_build_object('schedule', p_name, 'cron', v_schedule.cron, 'time_zone', v_schedule.time_zone, 'payload', v_schedule.payload));
end $$;
comment on function pgfifo.remove_schedule is 'Remove a schedule; what it has enqueued stays.';
