"""The queue's metrics: the same numbers as the statistics, exposed as Prometheus reads them."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import pgfifo
from pgfifo import metrics
from pgfifo.metrics.catalog import DATABASE, PRODUCER
from tests.support.cli import CommandLine
from tests.support.engine import Engine
from tests.support.sqlworker import buffers

Connection = psycopg.Connection[Any]
Connect = Callable[..., Connection]
Labels = frozenset[tuple[str, str]]


@pytest.fixture
def engine(conn: Connection) -> Engine:
    return Engine(conn)


@pytest.fixture
def cli(dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(dsn, monkeypatch, capsys)


@pytest.fixture
def fifo(dsn: str) -> Iterator[pgfifo.Client]:
    with pgfifo.Client(dsn) as client:
        yield client


def read(fifo: pgfifo.Client, lanes: int = 1000) -> dict[tuple[str, Labels], float]:
    """Return all metrics by name and labels; each is told once."""
    told = fifo.metrics(lanes)
    found = {(each.name, frozenset(each.labels.items())): each.value for each in told}
    assert len(found) == len(told)
    return found


def of(action: str, **labels: str) -> Labels:
    return frozenset({"action": action, **labels}.items())


def samples(exposition: bytes) -> dict[tuple[str, Labels], float]:
    """Return what a scrape would take."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
    }


def assert_agreement(engine: Engine, fifo: pgfifo.Client) -> None:
    """Compare with the views, within one snapshot."""
    with engine.conn.transaction(), pgfifo.Client(engine.conn) as joined:
        engine.conn.execute("set transaction isolation level repeatable read")
        found = read(joined)
        actions, lanes = (
            joined.stats(),
            [lane for each in joined.stats() for lane in joined.lanes(each.action)],
        )
        starts = dict(
            engine.rows(
                "select a.name, sum(g.starts)::bigint + a.past_starts from pgfifo.actions a"
                " left join (pgfifo.lanes l join pgfifo.ledger g on g.lane_id = l.id) on l.action_id = a.id"
                " group by a.id"
            )
        )
    for stats in actions:
        name = stats.action
        expected: dict[str, object] = {
            "queue_length": stats.queue_length,
            "running": stats.running_count,
            "held": stats.held_count,
            "delayed": stats.delayed_count,
            "slots": stats.slots_total,
            "slots_taken": stats.slots_taken,
            "lanes": stats.lanes,
            "paused": stats.paused,
            "paused_lanes": stats.paused_lanes,
            "closed": stats.closed,
            "enqueued_total": stats.total_enqueued,
            "started_total": starts[name] or 0,
        }
        assert {key: found["pgfifo_" + key, of(name)] for key in expected} == expected, name
        for outcome in ("succeeded", "failed", "cancelled", "expired"):
            total = getattr(stats, f"total_{outcome}")
            assert found["pgfifo_finished_total", of(name, outcome=outcome)] == total, (name, outcome)
        waits = found["pgfifo_oldest_wait_seconds", of(name)] > 0
        assert waits == (stats.oldest_enqueued_at is not None), name
    for lane in lanes:
        labels = of(lane.action, group=lane.group_text)
        assert found["pgfifo_lane_queue_length", labels] == lane.queue_length
        assert found["pgfifo_lane_slots", labels] == lane.max_concurrent
        assert found["pgfifo_lane_slots_taken", labels] == lane.slots_taken
        assert found["pgfifo_lane_paused", labels] == lane.paused
        waits = found["pgfifo_lane_oldest_wait_seconds", labels] > 0
        assert waits == (lane.oldest_enqueued_at is not None), lane


