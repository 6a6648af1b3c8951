-- This session is about to sleep until something happens: enqueues to these actions (all, if none are named) notify it on the
-- channel pgfifo, ends of executions on pgfifo_events. Call it outside of a transaction, then look once more with events, and
-- then sleep; look each second all the same: starts and entries of the audit notify nobody, nor does who asked before this
-- call. Session locks: not through a transaction pooler.
create or replace function pgfifo.follow(p_actions text[] default null) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_lock_shared('pgfifo.marks'::regclass::oid::integer, a.id) from pgfifo.actions a where p_actions is null or a.name = any (p_actions);
  -- Key 0 says that there is anybody at all; see watch.
  perform pg_advisory_lock_shared('pgfifo.history'::regclass::oid::integer, 0), pg_advisory_lock_shared('pgfifo.history'::regclass::oid::integer, -1);
end $$;
comment on function pgfifo.follow is 'Ask to be notified of what happens, until unfollow.';
