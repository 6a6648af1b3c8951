-- "I live, I have seen the rows of my claims up to p_call, and of these I still hold p_held." Answers what to stop:
-- 'cancel' (somebody asked) or 'lost' (not yours any more). What was started for this worker by a claim up to p_call and
-- is not in p_held never reached it, or it has forgotten it: it goes back to its place. In a new epoch all its claims are looked
-- at again: it may have ended, and been told so, what the server has forgotten the end of.
-- p_slots, of a worker of kind 'slot': of its numbers up to p_call, those under which it has asked for slots and not given
-- them up (see slot_enter). What it asked for under any other of them is ended: it may be that the answer was lost, or that it
-- could not say that it left.
create or replace function pgfifo.heartbeat(p_worker bigint, p_call bigint default null, p_held bigint[] default '{}', p_slots bigint[] default null)
returns table (id bigint, attempt integer, signal text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
  v_before bigint;
  v_unknown bigint[];
begin
  perform pgfifo._require_read_committed('heartbeat');
  perform pgfifo._durable();
  perform pgfifo._fence_worker(p_worker);
  select case when w.epoch = (select i.epoch from pgfifo.installation i) then w.seen_call else -1 end into strict v_before
  from pgfifo._workers w where w.id = p_worker;
  update pgfifo._workers w set last_seen = pgfifo._now(), seen_tick = (select t.tick from pgfifo.ticks t order by t.tick desc limit 1),
    epoch = (select i.epoch from pgfifo.installation i)
  where w.id = p_worker;
  if p_call > v_before then
    v_unknown := array(select r.id from pgfifo.runs r
      where r.worker_id = p_worker and r.call_no > v_before and r.call_no <= p_call and r.id <> all (coalesce(p_held, '{}')));
    if v_unknown = '{}' or pgfifo._take_back(p_worker, 'released', 'its worker did not know it', 10000, v_unknown) = cardinality(v_unknown) then
      update pgfifo._workers w set seen_call = p_call where w.id = p_worker;
    else  -- some are in lanes that are locked: the next heartbeat looks at the same calls again
      update pgfifo._workers w set seen_call = v_before where w.id = p_worker;
    end if;
  end if;
  if p_slots is not null then
    v_unknown := array(select e.id from pgfifo._executions e where e.owner = p_worker and e.owner_no <= p_call and e.owner_no <> all (p_slots));
    if v_unknown <> '{}' then
      perform pgfifo._take_back(p_worker, 'released', 'given up', 10000, v_unknown);
    end if;
  end if;
  return query
    select h.id, r.attempt, case when r.id is null then 'lost' else 'cancel' end
    from unnest(p_held) h(id)
    -- By its key alone: no plan can walk over what this worker has had before.
    left join lateral (
      select r.id, r.attempt from (select r.* from pgfifo.runs r where r.id = h.id offset 0) r where r.worker_id = p_worker and r.state = 'running') r on true
    where r.id is null or exists (select from pgfifo.cancellations c where c.id = h.id);
end $$;
comment on function pgfifo.heartbeat is 'Say that a worker lives and what it holds; returns what it must stop.';
