-- What the keys of an enqueue mean, each settled in a function that says which id an item gets. Keys have 1 to 1,024 bytes; the first that has not is named.
create or replace function pgfifo._check_keys(p_name text, p_keys text[], p_one boolean) returns void
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_bad record;
begin
  select k.key, k.n into v_bad from unnest(p_keys) with ordinality k(key, n) where octet_length(k.key) not between 1 and 1024 order by k.n limit 1;
  if found then
    raise exception using errcode = 'QF022',
      message = format('a %s has 1 to 1024 bytes, and this one %s', p_name, octet_length(v_bad.key)),
      detail = json_build_object('name', p_name, 'value', left(v_bad.key, 100), 'index', case when not p_one then v_bad.n - 1 end)::text,
      hint = 'Give a short text that means this one thing, such as an id of your own; or null for none.';
  end if;
end $$;

-- The group of an execution, finished ones included; null when its retention is over.
create or replace function pgfifo._group_of(p_id bigint) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    (select l.group_text from pgfifo._executions e join pgfifo.lanes l on l.id = e.lane_id where e.id = p_id),
    (select h.group_text from pgfifo.history h where h.id = p_id limit 1))
$$;

-- The execution that answers for each request, as far as this snapshot knows; null where it knows none.
create or replace function pgfifo._known_requests(p_action_id integer, p_request_ids text[]) returns bigint[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(q.id order by i.n)
  from unnest(p_request_ids) with ordinality i(request_id, n)
  left join lateral (select q.id from pgfifo.requests q where q.action_id = p_action_id and q.request_id = i.request_id offset 0) q on true
$$;

-- Which id each item gets: its own (drawn for it) where it has no request_id or is the first with it, else that of the first.
-- The primary key decides. An insert that meets one in flight waits for its end, and either finds it or takes its place;
-- what it found is read in the next statement, and is not there only if it has been forgotten in between. In the order
-- of the keys, so that two batches with the same ones wait in one direction. At REPEATABLE READ one that has committed
-- since is 40001. Dies here: nothing is left; the request may be made again.
create or replace function pgfifo._settle_requests(p_action_id integer, p_request_ids text[], p_drawn bigint[], p_now timestamptz) returns bigint[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids bigint[];
begin
  loop
    insert into pgfifo.requests (action_id, request_id, id, created_at)
    select p_action_id, i.request_id, min(i.id), p_now
    from unnest(p_request_ids, p_drawn) i(request_id, id) where i.request_id is not null group by i.request_id order by i.request_id collate "C"
    on conflict (action_id, request_id) do nothing;
    v_ids := array(
      select case when i.request_id is null then i.drawn else i.known end
      from unnest(p_request_ids, p_drawn, pgfifo._known_requests(p_action_id, p_request_ids)) with ordinality i(request_id, drawn, known, n) order by i.n);
    exit when array_position(v_ids, null) is null;
  end loop;
  return v_ids;
end $$;

-- The same for dedup_key, unique within the action while the row of its execution is there: delayed, waiting or active. p_ids:
-- what the items have got so far; one that has not its own any more is settled. Looks only: who is in flight is met by the insert.
create or replace function pgfifo._settle_dedups(p_action_id integer, p_dedup_keys text[], p_ids bigint[], p_drawn bigint[]) returns bigint[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select array(
    select case when i.dedup_key is null or i.id <> i.drawn then i.id
           else coalesce(e.id, min(i.drawn) filter (where i.id = i.drawn) over (partition by i.dedup_key)) end
    from unnest(p_dedup_keys, p_ids, p_drawn) with ordinality i(dedup_key, id, drawn, n)
    left join lateral (select e.id from pgfifo._executions e where e.dedup_action_id = p_action_id and e.dedup_key = i.dedup_key offset 0) e on true
    order by i.n)
$$;

-- The same for item_key, unique within the lane among what was never started. What is found stays in its place; its payload
-- stays as it is ('immutable'), becomes the new one ('replace'), or that with the new one laid over it ('merge_patch').
-- The caller holds the lanes' enqueue locks exclusively, so nobody else adds to these keys, and what is there is visible.
-- Whether it has been started is decided under the lanes' slot locks, held to the caller's commit: a claim that came
-- before has committed and is seen; one that comes after starts nothing of these lanes before the new payload has
-- committed. So no start has a payload that was replaced before, and no replacement that was reported came too late. Lanes where
-- nothing waits under these keys are not locked: nothing that was started ever counts as waiting here again.
-- A wait for a slot lock with an enqueue lock in hand: 5 s at most, and no call of ours does it the other way round.
create or replace function pgfifo._settle_items(
  p_action text,
  p_lanes bigint[],
  p_item_keys text[],
  p_on_item text,
  p_payloads jsonb[],
  p_max_payload double precision,
  p_ids bigint[],
  p_drawn bigint[],
  p_one boolean,
  out o_ids bigint[],
  out o_payloads jsonb[]
) returns record
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_found bigint[];
  v_delayed bigint[];
  v_lane_id bigint;
  v_item record;
  v_payload jsonb;
begin
  perform pgfifo._require_read_committed('enqueue (item_key is given)');
  select array_agg(distinct w.lane_id), array_agg(w.id) filter (where w.ticket is null) into v_found, v_delayed
  from unnest(p_lanes, p_item_keys) i(lane_id, item_key) cross join lateral pgfifo._waiting_item(i.lane_id, i.item_key) w;
  -- Of those that have yet to join, the rows first: see _lock_delayed. Nobody lets them join, that takes the enqueue lock.
  if v_delayed is not null and not pgfifo._lock_delayed(v_delayed, interval '5 s') then
    perform pgfifo._busy('an enqueue with an item_key gave up after 5 s: another transaction holds the one that is there', 'pgfifo.lanes'::regclass,
      pgfifo._key(v_found[1]), jsonb_build_object('lanes', v_found, 'ids', v_delayed));
  end if;
  for v_lane_id in select l.id from unnest(v_found) l(id) order by pgfifo._key(l.id) loop
    perform pgfifo._lock_lane(v_lane_id, 'enqueue (item_key is given)');
  end loop;
  -- What has expired is no item any more.
  perform pgfifo._expire_ids(array(select w.id from unnest(p_lanes, p_item_keys) i(lane_id, item_key)
    cross join lateral pgfifo._waiting_item(i.lane_id, i.item_key) w), v_found);
  o_ids := p_ids;
  o_payloads := p_payloads;
  -- Law 1: only what is read from here on counts.
  for v_item in
    select k.*, w.id, w.payload
    from (
      select i.lane_id, i.item_key, array_agg(i.n::integer order by i.n) as at, array_agg(i.payload order by i.n) as payloads, min(i.drawn) as drawn
      from unnest(p_lanes, p_item_keys, p_payloads, p_ids, p_drawn) with ordinality i(lane_id, item_key, payload, id, drawn, n)
      where i.item_key is not null and i.id = i.drawn group by i.lane_id, i.item_key) k
    left join lateral (select w.id, w.payload from pgfifo._waiting_item(k.lane_id, k.item_key) w offset 0) w on true
  loop
    v_payload := v_item.payload;
    for v_nth in 1 .. cardinality(v_item.at) loop
      o_ids[v_item.at[v_nth]] := coalesce(v_item.id, v_item.drawn);
      if p_on_item = 'merge_patch' then
        v_payload := pgfifo._merge_patch(v_payload, v_item.payloads[v_nth]);
        if pg_column_size(v_payload) * 6.0 > p_max_payload then
          perform pgfifo._check_payload(p_action, v_payload, p_max_payload, case when not p_one then v_item.at[v_nth] - 1 end);
        end if;
      elsif p_on_item = 'replace' or v_payload is null then
        v_payload := v_item.payloads[v_nth];
      end if;
    end loop;
    if v_item.id is null then
      o_payloads[v_item.at[1]] := v_payload;
    elsif v_payload is distinct from v_item.payload then
      update pgfifo._executions e set payload = v_payload where e.id = v_item.id;
    end if;
  end loop;
end $$;

-- What waits in a lane under an item_key, or has yet to join, and was never started, not even to be given back.
create or replace function pgfifo._waiting_item(p_lane_id bigint, p_item_key text) returns table (id bigint, lane_id bigint, ticket bigint, payload jsonb)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select e.id, e.lane_id, e.ticket, e.payload from pgfifo._executions e
  where e.lane_id = p_lane_id and e.item_key = p_item_key
    and e.past is null and not exists (select from pgfifo.runs r where r.id = e.id and r.attempt > 0)
  order by e.lane_id desc, e.item_key desc, e.id desc limit 1
$$;

-- RFC 7396: members of the patch are laid over those of the target, null removes one, and what is no object replaces all.
create or replace function pgfifo._merge_patch(p_target jsonb, p_patch jsonb) returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_result jsonb := case when jsonb_typeof(p_target) = 'object' then p_target else '{}' end;
  v_key text;
  v_value jsonb;
begin
  if jsonb_typeof(p_patch) <> 'object' then
    return p_patch;
  end if;
  for v_key, v_value in select m.key, m.value from jsonb_each(p_patch) m loop
    if v_value = 'null' then
      v_result := v_result - v_key;
    else
      v_result := v_result || jsonb_build_object(v_key, pgfifo._merge_patch(v_result -> v_key, v_value));
    end if;
  end loop;
  return v_result;
end $$;

-- Forget requests whose time is over, some thousands at most.
create or replace function pgfifo._forget_requests() returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pgfifo._now();
  v_count integer;
begin
  delete from pgfifo.requests q where q.ctid = any (array(
    select r.ctid from pgfifo._action_policies p
    cross join lateral (
      select r.ctid from pgfifo.requests r
      where r.action_id = p.action_id and r.created_at < v_now - make_interval(secs => greatest(p.retention, 3600))
      order by r.action_id, r.created_at limit 5000) r
    where p.retention < 'infinity'));
  get diagnostics v_count = row_count;
  return v_count;
end $$;
