-- The state of each lane, append-only: a change inserts version n + 1 and deletes version n in one transaction, so every
-- snapshot sees exactly one row per lane, and the newest is the first entry from the index's end. An updated row would
-- bury its live version under dead ones while somebody holds a snapshot. Only the holder of the lane's slot lock appends;
-- the primary key stops two deciders who saw the same version.
-- No check constraints here and in the other tables that calls write to: every statement that writes parses them anew, a
-- twentieth of what a call costs, a seventh of an enqueue. check() compares each counter with what there is.
create table if not exists pgfifo.ledger (
  lane_id bigint not null,
  version bigint not null,
  running integer not null default 0,
  held integer not null default 0,
  -- How many of the running ones ride in the slot of another one of their batch: running + held - riding slots are taken.
  riding integer not null default 0,
  -- Delayed by a backoff that keeps the place and not the slot; in pgfifo.runs, below the consumed mark.
  yielded integer not null default 0,
  -- How many of the waiting are in pgfifo.runs, below the consumed mark.
  returned integer not null default 0,
  -- Waiting as far as arrivals have been folded in. Below zero for a moment when a claim took what was not yet folded;
  -- waiting + unfolded arrivals is the length, at every instant.
  waiting bigint not null default 0,
  -- Those that have yet to join the line, as far as arrivals have been folded in: below zero for a moment, as above.
  delayed bigint not null default 0,
  -- Tickets up to here have left the line. Never moves back: dead entries of the line's index stay behind it.
  consumed bigint not null default 0,
  -- Arrivals of this lane up to here are folded. In relaxed lanes it follows only where nothing older can still commit:
  -- once pg_snapshot_xmin has passed pending_xid, nobody who drew an id up to pending_mark is still in progress (see _scan_from).
  mark_floor bigint not null default 0,
  pending_mark bigint,
  pending_xid xid8,
  -- Nothing that is held or yielded is due before, nothing that is returned has a smaller ticket; null where there is none.
  held_from timestamptz,
  returned_from bigint,
  -- No living execution that has yet to join is due before; never later than the clock was.
  delayed_from timestamptz not null default 'epoch',
  starts bigint not null default 0,
  enqueued bigint not null default 0,
  -- How many have joined the line through arrivals that are folded.
  joined bigint not null default 0,
  succeeded bigint not null default 0,
  failed bigint not null default 0,
  cancelled bigint not null default 0,
  expired bigint not null default 0,
  changed_at timestamptz not null,
  primary key (lane_id, version)
);
comment on table pgfifo.ledger is 'State and totals of each lane; the newest version counts.';
