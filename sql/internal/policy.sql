-- Seconds from a JSON number or an interval's text; 'unlimited' becomes infinity where that is allowed.
create or replace function pgfifo._seconds(p_attribute text, p_value jsonb) returns double precision
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if jsonb_typeof(p_value) = 'number' then
    return (p_value #>> '{}')::double precision;
  elsif jsonb_typeof(p_value) = 'string' then
    return extract(epoch from (p_value #>> '{}')::interval);
  end if;
  raise invalid_datetime_format;
exception when data_exception then
  raise exception using errcode = 'QF022', message = format('%s is no duration: %s', p_attribute, p_value),
    detail = json_build_object('name', p_attribute, 'value', p_value)::text, hint = 'Give seconds, or an interval such as ''5 min''.';
end $$;

-- Values as given by a caller, checked one by one and turned into what the columns of pgfifo.policies hold.
create or replace function pgfifo._policy_values(p_scope text, p_values jsonb) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key text;
  v_value jsonb;
  v_out jsonb := '{}';
  v_number numeric;
  v_problem text;
  v_low numeric;
  v_high numeric;
begin
  if p_values is null or jsonb_typeof(p_values) <> 'object' then
    raise exception using errcode = 'QF022', message = 'the values of a policy are a JSON object, such as {"max_concurrent": 3}',
      detail = json_build_object('name', 'p_values', 'value', p_values)::text, hint = 'Give attributes and their values; null inherits again.';
  end if;
  for v_key, v_value in select k.key, k.value from jsonb_each(p_values) k order by k.key collate "C" loop
    v_problem := null;
    v_low := null;
    if v_value <> 'null' then
      case v_key
        when 'group_by' then
          if p_scope not in ('action', 'declared') then
            v_problem := 'belongs to one action, not to a ' || p_scope;
          elsif jsonb_typeof(v_value) <> 'array' or exists (select from jsonb_array_elements(v_value) e
              where jsonb_typeof(e) <> 'string' or e #>> '{}' !~ '^[^.]+(\.[^.]+)*$') then
            v_problem := 'must be an array of paths such as "customer" or "target.region"';
          else
            v_value := (select coalesce(jsonb_agg(distinct e #>> '{}' collate "C"), '[]') from jsonb_array_elements(v_value) e);
            v_value := (select coalesce(jsonb_agg(e.e order by e.e collate "C"), '[]') from jsonb_array_elements_text(v_value) e(e));
          end if;
        when 'max_concurrent', 'max_attempts' then
          v_low := 1; v_high := 1000000;
        when 'max_queue_length' then
          if v_value = '"unlimited"' then
            v_value := '"Infinity"';
          else
            v_low := 1; v_high := 1000000;
          end if;
        when 'declared_actions_only' then
          if p_scope <> 'everything' then
            v_problem := 'belongs to everything, not to a ' || p_scope;
          elsif jsonb_typeof(v_value) <> 'boolean' then
            v_problem := 'must be true or false';
          end if;
        when 'max_payload' then
          v_low := 1; v_high := 268435455;
        when 'ordering' then
          if p_scope = 'lane' then
            v_problem := 'belongs to an action, a pack or everything, not to a lane';
          elsif v_value not in ('"strict"', '"relaxed"') then
            v_problem := 'must be strict or relaxed';
          end if;
        when 'failure_mode' then
          if v_value <> '"hold"' then v_problem := 'must be hold in this version'; end if;
        when 'on_exhausted' then
          if v_value <> '"continue"' then v_problem := 'must be continue in this version'; end if;
        when 'backoff' then
          if v_value not in ('"exponential"', '"constant"') then v_problem := 'must be exponential or constant'; end if;
        when 'backoff_initial', 'backoff_cap', 'retention', 'lane_retention' then
          if v_value = '"unlimited"' and v_key in ('retention', 'lane_retention') then
            v_value := '"Infinity"';
          else
            v_number := pgfifo._seconds(v_key, v_value);
            if v_number < 0 or v_number > 3155760000 or (v_key like 'backoff%' and v_number > 31536000) then
              v_problem := 'must be between 0 and ' || case when v_key like 'backoff%' then 'a year' else '100 years' end;
            end if;
            v_value := to_jsonb(v_number);
          end if;
        when 'backoff_factor', 'backoff_jitter' then
          if jsonb_typeof(v_value) <> 'number' then
            v_problem := 'must be a number';
          else
            v_number := (v_value #>> '{}')::numeric;
            if v_key = 'backoff_factor' and v_number not between 1 and 1000 then v_problem := 'must be between 1 and 1000'; end if;
            if v_key = 'backoff_jitter' and v_number not between 0 and 1 then v_problem := 'must be between 0 and 1'; end if;
          end if;
        else
          v_problem := 'is no attribute of a policy';
      end case;
      if v_low is not null then
        if jsonb_typeof(v_value) <> 'number' then
          v_problem := 'must be a whole number';
        else
          v_number := (v_value #>> '{}')::numeric;
          if v_number <> trunc(v_number) or v_number not between v_low and v_high then
            v_problem := format('must be a whole number between %s and %s', v_low, v_high);
          end if;
          v_value := to_jsonb(trunc(v_number)::bigint);
        end if;
      end if;
    elsif not exists (select from pgfifo._policy_attributes() a where a = v_key) then
      v_problem := 'is no attribute of a policy';
    end if;
    if v_problem is not null then
      raise exception using errcode = 'QF022', message = format('%s %s (given: %s)', v_key, v_problem, left(p_values ->> v_key, 100)),
        detail = json_build_object('name', v_key, 'value', p_values -> v_key, 'scope', p_scope)::text,
        hint = 'Attributes: ' || (select string_agg(a, ', ') from pgfifo._policy_attributes() a) || '.';
    end if;
    v_out := v_out || jsonb_build_object(v_key, v_value);
  end loop;
  return v_out;
end $$;

create or replace function pgfifo._policy_attributes() returns setof text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select unnest(array['group_by', 'max_concurrent', 'ordering', 'max_queue_length', 'max_attempts', 'failure_mode', 'backoff', 'backoff_initial',
    'backoff_factor', 'backoff_cap', 'backoff_jitter', 'on_exhausted', 'retention', 'lane_retention', 'max_payload',
    'declared_actions_only'])
$$;

-- A column's value as a caller reads it: infinity is "unlimited".
create or replace function pgfifo._shown(p_value jsonb) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select case when p_value = '"Infinity"' then '"unlimited"'::jsonb else p_value end $$;

-- Exclusive lock on in-flight enqueues, for ordering and group_by; a second at most, then say who is in the way.
create or replace function pgfifo._lock_enqueues(p_key integer, p_what text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if not pgfifo._lock('pgfifo.actions'::regclass, p_key, interval '1 s') then
    perform pgfifo._busy(format('%s cannot change while enqueues are in flight; gave up after 1 s', p_what), 'pgfifo.actions'::regclass, p_key);
  end if;
end $$;

-- The row of one scope; all null when it has none.
create or replace function pgfifo._own_policy(p_scope text, p_pack text, p_action_id integer, p_lane_id bigint) returns pgfifo.policies
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select p.* from pgfifo.policies p
  where p.scope = p_scope and p.pack is not distinct from p_pack and p.lane_id is not distinct from p_lane_id
    and p.action_id is not distinct from case when p_scope = 'lane' then null else p_action_id end
$$;

-- What decides where an enqueue goes and which lock it takes; no enqueue may be in flight while this changes.
create or replace function pgfifo._flow(p_policy pgfifo.policies) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$ select jsonb_build_array(p_policy.ordering, coalesce(p_policy.group_by, '{}'))::text $$;

-- Set attributes at one scope. Locks first, then look:
--   ordering, group_by, where they change: the actions' enqueue side, exclusive (key 0 too at wide scopes: actions being
--   created). Whether they change is asked before the locks, and again after them;
--   lane: the lane's slot lock, so the change is decided together with its claims; the mark may be left right here;
--   wider: the policy lock of the scope, exclusive. Claims hold it shared to their commit, so none commits a start under
--   the old limit after this change has committed. Lanes are marked by whoever sees the change committed (remarks).
create or replace function pgfifo._set_policy(p_scope text, p_pack text, p_action_id integer, p_lane_id bigint, p_values jsonb, p_force boolean)
returns table (attribute text, old jsonb, new jsonb, note text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_values jsonb;
  v_old pgfifo.policies;
  v_new pgfifo.policies;
  v_action_id integer;
  v_locked boolean;
  v_waiting bigint;
  v_note text;
begin
  perform pgfifo._require_read_committed('set_policy');
  v_values := pgfifo._policy_values(p_scope, p_values);
  v_old := pgfifo._own_policy(p_scope, p_pack, p_action_id, p_lane_id);
  v_locked := pgfifo._flow(jsonb_populate_record(v_old, v_values)) is distinct from pgfifo._flow(v_old);
  if v_locked then
    if p_action_id is null then
      perform pgfifo._lock_enqueues(0, 'ordering');
      for v_action_id in select a.id from pgfifo.actions a where p_pack is null or a.pack = p_pack order by a.id loop
        perform pgfifo._lock_enqueues(v_action_id, 'ordering');
      end loop;
    else
      perform pgfifo._lock_enqueues(p_action_id, 'ordering or group_by');
    end if;
  end if;
  if p_scope = 'lane' then
    perform pgfifo._lock_lane(p_lane_id, 'set_policy');
    -- Law 1: an idle lane may have been removed before we had its lock. A policy for its id would hold for nobody.
    if not exists (select from pgfifo.lanes l where l.id = p_lane_id) then
      raise exception using errcode = 'QF023', message = 'this lane was idle and has just been removed',
        detail = json_build_object('lane_id', p_lane_id)::text, hint = 'Try again; a lane comes to be with its first enqueue or policy.';
    end if;
  elsif not pgfifo._lock('pgfifo.policies'::regclass, case when p_action_id is null then 0 else p_action_id end, interval '5 s') then
    perform pgfifo._busy('another transaction is changing these limits; gave up after 5 s', 'pgfifo.policies'::regclass, coalesce(p_action_id, 0));
  end if;

  v_old := pgfifo._own_policy(p_scope, p_pack, p_action_id, p_lane_id);
  v_new := jsonb_populate_record(v_old, v_values);
  if not v_locked and pgfifo._flow(v_new) is distinct from pgfifo._flow(v_old) then
    raise exception using errcode = 'QF023', message = 'ordering or group_by was changed by somebody else at the same moment',
      detail = json_build_object('pids', array[]::integer[])::text, hint = 'Try again.';
  end if;
  if v_values ? 'group_by' and coalesce(v_new.group_by, '{}') <> coalesce(v_old.group_by, '{}') then
    select coalesce(sum(s.queue_length), 0) into v_waiting from pgfifo.queue_stats s join pgfifo.actions a on a.name = s.action where a.id = p_action_id;
    if v_waiting > 0 and not p_force then
      raise exception using errcode = 'QF023',
        message = format('group_by cannot change while %s executions wait: they would stay in their old lanes', v_waiting),
        detail = json_build_object('waiting', v_waiting)::text,
        hint = 'Let the action drain, or force the change: what waits keeps its lane and its order.';
    elsif v_waiting > 0 then
      v_note := format('%s waiting executions stay in their old lanes', v_waiting);
    end if;
  end if;
  v_new.scope := p_scope;
  v_new.pack := p_pack;
  v_new.lane_id := p_lane_id;
  v_new.action_id := case when p_scope = 'lane' then null else p_action_id end;
  v_new.changed_at := pgfifo._now();
  if v_old.id is null then
    v_new.id := nextval(pg_get_serial_sequence('pgfifo.policies', 'id'));
  end if;
  delete from pgfifo.policies p where p.id = v_old.id;
  insert into pgfifo.policies overriding system value select v_new.*;
  if p_scope = 'lane' and v_values <> '{}' then
    perform pgfifo._forget_lane_policy(p_lane_id);
  end if;

  return query
    select k.key, pgfifo._shown(to_jsonb(v_old) -> k.key), pgfifo._shown(k.value), case when k.key = 'group_by' then v_note end
    from jsonb_each(v_values) k order by k.key collate "C";
  if v_values <> '{}' and (p_scope <> 'declared' or v_old.id is null) then
    perform pgfifo._audit('set_policy', (select a.name from pgfifo.actions a where a.id = p_action_id), null,
      jsonb_build_object('scope', p_scope, 'pack', p_pack, 'group', (select l.group_text from pgfifo.lanes l where l.id = p_lane_id),
        'from', (select jsonb_object_agg(k.key, pgfifo._shown(to_jsonb(v_old) -> k.key)) from jsonb_each(v_values) k),
        'to', (select jsonb_object_agg(k.key, pgfifo._shown(k.value)) from jsonb_each(v_values) k)));
  end if;
  if v_values ? 'max_concurrent' then
    if p_scope = 'lane' then
      perform pgfifo._mark(p_lane_id);
      perform pgfifo._wake(a.id, a.name) from pgfifo.actions a where a.id = p_action_id;
    else
      insert into pgfifo.remarks (action_id)
      select a.id from pgfifo.actions a where a.id = p_action_id or (p_action_id is null and (p_pack is null or a.pack = p_pack));
      perform pgfifo._wake(a.id, a.name) from pgfifo.actions a where a.id = p_action_id or (p_action_id is null and (p_pack is null or a.pack = p_pack));
    end if;
  end if;
end $$;

-- A lane's row that says nothing any more would keep the lane from ever being removed. Under the lane's slot lock.
create or replace function pgfifo._forget_lane_policy(p_lane_id bigint) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  delete from pgfifo.policies p
  where p.scope = 'lane' and p.lane_id = p_lane_id
    and jsonb_strip_nulls(to_jsonb(p) - array['id', 'scope', 'lane_id', 'changed_at']) = '{}'
$$;
