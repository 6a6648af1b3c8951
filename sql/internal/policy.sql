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

-- The attributes of a policy: of what kind, within which bounds, whether 'unlimited' is a value, the scopes they belong to,
-- and whether a change of theirs can make a lane startable, which then has to be looked at again.
create or replace function pgfifo._policy_attributes()
returns table (o_attribute text, o_kind text, o_low double precision, o_high double precision, o_words text[], o_unlimited boolean, o_scopes text[], o_starts boolean)
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select a.attribute, a.kind, a.low, a.high, a.words, a.unlimited, a.scopes::text[], a.starts
  from (values
    ('group_by', 'paths', null, null, null, false, '{declared,action}', false),
    ('max_concurrent', 'count', 1, 1000000, null, false, '{lane,declared,action,pack,everything}', true),
    ('ordering', 'word', null, null, array['strict', 'relaxed'], false, '{declared,action,pack,everything}', false),
    ('max_queue_length', 'count', 1, 1000000, null, true, '{lane,declared,action,pack,everything}', false),
    ('max_action_queue_length', 'count', 1, 1000000, null, true, '{declared,action,pack,everything}', false),
    ('on_limit', 'word', null, null, array['enqueue', 'cancel'], false, '{lane,declared,action,pack,everything}', false),
    ('rate', 'rate', 1, 1000000, null, true, '{lane,declared,action,pack,everything}', true),
    ('burst', 'count', 1, 1000000, null, false, '{lane,declared,action,pack,everything}', true),
    ('spacing', 'duration', 0, 31536000, null, false, '{lane,declared,action,pack,everything}', true),
    ('gap', 'duration', 0, 31536000, null, false, '{lane,declared,action,pack,everything}', true),
    ('quota', 'quota', 1, 1000000000, null, true, '{lane,declared,action,pack,everything}', false),
    ('max_wait', 'duration', 0.001, 3155760000, null, true, '{lane,declared,action,pack,everything}', true),
    ('timeout', 'duration', 0.001, 31536000, null, true, '{lane,declared,action,pack,everything}', false),
    ('kill_after', 'duration', 0, 31536000, null, true, '{lane,declared,action,pack,everything}', false),
    ('max_attempts', 'count', 1, 1000000, null, false, '{lane,declared,action,pack,everything}', false),
    ('failure_mode', 'word', null, null, array['hold', 'yield', 'tail'], false, '{lane,declared,action,pack,everything}', false),
    ('backoff', 'word', null, null, array['exponential', 'constant'], false, '{lane,declared,action,pack,everything}', false),
    ('backoff_initial', 'duration', 0, 31536000, null, false, '{lane,declared,action,pack,everything}', false),
    ('backoff_factor', 'number', 1, 1000, null, false, '{lane,declared,action,pack,everything}', false),
    ('backoff_cap', 'duration', 0, 31536000, null, false, '{lane,declared,action,pack,everything}', false),
    ('backoff_jitter', 'number', 0, 1, null, false, '{lane,declared,action,pack,everything}', false),
    ('on_exhausted', 'word', null, null, array['continue', 'pause'], false, '{lane,declared,action,pack,everything}', false),
    ('retention', 'duration', 0, 3155760000, null, true, '{declared,action,pack,everything}', false),
    ('lane_retention', 'duration', 0, 3155760000, null, true, '{declared,action,pack,everything}', false),
    ('max_payload', 'count', 1, 268435455, null, false, '{declared,action,pack,everything}', false),
    ('declared_actions_only', 'boolean', null, null, null, false, '{everything}', false),
    ('audit_retention', 'duration', 86400, 3155760000, null, true, '{everything}', false)
  ) a(attribute, kind, low, high, words, unlimited, scopes, starts)
$$;

-- Values as given by a caller, checked one by one and turned into what the columns of pgfifo.policies hold.
create or replace function pgfifo._policy_values(p_scope text, p_values jsonb) returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set extra_float_digits = 1
as $$
declare
  v_key text;
  v_value jsonb;
  v_is record;
  v_out jsonb := '{}';
  v_text text;
  v_number numeric;
  v_parts text[];
  v_problem text;
