-- A group as people read it: {"env":"prod","target.region":"eu"} becomes env=prod,target.region=eu.
create or replace function pgfifo.format_group(p_group text) returns text
language plpgsql immutable parallel unsafe strict
set search_path = pg_catalog, pg_temp
as $$
declare
  v_json jsonb := case when left(p_group, 1) = '{' then pgfifo._try_json(p_group) end;
begin
  if v_json is null then
    return p_group;
  end if;
  return (select coalesce(string_agg(k.key || '=' || coalesce(case jsonb_typeof(k.value) when 'string' then k.value #>> '{}' end, k.value::text), ','
            order by k.key collate "C"), '') from jsonb_each(v_json) k);
end $$;
comment on function pgfifo.format_group is 'Show a canonical group as people read it, such as env=prod.';
