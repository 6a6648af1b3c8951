-- One row of what pgfifo.work answers. kind 'start': run this now; detail {"batch": n}: together with the lane's start number n. 'limit': one of those that start may run for so long only
-- (detail: {"timeout": …, "kill_after": …}, seconds; only to who numbers his calls). 'finish': an item handed in that was not accepted,
-- status 'lost', 'retry', or 'unstarted' (an older one of its batch has failed, and it went back). 'more': when to call again, status 'now', 'soon' or 'later' (detail: {"seconds": …}).
do $$ begin
  if to_regtype('pgfifo.work_row') is null then
    create type pgfifo.work_row as (
      kind text, id bigint, attempt integer, token text, action text, group_text text, payload jsonb, headers jsonb, tags text[],
      enqueued_at timestamptz, wait_seconds double precision, lane_id bigint, start_no bigint, status text, detail jsonb);
  end if;
end $$;
comment on type pgfifo.work_row is 'A row of the answer of pgfifo.work.';
comment on column pgfifo.work_row.kind is 'start: run this; limit: how long; finish: an item that was not accepted; more: when to call again.';
comment on column pgfifo.work_row.id is 'The execution.';
comment on column pgfifo.work_row.attempt is 'Which start of it this is; with the id, the fence.';
comment on column pgfifo.work_row.token is 'epoch-id-attempt, for writes elsewhere that shall reject a zombie.';
comment on column pgfifo.work_row.action is 'The action.';
comment on column pgfifo.work_row.group_text is 'The group as canonical JSON.';
comment on column pgfifo.work_row.payload is 'What was enqueued.';
comment on column pgfifo.work_row.headers is 'What came with the payload.';
comment on column pgfifo.work_row.tags is 'Words to find it by.';
comment on column pgfifo.work_row.enqueued_at is 'When it was enqueued.';
comment on column pgfifo.work_row.wait_seconds is 'How long it has waited.';
comment on column pgfifo.work_row.lane_id is 'Internal number of its lane.';
comment on column pgfifo.work_row.start_no is 'The number of this start in its lane.';
comment on column pgfifo.work_row.status is 'Of a finish: lost, retry or unstarted; of more: now, soon or later.';
comment on column pgfifo.work_row.detail is 'Of more later: {"seconds": …} until the next timer. Of limit: {"timeout": …, "kill_after": …}. Of start: {"batch": …}, its leader''s start_no.';

-- How things stand with a slot that a program waits for or holds.
do $$ begin
  if to_regtype('pgfifo.slot_row') is null then
    create type pgfifo.slot_row as (
      id bigint, state text, attempt integer, token text, group_text text, look_after double precision, error text, started bigint[]);
  end if;
end $$;
comment on type pgfifo.slot_row is 'What pgfifo.slot_enter, slot_look and slot_leave answer.';
comment on column pgfifo.slot_row.id is 'The execution that stands for the slot.';
comment on column pgfifo.slot_row.state is 'waiting, running (the slot is yours), its outcome if somebody has ended it, or lost.';
comment on column pgfifo.slot_row.attempt is 'Which start of it this is; 0 while it waits.';
comment on column pgfifo.slot_row.token is 'epoch-id-attempt, for writes elsewhere that shall reject who lost his slot; null while it waits.';
comment on column pgfifo.slot_row.group_text is 'The group as canonical JSON.';
comment on column pgfifo.slot_row.look_after is 'In how many seconds to look again; null: when notified, or in a second.';
comment on column pgfifo.slot_row.error is 'Why it ended.';
comment on column pgfifo.slot_row.started is 'What this call has started in the lane: where it is the worker''s own, nobody else tells it.';

-- Which executions a bulk change is about; what is null says nothing. Made by _selection of what a caller gives.
do $$ begin
  if to_regtype('pgfifo._selection') is null then
    create type pgfifo._selection as (
      action_id integer, action text, group_text text, states text[], tags text[], enqueued_since timestamptz, enqueued_before timestamptz,
      finished_since timestamptz, finished_before timestamptz, from_id bigint, to_id bigint);
  end if;
end $$;
