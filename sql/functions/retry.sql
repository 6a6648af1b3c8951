-- Put a finished execution back: a new one with the same action, group, payload, headers and tags, and retry_of; the old
-- outcome stays. At the end of its line, or with p_head in its old place, before all younger ones that wait. Returns its id.
-- Limits of enqueues hold as for an enqueue; for an old place lengths and on_limit are not asked.
-- In the caller's transaction; the lane's enqueue lock, with p_head also its slot lock, is held to the commit.
create or replace function pgfifo.retry(p_id bigint, p_head boolean default false) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_done record;
  v_lane record;
begin
  perform pgfifo._require_read_committed('retry');
  perform pgfifo._durable();
  for v_try in 1 .. 2 loop
    select r.* into v_done from pgfifo._put_back(array[p_id], coalesce(p_head, false), clock_timestamp() + interval '5 s') r;
    -- What ended while we looked is on record when we look again.
    exit when v_done.answer <> 'busy' or v_done.lane_id is not null;
  end loop;
  if v_done.answer = 'retried' then
    perform pgfifo._audit_retries(array[p_id], array[v_done.retry_id], p_head);
    return v_done.retry_id;
  end if;
  select a.id as action_id, a.name, l.id, l.group_text into v_lane
  from pgfifo.lanes l join pgfifo.actions a on a.id = l.action_id where l.id = v_done.lane_id;
  case v_done.answer
    when 'unknown' then
      perform pgfifo._unknown_execution(p_id);
    when 'busy' then
      perform pgfifo._busy('pgfifo.retry gave up after 5 s: another transaction holds this lane, or a limit that it counts for',
        case when p_head then 'pgfifo.lanes'::regclass else 'pgfifo._executions'::regclass end, pgfifo._key(v_done.lane_id),
        jsonb_build_object('id', p_id, 'lane_id', v_done.lane_id));
    when 'closed' then
      perform pgfifo._refuse_closed(v_lane.action_id, v_lane.id, null);
    when 'full', 'quota', 'limit' then
      perform pgfifo._refuse_retry(v_done.lane_id, v_done.answer);
    else
      raise exception using errcode = 'QF022',
        message = case v_done.answer
          when 'again' then format('execution %s has been put back already, as %s, which is not finished', p_id, v_done.retry_id)
          when 'taken' then format('the old place of execution %s has another retry in it', p_id)
          when 'slot' then format('execution %s stood for a slot that a program held; only that program could take it again', p_id)
          else format('execution %s is %s; only finished ones can be put back', p_id, v_done.answer) end,
        detail = jsonb_strip_nulls(jsonb_build_object('name', 'p_id', 'value', p_id, 'answer', v_done.answer, 'retry', v_done.retry_id))::text,
        hint = 'Nothing was changed.';
  end case;
end $$;
comment on function pgfifo.retry is 'Put a finished execution back, at the end of its line or in its old place; returns the new one''s id.';
