-- Finished executions: inserted once, dropped by the day. The default partition takes what no day partition covers.
create table if not exists pgfifo.history (
  id bigint not null,
  action_id integer not null,
  lane_id bigint not null,
  group_text text not null,
  outcome text not null,
  attempt integer not null,
  failures integer not null,
  ticket bigint,
  worker_id bigint,
  joined_no bigint not null default 0,
  start_no bigint,
  start_limit integer,
  is_strict boolean,
  -- The number of the start that led its batch, in whose slot it was; null where it had one of its own.
  batch_no bigint,
  -- The lane's count of starts when it left its slot: it overlapped with starts up to this number.
  end_no bigint not null,
  enqueued_at timestamptz not null,
  started_at timestamptz,
  finished_at timestamptz not null,
  cancel_requested_at timestamptz,
  retry_of bigint,
  payload jsonb not null,
  headers jsonb,
  tags text[],
  result jsonb,
  result_error text,
  error text,
  reason text,
  attempts jsonb,
  -- The last attempt was taken from its worker, who did not end it.
  lost boolean not null default false,
  -- It stood for a slot that this worker waited for or had.
  owner bigint,
  -- Numbers of events: of its end, and of its last start where that is not in the log of attempts.
  event_no bigint not null default nextval('pgfifo.event_ids'),
  start_event bigint,
  -- Of one that ended while it was held: how its last attempt had ended, {"event", "outcome", "ended_at", "worker"}.
  held jsonb
) partition by range (finished_at);
create table if not exists pgfifo.history_default partition of pgfifo.history default;
create index if not exists history_id on pgfifo.history (id);
-- The few that did not succeed, for those who look for them among all others.
create index if not exists history_not_succeeded on pgfifo.history (outcome, id) where outcome <> 'succeeded';
create index if not exists history_action_time on pgfifo.history (action_id, finished_at);
-- For events: what has ended since. Entries come at its end only, several with one visit.
create index if not exists history_event on pgfifo.history (event_no);
-- And what had its first start long before its end, by all that it lasted: see _event_rows.
create index if not exists history_slow on pgfifo.history
  using gist (int8range(least(coalesce((attempts #>> '{0,events,0}')::bigint, start_event), event_no), event_no, '[]'))
  where attempts is not null or event_no - start_event > 10000;
-- The few that were in no slot when they ended: whether one of them was the last of its lane.
create index if not exists history_unstarted on pgfifo.history (lane_id, event_no) where start_event is null;
create index if not exists history_retry on pgfifo.history (retry_of) where retry_of is not null;
comment on table pgfifo.history is 'Finished executions, by day of finishing.';

-- The newest event that went with what retention has removed, of each action; 0: with whole days, of all; -1: the newest entry of
-- the audit. Who follows with a cursor from before that is told so.
create table if not exists pgfifo.forgotten (
  action_id integer primary key,
  event_no bigint not null
) with (fillfactor = 50);
comment on table pgfifo.forgotten is 'Which events retention has removed.';
