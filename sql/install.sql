-- pgfifo: an ordered queue in this database, schema pgfifo.
--
-- What it is. Work is enqueued per action and group; each (action, group) is a lane: one line and max_concurrent slots.
-- In a lane, executions start strictly in the order of their enqueues' commits, and never more than max_concurrent are
-- active. All of that happens in the functions below, so it holds for every client in every language.
--
-- How an execution lives. enqueue() draws its id under the lane's enqueue lock (the order is made there), writes the
-- content (_executions), what arrived (arrivals) and a mark "look at this lane" (marks), in the caller's transaction.
-- work() takes marks, oldest first, locks their lanes' slot locks by try, folds arrivals into the lane's ledger, looks at
-- the lane in a later statement, and starts the next tickets: rows in runs. work() or finish() ends them: the content
-- moves to the history, the ledger gets its next version, and a lane with something waiting its mark. A failed one is
-- held through its backoff in its slot; what a dead worker had is taken back by maintain().
--
-- Three laws. 1. Lock, then look: what decides about a lane is a statement that began after the lane's slot lock was
-- obtained. 2. Whoever can make a lane startable decides under its slot lock or leaves a mark in a transaction that
-- begins after the change has committed. 3. What takes a slot lock runs at READ COMMITTED or raises.
--
-- Every function that people call turns sequential scans off: plans, those of the helpers too, are made when the tables
-- may be empty and are kept when they are not. And compilation: what a scan costs on paper when it is off, and is still
-- the only way, would have each call compiled.
--
-- Tables are private and may change; functions without a leading underscore and the views queue_stats, lane_stats,
-- executions, order_violations, slot_violations, workers, schedules, starts, overrides, shared_limits, minutes and audit are
-- the interface.
--
-- Run it with psql -1 -v ON_ERROR_STOP=1 -f install.sql, or let pgfifo.install() do it. It may be run again.

select pg_catalog.pg_advisory_xact_lock(1885824620, 1868785010);  -- 'pgfi', 'foin': installers come one after another
-- Nothing here is looked for in schemas of others; finish.sql puts back what the caller had set.
select pg_catalog.set_config('pgfifo.before', pg_catalog.json_build_object('role', pg_catalog.current_setting('role'),
  'search_path', pg_catalog.current_setting('search_path'))::pg_catalog.text, true);
set local search_path = pg_catalog, pg_temp;
set local client_min_messages = warning;
set local check_function_bodies = off;
-- All of it belongs to one role, whoever installs: a superuser who replaced some of a schema's functions would own these,
-- and they would call with his rights what the schema's owner can change.
do $$
declare
  v_owner name := (select r.rolname from pg_namespace n join pg_roles r on r.oid = n.nspowner where n.nspname = 'pgfifo');
begin
  if v_owner is null then
    create schema pgfifo;
  elsif v_owner <> current_user then
    perform set_config('role', v_owner, true);
  end if;
end $$;
comment on schema pgfifo is 'pgfifo: an ordered queue with slots. Functions and views are the interface; tables are private.';

do $$
declare
  v_installed integer;
begin
  if to_regclass('pgfifo.installation') is not null then
    select i.version into v_installed from pgfifo.installation i;
    if v_installed > 1 then
      raise exception using errcode = 'QF016',
        message = format('schema version %s is installed here, newer than this package, which has version 1', v_installed),
        detail = json_build_object('version', v_installed, 'package', 1)::text,
        hint = 'Upgrade the pgfifo package on this side.';
    end if;
  end if;
end $$;

-- What is there may be in use, by calls that lock some of it and wait for more of it, as we do: in another order. So all
-- of it is locked now, before anything else is, and never waited for longer than it takes the server to see a deadlock (it
-- would not choose us): whoever waits for us gets on, and we begin anew. Calls touch actions first, so that lock closes the
-- door, and those who are inside come to their end. After ten seconds a wait may be long enough for a vacuum to give way.
do $$
declare
  v_tables text := (
    select string_agg(format('pgfifo.%I', c.relname), ', ' order by c.relname <> 'actions', c.oid)
    from pg_class c where c.relnamespace = 'pgfifo'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition);
  v_view name;
  v_before text := current_setting('lock_timeout');
  v_short text := least(100, extract(epoch from current_setting('deadlock_timeout')::interval) * 500)::integer || 'ms';
  v_begun timestamptz := clock_timestamp();
