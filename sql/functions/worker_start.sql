-- Register a worker. Its id is never used again. p_locked: the calling session also takes the worker's liveness lock and
-- keeps it; when that session is gone, so is the worker, a short grace later. Not through a transaction pooler.
-- p_kind 'slot': it claims nothing, so it has no actions; it holds slots and waits for them, see slot_enter.
create or replace function pgfifo.worker_start(
  p_name text,
  p_host text,
  p_pid integer,
  p_actions text[],
  p_concurrency integer,
  p_lease interval default '30 s',
  p_locked boolean default true,
  p_kind text default 'worker'
) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_id bigint;
begin
  -- A registration that a crash forgets would give its id to another process, and both would answer to it.
  perform pgfifo._durable();
  perform pgfifo._known_action(a) from unnest(p_actions) a;
  if p_kind is null or p_kind not in ('worker', 'slot') then
    raise exception using errcode = 'QF022', message = format('p_kind is worker or slot, not %s', coalesce(quote_literal(p_kind), 'null')),
      detail = json_build_object('name', 'p_kind', 'value', p_kind)::text;
  end if;
  if (coalesce(cardinality(p_actions), 0) = 0) <> (p_kind = 'slot') or p_concurrency is null or p_concurrency < 1 or p_lease is null
    or p_lease < interval '1 s' or p_lease > interval '1 day' then
    raise exception using errcode = 'QF022',
      message = 'a worker needs at least one action (one of kind slot none), a concurrency of 1 or more and a lease from 1 s to 1 day',
      detail = json_build_object('actions', p_actions, 'concurrency', p_concurrency, 'lease', p_lease)::text;
  end if;
  if current_setting('pgfifo.home', true) is distinct from 'pgfifo._home'::regclass::oid::text then
    perform pgfifo._come_home();
  end if;
  insert into pgfifo._workers (kind, name, role, host, pid, actions, concurrency, lease, locked, locked_on, started_at, last_seen, epoch, seen_tick)
  select p_kind, coalesce(p_name, ''), pgfifo._caller(), coalesce(p_host, ''), coalesce(p_pid, 0), coalesce(p_actions, '{}'), p_concurrency, p_lease, p_locked,
    case when p_locked then pg_postmaster_start_time() end, pgfifo._now(), pgfifo._now(), (select i.epoch from pgfifo.installation i), max(t.tick)
  from pgfifo.ticks t
  returning id into strict v_id;
  if p_locked then
    perform pg_advisory_lock('pgfifo._workers'::regclass::oid::integer, pgfifo._key(v_id));
  end if;
  return v_id;
end $$;
comment on function pgfifo.worker_start is 'Register a worker process; returns its id.';
