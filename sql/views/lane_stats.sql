-- Every number comes from the lane's newest ledger version (the only one a snapshot sees) and its unfolded arrivals.
create or replace view pgfifo.lane_stats as
select a.name as action,
  l.group_text,
  (g.waiting + coalesce(n.n, 0))::bigint as queue_length,
  (g.running + g.held)::bigint as active_count,
  coalesce(lp.max_concurrent, p.max_concurrent) as max_concurrent,
  case when g.waiting + coalesce(n.n, 0) > 0 then least(
    (select e.enqueued_at from pgfifo._executions e where e.lane_id = l.id and e.ticket > g.consumed order by e.lane_id, e.ticket limit 1),
    case when g.returned > 0 then
      (select min(e.enqueued_at) from pgfifo.runs r join pgfifo._executions e on e.id = r.id where r.lane_id = l.id and r.state = 'returned') end)
  end as oldest_enqueued_at,
  (g.enqueued + coalesce(n.n, 0))::bigint as total_enqueued,
  (g.succeeded + g.failed + g.cancelled + g.expired)::bigint as total_completed,
  g.changed_at as last_updated,
  g.running::bigint as running_count,
  g.held::bigint as held_count,
  g.delayed::bigint as delayed_count,
  g.succeeded as total_succeeded,
  g.failed as total_failed,
  g.cancelled as total_cancelled,
  g.expired as total_expired,
  lp.paused_at is not null or p.paused_at is not null as paused,
  l.id as lane_id
from pgfifo.lanes l
join pgfifo.actions a on a.id = l.action_id
join pgfifo._action_policies p on p.action_id = l.action_id
join pgfifo.ledger g on g.lane_id = l.id
left join pgfifo.policies lp on lp.scope = 'lane' and lp.lane_id = l.id
left join lateral (select sum(r.n)::bigint as n from pgfifo.arrivals r where r.lane_id = l.id) n on true;
comment on view pgfifo.lane_stats is 'State and totals of each lane, true at every instant.';
