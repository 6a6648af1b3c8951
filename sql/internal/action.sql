-- The id of an action, created with inherited defaults when it is new; by an enqueue not where declared_actions_only is set. At REPEATABLE READ an action that was created
-- after the snapshot makes the insert fail with 40001, which is the right answer: begin anew.
create or replace function pgfifo._action(p_name text, p_enqueue boolean default false) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id integer;
begin
  select a.id into v_id from pgfifo.actions a where a.name = p_name;
  if found then
    return v_id;
  end if;
  if p_name is null or p_name !~ '^[^[:cntrl:][:space:]]+$' or char_length(p_name) > 200 then
    raise exception using errcode = 'QF022',
      message = format('%s is no name for an action', coalesce(quote_literal(left(p_name, 100)), 'null')),
      detail = json_build_object('name', 'p_action', 'value', left(p_name, 200))::text,
      hint = 'Use 1 to 200 characters without white space, such as deploy or billing.invoice.';
  end if;
  if p_enqueue and exists (select from pgfifo.policies p where p.scope = 'everything' and p.declared_actions_only) then
    return pgfifo._known_action(p_name);
  end if;
  -- Held to the commit: a change at the scope of a pack or of everything waits for actions that are being created.
  perform pg_advisory_xact_lock_shared('pgfifo.actions'::regclass::oid::integer, 0);
  insert into pgfifo.actions (name) values (p_name) on conflict (name) do nothing returning id into v_id;
  if found then
    insert into pgfifo.scans (action_id, version, seen_at, full_at) values (v_id, 0, pgfifo._now(), pgfifo._now());
    return v_id;
  end if;
  -- Somebody else created it while we waited for his commit; a new statement sees it.
  select a.id into strict v_id from pgfifo.actions a where a.name = p_name;
  return v_id;
end $$;

-- The id of an action that must exist; otherwise QF006 with the nearest name.
create or replace function pgfifo._known_action(p_name text) returns integer
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id integer;
  v_nearest text;
begin
  select a.id into v_id from pgfifo.actions a where a.name = p_name;
  if found then
    return v_id;
  end if;
  select a.name into v_nearest from pgfifo.actions a
  where a.name ilike '%' || replace(replace(replace(left(p_name, 200), E'\\', E'\\\\'), '%', E'\\%'), '_', E'\\_') || '%'
    or p_name ilike '%' || replace(replace(replace(a.name, E'\\', E'\\\\'), '%', E'\\%'), '_', E'\\_') || '%'
    or pgfifo._distance(lower(left(p_name, 60)), lower(left(a.name, 60))) <= greatest(1, least(char_length(p_name), 60) / 3)
  order by pgfifo._distance(lower(left(p_name, 60)), lower(left(a.name, 60))), a.name limit 1;
  raise exception using errcode = 'QF006',
    message = format('there is no action %s', coalesce(quote_literal(left(p_name, 200)), 'null')),
    detail = json_build_object('action', left(p_name, 200), 'nearest', v_nearest)::text,
    hint = case when v_nearest is null then 'An action comes to be with its first enqueue, declaration or policy.'
           else format('Did you mean %s?', quote_literal(v_nearest)) end;
end $$;

-- Levenshtein distance (Wagner and Fischer, 1974), for suggestions only; the contrib function is not everywhere.
create or replace function pgfifo._distance(p_a text, p_b text) returns integer
language plpgsql immutable parallel safe strict
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before integer[] := array(select generate_series(0, char_length(p_b)));
  v_row integer[];
begin
  for i in 1 .. char_length(p_a) loop
    v_row := array[i];
    for j in 1 .. char_length(p_b) loop
      v_row := v_row || least(v_row[j] + 1, v_before[j + 1] + 1,
        v_before[j] + case when substr(p_a, i, 1) = substr(p_b, j, 1) then 0 else 1 end);
    end loop;
    v_before := v_row;
  end loop;
  return v_before[char_length(p_b) + 1];
end $$;

-- The lane of a known action and a group in any accepted form; null when there is none. What the group is comes in a statement
-- of its own: within the other a group that does not fit would be noticed only where some lane's is compared with it.
create or replace function pgfifo._find_lane(p_action_id integer, p_action text, p_group text) returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_group text := pgfifo._group(p_action, (select p.group_by from pgfifo._action_policies p where p.action_id = p_action_id), null, p_group);
begin
  return (select l.id from pgfifo.lanes l where l.action_id = p_action_id and l.group_text = v_group);
end $$;

-- A lane's id, created when it is new, with its ledger's first version in the same transaction: who sees one sees both.
create or replace function pgfifo._lane(p_action_id integer, p_group text) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id bigint;
begin
  select l.id into v_id from pgfifo.lanes l where l.action_id = p_action_id and l.group_text = p_group;
  if found then
    return v_id;
  end if;
  insert into pgfifo.lanes (action_id, group_text) values (p_action_id, p_group)
    on conflict (action_id, group_text) do nothing returning id into v_id;
  if found then
    insert into pgfifo.ledger (lane_id, version, changed_at) values (v_id, 0, pgfifo._now());
    return v_id;
  end if;
  select l.id into v_id from pgfifo.lanes l where l.action_id = p_action_id and l.group_text = p_group;
  return v_id;  -- null if it was removed again between the two statements: the caller starts over
end $$;

-- The same for many groups, given in "C" order and each once: their lanes in that order. Null stands for one that was
-- removed again between two statements. New ones are made in the order of their groups, so that two batches which make
-- the same lanes wait for each other in one direction.
create or replace function pgfifo._lanes(p_action_id integer, p_groups text[]) returns bigint[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lanes bigint[];
begin
  for v_try in 1 .. 2 loop
    v_lanes := array(
      select l.id from unnest(p_groups) with ordinality g(grp, n)
      left join lateral (select l.id from pgfifo.lanes l where l.action_id = p_action_id and l.group_text = g.grp offset 0) l on true
      order by g.n);
    exit when v_try = 2 or array_position(v_lanes, null) is null;
    with made as (
      insert into pgfifo.lanes (action_id, group_text)
      select p_action_id, g.grp from unnest(p_groups, v_lanes) with ordinality g(grp, lane_id, n) where g.lane_id is null order by g.n
      on conflict (action_id, group_text) do nothing returning id)
    insert into pgfifo.ledger (lane_id, version, changed_at) select m.id, 0, pgfifo._now() from made m;
  end loop;
  return v_lanes;
end $$;
