-- Where this is, as a row of _home. A server that does not tell its identity or its timeline (a managed one may not) is not
-- held against anybody: null is never different.
create or replace function pgfifo._here() returns pgfifo._home
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_here pgfifo._home;
begin
  v_here.singleton := true;
  v_here.table_id := 'pgfifo._home'::regclass::oid;
  v_here.database_name := current_database();
  select d.oid into strict v_here.database_id from pg_database d where d.datname = current_database();
  begin
    v_here.system_id := (select c.system_identifier from pg_control_system() c);
    -- Not the control file's, which follows with the checkpoint after a promotion.
    if not pg_is_in_recovery() then
      v_here.timeline := ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::bigint;
    end if;
  exception when insufficient_privilege or feature_not_supported or object_not_in_prerequisite_state or undefined_function then
    null;
  end;
  return v_here;
end $$;

-- What has happened since the row of _home was written. o_copied: this is another database (restored from a dump, or made
-- from it as a template), or another cluster whose files are not those of the old one. o_forked: another timeline, or another
-- cluster: commits may have been lost that somebody has seen. o_moved: the row does not say where it is any more.
-- Of databases made for tests, copies are the rule; and what was copied before any worker had come was a template, not in use.
create or replace function pgfifo._where(out o_copied boolean, out o_forked boolean, out o_moved boolean, out o_home pgfifo._home, out o_here pgfifo._home)
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select w.copied and not w.plain, (w.copied or w.forked) and not (w.copied and w.plain), w.copied or w.forked or not w.is_old, w.home, w.here
  from (
    select h as home, n as here, i.is_old,
      h.database_id <> n.database_id or h.table_id <> n.table_id or coalesce(h.system_id <> n.system_id, false) and not i.is_old as copied,
      coalesce(h.system_id <> n.system_id, false) or coalesce(h.timeline <> n.timeline, false) as forked,
      (select t.testing from pgfifo.installation t)
        or not (select s.is_called from pgfifo._workers_id_seq s) and not exists (select from pgfifo._schedules) as plain
    from pgfifo._home h
    cross join lateral (select h.xmin::text::bigint = mod(h.written_by::text::numeric, 4294967296) as is_old) i
    cross join pgfifo._here() n) w
$$;

-- Notice that this is a restored copy, or a promoted standby, before anything is started: called by each session's first call
-- that is about workers (who asks keeps that in a setting of the session, which a copy and a promoted standby cannot have), and
-- by maintenance. A copy is paused as a whole, until an operator resumes it: what waits in it was enqueued for somewhere
-- else. With a new timeline everything goes on; only tokens are of a new epoch, and workers first say what they hold: if
-- commits were lost, an attempt that was started before may be given out again under its old number.
-- Holds, where there is something to notice, a lock on _home to the commit: others wait for it and then find it done
-- (law 1), so none of them starts anything before. The locks of pause_everything come after it.
create or replace function pgfifo._come_home() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_is record;
begin
  select * into strict v_is from pgfifo._where();
  if v_is.o_moved then
    perform pgfifo._durable();
    lock table pgfifo._home in share row exclusive mode;
    select * into strict v_is from pgfifo._where();
  end if;
  if v_is.o_moved then
    update pgfifo._home h set system_id = (v_is.o_here).system_id, timeline = (v_is.o_here).timeline, database_id = (v_is.o_here).database_id,
      table_id = (v_is.o_here).table_id, database_name = (v_is.o_here).database_name, written_by = default,
      copied_at = case when v_is.o_copied then pgfifo._now() else h.copied_at end, copy_of = case when v_is.o_copied then h.database_name else h.copy_of end;
    if v_is.o_forked then
      perform pgfifo.raise_epoch();
      -- Of the registrations that may be forgotten, too, none shall meet another process under its id.
      perform setval('pgfifo._workers_id_seq', nextval('pgfifo._workers_id_seq') + 1000000);
    end if;
    if v_is.o_copied then
      perform pgfifo._set_everything_paused(true, format('this is a copy of database %s (restored, or made from it): what waits here was meant for there',
        (v_is.o_home).database_name), 'pgfifo');
      raise warning using message = format('this is a copy of database %s; pgfifo has paused everything in it', (v_is.o_home).database_name),
        hint = 'When it shall run here: pgfifo resume --everything.';
    end if;
  end if;
  perform set_config('pgfifo.home', 'pgfifo._home'::regclass::oid::text, false);
end $$;
