-- Let enqueues into a closed action or lane again. An action and its lanes are opened each for itself.
create or replace function pgfifo.open(p_action text, p_group text default null) returns boolean
language sql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$ select pgfifo._set_closed(p_action, p_group, false, null) $$;
comment on function pgfifo.open is 'Let enqueues into a closed action or lane again; true if that was a change.';
