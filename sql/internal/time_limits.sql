-- How long executions that a call has just started may run, and how long after that they are killed: rows of kind 'limit',
-- only for those that some policy says anything about, and only what is not the default. Called in the claim's transaction, which holds the policies' locks:
-- so these are the limits in force at the start.
create or replace function pgfifo._time_limits(p_worker bigint, p_call bigint) returns setof pgfifo.work_row
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select 'limit'::text, r.id, r.attempt, null::text, null::text, null::text, null::jsonb, null::jsonb, null::text[], null::timestamptz,
    null::double precision, r.lane_id, null::bigint, null::text,
    jsonb_strip_nulls(jsonb_build_object('timeout', nullif(t.timeout, 'infinity'), 'kill_after', t.kill_after))
  from pgfifo.runs r
  join pgfifo.lanes n on n.id = r.lane_id
  join pgfifo._action_policies a on a.action_id = n.action_id
  left join lateral (select p.timeout, p.kill_after from pgfifo._lane_policies p where p.lane_id = r.lane_id offset 0) l on true
  cross join pgfifo._default_policy d
  cross join lateral (
    select coalesce(l.timeout, a.timeout) as timeout, nullif(coalesce(l.kill_after, a.kill_after), d.kill_after) as kill_after) t
  where r.worker_id = p_worker and r.call_no = p_call and (t.timeout < 'infinity' or t.kill_after is not null)
$$;
