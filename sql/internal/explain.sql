-- What pgfifo.explain is made of. All of it only reads, takes no lock and is right for one snapshot, so it works at every isolation
-- level and on a standby, where locks of the primary cannot be seen.

-- A length of time in one or two units, as 4m 12s.
create or replace function pgfifo._span(p_seconds double precision) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case when s.n < 1 then case when p_seconds < 0.0005 then '0s' else round(p_seconds * 1000)::text || 'ms' end
    else array_to_string((select (array_agg(u.n::text || u.name order by u.ord))[1:2] from (
        values (1, 'd', s.n / 86400), (2, 'h', s.n / 3600 % 24), (3, 'm', s.n / 60 % 60), (4, 's', s.n % 60)) u(ord, name, n)
      where u.n > 0 and u.ord <= case when s.n >= 86400 then 2 when s.n >= 3600 then 3 else 4 end), ' ') end
  from (select round(greatest(0, p_seconds))::bigint as n) s
$$;

-- A pace as people read it: 11.8 a minute, 2 an hour.
create or replace function pgfifo._per_time(p_per_minute double precision) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select trim_scale(round((p_per_minute * u.minutes)::numeric, case when p_per_minute * u.minutes < 100 then 1 else 0 end))::text || u.name
  from (values (1.0 / 60, ' a second'), (1, ' a minute'), (60, ' an hour'), (1440, ' a day')) u(minutes, name)
  order by p_per_minute * u.minutes < 1 and u.minutes < 1440, u.minutes limit 1
$$;

-- A time as people read it, in the session's time zone: 14:03:22 UTC (4m 12s ago), with the day where it is another one.
create or replace function pgfifo._moment(p_at timestamptz, p_now timestamptz) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select to_char(p_at, case when p_at::date = p_now::date then '' else 'YYYY-MM-DD ' end || 'HH24:MI:SS TZ')
    || case when p_at > p_now then ' (in ' || pgfifo._span(extract(epoch from p_at - p_now)) || ')'
            else ' (' || pgfifo._span(extract(epoch from p_now - p_at)) || ' ago)' end
$$;

-- The first line of an error or a reason, in quotes, at most 200 characters; empty for none.
create or replace function pgfifo._quoted(p_before text, p_text text) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(p_before || '"' || left(l.line, 200) || case when char_length(l.line) > 200 then '…' else '' end || '"', '')
  from (select nullif(btrim(split_part(ltrim(p_text, E' \t\r\n'), E'\n', 1)), '')) l(line)
$$;

create or replace function pgfifo._who(p_worker pgfifo._workers) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('%s %s (%spid %s on %s)', case p_worker.kind when 'slot' then 'program' else 'worker' end, p_worker.id, nullif(p_worker.name, '') || ', ', p_worker.pid, p_worker.host)
$$;

-- Open transactions of others that hold one of these locks (no keys: any of the class): those that do nothing now or are older than a second. A claim, or
-- an enqueue that commits at once, is none of them. p_hidden: also those whose state we may not see.
create or replace function pgfifo._open_holders(p_class oid, p_keys integer[], p_mode text, p_hidden boolean) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(jsonb_agg(jsonb_build_object('pid', h.pid, 'application', h.application, 'since', h.since) order by h.since, h.pid), '[]')
  from (
    select distinct l.pid, nullif(a.application_name, '') as application, a.xact_start as since
    from pg_locks l
    left join pg_stat_activity a on a.pid = l.pid
    where l.locktype = 'advisory' and l.granted and l.objsubid = 2 and l.classid = p_class and (p_keys is null or l.objid = any (p_keys::oid[])) and l.mode = coalesce(p_mode, l.mode)
      and l.pid is distinct from pg_backend_pid() and l.database = (select d.oid from pg_database d where d.datname = current_database())
      -- Without a process: a transaction that is prepared.
      and (l.pid is null or a.state like 'idle in transaction%' or a.xact_start < clock_timestamp() - interval '1 s' or (p_hidden and a.state is null))) h
$$;

create or replace function pgfifo._name_holders(p_holders jsonb) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select string_agg(case when h.pid is null then 'a prepared transaction' else
      format('pid %s%s%s', h.pid, ' (' || h.application || ')', ', since ' || to_char(h.since, 'HH24:MI:SS TZ')) end, '; ' order by h.n)
  from (select * from rows from (jsonb_to_recordset(p_holders) as (pid integer, application text, since timestamptz)) with ordinality h(pid, application, since, n)
        limit 3) h
$$;

-- Where a value of a policy comes from, as people read it, after its name.
create or replace function pgfifo._set_where(p_source text, p_origin text, p_until timestamptz, p_now timestamptz) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case p_source
    when 'default' then 'is the built-in default' when 'everything' then 'is set for everything' when 'declared' then 'was declared by code'
    when 'override' then format('is an override for %s that ends %s', p_origin, pgfifo._moment(p_until, p_now))
    else format('is set for the %s %s', p_source, p_origin) end
$$;

