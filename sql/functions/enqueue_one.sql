-- The same as enqueue, for who wants to know more than the id: whether the execution is new (with a key it may have been
-- there already), and the canonical group that says in which lane it is.
create or replace function pgfifo.enqueue_one(
  p_action text,
  p_payload jsonb default '{}',
  p_group text default null,
  p_headers jsonb default null,
  p_tags text[] default null,
  p_request_id text default null,
  p_dedup_key text default null,
  p_item_key text default null,
  p_run_at timestamptz default null,
  p_delay interval default null,
  p_on_item text default 'immutable',
  out id bigint,
  out created boolean,
  out group_text text
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
begin
  -- Who is bound to certain actions is asked which; all others pay for one look at their rights.
  if not has_function_privilege(pgfifo._caller(), 'pgfifo._any_action()'::regprocedure, 'execute') then
    perform pgfifo._require_enqueue(p_action);
  end if;
  select e.o_id, e.o_created, e.o_group into id, created, group_text
  from pgfifo._enqueue(p_action, p_payload, p_group, p_headers, p_tags, p_request_id, p_dedup_key, p_item_key, p_run_at, p_delay, p_on_item) e;
end $$;
comment on function pgfifo.enqueue_one is 'Put one execution at the end of its lane, as enqueue does; returns its id, whether it is new, and its group.';
