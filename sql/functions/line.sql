-- A lane's line itself, as claims will take it: what was returned to its place, then one after the other. What has a slot is not in it,
-- nor what is delayed. eta_seconds: as position says it, from one look at the lane's pace; null where nothing tells or nothing moves.
create or replace function pgfifo.line(p_action text, p_group text default null, p_limit integer default 100)
returns table (pos bigint, id bigint, attempt integer, enqueued_at timestamptz, payload jsonb, tags text[], is_slot boolean, eta_seconds double precision, eta_basis text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_action_id integer := pgfifo._known_action(p_action);
  v_group text;
  v_lane_id bigint;
  v_now timestamptz := pgfifo._now();
  v_first double precision;
  v_basis text;
  v_per_second double precision;
  v_free bigint;
begin
  if p_limit is null or p_limit not between 0 and 10000 then
    raise exception using errcode = 'QF022', message = format('p_limit must be between 0 and 10000, not %s', coalesce(p_limit::text, 'null')),
      detail = json_build_object('name', 'p_limit', 'value', p_limit)::text, hint = 'Who is further back can ask for his position.';
  end if;
  v_group := pgfifo._group(p_action, (select p.group_by from pgfifo._action_policies p where p.action_id = v_action_id), null, p_group);
  select l.id into v_lane_id from pgfifo.lanes l where l.action_id = v_action_id and l.group_text = v_group;
  if not found then
    return;
  end if;
  select e.o_seconds, e.o_basis into v_first, v_basis from pgfifo._eta(v_lane_id, 1, false, v_now) e;
  if v_first is not null then
    select f.o_per_second, f.o_free into v_per_second, v_free from pgfifo._lane_pace(v_lane_id, v_now) f;
  end if;
  return query
  select a.pos, e.id, coalesce(r.attempt, w.attempt, 0), e.enqueued_at, e.payload, e.tags, e.owner is not null,
    greatest(v_first, greatest(0, a.pos - v_free) / v_per_second), v_basis
  from pgfifo._ahead(v_lane_id, 9223372036854775807, p_limit) with ordinality a(id, pos)
  cross join lateral (select e.* from pgfifo._executions e where e.id = a.id offset 0) e
  left join lateral (select r.attempt from pgfifo.runs r where r.id = a.id offset 0) r on true
  left join lateral jsonb_populate_record(null::pgfifo.runs, e.past) w on e.past is not null
  order by a.pos;
end $$;
comment on function pgfifo.line is 'Show who waits in a lane, in the order in which they will start, and when that will probably be.';
