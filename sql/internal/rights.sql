-- Who may call what. Rights are PostgreSQL's own: EXECUTE on functions and SELECT on views, never a right on a table. So they
-- are checked by the server, go into dumps, and go with a role that is dropped (drop owned by).
-- Whom a role of pgfifo's was granted to is a right, too: EXECUTE on that role's _role_…, which does nothing. So nothing has to be
-- kept in step, and whoever installs a new version gives to everybody what is new (finish.sql).

-- Who the caller is: who logged in, or the role that he has set. Inside of our functions current_user is their owner.
-- Nobody can set a role that he is not a member of. Inlined where it is asked, so that it costs nothing.
create or replace function pgfifo._caller() returns name
language sql stable
as $$ select case when pg_catalog.current_setting('role') operator(pg_catalog.=) 'none' then session_user else pg_catalog.current_setting('role')::pg_catalog.name end $$;

-- Each public function and view, and whom it is for; admin has what any of them has. 'enqueue' are those who may enqueue
-- to certain actions only; 'owner' is nobody but the owner of the schema.
-- Below them the helpers that views call: what a view calls runs with the rights of whoever reads it.
create or replace function pgfifo._rights() returns table (o_name text, o_roles text)
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  values
  -- looking
  ('schema_info', 'enqueue producer worker observer'),
  ('format_group', 'enqueue producer worker observer'),
  ('group_text', 'enqueue producer worker observer'),
  ('lane_stats', 'worker observer'),
  ('queue_stats', 'observer'),
  ('executions', 'worker observer'),
  ('workers', 'observer'),
  ('slots', 'observer'),
  ('schedules', 'observer'),
  ('starts', 'observer'),
  ('order_violations', 'observer'),
  ('slot_violations', 'observer'),
  ('overrides', 'observer'),
  ('shared_limits', 'observer'),
  ('minutes', 'observer'),
  ('grants', 'observer'),
  ('audit', 'observer'),
  ('list_executions', 'observer'),
  ('overview', 'observer'),
  ('list_lanes', 'observer'),
  ('line', 'observer'),
  ('position', 'producer observer'),
  ('remaining', 'worker observer'),
  ('explain', 'worker observer'),
  ('events', 'observer'),
  ('follow', 'observer'),
  ('unfollow', 'observer'),
  ('pace', 'observer'),
  ('wait_times', 'observer'),
  ('metrics', 'observer'),
  ('effective_policy', 'observer'),
  ('policy_history', 'observer'),
  ('export_policies', 'observer'),
  ('check', 'observer'),
  ('doctor', 'observer'),
  -- producing
  ('max_batch_lanes', 'enqueue producer'),
  ('enqueue', 'enqueue producer'),
  ('enqueue_one', 'enqueue producer'),
  ('enqueue_many', 'enqueue producer'),
  ('cancel', 'producer'),
  ('cancel_many', 'producer'),
  ('reschedule', 'producer'),
  ('watch', 'producer worker observer'),
  ('unwatch', 'producer worker observer'),
  ('import_start', 'producer'),
  ('import_commit', 'producer'),
  ('import_enqueued', 'producer'),
  ('import_status', 'producer observer'),
  ('import_finish', 'producer'),
  ('cancel_where', 'admin'),
  ('retry', 'admin'),
  ('retry_many', 'admin'),
  ('retry_where', 'admin'),
  ('set_schedule', 'admin'),
  ('remove_schedule', 'admin'),
  ('pause_schedule', 'admin'),
  ('resume_schedule', 'admin'),
  -- consuming
  ('declare_action', 'worker'),
  ('declare_schedules', 'worker'),
  ('due_schedules', 'worker'),
  ('tick_schedule', 'worker'),
  ('worker_start', 'worker'),
  ('worker_relock', 'worker'),
  ('worker_stop', 'worker'),
  ('work', 'worker'),
  ('claim', 'worker'),
  ('complete', 'worker'),
  ('finish', 'worker'),
  ('release', 'worker'),
  ('heartbeat', 'worker'),
  ('slot_enter', 'worker'),
  ('slot_look', 'worker'),
  ('slot_leave', 'worker'),
  ('progress', 'worker'),
  ('sleeping', 'worker'),
  ('awake', 'worker'),
  ('maintain', 'worker'),
  -- operating
  ('set_policy', 'admin'),
  ('set_pack_policy', 'admin'),
  ('set_default_policy', 'admin'),
  ('apply_policies', 'admin'),
  ('override_policy', 'admin'),
  ('override_pack_policy', 'admin'),
  ('override_default_policy', 'admin'),
  ('set_shared_limit', 'admin'),
  ('drop_shared_limit', 'admin'),
  ('pause', 'admin'),
  ('resume', 'admin'),
  ('pause_everything', 'admin'),
  ('resume_everything', 'admin'),
  ('finish_execution', 'admin'),
  ('close', 'admin'),
  ('remove_action', 'admin'),
  ('open', 'admin'),
  ('raise_epoch', 'owner'),
  ('advance', 'owner'),
  ('grant_role', 'owner'),
  ('revoke_role', 'owner'),
  ('grant_enqueue', 'owner'),
  ('revoke_enqueue', 'owner'),
  ('create_roles', 'owner'),
  -- not to be called: who may is not bound to certain actions
  ('_any_action', 'producer'),
  -- what views call, and functions that run with their caller's rights
  ('_try_json', 'enqueue producer worker observer'),
  ('_time', 'worker observer'),
  ('_shown', 'observer'),
  ('_rate_at', 'observer'),
  ('_rate_allows', 'observer'),
  ('_doctor_settings', 'observer'),
  ('_doctor_locks', 'observer'),
  ('_doctor_snapshots', 'observer'),
  ('_doctor_books', 'observer'),
  ('_doctor_name', 'observer'),
  ('_counted', 'observer'),
  ('_number', 'observer'),
  ('_moment', 'observer'),
  ('_span', 'observer'),
  ('_quoted', 'observer')
