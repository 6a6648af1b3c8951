-- Record what a batch has enqueued, in its transaction and after import_commit, whose row lock keeps others out.
create or replace function pgfifo.import_enqueued(p_import bigint, p_count bigint, p_first_id bigint, p_last_id bigint) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_count is null or p_count not between 0 and 1000000 then
    raise exception using errcode = 'QF022', message = format('a batch of an import has from 0 to 1,000,000 executions, not %s', coalesce(p_count::text, 'null')),
      detail = json_build_object('name', 'p_count', 'value', p_count)::text;
  end if;
  update pgfifo.imports i
  set enqueued = i.enqueued + p_count, first_id = least(i.first_id, p_first_id), last_id = greatest(i.last_id, p_last_id)
  where i.id = p_import;
end $$;
comment on function pgfifo.import_enqueued is 'Record how many executions a batch of an import has made, and their first and last id.';
