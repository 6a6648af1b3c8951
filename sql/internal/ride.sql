-- Batches: consecutive executions of one lane that a worker runs as one, in one slot. The first of them is started like any
-- other and leads; the others ride along. All members of a batch have batch_no, the number of the leader's start. Each is an
-- execution of its own in everything but the slot: start number, attempt, lease, cancellation, outcome. The lane's ledger counts
-- those that have no slot of their own as riding; the slot is given back with the last member, whichever that is.

-- Start what comes right after these leaders in their lines, as one batch with each: up to p_sizes of its action, leader
-- included, and as long as nothing special comes: one with a past at the end of the line, one that a program owns, one that has
-- expired. What has returned to its place comes before the line and is no leader: so it starts alone, and of a batch that was
-- lost the one that kills its worker is found.
-- The caller holds the lanes' slot locks since an earlier statement, and has started the leaders in this transaction: what is
-- read here is the line behind them, and nobody else moves it. Dies before the commit: nothing was started.
-- One batch has at most 16 MiB of payload, as stored: it has to fit into a worker and into one answer.
create or replace function pgfifo._ride(p_leaders bigint[], p_actions integer[], p_sizes integer[], p_now timestamptz) returns setof pgfifo.work_row
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c_bytes constant integer := 16777216;
  v_leader record;
  v_state pgfifo.ledger;
  v_wait interval;
  v_ids bigint[];
  v_last bigint;
begin
  for v_leader in
    select r.id, r.lane_id, r.worker_id, r.call_no, r.start_no, r.start_limit, r.is_strict, s.size
    from unnest(p_leaders) with ordinality i(id, n)
    cross join lateral (
      select r.id, r.lane_id, r.worker_id, r.call_no, r.start_no, r.start_limit, r.is_strict from pgfifo.runs r where r.id = i.id offset 0) r
    cross join lateral (select l.action_id from pgfifo.lanes l where l.id = r.lane_id offset 0) l
    cross join lateral (select p_sizes[array_position(p_actions, l.action_id)] as size) s
    where s.size > 1 order by i.n
  loop
    select g.* into strict v_state from pgfifo.ledger g where g.lane_id = v_leader.lane_id order by g.lane_id desc, g.version desc limit 1;
    v_wait := pgfifo._max_wait(v_leader.lane_id);
    with line as (
      select e.id, e.ticket, row_number() over w as place, sum(pg_column_size(e.payload)) over w as bytes,
        bool_or(e.past is not null or e.owner is not null or coalesce(e.joined_at <= p_now - v_wait, false)) over w as stops
      from (
        select e.id, e.ticket, e.payload, e.past, e.owner, coalesce(e.joined_at, e.enqueued_at) as joined_at from pgfifo._executions e
        where e.lane_id = v_leader.lane_id and e.ticket > v_state.consumed order by e.lane_id, e.ticket limit v_leader.size - 1) e
      window w as (order by e.ticket rows unbounded preceding)),
    started as (
      insert into pgfifo.runs (id, lane_id, ticket, state, attempt, worker_id, call_no, start_no, start_limit, is_strict, version, started_at, batch_no)
      select l.id, v_leader.lane_id, l.ticket, 'running', 1, v_leader.worker_id, v_leader.call_no, v_state.starts + l.place, v_leader.start_limit,
        v_leader.is_strict, v_state.version + 1, p_now, v_leader.start_no
      from line l where not l.stops and l.bytes <= c_bytes
      returning id, ticket)
    select array_agg(s.id order by s.ticket), max(s.ticket) into v_ids, v_last from started s;
    continue when v_ids is null;
    update pgfifo.runs r set batch_no = r.start_no where r.id = v_leader.id;
    perform pgfifo._append(v_leader.lane_id, p_running => cardinality(v_ids), p_riding => cardinality(v_ids), p_waiting => -cardinality(v_ids),
      p_starts => cardinality(v_ids), p_consumed => v_last);
    return query select s.* from pgfifo._start_rows(v_ids) s;
  end loop;
end $$;

-- The other running members of a batch, p_limit of them. They were started by one claim, and so are found by its number.
create or replace function pgfifo._mates(p_run pgfifo.runs, p_limit integer default 1000) returns setof pgfifo.runs
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_run.batch_no is null or p_run.state <> 'running' then
    return;
  elsif p_run.call_no is null then
    return query select r.* from pgfifo.runs r where r.worker_id = p_run.worker_id and r.call_no is null and r.lane_id = p_run.lane_id
      and r.batch_no = p_run.batch_no and r.state = 'running' and r.id <> p_run.id limit p_limit;
  else
    return query select r.* from pgfifo.runs r where r.worker_id = p_run.worker_id and r.call_no = p_run.call_no and r.lane_id = p_run.lane_id
      and r.batch_no = p_run.batch_no and r.state = 'running' and r.id <> p_run.id limit p_limit;
  end if;
