-- The built-in defaults: what holds where no scope says anything.
create or replace view pgfifo._default_policy as
select '{}'::text[] as group_by,
  1 as max_concurrent,
  'strict' as ordering,
  'infinity'::double precision as max_queue_length,
  5 as max_attempts,
  'hold' as failure_mode,
  'exponential' as backoff,
  1::double precision as backoff_initial,
  2::double precision as backoff_factor,
  300::double precision as backoff_cap,
  0.1::double precision as backoff_jitter,
  'continue' as on_exhausted,
  604800::double precision as retention,
  86400::double precision as lane_retention,
  1048576::double precision as max_payload,
  false as declared_actions_only;
