-- What happened per action and minute: a rollup that maintenance fills from ledgers and from the history. Nobody else writes
-- here, and no claim, finish or enqueue reads it.
create table if not exists pgfifo._minutes (
  action_id integer not null,
  minute timestamptz not null,
  enqueued bigint not null default 0,
  started bigint not null default 0,
  succeeded bigint not null default 0,
  failed bigint not null default 0,
  cancelled bigint not null default 0,
  expired bigint not null default 0,
  -- How many that ended then had been started, with the sums of their times: from the enqueue to the first start, and from
  -- the last start to the end.
  measured bigint not null default 0,
  wait_seconds double precision not null default 0,
  run_seconds double precision not null default 0,
  primary key (action_id, minute)
) with (fillfactor = 70);
comment on table pgfifo._minutes is 'What happened per action and minute.';

-- What maintenance saw of each lane when it counted last: the difference to what it sees next happened in between. So each
-- enqueue, start and end is counted once, whenever it commits, and the sums over all minutes are the ledgers' totals.
create table if not exists pgfifo._tallies (
  lane_id bigint primary key,
  enqueued bigint not null,
  started bigint not null,
  succeeded bigint not null,
  failed bigint not null,
  cancelled bigint not null,
  expired bigint not null,
  -- While something waits: a time five to ten minutes ago, or when the line began, and how many had been started by then; and
  -- a point in between, which is the next to be that one.
  base_at timestamptz,
  base_started bigint,
  mid_at timestamptz,
  mid_started bigint
) with (fillfactor = 70);
comment on table pgfifo._tallies is 'What maintenance saw of each lane when it counted last.';

-- Of those that are measured, how many waited for how long, in classes: see _wait_classes. For percentiles; kept for a day.
create table if not exists pgfifo._waits (
  action_id integer not null,
  minute timestamptz not null,
  class smallint not null,
  n bigint not null,
  primary key (action_id, minute, class)
) with (fillfactor = 70);
comment on table pgfifo._waits is 'How long executions waited, in classes.';
