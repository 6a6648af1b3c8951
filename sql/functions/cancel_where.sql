-- Cancel all executions that a filter selects, a bounded piece at a time (p_limit executions and lanes are looked at): call
-- it again with what it returned as next, in a transaction of its own, until that is null. What comes in after the first call
-- is left alone: the ids drawn until then are part of next. Lane by lane, in the order of lanes and tickets; a lane that
-- somebody keeps for a second is passed by, and counted as busy, and so is one where a delayed execution is joining its line
-- in an open transaction. As in cancel, what waits or is held ends at once, and of what runs the worker is asked.
-- p_dry_run: only count, without a lock.
create or replace function pgfifo.cancel_where(
  p_filter jsonb,
  p_reason text default null,
  p_dry_run boolean default false,
  p_after text default null,
  p_limit integer default 1000
) returns table (cancelled bigint, requested bigint, busy bigint, next text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_selection pgfifo._selection := pgfifo._read_filter(p_filter, '{delayed,waiting,running,held}');
  -- The last id drawn before the first call; lane and ticket that have been looked at.
  v_after bigint[];
  v_only bigint;
  v_lane bigint;
  v_found record;
  v_run pgfifo.runs;
  v_now timestamptz := pgfifo._now();
  v_budget integer := p_limit;
  v_waits boolean := exists (select from pgfifo.policies p where p.max_wait < 'infinity');
  v_wait interval;
  v_locks integer := 0;
  v_rows integer;
  v_left integer;
begin
  if not p_dry_run then
    perform pgfifo._require_read_committed('cancel_where');
    perform pgfifo._durable();
  end if;
  if p_limit is null or p_limit not between 1 and 10000 or p_after !~ '^[0-9]{1,18}([.][0-9]{1,18}){2}$' then
    raise exception using errcode = 'QF022', message = 'p_limit is a number from 1 to 10000, and p_after is what an earlier call returned as next',
      detail = json_build_object('name', case when p_after is null then 'p_limit' else 'p_after' end)::text, hint = 'Leave p_after out in the first call.';
  end if;
  v_after := coalesce(string_to_array(p_after, '.')::bigint[], array[(select i.last_value from pgfifo.execution_ids i), 0, 0]);
  v_selection.to_id := least(v_selection.to_id, v_after[1]);
  cancelled := 0;
  requested := 0;
  busy := 0;
  if v_selection.group_text is not null then
    select l.id into v_only from pgfifo.lanes l where l.action_id = v_selection.action_id and l.group_text = v_selection.group_text;
    if not found then
      return next;
      return;
    end if;
  end if;
  for v_lane in
    select l.id from pgfifo.lanes l
    where l.id >= coalesce(v_only, v_after[2]) and (v_only is null or l.id = v_only) and (v_selection.action_id is null or l.action_id = v_selection.action_id)
    order by l.id
  loop
    if v_lane <> v_after[2] then
      v_after := array[v_after[1], v_lane, 0];
    end if;
    if v_waits then
      v_wait := pgfifo._max_wait(v_lane);
    end if;
    loop
      if v_budget <= 0 or v_locks >= 64 then
        next := array_to_string(v_after, '.');
        exit;
      end if;
      -- Without a lock: a hint, or all that a dry run wants to know.
      select * into v_found from pgfifo._select_unfinished(v_selection, v_lane, v_after[3], v_budget, v_now - v_wait);
      v_budget := v_budget - 1 - v_found.o_seen;
      if not p_dry_run and cardinality(v_found.o_fresh || v_found.o_parked || v_found.o_running) > 0 then
        if not pg_try_advisory_xact_lock('pgfifo.lanes'::regclass::oid::integer, pgfifo._key(v_lane)) then
          -- Nothing waits for a lane with others in its hands: that is for the next call.
          if v_locks > 0 then
            next := array_to_string(v_after, '.');
            exit;
          elsif not pgfifo._lock('pgfifo.lanes'::regclass, pgfifo._key(v_lane), interval '1 s') then
            busy := busy + 1;
            exit;
          end if;
        end if;
        v_locks := v_locks + 1;
        -- Law 1: what they are doing is read again under the lock. While we have it no state changes here.
        select * into v_found from pgfifo._select_unfinished(v_selection, v_lane, v_after[3], greatest(1, v_found.o_seen), v_now - v_wait);
        insert into pgfifo.cancellations (id, requested_at, requested_by, reason)
        select i.id, v_now, session_user, left(p_reason, 1000) from unnest(v_found.o_running || v_found.o_parked) i(id) on conflict (id) do nothing;
        for v_run in select r.* from unnest(v_found.o_parked) i(id) join pgfifo.runs r on r.id = i.id loop
          perform pgfifo._end_run(v_run, 'cancelled');
        end loop;
        v_rows := case when v_found.o_fresh <> '{}'
          then (select cardinality(w.o_ids) from pgfifo._end_waiting(v_found.o_fresh, 'cancelled', p_reason) w) else 0 end;
        perform pgfifo._call_workers(v_found.o_running);
        -- One that joins its line in somebody's open transaction at this moment is not waited for.
        v_left := cardinality(v_found.o_fresh) - v_rows;
        busy := busy + (v_left > 0)::integer;
        cancelled := cancelled - v_left;
        if v_found.o_parked <> '{}' then
          -- A held one gives a slot back.
          perform pgfifo._mark_if_waiting(v_lane);
        end if;
      end if;
      cancelled := cancelled + cardinality(v_found.o_fresh || v_found.o_parked);
      requested := requested + cardinality(v_found.o_running);
      exit when v_found.o_next is null;
      v_after[3] := v_found.o_next;
    end loop;
    exit when next is not null;
  end loop;
  if not p_dry_run and cancelled + requested > 0 then
    perform pgfifo._audit('cancel', v_selection.action, null, jsonb_strip_nulls(jsonb_build_object('filter', p_filter, 'group', v_selection.group_text,
      'reason', p_reason, 'cancelled', cancelled, 'requested', requested)));
  end if;
  return next;
end $$;
comment on function pgfifo.cancel_where is 'Cancel what a filter selects, a bounded piece per call; count it only, in a dry run.';
