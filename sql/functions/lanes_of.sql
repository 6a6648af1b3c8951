-- The canonical groups of executions that are not finished, in the order of the ids. Volatile, so that it sees what an
-- enqueue in the very same statement has made: clients ask for the ids and their lanes in one round trip.
create or replace function pgfifo.lanes_of(p_ids bigint[]) returns table (ordinal integer, group_text text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
#variable_conflict use_column
begin
  return query
  select i.n::integer, l.group_text
  from unnest(p_ids) with ordinality i(id, n)
  join pgfifo._executions e on e.id = i.id
  join pgfifo.lanes l on l.id = e.lane_id;
end $$;
comment on function pgfifo.lanes_of is 'Say to which groups executions belong, the ones just enqueued included.';