end $$;

-- 1 where a running one leaves its slot to others of its batch, 0 where it takes the slot along. Under the lane's slot lock.
create or replace function pgfifo._shares_slot(p_run pgfifo.runs) returns integer
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select count(*) from pgfifo._mates(p_run, 1));
end $$;

-- What a member of a batch drew from shared limits stays drawn while another one runs, those in p_with aside: that one keeps
-- it. False where there is none. The same for the end that a gap counts from.
create or replace function pgfifo._pass_on(p_run pgfifo.runs, p_with bigint[]) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  update pgfifo.runs r set draws = p_run.draws
  where r.id = (select m.id from pgfifo._mates(p_run) m where m.id <> all (p_with) limit 1);
  return found;
end $$;

-- A member of a batch has failed, and nothing of its lane is to overtake it (hold, or a lane that stops), or it was the first of
-- those that were lost with their worker: the run is over, and its other members go back to their places unstarted, with no
-- failure counted. Who has completed has succeeded, who was to be cancelled is cancelled. The failed one keeps the slot, and
-- what was drawn is given back. Under the lane's slot lock.
create or replace function pgfifo._put_off(p_run pgfifo.runs) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_mate pgfifo.runs;
  v_draws integer[];
begin
  -- It keeps what another one of them drew until then: not to be passed on from each to the next.
  with drawn as (
    select m.id, m.draws from pgfifo._mates(p_run) m where m.draws is not null),
  taken as (
    update pgfifo.runs r set draws = null from drawn d where r.id = d.id)
  select d.draws into v_draws from drawn d;
  if v_draws is not null then
    update pgfifo.runs r set draws = v_draws where r.id = p_run.id;
  end if;
  for v_mate in
    select m.* from pgfifo._mates(p_run) m order by m.ticket
  loop
    perform pgfifo._finish_one(v_mate, 'unstarted', null, null, true, null);
  end loop;
  select r.* into strict p_run from pgfifo.runs r where r.id = p_run.id;
  if p_run.draws is not null then
    perform pgfifo._give_back(p_run);
  end if;
end $$;

-- Whether this attempt was put off so, or ended by that: then what its worker says of it counts for nothing, and is no lost
-- lease either.
create or replace function pgfifo._was_put_off(p_id bigint, p_attempt integer, p_worker bigint) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with said as (
    select jsonb_build_array(jsonb_build_object('attempt', p_attempt, 'worker', p_worker, 'outcome', 'unstarted')) as entry)
  select exists (select from pgfifo.runs r, said s where r.id = p_id and r.attempts @> s.entry)
    or exists (select from pgfifo.history h, said s where h.id = p_id
      and (h.attempts @> s.entry or h.attempt = p_attempt and h.worker_id = p_worker and h.batch_no is not null and not h.lost))
    or exists (select from pgfifo._executions e, said s where e.id = p_id and e.past -> 'attempts' @> s.entry)
$$;

-- The part of a finish for members of batches: those that have succeeded, together, of each batch up to the first in the given
-- order that has not: what comes after that is decided one by one, since it may not count (see _put_off). Returns what was
-- done, and those lanes that have more waiting and are not among p_lanes. p_locked: the lanes whose slot locks the caller
-- holds since an earlier statement.
create or replace function pgfifo._finish_riders(p_worker bigint, p_items jsonb, p_locked bigint[], p_lanes bigint[],
  out o_done bigint[], out o_attempts integer[], out o_freed bigint[], out o_freed_actions integer[], out o_freed_versions bigint[])
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_run pgfifo.runs;
  v_lane record;
  v_kept bigint;
