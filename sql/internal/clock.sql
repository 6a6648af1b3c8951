-- The server's time; the only clock pgfifo knows. Moved by tests, where the installation allows it.
create or replace function pgfifo._now() returns timestamptz
language sql volatile parallel safe
as $$ select pg_catalog.clock_timestamp() + (select i.clock_offset from pgfifo.installation i) $$;
