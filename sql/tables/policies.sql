-- Limits and rules, one row per scope that sets any. Null inherits from the next wider scope, attribute by attribute:
-- lane > action > declared (by code) > pack > everything > built-in default. 'infinity' is an explicit "unlimited".
-- The oid of this table is the class of the policy locks: claims hold (policies, action) and (policies, 0) shared until
-- their commit, a change holds its scope's exclusive. So no start commits under a limit that has already been replaced.
create table if not exists pgfifo.policies (
  id bigint generated always as identity primary key,
  scope text not null check (scope in ('everything', 'pack', 'declared', 'action', 'lane')),
  pack text,
  action_id integer,
  lane_id bigint,
  group_by text[],
  max_concurrent integer check (max_concurrent between 1 and 1000000),
  ordering text check (ordering in ('strict', 'relaxed')),
  max_queue_length double precision check (max_queue_length between 1 and 1000000 or max_queue_length = 'infinity'),
  max_attempts integer check (max_attempts between 1 and 1000000),
  max_action_queue_length double precision check (max_action_queue_length between 1 and 1000000 or max_action_queue_length = 'infinity'),
  on_limit text check (on_limit in ('enqueue', 'cancel')),
  -- Starts, and the seconds of the period: inherited together.
  rate double precision[] check (cardinality(rate) = 2 and (rate[1] between 1 and 1000000 or rate[1] = 'infinity') and rate[2] between 0.001 and 31536000),
  -- Null: as many as the rate allows in a period.
  burst integer check (burst between 1 and 1000000),
  spacing double precision check (spacing >= 0 and spacing <= 31536000),
  gap double precision check (gap >= 0 and gap <= 31536000),
  -- Enqueues accepted at this very scope, 'day' or 'month', time zone. Not inherited: each scope's own holds.
  quota text[] check (cardinality(quota) = 3 and (quota[1]::double precision between 1 and 1000000000 or quota[1] = 'infinity') and quota[2] in ('day', 'month')),
  max_wait double precision check (max_wait > 0),
  timeout double precision check (timeout > 0),
  kill_after double precision check (kill_after >= 0),
  failure_mode text check (failure_mode in ('hold', 'yield', 'tail')),
  backoff text check (backoff in ('exponential', 'constant')),
  backoff_initial double precision check (backoff_initial >= 0 and backoff_initial <= 31536000),
  backoff_factor double precision check (backoff_factor between 1 and 1000),
  backoff_cap double precision check (backoff_cap >= 0 and backoff_cap <= 31536000),
  backoff_jitter double precision check (backoff_jitter between 0 and 1),
  on_exhausted text check (on_exhausted in ('continue', 'pause')),
  retention double precision check (retention >= 0),
  lane_retention double precision check (lane_retention >= 0),
  max_payload double precision check (max_payload between 1 and 268435455),
  -- An enqueue creates no action then; at the scope of everything only.
  declared_actions_only boolean,
  -- Of the whole audit, so at the scope of everything only. A day at least: nobody takes back what he has just done unseen.
  audit_retention double precision check (audit_retention >= 86400),
  paused_at timestamptz,
  paused_by text,
  paused_reason text,
  -- Of a lane that on_exhausted has paused: the execution that failed for good.
  paused_for bigint,
  changed_at timestamptz not null default clock_timestamp(),
  constraint policies_scope_has_its_key check (
    case scope
      when 'everything' then pack is null and action_id is null and lane_id is null
      when 'pack' then pack is not null and action_id is null and lane_id is null
      when 'lane' then pack is null and action_id is null and lane_id is not null
      else pack is null and action_id is not null and lane_id is null
    end),
  constraint policies_group_by_belongs_to_actions check (group_by is null or scope in ('action', 'declared')),
  constraint policies_ordering_and_what_is_kept_do_not_belong_to_lanes check (
    scope <> 'lane' or num_nonnulls(ordering, max_action_queue_length, retention, lane_retention, max_payload) = 0),
  constraint policies_declared_only_belongs_to_everything check (declared_actions_only is null or scope = 'everything'),
  constraint policies_audit_retention_belongs_to_everything check (audit_retention is null or scope = 'everything'),
  constraint policies_pause_has_its_scope check (paused_at is null or scope in ('action', 'lane', 'everything'))
);
create unique index if not exists policies_everything on pgfifo.policies (scope) where scope = 'everything';
create unique index if not exists policies_pack on pgfifo.policies (pack) where scope = 'pack';
create unique index if not exists policies_declared on pgfifo.policies (action_id) where scope = 'declared';
create unique index if not exists policies_action on pgfifo.policies (action_id) where scope = 'action';
-- Whether anything can expire at all; mostly this index is empty.
create index if not exists policies_max_wait on pgfifo.policies (id) where max_wait < 'infinity';
create unique index if not exists policies_lane on pgfifo.policies (lane_id) where scope = 'lane';
-- Whether any policy limits how long attempts run: each claim asks.
create index if not exists policies_timeout on pgfifo.policies (id) where timeout is not null or kill_after is not null;
comment on table pgfifo.policies is 'Limits and rules per scope; null inherits.';

