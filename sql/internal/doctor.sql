-- What pgfifo.doctor is made of. Sessions, locks and settings are read with the rights of whoever asks, so PostgreSQL itself decides
-- whose queries he may see; only the books are read with the owner's. All of it only reads, and waits for no lock.
-- Each finding: how bad it is, its kind, what it is about, what was found, what that means, and the command that mends it: a line for
-- a shell, or a statement that ends with a semicolon.

-- The name of what an advisory lock of ours is about.
create or replace function pgfifo._doctor_name(p_class oid, p_key bigint) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_class in ('pgfifo._executions'::regclass, 'pgfifo.lanes'::regclass) then coalesce(
      (select string_agg(rtrim(a.name || ' ' || pgfifo.format_group(l.group_text)), ', ') from pgfifo.lanes l join pgfifo.actions a on a.id = l.action_id
       where l.id = p_key or (l.id > 2147483647 and pgfifo._key(l.id) = p_key)), format('a new lane (%s)', p_key))
    when p_class = 'pgfifo.tallies'::regclass and p_key < 0 then 'a pack'
    when p_key = 0 then 'everything'
    else coalesce((select a.name from pgfifo.actions a where a.id = p_key), format('action %s', p_key)) end
$$;

-- Settings of the server that pgfifo's promises, or its operators, depend on; as they are in force in this session.
create or replace function pgfifo._doctor_settings()
returns table (o_severity text, o_kind text, o_subject text, o_detail text, o_meaning text, o_mend text, o_data jsonb)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select s.severity, 'setting', s.name, format('%s is %s.', s.name, current_setting(s.name)), s.meaning,
    -- In one transaction with others, as psql --command makes it of a line, alter system is refused; and hosted servers refuse it always.
    case when s.anew then format('alter system set %s = %s;  -- and then: select pg_reload_conf();', s.name, s.good)
      else format('alter database %I set %s = %s;  -- for sessions to come', current_database(), s.name, s.good) end,
    jsonb_build_object('setting', s.name, 'value', current_setting(s.name))
  from (values
    ('critical', 'fsync', 'off', 'on', true, 'A crash of the machine can damage the whole cluster. No promise of pgfifo''s holds after one.'),
    ('critical', 'full_page_writes', 'off', 'on', true, 'A crash of the machine can damage pages. No promise of pgfifo''s holds after one.'),
    ('warning', 'autovacuum', 'off', 'on', true, 'Nothing removes dead rows, of which a queue makes many: its tables grow without end, and everything becomes slow.'),
    ('warning', 'track_counts', 'off', 'on', false, 'Autovacuum does not learn where dead rows are, and removes none; neither can they be counted here.'),
    ('info', 'track_activities', 'off', 'on', false, 'Nobody can be told who holds something up, since when, and with which query.'),
    ('info', 'synchronous_commit', 'off', 'on', false, 'pgfifo''s own calls raise it for their transactions. What your application commits without any may be lost in a crash.'),
    ('info', 'idle_in_transaction_session_timeout', '0', '''10min''', false, 'A transaction that somebody forgets keeps its locks for ever: other producers of its lanes wait,'
      ' dead rows stay, events are held up.')) s(severity, name, bad, good, anew, meaning)
  where current_setting(s.name) = s.bad
    -- From PostgreSQL 17 on there is another one that ends such a transaction.
    and not (s.name = 'idle_in_transaction_session_timeout' and coalesce(current_setting('transaction_timeout', true), '0') <> '0')
  union all
  select 'warning', 'setting', 'default_transaction_read_only', 'default_transaction_read_only is on.', 'Producers and workers that connect like this can only read.',
    format('alter database %I reset default_transaction_read_only;', current_database()), '{"setting": "default_transaction_read_only", "value": "on"}'
  where current_setting('default_transaction_read_only') = 'on'
  union all
  select case when c.used >= 0.95 * c.room then 'critical' else 'warning' end, 'connections', 'max_connections',
    format('%s of the %s connections that are not reserved are in use', c.used, c.room) || case when c.workers > 0 then format('; %s take up to %s',
      pgfifo._counted(c.workers, 'living worker', 'living workers'), 3 * c.workers) else '' end || '.',
    'When none is left, producers are refused, and workers that lose a connection cannot come back.', 'alter system set max_connections = …;  -- and restart; or a pooler for the producers',
    jsonb_build_object('used', c.used, 'room', c.room, 'workers', c.workers)
  from (
    select (select coalesce(sum(d.numbackends), 0) from pg_stat_database d) as used,
      current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
        - coalesce(current_setting('reserved_connections', true), '0')::integer as room,
      (select count(*) from pgfifo.workers w where w.state = 'alive') as workers) c
  where c.used >= 0.8 * c.room or 3 * c.workers >= c.room
