"""Take one safeguard at a time out of the SQL; a named test must notice.

``python -m tests.mutations`` runs all, ``python -m tests.mutations NAME …`` some, ``--list`` shows them.
Each mutation replaces text of the install script, and each text must be there exactly once: a mutation that
does not apply any more fails the run instead of passing for one that was noticed. The mutated script goes
into the template database of a test run of its own (tests/conftest.py reads PGFIFO_TEST_MUTATION); the
product knows nothing of this.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "PGFIFO_TEST_MUTATION"
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutation:
    """A safeguard, how it is taken out, and the tests that must turn red."""

    name: str
    promise: str
    change: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]

    def apply(self, script: str) -> str:
        """Return the script without the safeguard.

        Raises:
            ValueError: a text that is to be replaced is not there exactly once.
        """
        for old, new in self.change:
            found = script.count(old)
            if found != 1:
                raise ValueError(f"mutation {self.name!r}: found {found} times, not once: {old!r}")
            script = script.replace(old, new)
        return script


# Texts of the script.
ENQUEUE_LOCK = "      perform pg_advisory_xact_lock(c_class, pgfifo._key(v_lane_id));\n"
MAY_ENQUEUE = (
    "has_function_privilege(pgfifo._caller(),"
    " to_regprocedure(format('pgfifo.%I()', pgfifo._may_enqueue(a.id))), 'execute'))"
)
LOOK_AGAIN = "where r.lane_id = any (v_locked) order by r.id\n"
NOT_STARTED = "(v_locked) and not exists (select from pgfifo.runs r where r.id = e.id));"
LANES_SORTED = "group by e.lane_id order by pgfifo._key(e.lane_id));"
IS_ITS_OWN = "where r.attempt = i.attempt and r.worker_id = p_worker and r.state = 'running'"
MARK_ON_COMPLETION = "where f.lane_id <> all (v_refilled);"
SLOT_LOCK = " where pg_try_advisory_xact_lock(c_lanes, pgfifo._key(l.lane_id));"
POLICY_LOCK = "where pg_try_advisory_xact_lock_shared(c_policies, a.id));"
FORGET_KEPT_POLICIES = """\
create or replace trigger forget_in_force after insert or update or delete on pgfifo.policies
for each row execute function pgfifo._forget_in_force();
"""
MARK_ON_ENQUEUE = "insert into pgfifo.marks (action_id, id, lane_id) values (v_action_id, v_mark, v_lane_id);"
CLOCK_AFTER_MARKS = "is due by a clock that is read after the mark was seen.\n    v_now := pgfifo._now();\n"
NOT_COUNTED_NOW = "                 when c.announces is not true then g.mark_floor\n"
STILL_ALIVE = "  if v_state is distinct from 'alive' then\n"
FROM_THE_SAFE_POINT = "  if v_full then\n"
OWNED = "  if exists (select from pgfifo._executions e where e.id = p_run.id and e.owner is not null) then\n"
READ_COMMITTED = (
    "  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then\n"
)
STILL_THERE = """\
        from pgfifo.lanes l where l.id = v_lane_id;
      end if;
      exit when found;
"""
YIELDED_ONES_FIRST = " or g.yielded > 0 and g.held_from <= v_now\n"
PAST_OF_A_TAIL = "when p.has_past then 'past' else 'start' end"
GONE_UNNOTICED = "        from (select null::timestamptz as closed_at) l;\n      end if;\n      exit;\n"
DUE_ONES_FIRST = "  if v_due then\n"
BOUND_LOOKED_AT_AGAIN = "then least(f.upto, o.first) end"
TIME_TO_COME_BACK = "and w.relocked_tick >= p_tick - c_return)\n"
HOME_LOCK = "    lock table pgfifo._home in share row exclusive mode;\n"
COPY_NOTICED = "tests/test_restore.py::test_sessions_that_come_at_once_start_nothing_before_a_copy_is_noticed"
SORTED = "i(lane_id, max_length, refuses, quota) order by pgfifo._key(i.lane_id) offset 0) s;\n"
UNSORTED = """\
with ordinality i(lane_id, max_length, refuses, quota, n)
          order by array_position(v_groups, v_lane_groups[i.n]) offset 0) s;