begin
  if v_tables is null then
    return;
  end if;
  loop
    begin
      perform set_config('lock_timeout', case when clock_timestamp() < v_begun + interval '10 s' then v_short else '3s' end, true);
      execute format('lock table %s in access exclusive mode', v_tables);
      -- To lock a view would lock the catalogs that it reads, too. That it has the owner that it has locks it alone.
      for v_view in
        select c.relname from pg_class c where c.relnamespace = 'pgfifo'::regnamespace and c.relkind = 'v' order by c.oid
      loop
        execute format('alter view pgfifo.%I owner to current_user', v_view);
      end loop;
      exit;
    exception when lock_not_available or deadlock_detected then
      if clock_timestamp() > v_begun + interval '60 s' then
        raise exception using errcode = 'QF023', message = 'pgfifo cannot be installed anew while somebody uses it in a long transaction',
          detail = json_build_object('pids', array(
            select distinct l.pid from pg_locks l join pg_class c on c.oid = l.relation
            where c.relnamespace = 'pgfifo'::regnamespace and l.database = (select d.oid from pg_database d where d.datname = current_database())
              and l.granted and l.pid <> pg_backend_pid()))::text,
          hint = 'pg_stat_activity has the transactions of these pids. Nothing has been changed; try again when they have ended.';
      end if;
      perform pg_sleep(0.05 + random() * 0.1);
    end;
  end loop;
  perform set_config('lock_timeout', v_before, true);
end $$;

-- Steps from older versions

-- Tables
\ir tables/installation.sql
\ir tables/actions.sql
\ir tables/lanes.sql
\ir tables/policies.sql
\ir tables/executions.sql
\ir tables/requests.sql
\ir tables/tallies.sql
\ir tables/runs.sql
\ir tables/limits.sql
\ir tables/ledger.sql
\ir tables/marks.sql
\ir tables/workers.sql
\ir tables/history.sql
\ir tables/imports.sql
\ir tables/audit.sql
\ir tables/schedules.sql
\ir tables/minutes.sql

-- Helpers
\ir internal/types.sql
\ir internal/words.sql
\ir internal/clock.sql
\ir internal/isolation.sql
\ir internal/durable.sql
\ir internal/rights.sql
\ir internal/locks.sql
\ir internal/group.sql
\ir internal/action.sql
\ir internal/ledger.sql
\ir internal/turn.sql
\ir internal/wake.sql
\ir internal/tell.sql
\ir internal/enqueue_checks.sql
\ir internal/keys.sql
\ir internal/enqueue_limits.sql
\ir internal/enqueue_batch.sql
\ir internal/enqueue.sql
\ir internal/audit.sql
\ir internal/filter.sql
\ir internal/events.sql
\ir internal/limits.sql
\ir internal/ride.sql
\ir internal/end_run.sql
\ir internal/end_waiting.sql
\ir internal/admit.sql
\ir internal/put_back.sql
\ir internal/finish_one.sql
\ir internal/finish_batch.sql
\ir internal/finish_single.sql
\ir internal/home.sql
\ir internal/fence_worker.sql
\ir internal/lock_run.sql
\ir internal/expire.sql
\ir internal/scan.sql
\ir internal/remark.sql
\ir internal/claim_returned.sql
\ir internal/start_rows.sql
\ir internal/start_single.sql
\ir internal/policy.sql
\ir internal/in_force.sql
\ir internal/time_limits.sql
\ir internal/schedule.sql
\ir internal/override.sql
\ir internal/policy_document.sql
\ir internal/effective.sql
\ir internal/ahead.sql
\ir internal/minutes.sql
\ir internal/explain.sql
\ir internal/set_paused.sql
\ir internal/set_closed.sql
\ir internal/take_back.sql
\ir internal/rescue.sql
\ir internal/sweep.sql
\ir internal/retention.sql
\ir internal/maintain_if_late.sql
\ir internal/slot.sql
\ir internal/doctor.sql

