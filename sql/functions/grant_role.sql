-- Let a role of the database do what a producer, worker, observer or admin of pgfifo's does: EXECUTE on the functions and
-- SELECT on the views that this takes, no more. Who is a member of that role may do the same. What was granted stays right
-- with new versions: installing them gives what is new. For the owner of the schema.
create or replace function pgfifo.grant_role(p_role text, p_to text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pgfifo._role_of_ours(p_role);
  return pgfifo._change_rights(p_to, p_role, null, true);
end $$;
comment on function pgfifo.grant_role is 'Let a role be a producer, worker, observer or admin; true if that was a change.';
