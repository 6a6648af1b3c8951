-- Close or open an action or one of its lanes. Exact, in both directions of time: the lock is the one that every enqueue
-- holds, shared or exclusive, to its commit. So when we have it, no enqueue that found the door open is in flight; and who
-- waits for it reads the door in a statement after ours has committed. Enqueues at REPEATABLE READ, whose snapshot may be
-- older, lock the row that is updated here and get 40001.
-- Nothing here meets claims or finishes: the line drains.
create or replace function pgfifo._set_closed(p_action text, p_group text, p_closed boolean, p_reason text) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_call constant text := case when p_closed then 'close' else 'open' end;
  v_action_id integer := pgfifo._known_action(p_action);
  v_group text;
  v_lane_id bigint;
  v_changed boolean;
begin
  perform pgfifo._require_read_committed(v_call);
  if p_group is null then
    if not pgfifo._lock('pgfifo.actions'::regclass, v_action_id, interval '1 s') then
      perform pgfifo._busy(format('pgfifo.%s gave up after 1 s: enqueues of %s are in flight', v_call, p_action), 'pgfifo.actions'::regclass, v_action_id);
    end if;
    update pgfifo.actions a set closed_at = case when p_closed then pgfifo._now() end, closed_by = case when p_closed then session_user end,
      closed_reason = case when p_closed then left(p_reason, 1000) end
    where a.id = v_action_id and (a.closed_at is null) = p_closed;
    v_changed := found;
  else
    v_group := pgfifo._group(p_action, (select p.group_by from pgfifo._action_policies p where p.action_id = v_action_id), null, p_group);
    loop
      -- A lane that is closed comes to be for it and stays: who is shut out need not have come before.
      v_lane_id := case when p_closed then pgfifo._lane(v_action_id, v_group)
                   else (select l.id from pgfifo.lanes l where l.action_id = v_action_id and l.group_text = v_group) end;
      if v_lane_id is null then
        exit when not p_closed;
        continue;
      end if;
      if not pgfifo._lock('pgfifo._executions'::regclass, pgfifo._key(v_lane_id), interval '1 s') then
        perform pgfifo._busy(format('pgfifo.%s gave up after 1 s: enqueues of this lane of %s are in flight', v_call, p_action),
          'pgfifo._executions'::regclass, pgfifo._key(v_lane_id));
      end if;
      update pgfifo.lanes l set closed_at = case when p_closed then pgfifo._now() end, closed_by = case when p_closed then session_user end,
        closed_reason = case when p_closed then left(p_reason, 1000) end
      where l.id = v_lane_id and (l.closed_at is null) = p_closed;
      v_changed := found;
      -- Else it was idle and has just been removed.
      exit when v_changed or exists (select from pgfifo.lanes l where l.id = v_lane_id);
    end loop;
  end if;
  if v_changed then
    perform pgfifo._audit(v_call, p_action, null, jsonb_build_object('group', v_group, 'reason', p_reason));
  end if;
  return coalesce(v_changed, false);
end $$;
