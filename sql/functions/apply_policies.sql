-- Bring policies to what a document says, in the form of export_policies, all or nothing. What it does not name stays, or
-- goes with p_prune; what code has declared, overrides and pauses are not its business. Returns what differs, with p_dry_run
-- only that, without a lock.
create or replace function pgfifo.apply_policies(p_policies jsonb, p_prune boolean default false, p_dry_run boolean default false, p_force boolean default false)
returns table (scope text, action text, group_text text, pack text, limit_name text, attribute text, old jsonb, new jsonb, note text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_target record;
  v_limit record;
  v_action_id integer;
  v_lane_id bigint;
begin
  if not p_dry_run then
    perform pgfifo._require_read_committed('apply_policies');
  end if;
  -- Shared limits first: their lock is the one of everything, the first in the order below. Where one differs, those who
  -- draw from it come to be, as any action that a document names, and then all are compared again under the lock.
  if not p_dry_run and exists (select from pgfifo._limit_document(p_policies, p_prune)) then
    perform pgfifo._action(n.name)
    from pgfifo._limit_document(p_policies, p_prune) l cross join jsonb_array_elements_text(l.o_new -> 'actions') n(name)
    order by n.name collate "C";
    if not pgfifo._lock('pgfifo.policies'::regclass, 0, interval '5 s') then
      perform pgfifo._busy('another transaction is changing limits; gave up after 5 s', 'pgfifo.policies'::regclass, 0);
    end if;
  end if;
  for v_limit in select l.* from pgfifo._limit_document(p_policies, p_prune) l loop
    if p_dry_run then
      null;
    elsif v_limit.o_dropped then
      perform pgfifo.drop_shared_limit(v_limit.o_name);
    else
      perform pgfifo.set_shared_limit(v_limit.o_name, v_limit.o_new);
    end if;
    return query
      select 'limit', null::text, null::text, null::text, v_limit.o_name, k.key, nullif(v_limit.o_old -> k.key, 'null'), nullif(k.value, 'null'), v_limit.o_note
      from jsonb_each(v_limit.o_new) k order by k.key collate "C";
  end loop;
  -- Compared without locks. A scope that differs is set to all that the document says of it, under its lock; one that does
  -- not was right when it was looked at. In an order that all keep who take several of these locks: wide scopes, actions,
  -- lanes in the order of their keys (new ones last; nobody else has them).
  for v_target in
    select t.*, c.old, c.new, count(*) filter (where t.o_scope = 'lane') over () as lanes
    from pgfifo._policy_document(p_policies, p_prune) t
    cross join lateral (
      select jsonb_object_agg(k.key, coalesce(to_jsonb(t.o_own) -> k.key, 'null')) as old, jsonb_object_agg(k.key, k.value) as new,
        coalesce(bool_or(k.value is distinct from coalesce(to_jsonb(t.o_own) -> k.key, 'null')), false) as changed
      from jsonb_each(t.o_values) k) c
    left join pgfifo.actions a on a.name = t.o_action
    left join pgfifo.lanes l on l.action_id = a.id and l.group_text = t.o_group
    where c.changed
    order by array_position(array['everything', 'pack', 'action', 'lane'], t.o_scope), t.o_pack collate "C",
      case when t.o_scope = 'action' then t.o_action end collate "C", pgfifo._key(l.id), t.o_action collate "C", t.o_group collate "C"
  loop
    if p_dry_run then
      return query
        select v_target.o_scope, v_target.o_action, v_target.o_group, v_target.o_pack, null::text, k.key,
          pgfifo._shown(k.key, v_target.old -> k.key), pgfifo._shown(k.key, k.value),
          case when k.key = 'group_by' then (
            select pgfifo._counted(s.queue_length, 'waiting execution would stay in its old lane', 'waiting executions would stay in their old lanes')
              || ': it has to be forced'
            from pgfifo.queue_stats s where s.action = v_target.o_action and s.queue_length > 0) end
        from jsonb_each(v_target.new) k
        where k.value is distinct from v_target.old -> k.key
        order by k.key collate "C";
      continue;
    end if;
    if v_target.lanes > pgfifo.max_batch_lanes() then
      raise exception using errcode = 'QF020',
        message = format('this document changes the policies of %s lanes; at most %s are allowed in one', v_target.lanes, pgfifo.max_batch_lanes()),
        detail = json_build_object('lanes', v_target.lanes, 'limit', pgfifo.max_batch_lanes())::text,
        hint = 'Apply it in parts: each lane''s lock is held until the commit, in a table that the whole cluster shares.';
    end if;
    v_action_id := null;
    v_lane_id := null;
    if v_target.o_action is not null then
      v_action_id := pgfifo._action(v_target.o_action);
    end if;
    if v_target.o_scope = 'lane' then
      v_lane_id := pgfifo._policy_lane(v_action_id, v_target.o_group, 'apply_policies');
    end if;
    return query
      select v_target.o_scope, v_target.o_action, v_target.o_group, v_target.o_pack, null::text, s.attribute, s.old, s.new, s.note
      from pgfifo._set_policy(v_target.o_scope, v_target.o_pack, v_action_id, v_lane_id,
        (select jsonb_object_agg(k.key, pgfifo._shown(k.key, k.value)) from jsonb_each(v_target.o_values) k), p_force) s
      where s.old is distinct from s.new;
  end loop;
end $$;
comment on function pgfifo.apply_policies is 'Bring policies to what a document says, all or nothing, or only show what differs.';
