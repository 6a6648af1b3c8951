-- What one attempt leaves behind in `attempts`, as kept per attempt in runs and history. At most the last 100.
create or replace function pgfifo._attempt_entry(p_run pgfifo.runs, p_outcome text, p_end_no bigint, p_ended_at timestamptz, p_error text,
  p_event bigint) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_strip_nulls(jsonb_build_object('attempt', p_run.attempt, 'joined_no', p_run.joined_no, 'start_no', p_run.start_no,
    'end_no', p_end_no, 'limit', p_run.start_limit, 'batch_no', p_run.batch_no, 'is_strict', p_run.is_strict, 'ticket', p_run.ticket, 'worker', p_run.worker_id,
    'started_at', p_run.started_at, 'ended_at', p_ended_at, 'outcome', p_outcome, 'error', left(p_error, 1000),
    'events', jsonb_build_array(coalesce(p_run.start_event, p_run.event_no), p_event)))
$$;

create or replace function pgfifo._log_attempt(p_attempts jsonb, p_entry jsonb) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case when jsonb_array_length(coalesce(p_attempts, '[]')) >= 100 then (p_attempts - 0) || jsonb_build_array(p_entry)
         else coalesce(p_attempts, '[]') || jsonb_build_array(p_entry) end
$$;

-- Move an execution that has a row in runs to history with its one outcome, and count it in the ledger.
-- The caller holds the lane's slot lock and has read p_run under it.
create or replace function pgfifo._end_run(
  p_run pgfifo.runs,
  p_outcome text,
  p_result jsonb default null,
  p_error text default null,
  p_result_error text default null,
  p_failures integer default null,
  p_lost boolean default false,
  p_reason text default null
) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ledger pgfifo.ledger;
  v_cancel pgfifo.cancellations;
  v_shared integer := case when p_run.batch_no is null then 0 else pgfifo._shares_slot(p_run) end;
begin
  if p_run.completed then
    -- It was committed with the handler's writes, so it is the truth, whoever ends the attempt and whatever he says.
    p_outcome := 'succeeded';
    p_result := p_run.result;
    p_error := null;
    p_result_error := null;
    p_failures := null;
    p_lost := false;
    p_reason := null;
  end if;
  if p_run.draws is not null then
    perform pgfifo._give_back(p_run);
  end if;
  delete from pgfifo.runs r where r.id = p_run.id and r.attempt = p_run.attempt and r.state = p_run.state;
  if not found then
    raise exception using errcode = 'XX000', message = format('execution %s changed under its lane''s lock', p_run.id);
  end if;
  delete from pgfifo.cancellations c where c.id = p_run.id returning * into v_cancel;
  v_ledger := pgfifo._append(p_run.lane_id,
    p_running => -(p_run.state = 'running')::integer, p_held => -(p_run.state = 'held')::integer,
    p_yielded => -(p_run.state = 'yielded')::integer, p_returned => -(p_run.state = 'returned')::integer, p_waiting => -(p_run.state = 'returned')::integer,
    p_riding => -v_shared, p_succeeded => (p_outcome = 'succeeded')::integer, p_failed => (p_outcome = 'failed')::integer,
    p_cancelled => (p_outcome = 'cancelled')::integer);
  with content as (
    delete from pgfifo._executions e where e.id = p_run.id returning e.*)
  insert into pgfifo.history (id, action_id, lane_id, group_text, outcome, attempt, failures, ticket, worker_id, joined_no, start_no,
    start_limit, is_strict, batch_no, end_no, enqueued_at, started_at, finished_at, cancel_requested_at, retry_of, payload, headers, tags, result,
    result_error, error, reason, attempts, lost, owner, start_event, held)
  -- A yielded or returned one's last attempt is in its log already: its own columns describe no stay in a slot.
  select e.id, l.action_id, e.lane_id, l.group_text, p_outcome, p_run.attempt, coalesce(p_failures, p_run.failures), p_run.ticket,
    p_run.worker_id, p_run.joined_no, case when p_run.state in ('running', 'held') then p_run.start_no end,
    case when p_run.state in ('running', 'held') then p_run.start_limit end, case when p_run.state in ('running', 'held') then p_run.is_strict end,
    case when p_run.state in ('running', 'held') then p_run.batch_no end,
    v_ledger.starts, e.enqueued_at, p_run.started_at, pgfifo._now(), v_cancel.requested_at, e.retry_of, e.payload, e.headers, e.tags,
    p_result, p_result_error, coalesce(p_error, case when p_outcome <> 'succeeded' then p_run.last_error end), coalesce(p_reason, v_cancel.reason), p_run.attempts, p_lost,
    e.owner, case p_run.state when 'running' then p_run.event_no when 'held' then p_run.start_event end,
    case when p_run.state = 'held' then jsonb_build_object('event', p_run.event_no, 'outcome', p_run.held_outcome, 'ended_at', p_run.ended_at,
      'worker', p_run.held_by) end
  from content e join pgfifo.lanes l on l.id = e.lane_id;
  if not found then
    raise exception using errcode = 'XX000', message = format('execution %s has no content', p_run.id);
  end if;
  if pgfifo._awaited() then
    perform pgfifo._tell(array[p_run.id]);
  end if;
end $$;
