-- Processes that claim, and (kind 'slot') processes that hold slots or wait for them. Ids are never used twice. A row of a dead worker stays until nothing is left in its name.
-- The oid of this table is the class of the liveness locks: (workers, worker), held by a session of the living worker.
create table if not exists pgfifo._workers (
  id bigint generated always as identity primary key,
  kind text not null default 'worker' check (kind in ('worker', 'slot')),
  name text not null,
  -- Who registered it: see _require_own.
  role name not null default session_user,
  host text not null,
  pid integer not null,
  actions text[] not null,
  concurrency integer not null check (concurrency >= 1),
  lease interval not null,
  -- Whether a session lock speaks for it (not through a transaction pooler), and on which run of the server it was taken.
  locked boolean not null,
  locked_on timestamptz,
  state text not null default 'alive' check (state in ('alive', 'dead', 'stopped')),
  started_at timestamptz not null,
  last_seen timestamptz not null,
  -- Liveness is counted in ticks that really happened, so that an outage longer than the lease kills nobody.
  seen_tick bigint not null,
  lock_missed_tick bigint,
  -- When its lock was last taken again on the run of the server that it had been taken on: its session was cut, and it lives.
  relocked_tick bigint,
  -- Rows of claims up to this call are known to have arrived.
  seen_call bigint not null default 0,
  -- The epoch in which it has last said what it holds: of an older one it may know attempts that the server has forgotten.
  epoch integer not null,
  ended_at timestamptz
) with (fillfactor = 50);
create index if not exists workers_alive on pgfifo._workers (id) where state = 'alive';
comment on table pgfifo._workers is 'Worker processes, living and recently gone.';

-- One row: the count of maintenance rounds, at most one a second, and where the rolling sweep stands.
create table if not exists pgfifo.ticks (
  tick bigint primary key,
  at timestamptz not null,
  swept_to bigint not null default 0,
  -- What the sweep had to mend since installation: should stay zero.
  sweep_found bigint not null default 0,
  pruned_at timestamptz not null default 'epoch',
  -- The rollup per minute: when its last pass over the lanes began, the lane it has come to (null: it is through), and how far
  -- the history has been measured.
  counted_minute timestamptz not null default 'epoch',
  counted_to bigint,
  measured_to timestamptz not null default 'epoch'
);
insert into pgfifo.ticks (tick, at) select 1, clock_timestamp() where not exists (select from pgfifo.ticks);
comment on table pgfifo.ticks is 'The clock of maintenance: rounds that really happened.';

-- How many executions were taken back from workers that were declared dead, per action. Maintenance alone writes here, when
-- that happens; only who asks for metrics reads it.
create table if not exists pgfifo._rescues (
  action_id integer primary key,
  rescued bigint not null
) with (fillfactor = 50);
comment on table pgfifo._rescues is 'How many executions were taken back from dead workers, per action.';
