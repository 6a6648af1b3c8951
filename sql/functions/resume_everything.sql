-- End the pause of everything: an operator's, or the one in which a restored copy of a database begins (see _come_home). Actions
-- and lanes that are paused by themselves stay so.
create or replace function pgfifo.resume_everything() returns boolean
language sql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$ select pgfifo._set_everything_paused(false, null, session_user) $$;
comment on function pgfifo.resume_everything is 'End the pause of everything, also that in which a restored copy begins; true if that was a change.';
