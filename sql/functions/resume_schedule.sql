-- End a schedule's pause. The next tick is the first one after now: what passed meanwhile was not missed. False if it was
-- not paused.
create or replace function pgfifo.resume_schedule(p_name text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_schedule pgfifo._schedules := pgfifo._known_schedule(p_name);
begin
  if v_schedule.paused_at is null then
    return false;
  end if;
  update pgfifo._schedules s set paused_at = null, paused_by = null, paused_reason = null, version = s.version + 1, since = pgfifo._now(), next_at = null,
    changed_at = pgfifo._now()
  where s.id = v_schedule.id;
  perform pgfifo._audit('resume_schedule', (select a.name from pgfifo.actions a where a.id = v_schedule.action_id), null,
    jsonb_build_object('schedule', p_name));
  return true;
end $$;
comment on function pgfifo.resume_schedule is 'Have a paused schedule go on.';
