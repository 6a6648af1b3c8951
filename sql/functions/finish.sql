-- Finish one execution by hand, from a worker in plain SQL. In a transaction with other writes the lane's slot lock is held
-- to its commit, and from then on the slot is free: a handler that goes on after that calls pgfifo.complete instead.
-- p_after: try it again so long after now, and not after the policy's backoff; p_count: false where that shall count as no
-- failure. Returns the outcome, or when it will be tried again 'held' or, without its slot, 'delayed'.
create or replace function pgfifo.finish(
  p_id bigint,
  p_attempt integer,
  p_outcome text,
  p_result jsonb default null,
  p_error text default null,
  p_retry boolean default true,
  p_after interval default null,
  p_count boolean default true
) returns text
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
  perform pgfifo._require_read_committed('finish');
  perform pgfifo._durable();
  if p_outcome is null or p_outcome not in ('succeeded', 'failed', 'cancelled') then
    raise exception using errcode = 'QF022',
      message = format('an execution is finished as succeeded, failed or cancelled, not as %s', coalesce(quote_literal(p_outcome), 'null')),
      detail = json_build_object('name', 'p_outcome', 'value', p_outcome)::text,
      hint = 'To give it back unfinished, call pgfifo.release.';
  end if;
  v_run := pgfifo._lock_run(p_id, p_attempt, 'finish');
  if v_run.id is null then
    -- Said before by the same attempt: once is enough, and the answer is the same.
    select h.outcome into v_state from pgfifo.history h where h.id = p_id and h.attempt = p_attempt and h.outcome = p_outcome and not h.lost;
    if found then
      return v_state;
    end if;
    perform pgfifo._lease_lost(p_id, p_attempt);
  end if;
  v_state := pgfifo._finish_one(v_run, p_outcome, p_result, p_error, p_retry, null, false, extract(epoch from p_after), p_count);
  perform pgfifo._mark_if_waiting(v_run.lane_id);
  return v_state;
end $$;
comment on function pgfifo.finish is 'Finish one running execution; its attempt is the fence.';
