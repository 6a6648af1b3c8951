-- Each attribute in force for an action, or for one of its lanes, and where it comes from. Without an action: what holds where no
-- narrower scope says anything. Quotas are not inherited: there is a row for each scope that has one, and all of them hold.
create or replace function pgfifo.effective_policy(p_action text default null, p_group text default null)
returns table (attribute text, value jsonb, source text, origin text, until timestamptz, remaining double precision)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_action_id integer := case when p_action is not null then pgfifo._known_action(p_action) end;
  v_lane_id bigint;
begin
  if p_group is not null and p_action is null then
    raise exception using errcode = 'QF022', message = 'a group says which lane only together with its action',
      detail = json_build_object('name', 'p_group', 'value', p_group)::text, hint = 'Name the action too.';
  elsif p_group is not null then
    v_lane_id := pgfifo._find_lane(v_action_id, p_action, p_group);
  end if;
  return query select * from pgfifo._effective(v_action_id, v_lane_id);
end $$;
comment on function pgfifo.effective_policy is 'Show each attribute in force for an action or lane, and where it comes from; without an action, the defaults.';
