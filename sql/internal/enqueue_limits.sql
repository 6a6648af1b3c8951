-- Limits of enqueues beyond one lane's length: the length of an action, quotas, and on_limit. Decided in _enqueue_batch, where
-- those who set none do not come by; under locks that are held to the commit, in statements that begin after them.

-- The enqueue locks of the scopes that limit their enqueues as a whole: before those of lanes, and from wide to narrow, so
-- that transactions which enqueue to several lanes of one action queue up here and not behind each other's lanes.
create or replace function pgfifo._lock_scopes(p_everything boolean, p_pack text, p_action_id integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c_class constant integer := 'pgfifo.tallies'::regclass::oid::integer;
begin
  if p_everything then
    perform pg_advisory_xact_lock(c_class, 0);
  end if;
  if p_pack is not null then
    perform pg_advisory_xact_lock(c_class, -1 - (hashtext(p_pack) & 1073741823));
  end if;
  if p_action_id is not null then
    perform pg_advisory_xact_lock(c_class, p_action_id);
  end if;
end $$;

-- The newest version of a count; all null when there is none.
create or replace function pgfifo._tally(p_target text) returns pgfifo.tallies
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select t.* from pgfifo.tallies t where t.target = p_target order by t.target desc, t.version desc limit 1 $$;

-- Append the next version. An older snapshot than the last one's commit meets its row: then this is 40001, and the whole
-- transaction has to be run again.
create or replace function pgfifo._keep_tally(p_target text, p_before pgfifo.tallies, p_n bigint, p_since timestamptz, p_lanes integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from pgfifo.tallies t where t.target = p_target and t.version = p_before.version;
  if p_before.version is null or found then
    insert into pgfifo.tallies (target, version, n, since, lanes) values (p_target, coalesce(p_before.version, 0) + 1, p_n, p_since, p_lanes)
      on conflict (target, version) do nothing;
  end if;
  if not found then
    raise exception using errcode = 'XX000', message = format('the count of %s changed under its lock', p_target);
  end if;
end $$;

-- Which item of a batch (from 0) is the p_nth of the new ones: of a group's where that is given, and of those that join now
-- where p_now. No places: all are new, in one lane.
create or replace function pgfifo._nth_place(p_places text[], p_run_ats timestamptz[], p_group text, p_now boolean, p_nth bigint) returns integer
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case when p_places is null then (p_nth - 1)::integer else (
    select p.n::integer - 1
    from (select u.n, row_number() over (order by u.n) as r from unnest(p_places, p_run_ats) with ordinality u(grp, run_at, n)
          where u.grp is not null and (p_group is null or u.grp = p_group) and not (p_now and u.run_at is not null)) p
    where p.r = p_nth) end
$$;

-- How many wait in all lanes of an action: what max_action_queue_length is about. Under the action's lock of tallies, so all
-- enqueues that are counted by it have committed and are seen; claims take away meanwhile.
-- What waits is what the lanes' ledgers say, with what is not folded yet, in one snapshot. With more than a hundred lanes that is
-- counted only when the last time was more than 20 µs a lane ago, a tenth of the time at most; in between, what was enqueued since
-- is added, and what has left since is not noticed yet.
create or replace function pgfifo._action_length(p_action_id integer, out o_before pgfifo.tallies, out o_n bigint, out o_since timestamptz, out o_lanes integer)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pgfifo._now();
begin
  o_before := pgfifo._tally('length action:' || p_action_id);
  o_n := o_before.n;
  o_since := o_before.since;
  o_lanes := o_before.lanes;
  if o_before.version is null or o_lanes <= 100 or v_now - o_since not between interval '0' and o_lanes * interval '20 us' then
    select coalesce(sum(g.waiting + a.n - x.n), 0), count(*) into o_n, o_lanes
    from pgfifo.lanes l
    cross join lateral (select g.waiting, g.mark_floor from pgfifo.ledger g where g.lane_id = l.id order by g.lane_id desc, g.version desc limit 1) g
    cross join lateral (select coalesce(sum(a.n), 0) as n from pgfifo.arrivals a where a.lane_id = l.id and a.id > g.mark_floor) a
    -- What has expired does not count, whether its outcome is written or not.
    cross join lateral (
      select case when g.waiting + a.n > 0 and (select exists (select from pgfifo.policies p where p.max_wait < 'infinity'))
             then coalesce((select pgfifo._count_expired(l.id, v_now - w.max_wait) from pgfifo._max_waits w where w.lane_id = l.id), 0) else 0 end as n) x
    where l.action_id = p_action_id;
    o_since := v_now;
  end if;
end $$;

-- max_action_queue_length: refuse what does not fit, note what comes. Under the action's lock of tallies.
create or replace function pgfifo._use_length(p_action_id integer, p_action text, p_limit double precision, p_asked bigint, p_places text[],
  p_run_ats timestamptz[], p_one boolean) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_length record := pgfifo._action_length(p_action_id);
  v_n bigint := v_length.o_n;
  -- What has left since an old snapshot was taken is not seen there: then it is to be tried again.
  v_code text := case when current_setting('transaction_isolation') in ('read committed', 'read uncommitted') then 'QF001' else '40001' end;
begin
  -- Delayed ones are let in, also where more wait than may.
  if p_asked > 0 and v_n + p_asked > p_limit then
    raise exception using errcode = v_code,
      message = format('%s is full: %s waiting in all its lanes, at most %s allowed%s', p_action, pgfifo._number(v_n), pgfifo._number(p_limit::numeric),
        case when p_asked > 1 then format(', and %s were to come', pgfifo._number(p_asked)) else '' end),
      detail = json_build_object('action', p_action, 'group', null, 'limit', p_limit, 'current', v_n, 'asked', p_asked,
        'index', case when not p_one then pgfifo._nth_place(p_places, p_run_ats, null, true, greatest(0, p_limit - v_n)::bigint + 1) end)::text,
      hint = 'Nothing was enqueued. Try again later, run more workers, or raise max_action_queue_length.';
  end if;
  perform pgfifo._keep_tally('length action:' || p_action_id, v_length.o_before, v_n + p_asked, v_length.o_since, v_length.o_lanes);
end $$;

-- When the calendar period of a quota began that this moment is in, and when it ends: in its time zone, so that a day may
-- have 23 hours.
create or replace function pgfifo._period(p_quota text[], p_at timestamptz, out o_from timestamptz, out o_to timestamptz) returns record
language sql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select date_trunc(p_quota[2], p_at at time zone p_quota[3]) at time zone p_quota[3],
    (date_trunc(p_quota[2], p_at at time zone p_quota[3]) + ('1 ' || p_quota[2])::interval) at time zone p_quota[3]
$$;

-- How much of a scope's quota is used, since when it counts, and when it begins again. Counted from when it is set; a clock that
-- is set back goes on in the period that it had come to. Under the scope's lock of tallies, or, for a lane's, under its enqueue lock.
create or replace function pgfifo._quota_used(p_target text, p_quota text[], out o_before pgfifo.tallies, out o_n bigint, out o_since timestamptz,
  out o_lanes integer, out o_resets_at timestamptz)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_period record;
begin
  o_before := pgfifo._tally('quota ' || p_target);
  v_period := pgfifo._period(p_quota, greatest(pgfifo._now(), o_before.since));
  o_n := case when o_before.since >= v_period.o_from then o_before.n else 0 end;
  o_since := greatest(v_period.o_from, o_before.since);
  o_resets_at := v_period.o_to;
end $$;

-- A quota of one scope: refuse what does not fit into what is left of it, note what comes. Under the same locks. p_group: the
-- lane's group, where it is a lane's quota.
create or replace function pgfifo._use_quota(p_target text, p_quota text[], p_asked bigint, p_action text, p_group text, p_places text[], p_one boolean)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_limit double precision := p_quota[1]::double precision;
  v_quota record := pgfifo._quota_used(p_target, p_quota);
  v_used bigint := v_quota.o_n;
begin
  if v_used + p_asked > v_limit then
    raise exception using errcode = 'QF004',
      message = format('the quota of %s is used up: %s of %s enqueues this %s%s; it begins again at %s',
        case when p_group is not null then p_action || coalesce(nullif(' ' || pgfifo.format_group(p_group), ' '), '') when p_target like 'action:%' then p_action
             when p_target like 'pack:%' then 'pack ' || substr(p_target, 6) else p_target end,
        pgfifo._number(v_used), pgfifo._number(v_limit::numeric), p_quota[2],
        case when p_asked > 1 then format(', and %s were to come', pgfifo._number(p_asked)) else '' end,
        to_char(v_quota.o_resets_at at time zone p_quota[3], 'YYYY-MM-DD HH24:MI ') || p_quota[3]),
      detail = json_build_object('action', p_action, 'group', p_group, 'scope', split_part(p_target, ':', 1), 'limit', v_limit, 'current', v_used,
        'asked', p_asked, 'resets_at', v_quota.o_resets_at,
        'index', case when not p_one then pgfifo._nth_place(p_places, null, p_group, false, greatest(0, v_limit - v_used)::bigint + 1) end)::text,
      hint = 'Nothing was enqueued. Wait until it begins again, or raise the quota.';
  end if;
  perform pgfifo._keep_tally('quota ' || p_target, v_quota.o_before, v_used + p_asked, v_quota.o_since, null);
end $$;

-- How many executions that join a lane's line now could start at once, and what keeps the next one from it: for
-- on_limit = 'cancel'. The caller holds the lane's enqueue lock exclusively, in relaxed lanes too, since an earlier statement: so
-- nobody joins beside it, and claims only turn waiting ones into active ones, which changes nothing here. Hence one
-- statement: active, waiting and arrivals in one snapshot. What waits already comes first, also where a rate or a
-- shared limit allows some starts; what lanes beside it take of a shared limit before these are started nobody knows.
-- o_why: {"which", "limit", "current"}, and "until" and "name" where there is a time or a shared limit.
create or replace function pgfifo._could_start(p_action_id integer, p_lane_id bigint, out o_free bigint, out o_why jsonb) returns record
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_state record;
  v_weighed record;
  v_reason jsonb;
begin
  select coalesce(lp.max_concurrent, p.max_concurrent) as most, g.running + g.held - g.riding as active, (select l.o_length from pgfifo._length(p_lane_id) l) as waiting,
      coalesce(p.paused_at, lp.paused_at) is not null as paused, coalesce(lp.rate_n, p.rate_n) as rate_n, coalesce(lp.burst, p.burst) as burst,
      coalesce(lp.spacing, p.spacing) as spacing
    into strict v_state
  from pgfifo._action_policies p
  left join pgfifo._lane_policies lp on lp.lane_id = p_lane_id
  cross join lateral (select g.running, g.held, g.riding from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1) g
  where p.action_id = p_action_id;
  if v_state.paused then
    o_free := 0;
    o_why := '{"which": "paused"}';
    return;
  end if;
  o_free := greatest(0, v_state.most - v_state.active - v_state.waiting);
  o_why := jsonb_build_object('which', 'max_concurrent', 'limit', v_state.most, 'current', v_state.active + v_state.waiting);
  v_weighed := pgfifo._weigh(p_lane_id, pgfifo._now());
  if v_weighed.o_n - v_state.waiting < o_free then
    o_free := greatest(0, v_weighed.o_n - v_state.waiting);
    v_reason := v_weighed.o_why -> 0;
    o_why := jsonb_strip_nulls(jsonb_build_object(
      -- Nothing is in the way yet where some starts are allowed; then those that wait will use them up.
      'which', coalesce(v_reason ->> 'reason', case when v_state.spacing > 0 then 'spacing' when v_state.rate_n < 'infinity' then 'rate' else 'shared_slots' end),
      'limit', coalesce(v_reason -> 'limit', to_jsonb(case when v_state.spacing > 0 then 1 else least(v_state.burst, nullif(v_state.rate_n, 'infinity')) end)),
      'current', v_reason -> 'current', 'until', v_reason -> 'until', 'name', v_reason -> 'name'));
  end if;
end $$;

create or replace function pgfifo._refuse_start(p_action text, p_group text, p_why jsonb, p_index integer) returns void
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_which text := p_why ->> 'which';
  v_code text := case when v_which in ('rate', 'spacing', 'gap', 'shared_rate') then 'QF003' else 'QF002' end;
begin
  raise exception using errcode = v_code,
    message = p_action || coalesce(nullif(' ' || pgfifo.format_group(p_group), ' '), '') || ' could not start at once: ' || case v_which
      when 'paused' then 'it is paused'
      when 'max_concurrent' then format('max_concurrent is %s, and %s already run or wait', pgfifo._number((p_why -> 'limit')::numeric), pgfifo._number((p_why -> 'current')::numeric))
      when 'shared_slots' then coalesce('shared limit ' || (p_why ->> 'name'), 'a shared limit') || ' has no slot left'
      when 'shared_rate' then format('the rate of shared limit %s is used up', p_why ->> 'name')
      when 'shared_turn' then format('others wait for shared limit %s', p_why ->> 'name')
      when 'rate' then 'its rate is used up'
      else 'its ' || v_which || ' is not over' end,
    detail = (jsonb_build_object('action', p_action, 'group', p_group, 'index', p_index) || p_why)::text,
    hint = 'Nothing was enqueued, as on_limit = ''cancel'' says. Try again later, or let it wait: on_limit = ''enqueue''.';
end $$;
