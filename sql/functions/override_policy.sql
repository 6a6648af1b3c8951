-- Let values of an action, or of one of its lanes, win over every scope's for a time. Only what is named changes; a null ends
-- an override before its time. An override of a narrower target wins over one of a wider. When the time is over the
-- policies hold again, by the clock, and the lanes are looked at again without anybody's doing.
create or replace function pgfifo.override_policy(p_action text, p_values jsonb, p_lasting interval default null, p_group text default null, p_reason text default null)
returns table (attribute text, old jsonb, new jsonb, note text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_action_id integer := pgfifo._known_action(p_action);
begin
  if p_group is null then
    return query select * from pgfifo._override_policy('action', null, v_action_id, null, p_values, p_lasting, p_reason);
  else
    return query select * from pgfifo._override_policy('lane', null, v_action_id,
      pgfifo._policy_lane(v_action_id, pgfifo.group_text(p_action, null, p_group), 'override_policy'), p_values, p_lasting, p_reason);
  end if;
end $$;
comment on function pgfifo.override_policy is 'Let values win over every scope''s in an action or one lane for a time; null ends an override.';