begin
  if p_values is null or jsonb_typeof(p_values) <> 'object' then
    raise exception using errcode = 'QF022', message = 'the values of a policy are a JSON object, such as {"max_concurrent": 3}',
      detail = json_build_object('name', 'p_values', 'value', p_values)::text, hint = 'Give attributes and their values; null inherits again.';
  end if;
  for v_key, v_value in select k.key, k.value from jsonb_each(p_values) k order by k.key collate "C" loop
    v_problem := null;
    v_text := v_value #>> '{}';
    select a.* into v_is from pgfifo._policy_attributes() a where a.o_attribute = v_key;
    if not found then
      v_problem := 'is no attribute of a policy';
    elsif v_value = 'null' then
      null;
    elsif p_scope <> all (v_is.o_scopes) then
      v_problem := format('belongs to %s, not to %s', case when 'pack' = any (v_is.o_scopes) then 'an action, a pack or everything'
        when 'action' = any (v_is.o_scopes) then 'one action' else 'everything' end,
        case p_scope when 'everything' then 'everything' when 'action' then 'an action' when 'declared' then 'an action' else 'a ' || p_scope end);
    elsif v_is.o_unlimited and v_value = '"unlimited"' then
      v_value := case v_is.o_kind when 'rate' then '["Infinity", 1]'::jsonb when 'quota' then '["infinity", "day", "UTC"]' else '"Infinity"' end;
    else
      case v_is.o_kind
        when 'paths' then
          if jsonb_typeof(v_value) <> 'array' or exists (select from jsonb_array_elements(v_value) e
              where jsonb_typeof(e) <> 'string' or e #>> '{}' !~ E'^[^.]+(\\.[^.]+)*$') then
            v_problem := 'must be an array of paths such as "customer" or "target.region"';
          else
            v_value := (select coalesce(jsonb_agg(e.e order by e.e collate "C"), '[]') from (select distinct e from jsonb_array_elements_text(v_value) e) e(e));
          end if;
        when 'count' then
          v_number := case when jsonb_typeof(v_value) = 'number' then v_text::numeric end;
          if v_number is null or v_number <> trunc(v_number) or v_number not between v_is.o_low::numeric and v_is.o_high::numeric then
            v_problem := format('must be a whole number between %s and %s', v_is.o_low::bigint, v_is.o_high::bigint);
          else
            v_value := to_jsonb(v_number::bigint);
          end if;
        when 'number' then
          if jsonb_typeof(v_value) <> 'number' or v_text::numeric not between v_is.o_low::numeric and v_is.o_high::numeric then
            v_problem := format('must be a number between %s and %s', v_is.o_low, v_is.o_high);
          end if;
        when 'boolean' then
          if jsonb_typeof(v_value) <> 'boolean' then v_problem := 'must be true or false'; end if;
        when 'word' then
          if jsonb_typeof(v_value) <> 'string' or v_text <> all (v_is.o_words) then
            v_problem := 'must be ' || array_to_string(v_is.o_words, ' or ');
          end if;
        when 'duration' then
          v_number := pgfifo._seconds(v_key, v_value);
          if v_number not between v_is.o_low::numeric and v_is.o_high::numeric then
            v_problem := format('must be between %s and %s', case v_is.o_low when 0 then '0' when 86400 then 'a day' else '1 ms' end,
              case when v_is.o_high > 31536000 then '100 years' else 'a year' end);
          end if;
          v_value := to_jsonb(v_number);
        when 'rate' then
          v_value := to_jsonb(case when jsonb_typeof(v_value) = 'string' then pgfifo._rate(v_text) end);
          if v_value is null or (v_value ->> 0)::numeric not between v_is.o_low::numeric and v_is.o_high::numeric
            or (v_value ->> 1)::numeric not between 0.001 and 31536000
          then
            v_problem := 'must be starts per time, such as 100/s, 10/min or 5/2h: 1 to 1000000 in 1 ms to a year';
          end if;
        when 'quota' then
          v_parts := case when jsonb_typeof(v_value) = 'string' then regexp_match(v_text, E'^\\s*([0-9]{1,10})\\s*/\\s*(day|month)(?:\\s+(\\S+))?\\s*$') end;
          if v_parts is null or v_parts[1]::numeric not between v_is.o_low::numeric and v_is.o_high::numeric then
            v_problem := 'must be enqueues per calendar day or month, such as 1000/day, 1000/day Europe/Berlin or 50000/month: 1 to 1000000000';
          else
            v_parts[1] := v_parts[1]::bigint::text;
            v_parts[3] := (select z.name from pg_timezone_names z where lower(z.name) = lower(coalesce(v_parts[3], 'UTC')));
            if v_parts[3] is null then
              v_problem := 'names a time zone that this server does not know';
            end if;
            v_value := to_jsonb(v_parts);
          end if;
      end case;
    end if;
    if v_problem is not null then
      raise exception using errcode = 'QF022', message = format('%s %s (given: %s)', v_key, v_problem, left(p_values ->> v_key, 100)),
        detail = json_build_object('name', v_key, 'value', p_values -> v_key, 'scope', p_scope)::text,
        hint = 'Attributes: ' || (select string_agg(a.o_attribute, ', ') from pgfifo._policy_attributes() a) || '.';
    end if;
    v_out := v_out || jsonb_build_object(v_key, v_value);
  end loop;
  return v_out;
end $$;

-- Starts and seconds of a rate such as 100/s, 10/min or 5/2h; null if it is none. Periods are whole milliseconds.
create or replace function pgfifo._rate(p_text text) returns double precision[]
language sql immutable parallel safe strict
set search_path = pg_catalog, pg_temp
as $$
  select array[r.m[1]::double precision, round(coalesce(r.m[2], '1')::numeric * case left(r.m[3], 2) when 'ms' then 0.001 else
    case left(r.m[3], 1) when 's' then 1 when 'm' then 60 when 'h' then 3600 when 'd' then 86400 else 604800 end end, 3)::double precision]
  from regexp_match(lower(p_text), E'^\\s*([0-9]{1,9})\\s*/\\s*([0-9]{1,9}(?:\\.[0-9]{1,6})?)?\\s*(ms|s|sec|second|m|min|minute|h|hour|d|day|w|week)\\s*$') r(m)
  where r.m is not null
$$;

-- A column's value as a caller reads and writes it: infinity is "unlimited", a rate is "100/s", a quota "1000/day UTC".
create or replace function pgfifo._shown(p_attribute text, p_value jsonb) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
set extra_float_digits = 1
as $$
  select case
    when p_value = '"Infinity"' or (p_attribute in ('rate', 'quota') and p_value -> 0 in ('"Infinity"', '"infinity"')) then '"unlimited"'
    when p_attribute = 'rate' and jsonb_typeof(p_value) = 'array' then to_jsonb(format('%s/%s', (p_value ->> 0)::bigint, (
      select coalesce(nullif((u.ms / u.unit)::bigint, 1)::text, '') || u.name
      from (select (p_value ->> 1)::numeric * 1000, x.* from (values (86400000, 'd'), (3600000, 'h'), (60000, 'min'), (1000, 's'), (1, 'ms')) x) u(ms, unit, name)
      where u.ms % u.unit = 0 order by u.unit desc limit 1)))
    when p_attribute = 'quota' and jsonb_typeof(p_value) = 'array' then to_jsonb(format('%s/%s %s', p_value ->> 0, p_value ->> 1, p_value ->> 2))
    else p_value end
$$;

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
  v_other text[];
  v_targets text[];
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
  perform pgfifo._lock_limits(p_scope, p_action_id, p_lane_id, 'set_policy');

  v_old := pgfifo._own_policy(p_scope, p_pack, p_action_id, p_lane_id);
  v_new := jsonb_populate_record(v_old, v_values);
  if not v_locked and pgfifo._flow(v_new) is distinct from pgfifo._flow(v_old) then
    raise exception using errcode = 'QF023', message = 'ordering or group_by was changed by somebody else at the same moment',
      detail = json_build_object('pids', array[]::integer[])::text, hint = 'Try again.';
  end if;
  -- Only one of the two scopes is in force: what the code declares gives way to what somebody has set.
  select p.group_by into v_other from pgfifo.policies p
  where p.action_id = p_action_id and p.scope = case p_scope when 'declared' then 'action' else 'declared' end;
  if v_values ? 'group_by' and (p_scope = 'action' or v_other is null)
    and coalesce(v_new.group_by, v_other, '{}') <> coalesce(v_old.group_by, v_other, '{}')
  then
    select coalesce(sum(s.queue_length), 0) into v_waiting from pgfifo.queue_stats s join pgfifo.actions a on a.name = s.action where a.id = p_action_id;
    if v_waiting > 0 and not p_force then
      raise exception using errcode = 'QF023',
        message = format('group_by of %s cannot change while %s: what waits would stay in its old lane', (select a.name from pgfifo.actions a where a.id = p_action_id),
          pgfifo._counted(v_waiting, 'execution waits', 'executions wait')),
        detail = json_build_object('waiting', v_waiting)::text,
        hint = format('To change it now, where what waits keeps its lane and its order: pgfifo policy %s --force. ',
            (select case when v_new.group_by is null and p_scope = 'action' then format('unset %s group_by', pgfifo._shell_word(a.name))
               else format('set %s --group-by %s', pgfifo._shell_word(a.name), pgfifo._shell_word(array_to_string(coalesce(v_new.group_by, '{}'), ','))) end
             from pgfifo.actions a where a.id = p_action_id))
          || case when p_scope = 'declared'
               then 'Or let it drain first, with a worker that does not declare: pgfifo worker … --no-declare, in Python Worker(…, declare=False).'
               else 'Or let its workers drain it first.' end;
    elsif v_waiting > 0 then
      v_note := pgfifo._counted(v_waiting, 'waiting execution stays in its old lane', 'waiting executions stay in their old lanes');
    end if;
  end if;
  if v_new.max_wait is distinct from v_old.max_wait then
    perform pgfifo._settle_waits(p_pack, p_action_id, p_lane_id);
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
  -- Of one action, what is in force now is kept at once, for enqueues that come before any claim: nobody else changes it or what it
  -- inherits before we commit (see _lock_limits), and this statement began after the locks.
  if p_scope in ('action', 'declared') then
    perform pgfifo._put_in_force(array[p_action_id], pgfifo._now());
  end if;

  v_targets := array['everything', 'pack:' || coalesce(p_pack, (select a.pack from pgfifo.actions a where a.id = p_action_id)),
    'action:' || p_action_id::text, 'lane:' || p_lane_id::text];
  return query
    select k.key, pgfifo._shown(k.key, to_jsonb(v_old) -> k.key), pgfifo._shown(k.key, k.value),
      case when k.key = 'group_by' then v_note
           else (select format('an override of %s holds until %s', k.key, max(o.until)) from pgfifo._overrides o
                 where o.attribute = k.key and o.until > v_new.changed_at and o.target = any (v_targets) having count(*) > 0) end
    from jsonb_each(v_values) k order by k.key collate "C";
  v_values := (select coalesce(jsonb_object_agg(k.key, k.value), '{}') from jsonb_each(v_values) k where k.value is distinct from coalesce(to_jsonb(v_old) -> k.key, 'null'));
  if v_values <> '{}' then
    perform pgfifo._audit('set_policy', (select a.name from pgfifo.actions a where a.id = p_action_id), null,
      jsonb_build_object('scope', p_scope, 'pack', p_pack, 'group', (select l.group_text from pgfifo.lanes l where l.id = p_lane_id),
        'from', (select jsonb_object_agg(k.key, pgfifo._shown(k.key, to_jsonb(v_old) -> k.key)) from jsonb_each(v_values) k),
        'to', (select jsonb_object_agg(k.key, pgfifo._shown(k.key, k.value)) from jsonb_each(v_values) k)));
  end if;
  if exists (select from pgfifo._policy_attributes() a where a.o_starts and v_values ? a.o_attribute) then
    perform pgfifo._limits_changed(p_scope, p_pack, p_action_id, p_lane_id);
  end if;
end $$;

-- The lock under which limits change: of a lane its slot lock, else the policy lock of the scope, which claims hold shared
-- to their commit; of an action with that of everything, shared.
create or replace function pgfifo._lock_limits(p_scope text, p_action_id integer, p_lane_id bigint, p_call text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_scope = 'lane' then
    perform pgfifo._lock_lane(p_lane_id, p_call);
    -- Law 1: an idle lane may have been removed before we had its lock. A policy for its id would hold for nobody.
    if not exists (select from pgfifo.lanes l where l.id = p_lane_id) then
      raise exception using errcode = 'QF023', message = 'this lane was idle and has just been removed',
        detail = json_build_object('lane_id', p_lane_id)::text, hint = 'Try again; a lane comes to be with its first enqueue or policy.';
    end if;
  -- Of one action beside others of theirs, but not beside one of all of them: both forget what is kept of this action.
  elsif p_action_id is not null and not pgfifo._lock('pgfifo.policies'::regclass, 0, interval '5 s', true) then
    perform pgfifo._busy('another transaction is changing the limits of many actions; gave up after 5 s', 'pgfifo.policies'::regclass, 0);
  elsif not pgfifo._lock('pgfifo.policies'::regclass, coalesce(p_action_id, 0), interval '5 s') then
    perform pgfifo._busy('another transaction is changing these limits; gave up after 5 s', 'pgfifo.policies'::regclass, coalesce(p_action_id, 0));
  end if;
end $$;

-- Have the lanes of a scope looked at again. Under the lock of _lock_limits: a lane's is its slot lock, so the mark may be
-- left right here; those of wider scopes are marked by whoever sees this committed (remarks).
create or replace function pgfifo._limits_changed(p_scope text, p_pack text, p_action_id integer, p_lane_id bigint) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_scope = 'lane' then
    perform pgfifo._mark(p_lane_id);
    perform pgfifo._wake(a.id, a.name) from pgfifo.actions a where a.id = p_action_id;
  else
    insert into pgfifo.remarks (action_id)
    select a.id from pgfifo.actions a where a.id = p_action_id or (p_action_id is null and (p_pack is null or a.pack = p_pack));
    perform pgfifo._wake(a.id, a.name) from pgfifo.actions a where a.id = p_action_id or (p_action_id is null and (p_pack is null or a.pack = p_pack));
  end if;
end $$;

-- A pack's name as given, refused if it is none.
create or replace function pgfifo._pack(p_pack text) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_pack is null or p_pack !~ '^[^[:cntrl:][:space:]]+$' then
    raise exception using errcode = 'QF022', message = format('%s is no name for a pack', coalesce(quote_literal(p_pack), 'null')),
      detail = json_build_object('pack', p_pack)::text, hint = 'The pack of core.http.get is core.http.';
  end if;
  return p_pack;
end $$;

-- The lane that a policy is set for, by its canonical group, created when it is new, its slot lock held.
create or replace function pgfifo._policy_lane(p_action_id integer, p_group text, p_call text) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lane_id bigint;
begin
  loop
    v_lane_id := pgfifo._lane(p_action_id, p_group);
    continue when v_lane_id is null;
    perform pgfifo._lock_lane(v_lane_id, p_call);
    exit when exists (select from pgfifo.lanes l where l.id = v_lane_id);
  end loop;
  return v_lane_id;
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