$$;

-- Open transactions that hold locks of ours: enqueue locks and others that producers wait for, slot locks, and those of changes.
-- p_after: how long a transaction must have been open, or somebody must have waited for it. One row for each transaction and class.
create or replace function pgfifo._doctor_locks(p_after interval)
returns table (o_severity text, o_kind text, o_subject text, o_detail text, o_meaning text, o_mend text, o_data jsonb)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with locks as (
    select l.classid, l.objid::bigint as key, l.mode, l.granted, l.pid, l.virtualtransaction, l.waitstart from pg_locks l
    where l.locktype = 'advisory' and l.objsubid = 2 and l.pid is distinct from pg_backend_pid()
      and l.database = (select d.oid from pg_database d where d.datname = current_database())
      and l.classid in ('pgfifo._executions'::regclass, 'pgfifo.tallies'::regclass, 'pgfifo.actions'::regclass, 'pgfifo.lanes'::regclass, 'pgfifo.policies'::regclass)),
  held as (
    select h.classid, h.pid, h.virtualtransaction, count(*) as n, array_agg(h.key order by w.n desc nulls last, h.key) as keys,
      coalesce(sum(w.n), 0) as waiting, min(w.since) as waiting_since, bool_or(w.pids @> array[h.pid]) as waits_itself
    from locks h
    left join lateral (select count(*) as n, min(x.waitstart) as since, array_agg(x.pid) as pids from locks x where not x.granted and x.classid = h.classid and x.key = h.key) w on true
    -- Shared, these are what each enqueue and each claim has.
    where h.granted and (h.mode = 'ExclusiveLock' or h.classid = 'pgfifo._executions'::regclass)
    group by 1, 2, 3),
  known as (
    select h.*, a.usename, nullif(a.application_name, '') as application, a.client_addr, a.state, coalesce(a.xact_start, p.prepared) as since, p.gid,
      coalesce(a.usename, p.owner) as role, case when a.query <> '<insufficient privilege>' then a.query end as query,
      h.classid in ('pgfifo.lanes'::regclass, 'pgfifo.policies'::regclass) as is_start,
      (select string_agg(pgfifo._doctor_name(h.classid, case when k > 2147483647 then k - 4294967296 else k end), ', ') from unnest(h.keys[:3]) k) as name
    from held h
    left join pg_stat_activity a on a.pid = h.pid
    -- What is prepared has no process; its lock on its own xid leads to its name.
    left join pg_locks x on h.pid is null and x.pid is null and x.locktype = 'transactionid' and x.virtualtransaction = h.virtualtransaction
    left join pg_prepared_xacts p on p.transaction = x.transactionid)
  select case when k.is_start or k.waiting > 0 then 'critical' else 'warning' end, case when k.is_start then 'lock' else 'producer' end,
    k.name || case when k.n > 3 then format(' and %s more', k.n - 3) else '' end,
    case when k.pid is null then format('the prepared transaction %s', quote_literal(k.gid)) else format('pid %s (%s)', k.pid,
        concat_ws(', ', k.application, 'role ' || k.role::text, host(k.client_addr))) end
      || format(' holds %s', case k.classid
        when 'pgfifo._executions'::regclass then 'the enqueue lock'
        when 'pgfifo.tallies'::regclass then 'the lock of a quota or a length'
        when 'pgfifo.actions'::regclass then 'the lock that closes or changes the action'
        when 'pgfifo.lanes'::regclass then 'the slot lock' else 'the lock of a change of limits' end)
      || case when k.n > 1 then format(' of %s', case when k.classid in ('pgfifo._executions'::regclass, 'pgfifo.lanes'::regclass) then pgfifo._counted(k.n, 'lane', 'lanes')
          else pgfifo._counted(k.n, 'action', 'actions') end) else '' end
      || coalesce(', since ' || pgfifo._moment(k.since, clock_timestamp()), ', since when you may not see') || coalesce('; it is ' || k.state, '')
      || case when k.waiting > 0 then format('; %s for it, since %s', case when k.waiting = 1 then 'one waits' else k.waiting || ' wait' end,
          coalesce(pgfifo._moment(k.waiting_since, clock_timestamp()), 'a moment ago')) else '' end
      || coalesce('; ' || nullif(pgfifo._quoted('its last query: ', k.query), ''), '') || '.',
    case when k.is_start then 'Nothing starts there until this transaction ends.'
      when k.waiting > 0 then 'Producers wait until this transaction ends: an enqueue keeps its lane''s lock to its commit, which is what makes the order.'
      else 'Whoever enqueues there next waits until this transaction ends: an enqueue keeps its lane''s lock to its commit, which is what makes the order.' end,
    case when k.pid is null then format('rollback prepared %s;  -- or commit prepared', quote_literal(k.gid)) else format('select pg_terminate_backend(%s);', k.pid) end,
    jsonb_build_object('pid', k.pid, 'gid', k.gid, 'role', k.role, 'application', k.application, 'client', host(k.client_addr), 'since', k.since, 'state', k.state,
      'query', left(k.query, 1000), 'locks', k.n, 'waiting', k.waiting, 'waiting_since', k.waiting_since, 'class', k.classid::regclass)
  from known k
  where k.since < clock_timestamp() - p_after or k.waiting_since < clock_timestamp() - p_after
