-- How far an import has come; no row when it is unknown.
create or replace function pgfifo.import_status(p_import bigint)
returns table (action text, source text, fingerprint text, upto bigint, finished_at timestamptz, enqueued bigint, first_id bigint, last_id bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select a.name, i.source, i.fingerprint, i.upto, i.finished_at, i.enqueued, i.first_id, i.last_id
  from pgfifo.imports i join pgfifo.actions a on a.id = i.action_id where i.id = p_import
$$;
comment on function pgfifo.import_status is 'Say how far an import has come.';
