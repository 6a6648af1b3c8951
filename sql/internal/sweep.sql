-- The net below the net: a slice of lanes per tick, looked at whether they have something to start and no mark. What it
-- finds is a bug somewhere else, so it is counted and shown. Due held, yielded and delayed ones without a timer are found the
-- same way. o_late: lanes with delayed ones that are long due, timer or not, at most 20.
-- It also removes lanes that have been idle for their lane_retention.
-- No nested loops where there is a choice: with a cold table's statistics each lane would walk all marks of its action.
create or replace function pgfifo._sweep(p_from bigint, p_slice integer, out o_to bigint, out o_found integer, out o_removed integer, out o_late bigint[])
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_nestloop = off
set jit = off
as $$
declare
  v_now timestamptz := pgfifo._now();
  v_lane record;
begin
  o_found := 0;
  o_removed := 0;
  select max(s.id) into o_to from (select l.id from pgfifo.lanes l where l.id > p_from order by l.id limit p_slice) s;
  if o_to is null then
    o_to := 0;
    return;
  end if;
  perform pg_current_xact_id();
  with looked_at as (
    select l.id, l.action_id, d.late, p.paused_at is not null or lp.paused_at is not null as paused,
      -- What has arrived and is not counted yet waits too: a lane that lost the mark of its first enqueue has nothing else.
      (g.waiting > 0 or exists (select from pgfifo.arrivals a where a.lane_id = l.id and a.id > g.mark_floor and a.n > 0))
        and g.running + g.held - g.riding < coalesce(lp.max_concurrent, p.max_concurrent)
        and g.changed_at not between v_now - interval '2 s' and v_now + interval '1 hour'
      or g.held + g.yielded > 0 and exists (
        select from pgfifo.runs r
        where r.lane_id = l.id and r.state in ('held', 'yielded') and r.due_at >= g.held_from and r.due_at < v_now - interval '2 s') as startable
    from pgfifo.lanes l
    join pgfifo._action_policies p on p.action_id = l.action_id
    cross join lateral (select * from pgfifo.ledger g where g.lane_id = l.id order by g.lane_id desc, g.version desc limit 1) g
    left join pgfifo._lane_policies lp on lp.lane_id = l.id
    cross join lateral (
      select exists (
        select from pgfifo._executions e
        where e.lane_id = l.id and e.ticket is null and e.run_at >= g.delayed_from and e.run_at < v_now - interval '2 s') as late) d
    where l.id > p_from and l.id <= o_to),
  slice as materialized (
    select s.* from looked_at s where s.late or (s.startable and not s.paused)),
  unmarked as (
    -- Marks may be many where work is plenty: one pass over those of the slice's actions, from where scans can find them.
    -- A timer, a change of limits or the end of an override that is overdue because nobody claims is no bug.
    select s.id, s.action_id from slice s
    where not s.paused and not exists (
        select from (select distinct x.action_id from slice x) a
        cross join lateral (select c.safe_mark from pgfifo.scans c where c.action_id = a.action_id order by c.action_id desc, c.version desc limit 1) c
        join pgfifo.marks m on m.action_id = a.action_id and m.id > c.safe_mark
        where m.lane_id = s.id)
      and not exists (
        select from (select distinct x.action_id from slice x) a
        cross join lateral (select c.safe_timer from pgfifo.scans c where c.action_id = a.action_id order by c.action_id desc, c.version desc limit 1) c
        join pgfifo.timers t on t.action_id = a.action_id and t.due_at >= c.safe_timer
        where t.lane_id = s.id)
      -- Nor is a lane that a shared limit keeps waiting.
      and not exists (select from pgfifo.shared_waits w where w.lane_id = s.id)
      and not exists (select from pgfifo.remarks r where r.action_id = s.action_id)
      and not exists (select from pgfifo._overrides o where o.until <= v_now)),
  marked as (
    insert into pgfifo.marks (action_id, id, lane_id) select u.action_id, nextval('pgfifo.mark_ids'), u.id from unmarked u returning 1)
  select (select count(*) from marked), array(select s.id from slice s where s.late limit 20) into o_found, o_late;

  for v_lane in
    select l.id, l.action_id from pgfifo.lanes l
    join pgfifo._action_policies p on p.action_id = l.action_id
    cross join lateral (select * from pgfifo.ledger g where g.lane_id = l.id order by g.lane_id desc, g.version desc limit 1) g
    left join pgfifo.policies lp on lp.scope = 'lane' and lp.lane_id = l.id
    where l.id > p_from and l.id <= o_to and lp.id is null and l.closed_at is null and g.running = 0 and g.held = 0 and g.yielded = 0
      and g.waiting = 0 and g.delayed = 0
      and extract(epoch from v_now - g.changed_at) > p.lane_retention
      and not exists (select from pgfifo.arrivals a where a.lane_id = l.id)
      and not exists (select from pgfifo._overrides o where o.target = 'lane:' || l.id::text)
      and not exists (select from pgfifo.paces x where x.lane_id = l.id and x.keep_until > v_now)
    -- Two locks each, in a lock table that is the whole cluster's: the rest is for another time.
    order by pgfifo._key(l.id) limit greatest(1, pgfifo.max_batch_lanes() / 2)
  loop
    o_removed := o_removed + pgfifo._remove_lane(v_lane.id, v_lane.action_id);
  end loop;
