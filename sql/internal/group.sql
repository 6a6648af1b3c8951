-- Canonical text of a JSON value: no white space, numbers without trailing zeros, keys of objects in "C" order.
create or replace function pgfifo._canonical(p_value jsonb) returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_type text := jsonb_typeof(p_value);
begin
  if p_value is null then
    return 'null';
  elsif v_type = 'number' then
    return trim_scale((p_value #>> '{}')::numeric)::text;
  elsif v_type = 'object' then
    return (select '{' || coalesce(string_agg(to_jsonb(k.key)::text || ':' || pgfifo._canonical(k.value), ',' order by k.key collate "C"), '') || '}'
            from jsonb_each(p_value) k);
  elsif v_type = 'array' then
    return (select '[' || coalesce(string_agg(pgfifo._canonical(k.value), ',' order by k.ordinality), '') || ']'
            from jsonb_array_elements(p_value) with ordinality k);
  else
    return p_value::text;
  end if;
end $$;

-- What a path ("target.region") picks out of a payload; null where it leads nowhere. Objects only.
create or replace function pgfifo._pick(p_payload jsonb, p_path text) returns jsonb
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_part text;
  v_value jsonb := p_payload;
begin
  if position('.' in p_path) = 0 then
    return p_payload -> p_path;
  end if;
  foreach v_part in array string_to_array(p_path, '.') loop
    v_value := v_value -> v_part;
  end loop;
  return v_value;
end $$;

-- Turn text into jsonb, or null when it is none. A block with an exception clause is a subtransaction, which parallel
-- queries cannot start: so this, and what calls it, is parallel unsafe.
create or replace function pgfifo._try_json(p_text text) returns jsonb
language plpgsql immutable parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
begin
  return p_text::jsonb;
exception when data_exception or program_limit_exceeded or untranslatable_character then
  return null;
end $$;

-- The group of an execution: picked from its payload, or given. p_group_by is sorted. Raises QF007 and QF008.
create or replace function pgfifo._group(p_action text, p_group_by text[], p_payload jsonb, p_given text) returns text
language plpgsql immutable parallel unsafe
set search_path = pg_catalog, pg_temp
as $$
declare
  v_paths integer := coalesce(cardinality(p_group_by), 0);
  v_json jsonb;
  v_text text;
begin
  if p_given is null then
    if v_paths = 0 then
      return '';
    elsif v_paths = 1 then
      v_text := '{' || to_jsonb(p_group_by[1])::text || ':' || pgfifo._canonical(pgfifo._pick(p_payload, p_group_by[1])) || '}';
    else
      select '{' || string_agg(to_jsonb(p.path)::text || ':' || pgfifo._canonical(pgfifo._pick(p_payload, p.path)), ',' order by p.n) || '}'
        into v_text from unnest(p_group_by) with ordinality p(path, n);
    end if;
  else
    v_json := case when left(p_given, 1) = '{' then pgfifo._try_json(p_given) end;
    if v_json is not null then
      if v_paths > 0 and p_group_by is distinct from (select array_agg(k order by k collate "C") from jsonb_object_keys(v_json) k) then
        raise exception using errcode = 'QF007',
          message = format('group %s does not fit action %s, which is grouped by %s', left(p_given, 200), p_action, array_to_string(p_group_by, ', ')),
          detail = json_build_object('action', p_action, 'group', left(p_given, 1024), 'group_by', p_group_by)::text,
          hint = format('Give exactly these keys: %s.', array_to_string(p_group_by, ', '));
      end if;
      v_text := pgfifo._canonical(v_json);
    elsif v_paths = 0 then
      v_text := p_given;
    elsif v_paths = 1 then
      v_json := pgfifo._try_json(p_given);
      if v_json is null or jsonb_typeof(v_json) in ('object', 'array') then
        v_json := to_jsonb(p_given);
      end if;
      v_text := '{' || to_jsonb(p_group_by[1])::text || ':' || pgfifo._canonical(v_json) || '}';
    else
      raise exception using errcode = 'QF007',
        message = format('group %s does not fit action %s, which is grouped by %s', left(p_given, 200), p_action, array_to_string(p_group_by, ', ')),
        detail = json_build_object('action', p_action, 'group', left(p_given, 1024), 'group_by', p_group_by)::text,
        hint = 'A bare value is enough only where there is one path; give a JSON object with all of them.';
    end if;
  end if;
  if octet_length(v_text) > 1024 then
    raise exception using errcode = 'QF008',
      message = format('the group of this execution of %s has %s bytes; at most 1024 are allowed', p_action, octet_length(v_text)),
      detail = json_build_object('action', p_action, 'bytes', octet_length(v_text), 'limit', 1024, 'begins', left(v_text, 100))::text,
      hint = 'Group by a short value, such as an id.';
  end if;
  return v_text;
end $$;
