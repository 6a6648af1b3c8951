-- Claim without finishing, for workers in plain SQL. p_batches: as work takes it; members of a batch say so in detail.
create or replace function pgfifo.claim(p_worker bigint, p_actions text[], p_limit integer default 1, p_batches integer[] default null) returns setof pgfifo.work_row
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$ select * from pgfifo.work(p_worker, p_actions, p_limit, p_batches => p_batches) w where w.kind = 'start' $$;
comment on function pgfifo.claim is 'Claim the next executions a worker may run.';