$$;

-- What keeps dead rows from being removed, and events from being told: the oldest transactions of this database, those that are
-- prepared, and replication slots that nobody reads.
create or replace function pgfifo._doctor_snapshots(p_after interval)
returns table (o_severity text, o_kind text, o_subject text, o_detail text, o_meaning text, o_mend text, o_data jsonb)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  (select 'warning', 'snapshot', format('pid %s', a.pid),
    format('pid %s (%s) has had %s since %s', a.pid, concat_ws(', ', nullif(a.application_name, ''), 'role ' || a.usename::text, host(a.client_addr),
        nullif(a.backend_type, 'client backend')), case when a.backend_xmin is null then 'a transaction open that writes,' else 'a snapshot,' end,
        pgfifo._moment(a.xact_start, clock_timestamp()))
      || coalesce('; it is ' || a.state, '') || coalesce('; ' || nullif(pgfifo._quoted('its last query: ', nullif(a.query, '<insufficient privilege>')), ''), '') || '.',
    'What has died since cannot be removed from any table of this database. Claims stay quick; tables grow, and events wait for writers.',
    format('select pg_terminate_backend(%s);', a.pid),
    jsonb_build_object('pid', a.pid, 'role', a.usename, 'application', a.application_name, 'client', host(a.client_addr), 'since', a.xact_start, 'state', a.state,
      'query', left(nullif(a.query, '<insufficient privilege>'), 1000), 'transactions', greatest(age(a.backend_xmin), age(a.backend_xid)))
  from pg_stat_activity a
  where (a.datname = current_database() or a.datname is null) and a.pid <> pg_backend_pid() and a.backend_type <> 'autovacuum worker'
    and (a.backend_xmin is not null or a.backend_xid is not null) and a.xact_start < clock_timestamp() - p_after
  order by a.xact_start limit 3)
  union all
  select 'warning', 'prepared', p.gid,
    format('the prepared transaction %s of role %s has been there since %s.', quote_literal(p.gid), p.owner, pgfifo._moment(p.prepared, clock_timestamp())),
    'It keeps its locks and its snapshot until somebody ends it, over restarts too; what it enqueued is not in its line.',
    format('rollback prepared %s;  -- or commit prepared, in this database', quote_literal(p.gid)),
    jsonb_build_object('gid', p.gid, 'role', p.owner, 'since', p.prepared, 'transactions', age(p.transaction))
  from pg_prepared_xacts p
  where p.database = current_database() and p.prepared < clock_timestamp() - p_after
  union all
  select 'warning', 'replication', s.slot_name, format('the replication slot %s is not in use and holds back a snapshot that is %s old.', s.slot_name,
      pgfifo._counted(greatest(age(s.xmin), age(s.catalog_xmin)), 'transaction', 'transactions')),
    'What has died since cannot be removed, and WAL is kept for it, until its reader comes back or it is dropped.',
    format('select pg_drop_replication_slot(%s);', quote_literal(s.slot_name)),
    jsonb_build_object('slot', s.slot_name, 'type', s.slot_type, 'transactions', greatest(age(s.xmin), age(s.catalog_xmin)))
  from pg_replication_slots s
  where not s.active and (s.xmin is not null or s.catalog_xmin is not null and s.database = current_database())
  union all
  select 'info', 'rights', current_user::text, format('role %s may not see since when, and with which query, %s of other roles are at work here.', quote_ident(current_user),
      pgfifo._counted(h.n, 'session', 'sessions')),
    'Who holds something up is named by its process id; open transactions of these sessions that keep dead rows are not found.',
    format('grant pg_read_all_stats to %I;', current_user), jsonb_build_object('sessions', h.n)
  from (select count(*) as n from pg_stat_activity a where a.datname = current_database() and a.query = '<insufficient privilege>') h
  where h.n > 0
