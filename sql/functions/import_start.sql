-- Begin to import a file: returns the import's id, under which each batch records the line it came to.
create or replace function pgfifo.import_start(p_action text, p_source text, p_fingerprint text) returns bigint
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into pgfifo.imports (action_id, source, fingerprint, started_at, updated_at)
  values (pgfifo._action(p_action), coalesce(p_source, ''), coalesce(p_fingerprint, ''), pgfifo._now(), pgfifo._now()) returning id
$$;
comment on function pgfifo.import_start is 'Begin to import a file; returns the import''s id.';
