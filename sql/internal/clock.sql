-- The server's time; the only clock pgfifo knows. Moved by tests, where the installation allows it.
-- In plpgsql, which keeps its plan: before PostgreSQL 18 a body in SQL is planned anew in each transaction that calls it.
create or replace function pgfifo._now() returns timestamptz
language plpgsql volatile parallel safe
as $$
begin
  return pg_catalog.clock_timestamp() operator(pg_catalog.+) (select i.clock_offset from pgfifo.installation i);
end $$;

-- The same for views: what they call runs with the rights of whoever reads them, who has none on tables.
create or replace function pgfifo._time() returns timestamptz
language plpgsql volatile parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return pgfifo._now();
end $$;
