-- What is in force for each action, lanes aside, with the built-in defaults at the end of each chain. A lane's own values
-- win over these: coalesce(lane.x, action.x), where lane is its row of _lane_policies.
-- rate_n starts in rate_period seconds; rate_n is infinite where there is no rate. burst is null where nobody sets one:
-- then it is the rate_n that is in force for the lane. Quotas are not inherited; each scope's own holds at its scope.
create or replace view pgfifo._action_policies as
select a.id as action_id,
  a.name as action,
  coalesce(pa.group_by, pd.group_by, b.group_by) as group_by,
  coalesce(pa.max_concurrent, pd.max_concurrent, pp.max_concurrent, pe.max_concurrent, b.max_concurrent) as max_concurrent,
  coalesce(pa.ordering, pd.ordering, pp.ordering, pe.ordering, b.ordering) as ordering,
  coalesce(pa.max_queue_length, pd.max_queue_length, pp.max_queue_length, pe.max_queue_length, b.max_queue_length) as max_queue_length,
  coalesce(pa.max_action_queue_length, pd.max_action_queue_length, pp.max_action_queue_length, pe.max_action_queue_length, b.max_action_queue_length) as max_action_queue_length,
  coalesce(pa.on_limit, pd.on_limit, pp.on_limit, pe.on_limit, b.on_limit) as on_limit,
  coalesce(pa.rate, pd.rate, pp.rate, pe.rate, b.rate) as rate,
  (coalesce(pa.rate, pd.rate, pp.rate, pe.rate, b.rate))[1] as rate_n,
  (coalesce(pa.rate, pd.rate, pp.rate, pe.rate, b.rate))[2] as rate_period,
  coalesce(pa.burst, pd.burst, pp.burst, pe.burst, b.burst) as burst,
  coalesce(pa.spacing, pd.spacing, pp.spacing, pe.spacing, b.spacing) as spacing,
  coalesce(pa.gap, pd.gap, pp.gap, pe.gap, b.gap) as gap,
  coalesce(pa.max_wait, pd.max_wait, pp.max_wait, pe.max_wait, b.max_wait) as max_wait,
  coalesce(pa.timeout, pd.timeout, pp.timeout, pe.timeout, b.timeout) as timeout,
  coalesce(pa.kill_after, pd.kill_after, pp.kill_after, pe.kill_after, b.kill_after) as kill_after,
  coalesce(pa.max_attempts, pd.max_attempts, pp.max_attempts, pe.max_attempts, b.max_attempts) as max_attempts,
  coalesce(pa.failure_mode, pd.failure_mode, pp.failure_mode, pe.failure_mode, b.failure_mode) as failure_mode,
  coalesce(pa.backoff, pd.backoff, pp.backoff, pe.backoff, b.backoff) as backoff,
  coalesce(pa.backoff_initial, pd.backoff_initial, pp.backoff_initial, pe.backoff_initial, b.backoff_initial) as backoff_initial,
  coalesce(pa.backoff_factor, pd.backoff_factor, pp.backoff_factor, pe.backoff_factor, b.backoff_factor) as backoff_factor,
  coalesce(pa.backoff_cap, pd.backoff_cap, pp.backoff_cap, pe.backoff_cap, b.backoff_cap) as backoff_cap,
  coalesce(pa.backoff_jitter, pd.backoff_jitter, pp.backoff_jitter, pe.backoff_jitter, b.backoff_jitter) as backoff_jitter,
  coalesce(pa.on_exhausted, pd.on_exhausted, pp.on_exhausted, pe.on_exhausted, b.on_exhausted) as on_exhausted,
  coalesce(pa.retention, pd.retention, pp.retention, pe.retention, b.retention) as retention,
  coalesce(pa.lane_retention, pd.lane_retention, pp.lane_retention, pe.lane_retention, b.lane_retention) as lane_retention,
  coalesce(pa.max_payload, pd.max_payload, pp.max_payload, pe.max_payload, b.max_payload) as max_payload,
  coalesce(pe.declared_actions_only, b.declared_actions_only) as declared_actions_only,
  coalesce(pa.quota, pd.quota) as action_quota,
  pp.quota as pack_quota,
  pe.quota as everything_quota,
  a.pack as pack,
  pa.paused_at as paused_at,
  pa.paused_by as paused_by,
  pa.paused_reason as paused_reason,
  a.closed_at as closed_at
from pgfifo.actions a
cross join pgfifo._default_policy b
left join pgfifo.policies pa on pa.scope = 'action' and pa.action_id = a.id
left join pgfifo.policies pd on pd.scope = 'declared' and pd.action_id = a.id
left join pgfifo.policies pp on pp.scope = 'pack' and pp.pack = a.pack
left join pgfifo.policies pe on pe.scope = 'everything';
