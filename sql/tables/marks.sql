-- Arrivals: how many an enqueue added to a lane, or an admission took from the delayed ones to the end of the line, written
-- in the same transaction. Folded into the ledger, that is counted and deleted, only by the holder of the lane's slot lock.
-- Readers add the ledger and what is here, in one snapshot. What has been enqueued is n + delayed.
create sequence if not exists pgfifo.mark_ids as bigint cache 1;
create table if not exists pgfifo.arrivals (
  lane_id bigint not null,
  id bigint not null,
  -- How many joined the line.
  n integer not null,
  -- By how many more are delayed; below zero where delayed ones have joined.
  delayed integer not null default 0,
  -- Only where ids need not be in commit order (relaxed lanes): the oldest ticket it announces.
  first_ticket bigint,
  -- Only where a length limit was in force: how many have ever joined the lane's line, including these.
  total bigint,
  -- Only of admissions under an exclusive enqueue lock: none of those they saw is due before.
  delayed_from timestamptz,
  primary key (lane_id, id)
);
comment on table pgfifo.arrivals is 'What has been enqueued and not yet counted in the ledger.';

-- The run queue: "this lane may have something to start", oldest first, per action. Every enqueue leaves one per lane in
-- its own transaction, unconditionally: any attempt to skip it loses a wake-up against a concurrent completion. A mark
-- is deleted by the holder of its lane's slot lock, in a statement before the one that reads the lane, or replaced by a
-- timer in the same transaction. Duplicates are harmless.
-- The oid of this table is the class of the sleep locks: (marks, action), shared while a worker sleeps.
create table if not exists pgfifo.marks (
  action_id integer not null,
  id bigint not null,
  lane_id bigint not null,
  -- What the lane's ledger had come to, where that is known: look-ups begin there, and not among the dead versions before.
  version bigint not null default 0,
  -- How often it has been put off because its lane was locked.
  tries smallint not null default 0,
  primary key (action_id, id)
);
comment on table pgfifo.marks is 'The run queue: lanes that are worth a look, oldest first.';

-- Marks that become due later: the end of a backoff, another try at a locked lane. What they stand for is also in a
-- column of what they belong to (runs.due_at), so the sweep can make them again.
create table if not exists pgfifo.timers (
  action_id integer not null,
  due_at timestamptz not null,
  id bigint not null,
  lane_id bigint not null,
  tries smallint not null default 0,
  primary key (action_id, due_at, id)
);
comment on table pgfifo.timers is 'Lanes that will be worth a look at a known time.';

-- Where scans of marks and timers begin, per action, append-only like the ledger, or dead ones pile up before them.
-- `hot` is aggressive: what was drawn a tenth of a second ago and is not visible now is taken for gone. `safe` is proven:
-- nobody who drew below it is still in progress. Once a second an elected claim starts from `safe` and so finds what
-- committed late. The oid of this table is the class of the election locks.
create table if not exists pgfifo.scans (
  action_id integer not null,
  version bigint not null,
  hot_mark bigint not null default 0,
  safe_mark bigint not null default 0,
  hot_timer timestamptz not null default '-infinity',
  safe_timer timestamptz not null default '-infinity',
  -- What had been drawn when this version was written.
  seen_mark bigint not null default 0,
  seen_at timestamptz not null,
  -- What had been drawn at some time before, and an xid above those of all who had drawn it.
  pending_mark bigint,
  pending_at timestamptz,
  pending_xid xid8,
  -- When the next scan from `safe` is due; pushed out when the last one was long.
  full_at timestamptz not null,
  primary key (action_id, version)
);
comment on table pgfifo.scans is 'Where scans of marks and timers begin, per action.';
