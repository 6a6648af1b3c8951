-- Put finished executions back: each becomes a new one of the same lane, with its content, retry_of and no attempts yet.
-- p_head: with the old ticket, so in its old place, before all younger ones that wait; else at the end of the line. In the
-- order of p_ids. One that never had a ticket joins at the end in any case.
-- The old outcome stays. Keys (request_id, dedup_key, item_key) are not taken along. At the end of a line max_queue_length
-- holds, as for an enqueue; an old place is not asked for.
-- Locks: the actions shared, as every enqueue; then the enqueue locks of all lanes, exclusive, and for p_head after them
-- their slot locks, each in the order of keys, until p_until; what cannot be had is 'busy'. Whoever puts back the same
-- execution at the same time meets us at its lane's enqueue lock; then look (law 1).
-- Answers: 'retried' with the new id; the state of what is not finished; 'again' with the id of a retry that is not
-- finished; 'full'; 'closed'; 'taken' (another one has the old ticket); 'slot' (it stood for a slot that a program held);
-- 'busy'; 'unknown'.
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
  for v_lane in select l.id, l.n from unnest(v_lanes) with ordinality l(id, n) where l.id is not null order by pgfifo._key(l.id) loop
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
      array_agg(m.most - c.o_length order by l.n), array_agg(c.o_total order by l.n), array_agg(0 order by l.n), array_agg(0 order by l.n)
    into v_had, v_closed, v_rooms, v_totals, v_joined, v_returned
  from unnest(v_lanes, v_had, v_actions) with ordinality l(id, had, action_id, n)
  join pgfifo._action_policies a on a.action_id = l.action_id
  left join pgfifo.lanes x on x.id = l.id
  left join pgfifo._lane_policies p on p.lane_id = l.id
  cross join lateral (select coalesce(p.max_queue_length, a.max_queue_length) as most) m
  left join lateral pgfifo._length(l.id) c on m.most < 'infinity';

  for v_item in
    select i.id, h.ticket, h.owner, l.n as at, l.id as lane_id, e.state
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
      answer := 'unknown';
    elsif not v_had[v_item.at] then
      answer := 'busy';
    elsif v_closed[v_item.at] then
      answer := 'closed';
    else
      v_ticket := case when p_head then v_item.ticket end;
      select e.id into retry_id from pgfifo._executions e where e.retry_of = v_item.id limit 1;
      if found then
        answer := 'again';
      elsif v_ticket is not null and exists (select from pgfifo._executions e where e.lane_id = v_item.lane_id and e.ticket = v_ticket) then
        answer := 'taken';
      elsif v_ticket is null and v_joined[v_item.at] >= v_rooms[v_item.at] then
        answer := 'full';
      else
        answer := 'retried';
        insert into pgfifo._executions (id, lane_id, ticket, enqueued_at, payload, headers, tags, retry_of)
        select n.id, v_item.lane_id, coalesce(v_ticket, n.id), v_now, h.payload, h.headers, h.tags, h.id
        from (select nextval('pgfifo.execution_ids') as id) n, (select h.* from pgfifo.history h where h.id = v_item.id limit 1) h
        returning id into strict v_new;
        retry_id := v_new;
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

  perform pg_current_xact_id();
  insert into pgfifo.arrivals (lane_id, id, n, total)
  select l.id, nextval('pgfifo.mark_ids'), l.n, l.total + l.n from unnest(v_lanes, v_joined, v_totals) l(id, n, total) where l.n > 0;
  insert into pgfifo.marks (action_id, id, lane_id)
  select l.action_id, nextval('pgfifo.mark_ids'), l.id from unnest(v_lanes, v_actions, v_joined, v_returned) l(id, action_id, n, m) where l.n + l.m > 0;
  perform pgfifo._wake(a.id, a.name) from pgfifo.actions a where a.id = any (v_actions);
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
