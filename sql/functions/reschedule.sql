-- Change when a delayed execution joins its line, or when a held one is tried again: at p_run_at, after p_delay, or, with
-- neither, now. Returns the time it had before. One that waits or runs is not taken out of the line.
-- Locks like cancel: the row of one that has yet to join, then the lane's slot lock, held to the caller's commit.
create or replace function pgfifo.reschedule(p_id bigint, p_run_at timestamptz default null, p_delay interval default null) returns timestamptz
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_asked timestamptz := pgfifo._run_at(coalesce(p_run_at, case when p_delay is null then pgfifo._now() end), p_delay, null);
  v_run_at timestamptz;
  v_before timestamptz;
  v_state text;
  v_lane_id bigint;
  v_run pgfifo.runs;
  v_delayed boolean;
begin
  perform pgfifo._require_read_committed('reschedule');
  perform pgfifo._durable();
  for v_try in 1 .. 3 loop
    select e.lane_id, e.ticket is null into v_lane_id, v_delayed from pgfifo._executions e where e.id = p_id;
    if not found then
      select h.outcome into v_state from pgfifo.history h where h.id = p_id;
      if not found then
        perform pgfifo._unknown_execution(p_id);
      end if;
      perform pgfifo._no_time(p_id, v_state);
    end if;
    if v_delayed and not pgfifo._lock_delayed(array[p_id], case when v_try = 1 then interval '5 s' else interval '50 ms' end) then
      perform pgfifo._joining(p_id, v_lane_id, 'reschedule');
    end if;
    perform pgfifo._lock_lane(v_lane_id, 'reschedule');
    -- Law 1: only what is read from here on counts. An xid before the time is read by which it is due: see _scan_from.
    perform pg_current_xact_id();
    v_run_at := greatest(v_asked, pgfifo._now());
    select r.* into v_run from pgfifo.runs r where r.id = p_id;
    if v_run.state in ('held', 'yielded') then
      v_before := v_run.due_at;
      update pgfifo.runs r set due_at = v_run_at where r.id = p_id;
      perform pgfifo._append(v_lane_id, p_held_from => v_run_at);
    elsif v_run.id is not null then
      perform pgfifo._no_time(p_id, v_run.state);
    else
      -- Wherever the clock has gone: never below the bound from which delayed ones are read.
      select greatest(v_run_at, g.delayed_from), e.run_at into v_run_at, v_before
      from pgfifo._executions e, (select g.delayed_from from pgfifo.ledger g where g.lane_id = v_lane_id order by g.lane_id desc, g.version desc limit 1) g
      where e.id = p_id and e.ticket is null and v_delayed;
      if not found then
        if exists (select from pgfifo._executions e where e.id = p_id and e.ticket is not null) then
          perform pgfifo._no_time(p_id, 'waiting');
        end if;
        continue;  -- it has ended meanwhile, or was sent to the end of the line by a failure: then its row is locked first
      end if;
      update pgfifo._executions e set run_at = v_run_at where e.id = p_id;
    end if;
    perform pgfifo._timer(v_lane_id, v_run_at);
    perform pgfifo._wake(a.id, a.name) from pgfifo.lanes l join pgfifo.actions a on a.id = l.action_id where l.id = v_lane_id;
    perform pgfifo._audit('reschedule', null, p_id, jsonb_build_object('id', p_id, 'from', v_before, 'to', v_run_at));
    return v_before;
  end loop;
  raise exception using errcode = 'QF023', message = format('execution %s changes too fast to be rescheduled', p_id),
    detail = json_build_object('id', p_id)::text, hint = 'Try again.';
end $$;
comment on function pgfifo.reschedule is 'Change when a delayed execution joins its line or a held one is tried again; returns the time before.';

create or replace function pgfifo._no_time(p_id bigint, p_state text) returns void
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QF022',
    message = format('execution %s is %s; only delayed and held ones have a time that can be changed', p_id, case p_state when 'returned' then 'waiting' else p_state end),
    detail = json_build_object('name', 'p_id', 'value', p_id, 'state', p_state)::text,
    hint = 'Nothing was changed.';
end $$;