"""
OVERRIDE_LOCK = "    if not pg_try_advisory_xact_lock(v_class::integer, v_key) then\n"
ENDS_OVERRIDES = "  if v_ends_at <= v_now then\n    perform pgfifo._end_overrides(v_now);\n"
LOCK_OF_SCOPES = "    perform pg_advisory_xact_lock(c_class, p_action_id);\n"
REFUSING_IS_EXCLUSIVE = (
    "v_items or i.max_length < 'infinity' or i.refuses or i.quota is not null as exclusive\n"
)
LOCK_OF_ITEMS = "    perform pgfifo._lock_lane(v_lane_id, 'enqueue (item_key is given)');\n"
NEVER_STARTED = (
    " and not exists (select from pgfifo.runs r where r.id = e.id and r.attempt > 0)\n"
    "  order by e.lane_id desc"
)
DURABLE = "  if current_setting('synchronous_commit') = 'off' then\n"
NOTHING = "  if false then\n"
CLOSE_LOCK = "    if not pgfifo._lock('pgfifo.actions'::regclass, v_action_id, interval '1 s') then\n"
CLOSE_LANE_LOCK = (
    "      if not pgfifo._lock('pgfifo._executions'::regclass, pgfifo._key(v_lane_id), interval '1 s') then\n"
)
COMPLETION_LOCK = "  v_run := pgfifo._lock_run(p_id, p_attempt, 'complete');\n"
TICK_IS_DUE = " and s.next_at is not distinct from p_due"
COMPLETED = "  if p_run.completed then\n"

SLOT_OF_A_BATCH = "  return (select count(*) from pgfifo._mates(p_run, 1));\n"
REST_GOES_BACK = "    perform pgfifo._put_off(p_run);\n"

HOLES = "tests/test_holes_"

MUTATIONS = (
    Mutation(
        "enqueue lock",
        "order",
        ((ENQUEUE_LOCK, "      null;\n"),),
        ("tests/test_order.py::test_order_of_overlapping_transactions_is_the_order_of_their_commits",),
    ),
    Mutation(
        "read after lock",
        "slots",
        ((LOOK_AGAIN, "where false\n"), (NOT_STARTED, "(v_locked));")),
        ("tests/test_cancel.py::test_cancel_beside_a_claim_in_flight_asks_the_worker",),
    ),
    Mutation(
        "attempt check",
        "fencing",
        ((IS_ITS_OWN, IS_ITS_OWN.replace("r.attempt = i.attempt and ", "")),),
        ("tests/test_fencing.py",),
    ),
    Mutation(
        "time to come back after an outage",
        "fencing",
        ((TIME_TO_COME_BACK, TIME_TO_COME_BACK.replace("p_tick - c_return", "p_tick + c_return")),),
        (
            "tests/test_connection_faults.py::test_fencing_who_comes_back_from_an_outage_later_than_others_is_alive",
        ),
    ),
    Mutation(
        "slot of a batch",
        "slots",
        ((SLOT_OF_A_BATCH, "  return 0;\n"),),
        ("tests/test_batches.py::test_batches_a_member_that_leaves_leaves_the_slot_to_the_others",),
    ),
    Mutation(
        "rest of a batch goes back",
        "order",
        ((REST_GOES_BACK, "    null;\n"),),
        ("tests/test_batches.py::test_batches_under_hold_no_success_behind_a_failure_counts",),
    ),
    Mutation(
        "mark on completion",
        "progress",
        ((MARK_ON_COMPLETION, "where false;"),),
        ("tests/test_progress.py",),
    ),
    Mutation(
        "slot lock of a claim",
        "slots",
        ((SLOT_LOCK, ";"),),
        ("tests/test_slots.py::test_slots_are_not_given_twice_to_claims_of_the_same_instant",),
    ),
    Mutation(
        "policy lock of a claim",
        "slots",
        ((POLICY_LOCK, ");"),),
        ("tests/test_slots.py::test_slots_a_change_of_the_limit_waits_for_a_claim_in_flight",),
    ),
    Mutation(
        "forgetting what is kept of a policy",
        "slots",
        ((FORGET_KEPT_POLICIES, ""),),
        ("tests/test_in_force.py::test_in_force_a_change_at_any_scope_applies_to_the_very_next_claim",),
    ),
    Mutation(
        "what has arrived is counted or left above the floor",
        "progress",
        ((NOT_COUNTED_NOW, ""),),
        ("tests/test_progress.py",),
    ),
    Mutation(
        "clock read after the marks",
        "progress",
        ((CLOCK_AFTER_MARKS, "\n"),),
        ("tests/test_progress.py",),
    ),
    Mutation(
        "mark on enqueue",
        "progress",
        ((MARK_ON_ENQUEUE, ""),),
        ("tests/test_order.py::test_order_of_ten_executions_with_one_slot",),
    ),
    Mutation(
        "worker check",
        "fencing",
        ((IS_ITS_OWN, IS_ITS_OWN.replace("r.worker_id = p_worker and ", "")),),
        ("tests/test_fencing.py",),
    ),
    Mutation(
        "lock of a completion",
        "fencing",
        ((COMPLETION_LOCK, "  select r.* into v_run from pgfifo.runs r where r.id = p_id;\n"),),
        ("tests/test_complete.py::test_fencing_nobody_takes_it_away_between_the_call_and_the_commit",),
    ),
    Mutation(
        "tick that has moved on",
        "durability",
        ((TICK_IS_DUE, ""),),
        ("tests/test_schedules.py::test_a_tick_waits_for_nobody_who_ticks_already",),
    ),
    Mutation(
        "outcome of a completion",
        "durability",
        ((COMPLETED, "  if false then\n"),),
        ("tests/test_complete.py::test_durability_a_worker_that_dies_after_the_commit_has_not_lost_it",),
    ),
    Mutation(
        "worker's fence",
        "fencing",
        ((STILL_ALIVE, "  if v_state is null then\n"),),
        ("tests/test_fencing.py",),
    ),
    Mutation(
        "look below the hot point",
        "progress",
        ((FROM_THE_SAFE_POINT, NOTHING),),
        (f"{HOLES}claims.py::test_e1_an_enqueue_that_commits_late_is_still_started",),
    ),
    Mutation(
        "isolation check",
        "slots",
        ((READ_COMMITTED, NOTHING),),
        (f"{HOLES}claims.py::test_e6_e6b_e7_a_decision_on_an_old_snapshot_is_refused",),
    ),
    Mutation(
        "lane read again by an enqueue",
        "durability",
        ((STILL_THERE, GONE_UNNOTICED),),
        (f"{HOLES}enqueue.py::test_e16_an_enqueue_that_meets_the_removal_of_its_lane_is_not_swallowed",),
    ),
    Mutation(
        "due ones join before an enqueue",
        "order",
        ((DUE_ONES_FIRST, NOTHING),),
        ("tests/test_delayed.py::test_delayed_one_that_is_due_joins_before_a_younger_enqueue",),
    ),
    Mutation(
        "yielded ones before the line",
        "order",
        ((YIELDED_ONES_FIRST, "\n"),),
        (
            "tests/test_failure_modes.py::test_failure_yield_several_come_back_in_their_order_and_before_all_others",
        ),
    ),
    Mutation(
        "attempts go along to the tail",
        "durability",
        ((PAST_OF_A_TAIL, "else 'start' end"),),
        ("tests/test_failure_modes.py::test_failure_tail_goes_to_the_end_of_the_line_after_its_backoff",),
    ),
    Mutation(
        "bound of delayed ones looked at again",
        "progress",
        ((BOUND_LOOKED_AT_AGAIN, "then f.upto end"),),
        ("tests/test_delayed.py::test_delayed_reschedule_beside_an_enqueue_that_moves_the_bound",),
    ),
    Mutation(
        "locks of a batch sorted",
        "progress",
        ((SORTED, UNSORTED),),
        ("tests/test_traps.py::test_trap_11_batches_over_the_same_lanes_in_other_orders_do_not_deadlock",),
    ),
    Mutation(
        "locks of a cancel of many sorted",
        "progress",
        ((LANES_SORTED, "group by e.lane_id order by array_position(p_ids, min(i.id)));"),),
        ("tests/test_cancel.py::test_cancel_many_in_other_orders_do_not_wait_for_each_other_in_a_circle",),
    ),
    Mutation(
        "lock at an override's end",
        "progress",
        ((OVERRIDE_LOCK, "    if false then\n"),),
        ("tests/test_overrides.py::test_overrides_end_under_the_lock_of_a_claim_in_flight",),
    ),
    Mutation(
        "end of overrides",
        "progress",
        ((ENDS_OVERRIDES, "  if false then\n    null;\n"),),
        ("tests/test_overrides.py::test_overrides_that_lowered_a_limit_end_and_the_lane_gets_going",),
    ),
    Mutation(
        "lock of a scope's quota",
        "limits",
        ((LOCK_OF_SCOPES, "    null;\n"),),
        ("tests/test_enqueue_limits.py::test_an_actions_length_is_held_to_the_commit",),
    ),
    Mutation(
        "enqueue lock of those who refuse to wait",
        "limits",
        ((REFUSING_IS_EXCLUSIVE, "v_items as exclusive\n"),),
        ("tests/test_enqueue_limits.py::test_on_limit_cancel_lets_in_exactly_as_many_as_there_are_slots",),
    ),
    Mutation(
        "slot lock of an item that is replaced",
        "durability",
        ((LOCK_OF_ITEMS, "    null;\n"),),
        ("tests/test_keys.py::test_a_claim_does_not_start_an_item_that_is_being_replaced",),
    ),
    Mutation(
        "items that have been started",
        "durability",
        ((NEVER_STARTED, "\n  order by e.lane_id desc"),),
        ("tests/test_keys.py::test_a_replacement_that_meets_a_claim_in_flight_does_not_report_success",),
    ),
    Mutation(
        "end of what programs move on",
        "order",
        (("o where o.owner is null), a.max + 1)", "o where false), a.max + 1)"),),
        ("tests/test_slot_sql.py::test_slots_who_waits_does_not_pass_an_execution_that_needs_a_worker",),
    ),
    Mutation(
        "slots that are not taken up again",
        "fencing",
        ((OWNED, "  if false then\n"),),
        ("tests/test_slot_sql.py::test_a_slot_is_never_given_back_to_the_line",),
    ),
    Mutation(
        "durable commits",
        "durability",
        ((DURABLE, NOTHING),),
        (f"{HOLES}crash.py::test_e20_what_hands_out_or_takes_in_is_durable_whatever_the_session_says",),
    ),
    Mutation(
        "lock of a close",
        "closing",
        ((CLOSE_LOCK, "    if false then\n"), (CLOSE_LANE_LOCK, "      if false then\n")),
        ("tests/test_closing.py::test_closing_waits_for_an_enqueue_in_flight_and_then_none_gets_in",),
    ),
    Mutation(
        "actions of a team",
        "roles",
        ((MAY_ENQUEUE, "true)"),),
        ("tests/test_roles.py::test_roles_a_team_enqueues_to_its_own_actions_only",),
    ),
    Mutation(
        "role of a worker",
        "roles",
        (("pg_has_role(pgfifo._caller(), r.oid, 'usage')", "true"),),
        ("tests/test_attacks.py::test_attacks_guessing_ids_and_tokens_ends_nothing_of_others",),
    ),
    Mutation(
        "pause of a restored copy",
        "restore",
        (("    if v_is.o_copied then\n", "    if false then\n"),),
        ("tests/test_restore.py::test_a_restored_copy_starts_nothing_until_it_is_resumed",),
    ),
    Mutation(
        "one who notices a copy",
        "restore",
        ((HOME_LOCK, ""),),
        (COPY_NOTICED,),
    ),
    Mutation(
        "look after that lock",
        "restore",
        ((HOME_LOCK + "    select * into strict v_is from pgfifo._where();\n", HOME_LOCK),),
        (COPY_NOTICED,),
    ),
    Mutation(
        "epoch of a new timeline",
        "fencing",
        (("    if v_is.o_forked then\n", "    if false then\n"),),
        ("tests/test_holes_crash.py::test_e2_what_a_failover_has_lost_is_given_out_under_new_tokens_only",),
    ),
    Mutation(
        "all claims in a new epoch",
        "progress",
        (("w.seen_call else -1 end into", "w.seen_call else w.seen_call end into"),),
        ("tests/test_holes_crash.py::test_e2_what_a_failover_has_lost_is_given_out_under_new_tokens_only",),
    ),
    Mutation(
        "new ids of workers in a new epoch",
        "fencing",
        (("nextval('pgfifo._workers_id_seq') + 1000000", "nextval('pgfifo._workers_id_seq')"),),
        ("tests/test_holes_crash.py::test_e2_what_a_failover_has_lost_is_given_out_under_new_tokens_only",),
    ),
    Mutation(
        "heartbeat of a new epoch",
        "fencing",
        (("  if v_limit > 0 and v_settled and ", "  if v_limit > 0 and "),),
        ("tests/test_holes_crash.py::test_e2_what_a_failover_has_lost_is_given_out_under_new_tokens_only",),
    ),
)


def mutated(script: str, name: str) -> str:
    """Return the install script with the mutation of that name applied."""
    return next(mutation for mutation in MUTATIONS if mutation.name == name).apply(script)


def run(tests: tuple[str, ...], name: str | None) -> tuple[int, str]:
    """Run tests, with a mutation or without; return the exit status and what pytest printed."""
    environment = os.environ | ({VARIABLE: name} if name else {})
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=line", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def first_failure(output: str) -> str:
    """Return the name of the test that noticed."""
    for line in output.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            return line.split(" - ")[0].removeprefix("FAILED ").rpartition("::")[2]
    return ""


def main(arguments: list[str]) -> int:
    """Run the mutations and print a table; return 1 if one survives."""
    if arguments == ["--list"]:
        print("\n".join(f"{mutation.name}  ({mutation.promise})" for mutation in MUTATIONS))
        return 0
    unknown = set(arguments) - {mutation.name for mutation in MUTATIONS}
    if unknown:
        print(f"No such mutation: {', '.join(sorted(unknown))}. See --list.", file=sys.stderr)
        return 2
    chosen = [mutation for mutation in MUTATIONS if not arguments or mutation.name in arguments]
    from pgfifo.schema import sql_text

    for mutation in chosen:
        mutation.apply(sql_text())  # fails early where the script has changed under it

    tests = tuple(dict.fromkeys(test for mutation in chosen for test in mutation.tests))
    status, output = run(tests, None)
    if status != 0:
        print(output)
        print("The tests must pass while all safeguards are there.", file=sys.stderr)
        return 1

    survivors = 0
    print(f"{'safeguard taken out':<32} {'promise':<12} {'verdict':<9} {'s':>5}  noticed by")
    for mutation in chosen:
        began = time.monotonic()
        status, output = run(mutation.tests, mutation.name)
        noticed = status == 1 and "failed" in output.splitlines()[-1]
        survivors += not noticed
        verdict = "noticed" if noticed else "SURVIVED"
        by = first_failure(output) if noticed else f"nobody (pytest ended with {status})"
        print(
            f"{mutation.name:<32} {mutation.promise:<12} {verdict:<9} {time.monotonic() - began:5.1f}  {by}",
            flush=True,
        )
    print(f"{len(chosen) - survivors} of {len(chosen)} mutations were noticed.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
