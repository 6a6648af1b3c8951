-- How things stand with what slot_enter has joined the line with: 'waiting', 'running', the outcome if somebody has ended it,
-- or 'lost' if it was taken from its holder. Moves the lane on, if a slot is free and the first of the line waits for one.
create or replace function pgfifo.slot_look(p_worker bigint, p_id bigint) returns pgfifo.slot_row
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_row pgfifo.slot_row;
  v_lane_id bigint;
  v_moved record;
begin
  perform pgfifo._require_read_committed('slot_look');
  perform pgfifo._durable();
  perform pgfifo._fence_worker(p_worker);
  v_row := pgfifo._slot_row(p_worker, p_id, null, '{}');
  if v_row.id is null then
    perform pgfifo._unknown_execution(p_id);
  end if;
  if v_row.state = 'waiting' then
    -- Without a lock: what is missed here is seen the next time. Mostly the lane is full.
    select e.lane_id into v_lane_id
    from pgfifo._executions e
    join pgfifo.lanes l on l.id = e.lane_id
    join pgfifo._action_policies p on p.action_id = l.action_id
    left join lateral (select lp.max_concurrent from pgfifo._lane_policies lp where lp.lane_id = e.lane_id offset 0) lp on true
    cross join lateral (
      select g.running + g.held - g.riding as active, g.returned, g.consumed from pgfifo.ledger g where g.lane_id = e.lane_id
      order by g.lane_id desc, g.version desc limit 1) g
    left join pgfifo._max_waits w on w.lane_id = e.lane_id
    where e.id = p_id and g.active < coalesce(lp.max_concurrent, p.max_concurrent)
      -- In a relaxed lane it may stand before the line; and what has expired may stand before it.
      and (e.ticket <= g.consumed or g.returned = 0 and (
        select x.owner is not null or coalesce(x.joined_at, x.enqueued_at) <= pgfifo._now() - w.max_wait
        from pgfifo._executions x where x.lane_id = e.lane_id and x.ticket > g.consumed order by x.lane_id, x.ticket limit 1));
    if found then
      select * into v_moved from pgfifo._move_on(p_worker, v_lane_id, interval '50 ms');
      v_row := pgfifo._slot_row(p_worker, p_id, v_moved.o_after, v_moved.o_started);
    end if;
  end if;
  return v_row;
end $$;
comment on function pgfifo.slot_look is 'Say whether the slot that a program waits for is its own by now.';
