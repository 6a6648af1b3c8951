-- Each attribute in force for an action or for one of its lanes; with neither, what holds where no narrower scope says anything.
create or replace function pgfifo._effective(p_action_id integer, p_lane_id bigint)
returns table (attribute text, value jsonb, source text, origin text, until timestamptz, remaining double precision)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_scopes constant text[] := array['lane', 'action', 'declared', 'pack', 'everything'];
  v_now timestamptz := pgfifo._now();
  v_action text;
  v_pack text;
  v_lane text;
begin
  select a.name, a.pack into v_action, v_pack from pgfifo.actions a where a.id = p_action_id;
  v_lane := (select rtrim(v_action || ' ' || pgfifo.format_group(l.group_text)) from pgfifo.lanes l where l.id = p_lane_id);
  return query
  with said as (
    select k.o_attribute as attribute, p.scope, p.row -> k.o_attribute as value, null::timestamptz as until
    from (
      select to_jsonb(p) as row, p.scope from pgfifo.policies p
      where p.scope = 'everything' or (p.scope = 'pack' and p.pack = v_pack) or (p.scope in ('action', 'declared') and p.action_id = p_action_id)
        or (p.scope = 'lane' and p.lane_id = p_lane_id)
      offset 0) p
    cross join pgfifo._policy_attributes() k
    where p.row -> k.o_attribute <> 'null'
    union all
    select o.attribute, o.scope, o.value, o.until from pgfifo._overrides o
    where o.until > v_now and o.target = any (array['everything', 'pack:' || v_pack, 'action:' || p_action_id::text, 'lane:' || p_lane_id::text])),
  chosen as (
    select distinct on (s.attribute, case when s.attribute = 'quota' then replace(s.scope, 'declared', 'action') end) s.*
    from said s
    order by s.attribute, case when s.attribute = 'quota' then replace(s.scope, 'declared', 'action') end, s.until is null, array_position(c_scopes, s.scope))
  select k.o_attribute,
    pgfifo._shown(k.o_attribute, coalesce(c.value, case when k.o_attribute = 'burst'
      then (select nullif(r.value -> 0, '"Infinity"') from chosen r where r.attribute = 'rate') else to_jsonb(d) -> k.o_attribute end)),
    case when c.until is not null then 'override' else coalesce(c.scope, 'default') end,
    case when c.until is not null then rtrim(c.scope || ' ' || coalesce(w.name, '')) else w.name end,
    c.until,
    extract(epoch from c.until - v_now)::double precision
  from (select a.o_attribute, row_number() over () as n from pgfifo._policy_attributes() a) k
  cross join pgfifo._default_policy d
  left join chosen c on c.attribute = k.o_attribute
  cross join lateral (select case c.scope when 'lane' then v_lane when 'action' then v_action when 'declared' then v_action when 'pack' then v_pack end as name) w
  order by k.n, array_position(c_scopes, c.scope);
end $$;
