-- Have an action enqueued whenever a cron expression says so, in a time zone, from now on. The name is the schedule's: set
-- again, it changes. An operator's wins over what code declares under the same name. Workers read the expression; until one
-- has, the next tick is not known. p_missed: what becomes of ticks that nobody was there for within a minute, or before the
-- next one: skip them, enqueue one for all of them, or all. Returns created, changed or same.
create or replace function pgfifo.set_schedule(
  p_name text,
  p_action text,
  p_cron text,
  p_time_zone text default 'UTC',
  p_payload jsonb default '{}',
  p_group text default null,
  p_headers jsonb default null,
  p_tags text[] default null,
  p_missed text default 'one'
) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_wanted pgfifo._schedules;
begin
  v_wanted.name := p_name;
  v_wanted.action_id := pgfifo._action(p_action);
  v_wanted.cron := p_cron;
  v_wanted.time_zone := p_time_zone;
  v_wanted.payload := p_payload;
  v_wanted.group_text := p_group;
  v_wanted.headers := p_headers;
  v_wanted.tags := p_tags;
  v_wanted.missed := p_missed;
  v_wanted.declared := false;
  perform pg_advisory_xact_lock('pgfifo._schedules'::regclass::oid::integer, 0);
  return pgfifo._put_schedule(v_wanted);
end $$;
comment on function pgfifo.set_schedule is 'Enqueue an action whenever a cron expression says so.';
