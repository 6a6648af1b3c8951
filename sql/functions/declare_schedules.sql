-- What code says about the schedules of its actions: {"action": [{"name": …, "cron": …, "time_zone": …, "payload": …, "group": …,
-- "headers": …, "tags": […], "missed": …}]}. Those of these actions that code declared before and does not any more are
-- removed; an operator's stay as they are. Every process declares when it starts: where nothing changes nothing is locked.
create or replace function pgfifo.declare_schedules(p_schedules jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_wanted pgfifo._schedules[];
  v_one pgfifo._schedules;
  v_other text;
begin
  begin
    v_wanted := array(
      select row(0, s.name, pgfifo._action(a.key), s.cron, coalesce(s.time_zone, 'UTC'), coalesce(s.payload, '{}'), s."group", s.headers, s.tags,
        coalesce(s.missed, 'one'), true, 1, null, null, null, null, null, null, null, null, null)::pgfifo._schedules
      from jsonb_each(p_schedules) a
      cross join lateral jsonb_to_recordset(a.value)
        s(name text, cron text, time_zone text, payload jsonb, "group" text, headers jsonb, tags text[], missed text));
  exception when data_exception then
    raise exception using errcode = 'QF022', message = 'p_schedules does not say what schedules actions have: ' || sqlerrm,
      detail = json_build_object('name', 'p_schedules')::text, hint = 'Give {"action": [{"name": "nightly", "cron": "0 3 * * *"}]}.';
  end;
  for v_look in 1 .. 2 loop
    if not exists (
        select from pgfifo._schedules s join pgfifo.actions a on a.id = s.action_id
        where s.declared and p_schedules ? a.name and s.name <> all (array(select w.name from unnest(v_wanted) w)))
      and not exists (
        select from unnest(v_wanted) w left join pgfifo._schedules s on s.name = w.name
        where s.id is null or s.declared and (s.action_id, s.cron, s.time_zone, s.payload, s.group_text, s.headers, s.tags, s.missed)
          is distinct from (w.action_id, w.cron, w.time_zone, w.payload, w.group_text, w.headers, w.tags, w.missed))
    then
      return;
    end if;
    -- Twenty processes that start at once find the same to do: those who waited look again.
    if v_look = 1 then
      perform pg_advisory_xact_lock('pgfifo._schedules'::regclass::oid::integer, 0);
    end if;
  end loop;
  delete from pgfifo._schedules s using pgfifo.actions a
  where a.id = s.action_id and s.declared and p_schedules ? a.name and s.name <> all (array(select w.name from unnest(v_wanted) w));
  foreach v_one in array v_wanted loop
    select a.name into v_other from pgfifo._schedules s join pgfifo.actions a on a.id = s.action_id
    where s.name = v_one.name and s.declared and not p_schedules ? a.name;
    if found then
      raise exception using errcode = 'QF022', message = format('the schedule %s is declared already, for action %s', v_one.name, v_other),
        detail = json_build_object('name', 'name', 'value', v_one.name, 'action', v_other)::text, hint = 'Give it another name.';
    end if;
    if not exists (select from pgfifo._schedules s where s.name = v_one.name and not s.declared) then
      perform pgfifo._put_schedule(v_one);
    end if;
  end loop;
end $$;
comment on function pgfifo.declare_schedules is 'Declare the schedules of actions from code; operators'' win.';
