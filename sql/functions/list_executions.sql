-- List executions, the highest ids first (p_oldest: the lowest), those that a filter selects; an empty one selects all. To go on after
-- the last of a list, give from_id or to_id.
-- The view cannot be read in the order of ids without sorting all of it. So ids are looked for first, in bounded pieces and in the
-- order of indexes, only where what is asked for can be; then the view is asked for these ids, and has the last word on their state.
-- Statements are written and planned for what is asked, since an index that is right for a rare action is wrong for a common one.
create or replace function pgfifo.list_executions(p_filter jsonb default '{}', p_limit integer default 100, p_oldest boolean default false)
returns setof pgfifo.executions
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  c_live constant text[] := '{delayed,waiting,running,held}';
  c_over constant text[] := '{succeeded,failed,cancelled,expired}';
  c_many constant integer := 1000;
  v_selection pgfifo._selection := pgfifo._read_filter(coalesce(p_filter, '{}'), c_live || c_over, p_empty => true);
  v_states text[] := coalesce(v_selection.states, c_live || c_over);
  v_from bigint := coalesce(v_selection.from_id, 0);
  v_to bigint := coalesce(v_selection.to_id, 9223372036854775807);
  v_order constant text := case when p_oldest then 'asc' else 'desc' end;
  v_lanes bigint[];
  v_of_lane text := '';
  v_of_group text := '';
  v_rows text := '';
  v_sources text[] := '{}';
  v_piece integer;
  v_left integer := p_limit;
  v_found integer;
  v_ids bigint[];
  v_times timestamptz[];
  v_count integer;
begin
  if p_limit is null or p_limit < 0 then
    raise exception using errcode = 'QF022', message = format('p_limit cannot be %s', coalesce(p_limit::text, 'null')),
      detail = json_build_object('name', 'p_limit', 'value', p_limit)::text, hint = 'Give a number from 0 on.';
  end if;
  -- Conditions on columns: $1 action, $2 lanes, $3 group, $4 states, $5 and $6 the range of ids, $7 how many, $8 the selection.
  -- Lanes by their ids, where they are not too many: the planner knows then which of them are full and which are not.
  if v_selection.group_text is not null then
    v_lanes := array(select l.id from pgfifo.lanes l where l.action_id = v_selection.action_id and l.group_text = v_selection.group_text);
    v_of_lane := ' and x.lane_id = any ($2)';
    v_of_group := ' and x.action_id = $1 and x.group_text = $3';
  elsif v_selection.action_id is not null then
    v_lanes := array(select l.id from pgfifo.lanes l where l.action_id = v_selection.action_id limit c_many + 1);
    v_of_lane := case when cardinality(v_lanes) <= c_many then ' and x.lane_id = any ($2)'
                 else ' and x.lane_id in (select l.id from pgfifo.lanes l where l.action_id = $1)' end;
    v_of_group := ' and x.action_id = $1';
  end if;
  v_rows := concat(
    case when v_selection.tags is not null then ' and x.tags @> ($8).tags' end,
    case when v_selection.enqueued_since is not null then ' and x.enqueued_at >= ($8).enqueued_since' end,
    case when v_selection.enqueued_before is not null then ' and x.enqueued_at < ($8).enqueued_before' end);
  if 'waiting' = any (v_states) then
    v_sources := v_sources || concat('pgfifo._executions x where true', v_of_lane, v_rows);
  else
    if v_states && '{running,held,delayed}' then
      v_sources := v_sources || concat('pgfifo.runs x where x.state = any (array_replace($4, ''delayed'', ''yielded''))', v_of_lane);
    end if;
    if 'delayed' = any (v_states) then
      v_sources := v_sources || concat('pgfifo._executions x where x.ticket is null', v_of_lane, v_rows);
    end if;
    if 'expired' = any (v_states) then  -- what has waited for too long, and nobody has written that down yet
      v_sources := v_sources || concat('pgfifo._executions x where x.ticket is not null',
        ' and x.lane_id in (select m.lane_id from pgfifo._max_waits m)', v_of_lane, v_rows);
    end if;
  end if;
  v_rows := concat(v_of_group, v_rows,
    case when v_selection.finished_since is not null then ' and x.finished_at >= ($8).finished_since' end,
    case when v_selection.finished_before is not null then ' and x.finished_at < ($8).finished_before' end);
  if v_states @> c_over then
    v_sources := v_sources || concat('pgfifo.history x where true', v_rows);
  else
    -- One by one: each is in the order of ids, all together are not.
    v_sources := v_sources || array(
      select concat('pgfifo.history x where x.outcome = ', quote_literal(s), case when s <> 'succeeded' then $q$ and x.outcome <> 'succeeded'$q$ end, v_rows)
      from unnest(v_states) s where s = any (c_over));
  end if;
  select string_agg(format('(select x.id, %s as finished_at from %s and x.id between $5 and $6 order by x.id %s limit $7)',
    case when s like 'pgfifo.history%' then 'x.finished_at' else 'null::timestamptz' end, s, v_order), ' union ') into v_rows from unnest(v_sources) s;

  v_piece := least(p_limit, 9990) + 10;
  while v_left > 0 and v_from <= v_to and v_sources <> '{}' loop
    execute format('select array_agg(c.id), array_agg(c.finished_at) from (select u.id, u.finished_at from (%s) u order by u.id %s limit $7) c', v_rows, v_order)
      into v_ids, v_times
      using v_selection.action_id, v_lanes, v_selection.group_text, v_states, v_from, v_to, v_piece, v_selection;
    exit when v_ids is null;
    return query execute format(
      'select v.* from (
         select v.* from unnest($1, $2) i(id, finished_at) cross join lateral (
           select v.* from pgfifo.executions v where v.id = i.id offset 0) v
         where i.finished_at is null
         union all
         -- With its time it is looked for in one partition only.
         select v.* from unnest($1, $2) i(id, finished_at) cross join lateral (
           select v.* from pgfifo.executions v where v.id = i.id and v.finished_at = i.finished_at offset 0) v
         where i.finished_at is not null) v
       where pgfifo._selects($3, v.id, v.state, v.tags, v.enqueued_at, v.finished_at)
       order by v.id %s limit $4', v_order)
      using v_ids, v_times, v_selection, v_left;
    get diagnostics v_found = row_count;
    v_left := v_left - v_found;
    v_count := cardinality(v_ids);
    exit when v_count < v_piece;
    if p_oldest then
      v_from := v_ids[v_count] + 1;
    else
      v_to := v_ids[v_count] - 1;
    end if;
    v_piece := least(v_piece * 4, 10000);
  end loop;
end $$;
comment on function pgfifo.list_executions is 'List executions that a filter selects, the newest first.';
