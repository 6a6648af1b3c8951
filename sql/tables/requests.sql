-- Enqueues that carried a request_id: which execution answers for each, so that the same request made again is not a
-- second execution. Kept for the retention of its action, and an hour at least, whatever has become of the execution.
create table if not exists pgfifo.requests (
  action_id integer not null,
  request_id text not null,
  id bigint not null,
  created_at timestamptz not null,
  primary key (action_id, request_id)
);
create index if not exists requests_age on pgfifo.requests (action_id, created_at);
comment on table pgfifo.requests is 'Enqueues that may be made again, and the execution that answers for each.';
