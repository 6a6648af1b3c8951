-- Look for what must not be: recorded starts that broke order or slots, ledgers that disagree with the rows they count,
-- rows without their counterpart; and for what is overdue because nobody was there to act. In one snapshot. With repair,
-- what can be derived again is: lanes are marked, ledgers recounted under their locks, as many in one call as a batch may
-- lock. Not compiled: on an empty queue that took a hundred times as long as the looking.
create or replace function pgfifo.check(p_repair boolean default false)
returns table (severity text, kind text, lane text, detail text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
declare
  v_lane record;
  v_limit record;
  v_wrong record;
  v_said constant text := '%s waiting, %s running, %s held, %s riding, %s returned, %s yielded, %s to join';
  v_state pgfifo.ledger;
begin
  if p_repair then
    perform pgfifo._require_read_committed('check (with repair)');
    if not has_function_privilege(pgfifo._caller(), 'pgfifo._role_admin()'::regprocedure, 'execute') then
      raise exception using errcode = 'QF026', message = format('role %s may look with check, and not repair', quote_ident(pgfifo._caller())),
        detail = json_build_object('role', pgfifo._caller())::text, hint = 'That is for an admin: see pgfifo.grant_role.';
    end if;
    perform pg_current_xact_id();
  end if;
  return query
  with counted as (
    select l.id, a.name || coalesce(nullif(' ' || pgfifo.format_group(l.group_text), ' '), '') as name, g.running, g.held, g.riding, g.yielded, g.returned,
      g.waiting + n.waiting as waiting, g.enqueued + n.waiting + n.delayed as enqueued, g.delayed + n.delayed as delayed,
      g.succeeded + g.failed + g.cancelled + g.expired as completed, g.held_from, g.returned_from, g.delayed_from
    from pgfifo.lanes l join pgfifo.actions a on a.id = l.action_id join pgfifo.ledger g on g.lane_id = l.id
    cross join lateral (
      select coalesce(sum(x.n), 0) as waiting, coalesce(sum(x.delayed), 0) as delayed from pgfifo.arrivals x where x.lane_id = l.id) n)
  select 'violation', 'ledger', c.name, format('the ledger says %s; the rows say %s',
    format(v_said, c.waiting, c.running, c.held, c.riding, c.returned, c.yielded, c.delayed),
    format(v_said, coalesce(e.waiting, 0), coalesce(e.running, 0), coalesce(e.held, 0), coalesce(e.riding, 0), coalesce(e.returned, 0), coalesce(e.yielded, 0), coalesce(e.delayed, 0)))
  from counted c left join pgfifo._counts e on e.lane_id = c.id
  where (c.waiting, c.running, c.held, c.riding, c.returned, c.yielded, c.delayed) is distinct from
    (coalesce(e.waiting, 0), coalesce(e.running, 0), coalesce(e.held, 0), coalesce(e.riding, 0), coalesce(e.returned, 0), coalesce(e.yielded, 0), coalesce(e.delayed, 0))
  union all
  select 'violation', 'ledger', c.name, 'something that is held, delayed or returned lies before the bound from which it is looked for'
  from counted c join pgfifo._counts e on e.lane_id = c.id
  where e.first_held < c.held_from or e.first_returned < c.returned_from or e.first_delayed < c.delayed_from
  union all
  select 'violation', 'totals', c.name, format('enqueued %s is not completed %s + waiting %s + active %s + delayed %s', c.enqueued, c.completed, c.waiting, c.running + c.held,
    c.delayed + c.yielded)
  from counted c where c.enqueued <> c.completed + c.waiting + c.running + c.held + c.delayed + c.yielded
  union all
  select 'violation', 'orphan', null, format('%s %s has no lane', 'execution', e.id)
  from pgfifo._executions e where not exists (select from pgfifo.lanes l where l.id = e.lane_id)
  union all
  select 'violation', 'content', null, format('execution %s has %s', e.id, case when e.ticket is null and e.run_at is null then 'neither a ticket nor a time'
    when (e.owner is null) <> (e.owner_no is null) then 'an owner without a number, or a number without an owner'
    else 'a dedup_key without its action, or an action without a dedup_key' end)
  from pgfifo._executions e
  where e.ticket is null and e.run_at is null or (e.owner is null) <> (e.owner_no is null) or (e.dedup_key is null) <> (e.dedup_action_id is null)
  union all
  select 'violation', 'arrivals', null, format('arrival %s of lane %s counts %s', x.id, x.lane_id, x.n) from pgfifo.arrivals x where x.n < 0
  union all
  select 'violation', 'orphan', null, format('run %s has no content', r.id)
  from pgfifo.runs r where not exists (select from pgfifo._executions e where e.id = r.id)
  union all
  select 'violation', 'orphan', null, format('execution %s runs in the name of worker %s, which is unknown', r.id, r.worker_id)
  from pgfifo.runs r left join pgfifo._workers w on w.id = r.worker_id
  where r.state = 'running' and w.id is null
  union all
  select 'violation', 'orphan', null, format('execution %s waits for a slot in the name of worker %s, which is unknown', e.id, e.owner)
  from pgfifo._executions e where e.owner is not null and not exists (select from pgfifo._workers w where w.id = e.owner)
  union all
  select 'violation', 'shared limit', c.name, format('its ledger says %s active; the rows say %s', c.reckoned, c.taken)
  from pgfifo._shared_counts() c where c.reckoned <> c.taken
  union all
  select 'violation', 'policy', null, format('what is kept of action %s is not what is in force', p.action)
  from pgfifo._in_force f join pgfifo._action_policies p on p.action_id = f.action_id
  where f.until > pgfifo._now()
    and (f.max_concurrent, f.ordering, f.is_paused, f.has_pace, f.has_limits, f.max_queue_length, f.max_payload, f.group_by)
      is distinct from (p.max_concurrent, p.ordering, p.paused_at is not null, p.has_pace, p.has_limits, p.max_queue_length, p.max_payload, p.group_by)
  union all
  select 'violation', 'outcome', null, format('execution %s has %s outcomes on record', h.id, count(*))
  from pgfifo.history h group by h.id having count(*) > 1
  union all
  select 'violation', 'outcome', null, format('execution %s has an outcome and is still there', e.id)
  from pgfifo._executions e where exists (select from pgfifo.history h where h.id = e.id)
  union all
  select 'violation', 'sequence', null, f.o_detail from pgfifo._sequence_faults() f
  union all
  select 'violation', 'order', v.action || coalesce(nullif(' ' || pgfifo.format_group(v.group_text), ' '), ''),
    format('execution %s (ticket %s) was started before %s (ticket %s)', v.id, v.ticket, v.overtaken, v.overtaken_ticket)
  from pgfifo.order_violations v
  union all
  select 'violation', 'slots', v.action || coalesce(nullif(' ' || pgfifo.format_group(v.group_text), ' '), ''),
    format('start %s (execution %s) made %s active of %s', v.start_no, v.id, v.active, v.max_concurrent)
  from pgfifo.slot_violations v
  union all
  select 'overdue', 'worker', null, format('worker %s (%s, pid %s) was last seen at %s and still has %s', w.id, w.host, w.pid, w.last_seen,
    pgfifo._counted((select count(*) from pgfifo.runs r where r.worker_id = w.id), 'execution', 'executions'))
  from pgfifo._workers w
  where (w.state <> 'alive' or w.last_seen < pgfifo._now() - w.lease) and exists (select from pgfifo.runs r where r.worker_id = w.id)
  union all
  -- Also when no worker has come yet, whose first call would notice.
  select 'overdue', 'copy', null, format('this database is a copy of %s (restored, or made from it), and nothing starts here until it is resumed: pgfifo resume --everything',
    coalesce((w.o_home).copy_of, (w.o_home).database_name))
  from pgfifo._where() w where w.o_copied or (w.o_home).copied_at is not null
  union all
  select 'overdue', 'held', null, format('execution %s was due again at %s', r.id, r.due_at)
  from pgfifo.runs r where r.state = 'held' and r.due_at < pgfifo._now() - interval '5 s'
  union all
  select 'overdue', 'delayed', null, format('execution %s was due to join its line at %s', d.id, d.due_at)
  from (select e.id, e.run_at from pgfifo._executions e where e.ticket is null
        union all select r.id, r.due_at from pgfifo.runs r where r.state = 'yielded') d(id, due_at)
  where d.due_at < pgfifo._now() - interval '5 s'
  union all
  select 'overdue', 'schedule', null, format('the tick of schedule %s was due at %s', s.name, s.next_at)
  from pgfifo._schedules s where s.paused_at is null and s.next_at < pgfifo._now() - interval '1 min';
  if not p_repair then
    return;
  end if;
  -- A mark needs no lock, and one too many does no harm.
  insert into pgfifo.marks (action_id, id, lane_id)
  select l.action_id, nextval('pgfifo.mark_ids'), l.id from pgfifo.lanes l
  where exists (select from pgfifo._executions e where e.lane_id = l.id) order by l.id;
  -- Locks only for lanes that seem to disagree, and no more than a batch may hold: the lock table is the whole cluster's.
  for v_lane in
    select l.id
    from pgfifo.lanes l
    join pgfifo.ledger g on g.lane_id = l.id
    left join pgfifo._counts e on e.lane_id = l.id
    where (g.waiting + coalesce((select sum(x.n) from pgfifo.arrivals x where x.lane_id = l.id), 0), g.running, g.held, g.riding, g.returned, g.yielded,
        g.delayed + coalesce((select sum(x.delayed) from pgfifo.arrivals x where x.lane_id = l.id), 0)) is distinct from
      (coalesce(e.waiting, 0), coalesce(e.running, 0), coalesce(e.held, 0), coalesce(e.riding, 0), coalesce(e.returned, 0), coalesce(e.yielded, 0), coalesce(e.delayed, 0))
      or e.first_held < g.held_from or e.first_returned < g.returned_from or e.first_delayed < g.delayed_from
    order by pgfifo._key(l.id) limit pgfifo.max_batch_lanes()
  loop
    continue when not pg_try_advisory_xact_lock('pgfifo.lanes'::regclass::oid::integer, pgfifo._key(v_lane.id));
    select g.* into v_state from pgfifo.ledger g where g.lane_id = v_lane.id order by g.lane_id desc, g.version desc limit 1;
    continue when not found;
    select coalesce(max(e.waiting), 0) - coalesce(max(n.waiting), 0) - v_state.waiting as waiting, coalesce(max(e.running), 0) - v_state.running as running,
        coalesce(max(e.riding), 0) - v_state.riding as riding, coalesce(max(e.held), 0) - v_state.held as held, coalesce(max(e.returned), 0) - v_state.returned as returned,
        coalesce(max(e.yielded), 0) - v_state.yielded as yielded, coalesce(max(e.delayed), 0) - coalesce(max(n.delayed), 0) - v_state.delayed as delayed,
        coalesce(bool_or(e.first_held < v_state.held_from or e.first_returned < v_state.returned_from or e.first_delayed < v_state.delayed_from), false) as bounds
      into v_wrong
    from (select sum(x.n) as waiting, sum(x.delayed) as delayed from pgfifo.arrivals x where x.lane_id = v_lane.id) n
    left join pgfifo._counts e on e.lane_id = v_lane.id;
    if v_wrong.bounds or (v_wrong.waiting, v_wrong.running, v_wrong.held, v_wrong.riding, v_wrong.returned, v_wrong.yielded, v_wrong.delayed)
      is distinct from (0, 0, 0, 0, 0, 0, 0) then
      perform pgfifo._append(v_lane.id, p_waiting => v_wrong.waiting::integer, p_running => v_wrong.running::integer, p_held => v_wrong.held::integer,
        p_riding => v_wrong.riding::integer, p_returned => v_wrong.returned::integer, p_yielded => v_wrong.yielded::integer, p_delayed => v_wrong.delayed::integer,
        p_held_from => '-infinity', p_returned_from => 0, p_delayed_from => 'epoch');
      return query select 'repaired', 'ledger', null::text, format('lane %s was counted again', v_lane.id);
    end if;
  end loop;
  -- Shared limits after lanes, as in a claim, and with as short a wait.
  for v_limit in
    select c.limit_id as id, c.name from pgfifo._shared_counts() c where c.reckoned <> c.taken order by c.limit_id
  loop
    continue when not pgfifo._lock('pgfifo._shared_limits'::regclass, v_limit.id, interval '50 ms');
    -- Law 1: counted in a statement after the lock.
    if pgfifo._shared_recount(v_limit.id) then
      return query select 'repaired', 'shared limit', v_limit.name, 'what is taken of it was counted again'::text;
    end if;
  end loop;
  -- Claims write these rows anew.
  delete from pgfifo._in_force;
  perform pgfifo._audit('check', null, null, '{"repair": true}');
end $$;
comment on function pgfifo.check is 'Look for violations of the promises and for what is overdue; repair what can be derived again (call it until nothing is repaired).';
