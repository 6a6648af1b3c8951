-- What queue_stats says, of one snapshot, in less than half of its time where there are many lanes. Sums are made over whole tables;
-- lane by lane is done only what is special: the head of each line, and lanes with a policy of their own.
-- What has waited for longer than its max_wait counts as waiting until somebody writes its end down; with p_exact it does not, as in
-- queue_stats: then lane_stats is asked for the lanes in which executions expire, which costs as much where all of them do.
create or replace function pgfifo.overview(p_action text default null, p_exact boolean default false)
returns table (
  action text, queue_length bigint, active_count bigint, max_concurrent integer, oldest_enqueued_at timestamptz, running_count bigint,
  held_count bigint, delayed_count bigint, slots_taken bigint, slots_total bigint, lanes bigint, paused boolean, paused_reason text,
  paused_lanes bigint, closed boolean, total_enqueued bigint, total_completed bigint, total_started bigint, total_succeeded bigint, total_failed bigint,
  total_cancelled bigint, total_expired bigint, last_updated timestamptz, at timestamptz)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_action_id integer := case when p_action is not null then pgfifo._known_action(p_action) end;
  v_expires boolean := p_exact is true and exists (select from pgfifo.policies p where p.max_wait < 'infinity');
begin
  return query
  with expiring as materialized (
    select x.* from pgfifo._expiring_lanes(v_action_id) x where v_expires),
  expired as (
    select x.action_id, sum(x.total_expired) as n, min(x.oldest_enqueued_at) as oldest from expiring x group by x.action_id),
  sums as (
    select l.action_id, count(*) as lanes, sum(g.waiting) as waiting, sum(g.running) as running, sum(g.held) as held, sum(g.riding) as riding,
      sum(g.delayed + g.yielded) as delayed, sum(g.enqueued) as enqueued, sum(g.starts) as starts, sum(g.succeeded) as succeeded, sum(g.failed) as failed,
      sum(g.cancelled) as cancelled, sum(g.expired) as expired, sum(g.expired) filter (where x.expires) as expired_there, max(g.changed_at) as changed_at,
      min(h.at) as oldest
    from pgfifo.lanes l
    join pgfifo.ledger g on g.lane_id = l.id
    -- No join: with the statistics of an empty table it would be a walk through all of them for each lane.
    cross join lateral (select v_expires and l.id in (select x.lane_id from expiring x) as expires) x
    cross join lateral (
      select case when not x.expires then least(
        (select e.enqueued_at from pgfifo._executions e where e.lane_id = l.id and e.ticket > g.consumed order by e.lane_id, e.ticket limit 1),
        case when g.returned > 0 then
          (select min(e.enqueued_at) from pgfifo.runs r join pgfifo._executions e on e.id = r.id where r.lane_id = l.id and r.state = 'returned') end) end as at) h
    where v_action_id is null or l.action_id = v_action_id
    group by l.action_id),
  arrived as (
    select l.action_id, sum(r.n) as n, sum(r.delayed) as delayed from pgfifo.arrivals r join pgfifo.lanes l on l.id = r.lane_id
    where v_action_id is null or l.action_id = v_action_id
    group by l.action_id),
  own as (
    select l.action_id, sum(coalesce(lp.max_concurrent - p.max_concurrent, 0)) as slots, count(lp.paused_at) as paused
    from (
      select o.lane_id from pgfifo.policies o where o.scope = 'lane'
      union select substr(o.target, 6)::bigint from pgfifo._overrides o where o.target like 'lane:%') i
    cross join lateral (select l.id, l.action_id from pgfifo.lanes l where l.id = i.lane_id offset 0) l
    join pgfifo._action_policies p on p.action_id = l.action_id
    cross join lateral (select lp.max_concurrent, lp.paused_at from pgfifo._lane_policies lp where lp.lane_id = l.id offset 0) lp
    where v_action_id is null or l.action_id = v_action_id
    group by l.action_id)
  select a.name, c.waiting, coalesce(s.running + s.held, 0)::bigint, p.max_concurrent, case when c.waiting > 0 then least(s.oldest, e.oldest) end,
    coalesce(s.running, 0)::bigint, coalesce(s.held, 0)::bigint, (coalesce(s.delayed, 0) + coalesce(n.delayed, 0))::bigint,
    coalesce(s.running + s.held - s.riding, 0)::bigint, (coalesce(s.lanes, 0) * p.max_concurrent + coalesce(o.slots, 0))::bigint,
    coalesce(s.lanes, 0)::bigint, p.paused_at is not null, p.paused_reason,
    case when p.paused_at is not null then coalesce(s.lanes, 0) else coalesce(o.paused, 0) end::bigint, a.closed_at is not null,
    (coalesce(s.enqueued, 0) + coalesce(n.n + n.delayed, 0) + a.past_succeeded + a.past_failed + a.past_cancelled + a.past_expired)::bigint,
    c.succeeded + c.failed + c.cancelled + c.expired, (coalesce(s.starts, 0) + a.past_starts)::bigint, c.succeeded, c.failed, c.cancelled, c.expired,
    s.changed_at, pgfifo._now()
  from pgfifo.actions a
  join pgfifo._action_policies p on p.action_id = a.id
  left join sums s on s.action_id = a.id
  left join arrived n on n.action_id = a.id
  left join own o on o.action_id = a.id
  left join expired e on e.action_id = a.id
  -- How many of those that the ledgers have as waiting have expired.
  cross join lateral (select coalesce(e.n - s.expired_there, 0) as n) x
  cross join lateral (
    select (coalesce(s.waiting, 0) + coalesce(n.n, 0) - x.n)::bigint as waiting, (coalesce(s.succeeded, 0) + a.past_succeeded)::bigint as succeeded,
      (coalesce(s.failed, 0) + a.past_failed)::bigint as failed, (coalesce(s.cancelled, 0) + a.past_cancelled)::bigint as cancelled,
      (coalesce(s.expired, 0) + x.n + a.past_expired)::bigint as expired) c
  where v_action_id is null or a.id = v_action_id
  order by a.name;
end $$;
comment on function pgfifo.overview is 'State and totals of each action, or of one, as queue_stats has them: quicker where there are many lanes.';
