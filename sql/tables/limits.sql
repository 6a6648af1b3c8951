-- What limits starts over time, per lane, append-only like the ledger. Only lanes with a rate, a spacing or a gap have a
-- row; all others pay nothing. Only the holder of the lane's slot lock appends.
create table if not exists pgfifo.paces (
  lane_id bigint not null,
  version bigint not null,
  -- The theoretical arrival time of the generic cell rate algorithm (ITU-T I.371): how far starts are ahead of the rate.
  rate_at timestamptz,
  last_start_at timestamptz,
  last_end_at timestamptz,
  -- When the lane's timer is due, so that many looks at a lane that has to wait leave one.
  timer_at timestamptz,
  -- Until then it says something; a lane is not removed before.
  keep_until timestamptz,
  primary key (lane_id, version)
);
comment on table pgfifo.paces is 'How far the starts of a lane are ahead of its rate, and its last start and end.';

-- Shared limits: slots, a rate, or both, that several actions draw from. The oid of this table is the class of their locks:
-- whoever starts something that draws, or changes one, holds (shared_limits, limit) exclusive to the commit.
create table if not exists pgfifo._shared_limits (
  id integer generated always as identity primary key,
  name text not null unique check (name ~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]*$' and octet_length(name) <= 200),
  max_concurrent integer check (max_concurrent between 1 and 1000000),
  rate double precision[],
  burst integer check (burst between 1 and 1000000),
  changed_at timestamptz not null default clock_timestamp(),
  constraint shared_limits_limit_something check (max_concurrent is not null or rate is not null)
);
comment on table pgfifo._shared_limits is 'Named limits that several actions draw from.';

-- Who draws: an action, all actions of a pack (those to come too), or everything.
create table if not exists pgfifo.shared_draws (
  limit_id integer not null,
  scope text not null check (scope in ('action', 'pack', 'everything')),
  action_id integer,
  pack text,
  constraint shared_draws_scope_has_its_key check (
    case scope when 'action' then action_id is not null and pack is null
               when 'pack' then action_id is null and pack is not null
               else action_id is null and pack is null end)
);
create unique index if not exists shared_draws_key on pgfifo.shared_draws (limit_id, scope, coalesce(action_id, 0), coalesce(pack, ''));
comment on table pgfifo.shared_draws is 'Which actions draw from a shared limit.';

-- The state of each shared limit, append-only, under its lock.
create table if not exists pgfifo.shared_ledger (
  limit_id integer not null,
  version bigint not null,
  active integer not null default 0,
  rate_at timestamptz,
  last_start_at timestamptz,
  -- What has been given back is counted up to here; see pending_mark of the ledger for how it follows.
  returns_floor bigint not null default 0,
  pending_mark bigint,
  pending_xid xid8,
  changed_at timestamptz not null,
  primary key (limit_id, version)
);
comment on table pgfifo.shared_ledger is 'How many slots of a shared limit are taken, and how far its starts are ahead of its rate.';

-- Slots given back, by whoever ended an attempt, under the slot lock of its lane alone: nobody waits for a shared limit to
-- end something. Counted and deleted by the next that has the limit's lock; the mark that comes with each sees to it.
create table if not exists pgfifo.shared_returns (
  limit_id integer not null,
  id bigint not null,
  primary key (limit_id, id)
);
comment on table pgfifo.shared_returns is 'Slots of shared limits that were given back and are not counted yet.';

-- Lanes that a shared limit keeps waiting, in the order in which it is their turn. called_at: they have a mark, or from then
-- on; null: they sleep until they are called. Written under the limit's lock.
create table if not exists pgfifo.shared_waits (
  limit_id integer not null,
  lane_id bigint not null,
  action_id integer not null,
  id bigint not null,
  called_at timestamptz,
  primary key (limit_id, lane_id)
);
create index if not exists shared_waits_turn on pgfifo.shared_waits (limit_id, action_id, id) where called_at is null;
create index if not exists shared_waits_called on pgfifo.shared_waits (limit_id, called_at) where called_at is not null;
comment on table pgfifo.shared_waits is 'Lanes that a shared limit keeps waiting, in their turn.';
