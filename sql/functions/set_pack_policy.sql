-- Set defaults for every lane of a pack's actions. A default for each lane, not a cap over all of them.
create or replace function pgfifo.set_pack_policy(p_pack text, p_values jsonb)
returns table (attribute text, old jsonb, new jsonb, note text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  return query select * from pgfifo._set_policy('pack', pgfifo._pack(p_pack), null, null, p_values, false);
end $$;
comment on function pgfifo.set_pack_policy is 'Set defaults for each lane of a pack''s actions.';
