-- This session's worker is awake again and needs no notifications.
create or replace function pgfifo.awake(p_actions text[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_unlock_shared('pgfifo.marks'::regclass::oid::integer, a.id) from pgfifo.actions a where a.name = any (p_actions);
end $$;
comment on function pgfifo.awake is 'Stop being notified of new work for these actions.';
