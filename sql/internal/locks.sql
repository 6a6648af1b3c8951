-- Advisory locks have a class, the oid of one of our tables, and a key of 32 bits. Class and table always in this order:
--   lanes       slot lock of a lane: exclusive, whoever decides about its slots
--   executions  enqueue lock of a lane: exclusive (strict) or shared (relaxed), to the end of the enqueuing transaction
--   actions     shared by enqueues, exclusive for changes of ordering and group_by
--   policies    shared by claims, exclusive for changes of limits; key 0 stands for packs and everything
--   runs        worker fence: shared by claim and heartbeat, exclusive for whoever declares the worker dead
--   workers     liveness: held by a session of the living worker (with `marks` and `history` the only locks that outlive a transaction)
--   marks       shared by sessions of workers that sleep, per action
--   history     shared by sessions that wait for the end of an execution, and with key 0 for any
--   schedules   who sets or declares schedules; key 0
--   _in_force   by try, exclusive: a claim, or a change, that writes down what is in force for an action
--   scans       election per action; ticks: election for maintenance
create or replace function pgfifo._key(p_id bigint) returns integer
language sql immutable parallel safe strict
as $$ select (p_id operator(pg_catalog.&) 2147483647)::integer $$;

-- Wait for an exclusive (or a shared) lock, at most so long; false when it could not be had. The wait is in a block of its own: when it
-- fails, the lock and the setting go with the block, and nothing after it relies on either.
create or replace function pgfifo._lock(p_class oid, p_key integer, p_wait interval, p_shared boolean default false) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before text;
begin
  if p_shared and pg_try_advisory_xact_lock_shared(p_class::integer, p_key) or not p_shared and pg_try_advisory_xact_lock(p_class::integer, p_key) then
    return true;
  end if;
  v_before := current_setting('lock_timeout');
  begin
    perform set_config('lock_timeout', greatest(1, extract(epoch from p_wait) * 1000)::integer::text, true);
    if p_shared then
      perform pg_advisory_xact_lock_shared(p_class::integer, p_key);
    else
      perform pg_advisory_xact_lock(p_class::integer, p_key);
    end if;
    perform set_config('lock_timeout', v_before, true);
    return true;
  exception when lock_not_available then
    return false;
  end;
end $$;

-- Raise Busy for a lock that could not be had, naming who holds it. No query texts: they are not everybody's business.
create or replace function pgfifo._busy(p_message text, p_class oid, p_key integer, p_detail jsonb default '{}') returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_pids integer[];
  v_who text;
begin
  select array_agg(l.pid order by l.pid),
      string_agg(format('pid %s%s, in a transaction since %s', l.pid, ' (' || nullif(a.application_name, '') || ')',
        coalesce(to_char(a.xact_start, 'HH24:MI:SS'), 'we may not see when')), '; ' order by l.pid)
    into v_pids, v_who
  from pg_locks l
  left join pg_stat_activity a on a.pid = l.pid
  where l.locktype = 'advisory' and l.granted and l.objsubid = 2 and l.classid = p_class and l.objid = p_key::oid and l.pid <> pg_backend_pid()
    and l.database = (select d.oid from pg_database d where d.datname = current_database());
  raise exception using errcode = 'QF023', message = p_message,
    detail = (p_detail || jsonb_build_object('pids', coalesce(v_pids, '{}')))::text,
    hint = case when v_pids is null then 'Try again: whoever held it has just ended.'
           else format('Try again when this has ended: %s.', v_who) end;
end $$;

-- The slot lock of one lane, for callers who may wait: cancel, pause, a lane's policy, a single finish.
create or replace function pgfifo._lock_lane(p_lane_id bigint, p_call text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if not pgfifo._lock('pgfifo.lanes'::regclass, pgfifo._key(p_lane_id), interval '5 s') then
    perform pgfifo._busy(format('pgfifo.%s gave up after 5 s: another transaction holds this lane', p_call),
      'pgfifo.lanes'::regclass, pgfifo._key(p_lane_id), jsonb_build_object('lane_id', p_lane_id));
  end if;
end $$;

-- The rows of those executions that have yet to join their lines, to the end of the transaction; false where that takes
-- longer than p_wait: an enqueue that lets one join has not committed. The caller holds no slot lock yet: whoever has one
-- never waits for such a row. In the order of ids: another call may be at the same ones.
-- Of one that has joined by the time we get it no lock may stay, and PostgreSQL keeps it although the row does not fit any
-- more: we are going to wait for the lane's slot lock, and whoever has that may run it, end it, and want to delete its row.
-- So all of them are let go with the block, and it is tried again without that one.
create or replace function pgfifo._lock_delayed(p_ids bigint[], p_wait interval) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before text := current_setting('lock_timeout');
  v_delayed bigint[];
begin
  loop
    v_delayed := array(select e.id from pgfifo._executions e where e.id = any (p_ids) and e.ticket is null order by e.id);
    -- In a block of its own, as in _lock. A row that has gone meanwhile, or has joined, is the caller's to notice.
    begin
      perform set_config('lock_timeout', greatest(1, extract(epoch from p_wait) * 1000)::integer::text, true);
      if array(select e.id from pgfifo._executions e where e.id = any (v_delayed) and e.ticket is null order by e.id for update) <> v_delayed then
        raise no_data_found;
      end if;
      perform set_config('lock_timeout', v_before, true);
      return true;
    exception
      when lock_not_available then
        return false;
      when no_data_found then
        null;
    end;
  end loop;
end $$;

-- Raise Busy for such a row, naming the enqueue that is under way.
create or replace function pgfifo._joining(p_id bigint, p_lane_id bigint, p_call text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pgfifo._busy(format('pgfifo.%s gave up: execution %s is joining its line in an open transaction', p_call, p_id),
    'pgfifo._executions'::regclass, pgfifo._key(p_lane_id), jsonb_build_object('id', p_id, 'lane_id', p_lane_id));
end $$;
