-- Named kinds of work. Rows are created by the first enqueue, declaration or policy, and deleted by remove_action only.
-- The oid of this table is the class of the action locks: shared by every enqueue until its commit, exclusive for a
-- change of ordering or group_by, which so knows that no enqueue is in flight.
create table if not exists pgfifo.actions (
  id integer generated always as identity primary key,
  name text not null unique
    constraint actions_name_is_plain check (name ~ '^[^[:cntrl:][:space:]]+$' and char_length(name) <= 200),
  -- The part before the last dot; empty when there is none. Packs do not nest.
  pack text not null generated always as (coalesce(substring(name from '^(.*)\.[^.]*$'), '')) stored,
  -- Totals of lanes that were idle and have been removed.
  past_succeeded bigint not null default 0,
  past_failed bigint not null default 0,
  past_cancelled bigint not null default 0,
  past_expired bigint not null default 0,
  past_starts bigint not null default 0,
  created_at timestamptz not null default clock_timestamp(),
  -- Since when no enqueue gets in. Under the action's lock, exclusive: once that has committed, no enqueue commits.
  closed_at timestamptz,
  closed_by text,
  closed_reason text
);
comment on table pgfifo.actions is 'Named kinds of work.';
