-- max_wait. What has waited in the line for that long expires: from then on it cannot start,
-- every reader says so, and it does not count against lengths. Its outcome is written, and counted in the ledger, by the next
-- who has the lane's slot lock anyway (a claim, a cancel, a change of max_wait) or by maintenance.
-- In a strict lane, joining times are in the order of tickets; so what has expired is a prefix of the line, which readers
-- count from the ledger's consumed mark to the first that has not. One that was put back to its old place (its ticket is below
-- its id) has come later than its neighbours: it is passed over on the way to that first. (Where the order does not hold, by
-- microseconds in relaxed lanes and by as much as a server's clock is set back, an expired one behind a younger time is counted
-- once that is gone; it is not started all the same.) What was started and has returned to its place does not expire. What joins
-- later, a delayed one or a retry that goes to the end of the line, waits from then on like any other.

-- For how long executions may wait in this lane; null where nothing expires.
create or replace function pgfifo._max_wait(p_lane_id bigint) returns interval
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select w.max_wait from pgfifo._max_waits w where w.lane_id = p_lane_id);
end $$;

-- How many of a lane's waiting ones have expired and are still counted as waiting. Costs as much as there are.
create or replace function pgfifo._count_expired(p_lane_id bigint, p_before timestamptz) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select (select count(*) from pgfifo._executions e where e.lane_id = p_lane_id and e.ticket > g.consumed and e.ticket < coalesce(f.ticket, 9223372036854775807)
              and coalesce(e.joined_at, e.enqueued_at) <= p_before)
      + (select count(*) from pgfifo.runs r join pgfifo._executions e on e.id = r.id
         where g.returned > 0 and r.lane_id = p_lane_id and r.state = 'returned' and r.ticket >= g.returned_from and r.attempt = 0
           and coalesce(e.joined_at, e.enqueued_at) <= p_before)
      -- Arrivals of a relaxed lane below the consumed mark, which no claim has seen yet.
      + (select count(*) from pgfifo._executions e
         where e.lane_id = p_lane_id and e.ticket <= g.consumed and coalesce(e.joined_at, e.enqueued_at) <= p_before
           and e.ticket >= (select min(a.first_ticket) from pgfifo.arrivals a where a.lane_id = p_lane_id and a.id > g.mark_floor)
           and not exists (select from pgfifo.runs r where r.id = e.id))
    from (select g.consumed, g.returned, g.returned_from, g.mark_floor from pgfifo.ledger g
          where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1) g
    left join lateral (
      select e.ticket from pgfifo._executions e
      where e.lane_id = p_lane_id and e.ticket > g.consumed and coalesce(e.joined_at, e.enqueued_at) > p_before and e.ticket >= e.id
      order by e.lane_id, e.ticket limit 1) f on true);
end $$;

-- Whether something has expired in a lane's line: the first of those that are in the order of their times, or one before that.
create or replace function pgfifo._begins_expired(p_lane_id bigint, p_consumed bigint, p_before timestamptz) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (
    select from pgfifo._executions e
    where e.lane_id = p_lane_id and e.ticket > p_consumed and coalesce(e.joined_at, e.enqueued_at) <= p_before
      and e.ticket <= coalesce((
        select o.ticket from pgfifo._executions o where o.lane_id = p_lane_id and o.ticket > p_consumed and o.ticket >= o.id
        order by o.lane_id, o.ticket limit 1), 9223372036854775807));
end $$;

-- Give what has expired at the front of a lane its outcome, about p_most at a time. The caller holds the lane's slot lock
-- since an earlier statement. True if what is first in the line now, p_want of them, has not expired.
create or replace function pgfifo._expire(p_lane_id bigint, p_now timestamptz, p_wait interval, p_want integer, p_most integer default 1000) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_state pgfifo.ledger;
  v_ids bigint[];
  v_gone integer;
  v_line record;
begin
  select g.* into strict v_state from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1;
  if v_state.returned > 0 then
    v_ids := array(select r.id from pgfifo.runs r join pgfifo._executions e on e.id = r.id
      where r.lane_id = p_lane_id and r.state = 'returned' and r.ticket >= v_state.returned_from and r.attempt = 0 and coalesce(e.joined_at, e.enqueued_at) <= p_now - p_wait);
    if v_ids <> '{}' then
      delete from pgfifo.runs r where r.id = any (v_ids);
      get diagnostics v_gone = row_count;
      perform pgfifo._append(p_lane_id, p_returned => -v_gone);
      perform pgfifo._end_waiting(v_ids, 'expired', null, p_wait => p_wait);
    end if;
  end if;
  with ahead as materialized (
    select e.id, e.ticket, coalesce(e.joined_at, e.enqueued_at) <= p_now - p_wait as is_over from pgfifo._executions e
    where e.lane_id = p_lane_id and e.ticket > v_state.consumed order by e.lane_id, e.ticket limit p_want + p_most),
  living as (
    select min(a.ticket) as first, count(*) as n from ahead a where not a.is_over)
  select array_agg(a.id) filter (where a.is_over) as ids, max(a.ticket) filter (where a.is_over and a.ticket < coalesce(l.first, 9223372036854775807)) as consumed,
      coalesce(max(l.n), 0) as living, count(*) as seen
    into v_line
  from ahead a cross join living l;
  if v_line.ids is not null then
    select cardinality(w.o_ids) into v_gone from pgfifo._end_waiting(v_line.ids, 'expired', null, p_wait => p_wait) w;
    if v_gone < cardinality(v_line.ids) then
      return false;  -- somebody has a row of ours locked, who has no business there; another time, then
    elsif v_line.consumed is not null then
      -- What comes next reads the line from here on, and not over what has gone.
      perform pgfifo._append(p_lane_id, p_consumed => v_line.consumed);
    end if;
  end if;
  return v_line.living >= p_want or v_line.seen < p_want + p_most;
