-- Cancel many executions, each as pgfifo.cancel does. Answers in input order: 'cancelled', 'requested', the outcome of what was over
-- before, 'unknown' where there is no such execution, and 'busy' where its lane's slot lock could not be had: the call waits 5 s, in
-- all. At most 10,000 ids, in at most max_batch_lanes() lanes.
-- What runs gets a request row and nothing is locked, so a caller's open transaction holds up no finish. For the others the slot locks
-- of their lanes are held to the caller's commit; claims pass these lanes by meanwhile. One that has yet to join its line may be
-- joining in somebody's open transaction: its row is waited for first, with no lock of a lane in hand, and is 'busy' after the 5 s.
create or replace function pgfifo.cancel_many(p_ids bigint[], p_reason text default null)
returns table (ordinal integer, id bigint, answer text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  c_most constant integer := 10000;
  c_lanes constant integer := 'pgfifo.lanes'::regclass::oid::integer;
  v_now timestamptz := pgfifo._now();
  v_reason text := left(p_reason, 1000);
  v_until timestamptz := clock_timestamp() + interval '5 s';
  v_running bigint[];
  v_attempts integer[];
  v_rest bigint[];
  v_lanes bigint[];
  v_lane_id bigint;
  v_locked bigint[] := '{}';
  v_freed bigint[] := '{}';
  v_run pgfifo.runs;
  v_waiting bigint[];
  v_ended record;
  -- What was done: an answer and a lane for each id.
  v_ids bigint[] := '{}';
  v_of bigint[] := '{}';
  v_answers text[] := '{}';
begin
  perform pgfifo._require_read_committed('cancel');
  if coalesce(cardinality(p_ids), 0) > c_most or array_ndims(p_ids) > 1 or array_position(p_ids, null) is not null then
    raise exception using errcode = 'QF022',
      message = case when cardinality(p_ids) > c_most then format('%s ids at once; at most %s are allowed', pgfifo._number(cardinality(p_ids)), pgfifo._number(c_most))
                     else 'null is no id of an execution' end,
      detail = json_build_object('name', 'p_ids', 'value', cardinality(p_ids))::text, hint = 'Give ids of executions, in several calls if they are many.';
  end if;
  perform pgfifo._durable();

  -- What runs, without a lock. In the order of ids: another call may be at the same ones, and we wait for its requests.
  select array_agg(r.id order by r.id), array_agg(r.attempt order by r.id) into v_running, v_attempts
  from (select distinct i from unnest(p_ids) i) i(id)
  cross join lateral (select r.id, r.attempt, r.state from pgfifo.runs r where r.id = i.id offset 0) r
  where r.state = 'running';
  if v_running is not null then
    insert into pgfifo.cancellations (id, requested_at, requested_by, reason)
    select i.id, v_now, session_user, v_reason from unnest(v_running) i(id) order by i.id
    on conflict (id) do nothing;
    -- One may have ended while we wrote: then the request means nothing, and it is one of the others. If it ends after this
    -- statement it was running when we asked; whoever ends or restarts it sees the request, maintenance clears it away.
    select coalesce(array_agg(r.id), '{}'), coalesce(array_agg(r.lane_id), '{}'), coalesce(array_agg('requested'::text), '{}') into v_ids, v_of, v_answers
    from unnest(v_running, v_attempts) i(id, attempt)
    cross join lateral (select r.id, r.lane_id, r.attempt, r.state from pgfifo.runs r where r.id = i.id offset 0) r
    where r.attempt = i.attempt and r.state = 'running';
    if cardinality(v_ids) < cardinality(v_running) then
      delete from pgfifo.cancellations c where c.id = any (array(select i from unnest(v_running) i except select i from unnest(v_ids) i));
    end if;
  end if;

  -- The others' lanes: a hint, read without a lock; an execution never changes its lane.
  v_rest := array(select i from unnest(p_ids) i except select i from unnest(v_ids) i);
  v_lanes := array(
    select e.lane_id from unnest(v_rest) i(id) cross join lateral (select e.lane_id from pgfifo._executions e where e.id = i.id offset 0) e
    group by e.lane_id order by pgfifo._key(e.lane_id));
  if cardinality(v_lanes) > pgfifo.max_batch_lanes() then
    raise exception using errcode = 'QF020',
      message = format('these executions wait in %s; at most %s are allowed in one call',
        pgfifo._counted(cardinality(v_lanes), 'lane', 'lanes'), pgfifo._number(pgfifo.max_batch_lanes())),
      detail = json_build_object('lanes', cardinality(v_lanes), 'limit', pgfifo.max_batch_lanes())::text,
      hint = 'Cancel fewer at once: each lane''s lock is held until the commit, in a table that the whole cluster shares.';
  end if;
  perform pgfifo._lock_delayed(v_rest, v_until - clock_timestamp())
  where exists (select from unnest(v_rest) i(id) cross join lateral (select e.ticket from pgfifo._executions e where e.id = i.id offset 0) e where e.ticket is null);
  foreach v_lane_id in array v_lanes loop
    if pg_try_advisory_xact_lock(c_lanes, pgfifo._key(v_lane_id))
      or (clock_timestamp() < v_until and pgfifo._lock('pgfifo.lanes'::regclass, pgfifo._key(v_lane_id), v_until - clock_timestamp()))
    then
      v_locked := v_locked || v_lane_id;
    end if;
  end loop;

  -- Law 1: only what is read from here on counts. Under its lane's slot lock nothing starts and nothing ends.
  perform pgfifo._expire_ids(v_rest, v_locked);
  for v_run in
    select r.* from unnest(v_rest) i(id) cross join lateral (select r.* from pgfifo.runs r where r.id = i.id offset 0) r
    where r.lane_id = any (v_locked) order by r.id
  loop
    insert into pgfifo.cancellations (id, requested_at, requested_by, reason) values (v_run.id, v_now, session_user, v_reason)
      on conflict (id) do nothing;
    if v_run.state <> 'running' then
      perform pgfifo._end_run(v_run, 'cancelled');
      v_freed := v_freed || v_run.lane_id;
    end if;
    v_ids := v_ids || v_run.id;
    v_of := v_of || v_run.lane_id;
    v_answers := v_answers || case when v_run.state = 'running' then 'requested' else 'cancelled' end;
  end loop;
  v_waiting := array(
    select e.id from unnest(v_rest) i(id) cross join lateral (select e.id, e.lane_id from pgfifo._executions e where e.id = i.id offset 0) e
    where e.lane_id = any (v_locked) and not exists (select from pgfifo.runs r where r.id = e.id offset 0));
  if v_waiting <> '{}' then
    select * into v_ended from pgfifo._end_waiting(v_waiting, 'cancelled', v_reason);
    v_ids := v_ids || v_ended.o_ids;
    v_of := v_of || v_ended.o_lanes;
    v_answers := v_answers || array_fill('cancelled'::text, array[cardinality(v_ended.o_ids)]);
  end if;
  -- A held one gives a slot back.
  perform pgfifo._mark_if_waiting(f.lane_id) from (select distinct f as lane_id from unnest(v_freed) f) f;
  perform pgfifo._call_workers(array(select d.id from unnest(v_ids, v_answers) d(id, answer) where d.answer = 'requested'));
  perform pg_current_xact_id();
  insert into pgfifo.audit (at, who, application, actor, what, action, group_text, detail)
  select v_now, session_user, coalesce(current_setting('application_name', true), ''), nullif(current_setting('pgfifo.actor', true), ''), 'cancel',
    l.name, l.group_text, jsonb_build_object('id', d.id, 'reason', p_reason, 'answer', d.answer)
  from unnest(v_ids, v_of, v_answers) with ordinality d(id, lane_id, answer, n)
  left join lateral (
    select a.name, l.group_text from pgfifo.lanes l join pgfifo.actions a on a.id = l.action_id where l.id = d.lane_id offset 0) l on true
  order by d.n;

  return query
    select i.n::integer, i.id, coalesce(d.answer,
      case when exists (select from pgfifo._executions e where e.id = i.id) then 'busy' end,
      (select h.outcome from pgfifo.history h where h.id = i.id limit 1),
      'unknown')
    from unnest(p_ids) with ordinality i(id, n) left join unnest(v_ids, v_answers) d(id, answer) on d.id = i.id
    order by i.n;
end $$;
comment on function pgfifo.cancel_many is 'Cancel up to 10,000 executions; returns an answer for each, in input order.';
