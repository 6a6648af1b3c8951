-- What waits or runs: the content, written once; only an enqueue with an item_key changes the payload of one that was never
-- started, under its lane's slot lock. Whether it runs is in pgfifo.runs; a row here without one there waits.
-- One sequence for ids and tickets. cache 1 is a promise: with a larger cache sessions would draw out of order.
-- An owner has a number, a key its action, what has no ticket a time: check() looks. Constraints would be parsed by each enqueue.
-- The oid of this table is the class of the enqueue locks: (executions, lane), exclusive in strict lanes and shared in
-- relaxed ones, taken before an id is drawn and held to the end of the transaction.
create sequence if not exists pgfifo.execution_ids as bigint cache 1;
-- And one for what happens to executions: each start and each end of an attempt has a number of it, in the order in which
-- they happen to a lane, since they are drawn under its slot lock. Whoever draws from these two owns an xid before, so that
-- who follows events can know when nobody can still commit one below a number: see events.
create sequence if not exists pgfifo.event_ids as bigint cache 1;
create table if not exists pgfifo._executions (
  id bigint primary key,
  lane_id bigint not null,
  -- The place in the line; null while delayed, that is until it joins the line.
  ticket bigint,
  enqueued_at timestamptz not null,
  -- When it joined the line, if that was not with its enqueue.
  joined_at timestamptz,
  payload jsonb not null,
  headers jsonb,
  tags text[],
  request_id text,
  -- The action again, where there is a key that is unique within it.
  dedup_action_id integer,
  dedup_key text,
  item_key text,
  -- When a delayed one is due to join; stays when it has joined.
  run_at timestamptz,
  retry_of bigint,
  -- What it takes along to the end of the line after a failed attempt: {"attempt", "failures", "last_error", "started_at", "attempts"}
  past jsonb,
  -- Only of what stands for a slot that a program waits for (see slot_enter): its worker, and the worker's number for it.
  owner bigint,
  owner_no bigint
);
create index if not exists executions_line on pgfifo._executions (lane_id, ticket);
-- Read from a bound in the lane's ledger on, so that dead entries stay behind it.
create index if not exists executions_delayed on pgfifo._executions (lane_id, run_at, id) where ticket is null;
create index if not exists executions_retry on pgfifo._executions (retry_of) where retry_of is not null;
create index if not exists executions_sent_back on pgfifo._executions (lane_id) where ticket is null and past is not null;
-- What was sent back to the end of the line keeps its log here until it is started again: events are read from it, by its last.
create index if not exists executions_past on pgfifo._executions (((past #>> '{attempts,-1,events,1}')::bigint)) where past is not null;
-- Who has no key pays nothing for these; nor do claims and finishes, which insert and change nothing here.
create unique index if not exists executions_dedup on pgfifo._executions (dedup_action_id, dedup_key) where dedup_key is not null;
create index if not exists executions_item on pgfifo._executions (lane_id, item_key, id) where item_key is not null;
-- Asking again under the same number finds the first; and what somebody waits for can be found when he is gone.
create unique index if not exists executions_owner on pgfifo._executions (owner, owner_no) where owner is not null;
comment on table pgfifo._executions is 'Content of executions that are not finished.';
