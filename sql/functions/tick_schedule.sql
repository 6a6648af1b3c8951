-- Enqueue ticks of a schedule that have come, oldest first, and say when the next one is; both or neither, and once: it
-- counts only while the schedule is as it was read (p_version, p_due: its next_at). Its row is locked to the commit; a call
-- that meets another one leaves it to that. Each tick is a request of its own besides, so that not even a restored row
-- enqueues it twice within the action's retention.
-- p_error instead of a next tick: nobody can work it out (the expression is not understood).
-- Null where it does not count, or a producer's open transaction has the lane for longer than a fifth of a second: then it
-- is for the next round. Else the ids; a tick that was skipped, or refused (see last_error), has none.
create or replace function pgfifo.tick_schedule(
  p_id bigint,
  p_version integer,
  p_due timestamptz,
  p_ticks timestamptz[],
  p_next timestamptz,
  p_error text default null
) returns bigint[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_schedule pgfifo._schedules;
  v_action text;
  v_now timestamptz := pgfifo._now();
  v_tick timestamptz;
  v_id bigint;
  v_ids bigint[] := '{}';
  v_error text := left(p_error, 1000);
  v_before text := current_setting('lock_timeout');
begin
  if exists (select from unnest(p_ticks) t where t > v_now or t < p_due) or (p_next is null) = (p_error is null)
    or p_next <= (select max(t) from unnest(p_ticks) t)
  then
    raise exception using errcode = 'QF022', message = 'ticks lie between the one that is due and now, and the next one after them',
      detail = json_build_object('name', 'p_ticks', 'value', p_ticks, 'due', p_due, 'next', p_next)::text;
  end if;
  begin
    perform set_config('lock_timeout', '200ms', true);
    select s.* into v_schedule from pgfifo._schedules s
    where s.id = p_id and s.version = p_version and s.next_at is not distinct from p_due and s.paused_at is null
    for update skip locked;
    if not found then
      perform set_config('lock_timeout', v_before, true);
      return null;
    end if;
    select a.name into strict v_action from pgfifo.actions a where a.id = v_schedule.action_id;
    foreach v_tick in array coalesce(p_ticks, '{}') loop
      continue when v_schedule.missed = 'skip' and v_tick < v_now - interval '1 min';
      begin
        v_id := (pgfifo._enqueue(v_action, v_schedule.payload, v_schedule.group_text,
          coalesce(v_schedule.headers, '{}') || jsonb_build_object('pgfifo.schedule', v_schedule.name,
            'pgfifo.tick', to_char(v_tick at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')),
          v_schedule.tags, format('schedule %s %s', v_schedule.id, extract(epoch from v_tick)::bigint), null, null, null, null,
          'immutable')).o_id;
        v_ids := v_ids || v_id;
        v_error := null;
      exception when others then
        -- Refused, as any producer would be: the action is closed, its queue is full. The next tick may do better.
        if sqlstate not like 'QF%' or sqlstate = 'QF023' then
          raise;
        end if;
        v_error := left(sqlerrm, 1000);
      end;
    end loop;
    update pgfifo._schedules s set next_at = coalesce(p_next, 'infinity'),
      last_error = case when p_ticks <> '{}' or v_error is not null then v_error else s.last_error end,
      last_tick = coalesce((select max(t) from unnest(p_ticks) t), s.last_tick),
      last_id = coalesce(v_ids[cardinality(v_ids)], s.last_id)
    where s.id = p_id;
    perform set_config('lock_timeout', v_before, true);
  exception when lock_not_available or sqlstate 'QF023' then
    return null;
  end;
  return v_ids;
end $$;
comment on function pgfifo.tick_schedule is 'Enqueue ticks that have come, once, and say when the next one is; for workers.';
