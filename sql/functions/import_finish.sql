-- The file has come to its end.
create or replace function pgfifo.import_finish(p_import bigint) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ update pgfifo.imports i set finished_at = pgfifo._now(), updated_at = pgfifo._now() where i.id = p_import and i.finished_at is null $$;
comment on function pgfifo.import_finish is 'Record that an import has come to its end.';
