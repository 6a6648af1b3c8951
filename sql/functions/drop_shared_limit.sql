-- Take a shared limit away. Locks as with set_shared_limit; the lanes that waited for it are marked. What runs and had drawn
-- from it gives nothing back: there is nothing any more to give to.
create or replace function pgfifo.drop_shared_limit(p_name text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_id integer;
  v_old jsonb;
  v_nearest text;
begin
  perform pgfifo._require_read_committed('drop_shared_limit');
  if not pgfifo._lock('pgfifo.policies'::regclass, 0, interval '5 s') then
    perform pgfifo._busy('another transaction is changing limits; gave up after 5 s', 'pgfifo.policies'::regclass, 0);
  end if;
  select s.id into v_id from pgfifo._shared_limits s where s.name = p_name;
  if v_id is null then
    select s.name into v_nearest from pgfifo._shared_limits s
    where pgfifo._distance(lower(left(s.name, 100)), lower(left(p_name, 100))) <= greatest(2, least(char_length(p_name), 100) / 3)
    order by pgfifo._distance(lower(left(s.name, 100)), lower(left(p_name, 100))), s.name limit 1;
    raise exception using errcode = 'QF022', message = format('there is no shared limit %s', coalesce(quote_literal(left(p_name, 100)), 'null')),
      detail = json_build_object('name', 'p_name', 'value', left(p_name, 200), 'nearest', v_nearest)::text,
      hint = coalesce('Did you mean ' || quote_literal(v_nearest) || '?',
        'There are: ' || (select string_agg(s.name, ', ' order by s.name) from pgfifo._shared_limits s) || '.', 'There are none.');
  end if;
  v_old := pgfifo._shared_limit(v_id);
  perform pg_current_xact_id();
  with gone as (
    delete from pgfifo.shared_waits w where w.limit_id = v_id returning w.lane_id, w.action_id)
  insert into pgfifo.marks (action_id, id, lane_id) select g.action_id, nextval('pgfifo.mark_ids'), g.lane_id from gone g;
  perform pgfifo._wake(a.id, a.name) from pgfifo.actions a where v_id = any (pgfifo._draws(a.id));
  delete from pgfifo.shared_returns r where r.limit_id = v_id;
  delete from pgfifo.shared_ledger g where g.limit_id = v_id;
  delete from pgfifo.shared_draws d where d.limit_id = v_id;
  delete from pgfifo._shared_limits s where s.id = v_id;
  perform pgfifo._audit('drop_shared_limit', null, null, jsonb_build_object('name', p_name, 'from', v_old));
end $$;
comment on function pgfifo.drop_shared_limit is 'Take a shared limit away; what waited for it goes on.';
