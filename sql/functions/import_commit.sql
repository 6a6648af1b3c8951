-- Record how far an import has come, in the transaction of the batch that took it there, and before the batch is enqueued:
-- the row's lock makes a second process that resumes the same import wait for the first one's commit, and then fail. So
-- it does not matter into what batches each of them cuts the file: p_from says after which line this batch begins.
create or replace function pgfifo.import_commit(p_import bigint, p_upto bigint, p_from bigint default null) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update pgfifo.imports i set upto = p_upto, updated_at = pgfifo._now()
  where i.id = p_import and i.upto < p_upto and i.upto = coalesce(p_from, i.upto) and i.finished_at is null;
  if not found then
    raise exception using errcode = 'QF022',
      message = format('import %s has already come to line %s or beyond, or is not at the line before this batch, or there is no such import', p_import, p_upto),
      detail = json_build_object('import', p_import, 'upto', p_upto, 'from', p_from)::text,
      hint = 'Another process may be importing the same file. See pgfifo.import_status.';
  end if;
end $$;
comment on function pgfifo.import_commit is 'Record how far an import has come, in its batch''s own transaction.';
