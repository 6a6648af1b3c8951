-- End the pause of everything: an operator's, or the one in which a restored copy of a database begins (see _come_home). Actions
-- and lanes that are paused by themselves stay so.
create or replace function pgfifo.resume_everything() returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  -- A copy to which no worker has come yet is noticed now, so that this is the pause that ends.
  if current_setting('pgfifo.home', true) is distinct from 'pgfifo._home'::regclass::oid::text then
    perform pgfifo._come_home();
  end if;
  return pgfifo._set_everything_paused(false, null, session_user);
end $$;
comment on function pgfifo.resume_everything is 'End the pause of everything, also that in which a restored copy begins; true if that was a change.';
