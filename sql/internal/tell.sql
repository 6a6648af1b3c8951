-- Whether anybody waits for the end of anything, and may be notified of it. By itself, for an `if` that is evaluated in
-- place: an end where nobody waits pays for this one look at the lock table.
create or replace function pgfifo._awaited() returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  return current_setting('pgfifo.notify', true) is distinct from 'off'
    and not case when pg_try_advisory_lock('pgfifo.history'::regclass::oid::integer, 0)
            then pg_advisory_unlock('pgfifo.history'::regclass::oid::integer, 0) else false end;
end $$;

-- Tell whoever waits for one of these that it has ended; PostgreSQL does so with our commit, and once for each. One that
-- begins to wait between this look and our commit finds it by looking again: the documented bound of a second.
create or replace function pgfifo._tell(p_ids bigint[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_notify('pgfifo_done', i::text) from unnest(p_ids) i
  where not case when pg_try_advisory_lock('pgfifo.history'::regclass::oid::integer, pgfifo._key(i))
            then pg_advisory_unlock('pgfifo.history'::regclass::oid::integer, pgfifo._key(i)) else false end;
  -- Who follows events is told that there are some.
  perform pg_notify('pgfifo_events', '')
  where not case when pg_try_advisory_lock('pgfifo.history'::regclass::oid::integer, -1)
            then pg_advisory_unlock('pgfifo.history'::regclass::oid::integer, -1) else false end;
end $$;
