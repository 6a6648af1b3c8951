-- What code says about its own action: the lowest values within the action's scope, replaced as a whole; operators' win.
create or replace function pgfifo.declare_action(p_action text, p_values jsonb default '{}') returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_action_id integer;
  v_wanted jsonb;
begin
  if jsonb_typeof(p_values) <> 'object' then
    perform pgfifo._policy_values('declared', p_values);  -- says so
  end if;
  v_action_id := pgfifo._action(p_action);
  v_wanted := (select jsonb_object_agg(a.o_attribute, coalesce(p_values -> a.o_attribute, 'null')) from pgfifo._policy_attributes() a) || coalesce(p_values, '{}');
  -- Every process declares when it starts; where nothing changes nothing is locked.
  if exists (select from pgfifo.policies p where p.scope = 'declared' and p.action_id = v_action_id
             and (select jsonb_object_agg(k, to_jsonb(p) -> k) from jsonb_object_keys(v_wanted) k) = pgfifo._policy_values('declared', v_wanted)) then
    return;
  end if;
  perform pgfifo._set_policy('declared', null, v_action_id, null, v_wanted, false);
end $$;
comment on function pgfifo.declare_action is 'Declare an action and its defaults from code; operators'' values win.';
