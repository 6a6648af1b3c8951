-- Look for trouble all around: settings, connections, locks and snapshots that others hold, workers, lanes that nobody gets
-- going, upkeep, tables; and what check() finds. Runs with its caller's rights: whose sessions he may not see is a finding itself.
-- Only reads, in several snapshots. On a standby there is nobody's lock to see, and nothing is said about those.
create or replace function pgfifo.doctor(
  p_open_after interval default '30 s',
  p_snapshot_after interval default '5 min',
  p_check boolean default true
)
returns table (severity text, kind text, subject text, detail text, meaning text, mend text, data jsonb)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
as $$
#variable_conflict use_column
begin
  if p_open_after is null or p_snapshot_after is null or p_check is null or p_open_after < interval '0' or p_snapshot_after < interval '0' then
    raise exception using errcode = 'QF022', message = 'p_open_after and p_snapshot_after must not be negative, and nothing may be null',
      detail = '{"name": "p_open_after"}', hint = 'Leave them out for their defaults: 30 seconds and 5 minutes.';
  end if;
  return query
  select f.o_severity, f.o_kind, f.o_subject, f.o_detail, f.o_meaning, f.o_mend, f.o_data
  from (
    select s.* from pgfifo._doctor_settings() s
    union all
    select l.* from pgfifo._doctor_locks(p_open_after) l
    union all
    select n.* from pgfifo._doctor_snapshots(p_snapshot_after) n
    union all
    select b.* from pgfifo._doctor_books(p_open_after) b
    union all
    select case c.severity when 'violation' then 'critical' else 'warning' end, 'check', coalesce(c.lane, c.kind), format('%s (%s): %s.', c.kind, c.severity, c.detail),
      case c.severity when 'violation' then 'A promise was broken, or the books disagree with the rows: a bug of pgfifo''s, or a broken restore.'
        else 'It was due, and nobody was there to act: no living worker, or none that serves it.' end,
      case c.severity when 'violation' then 'pgfifo check --repair' else 'pgfifo check' end, jsonb_build_object('check', c.kind, 'severity', c.severity, 'lane', c.lane)
    -- These have findings of their own.
    from (select c.* from pgfifo.check() c where p_check limit case when p_check then 1000 else 0 end) c where c.kind not in ('copy', 'worker', 'sequence')) f
  order by array_position(array['critical', 'warning', 'info'], f.o_severity), f.o_kind, f.o_subject, f.o_detail;
end $$;
comment on function pgfifo.doctor is 'Look for trouble all around; each finding says how bad it is, what it means, and what mends it.';
