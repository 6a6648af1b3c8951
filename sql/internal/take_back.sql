-- Take executions back from a worker that is dead, stopped, or does not know them: 'failed' counts as a failure with its
-- backoff, 'released' does not. What stands for a slot that it had or waited for has failed: nobody else can go on with it.
-- Lane by lane, by try; what is locked, or more lanes than a batch may lock, is left for the next round. p_only: just these.
-- What is taken back as failed is counted as rescued: that is maintenance's doing alone, so nobody waits for these rows.
-- The caller has made sure that the worker can start nothing more under this name, or that these rows are not its own.
create or replace function pgfifo._take_back(p_worker bigint, p_outcome text, p_error text, p_limit integer, p_only bigint[] default null) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lane bigint;
  v_run pgfifo.runs;
  v_count integer := 0;
  v_before integer;
begin
  for v_lane in
    select t.lane_id from (
      select r.lane_id from pgfifo.runs r where r.worker_id = p_worker and (p_only is null or r.id = any (p_only))
      union all
      select e.lane_id from pgfifo._executions e where e.owner = p_worker and (p_only is null or e.id = any (p_only))) t
    group by t.lane_id order by pgfifo._key(t.lane_id) limit pgfifo.max_batch_lanes()
  loop
    exit when v_count >= p_limit;
    continue when not pg_try_advisory_xact_lock('pgfifo.lanes'::regclass::oid::integer, pgfifo._key(v_lane));
    v_before := v_count;
    -- A statement of its own, after the lock. In any order, each keeps its place; but of a batch that was lost only the first fails.
    for v_run in
      select r.* from pgfifo.runs r where r.lane_id = v_lane and r.worker_id = p_worker and r.state = 'running'
        and (p_only is null or r.id = any (p_only))
      order by r.ticket
    loop
      if v_run.batch_no is not null then
        -- As it is now: another one of its batch has perhaps put it off, or has left it what it drew.
        select r.* into v_run from pgfifo.runs r where r.id = v_run.id;
        if v_run.state is distinct from 'running' then
          v_count := v_count + 1;
          continue;
        end if;
      end if;
      perform pgfifo._finish_one(v_run, p_outcome, null, p_error, true, null, true);
      v_count := v_count + 1;
    end loop;
    v_count := v_count + pgfifo._end_owned(v_lane, p_worker, coalesce('holder lost: ' || p_error, 'holder lost'), p_only);
    perform pgfifo._mark_if_waiting(v_lane);
    if p_outcome = 'failed' and v_count > v_before then
      insert into pgfifo._rescues as r (action_id, rescued) select l.action_id, v_count - v_before from pgfifo.lanes l where l.id = v_lane
      on conflict (action_id) do update set rescued = r.rescued + excluded.rescued;
    end if;
  end loop;
  return v_count;
end $$;

-- End what waits in a lane for slots in a worker's name. The caller holds the lane's slot lock since an earlier statement.
create or replace function pgfifo._end_owned(p_lane_id bigint, p_worker bigint, p_error text, p_only bigint[]) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_run pgfifo.runs;
  v_ids bigint[];
  v_count integer := 0;
begin
  -- In a relaxed lane it may stand before the line.
  for v_run in
    select r.* from pgfifo._executions e cross join lateral (select r.* from pgfifo.runs r where r.id = e.id offset 0) r
    where e.owner = p_worker and e.lane_id = p_lane_id and (p_only is null or e.id = any (p_only)) and r.state = 'returned'
  loop
    perform pgfifo._end_run(v_run, 'failed', p_error => p_error);
    v_count := v_count + 1;
  end loop;
  v_ids := array(
    select e.id from pgfifo._executions e
    where e.owner = p_worker and e.lane_id = p_lane_id and (p_only is null or e.id = any (p_only))
      and not exists (select from pgfifo.runs r where r.id = e.id offset 0));
  if v_ids <> '{}' then
    v_count := v_count + (select cardinality(w.o_ids) from pgfifo._end_waiting(v_ids, 'failed', p_error) w);
  end if;
  return v_count;
end $$;
