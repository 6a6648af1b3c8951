-- Let a role enqueue to one action, and to others only as far as they were granted too. It may call enqueue, enqueue_one and
-- enqueue_many, and see nothing. An action that is unknown comes to be. Who is a producer may enqueue to all of them anyway.
-- What counts is the role of the session, that is who logged in or what `set role` says, also where it calls by way of
-- somebody's security definer function or trigger.
create or replace function pgfifo.grant_enqueue(p_action text, p_to text) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_action_id integer := pgfifo._action(p_action);
  v_name text := pgfifo._may_enqueue(v_action_id);
begin
  perform pgfifo._grantee(p_to);
  -- Under the installer's lock, as all that grants, so nobody else makes it at the same time.
  perform pg_advisory_xact_lock(1885824620, 1868785010);
  if to_regprocedure(format('pgfifo.%I()', v_name)) is null then
    execute format('create function pgfifo.%I() returns void language sql immutable set search_path = pg_catalog, pg_temp as %L', v_name, ' ');
    execute format('revoke all on function pgfifo.%I() from public', v_name);
  end if;
  return pgfifo._change_rights(p_to, null, v_action_id, true);
end $$;
comment on function pgfifo.grant_enqueue is 'Let a role enqueue to one action; true if that was a change.';
