-- Cancel an execution. What waits, is delayed or is held ends at once ('cancelled'); what runs is asked to stop ('requested'): its worker decides,
-- and if it succeeds all the same, it succeeded. One that is over keeps its outcome, which is returned.
create or replace function pgfifo.cancel(p_id bigint, p_reason text default null) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_answer text;
  v_lane_id bigint;
  v_delayed boolean;
begin
  if p_id is null then
    perform pgfifo._unknown_execution(p_id);
  end if;
  select c.answer into strict v_answer from pgfifo.cancel_many(array[p_id], p_reason) c;
  if v_answer = 'unknown' then
    perform pgfifo._unknown_execution(p_id);
  elsif v_answer = 'busy' then
    select e.lane_id, e.ticket is null into v_lane_id, v_delayed from pgfifo._executions e where e.id = p_id;
    if v_delayed then
      perform pgfifo._joining(p_id, v_lane_id, 'cancel');
    end if;
    perform pgfifo._busy('pgfifo.cancel gave up after 5 s: another transaction holds this lane',
      'pgfifo.lanes'::regclass, pgfifo._key(v_lane_id), jsonb_build_object('id', p_id, 'lane_id', v_lane_id));
  end if;
  return v_answer;
end $$;
comment on function pgfifo.cancel is 'Cancel an execution: at once while it waits or is delayed, by request while it runs.';
