-- Starts after which more of the lane were active than the limit they were admitted under; counted from the recorded
-- stays in slots, not from the ledger.
create or replace view pgfifo.slot_violations as
with stays as (
  select s.lane_id, s.id, s.attempt, s.start_no, s.start_limit, s.end_no from pgfifo.starts s where s.batch_no is null
  union all
  -- A batch has one slot, from its first start until the last of it has left.
  select b.lane_id, b.ids[1], b.attempts[1], b.start_no, b.start_limit, case when b.has_left then b.end_no end
  from (
    select s.lane_id, array_agg(s.id order by s.start_no) as ids, array_agg(s.attempt order by s.start_no) as attempts, min(s.start_no) as start_no,
      min(s.start_limit) as start_limit, bool_and(s.end_no is not null) as has_left, max(s.end_no) as end_no
    from pgfifo.starts s where s.batch_no is not null group by s.lane_id, s.batch_no) b),
events as (
  select s.lane_id, s.start_no as at, 1 as step, 1 as kind, s.id, s.attempt, s.start_limit from stays s
  union all
  -- It had left by the time of the next start.
  select s.lane_id, s.end_no + 1, -1, 0, s.id, s.attempt, null from stays s where s.end_no is not null),
counted as (
  select e.*, sum(e.step) over (partition by e.lane_id order by e.at, e.kind rows unbounded preceding) as active from events e)
select a.name as action, l.group_text, c.lane_id, c.id, c.attempt, c.at as start_no, c.active, c.start_limit as max_concurrent
from counted c
left join pgfifo.lanes l on l.id = c.lane_id
left join pgfifo.actions a on a.id = l.action_id
where c.kind = 1 and c.active > c.start_limit;
comment on view pgfifo.slot_violations is 'Recorded starts that took a lane above its limit; should be empty.';
comment on column pgfifo.slot_violations.action is 'The action.';
comment on column pgfifo.slot_violations.group_text is 'The group as canonical JSON.';
comment on column pgfifo.slot_violations.lane_id is 'The lane.';
comment on column pgfifo.slot_violations.id is 'The execution whose start was one too many.';
comment on column pgfifo.slot_violations.attempt is 'Which start of it that was.';
comment on column pgfifo.slot_violations.start_no is 'The number of that start in its lane.';
comment on column pgfifo.slot_violations.active is 'How many were active after it.';
comment on column pgfifo.slot_violations.max_concurrent is 'The limit it was admitted under.';
