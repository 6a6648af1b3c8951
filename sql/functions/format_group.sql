-- A group as people read it: {"env":"prod","target.region":"eu"} becomes env=prod,target.region=eu. Text that would read as a number,
-- as true, false or null, or as text in quotes, is in quotes itself: {"n":"1"} becomes n="1".
create or replace function pgfifo.format_group(p_group text) returns text
language plpgsql immutable parallel unsafe strict
set search_path = pg_catalog, pg_temp
as $$
declare
  c_json constant text := E'^[ \t\n\r]*(-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][+-]?[0-9]+)?|true|false|null|".*")[ \t\n\r]*$';
  v_json jsonb := case when left(p_group, 1) = '{' then pgfifo._try_json(p_group) end;
begin
  if v_json is null then
    return p_group;
  end if;
  return (select coalesce(string_agg(k.key || '=' ||
            case when jsonb_typeof(k.value) = 'string' and k.value #>> '{}' !~ c_json then k.value #>> '{}' else k.value::text end, ','
            order by k.key collate "C"), '') from jsonb_each(v_json) k);
end $$;
comment on function pgfifo.format_group is 'Show a canonical group as people read it, such as env=prod.';
