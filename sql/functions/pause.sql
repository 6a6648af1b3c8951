-- Start nothing more in an action or in one of its lanes, until resume. Enqueues go on; what runs, runs on.
-- Under the same locks as a limit change: once this has committed, no start commits.
create or replace function pgfifo.pause(p_action text, p_group text default null, p_reason text default null) returns boolean
language sql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$ select pgfifo._set_paused(p_action, p_group, true, p_reason) $$;
comment on function pgfifo.pause is 'Start nothing more in an action or lane until it is resumed; true if that was a change.';
