-- A limit of this action changed, and that has committed: mark its lanes that have something waiting, in slices. No lock
-- is needed (law 2): this transaction began after the change, so whoever decides about one of these lanes later, sees it.
create or replace function pgfifo._remark(p_action_id integer) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_remark pgfifo.remarks;
  v_last bigint;
begin
  select r.* into v_remark from pgfifo.remarks r where r.action_id = p_action_id order by r.id limit 1 for update skip locked;
  if not found then
    return;
  end if;
  perform pg_current_xact_id();
  with slice as materialized (
    select l.id from pgfifo.lanes l where l.action_id = p_action_id and l.id > v_remark.done_to order by l.id limit 5000),
  marked as (
    insert into pgfifo.marks (action_id, id, lane_id)
    select p_action_id, nextval('pgfifo.mark_ids'), s.id from slice s
    where exists (select from pgfifo.ledger g where g.lane_id = s.id and (g.waiting > 0 or g.held > 0)))
  select max(s.id) into v_last from slice s;
  if v_last is null then
    delete from pgfifo.remarks r where r.id = v_remark.id;
  else
    update pgfifo.remarks r set done_to = v_last where r.id = v_remark.id;
  end if;
end $$;
