-- How long to wait before the next attempt, in seconds, after so many failures, the last one included.
create or replace function pgfifo._backoff(p_kind text, p_initial double precision, p_factor double precision, p_cap double precision,
  p_jitter double precision, p_failures integer) returns double precision
language sql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select least(p_cap, case when p_kind = 'constant' then p_initial else p_initial * power(p_factor, least(p_failures - 1, 60)) end)
    * (1 + p_jitter * (2 * random() - 1))
$$;

-- End one attempt of a running execution: to an outcome, into a backoff, or back to its place.
-- Into a backoff as the failure mode says: 'hold' keeps place and slot, 'yield' the place, 'tail' neither: it joins the end
-- of the line when the backoff is over, as an enqueue for later does, and takes its past along.
-- p_lost: its worker did not say so itself; a late word from it will not count. p_after: seconds, in place of the policy's
-- backoff. p_count: false for a failure that is none, but a wish to be called again later. The caller holds the lane's slot
-- lock and has read p_run (running) under it. Returns the outcome, 'held', 'delayed' or 'returned'.
-- 'unstarted' is 'released' for a member of a batch that goes back because of another one's failure: see _put_off.
-- What stands for a slot that a program holds is never run again: nobody but that program could.
create or replace function pgfifo._finish_one(
  p_run pgfifo.runs,
  p_outcome text,
  p_result jsonb,
  p_error text,
  p_retry boolean,
  p_result_error text,
  p_lost boolean default false,
  p_after double precision default null,
  p_count boolean default true
) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_error text := pgfifo._clip(p_error, 16384);
  v_cancel boolean;
  v_count boolean := p_outcome = 'failed' and coalesce(p_count, true);
  v_kind text := case when p_lost then 'lost' when coalesce(p_count, true) then 'failed' else 'snoozed' end;
  v_failures integer := p_run.failures;
  v_policy record;
  v_due timestamptz;
  v_shared integer;
  v_ledger pgfifo.ledger;
  v_log jsonb;
  v_event bigint;
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
  if v_count then
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
  if p_outcome in ('released', 'unstarted') then
    v_ledger := pgfifo._append(p_run.lane_id, p_running => -1, p_returned => 1, p_waiting => 1, p_returned_from => p_run.ticket,
      p_riding => case when p_run.batch_no is null then 0 else -pgfifo._shares_slot(p_run) end);
    v_event := nextval('pgfifo.event_ids');
    update pgfifo.runs r set state = 'returned', worker_id = null, call_no = null, joined_no = v_ledger.starts, batch_no = null, event_no = v_event,
      attempts = pgfifo._log_attempt(r.attempts, pgfifo._attempt_entry(p_run,
        case when p_outcome = 'unstarted' then p_outcome when p_lost then 'returned' else 'released' end, v_ledger.starts, pgfifo._now(), v_error, v_event))
    where r.id = p_run.id;
    return 'returned';
  end if;
  select coalesce(l.max_attempts, p.max_attempts) as max_attempts, coalesce(l.backoff, p.backoff) as backoff,
      coalesce(l.backoff_initial, p.backoff_initial) as initial, coalesce(l.backoff_factor, p.backoff_factor) as factor,
      coalesce(l.backoff_cap, p.backoff_cap) as cap, coalesce(l.backoff_jitter, p.backoff_jitter) as jitter,
      coalesce(l.failure_mode, p.failure_mode) as mode, coalesce(l.on_exhausted, p.on_exhausted) as on_exhausted
    into strict v_policy
  from pgfifo.lanes n
  join pgfifo._action_policies p on p.action_id = n.action_id
  left join pgfifo._lane_policies l on l.lane_id = n.id
  where n.id = p_run.lane_id;
  if p_run.batch_no is not null and (p_lost or case when not coalesce(p_retry, true) or (v_count and v_failures >= v_policy.max_attempts)
    then v_policy.on_exhausted = 'pause' else v_policy.mode = 'hold' end)
  then
    perform pgfifo._put_off(p_run);
  end if;
  if not coalesce(p_retry, true) or (v_count and v_failures >= v_policy.max_attempts) then
    perform pgfifo._end_run(p_run, 'failed', null, v_error, null, v_failures, p_lost);
    if v_policy.on_exhausted = 'pause' then
      perform pgfifo._stop_lane(p_run.lane_id, p_run.id, v_error);
    end if;
    return 'failed';
  end if;
  v_shared := case when p_run.batch_no is null then 0 else pgfifo._shares_slot(p_run) end;
  -- An xid before the time is read: safe timers rely on that, see _scan_from.
  perform pg_current_xact_id();
  v_due := pgfifo._now() + make_interval(secs => case when p_after is not null then least(greatest(p_after, 0), 31536000)
    else pgfifo._backoff(v_policy.backoff, v_policy.initial, v_policy.factor, v_policy.cap, v_policy.jitter, greatest(v_failures, 1)) end);
  if v_policy.mode = 'hold' then
    perform pgfifo._append(p_run.lane_id, p_running => -1, p_held => 1, p_held_from => v_due);
    update pgfifo.runs r set state = 'held', worker_id = null, call_no = null, held_by = p_run.worker_id, held_outcome = v_kind,
      failures = v_failures, due_at = v_due, ended_at = pgfifo._now(), last_error = coalesce(v_error, r.last_error),
      event_no = nextval('pgfifo.event_ids'), start_event = p_run.event_no
    where r.id = p_run.id;
    perform pgfifo._timer(p_run.lane_id, v_due);
    return 'held';
  end if;
  -- The slot is free with our commit, so the stay in it ends here.
  if v_policy.mode = 'yield' then
    v_ledger := pgfifo._append(p_run.lane_id, p_running => -1, p_yielded => 1, p_held_from => v_due, p_riding => -v_shared);
  else
    v_ledger := pgfifo._append(p_run.lane_id, p_running => -1, p_delayed => 1, p_riding => -v_shared);
    -- Wherever the clock has gone: never below the bound from which those that have yet to join are read.
    v_due := greatest(v_due, v_ledger.delayed_from);
  end if;
  v_event := nextval('pgfifo.event_ids');
  v_log := pgfifo._log_attempt(p_run.attempts, pgfifo._attempt_entry(p_run, v_kind, v_ledger.starts, pgfifo._now(), v_error, v_event));
  if v_policy.mode = 'yield' then
    update pgfifo.runs r set state = 'yielded', worker_id = null, call_no = null, batch_no = null, failures = v_failures, due_at = v_due,
      last_error = coalesce(v_error, r.last_error), attempts = v_log, event_no = v_event
    where r.id = p_run.id;
  else
    delete from pgfifo.runs r where r.id = p_run.id;
    update pgfifo._executions e set ticket = null, run_at = v_due, past = jsonb_strip_nulls(jsonb_build_object('attempt', p_run.attempt,
      'failures', v_failures, 'last_error', coalesce(v_error, p_run.last_error), 'started_at', p_run.started_at, 'attempts', v_log))
    where e.id = p_run.id;
  end if;
  perform pgfifo._timer(p_run.lane_id, v_due);
  return 'delayed';
end $$;

-- on_exhausted = 'pause': one has failed for good, and nothing behind it starts until somebody has looked. Under the lane's
-- slot lock, like every pause of a lane; one that is paused already stays as it is.
create or replace function pgfifo._stop_lane(p_lane_id bigint, p_id bigint, p_error text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_reason text := format('execution %s failed for good%s', p_id, coalesce(': ' || left(nullif(split_part(p_error, E'\n', 1), ''), 500), ''));
begin
  insert into pgfifo.policies (scope, lane_id, paused_at, paused_by, paused_reason, paused_for)
  values ('lane', p_lane_id, pgfifo._now(), session_user, v_reason, p_id)
  on conflict (lane_id) where scope = 'lane' do update set paused_at = excluded.paused_at, paused_by = excluded.paused_by,
    paused_reason = excluded.paused_reason, paused_for = excluded.paused_for
  where policies.paused_at is null;
  if found then
    perform pgfifo._audit('pause', a.name, p_id, jsonb_build_object('group', l.group_text, 'reason', v_reason, 'on_exhausted', 'pause'))
    from pgfifo.lanes l join pgfifo.actions a on a.id = l.action_id where l.id = p_lane_id;
  end if;
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
