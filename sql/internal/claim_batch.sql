-- Start executions of these actions, at most p_limit, lanes in the order of their oldest marks.
-- Per round: 1. the next marks; 2. their lanes' slot locks, by try: a claim never waits for a lane; 3. delete those marks
-- and fold the lanes' arrivals; 4. look at the lanes, in a statement of its own (law 1): what becomes visible after 3 has
-- a mark that is still there. Goes on along the marks until the limit is filled or the work budget is used.
-- p_refill: lanes whose slot lock this transaction holds already, because it has just finished something there, and that
-- have something waiting. They come after all marks that wait, so lanes take turns; what is not refilled leaves a mark.
-- p_drawn: see _scan_from. Rows of kind 'start', and at most one of kind 'more'.
create or replace function pgfifo._claim_batch(p_worker bigint, p_call bigint, p_action_ids integer[], p_caps integer[], p_limit integer, p_refill bigint[], p_drawn bigint)
returns setof pgfifo.work_row
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c_lanes constant integer := 'pgfifo.lanes'::regclass::oid::integer;
  c_policies constant integer := 'pgfifo.policies'::regclass::oid::integer;
  v_now timestamptz := pgfifo._now();
  v_epoch integer;
  v_left integer := p_limit;
  v_soon boolean := false;
  v_actions integer[];
  v_caps integer[];
  v_max integer[];
  v_strict boolean[];
  v_from bigint[] := '{}';
  v_timer_from timestamptz[] := '{}';
  v_scan record;
  v_cut bigint := 0;
  v_budget integer := 0;
  v_stuck integer := 0;
  v_chunk integer;
  v_more boolean := true;
  c_action integer[];
  c_id bigint[];
  c_lane bigint[];
  v_want integer;
  v_lanes bigint[];
  v_locked bigint[];
  v_locks integer := 0;
  v_refilled bigint[] := '{}';
  v_started bigint[] := '{}';
  v_row pgfifo.work_row;
  v_due timestamptz;
  v_xmin xid8;
  f_lane bigint[];
  f_n bigint[];
  f_top bigint[];
  f_rows bigint[];
  f_first bigint[];
  f_delayed bigint[];
  f_from timestamptz[];
  v_joining bigint[];
  v_past boolean;
  v_special bigint[];
  v_arrived bigint[];
  v_pinned bigint[];
  v_quiet bigint[];
  v_last bigint := pgfifo._last_mark();
  v_lane bigint;
  v_lane_policy record;
  v_ids bigint[];
  v_rows integer;
