-- What a monitoring system is to know, as of one snapshot: name, labels, value. One pass over lanes, ledgers and arrivals, with a
-- look into the line of those in which something waits; the same numbers as in queue_stats, whose view asks for more of each lane.
-- Labels are actions, shared limits and a few fixed words. p_lanes: the longest lines besides, lane by lane, at most so many.
-- All of these relations are read as a whole, by their keys: with the statistics of an empty table the planner would otherwise
-- walk one of them for each row of another.
create or replace function pgfifo.metrics(p_lanes integer default 0) returns table (name text, labels jsonb, value double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_nestloop = off
set enable_mergejoin = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := pgfifo._now();
  v_overrides boolean := exists (select from pgfifo._overrides);
  v_expires boolean := exists (select from pgfifo.policies p where p.max_wait < 'infinity');
  -- Above a lane that has not moved for so long, something else is wrong than that it is busy.
  c_stuck constant interval := '5 min';
begin
  if p_lanes is null or p_lanes not between 0 and 1000 then
    raise exception using errcode = 'QF022', message = format('p_lanes must be between 0 and 1000, not %s', coalesce(p_lanes::text, 'null')),
      detail = json_build_object('name', 'p_lanes', 'value', p_lanes)::text, hint = 'Each lane is a few series; ask for the longest only.';
  end if;
  return query
  with arrived as materialized (
    select r.lane_id, sum(r.n)::bigint as n, sum(r.delayed)::bigint as delayed from pgfifo.arrivals r group by r.lane_id),
  policy as materialized (select p.* from pgfifo._action_policies p),
  own as materialized (
    select lp.* from pgfifo._lane_policies lp
    where v_overrides or lp.lane_id in (select pl.lane_id from pgfifo.policies pl where pl.scope = 'lane')),
  -- Where executions expire, those that nobody has counted yet do not wait any more: see lane_stats.
  expiring as materialized (
    select m.lane_id, v_now - m.max_wait as before, s.total_expired from pgfifo._max_waits m join pgfifo.lane_stats s on s.lane_id = m.lane_id where v_expires),
  lane as (
    select l.id, l.action_id, g.waiting + coalesce(n.n, 0) - coalesce(x.total_expired - g.expired, 0) as waiting, g.running, g.held, g.riding, g.returned,
      g.returned_from, g.consumed, g.delayed + g.yielded + coalesce(n.delayed, 0) as delayed, g.enqueued + coalesce(n.n + n.delayed, 0) as enqueued, g.starts,
      g.succeeded, g.failed, g.cancelled, coalesce(x.total_expired, g.expired) as expired, g.changed_at, x.before,
      coalesce(o.max_concurrent, p.max_concurrent) as slots, o.paused_at is not null or p.paused_at is not null as paused,
      coalesce(o.max_queue_length, p.max_queue_length) as max_length,
      p.has_pace or o.rate is not null or o.spacing is not null or o.gap is not null as paced
    from pgfifo.lanes l
    join policy p on p.action_id = l.action_id
    join pgfifo.ledger g on g.lane_id = l.id
    left join arrived n on n.lane_id = l.id
    left join own o on o.lane_id = l.id
    left join expiring x on x.lane_id = l.id),
  line as materialized (
    select a.*, case when a.waiting > 0 then least(
      (select e.enqueued_at from pgfifo._executions e
       where e.lane_id = a.id and e.ticket > a.consumed and (a.before is null or coalesce(e.joined_at, e.enqueued_at) > a.before)
       order by e.lane_id, e.ticket limit 1),
      case when a.returned > 0 then
        (select min(e.enqueued_at) from pgfifo.runs r cross join lateral (select e.* from pgfifo._executions e where e.id = r.id offset 0) e
         where r.lane_id = a.id and r.state = 'returned' and r.ticket >= a.returned_from
           and (a.before is null or r.attempt > 0 or coalesce(e.joined_at, e.enqueued_at) > a.before)) end) end as oldest
    from lane a),
  summed as (
    select f.action_id, count(*) as lanes, sum(f.waiting) as waiting, sum(f.running) as running, sum(f.held) as held, sum(f.delayed) as delayed,
      sum(f.slots::bigint) as slots, sum(f.running + f.held - f.riding) as taken, count(*) filter (where f.paused) as paused, min(f.oldest) as oldest,
      sum(f.enqueued) as enqueued, sum(f.starts) as started, sum(f.succeeded) as succeeded, sum(f.failed) as failed, sum(f.cancelled) as cancelled,
      sum(f.expired) as expired, max(f.waiting / f.max_length) filter (where f.max_length < 'infinity') as fullness,
      count(*) filter (where f.waiting > 0 and f.running = 0 and not f.paused and not f.paced and f.changed_at < v_now - c_stuck
        and coalesce(f.oldest, '-infinity') < v_now - c_stuck and not exists (select from pgfifo.shared_waits w where w.lane_id = f.id)) as stuck
    from line f group by f.action_id),
  longest as (
    select l.action_id, min(r.started_at) as since from pgfifo.runs r join pgfifo.lanes l on l.id = r.lane_id where r.state = 'running' group by l.action_id),
  serving as (
    select u.action, count(*) as n from pgfifo._workers w cross join lateral unnest(w.actions) u(action)
    where w.state = 'alive' and w.kind = 'worker' and w.last_seen + w.lease >= v_now group by u.action),
  snapshots as (
    select extract(epoch from clock_timestamp() - least(
        (select min(s.xact_start) from pg_stat_activity s where s.backend_xmin is not null and s.pid <> pg_backend_pid()
           and s.datname = current_database() and s.backend_type <> 'autovacuum worker'),
        (select min(x.prepared) from pg_prepared_xacts x where x.database = current_database()))) as seconds,
      greatest(
        (select max(age(s.backend_xmin)) from pg_stat_activity s where s.pid <> pg_backend_pid() and s.backend_type <> 'autovacuum worker'
           and (s.datname = current_database() or s.datname is null)),
        (select max(age(x.transaction)) from pg_prepared_xacts x where x.database = current_database()),
        (select max(age(r.xmin)) from pg_replication_slots r)) as xids)
  select v.name, v.labels, v.value::double precision
  from pgfifo.actions a
  join policy p on p.action_id = a.id
  left join summed s on s.action_id = a.id
  left join longest r on r.action_id = a.id
  left join serving w on w.action = a.name
  left join pgfifo._rescues q on q.action_id = a.id
  cross join lateral (values
    ('queue_length', '{}'::jsonb, coalesce(s.waiting, 0)::numeric),
    ('running', '{}', coalesce(s.running, 0)),
    ('held', '{}', coalesce(s.held, 0)),
    ('delayed', '{}', coalesce(s.delayed, 0)),
    ('slots', '{}', coalesce(s.slots, 0)),
    ('slots_taken', '{}', coalesce(s.taken, 0)),
    ('lanes', '{}', coalesce(s.lanes, 0)),
    ('paused', '{}', (p.paused_at is not null)::integer),
    ('paused_lanes', '{}', coalesce(s.paused, 0)),
    ('closed', '{}', (a.closed_at is not null)::integer),
    ('stuck_lanes', '{}', coalesce(s.stuck, 0)),
    ('oldest_wait_seconds', '{}', coalesce(greatest(0, extract(epoch from v_now - s.oldest)), 0)::numeric),
    ('longest_run_seconds', '{}', coalesce(greatest(0, extract(epoch from v_now - r.since)), 0)::numeric),
    ('fullness', '{}', greatest(s.fullness, s.waiting / nullif(p.max_action_queue_length, 'infinity'))::numeric),
    ('serving_workers', '{}', coalesce(w.n, 0)),
    ('enqueued_total', '{}', coalesce(s.enqueued, 0) + a.past_succeeded + a.past_failed + a.past_cancelled + a.past_expired),
    ('started_total', '{}', coalesce(s.started, 0) + a.past_starts),
    ('finished_total', '{"outcome": "succeeded"}', coalesce(s.succeeded, 0) + a.past_succeeded),
    ('finished_total', '{"outcome": "failed"}', coalesce(s.failed, 0) + a.past_failed),
    ('finished_total', '{"outcome": "cancelled"}', coalesce(s.cancelled, 0) + a.past_cancelled),
    ('finished_total', '{"outcome": "expired"}', coalesce(s.expired, 0) + a.past_expired),
    ('rescued_total', '{}', coalesce(q.rescued, 0))) m(name, labels, value)
  cross join lateral (select 'pgfifo_' || m.name as name, jsonb_build_object('action', a.name) || m.labels as labels, m.value) v
  where v.value is not null
  union all
  select 'pgfifo_lane_' || m.name, jsonb_build_object('action', a.name, 'group', l.group_text), m.value::double precision
  from (select f.* from line f order by f.waiting + f.running + f.held desc, f.id limit p_lanes) f
  join pgfifo.lanes l on l.id = f.id
  join pgfifo.actions a on a.id = l.action_id
  cross join lateral (values
    ('queue_length', f.waiting::numeric),
    ('slots', f.slots),
    ('slots_taken', f.running + f.held - f.riding),
    ('paused', f.paused::integer),
    ('oldest_wait_seconds', coalesce(greatest(0, extract(epoch from v_now - f.oldest)), 0)::numeric)) m(name, value)
  union all
  select 'pgfifo_shared_limit_' || m.name, jsonb_build_object('limit', i.name), m.value::double precision
  from pgfifo.shared_limits i
  cross join lateral (values ('active', i.active_count), ('slots', i.max_concurrent), ('waiting_lanes', i.waiting_lanes)) m(name, value)
  where m.value is not null
  union all
  select 'pgfifo_workers', jsonb_build_object('state', k.state), (select count(*) from pgfifo._workers w where w.kind = 'worker' and w.state = k.state)
  from (values ('alive'), ('dead'), ('stopped')) k(state)
  union all
  select 'pgfifo_worker_slots', '{}', (select coalesce(sum(w.concurrency), 0) from pgfifo._workers w where w.kind = 'worker' and w.state = 'alive')
  union all
  select 'pgfifo_' || m.name, '{}', m.value::double precision
  from (select t.* from pgfifo.ticks t order by t.tick desc limit 1) t
  cross join snapshots o
  cross join pgfifo.installation i
  cross join lateral (values
    ('maintenance_age_seconds', greatest(0, extract(epoch from v_now - t.at))::numeric),
    ('sweep_found_total', t.sweep_found),
    ('oldest_snapshot_seconds', greatest(0, o.seconds)::numeric),
    ('oldest_snapshot_xids', coalesce(o.xids, 0)),
    ('schema_version', i.version)) m(name, value)
  where m.value is not null;
end $$;
comment on function pgfifo.metrics is 'Return what a monitoring system is to know, as names, labels and values.';