-- Values that win over every scope's, for a time: one row per target and attribute. They hold while `until` lies ahead, as of
-- the clock; a row whose time is over is a note that the lanes of its target have to be looked at again, by whoever finds it.
create table if not exists pgfifo._overrides (
  scope text not null check (scope in ('everything', 'pack', 'action', 'lane')),
  pack text,
  action_id integer,
  lane_id bigint,
  target text not null generated always as (case scope when 'lane' then 'lane:' || lane_id::text when 'action' then 'action:' || action_id::text
    when 'pack' then 'pack:' || pack else 'everything' end) stored,
  attribute text not null,
  -- As the column of pgfifo.policies has it, in JSON.
  value jsonb not null,
  until timestamptz not null,
  set_at timestamptz not null,
  set_by name not null,
  actor text,
  reason text,
  primary key (target, attribute),
  constraint overrides_scope_has_its_key check (
    (pack is not null) = (scope = 'pack') and (action_id is not null) = (scope in ('action', 'lane')) and (lane_id is not null) = (scope = 'lane'))
);
create index if not exists overrides_until on pgfifo._overrides (until);
comment on table pgfifo._overrides is 'Values that win over every scope''s until a time.';

-- What is in force for an action as _action_policies tells it, kept for those who ask all the time: claims and enqueues. A
-- claim writes the row, under the policy locks that it holds shared to its commit: then no change is under way (see
-- _put_in_force). A change of a policy or an override takes the rows of its scope away (see _forget_in_force), in its own
-- transaction and under the same locks exclusive: so whoever sees the change sees no row that is older. Where there is no
-- row, or its time is over, ask the view.
-- The oid of this table is the class of the lock of who writes: (_in_force, action), by try.
create table if not exists pgfifo._in_force (
  action_id integer primary key,
  -- When the first override that it contains ends.
  until timestamptz not null,
  max_concurrent integer not null,
  ordering text not null,
  is_paused boolean not null,
  -- Whether starts are limited over time.
  has_pace boolean not null,
  -- Whether an enqueue has to look at more than its lane's length.
  has_limits boolean not null,
  max_queue_length double precision not null,
  max_payload double precision not null,
  group_by text[] not null
) with (fillfactor = 50);
comment on table pgfifo._in_force is 'What is in force for an action, kept for claims and enqueues.';

-- "Limits of this scope changed: look at its lanes again." Written with the change, acted on by whoever sees it committed.
create table if not exists pgfifo.remarks (
  id bigint generated always as identity primary key,
  action_id integer not null,
  -- Lanes up to this id have been marked already; a wide scope is worked off in slices.
  done_to bigint not null default 0
);
comment on table pgfifo.remarks is 'Actions whose lanes must be looked at again because a limit changed.';
