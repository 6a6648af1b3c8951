-- Law 3: what takes a slot lock or deletes a mark decides on a snapshot newer than its lock. At REPEATABLE READ and
-- above there is no such snapshot: a stale one has leaked slots and eaten the last mark of a lane, without any error.
create or replace function pgfifo._require_read_committed(p_call text) returns void
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception using errcode = 'QF019',
      message = format('pgfifo.%s cannot decide at isolation level %s', p_call, current_setting('transaction_isolation')),
      detail = json_build_object('call', p_call, 'isolation', current_setting('transaction_isolation'))::text,
      hint = 'Call it at READ COMMITTED, for example on a connection of its own: set default_transaction_isolation = ''read committed''.';
  end if;
end $$;
