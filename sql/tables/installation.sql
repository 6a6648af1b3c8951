-- One row: which version of the schema this is, and what stamps its fencing tokens.
create table if not exists pgfifo.installation (
  singleton boolean primary key default true check (singleton),
  version integer not null,
  min_client integer not null,
  -- Part of every token. Raised with each new timeline of the server and in a restored copy (see _come_home), so that what is
  -- given out there is no token from before; and by an operator.
  epoch integer not null default 1 check (epoch > 0),
  -- Hash of the script that made the functions: install() does nothing when it is already right.
  script_hash text,
  testing boolean not null default false,
  -- Tests move time instead of waiting for it. Never anything but zero outside of a testing installation.
  clock_offset interval not null default interval '0' check (testing or clock_offset = interval '0'),
  installed_at timestamptz not null default clock_timestamp()
);
comment on table pgfifo.installation is 'The one row that says which version of pgfifo is installed here.';

-- One row: where this installation lives. What is restored from a dump, or made as a copy of another database, has the row and
-- lives elsewhere; a promoted standby is on another timeline. See _come_home, which compares, and is the only one to write it.
create table if not exists pgfifo._home (
  singleton boolean primary key default true check (singleton),
  -- Of the cluster, and its timeline; null where a server does not tell.
  system_id bigint,
  timeline bigint,
  -- The oids of the database and of this table, and the name that the database had.
  database_id bigint not null,
  table_id bigint not null,
  database_name name not null,
  -- The transaction that wrote this row. pg_upgrade, which makes a new cluster, copies files: in them it is still the row's xmin.
  written_by xid8 not null default pg_current_xact_id(),
  -- Since when this is a copy in which everything waits for an operator, and of which database; null if it is none.
  copied_at timestamptz,
  copy_of name
);
comment on table pgfifo._home is 'Where this installation lives, to notice a restore and a failover.';
