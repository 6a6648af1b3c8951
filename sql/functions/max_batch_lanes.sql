-- The lock table is shared by the whole cluster and a batch holds one lock per lane until its commit: so at most a tenth
-- of its capacity (PostgreSQL manual 20.12: max_locks_per_transaction * (max_connections + max_prepared_transactions)).
create or replace function pgfifo.max_batch_lanes() returns integer
language sql stable parallel safe security definer
set search_path = pg_catalog, pg_temp
as $$
  select least(1000, greatest(1, current_setting('max_locks_per_transaction')::integer
    * (current_setting('max_connections')::integer + current_setting('max_prepared_transactions')::integer) / 10))
$$;
comment on function pgfifo.max_batch_lanes is 'Say how many lanes one enqueue_many may touch.';
