-- Give a running execution its outcome, succeeded, in the transaction of its handler's own writes: both commit or neither
-- does. It stays active, in its slot, until its worker says that the attempt has ended: the handler may go on. Whatever the
-- worker then says, and also if it dies, it has succeeded, with this result.
-- The lane's slot lock is held to the caller's commit: nobody takes the execution away in between, and claims pass the
-- lane by meanwhile. So call it last. The worker's fence is held as long: it is not declared dead before that commit.
create or replace function pgfifo.complete(p_id bigint, p_attempt integer, p_result jsonb default null) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_run pgfifo.runs;
begin
  perform pgfifo._require_read_committed('complete');
  perform pgfifo._durable();
  v_run := pgfifo._lock_run(p_id, p_attempt, 'complete');
  if v_run.id is null then
    perform pgfifo._lease_lost(p_id, p_attempt);
  elsif v_run.completed then
    raise exception using errcode = 'QF010',
      message = format('attempt %s of execution %s has been completed already', p_attempt, p_id),
      detail = json_build_object('id', p_id, 'attempt', p_attempt)::text,
      hint = 'Roll back: what was committed with it counts, once.';
  end if;
  -- The row of a run is written only by whoever has the slot lock, so nobody ever waits for this row.
  update pgfifo.runs r set completed = true, result = p_result where r.id = p_id;
end $$;
comment on function pgfifo.complete is 'Let a running execution succeed together with its handler''s own writes.';
