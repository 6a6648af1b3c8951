-- Day partitions of the history, ahead of time, and the end of old ones. Everything that locks more than rows takes its
-- lock nowait: behind a reader (pg_dump) it is left for another round, and no finish ever queues up behind it.
create or replace function pgfifo._partition(p_day date) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := 'history_' || to_char(p_day, 'YYYYMMDD');
begin
  if to_regclass('pgfifo.' || v_name) is not null then
    return false;
  end if;
  begin
    -- Attaching looks through the default partition under an exclusive lock: only while nobody reads it.
    lock table only pgfifo.history in share update exclusive mode nowait;
    lock table pgfifo.history_default in access exclusive mode nowait;
    execute format('create table pgfifo.%I (like pgfifo.history including defaults including constraints)', v_name);
    execute format('alter table pgfifo.history attach partition pgfifo.%I for values from (%L) to (%L)', v_name,
      to_char(p_day, 'YYYY-MM-DD') || ' 00:00:00+00', to_char(p_day + 1, 'YYYY-MM-DD') || ' 00:00:00+00');
    return true;
  exception
    when lock_not_available then return false;
    when check_violation then return false;  -- rows of that day are in the default partition already; they age there
  end;
end $$;

-- Write down up to which event rows are gone, in the transaction that removes them; see the table.
create or replace function pgfifo._forget(p_action_id integer, p_event bigint) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  insert into pgfifo.forgotten as f (action_id, event_no) select p_action_id, p_event where p_event is not null
  on conflict (action_id) do update set event_no = excluded.event_no where f.event_no < excluded.event_no
$$;

create or replace function pgfifo._retain(out o_dropped integer, out o_deleted integer)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pgfifo._now();
  v_today date := (v_now at time zone 'utc')::date;
  v_longest double precision;
  v_part record;
  v_action record;
  v_rows integer;
  v_event bigint;
begin
  o_dropped := 0;
  o_deleted := 0;
  -- Never a day that may have begun when a finish gets to its insert: one that is on its way into the default partition
  -- while its day is attached would fail. Days that were missed stay in the default partition and age there.
  for v_day in 2 .. 4 loop
    perform pgfifo._partition(v_today + v_day);
  end loop;
  select coalesce(max(p.retention), 604800) into v_longest from pgfifo._action_policies p;
  -- A day whose youngest row is older than the longest retention goes as a whole.
  if v_longest < 'infinity' then
    for v_part in
      select c.oid::regclass as part, substring(c.relname from 9)::date as day
      from pg_inherits i join pg_class c on c.oid = i.inhrelid
      where i.inhparent = 'pgfifo.history'::regclass and c.relname ~ '^history_[0-9]{8}$'
        and (substring(c.relname from 9)::date + 1)::timestamp at time zone 'utc' < v_now - make_interval(secs => v_longest)
      order by 2 limit 3
    loop
      begin
        execute format('lock table only pgfifo.history in access exclusive mode nowait');
        execute format('lock table %s in access exclusive mode nowait', v_part.part);
        execute format('select pgfifo._forget(0, (select max(h.event_no) from %s h))', v_part.part);
        execute format('drop table %s', v_part.part);
        o_dropped := o_dropped + 1;
      exception when lock_not_available then
        exit;
      end;
    end loop;
  end if;
  -- Shorter ones, and what is in the default partition, in batches.
  for v_action in select p.action_id, p.retention from pgfifo._action_policies p where p.retention < 'infinity' loop
    continue when v_action.retention >= v_longest and not exists (select from pgfifo.history_default);
    with old as (
      select h.tableoid, h.ctid from pgfifo.history h
      where h.action_id = v_action.action_id and h.finished_at < v_now - make_interval(secs => v_action.retention)
      order by h.action_id, h.finished_at limit 1000),
    gone as (
      delete from pgfifo.history h using old o where h.tableoid = o.tableoid and h.ctid = o.ctid returning h.event_no)
    select count(*), max(g.event_no) into v_rows, v_event from gone g;
    perform pgfifo._forget(v_action.action_id, v_event);
    o_deleted := o_deleted + v_rows;
  end loop;
end $$;
