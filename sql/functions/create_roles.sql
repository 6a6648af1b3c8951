-- Make pgfifo_producer, pgfifo_worker, pgfifo_observer and pgfifo_admin, which nobody can log in as, for others to be made members
-- of, and grant them in this database what their names say. Those that are there already, made by somebody with CREATEROLE or
-- for another database of the server, are used as they are. Returns those that are new. Installing does not call this:
-- roles belong to the whole server, and need CREATEROLE.
create or replace function pgfifo.create_roles() returns text[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_role text;
  v_new text[] := '{}';
begin
  foreach v_role in array '{producer,worker,observer,admin}'::text[] loop
    if not exists (select from pg_roles r where r.rolname = 'pgfifo_' || v_role) then
      begin
        execute format('create role %I nologin', 'pgfifo_' || v_role);
        v_new := v_new || ('pgfifo_' || v_role);
      exception
        when duplicate_object or unique_violation then
          null;  -- somebody else has just made it, for another database
        when insufficient_privilege then
          raise exception using errcode = 'QF026',
            message = format('role %s, who owns the schema pgfifo, may not make roles', quote_ident(current_user)),
            detail = json_build_object('role', current_user)::text,
            hint = 'Have somebody with CREATEROLE do: create role pgfifo_producer nologin; the same for pgfifo_worker, pgfifo_observer '
              'and pgfifo_admin. Then call this again.';
      end;
    end if;
    perform pgfifo._change_rights('pgfifo_' || v_role, v_role, null, true);
  end loop;
  return v_new;
end $$;
comment on function pgfifo.create_roles is 'Make the roles pgfifo_producer, pgfifo_worker, pgfifo_observer and pgfifo_admin where they are missing, and grant them what they are for.';
