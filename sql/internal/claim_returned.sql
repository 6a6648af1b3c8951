-- The part of a claim that looks at what is ahead of the consumed mark of one lane: late arrivals of a relaxed lane,
-- held and yielded ones whose backoff is over, returned ones. They come before the line. The caller holds the lane's slot lock since
-- an earlier statement; so each statement here sees the lane as it is.
-- A held one starts again only while no more are active than the limit, and before nobody older; when the limit has been
-- lowered below what is active, or an older one waits for a slot that it keeps, those that are due give their slots back,
-- the youngest first, and wait at their place.
-- Yielded ones that are due come back to their places, up to 1,000 in a call, also in a paused lane: they wait there.
-- One that has an owner is started in his name; p_owned: only such ones are.
-- p_now: the claim's time. Limits over time are decided by it, so it is also when these start.
-- p_late: the oldest ticket among the arrivals of a relaxed lane that this claim has folded. Not a question of what the
-- lane is now: it may have become strict since these were enqueued.
create or replace function pgfifo._claim_returned(p_lane_id bigint, p_limit integer, p_worker bigint, p_call bigint,
  p_max integer, p_strict boolean, p_paused boolean, p_late bigint, p_owned boolean, p_now timestamptz) returns bigint[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_state pgfifo.ledger;
  v_run pgfifo.runs;
  v_owner bigint;
  v_late integer;
  v_yielded integer;
  v_first bigint;
  v_ahead bigint;
  v_held_floor timestamptz;
  v_returned_floor bigint;
  v_started bigint[] := '{}';
begin
  select g.* into strict v_state from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1;
  if p_late <= v_state.consumed then
    insert into pgfifo.runs (id, lane_id, ticket, state, attempt, failures, last_error, started_at, attempts, is_strict)
    select e.id, e.lane_id, e.ticket, 'returned', coalesce(p.attempt, 0), coalesce(p.failures, 0), p.last_error, p.started_at, p.attempts, false
    from pgfifo._executions e
    left join lateral jsonb_populate_record(null::pgfifo.runs, e.past) p on e.past is not null
    where e.lane_id = p_lane_id and e.ticket between p_late and v_state.consumed and not exists (select from pgfifo.runs r where r.id = e.id);
    get diagnostics v_late = row_count;
    if v_late > 0 then
      v_state := pgfifo._append(p_lane_id, p_returned => v_late, p_returned_from => p_late);
      if exists (select from pgfifo.policies p where p.max_wait < 'infinity') then
        perform pgfifo._expire_fronts(array[p_lane_id], p_now, 1);
        select g.* into strict v_state from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1;
      end if;
    end if;
  end if;
  -- Both parts are read from their first living row on; it goes into the ledger with the next version, so each dead
  -- entry before it is passed over once.
  select min(r.due_at) into v_held_floor from pgfifo.runs r
  where r.lane_id = p_lane_id and r.state in ('held', 'yielded') and r.due_at >= v_state.held_from;
  select min(r.ticket) into v_returned_floor from pgfifo.runs r
  where r.lane_id = p_lane_id and r.state = 'returned' and r.ticket >= v_state.returned_from;
  -- Asked to stop while it ran, by somebody whose commit came after the end of that attempt: it is not started again.
  if exists (select from pgfifo.cancellations) then
    for v_run in
      select r.* from (
        select r.* from pgfifo.runs r where r.lane_id = p_lane_id and r.state in ('held', 'yielded') and r.due_at >= v_held_floor
        union all
        select r.* from pgfifo.runs r where r.lane_id = p_lane_id and r.state = 'returned' and r.ticket >= v_returned_floor) r
      where exists (select from pgfifo.cancellations c where c.id = r.id)
    loop
      perform pgfifo._end_run(v_run, 'cancelled');
    end loop;
  end if;
  if v_state.yielded > 0 and v_held_floor <= p_now then
    with due as (
      select r.ctid from pgfifo.runs r
      where r.lane_id = p_lane_id and r.state = 'yielded' and r.due_at >= v_held_floor and r.due_at <= p_now
      order by r.lane_id, r.due_at limit 1000),
    back as (
      update pgfifo.runs r set state = 'returned', due_at = null, joined_no = v_state.starts
      where r.ctid = any (array(select d.ctid from due d)) returning r.ticket)
    select count(*), min(b.ticket) into v_yielded, v_first from back b;
    if v_yielded > 0 then
      select min(r.due_at) into v_held_floor from pgfifo.runs r
      where r.lane_id = p_lane_id and r.state in ('held', 'yielded') and r.due_at >= v_held_floor;
      perform pgfifo._append(p_lane_id, p_yielded => -v_yielded, p_returned => v_yielded, p_waiting => v_yielded, p_returned_from => v_first,
        p_held_floor => v_held_floor, p_returned_floor => v_returned_floor);
      v_returned_floor := least(v_returned_floor, v_first);
    end if;
  end if;
  if not p_paused then
    for v_run in
      select r.* from pgfifo.runs r
      where r.lane_id = p_lane_id and r.state = 'held' and r.due_at >= v_held_floor and r.due_at <= p_now order by r.ticket desc
    loop
      select g.* into strict v_state from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1;
      select count(*) into v_ahead from pgfifo.runs r
      where r.lane_id = p_lane_id and r.state = 'returned' and r.ticket >= v_returned_floor and r.ticket < v_run.ticket;
      exit when v_ahead <= p_max - v_state.running - v_state.held + v_state.riding;
      v_state := pgfifo._append(p_lane_id, p_held => -1, p_returned => 1, p_waiting => 1, p_returned_from => v_run.ticket,
        p_held_floor => v_held_floor, p_returned_floor => v_returned_floor);
      update pgfifo.runs r set state = 'returned', due_at = null, joined_no = v_state.starts, batch_no = null, start_event = null,
        attempts = pgfifo._log_attempt(r.attempts, pgfifo._held_entry(v_run, v_state.starts))
      where r.id = v_run.id;
      v_returned_floor := least(v_returned_floor, v_run.ticket);
    end loop;
  end if;
  if p_paused then
    return v_started;
  end if;
  for v_run in
    select r.* from (
      select r.* from pgfifo.runs r
      where r.lane_id = p_lane_id and r.state = 'held' and r.due_at >= v_held_floor and r.due_at <= p_now
      union all
      (select r.* from pgfifo.runs r where r.lane_id = p_lane_id and r.state = 'returned' and r.ticket >= v_returned_floor
       order by r.lane_id, r.ticket limit p_limit)) r
    order by r.ticket
  loop
    exit when cardinality(v_started) >= p_limit;
    select e.owner into v_owner from pgfifo._executions e where e.id = v_run.id;
    -- A held one has a slot of its own, so it holds up nobody; a returned one comes before all younger ones.
    continue when p_owned and v_owner is null and v_run.state = 'held';
    exit when p_owned and v_owner is null;
    select g.* into strict v_state from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1;
    if v_run.state = 'held' then
      v_state := pgfifo._append(p_lane_id, p_running => 1, p_held => -1, p_starts => 1,
        p_held_floor => v_held_floor, p_returned_floor => v_returned_floor);
    elsif v_state.running + v_state.held - v_state.riding < p_max then
      v_state := pgfifo._append(p_lane_id, p_running => 1, p_returned => -1, p_waiting => -1, p_starts => 1,
        p_held_floor => v_held_floor, p_returned_floor => v_returned_floor);
    else
      continue;  -- no slot for a returned one; a held one behind it that is due would have given its own back
    end if;
    update pgfifo.runs r set state = 'running', worker_id = coalesce(v_owner, p_worker), call_no = case when v_owner is null then p_call end, attempt = r.attempt + 1, due_at = null,
      held_by = null, held_outcome = null, ended_at = null, start_no = v_state.starts, start_limit = p_max, is_strict = p_strict, started_at = p_now,
      version = v_state.version, batch_no = null, event_no = nextval('pgfifo.event_ids'), start_event = null,
      joined_no = case when v_run.state = 'held' then v_state.starts - 1 else r.joined_no end,
      attempts = case when v_run.state = 'held' then pgfifo._log_attempt(r.attempts, pgfifo._held_entry(v_run, v_state.starts - 1) || '{"kept": true}') else r.attempts end
    where r.id = v_run.id and r.state = v_run.state;
    v_started := v_started || v_run.id;
  end loop;
  return v_started;
end $$;

-- The log entry of an attempt whose slot was held until now.
create or replace function pgfifo._held_entry(p_run pgfifo.runs, p_end_no bigint) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select pgfifo._attempt_entry(p_run, coalesce(p_run.held_outcome, 'failed'), p_end_no, p_run.ended_at, p_run.last_error, p_run.event_no)
    || jsonb_strip_nulls(jsonb_build_object('worker', p_run.held_by))
$$;
