-- Take executions back from a worker that is dead, stopped, or does not know them: 'failed' counts as a failure with its
-- backoff, 'released' does not. Lane by lane, by try; what is locked, or more lanes than a batch may lock, is left for the
-- next round. p_only: just these.
-- The caller has made sure that the worker can start nothing more under this name, or that these rows are not its own.
create or replace function pgfifo._take_back(p_worker bigint, p_outcome text, p_error text, p_limit integer, p_only bigint[] default null) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lane bigint;
  v_run pgfifo.runs;
  v_count integer := 0;
begin
  for v_lane in
    select r.lane_id from pgfifo.runs r where r.worker_id = p_worker and (p_only is null or r.id = any (p_only))
    group by r.lane_id order by pgfifo._key(r.lane_id) limit pgfifo.max_batch_lanes()
  loop
    exit when v_count >= p_limit;
    continue when not pg_try_advisory_xact_lock('pgfifo.lanes'::regclass::oid::integer, pgfifo._key(v_lane));
    -- A statement of its own, after the lock. The youngest first is as good as any: each keeps its place.
    for v_run in
      select r.* from pgfifo.runs r where r.lane_id = v_lane and r.worker_id = p_worker and r.state = 'running'
        and (p_only is null or r.id = any (p_only))
    loop
      perform pgfifo._finish_one(v_run, p_outcome, null, p_error, true, null, true);
      v_count := v_count + 1;
    end loop;
    perform pgfifo._mark_if_waiting(v_lane);
  end loop;
  return v_count;
end $$;
