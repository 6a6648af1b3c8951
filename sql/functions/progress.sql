-- Say how far a running execution is: a fraction from 0 to 1, a message, or both. What is null stays as it was. False if
-- this attempt runs no more (then nothing is said). For people who look, and throttled by the caller: once a second is
-- plenty. Takes no lock that anybody waits for but another report of the same execution.
create or replace function pgfifo.progress(p_id bigint, p_attempt integer, p_fraction double precision default null, p_message text default null) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  if p_fraction not between 0 and 1 or (p_fraction is null and p_message is null) then
    raise exception using errcode = 'QF022',
      message = format('progress is a number from 0 to 1, a message, or both, not %s', coalesce(p_fraction::text, 'null')),
      detail = json_build_object('name', 'p_fraction', 'value', p_fraction::text)::text;
  end if;
  -- An xid before the event is numbered: see events.
  perform pg_current_xact_id();
  insert into pgfifo.reports as n (id, attempt, fraction, message, at, event_no)
  select r.id, r.attempt, p_fraction, left(p_message, 1000), pgfifo._now(), nextval('pgfifo.event_ids')
  from pgfifo.runs r where r.id = p_id and r.attempt = p_attempt and r.state = 'running'
  on conflict (id) do update set attempt = excluded.attempt, at = excluded.at, event_no = excluded.event_no,
    fraction = coalesce(excluded.fraction, case when n.attempt = excluded.attempt then n.fraction end),
    message = coalesce(excluded.message, case when n.attempt = excluded.attempt then n.message end)
  where n.attempt <= excluded.attempt;
  return found;
end $$;
comment on function pgfifo.progress is 'Say how far a running execution is, for whoever looks; false if this attempt runs no more.';
