-- What a worker has to work out: schedules whose tick has come, or whose next tick nobody knows yet. now is the server's.
create or replace function pgfifo.due_schedules()
returns table (id bigint, version integer, name text, cron text, time_zone text, missed text, since timestamptz, next_at timestamptz, now timestamptz)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pgfifo._now();
begin
  return query
    select s.id, s.version, s.name, s.cron, s.time_zone, s.missed, s.since, s.next_at, v_now
    from pgfifo._schedules s where s.paused_at is null and (s.next_at is null or s.next_at <= v_now) order by s.next_at nulls first, s.id limit 100;
end $$;
comment on function pgfifo.due_schedules is 'List the schedules whose tick has come, for workers.';
