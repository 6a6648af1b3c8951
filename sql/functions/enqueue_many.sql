-- Put many executions of one action at the ends of their lanes, in the caller's transaction: all or nothing, in input order.
-- p_run_ats: when each is to join its line, or null for now; p_delay: how long after now all of them are.
-- How, and under which locks, stands with pgfifo._enqueue_batch. Plans are made for the values at hand: batches differ.
create or replace function pgfifo.enqueue_many(
  p_action text,
  p_payloads jsonb[],
  p_groups text[] default null,
  p_headers jsonb[] default null,
  p_tags text[] default null,
  p_request_ids text[] default null,
  p_dedup_keys text[] default null,
  p_item_keys text[] default null,
  p_run_ats timestamptz[] default null,
  p_delay interval default null,
  p_on_item text default 'immutable'
) returns table (ordinal integer, id bigint, created boolean, group_text text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_custom_plan
as $$
begin
  -- Who is bound to certain actions is asked which; all others pay for one look at their rights.
  if not has_function_privilege(pgfifo._caller(), 'pgfifo._any_action()'::regprocedure, 'execute') then
    perform pgfifo._require_enqueue(p_action);
  end if;
  if greatest(array_ndims(p_payloads), array_ndims(p_groups), array_ndims(p_headers), array_ndims(p_request_ids), array_ndims(p_dedup_keys),
    array_ndims(p_item_keys), array_ndims(p_run_ats)) > 1
  then
    raise exception using errcode = 'QF022', message = 'enqueue_many takes arrays of one dimension',
      detail = json_build_object('name', 'p_payloads', 'value', array_dims(p_payloads))::text, hint = 'One element for each execution.';
  end if;
  return query select * from pgfifo._enqueue_batch(p_action, p_payloads, p_groups, p_headers, p_tags, p_request_ids, p_dedup_keys, p_item_keys,
    pgfifo._run_ats(p_run_ats, p_delay, cardinality(p_payloads)), p_on_item, false);
end $$;
comment on function pgfifo.enqueue_many is 'Put many executions of one action at the ends of their lanes, now or when their p_run_ats have come, all or nothing; returns ids in input order.';
