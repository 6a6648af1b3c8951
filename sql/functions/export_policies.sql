-- What operators have set, scope by scope: {"everything": {…}, "packs": {"billing": {…}}, "actions": {"deploy": {…, "lanes":
-- [{"group": "…", …}]}}, "limit": {"api": {…}}}, the last being shared limits. Nothing that is inherited, declared by code or overridden for a time, and no pauses.
create or replace function pgfifo.export_policies() returns jsonb
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  with own as (
    select p.scope, p.pack, a.name as action, l.group_text, pgfifo._own_values(p) as said
    from pgfifo.policies p
    left join pgfifo.lanes l on l.id = p.lane_id
    left join pgfifo.actions a on a.id = coalesce(p.action_id, l.action_id)
    where p.scope <> 'declared'),
  lanes as (
    select o.action, jsonb_agg(jsonb_build_object('group', o.group_text) || o.said order by o.group_text collate "C") as said
    from own o where o.scope = 'lane' and o.said <> '{}' group by o.action),
  actions as (
    select a.action, coalesce(o.said, '{}') || case when l.said is null then '{}' else jsonb_build_object('lanes', l.said) end as said
    from (select o.action from own o where o.scope = 'action' and o.said <> '{}' union select l.action from lanes l) a
    left join own o on o.scope = 'action' and o.action = a.action
    left join lanes l on l.action = a.action)
  select jsonb_build_object(
    'everything', coalesce((select o.said from own o where o.scope = 'everything'), '{}'),
    'packs', coalesce((select jsonb_object_agg(o.pack, o.said) from own o where o.scope = 'pack' and o.said <> '{}'), '{}'),
    'actions', coalesce((select jsonb_object_agg(a.action, a.said) from actions a), '{}'),
    'limit', coalesce((
      select jsonb_object_agg(s.name, (select jsonb_object_agg(k.key, k.value) from jsonb_each(pgfifo._shared_limit(s.id)) k
        where k.value <> all (array['null', '[]', 'false']::jsonb[])))
      from pgfifo._shared_limits s), '{}'))
$$;
comment on function pgfifo.export_policies is 'Return what operators have set, scope by scope, in the form that apply_policies takes.';
