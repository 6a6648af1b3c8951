-- Counts that limits of enqueues are decided by, append-only like the ledger: how many wait in all lanes of an action, where
-- that is limited, and how much of a quota is used. Only the holder of the scope's enqueue lock (of a lane's quota: of the
-- lane's enqueue lock) appends, in the enqueue's own transaction; whoever has the lock next sees it.
-- The oid of this table is the class of those locks: (tallies, action), packs by the hash of their name below zero, 0 for
-- everything; exclusive, to the end of the enqueuing transaction, and only where a scope sets such a limit.
create table if not exists pgfifo.tallies (
  -- 'length action:7'; 'quota everything', 'quota pack:billing', 'quota action:7', 'quota lane:9'.
  target text not null,
  version bigint not null,
  n bigint not null,
  -- When the length was counted last; when the quota's period began.
  since timestamptz not null,
  -- How many lanes there were then.
  lanes integer,
  primary key (target, version)
);
comment on table pgfifo.tallies is 'Counts by which quotas and the lengths of actions are decided.';
