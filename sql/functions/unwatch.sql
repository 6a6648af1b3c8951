-- This session does not wait for that execution any more.
create or replace function pgfifo.unwatch(p_id bigint) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_unlock_shared('pgfifo.history'::regclass::oid::integer, pgfifo._key(p_id));
  perform pg_advisory_unlock_shared('pgfifo.history'::regclass::oid::integer, 0);
end $$;
comment on function pgfifo.unwatch is 'Stop being notified of an execution''s end.';
