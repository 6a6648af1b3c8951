-- Put one execution at the end of its lane, in the caller's transaction; or, with p_run_at or p_delay, have it join the end
-- when that time has come: until then it is delayed, and in nobody's way. Returns its id; with a key, that of the one that
-- is there already. How, and under which locks, stands with pgfifo._enqueue.
create or replace function pgfifo.enqueue(
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
  p_on_item text default 'immutable'
) returns bigint
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
  return (pgfifo._enqueue(p_action, p_payload, p_group, p_headers, p_tags, p_request_id, p_dedup_key, p_item_key, p_run_at, p_delay, p_on_item)).o_id;
end $$;
comment on function pgfifo.enqueue is 'Put one execution at the end of its lane, now or when p_run_at has come, in the caller''s transaction; returns its id.';
