-- What a claim does for a lane of which it can start one execution at most, and about which nothing is special: a few small
-- statements, each of which costs less to begin than the one that looks at many lanes together (see work). Both decide alike;
-- where this one would have to know more, it changes nothing and says 'look': then that statement looks.
-- The caller holds the lane's slot lock since an earlier statement, has taken away the marks that it came by, owns an xid, and
-- has read what is in force for its action, under the policy locks: strict, and governed by no limit over time. Whether the lane
-- has a policy of its own is looked up here, since who changes that holds no other lock than the lane's.
-- Every statement here begins after the lock, so it sees all that earlier deciders about the lane have committed.
-- Dies here: nothing happened, the marks included.
-- p_version: what the lane's ledger had come to; p_announces: whether an enqueue's mark was among them, else what has arrived
-- can wait for its own. Kind 'start': the worker's row; null: nothing starts; status 'again': the lane has got another mark.
create or replace function pgfifo._start_single(p_lane_id bigint, p_version bigint, p_announces boolean, p_quota integer, p_actions integer[],
  p_names text[], p_max integer[], p_worker bigint, p_call bigint, p_epoch integer, p_now timestamptz) returns pgfifo.work_row
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_out pgfifo.work_row;
  v_found record;
  v_lane pgfifo.ledger;
  v_arrived record;
  v_next record;
  v_rows bigint := 0;
  v_folded bigint := 0;
  v_floor bigint;
  v_ticket bigint;
  v_nth integer;
  v_free integer;
begin
  -- The newest version as one value: each step of a plan pays for each column that it passes on.
  select l.action_id, l.group_text, g.row, g.ledger,
      exists (select from pgfifo.policies p where p.scope = 'lane' and p.lane_id = p_lane_id) or exists (select from pgfifo._overrides) as differs
    into v_found
  from pgfifo.lanes l
  cross join lateral (
    select g.ctid as row, g as ledger from pgfifo.ledger g where g.lane_id = l.id and g.version >= p_version order by g.lane_id desc, g.version desc limit 1) g
  where l.id = p_lane_id;
  v_lane := v_found.ledger;
  if v_lane.version is null or v_found.differs or v_lane.held > 0 or v_lane.returned > 0 or v_lane.yielded > 0 or v_lane.delayed <> 0 or v_lane.pending_xid is not null then
    v_out.kind := 'look';
    return v_out;
  end if;
  v_floor := v_lane.mark_floor;
  if p_announces then
    select coalesce(sum(a.n), 0) as n, max(a.id) as top, count(*) as rows, array_agg(a.ctid) as gone,
        bool_or(a.delayed <> 0 or a.delayed_from is not null or a.first_ticket is not null) as is_special
      into v_arrived
    from (select a.id, a.n, a.delayed, a.delayed_from, a.first_ticket, a.ctid from pgfifo.arrivals a
          where a.lane_id = p_lane_id and a.id > v_lane.mark_floor order by a.lane_id, a.id limit 1000) a;
    if v_arrived.is_special or v_arrived.rows >= 1000 then
      v_out.kind := 'look';
      return v_out;
    end if;
    v_rows := v_arrived.rows;
    v_folded := v_arrived.n;
    v_floor := greatest(v_floor, v_arrived.top);
  end if;
  v_nth := array_position(p_actions, v_found.action_id);
  v_free := p_max[v_nth] - v_lane.running + v_lane.riding;
  if v_free > 0 then
    -- Read with its content, under the slot lock: whoever changes what waits holds that, too.
    select e.id, e.ticket, e.owner, e.past, e.payload, e.headers, e.tags, e.enqueued_at, e.run_at into v_next
    from pgfifo._executions e where e.lane_id = p_lane_id and e.ticket > v_lane.consumed order by e.lane_id, e.ticket limit 1;
    if v_next.owner is not null or v_next.past is not null then
      v_out.kind := 'look';
      return v_out;
    end if;
    if v_free > 1 and p_quota > 1 and v_next.id is not null then
      -- A query of its own: an `if` with one in it would ask it each time.
      if exists (select from pgfifo._executions e where e.lane_id = p_lane_id and e.ticket > v_next.ticket order by e.lane_id, e.ticket limit 1) then
        v_out.kind := 'look';
        return v_out;
      end if;
    end if;
    if v_next.id is not null then
      insert into pgfifo.runs (id, lane_id, ticket, state, attempt, worker_id, call_no, start_no, start_limit, is_strict, version, started_at)
      values (v_next.id, p_lane_id, v_next.ticket, 'running', 1, p_worker, p_call, v_lane.starts + 1, p_max[v_nth], true, v_lane.version + 1, p_now);
      v_ticket := v_next.ticket;
      v_out.kind := 'start';
      v_out.id := v_next.id;
      v_out.attempt := 1;
      v_out.token := p_epoch || '-' || v_next.id || '-1';
      v_out.action := p_names[v_nth];
      v_out.group_text := v_found.group_text;
      v_out.payload := v_next.payload;
      v_out.headers := v_next.headers;
      v_out.tags := v_next.tags;
      v_out.enqueued_at := v_next.enqueued_at;
      v_out.wait_seconds := greatest(0, extract(epoch from p_now - greatest(v_next.enqueued_at, v_next.run_at)));
      v_out.lane_id := p_lane_id;
      v_out.start_no := v_lane.starts + 1;
    end if;
  end if;
  if v_out.kind is not null or v_rows > 0 then
    with gone as (
      delete from pgfifo.ledger g where g.ctid = v_found.row)
    insert into pgfifo.ledger (lane_id, version, running, held, riding, yielded, returned, waiting, delayed, consumed, mark_floor, held_from, returned_from,
      delayed_from, starts, enqueued, joined, succeeded, failed, cancelled, expired, changed_at)
    values (p_lane_id, v_lane.version + 1, v_lane.running + (v_out.kind is not null)::integer, 0, v_lane.riding, 0, 0,
      v_lane.waiting + v_folded - (v_out.kind is not null)::integer, 0, coalesce(v_ticket, v_lane.consumed), v_floor, v_lane.held_from, v_lane.returned_from,
      v_lane.delayed_from, v_lane.starts + (v_out.kind is not null)::integer, v_lane.enqueued + v_folded, v_lane.joined + v_folded,
      v_lane.succeeded, v_lane.failed, v_lane.cancelled, v_lane.expired, p_now);
    if v_rows > 0 then
      delete from pgfifo.arrivals a where a.ctid = any (v_arrived.gone);
    end if;
  end if;
  if v_free > 1 and v_out.kind is not null then
    -- A slot is left, and what waits may have more than this call could take.
    insert into pgfifo.marks (action_id, id, lane_id) values (v_found.action_id, nextval('pgfifo.mark_ids'), p_lane_id);
    v_out.status := 'again';
  end if;
  return v_out;
end $$;
