-- Whose events are asked for; what is null says nothing.
do $$ begin
  if to_regtype('pgfifo._event_filter') is null then
    create type pgfifo._event_filter as (action_id integer, group_text text, id bigint, kinds text[]);
  end if;
end $$;

create or replace function pgfifo._read_event_filter(p_filter jsonb) returns pgfifo._event_filter
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  c_kinds constant text[] := '{enqueued,started,attempt_ended,finished,progress,lane_started,lane_empty,paused,resumed,closed,opened,changed}';
  v_filter jsonb := coalesce(jsonb_strip_nulls(p_filter), '{}');
  v_out pgfifo._event_filter;
  v_key text;
  v_value jsonb;
  v_problem text;
begin
  if jsonb_typeof(v_filter) <> 'object' then
    raise exception using errcode = 'QF022', message = 'a filter is a JSON object, such as {"action": "deploy"}',
      detail = json_build_object('name', 'p_filter', 'value', p_filter)::text, hint = 'Keys: action, group, id, kind.';
  end if;
  for v_key, v_value in select k.key, k.value from jsonb_each(v_filter) k loop
    v_problem := case
      when v_key in ('action', 'group') then case when jsonb_typeof(v_value) <> 'string' then 'is a text' end
      when v_key = 'id' then case when jsonb_typeof(v_value) <> 'number' or v_value::numeric not between 0 and 9223372036854775807 then 'is the id of an execution' end
      when v_key = 'kind' then case
        when jsonb_typeof(v_value) not in ('string', 'array') or exists (
          select from jsonb_array_elements(case jsonb_typeof(v_value) when 'array' then v_value else jsonb_build_array(v_value) end) e
          where not coalesce(e #>> '{}' = any (c_kinds), false))
        then format('is one or more of: %s', array_to_string(c_kinds, ', ')) end
      else 'is no key of a filter of events; there are: action, group, id, kind' end;
    if v_problem is not null then
      raise exception using errcode = 'QF022', message = format('%s %s', v_key, v_problem), detail = json_build_object('name', v_key, 'value', v_value)::text;
    end if;
  end loop;
  if v_filter ? 'action' then
    v_out.action_id := pgfifo._known_action(v_filter ->> 'action');
  end if;
  if v_filter ? 'group' then
    if v_out.action_id is null then
      raise exception using errcode = 'QF022', message = 'a group says which lane only together with its action',
        detail = json_build_object('name', 'group', 'value', v_filter -> 'group')::text;
    end if;
    v_out.group_text := pgfifo._group(v_filter ->> 'action', (select p.group_by from pgfifo._action_policies p where p.action_id = v_out.action_id), null, v_filter ->> 'group');
  end if;
  v_out.id := (v_filter ->> 'id')::numeric;
  if v_filter ? 'kind' then
    v_out.kinds := array(select jsonb_array_elements_text(case jsonb_typeof(v_filter -> 'kind') when 'array' then v_filter -> 'kind'
      else jsonb_build_array(v_filter -> 'kind') end));
  end if;
  return v_out;
end $$;

-- Enqueues with ids between, unfinished ones and those that have ended since: the first p_look of them, those that are not
-- wanted too, so that what a call costs does not depend on how few are.
create or replace function pgfifo._enqueued_events(p_after bigint, p_upto bigint, p_filter pgfifo._event_filter, p_look integer)
returns table (id bigint, at timestamptz, action text, group_text text, detail jsonb, is_wanted boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  with ended as materialized (
    select h.id, h.enqueued_at, h.lane_id, h.action_id, h.group_text, h.tags, h.retry_of
    from pgfifo.history h where h.id > p_after and h.id <= p_upto order by h.id limit p_look),
  looked as materialized (
    select h.id, h.enqueued_at as at, h.lane_id, h.action_id, h.group_text, h.tags, h.retry_of, null::timestamptz as due_at from ended h
    union all
    -- Up to where those have got, and so not over all that has ended since, which may be dead entries here.
    (select e.id, e.enqueued_at, e.lane_id, null, null, e.tags, e.retry_of, e.run_at
     from pgfifo._executions e
     where e.id > p_after and e.id <= (select case when count(*) < p_look then p_upto else max(h.id) end from ended h) order by e.id limit p_look))
  select k.id, k.at, a.name, w.group_text,
    jsonb_strip_nulls(jsonb_build_object('tags', k.tags, 'retry_of', k.retry_of, 'due_at', k.due_at)),
    (p_filter.id is null or k.id = p_filter.id) and (p_filter.action_id is null or w.action_id = p_filter.action_id)
      and (p_filter.group_text is null or w.group_text = p_filter.group_text)
  from (select k.* from looked k order by k.id limit p_look) k
  left join lateral (select l.action_id, l.group_text from pgfifo.lanes l where k.action_id is null and l.id = k.lane_id offset 0) l on true
  cross join lateral (select coalesce(k.action_id, l.action_id) as action_id, coalesce(k.group_text, l.group_text) as group_text) w
  cross join lateral (select a.name from pgfifo.actions a where a.id = w.action_id offset 0) a
  order by k.id;
end $$;

-- What may have events with numbers above p_after and up to p_upto: what runs or is on its way back to it, and what has
-- ended. Of the latter most have ended within 10,000 events of their first start, and are found by the number of their end;
-- the others stand in an index of their own, by all that they lasted. So catching up costs as little as following.
-- Each is looked up by itself and in the order of its index (offset 0): no plan, whenever it was made, can walk another one.
create or replace function pgfifo._event_rows(p_after bigint, p_upto bigint, p_filter pgfifo._event_filter)
returns table (action_id integer, group_text text, lane_id bigint, id bigint, attempt integer, state text, start_event bigint, start_no bigint,
  started_at timestamptz, worker_id bigint, last_event bigint, end_no bigint, ended_at timestamptz, outcome text, error text, reason text,
  due_at timestamptz, held jsonb, attempts jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select l.action_id, l.group_text, r.lane_id, r.id, r.attempt, r.state, case when r.state = 'running' then r.event_no else r.start_event end, r.start_no,
    r.started_at, coalesce(r.worker_id, r.held_by), r.event_no, null::bigint, r.ended_at, r.held_outcome, r.last_error, null::text, r.due_at,
    null::jsonb, r.attempts
  from (select r.* from pgfifo.runs r where r.event_no > p_after order by r.event_no offset 0) r
  cross join lateral (select l.action_id, l.group_text from pgfifo.lanes l where l.id = r.lane_id offset 0) l
  where (p_filter.id is null or r.id = p_filter.id)
    and (p_filter.action_id is null or l.action_id = p_filter.action_id) and (p_filter.group_text is null or l.group_text = p_filter.group_text)
  union all
  -- At the end of the line again after a failed attempt, or on the way there: only its log tells of starts.
  select l.action_id, l.group_text, e.lane_id, e.id, null, 'sent back', null, null, null, null, null, null, null, null, null, null,
    case when e.ticket is null then e.run_at end, null, e.past -> 'attempts'
  from (
    select e.id, e.lane_id, e.ticket, e.run_at, e.past from pgfifo._executions e
    where e.past is not null and (e.past #>> '{attempts,-1,events,1}')::bigint > p_after
    order by (e.past #>> '{attempts,-1,events,1}')::bigint offset 0) e
  cross join lateral (select l.action_id, l.group_text from pgfifo.lanes l where l.id = e.lane_id offset 0) l
  where (p_filter.id is null or e.id = p_filter.id)
    and (p_filter.action_id is null or l.action_id = p_filter.action_id) and (p_filter.group_text is null or l.group_text = p_filter.group_text)
    and not exists (select from pgfifo.runs r where r.id = e.id);
  if p_filter.id is not null then
    return query
    select h.action_id, h.group_text, h.lane_id, h.id, h.attempt, 'finished', h.start_event, h.start_no, h.started_at, h.worker_id, h.event_no, h.end_no,
      h.finished_at, h.outcome, h.error, h.reason, null::timestamptz, h.held, h.attempts
    from pgfifo.history h
    where h.id = p_filter.id and h.event_no > p_after
      and (p_filter.action_id is null or h.action_id = p_filter.action_id) and (p_filter.group_text is null or h.group_text = p_filter.group_text);
    return;
  end if;
  return query
  select h.action_id, h.group_text, h.lane_id, h.id, h.attempt, 'finished', h.start_event, h.start_no, h.started_at, h.worker_id, h.event_no, h.end_no,
    h.finished_at, h.outcome, h.error, h.reason, null::timestamptz, h.held, h.attempts
  from (select h.* from pgfifo.history h where h.event_no > p_after and h.event_no <= p_upto + 10000 order by h.event_no offset 0) h
  where (p_filter.action_id is null or h.action_id = p_filter.action_id) and (p_filter.group_text is null or h.group_text = p_filter.group_text)
  union all
  select h.action_id, h.group_text, h.lane_id, h.id, h.attempt, 'finished', h.start_event, h.start_no, h.started_at, h.worker_id, h.event_no, h.end_no,
    h.finished_at, h.outcome, h.error, h.reason, null::timestamptz, h.held, h.attempts
  from (
    select h.* from pgfifo.history h
    where (h.attempts is not null or h.event_no - h.start_event > 10000)
      and int8range(least(coalesce((h.attempts #>> '{0,events,0}')::bigint, h.start_event), h.event_no), h.event_no, '[]') && int8range(p_after + 1, p_upto, '[]')
    offset 0) h
  where p_after < p_upto and h.event_no > p_upto + 10000
    and (p_filter.action_id is null or h.action_id = p_filter.action_id) and (p_filter.group_text is null or h.group_text = p_filter.group_text);
end $$;

-- Starts, ends and reports behind p_place and with numbers up to p_upto, and what they were for their lanes. The place of an
-- event is twice its number; what it was for its lane comes at once after it, one further.
create or replace function pgfifo._change_events(p_place bigint, p_upto bigint, p_filter pgfifo._event_filter)
returns table (place bigint, kind text, at timestamptz, action text, group_text text, id bigint, attempt integer, detail jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  -- A place that is even is that of an event: what it was for its lane has yet to be told.
  v_after constant bigint := (p_place - 1) >> 1;
  v_lanes constant boolean := p_filter.id is null and (p_filter.kinds is null or p_filter.kinds && '{lane_started,lane_empty}');
begin
  return query
  with changed as materialized (
    select r.* from pgfifo._event_rows(v_after, p_upto, p_filter) r),
  happened as materialized (
    select c.start_event as no, 'started' as kind, c.started_at as at, c.action_id, c.group_text, c.lane_id, c.id, c.attempt, c.start_no,
      -- One that ended while it was held is nobody's any more: who ran it is with what held it.
      jsonb_build_object('worker', coalesce(c.worker_id, (c.held ->> 'worker')::bigint), 'start_no', c.start_no) as detail, null::bigint as end_no
    from changed c where c.start_event is not null
    union all
    select c.last_event, case c.state when 'finished' then 'finished' else 'attempt_ended' end, c.ended_at, c.action_id, c.group_text, c.lane_id, c.id,
      c.attempt, null, jsonb_build_object('outcome', c.outcome, 'error', left(c.error, 1000), 'reason', c.reason, 'due_at', c.due_at, 'worker', c.worker_id), c.end_no
    from changed c where c.state in ('held', 'finished')
    union all
    select (c.held ->> 'event')::bigint, 'attempt_ended', (c.held ->> 'ended_at')::timestamptz, c.action_id, c.group_text, c.lane_id, c.id,
      c.attempt, null, jsonb_build_object('outcome', c.held -> 'outcome', 'error', left(c.error, 1000), 'worker', c.held -> 'worker'), null
    from changed c where c.held is not null
    union all
    select (x -> 'events' ->> s.n)::bigint, case s.n when 0 then 'started' else 'attempt_ended' end,
      (x ->> case s.n when 0 then 'started_at' else 'ended_at' end)::timestamptz, c.action_id, c.group_text, c.lane_id, c.id, (x ->> 'attempt')::integer,
      case s.n when 0 then (x ->> 'start_no')::bigint end,
      case s.n when 0 then jsonb_build_object('worker', x -> 'worker', 'start_no', x -> 'start_no')
        else jsonb_build_object('outcome', x -> 'outcome', 'error', x -> 'error', 'worker', x -> 'worker',
          'due_at', case when c.state in ('yielded', 'sent back') and x -> 'attempt' = c.attempts #> '{-1,attempt}' then c.due_at end) end,
      case s.n when 1 then (x ->> 'end_no')::bigint end
    from changed c cross join lateral jsonb_array_elements(c.attempts) x cross join (values (0), (1)) s(n)),
  -- Stays in slots, by the lane's own count of starts. One that kept its slot through a backoff was in it at its next start.
  stays as (
    select c.lane_id, c.start_no, case c.state when 'finished' then c.end_no else 9223372036854775807 end as end_no, c.state <> 'finished' as is_active
    from changed c where v_lanes and c.start_no is not null and c.state in ('running', 'held', 'finished')
    union all
    select c.lane_id, (x ->> 'start_no')::bigint, (x ->> 'end_no')::bigint + coalesce((x ->> 'kept')::boolean, false)::integer, false
    from changed c cross join lateral jsonb_array_elements(c.attempts) x where v_lanes and x -> 'start_no' is not null),
  -- Starts beside which nothing of what has changed was in a slot. What has one since before is counted below: the lane has
  -- more active ones then than have started since.
  first as (
    select s.lane_id, s.start_no, s.since
    from (select s.lane_id, s.start_no,
            max(s.end_no) over (partition by s.lane_id order by s.start_no rows between unbounded preceding and 1 preceding) as busy,
            count(*) filter (where s.is_active) over (partition by s.lane_id order by s.start_no rows between current row and unbounded following) as since
          from stays s) s
    where s.busy is null or s.busy < s.start_no),
  last as (
    select distinct on (h.lane_id) h.lane_id, h.no, h.kind from happened h where v_lanes order by h.lane_id, h.no desc),
  told as (
    select 2 * h.no as place, h.kind, h.at, h.action_id, h.group_text, h.id, h.attempt, h.detail
    from happened h where h.no > v_after and h.no <= p_upto
    union all
    select 2 * p.event_no, 'progress', p.at, l.action_id, l.group_text, p.id, p.attempt, jsonb_build_object('fraction', p.fraction, 'message', p.message)
    from (select p.* from pgfifo.reports p where p.event_no > v_after and p.event_no <= p_upto order by p.event_no offset 0) p
    cross join lateral (select e.lane_id from pgfifo._executions e where e.id = p.id offset 0) e
    cross join lateral (select l.action_id, l.group_text from pgfifo.lanes l where l.id = e.lane_id offset 0) l
    where (p_filter.action_id is null or l.action_id = p_filter.action_id)
      and (p_filter.group_text is null or l.group_text = p_filter.group_text) and (p_filter.id is null or p.id = p_filter.id)
    union all
    select 2 * h.no + 1, 'lane_started', h.at, h.action_id, h.group_text, null, null, jsonb_build_object('start_no', h.start_no)
    from happened h
    join first f on f.lane_id = h.lane_id and f.start_no = h.start_no
    left join lateral (select g.running + g.held as active from pgfifo.ledger g where g.lane_id = h.lane_id order by g.lane_id desc, g.version desc limit 1) g on true
    where h.kind = 'started' and h.no > v_after and h.no <= p_upto and coalesce(g.active, 0) <= f.since
    union all
    select 2 * h.no + 1, 'lane_empty', h.at, h.action_id, h.group_text, null, null, jsonb_build_object('delayed', nullif(g.delayed, 0))
    from happened h
    join last t on t.lane_id = h.lane_id and t.no = h.no
    left join lateral (
      select g.starts, g.running + g.held as active, g.waiting + a.n as waiting, g.delayed + g.yielded + a.delayed as delayed
      from (select g.* from pgfifo.ledger g where g.lane_id = h.lane_id order by g.lane_id desc, g.version desc limit 1) g
      cross join lateral (
        select coalesce(sum(a.n), 0) as n, coalesce(sum(a.delayed), 0) as delayed from pgfifo.arrivals a
        where a.lane_id = h.lane_id and a.id > g.mark_floor) a) g on true
    where h.kind in ('attempt_ended', 'finished') and h.no > v_after and h.no <= p_upto and coalesce(g.active, 0) = 0 and coalesce(g.waiting, 0) = 0
      -- Nothing has been started since, and nothing ended that was not in a slot: whatever else ended later was active then,
      -- and so it was read here.
      and coalesce(g.starts <= h.end_no, true)
      and not exists (select from pgfifo.history x where x.lane_id = h.lane_id and x.event_no > h.no and x.start_event is null))
  select t.place, t.kind, t.at, a.name, t.group_text, t.id, t.attempt, jsonb_strip_nulls(t.detail)
  from told t cross join lateral (select a.name from pgfifo.actions a where a.id = t.action_id offset 0) a
  where t.place > p_place and (p_filter.kinds is null or t.kind = any (p_filter.kinds))
  order by t.place;
end $$;

-- The first number above p_after that may have an event, p_upto at most: what is behind p_after has been forgotten, or was
-- never used.
create or replace function pgfifo._next_event(p_after bigint, p_upto bigint) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_end constant bigint := least(p_upto, (select h.event_no from pgfifo.history h where h.event_no > p_after order by h.event_no limit 1));
begin
  return least(v_end, (select p.event_no from pgfifo.reports p where p.event_no > p_after order by p.event_no limit 1), (
    select min(n.no)
    from pgfifo._event_rows(p_after, v_end, null) r
    cross join lateral (
      select r.start_event as no union all select r.last_event union all select (r.held ->> 'event')::bigint
      union all
      select e::bigint from jsonb_array_elements(r.attempts) x cross join lateral jsonb_array_elements_text(x -> 'events') e) n
    where n.no > p_after));
end $$;

-- Entries of the audit between, the first p_look of them.
create or replace function pgfifo._audit_events(p_after bigint, p_upto bigint, p_filter pgfifo._event_filter, p_look integer)
returns table (no bigint, kind text, at timestamptz, action text, group_text text, execution bigint, detail jsonb, is_wanted boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  select e.id, k.kind, e.at, e.action, e.group_text, (e.detail ->> 'id')::bigint,
    jsonb_strip_nulls(jsonb_build_object('what', e.what, 'who', e.who, 'actor', e.actor, 'application', nullif(e.application, '')))
      || coalesce(jsonb_strip_nulls(e.detail), '{}'),
    (p_filter.kinds is null or k.kind = any (p_filter.kinds)) and (p_filter.id is null or coalesce((e.detail ->> 'id')::bigint = p_filter.id, false))
      and (p_filter.action_id is null or coalesce(e.action = (select a.name from pgfifo.actions a where a.id = p_filter.action_id), false))
      and (p_filter.group_text is null or coalesce(e.group_text = p_filter.group_text, false))
  from (select e.* from pgfifo.audit e where e.id > p_after and e.id <= p_upto order by e.id limit p_look) e
  cross join lateral (
    select case e.what when 'pause' then 'paused' when 'resume' then 'resumed' when 'close' then 'closed' when 'open' then 'opened' else 'changed' end as kind) k
  order by e.id;
end $$;
