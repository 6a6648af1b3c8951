-- Keep what is in force for these actions. For claims, which hold the policy locks of these actions and of everything shared
-- to their commit: so no change is under way, and none commits before us; and for who changes the policy of one action, which
-- holds the first of them alone. Who finds that another claim is at it leaves it to that one, and waits for nobody.
create or replace function pgfifo._put_in_force(p_actions integer[], p_now timestamptz) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_actions integer[];
begin
  v_actions := array(select a.id from unnest(p_actions) a(id) where pg_try_advisory_xact_lock('pgfifo._in_force'::regclass::oid::integer, a.id));
  -- Law 1: somebody else may have done it before we had the lock.
  delete from pgfifo._in_force f where f.action_id = any (v_actions) and f.until <= p_now;
  insert into pgfifo._in_force (action_id, until, max_concurrent, ordering, is_paused, has_pace, has_limits, max_queue_length, max_payload, group_by)
  select p.action_id,
    coalesce((select min(o.until) from pgfifo._overrides o
              where o.until > p_now and o.target = any (array['everything', 'pack:' || p.pack, 'action:' || p.action_id::text])), 'infinity'),
    p.max_concurrent, p.ordering, p.paused_at is not null, p.has_pace, p.has_limits, p.max_queue_length, p.max_payload, p.group_by
  from pgfifo._action_policies p
  where p.action_id = any (v_actions) and not exists (select from pgfifo._in_force f where f.action_id = p.action_id);
end $$;

-- A row of policies or overrides has come, gone or changed: what is kept of its scope is true no more. Whoever changes it
-- holds the policy locks of its scope, so nobody writes these rows between this and his commit (see _lock_limits).
create or replace function pgfifo._forget_in_force() returns trigger
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_row record;
begin
  if tg_op = 'DELETE' then
    v_row := old;
  else
    v_row := new;
  end if;
  if v_row.scope = 'everything' then
    delete from pgfifo._in_force;
  elsif v_row.scope = 'pack' then
    delete from pgfifo._in_force f where f.action_id in (select a.id from pgfifo.actions a where a.pack = v_row.pack);
  elsif v_row.scope <> 'lane' then
    delete from pgfifo._in_force f where f.action_id = v_row.action_id;
  end if;
  return null;
end $$;

create or replace trigger forget_in_force after insert or update or delete on pgfifo.policies
for each row execute function pgfifo._forget_in_force();
create or replace trigger forget_in_force after insert or update or delete on pgfifo._overrides
for each row execute function pgfifo._forget_in_force();
