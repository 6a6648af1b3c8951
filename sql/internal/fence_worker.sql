-- Hold the worker's fence, shared, to the commit, then look whether it is still alive. Whoever declares it dead takes the
-- fence exclusive and holds it to his commit; so what is decided after this is decided by a living worker.
-- False if it may claim nothing yet: a new epoch has begun, and its next heartbeat has to say what it holds (see _come_home).
create or replace function pgfifo._fence_worker(p_worker bigint) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_state text;
  v_role name;
  v_is_known boolean;
begin
  if current_setting('pgfifo.home', true) is distinct from 'pgfifo._home'::regclass::oid::text then
    perform pgfifo._come_home();
  end if;
  if not pg_try_advisory_xact_lock_shared('pgfifo.runs'::regclass::oid::integer, pgfifo._key(p_worker)) then
    perform pg_advisory_xact_lock_shared('pgfifo.runs'::regclass::oid::integer, pgfifo._key(p_worker));
  end if;
  select w.state, w.role, w.epoch = (select i.epoch from pgfifo.installation i) into v_state, v_role, v_is_known from pgfifo._workers w where w.id = p_worker;
  if v_state is distinct from 'alive' then
    raise exception using errcode = 'QF010',
      message = case when v_state is null then format('there is no worker %s', coalesce(p_worker::text, 'null'))
                else format('worker %s is %s: what it held is no longer its own', p_worker, v_state) end,
      detail = json_build_object('worker', p_worker, 'state', v_state)::text,
      hint = 'Register again with pgfifo.worker_start and go on under the new id.';
  end if;
  if v_role <> pgfifo._caller() then
    perform pgfifo._require_own(v_role, format('worker %s', p_worker));
  end if;
  return v_is_known;
end $$;
