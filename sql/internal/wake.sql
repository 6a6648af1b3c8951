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

-- Tell whoever waits for a slot that his turn may have come: channel pgfifo_slots, payload: his worker's id, a space, and what
-- waits. He is the first of the line; if he cannot start yet, he finds that out by looking. Under the lane's slot lock.
create or replace function pgfifo._tell_next(p_lane_id bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('pgfifo.notify', true) is distinct from 'off' then
    perform pg_notify('pgfifo_slots', o.owner || ' ' || o.id)
    from (
      select e.id, e.owner from pgfifo._executions e
      where e.lane_id = p_lane_id
        and e.ticket > (select g.consumed from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1)
      order by e.lane_id, e.ticket limit 1) o
    where o.owner is not null;
  end if;
end $$;

-- Executions that have just been started, under their lanes' slot locks, in the names of those who wait for the slots: tell
-- them, except for the worker whose own call this is. Who is gone is not told: it has failed, and its slot is free again. Should he be declared dead while we are at it,
-- rescue finds the row when we have committed.
create or replace function pgfifo._tell_owners(p_ids bigint[], p_worker bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_run pgfifo.runs;
begin
  for v_run in
    select r.* from unnest(p_ids) i(id) cross join lateral (select r.* from pgfifo.runs r where r.id = i.id offset 0) r
    where not exists (select from pgfifo._workers w where w.id = r.worker_id and w.state = 'alive')
  loop
    perform pgfifo._end_run(v_run, 'failed', p_error => 'holder lost', p_failures => v_run.failures + 1, p_lost => true);
    perform pgfifo._mark_if_waiting(v_run.lane_id);
  end loop;
  if current_setting('pgfifo.notify', true) is distinct from 'off' then
    perform pg_notify('pgfifo_slots', r.worker_id || ' ' || i.id)
    from unnest(p_ids) i(id)
    cross join lateral (select r.worker_id from pgfifo.runs r where r.id = i.id and r.state = 'running' offset 0) r
    where r.worker_id <> p_worker;
  end if;
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
    perform pg_notify(case o.kind when 'slot' then 'pgfifo_slots' else 'pgfifo' end, case o.kind when 'slot' then '' else 'cancel ' end || w.id)
    from (select distinct r.worker_id as id from unnest(p_ids) i(id)
          cross join lateral (select r.worker_id from pgfifo.runs r where r.id = i.id offset 0) r) w
    join pgfifo._workers o on o.id = w.id and o.locked;
  end if;
end $$;
