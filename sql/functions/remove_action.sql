-- Remove an action that is not used any more, with all that is known of it: policies, schedules, lanes, statistics, history.
-- Only the audit keeps its name. Refused while something of it has no outcome yet, and while a worker that lives serves it.
-- Locks, in this order, all waited for for a short time: maintenance (ticks), so that nobody counts or sweeps meanwhile; the
-- action's enqueue lock, exclusive, so that no enqueue is in flight or gets in; the lock of its limits, exclusive, so that no
-- claim is. Then, in statements of their own, we look, and only then delete. An enqueue that had found the action before and
-- waits for our lock finds no action any more, and fails; one that begins later makes a new action of this name.
-- Any table with a column action_id or lane_id is about actions or lanes: so what is added one day is not forgotten here.
create or replace function pgfifo.remove_action(p_action text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_action_id integer := pgfifo._known_action(p_action);
  v_lanes bigint[];
  v_targets text[];
  v_count bigint;
  v_table record;
begin
  perform pgfifo._require_read_committed('remove_action');
  if not pgfifo._lock('pgfifo.ticks'::regclass, 0, interval '5 s') then
    perform pgfifo._busy('pgfifo.remove_action gave up after 5 s: maintenance is under way', 'pgfifo.ticks'::regclass, 0);
  end if;
  if not pgfifo._lock('pgfifo.actions'::regclass, v_action_id, interval '1 s') then
    perform pgfifo._busy(format('pgfifo.remove_action gave up after 1 s: enqueues of %s are in flight', p_action), 'pgfifo.actions'::regclass, v_action_id);
  end if;
  perform pgfifo._lock_limits('action', v_action_id, null, 'remove_action');
  v_lanes := array(select l.id from pgfifo.lanes l where l.action_id = v_action_id);
  select count(*) into v_count from pgfifo._executions e where e.lane_id = any (v_lanes);
  if v_count > 0 then
    raise exception using errcode = 'QF023',
      message = format('action %s cannot be removed: %s', p_action,
        pgfifo._counted(v_count, 'execution of it has no outcome yet', 'executions of it have no outcome yet')),
      detail = json_build_object('action', p_action, 'unfinished', v_count)::text,
      hint = 'Let it drain, or cancel them: pgfifo.cancel_where.';
  end if;
  select count(*) into v_count from pgfifo._workers w where w.state = 'alive' and w.kind = 'worker' and w.actions @> array[p_action];
  if v_count > 0 then
    raise exception using errcode = 'QF023',
      message = format('action %s cannot be removed: %s', p_action, pgfifo._counted(v_count, 'worker serves it', 'workers serve it')),
      detail = json_build_object('action', p_action, 'workers', v_count)::text, hint = 'Stop them, or deploy them without it.';
  end if;
  -- Who follows events and has not been told all of them is told that they are gone.
  perform pgfifo._forget(0, (select max(h.event_no) from pgfifo.history h where h.action_id = v_action_id));
  for v_table in
    select c.oid::regclass as name, max(a.attname) filter (where a.attname = 'action_id') as action_id, max(a.attname) filter (where a.attname = 'lane_id') as lane_id
    from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attname in ('action_id', 'lane_id') and not a.attisdropped
    where c.relnamespace = 'pgfifo'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
    group by c.oid order by c.oid
  loop
    if v_table.action_id is not null then
      execute format('delete from %s x where x.action_id = $1', v_table.name) using v_action_id;
    end if;
    if v_table.lane_id is not null then
      execute format('delete from %s x where x.lane_id = any ($1)', v_table.name) using v_lanes;
    end if;
  end loop;
  v_targets := array(select 'lane:' || l.id from unnest(v_lanes) l(id)) || ('action:' || v_action_id);
  delete from pgfifo.tallies t where t.target = any (array(select k.kind || x.target from unnest(v_targets) x(target), (values ('quota '), ('length ')) k(kind)));
  delete from pgfifo.actions a where a.id = v_action_id;
  -- Workers that have gone and served nothing that there still is. Rescue is done with them: it is part of maintenance, which waits.
  delete from pgfifo._workers w where w.state <> 'alive' and w.kind = 'worker' and w.actions @> array[p_action]
    and not exists (select from pgfifo.actions a where a.name = any (w.actions)) and not exists (select from pgfifo.runs r where r.worker_id = w.id);
  perform pgfifo._audit('remove_action', p_action, null, jsonb_build_object('lanes', cardinality(v_lanes)));
end $$;
comment on function pgfifo.remove_action is 'Remove an action that is not used any more, with its policies, schedules, statistics and history.';
