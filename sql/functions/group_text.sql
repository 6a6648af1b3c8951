-- The canonical group an enqueue with these arguments would use; for tools that need to know the lane before.
create or replace function pgfifo.group_text(p_action text, p_payload jsonb default '{}', p_group text default null) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select pgfifo._group(p_action, (select p.group_by from pgfifo._action_policies p where p.action = p_action), p_payload, p_group)
$$;
comment on function pgfifo.group_text is 'Compute the canonical group that an enqueue with these arguments would use.';