$$;

-- Where sequences stand below what was drawn from them, or draw more than one value at a time.
create or replace function pgfifo._sequence_faults() returns table (o_name text, o_detail text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select 'execution_ids', format('the sequence of ids stands at %s, below execution %s', s.last_value, m.id)
  from pgfifo.execution_ids s, (select max(e.id) as id from pgfifo._executions e) m where m.id > s.last_value
  union all
  select 'mark_ids', format('the sequence of marks stands at %s, below mark %s', s.last_value, m.id)
  from pgfifo.mark_ids s, (select greatest((select max(k.id) from pgfifo.marks k), (select max(x.id) from pgfifo.arrivals x)) as id) m where m.id > s.last_value
  union all
  select 'event_ids', format('the sequence of events stands at %s, below event %s', s.last_value, m.no)
  from pgfifo.event_ids s, (
    select greatest((select max(r.event_no) from pgfifo.runs r), (
      select max(h.event_no) from pgfifo.history h)) as no) m
  where m.no > s.last_value
  union all
  select c.relname, format('sequence %s caches %s values; 1 is the promise', c.relname, s.seqcache)
  from pg_sequence s join pg_class c on c.oid = s.seqrelid where c.oid in ('pgfifo.execution_ids'::regclass, 'pgfifo.mark_ids'::regclass, 'pgfifo.event_ids'::regclass) and s.seqcache <> 1
$$;

-- Workers that do not live, and work that they leave: what no living worker serves, and lanes that nobody gets going.
create or replace function pgfifo._doctor_workers(p_after interval, p_now timestamptz)
returns table (o_severity text, o_kind text, o_subject text, o_detail text, o_meaning text, o_mend text, o_data jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- No nested loops where there is a choice, as in _sweep.
set enable_nestloop = off
set jit = off
as $$
declare
  v_lane record;
  v_head bigint;
  v_explained jsonb;
  v_quiet integer[] := '{}';
  v_alive text[] := array(select distinct s.action from pgfifo._workers w cross join unnest(w.actions) s(action)
    where w.state = 'alive' and w.kind = 'worker' and w.last_seen + w.lease >= p_now);
begin
  return query
  select case when w.n > 0 then 'critical' else 'warning' end, 'worker', format('worker %s', (w.o).id),
    format('%s: %s%s', pgfifo._who(w.o), pgfifo._overdue(w.o, p_now), case when w.n > 0 then '; it still has ' || pgfifo._counted(w.n, 'execution', 'executions') else '' end) || '.',
    case when w.n > 0 then 'What it was running keeps its slots until somebody takes it back. Any living worker does, within seconds: so none is there, or its rounds fail.'
      else 'It has gone without signing off, and no living worker was there to notice.' end,
    -- One round sees that its session is gone (or counts towards its lease), a later one declares it dead, the next takes back.
    'select pgfifo.maintain();  -- once a second until this is gone; or start a worker',
    jsonb_build_object('worker_id', (w.o).id, 'host', (w.o).host, 'pid', (w.o).pid, 'last_seen', (w.o).last_seen, 'executions', w.n)
  from (select w as o, (select count(*) from pgfifo.runs r where r.worker_id = w.id) as n from pgfifo._workers w) w
  where (((w.o).state = 'alive' and (w.o).last_seen + (w.o).lease < p_now) or ((w.o).state <> 'alive' and w.n > 0 and (w.o).ended_at < p_now - p_after));
  return query
  select 'info', 'worker', 'lost', format('%s declared dead in the last hour, the last one (%s) at %s.', case when count(*) = 1 then 'one worker was' else count(*) || ' workers were' end,
      (array_agg(pgfifo._who(w) order by w.ended_at desc))[1], pgfifo._moment(max(w.ended_at), p_now)),
    'Each was killed or cut off. What it was running was taken back, and counts as failed once.', 'pgfifo workers', jsonb_build_object('workers', count(*))
  from pgfifo._workers w where w.state = 'dead' and w.kind = 'worker' and w.ended_at > p_now - interval '1 hour' having count(*) > 0;

  return query
  select 'warning', 'action', u.name, format('%s of %s in %s, and no living worker serves it%s.', case when u.n = 1 then 'one waits' else pgfifo._number(u.n) || ' wait' end, u.name,
      pgfifo._counted(u.lanes, 'lane', 'lanes'), coalesce('; the last one, ' || u.last || ', was last heard of at ' || pgfifo._moment(u.last_seen, p_now), '')),
    'They stay in their lines until a worker that serves this action is started.', format('pgfifo worker … --action %s', pgfifo._shell_word(u.name)),
    jsonb_build_object('action', u.name, 'waiting', u.n, 'lanes', u.lanes, 'marks', (select count(*) from pgfifo.marks m where m.action_id = u.id))
  from (
    select a.id, a.name, s.lanes, s.n - (select count(*) from pgfifo._executions e join pgfifo.lanes l on l.id = e.lane_id
        where e.owner is not null and l.action_id = a.id and not exists (select from pgfifo.runs r where r.id = e.id)) as n, w.last, w.last_seen
    from pgfifo.actions a
    join pgfifo._action_policies p on p.action_id = a.id
    join (
      select l.action_id, sum(g.waiting + coalesce(n.n, 0)) as n, count(*) filter (where g.waiting + coalesce(n.n, 0) > 0) as lanes
      from pgfifo.lanes l join pgfifo.ledger g on g.lane_id = l.id
      left join (select r.lane_id, sum(r.n) as n from pgfifo.arrivals r group by r.lane_id) n on n.lane_id = l.id group by l.action_id) s on s.action_id = a.id
    left join lateral (select pgfifo._who(w) as last, w.last_seen from pgfifo._workers w where w.kind = 'worker' and a.name = any (w.actions) order by w.last_seen desc limit 1) w on true
    where a.name <> all (v_alive) and p.paused_at is null) u
  where u.n > 0
  order by u.n desc limit 20;

  -- Lanes with a free slot and something in the line, in which nothing has happened for so long, though workers live. Behind the
  -- marks of many lanes one has its turn to wait for; without any it waits for nothing, and so it does where nobody takes any.
  for v_lane in
    with old as materialized (
      select l.id, l.action_id, l.group_text, g.changed_at, g.running + g.held - g.riding as taken,
        l.id not in (select m.lane_id from pgfifo.marks m) and l.id not in (select t.lane_id from pgfifo.timers t) as lost
      from pgfifo.lanes l
      join pgfifo.ledger g on g.lane_id = l.id
      left join (select r.lane_id, sum(r.n) as n from pgfifo.arrivals r group by r.lane_id) n on n.lane_id = l.id
      where g.waiting + coalesce(n.n, 0) > 0 and g.changed_at < p_now - p_after),
    quiet as (
      select l.action_id from pgfifo.lanes l join pgfifo.ledger g on g.lane_id = l.id group by l.action_id having max(g.changed_at) < p_now - p_after),
    -- Limits are looked up for a bounded number.
    picked as materialized (
      (select o.* from old o where o.lost order by o.changed_at limit 1000)
      union all
      select o.* from quiet q cross join lateral (select o.* from old o where not o.lost and o.action_id = q.action_id order by o.changed_at limit 20) o)
    select c.id, c.action_id, a.name as action, c.group_text, c.changed_at, c.lost
    from picked c
    join pgfifo.actions a on a.id = c.action_id
    join pgfifo._action_policies p on p.action_id = c.action_id
    left join lateral (select lp.* from pgfifo._lane_policies lp where lp.lane_id = c.id offset 0) lp on true
    where a.name = any (v_alive) and p.paused_at is null and lp.paused_at is null and c.taken < coalesce(lp.max_concurrent, p.max_concurrent)
    order by c.lost desc, c.changed_at limit 100
  loop
    -- Where nobody claims, one lane of the action stands for all.
    continue when not v_lane.lost and v_lane.action_id = any (v_quiet);
    v_head := (select h from pgfifo._ahead(v_lane.id, 9223372036854775807, 1) h);
    continue when v_head is null
      or not exists (select from pgfifo._executions e where e.id = v_head and coalesce(e.joined_at, e.enqueued_at) < p_now - p_after);
    v_explained := (select x.data from pgfifo.explain(v_head) x);
    continue when not v_explained -> 'reasons' <@ '["next"]';
    if not v_lane.lost then
      v_quiet := v_quiet || v_lane.action_id;
    end if;
    o_severity := 'critical';
    o_kind := 'stuck';
    o_subject := rtrim(v_lane.action || ' ' || pgfifo.format_group(v_lane.group_text));
    o_detail := format('execution %s is next and there is a free slot, and nothing has happened in its lane since %s%s.', v_head, pgfifo._moment(v_lane.changed_at, p_now),
      case when v_lane.lost then '; no mark leads to it' else '; nor in any other lane of its action' end);
    o_meaning := case when v_lane.lost
      then 'A wake-up was lost, which is a bug of pgfifo''s, or somebody has changed its tables by hand. The sweep of maintenance, or a repair, gets it going.'
      else 'Workers live and do not claim: they hang, or run nothing but other actions. Their logs tell.' end;
    o_mend := case when v_lane.lost then 'pgfifo check --repair' else 'pgfifo workers' end;
    o_data := jsonb_build_object('action', v_lane.action, 'group_text', v_lane.group_text, 'lane_id', v_lane.id, 'id', v_head, 'since', v_lane.changed_at, 'marked', not v_lane.lost);
    return next;
  end loop;
end $$;

-- What upkeep has left undone, what stops everything, and what has become of the tables.
create or replace function pgfifo._doctor_upkeep(p_now timestamptz)
returns table (o_severity text, o_kind text, o_subject text, o_detail text, o_meaning text, o_mend text, o_data jsonb)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_is record;
  v_today date := (p_now at time zone 'utc')::date;
begin
  select w.* into strict v_is from pgfifo._where() w;
  return query
  select 'critical', 'copy', (v_is.o_here).database_name::text,
    format('this database is a copy of %s, restored or made from it.', coalesce((v_is.o_home).copy_of, (v_is.o_home).database_name)),
    'What waits here was meant for the original, so nothing starts here until somebody says so.', 'pgfifo resume --everything',
    jsonb_build_object('copy_of', coalesce((v_is.o_home).copy_of, (v_is.o_home).database_name))
  where v_is.o_copied or (v_is.o_home).copied_at is not null;

  return query
  select 'warning', 'paused', 'everything', format('everything has been paused since %s by %s%s.', pgfifo._moment(p.paused_at, p_now), p.paused_by, pgfifo._quoted(': ', p.paused_reason)),
    'Nothing starts anywhere.', 'pgfifo resume --everything', jsonb_build_object('since', p.paused_at, 'by', p.paused_by, 'reason', p.paused_reason)
  from pgfifo.policies p where p.scope = 'everything' and p.paused_at is not null and not v_is.o_copied and (v_is.o_home).copied_at is null
  union all
  -- Paused by people is what they wanted; by a failure, it waits for them.
  (select 'warning', 'paused', rtrim(a.name || ' ' || pgfifo.format_group(l.group_text)),
    format('the lane has been paused since %s, when execution %s had failed for good%s.', pgfifo._moment(p.paused_at, p_now), p.paused_for, pgfifo._quoted(': ', p.paused_reason)),
    'Its policy says on_exhausted = pause: nothing starts there until somebody has looked.',
    format('pgfifo resume %s%s', pgfifo._shell_word(a.name), ' --group ' || pgfifo._shell_word(l.group_text)),
    jsonb_build_object('action', a.name, 'group_text', l.group_text, 'since', p.paused_at, 'id', p.paused_for)
  from pgfifo.policies p join pgfifo.lanes l on l.id = p.lane_id join pgfifo.actions a on a.id = l.action_id
  where p.scope = 'lane' and p.paused_at is not null and p.paused_for is not null
  order by p.paused_at limit 10)
  union all
  select 'info', 'paused', a.name, format('the action has been paused since %s by %s%s.', pgfifo._moment(p.paused_at, p_now), p.paused_by, pgfifo._quoted(': ', p.paused_reason)),
    'Nothing starts in it.', format('pgfifo resume %s', pgfifo._shell_word(a.name)), jsonb_build_object('action', a.name, 'since', p.paused_at, 'by', p.paused_by, 'reason', p.paused_reason)
  from pgfifo.policies p join pgfifo.actions a on a.id = p.action_id
  where p.scope = 'action' and p.paused_at is not null;

  return query
  select 'warning', 'maintenance', 'rounds', format('the last round of maintenance was at %s.', pgfifo._moment(t.at, p_now)),
    'Every living worker does one a second. Without, nothing is taken back from the dead, nothing expires, no delayed execution joins a line that nobody uses.',
    'select pgfifo.maintain();  -- or start a worker', jsonb_build_object('since', t.at)
  from (select t.* from pgfifo.ticks t order by t.tick desc limit 1) t
  where t.at < p_now - interval '1 min' and exists (select from pgfifo._executions)
  union all
  select 'warning', 'clock', 'server', format('the last round of maintenance was at %s, which is yet to come.', pgfifo._moment(t.at, p_now)),
    'The server''s clock was set back. Nothing stands still for it; times on record are wrong, and what was put off waits longer.', 'timedatectl timesync-status',
    jsonb_build_object('at', t.at)
  from (select t.* from pgfifo.ticks t order by t.tick desc limit 1) t where t.at > p_now + interval '5 s'
  union all
  select 'critical', 'clock', 'testing', format('pgfifo''s clock was moved by %s.', i.clock_offset), 'This is an installation for tests. Leases, delays and retention go by that clock.',
    'update pgfifo.installation set clock_offset = interval ''0'', testing = false;', jsonb_build_object('offset', extract(epoch from i.clock_offset))
  from pgfifo.installation i where i.clock_offset <> interval '0'
  union all
  select 'info', 'sweep', 'lanes', format('the sweep has found %s that nothing led to.', pgfifo._counted(t.sweep_found, 'lane', 'lanes')),
    'Each would have waited for the next enqueue. It should find none: if nobody has changed tables by hand or restored them, this is a bug worth reporting.',
    'pgfifo check', jsonb_build_object('found', t.sweep_found)
  from (select t.* from pgfifo.ticks t order by t.tick desc limit 1) t where t.sweep_found > 0
  union all
  select 'critical', 'sequence', f.o_name, f.o_detail || '.',
    'Numbers that are in use would be given out again, or out of order. A restore made by hand, or logical replication, forgets sequences.',
    case when f.o_detail like '%caches%' then format('alter sequence pgfifo.%I cache 1;', f.o_name)
      else format('select setval(''pgfifo.%s'', %s + 1000000);', f.o_name, substring(f.o_detail from '[0-9]+$')) end, jsonb_build_object('sequence', f.o_name)
  from pgfifo._sequence_faults() f
  union all
  select 'warning', 'mark', s.name, format('%s of %s below the point that scans begin from.', case when s.n = 1 then 'one mark lies' else s.n || ' marks lie' end, s.name),
    'No claim comes by it any more; a restore or a change by hand has left it there. A repair makes new ones.', 'pgfifo check --repair', jsonb_build_object('action', s.name, 'marks', s.n)
  from (
    select a.name, (select count(*) from pgfifo.marks m where m.action_id = a.id and m.id <= s.safe_mark) as n
    from pgfifo.actions a
    cross join lateral (select s.safe_mark from pgfifo.scans s where s.action_id = a.id order by s.action_id desc, s.version desc limit 1) s) s
  where s.n > 0
  union all
  select 'warning', 'mark', a.name, format('%s of %s due and not fired, the oldest since %s.', case when t.n = 1 then 'one timer is' else t.n || ' timers are' end, a.name,
      pgfifo._moment(t.due_at, p_now)),
    'Claims fire timers. Workers that serve this action live and do not claim: they hang, or somebody holds what they need.', 'pgfifo workers',
    jsonb_build_object('action', a.name, 'timers', t.n, 'since', t.due_at)
  from pgfifo.actions a
  join pgfifo._action_policies p on p.action_id = a.id
  cross join lateral (select count(*) as n, min(t.due_at) as due_at from pgfifo.timers t where t.action_id = a.id and t.due_at < p_now - interval '1 min') t
  where t.n > 0 and p.paused_at is null
    and exists (select from pgfifo._workers w where w.state = 'alive' and w.kind = 'worker' and w.last_seen + w.lease >= p_now and a.name = any (w.actions));

  return query
  select case when d.n < 2 then 'info' else 'warning' end, 'partition', d.name, format('the history has no partition for %s.', d.day),
    case when d.n < 2 then 'What ends on that day goes into history_default, and is deleted there row by row when it is old enough. That is slower, and not wrong.'
      else 'Maintenance makes them days ahead; it has not run, or was kept from it. Without, rows go into history_default, from which they are deleted one by one.' end,
    case when d.n < 2 then 'pgfifo workers' else 'select pgfifo.maintain();  -- or start a worker' end, jsonb_build_object('day', d.day, 'partition', d.name)
  from (select n, v_today + n as day, 'history_' || to_char(v_today + n, 'YYYYMMDD') as name from generate_series(0, 2) n) d
  where not exists (select from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'pgfifo.history'::regclass and c.relname = d.name)
  union all
  select 'warning', 'bloat', s.relname::text, format('%s has %s dead rows beside %s living ones, in %s; %s.', s.relname, pgfifo._number(s.n_dead_tup), pgfifo._number(s.n_live_tup),
      pg_size_pretty(pg_total_relation_size(s.relid)),
      coalesce('vacuumed last at ' || pgfifo._moment(greatest(s.last_vacuum, s.last_autovacuum), clock_timestamp()), 'never vacuumed')),
    'Autovacuum does not keep up, or an old snapshot keeps it from removing them (see the findings about snapshots).', format('vacuum pgfifo.%I;', s.relname),
    jsonb_build_object('table', s.relname, 'dead', s.n_dead_tup, 'live', s.n_live_tup, 'vacuumed_at', greatest(s.last_vacuum, s.last_autovacuum))
  from pg_stat_all_tables s where s.schemaname = 'pgfifo' and s.n_dead_tup > 50000 and s.n_dead_tup > s.n_live_tup
  union all
  select 'warning', 'bloat', c.relname::text, format('autovacuum is off for %s.', c.relname), 'Nothing removes its dead rows, of which a queue makes many.',
    format('alter table pgfifo.%I reset (autovacuum_enabled);', c.relname), jsonb_build_object('table', c.relname)
  from pg_class c where c.relnamespace = 'pgfifo'::regnamespace and c.reloptions && array['autovacuum_enabled=false', 'autovacuum_enabled=off', 'autovacuum_enabled=0'];
end $$;

-- The books, with the owner's rights: for pgfifo.doctor, which has its caller's.
create or replace function pgfifo._doctor_books(p_after interval)
returns table (o_severity text, o_kind text, o_subject text, o_detail text, o_meaning text, o_mend text, o_data jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pgfifo._now();
begin
  return query
  select w.* from pgfifo._doctor_workers(p_after, v_now) w
  union all
  select u.* from pgfifo._doctor_upkeep(v_now) u;
end $$;
