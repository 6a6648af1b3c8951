-- Starts that broke the order: while `overtaken` was in the line and startable, the younger `id` of its lane was started.
-- Computed from the recorded starts and from what still waits, not from what the claims believed. An execution that came
-- with its ticket was in the line before every younger ticket (strict lanes); one that came back, from joined_no on.
create or replace view pgfifo.order_violations as
with stays as (
  select s.lane_id, s.id, s.attempt, s.ticket, s.joined_no, s.start_no, s.is_strict from pgfifo.starts s
  union all
  select e.lane_id, e.id, coalesce(r.attempt, (e.past ->> 'attempt')::integer, 0) + 1, e.ticket, coalesce(r.joined_no, 0), 9223372036854775807, true
  from pgfifo._executions e left join pgfifo.runs r on r.id = e.id
  where e.ticket is not null and (r.id is null or r.state = 'returned')),
first_stays as (
  -- Only starts overtake: what waits has no order of starts among itself, and would make suspects of a whole backlog.
  select s.*, max(s.ticket) filter (where s.is_strict and s.start_no < 9223372036854775807)
    over (partition by s.lane_id order by s.start_no rows between unbounded preceding and 1 preceding) as highest
  from stays s)
select a.name as action, l.group_text, v.*
from (
  select f.lane_id, o.id, o.attempt, o.ticket, o.start_no, f.id as overtaken, f.ticket as overtaken_ticket
  from first_stays f
  cross join lateral (
    select s.id, s.attempt, s.ticket, s.start_no from stays s
    where s.lane_id = f.lane_id and s.is_strict and s.ticket > f.ticket and s.start_no < f.start_no order by s.start_no limit 1) o
  where f.joined_no = 0 and f.highest > f.ticket
  union all
  select b.lane_id, o.id, o.attempt, o.ticket, o.start_no, b.id, b.ticket
  from stays b
  cross join lateral (
    select s.id, s.attempt, s.ticket, s.start_no from stays s
    where s.lane_id = b.lane_id and s.ticket > b.ticket and s.start_no > b.joined_no and s.start_no < b.start_no order by s.start_no limit 1) o
  where b.joined_no > 0) v
left join pgfifo.lanes l on l.id = v.lane_id
left join pgfifo.actions a on a.id = l.action_id;
comment on view pgfifo.order_violations is 'Recorded starts that overtook an older execution of their lane; should be empty.';
comment on column pgfifo.order_violations.action is 'The action.';
comment on column pgfifo.order_violations.group_text is 'The group as canonical JSON.';
comment on column pgfifo.order_violations.lane_id is 'The lane.';
comment on column pgfifo.order_violations.id is 'The execution that started too early.';
comment on column pgfifo.order_violations.attempt is 'Which start of it that was.';
comment on column pgfifo.order_violations.ticket is 'Its ticket.';
comment on column pgfifo.order_violations.start_no is 'The number of that start in its lane.';
comment on column pgfifo.order_violations.overtaken is 'An older execution that was in the line at that moment.';
comment on column pgfifo.order_violations.overtaken_ticket is 'Its ticket.';
