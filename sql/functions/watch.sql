-- This session waits for the end of an execution: whoever ends it notifies (channel pgfifo_done, payload: the id) with its
-- commit. Call it outside of a transaction; then look, for it may have ended before; then listen, and look again now and
-- then, for it may be ended by a transaction that asked who waits before this call. Session locks: not through a
-- transaction pooler. Two of them: key 0 says that there is anybody at all, so that where nobody waits an end asks once.
create or replace function pgfifo.watch(p_id bigint) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- This one first: who finds nobody at key 0 does not look further.
  perform pg_advisory_lock_shared('pgfifo.history'::regclass::oid::integer, 0);
  perform pg_advisory_lock_shared('pgfifo.history'::regclass::oid::integer, pgfifo._key(p_id));
end $$;
comment on function pgfifo.watch is 'Ask to be notified when an execution ends.';
