-- Files on their way in: how far each has come, recorded in the transaction of the batch that took it there.
create table if not exists pgfifo.imports (
  id bigint generated always as identity primary key,
  action_id integer not null,
  source text not null,
  fingerprint text not null,
  upto bigint not null default 0 check (upto >= 0),
  -- How many executions it has made, and the range that their ids are in.
  enqueued bigint not null default 0 check (enqueued >= 0),
  first_id bigint,
  last_id bigint,
  started_at timestamptz not null,
  updated_at timestamptz not null,
  finished_at timestamptz
);
comment on table pgfifo.imports is 'File imports and the line each has come to.';
