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
