-- Put all finished executions back that a filter selects, a bounded piece at a time (p_limit of them are looked at, in at
-- most 64 lanes): call it again with what it returned as next, in a transaction of its own, until that is null. Of no state
-- the filter speaks: those that failed. In the order in which they ended, action by action. One that has been put back
-- before is passed over, so the same call may be made again; and so is what was enqueued after the first piece.
-- refused: their line was full or closed, a limit of enqueues was reached, or their old place taken. busy: somebody kept their lane for a second.
-- retry_ids: the new ones. p_dry_run: only count, without a lock.
create or replace function pgfifo.retry_where(
  p_filter jsonb,
  p_head boolean default false,
  p_dry_run boolean default false,
  p_after text default null,
  p_limit integer default 1000
) returns table (retried bigint, refused bigint, busy bigint, next text, retry_ids bigint[])
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  c_most_lanes constant integer := 64;
  v_selection pgfifo._selection := pgfifo._read_filter(p_filter, '{succeeded,failed,cancelled,expired}');
  -- The last id drawn before the first call; action, time (microseconds) and id that have been looked at.
  v_after bigint[];
  v_action integer;
  v_row record;
  v_seen integer := 0;
  v_ids bigint[] := '{}';
  v_places text[] := '{}';
begin
  if not p_dry_run then
    perform pgfifo._require_read_committed('retry_where');
    perform pgfifo._durable();
  end if;
  if p_limit is null or p_limit not between 1 and 10000 or p_after !~ '^[0-9]{1,18}([.][0-9]{1,18}){3}$' then
    raise exception using errcode = 'QF022', message = 'p_limit is a number from 1 to 10000, and p_after is what an earlier call returned as next',
      detail = json_build_object('name', case when p_after is null then 'p_limit' else 'p_after' end)::text, hint = 'Leave p_after out in the first call.';
  end if;
  if v_selection.states is null then
    v_selection.states := '{failed}';
  end if;
  v_after := coalesce(string_to_array(p_after, '.')::bigint[], array[(select i.last_value from pgfifo.execution_ids i), 0, 0, 0]);
  v_selection.to_id := least(v_selection.to_id, v_after[1]);
  retried := 0;
  refused := 0;
  busy := 0;
  retry_ids := '{}';
  <<actions>>
  for v_action in
    select a.id from pgfifo.actions a where a.id >= v_after[2] and (v_selection.action_id is null or a.id = v_selection.action_id) order by a.id
  loop
    if v_action <> v_after[2] then
      v_after := array[v_after[1], v_action, 0, 0];
    end if;
    for v_row in
      select h.id, (extract(epoch from h.finished_at) * 1000000)::bigint as at, h.action_id || ' ' || h.group_text as place,
        (v_selection.group_text is null or h.group_text = v_selection.group_text) and h.owner is null
          and pgfifo._selects(v_selection, h.id, h.outcome, h.tags, h.enqueued_at, h.finished_at)
          and not exists (select from pgfifo._executions e where e.retry_of = h.id)
          and not exists (select from pgfifo.history x where x.retry_of = h.id) as selected
      from pgfifo.history h
      where h.action_id = v_action
        and h.finished_at >= greatest(v_selection.finished_since, timestamptz 'epoch' + v_after[3] * interval '1 microsecond')
        and (h.finished_at > timestamptz 'epoch' + v_after[3] * interval '1 microsecond' or h.id > v_after[4])
        and h.finished_at < coalesce(v_selection.finished_before, 'infinity')
      order by h.action_id, h.finished_at, h.id limit p_limit - v_seen + 1
    loop
      if v_seen >= p_limit or (v_row.selected and v_row.place <> all (v_places) and cardinality(v_places) >= c_most_lanes) then
        next := array_to_string(v_after, '.');
        exit actions;
      end if;
      v_seen := v_seen + 1;
      v_after := array[v_after[1], v_action, v_row.at, v_row.id];
      if v_row.selected then
        v_ids := v_ids || v_row.id;
        if v_row.place <> all (v_places) then
          v_places := v_places || v_row.place;
        end if;
      end if;
    end loop;
  end loop;
  if p_dry_run then
    retried := cardinality(v_ids);
  elsif v_ids <> '{}' then
    select count(*) filter (where r.answer = 'retried'), count(*) filter (where r.answer not in ('retried', 'again', 'busy', 'unknown')),
        count(*) filter (where r.answer = 'busy'), coalesce(array_agg(r.retry_id) filter (where r.answer = 'retried'), '{}')
      into retried, refused, busy, retry_ids
    from pgfifo._put_back(v_ids, coalesce(p_head, false), clock_timestamp() + interval '1 s') r;
    if retried > 0 then
      perform pgfifo._audit('retry', v_selection.action, null, jsonb_strip_nulls(jsonb_build_object('filter', p_filter, 'group', v_selection.group_text,
        'head', case when p_head then true end, 'retried', retried)));
    end if;
  end if;
  return next;
end $$;
comment on function pgfifo.retry_where is 'Put back what failed, or what else a filter selects, a bounded piece per call; count it only, in a dry run.';