-- Looking
\ir functions/format_group.sql
\ir views/_default_policy.sql
\ir views/_max_waits.sql
\ir views/_action_policies.sql
\ir views/_lane_policies.sql
\ir views/lane_stats.sql
\ir views/queue_stats.sql
\ir views/executions.sql
\ir views/workers.sql
\ir views/slots.sql
\ir views/schedules.sql
\ir views/starts.sql
\ir views/order_violations.sql
\ir views/slot_violations.sql
\ir views/overrides.sql
\ir views/shared_limits.sql
\ir views/minutes.sql
\ir views/grants.sql
\ir functions/list_executions.sql
\ir functions/overview.sql
\ir functions/list_lanes.sql
\ir functions/line.sql
\ir functions/position.sql
\ir functions/remaining.sql
\ir functions/explain.sql
\ir functions/pace.sql
\ir functions/wait_times.sql
\ir functions/metrics.sql
\ir functions/effective_policy.sql
\ir functions/policy_history.sql
\ir functions/export_policies.sql
\ir functions/schema_info.sql
\ir views/_counts.sql
\ir functions/events.sql
\ir functions/follow.sql
\ir functions/unfollow.sql
\ir functions/check.sql
\ir functions/doctor.sql

-- Producing
\ir functions/max_batch_lanes.sql
\ir functions/group_text.sql
\ir functions/enqueue.sql
\ir functions/enqueue_one.sql
\ir functions/enqueue_many.sql
\ir functions/cancel_many.sql
\ir functions/cancel.sql
\ir functions/cancel_where.sql
\ir functions/watch.sql
\ir functions/unwatch.sql
\ir functions/reschedule.sql
\ir functions/retry.sql
\ir functions/retry_many.sql
\ir functions/retry_where.sql
\ir functions/set_schedule.sql
\ir functions/declare_schedules.sql
\ir functions/remove_schedule.sql
\ir functions/pause_schedule.sql
\ir functions/resume_schedule.sql
\ir functions/due_schedules.sql
\ir functions/tick_schedule.sql
\ir functions/import_start.sql
\ir functions/import_commit.sql
\ir functions/import_enqueued.sql
\ir functions/import_status.sql
\ir functions/import_finish.sql

-- Consuming
\ir functions/worker_start.sql
\ir functions/worker_relock.sql
\ir functions/worker_stop.sql
\ir functions/work.sql
\ir functions/claim.sql
\ir functions/complete.sql
\ir functions/finish.sql
\ir functions/release.sql
\ir functions/heartbeat.sql
\ir functions/slot_enter.sql
\ir functions/slot_look.sql
\ir functions/slot_leave.sql
\ir functions/progress.sql
\ir functions/sleeping.sql
\ir functions/awake.sql

-- Operating
\ir functions/declare_action.sql
\ir functions/set_policy.sql
\ir functions/set_pack_policy.sql
\ir functions/set_default_policy.sql
\ir functions/apply_policies.sql
\ir functions/override_policy.sql
\ir functions/override_pack_policy.sql
\ir functions/override_default_policy.sql
\ir functions/set_shared_limit.sql
\ir functions/drop_shared_limit.sql
\ir functions/pause.sql
\ir functions/resume.sql
\ir functions/pause_everything.sql
\ir functions/resume_everything.sql
\ir functions/finish_execution.sql
\ir functions/close.sql
\ir functions/open.sql
\ir functions/remove_action.sql
\ir functions/maintain.sql
\ir functions/grant_role.sql
\ir functions/revoke_role.sql
\ir functions/grant_enqueue.sql
\ir functions/revoke_enqueue.sql
\ir functions/create_roles.sql
\ir functions/raise_epoch.sql
\ir functions/advance.sql

-- The version, and who may call
\ir finish.sql
