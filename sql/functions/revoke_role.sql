-- Undo grant_role. What a role may do by other grants, or as a member of other roles, it may go on doing.
create or replace function pgfifo.revoke_role(p_role text, p_from text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pgfifo._role_of_ours(p_role);
  return pgfifo._change_rights(p_from, p_role, null, false);
end $$;
comment on function pgfifo.revoke_role is 'Undo grant_role; true if that was a change.';
