-- Let a schedule's ticks pass until it is resumed. False if it was paused already.
create or replace function pgfifo.pause_schedule(p_name text, p_reason text default null) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_schedule pgfifo._schedules := pgfifo._known_schedule(p_name);
begin
  if v_schedule.paused_at is not null then
    return false;
  end if;
  update pgfifo._schedules s set paused_at = pgfifo._now(), paused_by = session_user, paused_reason = left(p_reason, 1000), version = s.version + 1,
    changed_at = pgfifo._now()
  where s.id = v_schedule.id;
  perform pgfifo._audit('pause_schedule', (select a.name from pgfifo.actions a where a.id = v_schedule.action_id), null,
    jsonb_build_object('schedule', p_name, 'reason', p_reason));
  return true;
end $$;
comment on function pgfifo.pause_schedule is 'Let a schedule''s ticks pass.';
