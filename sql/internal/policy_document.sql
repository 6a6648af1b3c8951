-- What one scope's row says, as a caller reads it.
create or replace function pgfifo._own_values(p_policy pgfifo.policies) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(jsonb_object_agg(a.o_attribute, pgfifo._shown(a.o_attribute, r.row -> a.o_attribute)), '{}')
  from (select to_jsonb(p_policy) as row offset 0) r, pgfifo._policy_attributes() a where r.row -> a.o_attribute <> 'null'
$$;

-- A part of a document must be an object, with these keys if any are named.
create or replace function pgfifo._document_part(p_part jsonb, p_path text, p_keys text[] default null) returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_wrong text;
begin
  if jsonb_typeof(p_part) <> 'object' then
    raise exception using errcode = 'QF022', message = format('%s is no table', p_path), detail = json_build_object('name', p_path)::text,
      hint = 'A document of policies is {"everything": {…}, "packs": {"billing": {…}}, "actions": {"deploy": {…, "lanes": [{"group": "…", …}]}}}.';
  end if;
  select k into v_wrong from jsonb_object_keys(p_part) k where k <> all (p_keys) order by k limit 1;
  if found then
    raise exception using errcode = 'QF022', message = format('%s has no part %s', p_path, v_wrong), detail = json_build_object('name', v_wrong)::text,
      hint = 'There are: ' || array_to_string(p_keys, ', ') || '.';
  end if;
end $$;

-- The values of one part of a document; an error says where.
create or replace function pgfifo._document_values(p_scope text, p_path text, p_values jsonb) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_message text;
  v_detail text;
  v_hint text;
begin
  return pgfifo._policy_values(p_scope, p_values);
exception when sqlstate 'QF022' then
  get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail, v_hint = pg_exception_hint;
  raise exception using errcode = 'QF022', message = format('%s: %s', p_path, v_message), detail = (v_detail::jsonb || jsonb_build_object('path', p_path))::text,
    hint = v_hint;
end $$;

-- The targets of a document of policies with what it says of them, and what they say now. With p_prune also what they say
-- and the document does not, as null: inherited again.
create or replace function pgfifo._policy_document(p_policies jsonb, p_prune boolean)
returns table (o_scope text, o_pack text, o_action text, o_group text, o_values jsonb, o_own pgfifo.policies)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
  v_part jsonb;
  v_lane jsonb;
  v_path text;
  v_group_by text[];
  v_group text;
  v_targets jsonb[] := '{}';
