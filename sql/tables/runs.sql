-- Executions that have left the line at least once: running, held (slot kept through a backoff), yielded (place kept, and no
-- slot) or returned to their place. Small rows that come and go; the content stays untouched in pgfifo._executions.
-- The oid of this table is the class of the worker fence: (runs, worker), shared by claim and heartbeat, exclusive for
-- whoever declares the worker dead.
create table if not exists pgfifo.runs (
  id bigint primary key,
  lane_id bigint not null,
  ticket bigint not null,
  state text not null,
  attempt integer not null,
  failures integer not null default 0,
  worker_id bigint,
  -- The worker's number of the claim that started it: the same number again returns the same rows.
  call_no bigint,
  -- The lane's count of starts when it came back to the line (0: it came with its ticket).
  joined_no bigint not null default 0,
  -- The lane's number of this start, the limit it was admitted under, and whether the lane was strict then.
  start_no bigint,
  start_limit integer,
  -- What its ledger had come to with this start: look-ups begin there, and not among the dead versions before.
  version bigint,
  is_strict boolean not null,
  started_at timestamptz,
  -- When its lane's turn began, where that was with the start of another one, whose slot was handed on: see _turn.
  turn_from timestamptz,
  -- Of a member of a batch: the number of the start that leads it. All of a lane's with the same number share one slot.
  batch_no bigint,
  -- The shared limits that this attempt draws from, empty where its lane only keeps a gap; null: neither.
  draws integer[],
  -- When a held or yielded one may start again.
  due_at timestamptz,
  -- How the attempt that is being held ended; it joins `attempts` when the next one starts.
  held_by bigint,
  held_outcome text,
  ended_at timestamptz,
  last_error text,
  -- Numbers of events: of what happened to it last (its start, or the end of that attempt), and of a held one's start.
  event_no bigint not null default nextval('pgfifo.event_ids'),
  start_event bigint,
  -- Earlier attempts: [{"attempt", "joined_no", "start_no", "end_no", "limit", "is_strict", "worker", "started_at", "ended_at", "outcome",
  -- "error", "events": [its start's number, its end's], "kept": true where it kept its slot to its next start}]
  attempts jsonb,
  -- What its handler has completed in a transaction of its own: it succeeds with this result however the attempt ends.
  completed boolean not null default false,
  result jsonb
) with (fillfactor = 80);
-- Both are read from a bound in the lane's ledger on, so that dead entries stay behind it.
create index if not exists runs_due on pgfifo.runs (lane_id, due_at) where state in ('held', 'yielded');
create index if not exists runs_returned on pgfifo.runs (lane_id, ticket) where state = 'returned';
-- With the call, so that asking for one call's rows meets no dead entries of the worker's other calls.
create index if not exists runs_worker on pgfifo.runs (worker_id, call_no) where worker_id is not null;
-- For events: what has been started, or ended an attempt, since.
create index if not exists runs_event on pgfifo.runs (event_no);
comment on table pgfifo.runs is 'Executions that are running, held, yielded, or returned to their place.';

-- "Please stop": asked for while it runs. Inserted, never updated, so that a caller's open transaction blocks no finish.
create table if not exists pgfifo.cancellations (
  id bigint primary key,
  requested_at timestamptz not null,
  requested_by text not null,
  reason text
);
comment on table pgfifo.cancellations is 'Requests to cancel what runs.';

-- How far a running attempt is, as its handler has said last. Beside runs, which claims and finishes read and write: a
-- report meets neither. What is left when the attempt ends is nobody's to read, and maintenance clears it away.
create table if not exists pgfifo.reports (
  id bigint primary key,
  attempt integer not null,
  fraction double precision check (fraction between 0 and 1),
  message text,
  at timestamptz not null,
  event_no bigint not null
) with (fillfactor = 50);
create index if not exists reports_event on pgfifo.reports (event_no);
comment on table pgfifo.reports is 'How far running executions are.';
