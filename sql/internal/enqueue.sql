-- Put one execution at the end of its lane: what enqueue and enqueue_one do. Returns its id, whether it is new, its group.
-- Touches: lanes (insert when new), executions, arrivals, marks; never the ledger, which would hold up claims until the commit.
-- The order is made here: in a strict lane the enqueue lock is taken before the id is drawn and held to the commit, so
-- ids are in commit order within the lane. Nothing between the lock and the insert may be moved before the lock.
-- Delayed ones that are due join first, by the hand of whoever has that lock: a claim that only tries would never get it
-- where producers never pause.
-- This is the short way for what most enqueues are. One with a key or a time goes the way of batches, as a batch of one.
create or replace function pgfifo._enqueue(
  p_action text,
  p_payload jsonb,
  p_group text,
  p_headers jsonb,
  p_tags text[],
  p_request_id text,
  p_dedup_key text,
  p_item_key text,
  p_run_at timestamptz,
  p_delay interval,
  p_on_item text,
  out o_id bigint,
  out o_created boolean,
  out o_group text
) returns record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c_class constant integer := 'pgfifo._executions'::regclass::oid::integer;
  v_long boolean := p_request_id is not null or p_dedup_key is not null or p_item_key is not null or p_run_at is not null or p_delay is not null
    or p_on_item is distinct from 'immutable';
  v_action_id integer;
  v_policy record;
  v_max_length double precision;
  v_closed_at timestamptz;
  v_lane_id bigint;
  v_exclusive boolean;
  v_strict boolean;
  v_snapshot boolean := current_setting('transaction_isolation') not in ('read committed', 'read uncommitted');
  v_length bigint;
  v_total bigint;
  v_now timestamptz;
  v_due boolean;
  v_mark bigint;
  v_xid xid8;
