-- Set limits and rules of an action, or of one of its lanes. Only what is named changes; null inherits again.
-- An action that is unknown comes to be, unless all that is asked is to inherit again. Changes apply at once, also to what is waiting.
create or replace function pgfifo.set_policy(p_action text, p_values jsonb, p_group text default null, p_force boolean default false)
returns table (attribute text, old jsonb, new jsonb, note text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_action_id integer := case when p_values <> '{}' and jsonb_typeof(p_values) = 'object' and p_values = (select jsonb_object_agg(k, null) from jsonb_object_keys(p_values) k)
    then pgfifo._known_action(p_action) else pgfifo._action(p_action) end;
begin
  if p_group is null then
    return query select * from pgfifo._set_policy('action', null, v_action_id, null, p_values, p_force);
  else
    return query select * from pgfifo._set_policy('lane', null, v_action_id,
      pgfifo._policy_lane(v_action_id, pgfifo.group_text(p_action, null, p_group), 'set_policy'), p_values, p_force);
  end if;
end $$;
comment on function pgfifo.set_policy is 'Set limits and rules of an action or of one lane; null inherits again.';
