-- What wins over _action_policies in one lane: coalesce(lane.x, action.x), column by column. No row: nothing does.
-- In hot paths: left join lateral (select p.x from pgfifo._lane_policies p where p.lane_id = … offset 0) lane on true.
create or replace view pgfifo._lane_policies as
select p.lane_id,
  p.max_concurrent,
  p.max_queue_length,
  p.on_limit,
  p.rate,
  p.rate[1] as rate_n,
  p.rate[2] as rate_period,
  p.burst,
  p.spacing,
  p.gap,
  p.max_wait,
  p.timeout,
  p.kill_after,
  p.max_attempts,
  p.failure_mode,
  p.backoff,
  p.backoff_initial,
  p.backoff_factor,
  p.backoff_cap,
  p.backoff_jitter,
  p.on_exhausted,
  p.quota,
  p.paused_at,
  p.paused_by,
  p.paused_reason
from pgfifo.policies p
where p.scope = 'lane';
