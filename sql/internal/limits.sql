-- Which shared limits an action draws from, in the order in which they are locked.
create or replace function pgfifo._draws(p_action_id integer) returns integer[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(array_agg(distinct d.limit_id order by d.limit_id), '{}')
  from pgfifo.actions a
  join pgfifo.shared_draws d on d.action_id = a.id or d.pack = a.pack or d.scope = 'everything'
  where a.id = p_action_id
$$;

-- A time that was noted, as it counts now: not at all when it lies ahead by more than clocks read in another order explain.
-- Then the clock was set back, and whoever waited for that time to pass would wait for as long as it was set back.
create or replace function pgfifo._noted(p_at timestamptz, p_now timestamptz) returns timestamptz
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select case when p_at <= p_now + interval '5 s' then p_at end $$;

-- The theoretical arrival time of the generic cell rate algorithm, of a rate that may have changed since: never further
-- after the last start than a whole burst. So after a change to a faster rate nothing waits for longer than that one says.
create or replace function pgfifo._rate_at(p_n double precision, p_period double precision, p_burst integer, p_at timestamptz, p_last_start_at timestamptz,
  p_now timestamptz) returns timestamptz
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  -- Without a time nothing was started under a rate yet: only under a spacing, say, which keeps the same row.
  select case when p_at is not null and p_last_start_at <= p_now + interval '5 s'
    then greatest(p_now, least(p_at, p_last_start_at + make_interval(secs => coalesce(p_burst, p_n) * p_period / p_n))) else p_now end
$$;

-- How many starts a rate allows at a time, by that algorithm: one each p_period / p_n seconds, and up to p_burst at once.
-- p_at: see _rate_at. o_at: when it allows the next, where it allows none now.
create or replace function pgfifo._rate_allows(p_n double precision, p_period double precision, p_burst integer, p_at timestamptz, p_now timestamptz,
  out o_n integer, out o_at timestamptz)
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_step double precision := p_period / p_n;
  v_burst double precision := coalesce(p_burst, p_n);
  v_ahead double precision := extract(epoch from p_at - p_now);
begin
  -- A millionth of a step for what seconds lose as they are added up.
  o_n := greatest(0, least(1000000, floor(v_burst - v_ahead / v_step + 0.000001)))::integer;
  if o_n = 0 then
    o_at := p_now + make_interval(secs => v_ahead - (v_burst - 1) * v_step);
  end if;
end $$;

-- What limits the starts of a lane over time and across lanes, as far as this snapshot sees; slots of the lane aside.
-- o_n: how many may start now; null where nothing of the kind is in force. o_at: when to look again, where a time is known.
-- o_limit: the shared limit that it waits for. o_limits: all that it draws from. o_why: what is in the way, for people.
-- Decides nothing by itself: _allowance calls it under the locks, others only look.
create or replace function pgfifo._weigh(p_lane_id bigint, p_now timestamptz,
  out o_n integer, out o_at timestamptz, out o_limit integer, out o_limits integer[], out o_why jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy record;
  v_pace pgfifo.paces;
  v_shared record;
  v_wait pgfifo.shared_waits;
  v_rate record;
  v_free integer;
  v_before bigint;
  v_at timestamptz;
begin
  o_why := '[]';
  select p.action_id, coalesce(l.rate_n, p.rate_n) as rate_n, coalesce(l.rate_period, p.rate_period) as rate_period, coalesce(l.burst, p.burst) as burst,
      coalesce(l.spacing, p.spacing) as spacing, coalesce(l.gap, p.gap) as gap, pgfifo._draws(p.action_id) as draws
    into v_policy
  from pgfifo.lanes n join pgfifo._action_policies p on p.action_id = n.action_id left join pgfifo._lane_policies l on l.lane_id = n.id
  where n.id = p_lane_id;
  o_limits := v_policy.draws;
  if v_policy.rate_n = 'infinity' and v_policy.spacing = 0 and v_policy.gap = 0 and o_limits = '{}' then
    return;
  end if;
  o_n := 1000000;
  select p.* into v_pace from pgfifo.paces p where p.lane_id = p_lane_id order by p.lane_id desc, p.version desc limit 1;
  if v_policy.rate_n < 'infinity' then
    v_rate := pgfifo._rate_allows(v_policy.rate_n, v_policy.rate_period, v_policy.burst,
      pgfifo._rate_at(v_policy.rate_n, v_policy.rate_period, v_policy.burst, v_pace.rate_at, v_pace.last_start_at, p_now), p_now);
    o_n := least(o_n, v_rate.o_n);
    if v_rate.o_n = 0 then
      o_at := v_rate.o_at;
      o_why := o_why || jsonb_build_object('reason', 'rate', 'until', v_rate.o_at);
    end if;
  end if;
  if v_policy.spacing > 0 then
    v_at := pgfifo._noted(v_pace.last_start_at, p_now) + make_interval(secs => v_policy.spacing);
    o_n := least(o_n, case when v_at > p_now then 0 else 1 end);
    if v_at > p_now then
      o_at := greatest(o_at, v_at);
      o_why := o_why || jsonb_build_object('reason', 'spacing', 'until', v_at);
    end if;
  end if;
  if v_policy.gap > 0 then
    v_at := pgfifo._noted(v_pace.last_end_at, p_now) + make_interval(secs => v_policy.gap);
    if v_at > p_now then
      o_n := 0;
      o_at := greatest(o_at, v_at);
      o_why := o_why || jsonb_build_object('reason', 'gap', 'until', v_at);
    end if;
  end if;
  for v_shared in
    select s.id, s.name, s.max_concurrent, s.rate, s.burst, pgfifo._rate_at(s.rate[1], s.rate[2], s.burst, g.rate_at, g.last_start_at, p_now) as rate_at,
      g.active - (select count(*) from pgfifo.shared_returns r where r.limit_id = s.id and r.id > g.returns_floor) as active
    from pgfifo._shared_limits s
    cross join lateral (select g.* from pgfifo.shared_ledger g where g.limit_id = s.id order by g.limit_id desc, g.version desc limit 1) g
    where s.id = any (o_limits) order by s.id
  loop
    v_free := case when v_shared.max_concurrent is null then 1000000 else greatest(0, v_shared.max_concurrent - v_shared.active) end;
    if v_free = 0 then
      o_why := o_why || jsonb_build_object('reason', 'shared_slots', 'name', v_shared.name, 'limit', v_shared.max_concurrent, 'current', v_shared.active);
      if o_n > 0 then
        o_limit := v_shared.id;
      end if;
    elsif v_shared.rate[1] < 'infinity' then
      v_rate := pgfifo._rate_allows(v_shared.rate[1], v_shared.rate[2], v_shared.burst, v_shared.rate_at, p_now);
      v_free := least(v_free, v_rate.o_n);
      if v_free = 0 then
        o_why := o_why || jsonb_build_object('reason', 'shared_rate', 'name', v_shared.name, 'until', v_rate.o_at);
        if o_n > 0 then
          o_limit := v_shared.id;
          o_at := v_rate.o_at;
        end if;
      end if;
    end if;
    if v_free > 0 then
      -- Turns: one start each while others wait. Who was not called leaves to the others what they were called for or will
      -- be in a moment, but only for a second: they may be of an action that nobody serves now. The next round of
      -- maintenance calls others then. And where one of its own action has not come for a second, its mark is behind those
      -- of lanes that nobody has looked at yet, maybe a hundred thousand: what is free would stay so until all of them were
      -- looked at, so it is nobody's turn any more, and marks decide.
      select w.* into v_wait from pgfifo.shared_waits w where w.limit_id = v_shared.id and w.lane_id = p_lane_id;
      if v_wait.called_at <= p_now then
        if v_free > 1 and exists (select from pgfifo.shared_waits w where w.limit_id = v_shared.id and w.lane_id <> p_lane_id) then
          v_free := 1;
        end if;
      else
        select count(*) into v_before
        from (select from pgfifo.shared_waits w
              where w.limit_id = v_shared.id and w.lane_id <> p_lane_id
                and (w.called_at is null or w.called_at > p_now - interval '1 s' and w.called_at <= p_now)
                and not exists (select from pgfifo.shared_waits o where o.limit_id = v_shared.id and o.action_id = v_policy.action_id
                                and o.lane_id <> p_lane_id and o.called_at <= p_now - interval '1 s')
              limit v_free) c;
        v_free := v_free - v_before::integer;
        if v_free = 0 then
          o_why := o_why || jsonb_build_object('reason', 'shared_turn', 'name', v_shared.name);
          if o_n > 0 then
            o_limit := v_shared.id;
          end if;
        end if;
      end if;
    end if;
    o_n := least(o_n, v_free);
  end loop;
end $$;

-- _weigh for a claim, which holds the lane's slot lock since an earlier statement: with the locks of the shared limits held
-- to the commit, and what was given back to them counted. Each lock is waited for shortly; whoever has it is a claim, or
-- somebody who changes the limit. Where one cannot be had nothing starts, and the lane is looked at again soon.
-- p_drawn: see _scan_from.
create or replace function pgfifo._allowance(p_lane_id bigint, p_now timestamptz, p_limits integer[], p_drawn bigint,
  out o_n integer, out o_at timestamptz, out o_limit integer, out o_limits integer[])
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_limit integer;
begin
  foreach v_limit in array p_limits loop
    if not pgfifo._lock('pgfifo._shared_limits'::regclass, v_limit, interval '50 ms') then
      o_n := 0;
      o_at := p_now + interval '100 ms';
      o_limits := '{}';
      return;
    end if;
    perform pgfifo._shared_fold(v_limit, p_drawn);
  end loop;
  select w.o_n, w.o_at, w.o_limit, w.o_limits into o_n, o_at, o_limit, o_limits from pgfifo._weigh(p_lane_id, p_now) w;
end $$;

-- Count what was given back to a shared limit. The caller holds its lock since an earlier statement.
-- Those who give back hold no lock of the limit, so their ids are not in the order of their commits: the floor follows only
-- where nobody below it can still be in progress, as in the ledger of a relaxed lane (see _scan_from).
create or replace function pgfifo._shared_fold(p_limit integer, p_drawn bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_xmin xid8 := pg_snapshot_xmin(pg_current_snapshot());
  v_n integer;
  v_state pgfifo.shared_ledger;
begin
  select g.* into strict v_state from pgfifo.shared_ledger g where g.limit_id = p_limit order by g.limit_id desc, g.version desc limit 1;
  delete from pgfifo.shared_returns r where r.limit_id = p_limit and r.id > v_state.returns_floor;
  get diagnostics v_n = row_count;
  if v_n = 0 and (v_state.pending_xid is null or v_state.pending_xid > v_xmin) then
    return;
  end if;
  insert into pgfifo.shared_ledger (limit_id, version, active, rate_at, last_start_at, returns_floor, pending_mark, pending_xid, changed_at)
  select p_limit, v_state.version + 1, v_state.active - v_n, v_state.rate_at, v_state.last_start_at,
    case when v_state.pending_xid <= v_xmin then greatest(v_state.returns_floor, v_state.pending_mark) else v_state.returns_floor end,
    case when v_state.pending_xid > v_xmin then v_state.pending_mark when v_n > 0 then p_drawn end,
    case when v_state.pending_xid > v_xmin then v_state.pending_xid when v_n > 0 and p_drawn is not null then pg_current_xact_id() end, pgfifo._now();
  delete from pgfifo.shared_ledger g where g.limit_id = p_limit and g.version = v_state.version;
end $$;

-- After a claim has started executions of a lane (or none) that _allowance was asked about: take what they draw, and see to
-- it that the lane is looked at again: at once where only this call's limit was in the way, at a time, or when it is called
-- by the shared limit that it waits for. Under the same locks.
-- Dies before the commit: nothing was started and nothing taken.
create or replace function pgfifo._settle(p_lane_id bigint, p_ids bigint[], p_limits integer[], p_max integer, p_paused boolean, p_now timestamptz)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer := coalesce(cardinality(p_ids), 0);
  v_limit integer;
  v_lane record;
  v_state pgfifo.ledger;
  v_more boolean := false;
  v_n integer;
  v_at timestamptz;
  v_waits_for integer;
  v_locked boolean;
begin
  select n.action_id, coalesce(l.rate_n, p.rate_n) as rate_n, coalesce(l.rate_period, p.rate_period) as rate_period, coalesce(l.burst, p.burst) as burst,
      coalesce(l.spacing, p.spacing) as spacing, coalesce(l.gap, p.gap) as gap
    into strict v_lane
  from pgfifo.lanes n join pgfifo._action_policies p on p.action_id = n.action_id left join pgfifo._lane_policies l on l.lane_id = n.id
  where n.id = p_lane_id;
  if v_count > 0 then
    if v_lane.rate_n < 'infinity' or v_lane.spacing > 0 then
      perform pgfifo._pace(p_lane_id, p_now => p_now, p_start => true, p_keep => greatest(v_lane.spacing,
          case when v_lane.rate_n < 'infinity' then coalesce(v_lane.burst, v_lane.rate_n) * v_lane.rate_period / v_lane.rate_n end),
        p_rate_n => nullif(v_lane.rate_n, 'infinity'), p_rate_period => v_lane.rate_period, p_burst => v_lane.burst, p_starts => v_count);
    end if;
    foreach v_limit in array p_limits loop
      perform pgfifo._shared_take(v_limit, v_count, p_now);
    end loop;
    -- What ends later gives back what it drew, whatever draws by then; with a gap, its end is written down.
    if p_limits <> '{}' or v_lane.gap > 0 then
      update pgfifo.runs r set draws = p_limits where r.id = any (p_ids);
    end if;
  end if;

  if not p_paused then
    select g.* into strict v_state from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1;
    v_more := v_state.running + v_state.held - v_state.riding < p_max
        and (v_state.returned > 0 or exists (select from pgfifo._executions e where e.lane_id = p_lane_id and e.ticket > v_state.consumed))
      or v_state.held > 0 and exists (
        select from pgfifo.runs r where r.lane_id = p_lane_id and r.state = 'held' and r.due_at >= v_state.held_from and r.due_at <= p_now);
  end if;
  if v_more then
    select w.o_n, w.o_at, w.o_limit, w.o_limits = p_limits into v_n, v_at, v_waits_for, v_locked from pgfifo._weigh(p_lane_id, p_now) w;
    -- Its limits' locks could not be had: nothing may be written there.
    if not v_locked then
      v_n := 0;
      v_at := p_now + interval '100 ms';
      v_waits_for := null;
    end if;
  end if;
  if not v_more or v_n is null or v_n > 0 then
    delete from pgfifo.shared_waits w where w.lane_id = p_lane_id and w.limit_id = any (p_limits);
    if v_more then
      perform pgfifo._mark(p_lane_id);
    end if;
  elsif v_waits_for is not null then
    perform pgfifo._wait_for(v_waits_for, p_lane_id, v_lane.action_id, v_count > 0, v_at, p_now);
  elsif not exists (select from (select p.timer_at from pgfifo.paces p where p.lane_id = p_lane_id order by p.lane_id desc, p.version desc limit 1) p
                    where p.timer_at = v_at)
  then
    -- One timer for each time, however many look at the lane.
    perform pgfifo._pace(p_lane_id, p_now => p_now, p_timer_at => v_at);
    perform pgfifo._timer(p_lane_id, v_at);
  end if;
  foreach v_limit in array p_limits loop
    perform pgfifo._call_waiting(v_limit, p_now);
  end loop;
end $$;

-- Append one version to a lane's pace. Under the lane's slot lock.
create or replace function pgfifo._pace(p_lane_id bigint, p_now timestamptz, p_start boolean default false, p_end boolean default false,
  p_timer_at timestamptz default null, p_keep double precision default null, p_rate_n double precision default null,
  p_rate_period double precision default null, p_burst integer default null, p_starts integer default 0)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old pgfifo.paces;
begin
  select p.* into v_old from pgfifo.paces p where p.lane_id = p_lane_id order by p.lane_id desc, p.version desc limit 1;
  insert into pgfifo.paces (lane_id, version, rate_at, last_start_at, last_end_at, timer_at, keep_until)
  values (p_lane_id, coalesce(v_old.version, 0) + 1,
    case when p_rate_n is not null
         then pgfifo._rate_at(p_rate_n, p_rate_period, p_burst, v_old.rate_at, v_old.last_start_at, p_now) + make_interval(secs => p_starts * p_rate_period / p_rate_n)
         when not p_start then v_old.rate_at end,
    case when p_start then p_now else v_old.last_start_at end,
    case when p_end then p_now else v_old.last_end_at end,
    coalesce(p_timer_at, v_old.timer_at),
    greatest(v_old.keep_until, p_now + make_interval(secs => least(p_keep, 3155760000))));
  delete from pgfifo.paces p where p.lane_id = p_lane_id and p.version = v_old.version;
end $$;

-- So many starts of a shared limit. Under its lock.
create or replace function pgfifo._shared_take(p_limit integer, p_count integer, p_now timestamptz) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_old pgfifo.shared_ledger;
begin
  select g.* into strict v_old from pgfifo.shared_ledger g where g.limit_id = p_limit order by g.limit_id desc, g.version desc limit 1;
  insert into pgfifo.shared_ledger (limit_id, version, active, rate_at, last_start_at, returns_floor, pending_mark, pending_xid, changed_at)
  select p_limit, v_old.version + 1, v_old.active + p_count,
    case when s.rate is not null
         then pgfifo._rate_at(s.rate[1], s.rate[2], s.burst, v_old.rate_at, v_old.last_start_at, p_now) + make_interval(secs => p_count * s.rate[2] / s.rate[1]) end,
    p_now,
    v_old.returns_floor, v_old.pending_mark, v_old.pending_xid, pgfifo._now()
  from pgfifo._shared_limits s where s.id = p_limit;
  delete from pgfifo.shared_ledger g where g.limit_id = p_limit and g.version = v_old.version;
end $$;

-- A lane goes to sleep until a shared limit calls it: at the end of the turns if it has just had its own, else at the place
-- it has. p_at: when that limit will allow something, where a time is known. Under the lane's and the limit's lock.
create or replace function pgfifo._wait_for(p_limit integer, p_lane_id bigint, p_action_id integer, p_had_turn boolean, p_at timestamptz, p_now timestamptz)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id bigint;
  v_before timestamptz;
  v_called_at timestamptz;
begin
  delete from pgfifo.shared_waits w where w.lane_id = p_lane_id and w.limit_id = p_limit
  returning case when not p_had_turn then w.id end, w.called_at into v_id, v_before;
  -- It waits for one limit at a time.
  delete from pgfifo.shared_waits w where w.lane_id = p_lane_id;
  -- Where it is a matter of time, one lane of each action has a timer; the others are called when that one has started.
  if p_at is not null and not exists (
    select from pgfifo.shared_waits w where w.limit_id = p_limit and w.action_id = p_action_id and w.called_at > p_now)
  then
    v_called_at := p_at;
    if v_before is distinct from p_at then
      perform pgfifo._timer(p_lane_id, p_at);
    end if;
  end if;
  insert into pgfifo.shared_waits (limit_id, lane_id, action_id, id, called_at)
  values (p_limit, p_lane_id, p_action_id, coalesce(v_id, nextval('pgfifo.mark_ids')), v_called_at);
end $$;

-- Of each action, the lane that has waited longest for a shared limit and is not called yet.
create or replace function pgfifo._first_waiting(p_limit integer) returns table (action_id integer, lane_id bigint)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive first(action_id, lane_id) as (
    (select w.action_id, w.lane_id from pgfifo.shared_waits w
     where w.limit_id = p_limit and w.called_at is null order by w.limit_id, w.action_id, w.id limit 1)
    union all
    select n.action_id, n.lane_id
    from first f cross join lateral (
      select w.action_id, w.lane_id from pgfifo.shared_waits w
      where w.limit_id = p_limit and w.called_at is null and w.action_id > f.action_id order by w.limit_id, w.action_id, w.id limit 1) n)
  select f.action_id, f.lane_id from first f
$$;

-- What a shared limit has free, it calls lanes for, oldest turn first: of each action as many as could start, since nobody
-- may serve the others now. Whoever is called has a mark; where it starts nothing, this is done again. Under the limit's lock.
create or replace function pgfifo._call_waiting(p_limit integer, p_now timestamptz) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_limit record;
  v_rate record;
  v_free integer;
  v_at timestamptz;
  v_action integer;
  v_called bigint;
  v_wait pgfifo.shared_waits;
begin
  if not exists (select from pgfifo.shared_waits w where w.limit_id = p_limit and w.called_at is null) then
    return;
  end if;
  select s.*, pgfifo._rate_at(s.rate[1], s.rate[2], s.burst, g.rate_at, g.last_start_at, p_now) as rate_at,
      case when s.max_concurrent is null then 1000000 else s.max_concurrent - g.active end as free into strict v_limit
  from pgfifo._shared_limits s
  cross join lateral (select g.* from pgfifo.shared_ledger g where g.limit_id = s.id order by g.limit_id desc, g.version desc limit 1) g
  where s.id = p_limit;
  v_free := v_limit.free;
  if v_free > 0 and v_limit.rate[1] < 'infinity' then
    v_rate := pgfifo._rate_allows(v_limit.rate[1], v_limit.rate[2], v_limit.burst, v_limit.rate_at, p_now);
    v_free := least(v_free, v_rate.o_n);
    v_at := v_rate.o_at;
  end if;
  if v_free <= 0 and v_at is null then
    return;  -- all slots are taken: whoever gives one back leaves a mark
  end if;
  -- An xid before ids of marks are drawn: scans rely on that.
  perform pg_current_xact_id();
  for v_action in select w.action_id from pgfifo._first_waiting(p_limit) w
  loop
    select count(*) into v_called from pgfifo.shared_waits w
    where w.limit_id = p_limit and w.action_id = v_action and case when v_free > 0 then w.called_at > p_now - interval '1 s' and w.called_at <= p_now else w.called_at > p_now end;
    for v_wait in
      select w.* from pgfifo.shared_waits w where w.limit_id = p_limit and w.action_id = v_action and w.called_at is null
      order by w.limit_id, w.action_id, w.id limit greatest(0, greatest(1, v_free) - v_called)
    loop
      update pgfifo.shared_waits w set called_at = case when v_free > 0 then p_now else v_at end where w.limit_id = p_limit and w.lane_id = v_wait.lane_id;
      if v_free > 0 then
        insert into pgfifo.marks (action_id, id, lane_id) values (v_action, nextval('pgfifo.mark_ids'), v_wait.lane_id);
      else
        perform pgfifo._timer(v_wait.lane_id, v_at);
      end if;
    end loop;
    if v_free > 0 then
      perform pgfifo._wake(a.id, a.name) from pgfifo.actions a where a.id = v_action;
    end if;
  end loop;
end $$;

-- An attempt that drew from shared limits, or whose lane keeps a gap, has left its slot: give back, and leave a mark so
-- that somebody counts it, whether its own lane has more waiting or not. Once: what was given back is drawn no more.
-- The caller holds the lane's slot lock; nobody waits for a limit's lock here.
-- Of a batch, whoever goes last gives back; until then another member keeps what was drawn. p_with: those that go together.
create or replace function pgfifo._give_back(p_run pgfifo.runs, p_with bigint[] default '{}') returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_gap double precision;
begin
  update pgfifo.runs r set draws = null where r.id = p_run.id and r.draws is not null;
  if not found or (p_run.batch_no is not null and pgfifo._pass_on(p_run, p_with)) then
    return;
  end if;
  perform pg_current_xact_id();
  -- And a mark for whom each limit would call: whoever serves this action may be busy. Read without the limit's lock; one
  -- that begins to wait at this moment is seen by whoever comes for the first.
  insert into pgfifo.marks (action_id, id, lane_id)
  select w.action_id, nextval('pgfifo.mark_ids'), w.lane_id
  from unnest(p_run.draws) d(limit_id) cross join lateral pgfifo._first_waiting(d.limit_id) w;
  perform pgfifo._wake(a.id, a.name) from pgfifo.actions a
  where a.id in (select w.action_id from unnest(p_run.draws) d(limit_id) cross join lateral pgfifo._first_waiting(d.limit_id) w);
  insert into pgfifo.shared_returns (limit_id, id) select d.limit_id, nextval('pgfifo.mark_ids') from unnest(p_run.draws) d(limit_id)
  join pgfifo._shared_limits s on s.id = d.limit_id;
  select coalesce(l.gap, p.gap) into v_gap
  from pgfifo.lanes n join pgfifo._action_policies p on p.action_id = n.action_id left join pgfifo._lane_policies l on l.lane_id = n.id
  where n.id = p_run.lane_id;
  if v_gap > 0 then
    perform pgfifo._pace(p_run.lane_id, p_now => pgfifo._now(), p_end => true, p_keep => v_gap);
  end if;
  perform pgfifo._mark(p_run.lane_id);
end $$;

-- What is taken of each shared limit: as claims reckon it, and as the attempts say that drew from it.
create or replace function pgfifo._shared_counts() returns table (limit_id integer, name text, reckoned bigint, taken bigint)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select s.id, s.name, g.active - (select count(*) from pgfifo.shared_returns r where r.limit_id = s.id and r.id > g.returns_floor),
    (select count(*) from pgfifo.runs r where r.draws @> array[s.id])
  from pgfifo._shared_limits s
  cross join lateral (select g.* from pgfifo.shared_ledger g where g.limit_id = s.id order by g.limit_id desc, g.version desc limit 1) g
$$;

-- Count a shared limit anew, for check, and call whoever may go on now; false if there was nothing to mend. The caller holds
-- its lock since an earlier statement, so nobody takes of it or folds beside us. Who gives back at this moment does both in
-- one commit, the attempt and its return: one snapshot has seen both or neither.
create or replace function pgfifo._shared_recount(p_limit integer) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  with old as materialized (
    select g.*, c.taken + (select count(*) from pgfifo.shared_returns r where r.limit_id = p_limit) as counted
    from pgfifo._shared_counts() c
    cross join lateral (select g.* from pgfifo.shared_ledger g where g.limit_id = p_limit order by g.limit_id desc, g.version desc limit 1) g
    where c.limit_id = p_limit and c.reckoned <> c.taken),
  gone as (
    delete from pgfifo.shared_ledger g using old o where g.limit_id = o.limit_id and g.version = o.version)
  -- From the first return on: one may lie below the floor after a restore.
  insert into pgfifo.shared_ledger (limit_id, version, active, rate_at, last_start_at, returns_floor, changed_at)
  select o.limit_id, o.version + 1, o.counted, o.rate_at, o.last_start_at, 0, pgfifo._now() from old o;
  if not found then
    return false;
  end if;
  perform pgfifo._shared_fold(p_limit, null);
  perform pgfifo._call_waiting(p_limit, pgfifo._now());
  return true;
end $$;

-- A shared limit as its functions take and return it.
create or replace function pgfifo._shared_limit(p_id integer) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object('max_concurrent', s.max_concurrent, 'rate', s.rate, 'burst', s.burst, 'actions', to_jsonb(s.actions),
    'packs', to_jsonb(s.packs), 'everything', s.everything)
  from pgfifo.shared_limits s where s.name = (select n.name from pgfifo._shared_limits n where n.id = p_id)
$$;

-- The part of maintenance for shared limits: calls whoever may go on and was not called. Because what was given back was
-- counted by nobody, since the lane's action draws no more or nobody serves it; or because those who were called have not
-- come for a second. By try: whoever has a limit's lock does the same.
create or replace function pgfifo._shared_round(p_now timestamptz) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_limit integer;
begin
  for v_limit in
    select s.id from pgfifo._shared_limits s
    where exists (select from pgfifo.shared_waits w where w.limit_id = s.id and w.called_at is null)
    order by s.id
  loop
    if pg_try_advisory_xact_lock('pgfifo._shared_limits'::regclass::oid::integer, v_limit) then
      perform pgfifo._shared_fold(v_limit, null);
      perform pgfifo._call_waiting(v_limit, p_now);
    end if;
  end loop;
end $$;

-- What is given to a shared limit must be what one can be. p_path: where it stands in a document.
create or replace function pgfifo._check_shared_limit(p_name text, p_values jsonb, p_path text default null) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key text;
  v_value jsonb;
  v_rate double precision[];
  v_problem text;
begin
  if p_name is null or p_name !~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]*$' or octet_length(p_name) > 200 then
    raise exception using errcode = 'QF022', message = format('%s is no name for a shared limit', coalesce(quote_literal(left(p_name, 100)), 'null')),
      detail = json_build_object('name', 'p_name', 'value', left(p_name, 200))::text,
      hint = 'Use up to 200 letters, digits, and _ . : -, such as billing-api.';
  end if;
  if p_values is null or jsonb_typeof(p_values) <> 'object' then
    raise exception using errcode = 'QF022', message = 'the values of a shared limit are a JSON object, such as {"max_concurrent": 20, "packs": ["billing"]}',
      detail = json_build_object('name', 'p_values', 'value', p_values)::text, hint = 'Give attributes and their values.';
  end if;
  for v_key, v_value in select k.key, k.value from jsonb_each(p_values) k order by k.key collate "C" loop
    v_rate := case when v_key = 'rate' and jsonb_typeof(v_value) = 'string' then pgfifo._rate(v_value #>> '{}') end;
    v_problem := case
      when v_key in ('max_concurrent', 'burst') then
        case when v_value <> 'null' and (jsonb_typeof(v_value) <> 'number' or (v_value #>> '{}')::numeric not between 1 and 1000000
          or (v_value #>> '{}')::numeric <> trunc((v_value #>> '{}')::numeric)) then 'must be a whole number between 1 and 1000000' end
      when v_key = 'rate' then
        case when v_value <> 'null' and coalesce(v_rate[1] not between 1 and 1000000 or v_rate[2] not between 0.001 and 31536000, true)
          then 'must be starts per time, such as 100/s, 10/min or 5/2h: 1 to 1000000 in 1 ms to a year' end
      when v_key in ('actions', 'packs') then
        case when jsonb_typeof(v_value) <> 'array' then 'must be an array of names'
             when exists (select from jsonb_array_elements(v_value) e where jsonb_typeof(e) <> 'string') then 'must be an array of names' end
      when v_key = 'everything' then case when jsonb_typeof(v_value) <> 'boolean' then 'must be true or false' end
      else 'is no attribute of a shared limit' end;
    if v_problem is not null then
      raise exception using errcode = 'QF022', message = format('%s%s %s (given: %s)', p_path || ': ', v_key, v_problem, left(p_values ->> v_key, 100)),
        detail = json_build_object('name', v_key, 'value', v_value)::text,
        hint = 'Attributes: max_concurrent, rate, burst, actions, packs, everything.';
    end if;
    if v_key = 'packs' then
      perform pgfifo._pack(e) from jsonb_array_elements_text(v_value) e;
    end if;
  end loop;
end $$;

-- The shared limits that differ from what a document says: what differs, as it is and as it would be. With p_prune what the
-- document does not name says nothing any more, and limits that it does not name are dropped.
create or replace function pgfifo._limit_document(p_policies jsonb, p_prune boolean)
returns table (o_name text, o_dropped boolean, o_old jsonb, o_new jsonb, o_note text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_nothing constant jsonb := '{"max_concurrent": null, "rate": null, "burst": null, "actions": [], "packs": [], "everything": false}';
  v_limits constant jsonb := coalesce(p_policies -> 'limit', '{}');
  v_part jsonb;
  v_is jsonb;
  v_would jsonb;
begin
  perform pgfifo._document_part(v_limits, 'limit');
  for o_name, o_dropped in
    select n.name, n.dropped
    from (select k.key as name, false as dropped from jsonb_object_keys(v_limits) k(key)
          union all select s.name, true from pgfifo._shared_limits s where p_prune and not v_limits ? s.name) n
    order by n.name collate "C"
  loop
    v_part := v_limits -> o_name;
    v_is := (select pgfifo._shared_limit(s.id) from pgfifo._shared_limits s where s.name = o_name);
    if o_dropped then
      v_would := v_nothing;
      o_note := 'it is dropped';
    else
      perform pgfifo._document_part(v_part, 'limit.' || o_name);
      perform pgfifo._check_shared_limit(o_name, v_part, 'limit.' || o_name);
      v_would := case when p_prune then v_nothing else coalesce(v_is, v_nothing) end || v_part
        || case when v_part ? 'rate' then jsonb_build_object('rate', pgfifo._shown('rate', to_jsonb(pgfifo._rate(v_part ->> 'rate')))) else '{}' end;
      o_note := case when v_is is null then 'it is new' end;
      if v_would ->> 'max_concurrent' is null and v_would ->> 'rate' is null then
        raise exception using errcode = 'QF022', message = format('limit.%s would limit nothing', o_name),
          detail = json_build_object('name', 'max_concurrent', 'path', 'limit.' || o_name)::text, hint = 'Give it max_concurrent, a rate, or both.';
      end if;
    end if;
    -- Lists are sets.
    select jsonb_object_agg(k.key, coalesce(v_is, v_nothing) -> k.key), jsonb_object_agg(k.key, k.value) into o_old, o_new
    from jsonb_each(v_would) k cross join lateral (select coalesce(v_is, v_nothing) -> k.key as own) i
    where case when jsonb_typeof(k.value) = 'array' then not (k.value @> i.own and i.own @> k.value) else k.value <> i.own end;
    if o_new is not null then
      return next;
    end if;
  end loop;
end $$;
