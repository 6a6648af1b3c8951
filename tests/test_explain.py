"""Why it is not running: each reason is forced, recognised as a word, and said in the paragraph."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

import pgfifo
from pgfifo import errors
from tests.support.engine import Engine
from tests.support.sqlworker import buffers
from tests.test_docs import ROOT, rows, section

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]

KEYS = [
    "action",
    "ahead",
    "at",
    "attempt",
    "closed",
    "due_at",
    "ended",
    "enqueued_at",
    "error",
    "eta",
    "exact",
    "expires_at",
    "explanation",
    "failures",
    "finished_at",
    "group_text",
    "id",
    "lane",
    "limits",
    "locked",
    "paused",
    "position",
    "reason",
    "reasons",
    "run",
    "slots",
    "state",
    "why",
    "workers",
]
SLOTS = ["active", "held", "holders", "limit", "origin", "running", "source", "taken", "until"]
HOLDER = ["attempt", "batch", "due_at", "error", "id", "overdue", "since", "state", "worker", "worker_id"]
ETA = ["at", "basis", "count", "over_seconds", "per_minute", "seconds"]
WORKERS = ["alive", "busy", "capacity", "silent"]
RUN = [
    "batch",
    "cancel_requested_at",
    "completed",
    "message",
    "overdue",
    "progress",
    "since",
    "worker",
    "worker_id",
]


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


def explain(engine: Engine, id_: int) -> dict[str, Any]:
    """Return the data, after a look whether it has the keys that are promised."""
    [(said, data)] = engine.rows("select * from pgfifo.explain(%s)", id_)
    assert sorted(data) == KEYS
    assert said == data["explanation"]
    assert said.startswith(f"Execution {id_} (")
    assert said.endswith("."), said
    assert said.endswith(data["why"])
    assert "  " not in said
    assert ".." not in said
    if data["slots"] is not None:
        assert sorted(data["slots"]) == SLOTS
        assert all(sorted(holder) == HOLDER for holder in data["slots"]["holders"])
        assert sorted(data["workers"]) == WORKERS
    if data["eta"] is not None:
        assert sorted(data["eta"]) == ETA
    if data["run"] is not None:
        assert sorted(data["run"]) == RUN
    assert isinstance(data, dict)
    return data


def reasons(engine: Engine, id_: int) -> list[str]:
    found: list[str] = explain(engine, id_)["reasons"]
    return found


def test_the_page_has_all_reasons_and_keys() -> None:
    told = {word for row in rows(section("docs/explain.md", "Reasons")) for word in row[0].split(", ")}
    body = (ROOT / "sql" / "functions" / "explain.sql").read_text(encoding="utf-8")
    given = re.findall(r"v_reasons := (?:v_reasons \|\| |array\[)(.*)$", body, re.MULTILINE)
    words = {word for line in given for word in re.findall(r"'(\w+)'", line)}
    weighed = (ROOT / "sql" / "internal" / "limits.sql").read_text(encoding="utf-8")
    words |= set(re.findall(r"jsonb_build_object\('reason', '(\w+)'", weighed))
    assert told == words
    keys = {key.strip() for row in rows(section("docs/explain.md", "Data")) for key in row[0].split(",")}
    assert keys - {"slots.holders"} == set(KEYS)


# Who is ahead, and who has the slots


def test_the_next_one_of_a_free_lane_waits_for_nothing_but_a_claim(engine: Engine) -> None:
    first, second = engine.fill(2)
    engine.worker()
    data = explain(engine, first)
    assert (data["state"], data["reasons"], data["position"], data["ahead"]) == ("waiting", ["next"], 1, [])
    assert data["workers"] == {"alive": 1, "busy": 0, "capacity": 10, "silent": 0}
    assert "It is next in its line." in data["why"]
    assert "one worker serves deploy" in data["why"]
    data = explain(engine, second)
    assert (data["reasons"], data["position"], data["ahead"]) == (["ahead", "next"], 2, [first])
    assert f"One is ahead of it in the line ({first})." in data["why"]


def test_those_ahead_are_named_what_was_returned_first(engine: Engine) -> None:
    ids = engine.fill(9)
    worker = engine.worker()
    engine.policy(max_concurrent=2)
    one, two = engine.claim(worker, 2)
    engine.release(two)
    engine.release(one)
    data = explain(engine, ids[8])
    assert data["position"] == 9
    assert data["ahead"] == ids[:5]
    assert f"8 are ahead of it in the line ({', '.join(map(str, ids[:5]))}, …)." in data["why"]
    assert explain(engine, ids[1])["ahead"] == [ids[0]]
    assert explain(engine, ids[1])["position"] == 2


def test_slots_are_taken_by_whom_since_when_and_where(engine: Engine) -> None:
    running, waiting = engine.fill(2)
    engine.claim(engine.worker())
    engine.advance("250 s")
    data = explain(engine, waiting)
    assert data["reasons"] == ["no_worker", "slots", "lease"], "the clock went on without heartbeats"
    engine.heartbeat(1, None, [running])
    data = explain(engine, waiting)
    assert data["reasons"] == ["slots"]
    [holder] = data["slots"]["holders"]
    assert (holder["id"], holder["state"], holder["attempt"], holder["worker_id"]) == (
        running,
        "running",
        1,
        1,
    )
    assert (data["slots"]["active"], data["slots"]["running"], data["slots"]["held"]) == (1, 1, 0)
    assert re.search(
        rf"The only slot of its lane is taken: execution {running}, running since \S+ \w+ \(4m 1\ds ago\)"
        r" on worker 1 \(test, pid 1 on here\)\.",
        data["why"],
    )
    assert explain(engine, running)["reasons"] == []


def test_a_slot_that_is_held_through_a_backoff_is_told_with_its_error(engine: Engine) -> None:
    engine.policy(max_concurrent=2, backoff_initial=100)
    held, running, waiting = engine.fill(3)
    start, _ = engine.claim(engine.worker(), 2)
    engine.finish(start, "failed", 'OSError: no "route"\n\nTraceback: …')
    data = explain(engine, waiting)
    assert data["reasons"] == ["slots"]
    assert [holder["id"] for holder in data["slots"]["holders"]] == [held, running]
    assert data["slots"]["holders"][0]["error"].startswith("OSError")
    assert "All 2 slots of its lane are taken: " in data["why"]
    assert 'with the error "OSError: no "route""' in data["why"]
    assert "Traceback" not in data["why"]
    data = explain(engine, held)
    assert (data["state"], data["reasons"], data["position"]) == ("held", ["backoff"], None)
    assert "keeps its slot until then" in data["why"]
    assert "is held since attempt 1 failed" in data["explanation"]


def test_many_holders_are_counted_and_the_oldest_are_named(engine: Engine) -> None:
    engine.policy(max_concurrent=12)
    ids = engine.fill(13)
    worker = engine.worker()
    for _ in range(12):
        engine.claim(worker)
        engine.advance("1 s")
    data = explain(engine, ids[12])
    assert [holder["id"] for holder in data["slots"]["holders"]] == ids[:10]
    assert all(f"execution {id_}," in data["why"] for id_ in ids[:3])
    assert f"execution {ids[3]}," not in data["why"]
    assert "; and 9 more." in data["why"]


@pytest.mark.parametrize(
    ("scope", "source", "said"),
    [
        (None, ("default", None), "is the built-in default"),
        ("select pgfifo.set_default_policy(%s)", ("everything", None), "is set for everything"),
        ("select pgfifo.set_pack_policy('web', %s)", ("pack", "web"), "is set for the pack web"),
        ("select pgfifo.declare_action('web.get', %s)", ("declared", "web.get"), "was declared by code"),
        ("select pgfifo.set_policy('web.get', %s)", ("action", "web.get"), "is set for the action web.get"),
        (
            "select pgfifo.set_policy('web.get', %s, 'a')",
            ("lane", "web.get a"),
            "is set for the lane web.get a",
        ),
        (
            "select pgfifo.override_policy('web.get', %s, '1 hour')",
            ("override", "action web.get"),
            "that ends",
        ),
    ],
)
def test_the_limit_is_told_with_where_it_comes_from(
    engine: Engine, scope: str | None, source: tuple[str, str | None], said: str
) -> None:
    _, waiting = engine.enqueue("web.get", group="a"), engine.enqueue("web.get", group="a")
    if scope is not None:
        engine.rows(scope, Jsonb({"max_concurrent": 1}))
    engine.claim(engine.worker("web.get"), 1, ["web.get"])
    data = explain(engine, waiting)
    assert data["lane"] == "web.get a"
    assert (data["slots"]["limit"], data["slots"]["source"], data["slots"]["origin"]) == (1, *source)
    assert (data["slots"]["until"] is not None) == (source[0] == "override")
    assert re.search(rf"The limit \(max_concurrent = 1\) .*{said}", data["why"])


def test_a_lowered_limit_is_told(engine: Engine) -> None:
    engine.policy(max_concurrent=3)
    ids = engine.fill(4)
    engine.claim(engine.worker(), 3)
    engine.policy(max_concurrent=2)
    data = explain(engine, ids[3])
    assert data["reasons"] == ["slots"]
    assert "3 of its lane are active, more than the 2 that the limit allows now" in data["why"]


# What stands for a slot


def slot(engine: Engine, holder: int) -> tuple[int, str]:
    [(id_, state)] = engine.rows("select id, state from pgfifo.slot_enter(%s, 1, 'deploy')", holder)
    return id_, state


def test_a_slot_is_waited_for_by_a_program_and_needs_no_worker(engine: Engine) -> None:
    start = "select pgfifo.worker_start('cron', 'there', 7, '{}', 1, '1 hour', false, 'slot')"
    engine.policy()
    first, second = engine.one(start), engine.one(start)
    (held, state), (waiting, _) = slot(engine, first), slot(engine, second)
    assert state == "running"
    data = explain(engine, waiting)
    assert data["reasons"] == ["slots"]
    assert f"a program waits for: program {second} (cron, pid 7 on there)." in data["why"]
    assert re.search(
        rf"execution {held}, running since .* on program {first} \(cron, pid 7 on there\)", data["why"]
    )
    assert reasons(engine, held) == []
    behind = engine.enqueue()
    assert reasons(engine, behind) == ["no_worker", "ahead", "slots"], "programs that hold slots serve nobody"
    engine.one("select pgfifo.pause('deploy')")
    engine.one("select pgfifo.slot_leave(%s, %s)", first, held)
    engine.resume()
    assert reasons(engine, waiting) == ["next"]
    engine.advance("2 hours")
    assert reasons(engine, waiting) == ["lease"]
    assert "(overdue: it was last heard of" in explain(engine, waiting)["why"]


def test_a_slot_waits_for_a_worker_where_what_is_before_it_does(engine: Engine) -> None:
    start = "select pgfifo.worker_start('cron', 'there', 7, '{}', 1, '1 hour', false, 'slot')"
    before = engine.enqueue()
    waiting, _ = slot(engine, engine.one(start))
    data = explain(engine, waiting)
    assert data["reasons"] == ["no_worker", "ahead"]
    assert "What is before it needs a worker, and no living one serves deploy." in data["why"]
    worker = engine.worker()
    assert reasons(engine, waiting) == ["ahead", "next"]
    [begun] = engine.claim(worker)
    assert begun.id == before
    engine.finish(begun, "failed")
    assert reasons(engine, waiting) == ["slots"]
    engine.one("select pgfifo.worker_stop(%s)", worker)
    assert reasons(engine, waiting) == ["no_worker", "slots"], "who would try again what holds the slot?"
    engine.cancel(before)
    assert reasons(engine, waiting) == ["next"]


# Nobody runs it


def test_no_worker_serves_its_action(engine: Engine) -> None:
    id_ = engine.enqueue()
    engine.enqueue("other")
    engine.worker("other")
    data = explain(engine, id_)
    assert data["reasons"] == ["no_worker"]
    assert "No living worker serves deploy." in data["why"]
    worker = engine.worker("other", "deploy")
    assert reasons(engine, id_) == ["next"]
    engine.one("select pgfifo.worker_stop(%s)", worker)
    data = explain(engine, id_)
    assert data["reasons"] == ["no_worker"]
    assert f"the last one, worker {worker} (test, pid 1 on here), was last heard of at" in data["why"]


def test_workers_that_are_silent_for_longer_than_their_lease_are_not_counted(engine: Engine) -> None:
    """Nobody is there who could declare them dead."""
    id_ = engine.enqueue()
    worker = engine.worker(lease="30 s")
    engine.advance("31 s")
    data = explain(engine, id_)
    assert data["reasons"] == ["no_worker"]
    assert data["workers"] == {"alive": 0, "busy": 0, "capacity": 0, "silent": 1}
    engine.heartbeat(worker)
    assert reasons(engine, id_) == ["next"]


def test_workers_that_are_full_are_told(engine: Engine) -> None:
    engine.policy()
    engine.enqueue("other")
    worker = engine.worker("deploy", "other", concurrency=1)
    engine.claim(worker, 1, ["other"])
    data = explain(engine, engine.enqueue())
    assert data["reasons"] == ["workers_busy"]
    assert "they run 1 of at most 1" in data["why"]


def test_what_a_dead_worker_has_is_overdue(engine: Engine) -> None:
    running, waiting = engine.fill(2)
    engine.claim(engine.worker(lease="3 s"))
    engine.advance("4 s")
    data = explain(engine, running)
    assert (data["state"], data["reasons"]) == ("running", ["lease"])
    assert "its lease is 3s" in data["run"]["overdue"]
    other = engine.worker()
    assert reasons(engine, waiting) == ["slots", "lease"]
    for _ in range(10):
        engine.advance("1 s")
        engine.heartbeat(other)
        if engine.maintain().get("dead"):
            break
    assert "was declared dead" in explain(engine, running)["run"]["overdue"]
    engine.tick(2)
    assert explain(engine, running)["state"] == "held"
    assert "was lost with its worker" in explain(engine, running)["explanation"]


# Somebody's decision


def test_paused_by_whom_since_when_and_why(engine: Engine) -> None:
    id_ = engine.enqueue(group="a")
    engine.worker()
    engine.one("select pgfifo.pause('deploy', null, 'a migration')")
    data = explain(engine, id_)
    assert data["reasons"] == ["paused"]
    [pause] = data["paused"]
    assert sorted(pause) == ["by", "execution", "reason", "scope", "since"]
    assert (pause["scope"], pause["reason"]) == ("action", "a migration")
    assert re.search(r"The action has been paused since .* by \w+: \"a migration\"\.", data["why"])
    engine.one("select pgfifo.pause('deploy', 'a')")
    data = explain(engine, id_)
    assert [pause["scope"] for pause in data["paused"]] == ["action", "lane"]
    assert data["reasons"] == ["paused"]
    assert "Its lane has been paused since" in data["why"]
    engine.resume()
    engine.resume(group="a")
    assert reasons(engine, id_) == ["next"]


def test_closed_is_told_and_holds_nothing_up(engine: Engine) -> None:
    id_ = engine.enqueue(group="a")
    engine.worker()
    engine.one("select pgfifo.close('deploy', null, 'season is over')")
    engine.one("select pgfifo.close('deploy', 'a')")
    data = explain(engine, id_)
    assert data["reasons"] == ["next"]
    assert [(each["scope"], each["reason"]) for each in data["closed"]] == [
        ("action", "season is over"),
        ("lane", None),
    ]
    assert "what is in it already is not affected" in data["why"]


def test_delayed_until_when(engine: Engine) -> None:
    engine.enqueue()
    engine.worker()
    id_ = engine.enqueue_later("1 hour")
    data = explain(engine, id_)
    assert (data["state"], data["reasons"], data["position"]) == ("delayed", ["delayed"], None)
    assert re.search(r"It joins the end of its line at .* \(in (59m|1h)", data["why"])


def test_what_expires_is_told_when(engine: Engine) -> None:
    engine.policy(max_wait=3600)
    engine.worker()
    first, second = engine.fill(2)
    data = explain(engine, second)
    assert data["expires_at"] is not None
    assert re.search(r"It expires at .* \(in (59m|1h)[^)]*\), unless it is started before\.", data["why"])
    engine.advance("61 min")
    data = explain(engine, first)
    assert (data["state"], data["reasons"], data["expires_at"]) == ("expired", ["finished"], None)
    third = engine.enqueue()
    data = explain(engine, third)
    assert (data["position"], data["ahead"]) == (1, []), "what has expired was counted"


def test_a_backoff_that_is_over_is_none(engine: Engine) -> None:
    engine.policy(backoff_initial=10)
    id_ = engine.enqueue()
    worker = engine.worker(lease="1 hour")
    engine.finish(engine.claim(worker)[0], "failed", "no")
    engine.advance("1 min")
    data = explain(engine, id_)
    assert (data["state"], data["reasons"]) == ("held", ["next"])
    assert "Its backoff has been over since" in data["why"]
    engine.pause()
    assert reasons(engine, id_) == ["paused"]


@pytest.mark.parametrize("mode", ["yield", "tail"])
def test_a_backoff_without_a_slot_is_told_with_the_place_it_comes_back_to(engine: Engine, mode: str) -> None:
    engine.policy(failure_mode=mode, backoff_initial=100)
    first, second = engine.fill(2)
    worker = engine.worker(lease="1 hour")
    engine.finish(engine.claim(worker)[0], "failed", "OSError: gone")
    data = explain(engine, first)
    assert (data["state"], data["reasons"]) == ("delayed", ["backoff"])
    assert re.search(r"is delayed since attempt 1 failed at \d\d:\d\d:\d\d", data["explanation"])
    assert 'The error: "OSError: gone".' in data["why"]
    assert ("from its old place in the line" if mode == "yield" else "from the end of its line") in data[
        "why"
    ]
    assert reasons(engine, second) == ["next"], "it took its slot along"
    engine.advance("150 s")
    assert reasons(engine, first) == (["next"] if mode == "yield" else ["joining"])


def test_what_a_handler_put_off_is_no_failure(engine: Engine) -> None:
    id_ = engine.enqueue()
    worker = engine.worker()
    [start] = engine.claim(worker)
    item = {"id": id_, "attempt": 1, "outcome": "failed", "error": "later", "after": 100, "count": False}
    engine.work(worker, 0, [], [item])
    data = explain(engine, start.id)
    assert data["reasons"] == ["backoff"]
    assert "since attempt 1 put it off" in data["explanation"]


def test_a_lane_that_stopped_by_itself_says_for_what(engine: Engine) -> None:
    engine.policy(on_exhausted="pause", max_attempts=1)
    first, second = engine.fill(2)
    worker = engine.worker()
    engine.finish(engine.claim(worker)[0], "failed", "OSError: gone")
    data = explain(engine, second)
    assert data["reasons"] == ["paused"]
    assert data["paused"][0]["execution"] == first
    assert "by its on_exhausted" in data["why"]
    assert f'"execution {first} failed for good: OSError: gone"' in data["why"]


# Limits over time, and shared ones


def test_a_rate_tells_when_it_allows_the_next_start(engine: Engine) -> None:
    engine.policy(max_concurrent=5, rate="2/h")
    ids = engine.fill(4)
    worker = engine.worker(lease="1 day")
    assert len(engine.claim(worker, 5)) == 2
    data = explain(engine, ids[2])
    assert data["reasons"] == ["rate"]
    [limit] = data["limits"]
    assert sorted(limit) == ["detail", "kind", "until"]
    assert limit["detail"] == {"value": "2/h", "source": "action", "origin": "deploy"}
    assert re.search(
        r"Its lane's rate \(2/h\) allows the next start at .* \(in (29m|30m)[^)]*\);"
        r" it is set for the action deploy\.",
        data["why"],
    )
    assert reasons(engine, ids[3]) == ["ahead", "rate"]
    engine.advance("30 min")
    assert reasons(engine, ids[2]) == ["next"]


@pytest.mark.parametrize("attribute", ["spacing", "gap"])
def test_spacing_and_gap_tell_when_they_allow_the_next_start(engine: Engine, attribute: str) -> None:
    policy: dict[str, Any] = {"max_concurrent": 5, attribute: 90}
    engine.policy(**policy)
    ids = engine.fill(2)
    worker = engine.worker(lease="1 hour")
    engine.hand_in(worker, *engine.claim(worker, 5)[:1])
    second = ids[1]
    if engine.state(second) == "running":
        second = engine.enqueue()
    data = explain(engine, second)
    assert data["reasons"] == [attribute]
    assert re.search(rf"Its lane's {attribute} \(1m 30s\) allows the next start at .* \(in 1m", data["why"])
    engine.advance("90 s")
    assert reasons(engine, second) == ["next"]


def test_a_shared_limit_that_is_exhausted_is_named(engine: Engine) -> None:
    engine.policy("a", max_concurrent=5)
    engine.policy("b", max_concurrent=5)
    engine.one('select pgfifo.set_shared_limit(\'api\', \'{"max_concurrent": 1, "actions": ["a", "b"]}\')')
    one, two, other = engine.enqueue("a"), engine.enqueue("a"), engine.enqueue("b")
    worker = engine.worker("a", "b")
    [start] = engine.claim(worker, 5, ["a", "b"])
    assert start.id == one
    data = explain(engine, two)
    assert data["reasons"] == ["shared_slots"]
    detail = data["limits"][0]["detail"]
    [holder] = detail.pop("holders")
    assert detail == {"name": "api", "limit": 1, "current": 1}
    assert (holder["id"], holder["action"], holder["worker"]) == (
        one,
        "a",
        f"worker {worker} (test, pid 1 on here)",
    )
    said = rf"limit api has no slot free: 1 of 1 are taken, by execution {one} \(a\) since \d\d:.* on worker"
    assert re.search(said, data["why"])
    assert reasons(engine, other) == ["shared_slots"]
    engine.one('select pgfifo.set_shared_limit(\'api\', \'{"max_concurrent": null, "rate": "1/m"}\')')
    engine.hand_in(worker, start)
    engine.claim(worker, 5, ["a", "b"])
    left = two if engine.state(two) == "waiting" else other
    assert reasons(engine, left) in (["shared_rate"], ["shared_turn"])


def test_many_who_exhaust_a_shared_limit_are_counted(engine: Engine) -> None:
    engine.policy("a", max_concurrent=12)
    engine.one('select pgfifo.set_shared_limit(\'api\', \'{"max_concurrent": 12, "actions": ["a"]}\')')
    ids = engine.fill(13, "a", "g")
    engine.claim(engine.worker("a", concurrency=20), 20, ["a"])
    data = explain(engine, ids[-1])
    assert "slots" in data["reasons"]
    assert [each["id"] for each in data["limits"][0]["detail"]["holders"]] == ids[:10]
    assert "12 of 12 are taken, by execution" in data["why"]
    assert "; and 9 more." in data["why"]


# Somebody's open transaction


def test_a_lane_that_an_open_transaction_holds_is_told_with_its_process(
    engine: Engine, connect: Connect
) -> None:
    first, second = engine.fill(2)
    engine.worker()
    other = Engine(connect(autocommit=False, application_name="psql of ann"))
    other.cancel(second)
    data = explain(engine, first)
    assert data["reasons"] == ["locked"]
    [locked] = data["locked"]
    assert (locked["pid"], locked["application"]) == (other.pid, "psql of ann")
    assert f"open transaction holds it: pid {other.pid} (psql of ann), since " in data["why"]
    other.conn.rollback()
    assert reasons(engine, first) == ["next"]


def test_a_change_of_limits_that_is_not_committed_is_told(engine: Engine, connect: Connect) -> None:
    id_ = engine.enqueue()
    engine.worker()
    other = Engine(connect(autocommit=False))
    other.one("select pgfifo.set_default_policy('{\"max_attempts\": 3}')")
    assert reasons(engine, id_) == ["locked"]
    other.conn.rollback()
    assert reasons(engine, id_) == ["next"]


def test_a_prepared_transaction_is_told(engine: Engine, connect: Connect) -> None:
    first, second = engine.fill(2)
    engine.worker()
    other = connect(autocommit=False)
    other.execute("set local pgfifo.notify = off")
    other.execute("select pgfifo.cancel(%s)", [second])
    other.execute("prepare transaction 'forgotten'")
    other.rollback()
    data = explain(engine, first)
    assert data["reasons"] == ["locked"]
    assert "a prepared transaction" in data["why"]
    engine.conn.execute("rollback prepared 'forgotten'")


def test_a_claim_in_flight_is_not_taken_for_somebodys_open_transaction(
    engine: Engine, connect: Connect
) -> None:
    """It holds the slot lock for a moment, and is at work."""
    id_ = engine.enqueue()
    engine.worker()
    other = connect()
    lock = (
        "select pg_advisory_lock('pgfifo.lanes'::regclass::oid::integer, pgfifo._key(id)) from pgfifo.lanes"
    )
    other.execute(lock)  # a session that is idle outside of a transaction
    data = explain(engine, id_)
    assert data["reasons"] == ["next"]
    assert data["locked"] == []


def test_due_and_kept_from_joining_by_a_producers_open_transaction(engine: Engine, connect: Connect) -> None:
    id_ = engine.enqueue_later("10 s")
    engine.worker()
    other = Engine(connect(autocommit=False, application_name="importer"))
    other.enqueue()
    engine.advance("11 s")
    data = explain(engine, id_)
    assert data["reasons"] == ["joining"]
    assert [locked["pid"] for locked in data["locked"]] == [other.pid]
    assert f"keeps others from joining: pid {other.pid} (importer)" in data["why"]
    other.conn.rollback()
    data = explain(engine, id_)
    assert data["reasons"] == ["joining"]
    assert data["locked"] == []
    assert "It has been due to join its line since" in data["why"]


# What runs, and what is over


def test_what_runs_says_how_far_it_is_and_who_wants_it_stopped(engine: Engine) -> None:
    id_ = engine.enqueue()
    engine.claim(engine.worker())
    engine.one("select pgfifo.progress(%s, 1, 0.4, 'uploading')", id_)
    engine.cancel(id_, "wrong file")
    data = explain(engine, id_)
    assert (data["state"], data["reasons"], data["slots"], data["workers"]) == ("running", [], None, None)
    assert "is running: attempt 1, started at" in data["explanation"]
    assert "40 %, uploading." in data["why"]
    assert re.search(r"Somebody asked to cancel it .*: \"wrong file\"", data["why"])
    assert (data["run"]["progress"], data["run"]["message"]) == (0.4, "uploading")
    assert data["run"]["cancel_requested_at"] is not None


def test_what_has_completed_and_still_runs_says_so(engine: Engine) -> None:
    id_ = engine.enqueue()
    engine.claim(engine.worker())
    engine.one("select pgfifo.complete(%s, 1, '7')", id_)
    data = explain(engine, id_)
    assert data["run"]["completed"] is True
    assert "keeps its slot until the handler returns" in data["why"]


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "cancelled", "cancelled unstarted"])
def test_what_is_over_says_how_and_when(engine: Engine, outcome: str) -> None:
    id_ = engine.enqueue()
    if outcome == "cancelled unstarted":
        engine.cancel(id_, "not tonight")
    else:
        start = engine.claim(engine.worker())[0]
        if outcome == "cancelled":
            engine.cancel(id_)
        engine.finish(start, outcome, "OSError: gone" if outcome != "succeeded" else None, retry=False)
    data = explain(engine, id_)
    assert (data["state"], data["reasons"]) == (outcome.split(maxsplit=1)[0], ["finished"])
    assert data["finished_at"] is not None
    assert data["slots"] is None
    verb = {"failed": "failed for good", "succeeded": "succeeded"}.get(outcome, "was cancelled")
    assert f"(deploy) {verb} at " in data["explanation"]
    if outcome == "cancelled unstarted":
        assert 'without having been started. The reason given: "not tonight".' in data["explanation"]
    elif outcome != "succeeded":
        assert 'Its last error: "OSError: gone".' in data["why"]
    else:
        assert data["why"] == ""
        assert ", in attempt 1." in data["explanation"]


def test_what_is_over_can_be_explained_when_its_lane_has_gone(engine: Engine) -> None:
    engine.policy(lane_retention=0)
    id_ = engine.enqueue()
    engine.drain(engine.worker())
    engine.tick(3)
    assert engine.rows("select from pgfifo.lanes") == []
    assert reasons(engine, id_) == ["finished"]


def test_an_execution_that_is_not_there_can_not_be_explained(engine: Engine) -> None:
    with pytest.raises(errors.UnknownExecution):
        explain(engine, 4711)
    with pytest.raises(errors.UnknownExecution):
        engine.one("select pgfifo.explain(null)")


def test_an_execution_that_may_be_in_an_open_transaction_is_said_to_be(
    engine: Engine, connect: Connect
) -> None:
    other = Engine(connect(autocommit=False, application_name="importer"))
    id_ = other.enqueue()
    with pytest.raises(errors.UnknownExecution, match="has not committed yet") as raised:
        explain(engine, id_)
    assert f"pid {other.pid} (importer), since " in (raised.value.hint or "")
    assert raised.value.detail == {"id": id_, "pids": [other.pid]}
    with pytest.raises(errors.UnknownExecution, match="never have been committed"):
        explain(engine, id_ + 1000)
    other.conn.rollback()
    with pytest.raises(errors.UnknownExecution, match="never have been committed"):
        explain(engine, id_)


# Where it works, and what it costs


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_it_only_reads_at_every_isolation_level(engine: Engine, connect: Connect, level: str) -> None:
    engine.policy(backoff_initial=100)
    finished, held, waiting, delayed = *engine.fill(3), engine.enqueue_later("1 hour")
    worker = engine.worker()
    engine.hand_in(worker, *engine.claim(worker))
    engine.finish(engine.claim(worker)[0], "failed", "no")
    other = Engine(connect(autocommit=False))
    other.conn.execute(f"set transaction isolation level {level}, read only".encode())
    found = [explain(other, id_)["state"] for id_ in (finished, held, waiting, delayed)]
    assert found == ["succeeded", "held", "waiting", "delayed"]
    locks = other.rows("select mode from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'")
    assert locks == [], "looking took a lock of pgfifo's"
    assert other.one("select pg_current_xact_id_if_assigned() is null")
    other.conn.rollback()


def test_times_are_told_in_the_sessions_time_zone(engine: Engine) -> None:
    id_ = engine.enqueue()
    engine.conn.execute("set timezone = 'Asia/Kolkata'")
    assert re.search(r"enqueued at \d\d:\d\d:\d\d IST \(", explain(engine, id_)["explanation"])
    engine.advance("3 days")
    assert re.search(r"enqueued at \d{4}-\d\d-\d\d \S+ IST \(3d ago\)", explain(engine, id_)["explanation"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0301, "30ms"),
        (1, "1s"),
        (59.4, "59s"),
        (60, "1m"),
        (252, "4m 12s"),
        (3605, "1h"),
        (3660, "1h 1m"),
        (86400 * 3 + 4000, "3d 1h"),
        (-5, "0s"),
    ],
)
def test_lengths_of_time_are_told_in_two_units(engine: Engine, seconds: float, text: str) -> None:
    assert engine.one("select pgfifo._span(%s)", seconds) == text


def test_flat_cost_of_explaining_does_not_grow_with_what_waits_behind_or_far_ahead(
    conn: Connection, engine: Engine
) -> None:
    """Beyond 10,000 that are ahead, and behind it, nothing is looked at."""
    engine.policy(max_concurrent=2)
    ids = engine.fill(12_000)
    worker = engine.worker()
    for _ in range(3):
        engine.hand_in(worker, *engine.claim(worker, 2))
    engine.claim(worker, 2)

    def cost(id_: int) -> int:
        return min(buffers(conn, f"select * from pgfifo.explain({id_})") for _ in range(7))

    near, far = cost(ids[20]), cost(ids[-1])
    assert near < 1000, near
    assert not explain(engine, ids[-1])["exact"]
    assert explain(engine, ids[-1])["position"] == 10_001
    assert "At least 10,000 are ahead" in explain(engine, ids[-1])["why"]
    engine.fill(30_000)
    last = engine.fill(1)[0]
    assert cost(ids[20]) <= near * 1.2 + 40, "explaining reads what waits behind"
    assert cost(last) <= far * 1.2 + 100, "explaining reads more than the 10,000 that are counted"


# In Python


def test_both_clients_explain(dsn: str, engine: Engine) -> None:
    first, second = engine.fill(2)
    engine.worker()
    with pgfifo.Client(dsn) as fifo:
        found = fifo.explain(second)
        with pytest.raises(pgfifo.UnknownExecution):
            fifo.explain(4711)
    assert (found.id, found.state, found.reasons) == (second, "waiting", ["ahead", "next"])
    assert found.data["ahead"] == [first]
    assert str(found) == found.explanation == found.data["explanation"]

    async def live() -> pgfifo.Explanation:
        async with pgfifo.AsyncClient(dsn) as fifo:
            return await fifo.explain(second)

    assert asyncio.run(live()).reasons == found.reasons


def test_a_wait_in_vain_says_what_explain_says(dsn: str, engine: Engine) -> None:
    id_ = engine.enqueue()
    engine.one("select pgfifo.pause('deploy', null, 'a migration')")
    with pgfifo.Client(dsn) as fifo, pytest.raises(pgfifo.WaitTimeout) as raised:
        fifo.wait(id_, timeout=0.05)
    error = raised.value
    assert re.match(
        rf"execution {id_} \(deploy\) was still waiting after 0.05 s\."
        r" The action has been paused since .*\"a migration\"",
        error.message,
    )
    assert error.reasons == ["paused", "no_worker"]
    assert error.explanation is not None
    assert error.explanation.startswith(f"Execution {id_} (deploy) is waiting")

    async def live() -> list[str] | None:
        async with pgfifo.AsyncClient(dsn) as fifo:
            with pytest.raises(pgfifo.WaitTimeout) as raised:
                await fifo.wait(id_, timeout=0)
            return raised.value.reasons

    assert asyncio.run(live()) == error.reasons


def test_a_wait_in_vain_is_told_all_the_same_where_nothing_can_be_explained(dsn: str, engine: Engine) -> None:
    id_ = engine.enqueue()
    engine.conn.execute("alter function pgfifo.explain rename to explain_for_a_while_gone")
    try:
        with pgfifo.Client(dsn) as fifo, pytest.raises(pgfifo.WaitTimeout) as raised:
            fifo.wait(id_, timeout=0)
    finally:
        engine.conn.execute("alter function pgfifo.explain_for_a_while_gone rename to explain")
    assert raised.value.message == f"execution {id_} (deploy) was still waiting after 0 s"
    assert raised.value.reasons is None
    assert raised.value.explanation is None
