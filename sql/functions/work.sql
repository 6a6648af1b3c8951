-- What a worker calls, over and over: hand back what has finished and get what to run next, in one statement and one
-- commit, so that the server commits even if the client is gone. Autocommit and READ COMMITTED only.
-- Touches: finish side runs, executions, history, ledger, cancellations; claim side marks, arrivals, timers, scans, runs,
-- ledger. Holds, in this order and to the commit: the worker's fence (shared); policy locks (shared, by try); slot locks of
-- finished lanes, sorted, each with one short wait; slot locks of claimed lanes (by try). Nothing here waits for anything longer
-- than such a short wait, so whoever waits for us with a slot lock in his hands gets on.
-- A slot in which something has ended is handed on to the next of its line while the lane's turn lasts (see _turn), or nobody waits.
-- p_call numbers the worker's claims: the same number again (its answer was lost) returns the same rows.
-- What stands for a slot that a program waits for (see slot_enter) is started like any other when its turn comes, whoever
-- claims, but in the name of its owner: he is told, and it is no row of the claim's and does not count against its limit.
-- p_lane_id is for such programs, who move their lane on where no worker does: only this lane is looked at, whether it has
-- a mark or not, and of it only such executions are started, up to the first other one. That one is left to the workers.
-- p_batches, beside p_actions: up to how many consecutive executions of a lane are one batch, that is one run in one slot: see _ride.
-- p_limit and p_limits count runs.
create or replace function pgfifo.work(
  p_worker bigint,
  p_actions text[],
  p_limit integer,
  p_call bigint default null,
  p_finished jsonb default null,
  p_limits integer[] default null,
  p_lane_id bigint default null,
  p_batches integer[] default null
) returns setof pgfifo.work_row
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_bitmapscan = off
set enable_memoize = off
set jit = off
as $$
declare
  -- Whether it may be given something: see _fence_worker.
  v_settled boolean;
  v_action_ids integer[];
  v_limits integer[];
  v_alone boolean;
  v_finish record;
  -- What has ended and was not handed on in the statement for that.
  v_items jsonb;
  v_status jsonb;
  -- How long turns last, where this call may hand slots on; else null. For ever, where nobody waits for one to end.
  v_turn interval;
  v_ended_locked bigint[];
  v_repeated bigint[];
  v_limit integer := p_limit;
  -- Before this transaction has an xid; see _scan_from.
  v_drawn bigint := case when pg_current_xact_id_if_assigned() is null then coalesce(pg_sequence_last_value('pgfifo.mark_ids'), 0) end;
  -- Lanes in which this call has finished something and more waits, with their actions and versions.
  v_ended_lanes bigint[] := '{}';
  v_ended_actions integer[] := '{}';
  v_ended_versions bigint[] := '{}';
  c_lanes constant integer := 'pgfifo.lanes'::regclass::oid::integer;
  c_policies constant integer := 'pgfifo.policies'::regclass::oid::integer;
  v_now timestamptz;
  v_epoch integer;
  -- Of the clock: see _now.
  v_offset interval;
  v_action_id integer;
  v_left integer;
  v_soon boolean := false;
  -- Of each action that this call may start something of.
  v_actions integer[];
  v_names text[];
  v_caps integer[];
  v_max integer[];
  v_strict boolean[];
  v_from bigint[];
  v_timer_from timestamptz[];
  -- Actions whose limits stay as they are until we commit; those of them of which nothing is kept.
  v_open integer[];
  v_unknown integer[];
  v_remarked boolean;
  v_waits boolean;
  v_timed boolean;
  -- Whether lanes may be looked at one by one: see _start_single.
  v_single boolean;
  v_kept integer[];
  v_passed bigint[];
  v_stale boolean;
  v_fires boolean;
  v_scan record;
  v_cut bigint := 0;
  v_budget integer := 0;
  v_stuck integer := 0;
  v_put_off bigint;
  v_xid xid8;
  v_chunk integer;
  v_more boolean := true;
  -- Marks.
  v_mark_action integer[];
  v_mark_id bigint[];
  v_mark_lane bigint[];
  v_mark_row tid[];
  v_mark_version bigint[];
  v_want integer;
  -- How many lanes of these marks were tried; those whose slot locks we hold, each with a version that its ledger had come to.
  v_lanes integer;
  v_locked bigint[];
  v_locked_versions bigint[];
  -- Whether a mark of an enqueue was among them. Where none was, what has arrived can wait for its own mark.
  v_announces boolean[];
  v_locks integer := 0;
  v_refilled bigint[] := '{}';
  v_row pgfifo.work_row;
  v_due timestamptz;
  v_ends_at timestamptz;
  v_xmin xid8;
  v_last bigint;
  -- What each may start of this call's limit, and how far its arrivals may be folded; null: as far as they are visible.
  v_share integer;
  v_rest integer;
  v_quotas integer[];
  v_sizes integer[];
  v_tops bigint[];
  v_joined_from timestamptz[];
  v_again boolean;
  v_past bigint[];
  v_put_back bigint[];
  v_quiet bigint[];
  v_pinned bigint[];
  v_relaxed boolean;
  -- Lanes with something ahead of the line, the plain ones first; of each, its arrivals up to here, the first ticket among
  -- them, and what they propose as the bound of those that have yet to join. How many are done.
  v_special bigint[];
  v_plain integer;
  v_special_tops bigint[];
  v_special_firsts bigint[];
  v_special_joined timestamptz[];
  v_done integer;
  v_upto integer;
  v_lane record;
  -- Of a lane that is governed by limits over time or across lanes: what they allow, and what has been started ahead of its line.
  v_governs boolean[];
  v_allows integer;
  v_draws integer[];
  v_may integer;
  v_allowed integer[];
  v_governed_ids bigint[];
  v_ids bigint[];
  v_owned bigint[];
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
  if p_batches is not null and (cardinality(p_batches) <> cardinality(p_actions)
    or exists (select from unnest(p_batches) b(size) where b.size not between 1 and 1000))
  then
    raise exception using errcode = 'QF022', message = format('p_batches must say a number from 1 to 1000, or null, for each of p_actions, not %s', p_batches),
      detail = json_build_object('name', 'p_batches', 'value', p_batches)::text, hint = 'Without it nothing runs in batches.';
  end if;
  v_settled := pgfifo._fence_worker(p_worker);
  select i.epoch, i.clock_offset,
      (select array_agg(n.id order by a.n) from unnest(p_actions) with ordinality a(name, n) join pgfifo.actions n on n.name = a.name),
      -- Asked again: its rows are what this worker started under the same number. Sorted outside, or the primary key is walked for
      -- its order where the table was empty when it was analyzed, over all that have ended beside a held snapshot.
      case when p_call is not null then array(
        select r.id from (select r.id from pgfifo.runs r where r.worker_id = p_worker and r.call_no = p_call offset 0) r order by r.id) end,
      (select min(o.until) from pgfifo._overrides o)
    into v_epoch, v_offset, v_action_ids, v_repeated, v_ends_at
  from pgfifo.installation i;
  if p_limits is not null then
    v_limits := array(select a.cap from unnest(p_actions, p_limits) with ordinality a(name, cap, n) join pgfifo.actions n on n.name = a.name order by a.n);
  end if;

  v_action_ids := coalesce(v_action_ids, '{}');
  v_now := clock_timestamp() + v_offset;
  if cardinality(v_repeated) > 0 then
    v_limit := 0;
  end if;
  v_left := v_limit;
  if v_limit = 0 then
    v_ends_at := null;
  elsif v_ends_at <= v_now then
    perform pgfifo._end_overrides(v_now);
  end if;
  -- The limits stay as they are until we commit: a change takes these locks exclusive. So the policies are read in a
  -- statement after the locks. What is not kept is asked for, and kept for the next.
  if v_limit > 0 and v_settled and pg_try_advisory_xact_lock_shared(c_policies, 0) then
    v_open := '{}';
    foreach v_action_id in array v_action_ids loop
      if pg_try_advisory_xact_lock_shared(c_policies, v_action_id) then
        v_open := v_open || v_action_id;
      end if;
    end loop;
    v_soon := cardinality(v_open) < cardinality(v_action_ids);
    select array_agg(a.id) filter (where f.action_id is null), array_agg(a.id) filter (where f.is_startable),
        array_agg(a.name) filter (where f.is_startable), array_agg(c.cap) filter (where f.is_startable),
        array_agg(f.max_concurrent) filter (where f.is_startable), array_agg(f.ordering = 'strict') filter (where f.is_startable),
        array_agg(f.has_pace or (select exists (select from pgfifo.shared_draws)) and pgfifo._draws(a.id) <> '{}') filter (where f.is_startable),
        bool_or(f.is_startable and f.ordering = 'relaxed'),
        exists (select from pgfifo.remarks r where r.action_id = any (v_open)),
        exists (select from pgfifo.policies w where w.max_wait < 'infinity'),
        p_call is not null and (exists (select from pgfifo.policies t where t.timeout is not null or t.kill_after is not null)
          or exists (select from pgfifo._overrides o where o.attribute in ('timeout', 'kill_after')))
      into v_unknown, v_actions, v_names, v_caps, v_max, v_strict, v_governs, v_relaxed, v_remarked, v_waits, v_timed
    from (select c.action_id, coalesce(c.cap, v_limit) as cap from unnest(v_action_ids, v_limits) c(action_id, cap)) c
    join pgfifo.actions a on a.id = c.action_id
    left join lateral (
      select f.action_id, f.max_concurrent, f.ordering, f.has_pace, not f.is_paused and c.cap > 0 as is_startable
      from pgfifo._in_force f where f.action_id = a.id and f.until > v_now offset 0) f on true
    where a.id = any (v_open);
    if v_unknown is not null then
      perform pgfifo._put_in_force(v_unknown, v_now);
      select v_actions || array_agg(p.action_id), v_names || array_agg(p.action), v_caps || array_agg(coalesce(c.cap, v_limit)),
          v_max || array_agg(p.max_concurrent), v_strict || array_agg(p.ordering = 'strict'),
          v_governs || array_agg(p.has_pace or (select exists (select from pgfifo.shared_draws)) and pgfifo._draws(p.action_id) <> '{}'),
          coalesce(v_relaxed, false) or coalesce(bool_or(p.ordering = 'relaxed'), false)
        into v_actions, v_names, v_caps, v_max, v_strict, v_governs, v_relaxed
      from unnest(v_action_ids, v_limits) c(action_id, cap)
      join pgfifo._action_policies p on p.action_id = c.action_id
      where p.action_id = any (v_unknown) and p.paused_at is null and coalesce(c.cap, v_limit) > 0;
    end if;
  else
    v_soon := v_limit > 0;
  end if;
  v_single := p_lane_id is null and p_limits is null and p_batches is null and not v_relaxed and true <> all (v_governs);
  if p_batches is not null and v_actions is not null then
    v_sizes := array(select coalesce((select max(b.size) from unnest(p_actions, p_batches) b(name, size) where b.name = n.name), 1)
      from unnest(v_names) with ordinality n(name, n) order by n.n);
  end if;
  if p_finished is not null and p_finished <> '[]' then
    if jsonb_typeof(p_finished) <> 'array' then
      raise exception using errcode = 'QF022', message = format('p_finished must be a JSON array, not %s', jsonb_typeof(p_finished)),
        detail = json_build_object('name', 'p_finished')::text, hint = 'Give [{"id": 1, "attempt": 1, "outcome": "succeeded"}].';
    end if;
    v_items := p_finished;
    if v_single and v_left > 0 and v_waits is false then
      v_turn := nullif(pgfifo._turn(), interval '0');
    end if;
    -- In an expression, which is evaluated in place; a query of its own would cost more than all it does for one.
    v_alone := jsonb_array_length(p_finished) = 1 and p_finished #>> '{0,outcome}' = 'succeeded';
    if v_alone then
      v_finish := pgfifo._finish_single(p_worker, p_finished -> 0, v_turn, v_actions, v_names, v_max, p_call, v_epoch, clock_timestamp() + v_offset);
      v_alone := v_finish.o_lanes is not null;
      if (v_finish.o_next).id is not null then
        v_left := v_left - 1;
        return next v_finish.o_next;
      end if;
    end if;
    if not v_alone then
      v_ended_locked := pgfifo._lock_ended(p_finished);
      if v_turn is not null and jsonb_array_length(p_finished) <= v_left then
        -- Those about which nothing is special, all together: end what has succeeded, and start the next of the same lines in its
        -- slots. The statement begins after the slot locks, and sees all that earlier deciders about these lanes have committed;
        -- the limits are those that the policy locks keep as they are. What it passes over goes the common way below, where
        -- the rules are written down. As many start as have ended, so where as many waited the lane is as full as it was, and
        -- needs no mark that it did not need before; where fewer start and more waits, it gets one.
        -- Dies here: nothing happened; the worker hands the same items in again, or is found dead and they are taken back.
        v_xid := pg_current_xact_id();
        v_now := clock_timestamp() + v_offset;
        if not pgfifo._others_wait(v_actions, v_now) then
          v_turn := interval '1000 years';
        end if;
        for v_row in
          with items as materialized (
            select distinct on (i.id, i.attempt) i.id, i.attempt, i.result, i.result_error
            from jsonb_to_recordset(p_finished) i(id bigint, attempt integer, outcome text, result jsonb, result_error text)
            where i.outcome = 'succeeded'),
          ended as materialized (
            select i.id, i.attempt, i.result, i.result_error, r.run, e.content, r.turn_from, r.lane_id, l.nth, l.group_text,
              g.row, g.version, g.starts, g.waiting, g.consumed, v_max[l.nth] - g.running + g.riding as free
            from items i
            cross join lateral (
              select r.ctid as run, r.lane_id, r.attempt, r.worker_id, r.state, r.version, r.draws, r.batch_no, coalesce(r.turn_from, r.started_at) as turn_from
              from pgfifo.runs r where r.id = i.id offset 0) r
            cross join lateral (select e.ctid as content from pgfifo._executions e where e.id = i.id offset 0) e
            cross join lateral (select array_position(v_actions, l.action_id) as nth, l.group_text from pgfifo.lanes l where l.id = r.lane_id offset 0) l
            cross join lateral (
              select g.ctid as row, g.version, g.starts, g.waiting, g.consumed, g.running, g.riding, g.held, g.returned, g.yielded, g.delayed, g.pending_xid
              from pgfifo.ledger g where g.lane_id = r.lane_id and g.version >= r.version order by g.lane_id desc, g.version desc limit 1) g
            where r.attempt = i.attempt and r.worker_id = p_worker and r.state = 'running' and r.draws is null and r.batch_no is null
              and r.lane_id = any (v_ended_locked) and v_now - r.turn_from between interval '0' and v_turn
              and l.nth is not null and g.held = 0 and g.returned = 0 and g.yielded = 0 and g.delayed = 0 and g.pending_xid is null
              and not ((select exists (select from pgfifo.cancellations))
                and exists (select from pgfifo.cancellations c where c.id = i.id offset 0))
              -- A policy of the lane's own: who sets one holds no other lock than the slot lock.
              and not (select exists (select from pgfifo._overrides))
              and not ((select exists (select from pgfifo.policies p where p.scope = 'lane'))
                and exists (select from pgfifo.policies p where p.scope = 'lane' and p.lane_id = r.lane_id))),
          newest as materialized (
            select w.lane_id, w.nth, w.group_text, w.row, w.version, w.starts, w.waiting, w.consumed, w.free, count(*)::integer as n, min(w.turn_from) as turn_from
            from ended w group by w.lane_id, w.nth, w.group_text, w.row, w.version, w.starts, w.waiting, w.consumed, w.free),
          -- Up to the first that is not simply started: what stands for a program's slot, or comes with attempts behind it.
          picked as materialized (
            select s.lane_id, s.nth, s.group_text, s.row, s.version, s.starts, s.waiting, s.n, s.turn_from, e.id, e.ticket, e.content,
              row_number() over w as place, count(*) over w as started
            from newest s
            cross join lateral (
              select e.id, e.ticket, e.content, bool_or(e.is_other) over (order by e.ticket) as is_barred
              from (select e.id, e.ticket, e.ctid as content, e.owner is not null or e.past is not null as is_other
                    from pgfifo._executions e where e.lane_id = s.lane_id and e.ticket > s.consumed
                    order by e.lane_id, e.ticket limit greatest(0, least(s.n, s.free + s.n))) e) e
            where not e.is_barred
            window w as (partition by s.lane_id order by e.ticket rows between unbounded preceding and unbounded following)),
          runs_gone as (
            delete from pgfifo.runs r where r.ctid = any (array(select w.run from ended w)) returning 1),
          content_gone as (
            delete from pgfifo._executions e where e.ctid = any (array(select w.content from ended w)) returning 1),
          kept as (
            insert into pgfifo.history (id, action_id, lane_id, group_text, outcome, attempt, failures, ticket, worker_id, joined_no, start_no,
              start_limit, is_strict, end_no, enqueued_at, started_at, finished_at, retry_of, payload, headers, tags, result, result_error, attempts,
              owner, start_event)
            select w.id, v_actions[w.nth], w.lane_id, w.group_text, 'succeeded', r.attempt, r.failures, r.ticket, p_worker, r.joined_no, r.start_no,
              r.start_limit, r.is_strict, w.starts, e.enqueued_at, r.started_at, v_now, e.retry_of, e.payload, e.headers, e.tags,
              case when r.completed then r.result else w.result end, w.result_error, r.attempts, e.owner, r.event_no
            from ended w
            cross join lateral (select r.* from pgfifo.runs r where r.ctid = w.run) r
            cross join lateral (select e.* from pgfifo._executions e where e.ctid = w.content) e
            returning 1),
          started as (
            insert into pgfifo.runs (id, lane_id, ticket, state, attempt, worker_id, call_no, start_no, start_limit, is_strict, version, started_at, turn_from)
            select p.id, p.lane_id, p.ticket, 'running', 1, p_worker, p_call, p.starts + p.place, v_max[p.nth], true, p.version + 1, v_now, p.turn_from
            from picked p
            -- All ends before any start: their events are numbered as they are written.
            where (select count(*) from kept) > 0),
          changed as materialized (
            select p.lane_id, p.nth, p.row, p.version, p.waiting, p.n, p.started::integer, p.ticket from picked p where p.place = p.started
            union all
            select s.lane_id, s.nth, s.row, s.version, s.waiting, s.n, 0, s.consumed from newest s where s.lane_id <> all (array(select p.lane_id from picked p))),
          pruned as (
            delete from pgfifo.ledger g where g.ctid = any (array(select c.row from changed c))),
          appended as (
            insert into pgfifo.ledger (lane_id, version, running, held, riding, yielded, returned, waiting, delayed, consumed, mark_floor, held_from,
              returned_from, delayed_from, starts, enqueued, joined, succeeded, failed, cancelled, expired, changed_at)
            select g.lane_id, g.version + 1, g.running + c.started - c.n, g.held, g.riding, g.yielded, g.returned, g.waiting - c.started, g.delayed, c.ticket,
              g.mark_floor, g.held_from, g.returned_from, g.delayed_from, g.starts + c.started, g.enqueued, g.joined, g.succeeded + c.n, g.failed,
              g.cancelled, g.expired, v_now
            from changed c cross join lateral (select g.* from pgfifo.ledger g where g.ctid = c.row) g)
          select 'start', p.id, 1, v_epoch || '-' || p.id || '-1', v_names[p.nth], p.group_text, e.payload, e.headers, e.tags, e.enqueued_at,
            greatest(0, extract(epoch from v_now - greatest(e.enqueued_at, e.run_at)))::double precision, p.lane_id, p.starts + p.place, null::text, null::jsonb
          from picked p
          cross join lateral (select e.payload, e.headers, e.tags, e.enqueued_at, e.run_at from pgfifo._executions e where e.ctid = p.content and e.id = p.id) e
          union all
          select 'waits', v_actions[c.nth], null, null, null, null, null, null, null, null, null, c.lane_id, c.version + 1, null, null
          from changed c where c.started < c.n and c.waiting > c.started
          union all
          -- How many have ended; their rows that have gone, of both kinds; and which, where that is not all.
          select 'ended', w.n, null, null, null, null, null, null, null, null, null, (select count(*) from runs_gone), (select count(*) from content_gone), null,
            case when w.n < jsonb_array_length(p_finished) then (select jsonb_object_agg(w.id, w.attempt) from ended w) end
          from (select count(*) as n from ended) w
        loop
          if v_row.kind = 'start' then
            v_left := v_left - 1;
            return next v_row;
          elsif v_row.kind = 'ended' then
            if v_row.lane_id <> v_row.id or v_row.start_no <> v_row.id then
              raise exception using errcode = 'XX000',
                message = format('finish found %s executions, and deleted %s runs and %s contents', v_row.id, v_row.lane_id, v_row.start_no);
            end if;
            v_items := case when v_row.id = jsonb_array_length(p_finished) then '[]'
              else (select coalesce(jsonb_agg(i.item), '[]') from jsonb_array_elements(p_finished) i(item)
                where (i.item ->> 'outcome' = 'succeeded' and v_row.detail ->> (i.item ->> 'id') = i.item ->> 'attempt') is not true) end;
          else
            v_ended_lanes := v_ended_lanes || v_row.lane_id;
            v_ended_actions := v_ended_actions || v_row.id::integer;
            v_ended_versions := v_ended_versions || v_row.start_no;
          end if;
        end loop;
      end if;
      if v_items <> '[]' then
        v_finish := pgfifo._finish_batch(p_worker, v_items, v_ended_locked);
      end if;
    end if;
    if v_items <> '[]' then
      v_status := v_finish.o_status;
      if v_ended_lanes = '{}' then
        v_ended_lanes := v_finish.o_lanes;
        v_ended_actions := v_finish.o_actions;
        v_ended_versions := v_finish.o_versions;
      else
        -- Each lane once.
        for v_nth in 1 .. cardinality(v_finish.o_lanes) loop
          if v_finish.o_lanes[v_nth] <> all (v_ended_lanes) then
            v_ended_lanes := v_ended_lanes || v_finish.o_lanes[v_nth];
            v_ended_actions := v_ended_actions || v_finish.o_actions[v_nth];
            v_ended_versions := v_ended_versions || v_finish.o_versions[v_nth];
          end if;
        end loop;
      end if;
    end if;
    if pgfifo._awaited() then
      perform pgfifo._tell(array(select (i ->> 'id')::bigint from jsonb_array_elements(p_finished) i));
    end if;
    if v_status is not null then
      return query select 'finish'::text, s.id, s.attempt, null::text, null::text, null::text, null::jsonb, null::jsonb, null::text[],
        null::timestamptz, null::double precision, null::bigint, null::bigint, s.status, null::jsonb
      from jsonb_to_recordset(v_status) s(id bigint, attempt integer, status text);
    end if;
  end if;

  if v_repeated <> '{}' then
    return query select * from pgfifo._start_rows(v_repeated);
    v_timed := true;
  end if;
  if v_actions is not null and v_remarked then
    perform pgfifo._remark(r.action_id) from pgfifo.remarks r where r.action_id = any (v_actions);
  end if;
  if v_actions is not null and v_left > 0 then
    -- Where to begin; mostly that is only read (see _scan_from), and mostly no timer is due.
    select array_agg(s.hot_mark order by a.n), array_agg(s.hot_timer order by a.n),
        bool_or(v_now - s.seen_at not between interval '0' and interval '100 ms'),
        bool_or(exists (select from pgfifo.timers t where t.action_id = a.id and t.due_at >= s.hot_timer and t.due_at <= v_now))
      into v_from, v_timer_from, v_stale, v_fires
    from unnest(v_actions) with ordinality a(id, n)
    cross join lateral (select s.hot_mark, s.hot_timer, s.seen_at from pgfifo.scans s where s.action_id = a.id order by s.action_id desc, s.version desc limit 1) s;
    if v_stale then
      v_from := '{}';
      v_timer_from := '{}';
      v_fires := true;
      for v_scan in select s.* from unnest(v_actions) with ordinality a(id, n), pgfifo._scan_from(a.id, v_now, v_drawn) s order by a.n loop
        v_from := v_from || v_scan.o_mark;
        v_timer_from := v_timer_from || v_scan.o_timer;
      end loop;
    end if;
    -- Timers that are due become marks. Rows that another claim is taking are skipped, not waited for.
    if v_fires and p_lane_id is null and exists (select from unnest(v_actions, v_timer_from) a(id, due_from)
      cross join lateral (select from pgfifo.timers t where t.action_id = a.id and t.due_at >= a.due_from and t.due_at <= v_now limit 1) d)
    then
      perform pg_current_xact_id();
      with fired as (
        delete from pgfifo.timers t where t.ctid = any (array(
          select d.ctid from unnest(v_actions, v_timer_from) a(id, due_from)
          cross join lateral (
            select t.ctid from pgfifo.timers t
            where t.action_id = a.id and t.due_at >= a.due_from and t.due_at <= v_now
            order by t.action_id, t.due_at, t.id limit 256 for update skip locked) d))
        returning t.action_id, t.lane_id, t.tries, t.due_at)
      insert into pgfifo.marks (action_id, id, lane_id, tries)
      select f.action_id, nextval('pgfifo.mark_ids'), f.lane_id, f.tries
      from (select f.action_id, f.lane_id, max(f.tries) as tries from fired f group by f.action_id, f.lane_id order by min(f.due_at)) f;
    end if;
  end if;

  loop
    exit when v_actions is null or v_left <= 0;
    v_mark_id := null;
    if p_lane_id is not null then
      exit when v_budget > 0;
      v_budget := 1;
      if not pg_try_advisory_xact_lock(c_lanes, pgfifo._key(p_lane_id)) then
        v_soon := true;
        exit;
      end if;
      perform pgfifo._come_by(v_actions[1], p_lane_id, v_from[1], v_timer_from[1], v_now);
      v_locked := array[p_lane_id];
      v_locked_versions := '{0}';
      v_announces := '{true}';
      v_refilled := v_locked;
    elsif not v_more then
      -- No older mark waits; now the lanes that we have just finished something in.
      exit when v_refilled <> '{}' or v_ended_lanes = '{}';
      v_announces := null;
      select array_agg(f.lane_id), array_agg(f.version) into v_refilled, v_locked_versions
      from unnest(v_ended_lanes, v_ended_actions, v_ended_versions) f(lane_id, action_id, version) where f.action_id = any (v_actions);
      v_refilled := coalesce(v_refilled, '{}');
      exit when v_refilled = '{}';
      v_locked := v_refilled;
    else
      -- 1. The next marks, oldest first over all actions; the first mark of each lane says when it is its turn. A few
      -- more than there are lanes to find; more each time, since it is duplicates that make a second round.
      v_want := least(v_left, 64);
      v_chunk := least(256, (v_want + 16) << least(v_budget, 8));
      select array_agg(s.action_id), array_agg(s.id), array_agg(s.lane_id), array_agg(s.ctid), array_agg(s.version)
        into v_mark_action, v_mark_id, v_mark_lane, v_mark_row, v_mark_version
      from (
        select m.* from unnest(v_actions, v_from, v_caps) a(id, mark_from, cap)
        cross join lateral (
          select m.action_id, m.id, m.lane_id, m.ctid, m.version from pgfifo.marks m
          where m.action_id = a.id and m.id > greatest(a.mark_from, v_cut) order by m.action_id, m.id limit v_chunk) m
        where a.cap > 0
        order by m.id limit v_chunk) s;
      if v_mark_id is null then
        v_more := false;
        continue;
      end if;
      -- 2. Lock their lanes. This is still about which lanes; what is in them is looked at in a statement after this one.
      v_cut := v_mark_id[cardinality(v_mark_id)];
      if v_want = 1 and v_budget = 0 then
        v_lanes := 1;
        v_locked := case when pg_try_advisory_xact_lock(c_lanes, pgfifo._key(v_mark_lane[1])) then array[v_mark_lane[1]] else '{}' end;
        v_locked_versions := array[v_mark_version[1]];
        v_announces := array[v_mark_version[1] = 0];
        for v_nth in 2 .. cardinality(v_mark_id) loop
          if v_mark_lane[v_nth] <> v_mark_lane[1] then
            v_cut := v_mark_id[v_nth] - 1;
            exit;
          end if;
          v_locked_versions[1] := greatest(v_locked_versions[1], v_mark_version[v_nth]);
          v_announces[1] := v_announces[1] or v_mark_version[v_nth] = 0;
        end loop;
      else
        -- In their order, until enough are ours: a limit asks for no row more than it needs, and a lane that is not asked for is not tried.
        with lanes as materialized (
          select s.lane_id, min(s.id) as first, max(s.version) as version, bool_or(s.version = 0) as announces, count(*) as marks,
            row_number() over (order by min(s.id)) as nth
          from unnest(v_mark_lane, v_mark_id, v_mark_version) s(lane_id, id, version) group by s.lane_id order by 2),
        locked as materialized (
          select d.* from lanes d where pg_try_advisory_xact_lock(c_lanes, pgfifo._key(d.lane_id)) limit v_want),
        tried as (
          select case when count(*) = v_want then max(l.nth) else (select count(*) from lanes) end as n from locked l)
        select array(select l.lane_id from locked l), array(select l.version from locked l), array(select l.announces from locked l), t.n,
            v_stuck + (select sum(d.marks) from lanes d where d.nth <= t.n) - (select coalesce(sum(l.marks), 0) from locked l),
            coalesce((select d.first from lanes d where d.nth = t.n + 1) - 1, v_cut)
          into v_locked, v_locked_versions, v_announces, v_lanes, v_stuck, v_cut
        from tried t;
      end if;
      v_locks := v_locks + cardinality(v_locked);
      if cardinality(v_locked) < v_lanes then
        v_soon := true;
        -- Locked lanes in front are passed over: most are just being decided about by other workers' calls. Where their marks are
        -- more than that explains, they come again later, less and less often: one timer for all marks of a lane, and again
        -- nobody waits for a row that somebody else is taking.
        if v_stuck > 1000 then
          perform pg_current_xact_id();
          with gone as (
            delete from pgfifo.marks m where m.ctid = any (array(
              select k.ctid from unnest(v_mark_action, v_mark_id, v_mark_lane) s(action_id, id, lane_id)
              cross join lateral (select m.ctid from pgfifo.marks m where m.action_id = s.action_id and m.id = s.id for update skip locked) k
              where s.id <= v_cut and s.lane_id <> all (v_locked)))
            returning m.lane_id, m.tries)
          select count(pgfifo._timer(g.lane_id, v_now + least(interval '1 s', interval '50 ms' * power(2, least(g.tries, 6))), (g.tries + 1)::integer))
            into v_put_off
          from (select lane_id, max(tries)::integer as tries from gone group by lane_id) g;
        end if;
      end if;
      v_budget := v_budget + 1;
      if cardinality(v_locked) = 0 then
        exit when v_budget >= 64;
        continue;
      end if;
      -- 3. Delete the marks we came by, where they were found: a mark is never moved, and its place not used again while
      -- it may still be visible to anybody. Everything deleted here is visible to 4.
      delete from pgfifo.marks m where m.ctid = any (array(
        select k.ctid from unnest(v_mark_id, v_mark_lane, v_mark_row) s(id, lane_id, ctid)
        cross join lateral (select m.ctid from pgfifo.marks m where m.ctid = s.ctid and m.id = s.id for update skip locked) k
        where s.id <= v_cut and s.lane_id = any (v_locked)));
    end if;
    -- A mark that we came by may be of a timer that another claim has fired: then it was due by that one's clock, which may
    -- have been read after ours. What is looked at now is due by a clock that is read after the mark was seen.
    v_now := pgfifo._now();

    -- An xid before starts are numbered: see events.
    v_xid := pg_current_xact_id();
    if v_waits then
      -- What has waited for too long is passed over. A lane with more of it than one claim can do comes again soon.
      v_passed := pgfifo._expire_fronts(v_locked, v_now, v_left);
      if v_passed <> '{}' then
        v_soon := true;
        select coalesce(array_agg(l.lane_id), '{}'), array_agg(l.version), array_agg(l.announces) into v_locked, v_locked_versions, v_announces
        from unnest(v_locked, v_locked_versions, v_announces) l(lane_id, version, announces) where l.lane_id <> all (v_passed);
        if v_locked = '{}' then
          exit when v_locks >= 64 or v_budget >= 64;
          continue;
        end if;
      end if;
    end if;

    if v_single and cardinality(v_locked) <= least(2, v_left) then
      -- One lane or two about which nothing is special are looked at one by one; what is left goes the common way.
      v_share := v_left / cardinality(v_locked);
      v_rest := v_left % cardinality(v_locked);
      v_kept := '{}';
      for v_nth in 1 .. cardinality(v_locked) loop
        v_row := pgfifo._start_single(v_locked[v_nth], v_locked_versions[v_nth], coalesce(v_announces[v_nth], false),
          v_share + (v_nth <= v_rest)::integer, v_actions, v_names, v_max, p_worker, p_call, v_epoch, v_now);
        if v_row.kind = 'look' then
          v_kept := v_kept || v_nth;
        elsif v_row.kind = 'start' then
          v_more := v_more or v_row.status is not null;
          v_row.status := null;
          v_left := v_left - 1;
          return next v_row;
        end if;
      end loop;
      if v_kept = '{}' then
        exit when v_locks >= 64 or v_budget >= 64;
        continue;
      end if;
      select array_agg(v_locked[k.n] order by k.n), array_agg(v_locked_versions[k.n] order by k.n), array_agg(v_announces[k.n] order by k.n)
        into v_locked, v_locked_versions, v_announces from unnest(v_kept) k(n);
    end if;

    v_tops := null;
    v_joined_from := null;
    v_allowed := null;
    v_special := '{}';
    v_plain := 0;
    v_owned := '{}';
    v_again := false;
    v_quiet := '{}';
    if v_relaxed then
      v_last := pgfifo._last_mark();
      -- What was over at v_xmin is visible to the statements from here on.
      v_xmin := pg_snapshot_xmin(pg_current_snapshot());
    end if;
    loop
      v_pinned := '{}';
      v_put_back := '{}';
      v_past := '{}';
      v_ids := '{}';
      -- This call's limit, shared out among the lanes; an action's cap, among its lanes.
      v_share := v_left / cardinality(v_locked);
      v_rest := v_left % cardinality(v_locked);
      if p_limits is not null then
        v_quotas := array(
          select least(v_share + (t.n <= v_rest)::integer, t.cap / t.lanes + (t.place <= t.cap % t.lanes)::integer)
          from (select t.n, v_caps[l.nth] as cap, count(*) over (partition by l.nth) as lanes, row_number() over (partition by l.nth order by t.n) as place
                from unnest(v_locked) with ordinality t(lane_id, n)
                cross join lateral (select array_position(v_actions, l.action_id) as nth from pgfifo.lanes l where l.id = t.lane_id offset 0) l) t
          order by t.n);
      end if;
      if v_sizes is not null then
        -- One of a lane at a time: it is the first of its batch, and those that come right after it join it below.
        v_quotas := array(
          select least(case when p_limits is null then v_share + (t.n <= v_rest)::integer else v_quotas[t.n] end,
            case when v_sizes[array_position(v_actions, l.action_id)] > 1 then 1 end)
          from unnest(v_locked) with ordinality t(lane_id, n)
          cross join lateral (select l.action_id from pgfifo.lanes l where l.id = t.lane_id offset 0) l order by t.n);
      end if;
      -- 4. Look at all locked lanes at once, and start the next of each line up to its free slots. Where something is ahead
      -- of the line (special), that is only told: the lane is decided by itself below, and then looked at again.
      for v_row in
        with state as materialized (
          select t.n as turn, t.lane_id, l.nth, l.group_text, a.max, a.is_strict, lp.paused_at is null as goes_on,
            g.row, g.version, g.starts, g.held + g.yielded as off, g.held_from, g.returned, g.consumed, f.n as folded, f.delayed as folded_delayed,
            t.announces, t.joined_from, t.allowed, f.top, f.rows, f.gone, p.is_pinned, p.is_special, p.governs,
            case when lp.paused_at is not null then 0 else greatest(0, a.max - g.running - g.held + g.riding) end as free,
            -- For who moves his lane on: as many as stand before the first that nobody owns; if there is none, all.
            case when p_lane_id is not null then coalesce(
                   (select min(o.place) - 1 from (
                      select e.owner, row_number() over (order by e.ticket) as place from pgfifo._executions e
                      where e.lane_id = t.lane_id and e.ticket > g.consumed
                      order by e.lane_id, e.ticket limit greatest(0, a.max - g.running - g.held + g.riding)) o where o.owner is null), a.max + 1)
                 else coalesce(t.quota, v_share + (t.n <= v_rest)::integer) end as quota
          from unnest(v_locked, v_locked_versions, v_announces, v_tops, v_joined_from, v_allowed, v_quotas) with ordinality
            t(lane_id, version, announces, top, joined_from, allowed, quota, n)
          cross join lateral (select array_position(v_actions, l.action_id) as nth, l.group_text from pgfifo.lanes l where l.id = t.lane_id offset 0) l
          left join lateral (
            select p.max_concurrent, p.paused_at, p.rate_n < 'infinity' or p.spacing > 0 or p.gap > 0 as governs from pgfifo._lane_policies p
            where (select exists (select from pgfifo.policies p where p.scope = 'lane') or exists (select from pgfifo._overrides)) and p.lane_id = t.lane_id
            offset 0) lp on true
          cross join lateral (select coalesce(lp.max_concurrent, v_max[l.nth]) as max, v_strict[l.nth] as is_strict) a
          cross join lateral (
            select g.ctid as row, g.version, g.running, g.held, g.riding, g.yielded, g.held_from, g.returned, g.delayed, g.delayed_from, g.consumed, g.starts, g.mark_floor,
              g.pending_xid
            from pgfifo.ledger g where g.lane_id = t.lane_id and g.version >= t.version order by g.lane_id desc, g.version desc limit 1) g
          cross join lateral (
            select coalesce(sum(a.n), 0)::bigint as n, coalesce(sum(a.delayed), 0)::bigint as delayed, max(a.id) as top, count(*) as rows,
              min(a.first_ticket) as first_ticket, max(a.delayed_from) as delayed_from, array_agg(a.ctid) as gone
            from (select a.id, a.n, a.delayed, a.first_ticket, a.delayed_from, a.ctid from pgfifo.arrivals a
                  where t.announces and a.lane_id = t.lane_id and a.id > g.mark_floor
                    -- Looked at again: what a relaxed enqueue below that point has committed in between was not put ahead of the line.
                    and (v_tops is null or a.id <= t.top and not (a.first_ticket <= g.consumed and exists (
                      select from pgfifo._executions e where e.lane_id = t.lane_id and e.ticket between a.first_ticket and g.consumed
                        and not exists (select from pgfifo.runs r where r.id = e.id))))
                  order by a.lane_id, a.id limit 1000) a) f
          cross join lateral (
            select coalesce(g.pending_xid > v_xmin and v_last - g.mark_floor > 500, false) as is_pinned,
              v_governs[l.nth] or coalesce(lp.governs, false) as governs,
              not v_again and (v_governs[l.nth] or coalesce(lp.governs, false) or g.held > 0 or g.returned > 0 or g.yielded > 0 and g.held_from <= v_now
                or coalesce(f.first_ticket <= g.consumed, false) or f.delayed_from is not null
                or (g.delayed > 0 or f.delayed > 0) and exists (
                  select from pgfifo._executions e
                  where e.lane_id = t.lane_id and e.ticket is null and e.run_at >= g.delayed_from and e.run_at <= v_now)
                or coalesce(g.pending_xid > v_xmin and v_last - g.mark_floor > 500, false)) as is_special) p),
        -- What has returned comes before the line; if some is still there, this call's limit is used up.
        picked as materialized (
          select s.turn, s.lane_id, s.nth, s.group_text, s.max, s.is_strict, s.row, s.version, s.starts, s.folded, s.folded_delayed,
            s.announces, s.joined_from, s.top, s.rows, e.id, e.ticket, e.content, e.owner, row_number() over w as place, count(*) over w as n,
            bool_or(e.past is not null) over w as has_past
          from state s
          cross join lateral (
            select e.id, e.ticket, e.past, e.owner, e.ctid as content from pgfifo._executions e where e.lane_id = s.lane_id and e.ticket > s.consumed
            order by e.lane_id, e.ticket limit case when s.is_special or s.returned > 0 then 0 else least(s.free, s.quota, s.allowed) end) e
          window w as (partition by s.turn order by e.ticket rows between unbounded preceding and unbounded following)),
        started as (
          insert into pgfifo.runs (id, lane_id, ticket, state, attempt, worker_id, call_no, start_no, start_limit, is_strict, version, started_at)
          select p.id, p.lane_id, p.ticket, 'running', 1, coalesce(p.owner, p_worker), case when p.owner is null then p_call end,
            p.starts + p.place, p.max, p.is_strict, p.version + 1, v_now from picked p),
        changed as materialized (
          select p.row, p.n::integer, p.ticket, p.folded, p.folded_delayed, p.joined_from, p.top, p.rows, p.is_strict, p.announces from picked p where p.place = p.n
          union all
          select s.row, 0, s.consumed, s.folded, s.folded_delayed, s.joined_from, s.top, s.rows, s.is_strict, s.announces from state s
          where not s.is_special and (s.rows > 0 or s.lane_id = any (v_quiet)) and s.turn <> all (array(select p.turn from picked p))),
        pruned as (
          delete from pgfifo.ledger g where g.ctid = any (array(select c.row from changed c))),
        appended as (
          insert into pgfifo.ledger (lane_id, version, running, held, riding, yielded, returned, waiting, delayed, consumed, mark_floor, pending_mark,
            pending_xid, held_from, returned_from, delayed_from, starts, enqueued, joined, succeeded, failed, cancelled, expired, changed_at)
          select g.lane_id, g.version + 1, g.running + c.n, g.held, g.riding, g.yielded, g.returned, g.waiting + c.folded - c.n, g.delayed + c.folded_delayed, c.ticket,
            case when c.is_strict then greatest(g.mark_floor, c.top)
                 -- Nor past what has arrived when this claim has not looked for that: it would never be counted.
                 when c.announces is not true then g.mark_floor
                 -- Not past what this round had to leave for the next one.
                 when g.lane_id = any (v_quiet) then greatest(g.mark_floor, least(v_last, case when c.rows >= 1000 then c.top end))
                 when g.pending_xid <= v_xmin then greatest(g.mark_floor, least(g.pending_mark, case when c.rows >= 1000 then c.top end))
                 else g.mark_floor end,
            case when c.is_strict then null when c.announces and (g.pending_xid is null or g.pending_xid <= v_xmin) then v_drawn else g.pending_mark end,
            case when c.is_strict then null when c.announces and (g.pending_xid is null or g.pending_xid <= v_xmin)
                 then case when v_drawn is not null then pg_current_xact_id() end else g.pending_xid end,
            g.held_from, g.returned_from, greatest(g.delayed_from, c.joined_from), g.starts + c.n, g.enqueued + c.folded + c.folded_delayed,
            g.joined + c.folded, g.succeeded, g.failed, g.cancelled, g.expired, v_now
          from changed c cross join lateral (select g.* from pgfifo.ledger g where g.ctid = c.row) g),
        forgotten as (
          delete from pgfifo.arrivals a where a.ctid = any (array(select u.row from state s, unnest(s.gone) u(row) where s.rows > 0 and not s.is_special)))
        -- Contents are read where they were found: whoever changes one that waits holds the slot lock.
        select case when p.owner is not null then 'owned' when p.has_past then 'past' else 'start' end,
          p.id, 1, v_epoch || '-' || p.id || '-1', v_names[p.nth], p.group_text, e.payload, e.headers, e.tags, e.enqueued_at,
          greatest(0, extract(epoch from v_now - greatest(e.enqueued_at, e.run_at)))::double precision, p.lane_id, p.starts + p.place, null::text, null::jsonb
        from picked p
        cross join lateral (select e.payload, e.headers, e.tags, e.enqueued_at, e.run_at from pgfifo._executions e where e.ctid = p.content and e.id = p.id) e
        union all
        -- A lane gets its mark back when it may have more waiting and a slot left; a full one gets it from its next finish.
        select case when s.governs and s.is_special then 'governed' when s.is_special then 'special' else 'again' end,
          null, null, null, null, null, null, null, null, null, null, s.lane_id, null, case when s.is_pinned then 'pinned' end, null
        from state s
        where s.is_special or s.rows >= 1000 or s.allowed is null and (
          s.returned > 0 and s.free > 0
          or (s.free > 1 or s.quota < 1) and (select count(*) < s.free and count(*) >= s.quota from picked p where p.turn = s.turn)
          -- A held one has its slot; if it is due and was not started, this call's limit is used up. Yielded ones that are
          -- due still were too many for one call.
          -- Lane by lane: without the offset the planner hashes what is held in all lanes, dead entries included.
          or s.off > 0 and exists (
            select from pgfifo.runs r where r.lane_id = s.lane_id and r.state in ('held', 'yielded') and (r.state = 'yielded' or s.goes_on)
              and r.due_at >= s.held_from and r.due_at <= v_now offset 0))
      loop
        if v_row.kind = 'start' then
          return next v_row;
          v_left := v_left - 1;
          if p_limits is not null or v_allowed is not null or v_sizes is not null then
            v_ids := v_ids || v_row.id;
          end if;
        elsif v_row.kind = 'owned' then
          v_owned := v_owned || v_row.id;
          if p_lane_id is not null then
            return next v_row;
          end if;
        elsif v_row.kind = 'past' then
          v_past := v_past || v_row.id;
        elsif v_row.kind = 'again' then
          v_put_back := v_put_back || v_row.lane_id;
        else
          -- Those that are governed by limits of another kind come after the others, and one by one.
          v_special := case when v_row.kind = 'governed' then v_special || v_row.lane_id else v_row.lane_id || v_special end;
          v_plain := v_plain + (v_row.kind = 'special')::integer;
          if v_row.status = 'pinned' then
            v_pinned := v_pinned || v_row.lane_id;
          end if;
        end if;
      end loop;
      if v_sizes is not null and v_ids <> '{}' then
        return query select r.* from pgfifo._ride(v_ids, v_actions, v_sizes, v_now) r;
      end if;
      if v_put_back <> '{}' then
        perform pg_current_xact_id();
        insert into pgfifo.marks (action_id, id, lane_id)
        select l.action_id, nextval('pgfifo.mark_ids'), l.id from unnest(v_put_back) with ordinality p(lane_id, n)
        join pgfifo.lanes l on l.id = p.lane_id order by p.n;
        -- Its part of this call's limit may be left over from another lane that could not use it: then this call comes by again.
        v_more := true;
      end if;
      if v_past <> '{}' then
        v_past := pgfifo._go_on(v_past);
        return query select * from pgfifo._start_rows(v_past);
        v_left := v_left - cardinality(v_past);
        v_ids := v_ids || v_past;
      end if;
      if p_limits is not null and v_ids <> '{}' then
        v_caps := pgfifo._less(v_actions, v_caps, v_ids);
      end if;
      if v_allowed is not null then
        perform pgfifo._settle(v_locked[1], v_governed_ids || v_ids || v_owned, v_draws, v_lane.max, v_lane.paused, v_now);
      end if;
      if v_owned <> '{}' then
        -- Only now: one whose owner is gone gives back what it drew.
        perform pgfifo._tell_owners(v_owned, p_worker);
        v_owned := '{}';
      end if;
      if p_lane_id is not null and (v_put_back <> '{}' or v_allowed is not null) then
        perform pgfifo._wake(a.id, a.name) from pgfifo.lanes l join pgfifo.actions a on a.id = l.action_id where l.id = p_lane_id;
      end if;

      if not v_again then
        exit when v_special = '{}';
        v_again := true;
        -- What comes before the line, lane by lane: there are few.
        if v_pinned <> '{}' then
          -- A relaxed lane's floor waits for a writer that may have nothing to do with it. If no enqueue of the lane is in
          -- flight now (who has its enqueue lock alone, knows), then all that has been drawn for it is visible to what follows.
          v_quiet := array(select l.lane_id from unnest(v_pinned) l(lane_id)
            where pg_try_advisory_xact_lock('pgfifo._executions'::regclass::oid::integer, pgfifo._key(l.lane_id)));
          v_last := pgfifo._last_mark();
        end if;
        -- Late ones are put ahead of the line before their arrival is folded; so only what is seen here is folded then.
        select array_agg(coalesce(f.top, 0) order by l.n), array_agg(f.first_ticket order by l.n), array_agg(f.delayed_from order by l.n)
          into v_special_tops, v_special_firsts, v_special_joined
        from unnest(v_special) with ordinality l(lane_id, n)
        cross join lateral (select g.mark_floor from pgfifo.ledger g where g.lane_id = l.lane_id order by g.lane_id desc, g.version desc limit 1) g
        cross join lateral (
          select max(a.id) as top, min(a.first_ticket) as first_ticket, max(a.delayed_from) as delayed_from
          from (select a.id, a.first_ticket, a.delayed_from from pgfifo.arrivals a where a.lane_id = l.lane_id and a.id > g.mark_floor
                order by a.lane_id, a.id limit 1000) a) f;
        -- What is due to join the line gets its tickets now, and the lane another mark, which this claim comes to yet.
        v_special_joined := pgfifo._join_due(v_special, v_special, v_special_joined);
        v_done := 0;
      end if;
      -- The plain ones together, then each of the others by itself: what one has taken is seen by the next.
      exit when v_done >= cardinality(v_special);
      v_upto := greatest(v_plain, v_done + 1);
      v_allowed := null;
      for v_nth in v_done + 1 .. v_upto loop
        select coalesce(lp.max_concurrent, a.max) as max, a.is_strict, lp.paused_at is not null as paused, a.cap, l.action_id into strict v_lane
        from pgfifo.lanes l
        join unnest(v_actions, v_max, v_strict, v_caps) a(action_id, max, is_strict, cap) on a.action_id = l.action_id
        left join pgfifo._lane_policies lp on lp.lane_id = l.id
        where l.id = v_special[v_nth];
        v_may := least(v_left, v_lane.cap);
        if v_nth > v_plain then
          -- No number: the lane's own policy takes away what governs its action. Then only the limit of this call counts.
          select coalesce(a.o_n, 1000000), a.o_limits into v_allows, v_draws
          from pgfifo._allowance(v_special[v_nth], v_now, pgfifo._draws(v_lane.action_id), v_drawn) a;
          v_may := least(v_may, v_allows);
        end if;
        v_ids := pgfifo._claim_returned(v_special[v_nth], v_may, p_worker, p_call, v_lane.max, v_lane.is_strict, v_lane.paused, v_special_firsts[v_nth],
          p_lane_id is not null, v_now);
        if v_nth > v_plain then
          v_allowed := array[v_allows - cardinality(v_ids)];
        end if;
        if v_ids <> '{}' then
          v_owned := v_owned || array(select e.id from pgfifo._executions e where e.id = any (v_ids) and e.owner is not null);
          v_ids := array(select i.id from unnest(v_ids) with ordinality i(id, n) where i.id <> all (v_owned) order by i.n);
        end if;
        if v_nth > v_plain then
          v_governed_ids := v_ids;
        end if;
        if v_ids <> '{}' then
          return query select * from pgfifo._start_rows(v_ids);
          v_left := v_left - cardinality(v_ids);
          if p_limits is not null then
            v_caps := pgfifo._less(v_actions, v_caps, v_ids);
          end if;
        end if;
      end loop;
      v_locked := v_special[v_done + 1 : v_upto];
      v_tops := v_special_tops[v_done + 1 : v_upto];
      v_joined_from := v_special_joined[v_done + 1 : v_upto];
      v_locked_versions := array_fill(0::bigint, array[v_upto - v_done]);
      v_announces := array_fill(true, array[v_upto - v_done]);
      v_done := v_upto;
    end loop;
    exit when v_locks >= 64 or v_budget >= 64;
  end loop;

  -- Lanes we finished something in and have not refilled: the mark is left in the transaction of the finish (law 2).
  if cardinality(v_ended_lanes) > cardinality(v_refilled) then
    perform pg_current_xact_id();
    insert into pgfifo.marks (action_id, id, lane_id, version)
    select f.action_id, nextval('pgfifo.mark_ids'), f.lane_id, f.version from unnest(v_ended_lanes, v_ended_actions, v_ended_versions) f(lane_id, action_id, version)
    where f.lane_id <> all (v_refilled);
    if v_actions is null then
      -- This worker starts nothing now; others may sleep.
      perform pgfifo._wake(n.id, n.name) from pgfifo.actions n where n.id = any (v_ended_actions);
    end if;
  end if;
  if v_left <= 0 and v_actions is not null then
    -- We are full and others may sleep.
    for v_nth in 1 .. cardinality(v_actions) loop
      if pgfifo._asleep(v_actions[v_nth]) then
        perform pg_notify('pgfifo', n.name) from pgfifo.actions n
        where n.id = v_actions[v_nth] and exists (select from pgfifo.marks m where m.action_id = n.id and m.id > coalesce(v_from[v_nth],
          (select s.hot_mark from pgfifo.scans s where s.action_id = n.id order by s.action_id desc, s.version desc limit 1)));
      end if;
    end loop;
  end if;
  if v_left > 0 then
    v_row := null;
    v_row.kind := 'more';
    if v_more and (v_locks >= 64 or v_budget >= 64) then
      v_row.status := 'now';
      return next v_row;
    elsif v_soon then
      v_row.status := 'soon';
      return next v_row;
    elsif v_actions is not null then
      select min(d.due_at) into v_due from unnest(v_actions, v_timer_from) a(id, due_from)
      cross join lateral (select t.due_at from pgfifo.timers t where t.action_id = a.id and t.due_at >= a.due_from
                          order by t.action_id, t.due_at limit 1) d;
      -- The end of an override lets start what it held up. One that is over is still there when its lock could not be had.
      if v_ends_at is not null then
        v_ends_at := (
          select min(o.until) from pgfifo._overrides o
          where (o.scope = 'everything' or o.action_id = any (v_actions) or o.pack = any (array(select a.pack from pgfifo.actions a where a.id = any (v_actions))))
            and o.attribute = any (array(select a.o_attribute from pgfifo._policy_attributes() a where a.o_starts)));
        v_due := least(v_due, v_ends_at);
      end if;
      if v_ends_at <= v_now then
        v_row.status := 'soon';
        return next v_row;
      elsif v_due is not null then
        v_row.status := 'later';
        v_row.detail := jsonb_build_object('seconds', greatest(0, extract(epoch from v_due - v_now)));
        return next v_row;
      end if;
    end if;
  end if;
  -- Where some policy says how long attempts may run, who asks with a number is told so of those that have just started.
  if v_timed then
    return query select * from pgfifo._time_limits(p_worker, p_call);
  end if;
  -- Where nobody calls maintain, claims do, now and then.
  if random() < 0.01 then
    perform pgfifo._maintain_if_late();
  end if;
end $$;
comment on function pgfifo.work is 'Hand back what has finished and claim what to run next, in one call.';
