-- Join a lane's line for a slot that this very program will hold: its code runs here, and not in a worker. What it joins
-- with is an execution like any other, so it is fair among workers and other programs, and counts in limits, statistics and
-- the history; but it is owned by p_worker (registered with worker_start, p_kind 'slot', who sends heartbeats), and when its
-- turn comes, whoever claims starts it in the owner's name and notifies him (channel pgfifo_slots, payload: his id, a space,
-- and that of the execution; only his id: he should send a heartbeat, whose answer says what to stop). Where no worker claims,
-- the lane is moved on by those who wait in it, with this call, slot_look and slot_leave.
-- Answers how things stand: state 'running' (the slot is yours; attempt, and token, the fence), or 'waiting': then look again
-- with slot_look when notified, or after look_after seconds, or each second.
-- p_no: a number of the worker's own, each used once and larger than those before. The same one again (the answer was lost)
-- finds the first. Heartbeats list those that are in use (p_slots); what was asked for under an older other one is ended.
-- p_holding: what the caller's thread holds already, in the name of whatever worker. Should that fill the lane it would wait for
-- itself: QF011.
-- p_wait: how long to wait for other producers' open transactions, QF012 after that. Null: as long as it takes.
-- p_try: only if the slot can be had at once; if not, all is null and nothing was done.
-- Autocommit and READ COMMITTED only.
create or replace function pgfifo.slot_enter(
  p_worker bigint,
  p_no bigint,
  p_action text,
  p_payload jsonb default '{}',
  p_group text default null,
  p_headers jsonb default null,
  p_tags text[] default null,
  p_holding bigint[] default '{}',
  p_wait interval default null,
  p_try boolean default false
) returns pgfifo.slot_row
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_row pgfifo.slot_row;
  v_held record;
begin
  perform pgfifo._require_read_committed('slot_enter');
  perform pgfifo._durable();
  perform pgfifo._fence_worker(p_worker);
  if p_no is null or not exists (select from pgfifo._workers w where w.id = p_worker and w.kind = 'slot') then
    raise exception using errcode = 'QF022',
      message = 'slot_enter needs a number, and a worker of kind slot', detail = json_build_object('worker', p_worker, 'no', p_no)::text,
      hint = 'Register one with pgfifo.worker_start(…, p_kind => ''slot'').';
  end if;
  if p_holding <> '{}' then
    -- Only what runs in the lane that this would join; and not after an enqueue that would wait.
    select l.group_text, coalesce(lp.max_concurrent, p.max_concurrent) as most, count(*) as held into v_held
    from unnest(p_holding) i(id)
    cross join lateral (select r.lane_id from pgfifo.runs r where r.id = i.id and r.state = 'running' offset 0) r
    join pgfifo.lanes l on l.id = r.lane_id
    join pgfifo.actions a on a.id = l.action_id and a.name = p_action
    join pgfifo._action_policies p on p.action_id = l.action_id
    left join pgfifo._lane_policies lp on lp.lane_id = l.id
    where l.group_text = pgfifo._group(p_action, p.group_by, p_payload, p_group)
    group by 1, 2;
    if v_held.held >= v_held.most then
      if p_try then
        return null;
      end if;
      raise exception using errcode = 'QF011',
        message = format('this thread holds %s of %s already, and would wait for itself',
          case when v_held.most = 1 then 'the only slot' else format('all %s slots', v_held.most) end,
          p_action || coalesce(nullif(' ' || pgfifo.format_group(v_held.group_text), ' '), '')),
        detail = json_build_object('action', p_action, 'group', v_held.group_text)::text, hint = 'Leave the one that it holds first.';
    end if;
  end if;
  if p_try and not exists (select from pgfifo._executions e where e.owner = p_worker and e.owner_no = p_no)
    and pgfifo._is_full(p_action, p_payload, p_group)
  then
    return null;
  end if;
  for v_try in 1 .. 2 loop
    begin
      v_row := pgfifo._slot_enter(p_worker, p_no, p_action, p_payload, p_group, p_headers, p_tags,
        case when p_try then interval '50 ms' else p_wait end, p_try);
      if p_try and v_row.state <> 'running' then
        raise lock_not_available;
      end if;
      return v_row;
    exception
      when unique_violation then
        null;  -- the first call under this number has committed while we waited for it: it is there now
      when lock_not_available then
        exit when p_try;
        raise exception using errcode = 'QF012',
          message = format('somebody''s open transaction has enqueued to this lane of %s, and did not end in time', p_action),
          detail = json_build_object('action', p_action, 'timeout', extract(epoch from p_wait))::text;
      when sqlstate 'QF001' or sqlstate 'QF002' or sqlstate 'QF003' then
        exit when p_try;
        raise;
    end;
  end loop;
  return null;
end $$;
comment on function pgfifo.slot_enter is 'Join a lane''s line for a slot that the calling program itself will hold.';
