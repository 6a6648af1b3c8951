-- Every number comes from the lane's newest ledger version (the only one a snapshot sees) and its unfolded arrivals.
create or replace view pgfifo.lane_stats as
select a.name as action,
  l.group_text,
  (g.waiting + coalesce(n.n, 0) - x.n)::bigint as queue_length,
  (g.running + g.held)::bigint as active_count,
  coalesce(lp.max_concurrent, p.max_concurrent) as max_concurrent,
  case when g.waiting + coalesce(n.n, 0) > x.n then least(
    (select e.enqueued_at from pgfifo._executions e where e.lane_id = l.id and e.ticket > g.consumed and (w.before is null or coalesce(e.joined_at, e.enqueued_at) > w.before)
     order by e.lane_id, e.ticket limit 1),
    case when g.returned > 0 then
      (select min(e.enqueued_at) from pgfifo.runs r join pgfifo._executions e on e.id = r.id where r.lane_id = l.id and r.state = 'returned'
         and (w.before is null or r.attempt > 0 or coalesce(e.joined_at, e.enqueued_at) > w.before)) end)
  end as oldest_enqueued_at,
  (g.enqueued + coalesce(n.n + n.delayed, 0))::bigint as total_enqueued,
  (g.succeeded + g.failed + g.cancelled + g.expired + x.n)::bigint as total_completed,
  g.changed_at as last_updated,
  g.running::bigint as running_count,
  g.held::bigint as held_count,
  (g.delayed + g.yielded + coalesce(n.delayed, 0))::bigint as delayed_count,
  g.succeeded as total_succeeded,
  g.failed as total_failed,
  g.cancelled as total_cancelled,
  g.expired + x.n as total_expired,
  lp.paused_at is not null or p.paused_at is not null as paused,
  coalesce(lp.paused_reason, p.paused_reason) as paused_reason,
  l.closed_at is not null or a.closed_at is not null as closed,
  l.id as lane_id,
  (g.running + g.held - g.riding)::bigint as slots_taken
from pgfifo.lanes l
join pgfifo.actions a on a.id = l.action_id
join pgfifo._action_policies p on p.action_id = l.action_id
join pgfifo.ledger g on g.lane_id = l.id
left join pgfifo._lane_policies lp on lp.lane_id = l.id
left join lateral (select sum(r.n)::bigint as n, sum(r.delayed)::bigint as delayed from pgfifo.arrivals r where r.lane_id = l.id) n on true
cross join pgfifo.installation i
-- What has joined the line by then, and was never started, has expired, though nobody may have counted it yet: see _expire.
-- The same sum as in _count_expired, spelled out here: who may read this view need not be allowed to call that.
left join pgfifo._max_waits m on m.lane_id = l.id
cross join lateral (select statement_timestamp() + i.clock_offset - m.max_wait as before) w
cross join lateral (
  select case when w.before is null then 0 else
    (select count(*) from pgfifo._executions e where e.lane_id = l.id and e.ticket > g.consumed and coalesce(e.joined_at, e.enqueued_at) <= w.before
       and e.ticket < coalesce(
      (select f.ticket from pgfifo._executions f where f.lane_id = l.id and f.ticket > g.consumed and coalesce(f.joined_at, f.enqueued_at) > w.before
         and f.ticket >= f.id order by f.lane_id, f.ticket limit 1), 9223372036854775807))
    + (select count(*) from pgfifo.runs r join pgfifo._executions e on e.id = r.id
       where g.returned > 0 and r.lane_id = l.id and r.state = 'returned' and r.ticket >= g.returned_from and r.attempt = 0
         and coalesce(e.joined_at, e.enqueued_at) <= w.before)
    + (select count(*) from pgfifo._executions e
       where e.lane_id = l.id and e.ticket <= g.consumed and coalesce(e.joined_at, e.enqueued_at) <= w.before
         and e.ticket >= (select min(a.first_ticket) from pgfifo.arrivals a where a.lane_id = l.id and a.id > g.mark_floor)
         and not exists (select from pgfifo.runs r where r.id = e.id))
  end as n offset 0) x;
comment on view pgfifo.lane_stats is 'State and totals of each lane, true at every instant.';
comment on column pgfifo.lane_stats.action is 'The action.';
comment on column pgfifo.lane_stats.group_text is 'The group as canonical JSON; empty where the action has none.';
comment on column pgfifo.lane_stats.queue_length is 'How many are waiting.';
comment on column pgfifo.lane_stats.active_count is 'How many are active: running and held. Each has a slot, but a batch has one (slots_taken).';
comment on column pgfifo.lane_stats.max_concurrent is 'How many slots the lane has.';
comment on column pgfifo.lane_stats.oldest_enqueued_at is 'When the one that has waited longest was enqueued; null when none waits.';
comment on column pgfifo.lane_stats.total_enqueued is 'Enqueued since the beginning: completed, waiting, active and delayed ones.';
comment on column pgfifo.lane_stats.total_completed is 'Finished since the beginning, with whatever outcome.';
comment on column pgfifo.lane_stats.last_updated is 'When the numbers last changed, enqueues that are not counted yet aside.';
comment on column pgfifo.lane_stats.running_count is 'How many a worker has.';
comment on column pgfifo.lane_stats.held_count is 'How many keep their slot through a backoff.';
comment on column pgfifo.lane_stats.delayed_count is 'How many are not in the line yet.';
comment on column pgfifo.lane_stats.total_succeeded is 'Finished as succeeded since the beginning.';
comment on column pgfifo.lane_stats.total_failed is 'Finished as failed since the beginning.';
comment on column pgfifo.lane_stats.total_cancelled is 'Finished as cancelled since the beginning.';
comment on column pgfifo.lane_stats.total_expired is 'Finished as expired since the beginning.';
comment on column pgfifo.lane_stats.paused is 'Whether the lane or its action is paused.';
comment on column pgfifo.lane_stats.paused_reason is 'Why, as whoever paused it said, or which execution failed for good (on_exhausted).';
comment on column pgfifo.lane_stats.closed is 'Whether the lane or its action takes no enqueues.';
comment on column pgfifo.lane_stats.lane_id is 'Internal number of the lane; a lane that was removed comes back under another one.';
comment on column pgfifo.lane_stats.slots_taken is 'How many of its slots are taken: as active_count, but a batch has one.';
