-- Who holds slots, workers and programs alike, and which programs wait for one. Waiting executions that workers are to run
-- are in pgfifo.executions; of a long line they would be too many here.
create or replace view pgfifo.slots as
select a.name as action, l.group_text, s.id, s.state, s.attempt, s.is_slot, s.since, s.worker_id, w.name as holder, w.host, w.pid, w.last_seen, s.ticket, s.lane_id, s.batch_no
from (
  select r.id, r.state, r.attempt, e.owner is not null as is_slot, r.started_at as since, coalesce(r.worker_id, r.held_by) as worker_id, r.ticket, r.lane_id, r.batch_no
  from pgfifo.runs r join pgfifo._executions e on e.id = r.id
  where r.state in ('running', 'held')
  union all
  select e.id, 'waiting', 0, true, e.enqueued_at, e.owner, e.ticket, e.lane_id, null
  from pgfifo._executions e
  where e.owner is not null and not exists (select from pgfifo.runs r where r.id = e.id and r.state = 'running')) s
join pgfifo.lanes l on l.id = s.lane_id
join pgfifo.actions a on a.id = l.action_id
left join pgfifo._workers w on w.id = s.worker_id;
comment on view pgfifo.slots is 'Who holds slots, and which programs wait for one with slot_enter.';
comment on column pgfifo.slots.action is 'The action.';
comment on column pgfifo.slots.group_text is 'The group as canonical JSON.';
comment on column pgfifo.slots.id is 'The execution that has the slot or waits for it.';
comment on column pgfifo.slots.state is 'running or held (has a slot), or waiting.';
comment on column pgfifo.slots.attempt is 'Which start of it this is; 0 while it waits.';
comment on column pgfifo.slots.is_slot is 'Whether a program itself holds it or waits for it; else a worker runs a handler.';
comment on column pgfifo.slots.since is 'Since when it has the slot, or waits.';
comment on column pgfifo.slots.worker_id is 'In whose name; of a held one, who had it last.';
comment on column pgfifo.slots.holder is 'What that worker or program is called.';
comment on column pgfifo.slots.host is 'The host it runs on.';
comment on column pgfifo.slots.pid is 'Its process id there.';
comment on column pgfifo.slots.last_seen is 'When it last sent a heartbeat.';
comment on column pgfifo.slots.ticket is 'Its place in the line.';
comment on column pgfifo.slots.lane_id is 'Internal number of its lane.';
comment on column pgfifo.slots.batch_no is 'Those of a lane with the same number run as one batch and share a slot; null: it has one of its own.';
