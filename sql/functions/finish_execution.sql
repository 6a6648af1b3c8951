-- End an execution by an operator's word, whatever it is doing, and fence whoever has it: his later finish is 'lost', and
-- his next heartbeat says so. True if it was ended here; false if it had an outcome already.
-- The slot is given on at once, although the old handler may go on until it hears of it: that is what the operator decides.
-- Holds the lane's slot lock to the caller's commit.
create or replace function pgfifo.finish_execution(p_id bigint, p_outcome text, p_reason text default null, p_result jsonb default null) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_lane_id bigint;
  v_delayed boolean;
  v_run pgfifo.runs;
  v_reason text := left(p_reason, 1000);
begin
  perform pgfifo._require_read_committed('finish_execution');
  perform pgfifo._durable();
  if p_outcome is null or p_outcome not in ('succeeded', 'failed', 'cancelled') or (p_result is not null and p_outcome <> 'succeeded') then
    raise exception using errcode = 'QF022',
      message = format('an execution is finished as succeeded (with or without a result), failed or cancelled, not as %s%s',
        coalesce(quote_literal(p_outcome), 'null'), case when p_result is not null then ' with a result' else '' end),
      detail = json_build_object('name', 'p_outcome', 'value', p_outcome)::text,
      hint = 'To give it back to its place, call pgfifo.release.';
  end if;
  select e.lane_id, e.ticket is null into v_lane_id, v_delayed from pgfifo._executions e where e.id = p_id;
  if found then
    if v_delayed and not pgfifo._lock_delayed(array[p_id], interval '5 s') then
      perform pgfifo._joining(p_id, v_lane_id, 'finish_execution');
    end if;
    perform pgfifo._lock_lane(v_lane_id, 'finish_execution');
    -- Law 1: what it is doing is read under the lock.
    if pgfifo._expire_ids(array[p_id], array[v_lane_id]) <> '{}' then
      return false;
    end if;
    select r.* into v_run from pgfifo.runs r where r.id = p_id;
    if v_run.completed then
      p_outcome := 'succeeded';  -- its handler has said so in the transaction of its writes
    end if;
    if v_run.id is not null then
      -- Who has it asks what to stop at once, if he can be told so; he is found in the run, so before it goes.
      perform pgfifo._call_workers(array[p_id]);
      -- lost: the attempt was taken from its worker, and what he still says of it does not count.
      perform pgfifo._end_run(v_run, p_outcome, p_result,
        p_error => case when p_outcome = 'failed' then coalesce(v_reason, 'finished by ' || session_user) end,
        p_failures => v_run.failures + (p_outcome = 'failed' and v_run.state = 'running')::integer,
        p_lost => v_run.state = 'running', p_reason => v_reason);
      perform pgfifo._mark_if_waiting(v_lane_id);
    elsif (select w.o_ids = '{}' from pgfifo._end_waiting(array[p_id], p_outcome, v_reason, p_result) w) then
      if exists (select from pgfifo._executions e where e.id = p_id) then
        perform pgfifo._joining(p_id, v_lane_id, 'finish_execution');
      end if;
      return false;  -- it ended while we waited for its lane
    end if;
    perform pgfifo._audit('finish', null, p_id, jsonb_strip_nulls(jsonb_build_object('id', p_id, 'outcome', p_outcome, 'reason', v_reason,
      'was', coalesce(v_run.state, 'waiting'), 'attempt', v_run.attempt, 'worker', v_run.worker_id)));
    return true;
  end if;
  if not exists (select from pgfifo.history h where h.id = p_id) then
    perform pgfifo._unknown_execution(p_id);
  end if;
  return false;
end $$;
comment on function pgfifo.finish_execution is 'End an execution by hand, whatever it is doing; who has it, loses it.';
