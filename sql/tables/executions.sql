-- What waits or runs: the content, written once. Whether it runs is in pgfifo.runs; a row here without one there waits.
-- One sequence for ids and tickets. cache 1 is a promise: with a larger cache sessions would draw out of order.
-- The oid of this table is the class of the enqueue locks: (executions, lane), exclusive in strict lanes and shared in
-- relaxed ones, taken before an id is drawn and held to the end of the transaction.
create sequence if not exists pgfifo.execution_ids as bigint cache 1;
create table if not exists pgfifo._executions (
  id bigint primary key,
  lane_id bigint not null,
  -- The place in the line; null while delayed, that is until it joins the line.
  ticket bigint,
  enqueued_at timestamptz not null,
  payload jsonb not null,
  headers jsonb,
  tags text[],
  request_id text,
  dedup_key text,
  item_key text,
  -- When a delayed one is due to join; stays when it has joined.
  run_at timestamptz,
  retry_of bigint,
  -- What it takes along to the end of the line after a failed attempt: {"attempt", "failures", "last_error", "started_at", "attempts"}
  past jsonb,
  constraint executions_delayed_has_a_time check (ticket is not null or run_at is not null)
);
create index if not exists executions_line on pgfifo._executions (lane_id, ticket);
-- Read from a bound in the lane's ledger on, so that dead entries stay behind it.
create index if not exists executions_delayed on pgfifo._executions (lane_id, run_at, id) where ticket is null;
create index if not exists executions_sent_back on pgfifo._executions (lane_id) where ticket is null and past is not null;
comment on table pgfifo._executions is 'Content of executions that are not finished.';
