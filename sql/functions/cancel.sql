-- Cancel an execution. What waits or is held ends at once ('cancelled'); what runs is asked to stop ('requested'): its
-- worker decides, and if it succeeds all the same, it succeeded. One that is over keeps its outcome, which is returned.
-- A running one gets a request row and nothing is locked, so a caller's open transaction holds up no finish. For the
-- others the lane's slot lock is held to the caller's commit; claims pass the lane by meanwhile.
create or replace function pgfifo.cancel(p_id bigint, p_reason text default null) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_lane_id bigint;
  v_run pgfifo.runs;
  v_outcome text;
begin
  perform pgfifo._require_read_committed('cancel');
  perform pgfifo._durable();
  for v_try in 1 .. 3 loop
    select r.* into v_run from pgfifo.runs r where r.id = p_id;
    if v_run.state = 'running' then
      insert into pgfifo.cancellations (id, requested_at, requested_by, reason) values (p_id, pgfifo._now(), session_user, left(p_reason, 1000))
        on conflict (id) do nothing;
      -- It may have ended while we wrote: then the request means nothing, and we look again. If it ends after this
      -- statement it was running when we asked; whoever ends or restarts it sees the request, maintenance clears it away.
      if exists (select from pgfifo.runs r where r.id = p_id and r.state = 'running' and r.attempt = v_run.attempt) then
        perform pgfifo._audit('cancel', null, p_id, jsonb_build_object('id', p_id, 'reason', p_reason, 'answer', 'requested'));
        return 'requested';
      end if;
      delete from pgfifo.cancellations c where c.id = p_id;
      continue;
    end if;
    select e.lane_id into v_lane_id from pgfifo._executions e where e.id = p_id;
    if not found then
      select h.outcome into v_outcome from pgfifo.history h where h.id = p_id;
      if found then
        return v_outcome;
      end if;
      perform pgfifo._unknown_execution(p_id);
    end if;
    perform pgfifo._lock_lane(v_lane_id, 'cancel');
    -- Law 1: only what is read from here on counts.
    select r.* into v_run from pgfifo.runs r where r.id = p_id;
    continue when v_run.state = 'running';
    if v_run.id is not null then
      insert into pgfifo.cancellations (id, requested_at, requested_by, reason) values (p_id, pgfifo._now(), session_user, left(p_reason, 1000))
        on conflict (id) do nothing;
      perform pgfifo._end_run(v_run, 'cancelled');
      -- A held one gives a slot back.
      perform pgfifo._mark_if_waiting(v_lane_id);
    else
      continue when pgfifo._end_waiting(array[p_id], v_lane_id, 'cancelled', p_reason) = 0;
    end if;
    perform pgfifo._audit('cancel', null, p_id, jsonb_build_object('id', p_id, 'reason', p_reason, 'answer', 'cancelled'));
    return 'cancelled';
  end loop;
  raise exception using errcode = 'QF023', message = format('execution %s changes too fast to be cancelled', p_id),
    detail = json_build_object('id', p_id)::text, hint = 'Try again.';
end $$;
comment on function pgfifo.cancel is 'Cancel an execution: at once while it waits, by request while it runs.';
