-- The rollup per minute. All of it is part of a round of maintenance, in its transaction: what dies with it was not counted, and
-- the next round counts it. Bounded: so many lanes, and so many seconds of history, in a round.

create or replace function pgfifo._minute(p_at timestamptz) returns timestamptz
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select date_trunc('minute', p_at, 'UTC') $$;

-- Count what happened in these lanes since they were counted last, for one minute (or that in which a lane came to be). The totals of a ledger only grow, and what
-- has arrived and is not folded is added (a thousand rows at most: what is left out is counted when it is folded).
create or replace function pgfifo._count_lanes(p_lane_ids bigint[], p_minute timestamptz, p_now timestamptz) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_hashjoin = off
set enable_mergejoin = off
as $$
begin
  with seen as (
    select l.id as lane_id, l.action_id, greatest(p_minute, pgfifo._minute(l.created_at)) as minute,
      greatest(g.enqueued + a.n + a.delayed, (p.was).enqueued) as enqueued, g.starts as started, g.succeeded, g.failed, g.cancelled, g.expired,
      g.waiting + a.n > 0 as is_line, p.was, p_now - (p.was).mid_at not between interval '0' and interval '5 min' as shifts
    from unnest(p_lane_ids) i(id)
    cross join lateral (select l.id, l.action_id, l.created_at from pgfifo.lanes l where l.id = i.id offset 0) l
    cross join lateral (select g.* from pgfifo.ledger g where g.lane_id = l.id order by g.lane_id desc, g.version desc limit 1) g
    cross join lateral (
      select coalesce(sum(r.n), 0)::bigint as n, coalesce(sum(r.delayed), 0)::bigint as delayed
      from (select r.n, r.delayed from pgfifo.arrivals r where r.lane_id = l.id and r.id > g.mark_floor order by r.lane_id, r.id limit 1000) r) a
    left join lateral (select p as was from pgfifo._tallies p where p.lane_id = l.id offset 0) p on true),
  counted as (
    select s.*,
      case when not s.is_line then null when (s.was).base_at is null then p_now when s.shifts then (s.was).mid_at else (s.was).base_at end as base_at,
      case when not s.is_line then null when (s.was).base_at is null then s.started when s.shifts then (s.was).mid_started else (s.was).base_started end as base_started,
      case when not s.is_line then null when (s.was).base_at is null or s.shifts then p_now else (s.was).mid_at end as mid_at,
      case when not s.is_line then null when (s.was).base_at is null or s.shifts then s.started else (s.was).mid_started end as mid_started
    from seen s),
  noted as (
    insert into pgfifo._tallies (lane_id, enqueued, started, succeeded, failed, cancelled, expired, base_at, base_started, mid_at, mid_started)
    select c.lane_id, c.enqueued, c.started, c.succeeded, c.failed, c.cancelled, c.expired, c.base_at, c.base_started, c.mid_at, c.mid_started from counted c
    where c.was is distinct from
      (c.lane_id, c.enqueued, c.started, c.succeeded, c.failed, c.cancelled, c.expired, c.base_at, c.base_started, c.mid_at, c.mid_started)::pgfifo._tallies
    on conflict (lane_id) do update set enqueued = excluded.enqueued, started = excluded.started, succeeded = excluded.succeeded, failed = excluded.failed,
      cancelled = excluded.cancelled, expired = excluded.expired, base_at = excluded.base_at, base_started = excluded.base_started, mid_at = excluded.mid_at,
      mid_started = excluded.mid_started),
  happened as (
    -- A repair may have taken something back.
    select c.action_id, c.minute, greatest(0, c.enqueued - coalesce((c.was).enqueued, 0)) as enqueued,
      greatest(0, c.started - coalesce((c.was).started, 0)) as started, greatest(0, c.succeeded - coalesce((c.was).succeeded, 0)) as succeeded,
      greatest(0, c.failed - coalesce((c.was).failed, 0)) as failed, greatest(0, c.cancelled - coalesce((c.was).cancelled, 0)) as cancelled,
      greatest(0, c.expired - coalesce((c.was).expired, 0)) as expired
    from counted c)
  insert into pgfifo._minutes as m (action_id, minute, enqueued, started, succeeded, failed, cancelled, expired)
  select h.action_id, h.minute, sum(h.enqueued), sum(h.started), sum(h.succeeded), sum(h.failed), sum(h.cancelled), sum(h.expired)
  from happened h
  where h.enqueued + h.started + h.succeeded + h.failed + h.cancelled + h.expired > 0
  group by h.action_id, h.minute
  on conflict (action_id, minute) do update set enqueued = m.enqueued + excluded.enqueued, started = m.started + excluded.started,
    succeeded = m.succeeded + excluded.succeeded, failed = m.failed + excluded.failed, cancelled = m.cancelled + excluded.cancelled,
    expired = m.expired + excluded.expired;