begin
  if p_limit > 0 and exists (select from pgfifo._overrides o where o.until <= v_now) then
    perform pgfifo._end_overrides(v_now);
  end if;
  -- The limits stay as they are until we commit: a change takes these locks exclusive. So the policies are read in a
  -- statement after the locks.
  if p_limit > 0 and pg_try_advisory_xact_lock_shared(c_policies, 0) then
    v_actions := array(select a.id from unnest(p_action_ids) a(id) where pg_try_advisory_xact_lock_shared(c_policies, a.id));
    v_soon := cardinality(v_actions) < cardinality(p_action_ids);
    select array_agg(p.action_id), array_agg(coalesce(c.cap, p_limit)), array_agg(p.max_concurrent), array_agg(p.ordering = 'strict')
      into v_actions, v_caps, v_max, v_strict
    from unnest(p_action_ids, p_caps) c(action_id, cap)
    join pgfifo._action_policies p on p.action_id = c.action_id
    where p.action_id = any (v_actions) and p.paused_at is null and coalesce(c.cap, p_limit) > 0;
  else
    v_soon := p_limit > 0;
  end if;
  if v_actions is not null then
    select i.epoch into strict v_epoch from pgfifo.installation i;
    if exists (select from pgfifo.remarks r where r.action_id = any (v_actions)) then
      perform pgfifo._remark(r.action_id) from pgfifo.remarks r where r.action_id = any (v_actions);
    end if;
    for v_scan in select s.* from unnest(v_actions) with ordinality a(id, n), pgfifo._scan_from(a.id, v_now, p_drawn) s order by a.n loop
      v_from := v_from || v_scan.o_mark;
      v_timer_from := v_timer_from || v_scan.o_timer;
    end loop;
    -- Timers that are due become marks. Rows that another claim is taking are skipped, not waited for.
    if exists (select from unnest(v_actions, v_timer_from) a(id, due_from)
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
    if not v_more then
      -- No older mark waits; now the lanes that we have just finished something in.
      exit when v_refilled <> '{}' or p_refill = '{}';
      v_refilled := array(select f.lane_id from unnest(p_refill) with ordinality f(lane_id, n)
        join pgfifo.lanes l on l.id = f.lane_id where l.action_id = any (v_actions) order by f.n);
      exit when v_refilled = '{}';
      v_locked := v_refilled;
      c_id := null;
    else
      -- 1. The next marks, oldest first over all actions; the first mark of each lane says when it is its turn.
      v_chunk := least(256, greatest(32, 4 * v_left));
      v_want := least(v_left, 64);
      select array_agg(s.action_id order by s.id), array_agg(s.id order by s.id), array_agg(s.lane_id order by s.id)
        into c_action, c_id, c_lane
      from (
        select m.* from unnest(v_actions, v_from, v_caps) a(id, mark_from, cap)
        cross join lateral (
          select m.action_id, m.id, m.lane_id from pgfifo.marks m
          where m.action_id = a.id and m.id > greatest(a.mark_from, v_cut) order by m.action_id, m.id limit v_chunk) m
        where a.cap > 0
        order by m.id limit v_chunk) s;
      if c_id is null then
        v_more := false;
        continue;
      end if;
      select array_agg(d.lane_id order by d.first) filter (where d.nth <= v_want), min(d.first) filter (where d.nth > v_want) - 1
        into v_lanes, v_cut
      from (
        select s.lane_id, min(s.id) as first, row_number() over (order by min(s.id)) as nth
        from unnest(c_lane, c_id) s(lane_id, id) group by s.lane_id) d;
      if v_cut is null then
        v_cut := c_id[cardinality(c_id)];
      end if;
      v_rows := cardinality(c_id);
      -- 2. Lock their lanes.
      v_locked := array(select l.lane_id from unnest(v_lanes) with ordinality l(lane_id, n)
        where pg_try_advisory_xact_lock(c_lanes, pgfifo._key(l.lane_id)) order by l.n);
      v_locks := v_locks + cardinality(v_locked);
      if cardinality(v_locked) < cardinality(v_lanes) then
        v_soon := true;
        v_stuck := v_stuck + v_rows;
        -- A few locked lanes in front are passed over. Where they are many, they come again later, less and less often:
        -- one timer for all marks of a lane, and again nobody waits for a row that somebody else is taking.
        if v_stuck > 64 then
          perform pg_current_xact_id();
          with gone as (
            delete from pgfifo.marks m where m.ctid = any (array(
              select k.ctid from unnest(c_action, c_id, c_lane) s(action_id, id, lane_id)
              cross join lateral (select m.ctid from pgfifo.marks m where m.action_id = s.action_id and m.id = s.id for update skip locked) k
              where s.id <= v_cut and s.lane_id <> all (v_locked)))
            returning m.lane_id, m.tries)
          select count(pgfifo._timer(g.lane_id, v_now + least(interval '1 s', interval '50 ms' * power(2, least(g.tries, 6))), (g.tries + 1)::integer))
            into v_rows
          from (select lane_id, max(tries)::integer as tries from gone group by lane_id) g;
        end if;
      end if;
      v_budget := v_budget + 1;
      if cardinality(v_locked) = 0 then
        exit when v_budget >= 64;
        continue;
      end if;
    end if;

    -- 3. Delete the marks we came by, and fold what has arrived in these lanes. Everything deleted here is visible to 4.
    -- What was over at v_xmin is visible to the statements from here on.
    v_xmin := pg_snapshot_xmin(pg_current_snapshot());
    if c_id is not null then
      delete from pgfifo.marks m where m.ctid = any (array(
        select k.ctid from unnest(c_action, c_id, c_lane) s(action_id, id, lane_id)
        cross join lateral (select m.ctid from pgfifo.marks m where m.action_id = s.action_id and m.id = s.id for update skip locked) k
        where s.id <= v_cut and s.lane_id = any (v_locked)));
    end if;
    f_lane := '{}';
    f_n := '{}';
    f_top := '{}';
    f_rows := '{}';
    f_first := '{}';
    f_delayed := '{}';
    f_from := '{}';
    select array_agg(l.lane_id) filter (where exists (select from pgfifo.arrivals a where a.lane_id = l.lane_id and a.id > g.mark_floor)),
        array_agg(l.lane_id) filter (where g.held > 0 or g.returned > 0 or (g.yielded > 0 and g.held_from <= v_now)),
        array_agg(l.lane_id) filter (where g.delayed > 0),
        array_agg(l.lane_id) filter (where g.pending_xid > v_xmin and v_last - g.mark_floor > 500)
      into v_arrived, v_special, v_joining, v_pinned
    from unnest(v_locked) l(lane_id)
    cross join lateral (select * from pgfifo.ledger g where g.lane_id = l.lane_id order by g.lane_id desc, g.version desc limit 1) g;
    v_quiet := '{}';
    if v_pinned is not null then
      -- A relaxed lane's floor waits for a writer that may have nothing to do with it. If no enqueue of the lane is in
      -- flight now (who has its enqueue lock alone, knows), then all that has been drawn for it is visible to what follows.
      v_quiet := array(select l.lane_id from unnest(v_pinned) l(lane_id)
        where pg_try_advisory_xact_lock('pgfifo._executions'::regclass::oid::integer, pgfifo._key(l.lane_id)));
      v_last := pgfifo._last_mark();
      v_arrived := array(select l.lane_id from unnest(v_arrived || v_quiet) l(lane_id) group by l.lane_id);
    end if;
    if v_arrived is not null then
      with gone as (
        delete from pgfifo.arrivals a where a.ctid = any (array(
          select k.ctid from unnest(v_arrived) l(lane_id)
          cross join lateral (select g.mark_floor from pgfifo.ledger g where g.lane_id = l.lane_id order by g.lane_id desc, g.version desc limit 1) g
          cross join lateral (
            select a.ctid from pgfifo.arrivals a where a.lane_id = l.lane_id and a.id > g.mark_floor order by a.lane_id, a.id limit 1000) k))
        returning a.lane_id, a.id, a.n, a.delayed, a.first_ticket, a.delayed_from),
      folded as (
        select g.lane_id, sum(g.n)::bigint as n, sum(g.delayed)::bigint as delayed, max(g.id) as top, count(*) as rows,
          min(g.first_ticket) as first_ticket, max(g.delayed_from) as delayed_from
        from gone g group by g.lane_id)
      select array_agg(f.lane_id), array_agg(f.n), array_agg(f.delayed), array_agg(f.top), array_agg(f.rows), array_agg(f.first_ticket),
          array_agg(f.delayed_from),
          v_joining || array_agg(f.lane_id) filter (where f.delayed > 0 and f.lane_id <> all (coalesce(v_joining, '{}'))),
          coalesce(v_special, '{}') || coalesce(array_agg(f.lane_id) filter (where f.lane_id <> all (coalesce(v_special, '{}')) and f.first_ticket <=
            (select g.consumed from pgfifo.ledger g where g.lane_id = f.lane_id order by g.lane_id desc, g.version desc limit 1)), '{}')
        into f_lane, f_n, f_delayed, f_top, f_rows, f_first, f_from, v_joining, v_special
      from folded f;
    end if;

    -- What is due to join the line gets its tickets now, and the lane another mark, which this claim comes to yet.
    if v_joining is not null or array_remove(f_from, null) <> '{}' then
      f_from := pgfifo._join_due(v_joining, f_lane, f_from);
    end if;

    -- 4a. What comes before the line, lane by lane: there are few.
    if v_special <> '{}' then
      foreach v_lane in array v_special loop
        select coalesce(lp.max_concurrent, a.max) as max, a.is_strict, lp.paused_at is not null as paused, a.cap into v_lane_policy
        from pgfifo.lanes l
        join unnest(v_actions, v_max, v_strict, v_caps) a(action_id, max, is_strict, cap) on a.action_id = l.action_id
        left join pgfifo._lane_policies lp on lp.lane_id = l.id
        where l.id = v_lane;
        continue when not found;
        v_ids := pgfifo._claim_returned(v_lane, least(v_left, v_lane_policy.cap), p_worker, p_call, v_lane_policy.max, v_lane_policy.is_strict, v_lane_policy.paused,
          f_first[array_position(f_lane, v_lane)]);
        v_started := v_started || v_ids;
        v_left := v_left - cardinality(v_ids);
        if p_caps is not null then
          v_caps := pgfifo._less(v_actions, v_caps, v_ids);
        end if;
      end loop;
    end if;

    -- 4b. The line: the next tickets up to the free slots, for all locked lanes at once. A lane gets its mark back when
    -- it may have more waiting and a slot left; a full one gets it from its next finish.
    with state as materialized (
      select t.n as turn, l.action_id, a.cap, a.is_strict, a.max, g.*, g.ctid as row, coalesce(f.n, 0) as folded, coalesce(f.delayed, 0) as folded_delayed,
        f.top, f.rows, f.delayed_from as joined_from, o.ids, o.tickets, o.past,
        lp.paused_at is not null as paused, coalesce(cardinality(o.ids), 0) as seen, x.free
      from unnest(v_locked) with ordinality t(lane_id, n)
      cross join lateral (select l.action_id from pgfifo.lanes l where l.id = t.lane_id offset 0) l
      left join lateral (select p.max_concurrent, p.paused_at from pgfifo._lane_policies p where p.lane_id = t.lane_id offset 0) lp on true
      cross join lateral (
        select a.cap, a.is_strict, coalesce(lp.max_concurrent, a.max) as max
        from unnest(v_actions, v_max, v_strict, v_caps) a(action_id, max, is_strict, cap) where a.action_id = l.action_id) a
      cross join lateral (select g.*, g.ctid from pgfifo.ledger g where g.lane_id = t.lane_id order by g.lane_id desc, g.version desc limit 1) g
      left join unnest(f_lane, f_n, f_delayed, f_top, f_rows, f_from) f(lane_id, n, delayed, top, rows, delayed_from) on f.lane_id = t.lane_id
      -- What has returned comes before the line; if some is still there, this call's limit is used up.
      cross join lateral (select case when lp.paused_at is not null then 0 else greatest(0, a.max - g.running - g.held) end as free) x
      cross join lateral (
        select array_agg(e.id) as ids, array_agg(e.ticket) as tickets, bool_or(e.past is not null) as past
        from (select e.id, e.ticket, e.past from pgfifo._executions e where e.lane_id = t.lane_id and e.ticket > g.consumed
              order by e.lane_id, e.ticket limit case when g.returned = 0 then least(x.free, a.cap, v_left) else 0 end) e) o),
    counted as materialized (
      -- How many of each lane fit under the limits of this call, lanes in their turn.
      select s.*, least(s.seen, greatest(0, v_left - s.before), greatest(0, s.cap - s.before_of_action))::integer as n
      from (
        select s.*, sum(s.seen) over (order by s.turn) - s.seen as before, sum(s.seen) over (partition by s.action_id order by s.turn) - s.seen as before_of_action
        from state s) s),
    started as (
      insert into pgfifo.runs (id, lane_id, ticket, state, attempt, worker_id, call_no, start_no, start_limit, is_strict, started_at)
      select u.id, c.lane_id, u.ticket, 'running', 1, p_worker, p_call, c.starts + u.nth, c.max, c.is_strict, v_now
      from counted c cross join lateral unnest(c.ids[1:c.n], c.tickets[1:c.n]) with ordinality u(id, ticket, nth)
      returning 1),
    pruned as (
      delete from pgfifo.ledger g where g.ctid = any (array(select c.row from counted c where c.n > 0 or c.rows > 0 or c.lane_id = any (v_quiet)))),
    appended as (
      insert into pgfifo.ledger (lane_id, version, running, held, yielded, returned, waiting, delayed, consumed, mark_floor, pending_mark,
        pending_xid, held_from, returned_from, delayed_from, starts, enqueued, joined, succeeded, failed, cancelled, expired, changed_at)
      select c.lane_id, c.version + 1, c.running + c.n, c.held, c.yielded, c.returned, c.waiting + c.folded - c.n, c.delayed + c.folded_delayed,
        case when c.n > 0 then c.tickets[c.n] else c.consumed end,
        case when c.is_strict then greatest(c.mark_floor, c.top)
             -- Not past what this round had to leave for the next one.
             when c.lane_id = any (v_quiet) then greatest(c.mark_floor, least(v_last, case when c.rows >= 1000 then c.top end))
             when c.pending_xid <= v_xmin then greatest(c.mark_floor, least(c.pending_mark, case when c.rows >= 1000 then c.top end))
             else c.mark_floor end,
        case when c.is_strict then null when c.pending_xid is null or c.pending_xid <= v_xmin then p_drawn else c.pending_mark end,
        case when c.is_strict then null when c.pending_xid is null or c.pending_xid <= v_xmin
             then case when p_drawn is not null then pg_current_xact_id() end else c.pending_xid end,
        c.held_from, c.returned_from, greatest(c.delayed_from, c.joined_from), c.starts + c.n, c.enqueued + c.folded + c.folded_delayed,
        c.joined + c.folded, c.succeeded, c.failed, c.cancelled, c.expired, v_now
      from counted c where c.n > 0 or c.rows > 0 or c.lane_id = any (v_quiet)),
    put_back as (
      insert into pgfifo.marks (action_id, id, lane_id)
      select c.action_id, nextval('pgfifo.mark_ids'), c.lane_id
      from counted c
      where c.free > c.n and (c.returned > 0 or c.seen > c.n or c.seen >= least(c.cap, v_left)) or c.rows >= 1000
        -- A held one has its slot; if it is due and was not started, this call's limit is used up. Yielded ones that are
        -- due still were too many for one call.
        -- Lane by lane: without the offset the planner hashes what is held in all lanes, dead entries included.
        or (c.held + c.yielded > 0 and exists (
          select from pgfifo.runs r where r.lane_id = c.lane_id and r.state in ('held', 'yielded') and (r.state = 'yielded' or not c.paused)
            and r.due_at >= c.held_from and r.due_at <= v_now offset 0)))
    select array_agg(u.id order by c.turn, u.nth), (select count(*) from started), (select bool_or(c.past) from counted c where c.n > 0)
      into v_ids, v_rows, v_past
    from counted c cross join lateral unnest(c.ids[1:c.n]) with ordinality u(id, nth);
    if v_rows <> coalesce(cardinality(v_ids), 0) then
      raise exception using errcode = 'XX000', message = format('a claim picked %s executions and started %s', cardinality(v_ids), v_rows);
    end if;
    if v_past then
      v_ids := pgfifo._go_on(v_ids);
      v_rows := cardinality(v_ids);
    end if;
    if v_rows > 0 then
      v_started := v_started || v_ids;
      v_left := v_left - v_rows;
      if p_caps is not null then
        v_caps := pgfifo._less(v_actions, v_caps, v_ids);
      end if;
    end if;
    exit when v_locks >= 64 or v_budget >= 64;
  end loop;

  -- Lanes we finished something in and have not refilled: the mark is left in the transaction of the finish (law 2).
  if cardinality(p_refill) > cardinality(v_refilled) then
    perform pg_current_xact_id();
    insert into pgfifo.marks (action_id, id, lane_id)
    select l.action_id, nextval('pgfifo.mark_ids'), l.id
    from unnest(p_refill) with ordinality f(lane_id, n) join pgfifo.lanes l on l.id = f.lane_id
    where l.id <> all (v_refilled) order by f.n;
    if v_actions is null then
      -- This worker starts nothing now; others may sleep.
      perform pgfifo._wake(n.id, n.name) from pgfifo.actions n
      where n.id in (select l.action_id from unnest(p_refill) f(lane_id) join pgfifo.lanes l on l.id = f.lane_id);
    end if;
  end if;
  if v_left <= 0 and v_actions is not null then
    -- We are full and others may sleep.
    for v_nth in 1 .. cardinality(v_actions) loop
      if pgfifo._asleep(v_actions[v_nth]) then
        perform pg_notify('pgfifo', n.name) from pgfifo.actions n
        where n.id = v_actions[v_nth] and exists (select from pgfifo.marks m where m.action_id = n.id and m.id > v_from[v_nth]);
      end if;
    end loop;
  end if;
  if v_started <> '{}' then
    return query
    select 'start'::text, s.id, r.attempt, v_epoch || '-' || s.id || '-' || r.attempt, n.name, l.group_text, e.payload, e.headers, e.tags,
      e.enqueued_at, greatest(0, extract(epoch from v_now - greatest(e.enqueued_at, e.run_at)))::double precision, r.lane_id, r.start_no, null::text, null::jsonb
    from unnest(v_started) with ordinality s(id, place)
    cross join lateral (select r.attempt, r.lane_id, r.start_no from pgfifo.runs r where r.id = s.id offset 0) r
    cross join lateral (select e.payload, e.headers, e.tags, e.enqueued_at, e.run_at from pgfifo._executions e where e.id = s.id offset 0) e
    cross join lateral (select l.group_text, l.action_id from pgfifo.lanes l where l.id = r.lane_id offset 0) l
    cross join lateral (select n.name from pgfifo.actions n where n.id = l.action_id offset 0) n
    order by s.place;
  end if;
  if v_left > 0 then
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
      if v_due is not null then
        v_row.status := 'later';
        v_row.detail := jsonb_build_object('seconds', greatest(0, extract(epoch from v_due - v_now)));
        return next v_row;
      end if;
    end if;
  end if;
end $$;

-- Caps per action after these executions have started.
create or replace function pgfifo._less(p_actions integer[], p_caps integer[], p_ids bigint[]) returns integer[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(c.cap - coalesce(u.n, 0) order by c.ord)
  from unnest(p_actions, p_caps) with ordinality c(action_id, cap, ord)
  left join (select l.action_id, count(*)::integer as n from pgfifo._executions e join pgfifo.lanes l on l.id = e.lane_id
             where e.id = any (p_ids) group by l.action_id) u on u.action_id = c.action_id
$$;
