-- How an action has got on in its last full minutes that are counted: sums, and means over them.
create or replace function pgfifo.pace(
  p_action text,
  p_minutes integer default 10,
  out since timestamptz,
  out until timestamptz,
  out enqueued bigint,
  out started bigint,
  out succeeded bigint,
  out failed bigint,
  out cancelled bigint,
  out expired bigint,
  out backlog bigint,
  out enqueued_per_minute double precision,
  out started_per_minute double precision,
  out finished_per_minute double precision,
  out mean_wait_seconds double precision,
  out mean_run_seconds double precision
)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_action_id integer := pgfifo._known_action(p_action);
  v_minutes double precision;
  v_sums record;
begin
  if p_minutes is null or p_minutes not between 1 and 10080 then
    raise exception using errcode = 'QF022', message = format('p_minutes must be between 1 and 10080, not %s', coalesce(p_minutes::text, 'null')),
      detail = json_build_object('name', 'p_minutes', 'value', p_minutes)::text, hint = 'Minutes are kept for a week.';
  end if;
  -- A pass that is under way may not have come to all lanes yet.
  select case when t.counted_minute = 'epoch' then pgfifo._minute(pgfifo._now())
      else t.counted_minute - case when t.counted_to is null then interval '0' else interval '1 min' end end
    into strict until
  from pgfifo.ticks t order by t.tick desc limit 1;
  select greatest(until - make_interval(mins => p_minutes), least(pgfifo._minute(a.created_at), until - interval '1 min')) into strict since
  from pgfifo.actions a where a.id = v_action_id;
  v_minutes := extract(epoch from until - since) / 60;
  select coalesce(sum(m.enqueued), 0) as enqueued, coalesce(sum(m.started), 0) as started, coalesce(sum(m.succeeded), 0) as succeeded, coalesce(sum(m.failed), 0) as failed,
      coalesce(sum(m.cancelled), 0) as cancelled, coalesce(sum(m.expired), 0) as expired, sum(m.wait_seconds) / nullif(sum(m.measured), 0) as waited,
      sum(m.run_seconds) / nullif(sum(m.measured), 0) as ran
    into strict v_sums
  from pgfifo._minutes m where m.action_id = v_action_id and m.minute >= since and m.minute < until;
  enqueued := v_sums.enqueued;
  started := v_sums.started;
  succeeded := v_sums.succeeded;
  failed := v_sums.failed;
  cancelled := v_sums.cancelled;
  expired := v_sums.expired;
  -- What has been counted of each lane, but for what was counted for minutes since.
  select greatest(0, coalesce(sum(p.enqueued - p.succeeded - p.failed - p.cancelled - p.expired), 0)
      - (select coalesce(sum(m.enqueued - m.succeeded - m.failed - m.cancelled - m.expired), 0) from pgfifo._minutes m
         where m.action_id = v_action_id and m.minute >= until)) into strict backlog
  from pgfifo.lanes l join pgfifo._tallies p on p.lane_id = l.id where l.action_id = v_action_id;
  enqueued_per_minute := enqueued / v_minutes;
  started_per_minute := started / v_minutes;
  finished_per_minute := (succeeded + failed + cancelled + expired) / v_minutes;
  mean_wait_seconds := v_sums.waited;
  mean_run_seconds := v_sums.ran;
end $$;
comment on function pgfifo.pace is 'Say how an action has got on in its last minutes.';