end $$;

-- With the first round of each minute a pass over all lanes begins, p_slice of them in a round, which counts for the minute that
-- is over. p_minute: when the last pass began; p_to: the lane that it has come to, null when it is through.
create or replace function pgfifo._count_minute(inout p_minute timestamptz, inout p_to bigint, p_slice integer, p_now timestamptz)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lanes bigint[];
begin
  if p_to is null then
    if p_minute = pgfifo._minute(p_now) then
      return;
    end if;
    p_minute := pgfifo._minute(p_now);
    p_to := 0;
  end if;
  v_lanes := array(select l.id from pgfifo.lanes l where l.id > p_to order by l.id limit p_slice);
  perform pgfifo._count_lanes(v_lanes, p_minute - interval '1 min', p_now);
  p_to := case when cardinality(v_lanes) = p_slice then v_lanes[p_slice] end;
end $$;

-- Waits are counted in classes, ten to a power of ten: where each of them begins, in seconds, from a millisecond on; all from twelve
-- days on are one. And the wait in the middle of a class.
create or replace function pgfifo._wait_classes() returns double precision[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select array(select 10 ^ (n / 10.0 - 3) + 1e-9 from generate_series(0, 89) n)::double precision[] $$;
create or replace function pgfifo._wait_of_class(p_class smallint) returns double precision
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select 10 ^ ((greatest(p_class, 0.5) - 0.5) / 10.0 - 3) $$;

-- Add up the times of what has ended since p_to, two seconds late, so that what ended then has mostly committed; ten seconds of
-- it at most. What commits later than that is counted, but not measured. Each row of history is read once, by its index.
create or replace function pgfifo._measure(inout p_to timestamptz, p_now timestamptz)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_upto timestamptz := p_now - interval '2 s';
  v_first timestamptz;
  v_classes constant double precision[] := pgfifo._wait_classes();
begin
  select min(h.finished_at) into v_first from pgfifo.actions a
  cross join lateral (
    select h.finished_at from pgfifo.history h where h.action_id = a.id and h.finished_at > p_to and h.finished_at <= v_upto
    order by h.action_id, h.finished_at limit 1) h;
  if v_first is null then
    p_to := greatest(p_to, v_upto);
    return;
  end if;
  v_upto := least(v_upto, v_first + interval '10 s');
  -- Each row costs what is said of it here; functions of ours, and numeric, would cost ten times as much as all else.
  with ended as materialized (
    select a.id as action_id, date_trunc('minute', h.finished_at, 'UTC') as minute, width_bucket(h.waited, v_classes)::smallint as class, count(*) as n,
      sum(h.waited) as waited, sum(h.ran) as ran
    from pgfifo.actions a
    cross join lateral (
      select h.finished_at,
        greatest(0, date_part('epoch', coalesce((h.attempts -> 0 ->> 'started_at')::timestamptz, h.started_at) - h.enqueued_at)) as waited,
        greatest(0, date_part('epoch', h.finished_at - h.started_at)) as ran
      from pgfifo.history h
      where h.action_id = a.id and h.finished_at >= v_first and h.finished_at <= v_upto and h.outcome in ('succeeded', 'failed') and h.started_at is not null
      offset 0) h
    group by 1, 2, 3),
  classed as (
    insert into pgfifo._waits as w (action_id, minute, class, n)
    select e.action_id, e.minute, e.class, e.n from ended e
    on conflict (action_id, minute, class) do update set n = w.n + excluded.n)
  insert into pgfifo._minutes as m (action_id, minute, measured, wait_seconds, run_seconds)
  select e.action_id, e.minute, sum(e.n), sum(e.waited), sum(e.ran) from ended e
  group by 1, 2
  on conflict (action_id, minute) do update set measured = m.measured + excluded.measured, wait_seconds = m.wait_seconds + excluded.wait_seconds,
    run_seconds = m.run_seconds + excluded.run_seconds;
  p_to := v_upto;
end $$;

-- Minutes are kept for a week, classes of waits for a day.
create or replace function pgfifo._forget_minutes(p_now timestamptz) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  delete from pgfifo._minutes m where m.ctid = any (array(
    select o.ctid from pgfifo.actions a
    cross join lateral (
      select m.ctid from pgfifo._minutes m where m.action_id = a.id and m.minute < p_now - interval '7 days' order by m.action_id, m.minute limit 1000) o));
  delete from pgfifo._waits w where w.ctid = any (array(
    select o.ctid from pgfifo.actions a
    cross join lateral (
      select w.ctid from pgfifo._waits w where w.action_id = a.id and w.minute < p_now - interval '1 day' order by w.action_id, w.minute, w.class limit 1000) o))
$$;

-- How fast a lane's line moves, in starts a second. Basis 'lane': o_count starts in the last o_seconds, while something waited
-- all the time. Basis 'action': in this lane too few are on record, and as far as its limits go, one starts whenever one has run
-- for as long as o_count of its action in the last hour did on average, o_seconds. o_free: how many can start at once then.
-- Where a line has not moved for much longer than that, what is on record of it counts: o_per_second is null if that is nothing.
create or replace function pgfifo._lane_pace(p_lane_id bigint, p_now timestamptz,
  out o_basis text, out o_per_second double precision, out o_count bigint, out o_seconds double precision, out o_free bigint)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lane record;
  v_measured record;
  v_expected double precision;
begin
  select l.action_id, g.starts - p.base_started as started, extract(epoch from p_now - p.base_at)::double precision as since, g.running + g.held - g.riding as active,
      coalesce(lp.max_concurrent, ap.max_concurrent) as slots, coalesce(lp.rate_n, ap.rate_n) / coalesce(lp.rate_period, ap.rate_period) as rate,
      coalesce(lp.spacing, ap.spacing) as spacing, coalesce(lp.gap, ap.gap) as gap
    into v_lane
  from pgfifo.lanes l
  join pgfifo._action_policies ap on ap.action_id = l.action_id
  cross join lateral (select g.* from pgfifo.ledger g where g.lane_id = l.id order by g.lane_id desc, g.version desc limit 1) g
  left join lateral (select lp.* from pgfifo._lane_policies lp where lp.lane_id = l.id offset 0) lp on true
  left join lateral (select p.base_at, p.base_started from pgfifo._tallies p where p.lane_id = l.id offset 0) p on true
  where l.id = p_lane_id;
  select sum(m.measured)::bigint as n, sum(m.run_seconds) / nullif(sum(m.measured), 0) as mean into v_measured
  from (select m.measured, m.run_seconds from pgfifo._minutes m where m.action_id = v_lane.action_id and m.minute > p_now - interval '1 hour'
        order by m.action_id desc, m.minute desc limit 61) m;
  v_expected := least(v_lane.slots / greatest(v_measured.mean, 0.0001), v_lane.rate, 1 / nullif(v_lane.spacing, 0),
    1 / nullif(v_lane.gap + case when v_lane.slots = 1 and v_lane.gap > 0 then v_measured.mean else 0 end, 0));
  if v_lane.since >= 20 and (v_lane.started >= 3 or v_measured.n is null or v_lane.since > 20 + 10 / v_expected) then
    o_basis := 'lane';
    o_count := v_lane.started;
    o_seconds := v_lane.since;
    o_per_second := nullif(v_lane.started, 0) / v_lane.since;
    o_free := 0;
  elsif v_measured.n > 0 then
    o_basis := 'action';
    o_count := v_measured.n;
    o_seconds := v_measured.mean;
    o_per_second := v_expected;
    o_free := greatest(0, v_lane.slots - v_lane.active);
  end if;
end $$;

-- When the one at this position of a lane's line will probably start; null where nothing tells, or nothing moves.
-- p_is_slot: nobody but its owner starts it.
create or replace function pgfifo._eta(p_lane_id bigint, p_pos bigint, p_is_slot boolean, p_now timestamptz, out o_seconds double precision, out o_basis text, out o_detail jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_pace record;
  v_stopped boolean;
begin
  select p.paused_at is not null or lp.paused_at is not null or not p_is_slot and not exists (
      select from pgfifo._workers w where w.state = 'alive' and w.kind = 'worker' and w.last_seen + w.lease >= p_now and p.action = any (w.actions))
    into v_stopped
  from pgfifo.lanes l
  join pgfifo._action_policies p on p.action_id = l.action_id
  left join lateral (select lp.paused_at from pgfifo._lane_policies lp where lp.lane_id = l.id offset 0) lp on true
  where l.id = p_lane_id;
  if p_pos is null or v_stopped then
    return;
  end if;
  select * into strict v_pace from pgfifo._lane_pace(p_lane_id, p_now);
  if v_pace.o_per_second is null then
    return;
  end if;
  o_basis := v_pace.o_basis;
  -- Nothing before its limits allow it.
  select greatest(greatest(0, p_pos - v_pace.o_free) / v_pace.o_per_second, extract(epoch from w.o_at - p_now)) into o_seconds from pgfifo._weigh(p_lane_id, p_now) w;
  o_detail := jsonb_build_object('seconds', o_seconds, 'at', p_now + make_interval(secs => least(o_seconds, 3155760000)), 'basis', o_basis,
    'per_minute', v_pace.o_per_second * 60, 'count', v_pace.o_count, 'over_seconds', v_pace.o_seconds);
end $$;
