-- Shared limits: the numbers, who draws, and how much is taken, true at every instant: the newest version of each ledger, and
-- what has been given back and is not counted yet.
create or replace view pgfifo.shared_limits as
select s.name,
  s.max_concurrent,
  pgfifo._shown('rate', to_jsonb(s.rate)) #>> '{}' as rate,
  s.burst,
  (g.active - (select count(*) from pgfifo.shared_returns r where r.limit_id = s.id))::bigint as active_count,
  (select count(*) from pgfifo.shared_waits w where w.limit_id = s.id) as waiting_lanes,
  case when s.rate is not null then (pgfifo._rate_allows(s.rate[1], s.rate[2], s.burst,
    pgfifo._rate_at(s.rate[1], s.rate[2], s.burst, g.rate_at, g.last_start_at, n.now), n.now)).o_at end as next_start_at,
  array(select a.name from pgfifo.shared_draws d join pgfifo.actions a on a.id = d.action_id where d.limit_id = s.id order by a.name) as actions,
  array(select d.pack from pgfifo.shared_draws d where d.limit_id = s.id and d.scope = 'pack' order by d.pack) as packs,
  exists (select from pgfifo.shared_draws d where d.limit_id = s.id and d.scope = 'everything') as everything,
  s.changed_at
from pgfifo._shared_limits s
join pgfifo.shared_ledger g on g.limit_id = s.id
cross join (select pgfifo._time() as now offset 0) n;
comment on view pgfifo.shared_limits is 'Limits that several actions draw from, and how much of them is taken.';
comment on column pgfifo.shared_limits.name is 'The name.';
comment on column pgfifo.shared_limits.max_concurrent is 'How many may be running at once; null: any number.';
comment on column pgfifo.shared_limits.rate is 'Starts per time, such as 100/s; null: any.';
comment on column pgfifo.shared_limits.burst is 'How many starts at once the rate allows; null: its number of starts.';
comment on column pgfifo.shared_limits.active_count is 'How many are running that drew from it.';
comment on column pgfifo.shared_limits.waiting_lanes is 'How many lanes it keeps waiting.';
comment on column pgfifo.shared_limits.next_start_at is 'When the rate allows the next start; null where it does now.';
comment on column pgfifo.shared_limits.actions is 'Actions that draw from it by name.';
comment on column pgfifo.shared_limits.packs is 'Packs whose actions draw from it.';
comment on column pgfifo.shared_limits.everything is 'Whether every action draws from it.';
comment on column pgfifo.shared_limits.changed_at is 'When it was last changed.';
