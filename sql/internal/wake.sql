-- Notify when somebody sleeps who serves this action, and not otherwise: a transaction that notifies takes a lock of the
-- whole database at its commit. Sleepers hold a shared session lock; one expression takes and gives back the exclusive
-- one, so nothing is held when it returns. A worker that falls asleep between this look and our commit is woken by its
-- poll: the documented bound. `set local pgfifo.notify = off` keeps a transaction free of it (PREPARE TRANSACTION).
create or replace function pgfifo._wake(p_action_id integer, p_action text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if pgfifo._asleep(p_action_id) then
    perform pg_notify('pgfifo', p_action);
  end if;
end $$;

-- Whether somebody sleeps whom this transaction may notify. By itself for the hot paths: an `if` is evaluated in place,
-- a `perform` is a query.
create or replace function pgfifo._asleep(p_action_id integer) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  return current_setting('pgfifo.notify', true) is distinct from 'off'
    and not case when pg_try_advisory_lock('pgfifo.marks'::regclass::oid::integer, p_action_id)
            then pg_advisory_unlock('pgfifo.marks'::regclass::oid::integer, p_action_id) else false end;
end $$;

-- Have the workers of these executions ask at once what to stop, and not with their next heartbeat: payload 'cancel' and the worker,
-- with a space, which no action's name has. They listen while they are busy too, so nobody is asked whether somebody sleeps; it is
-- one notification per worker, however many are cancelled. Who polls behind a pooler listens to nothing.
create or replace function pgfifo._call_workers(p_ids bigint[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_ids <> '{}' and current_setting('pgfifo.notify', true) is distinct from 'off' then
    perform pg_notify('pgfifo', 'cancel ' || w.id)
    from (select distinct r.worker_id as id from unnest(p_ids) i(id)
          cross join lateral (select r.worker_id from pgfifo.runs r where r.id = i.id offset 0) r) w
    where exists (select from pgfifo._workers o where o.id = w.id and o.locked);
  end if;
end $$;
