-- Set limits and rules of an action, or of one of its lanes. Only what is named changes; null inherits again.
-- An action that is unknown comes to be, unless all that is asked is to inherit again. Changes apply at once, also to what is waiting.
create or replace function pgfifo.set_policy(p_action text, p_values jsonb, p_group text default null, p_force boolean default false)
returns table (attribute text, old jsonb, new jsonb, note text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_action_id integer := case when p_values <> '{}' and jsonb_typeof(p_values) = 'object' and p_values = (select jsonb_object_agg(k, null) from jsonb_object_keys(p_values) k)
    then pgfifo._known_action(p_action) else pgfifo._action(p_action) end;
  v_group text;
  v_lane_id bigint;
begin
  if p_group is null then
    return query select * from pgfifo._set_policy('action', null, v_action_id, null, p_values, p_force);
    return;
  end if;
  v_group := pgfifo._group(p_action, (select p.group_by from pgfifo._action_policies p where p.action_id = v_action_id), null, p_group);
  loop
    v_lane_id := pgfifo._lane(v_action_id, v_group);
    continue when v_lane_id is null;
    perform pgfifo._lock_lane(v_lane_id, 'set_policy');
    exit when exists (select from pgfifo.lanes l where l.id = v_lane_id);
  end loop;
  return query select * from pgfifo._set_policy('lane', null, v_action_id, v_lane_id, p_values, p_force);
end $$;
comment on function pgfifo.set_policy is 'Set limits and rules of an action or of one lane; null inherits again.';
