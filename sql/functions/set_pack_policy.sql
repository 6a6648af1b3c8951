-- Set defaults for every lane of a pack's actions. A default for each lane, not a cap over all of them.
create or replace function pgfifo.set_pack_policy(p_pack text, p_values jsonb)
returns table (attribute text, old jsonb, new jsonb, note text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
begin
  if p_pack is null or p_pack !~ '^[^[:cntrl:][:space:]]+$' then
    raise exception using errcode = 'QF022', message = format('%s is no name for a pack', coalesce(quote_literal(p_pack), 'null')),
      detail = json_build_object('pack', p_pack)::text, hint = 'The pack of core.http.get is core.http.';
  end if;
  return query select * from pgfifo._set_policy('pack', p_pack, null, null, p_values, false);
end $$;
comment on function pgfifo.set_pack_policy is 'Set defaults for each lane of a pack''s actions.';
