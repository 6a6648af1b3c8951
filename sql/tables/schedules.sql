-- What is enqueued again and again, by cron expression. SQL does not read expressions: workers work out when the next tick
-- is, and hand it in together with the ticks that are due; whose hand is too late finds that next_at has moved on.
-- The oid of this table is the class of the lock of those who declare or set schedules.
create table if not exists pgfifo._schedules (
  id bigint generated always as identity primary key,
  name text not null unique
    constraint schedules_name_is_plain check (name ~ '^[^[:cntrl:][:space:]]+$' and char_length(name) <= 200),
  action_id integer not null,
  cron text not null check (char_length(cron) between 1 and 200),
  time_zone text not null,
  payload jsonb not null,
  -- As it was given; the lane is found anew at each tick.
  group_text text,
  headers jsonb,
  tags text[],
  missed text not null check (missed in ('skip', 'one', 'all')),
  -- By code, not by an operator; code may change and remove it.
  declared boolean not null,
  -- Grows with each change; what was worked out for another version does not count.
  version integer not null default 1,
  -- The first tick is the first one after this.
  since timestamptz not null,
  -- The next tick; null until somebody has worked it out, 'infinity' while nobody can.
  next_at timestamptz,
  last_tick timestamptz,
  last_id bigint,
  last_error text,
  paused_at timestamptz,
  paused_by text,
  paused_reason text,
  changed_at timestamptz not null
);
comment on table pgfifo._schedules is 'What is enqueued again and again, and when next.';
