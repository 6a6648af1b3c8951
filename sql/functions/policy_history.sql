-- Who changed which attribute, when, from what to what, newest first. By action (its lanes and what its code declared included),
-- by one of its groups, or by pack or scope; without any of them all changes.
create or replace function pgfifo.policy_history(p_action text default null, p_group text default null, p_pack text default null, p_scope text default null,
  p_limit integer default 100)
returns table (at timestamptz, who name, application text, actor text, scope text, action text, group_text text, pack text, attribute text, old jsonb, new jsonb,
  until timestamptz, reason text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_action_id integer := case when p_action is not null then pgfifo._known_action(p_action) end;
  v_group text;
begin
  if p_limit is null or p_limit < 0 then
    raise exception using errcode = 'QF022', message = format('p_limit is a number of rows, not %s', coalesce(p_limit::text, 'null')),
      detail = json_build_object('name', 'p_limit', 'value', p_limit)::text;
  elsif p_group is not null and p_action is null then
    raise exception using errcode = 'QF022', message = 'a group says which lane only together with its action',
      detail = json_build_object('name', 'p_group', 'value', p_group)::text, hint = 'Name the action too.';
  elsif p_group is not null then
    v_group := pgfifo._group(p_action, (select p.group_by from pgfifo._action_policies p where p.action_id = v_action_id), null, p_group);
  end if;
  return query
  select t.at, t.who, t.application, t.actor, t.detail ->> 'scope', t.action, t.group_text, t.detail ->> 'pack', k.attribute,
    t.detail -> 'from' -> k.attribute, t.detail -> 'to' -> k.attribute, (t.detail ->> 'until')::timestamptz, t.detail ->> 'reason'
  from pgfifo.audit t
  cross join lateral jsonb_object_keys(t.detail -> 'to') k(attribute)
  where t.what in ('set_policy', 'override_policy') and t.detail -> 'from' -> k.attribute is distinct from t.detail -> 'to' -> k.attribute
    and (p_action is null or t.action = p_action) and (v_group is null or t.group_text = v_group) and (p_pack is null or t.detail ->> 'pack' = p_pack)
    and (p_scope is null or t.detail ->> 'scope' = p_scope)
  order by t.id desc, k.attribute collate "C" limit p_limit;
end $$;
comment on function pgfifo.policy_history is 'List the changes of policies, newest first: who, when, from, to.';
