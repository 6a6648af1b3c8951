-- Take the slot lock of a running execution's lane and, in the next statement, read the run if it is still this attempt
-- by a living worker. A null row if it is not.
create or replace function pgfifo._lock_run(p_id bigint, p_attempt integer, p_call text) returns pgfifo.runs
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_run pgfifo.runs;
  v_role name;
begin
  select r.* into v_run from pgfifo.runs r where r.id = p_id and r.attempt = p_attempt and r.state = 'running';
  if not found then
    return null;
  end if;
  select w.role into v_role from pgfifo._workers w where w.id = v_run.worker_id;
  if v_role <> pgfifo._caller() then
    perform pgfifo._require_own(v_role, format('execution %s', p_id));
  end if;
  -- The worker's fence first, as everywhere: whoever declares it dead takes it before any lane.
  perform pg_advisory_xact_lock_shared('pgfifo.runs'::regclass::oid::integer, pgfifo._key(v_run.worker_id));
  perform pgfifo._lock_lane(v_run.lane_id, p_call);
  select r.* into v_run from pgfifo.runs r join pgfifo._workers w on w.id = r.worker_id
  where r.id = p_id and r.attempt = p_attempt and r.state = 'running' and w.state = 'alive';
  return v_run;
end $$;

create or replace function pgfifo._lease_lost(p_id bigint, p_attempt integer) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from pgfifo._executions e where e.id = p_id) and not exists (select from pgfifo.history h where h.id = p_id) then
    perform pgfifo._unknown_execution(p_id);
  end if;
  raise exception using errcode = 'QF010',
    message = format('attempt %s of execution %s is not running any more', coalesce(p_attempt::text, 'null'), p_id),
    detail = json_build_object('id', p_id, 'attempt', p_attempt)::text,
    hint = 'It was finished, cancelled or taken back, perhaps because its worker was taken for dead. Nothing was changed.';
end $$;

-- p_open: producers' open transactions that it may be in.
create or replace function pgfifo._unknown_execution(p_id bigint, p_open jsonb default '[]') returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QF021',
    message = format('there is no execution %s', coalesce(p_id::text, 'null')),
    detail = (jsonb_build_object('id', p_id) || case when p_open = '[]' then '{}' else jsonb_build_object('pids', jsonb_path_query_array(p_open, '$[*].pid')) end)::text,
    hint = case when p_open = '[]' then 'It may never have been committed, or its retention is over.'
           else format('It may be in a transaction that has not committed yet: %s. Or its retention is over.', pgfifo._name_holders(p_open)) end;
end $$;

-- Under the lane's slot lock: leave a mark and wake a worker if something waits or is held there.
create or replace function pgfifo._mark_if_waiting(p_lane_id bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_waiting bigint;
begin
  select g.waiting into v_waiting from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1;
  if v_waiting > 0 then
    perform pgfifo._mark(p_lane_id);
    perform pgfifo._tell_next(p_lane_id);
    perform pgfifo._wake(a.id, a.name) from pgfifo.lanes l join pgfifo.actions a on a.id = l.action_id where l.id = p_lane_id;
  end if;
end $$;
