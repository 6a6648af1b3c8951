-- Nobody but the owner may call anything until he is granted it.
revoke all on all functions in schema pgfifo from public;
revoke all on schema pgfifo from public;
insert into pgfifo.installation (version, min_client) values (1, 1) on conflict (singleton) do nothing;
