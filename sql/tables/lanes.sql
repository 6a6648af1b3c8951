-- One line per (action, group). Rows are updated only to close and open a lane, under its enqueue lock; an idle lane is
-- deleted and may come back under a new id.
-- The oid of this table is the class of the slot locks: whoever decides about a lane holds (lanes, lane id).
create table if not exists pgfifo.lanes (
  id bigint generated always as identity primary key,
  action_id integer not null,
  group_text text not null check (octet_length(group_text) <= 1024),
  created_at timestamptz not null default clock_timestamp(),
  closed_at timestamptz,
  closed_by text,
  closed_reason text,
  unique (action_id, group_text)
);
comment on table pgfifo.lanes is 'One line of waiting executions and its slots, per action and group.';
