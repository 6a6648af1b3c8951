-- Every execution, whatever its state, as long as its retention says.
create or replace view pgfifo.executions as
select e.id, a.name as action, l.group_text,
  case when r.id is null then case when e.ticket is null then 'delayed' else 'waiting' end
       when r.state = 'returned' then 'waiting' else r.state end as state,
  coalesce(r.attempt, 0) as attempt, coalesce(r.failures, 0) as failures, e.payload, e.headers, e.tags, e.ticket, e.enqueued_at,
  r.started_at, null::timestamptz as finished_at, r.worker_id, null::jsonb as result, null::text as result_error, r.last_error as error,
  c.requested_at as cancel_requested_at, e.retry_of, r.start_no, e.lane_id, r.due_at, r.attempts, c.reason
from pgfifo._executions e
join pgfifo.lanes l on l.id = e.lane_id
join pgfifo.actions a on a.id = l.action_id
left join pgfifo.runs r on r.id = e.id
left join pgfifo.cancellations c on c.id = e.id
union all
select h.id, a.name, h.group_text, h.outcome, h.attempt, h.failures, h.payload, h.headers, h.tags, h.ticket, h.enqueued_at, h.started_at,
  h.finished_at, h.worker_id, h.result, h.result_error, h.error, h.cancel_requested_at, h.retry_of, h.start_no, h.lane_id, null, h.attempts, h.reason
from pgfifo.history h
join pgfifo.actions a on a.id = h.action_id;
comment on view pgfifo.executions is 'Every execution in every state, history included.';
