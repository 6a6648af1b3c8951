-- What waits or runs: the content, written once. Whether it runs is in pgfifo.runs; a row here without one there waits.
-- One sequence for ids and tickets. cache 1 is a promise: with a larger cache sessions would draw out of order.
-- The oid of this table is the class of the enqueue locks: (executions, lane), exclusive in strict lanes and shared in
-- relaxed ones, taken before an id is drawn and held to the end of the transaction.
create sequence if not exists pgfifo.execution_ids as bigint cache 1;
create table if not exists pgfifo._executions (
  id bigint primary key,
  lane_id bigint not null,
  -- The place in the line; null while delayed (not in the line yet).
  ticket bigint,
  enqueued_at timestamptz not null,
  payload jsonb not null,
  headers jsonb,
  tags text[],
  request_id text,
  dedup_key text,
  item_key text,
  run_at timestamptz,
  retry_of bigint
);
create index if not exists executions_line on pgfifo._executions (lane_id, ticket);
comment on table pgfifo._executions is 'Content of executions that are not finished.';
