-- Let values win over every scope's in all lanes of a pack's actions for a time; see override_policy.
create or replace function pgfifo.override_pack_policy(p_pack text, p_values jsonb, p_lasting interval default null, p_reason text default null)
returns table (attribute text, old jsonb, new jsonb, note text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  return query select * from pgfifo._override_policy('pack', pgfifo._pack(p_pack), null, null, p_values, p_lasting, p_reason);
end $$;
comment on function pgfifo.override_pack_policy is 'Let values win over every scope''s in a pack''s actions for a time; null ends an override.';