begin
  perform pgfifo._document_part(p_policies, 'the document', array['everything', 'packs', 'actions', 'limit']);
  perform pgfifo._document_part(coalesce(p_policies -> 'everything', '{}'), 'everything');
  v_targets := v_targets || jsonb_build_object('scope', 'everything', 'values',
    pgfifo._document_values('everything', 'everything', coalesce(p_policies -> 'everything', '{}')));
  perform pgfifo._document_part(coalesce(p_policies -> 'packs', '{}'), 'packs');
  for v_name, v_part in select k.key, k.value from jsonb_each(coalesce(p_policies -> 'packs', '{}')) k order by k.key collate "C" loop
    v_path := format('packs.%s', v_name);
    perform pgfifo._document_part(v_part, v_path);
    v_targets := v_targets || jsonb_build_object('scope', 'pack', 'pack', pgfifo._pack(v_name), 'values', pgfifo._document_values('pack', v_path, v_part));
  end loop;
  perform pgfifo._document_part(coalesce(p_policies -> 'actions', '{}'), 'actions');
  for v_name, v_part in select k.key, k.value from jsonb_each(coalesce(p_policies -> 'actions', '{}')) k order by k.key collate "C" loop
    v_path := format('actions.%s', v_name);
    perform pgfifo._document_part(v_part, v_path);
    v_targets := v_targets || jsonb_build_object('scope', 'action', 'action', v_name, 'values', pgfifo._document_values('action', v_path, v_part - 'lanes'));
    continue when not v_part ? 'lanes';
    if jsonb_typeof(v_part -> 'lanes') <> 'array' then
      raise exception using errcode = 'QF022', message = format('%s.lanes is no array', v_path), detail = json_build_object('name', 'lanes', 'path', v_path)::text,
        hint = 'Each lane is an object with its group: {"group": {"env": "prod"}, "max_concurrent": 2}.';
    end if;
    -- The groups are those of the paths that hold when the document has been applied.
    select coalesce(case when v_values ? 'group_by' then d.group_by when not p_prune then a.group_by end, c.group_by, '{}') into v_group_by
    from (select v_targets[cardinality(v_targets)] -> 'values') t(v_values)
    cross join lateral (
      select case when jsonb_typeof(v_values -> 'group_by') = 'array' then array(select jsonb_array_elements_text(v_values -> 'group_by')) end as group_by) d
    left join pgfifo.actions n on n.name = v_name
    left join pgfifo.policies a on a.scope = 'action' and a.action_id = n.id
    left join pgfifo.policies c on c.scope = 'declared' and c.action_id = n.id;
    for v_lane in select e from jsonb_array_elements(v_part -> 'lanes') e loop
      perform pgfifo._document_part(v_lane, v_path || '.lanes');
      if coalesce(jsonb_typeof(v_lane -> 'group'), 'null') not in ('string', 'object') then
        raise exception using errcode = 'QF022', message = format('a lane of %s has no group', v_path), detail = json_build_object('name', 'group', 'path', v_path)::text,
          hint = 'Each lane is an object with its group: {"group": {"env": "prod"}, "max_concurrent": 2}.';
      end if;
      v_group := pgfifo._group(v_name, v_group_by, null, v_lane ->> 'group');
      v_targets := v_targets || jsonb_build_object('scope', 'lane', 'action', v_name, 'group', v_group, 'values',
        pgfifo._document_values('lane', rtrim(format('%s.lanes %s', v_path, pgfifo.format_group(v_group))), v_lane - 'group'));
    end loop;
  end loop;
  select x ->> 'action' || ' ' || pgfifo.format_group(x ->> 'group') into v_name
  from unnest(v_targets) x where x ->> 'scope' = 'lane' group by x ->> 'action', x ->> 'group' having count(*) > 1 limit 1;
  if found then
    raise exception using errcode = 'QF022', message = format('the lane %s is there twice', rtrim(v_name)), detail = json_build_object('name', 'lanes')::text,
      hint = 'Say in one place what holds for it.';
  end if;

  return query
  with said as (
    select x ->> 'scope' as scope, x ->> 'pack' as pack, x ->> 'action' as action, x ->> 'group' as grp, x -> 'values' as vals
    from unnest(v_targets) x),
  own as materialized (
    select p as row, p.scope, p.pack, a.name as action, l.group_text as grp
    from pgfifo.policies p
    left join pgfifo.lanes l on l.id = p.lane_id
    left join pgfifo.actions a on a.id = coalesce(p.action_id, l.action_id)
    where p.scope <> 'declared')
  select coalesce(s.scope, o.scope), coalesce(s.pack, o.pack), coalesce(s.action, o.action), coalesce(s.grp, o.grp),
    case when p_prune then (select coalesce(jsonb_object_agg(k, null::text), '{}') from jsonb_object_keys(pgfifo._own_values(o.row)) k) else '{}' end
      || coalesce(s.vals, '{}'),
    o.row
  from said s
  full join own o on o.scope || ' ' || coalesce(o.pack, '') || ' ' || coalesce(o.action, '') || ' ' || coalesce(o.grp, '')
    = s.scope || ' ' || coalesce(s.pack, '') || ' ' || coalesce(s.action, '') || ' ' || coalesce(s.grp, '')
  where s.scope is not null or p_prune;
end $$;
