-- What a caller's filter means. Keys: action, group (needs the action), state (one or an array, of p_states), tags (all of
-- them), enqueued_since, enqueued_before, finished_since, finished_before (a time; or a number: so many seconds ago),
-- from_id, to_id (both included). An empty filter is refused unless p_empty: "everything" must be said, and be meant.
create or replace function pgfifo._read_filter(p_filter jsonb, p_states text[], p_empty boolean default false) returns pgfifo._selection
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c_keys constant text[] := '{action,group,state,tags,enqueued_since,enqueued_before,finished_since,finished_before,from_id,to_id}';
  v_now timestamptz := pgfifo._now();
  v_out pgfifo._selection;
  v_filter jsonb := jsonb_strip_nulls(p_filter);
  v_key text;
  v_value jsonb;
  v_problem text;
  v_times jsonb := '{}';
begin
  if v_filter is null or jsonb_typeof(v_filter) <> 'object' or (v_filter = '{}' and not p_empty) then
    raise exception using errcode = 'QF022', message = 'a filter is a JSON object that says at least one thing, such as {"action": "deploy"}',
      detail = json_build_object('name', 'p_filter', 'value', p_filter)::text, hint = format('Keys: %s.', array_to_string(c_keys, ', '));
  end if;
  for v_key, v_value in select k.key, k.value from jsonb_each(v_filter) k loop
    v_problem := null;
    if v_key in ('action', 'group') then
      v_problem := case when jsonb_typeof(v_value) <> 'string' then 'is a text' end;
    elsif v_key = 'tags' then
      v_problem := case when jsonb_typeof(v_value) <> 'array' or exists (select from jsonb_array_elements(v_value) e where jsonb_typeof(e) <> 'string')
        then 'is an array of texts' end;
    elsif v_key = 'state' then
      if jsonb_typeof(v_value) = 'string' then
        v_value := jsonb_build_array(v_value);
      end if;
      if jsonb_typeof(v_value) <> 'array' or exists (select from jsonb_array_elements(v_value) e where not coalesce(e #>> '{}' = any (p_states), false)) then
        v_problem := format('is one or more of: %s', array_to_string(p_states, ', '));
      else
        v_out.states := array(select e from jsonb_array_elements_text(v_value) e);
      end if;
    elsif v_key in ('from_id', 'to_id') then
      v_problem := case when jsonb_typeof(v_value) <> 'number' or v_value::numeric not between 0 and 9223372036854775807 then 'is the id of an execution' end;
    elsif v_key = any (c_keys) then
      begin
        v_times := v_times || jsonb_build_object(v_key, case when jsonb_typeof(v_value) = 'number'
          then v_now - make_interval(secs => v_value::double precision) else (v_value #>> '{}')::timestamptz end);
      exception when data_exception then
        v_problem := 'is a time, or a number of seconds ago';
      end;
    else
      v_problem := format('is no key of a filter; there are: %s', array_to_string(c_keys, ', '));
    end if;
    if v_problem is not null then
      raise exception using errcode = 'QF022', message = format('%s %s', v_key, v_problem),
        detail = json_build_object('name', v_key, 'value', v_value)::text;
    end if;
  end loop;
  if v_filter ? 'group' and not v_filter ? 'action' then
    raise exception using errcode = 'QF022', message = 'a group says which lane only together with its action',
      detail = json_build_object('name', 'group', 'value', v_filter -> 'group')::text;
  end if;
  if v_filter ? 'action' then
    v_out.action := v_filter ->> 'action';
    v_out.action_id := pgfifo._known_action(v_out.action);
    if v_filter ? 'group' then
      v_out.group_text := pgfifo._group(v_out.action, (select p.group_by from pgfifo._action_policies p where p.action_id = v_out.action_id), null, v_filter ->> 'group');
    end if;
  end if;
  if v_filter ? 'tags' then
    v_out.tags := array(select t from jsonb_array_elements_text(v_filter -> 'tags') t);
  end if;
  v_out.enqueued_since := v_times ->> 'enqueued_since';
  v_out.enqueued_before := v_times ->> 'enqueued_before';
  v_out.finished_since := v_times ->> 'finished_since';
  v_out.finished_before := v_times ->> 'finished_before';
  v_out.from_id := (v_filter ->> 'from_id')::numeric;
  v_out.to_id := (v_filter ->> 'to_id')::numeric;
  return v_out;
end $$;

-- Whether an execution is meant, its action and group aside: by these it is found. Inlined, so every name is qualified.
create or replace function pgfifo._selects(p_selection pgfifo._selection, p_id bigint, p_state text, p_tags text[], p_enqueued_at timestamptz,
  p_finished_at timestamptz) returns boolean
language sql immutable parallel safe
as $$
  select (($1).from_id is null or p_id operator(pg_catalog.>=) ($1).from_id)
    and (($1).to_id is null or p_id operator(pg_catalog.<=) ($1).to_id)
    and (($1).states is null or p_state operator(pg_catalog.=) any (($1).states))
    and (($1).tags is null or p_tags operator(pg_catalog.@>) ($1).tags)
    and (($1).enqueued_since is null or p_enqueued_at operator(pg_catalog.>=) ($1).enqueued_since)
    and (($1).enqueued_before is null or p_enqueued_at operator(pg_catalog.<) ($1).enqueued_before)
    and (($1).finished_since is null or p_finished_at operator(pg_catalog.>=) ($1).finished_since)
    and (($1).finished_before is null or p_finished_at operator(pg_catalog.<) ($1).finished_before)
$$;

-- Of one lane's executions that are not finished, from a key on and at most so many looked at, those that are selected:
-- those without a row in runs (waiting, or yet to join), held, yielded or returned ones, running ones that have not been
-- asked to stop. The key is the ticket; those that have none yet come after all that have, in the order of their ids.
-- o_next: where to go on; null at the end of the lane. p_before: what had joined the line by then and was never started has expired.
create or replace function pgfifo._select_unfinished(p_selection pgfifo._selection, p_lane_id bigint, p_after bigint, p_limit integer, p_before timestamptz,
  out o_fresh bigint[], out o_parked bigint[], out o_running bigint[], out o_seen integer, out o_next bigint)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  c_behind constant bigint := 500000000000000000;
begin
  with line as materialized (
    select u.* from (
      (select e.id, e.ticket as key, e.ticket, e.tags, e.enqueued_at, coalesce(e.joined_at, e.enqueued_at) <= p_before as is_over from pgfifo._executions e
       where e.lane_id = p_lane_id and e.ticket > p_after order by e.lane_id, e.ticket limit p_limit)
      union all
      (select e.id, c_behind + e.id, null, e.tags, e.enqueued_at, false from pgfifo._executions e
       where e.lane_id = p_lane_id and e.ticket is null and e.id > p_after - c_behind order by e.id limit p_limit)) u
    order by u.key limit p_limit),
  looked as (
    select e.id, e.key, r.state as run,
      pgfifo._selects(p_selection, e.id, case when r.state in ('running', 'held') then r.state when r.state = 'yielded' or e.ticket is null then 'delayed'
        else 'waiting' end, e.tags, e.enqueued_at, null) and (e.is_over is not true or r.attempt > 0) as selected
    from line e left join lateral (select r.state, r.attempt from pgfifo.runs r where r.id = e.id offset 0) r on true)
  select coalesce(array_agg(k.id order by k.key) filter (where k.selected and k.run is null), '{}'),
      coalesce(array_agg(k.id order by k.key) filter (where k.selected and k.run in ('held', 'yielded', 'returned')), '{}'),
      coalesce(array_agg(k.id order by k.key) filter (where k.selected and k.run = 'running'
        and not exists (select from pgfifo.cancellations c where c.id = k.id)), '{}'),
      count(*), case when count(*) >= p_limit then max(k.key) end
    into o_fresh, o_parked, o_running, o_seen, o_next
  from looked k;
end $$;
