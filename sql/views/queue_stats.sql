-- The same, per action; totals of lanes that have been removed are in the action's own row.
create or replace view pgfifo.queue_stats as
select a.name as action,
  coalesce(s.queue_length, 0)::bigint as queue_length,
  coalesce(s.active_count, 0)::bigint as active_count,
  p.max_concurrent,
  s.oldest_enqueued_at,
  (coalesce(s.total_enqueued, 0) + a.past_succeeded + a.past_failed + a.past_cancelled + a.past_expired)::bigint as total_enqueued,
  (coalesce(s.total_completed, 0) + a.past_succeeded + a.past_failed + a.past_cancelled + a.past_expired)::bigint as total_completed,
  s.last_updated,
  coalesce(s.running_count, 0)::bigint as running_count,
  coalesce(s.held_count, 0)::bigint as held_count,
  coalesce(s.delayed_count, 0)::bigint as delayed_count,
  coalesce(s.lanes, 0)::bigint as lanes,
  coalesce(s.slots_total, 0)::bigint as slots_total,
  (coalesce(s.total_succeeded, 0) + a.past_succeeded)::bigint as total_succeeded,
  (coalesce(s.total_failed, 0) + a.past_failed)::bigint as total_failed,
  (coalesce(s.total_cancelled, 0) + a.past_cancelled)::bigint as total_cancelled,
  (coalesce(s.total_expired, 0) + a.past_expired)::bigint as total_expired,
  p.paused_at is not null as paused,
  p.paused_reason,
  coalesce(s.paused_lanes, 0)::bigint as paused_lanes,
  a.closed_at is not null as closed,
  coalesce(s.slots_taken, 0)::bigint as slots_taken
from pgfifo.actions a
join pgfifo._action_policies p on p.action_id = a.id
left join lateral (
  select sum(t.queue_length) as queue_length, sum(t.active_count) as active_count, min(t.oldest_enqueued_at) as oldest_enqueued_at,
    sum(t.total_enqueued) as total_enqueued, sum(t.total_completed) as total_completed, max(t.last_updated) as last_updated,
    sum(t.running_count) as running_count, sum(t.held_count) as held_count, sum(t.delayed_count) as delayed_count,
    count(*) as lanes, sum(t.slots_taken) as slots_taken, count(*) filter (where t.paused) as paused_lanes, sum(t.max_concurrent) as slots_total, sum(t.total_succeeded) as total_succeeded,
    sum(t.total_failed) as total_failed, sum(t.total_cancelled) as total_cancelled, sum(t.total_expired) as total_expired
  from pgfifo.lane_stats t where t.action = a.name) s on true;
comment on view pgfifo.queue_stats is 'State and totals of each action, true at every instant.';
comment on column pgfifo.queue_stats.action is 'The action.';
comment on column pgfifo.queue_stats.queue_length is 'How many are waiting.';
comment on column pgfifo.queue_stats.active_count is 'How many are active: running and held. Each has a slot, but a batch has one (slots_taken).';
comment on column pgfifo.queue_stats.max_concurrent is 'How many slots one lane of the action has, where no lane policy says otherwise.';
comment on column pgfifo.queue_stats.oldest_enqueued_at is 'When the one that has waited longest was enqueued; null when none waits.';
comment on column pgfifo.queue_stats.total_enqueued is 'Enqueued since the beginning: completed, waiting, active and delayed ones.';
comment on column pgfifo.queue_stats.total_completed is 'Finished since the beginning, with whatever outcome.';
comment on column pgfifo.queue_stats.last_updated is 'When the numbers last changed, enqueues that are not counted yet aside.';
comment on column pgfifo.queue_stats.running_count is 'How many a worker has.';
comment on column pgfifo.queue_stats.held_count is 'How many keep their slot through a backoff.';
comment on column pgfifo.queue_stats.delayed_count is 'How many are not in the line yet.';
comment on column pgfifo.queue_stats.total_succeeded is 'Finished as succeeded since the beginning.';
comment on column pgfifo.queue_stats.total_failed is 'Finished as failed since the beginning.';
comment on column pgfifo.queue_stats.total_cancelled is 'Finished as cancelled since the beginning.';
comment on column pgfifo.queue_stats.total_expired is 'Finished as expired since the beginning.';
comment on column pgfifo.queue_stats.lanes is 'How many lanes the action has now.';
comment on column pgfifo.queue_stats.slots_total is 'How many slots its lanes have together.';
comment on column pgfifo.queue_stats.paused is 'Whether the whole action is paused.';
comment on column pgfifo.queue_stats.paused_reason is 'Why it is, as whoever paused it said.';
comment on column pgfifo.queue_stats.paused_lanes is 'How many of its lanes are paused, all of them where the action is.';
comment on column pgfifo.queue_stats.closed is 'Whether the whole action takes no enqueues.';
comment on column pgfifo.queue_stats.slots_taken is 'How many slots of its lanes are taken: as active_count, but a batch has one.';
