-- What a worker calls, over and over: hand back what has finished and get what to run next, in one statement and one
-- commit, so that the server commits even if the client is gone. Autocommit and READ COMMITTED only.
-- Touches: finish side runs, executions, history, ledger, cancellations; claim side marks, arrivals, timers, scans, runs,
-- ledger. Holds, in this order and to the commit: the worker's fence (shared); slot locks of finished lanes, sorted, each
-- with one short wait; policy locks (shared, by try); slot locks of claimed lanes (by try). Nothing here waits for a lane
-- while it could itself be waited for by anybody but such a short wait.
-- p_call numbers the worker's claims: the same number again (its answer was lost) returns the same rows.
create or replace function pgfifo.work(
  p_worker bigint,
  p_actions text[],
  p_limit integer,
  p_call bigint default null,
  p_finished jsonb default null,
  p_limits integer[] default null
) returns setof pgfifo.work_row
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_action_ids integer[];
  v_caps integer[];
  v_status jsonb;
  v_lanes bigint[] := '{}';
  v_again bigint[];
  v_limit integer := p_limit;
  -- Before this transaction has an xid; see _scan_from.
  v_drawn bigint := case when pg_current_xact_id_if_assigned() is null then pgfifo._last_mark() end;
begin
  -- Asked first, called only then: an `if` is evaluated in place, a `perform` is a query.
  if current_setting('transaction_isolation') <> 'read committed' then
    perform pgfifo._require_read_committed('work');
  end if;
  if current_setting('synchronous_commit') in ('off') then
    perform pgfifo._durable();
  end if;
  if p_limit is null or p_limit < 0 or p_limit > 10000 then
    raise exception using errcode = 'QF022', message = format('p_limit must be between 0 and 10000, not %s', coalesce(p_limit::text, 'null')),
      detail = json_build_object('name', 'p_limit', 'value', p_limit)::text, hint = 'Claim as many as can run at once.';
  end if;
  perform pgfifo._fence_worker(p_worker);
  select array_agg(n.id order by a.n), case when p_limits is not null then array_agg(a.cap order by a.n) end
    into v_action_ids, v_caps
  from unnest(p_actions, p_limits) with ordinality a(name, cap, n) join pgfifo.actions n on n.name = a.name;

  if p_finished is not null and p_finished <> '[]' then
    if jsonb_typeof(p_finished) <> 'array' then
      raise exception using errcode = 'QF022', message = format('p_finished must be a JSON array, not %s', jsonb_typeof(p_finished)),
        detail = json_build_object('name', 'p_finished')::text, hint = 'Give [{"id": 1, "attempt": 1, "outcome": "succeeded"}].';
    end if;
    select f.o_status, f.o_lanes into v_status, v_lanes from pgfifo._finish_batch(p_worker, p_finished) f;
    if pgfifo._awaited() then
      perform pgfifo._tell(array(select (i ->> 'id')::bigint from jsonb_array_elements(p_finished) i));
    end if;
    if v_status is not null then
      return query select 'finish'::text, s.id, s.attempt, null::text, null::text, null::text, null::jsonb, null::jsonb, null::text[],
        null::timestamptz, null::double precision, null::bigint, null::bigint, s.status, null::jsonb
      from jsonb_to_recordset(v_status) s(id bigint, attempt integer, status text);
    end if;
  end if;

  if p_call is not null then
    -- Asked again: its rows are what this worker started under the same number.
    v_again := array(select r.id from pgfifo.runs r where r.worker_id = p_worker and r.call_no = p_call order by r.id);
    if v_again <> '{}' then
      return query select 'start'::text, e.id, r.attempt, i.epoch || '-' || e.id || '-' || r.attempt, n.name, l.group_text, e.payload,
        e.headers, e.tags, e.enqueued_at, greatest(0, extract(epoch from r.started_at - greatest(e.enqueued_at, e.run_at)))::double precision, r.lane_id,
        r.start_no, null::text, null::jsonb
      from pgfifo.installation i, unnest(v_again) with ordinality a(id, n)
      join pgfifo.runs r on r.id = a.id
      join pgfifo._executions e on e.id = r.id
      join pgfifo.lanes l on l.id = r.lane_id
      join pgfifo.actions n on n.id = l.action_id
      order by a.n;
      v_limit := 0;
    end if;
  end if;
  return query select * from pgfifo._claim_batch(p_worker, p_call, coalesce(v_action_ids, '{}'), v_caps, v_limit, v_lanes, v_drawn);
  -- Where some policy says how long attempts may run, who asks with a number is told so of those that have just started.
  if p_call is not null and p_limit > 0 and (exists (select from pgfifo.policies p where p.timeout is not null or p.kill_after is not null)
    or exists (select from pgfifo._overrides o where o.attribute in ('timeout', 'kill_after')))
  then
    return query select * from pgfifo._time_limits(p_worker, p_call);
  end if;
  -- Where nobody calls maintain, claims do, now and then.
  if random() < 0.01 then
    perform pgfifo._maintain_if_late();
  end if;
end $$;
comment on function pgfifo.work is 'Hand back what has finished and claim what to run next, in one call.';
