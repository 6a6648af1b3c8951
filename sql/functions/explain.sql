-- Why an execution is not running: in one paragraph, and as data with keys that are always there (docs/explain.md tells them).
-- Reads only, and all of it from the caller's one snapshot: at every isolation level, on a standby, however deep the line is.
create or replace function pgfifo.explain(p_id bigint, out explanation text, out data jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_now timestamptz := pgfifo._now();
  v_it record;
  v_lane record;
  v_pos bigint;
  v_exact boolean := true;
  v_slots jsonb;
  v_workers jsonb;
  v_limit record;
  v_holder record;
  v_last pgfifo._workers;
  v_row record;
  v_ahead bigint[];
  v_needs_worker boolean;
  v_paused jsonb := '[]';
  v_closed jsonb := '[]';
  v_limits jsonb := '[]';
  v_locked jsonb;
  v_run jsonb;
  v_eta jsonb;
  v_expires timestamptz;
  v_reasons text[] := '{}';
  -- The first sentence, and those that say why.
  v_head text;
  v_why text[] := '{}';
  v_besides text[] := '{}';
  v_said text;
  v_held_up boolean;
  v_names text[] := '{}';
  v_holders jsonb := '[]';
begin
  select e.id, e.action, e.group_text, rtrim(e.action || ' ' || pgfifo.format_group(e.group_text)) as lane, e.state, e.attempt, e.failures, e.ticket,
      e.enqueued_at, e.started_at, e.finished_at, e.due_at, e.error, e.reason, e.worker_id, e.cancel_requested_at, e.lane_id, e.progress,
      e.progress_message, e.progress_at, e.is_slot,
      coalesce(r.held_outcome, e.attempts -> -1 ->> 'outcome') as ended_how, coalesce(r.ended_at, (e.attempts -> -1 ->> 'ended_at')::timestamptz) as ended_at,
      coalesce(r.completed, false) as completed, c.owner,
      coalesce(c.joined_at, c.enqueued_at) as joined_at
    into v_it
  from pgfifo.executions e
  left join pgfifo._executions c on c.id = e.id
  left join pgfifo.runs r on r.id = e.id
  where e.id = p_id;
  if not found then
    -- Its id has been drawn; perhaps by somebody who has not committed yet.
    perform pgfifo._unknown_execution(p_id, case when p_id <= (select s.last_value from pgfifo.execution_ids s) and not pg_is_in_recovery()
      then pgfifo._open_holders('pgfifo._executions'::regclass, null, null, false) else '[]' end);
  end if;
  select a.id as action_id, l.id as lane_id, a.closed_at as action_closed_at, a.closed_by as action_closed_by, a.closed_reason as action_closed_reason,
      l.closed_at, l.closed_by, l.closed_reason, pa.paused_at as action_paused_at, pa.paused_by as action_paused_by, pa.paused_reason as action_paused_reason,
      pe.paused_at as all_paused_at, pe.paused_by as all_paused_by, pe.paused_reason as all_paused_reason,
      lp.paused_at, lp.paused_by, lp.paused_reason, x.paused_for, coalesce(lp.max_concurrent, p.max_concurrent) as max_concurrent, g.running, g.held,
      g.running + g.held - g.riding as taken
    into v_lane
  from pgfifo.actions a
  join pgfifo._action_policies p on p.action_id = a.id
  left join lateral (select x.* from pgfifo.policies x where x.scope = 'action' and x.action_id = a.id offset 0) pa on true
  left join pgfifo.policies pe on pe.scope = 'everything'
  left join pgfifo.lanes l on l.id = v_it.lane_id
  left join lateral (select g.* from pgfifo.ledger g where g.lane_id = l.id order by g.lane_id desc, g.version desc limit 1) g on true
  left join lateral (select lp.* from pgfifo._lane_policies lp where lp.lane_id = l.id offset 0) lp on true
  left join lateral (select x.paused_for from pgfifo.policies x where x.scope = 'lane' and x.lane_id = l.id offset 0) x on true
  where a.name = v_it.action;

  if v_it.finished_at is not null then
    v_head := format('Execution %s (%s) %s at %s', v_it.id, v_it.lane,
      case v_it.state when 'cancelled' then 'was cancelled' when 'failed' then 'failed for good' else v_it.state end, pgfifo._moment(v_it.finished_at, v_now))
      || case when v_it.attempt > 0 then format(', in attempt %s', v_it.attempt) else ', without having been started' end;
    v_reasons := array['finished'];
    if v_it.state <> 'succeeded' then
      v_why := array_remove(array[nullif(pgfifo._quoted('The reason given: ', v_it.reason), '') || '.', nullif(pgfifo._quoted('Its last error: ', v_it.error), '') || '.'],
        null);
    end if;
  elsif v_it.state = 'running' then
    select r.worker_id, w as worker, pgfifo._overdue(w, v_now) as overdue into strict v_row
    from pgfifo.runs r left join pgfifo._workers w on w.id = r.worker_id where r.id = p_id;
    v_last := v_row.worker;
    v_head := format('Execution %s (%s) is running: attempt %s, started at %s', v_it.id, v_it.lane, v_it.attempt, pgfifo._moment(v_it.started_at, v_now))
      || case when v_last.id is not null then ', on ' || pgfifo._who(v_last) else '' end;
    v_run := jsonb_build_object('since', v_it.started_at, 'worker_id', v_row.worker_id, 'worker', case when v_last.id is not null then pgfifo._who(v_last) end,
      'overdue', v_row.overdue, 'progress', v_it.progress, 'message', v_it.progress_message, 'cancel_requested_at', v_it.cancel_requested_at,
      'completed', v_it.completed, 'batch', (select count(*) + 1 from pgfifo.runs r cross join lateral pgfifo._mates(r) m where r.id = p_id));
    if v_row.overdue is not null then
      v_reasons := array['lease'];
      v_why := v_why || format('Its worker has probably gone: %s. A round of maintenance, which every living worker does, takes it back.', v_row.overdue);
    end if;
    if (v_run ->> 'batch')::integer > 1 then
      v_why := v_why || format('It is one of a batch of %s that run as one, in one slot.', v_run ->> 'batch');
    end if;
    if v_it.completed then
      v_why := v_why || 'It has completed in its handler''s transaction, and keeps its slot until the handler returns.'::text;
    end if;
    if v_it.progress_at is not null then
      v_why := v_why || format('Its handler said at %s: %s.', pgfifo._moment(v_it.progress_at, v_now),
        concat_ws(', ', round(v_it.progress::numeric * 100)::text || ' %', left(v_it.progress_message, 200)));
    end if;
    if v_it.cancel_requested_at is not null then
      v_why := v_why || (format('Somebody asked to cancel it at %s', pgfifo._moment(v_it.cancel_requested_at, v_now)) || pgfifo._quoted(': ', v_it.reason)
        || '; its handler has not stopped yet.');
    end if;
  else
    -- What it does now, and until when.
    v_held_up := v_it.due_at is null or v_it.due_at <= v_now;
    if v_it.state = 'waiting' then
      v_head := format('Execution %s (%s) is waiting, enqueued at %s', v_it.id, v_it.lane, pgfifo._moment(v_it.enqueued_at, v_now))
        || case when v_it.attempt > 0 then format(', after attempt %s', v_it.attempt) else '' end;
      if v_it.attempt = 0 then
        v_expires := v_it.joined_at + pgfifo._max_wait(v_lane.lane_id);
      end if;
      if v_it.is_slot then
        select w.* into v_last from pgfifo._workers w where w.id = v_it.owner;
        v_said := pgfifo._overdue(v_last, v_now);
        v_why := v_why || (format('It stands for a slot that a program waits for: %s', pgfifo._who(v_last)) || coalesce(' (overdue: ' || v_said || ')', '') || '.');
        if v_said is not null then
          v_reasons := v_reasons || 'lease'::text;
        end if;
      end if;
    elsif v_it.attempt = 0 then
      v_head := format('Execution %s (%s) is delayed, enqueued at %s', v_it.id, v_it.lane, pgfifo._moment(v_it.enqueued_at, v_now));
      if not v_held_up then
        v_reasons := v_reasons || 'delayed'::text;
        v_why := v_why || format('It joins the end of its line at %s.', pgfifo._moment(v_it.due_at, v_now));
      end if;
    else
      v_head := format('Execution %s (%s) is %s since attempt %s%s', v_it.id, v_it.lane, v_it.state, v_it.attempt,
        case v_it.ended_how when 'snoozed' then ' put it off' when 'lost' then ' was lost with its worker' else ' failed' end)
        || coalesce(' at ' || pgfifo._moment(v_it.ended_at, v_now), '');
      if v_it.ended_how is distinct from 'snoozed' and pgfifo._quoted('', v_it.error) <> '' then
        v_why := v_why || (pgfifo._quoted('The error: ', v_it.error) || '.');
      end if;
      if not v_held_up then
        v_reasons := v_reasons || 'backoff'::text;
        v_why := v_why || (format('It may start again at %s', pgfifo._moment(v_it.due_at, v_now))
          || case when v_it.state = 'held' then ', and keeps its slot until then.' when v_it.ticket is null then ', from the end of its line.'
                  else ', from its old place in the line.' end);
      elsif v_it.ticket is not null then
        v_why := v_why || format('Its backoff has been over since %s.', pgfifo._moment(v_it.due_at, v_now));
      end if;
    end if;
    if v_it.ticket is null and v_held_up then
      v_reasons := v_reasons || 'joining'::text;
      v_why := v_why || format('It has been due to join its line since %s; whoever enqueues or claims there next lets it join.', pgfifo._moment(v_it.due_at, v_now));
    end if;

    -- A copy that nobody has noticed yet. From then on it is paused, like anything else.
    select w.* into strict v_row from pgfifo._where() w;
    if v_row.o_copied then
      v_reasons := v_reasons || 'copy'::text;
      v_why := v_why || format('This database is a copy of %s (restored, or made from it), and no worker has come to it yet: the first one pauses everything, until somebody resumes it.',
        (v_row.o_home).database_name);
    end if;

    -- Paused; or closed, which does not hold up what is in the line.
    for v_row in
      select * from (values
        ('paused', 'everything', 'Everything', v_lane.all_paused_at, v_lane.all_paused_by, v_lane.all_paused_reason, null),
        ('paused', 'action', 'The action', v_lane.action_paused_at, v_lane.action_paused_by, v_lane.action_paused_reason, null),
        ('paused', 'lane', 'Its lane', v_lane.paused_at, v_lane.paused_by, v_lane.paused_reason, v_lane.paused_for),
        ('closed', 'action', 'The action', v_lane.action_closed_at, v_lane.action_closed_by, v_lane.action_closed_reason, null),
        ('closed', 'lane', 'Its lane', v_lane.closed_at, v_lane.closed_by, v_lane.closed_reason, null)) p(kind, scope, what, since, who, reason, culprit)
      where p.since is not null
    loop
      v_said := format('%s has been %s since %s by %s', v_row.what, v_row.kind, pgfifo._moment(v_row.since, v_now),
          case when v_row.culprit is null then v_row.who else 'its on_exhausted' end)
        || pgfifo._quoted(': ', v_row.reason) || case v_row.kind when 'closed' then '; what is in it already is not affected.' else '.' end;
      if v_row.kind = 'paused' then
        v_paused := v_paused || jsonb_build_object('scope', v_row.scope, 'since', v_row.since, 'by', v_row.who, 'reason', v_row.reason, 'execution', v_row.culprit);
        v_why := v_why || v_said;
      else
        v_closed := v_closed || jsonb_build_object('scope', v_row.scope, 'since', v_row.since, 'by', v_row.who, 'reason', v_row.reason);
        v_besides := v_besides || v_said;
      end if;
    end loop;
    if v_paused <> '[]' then
      v_reasons := v_reasons || 'paused'::text;
    end if;

    -- Who could run it. What stands for a slot is started in the name of who waits for it, by whoever looks.
    select jsonb_build_object('alive', count(*) filter (where w.alive), 'silent', count(*) filter (where not w.alive),
        'capacity', coalesce(sum(w.concurrency) filter (where w.alive), 0), 'busy', coalesce(sum(least(w.concurrency, w.n)) filter (where w.alive), 0))
      into strict v_workers
    from (
      select w.concurrency, w.last_seen + w.lease >= v_now as alive,
        (select count(distinct (r.lane_id, coalesce(r.batch_no, r.start_no))) from pgfifo.runs r where r.worker_id = w.id) as n
      from pgfifo._workers w where w.state = 'alive' and w.kind = 'worker' and v_it.action = any (w.actions)) w;
    -- It needs no worker itself; but one that does may be ahead of it, or hold a slot until it is tried again.
    v_ahead := array(select a from pgfifo._ahead(v_lane.lane_id, v_it.ticket, 5) a where v_it.state = 'waiting');
    v_needs_worker := not v_it.is_slot or v_lane.held > 0
      or exists (select from unnest(v_ahead) a(id) join pgfifo._executions e on e.id = a.id where e.owner is null);
    if (v_workers ->> 'alive')::integer = 0 and v_needs_worker then
      v_reasons := v_reasons || 'no_worker'::text;
      select w.* into v_last from pgfifo._workers w where w.kind = 'worker' and v_it.action = any (w.actions) order by w.last_seen desc, w.id desc limit 1;
      v_why := v_why || (case when v_it.is_slot then 'What is before it needs a worker, and no living one serves ' else 'No living worker serves ' end || v_it.action
        || case when found then format('; the last one, %s, was last heard of at %s', pgfifo._who(v_last), pgfifo._moment(v_last.last_seen, v_now)) else '' end || '.');
    end if;

    -- Who is ahead of it.
    if v_it.state = 'waiting' then
      select p.pos, p.exact into strict v_pos, v_exact from pgfifo.position(p_id) p;
      v_eta := (pgfifo._eta(v_lane.lane_id, v_pos, v_it.is_slot, v_now)).o_detail;
      if v_pos > 1 then
        v_reasons := v_reasons || 'ahead'::text;
        v_why := v_why || (format('%s%s ahead of it in the line (%s%s).', case when v_exact then '' else 'At least ' end,
          case v_pos - 1 when 1 then 'one is' else to_char(v_pos - 1, 'FM999,999') || ' are' end, array_to_string(v_ahead, ', '),
          case when v_pos - 1 > cardinality(v_ahead) then ', …' else '' end));
        v_why[cardinality(v_why)] := upper(left(v_why[cardinality(v_why)], 1)) || substr(v_why[cardinality(v_why)], 2);
      else
        v_why := v_why || 'It is next in its line.'::text;
      end if;
    end if;

    -- Who has the slots, and how many there are.
    select e.value, e.source, e.origin, e.until into strict v_limit from pgfifo._effective(v_lane.action_id, v_lane.lane_id) e where e.attribute = 'max_concurrent';
    for v_holder in select * from pgfifo._explain_holders(v_lane.lane_id, v_now) loop
      v_holders := v_holders || to_jsonb(v_holder);
      continue when v_holder.id = p_id or cardinality(v_names) = 3;
      v_names := v_names || (case v_holder.state
        when 'held' then format('execution %s, held since attempt %s ended at %s, until %s', v_holder.id, v_holder.attempt, pgfifo._moment(v_holder.since, v_now),
          pgfifo._moment(v_holder.due_at, v_now)) || pgfifo._quoted(', with the error ', v_holder.error)
        else format('execution %s%s, running since %s', v_holder.id, case when v_holder.batch > 1 then format(' and %s more of its batch', v_holder.batch - 1)
            else '' end, pgfifo._moment(v_holder.since, v_now)) || coalesce(' on ' || v_holder.worker, '')
          || coalesce(' (overdue: ' || v_holder.overdue || ')', '') end);
    end loop;
    v_slots := jsonb_build_object('limit', v_lane.max_concurrent, 'source', v_limit.source, 'origin', v_limit.origin, 'until', v_limit.until,
      'taken', v_lane.taken, 'active', v_lane.running + v_lane.held, 'running', v_lane.running, 'held', v_lane.held, 'holders', v_holders);
    if (v_it.state = 'held' and v_held_up and v_lane.taken > v_lane.max_concurrent)
      or (v_it.state = 'waiting' and v_lane.taken >= v_lane.max_concurrent)
    then
      v_reasons := v_reasons || 'slots'::text;
      v_why := v_why || (case when v_lane.taken > v_lane.max_concurrent
          then format('%s of its lane are active, more than the %s that the limit allows now', v_lane.taken, v_lane.max_concurrent)
          when v_lane.max_concurrent = 1 then 'The only slot of its lane is taken' else format('All %s slots of its lane are taken', v_lane.max_concurrent) end
        || coalesce(': ' || array_to_string(v_names, '; '), '')
        || case when v_lane.taken - (v_it.state = 'held')::integer > cardinality(v_names)
             then format('; and %s more', v_lane.taken - (v_it.state = 'held')::integer - cardinality(v_names)) else '' end
        || format('. The limit (max_concurrent = %s) %s.', v_lane.max_concurrent, pgfifo._set_where(v_limit.source, v_limit.origin, v_limit.until, v_now)));
      if jsonb_path_exists(v_holders, '$[*].overdue ? (@ != null)') then
        v_reasons := v_reasons || 'lease'::text;
      end if;
    end if;

    -- Limits over time, and shared ones.
    if v_it.state = 'waiting' or (v_it.state = 'held' and v_held_up) then
      for v_row in select * from pgfifo._explain_limits(v_lane.action_id, v_lane.lane_id, v_now) loop
        v_limits := v_limits || jsonb_build_object('kind', v_row.kind, 'until', v_row.until, 'detail', v_row.detail);
        v_reasons := v_reasons || v_row.kind;
        v_why := v_why || v_row.said;
      end loop;
    end if;

    -- Somebody's open transaction. On a standby the primary's locks cannot be seen.
    if not pg_is_in_recovery() then
      v_locked := pgfifo._open_holders('pgfifo.lanes'::regclass, array[pgfifo._key(v_lane.lane_id)], 'ExclusiveLock', v_reasons = '{}')
        || pgfifo._open_holders('pgfifo.policies'::regclass, array[v_lane.action_id, 0], 'ExclusiveLock', v_reasons = '{}');
      if v_locked <> '[]' then
        v_reasons := v_reasons || 'locked'::text;
        v_why := v_why || format('Nothing of its lane starts while somebody''s open transaction holds it: %s.', pgfifo._name_holders(v_locked));
      end if;
      if 'joining' = any (v_reasons) then
        v_locked := v_locked || pgfifo._open_holders('pgfifo._executions'::regclass, array[pgfifo._key(v_lane.lane_id)], null, true);
        if v_locked <> '[]' then
          v_why := v_why || format('Meanwhile a producer''s open transaction keeps others from joining: %s.', pgfifo._name_holders(v_locked));
        end if;
      end if;
    end if;

    if v_reasons <@ array['ahead'] and v_needs_worker and (v_workers ->> 'busy')::integer >= (v_workers ->> 'capacity')::integer then
      v_reasons := v_reasons || 'workers_busy'::text;
      v_why := v_why || format('There are free slots, but the workers that serve %s are full: they run %s of at most %s.', v_it.action, v_workers ->> 'busy', v_workers ->> 'capacity');
    end if;
    if v_reasons <@ array['ahead'] then
      v_reasons := v_reasons || 'next'::text;
      v_why := v_why || case when v_it.is_slot then 'Nothing holds its lane up: whoever looks there next goes on with it.'
        else format('Nothing holds its lane up: the next claim goes on with it (%s).', case (v_workers ->> 'alive')::integer
          when 1 then format('one worker serves %s', v_it.action) else format('%s workers serve %s', v_workers ->> 'alive', v_it.action) end) end;
    end if;
    if v_eta is not null and (v_eta ->> 'seconds')::double precision > 0 then
      v_why := v_why || (format('At %s it would start %sin about %s (', pgfifo._per_time((v_eta ->> 'per_minute')::double precision),
          case when v_exact then '' else 'at the earliest ' end, pgfifo._span((v_eta ->> 'seconds')::double precision))
        || case v_eta ->> 'basis' when 'lane' then format('its lane had %s starts in the last %s).', v_eta ->> 'count',
             pgfifo._span((v_eta ->> 'over_seconds')::double precision))
           else format('its action''s run for %s on average).', pgfifo._span((v_eta ->> 'over_seconds')::double precision)) end);
    end if;
    if v_expires is not null then
      v_why := v_why || format('It expires at %s, unless it is started before.', pgfifo._moment(v_expires, v_now));
    end if;
    v_why := v_why || v_besides;
  end if;

  explanation := array_to_string(array[v_head || '.'] || v_why, ' ');
  data := jsonb_build_object('id', v_it.id, 'action', v_it.action, 'group_text', v_it.group_text, 'lane', v_it.lane, 'state', v_it.state, 'at', v_now,
    'explanation', explanation, 'why', array_to_string(v_why, ' '), 'reasons', to_jsonb(v_reasons), 'attempt', v_it.attempt, 'failures', v_it.failures,
    'enqueued_at', v_it.enqueued_at, 'due_at', case when v_it.finished_at is null then v_it.due_at end, 'expires_at', v_expires, 'finished_at', v_it.finished_at, 'error', v_it.error,
    'reason', v_it.reason, 'ended', case when v_it.finished_at is null and v_it.state <> 'running' and v_it.ended_at is not null
      then jsonb_build_object('outcome', v_it.ended_how, 'at', v_it.ended_at) end,
    'position', v_pos, 'exact', v_exact, 'eta', v_eta, 'ahead', coalesce(to_jsonb(v_ahead), '[]'), 'run', v_run, 'slots', v_slots,
    'limits', v_limits, 'paused', v_paused, 'closed', v_closed, 'workers', v_workers, 'locked', v_locked);
end $$;
comment on function pgfifo.explain is 'Say why an execution is not running: in one paragraph, and as data.';
