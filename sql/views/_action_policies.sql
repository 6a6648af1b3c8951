-- What is in force for each action, lane overrides aside, with the built-in defaults at the end of each chain.
create or replace view pgfifo._action_policies as
select a.id as action_id,
  a.name as action,
  coalesce(pa.group_by, pd.group_by, '{}') as group_by,
  coalesce(pa.max_concurrent, pd.max_concurrent, pp.max_concurrent, pe.max_concurrent, 1) as max_concurrent,
  coalesce(pa.ordering, pd.ordering, pp.ordering, pe.ordering, 'strict') as ordering,
  coalesce(pa.max_queue_length, pd.max_queue_length, pp.max_queue_length, pe.max_queue_length, 'infinity') as max_queue_length,
  coalesce(pa.max_attempts, pd.max_attempts, pp.max_attempts, pe.max_attempts, 5) as max_attempts,
  coalesce(pa.failure_mode, pd.failure_mode, pp.failure_mode, pe.failure_mode, 'hold') as failure_mode,
  coalesce(pa.backoff, pd.backoff, pp.backoff, pe.backoff, 'exponential') as backoff,
  coalesce(pa.backoff_initial, pd.backoff_initial, pp.backoff_initial, pe.backoff_initial, 1) as backoff_initial,
  coalesce(pa.backoff_factor, pd.backoff_factor, pp.backoff_factor, pe.backoff_factor, 2) as backoff_factor,
  coalesce(pa.backoff_cap, pd.backoff_cap, pp.backoff_cap, pe.backoff_cap, 300) as backoff_cap,
  coalesce(pa.backoff_jitter, pd.backoff_jitter, pp.backoff_jitter, pe.backoff_jitter, 0.1) as backoff_jitter,
  coalesce(pa.on_exhausted, pd.on_exhausted, pp.on_exhausted, pe.on_exhausted, 'continue') as on_exhausted,
  coalesce(pa.retention, pd.retention, pp.retention, pe.retention, 604800) as retention,
  coalesce(pa.lane_retention, pd.lane_retention, pp.lane_retention, pe.lane_retention, 86400) as lane_retention,
  coalesce(pa.max_payload, pd.max_payload, pp.max_payload, pe.max_payload, 1048576) as max_payload,
  pa.paused_at as paused_at,
  pa.paused_by as paused_by,
  pa.paused_reason as paused_reason
from pgfifo.actions a
left join pgfifo.policies pa on pa.scope = 'action' and pa.action_id = a.id
left join pgfifo.policies pd on pd.scope = 'declared' and pd.action_id = a.id
left join pgfifo.policies pp on pp.scope = 'pack' and pp.pack = a.pack
left join pgfifo.policies pe on pe.scope = 'everything';
