-- What has happened since a cursor: read from the rows that there are anyway, so nothing is written for it. Nothing is
-- missed and nothing told twice, however many commit beside each other.
-- How that can be: executions, starts and ends of attempts, and entries of the audit are numbered by three sequences, by
-- transactions that own an xid before they draw. So whoever reads where the sequences stand, and gets an xid of his own after
-- that, knows that nobody can commit a number below any more once pg_snapshot_xmin has come to that xid. Up to there is told;
-- what has been drawn after that, or by who is still under way, another time. A writing transaction that stays open so holds
-- events up, whatever it does, until it ends.
-- All three bounds are of one moment, that of the changes read first: who had started something by then, had seen its enqueue
-- committed. They are on disk before anybody gets to know them: after a crash a sequence may go back to what was, and numbers
-- below a cursor would be given out again.
-- Order: per lane, starts and ends are in the order in which they happened (their numbers are drawn under its slot lock), and
-- an enqueue comes before the start. Among lanes there is no order. In one answer enqueues come first.
-- kinds: enqueued · started · attempt_ended (the execution goes on: detail says how it ended, and when it is due) · finished
-- (detail: the outcome) · progress (the last one) · lane_started (nothing of the lane was in a slot before this start) ·
-- lane_empty (this was the end of the last, and nothing of the lane waits or is active now; of a lane that has been removed
-- as idle, who is more than 10,000 events behind may be told so of an earlier end, too) · paused, resumed, closed, opened, and changed for whatever else is in the audit.
-- p_cursor: where an earlier answer ended; 'begin': from the oldest row on record; null: from now on, where who is writing
-- right now is waited for, a second at most. Each row has the cursor after it; the last row, of kind 'cursor', is always
-- there: detail says whether there is more at once, and whether somebody who is under way holds something back.
-- QF027 where retention has removed what has not been told; its detail has the cursor to go on with what is left.
-- p_filter: {"action", "group", "id", "kind": [...]}.
-- What it costs: p_limit rows, or with a filter 10,000, and what is running or waits for its next attempt.
create or replace function pgfifo.events(p_cursor text default null, p_limit integer default 1000, p_filter jsonb default null)
returns table (kind text, at timestamptz, action text, group_text text, id bigint, attempt integer, detail jsonb, cursor text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_filter pgfifo._event_filter := pgfifo._read_event_filter(p_filter);
  v_epoch integer;
  -- Executions, changes, entries of the audit: told up to here (of changes the place, see _change_events), proven up to
  -- here, and what is proven once v_xid is reached. v_forgotten: what retention has removed up to these is known to be gone, of changes and of the audit.
  v_forgotten bigint[] := '{0,0}';
  v_told bigint[];
  v_proven bigint[];
  v_pending bigint[];
  v_xid xid8;
  v_now_at bigint[];
  v_can_prove boolean := pg_current_xact_id_if_assigned() is null;
  v_lsn pg_lsn;
  v_until timestamptz;
  v_parts text[];
  v_head text;
  v_tail text;
  v_upto bigint;
  v_look integer;
  v_count integer := 0;
  v_read integer := 0;
  v_place bigint;
  v_row record;
begin
  if p_limit is null or p_limit < 1 or p_limit > 100000 then
    raise exception using errcode = 'QF022', message = format('p_limit must be between 1 and 100000, not %s', coalesce(p_limit::text, 'null')),
      detail = json_build_object('name', 'p_limit', 'value', p_limit)::text;
  elsif p_cursor <> 'begin' and p_cursor !~ '^[0-9]{1,9}([.][0-9]{1,18}){2}(-[0-9]{1,18}([.][0-9]{1,18}){2}){2}(-[0-9]{1,18}([.][0-9]{1,18}){2}[.][0-9]{1,19})?$' then
    raise exception using errcode = 'QF022', message = format('%s is no cursor', quote_literal(left(p_cursor, 100))),
      detail = json_build_object('name', 'p_cursor', 'value', left(p_cursor, 200))::text, hint = 'Give one that events has returned, ''begin'', or null.';
  end if;
  select i.epoch into strict v_epoch from pgfifo.installation i;
  -- In this order, each by itself: see above.
  v_now_at[2] := (select case when s.is_called then s.last_value else s.last_value - 1 end from pgfifo.event_ids s);
  v_now_at[1] := (select case when s.is_called then s.last_value else s.last_value - 1 end from pgfifo.execution_ids s);
  v_now_at[3] := (select case when s.is_called then s.last_value else s.last_value - 1 end from pgfifo.audit_id_seq s);
  v_lsn := pg_current_wal_insert_lsn();
  if p_cursor = 'begin' then
    v_told := '{0,0,0}';
    v_proven := '{0,0,0}';
    v_forgotten := array[coalesce((select max(f.event_no) from pgfifo.forgotten f where f.action_id >= 0), 0),
      coalesce((select f.event_no from pgfifo.forgotten f where f.action_id = -1), 0)];
  elsif p_cursor is not null then
    v_parts := string_to_array(p_cursor, '-');
    v_told := string_to_array(v_parts[2], '.')::bigint[];
    v_proven := string_to_array(v_parts[3], '.')::bigint[];
    v_pending := string_to_array(v_parts[4], '.')::bigint[];
    v_xid := v_pending[4]::text::xid8;
    v_pending := v_pending[1:3];
    v_forgotten := (string_to_array(v_parts[1], '.')::bigint[])[2:3];
    if split_part(v_parts[1], '.', 1)::integer <> v_epoch then
      raise exception using errcode = 'QF027',
        message = format('this cursor is of epoch %s, and the epoch is %s now', split_part(v_parts[1], '.', 1), v_epoch),
        detail = json_build_object('epoch', v_epoch, 'cursor', null)::text,
        hint = 'After a failover or a restore what it has told may never have happened. Begin anew, with ''begin'' or null.';
    elsif v_told[1] > v_now_at[1] or v_told[2] > 2 * v_now_at[2] + 1 or v_told[3] > v_now_at[3]
      or exists (select from unnest(v_proven || v_pending, v_now_at || v_now_at) p(upto, now) where p.upto > p.now)
    then
      raise exception using errcode = 'QF022', message = 'this cursor is from a future that this database does not know',
        detail = json_build_object('name', 'p_cursor', 'value', p_cursor)::text,
        hint = 'It is another database, or commits were lost in a failover or a restore. Begin anew, with ''begin'' or null.';
    end if;
  end if;
  -- What was over at the xmin of this statement's snapshot is visible to the statements after it.
  if v_pending is not null and pg_snapshot_xmin(pg_current_snapshot()) >= v_xid then
    v_proven := v_pending;
    v_pending := null;
  end if;
  -- Where this transaction had an xid before, that is older than what it has read since: then nothing can be proven now.
  if v_pending is null and v_can_prove and v_now_at is distinct from v_proven then
    v_pending := v_now_at;
    v_xid := pg_current_xact_id();
    if pg_current_wal_flush_lsn() < v_lsn then
      -- A lock on a row makes our commit wait for the disk, and leaves nothing behind.
      perform pgfifo._durable();
      perform from pgfifo.installation i for key share;
    end if;
    if p_cursor is null and current_setting('transaction_isolation') = 'read committed' then
      v_until := clock_timestamp() + interval '1 s';
      while pg_snapshot_xmin(pg_current_snapshot()) < v_xid and clock_timestamp() < v_until loop
        perform pg_sleep(0.005);
      end loop;
    end if;
    if pg_snapshot_xmin(pg_current_snapshot()) >= v_xid then
      v_proven := v_pending;
      v_pending := null;
    end if;
  end if;
  if p_cursor is null then
    v_proven := v_now_at;
    v_told := array[v_now_at[1], 2 * v_now_at[2] + 1, v_now_at[3]];
  end if;
  v_head := v_epoch || '.' || array_to_string(v_forgotten, '.') || '-';
  v_tail := '-' || array_to_string(v_proven, '.') || coalesce('-' || array_to_string(v_pending, '.') || '.' || v_xid::text, '');
  v_look := case when coalesce(jsonb_strip_nulls(p_filter), '{}') = '{}' then p_limit else greatest(p_limit, 10000) end;

  if v_filter.id is not null then
    v_told[1] := greatest(v_told[1], least(v_proven[1], v_filter.id - 1));
  end if;
  if v_filter.kinds is null or 'enqueued' = any (v_filter.kinds) then
    for v_row in
      select e.* from pgfifo._enqueued_events(v_told[1], least(v_proven[1], v_filter.id), v_filter, v_look) e
    loop
      v_read := v_read + 1;
      v_told[1] := v_row.id;
      continue when not v_row.is_wanted;
      kind := 'enqueued'; at := v_row.at; action := v_row.action; group_text := v_row.group_text; id := v_row.id; attempt := null;
      detail := v_row.detail;
      cursor := v_head || array_to_string(v_told, '.') || v_tail;
      v_count := v_count + 1;
      return next;
      exit when v_count >= p_limit;
    end loop;
  end if;
  if v_read < v_look and v_count < p_limit then
    v_told[1] := greatest(v_told[1], v_proven[1]);
    -- Numbers that nothing has any more are passed over, once.
    for v_turn in 1 .. 2 loop
      v_upto := case when v_filter.id is not null then v_proven[2] else least(v_proven[2], ((v_told[2] - 1) >> 1) + v_look) end;
      v_place := null;
      for v_row in
        select c.* from pgfifo._change_events(v_told[2], v_upto, v_filter) c order by c.place limit p_limit - v_count
      loop
        v_place := v_row.place;
        v_told[2] := v_row.place;
        kind := v_row.kind; at := v_row.at; action := v_row.action; group_text := v_row.group_text; id := v_row.id; attempt := v_row.attempt;
        detail := v_row.detail;
        cursor := v_head || array_to_string(v_told, '.') || v_tail;
        v_count := v_count + 1;
        return next;
      end loop;
      exit when v_count >= p_limit;
      v_told[2] := greatest(v_told[2], 2 * v_upto + 1);
      exit when v_upto >= v_proven[2] or v_place is not null;
      v_told[2] := greatest(v_told[2], 2 * pgfifo._next_event(v_upto, v_proven[2]) - 1);
    end loop;
  end if;
  if v_count < p_limit and v_told[1] >= v_proven[1] and v_told[2] > 2 * v_proven[2] then
    v_read := 0;
    for v_row in
      select u.* from pgfifo._audit_events(v_told[3], v_proven[3], v_filter, v_look) u
    loop
      v_read := v_read + 1;
      v_told[3] := v_row.no;
      continue when not v_row.is_wanted;
      kind := v_row.kind; at := v_row.at; action := v_row.action; group_text := v_row.group_text; id := v_row.execution; attempt := null;
      detail := v_row.detail;
      cursor := v_head || array_to_string(v_told, '.') || v_tail;
      v_count := v_count + 1;
      return next;
      exit when v_count >= p_limit;
    end loop;
    if v_read < v_look and v_count < p_limit then
      v_told[3] := greatest(v_told[3], v_proven[3]);
    end if;
  end if;

  -- After all that was read: what it did not find any more because it had been removed by then, is written here.
  if p_cursor <> 'begin' then
    select f.event_no as upto, a.name as action, (f.action_id < 0)::integer + 1 as what into v_row
    from pgfifo.forgotten f
    left join pgfifo.actions a on a.id = f.action_id
    cross join (select string_to_array(v_parts[2], '.')::bigint[] as told) t
    where case when f.action_id < 0
        then f.event_no > v_forgotten[2] and f.event_no > t.told[3]
          and (v_filter.kinds is null or v_filter.kinds && '{paused,resumed,closed,opened,changed}')
        else f.event_no > v_forgotten[1] and f.event_no > t.told[2] >> 1 and (f.action_id = 0 or v_filter.action_id is null or f.action_id = v_filter.action_id)
          and (v_filter.kinds is null or v_filter.kinds && '{enqueued,started,attempt_ended,finished,progress,lane_started,lane_empty}') end
    order by f.action_id < 0, f.event_no desc limit 1;
    if found then
      v_forgotten[v_row.what] := v_row.upto;
      cursor := v_epoch || '.' || array_to_string(v_forgotten, '.') || '-' || array_to_string(v_parts[2:], '-');
      raise exception using errcode = 'QF027',
        message = case v_row.what when 2 then 'the audit has forgotten entries that come after this cursor'
          else format('retention has removed executions%s whose events come after this cursor', coalesce(' of ' || v_row.action, '')) end,
        detail = json_build_object('action', v_row.action, 'cursor', cursor)::text,
        hint = format('Look at how things stand, and go on with what is left: %s. A retention that is longer than readers are away prevents this.', cursor);
    end if;
  end if;
  kind := 'cursor'; at := pgfifo._now(); action := null; group_text := null; id := null; attempt := null;
  detail := jsonb_build_object('more', v_told[1] < v_proven[1] or v_told[2] <= 2 * v_proven[2] or v_told[3] < v_proven[3], 'held_back', v_pending is not null);
  cursor := v_head || array_to_string(v_told, '.') || v_tail;
  return next;
end $$;
comment on function pgfifo.events is 'Tell what has happened since a cursor: nothing is missed, nothing told twice.';
