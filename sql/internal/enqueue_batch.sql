-- Put executions of one action at the ends of their lanes: all or nothing, in input order, set-based. What enqueue_many does,
-- and what _enqueue does where a key or a time is given (p_one: its caller knows of no batch, so errors name no index).
-- The same order of things as in _enqueue: action lock, policy, lanes, enqueue locks in the order of their keys, lanes
-- read again, due delayed ones joined, ids drawn, keys settled, rows, one mark per lane. Errors name the first offending index (from 0) in their detail.
create or replace function pgfifo._enqueue_batch(
  p_action text,
  p_payloads jsonb[],
  p_groups text[],
  p_headers jsonb[],
  p_tags text[],
  p_request_ids text[],
  p_dedup_keys text[],
  p_item_keys text[],
  p_run_ats timestamptz[],
  p_on_item text,
  p_one boolean
) returns table (ordinal integer, id bigint, created boolean, group_text text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_class constant integer := 'pgfifo._executions'::regclass::oid::integer;
  c_index constant integer := case when not p_one then 0 end;
  v_count integer := coalesce(cardinality(p_payloads), 0);
  v_requests boolean := coalesce(array_remove(p_request_ids, null) <> '{}', false);
  v_later boolean := coalesce(array_remove(p_run_ats, null) <> '{}', false);
  v_dedups boolean := coalesce(array_remove(p_dedup_keys, null) <> '{}', false);
  v_items boolean := coalesce(array_remove(p_item_keys, null) <> '{}', false);
  v_keyed boolean := v_requests or v_dedups or v_items or v_later;
  v_action_id integer;
  v_policy record;
  v_snapshot boolean := current_setting('transaction_isolation') not in ('read committed', 'read uncommitted');
  v_strict boolean;
  v_groups text[];
  v_places text[];
  v_lane_groups text[];
  v_lanes bigint[];
  v_counts integer[];
  v_run_ats timestamptz[];
  v_delays integer[];
  v_limits double precision[];
  -- Per lane: whether on_limit is 'cancel', and its own quota.
  v_refuses boolean[];
  v_quotas text[];
  v_totals bigint[];
  v_now timestamptz;
  v_ids bigint[];
  v_drawn bigint[];
  v_settled bigint[];
  v_payloads jsonb[] := p_payloads;
  v_most integer;
  v_expected integer;
  v_inserted bigint;
  v_full record;
  v_row record;
begin
  for v_row in
    select a.name, a.size
    from (values ('p_groups', cardinality(p_groups)), ('p_headers', cardinality(p_headers)), ('p_request_ids', cardinality(p_request_ids)),
      ('p_dedup_keys', cardinality(p_dedup_keys)), ('p_item_keys', cardinality(p_item_keys)), ('p_run_ats', cardinality(p_run_ats))) a(name, size)
    where a.size <> v_count
  loop
    raise exception using errcode = 'QF022',
      message = format('%s has %s elements for %s payloads', v_row.name, v_row.size, v_count),
      detail = json_build_object('name', v_row.name, 'value', v_row.size, 'payloads', v_count)::text,
      hint = 'Give one element per payload, null where there is none, or leave the array out.';
  end loop;
  if v_keyed then
    perform pgfifo._check_keys('request_id', p_request_ids, p_one), pgfifo._check_keys('dedup_key', p_dedup_keys, p_one),
      pgfifo._check_keys('item_key', p_item_keys, p_one);
  end if;
  if coalesce(p_on_item, 'immutable') not in ('immutable', 'replace', 'merge_patch') then
    raise exception using errcode = 'QF022',
      message = format('on_item is immutable, replace or merge_patch, not %s', left(p_on_item, 100)),
      detail = json_build_object('name', 'on_item', 'value', left(p_on_item, 100))::text,
      hint = 'It says what becomes of the payload of one that waits under the same item_key.';
  end if;
  for v_row in
    select i.n - 1 as at from unnest(p_dedup_keys, p_item_keys) with ordinality i(dedup_key, item_key, n)
    where i.dedup_key is not null and i.item_key is not null order by i.n limit 1
  loop
    raise exception using errcode = 'QF022', message = 'dedup_key and item_key exclude each other',
      detail = json_build_object('name', 'item_key', 'index', c_index + v_row.at)::text,
      hint = 'Both say what to do when there is one already: dedup_key in the whole action and until it has ended, item_key in its lane while it waits.';
  end loop;
  perform pgfifo._durable();
  v_action_id := pgfifo._action(p_action, true);
  if v_count = 0 then
    return;
  end if;
  if v_requests then
    -- Made again: the answer is that of the first time, whatever limits and rules have become since.
    v_ids := pgfifo._known_requests(v_action_id, p_request_ids);
    if array_position(v_ids, null) is null then
      return query
        select i.n::integer, i.id, false, coalesce(pgfifo._group_of(i.id), pgfifo._group(p_action, p.group_by, i.payload, i.given))
        from unnest(v_ids, p_payloads, p_groups) with ordinality i(id, payload, given, n)
        join pgfifo._action_policies p on p.action_id = v_action_id order by i.n;
      return;
    end if;
  end if;
  -- An xid before ids are drawn: see events.
  perform pg_current_xact_id();
  perform pg_advisory_xact_lock_shared('pgfifo.actions'::regclass::oid::integer, v_action_id);
  if v_snapshot then
    perform from pgfifo.actions a where a.id = v_action_id for share;
  end if;
  select p.group_by, p.ordering, p.max_queue_length, p.max_payload, p.closed_at, p.pack, p.max_action_queue_length, p.on_limit = 'cancel' as refuses,
      nullif(p.everything_quota[1], 'infinity') is not null as everything_counts, p.everything_quota,
      nullif(p.pack_quota[1], 'infinity') is not null as pack_counts, p.pack_quota, nullif(p.action_quota[1], 'infinity') is not null as action_counts,
      p.action_quota, exists (select from pgfifo.policies l where l.scope = 'lane') or exists (select from pgfifo._overrides) as has_lanes
    into strict v_policy
  from pgfifo._action_policies p where p.action_id = v_action_id;
  if v_policy.closed_at is not null then
    perform pgfifo._refuse_closed(v_action_id, null, c_index);
  end if;
  v_strict := v_policy.ordering = 'strict' or v_snapshot;

  -- Look only for suspects in bulk; the check that raises names the first of them.
  for v_row in
    select i.n - 1 as at, i.payload from unnest(p_payloads) with ordinality i(payload, n)
    where i.payload is null or pg_column_size(i.payload) * 6.0 > v_policy.max_payload order by i.n
  loop
    perform pgfifo._check_payload(p_action, v_row.payload, v_policy.max_payload, c_index + v_row.at::integer);
  end loop;
  if p_groups is null and v_policy.group_by = '{}' and not v_keyed then
    v_lane_groups := array[''];
    v_counts := array[v_count];
  else
    begin
      select array_agg(pgfifo._group(p_action, v_policy.group_by, i.payload, i.given) order by i.n) into v_groups
      from unnest(p_payloads, p_groups) with ordinality i(payload, given, n);
    exception when sqlstate 'QF007' or sqlstate 'QF008' then
      if not p_one then
        perform pgfifo._raise_for_first(p_action, v_policy.group_by, p_payloads, p_groups);
      end if;
      raise;
    end;
    select array_agg(g.grp), array_agg(g.n) into v_lane_groups, v_counts
    from (select grp, count(*)::integer as n from unnest(v_groups) grp group by grp order by grp collate "C") g;
  end if;
  -- Each may be locked twice, where there are items.
  v_most := greatest(1, pgfifo.max_batch_lanes() / (1 + v_items::integer));
  if cardinality(v_lane_groups) > v_most then
    raise exception using errcode = 'QF020',
      message = format('this batch for %s touches %s; at most %s are allowed in one', p_action,
        pgfifo._counted(cardinality(v_lane_groups), 'lane', 'lanes'), pgfifo._number(v_most)),
      detail = json_build_object('action', p_action, 'lanes', cardinality(v_lane_groups), 'limit', v_most)::text,
      hint = 'Split the batch: each lane''s lock is held until the commit, in a table that the whole cluster shares.';
  end if;

  if v_policy.everything_counts or v_policy.pack_counts or v_policy.action_counts or v_policy.max_action_queue_length < 'infinity' then
    perform pgfifo._lock_scopes(v_policy.everything_counts, case when v_policy.pack_counts then v_policy.pack end,
      case when v_policy.action_counts or v_policy.max_action_queue_length < 'infinity' then v_action_id end);
  end if;
  loop
    v_lanes := pgfifo._lanes(v_action_id, v_lane_groups);
    continue when array_position(v_lanes, null) is not null;
    if v_policy.has_lanes then
      select array_agg(coalesce(l.max_queue_length, v_policy.max_queue_length) order by i.n), array_agg(coalesce(l.on_limit = 'cancel', v_policy.refuses) order by i.n),
          array_agg(case when l.quota[1] <> 'infinity' then l.quota::text end order by i.n)
        into v_limits, v_refuses, v_quotas
      from unnest(v_lanes) with ordinality i(lane_id, n) left join pgfifo._lane_policies l on l.lane_id = i.lane_id;
    else
      v_limits := array_fill(v_policy.max_queue_length, array[cardinality(v_lanes)]);
      v_refuses := array_fill(v_policy.refuses, array[cardinality(v_lanes)]);
    end if;
    -- All in one statement: it decides nothing, and what is above a sort comes in its order.
    perform case when s.exclusive then pg_advisory_xact_lock(c_class, s.key) else pg_advisory_xact_lock_shared(c_class, s.key) end
    from (select pgfifo._key(i.lane_id) as key, v_strict or v_items or i.max_length < 'infinity' or i.refuses or i.quota is not null as exclusive
          from unnest(v_lanes, v_limits, v_refuses, v_quotas) i(lane_id, max_length, refuses, quota) order by pgfifo._key(i.lane_id) offset 0) s;
    -- Removed while we waited? See enqueue.
    if v_snapshot then
      perform from pgfifo.lanes l where l.id = any (v_lanes) for share;
    end if;
    select count(*), bool_or(l.closed_at is not null) as closed into v_row from pgfifo.lanes l where l.id = any (v_lanes);
    exit when v_row.count = cardinality(v_lanes);
  end loop;
  if v_row.closed then
    perform pgfifo._refuse_closed(v_action_id, l.id, c_index + coalesce(array_position(v_groups, l.group_text) - 1, 0))
    from pgfifo.lanes l where l.id = any (v_lanes) and l.closed_at is not null
    order by array_position(v_groups, l.group_text) limit 1;
  end if;

  v_now := pgfifo._now();
  if not v_snapshot then
    perform pgfifo._admit(i.lane_id, 100, v_strict or v_items or i.max_length < 'infinity' or i.refuses or i.quota is not null)
    from (
      select i.*
      from unnest(v_lanes, v_limits, v_refuses, v_quotas) i(lane_id, max_length, refuses, quota)
      cross join lateral (select g.delayed_from from pgfifo.ledger g where g.lane_id = i.lane_id order by g.lane_id desc, g.version desc limit 1) g
      -- Lane by lane: without the offset the planner joins all lanes' delayed ones, dead entries included.
      where exists (
        select from pgfifo._executions e where e.lane_id = i.lane_id and e.ticket is null and e.run_at >= g.delayed_from and e.run_at <= v_now offset 0)
      offset 0) i;
    if found then
      v_now := pgfifo._now();  -- not before those ahead of it have joined: see _expire
    end if;
  end if;
  v_places := v_groups;
  v_expected := v_count;
  if v_keyed then
    -- Whose id is not the one that was drawn for it is there already; only the others have a place in a line.
    v_drawn := array(select nextval('pgfifo.execution_ids') from generate_series(1, v_count));
    v_settled := v_drawn;
    if v_requests then
      v_settled := pgfifo._settle_requests(v_action_id, p_request_ids, v_drawn, v_now);
    end if;
    if v_items then
      select s.o_ids, s.o_payloads into v_settled, v_payloads
      from pgfifo._settle_items(p_action,
        array(select l.lane_id from unnest(v_groups) with ordinality g(grp, n) join unnest(v_lane_groups, v_lanes) l(grp, lane_id) on l.grp = g.grp order by g.n),
        p_item_keys, p_on_item, p_payloads, v_policy.max_payload, v_settled, v_drawn, p_one) s;
    end if;
    if v_dedups then
      perform pgfifo._expire_dedups(v_action_id, p_dedup_keys);
    end if;
    v_ids := case when v_dedups then pgfifo._settle_dedups(v_action_id, p_dedup_keys, v_settled, v_drawn) else v_settled end;
    v_places := pgfifo._places(v_groups, v_ids, v_drawn);
    v_expected := cardinality(array_remove(v_places, null));
    if v_later then
      -- An xid before the time is read by which they are called delayed: safe timers rely on that, see _scan_from. What is
      -- not in the future joins now; and wherever the clock has gone, no time is below the bound from which they are read.
      perform pg_current_xact_id();
      v_now := pgfifo._now();
      select array_agg(case when i.run_at > v_now then greatest(i.run_at, g.delayed_from) end order by i.n) into v_run_ats
      from unnest(p_run_ats, v_places) with ordinality i(run_at, grp, n)
      left join unnest(v_lane_groups, v_lanes) l(grp, lane_id) on l.grp = i.grp
      left join lateral (select g.delayed_from from pgfifo.ledger g where g.lane_id = l.lane_id order by g.lane_id desc, g.version desc limit 1) g on true;
    end if;
    select c.o_now, c.o_later into v_counts, v_delays from pgfifo._counts(v_lane_groups, v_places, v_run_ats) c;
  end if;

  -- Only what waits counts, so delayed ones are let in; and in time they join, however long the line is then.
  if exists (select from unnest(v_limits, v_counts) l(most, n) where l.most < 'infinity' and not (v_snapshot and l.n = 0)) then
    if v_snapshot then
      perform pgfifo._require_read_committed('enqueue (max_queue_length is set)');
    end if;
    select array_agg(case when i.max_length < 'infinity' then c.o_total + i.asked end order by i.n) into v_totals
    from unnest(v_lanes, v_limits, v_counts) with ordinality i(lane_id, max_length, asked, n)
    left join lateral pgfifo._length(i.lane_id) c on i.max_length < 'infinity';
    -- The first item that does not fit: the one after the places that are left in its lane.
    select i.grp, i.max_length, i.asked, c.o_length as current,
        pgfifo._nth_place(v_places, v_run_ats, i.grp, true, greatest(0, i.max_length - c.o_length)::bigint + 1) as at
      into v_full
    from unnest(v_lanes, v_lane_groups, v_limits, v_counts) i(lane_id, grp, max_length, asked)
    cross join lateral pgfifo._length(i.lane_id) c
    where i.asked > 0 and i.max_length < 'infinity' and c.o_length + i.asked > i.max_length
    order by 5 limit 1;
    if found then
      perform pgfifo._queue_full(p_action, v_full.grp, v_full.max_length, v_full.current, v_full.asked, c_index + v_full.at);
    end if;
  end if;
  if true = any (v_refuses) then
    if v_snapshot then
      perform pgfifo._require_read_committed('enqueue (on_limit is cancel)');
    end if;
    select i.grp, c.o_why, pgfifo._nth_place(v_places, v_run_ats, i.grp, true, c.o_free + 1) as at into v_full
    from unnest(v_lanes, v_lane_groups, v_refuses, v_counts) i(lane_id, grp, refuses, asked)
    cross join lateral pgfifo._could_start(v_action_id, i.lane_id) c
    where i.refuses and i.asked > c.o_free order by at limit 1;
    if found then
      perform pgfifo._refuse_start(p_action, v_full.grp, v_full.o_why, c_index + v_full.at);
    end if;
  end if;
  if v_policy.max_action_queue_length < 'infinity' and v_expected > 0 then
    perform pgfifo._use_length(v_action_id, p_action, v_policy.max_action_queue_length, (select sum(n) from unnest(v_counts) n), v_places, v_run_ats, p_one);
  end if;
  if v_quotas is not null then
    perform pgfifo._use_quota('lane:' || i.lane_id, i.quota::text[], a.asked, p_action, i.grp, v_places, p_one)
    from unnest(v_lanes, v_lane_groups, v_quotas, v_counts, v_delays) i(lane_id, grp, quota, now, later)
    cross join lateral (select i.now + coalesce(i.later, 0) as asked) a where i.quota is not null and a.asked > 0;
  end if;
  if v_expected > 0 then
    if v_policy.action_counts then
      perform pgfifo._use_quota('action:' || v_action_id, v_policy.action_quota, v_expected, p_action, null, v_places, p_one);
    end if;
    if v_policy.pack_counts then
      perform pgfifo._use_quota('pack:' || v_policy.pack, v_policy.pack_quota, v_expected, p_action, null, v_places, p_one);
    end if;
    if v_policy.everything_counts then
      perform pgfifo._use_quota('everything', v_policy.everything_quota, v_expected, p_action, null, v_places, p_one);
    end if;
  end if;

  if not v_keyed then
    v_ids := array(select nextval('pgfifo.execution_ids') from generate_series(1, v_count));
  end if;
  if v_groups is null then
    insert into pgfifo._executions (id, lane_id, ticket, enqueued_at, payload, headers, tags)
    select i.id, v_lanes[1], i.id, v_now, i.payload, i.headers, p_tags
    from unnest(v_ids, p_payloads, p_headers) i(id, payload, headers);
    get diagnostics v_inserted = row_count;
  elsif v_keyed then
    -- An insert that meets the same dedup_key in flight waits for its end, and loses to it or not; who has lost settles
    -- again, in a statement that sees the winner, or that it has ended meanwhile. Keys are taken in their order only, or two
    -- batches could wait for each other: so one that holds others already undoes all of its own and begins anew.
    loop
      if v_dedups and v_count > 1 then
        begin
          v_inserted := pgfifo._insert_keyed(v_action_id, v_lane_groups, v_lanes, v_places, v_ids, v_now, v_payloads, p_headers, p_tags, p_request_ids,
            p_dedup_keys, p_item_keys, v_run_ats);
          if v_inserted < v_expected then
            raise sqlstate 'QF000';
          end if;
        exception when sqlstate 'QF000' then
          v_inserted := 0;
        end;
      else
        v_inserted := pgfifo._insert_keyed(v_action_id, v_lane_groups, v_lanes, v_places, v_ids, v_now, v_payloads, p_headers, p_tags, p_request_ids,
          p_dedup_keys, p_item_keys, v_run_ats);
      end if;
      exit when v_inserted = v_expected or not v_dedups;
      v_ids := pgfifo._settle_dedups(v_action_id, p_dedup_keys, v_settled, v_drawn);
      v_places := pgfifo._places(v_groups, v_ids, v_drawn);
      v_expected := cardinality(array_remove(v_places, null));
      select c.o_now, c.o_later into v_counts, v_delays from pgfifo._counts(v_lane_groups, v_places, v_run_ats) c;
    end loop;
    if v_requests and (v_dedups or v_items) then
      -- A request whose first enqueue has found another answers with that one.
      v_ids := array(select coalesce(f.id, i.id) from unnest(v_ids) with ordinality i(id, n) left join unnest(v_drawn, v_ids) f(drawn, id) on f.drawn = i.id order by i.n);
      update pgfifo.requests q set id = i.id from unnest(p_request_ids, v_ids, v_drawn) i(request_id, id, drawn)
      where i.id <> i.drawn and q.action_id = v_action_id and q.request_id = i.request_id and q.id = i.drawn;
    end if;
  else
    insert into pgfifo._executions (id, lane_id, ticket, enqueued_at, payload, headers, tags)
    select i.id, l.lane_id, i.id, v_now, i.payload, i.headers, p_tags
    from unnest(v_ids, p_payloads, p_headers, v_groups) i(id, payload, headers, grp)
    join unnest(v_lane_groups, v_lanes) l(grp, lane_id) on l.grp = i.grp;
    get diagnostics v_inserted = row_count;
  end if;
  if v_inserted <> v_expected then
    raise exception using errcode = 'XX000', message = format('enqueue_many wrote %s of %s rows', v_inserted, v_expected);
  end if;
  with arrived as (
    insert into pgfifo.arrivals (lane_id, id, n, delayed, first_ticket, total)
    select l.lane_id, nextval('pgfifo.mark_ids'), l.n, coalesce(l.delayed, 0), case when not v_strict and l.n > 0 then coalesce(v_drawn[1], v_ids[1]) end, l.total
    from unnest(v_lanes, v_counts, v_delays, v_totals) l(lane_id, n, delayed, total) where l.n + coalesce(l.delayed, 0) > 0
    returning lane_id, id, n)
  insert into pgfifo.marks (action_id, id, lane_id) select v_action_id, a.id, a.lane_id from arrived a where a.n > 0;
  if v_later then
    perform pgfifo._timer(d.lane_id, d.run_at)
    from (select distinct l.lane_id, i.run_at from unnest(v_run_ats, v_places) i(run_at, grp) join unnest(v_lane_groups, v_lanes) l(grp, lane_id) on l.grp = i.grp
          where i.run_at is not null) d;
  end if;
  if v_expected > 0 then
    perform pgfifo._wake(v_action_id, p_action);
  end if;
  if v_keyed then
    return query
      select i.n::integer, i.id, i.id = i.drawn, case when i.id = i.drawn then i.grp else coalesce(pgfifo._group_of(i.id), i.grp) end
      from unnest(v_ids, v_drawn, v_groups) with ordinality i(id, drawn, grp, n) order by i.n;
  else
    return query select i.n::integer, i.id, true, coalesce(i.grp, '') from unnest(v_ids, v_groups) with ordinality i(id, grp, n);
  end if;
end $$;

-- Insert the content of those that have a place; of two with one dedup_key, one. Returns how many there were.
create or replace function pgfifo._insert_keyed(p_action_id integer, p_lane_groups text[], p_lanes bigint[], p_places text[], p_ids bigint[], p_now timestamptz,
  p_payloads jsonb[], p_headers jsonb[], p_tags text[], p_request_ids text[], p_dedup_keys text[], p_item_keys text[], p_run_ats timestamptz[]) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_inserted integer;
begin
  insert into pgfifo._executions (id, lane_id, ticket, enqueued_at, payload, headers, tags, request_id, dedup_action_id, dedup_key, item_key, run_at)
  select i.id, l.lane_id, case when i.run_at is null then i.id end, p_now, i.payload, i.headers, p_tags, i.request_id,
    case when i.dedup_key is not null then p_action_id end, i.dedup_key, i.item_key, i.run_at
  from unnest(p_ids, p_payloads, p_headers, p_places, p_request_ids, p_dedup_keys, p_item_keys, p_run_ats)
    i(id, payload, headers, grp, request_id, dedup_key, item_key, run_at)
  join unnest(p_lane_groups, p_lanes) l(grp, lane_id) on l.grp = i.grp
  order by i.dedup_key collate "C", i.id
  on conflict (dedup_action_id, dedup_key) where dedup_key is not null do nothing;
  get diagnostics v_inserted = row_count;
  return v_inserted;
end $$;

-- The group of each item that is new, null for the others.
create or replace function pgfifo._places(p_groups text[], p_ids bigint[], p_drawn bigint[]) returns text[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(case when i.id = i.drawn then i.grp end order by i.n) from unnest(p_groups, p_ids, p_drawn) with ordinality i(grp, id, drawn, n)
$$;

-- How many of the places are in each of the groups, and how many of them join now and later.
create or replace function pgfifo._counts(p_groups text[], p_places text[], p_run_ats timestamptz[], out o_now integer[], out o_later integer[]) returns record
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(coalesce(p.now, 0) order by g.n), array_agg(coalesce(p.later, 0) order by g.n)
  from unnest(p_groups) with ordinality g(grp, n)
  left join (
    select i.grp, count(*) filter (where i.run_at is null)::integer as now, count(i.run_at)::integer as later
    from unnest(p_places, p_run_ats) i(grp, run_at) group by i.grp) p on p.grp = g.grp
$$;

-- Raise the error of the first item whose group is refused, with its index.
create or replace function pgfifo._raise_for_first(p_action text, p_group_by text[], p_payloads jsonb[], p_groups text[]) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_message text;
  v_detail text;
  v_hint text;
  v_code text;
begin
  for v_index in 1 .. cardinality(p_payloads) loop
    begin
      perform pgfifo._group(p_action, p_group_by, p_payloads[v_index], p_groups[v_index]);
    exception when sqlstate 'QF007' or sqlstate 'QF008' then
      get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail, v_hint = pg_exception_hint, v_code = returned_sqlstate;
      raise exception using errcode = v_code, message = format('item %s: %s', v_index - 1, v_message),
        detail = (v_detail::jsonb || jsonb_build_object('index', v_index - 1))::text, hint = v_hint;
    end;
  end loop;
end $$;
