-- What a worker is told about executions that have been started.
create or replace function pgfifo._start_rows(p_ids bigint[]) returns setof pgfifo.work_row
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select 'start'::text, s.id, r.attempt, i.epoch || '-' || s.id || '-' || r.attempt, n.name, l.group_text, e.payload, e.headers, e.tags,
    e.enqueued_at, greatest(0, extract(epoch from r.started_at - greatest(e.enqueued_at, e.run_at)))::double precision, r.lane_id, r.start_no, null::text,
    case when r.batch_no is not null then jsonb_build_object('batch', r.batch_no) end
  from pgfifo.installation i
  cross join unnest(p_ids) with ordinality s(id, place)
  cross join lateral (select r.attempt, r.lane_id, r.start_no, r.started_at, r.batch_no from pgfifo.runs r where r.id = s.id offset 0) r
  cross join lateral (select e.payload, e.headers, e.tags, e.enqueued_at, e.run_at from pgfifo._executions e where e.id = s.id offset 0) e
  cross join lateral (select l.group_text, l.action_id from pgfifo.lanes l where l.id = r.lane_id offset 0) l
  cross join lateral (select n.name from pgfifo.actions n where n.id = l.action_id offset 0) n
  order by s.place;
end $$;

-- Caps per action after these executions have started.
create or replace function pgfifo._less(p_actions integer[], p_caps integer[], p_ids bigint[]) returns integer[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(c.cap - coalesce(u.n, 0) order by c.ord)
  from unnest(p_actions, p_caps) with ordinality c(action_id, cap, ord)
  left join (select l.action_id, count(*)::integer as n from pgfifo._executions e join pgfifo.lanes l on l.id = e.lane_id
             where e.id = any (p_ids) group by l.action_id) u on u.action_id = c.action_id
$$;
