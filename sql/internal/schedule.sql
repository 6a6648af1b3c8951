-- A schedule by its name, its row locked; raises for one that is not there, and suggests the nearest.
create or replace function pgfifo._known_schedule(p_name text) returns pgfifo._schedules
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_schedule pgfifo._schedules;
  v_nearest text;
begin
  select s.* into v_schedule from pgfifo._schedules s where s.name = p_name for update;
  if not found then
    select s.name into v_nearest from pgfifo._schedules s
    where char_length(s.name) <= 100 and pgfifo._distance(lower(s.name), lower(left(p_name, 100))) <= greatest(2, char_length(p_name) / 3)
    order by pgfifo._distance(lower(s.name), lower(left(p_name, 100))), s.name limit 1;
    raise exception using errcode = 'QF022', message = format('there is no schedule %s', coalesce(quote_literal(left(p_name, 200)), 'null')),
      detail = json_build_object('name', 'name', 'value', left(p_name, 200), 'nearest', v_nearest)::text,
      hint = case when v_nearest is not null then format('Did you mean %L?', v_nearest) else 'pgfifo.schedules has those that there are.' end;
  end if;
  return v_schedule;
end $$;

-- Put a schedule in place. The caller holds the schedules' lock. Where the expression or its time zone changes, ticks are
-- counted from now on; else the next one stays. Returns created, changed or same.
create or replace function pgfifo._put_schedule(p_wanted pgfifo._schedules) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old pgfifo._schedules;
  v_new pgfifo._schedules := p_wanted;
  v_problem text;
  v_now timestamptz := pgfifo._now();
  v_policy record;
begin
  v_problem := case
    when v_new.name is null or v_new.name !~ '^[^[:cntrl:][:space:]]+$' or char_length(v_new.name) > 200 then 'name'
    when v_new.cron is null or char_length(v_new.cron) not between 1 and 200 then 'cron'
    when v_new.missed is null or v_new.missed not in ('skip', 'one', 'all') then 'missed'
    when not exists (select from pg_timezone_names z where z.name = v_new.time_zone) then 'time_zone'
    when v_new.payload is null then 'payload' end;
  if v_problem is not null then
    raise exception using errcode = 'QF022',
      message = format('the %s of a schedule cannot be %s', v_problem, coalesce(left(to_jsonb(v_new) ->> v_problem, 100), 'null')),
      detail = json_build_object('name', v_problem, 'value', left(to_jsonb(v_new) ->> v_problem, 200))::text,
      hint = case v_problem
        when 'name' then 'Use 1 to 200 characters without white space, such as report.nightly.'
        when 'cron' then 'Give minute, hour, day of the month, month and day of the week, such as 30 2 * * mon-fri.'
        when 'missed' then 'Give skip, one or all.'
        when 'time_zone' then 'Give a name such as Europe/Berlin; pg_timezone_names has them.'
        else 'Give any JSON value.' end;
  end if;
  -- What an enqueue would refuse now is refused now.
  select p.group_by, p.max_payload into strict v_policy from pgfifo._action_policies p where p.action_id = v_new.action_id;
  perform pgfifo._check_payload(a.name, v_new.payload, v_policy.max_payload, null),
    pgfifo._group(a.name, v_policy.group_by, v_new.payload, v_new.group_text)
  from pgfifo.actions a where a.id = v_new.action_id;

  select s.* into v_old from pgfifo._schedules s where s.name = v_new.name for update;
  if found and (v_old.action_id, v_old.cron, v_old.time_zone, v_old.payload, v_old.group_text, v_old.headers, v_old.tags, v_old.missed, v_old.declared)
    is not distinct from (v_new.action_id, v_new.cron, v_new.time_zone, v_new.payload, v_new.group_text, v_new.headers, v_new.tags, v_new.missed, v_new.declared)
  then
    return 'same';
  end if;
  insert into pgfifo._schedules as s (name, action_id, cron, time_zone, payload, group_text, headers, tags, missed, declared, since, changed_at)
  values (v_new.name, v_new.action_id, v_new.cron, v_new.time_zone, v_new.payload, v_new.group_text, v_new.headers, v_new.tags, v_new.missed,
    v_new.declared, v_now, v_now)
  on conflict (name) do update set action_id = excluded.action_id, cron = excluded.cron, time_zone = excluded.time_zone, payload = excluded.payload,
    group_text = excluded.group_text, headers = excluded.headers, tags = excluded.tags, missed = excluded.missed, declared = excluded.declared,
    version = s.version + 1, changed_at = v_now, last_error = null,
    since = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.since else v_now end,
    next_at = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.next_at end;
  perform pgfifo._audit('set_schedule', (select a.name from pgfifo.actions a where a.id = v_new.action_id), null,
    jsonb_build_object('schedule', v_new.name, 'declared', v_new.declared,
      'from', case when v_old.id is not null then jsonb_build_object('cron', v_old.cron, 'time_zone', v_old.time_zone, 'missed', v_old.missed) end,
      'to', jsonb_build_object('cron', v_new.cron, 'time_zone', v_new.time_zone, 'missed', v_new.missed)));
  return case when v_old.id is null then 'created' else 'changed' end;
end $$;
