-- Undo grant_enqueue.
create or replace function pgfifo.revoke_enqueue(p_action text, p_from text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return pgfifo._change_rights(p_from, null, pgfifo._known_action(p_action), false);
end $$;
comment on function pgfifo.revoke_enqueue is 'Undo grant_enqueue; true if that was a change.';
