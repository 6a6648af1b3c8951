-- Leave a slot, or the line: what slot_enter has joined with ends, and the lane moves on in the same transaction.
-- Of a slot: with p_outcome, succeeded, failed (p_error says why; it is not tried again) or cancelled. In the line it is
-- cancelled. The state that is returned is the outcome on record; or 'lost', if it was taken from its holder before: then
-- another may have had the slot beside him. Saying it again is the same as saying it once.
-- Waits for the lane's slot lock, 5 s at most: Busy (QF023) then, and nothing was done.
create or replace function pgfifo.slot_leave(p_worker bigint, p_id bigint, p_outcome text default 'succeeded', p_error text default null) returns pgfifo.slot_row
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_lane_id bigint;
  v_run pgfifo.runs;
  v_started bigint[] := '{}';
  v_row pgfifo.slot_row;
begin
  perform pgfifo._require_read_committed('slot_leave');
  perform pgfifo._durable();
  if p_outcome is null or p_outcome not in ('succeeded', 'failed', 'cancelled') then
    raise exception using errcode = 'QF022',
      message = format('a slot is left as succeeded, failed or cancelled, not as %s', coalesce(quote_literal(p_outcome), 'null')),
      detail = json_build_object('name', 'p_outcome', 'value', p_outcome)::text;
  end if;
  perform pgfifo._fence_worker(p_worker);
  select e.lane_id into v_lane_id from pgfifo._executions e where e.id = p_id and e.owner = p_worker;
  if found then
    perform pgfifo._lock_lane(v_lane_id, 'slot_leave');
    -- Law 1: what it is doing is read under the lock.
    select r.* into v_run from pgfifo.runs r where r.id = p_id;
    if v_run.state = 'running' then
      v_started := (pgfifo._move_on(p_worker, v_lane_id, interval '1 s',
        jsonb_build_array(jsonb_build_object('id', p_id, 'attempt', v_run.attempt, 'outcome', p_outcome, 'error', p_error)))).o_started;
    elsif v_run.state = 'returned' then
      perform pgfifo._end_run(v_run, 'cancelled', p_reason => left(p_error, 1000));
    else
      perform pgfifo._end_waiting(array[p_id], 'cancelled', p_error);
    end if;
  end if;
  v_row := pgfifo._slot_row(p_worker, p_id, null, v_started);
  v_row.state := coalesce(v_row.state, 'lost');
  return v_row;
end $$;
comment on function pgfifo.slot_leave is 'Leave a slot, or the line for it.';
