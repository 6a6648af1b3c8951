-- Nobody but the owner may call anything until he is granted it.
revoke all on all functions in schema pgfifo from public;
revoke all on schema pgfifo from public;
-- The days that maintenance never makes, today's and tomorrow's, while there is nobody yet who could be finishing.
select pgfifo._partition((now() at time zone 'utc')::date + d.n) from generate_series(0, 4) d(n)
where not exists (select from pgfifo.installation);
insert into pgfifo.installation (version, min_client) values (1, 1) on conflict (singleton) do nothing;
