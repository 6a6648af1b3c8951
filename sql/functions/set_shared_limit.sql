-- Set a shared limit: its numbers and who draws from it. Only what is named changes; null takes a number away.
-- Locks, to the commit: the policy lock of everything, exclusive, so that no claim is in flight that reads who draws; then the
-- limit's own. Whoever waits for it and may go on now is called here, under that lock.
create or replace function pgfifo.set_shared_limit(p_name text, p_values jsonb)
returns table (attribute text, old jsonb, new jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz;
  v_id integer;
  v_old jsonb;
  v_new jsonb;
  v_rate double precision[];
begin
  perform pgfifo._require_read_committed('set_shared_limit');
  perform pgfifo._check_shared_limit(p_name, p_values);
  if not pgfifo._lock('pgfifo.policies'::regclass, 0, interval '5 s') then
    perform pgfifo._busy('another transaction is changing limits; gave up after 5 s', 'pgfifo.policies'::regclass, 0);
  end if;
  -- Law 1: from here on no claim is in flight, and nobody else changes limits.
  v_now := pgfifo._now();
  select s.id into v_id from pgfifo._shared_limits s where s.name = p_name;
  if v_id is null then
    v_rate := pgfifo._rate(p_values ->> 'rate');
    if nullif(p_values -> 'max_concurrent', 'null') is null and v_rate is null then
      raise exception using errcode = 'QF022', message = format('shared limit %s needs max_concurrent, a rate, or both', p_name),
        detail = json_build_object('name', 'p_values', 'value', p_values)::text, hint = 'Give {"max_concurrent": 20} or {"rate": "100/s"}.';
    end if;
    v_old := '{}';
    insert into pgfifo._shared_limits (name, max_concurrent, rate, burst)
    values (p_name, (p_values ->> 'max_concurrent')::integer, v_rate, (p_values ->> 'burst')::integer) returning id into v_id;
    insert into pgfifo.shared_ledger (limit_id, version, changed_at) values (v_id, 0, v_now);
  else
    v_old := pgfifo._shared_limit(v_id);
  end if;
  if not pgfifo._lock('pgfifo._shared_limits'::regclass, v_id, interval '5 s') then
    perform pgfifo._busy(format('another transaction has shared limit %s; gave up after 5 s', p_name), 'pgfifo._shared_limits'::regclass, v_id);
  end if;
  begin
    update pgfifo._shared_limits s set changed_at = v_now,
      max_concurrent = case when p_values ? 'max_concurrent' then (p_values ->> 'max_concurrent')::integer else s.max_concurrent end,
      rate = case when p_values ? 'rate' then pgfifo._rate(p_values ->> 'rate') else s.rate end,
      burst = case when p_values ? 'burst' then (p_values ->> 'burst')::integer else s.burst end
    where s.id = v_id;
  exception when check_violation then
    raise exception using errcode = 'QF022', message = format('shared limit %s would limit nothing', p_name),
      detail = json_build_object('name', 'p_values', 'value', p_values)::text, hint = 'Keep max_concurrent or a rate, or call pgfifo.drop_shared_limit.';
  end;
  if p_values ? 'actions' then
    delete from pgfifo.shared_draws d where d.limit_id = v_id and d.scope = 'action';
    insert into pgfifo.shared_draws (limit_id, scope, action_id)
    select distinct v_id, 'action', pgfifo._known_action(a.a) from jsonb_array_elements_text(p_values -> 'actions') a(a);
  end if;
  if p_values ? 'packs' then
    delete from pgfifo.shared_draws d where d.limit_id = v_id and d.scope = 'pack';
    insert into pgfifo.shared_draws (limit_id, scope, pack)
    select distinct v_id, 'pack', pgfifo._pack(a.a) from jsonb_array_elements_text(p_values -> 'packs') a(a);
  end if;
  if p_values ? 'everything' then
    delete from pgfifo.shared_draws d where d.limit_id = v_id and d.scope = 'everything';
    insert into pgfifo.shared_draws (limit_id, scope) select v_id, 'everything' where (p_values ->> 'everything')::boolean;
  end if;
  perform pgfifo._shared_fold(v_id, null);
  -- Lanes that waited for it and draw from it no more have nobody to call them.
  perform pg_current_xact_id();
  with gone as (
    delete from pgfifo.shared_waits w where w.limit_id = v_id and v_id <> all (pgfifo._draws(w.action_id)) returning w.lane_id, w.action_id, w.id)
  insert into pgfifo.marks (action_id, id, lane_id) select g.action_id, nextval('pgfifo.mark_ids'), g.lane_id from gone g;
  -- Where it is a matter of time, the time may have come nearer.
  update pgfifo.shared_waits w set called_at = null where w.limit_id = v_id and w.called_at > v_now;
  perform pgfifo._call_waiting(v_id, v_now);
  perform pgfifo._wake(a.id, a.name) from pgfifo.actions a where v_id = any (pgfifo._draws(a.id));
  v_new := pgfifo._shared_limit(v_id);
  perform pgfifo._audit('set_shared_limit', null, null, jsonb_build_object('name', p_name, 'from', v_old, 'to', v_new));
  return query
    select k.key, v_old -> k.key, v_new -> k.key from jsonb_object_keys(p_values) k(key) order by k.key collate "C";
end $$;
comment on function pgfifo.set_shared_limit is 'Set a limit that several actions draw from; returns what changed.';