-- Rates, spacing, gaps and shared limits that let nothing of a lane start now: until when, and how to say so.
create or replace function pgfifo._explain_limits(p_action_id integer, p_lane_id bigint, p_now timestamptz)
returns table (kind text, until timestamptz, detail jsonb, said text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select w.kind, w.until, case when p.source is null then w.detail || coalesce(h.o_detail, '{}')
      else jsonb_build_object('value', p.value, 'source', p.source, 'origin', p.origin) end,
    case w.kind
      when 'shared_slots' then format('The shared limit %s has no slot free: %s of %s are taken%s.', w.detail ->> 'name', w.detail ->> 'current', w.detail ->> 'limit',
        coalesce(', by ' || h.o_said, ''))
      when 'shared_rate' then format('The rate of the shared limit %s allows the next start at %s.', w.detail ->> 'name', pgfifo._moment(w.until, p_now))
      when 'shared_turn' then format('Other lanes come before it at the shared limit %s.', w.detail ->> 'name')
      else format('Its lane''s %s (%s) allows the next start at %s; it %s.', w.kind,
        case jsonb_typeof(p.value) when 'number' then pgfifo._span((p.value #>> '{}')::double precision) else p.value #>> '{}' end,
        pgfifo._moment(w.until, p_now), pgfifo._set_where(p.source, p.origin, p.until, p_now)) end
  from (
    select w.why ->> 'reason' as kind, (w.why ->> 'until')::timestamptz as until, w.why - 'reason' - 'until' as detail, w.n
    from jsonb_array_elements((select w.o_why from pgfifo._weigh(p_lane_id, p_now) w)) with ordinality w(why, n)) w
  left join lateral (
    select e.* from pgfifo._effective(p_action_id, p_lane_id) e where e.attribute = w.kind offset 0) p on w.kind in ('rate', 'spacing', 'gap')
  left join lateral pgfifo._explain_shared(w.detail ->> 'name', p_now) h on w.kind = 'shared_slots'
  order by w.n
$$;

-- Who has the slots of a shared limit: those that have had them for longest first, ten as data and three in words.
create or replace function pgfifo._explain_shared(p_name text, p_now timestamptz, out o_detail jsonb, out o_said text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object('holders', coalesce(jsonb_agg(jsonb_build_object('id', h.id, 'action', h.action, 'group_text', h.group_text, 'since', h.started_at,
      'worker', h.worker) order by h.nth) filter (where h.nth <= 10), '[]')),
    string_agg(format('execution %s (%s) since %s', h.id, rtrim(h.action || ' ' || pgfifo.format_group(h.group_text)), pgfifo._moment(h.started_at, p_now))
        || coalesce(' on ' || h.worker, ''), '; ' order by h.nth) filter (where h.nth <= 3)
      || case when count(*) > 3 then format('; and %s more', count(*) - 3) else '' end
  from (
    select r.id, a.name as action, l.group_text, r.started_at, case when w.id is not null then pgfifo._who(w) end as worker,
      row_number() over (order by r.started_at, r.id) as nth
    from pgfifo.runs r
    cross join lateral (select l.action_id, l.group_text from pgfifo.lanes l where l.id = r.lane_id offset 0) l
    cross join lateral (select a.name from pgfifo.actions a where a.id = l.action_id offset 0) a
    left join lateral (select w.* from pgfifo._workers w where w.id = r.worker_id offset 0) w on true
    where r.draws @> array(select s.id from pgfifo._shared_limits s where s.name = p_name) and r.draws <> '{}') h
$$;

-- Who has the slots of a lane: those that have had them for longest first, at most ten, and how many there are.
-- What is active is below the consumed mark. It is looked for from there backwards, and no further than to the last of those that
-- the ledger counts.
create or replace function pgfifo._explain_holders(p_lane_id bigint, p_now timestamptz)
returns table (id bigint, state text, attempt integer, since timestamptz, due_at timestamptz, worker_id bigint, worker text, overdue text, error text, batch bigint)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_state pgfifo.ledger;
begin
  select g.* into strict v_state from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1;
  return query
  select h.id, h.state, h.attempt, case h.state when 'held' then h.ended_at else h.started_at end, h.due_at, w.id,
    case when w.id is not null then pgfifo._who(w) end,
    case when h.state = 'running' then pgfifo._overdue(w, p_now) end, h.last_error, h.n
  from (
    -- One for each slot: of a batch the first, and how many they are.
    select r.*, count(*) over (partition by coalesce(r.batch_no, r.start_no)) as n,
      row_number() over (partition by coalesce(r.batch_no, r.start_no) order by r.ticket) as nth
    from (select r.* from pgfifo._executions e
    cross join lateral (select r.* from pgfifo.runs r where r.id = e.id offset 0) r
    where e.lane_id = p_lane_id and e.ticket <= v_state.consumed and r.state in ('running', 'held')
    order by e.lane_id desc, e.ticket desc limit least(v_state.running + v_state.held, 1000)) r) h
  left join lateral (select w.* from pgfifo._workers w where w.id = h.worker_id offset 0) w on true
  where h.nth = 1
  order by h.started_at, h.id limit 10;
end $$;

-- Why what a worker has should have been taken back by now; null while the worker lives.
create or replace function pgfifo._overdue(p_worker pgfifo._workers, p_now timestamptz) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_worker.id is null or p_worker.state = 'stopped' then 'it has gone'
    when p_worker.state = 'dead' then 'it was declared dead at ' || pgfifo._moment(p_worker.ended_at, p_now)
    when p_worker.last_seen + p_worker.lease < p_now then format('it was last heard of at %s, and its lease is %s',
      pgfifo._moment(p_worker.last_seen, p_now), pgfifo._span(extract(epoch from p_worker.lease)::double precision)) end
$$;
