-- One row of what pgfifo.work answers. kind 'start': run this now. 'finish': an item handed in that was not accepted,
-- status 'lost' or 'retry'. 'more': when to call again, status 'now', 'soon' or 'later' (detail: {"seconds": …}).
do $$ begin
  if to_regtype('pgfifo.work_row') is null then
    create type pgfifo.work_row as (
      kind text, id bigint, attempt integer, token text, action text, group_text text, payload jsonb, headers jsonb, tags text[],
      enqueued_at timestamptz, wait_seconds double precision, lane_id bigint, start_no bigint, status text, detail jsonb);
  end if;
end $$;
comment on type pgfifo.work_row is 'A row of the answer of pgfifo.work.';
