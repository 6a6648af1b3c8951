-- Let a paused action or lane start again; with an action also those of its lanes that on_exhausted has paused.
create or replace function pgfifo.resume(p_action text, p_group text default null) returns boolean
language sql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$ select pgfifo._set_paused(p_action, p_group, false, null) $$;
comment on function pgfifo.resume is 'Let a paused action or lane start again; true if that was a change.';
