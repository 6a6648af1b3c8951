-- This session's worker is about to sleep: enqueues and completions notify it from now on (channel pgfifo, payload: the
-- action). Look once more after this call and before the sleep. Session locks: not through a transaction pooler.
create or replace function pgfifo.sleeping(p_actions text[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_lock_shared('pgfifo.marks'::regclass::oid::integer, a.id) from pgfifo.actions a where a.name = any (p_actions);
end $$;
comment on function pgfifo.sleeping is 'Ask to be notified of new work for these actions.';
