-- For how long executions may wait in a lane; no row where for ever. Overrides for a time do not come into it: see
-- _override_policy. Where no policy has a max_wait, which is so mostly, asking for a lane reads nothing but that.
-- left join lateral (select w.max_wait from pgfifo._max_waits w where w.lane_id = … offset 0) w on true
create or replace view pgfifo._max_waits as
select l.id as lane_id, make_interval(secs => nullif(coalesce(pl.max_wait, pa.max_wait, pd.max_wait, pp.max_wait, pe.max_wait), 'infinity')) as max_wait
from pgfifo.lanes l
join pgfifo.actions a on a.id = l.action_id
left join pgfifo.policies pl on pl.scope = 'lane' and pl.lane_id = l.id
left join pgfifo.policies pa on pa.scope = 'action' and pa.action_id = a.id
left join pgfifo.policies pd on pd.scope = 'declared' and pd.action_id = a.id
left join pgfifo.policies pp on pp.scope = 'pack' and pp.pack = a.pack
left join pgfifo.policies pe on pe.scope = 'everything'
where (select exists (select from pgfifo.policies p where p.max_wait < 'infinity'))
  and coalesce(pl.max_wait, pa.max_wait, pd.max_wait, pp.max_wait, pe.max_wait) < 'infinity';
