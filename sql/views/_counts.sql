-- What the rows themselves say about each lane that has something unfinished: what its ledger, with what is not folded, must
-- agree with.
create or replace view pgfifo._counts as
select e.lane_id,
  count(*) filter (where r.state = 'returned' or (r.id is null and e.ticket is not null)) as waiting,
  count(*) filter (where r.state = 'running') as running,
  count(*) filter (where r.state = 'held') as held,
  -- Each batch has one slot.
  count(r.batch_no) filter (where r.state in ('running', 'held'))
    - count(distinct r.batch_no) filter (where r.state in ('running', 'held')) as riding,
  count(*) filter (where r.state = 'returned') as returned,
  count(*) filter (where r.state = 'yielded') as yielded,
  count(*) filter (where r.id is null and e.ticket is null) as delayed,
  min(r.due_at) as first_held,
  min(r.ticket) filter (where r.state = 'returned') as first_returned,
  min(e.run_at) filter (where r.id is null and e.ticket is null) as first_delayed
from pgfifo._executions e left join pgfifo.runs r on r.id = e.id
group by e.lane_id;
