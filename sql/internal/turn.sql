-- How long a lane's turn lasts. Lanes take turns: one in which something has ended comes after those that have been waiting for
-- longer. But what ends within this time since its turn began may hand its slot on to the next of its own line, in the statement
-- that ends it: that saves a mark, a version of the ledger, and the search for another lane. So a lane that is worth a turn waits
-- for what runs then, and for this time at most, whatever a line is long. `pgfifo.turn`, in milliseconds; 0: every execution is a
-- turn. The clock may jump: a turn that began later than now is over.
create or replace function pgfifo._turn() returns interval
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_text constant text := current_setting('pgfifo.turn', true);
begin
  if v_text is null or v_text = '' then
    return interval '10 ms';
  end if;
  if v_text !~ '^[0-9]{1,6}$' then
    raise exception using errcode = 'QF022', message = format('pgfifo.turn must be a number of milliseconds from 0 to 999999, not %s', quote_literal(v_text)),
      detail = json_build_object('name', 'pgfifo.turn', 'value', v_text)::text, hint = 'Set it again, for this session, this role or this database; it is 10 where nobody sets it.';
  end if;
  return v_text::integer * interval '1 ms';
end $$;

-- Whether another lane of these actions is worth a look, so that one whose turn is over has to let go of its slot. Where none is,
-- the slot is handed on all the same: who comes right after this look waits for what runs then, as within a turn.
-- From where claims begin to scan: what committed late lies before that, and is found by the claim that once a second begins
-- earlier (see _scan_from). Who hands on claims nothing; so when that is due, somebody may be waiting. And where nobody claims
-- nobody moves those points on past what has gone; so that is done here, less often.
create or replace function pgfifo._others_wait(p_actions integer[], p_now timestamptz) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_waits boolean;
  v_behind integer[];
begin
  select bool_or(s.full_at <= p_now
      or exists (select from pgfifo.marks m where m.action_id = a.id and m.id > s.hot_mark)
      or exists (select from pgfifo.timers t where t.action_id = a.id and t.due_at >= s.hot_timer and t.due_at <= p_now)),
    array_agg(a.id) filter (where p_now - s.seen_at not between interval '0' and interval '300 ms')
    into v_waits, v_behind
  from unnest(p_actions) a(id)
  cross join lateral (
    select s.hot_mark, s.hot_timer, s.seen_at, s.full_at from pgfifo.scans s where s.action_id = a.id order by s.action_id desc, s.version desc limit 1) s;
  if v_behind is not null and not v_waits then
    perform pgfifo._scan_from(b.id, p_now, null) from unnest(v_behind) b(id);
  end if;
  return v_waits;
end $$;
