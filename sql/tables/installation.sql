-- One row: which version of the schema this is, and what stamps its fencing tokens.
create table if not exists pgfifo.installation (
  singleton boolean primary key default true check (singleton),
  version integer not null,
  min_client integer not null,
  -- Part of every token; raised by an operator after a lossy failover or a restore, so that old tokens cannot match.
  epoch integer not null default 1 check (epoch > 0),
  -- Hash of the script that made the functions: install() does nothing when it is already right.
  script_hash text,
  testing boolean not null default false,
  -- Tests move time instead of waiting for it. Never anything but zero outside of a testing installation.
  clock_offset interval not null default interval '0' check (testing or clock_offset = interval '0'),
  installed_at timestamptz not null default clock_timestamp()
);
comment on table pgfifo.installation is 'The one row that says which version of pgfifo is installed here.';