def test_metrics_are_the_statistics_in_every_state(engine: Engine, fifo: pgfifo.Client) -> None:
    assert_agreement(engine, fifo)
    engine.policy(max_concurrent=2, backoff="constant", backoff_initial=3600)
    engine.fill(5)
    assert_agreement(engine, fifo)
    engine.policy("batch", max_concurrent=4)
    engine.policy("brief", max_wait=60)
    worker = engine.worker("deploy", "batch", "brief")
    first, second = engine.claim(worker, 2)
    engine.finish(first, "failed")
    engine.release(second)
    engine.enqueue_later("1 hour")
    engine.fill(3, group="other")
    engine.conn.execute(
        "select pgfifo.set_policy('deploy', '{\"max_concurrent\": 7, \"max_queue_length\": 6}', 'other')"
    )
    engine.pause("deploy", "other")
    assert_agreement(engine, fifo)
    engine.fill(3, "brief")
    engine.advance("61 s")
    engine.fill(1, "brief")
    assert read(fifo)["pgfifo_queue_length", of("brief")] == 1, "what has expired does not wait"
    assert_agreement(engine, fifo)
    engine.conn.execute(
        "select pgfifo.override_policy('deploy', '{\"max_concurrent\": 9}', interval '1 hour')"
    )
    assert read(fifo)["pgfifo_slots", of("deploy")] == 18
    assert_agreement(engine, fifo)
    engine.fill(4, "batch")
    engine.work(worker, 4, ["batch"])
    engine.conn.execute("select pgfifo.close('batch')")
    assert_agreement(engine, fifo)


def test_totals_go_on_when_idle_lanes_are_removed(engine: Engine, fifo: pgfifo.Client) -> None:
    engine.policy(lane_retention=10)
    engine.fill(2, group="a")
    engine.drain(engine.worker())
    counters = [name for name, meaning in DATABASE.items() if meaning.kind == "counter"]
    before = {key: value for key, value in read(fifo).items() if key[0] in counters}
    assert before["pgfifo_started_total", of("deploy")] == 2
    engine.advance("11 s")
    engine.tick(2)
    after = read(fifo)
    assert after["pgfifo_lanes", of("deploy")] == 0
    assert {key: after[key] for key in before} == before


def test_what_is_taken_back_from_dead_workers_is_counted(engine: Engine, fifo: pgfifo.Client) -> None:
    engine.policy(max_concurrent=3)
    engine.fill(3)
    dying = engine.worker(lease="2 s")
    engine.claim(dying, 2)
    signing_off = engine.worker()
    engine.claim(signing_off, 1)
    engine.one("select pgfifo.worker_stop(%s)", signing_off)
    assert read(fifo)["pgfifo_rescued_total", of("deploy")] == 0, "one that was given back is not rescued"
    engine.tick(6)
    found = read(fifo)
    assert found["pgfifo_rescued_total", of("deploy")] == 2
    assert found["pgfifo_workers", frozenset({("state", "dead")})] == 1
    assert found["pgfifo_workers", frozenset({("state", "alive")})] == 0


def test_stuck_is_what_could_go_on_and_does_not(engine: Engine, fifo: pgfifo.Client) -> None:
    def stuck() -> float:
        return read(fifo)["pgfifo_stuck_lanes", of("deploy")]

    engine.fill(2)
    assert stuck() == 0
    engine.advance("6 min")
    assert stuck() == 1
    engine.pause()
    assert stuck() == 0, "it is paused"
    engine.resume()
    engine.policy(rate="1/h")
    assert stuck() == 0, "a rate keeps it waiting"
    engine.policy(rate="unlimited")
    assert stuck() == 1
    engine.claim(engine.worker(), 1)
    engine.advance("6 min")
    assert stuck() == 0, "its handler is at work"
    assert read(fifo)["pgfifo_longest_run_seconds", of("deploy")] >= 360


def test_fullness_is_that_of_the_fullest_lane(engine: Engine, fifo: pgfifo.Client) -> None:
    engine.fill(2)
    assert ("pgfifo_fullness", of("deploy")) not in read(fifo), "without a limit nothing is full"
    engine.policy(max_queue_length=10)
    engine.fill(5, group="fuller")
    assert read(fifo)["pgfifo_fullness", of("deploy")] == 0.5
    engine.policy(max_action_queue_length=7)
    assert read(fifo)["pgfifo_fullness", of("deploy")] == 1


