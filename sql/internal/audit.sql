-- One line of the audit, in the transaction of the change. set_config('pgfifo.actor', …) names a person behind the role.
create or replace function pgfifo._audit(p_what text, p_action text, p_id bigint, p_detail jsonb) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  -- An xid before the entry is numbered: see events.
  perform pg_current_xact_id();
  insert into pgfifo.audit (at, who, application, actor, what, action, group_text, detail)
  select pgfifo._now(), session_user, coalesce(current_setting('application_name', true), ''), nullif(current_setting('pgfifo.actor', true), ''),
    p_what, coalesce(p_action, x.name), coalesce(p_detail ->> 'group', x.group_text), p_detail
  from (select 1) o
  left join (
    select a.name, l.group_text from pgfifo.lanes l join pgfifo.actions a on a.id = l.action_id
    where l.id = coalesce((select e.lane_id from pgfifo._executions e where e.id = p_id), (select h.lane_id from pgfifo.history h where h.id = p_id limit 1))) x on true;
  if pgfifo._awaited() then
    perform pgfifo._tell('{}');
  end if;
end $$;

-- Forget what is older than the audit's retention, the oldest first, a bounded number at a time. Nobody changes entries, and who
-- adds one adds a young one; so no lock is asked for. Returns how many went.
create or replace function pgfifo._forget_audit(p_now timestamptz) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_kept double precision;
  v_count integer;
  v_last bigint;
begin
  select coalesce((select p.audit_retention from pgfifo.policies p where p.scope = 'everything'), d.audit_retention) into v_kept
  from pgfifo._default_policy d;
  if v_kept = 'infinity' then
    return 0;
  end if;
  with gone as (
    delete from pgfifo.audit a where a.ctid = any (array(
      select o.ctid from pgfifo.audit o where o.at < p_now - make_interval(secs => v_kept) order by o.at limit 1000))
    returning a.id)
  select count(*), max(g.id) into v_count, v_last from gone g;
  perform pgfifo._forget(-1, v_last);
  return v_count;
end $$;
