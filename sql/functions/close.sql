-- Let no enqueue into an action or one of its lanes any more, until it is opened. What waits is worked off.
-- Under the lock that enqueues hold to their commit: once this has committed, no enqueue commits.
create or replace function pgfifo.close(p_action text, p_group text default null, p_reason text default null) returns boolean
language sql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$ select pgfifo._set_closed(p_action, p_group, true, p_reason) $$;
comment on function pgfifo.close is 'Let no enqueue into an action or lane until it is opened; true if that was a change.';
