-- How things stand with what a worker has asked a slot for: a row of what slot_enter and its like answer.
create or replace function pgfifo._slot_row(p_worker bigint, p_id bigint, p_look_after double precision, p_started bigint[]) returns pgfifo.slot_row
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select (s.id, s.state, s.attempt, case when s.attempt > 0 then i.epoch || '-' || s.id || '-' || s.attempt end, l.group_text, p_look_after, s.error, p_started)::pgfifo.slot_row
  from pgfifo.installation i
  cross join (
    select e.id, e.lane_id, case when r.state = 'running' then 'running'
        when r.id is null and coalesce(e.joined_at, e.enqueued_at) <= pgfifo._now() - w.max_wait then 'expired' else 'waiting' end as state,
      coalesce(r.attempt, 0) as attempt, null::text as error
    from pgfifo._executions e left join pgfifo.runs r on r.id = e.id left join pgfifo._max_waits w on w.lane_id = e.lane_id
    where e.id = p_id and e.owner = p_worker
    union all
    -- Ended in its holder's name by somebody else, or as it waited.
    select h.id, h.lane_id, case when h.lost then 'lost' else h.outcome end, h.attempt, coalesce(h.error, h.reason)
    from pgfifo.history h where h.id = p_id and h.owner = p_worker) s
  left join pgfifo.lanes l on l.id = s.lane_id
$$;

-- Move a lane on for those who wait in it for slots: what stands for them at the head of its line is started as far as the
-- lane's limits go. The caller has fenced his worker. Returns what was started, and when it is worth looking again, in
-- seconds; null: when he is told. p_finished: what ends before, as work takes it.
create or replace function pgfifo._move_on(p_worker bigint, p_lane_id bigint, p_wait interval, p_finished jsonb default null,
  out o_after double precision, out o_started bigint[]) returns record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  o_started := '{}';
  -- A short wait in place of a claim's try: whoever claims here in this moment may have looked before we came.
  if not pgfifo._lock('pgfifo.lanes'::regclass, pgfifo._key(p_lane_id), p_wait) then
    o_after := 0.05;
    return;
  end if;
  select coalesce(array_agg(w.id) filter (where w.kind = 'owned'), '{}'),
      min(case when w.kind <> 'more' then null when w.status = 'later' then (w.detail ->> 'seconds')::double precision else 0.05 end)
    into o_started, o_after
  from pgfifo.lanes l join pgfifo.actions a on a.id = l.action_id
  cross join lateral pgfifo.work(p_worker, array[a.name], 1, p_finished => p_finished, p_lane_id => l.id) w
  where l.id = p_lane_id;
end $$;

-- Who moves a lane on deletes what called for a look at it, as a claim does: the marks that are found near the front, and the
-- timers that are due. Where no worker serves the action nobody else would. The caller holds the lane's slot lock, and looks
-- in a later statement.
create or replace function pgfifo._come_by(p_action_id integer, p_lane_id bigint, p_mark_from bigint, p_timer_from timestamptz, p_now timestamptz) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from pgfifo.marks m where m.ctid = any (array(
    select k.ctid
    from (select m.id, m.lane_id from pgfifo.marks m where m.action_id = p_action_id and m.id > p_mark_from order by m.action_id, m.id limit 64) s
    cross join lateral (select m.ctid from pgfifo.marks m where m.action_id = p_action_id and m.id = s.id for update skip locked) k
    where s.lane_id = p_lane_id));
  delete from pgfifo.timers t where t.ctid = any (array(
    select k.ctid
    from (select t.due_at, t.id, t.lane_id from pgfifo.timers t
          where t.action_id = p_action_id and t.due_at >= p_timer_from and t.due_at <= p_now order by t.action_id, t.due_at, t.id limit 64) s
    cross join lateral (
      select t.ctid from pgfifo.timers t where t.action_id = p_action_id and t.due_at = s.due_at and t.id = s.id for update skip locked) k
    where s.lane_id = p_lane_id));
end $$;

-- Enqueue what stands for a slot that a worker waits for, and move its lane on, in one transaction: it is running at its
-- commit, or in the line. Should the enqueue have been made before under the same number, that one counts.
-- The lane's enqueue lock is held when its slot lock is waited for: nobody waits for them the other way round.
create or replace function pgfifo._slot_enter(
  p_worker bigint,
  p_no bigint,
  p_action text,
  p_payload jsonb,
  p_group text,
  p_headers jsonb,
  p_tags text[],
  p_wait interval,
  p_try boolean
) returns pgfifo.slot_row
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id bigint;
  v_lane_id bigint;
  v_mark bigint;
  v_before text := current_setting('lock_timeout');
  v_moved record;
  v_row pgfifo.slot_row;
begin
  select e.id, e.lane_id into v_id, v_lane_id from pgfifo._executions e where e.owner = p_worker and e.owner_no = p_no;
  if not found then
    if p_wait is not null then
      perform set_config('lock_timeout', greatest(1, ceil(extract(epoch from least(p_wait, interval '1 day')) * 1000))::integer::text, true);
    end if;
    v_id := (pgfifo._enqueue(p_action, p_payload, p_group, p_headers, p_tags, null, null, null, null, null, 'immutable')).o_id;
    v_mark := currval('pgfifo.mark_ids');
    update pgfifo._executions e set owner = p_worker, owner_no = p_no where e.id = v_id returning e.lane_id into strict v_lane_id;
    perform set_config('lock_timeout', v_before, true);
  end if;
  for v_try in 1 .. case when p_try then 10 else 1 end loop
    select * into v_moved from pgfifo._move_on(p_worker, v_lane_id, interval '1 s');
    v_row := pgfifo._slot_row(p_worker, v_id, v_moved.o_after, v_moved.o_started);
    exit when v_row.state = 'running' or v_moved.o_after is distinct from 0.05;
    -- The limits are being changed in this moment.
    perform pg_sleep(0.01) where p_try;
  end loop;
  -- Our enqueue's mark was for who looks at the lane after our commit. Where its arrival has been counted we have looked
  -- ourselves, under the slot lock, and left a mark if a worker has something to do here. Where no worker serves the
  -- action such marks would stay for ever.
  delete from pgfifo.marks m
  where m.action_id = (select l.action_id from pgfifo.lanes l where l.id = v_lane_id) and m.id = v_mark and m.lane_id = v_lane_id
    and not exists (select from pgfifo.arrivals a where a.lane_id = m.lane_id and a.id = m.id);
  return v_row;
end $$;

-- Whether a slot would have to be waited for, as of now: then a try need not write anything. Without a lock.
create or replace function pgfifo._is_full(p_action text, p_payload jsonb, p_group text) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from pgfifo.actions a
    join pgfifo._action_policies p on p.action_id = a.id
    join pgfifo.lanes l on l.action_id = a.id and l.group_text = pgfifo._group(p_action, p.group_by, p_payload, p_group)
    cross join lateral pgfifo._could_start(a.id, l.id) c
    where a.name = p_action and c.o_free < 1)
$$;
