-- Lanes of all actions or of one: the deepest first (p_sort 'depth'), those whose head has waited longest ('oldest'), those with the most
-- active ('active'), or by action and group ('group'). p_search: what their group has in it, 'prod' or 'env=prod'. p_state: only lanes in
-- which something is 'waiting' or 'active', or that are 'paused' themselves.
-- Which lanes, that is found out with sums over whole tables; what they are in is read from lane_stats then, for those of the page.
create or replace function pgfifo.list_lanes(
  p_action text default null,
  p_search text default null,
  p_state text default null,
  p_sort text default 'group',
  p_limit integer default 100,
  p_offset integer default 0
) returns setof pgfifo.lane_stats
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
-- A plan for any order would look at the head of each lane, wanted or not.
set plan_cache_mode = force_custom_plan
as $$
declare
  v_action_id integer := case when p_action is not null then pgfifo._known_action(p_action) end;
  v_search text := nullif(translate(lower(p_search), '={}" ', ':'), '');
  v_problem text := case
    when p_sort is null or p_sort not in ('depth', 'oldest', 'active', 'group') then 'p_sort'
    when p_state not in ('waiting', 'active', 'paused') then 'p_state'
    when p_limit is null or p_limit < 0 then 'p_limit'
    when p_offset is null or p_offset < 0 then 'p_offset' end;
  v_ids bigint[];
begin
  if v_problem is not null then
    raise exception using errcode = 'QF022', message = format('%s cannot be %s', v_problem,
        coalesce(quote_literal(case v_problem when 'p_sort' then p_sort when 'p_state' then p_state when 'p_limit' then p_limit::text else p_offset::text end), 'null')),
      detail = json_build_object('name', v_problem)::text,
      hint = case v_problem when 'p_sort' then 'Give depth, oldest, active or group.' when 'p_state' then 'Give waiting, active or paused, or nothing.'
        else 'Give a number from 0 on.' end;
  end if;
  if p_sort = 'group' and p_state is null then
    v_ids := array(
      select l.id from pgfifo.lanes l join pgfifo.actions a on a.id = l.action_id
      where (v_action_id is null or l.action_id = v_action_id)
        and (v_search is null or strpos(translate(lower(l.group_text), '{}" ', ''), v_search) > 0)
      order by a.name, l.group_text limit p_limit offset p_offset);
  else
    v_ids := array(
      select c.id
      from (
        select l.id, case when p_sort = 'group' then a.name end as name, case when p_sort = 'group' then l.group_text end as group_text,
          g.waiting + coalesce(r.n, 0) as waiting, g.running + g.held as active, g.consumed, g.returned
        from pgfifo.lanes l
        join pgfifo.actions a on a.id = l.action_id
        join pgfifo.ledger g on g.lane_id = l.id
        left join (select r.lane_id, sum(r.n)::bigint as n from pgfifo.arrivals r group by r.lane_id) r on r.lane_id = l.id
        where (v_action_id is null or l.action_id = v_action_id)
          and (v_search is null or strpos(translate(lower(l.group_text), '{}" ', ''), v_search) > 0)
          and (p_state is distinct from 'waiting' or g.waiting + coalesce(r.n, 0) > 0)
          and (p_state is distinct from 'active' or g.running + g.held > 0)
          and (p_state is distinct from 'paused' or l.id in (select p.lane_id from pgfifo.policies p where p.scope = 'lane' and p.paused_at is not null))) c
      left join lateral (
        select least(
          (select e.enqueued_at from pgfifo._executions e where e.lane_id = c.id and e.ticket > c.consumed order by e.lane_id, e.ticket limit 1),
          case when c.returned > 0 then
            (select min(e.enqueued_at) from pgfifo.runs r join pgfifo._executions e on e.id = r.id where r.lane_id = c.id and r.state = 'returned') end) as at
        offset 0) h on p_sort = 'oldest' and c.waiting > 0
      -- Texts only where they are asked for: they are slow to compare.
      order by case p_sort when 'depth' then c.waiting when 'active' then c.active end desc nulls last, h.at, c.name, c.group_text, c.waiting desc, c.id
      limit p_limit offset p_offset);
  end if;
  return query
  select s.* from unnest(v_ids) with ordinality i(id, place)
  cross join lateral (select s.* from pgfifo.lane_stats s where s.lane_id = i.id offset 0) s
  order by i.place;
end $$;
comment on function pgfifo.list_lanes is 'List lanes: the deepest first, those that have waited longest, or by group; all, or those that are searched for.';
