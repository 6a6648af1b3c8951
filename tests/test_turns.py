"""While its turn lasts, a lane hands its slot on along its line, in the call that ends the one before."""

from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgfifo.errors import translated
from tests.support.engine import Answer, Engine, Start, item
from tests.support.sqlworker import hold_lanes

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

LONG = 600_000

# One that ends by itself is decided in other statements than several together.
pytestmark = pytest.mark.parametrize("beside", [0, 1], ids=["alone", "beside another lane"])


class Case:
    """A worker that has ended one of lane `x`, and one of each other lane of the same call."""

    def __init__(self, conn: Connection, beside: int, **policy: Any) -> None:
        self.engine = Engine(conn)
        self.engine.policy(**policy)
        self.ids = self.engine.fill(6, group="x")
        self.others = [self.engine.fill(6, group=f"other {n}") for n in range(beside)]
        self.worker = self.engine.worker()
        self.held = self.engine.claim(self.worker, 1 + beside)
        assert sorted(self.held_ids) == sorted(line[0] for line in [self.ids, *self.others])

    @property
    def held_ids(self) -> list[int]:
        return [start.id for start in self.held]

    def go_on(
        self,
        ended: Sequence[Start] | None = None,
        *,
        turn: int = LONG,
        limit: int | None = None,
        call: int | None = None,
    ) -> Answer:
        """Hand in what is held, and claim as much."""
        ended = self.held if ended is None else ended
        limit = len(ended) if limit is None else limit
        finished = [item(start) for start in ended]
        answer = self.engine.work(self.worker, limit, finished=finished, together=False, turn=turn, call=call)
        self.held = [start for start in self.held if start not in ended] + answer.starts
        return answer

    def let_time_pass(self) -> None:
        """300 ms, in which somebody has looked for what committed late; so that is not due for a while."""
        self.engine.advance("150 ms")
        assert self.engine.claim(self.engine.worker()) == []
        self.engine.advance("150 ms")

    def handed_on(self) -> int:
        """How many run in a turn that began with another one's start."""
        return int(self.engine.one("select count(*) from pgfifo.runs where turn_from is not null"))


def starts_of(answer: Answer, group: str) -> list[int]:
    """Return what has been started of this lane."""
    return [start.id for start in answer.starts if start.group == group]


