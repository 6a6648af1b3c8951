-- Nobody but the owner may call anything until he is granted it.
revoke all on all functions in schema pgfifo from public;
revoke all on schema pgfifo from public;
-- Who was granted something has what this version means by it.
select pgfifo._set_rights(r.oid, g.o_roles, g.o_actions)
from pg_roles r cross join lateral pgfifo._granted(r.oid) g
where r.oid in (select (aclexplode(p.proacl)).grantee from pg_proc p where p.pronamespace = 'pgfifo'::regnamespace and p.proname ~ '^_(role|may_enqueue)_')
  and r.oid <> (select n.nspowner from pg_namespace n where n.nspname = 'pgfifo')
order by r.oid;
-- The days that maintenance never makes, today's and tomorrow's, while there is nobody yet who could be finishing.
select pgfifo._partition((now() at time zone 'utc')::date + d.n) from generate_series(0, 4) d(n)
where not exists (select from pgfifo.installation);
insert into pgfifo.installation (version, min_client) values (1, 1) on conflict (singleton) do nothing;
-- Only where there is none: that of a restored copy says where it comes from.
insert into pgfifo._home (system_id, timeline, database_id, table_id, database_name)
select h.system_id, h.timeline, h.database_id, h.table_id, h.database_name from pgfifo._here() h on conflict (singleton) do nothing;
-- Back to the caller.
select pg_catalog.set_config(b.key, b.value, true) from pg_catalog.json_each_text(pg_catalog.current_setting('pgfifo.before')::pg_catalog.json) b;
