-- Let delayed executions of one lane that are due join the end of its line, at most p_limit, in the order of their times.
-- A ticket is given out only under the lane's enqueue lock, which the caller holds since an earlier statement, to its
-- commit: p_alone says exclusively. READ COMMITTED only: an older snapshot would fail on rows that others have admitted.
-- The counts go the way of an enqueue, through an arrival that is folded under the slot lock; nothing here needs that.
-- Those that are not due have timers of their own; what is left over here has the mark. Rows that somebody has locked (a
-- cancel; in a relaxed lane another admission) are passed over: whoever locked them ends them, admits them, or gives up, and
-- then they are due still.
-- Dies here: nothing happened; they are due still.
create or replace function pgfifo._admit(p_lane_id bigint, p_limit integer, p_alone boolean) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz;
  v_from timestamptz;
  v_total bigint;
  v_first bigint;
  v_id bigint;
  v_count integer := 0;
  v_next timestamptz;
  v_mark bigint;
begin
  -- An xid before the time is read and before a mark's id is drawn: scans rely on that.
  perform pg_current_xact_id();
  v_now := pgfifo._now();
  select g.delayed_from, case when m.total is not null then m.total end into v_from, v_total
  from (select g.delayed_from, g.mark_floor from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1) g
  left join lateral (
    select a.total from pgfifo.arrivals a where a.lane_id = p_lane_id and a.id > g.mark_floor order by a.lane_id desc, a.id desc limit 1) m on true;
  for v_id in
    select e.id from pgfifo._executions e
    where e.lane_id = p_lane_id and e.ticket is null and e.run_at >= v_from and e.run_at <= v_now
    order by e.lane_id, e.run_at, e.id limit p_limit for update skip locked
  loop
    -- One by one: the sequence is drawn from in this order, and each row is found by its key.
    update pgfifo._executions e set ticket = nextval('pgfifo.execution_ids'), joined_at = v_now where e.id = v_id returning coalesce(v_first, e.ticket) into strict v_first;
    v_count := v_count + 1;
  end loop;
  if v_count = 0 then
    return 0;
  end if;
  select min(e.run_at) into v_next from pgfifo._executions e where e.lane_id = p_lane_id and e.ticket is null and e.run_at >= v_from;
  insert into pgfifo.arrivals (lane_id, id, n, delayed, first_ticket, total, delayed_from)
  values (p_lane_id, nextval('pgfifo.mark_ids'), v_count, -v_count, case when not p_alone then v_first end, v_total + v_count,
    case when p_alone then least(v_now, v_next) end)
  returning id into strict v_mark;
  insert into pgfifo.marks (action_id, id, lane_id) select l.action_id, v_mark, l.id from pgfifo.lanes l where l.id = p_lane_id;
  return v_count;
end $$;