end $$;

-- Those of these executions that wait and have expired get their outcome. The caller holds the slot locks of these lanes since
-- an earlier statement, and is about to do something to the executions: what has expired is past that.
create or replace function pgfifo._expire_ids(p_ids bigint[], p_lanes bigint[]) returns bigint[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pgfifo._now();
  v_lane record;
  v_parked integer;
  v_out bigint[] := '{}';
begin
  if not exists (select from pgfifo.policies p where p.max_wait < 'infinity') then
    return v_out;
  end if;
  for v_lane in
    select w.lane_id, w.wait, array_agg(e.id) as ids
    from (select l.lane_id, w.max_wait as wait from unnest(p_lanes) l(lane_id) join pgfifo._max_waits w on w.lane_id = l.lane_id offset 0) w
    join (select e.* from unnest(p_ids) i(id) cross join lateral (select e.id, e.lane_id, e.ticket, coalesce(e.joined_at, e.enqueued_at) as joined_at
                                                                  from pgfifo._executions e where e.id = i.id offset 0) e) e on e.lane_id = w.lane_id
    where e.ticket is not null and e.joined_at <= v_now - w.wait
      and not exists (select from pgfifo.runs r where r.id = e.id and (r.state <> 'returned' or r.attempt > 0))
    group by w.lane_id, w.wait
  loop
    delete from pgfifo.runs r where r.id = any (v_lane.ids);
    get diagnostics v_parked = row_count;
    if v_parked > 0 then
      perform pgfifo._append(v_lane.lane_id, p_returned => -v_parked);
    end if;
    perform pgfifo._end_waiting(v_lane.ids, 'expired', null, p_wait => v_lane.wait);
    v_out := v_out || v_lane.ids;
  end loop;
  return v_out;
end $$;

-- Before dedup keys are looked for: what has one of them and has expired gives it up, so it gets its outcome, under its lane's
-- slot lock, held to the caller's commit. Rarely there is any.
create or replace function pgfifo._expire_dedups(p_action_id integer, p_dedup_keys text[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pgfifo._now();
  v_ids bigint[];
  v_lanes bigint[];
begin
  if not exists (select from pgfifo.policies p where p.max_wait < 'infinity') then
    return;
  end if;
  select array_agg(e.id), array_agg(distinct e.lane_id) into v_ids, v_lanes
  from unnest(p_dedup_keys) k(dedup_key)
  cross join lateral (select e.id, e.lane_id, coalesce(e.joined_at, e.enqueued_at) as joined_at from pgfifo._executions e
                      where e.dedup_action_id = p_action_id and e.dedup_key = k.dedup_key and e.ticket is not null offset 0) e
  join pgfifo._max_waits w on w.lane_id = e.lane_id
  where e.joined_at <= v_now - w.max_wait and not exists (select from pgfifo.runs r where r.id = e.id and (r.state <> 'returned' or r.attempt > 0));
  if v_ids is null then
    return;
  end if;
  perform pgfifo._require_read_committed('enqueue (what has its dedup_key has expired)');
  perform pgfifo._lock_lane(l.id, 'enqueue (what has its dedup_key has expired)') from (select l.id from unnest(v_lanes) l(id) order by pgfifo._key(l.id) offset 0) l;
  perform pgfifo._expire_ids(v_ids, v_lanes);
end $$;

-- The part of a claim that looks after this, where a policy has a max_wait at all. The caller holds the slot locks of these
-- lanes since an earlier statement, and wants to start at most so many in each. Returns those in which more has expired than
-- one claim can do in between: it passes them by, and a timer brings somebody back at once.
create or replace function pgfifo._expire_fronts(p_lanes bigint[], p_now timestamptz, p_want integer) returns bigint[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lane record;
  v_left bigint[] := '{}';
begin
  for v_lane in
    select t.lane_id, w.wait
    from unnest(p_lanes) t(lane_id)
    cross join lateral (select w.max_wait as wait from pgfifo._max_waits w where w.lane_id = t.lane_id offset 0) w
    cross join lateral (select g.consumed, g.returned from pgfifo.ledger g where g.lane_id = t.lane_id order by g.lane_id desc, g.version desc limit 1) g
    where (g.returned > 0 or exists (
      select from (select coalesce(e.joined_at, e.enqueued_at) as joined_at from pgfifo._executions e
                   where e.lane_id = t.lane_id and e.ticket > g.consumed order by e.lane_id, e.ticket limit p_want) e
      where e.joined_at <= p_now - w.wait))
  loop
    if not pgfifo._expire(v_lane.lane_id, p_now, v_lane.wait, p_want) then
      perform pgfifo._timer(v_lane.lane_id, p_now + interval '20 ms');
      v_left := v_left || v_lane.lane_id;
    end if;
  end loop;
  return v_left;
end $$;

-- The part of maintenance that looks after this, for lanes that nobody touches: paused and full ones, actions that nobody
-- serves. Their locks by try, and no more than a batch may take.
create or replace function pgfifo._expire_late(p_from bigint, p_to bigint) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pgfifo._now();
  v_lane record;
  v_count integer := 0;
begin
  if not exists (select from pgfifo.policies p where p.max_wait < 'infinity') then
    return 0;
  end if;
  for v_lane in
    select l.id, w.wait
    from pgfifo.lanes l
    cross join lateral (select w.max_wait as wait from pgfifo._max_waits w where w.lane_id = l.id offset 0) w
    cross join lateral (select g.consumed, g.returned from pgfifo.ledger g where g.lane_id = l.id order by g.lane_id desc, g.version desc limit 1) g
    where l.id > p_from and l.id <= p_to and (g.returned > 0 or pgfifo._begins_expired(l.id, g.consumed, v_now - w.wait))
    order by pgfifo._key(l.id) limit least(100, pgfifo.max_batch_lanes())
  loop
    continue when not pg_try_advisory_xact_lock('pgfifo.lanes'::regclass::oid::integer, pgfifo._key(v_lane.id));
    perform pgfifo._expire(v_lane.id, v_now, v_lane.wait, 1);
    v_count := v_count + 1;
  end loop;
  return v_count;
end $$;

-- Before max_wait changes in a scope: what has expired under the old value gets its outcome now, and keeps it under the new
-- one. The caller has the lock under which the scope's limits change; here the slot locks of the lanes in question, a second
-- for each. (What expires between this and the commit is not seen: it waits on under the new value.)
create or replace function pgfifo._settle_waits(p_pack text, p_action_id integer, p_lane_id bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pgfifo._now();
  v_lane record;
  v_lanes integer := 0;
begin
  for v_lane in
    select l.id, w.wait
    from pgfifo.lanes l
    join pgfifo.actions a on a.id = l.action_id
    cross join lateral (select w.max_wait as wait from pgfifo._max_waits w where w.lane_id = l.id offset 0) w
    cross join lateral (select g.consumed, g.returned from pgfifo.ledger g where g.lane_id = l.id order by g.lane_id desc, g.version desc limit 1) g
    where (p_lane_id is null or l.id = p_lane_id) and (p_action_id is null or a.id = p_action_id) and (p_pack is null or a.pack = p_pack)
      and (g.returned > 0 or pgfifo._begins_expired(l.id, g.consumed, v_now - w.wait))
    order by pgfifo._key(l.id)
  loop
    v_lanes := v_lanes + 1;
    if v_lanes > pgfifo.max_batch_lanes() then
      raise exception using errcode = 'QF023', message = format('max_wait cannot change while executions have expired in more than %s lanes', v_lanes - 1),
        detail = json_build_object('lanes', v_lanes)::text, hint = 'Their outcomes have to be written first: let maintenance run, and try again.';
    elsif not pgfifo._lock('pgfifo.lanes'::regclass, pgfifo._key(v_lane.id), interval '1 s') then
      perform pgfifo._busy('max_wait cannot change before what has expired has its outcome, and another transaction holds its lane; gave up after 1 s',
        'pgfifo.lanes'::regclass, pgfifo._key(v_lane.id), jsonb_build_object('lane_id', v_lane.id));
    end if;
    loop
      exit when pgfifo._expire(v_lane.id, v_now, v_lane.wait, 1, 10000);
    end loop;
  end loop;
end $$;

-- The lanes in which executions expire, of an action or of all, as lane_stats has them. For statements that mostly need none of this: to
-- plan that view takes longer than to read a few lanes.
create or replace function pgfifo._expiring_lanes(p_action_id integer)
returns table (action_id integer, lane_id bigint, total_expired bigint, oldest_enqueued_at timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
  select l.action_id, s.lane_id, s.total_expired, s.oldest_enqueued_at
  from pgfifo._max_waits m
  join pgfifo.lanes l on l.id = m.lane_id
  join pgfifo.lane_stats s on s.lane_id = m.lane_id
  where p_action_id is null or l.action_id = p_action_id;
end $$;
