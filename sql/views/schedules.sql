-- What is enqueued again and again.
create or replace view pgfifo.schedules as
select s.name, a.name as action, s.cron, s.time_zone, s.payload, s.group_text, s.headers, s.tags, s.missed, s.declared,
  case when s.paused_at is null then nullif(s.next_at, 'infinity') end as next_at, s.last_tick, s.last_id, s.last_error,
  s.paused_at is not null as paused, s.paused_by, s.paused_reason, s.changed_at
from pgfifo._schedules s
join pgfifo.actions a on a.id = s.action_id;
comment on view pgfifo.schedules is 'What is enqueued again and again, and when next.';
comment on column pgfifo.schedules.name is 'Its name.';
comment on column pgfifo.schedules.action is 'The action that is enqueued.';
comment on column pgfifo.schedules.cron is 'When: minute, hour, day of the month, month, day of the week.';
comment on column pgfifo.schedules.time_zone is 'In which time zone that is meant.';
comment on column pgfifo.schedules.payload is 'The payload of each execution.';
comment on column pgfifo.schedules.group_text is 'The group, if one was given; else it is what the payload says.';
comment on column pgfifo.schedules.headers is 'The headers of each execution, beside pgfifo.schedule and pgfifo.tick.';
comment on column pgfifo.schedules.tags is 'The tags of each execution.';
comment on column pgfifo.schedules.missed is 'What becomes of ticks that nobody was there to enqueue: skip, one or all.';
comment on column pgfifo.schedules.declared is 'Whether it comes from code, and not from an operator.';
comment on column pgfifo.schedules.next_at is 'The next tick; null while it is paused, or not worked out yet.';
comment on column pgfifo.schedules.last_tick is 'The last tick that came.';
comment on column pgfifo.schedules.last_id is 'The last execution that it enqueued.';
comment on column pgfifo.schedules.last_error is 'Why the last tick enqueued nothing, or when is not understood.';
comment on column pgfifo.schedules.paused is 'Whether it is paused.';
comment on column pgfifo.schedules.paused_by is 'Who paused it.';
comment on column pgfifo.schedules.paused_reason is 'Why.';
comment on column pgfifo.schedules.changed_at is 'When it was last set, paused or resumed.';
