-- Take the liveness lock again, on a new session after the old one was lost. That it was lost though the server went on is noted
-- down: what has cut it has perhaps cut others, who are on their way back too. See _rescue.
create or replace function pgfifo.worker_relock(p_worker bigint) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_before text := current_setting('lock_timeout');
begin
  perform pgfifo._require_read_committed('worker_relock');
  perform pgfifo._fence_worker(p_worker);
  -- The old session may live on for a moment; it is ours, so this wait ends.
  perform set_config('lock_timeout', '5s', true);
  perform pg_advisory_lock('pgfifo._workers'::regclass::oid::integer, pgfifo._key(p_worker));
  perform set_config('lock_timeout', v_before, true);
  update pgfifo._workers w set locked = true, locked_on = pg_postmaster_start_time(), lock_missed_tick = null,
    relocked_tick = case when w.locked_on = pg_postmaster_start_time() then (select max(t.tick) from pgfifo.ticks t) else w.relocked_tick end
  where w.id = p_worker;
end $$;
comment on function pgfifo.worker_relock is 'Take a worker''s liveness lock again, on a new session.';
