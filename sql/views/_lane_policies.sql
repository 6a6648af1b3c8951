-- What wins over _action_policies in a lane: coalesce(lane.x, action.x), column by column. Overrides are in it, also those of
-- wider scopes, since they win over the lane's own policy.
-- In hot paths: left join lateral (select p.x from pgfifo._lane_policies p where p.lane_id = … offset 0) lane on true.
create or replace view pgfifo._lane_policies as
select l.id as lane_id,
  coalesce((o.v ->> 'max_concurrent')::integer, lp.max_concurrent) as max_concurrent,
  coalesce((o.v ->> 'max_queue_length')::double precision, lp.max_queue_length) as max_queue_length,
  coalesce(o.v ->> 'on_limit', lp.on_limit) as on_limit,
  coalesce(translate(o.v ->> 'rate', '[]', '{}')::double precision[], lp.rate) as rate,
  (coalesce(translate(o.v ->> 'rate', '[]', '{}')::double precision[], lp.rate))[1] as rate_n,
  (coalesce(translate(o.v ->> 'rate', '[]', '{}')::double precision[], lp.rate))[2] as rate_period,
  coalesce((o.v ->> 'burst')::integer, lp.burst) as burst,
  coalesce((o.v ->> 'spacing')::double precision, lp.spacing) as spacing,
  coalesce((o.v ->> 'gap')::double precision, lp.gap) as gap,
  coalesce((o.v ->> 'max_wait')::double precision, lp.max_wait) as max_wait,
  coalesce((o.v ->> 'timeout')::double precision, lp.timeout) as timeout,
  coalesce((o.v ->> 'kill_after')::double precision, lp.kill_after) as kill_after,
  coalesce((o.v ->> 'max_attempts')::integer, lp.max_attempts) as max_attempts,
  coalesce(o.v ->> 'failure_mode', lp.failure_mode) as failure_mode,
  coalesce(o.v ->> 'backoff', lp.backoff) as backoff,
  coalesce((o.v ->> 'backoff_initial')::double precision, lp.backoff_initial) as backoff_initial,
  coalesce((o.v ->> 'backoff_factor')::double precision, lp.backoff_factor) as backoff_factor,
  coalesce((o.v ->> 'backoff_cap')::double precision, lp.backoff_cap) as backoff_cap,
  coalesce((o.v ->> 'backoff_jitter')::double precision, lp.backoff_jitter) as backoff_jitter,
  coalesce(o.v ->> 'on_exhausted', lp.on_exhausted) as on_exhausted,
  coalesce(translate(o.v ->> 'lane_quota', '[]', '{}')::text[], lp.quota) as quota,
  lp.paused_at as paused_at,
  lp.paused_by as paused_by,
  lp.paused_reason as paused_reason
from pgfifo.lanes l
left join pgfifo.policies lp on lp.scope = 'lane' and lp.lane_id = l.id
cross join lateral (
  select case when (select exists (select from pgfifo._overrides)) then (
    select jsonb_object_agg(case when o.attribute = 'quota' then o.scope || '_quota' else o.attribute end, o.value
      order by array_position(array['everything', 'pack', 'action', 'lane'], o.scope))
    from pgfifo._overrides o
    where o.target = any (array['everything', 'pack:' || (select a.pack from pgfifo.actions a where a.id = l.action_id),
        'action:' || l.action_id::text, 'lane:' || l.id::text]) and o.until > pgfifo._time()) end as v
  offset 0) o;
