-- Every start that is on record, with its stay in the line before and its stay in a slot after, on the lane's own clock:
-- its count of starts. joined_no: the count when it came back to its place in the line, 0 where it came with its ticket.
-- end_no: the count when it left its slot, null while it has one. A held execution keeps its slot, so its stays touch.
create or replace view pgfifo.starts as
with on_record as (
  select r.lane_id, r.id, r.attempt, r.ticket, r.joined_no, r.start_no, r.start_limit, r.is_strict, null::bigint as end_no, r.started_at, r.batch_no, r.attempts
  from pgfifo.runs r
  union all
  select h.lane_id, h.id, h.attempt, h.ticket, h.joined_no, h.start_no, h.start_limit, h.is_strict, h.end_no, h.started_at, h.batch_no, h.attempts
  from pgfifo.history h
  union all
  -- At the end of the line again after a failed attempt, or on the way there: only its log tells of starts.
  select e.lane_id, e.id, p.attempt, e.ticket, 0, null, null, null, null, null, null, p.attempts
  from pgfifo._executions e cross join lateral jsonb_populate_record(null::pgfifo.runs, e.past) p
  where e.past is not null and not exists (select from pgfifo.runs r where r.id = e.id))
select o.lane_id, o.id, o.attempt, o.ticket, o.joined_no, o.start_no, o.start_limit, o.is_strict, o.end_no, o.started_at, o.batch_no
from on_record o
where o.start_no is not null and not exists (
  -- a returned one's last start is in its log
  select from jsonb_array_elements(o.attempts) x where (x ->> 'attempt')::integer = o.attempt)
union all
select o.lane_id, o.id, x.attempt, x.ticket, x.joined_no, x.start_no, x."limit", x.is_strict, x.end_no, x.started_at, x.batch_no
from on_record o
cross join lateral jsonb_to_recordset(o.attempts) x(attempt integer, ticket bigint, joined_no bigint, start_no bigint, "limit" integer, is_strict boolean,
  end_no bigint, started_at timestamptz, batch_no bigint)
where x.start_no is not null;
comment on view pgfifo.starts is 'Every start on record, on its lane''s own clock.';
comment on column pgfifo.starts.lane_id is 'The lane.';
comment on column pgfifo.starts.id is 'The execution.';
comment on column pgfifo.starts.attempt is 'Which start of it this was.';
comment on column pgfifo.starts.ticket is 'Its place in the line.';
comment on column pgfifo.starts.joined_no is 'The lane''s count of starts when it came back to its place in the line; 0: it came with its ticket.';
comment on column pgfifo.starts.start_no is 'The number of this start in its lane.';
comment on column pgfifo.starts.start_limit is 'The limit it was admitted under.';
comment on column pgfifo.starts.is_strict is 'Whether the lane was strict then.';
comment on column pgfifo.starts.end_no is 'The lane''s count of starts when it left its slot; null while it has one.';
comment on column pgfifo.starts.started_at is 'When it started; for people, never for deriving an order.';
comment on column pgfifo.starts.batch_no is 'Of a member of a batch, the number of the start that led it: all of its lane with the same one had one slot. Else null.';