end $$;

-- Remove one idle lane, its totals going to the action in the same transaction. Both its locks by try, then look again:
-- an enqueue that is under way holds the enqueue lock; one that waits for it will find the lane gone and start over.
create or replace function pgfifo._remove_lane(p_lane_id bigint, p_action_id integer) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ledger pgfifo.ledger;
begin
  if not pg_try_advisory_xact_lock('pgfifo.lanes'::regclass::oid::integer, pgfifo._key(p_lane_id))
    or not pg_try_advisory_xact_lock('pgfifo._executions'::regclass::oid::integer, pgfifo._key(p_lane_id))
  then
    return 0;
  end if;
  select g.* into v_ledger from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1;
  if v_ledger.running + v_ledger.held + v_ledger.yielded + v_ledger.waiting + v_ledger.delayed <> 0
    or exists (select from pgfifo.arrivals a where a.lane_id = p_lane_id)
    or exists (select from pgfifo._executions e where e.lane_id = p_lane_id)
    or exists (select from pgfifo.policies p where p.scope = 'lane' and p.lane_id = p_lane_id)
    or exists (select from pgfifo._overrides o where o.target = 'lane:' || p_lane_id::text)
    or exists (select from pgfifo.paces p where p.lane_id = p_lane_id and p.keep_until > pgfifo._now())
  then
    return 0;
  end if;
  -- An open transaction that closes or opens the action has its row; maintenance waits for nobody.
  perform from pgfifo.actions a where a.id = p_action_id for no key update skip locked;
  if not found then
    return 0;
  end if;
  -- What happened here since the last minute was counted. (A lane that turns out to be closed below is counted early.)
  perform pgfifo._count_lanes(array[p_lane_id], pgfifo._minute(pgfifo._now()), pgfifo._now());
  delete from pgfifo.lanes l where l.id = p_lane_id and l.closed_at is null;
  if not found then
    return 0;
  end if;
  delete from pgfifo.ledger g where g.lane_id = p_lane_id;
  delete from pgfifo.paces p where p.lane_id = p_lane_id;
  delete from pgfifo._tallies p where p.lane_id = p_lane_id;
  update pgfifo.actions a set past_succeeded = a.past_succeeded + v_ledger.succeeded, past_failed = a.past_failed + v_ledger.failed,
    past_cancelled = a.past_cancelled + v_ledger.cancelled, past_expired = a.past_expired + v_ledger.expired,
    past_starts = a.past_starts + v_ledger.starts
  where a.id = p_action_id;
  return 1;
end $$;
