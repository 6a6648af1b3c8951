-- Each attribute in force for an action, or for one of its lanes, and the scope it comes from.
create or replace function pgfifo.effective_policy(p_action text, p_group text default null)
returns table (attribute text, value jsonb, source text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_action_id integer := pgfifo._known_action(p_action);
  v_lane_id bigint := case when p_group is not null then pgfifo._find_lane(v_action_id, p_action, p_group) end;
begin
  return query
  select k.attribute, pgfifo._shown(coalesce(v.value, to_jsonb(d) -> k.attribute)), coalesce(v.scope, 'default')
  from pgfifo._policy_attributes() with ordinality k(attribute, n)
  cross join (select * from pgfifo._action_policies p where p.action_id = v_action_id) d
  left join lateral (
    select p.scope, to_jsonb(p) -> k.attribute as value
    from pgfifo.policies p, pgfifo.actions a
    where a.id = v_action_id and to_jsonb(p) -> k.attribute <> 'null'
      and (p.scope = 'everything' or (p.scope = 'pack' and p.pack = a.pack) or (p.scope in ('action', 'declared') and p.action_id = a.id)
           or (p.scope = 'lane' and p.lane_id = v_lane_id))
    order by array_position(array['lane', 'action', 'declared', 'pack', 'everything'], p.scope) limit 1) v on true
  order by k.n;
end $$;
comment on function pgfifo.effective_policy is 'Show each attribute in force for an action or lane, and where it comes from.';
