-- Put many finished executions back, each as pgfifo.retry does, as many as can be. Answers in input order: 'retried' with the
-- new id, or why not: the state of one that is not finished, 'again' with the id of a retry of it that is not finished,
-- 'full' (max_queue_length, max_action_queue_length), 'quota', 'limit' (on_limit = 'cancel': it could not start at once),
-- 'closed', 'taken' (its old place has another retry), 'slot' (it stood for a slot that a program held), 'busy' (the call
-- waits 5 s for locks, in all), 'unknown'. At most 10,000 ids, of at most max_batch_lanes() lanes.
create or replace function pgfifo.retry_many(p_ids bigint[], p_head boolean default false)
returns table (ordinal integer, id bigint, answer text, retry_id bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  c_most constant integer := 10000;
  v_ids bigint[];
  v_answers text[];
  v_retries bigint[];
begin
  perform pgfifo._require_read_committed('retry');
  if coalesce(cardinality(p_ids), 0) > c_most or array_ndims(p_ids) > 1 or array_position(p_ids, null) is not null then
    raise exception using errcode = 'QF022',
      message = case when cardinality(p_ids) > c_most
        then format('%s ids at once; at most %s are allowed', pgfifo._number(cardinality(p_ids)), pgfifo._number(c_most))
        else 'null is no id of an execution' end,
      detail = json_build_object('name', 'p_ids', 'value', cardinality(p_ids))::text, hint = 'Give ids of executions, in several calls if they are many.';
  end if;
  perform pgfifo._durable();
  select array_agg(r.id), array_agg(r.answer), array_agg(r.retry_id) into v_ids, v_answers, v_retries
  from pgfifo._put_back(p_ids, coalesce(p_head, false), clock_timestamp() + interval '5 s') r;
  perform pgfifo._audit_retries(array_agg(r.id), array_agg(r.retry_id), p_head)
  from unnest(v_ids, v_answers, v_retries) r(id, answer, retry_id) where r.answer = 'retried' having count(*) > 0;
  return query
    select i.n::integer, i.id, case when i.nth > 1 and r.answer = 'retried' then 'again' else r.answer end, r.retry_id
    from (select i.id, i.n, row_number() over (partition by i.id order by i.n) as nth from unnest(p_ids) with ordinality i(id, n)) i
    join unnest(v_ids, v_answers, v_retries) r(id, answer, retry_id) on r.id = i.id
    order by i.n;
end $$;
comment on function pgfifo.retry_many is 'Put up to 10,000 finished executions back; returns an answer for each, in input order.';
