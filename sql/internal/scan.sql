-- The last mark id that has been drawn by anybody, committed or not.
create or replace function pgfifo._last_mark() returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(pg_sequence_last_value('pgfifo.mark_ids'), 0);
end $$;

-- Where this claim begins to scan marks and timers of one action. Mostly it only reads; about ten times a second an
-- elected claim also moves the points on, and once a second it begins from the safe one, to find what committed late.
--   hot:  to what had been drawn at the last move (a tenth of a second ago or more), but not past what is there.
--   safe: to what had been drawn when `pending` was noted, once everybody who was in progress then has ended: read the last
--         id first and get an xid of one's own second. Whoever had drawn an id by then owned an xid, so a smaller one, and
--         is over once pg_snapshot_xmin has come to ours. (The xmax of a snapshot would not do in its place: it is the
--         latest *completed* xid plus one, and transactions with larger ones may be in progress.)
-- p_drawn: the last id drawn, read when this transaction had no xid yet; null when it had one, then nothing is noted.
-- Election by try-lock, then the newest version is read again: of two claims, one moves.
create or replace function pgfifo._scan_from(p_action_id integer, p_now timestamptz, p_drawn bigint, out o_mark bigint, out o_timer timestamptz)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_scan pgfifo.scans;
  v_seen bigint;
  v_xmin xid8;
  v_first bigint;
  v_first_at timestamptz;
  v_full boolean;
  v_next pgfifo.scans;
begin
  select s.* into strict v_scan from pgfifo.scans s where s.action_id = p_action_id order by s.action_id desc, s.version desc limit 1;
  o_mark := v_scan.hot_mark;
  o_timer := v_scan.hot_timer;
  if p_now - v_scan.seen_at between interval '0' and interval '100 ms'
    or not pg_try_advisory_xact_lock('pgfifo.scans'::regclass::oid::integer, p_action_id)
  then
    return;
  end if;
  select s.* into strict v_scan from pgfifo.scans s where s.action_id = p_action_id order by s.action_id desc, s.version desc limit 1;
  if p_now - v_scan.seen_at between interval '0' and interval '100 ms' then
    return;
  end if;
  if v_scan.seen_at > p_now + interval '1 s' then
    -- The clock was set back: what becomes due from now on lies before where it was, and what was noted by it says nothing.
    v_scan.seen_at := '-infinity';
    v_scan.hot_timer := '-infinity';
    v_scan.safe_timer := '-infinity';
    v_scan.pending_at := '-infinity';
    v_scan.full_at := '-infinity';
    -- Lanes that were to be looked at in a moment by the other clock are looked at now; their timers stay.
    perform pg_current_xact_id();
    insert into pgfifo.marks (action_id, id, lane_id)
    select p_action_id, nextval('pgfifo.mark_ids'), t.lane_id
    from (select distinct x.lane_id from pgfifo.timers x where x.action_id = p_action_id) t;
  end if;
  v_seen := pgfifo._last_mark();
  v_xmin := pg_snapshot_xmin(pg_current_snapshot());
  -- From here on, statements see at least what was over at v_xmin.
  v_next := v_scan;
  v_next.version := v_scan.version + 1;
  select min(m.id) into v_first from pgfifo.marks m where m.action_id = p_action_id and m.id > v_scan.hot_mark;
  v_next.hot_mark := greatest(v_scan.hot_mark, least(v_scan.seen_mark, v_first - 1));
  select min(t.due_at) into v_first_at from pgfifo.timers t where t.action_id = p_action_id and t.due_at >= v_scan.hot_timer;
  -- Never later than now: another claim's clock may have been ahead of ours.
  v_next.hot_timer := least(p_now, greatest(v_scan.hot_timer, least(v_scan.seen_at, v_first_at)));
  v_full := v_scan.full_at <= p_now;
  if v_full then
    o_mark := v_scan.safe_mark;
    o_timer := v_scan.safe_timer;
    if v_scan.pending_xid <= v_xmin then
      select min(m.id) into v_first from pgfifo.marks m where m.action_id = p_action_id and m.id > v_scan.safe_mark;
      v_next.safe_mark := greatest(v_scan.safe_mark, least(v_scan.pending_mark, v_first - 1));
      select min(t.due_at) into v_first_at from pgfifo.timers t where t.action_id = p_action_id and t.due_at >= v_scan.safe_timer;
      v_next.safe_timer := greatest(v_scan.safe_timer, least(v_scan.pending_at, v_first_at));
    end if;
    v_next.safe_timer := least(p_now, v_next.safe_timer);
    if p_drawn is not null and (v_scan.pending_xid is null or v_scan.pending_xid <= v_xmin) then
      v_next.pending_mark := p_drawn;
      v_next.pending_at := p_now;
      v_next.pending_xid := pg_current_xact_id();
    end if;
    -- A long writer pins `safe` and dead marks pile up above it: then look there less often, at most 5 % of the time.
    v_next.full_at := p_now + greatest(interval '1 s', 20 * (pgfifo._now() - p_now));
  end if;
  v_next.seen_mark := v_seen;
  v_next.seen_at := p_now;
  insert into pgfifo.scans select v_next.*;
  delete from pgfifo.scans s where s.action_id = p_action_id and s.version = v_scan.version;
end $$;