$$;

create or replace function pgfifo._any_action() returns void
language sql immutable
set search_path = pg_catalog, pg_temp
as $$ $$;
create or replace function pgfifo._role_producer() returns void
language sql immutable
set search_path = pg_catalog, pg_temp
as $$ $$;
create or replace function pgfifo._role_worker() returns void
language sql immutable
set search_path = pg_catalog, pg_temp
as $$ $$;
create or replace function pgfifo._role_observer() returns void
language sql immutable
set search_path = pg_catalog, pg_temp
as $$ $$;
create or replace function pgfifo._role_admin() returns void
language sql immutable
set search_path = pg_catalog, pg_temp
as $$ $$;

-- Whoever enqueues to one action only has EXECUTE on a function that is made for it with the first such grant.
create or replace function pgfifo._may_enqueue(p_action_id integer) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$ select '_may_enqueue_' || p_action_id $$;

-- May the caller enqueue here? Asked of those only who are bound to certain actions.
create or replace function pgfifo._require_enqueue(p_action text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select from pgfifo.actions a
    where a.name = p_action and has_function_privilege(pgfifo._caller(), to_regprocedure(format('pgfifo.%I()', pgfifo._may_enqueue(a.id))), 'execute'))
  then
    raise exception using errcode = 'QF026',
      message = format('role %s may not enqueue to %s', quote_ident(pgfifo._caller()), coalesce(quote_literal(left(p_action, 200)), 'null')),
      detail = json_build_object('role', pgfifo._caller(), 'action', left(p_action, 200))::text,
      hint = 'It may enqueue to actions that it was granted. The schema''s owner grants one with pgfifo.grant_enqueue, all with pgfifo.grant_role.';
  end if;
end $$;

