-- Those that start before a ticket of a lane, in their order, at most p_limit of them: what was returned to its place, what has
-- committed late in a relaxed lane and no claim has seen yet, then the line. What has expired is none of them, though nobody may
-- have written that down yet. What comes after the ticket is not looked at.
create or replace function pgfifo._ahead(p_lane_id bigint, p_ticket bigint, p_limit integer) returns setof bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_state pgfifo.ledger;
  v_before timestamptz := coalesce(pgfifo._now() - pgfifo._max_wait(p_lane_id), '-infinity');
begin
  select g.* into strict v_state from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1;
  return query
  select a.id from (
    (select e.id, e.ticket from pgfifo.runs r join lateral (select e.* from pgfifo._executions e where e.id = r.id offset 0) e on true
     where v_state.returned > 0 and r.lane_id = p_lane_id and r.state = 'returned' and r.ticket >= v_state.returned_from and r.ticket < p_ticket
       and (r.attempt > 0 or coalesce(e.joined_at, e.enqueued_at) > v_before)
     order by r.lane_id, r.ticket limit p_limit)
    union all
    (select e.id, e.ticket from pgfifo._executions e
     where e.lane_id = p_lane_id and e.ticket <= v_state.consumed and e.ticket < p_ticket and coalesce(e.joined_at, e.enqueued_at) > v_before
       and e.ticket >= (select min(n.first_ticket) from (
         select n.first_ticket from pgfifo.arrivals n where n.lane_id = p_lane_id and n.id > v_state.mark_floor order by n.lane_id, n.id limit 1000) n)
       and not exists (select from pgfifo.runs r where r.id = e.id)
     order by e.lane_id, e.ticket limit p_limit)
    union all
    (select e.id, e.ticket from pgfifo._executions e
     where e.lane_id = p_lane_id and e.ticket > v_state.consumed and e.ticket < p_ticket and coalesce(e.joined_at, e.enqueued_at) > v_before
     order by e.lane_id, e.ticket limit p_limit)) a
  order by a.ticket limit p_limit;
end $$;
