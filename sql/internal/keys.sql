-- Keys of an enqueue have 1 to 1,024 bytes; the first that has not is named.
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
