-- Put finished executions back: each becomes a new one of the same lane, with its content, retry_of and no attempts yet.
-- p_head: with the old ticket, so in its old place, before all younger ones that wait; else at the end of the line. In the
-- order of p_ids. One that never had a ticket joins at the end in any case.
-- The old outcome stays. Keys (request_id, dedup_key, item_key) are not taken along. It is an enqueue like any other: quotas
-- count it, and at the end of a line lengths and on_limit hold. For an old place those are not asked.
-- Locks: the actions shared, as every enqueue; where quotas or lengths of actions are set, the locks of their scopes, from
-- wide to narrow; then the enqueue locks of all lanes, exclusive, and for p_head after them their slot locks, each in the
-- order of keys, until p_until; what cannot be had is 'busy'. Whoever puts back the same execution at the same time meets us
-- at its lane's enqueue lock; then look (law 1).
-- Answers: 'retried' with the new id; the state of what is not finished; 'again' with the id of a retry that is not
-- finished; 'full' (a length), 'quota', 'limit' (on_limit: it could not start at once); 'closed'; 'taken' (another one has the
-- old ticket); 'slot' (it stood for a slot that a program held); 'busy' (without a lane: it ends, or ended, just now); 'unknown'.
-- Dies here: nothing happened.
create or replace function pgfifo._put_back(p_ids bigint[], p_head boolean, p_until timestamptz)
returns table (id bigint, answer text, retry_id bigint, lane_id bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_enqueue constant oid := 'pgfifo._executions'::regclass;
  c_slots constant oid := 'pgfifo.lanes'::regclass;
  c_scopes constant oid := 'pgfifo.tallies'::regclass;
  -- Of each lane: what it is, whether we have its locks and it takes enqueues, how many still fit, how many have joined.
  v_actions integer[];
  v_groups text[];
  v_lanes bigint[];
  v_had boolean[];
  v_closed boolean[];
  v_rooms double precision[];
  v_totals bigint[];
  v_joined integer[];
  v_returned integer[];
  -- Whether it refuses what could not start at once, how many could, and which limits are about it (their numbers, as text).
  v_refuses boolean[];
  v_free bigint[];
  v_about text[];
  -- Limits of more than one lane, and quotas of lanes; each once: a quota, or else the length of an action. The lock of its
  -- scope (a lane's has none) and whether we have it, how much was counted, what is left of it, how many have come.
  v_targets text[];
  v_quotas text[];
  v_mosts double precision[];
  v_keys integer[];
  v_got boolean[];
  v_befores pgfifo.tallies[];
  v_counts bigint[];
  v_sinces timestamptz[];
  v_lane_counts integer[];
  v_left double precision[];
  v_came integer[];
  v_counted record;
  v_refused text;
  v_limit integer;
  v_lane record;
  v_item record;
  v_state pgfifo.ledger;
  v_now timestamptz;
  v_new bigint;
  v_ticket bigint;
begin
  -- A hint without a lock: where they were. What is on record never changes.
  select array_agg(k.action_id order by k.action_id, k.group_text collate "C"), array_agg(k.group_text order by k.action_id, k.group_text collate "C")
    into v_actions, v_groups
  from (select distinct h.action_id, h.group_text
        from unnest(p_ids) i(id) cross join lateral (select h.* from pgfifo.history h where h.id = i.id limit 1) h where h.owner is null) k;
  if cardinality(v_actions) > pgfifo.max_batch_lanes() then
    raise exception using errcode = 'QF020',
      message = format('these executions are of %s lanes; at most %s are allowed in one call', pgfifo._number(cardinality(v_actions)),
        pgfifo._number(pgfifo.max_batch_lanes())),
      detail = json_build_object('lanes', cardinality(v_actions), 'limit', pgfifo.max_batch_lanes())::text,
      hint = 'Put back fewer at once: each lane''s lock is held until the commit, in a table that the whole cluster shares.';
  end if;
  perform pg_advisory_xact_lock_shared('pgfifo.actions'::regclass::oid::integer, a.id)
  from (select distinct a as id from unnest(v_actions) a order by a) a;
  -- A lane that was removed comes back under another id.
  v_lanes := array(select pgfifo._lane(l.action_id, l.group_text) from unnest(v_actions, v_groups) with ordinality l(action_id, group_text, n) order by l.n);
  v_had := array_fill(false, array[cardinality(v_lanes)]);
  with limits as (
    select x.n, r.target, r.quota::text as quota, r.most, r.key, dense_rank() over (order by r.rank, r.key, r.target, r.quota is null) as k
    from unnest(v_lanes, v_actions) with ordinality x(id, action_id, n)
    join pgfifo._action_policies p on p.action_id = x.action_id
    left join pgfifo._lane_policies lp on lp.lane_id = x.id
    cross join lateral (values
      ('everything', p.everything_quota, null::double precision, 0, 0),
      ('pack:' || p.pack, p.pack_quota, null, 1, -1 - (hashtext(p.pack) & 1073741823)),
      ('action:' || p.action_id, p.action_quota, null, 2, p.action_id),
      ('action:' || p.action_id, null, p.max_action_queue_length, 2, p.action_id),
      ('lane:' || x.id, lp.quota, null, 3, null)) r(target, quota, most, rank, key)
    where r.quota[1] <> 'infinity' or r.most < 'infinity')
  select array_agg(k.target order by k.k), array_agg(k.quota order by k.k), array_agg(k.most order by k.k), array_agg(k.key order by k.k), array_agg(0 order by k.k),
      array(select (select array_agg(l.k)::text from limits l where l.n = x.n) from generate_subscripts(v_lanes, 1) x(n) order by x.n)
    into v_targets, v_quotas, v_mosts, v_keys, v_came, v_about
  from (select distinct on (l.k) l.* from limits l order by l.k) k;
  for v_nth in 1 .. coalesce(cardinality(v_targets), 0) loop
    v_got[v_nth] := v_keys[v_nth] is null or pgfifo._lock(c_scopes, v_keys[v_nth], p_until - clock_timestamp());
  end loop;
  for v_lane in
    select l.id, l.n from unnest(v_lanes, v_about) with ordinality l(id, about, n)
    where l.id is not null and not exists (select from unnest(l.about::integer[]) k where not v_got[k]) order by pgfifo._key(l.id)
  loop
    v_had[v_lane.n] := pgfifo._lock(c_enqueue, pgfifo._key(v_lane.id), p_until - clock_timestamp());
  end loop;
  if p_head then
    for v_lane in select l.id, l.n from unnest(v_lanes, v_had) with ordinality l(id, had, n) where l.had order by pgfifo._key(l.id) loop
      v_had[v_lane.n] := pgfifo._lock(c_slots, pgfifo._key(v_lane.id), p_until - clock_timestamp());
    end loop;
  end if;

  -- From here on the lanes are looked at. One that was removed before we had its lock is busy: it comes back next time.
  v_now := pgfifo._now();
  perform pgfifo._admit(l.id, 100, true) from unnest(v_lanes, v_had) l(id, had) join pgfifo.lanes x on x.id = l.id where l.had;
  select array_agg(l.had and x.id is not null order by l.n), array_agg(coalesce(x.closed_at, a.closed_at) is not null order by l.n),
      array_agg(m.most - c.o_length order by l.n), array_agg(c.o_total order by l.n), array_agg(0 order by l.n), array_agg(0 order by l.n),
      array_agg(coalesce(p.on_limit, a.on_limit) = 'cancel' order by l.n)
    into v_had, v_closed, v_rooms, v_totals, v_joined, v_returned, v_refuses
  from unnest(v_lanes, v_had, v_actions) with ordinality l(id, had, action_id, n)
  join pgfifo._action_policies a on a.action_id = l.action_id
  left join pgfifo.lanes x on x.id = l.id
  left join pgfifo._lane_policies p on p.lane_id = l.id
  cross join lateral (select coalesce(p.max_queue_length, a.max_queue_length) as most) m
  left join lateral pgfifo._length(l.id) c on m.most < 'infinity';
  for v_nth in 1 .. coalesce(cardinality(v_lanes), 0) loop
    if v_had[v_nth] and v_refuses[v_nth] then
      v_free[v_nth] := (pgfifo._could_start(v_actions[v_nth], v_lanes[v_nth])).o_free;
    end if;
  end loop;
  for v_nth in 1 .. coalesce(cardinality(v_targets), 0) loop
    continue when not v_got[v_nth];
    if v_quotas[v_nth] is null then
      v_counted := pgfifo._action_length(v_keys[v_nth]);
      v_left[v_nth] := v_mosts[v_nth] - v_counted.o_n;
    else
      v_counted := pgfifo._quota_used(v_targets[v_nth], v_quotas[v_nth]::text[]);
      v_left[v_nth] := (v_quotas[v_nth]::text[])[1]::double precision - v_counted.o_n;
    end if;
    v_befores[v_nth] := v_counted.o_before;
    v_counts[v_nth] := v_counted.o_n;
    v_sinces[v_nth] := v_counted.o_since;
    v_lane_counts[v_nth] := v_counted.o_lanes;
  end loop;

  -- An xid before ids are drawn: see events.
  perform pg_current_xact_id();
  for v_item in
    select i.id, h.ticket, h.owner, l.n as at, l.id as lane_id, e.state, h.id is not null as has_ended
    from (select i.id, min(i.n) as n from unnest(p_ids) with ordinality i(id, n) group by i.id) i
    left join lateral (select h.* from pgfifo.history h where h.id = i.id limit 1) h on true
    left join unnest(v_lanes, v_actions, v_groups) with ordinality l(id, action_id, group_text, n) on l.action_id = h.action_id and l.group_text = h.group_text
    left join lateral (select e.state from pgfifo.executions e where e.id = i.id and e.finished_at is null) e on h.id is null
    order by i.n
  loop
    id := v_item.id;
    retry_id := null;
    lane_id := v_item.lane_id;
    if v_item.state is not null then
      -- What has expired, and has not got its outcome yet, gets it within a second or so.
      answer := case v_item.state when 'expired' then 'busy' else v_item.state end;
    elsif v_item.owner is not null then
      answer := 'slot';
    elsif v_item.at is null then
      -- It has ended since the hint was read, and nothing is locked for it: whoever asks again finds it on record.
      answer := case when v_item.has_ended then 'busy' else 'unknown' end;
    elsif not v_had[v_item.at] then
      answer := 'busy';
    elsif v_closed[v_item.at] then
      answer := 'closed';
    else
      v_ticket := case when p_head then v_item.ticket end;
      v_refused := null;
      if v_about[v_item.at] is not null then
        select case when v_quotas[k] is null then 'full' else 'quota' end into v_refused from unnest(v_about[v_item.at]::integer[]) k
        where v_came[k] >= v_left[k] and (v_quotas[k] is not null or v_ticket is null) order by v_quotas[k] is null desc limit 1;
      end if;
      select e.id into retry_id from pgfifo._executions e where e.retry_of = v_item.id limit 1;
      if found then
        answer := 'again';
      elsif v_ticket is not null and exists (select from pgfifo._executions e where e.lane_id = v_item.lane_id and e.ticket = v_ticket) then
        answer := 'taken';
      elsif v_ticket is null and v_joined[v_item.at] + v_returned[v_item.at] >= v_rooms[v_item.at] then
        answer := 'full';
      elsif v_ticket is null and v_joined[v_item.at] + v_returned[v_item.at] >= v_free[v_item.at] then
        answer := 'limit';
      elsif v_refused is not null then
        answer := v_refused;
      else
        answer := 'retried';
        insert into pgfifo._executions (id, lane_id, ticket, enqueued_at, payload, headers, tags, retry_of)
        select n.id, v_item.lane_id, coalesce(v_ticket, n.id), v_now, h.payload, h.headers, h.tags, h.id
        from (select nextval('pgfifo.execution_ids') as id) n, (select h.* from pgfifo.history h where h.id = v_item.id limit 1) h
        returning id into strict v_new;
        retry_id := v_new;
        foreach v_limit in array coalesce(v_about[v_item.at]::integer[], '{}') loop
          v_came[v_limit] := v_came[v_limit] + 1;
        end loop;
        if v_ticket is null then
          v_joined[v_item.at] := v_joined[v_item.at] + 1;
        else
          -- Its old place: before the consumed mark among what has returned, or where the line has not come to yet.
          select g.* into strict v_state from pgfifo.ledger g where g.lane_id = v_item.lane_id order by g.lane_id desc, g.version desc limit 1;
          if v_ticket <= v_state.consumed then
            insert into pgfifo.runs (id, lane_id, ticket, state, attempt, joined_no, is_strict)
            values (v_new, v_item.lane_id, v_ticket, 'returned', 0, v_state.starts, false);
          end if;
          perform pgfifo._append(v_item.lane_id, p_enqueued => 1, p_waiting => 1, p_returned => (v_ticket <= v_state.consumed)::integer,
            p_returned_from => case when v_ticket <= v_state.consumed then v_ticket end);
          v_returned[v_item.at] := v_returned[v_item.at] + 1;
        end if;
      end if;
    end if;
    return next;
  end loop;

  for v_nth in 1 .. coalesce(cardinality(v_targets), 0) loop
    if v_came[v_nth] > 0 then
      perform pgfifo._keep_tally(case when v_quotas[v_nth] is null then 'length ' else 'quota ' end || v_targets[v_nth], v_befores[v_nth],
        v_counts[v_nth] + v_came[v_nth], v_sinces[v_nth], v_lane_counts[v_nth]);
    end if;
  end loop;
  perform pg_current_xact_id();
  insert into pgfifo.arrivals (lane_id, id, n, total)
  select l.id, nextval('pgfifo.mark_ids'), l.n, l.total + l.n from unnest(v_lanes, v_joined, v_totals) l(id, n, total) where l.n > 0;
  insert into pgfifo.marks (action_id, id, lane_id)
  select l.action_id, nextval('pgfifo.mark_ids'), l.id from unnest(v_lanes, v_actions, v_joined, v_returned) l(id, action_id, n, m) where l.n + l.m > 0;
  perform pgfifo._wake(a.id, a.name) from pgfifo.actions a where a.id = any (v_actions);
end $$;

-- Raise what an enqueue would: why an execution of this lane was not put back just now, in the same transaction.
create or replace function pgfifo._refuse_retry(p_lane_id bigint, p_answer text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lane record;
  v_length bigint;
begin
  select l.id, l.group_text, p.action_id, p.action, p.pack, coalesce(lp.max_queue_length, p.max_queue_length) as most, p.max_action_queue_length,
      p.everything_quota, p.pack_quota, p.action_quota, lp.quota as lane_quota
    into strict v_lane
  from pgfifo.lanes l join pgfifo._action_policies p on p.action_id = l.action_id left join pgfifo._lane_policies lp on lp.lane_id = l.id
  where l.id = p_lane_id;
  if p_answer = 'full' then
    v_length := (pgfifo._length(p_lane_id)).o_length;
    if v_length >= v_lane.most then
      perform pgfifo._queue_full(v_lane.action, v_lane.group_text, v_lane.most, v_length, 1, null);
    end if;
    perform pgfifo._use_length(v_lane.action_id, v_lane.action, v_lane.max_action_queue_length, 1, null, null, true);
  elsif p_answer = 'limit' then
    perform pgfifo._refuse_start(v_lane.action, v_lane.group_text, (pgfifo._could_start(v_lane.action_id, p_lane_id)).o_why, null);
  else
    perform pgfifo._use_quota(q.target, q.quota, 1, v_lane.action, case when q.n = 4 then v_lane.group_text end, null, true)
    from (values (1, 'everything', v_lane.everything_quota), (2, 'pack:' || v_lane.pack, v_lane.pack_quota),
      (3, 'action:' || v_lane.action_id, v_lane.action_quota), (4, 'lane:' || p_lane_id, v_lane.lane_quota)) q(n, target, quota)
    where q.quota[1] <> 'infinity';
  end if;
  -- The clock has just come to another period, or something that waited has expired.
  raise exception using errcode = 'QF023', message = format('the limits of %s have just changed', v_lane.action),
    detail = json_build_object('lane_id', p_lane_id)::text, hint = 'Try again.';
end $$;

-- One line of the audit for each that was put back.
create or replace function pgfifo._audit_retries(p_ids bigint[], p_retries bigint[], p_head boolean) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pgfifo._audit('retry', null, r.retry_id, jsonb_strip_nulls(jsonb_build_object('id', r.id, 'retry', r.retry_id, 'head', case when p_head then true end)))
  from unnest(p_ids, p_retries) r(id, retry_id);
end $$;
