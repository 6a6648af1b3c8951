-- Overrides that are in force.
create or replace view pgfifo.overrides as
select o.scope,
  a.name as action,
  l.group_text,
  o.pack,
  o.attribute,
  pgfifo._shown(o.attribute, o.value) as value,
  o.until,
  extract(epoch from o.until - n.now)::double precision as remaining,
  o.set_at,
  o.set_by,
  o.actor,
  o.reason
from pgfifo._overrides o
left join pgfifo.actions a on a.id = o.action_id
left join pgfifo.lanes l on l.id = o.lane_id
cross join (select pgfifo._time() as now offset 0) n
where o.until > n.now;
comment on view pgfifo.overrides is 'Values that win over every policy for a time.';
comment on column pgfifo.overrides.scope is 'What it is for: lane, action, pack or everything.';
comment on column pgfifo.overrides.action is 'The action; null for a pack or everything.';
comment on column pgfifo.overrides.group_text is 'The lane''s group, if it is for one lane.';
comment on column pgfifo.overrides.pack is 'The pack, if it is for one.';
comment on column pgfifo.overrides.attribute is 'The attribute.';
comment on column pgfifo.overrides.value is 'The value in force there.';
comment on column pgfifo.overrides.until is 'When it ends by itself.';
comment on column pgfifo.overrides.remaining is 'Seconds until then.';
comment on column pgfifo.overrides.set_at is 'When it was set.';
comment on column pgfifo.overrides.set_by is 'The session''s user who set it.';
comment on column pgfifo.overrides.actor is 'The person behind the role, if set_config(''pgfifo.actor'', …) named one.';
comment on column pgfifo.overrides.reason is 'Why.';