-- What a worker has started is its role's business, and an admin's: ids and attempts are no secrets.
create or replace function pgfifo._require_own(p_role name, p_what text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if not has_function_privilege(pgfifo._caller(), 'pgfifo._role_admin()'::regprocedure, 'execute')
    and not exists (select from pg_roles r where r.rolname = p_role and pg_has_role(pgfifo._caller(), r.oid, 'usage'))
  then
    raise exception using errcode = 'QF026',
      message = format('%s belongs to role %s, and role %s is not it', p_what, quote_ident(p_role), quote_ident(pgfifo._caller())),
      detail = json_build_object('role', pgfifo._caller(), 'owner', p_role)::text,
      hint = 'Only a worker of the same role may speak for it, or an admin.';
  end if;
end $$;

-- The oid of a role that rights can be given to. The owner has all of them, and taking from him would break everything.
create or replace function pgfifo._grantee(p_role text) returns oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id oid;
begin
  select r.oid into v_id from pg_roles r where r.rolname = p_role;
  if v_id is null or v_id = (select n.nspowner from pg_namespace n where n.nspname = 'pgfifo') then
    raise exception using errcode = 'QF022',
      message = case when v_id is null then format('there is no role %s', coalesce(quote_literal(left(p_role, 100)), 'null'))
                else format('role %s owns the schema pgfifo: it may do everything already', quote_ident(p_role)) end,
      detail = json_build_object('name', 'role', 'value', left(p_role, 100))::text,
      hint = case when v_id is null then 'Roles are made with create role, by somebody with CREATEROLE.' else 'Nothing was changed.' end;
  end if;
  return v_id;
end $$;

-- What was granted to a role by name, and the actions that it may enqueue to.
create or replace function pgfifo._granted(p_id oid, out o_roles text[], out o_actions integer[]) returns record
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(array_agg(m.found[1] order by m.found[1]) filter (where m.found[1] is not null), '{}'),
    coalesce(array_agg(m.found[2]::integer order by m.found[2]::integer) filter (where m.found[2] is not null), '{}')
  from pg_proc p cross join lateral aclexplode(p.proacl) g
  cross join lateral regexp_match(p.proname, '^_(?:role_([a-z]+)|may_enqueue_([0-9]+))$') m(found)
  where p.pronamespace = 'pgfifo'::regnamespace and g.grantee = p_id and m.found is not null
$$;

-- Give a role exactly the rights that these roles of pgfifo's and these actions mean, and take all others.
-- Installers and whoever else grants take turns: PostgreSQL refuses two changes of the same rights at once.
create or replace function pgfifo._set_rights(p_id oid, p_roles text[], p_actions integer[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name name := (select r.rolname from pg_roles r where r.oid = p_id);
  v_words text[] := p_roles || case when p_actions <> '{}' then '{enqueue}' else '{}' end::text[];
  v_list text;
begin
  select string_agg(format('pgfifo.%I', c.relname), ', ') into v_list from pg_class c
  where c.relnamespace = 'pgfifo'::regnamespace and exists (select from aclexplode(c.relacl) g where g.grantee = p_id);
  if v_list is not null then
    execute format('revoke all on %s from %I', v_list, v_name);
  end if;
  execute format('revoke all on all functions in schema pgfifo from %I', v_name);
  execute format('revoke all on schema pgfifo from %I', v_name);
  if v_words = '{}' then
    return;
  end if;
  execute format('grant usage on schema pgfifo to %I', v_name);
  select string_agg(p.oid::regprocedure::text, ', ') into v_list
  from pg_proc p left join pgfifo._rights() r on r.o_name = p.proname
  where p.pronamespace = 'pgfifo'::regnamespace
    and (string_to_array(r.o_roles, ' ') && v_words or 'admin' = any (v_words) and r.o_roles <> 'owner'
      or p.proname = any (array(select '_role_' || w from unnest(p_roles) w)) or p.proname = any (array(select pgfifo._may_enqueue(a) from unnest(p_actions) a)));
  execute format('grant execute on function %s to %I', v_list, v_name);
  select string_agg(format('pgfifo.%I', c.relname), ', ') into v_list
  from pg_class c join pgfifo._rights() r on r.o_name = c.relname
  where c.relnamespace = 'pgfifo'::regnamespace and c.relkind in ('v', 'r', 'p')
    and (string_to_array(r.o_roles, ' ') && v_words or 'admin' = any (v_words) and r.o_roles <> 'owner');
  if v_list is not null then
    execute format('grant select on %s to %I', v_list, v_name);
  end if;
end $$;

-- Add to what a role was granted, or take from it; false if that changes nothing.
create or replace function pgfifo._change_rights(p_to text, p_role text, p_action_id integer, p_grant boolean) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id oid := pgfifo._grantee(p_to);
  v_is record;
  v_roles text[];
  v_actions integer[];
begin
  -- The installer's lock. What was granted is read in a statement after it.
  perform pgfifo._require_read_committed(case when p_grant then 'grant' else 'revoke' end || case when p_role is null then '_enqueue' else '_role' end);
  perform pg_advisory_xact_lock(1885824620, 1868785010);
  select g.* into v_is from pgfifo._granted(v_id) g;
  v_roles := array_remove(v_is.o_roles, p_role) || case when p_grant and p_role is not null then array[p_role] else '{}' end;
  v_actions := array_remove(v_is.o_actions, p_action_id) || case when p_grant and p_action_id is not null then array[p_action_id] else '{}' end;
  if v_roles <@ v_is.o_roles and v_roles @> v_is.o_roles and v_actions <@ v_is.o_actions and v_actions @> v_is.o_actions then
    return false;
  end if;
  perform pgfifo._set_rights(v_id, v_roles, v_actions);
  perform pgfifo._audit(case when p_grant then 'grant' else 'revoke' end, (select a.name from pgfifo.actions a where a.id = p_action_id), null,
    jsonb_build_object('role', p_to, 'may', coalesce(p_role, 'enqueue')));
  return true;
end $$;

create or replace function pgfifo._role_of_ours(p_role text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_role is null or p_role not in ('producer', 'worker', 'observer', 'admin') then
    raise exception using errcode = 'QF022',
      message = format('pgfifo''s roles are producer, worker, observer and admin, not %s', coalesce(quote_literal(left(p_role, 100)), 'null')),
      detail = json_build_object('name', 'p_role', 'value', left(p_role, 100))::text,
      hint = 'The first argument is what somebody may do, the second is the role of the database that may.';
  end if;
end $$;
