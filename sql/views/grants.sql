-- Who was granted what with grant_role and grant_enqueue: told from the rights themselves.
create or replace view pgfifo.grants as
select r.rolname::text as role,
  coalesce(m.found[1], 'enqueue') as may,
  a.name as action
from pg_catalog.pg_proc p
cross join lateral aclexplode(p.proacl) g
cross join lateral regexp_match(p.proname, '^_(?:role_([a-z]+)|may_enqueue_([0-9]+))$') m(found)
join pg_catalog.pg_roles r on r.oid = g.grantee
left join pgfifo.actions a on a.id = m.found[2]::integer
where p.pronamespace = 'pgfifo'::regnamespace and m.found is not null and g.grantee <> p.proowner;
comment on view pgfifo.grants is 'Which roles were granted what.';
comment on column pgfifo.grants.role is 'The role of the database.';
comment on column pgfifo.grants.may is 'What it may do as: producer, worker, observer, admin; or enqueue, to one action.';
comment on column pgfifo.grants.action is 'The action that it may enqueue to; null for roles.';
