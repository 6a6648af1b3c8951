-- Each attribute in force for an action, or for one of its lanes, and the scope it comes from. Without an action: what holds where no
-- narrower scope says anything.
create or replace function pgfifo.effective_policy(p_action text default null, p_group text default null)
returns table (attribute text, value jsonb, source text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_action_id integer := case when p_action is not null then pgfifo._known_action(p_action) end;
  v_lane_id bigint;
begin
  if p_group is not null and p_action is null then
    raise exception using errcode = 'QF022', message = 'a group says which lane only together with its action',
      detail = json_build_object('name', 'p_group', 'value', p_group)::text, hint = 'Name the action too.';
  elsif p_group is not null then
    v_lane_id := pgfifo._find_lane(v_action_id, p_action, p_group);
  end if;
  return query
  select k.attribute, pgfifo._shown(k.attribute, coalesce(v.value, to_jsonb(d) -> k.attribute)), coalesce(v.scope, 'default')
  from (select a.o_attribute as attribute, row_number() over () as n from pgfifo._policy_attributes() a) k
  cross join pgfifo._default_policy d
  left join pgfifo.actions a on a.id = v_action_id
  left join lateral (
    select p.scope, to_jsonb(p) -> k.attribute as value
    from pgfifo.policies p
    where to_jsonb(p) -> k.attribute <> 'null'
      and (p.scope = 'everything' or (p.scope = 'pack' and p.pack = a.pack) or (p.scope in ('action', 'declared') and p.action_id = a.id)
           or (p.scope = 'lane' and p.lane_id = v_lane_id))
    order by array_position(array['lane', 'action', 'declared', 'pack', 'everything'], p.scope) limit 1) v on true
  order by k.n;
end $$;
comment on function pgfifo.effective_policy is 'Show each attribute in force for an action or lane, and where it comes from; without an action, the defaults.';
