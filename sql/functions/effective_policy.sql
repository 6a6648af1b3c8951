-- Each attribute in force for an action, or for one of its lanes, and where it comes from. Without an action: what holds where no
-- narrower scope says anything. Quotas are not inherited: there is a row for each scope that has one, and all of them hold.
create or replace function pgfifo.effective_policy(p_action text default null, p_group text default null)
returns table (attribute text, value jsonb, source text, origin text, until timestamptz, remaining double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  c_scopes constant text[] := array['lane', 'action', 'declared', 'pack', 'everything'];
  v_now timestamptz := pgfifo._now();
  v_action_id integer := case when p_action is not null then pgfifo._known_action(p_action) end;
  v_pack text := (select a.pack from pgfifo.actions a where a.id = v_action_id);
  v_lane_id bigint;
  v_lane text;
begin
  if p_group is not null and p_action is null then
    raise exception using errcode = 'QF022', message = 'a group says which lane only together with its action',
      detail = json_build_object('name', 'p_group', 'value', p_group)::text, hint = 'Name the action too.';
  elsif p_group is not null then
    v_lane_id := pgfifo._find_lane(v_action_id, p_action, p_group);
    v_lane := (select rtrim(p_action || ' ' || pgfifo.format_group(l.group_text)) from pgfifo.lanes l where l.id = v_lane_id);
  end if;
  return query
  with said as (
    select k.o_attribute as attribute, p.scope, p.row -> k.o_attribute as value, null::timestamptz as until
    from (
      select to_jsonb(p) as row, p.scope from pgfifo.policies p
      where p.scope = 'everything' or (p.scope = 'pack' and p.pack = v_pack) or (p.scope in ('action', 'declared') and p.action_id = v_action_id)
        or (p.scope = 'lane' and p.lane_id = v_lane_id)
      offset 0) p
    cross join pgfifo._policy_attributes() k
    where p.row -> k.o_attribute <> 'null'
    union all
    select o.attribute, o.scope, o.value, o.until from pgfifo._overrides o
    where o.until > v_now and o.target = any (array['everything', 'pack:' || v_pack, 'action:' || v_action_id::text, 'lane:' || v_lane_id::text])),
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
  cross join lateral (select case c.scope when 'lane' then v_lane when 'action' then p_action when 'declared' then p_action when 'pack' then v_pack end as name) w
  order by k.n, array_position(c_scopes, c.scope);
end $$;
comment on function pgfifo.effective_policy is 'Show each attribute in force for an action or lane, and where it comes from; without an action, the defaults.';
