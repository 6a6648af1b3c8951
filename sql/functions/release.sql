-- Give one running execution back to its place, without counting a failure.
create or replace function pgfifo.release(p_id bigint, p_attempt integer) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_run pgfifo.runs;
  v_state text;
begin
  perform pgfifo._require_read_committed('release');
  perform pgfifo._durable();
  v_run := pgfifo._lock_run(p_id, p_attempt, 'release');
  if v_run.id is null then
    perform pgfifo._lease_lost(p_id, p_attempt);
  end if;
  -- Who has it asks what to stop at once, if he can be told so; he is found in the run, so before it goes back.
  perform pgfifo._call_workers(array[p_id]);
  v_state := pgfifo._finish_one(v_run, 'released', null, null, true, null);
  perform pgfifo._mark_if_waiting(v_run.lane_id);
  return v_state;
end $$;
comment on function pgfifo.release is 'Give a running execution back to its place in the line.';
