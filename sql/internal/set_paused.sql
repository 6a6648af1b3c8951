-- Pause or resume an action or a lane. To resume an action also lets those of its lanes go on that a failure has stopped
-- (on_exhausted); what was paused lane by lane stays so. Returns whether that was a change.
create or replace function pgfifo._set_paused(p_action text, p_group text, p_paused boolean, p_reason text) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_action_id integer := pgfifo._known_action(p_action);
  v_lane_id bigint;
  v_changed boolean;
  v_stopped bigint[] := '{}';
begin
  if p_group is not null then
    v_lane_id := pgfifo._find_lane(v_action_id, p_action, p_group);
    if v_lane_id is null then
      raise exception using errcode = 'QF007', message = format('action %s has no lane %s', p_action, left(p_group, 200)),
        detail = json_build_object('action', p_action, 'group', left(p_group, 1024))::text,
        hint = 'A lane comes to be with its first enqueue, and goes when it has been idle for its lane_retention.';
    end if;
  end if;
  -- An empty change takes the scope's locks and makes the row if there is none.
  perform pgfifo._set_policy(case when v_lane_id is null then 'action' else 'lane' end, null, v_action_id, v_lane_id, '{}', false);
  update pgfifo.policies p set
    paused_at = case when p_paused then coalesce(p.paused_at, pgfifo._now()) end,
    paused_by = case when p_paused then coalesce(p.paused_by, session_user) end,
    paused_reason = case when p_paused then coalesce(left(p_reason, 1000), p.paused_reason) end,
    paused_for = case when p_paused then p.paused_for end
  where case when v_lane_id is null then p.scope = 'action' and p.action_id = v_action_id else p.scope = 'lane' and p.lane_id = v_lane_id end
    and (p.paused_at is null) = p_paused;
  v_changed := found;
  if v_lane_id is not null and not p_paused then
    perform pgfifo._forget_lane_policy(v_lane_id);
  elsif not p_paused then
    -- Without their slot locks: whoever has one of these may be stopping it again, and has its row; that is not waited for.
    -- They are looked at again by whoever sees our commit (law 2).
    with stopped as (
      update pgfifo.policies p set paused_at = null, paused_by = null, paused_reason = null, paused_for = null
      where p.id = any (array(
        select x.id from pgfifo.lanes l join pgfifo.policies x on x.scope = 'lane' and x.lane_id = l.id
        where l.action_id = v_action_id and x.paused_for is not null for update of x skip locked))
      returning p.lane_id)
    select coalesce(array_agg(s.lane_id), '{}') into v_stopped from stopped s;
    if v_stopped <> '{}' then
      perform pgfifo._forget_lane_policy(s.lane_id) from unnest(v_stopped) s(lane_id);
      insert into pgfifo.remarks (action_id) values (v_action_id);
      v_changed := true;
    end if;
  end if;
  if v_changed then
    perform pgfifo._audit(case when p_paused then 'pause' else 'resume' end, p_action, null,
      jsonb_build_object('group', (select l.group_text from pgfifo.lanes l where l.id = v_lane_id), 'reason', p_reason)
      || case when v_stopped <> '{}' then jsonb_build_object('lanes', cardinality(v_stopped)) else '{}' end);
    if not p_paused then
      -- A paused action's marks are still there; a paused lane's have been taken. Its slot lock is ours, so mark it here.
      if v_lane_id is not null then
        perform pgfifo._mark(v_lane_id);
      end if;
      perform pgfifo._wake(v_action_id, p_action);
    end if;
  end if;
  return v_changed;
end $$;

-- Pause or resume everything at once, whatever is paused by itself besides. Returns whether that was a change.
create or replace function pgfifo._set_everything_paused(p_paused boolean, p_reason text, p_by text) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  -- As above: the locks of the scope, exclusive, so that once this has committed no start commits.
  perform pgfifo._set_policy('everything', null, null, null, '{}', false);
  update pgfifo.policies p set
    paused_at = case when p_paused then pgfifo._now() end,
    paused_by = case when p_paused then p_by end,
    paused_reason = case when p_paused then left(p_reason, 1000) end
  where p.scope = 'everything' and (p.paused_at is null) = p_paused;
  if not found then
    return false;
  end if;
  perform pgfifo._audit(case when p_paused then 'pause' else 'resume' end, null, null,
    jsonb_build_object('scope', 'everything', 'reason', p_reason) || case when p_by <> session_user then jsonb_build_object('by', p_by) else '{}' end);
  if not p_paused then
    -- The marks of what could not start are still there.
    update pgfifo._home h set copied_at = null, copy_of = null, written_by = default where h.copied_at is not null;
    perform pgfifo._wake(a.id, a.name) from pgfifo.actions a;
  end if;
  return true;
end $$;
