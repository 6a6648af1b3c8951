-- A closed action or lane (given, when it is the lane) takes nothing new. Which of them is closed the caller has read in a
-- statement after the lock that keeps it so.
create or replace function pgfifo._refuse_closed(p_action_id integer, p_lane_id bigint, p_index integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_closed record;
  v_what text;
begin
  select a.name, l.group_text, coalesce(l.closed_at, a.closed_at) as at, case when l.id is null then a.closed_by else l.closed_by end as who,
      case when l.id is null then a.closed_reason else l.closed_reason end as reason
    into strict v_closed
  from pgfifo.actions a left join pgfifo.lanes l on l.id = p_lane_id
  where a.id = p_action_id;
  v_what := v_closed.name || coalesce(nullif(' ' || pgfifo.format_group(v_closed.group_text), ' '), '');
  raise exception using errcode = 'QF005',
    message = format('%s is closed since %s, by %s%s', v_what, to_char(v_closed.at, 'YYYY-MM-DD HH24:MI TZ'), v_closed.who, ': ' || v_closed.reason),
    detail = json_build_object('action', v_closed.name, 'group', v_closed.group_text, 'reason', v_closed.reason, 'index', p_index)::text,
    hint = 'Nothing was enqueued. What waits is still worked off. pgfifo.open lets enqueues in again.';
end $$;

-- When an execution is to join its line: at a time, or so long after the server's now.
create or replace function pgfifo._run_at(p_run_at timestamptz, p_delay interval, p_index integer) returns timestamptz
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_run_at timestamptz;
begin
  if p_run_at is not null and p_delay is not null then
    raise exception using errcode = 'QF022', message = 'p_run_at and p_delay exclude each other',
      detail = json_build_object('name', 'p_delay', 'value', p_delay, 'index', p_index)::text, hint = 'Give one of them.';
  elsif p_delay < interval '0' then
    raise exception using errcode = 'QF022', message = format('p_delay must not be negative (given: %s)', p_delay),
      detail = json_build_object('name', 'p_delay', 'value', p_delay, 'index', p_index)::text, hint = 'Leave it out to enqueue at once.';
  end if;
  begin
    v_run_at := coalesce(p_run_at, pgfifo._now() + p_delay);
  exception when datetime_field_overflow then
    v_run_at := 'infinity';
  end;
  if not isfinite(v_run_at) or v_run_at >= timestamptz '10000-01-01 00:00:00+00' then
    raise exception using errcode = 'QF022', message = format('no execution can join its line at %s', coalesce(p_run_at::text, 'a time so far away')),
      detail = json_build_object('name', case when p_delay is null then 'p_run_at' else 'p_delay' end, 'value', coalesce(p_run_at::text, p_delay::text),
        'index', p_index)::text,
      hint = 'Give a time before the year 10000; reschedule can change it.';
  end if;
  return v_run_at;
end $$;

-- The same for a batch: null where all join now. Elements beyond the payloads are left to whoever counts them.
create or replace function pgfifo._run_ats(p_run_ats timestamptz[], p_delay interval, p_count integer) returns timestamptz[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if array_remove(p_run_ats, null) <> '{}' then
    return array(select case when r.run_at is not null then pgfifo._run_at(r.run_at, p_delay, r.n::integer - 1) end
                 from unnest(p_run_ats) with ordinality r(run_at, n) order by r.n);
  elsif p_delay is not null and p_count > 0 then
    return array_fill(pgfifo._run_at(null, p_delay, null), array[p_count]);
  end if;
  return p_run_ats;
end $$;

-- jsonb is at most six times smaller than its text (escapes), so most payloads are never turned back into text here.
create or replace function pgfifo._check_payload(p_action text, p_payload jsonb, p_limit double precision, p_index integer) returns void
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_payload is null then
    raise exception using errcode = 'QF022',
      message = format('the payload of this execution of %s is missing (SQL null)', p_action),
      detail = json_build_object('action', p_action, 'name', 'p_payload', 'index', p_index)::text,
      hint = 'Give any JSON value; JSON null is one.';
  elsif pg_column_size(p_payload) * 6.0 > p_limit and octet_length(p_payload::text) > p_limit then
    raise exception using errcode = 'QF009',
      message = format('the payload of this execution of %s has %s bytes; at most %s are allowed', p_action, octet_length(p_payload::text), p_limit),
      detail = json_build_object('action', p_action, 'bytes', octet_length(p_payload::text), 'limit', p_limit, 'index', p_index)::text,
      hint = 'Store the data elsewhere and enqueue its id, or raise max_payload of the action.';
  end if;
end $$;

-- The length of a lane as an enqueuer sees it who holds the lane's enqueue lock exclusively: what the newest ledger says
-- is waiting, and what has joined since. The newest arrival carries the running total where lengths are limited; where
-- it does not, the unfolded ones are added up. One statement, one snapshot: an arrival is either folded or not.
create or replace function pgfifo._length(p_lane_id bigint, out o_length bigint, out o_total bigint)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_wait interval;
begin
  select g.waiting + a.n, g.joined + a.n
    into o_length, o_total
  from (select * from pgfifo.ledger g where g.lane_id = p_lane_id order by g.lane_id desc, g.version desc limit 1) g,
    lateral (
      select coalesce(
        (select coalesce(m.total - g.joined, (select sum(s.n) from pgfifo.arrivals s where s.lane_id = p_lane_id and s.id > g.mark_floor))
         from pgfifo.arrivals m where m.lane_id = p_lane_id and m.id > g.mark_floor order by m.lane_id desc, m.id desc limit 1), 0) as n
    ) a;
  -- What has expired does not count, whether its outcome is written or not.
  v_wait := pgfifo._max_wait(p_lane_id);
  if o_length > 0 and v_wait is not null then
    o_length := o_length - pgfifo._count_expired(p_lane_id, pgfifo._now() - v_wait);
  end if;
end $$;

create or replace function pgfifo._queue_full(p_action text, p_group text, p_limit double precision, p_current bigint, p_asked bigint, p_index integer)
returns void
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception using errcode = 'QF001',
    message = format('the line of %s%s is full: %s waiting, at most %s allowed%s', p_action,
      case when p_group = '' then '' else ' (' || pgfifo.format_group(p_group) || ')' end, pgfifo._number(p_current),
      pgfifo._number(p_limit::numeric), case when p_asked > 1 then format(', and %s were to come', pgfifo._number(p_asked)) else '' end),
    detail = json_build_object('action', p_action, 'group', p_group, 'limit', p_limit, 'current', p_current, 'asked', p_asked, 'index', p_index)::text,
    hint = 'Nothing was enqueued. Try again later, run more workers, or raise max_queue_length.';
end $$;