def test_workers_that_serve_an_action(engine: Engine, fifo: pgfifo.Client) -> None:
    engine.fill(1)
    assert read(fifo)["pgfifo_serving_workers", of("deploy")] == 0
    engine.policy("other", max_concurrent=1)
    engine.worker("deploy", "other", concurrency=7)
    engine.worker("other")
    found = read(fifo)
    assert found["pgfifo_serving_workers", of("deploy")] == 1
    assert found["pgfifo_worker_slots", frozenset()] == 17


def test_a_transaction_that_stays_open_is_seen(fifo: pgfifo.Client, connect: Connect) -> None:
    long = connect(autocommit=False)
    long.execute("set transaction isolation level repeatable read")
    long.execute("select 1")
    connect().execute("select pg_current_xact_id()")
    found = read(fifo)
    assert found["pgfifo_oldest_snapshot_seconds", frozenset()] > 0
    assert found["pgfifo_oldest_snapshot_xids", frozenset()] >= 1


def test_shared_limits_are_told(engine: Engine, fifo: pgfifo.Client) -> None:
    engine.fill(1)
    fifo.set_shared_limit("api", max_concurrent=3, actions=["deploy"])
    limit = frozenset({("limit", "api")})
    found = read(fifo)
    assert (found["pgfifo_shared_limit_slots", limit], found["pgfifo_shared_limit_active", limit]) == (3, 0)


def test_lanes_are_told_only_when_asked_for_the_longest_first(engine: Engine, fifo: pgfifo.Client) -> None:
    for length in (1, 3, 2):
        engine.fill(length, group=f"{length}")
    assert not [key for key in read(fifo, 0) if key[0].startswith("pgfifo_lane_")]
    groups = {dict(labels)["group"] for name, labels in read(fifo, 2) if name.startswith("pgfifo_lane_")}
    assert groups == {"2", "3"}
    with pytest.raises(pgfifo.InvalidValue, match="between 0 and 1000"):
        fifo.metrics(1001)


def test_a_plan_that_was_made_for_an_empty_queue_does_not_walk_all_lanes_for_each(engine: Engine) -> None:
    engine.fill(1)
    for _ in range(7):  # more often than a plan is made for the values at hand
        engine.rows("select * from pgfifo.metrics(10)")
    lanes = 0
    for _ in range(3):
        groups = [f"{lanes + n}" for n in range(500)]
        engine.enqueue_many("deploy", [{}] * len(groups), groups)
        lanes += len(groups)
    touched = buffers(engine.conn, "select * from pgfifo.metrics(10)")
    assert touched < 1000 + 20 * lanes, f"{touched} pages for {lanes} lanes"


def test_every_metric_is_in_the_catalog_with_its_labels(engine: Engine, fifo: pgfifo.Client) -> None:
    engine.policy(max_queue_length=9)
    engine.fill(1)
    fifo.set_shared_limit("api", max_concurrent=3, actions=["deploy"])
    told = {(each.name, frozenset(each.labels)) for each in fifo.metrics(1)}
    meant = {(name, frozenset(meaning.labels)) for name, meaning in DATABASE.items()}
    assert told <= meant
    # Whether there is an old snapshot is not this test's to say.
    assert {name for name, _ in meant - told} <= {"pgfifo_up", "pgfifo_oldest_snapshot_seconds"}


def test_a_collector_in_a_registry_of_the_users(engine: Engine, fifo: pgfifo.Client) -> None:
    engine.fill(4)
    registry = CollectorRegistry()
    registry.register(metrics.collector(fifo, lanes=1))
    engine.fill(1)
    found = samples(generate_latest(registry))
    assert found["pgfifo_up", frozenset()] == 1
    assert found["pgfifo_queue_length", of("deploy")] == 5, "a scrape reads anew"
    assert found["pgfifo_lane_queue_length", of("deploy", group="")] == 5


