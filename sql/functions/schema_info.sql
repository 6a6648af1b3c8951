-- Which schema this is and which clients it serves.
create or replace function pgfifo.schema_info(out version integer, out min_client integer, out epoch integer)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$ select i.version, i.min_client, i.epoch from pgfifo.installation i $$;
comment on function pgfifo.schema_info is 'Say which version of the schema is installed and which clients it serves.';
