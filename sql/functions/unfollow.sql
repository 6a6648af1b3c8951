-- This session is awake and needs no notifications: none are sent for it while it reads.
create or replace function pgfifo.unfollow(p_actions text[] default null) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_unlock_shared('pgfifo.marks'::regclass::oid::integer, l.objid::bigint::integer)
  from pg_locks l
  where l.locktype = 'advisory' and l.pid = pg_backend_pid() and l.classid = 'pgfifo.marks'::regclass and l.objsubid = 2 and l.mode = 'ShareLock'
    and (p_actions is null or l.objid::bigint::integer in (select a.id from pgfifo.actions a where a.name = any (p_actions)));
  perform pg_advisory_unlock_shared('pgfifo.history'::regclass::oid::integer, -1), pg_advisory_unlock_shared('pgfifo.history'::regclass::oid::integer, 0);
end $$;
comment on function pgfifo.unfollow is 'Stop being notified of what happens.';