def test_a_database_that_does_not_answer_leaves_the_rest_of_the_scrape_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/x?connect_timeout=1"
    registry = CollectorRegistry()
    with pgfifo.Client(nowhere, timeout=1) as fifo:
        registry.register(metrics.collector(fifo))
        assert samples(generate_latest(registry)) == {("pgfifo_up", frozenset()): 0}
    assert "could not be read" in caplog.text


def test_the_page_of_an_application(dsn: str, engine: Engine) -> None:
    engine.fill(2)

    async def page() -> bytes:
        async with pgfifo.AsyncClient(dsn) as fifo:
            registry = CollectorRegistry()
            metrics.instrument(registry)
            try:
                await fifo.enqueue("deploy")
                return await metrics.exposition(fifo, registry=registry)
            finally:
                metrics.uninstrument()

    found = samples(asyncio.run(page()))
    assert found["pgfifo_queue_length", of("deploy")] == 3
    assert found["pgfifo_client_enqueued_total", of("deploy")] == 1


@pytest.fixture
def counted() -> Iterator[CollectorRegistry]:
    registry = CollectorRegistry()
    metrics.instrument(registry)
    yield registry
    metrics.uninstrument()


def test_what_is_enqueued_and_what_is_refused_is_counted_where_it_is_tried(
    engine: Engine, fifo: pgfifo.Client, counted: CollectorRegistry
) -> None:
    metrics.instrument()  # once is enough
    engine.policy(max_queue_length=3)
    fifo.enqueue("deploy", request_id="a")
    fifo.enqueue("deploy", request_id="a")
    fifo.enqueue_many("deploy", ({"n": n} for n in range(2)))
    for _ in range(2):
        with pytest.raises(pgfifo.QueueFull):
            fifo.enqueue("deploy")
    with pytest.raises(pgfifo.InvalidValue):
        fifo.enqueue("no name", {})
    engine.conn.execute("select pgfifo.close('deploy')")
    with pytest.raises(pgfifo.ActionClosed):
        fifo.enqueue_many("deploy", items=[1])
    found = {
        key: value for key, value in samples(generate_latest(counted)).items() if key[0].endswith("_total")
    }
    assert found == {
        ("pgfifo_client_enqueued_total", of("deploy")): 3,
        ("pgfifo_client_rejected_total", of("deploy", reason="queue_full")): 2,
        ("pgfifo_client_rejected_total", of("", reason="invalid_value")): 1,
        ("pgfifo_client_rejected_total", of("deploy", reason="action_closed")): 1,
    }
    assert {name for name, _ in found} == set(PRODUCER)


def test_names_of_actions_do_not_fill_the_memory(
    fifo: pgfifo.Client, counted: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgfifo.metrics.producer._MOST_ACTIONS", 2)
    for name in ("a", "b", "c", "d", "a"):
        fifo.enqueue(name)
    found = samples(generate_latest(counted))
    assert {
        dict(labels)["action"]: value for (name, labels), value in found.items() if name.endswith("_total")
    } == {
        "a": 2,
        "b": 1,
        "(others)": 2,
    }


def test_the_command_prints_what_a_scrape_takes(engine: Engine, dsn: str, cli: CommandLine) -> None:
    engine.fill(2)
    found = samples(cli.ok("metrics", "--lanes", "1").out.encode())
    assert found["pgfifo_queue_length", of("deploy")] == 2
    assert found["pgfifo_lane_queue_length", of("deploy", group="")] == 2
    rows = json.loads(cli.ok("metrics", "--json").out)
    assert {"name": "pgfifo_queue_length", "labels": {"action": "deploy"}, "value": 2.0} in rows
    assert cli("metrics", "--lanes", "1001").code == 2