-- The part of a claim that looks after delayed executions. The caller holds these lanes' slot locks since an earlier
-- statement.
-- p_lanes: where some are delayed. Those that are due join the line, if the lane's enqueue lock can be had by try: a claim
-- waits for nobody. Where it cannot, an enqueue is under way. If it began after they were due, it has admitted them itself;
-- else its commit leaves a mark; should it roll back, a timer of ours brings somebody back. Producers that never pause can
-- keep a try away for ever, but each of them admits what is due; those above READ COMMITTED do not, see _admit_late.
-- p_folded, p_from: bounds that admissions have proposed. An admission saw no rows that were being made under the slot lock
-- (a retry that goes to the end, a new time for a delayed one), so each is looked at again here, where those are visible.
-- What was being enqueued meanwhile is due after the enqueue lock was had, and so after the admission. Returns p_from.
create or replace function pgfifo._join_due(p_lanes bigint[], p_folded bigint[], p_from timestamptz[]) returns timestamptz[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pgfifo._now();
  v_due record;
  v_from timestamptz[];
begin
  select array_agg(case when f.upto is not null then least(f.upto, o.first) end order by f.n) into v_from
  from unnest(p_folded, p_from) with ordinality f(lane_id, upto, n)
  cross join lateral (select g.delayed_from from pgfifo.ledger g where g.lane_id = f.lane_id order by g.lane_id desc, g.version desc limit 1) g
  cross join lateral (
    select min(e.run_at) as first from pgfifo._executions e
    where e.lane_id = f.lane_id and e.ticket is null and e.run_at >= g.delayed_from and e.run_at < f.upto) o;
  for v_due in
    select l.lane_id, d.run_at
    from unnest(p_lanes) l(lane_id)
    cross join lateral (select g.delayed_from from pgfifo.ledger g where g.lane_id = l.lane_id order by g.lane_id desc, g.version desc limit 1) g
    cross join lateral (
      select e.run_at from pgfifo._executions e
      where e.lane_id = l.lane_id and e.ticket is null and e.run_at >= g.delayed_from and e.run_at <= v_now
      order by e.lane_id, e.run_at limit 1) d
  loop
    if pg_try_advisory_xact_lock('pgfifo._executions'::regclass::oid::integer, pgfifo._key(v_due.lane_id)) then
      continue when pgfifo._admit(v_due.lane_id, 200, true) > 0;
    end if;
    perform pgfifo._join_later(v_due.lane_id, v_due.run_at);
  end loop;
  return v_from;
end $$;

-- Come back to a lane whose due ones could not join: in a tenth of a second, or a second where that has been so for long.
-- Under the lane's slot lock, and at round times only, so that many looks at the lane leave one timer.
create or replace function pgfifo._join_later(p_lane_id bigint, p_due_at timestamptz) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz;
  v_step double precision;
  v_at timestamptz;
begin
  perform pg_current_xact_id();
  v_now := pgfifo._now();
  v_step := case when v_now - p_due_at > interval '2 s' then 1 else 0.1 end;
  v_at := to_timestamp((floor(extract(epoch from v_now) / v_step) + 1.5) * v_step);
  if not exists (select from pgfifo.timers t join pgfifo.lanes l on l.id = t.lane_id
                 where t.action_id = l.action_id and t.due_at = v_at and l.id = p_lane_id)
  then
    perform pgfifo._timer(p_lane_id, v_at);
  end if;
end $$;

-- The part of maintenance that waits: for what is long due and neither claims nor enqueues have let join. p_wait: for one
-- lane's enqueue lock, 50 ms at most, while this transaction holds nothing that anybody waits for; the others by try.
create or replace function pgfifo._admit_late(p_lanes bigint[], p_wait boolean) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lane record;
  v_wait interval := case when p_wait then interval '50 ms' end;
  v_count integer := 0;
  v_had boolean;
begin
  for v_lane in
    select l.id, a.id as action_id, a.name from unnest(p_lanes) p(id) join pgfifo.lanes l on l.id = p.id join pgfifo.actions a on a.id = l.action_id
    order by pgfifo._key(l.id)
  loop
    if v_wait is null then
      v_had := pg_try_advisory_xact_lock('pgfifo._executions'::regclass::oid::integer, pgfifo._key(v_lane.id));
    else
      v_had := pgfifo._lock('pgfifo._executions'::regclass, pgfifo._key(v_lane.id), v_wait);
      v_wait := null;
    end if;
    continue when not v_had;
    v_count := v_count + pgfifo._admit(v_lane.id, 200, true);
    perform pgfifo._wake(v_lane.action_id, v_lane.name);
  end loop;
  return v_count;
end $$;

-- Executions that this claim has started from the line and that had been started before: they go on with their attempts.
-- Under their lanes' slot locks. One that somebody asked to stop, in a transaction that committed after the end of its last
-- attempt, is not started again: it is ended here, and its slot is free. Returns those that are started.
create or replace function pgfifo._go_on(p_ids bigint[]) returns bigint[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_run pgfifo.runs;
  v_ended bigint[] := '{}';
begin
  update pgfifo.runs r set attempt = p.attempt + 1, failures = p.failures, last_error = p.last_error, attempts = p.attempts
  from pgfifo._executions e cross join lateral jsonb_populate_record(null::pgfifo.runs, e.past) p
  where r.id = any (p_ids) and e.id = r.id and e.past is not null;
  if exists (select from pgfifo.cancellations) then
    for v_run in
      select r.* from unnest(p_ids) p(id) cross join lateral (select r.* from pgfifo.runs r where r.id = p.id offset 0) r
      where exists (select from pgfifo.cancellations c where c.id = r.id)
    loop
      perform pgfifo._end_run(v_run, 'cancelled');
      perform pgfifo._mark_if_waiting(v_run.lane_id);
      v_ended := v_ended || v_run.id;
    end loop;
  end if;
  return array(select p.id from unnest(p_ids) with ordinality p(id, n) where p.id <> all (v_ended) order by p.n);
end $$;
