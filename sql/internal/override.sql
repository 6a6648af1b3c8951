-- Let values win over every scope's at one target for a time; a null ends an override. The same locks as a change of the
-- policy, taken before anything is read, for the same reasons: no start commits under a limit that has been replaced.
create or replace function pgfifo._override_policy(p_scope text, p_pack text, p_action_id integer, p_lane_id bigint, p_values jsonb, p_lasting interval, p_reason text)
returns table (attribute text, old jsonb, new jsonb, note text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_values jsonb;
  v_now timestamptz;
  v_until timestamptz;
  v_key text;
  v_value jsonb;
  v_old pgfifo._overrides;
  v_from jsonb := '{}';
  v_target text := case p_scope when 'lane' then 'lane:' || p_lane_id::text when 'action' then 'action:' || p_action_id::text
    when 'pack' then 'pack:' || p_pack else 'everything' end;
begin
  perform pgfifo._require_read_committed('override_policy');
  v_values := pgfifo._policy_values(p_scope, p_values);
  for v_key in select k from jsonb_object_keys(v_values) k where k in ('group_by', 'ordering', 'declared_actions_only', 'audit_retention') order by k loop
    raise exception using errcode = 'QF022', message = format('%s cannot be overridden for a time', v_key),
      detail = json_build_object('name', v_key, 'value', p_values -> v_key)::text,
      hint = case v_key when 'audit_retention' then 'What is forgotten does not come back.'
        else 'It decides where enqueues go, and changes only while none is in flight.' end || ' Set it, and set it back.';
  end loop;
  if v_values ? 'max_wait' then
    raise exception using errcode = 'QF022', message = 'max_wait cannot be overridden for a time',
      detail = json_build_object('name', 'max_wait', 'value', p_values -> 'max_wait')::text,
      hint = 'What has expired stays so, and the end of an override touches nothing. Set it, and set it back.';
  end if;
  if p_lasting > interval '366 days' or jsonb_strip_nulls(v_values) <> '{}' and (p_lasting is null or p_lasting <= interval '0') then
    raise exception using errcode = 'QF022', message = format('an override lasts for a time of up to a year (given: %s)', coalesce(p_lasting::text, 'null')),
      detail = json_build_object('name', 'p_lasting', 'value', p_lasting)::text, hint = 'Say for how long, as ''1 hour''; or set the policy itself.';
  end if;
  perform pgfifo._lock_limits(p_scope, p_action_id, p_lane_id, 'override_policy');
  v_now := pgfifo._now();
  v_until := v_now + p_lasting;
  for v_key, v_value in select k.key, k.value from jsonb_each(v_values) k order by k.key collate "C" loop
    delete from pgfifo._overrides o where o.target = v_target and o.attribute = v_key returning o.* into v_old;
    attribute := v_key;
    old := case when v_old.until > v_now then pgfifo._shown(v_key, v_old.value) end;
    new := pgfifo._shown(v_key, v_value);
    note := case when v_value <> 'null' then format('until %s', v_until) end;
    v_from := v_from || jsonb_build_object(v_key, old);
    if v_value <> 'null' then
      insert into pgfifo._overrides (scope, pack, action_id, lane_id, attribute, value, until, set_at, set_by, actor, reason)
      values (p_scope, p_pack, p_action_id, p_lane_id, v_key, v_value, v_until, v_now, session_user, nullif(current_setting('pgfifo.actor', true), ''),
        left(p_reason, 1000));
    end if;
    return next;
  end loop;
  if v_values <> '{}' then
    perform pgfifo._audit('override_policy', (select a.name from pgfifo.actions a where a.id = p_action_id), null,
      jsonb_build_object('scope', p_scope, 'pack', p_pack, 'group', (select l.group_text from pgfifo.lanes l where l.id = p_lane_id), 'from', v_from,
        'to', (select jsonb_object_agg(k.key, pgfifo._shown(k.key, k.value)) from jsonb_each(v_values) k),
        'until', case when jsonb_strip_nulls(v_values) <> '{}' then v_until end, 'reason', left(p_reason, 1000)));
  end if;
  if exists (select from pgfifo._policy_attributes() a where a.o_starts and v_values ? a.o_attribute) then
    perform pgfifo._limits_changed(p_scope, p_pack, p_action_id, p_lane_id);
  end if;
end $$;

-- Overrides whose time is over have ended already, by the clock; what is left to do is to look at their lanes again (law 2:
-- nobody else does, since nobody changed anything). A claim that is under way may have read the clock before that moment
-- and found its lane full, and it eats the mark we leave if it sees it. So we take the lock under which limits change,
-- which such a claim holds, to its commit: when we have it, whoever claims later reads the clock after us. By try; for the
-- first that cannot be had so, p_wait. Dies here: the row is still there, and the next one finds it.
create or replace function pgfifo._end_overrides(p_now timestamptz, p_wait interval default null) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_target record;
  v_class oid;
  v_key integer;
  v_wait interval := p_wait;
  v_locked boolean;
  v_ended text[];
  v_count integer := 0;
begin
  for v_target in
    select o.target, o.scope, o.pack, o.action_id, o.lane_id from pgfifo._overrides o
    where o.until <= p_now group by o.target, o.scope, o.pack, o.action_id, o.lane_id order by o.target limit 256
  loop
    -- The same locks as a change (see _lock_limits).
    continue when v_target.scope = 'action' and not pg_try_advisory_xact_lock_shared('pgfifo.policies'::regclass::oid::integer, 0);
    v_class := case v_target.scope when 'lane' then 'pgfifo.lanes'::regclass else 'pgfifo.policies'::regclass end;
    v_key := case v_target.scope when 'lane' then pgfifo._key(v_target.lane_id) else coalesce(v_target.action_id, 0) end;
    if not pg_try_advisory_xact_lock(v_class::integer, v_key) then
      continue when v_wait is null;
      v_locked := pgfifo._lock(v_class, v_key, v_wait);
      v_wait := null;
      continue when not v_locked;
    end if;
    -- Law 1: one of them may have been given another hour meanwhile.
    with gone as (
      delete from pgfifo._overrides o where o.target = v_target.target and o.until <= p_now returning o.attribute)
    select array_agg(g.attribute) into v_ended from gone g;
    if exists (select from pgfifo._policy_attributes() a where a.o_starts and a.o_attribute = any (v_ended)) then
      perform pgfifo._limits_changed(v_target.scope, v_target.pack, v_target.action_id, v_target.lane_id);
    end if;
    v_count := v_count + coalesce(cardinality(v_ended), 0);
  end loop;
  return v_count;
end $$;
