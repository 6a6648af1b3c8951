-- What is in force for each action, lanes aside: overrides that have not ended, then the scopes, then the built-in defaults.
-- A lane's own values win over these: coalesce(lane.x, action.x), where lane is its row of _lane_policies.
-- rate_n starts in rate_period seconds; rate_n is infinite where there is no rate. burst is null where nobody sets one:
-- then it is the rate_n that is in force for the lane. Quotas are not inherited; each scope's own holds at its scope.
-- Overrides end by the clock. While there are none, nothing but that is asked of them, once in each statement.
create or replace view pgfifo._action_policies as
select a.id as action_id,
  a.name as action,
  coalesce(pa.group_by, pd.group_by, b.group_by) as group_by,
  coalesce((o.v ->> 'max_concurrent')::integer, pa.max_concurrent, pd.max_concurrent, pp.max_concurrent, pe.max_concurrent, b.max_concurrent) as max_concurrent,
  coalesce(pa.ordering, pd.ordering, pp.ordering, pe.ordering, b.ordering) as ordering,
  coalesce((o.v ->> 'max_queue_length')::double precision, pa.max_queue_length, pd.max_queue_length, pp.max_queue_length, pe.max_queue_length, b.max_queue_length) as max_queue_length,
  coalesce((o.v ->> 'max_action_queue_length')::double precision,
    pa.max_action_queue_length, pd.max_action_queue_length, pp.max_action_queue_length, pe.max_action_queue_length, b.max_action_queue_length) as max_action_queue_length,
  coalesce(o.v ->> 'on_limit', pa.on_limit, pd.on_limit, pp.on_limit, pe.on_limit, b.on_limit) as on_limit,
  coalesce(translate(o.v ->> 'rate', '[]', '{}')::double precision[], pa.rate, pd.rate, pp.rate, pe.rate, b.rate) as rate,
  (coalesce(translate(o.v ->> 'rate', '[]', '{}')::double precision[], pa.rate, pd.rate, pp.rate, pe.rate, b.rate))[1] as rate_n,
  (coalesce(translate(o.v ->> 'rate', '[]', '{}')::double precision[], pa.rate, pd.rate, pp.rate, pe.rate, b.rate))[2] as rate_period,
  coalesce((o.v ->> 'burst')::integer, pa.burst, pd.burst, pp.burst, pe.burst, b.burst) as burst,
  coalesce((o.v ->> 'spacing')::double precision, pa.spacing, pd.spacing, pp.spacing, pe.spacing, b.spacing) as spacing,
  coalesce((o.v ->> 'gap')::double precision, pa.gap, pd.gap, pp.gap, pe.gap, b.gap) as gap,
  coalesce((o.v ->> 'max_wait')::double precision, pa.max_wait, pd.max_wait, pp.max_wait, pe.max_wait, b.max_wait) as max_wait,
  coalesce((o.v ->> 'timeout')::double precision, pa.timeout, pd.timeout, pp.timeout, pe.timeout, b.timeout) as timeout,
  coalesce((o.v ->> 'kill_after')::double precision, pa.kill_after, pd.kill_after, pp.kill_after, pe.kill_after, b.kill_after) as kill_after,
  coalesce((o.v ->> 'max_attempts')::integer, pa.max_attempts, pd.max_attempts, pp.max_attempts, pe.max_attempts, b.max_attempts) as max_attempts,
  coalesce(o.v ->> 'failure_mode', pa.failure_mode, pd.failure_mode, pp.failure_mode, pe.failure_mode, b.failure_mode) as failure_mode,
  coalesce(o.v ->> 'backoff', pa.backoff, pd.backoff, pp.backoff, pe.backoff, b.backoff) as backoff,
  coalesce((o.v ->> 'backoff_initial')::double precision, pa.backoff_initial, pd.backoff_initial, pp.backoff_initial, pe.backoff_initial, b.backoff_initial) as backoff_initial,
  coalesce((o.v ->> 'backoff_factor')::double precision, pa.backoff_factor, pd.backoff_factor, pp.backoff_factor, pe.backoff_factor, b.backoff_factor) as backoff_factor,
  coalesce((o.v ->> 'backoff_cap')::double precision, pa.backoff_cap, pd.backoff_cap, pp.backoff_cap, pe.backoff_cap, b.backoff_cap) as backoff_cap,
  coalesce((o.v ->> 'backoff_jitter')::double precision, pa.backoff_jitter, pd.backoff_jitter, pp.backoff_jitter, pe.backoff_jitter, b.backoff_jitter) as backoff_jitter,
  coalesce(o.v ->> 'on_exhausted', pa.on_exhausted, pd.on_exhausted, pp.on_exhausted, pe.on_exhausted, b.on_exhausted) as on_exhausted,
  coalesce((o.v ->> 'retention')::double precision, pa.retention, pd.retention, pp.retention, pe.retention, b.retention) as retention,
  coalesce((o.v ->> 'lane_retention')::double precision, pa.lane_retention, pd.lane_retention, pp.lane_retention, pe.lane_retention, b.lane_retention) as lane_retention,
  coalesce((o.v ->> 'max_payload')::double precision, pa.max_payload, pd.max_payload, pp.max_payload, pe.max_payload, b.max_payload) as max_payload,
  coalesce(pe.declared_actions_only, b.declared_actions_only) as declared_actions_only,
  coalesce(translate(o.v ->> 'action_quota', '[]', '{}')::text[], pa.quota, pd.quota) as action_quota,
  coalesce(translate(o.v ->> 'pack_quota', '[]', '{}')::text[], pp.quota) as pack_quota,
  coalesce(translate(o.v ->> 'everything_quota', '[]', '{}')::text[], pe.quota) as everything_quota,
  a.pack as pack,
  coalesce(pe.paused_at, pa.paused_at) as paused_at,
  case when pe.paused_at is not null then pe.paused_by else pa.paused_by end as paused_by,
  case when pe.paused_at is not null then pe.paused_reason else pa.paused_reason end as paused_reason,
  a.closed_at as closed_at,
  -- Whether starts are limited over time; whether an enqueue has to look at more than its lane's length.
  (coalesce(translate(o.v ->> 'rate', '[]', '{}')::double precision[], pa.rate, pd.rate, pp.rate, pe.rate, b.rate))[1] < 'infinity'
    or coalesce((o.v ->> 'spacing')::double precision, pa.spacing, pd.spacing, pp.spacing, pe.spacing, b.spacing) > 0
    or coalesce((o.v ->> 'gap')::double precision, pa.gap, pd.gap, pp.gap, pe.gap, b.gap) > 0 as has_pace,
  coalesce(o.v ->> 'on_limit', pa.on_limit, pd.on_limit, pp.on_limit, pe.on_limit, b.on_limit) = 'cancel'
    or coalesce((o.v ->> 'max_action_queue_length')::double precision,
      pa.max_action_queue_length, pd.max_action_queue_length, pp.max_action_queue_length, pe.max_action_queue_length, b.max_action_queue_length) < 'infinity'
    or coalesce(o.v ->> 'action_quota', o.v ->> 'pack_quota', o.v ->> 'everything_quota') is not null
    or num_nonnulls(pa.quota, pd.quota, pp.quota, pe.quota) > 0 as has_limits
from pgfifo.actions a
cross join pgfifo._default_policy b
-- Each by its key, whatever the planner thinks: with the statistics of an empty table it would walk all of them.
left join lateral (select p.* from pgfifo.policies p where p.scope = 'action' and p.action_id = a.id offset 0) pa on true
left join lateral (select p.* from pgfifo.policies p where p.scope = 'declared' and p.action_id = a.id offset 0) pd on true
left join lateral (select p.* from pgfifo.policies p where p.scope = 'pack' and p.pack = a.pack offset 0) pp on true
left join pgfifo.policies pe on pe.scope = 'everything'
cross join lateral (
  -- Of two values for a key the last one stays: the most specific one.
  select case when (select exists (select from pgfifo._overrides)) then (
    select jsonb_object_agg(case when o.attribute = 'quota' then o.scope || '_quota' else o.attribute end, o.value
      order by array_position(array['everything', 'pack', 'action'], o.scope))
    from pgfifo._overrides o
    where o.target = any (array['everything', 'pack:' || a.pack, 'action:' || a.id::text]) and o.until > pgfifo._time()) end as v
  offset 0) o;