begin
  if not v_long then
    -- Here and below, asked first and called only then: an `if` is evaluated in place, a `perform` is a query.
    if current_setting('synchronous_commit') in ('off') then
      perform pgfifo._durable();
    end if;
    v_action_id := pgfifo._action(p_action, true);
    -- Held to the end of the transaction: while anybody has it, the action's ordering and group_by do not change.
    if not pg_try_advisory_xact_lock_shared('pgfifo.actions'::regclass::oid::integer, v_action_id) then
      perform pg_advisory_xact_lock_shared('pgfifo.actions'::regclass::oid::integer, v_action_id);
    end if;
    -- A snapshot may be older than a close, of the action or (below) of the lane; a row lock sees through that (40001).
    if v_snapshot then
      perform from pgfifo.actions a where a.id = v_action_id for share;
    end if;
    select f.group_by, f.ordering, f.max_queue_length, f.max_payload, f.has_limits, a.closed_at,
        exists (select from pgfifo.policies l where l.scope = 'lane') or exists (select from pgfifo._overrides) as has_lanes
      into v_policy
    from pgfifo._in_force f join pgfifo.actions a on a.id = f.action_id
    where f.action_id = v_action_id and (f.until = 'infinity' or f.until > pgfifo._now());
    if not found then
      select p.group_by, p.ordering, p.max_queue_length, p.max_payload, p.has_limits, p.closed_at, true as has_lanes
        into strict v_policy
      from pgfifo._action_policies p where p.action_id = v_action_id;
    end if;
    if v_policy.closed_at is not null then
      perform pgfifo._refuse_closed(v_action_id, null, null);
    end if;
    if p_payload is null or pg_column_size(p_payload) * 6.0 > v_policy.max_payload then
      perform pgfifo._check_payload(p_action, p_payload, v_policy.max_payload, null);
    end if;
    v_long := v_policy.has_limits;
  end if;
  if not v_long then
    o_group := pgfifo._group(p_action, v_policy.group_by, p_payload, p_group);
    v_strict := v_policy.ordering = 'strict' or v_snapshot;
    loop
      v_lane_id := pgfifo._lane(v_action_id, o_group);
      continue when v_lane_id is null;
      v_max_length := v_policy.max_queue_length;
      if v_policy.has_lanes then
        select coalesce(l.max_queue_length, v_max_length), coalesce(l.on_limit = 'cancel', false) or l.quota is not null into v_max_length, v_long
        from (select 1) o left join pgfifo._lane_policies l on l.lane_id = v_lane_id;
        exit when v_long;
      end if;
      -- A snapshot of its own may be older than the current ordering, so it takes the stronger lock; so does who counts.
      v_exclusive := v_strict or v_max_length < 'infinity';
      if v_exclusive then
        perform pg_advisory_xact_lock(c_class, pgfifo._key(v_lane_id));
      else
        perform pg_advisory_xact_lock_shared(c_class, pgfifo._key(v_lane_id));
      end if;
      -- The lane may have been removed while we waited. Removal holds this lock exclusively, so from here on it cannot be.
      -- An old snapshot would still show it; a row lock sees through that (40001).
      if v_snapshot then
        select l.closed_at into v_closed_at from pgfifo.lanes l where l.id = v_lane_id for share;
        v_now := pgfifo._now();
      else
        v_now := pgfifo._now();
        select l.closed_at, exists (
            select from pgfifo._executions e where e.lane_id = v_lane_id and e.ticket is null and e.run_at <= v_now and e.run_at >=
              (select g.delayed_from from pgfifo.ledger g where g.lane_id = v_lane_id order by g.lane_id desc, g.version desc limit 1))
          into v_closed_at, v_due
        from pgfifo.lanes l where l.id = v_lane_id;
      end if;
      exit when found;
    end loop;
  end if;
  if v_long then
    select b.id, b.created, b.group_text into strict o_id, o_created, o_group
    from pgfifo._enqueue_batch(p_action, array[p_payload], array[p_group], array[p_headers], p_tags, array[p_request_id], array[p_dedup_key],
      array[p_item_key], case when p_run_at is not null or p_delay is not null then array[pgfifo._run_at(p_run_at, p_delay, null)] end,
      p_on_item, true) b;
    return;
  end if;
  if v_closed_at is not null then
    perform pgfifo._refuse_closed(v_action_id, v_lane_id, null);
  end if;
  if v_due then
    perform pgfifo._admit(v_lane_id, 100, v_exclusive);
    v_now := pgfifo._now();  -- not before those ahead of it have joined: see _expire
  end if;
  if v_max_length < 'infinity' then
    if v_snapshot then
      perform pgfifo._require_read_committed('enqueue (max_queue_length is set)');
    end if;
    select l.o_length, l.o_total into v_length, v_total from pgfifo._length(v_lane_id) l;
    if v_length >= v_max_length then
      perform pgfifo._queue_full(p_action, o_group, v_max_length, v_length, 1, null);
    end if;
  end if;
  -- An xid before the id is drawn: see events.
  v_xid := pg_current_xact_id();
  -- Whoever draws a mark id owns an xid before it: a scan that waits for pg_snapshot_xmin relies on that. The row of
  -- executions comes first, so it does.
  insert into pgfifo._executions (id, lane_id, ticket, enqueued_at, payload, headers, tags)
  select n.id, v_lane_id, n.id, v_now, p_payload, p_headers, p_tags
  from (select nextval('pgfifo.execution_ids') as id) n
  returning id into strict o_id;
  insert into pgfifo.arrivals (lane_id, id, n, first_ticket, total)
  values (v_lane_id, nextval('pgfifo.mark_ids'), 1, case when not v_strict then o_id end, v_total + 1)
  returning id into strict v_mark;
  insert into pgfifo.marks (action_id, id, lane_id) values (v_action_id, v_mark, v_lane_id);
  if pgfifo._asleep(v_action_id) then
    perform pg_notify('pgfifo', p_action);
  end if;
  o_created := true;
end $$;
