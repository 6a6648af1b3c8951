-- Start nothing more at all, until resume_everything. Enqueues go on; what runs, runs on. What is paused by itself is so as
-- well, before and after.
create or replace function pgfifo.pause_everything(p_reason text default null) returns boolean
language sql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$ select pgfifo._set_everything_paused(true, p_reason, session_user) $$;
comment on function pgfifo.pause_everything is 'Start nothing more at all until everything is resumed; true if that was a change.';
