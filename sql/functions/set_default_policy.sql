-- Set defaults for every lane there is. A default for each lane, not a cap over all of them.
create or replace function pgfifo.set_default_policy(p_values jsonb)
returns table (attribute text, old jsonb, new jsonb, note text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
  return query select * from pgfifo._set_policy('everything', null, null, null, p_values, false);
end $$;
comment on function pgfifo.set_default_policy is 'Set defaults for each lane of every action.';