begin
  select coalesce(array_agg(f.id order by f.n), '{}'), array_agg(f.attempt order by f.n) into o_done, o_attempts
  from (
    select r.id, r.attempt, i.n, bool_and(r.completed or coalesce(i.outcome, '') = 'succeeded') over (partition by r.lane_id, r.batch_no order by i.n) as counts
    from (
      select distinct on (i.id) i.id, i.attempt, i.outcome, i.n
      from rows from (jsonb_to_recordset(p_items) as (id bigint, attempt integer, outcome text)) with ordinality i(id, attempt, outcome, n)
      order by i.id, i.n) i
    cross join lateral (
      select r.id, r.lane_id, r.batch_no, r.attempt, r.worker_id, r.state, r.completed from pgfifo.runs r where r.id = i.id offset 0) r
    where r.attempt = i.attempt and r.batch_no is not null and r.worker_id = p_worker and r.state = 'running' and r.lane_id = any (p_locked)) f
  where f.counts;
  o_freed := '{}';
  o_freed_actions := '{}';
  o_freed_versions := '{}';
  if o_done = '{}' then
    return;
  end if;
  for v_run in
    select r.* from unnest(o_done) i(id) cross join lateral (select r.* from pgfifo.runs r where r.id = i.id offset 0) r where r.draws is not null
  loop
    perform pgfifo._give_back(v_run, o_done);
  end loop;
  -- Whether others of a batch go on is asked while these are still there.
  for v_lane in
    select b.lane_id, l.action_id, max(b.version) as version, sum(b.n)::integer as n, sum(b.n - (not b.goes_on)::integer)::integer as riding
    from (
      select r.lane_id, max(r.version) as version, count(*) as n,
        exists (select from pgfifo._mates((array_agg(r.run))[1]) m where m.id <> all (o_done)) as goes_on
      from unnest(o_done) i(id)
      cross join lateral (select r as run, r.lane_id, r.batch_no, r.version from pgfifo.runs r where r.id = i.id offset 0) r
      group by r.lane_id, r.batch_no) b
    join pgfifo.lanes l on l.id = b.lane_id
    group by b.lane_id, l.action_id
  loop
    if (pgfifo._append(v_lane.lane_id, p_running => -v_lane.n, p_riding => -v_lane.riding, p_succeeded => v_lane.n)).waiting > 0
      and v_lane.lane_id <> all (p_lanes)
    then
      o_freed := o_freed || v_lane.lane_id;
      o_freed_actions := o_freed_actions || v_lane.action_id;
      o_freed_versions := o_freed_versions || v_lane.version;
    end if;
  end loop;
  -- Rows are looked up and deleted as in _finish_batch.
  with ended as materialized (
    select i.result, i.result_error, r.run, e.content, l.action_id, l.group_text, c.requested_at, c.reason, g.starts
    from (
      select distinct on (i.id) i.id, i.result, i.result_error
      from jsonb_to_recordset(p_items) i(id bigint, attempt integer, result jsonb, result_error text)
      where i.attempt = o_attempts[array_position(o_done, i.id)]) i
    cross join lateral (select r.ctid as run, r.lane_id from pgfifo.runs r where r.id = i.id offset 0) r
    cross join lateral (select e.ctid as content from pgfifo._executions e where e.id = i.id offset 0) e
    cross join lateral (select l.action_id, l.group_text from pgfifo.lanes l where l.id = r.lane_id offset 0) l
    cross join lateral (select g.starts from pgfifo.ledger g where g.lane_id = r.lane_id order by g.lane_id desc, g.version desc limit 1) g
    left join lateral (select c.requested_at, c.reason from pgfifo.cancellations c where c.id = i.id offset 0) c on true),
  runs_gone as (
    delete from pgfifo.runs r where r.ctid = any (array(select w.run from ended w))),
  content_gone as (
    delete from pgfifo._executions e where e.ctid = any (array(select w.content from ended w))),
  kept as (
    insert into pgfifo.history (id, action_id, lane_id, group_text, outcome, attempt, failures, ticket, worker_id, joined_no, start_no,
      start_limit, is_strict, batch_no, end_no, enqueued_at, started_at, finished_at, cancel_requested_at, retry_of, payload, headers, tags, result,
      result_error, reason, attempts, start_event)
    select r.id, w.action_id, r.lane_id, w.group_text, 'succeeded', r.attempt, r.failures, r.ticket, r.worker_id, r.joined_no, r.start_no,
      r.start_limit, r.is_strict, r.batch_no, w.starts, e.enqueued_at, r.started_at, pgfifo._now(), w.requested_at, e.retry_of, e.payload, e.headers,
      e.tags, case when r.completed then r.result else w.result end, case when not r.completed then w.result_error end, w.reason, r.attempts, r.event_no
    from ended w
    cross join lateral (select r.* from pgfifo.runs r where r.ctid = w.run) r
    cross join lateral (select e.* from pgfifo._executions e where e.ctid = w.content) e
    returning 1)
  select count(*) into v_kept from kept;
  if v_kept <> cardinality(o_done) then
    raise exception using errcode = 'XX000', message = format('finish found %s executions of batches, and kept %s', cardinality(o_done), v_kept);
  end if;
  delete from pgfifo.cancellations c where c.id = any (o_done);
end $$;
