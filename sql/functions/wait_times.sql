-- How long executions have waited from their enqueue to their first start, of those that succeeded or failed in the last minutes: per
-- action and minute, and, with a minute of null, over all of these minutes. Read from counts in classes, each a quarter wider than the
-- one before, so a percentile is right to an eighth. Kept for a day.
create or replace function pgfifo.wait_times(p_action text default null, p_minutes integer default 60)
returns table (action text, minute timestamptz, measured bigint, p50 double precision, p95 double precision, p99 double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
  v_action_id integer := case when p_action is not null then pgfifo._known_action(p_action) end;
  v_since timestamptz := pgfifo._minute(pgfifo._now()) - make_interval(mins => p_minutes);
begin
  if p_minutes is null or p_minutes not between 1 and 1440 then
    raise exception using errcode = 'QF022', message = format('p_minutes must be between 1 and 1440, not %s', coalesce(p_minutes::text, 'null')),
      detail = json_build_object('name', 'p_minutes', 'value', p_minutes)::text, hint = 'These times are kept for a day.';
  end if;
  return query
  with counted as (
    select w.action_id, w.minute, w.class, sum(w.n)::bigint as n from pgfifo._waits w
    where (v_action_id is null or w.action_id = v_action_id) and w.minute >= v_since
    group by grouping sets ((w.action_id, w.minute, w.class), (w.action_id, w.class))),
  summed as (
    select c.*, sum(c.n) over (partition by c.action_id, c.minute order by c.class) as upto, sum(c.n) over (partition by c.action_id, c.minute) as measured
    from counted c)
  select a.name, s.minute, max(s.measured)::bigint,
    pgfifo._wait_of_class(min(s.class) filter (where s.upto >= 0.5 * s.measured)),
    pgfifo._wait_of_class(min(s.class) filter (where s.upto >= 0.95 * s.measured)),
    pgfifo._wait_of_class(min(s.class) filter (where s.upto >= 0.99 * s.measured))
  from summed s join pgfifo.actions a on a.id = s.action_id
  group by a.name, s.minute
  order by a.name, s.minute nulls last;
end $$;
comment on function pgfifo.wait_times is 'Say how long executions have waited for their start: the median, and what few have exceeded, per minute and in all.';