def test_order_a_slot_is_handed_on_along_the_line(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    marks = case.engine.one("select count(*) from pgfifo.marks")
    for expected in case.ids[1:]:
        assert starts_of(case.go_on(), "x") == [expected]
        assert case.handed_on() == 1 + beside
        assert case.engine.one("select count(*) from pgfifo.marks") == marks, "handing on needs no mark"
    assert case.go_on().starts == []
    assert case.engine.started(group="x") == case.ids
    case.engine.assert_promises()


def test_independence_a_turn_ends(conn: Connection, beside: int) -> None:
    """Another lane is worth a look: it comes when the time is over, and not a moment later."""
    case = Case(conn, beside)
    case.engine.fill(6, group="waits")
    case.go_on(turn=60_000)
    assert case.handed_on() == 1 + beside
    case.engine.advance("50 s")
    case.go_on(turn=60_000)
    assert case.handed_on() == 1 + beside, "a turn begins with the first start of it"
    case.engine.advance("11 s")
    answer = case.go_on(turn=60_000)
    assert "waits" in [start.group for start in answer.starts], "a turn did not end"
    assert case.handed_on() == 0
    case.engine.assert_promises()


def test_independence_a_turn_goes_on_where_nobody_waits(conn: Connection, beside: int) -> None:
    """Then letting go would serve nobody; with the first who comes it ends."""
    case = Case(conn, beside)
    case.let_time_pass()
    case.go_on(turn=100)
    assert case.handed_on() == 1 + beside
    case.engine.fill(1, group="waits")
    case.engine.advance("150 ms")
    answer = case.go_on(turn=100)
    assert "waits" in [start.group for start in answer.starts], "a turn did not end"
    assert case.handed_on() == 0
    case.engine.assert_promises()


def test_independence_a_turn_ends_when_something_is_due(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    case.engine.enqueue_later("1 h", group="due")
    case.let_time_pass()
    # The time of the timer comes, and nothing else does.
    conn.execute("update pgfifo.scans set full_at = full_at + interval '1 h'")
    case.engine.advance("1 h")
    answer = case.go_on(turn=100)
    assert "due" in [start.group for start in answer.starts], (
        "what is due has to wait for a turn without an end"
    )
    case.engine.assert_promises()


def test_flat_cost_scans_begin_later_where_slots_are_handed_on(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    case.let_time_pass()
    query = "select max(seen_at) from pgfifo.scans"
    before = case.engine.one(query)
    case.engine.advance("350 ms")
    assert starts_of(case.go_on(turn=1), "x") == [case.ids[1]]
    assert case.engine.one(query) > before


def test_progress_what_committed_late_is_found_where_slots_are_handed_on(
    conn: Connection, connect: Connect, beside: int
) -> None:
    """It lies before where claims begin to scan; once a second one of them begins earlier."""
    case = Case(conn, beside)
    for group in {start.group for start in case.held}:
        case.engine.fill(60, group=group)
    producer = connect(autocommit=False)
    [late] = Engine(producer).fill(1, group="late")
    other = case.engine.worker()
    for _ in range(8):
        case.engine.advance("110 ms")
        case.engine.claim(other)
        case.engine.fill(1, group="early")
        for start in case.engine.claim(other):
            case.engine.work(other, 0, finished=[item(start)], together=False)
    producer.commit()
    started: list[int] = []
    for _ in range(15):
        case.engine.advance("100 ms")
        started += case.go_on(turn=1).ids
    assert late in started, "a wake-up was lost"
    case.engine.assert_promises()


def test_independence_by_default_a_turn_is_short(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    other = case.engine.fill(1, group="waits")
    case.engine.advance("10.001 ms")
    conn.execute("reset pgfifo.turn")
    finished = Jsonb([item(start) for start in case.held])
    query = "select id from pgfifo.work(%s, '{deploy}', %s, null, %s) where kind = 'start'"
    assert (other[0],) in conn.execute(query, [case.worker, 1 + beside, finished]).fetchall()


def test_independence_a_clock_that_was_set_back_makes_no_turn_longer(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    case.engine.advance("-1 hour")
    case.go_on()
    assert case.handed_on() == 0
    case.engine.assert_promises()


def test_slots_a_lowered_limit_takes_the_slot_away(conn: Connection, beside: int) -> None:
    case = Case(conn, beside, max_concurrent=3)
    case.held += case.engine.claim(case.worker, 2 + 2 * beside)
    in_x = [start for start in case.held if start.group == "x"]
    assert len(in_x) == 3
    case.engine.policy(max_concurrent=2)
    first = [
        next(start for start in case.held if start.group == group) for group in {s.group for s in case.held}
    ]
    assert case.go_on(first).starts == [], "started above the limit"
    assert (
        len(case.go_on([start for start in case.held if start in first or start.group == "x"][:1]).starts)
        == 1
    )
    case.engine.assert_promises()


def test_slots_several_of_a_lane_are_handed_on_together(conn: Connection, beside: int) -> None:
    case = Case(conn, beside, max_concurrent=3)
    case.held += case.engine.claim(case.worker, 2 + 2 * beside)
    answer = case.go_on()
    assert starts_of(answer, "x") == case.ids[3:]
    assert [start.start_no for start in answer.starts if start.group == "x"] == [4, 5, 6]
    assert case.handed_on() == 3 * (1 + beside)
    assert case.go_on().starts == []
    case.engine.assert_promises()


def test_progress_where_fewer_start_than_have_ended_the_lane_gets_a_mark(
    conn: Connection, beside: int
) -> None:
    """What stands for a program's slot is next: it is started in that program's name, by whoever comes by."""
    engine = Engine(conn)
    engine.policy()
    for group in ["x", *(f"other {n}" for n in range(beside))]:
        engine.fill(1, group=group)
    worker = engine.worker()
    program = engine.one("select pgfifo.worker_start('p', 'h', 1, '{}', 1, p_kind => 'slot')")
    held = engine.claim(worker, 1 + beside)
    enter = "select id, state from pgfifo.slot_enter(%s, 1, 'deploy', '{}', 'x')"
    [(slot, state)] = engine.rows(enter, program)
    assert state == "waiting"
    after = engine.fill(1, group="x")
    assert engine.claim(engine.worker(), 9) == [], "the lanes are full, and their marks are gone"
    engine.work(worker, 1 + beside, finished=[item(start) for start in held], together=False, turn=LONG)
    owner = engine.rows("select worker_id from pgfifo.runs where id = %s", slot)
    assert owner == [(program,)], "the program's turn was lost"
    assert engine.states(after) == ["waiting"]
    engine.assert_promises()


def test_order_what_was_given_back_comes_before_what_waits(conn: Connection, beside: int) -> None:
    case = Case(conn, beside, max_concurrent=2)
    case.held += case.engine.claim(case.worker, 1 + beside)
    [first, second] = [start for start in case.held if start.group == "x"]
    case.engine.release(first)
    case.held.remove(first)
    case.go_on([start for start in case.held if start.group != "x"] + [second], limit=4)
    assert case.engine.started(group="x")[:3] == [first.id, second.id, first.id]
    case.engine.assert_promises()


def test_slots_a_lane_that_was_paused_hands_nothing_on(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    case.engine.pause(group="x")
    assert starts_of(case.go_on(), "x") == []
    case.engine.resume(group="x")
    assert starts_of(case.go_on(limit=3), "x") == [case.ids[1]]
    case.engine.assert_promises()


def test_independence_the_policy_of_another_lane_changes_nothing(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    case.engine.policy(group="elsewhere", max_concurrent=2)
    case.go_on()
    assert case.handed_on() == 1 + beside


def test_slots_an_override_holds_for_what_is_handed_on(conn: Connection, beside: int) -> None:
    case = Case(conn, beside, max_concurrent=2)
    case.held += case.engine.claim(case.worker, 1 + beside)
    conn.execute("""select pgfifo.override_policy('deploy', '{"max_concurrent": 1}', '1 h')""")
    for group in {start.group for start in case.held}:
        [first, _] = [start for start in case.held if start.group == group]
        assert case.go_on([first]).starts == []
    case.engine.assert_promises()


def test_slots_an_action_that_was_paused_hands_nothing_on(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    case.engine.pause()
    assert case.go_on().starts == []
    case.engine.resume()
    assert starts_of(case.go_on(limit=3), "x") == [case.ids[1]]
    case.engine.assert_promises()


def test_slots_a_rate_holds_for_what_is_handed_on(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    case.engine.policy(rate="1/hour")
    case.go_on()
    assert case.handed_on() == 0
    case.engine.assert_promises()


def test_limits_what_has_waited_for_too_long_is_not_started(conn: Connection, beside: int) -> None:
    case = Case(conn, beside, max_wait=60)
    case.engine.advance("61 s")
    assert case.go_on().starts == []
    case.engine.assert_promises()


def test_order_what_is_due_joins_before_what_comes_later(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    case.engine.enqueue_later("1 s", group="x")
    case.engine.advance("2 s")
    while case.held:
        case.go_on()
    case.go_on(limit=3)
    while case.held:
        case.go_on()
    case.engine.assert_promises()


def test_fencing_only_what_this_worker_runs_is_ended_and_handed_on(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    stranger = case.engine.worker()
    finished = [item(start) for start in case.held]
    answer = case.engine.work(stranger, 5, finished=finished, together=False, turn=LONG)
    assert answer.refused == dict.fromkeys(case.held_ids, "lost")
    assert case.engine.states(case.held_ids) == ["running"] * len(case.held)
    early = [{**each, "attempt": 7} for each in finished]
    answer = case.engine.work(case.worker, 5, finished=early, together=False, turn=LONG)
    assert answer.refused == dict.fromkeys(case.held_ids, "lost")
    assert case.engine.states(case.held_ids) == ["running"] * len(case.held)
    case.engine.assert_promises()


def test_slots_a_lane_that_somebody_has_is_left_for_later(
    conn: Connection, connect: Connect, beside: int
) -> None:
    case = Case(conn, beside)
    holder = Engine(connect(autocommit=False))
    hold_lanes(holder.conn, "deploy")
    answer = case.engine.work(
        case.worker, 5, finished=[item(start) for start in case.held], together=False, turn=LONG
    )
    assert answer.refused == dict.fromkeys(case.held_ids, "retry")
    holder.conn.rollback()
    assert len(case.go_on().starts) == 1 + beside
    case.engine.assert_promises()


def test_durability_a_request_to_stop_stays_on_record(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    for start in case.held:
        assert case.engine.cancel(start.id, "enough") == "requested"
    case.go_on()
    rows = case.engine.rows("select outcome, reason, cancel_requested_at is not null from pgfifo.history")
    assert rows == [("succeeded", "enough", True)] * (1 + beside)
    assert case.engine.one("select count(*) from pgfifo.cancellations") == 0


def test_durability_results_are_kept(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    finished = [item(start, result={"of": start.id}) for start in case.held]
    case.engine.work(case.worker, 5, finished=finished, together=False, turn=LONG)
    assert case.handed_on() == 1 + beside
    rows = case.engine.rows("select id, result from pgfifo.history")
    assert dict(rows) == {start.id: {"of": start.id} for start in case.held}


def test_durability_other_ends_in_the_same_call_count_too(conn: Connection, beside: int) -> None:
    """A failure, one said twice, and one that nobody knows, beside those that hand their slots on."""
    case = Case(conn, beside)
    case.engine.policy("other")
    case.engine.fill(2, "other")
    [done] = case.engine.claim(case.worker, 1, ["other"])
    case.engine.hand_in(case.worker, done)
    [failed] = case.engine.claim(case.worker, 1, ["other"])
    finished = [item(start) for start in case.held]
    finished += [finished[0], item(done), item(failed, "failed", error="no"), {**item(done), "id": 10**12}]
    answer = case.engine.work(case.worker, 9, finished=finished, together=False, turn=LONG)
    assert answer.refused == {10**12: "lost"}
    assert case.engine.states([*case.held_ids, done.id]) == ["succeeded"] * (2 + beside)
    assert case.engine.state(failed.id) == "held"
    assert starts_of(answer, "x") == [case.ids[1]]
    case.engine.assert_promises()


def test_durability_the_same_call_again_returns_what_was_handed_on(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    ended = list(case.held)
    first = case.go_on(ended, call=7)
    again = case.engine.work(
        case.worker, 5, call=7, finished=[item(start) for start in ended], together=False, turn=LONG
    )
    assert sorted(again.ids) == sorted(first.ids)
    assert again.refused == {}
    case.engine.assert_promises()


def test_events_an_end_comes_before_the_start_in_its_slot(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    case.go_on()
    rows = case.engine.rows(
        "select h.event_no < r.event_no from pgfifo.history h join pgfifo.runs r on r.lane_id = h.lane_id"
    )
    assert rows == [(True,)] * (1 + beside)


def test_errors_a_turn_that_is_no_number_is_named(conn: Connection, beside: int) -> None:
    case = Case(conn, beside)
    conn.execute("set pgfifo.turn = 'soon'")
    finished = Jsonb([item(start) for start in case.held])
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("select pgfifo.work(%s, '{deploy}', 5, null, %s)", [case.worker, finished])
    error = translated(caught.value)
    assert "pgfifo.turn" in str(error)
    assert "'soon'" in str(error)
