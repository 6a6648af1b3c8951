-- Every execution, whatever its state, as long as its retention says.
create or replace view pgfifo.executions as
select e.id, a.name as action, l.group_text,
  case when o.is_over then 'expired'
       when r.id is null then case when e.ticket is null then 'delayed' else 'waiting' end
       when r.state = 'returned' then 'waiting' when r.state = 'yielded' then 'delayed' else r.state end as state,
  coalesce(r.attempt, w.attempt, 0) as attempt, coalesce(r.failures, w.failures, 0) as failures, e.payload, e.headers, e.tags, e.ticket, e.enqueued_at,
  coalesce(r.started_at, w.started_at) as started_at, case when o.is_over then o.ends_at end as finished_at, r.worker_id, null::jsonb as result, null::text as result_error,
  case when o.is_over then 'waited for longer than max_wait' else coalesce(r.last_error, w.last_error) end as error, c.requested_at as cancel_requested_at, e.retry_of, r.start_no, e.lane_id,
  coalesce(r.due_at, case when e.ticket is null then e.run_at end) as due_at, coalesce(r.attempts, w.attempts) as attempts, c.reason,
  p.fraction as progress, p.message as progress_message, p.at as progress_at, e.request_id, e.dedup_key, e.item_key,
  e.owner is not null as is_slot
from pgfifo._executions e
join pgfifo.lanes l on l.id = e.lane_id
join pgfifo.actions a on a.id = l.action_id
left join pgfifo.runs r on r.id = e.id
left join lateral jsonb_populate_record(null::pgfifo.runs, e.past) w on e.past is not null and r.id is null
left join pgfifo.cancellations c on c.id = e.id
left join pgfifo.reports p on p.id = r.id and p.attempt = r.attempt and r.state = 'running'
-- What has waited for too long has expired, though nobody may have written that down yet: see _expire.
cross join pgfifo.installation i
left join pgfifo._max_waits m on m.lane_id = e.lane_id
cross join lateral (select coalesce(e.joined_at, e.enqueued_at) + m.max_wait as ends_at) d
cross join lateral (
  select d.ends_at, d.ends_at <= statement_timestamp() + i.clock_offset and e.ticket is not null
    and (r.id is null or (r.state = 'returned' and r.attempt = 0)) as is_over) o
union all
select h.id, a.name, h.group_text, h.outcome, h.attempt, h.failures, h.payload, h.headers, h.tags, h.ticket, h.enqueued_at, h.started_at,
  h.finished_at, h.worker_id, h.result, h.result_error, h.error, h.cancel_requested_at, h.retry_of, h.start_no, h.lane_id, null, h.attempts, h.reason,
  null, null, null, null, null, null, h.owner is not null
from pgfifo.history h
join pgfifo.actions a on a.id = h.action_id;
comment on view pgfifo.executions is 'Every execution in every state, history included.';
comment on column pgfifo.executions.id is 'The id, from one sequence for all executions.';
comment on column pgfifo.executions.action is 'The action.';
comment on column pgfifo.executions.group_text is 'The group as canonical JSON; empty where the action has none.';
comment on column pgfifo.executions.state is 'delayed, waiting, running, held, or the outcome: succeeded, failed, cancelled, expired.';
comment on column pgfifo.executions.attempt is 'How often it has been started.';
comment on column pgfifo.executions.failures is 'How many attempts failed, timed out or were lost with their worker.';
comment on column pgfifo.executions.payload is 'What was enqueued.';
comment on column pgfifo.executions.headers is 'What came with the payload, such as a trace context.';
comment on column pgfifo.executions.tags is 'Words to find it by.';
comment on column pgfifo.executions.ticket is 'The number that orders the line; null while delayed.';
comment on column pgfifo.executions.enqueued_at is 'When it was enqueued.';
comment on column pgfifo.executions.started_at is 'When its last attempt started.';
comment on column pgfifo.executions.finished_at is 'When it got its outcome; null before.';
comment on column pgfifo.executions.worker_id is 'The worker that has it, or had it at the end.';
comment on column pgfifo.executions.result is 'What the handler returned; null where it was no JSON.';
comment on column pgfifo.executions.result_error is 'Why there is no result although it succeeded.';
comment on column pgfifo.executions.error is 'The last error, at most 16 KiB.';
comment on column pgfifo.executions.cancel_requested_at is 'When somebody asked to cancel it.';
comment on column pgfifo.executions.retry_of is 'The finished execution that this one puts back.';
comment on column pgfifo.executions.start_no is 'The number of its last start, counted in its lane.';
comment on column pgfifo.executions.lane_id is 'Internal number of its lane.';
comment on column pgfifo.executions.due_at is 'When a delayed one joins the line, or a held one may start again.';
comment on column pgfifo.executions.attempts is 'Earlier attempts, at most the last 100.';
comment on column pgfifo.executions.reason is 'Why it was cancelled or finished by hand, as whoever did it said.';
comment on column pgfifo.executions.progress is 'How far a running one is, from 0 to 1, as its handler said last; null where it said nothing.';
comment on column pgfifo.executions.progress_message is 'What its handler said it is doing.';
comment on column pgfifo.executions.progress_at is 'When it said so.';
comment on column pgfifo.executions.request_id is 'The request_id it was enqueued with; null once it has ended.';
comment on column pgfifo.executions.dedup_key is 'The key that no other of its action has until it has ended; null then.';
comment on column pgfifo.executions.item_key is 'The key that no other of its lane has while it waits; null once it has ended.';
comment on column pgfifo.executions.is_slot is 'Whether it stands for a slot that a program itself holds, held or waits for; no worker runs it.';
