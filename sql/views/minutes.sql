-- What happened per action and minute, for a week: complete up to the minute before the last, filled by maintenance.
create or replace view pgfifo.minutes as
select a.name as action, m.minute, m.enqueued, m.started, m.succeeded, m.failed, m.cancelled, m.expired, m.measured, m.wait_seconds, m.run_seconds
from pgfifo._minutes m
join pgfifo.actions a on a.id = m.action_id;
comment on view pgfifo.minutes is 'What happened per action and minute; a minute in which nothing did has no row.';
comment on column pgfifo.minutes.action is 'The action.';
comment on column pgfifo.minutes.minute is 'When the minute began.';
comment on column pgfifo.minutes.enqueued is 'How many were enqueued.';
comment on column pgfifo.minutes.started is 'How many starts there were; one that is tried again starts again.';
comment on column pgfifo.minutes.succeeded is 'How many succeeded.';
comment on column pgfifo.minutes.failed is 'How many failed for good.';
comment on column pgfifo.minutes.cancelled is 'How many were cancelled.';
comment on column pgfifo.minutes.expired is 'How many expired.';
comment on column pgfifo.minutes.measured is 'How many succeeded or failed in it, of those whose times are in the sums.';
comment on column pgfifo.minutes.wait_seconds is 'The sum of their waits, from the enqueue to the first start.';
comment on column pgfifo.minutes.run_seconds is 'The sum of their runs, from the last start to the end.';
