-- How long to wait before the next attempt, in seconds, after so many failures.
create or replace function pgfifo._backoff(p_kind text, p_initial double precision, p_factor double precision, p_cap double precision,
  p_jitter double precision, p_failures integer) returns double precision
language sql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select least(p_cap, case when p_kind = 'constant' then p_initial else p_initial * power(p_factor, least(p_failures - 1, 60)) end)
    * (1 + p_jitter * (2 * random() - 1))
$$;

-- End one attempt of a running execution: to an outcome, into a backoff that keeps its slot, or back to its place.
-- p_lost: its worker did not say so itself; a late word from it will not count. The caller holds the lane's slot lock and
-- has read p_run (running) under it. Returns the outcome, 'held' or 'returned'.
-- What stands for a slot that a program holds is never run again: nobody but that program could.
create or replace function pgfifo._finish_one(
  p_run pgfifo.runs,
  p_outcome text,
  p_result jsonb,
  p_error text,
  p_retry boolean,
  p_result_error text,
  p_lost boolean default false
) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_error text := pgfifo._clip(p_error, 16384);
  v_cancel boolean;
  v_failures integer := p_run.failures;
  v_policy record;
  v_due timestamptz;
  v_ledger pgfifo.ledger;
begin
  if p_run.draws is not null then
    perform pgfifo._give_back(p_run);
  end if;
  if p_outcome = 'succeeded' or p_run.completed then
    perform pgfifo._end_run(p_run, 'succeeded', p_result, null, p_result_error);
    return 'succeeded';
  end if;
  -- Asked to stop: whatever else it did, short of succeeding, it is cancelled and not tried again.
  v_cancel := exists (select from pgfifo.cancellations c where c.id = p_run.id);
  if p_outcome = 'failed' then
    v_failures := v_failures + 1;
  end if;
  if v_cancel or p_outcome = 'cancelled' then
    perform pgfifo._end_run(p_run, 'cancelled', null, v_error, null, v_failures, p_lost);
    return 'cancelled';
  end if;
  if exists (select from pgfifo._executions e where e.id = p_run.id and e.owner is not null) then
    if p_lost or p_outcome = 'released' then
      v_error := 'holder lost' || coalesce(': ' || v_error, '');
    end if;
    perform pgfifo._end_run(p_run, 'failed', null, v_error, null, p_run.failures + 1, p_lost);
    return 'failed';
  end if;
  if p_outcome = 'released' then
    v_ledger := pgfifo._append(p_run.lane_id, p_running => -1, p_returned => 1, p_waiting => 1, p_returned_from => p_run.ticket);
    update pgfifo.runs r set state = 'returned', worker_id = null, call_no = null, joined_no = v_ledger.starts,
      attempts = pgfifo._log_attempt(r.attempts, pgfifo._attempt_entry(p_run, case when p_lost then 'returned' else 'released' end, v_ledger.starts, pgfifo._now(), v_error))
    where r.id = p_run.id;
    return 'returned';
  end if;
  select coalesce(l.max_attempts, p.max_attempts) as max_attempts, coalesce(l.backoff, p.backoff) as backoff,
      coalesce(l.backoff_initial, p.backoff_initial) as initial, coalesce(l.backoff_factor, p.backoff_factor) as factor,
      coalesce(l.backoff_cap, p.backoff_cap) as cap, coalesce(l.backoff_jitter, p.backoff_jitter) as jitter
    into strict v_policy
  from pgfifo.lanes n
  join pgfifo._action_policies p on p.action_id = n.action_id
  left join pgfifo._lane_policies l on l.lane_id = n.id
  where n.id = p_run.lane_id;
  if not coalesce(p_retry, true) or v_failures >= v_policy.max_attempts then
    perform pgfifo._end_run(p_run, 'failed', null, v_error, null, v_failures, p_lost);
    return 'failed';
  end if;
  -- An xid before the time is read: safe timers rely on that, see _scan_from.
  perform pg_current_xact_id();
  v_due := pgfifo._now() + make_interval(secs => pgfifo._backoff(v_policy.backoff, v_policy.initial, v_policy.factor, v_policy.cap,
    v_policy.jitter, v_failures));
  perform pgfifo._append(p_run.lane_id, p_running => -1, p_held => 1, p_held_from => v_due);
  update pgfifo.runs r set state = 'held', worker_id = null, call_no = null, held_by = p_run.worker_id, held_outcome = case when p_lost then 'lost' else 'failed' end,
    failures = v_failures, due_at = v_due, ended_at = pgfifo._now(), last_error = v_error
  where r.id = p_run.id;
  perform pgfifo._timer(p_run.lane_id, v_due);
  return 'held';
end $$;

-- A text cut to at most so many bytes, between characters.
create or replace function pgfifo._clip(p_text text, p_bytes integer) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  -- A character has one to four bytes in UTF-8.
  select case when octet_length(p_text) <= p_bytes then p_text
         when octet_length(p_text) = char_length(p_text) then left(p_text, p_bytes - 8) || ' [cut]'
         else left(p_text, p_bytes / 4 - 8) || ' [cut]' end
$$;
