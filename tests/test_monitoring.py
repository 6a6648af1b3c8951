"""docs/monitoring: what is asked and alerted on is in a real scrape, and the rules do what they say."""

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry, start_http_server

import pgfifo
from pgfifo import metrics
from pgfifo.cli.app import app, load
from pgfifo.metrics.catalog import DATABASE, PRODUCER, WORKER
from tests.test_docs import read, rows, section
from tests.test_metrics import samples

FOLDER = Path(__file__).parents[1] / "docs" / "monitoring"
NAME = re.compile(r"\bpgfifo_[a-z_]+\b")
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is part of Prometheus (on Debian: apt install prometheus)"
)


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "grafana.json").read_text())
    return found


def expressions() -> list[str]:
    """Return what the dashboard asks, with its variables filled in."""
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    return [each.replace("$__rate_interval", "2m").replace("$action", ".*") for each in asked]


@pytest.fixture
def scraped(dsn: str) -> Iterator[bytes]:
    """What is scraped over HTTP of a process that works, enqueues, and tells of the queue."""
    registry = CollectorRegistry()
    watch = metrics.WorkerMetrics(registry)
    metrics.instrument(registry)
    with pgfifo.Client(dsn) as fifo, psycopg.connect(dsn) as long:
        long.execute("set transaction isolation level repeatable read")
        long.execute("select 1")
        registry.register(metrics.collector(fifo, lanes=5))
        actions = pgfifo.Actions()
        actions.add("deploy", lambda _execution: None, max_queue_length=2)
        fifo.declare(actions)
        fifo.set_shared_limit("api", max_concurrent=3, actions=["deploy"])
        fifo.enqueue("deploy")
        pgfifo.Worker(dsn, actions, until_empty=True, poll_interval=0.05, watch=watch).run()
        fifo.enqueue_many("deploy", [1, 2])
        with pytest.raises(pgfifo.QueueFull):
            fifo.enqueue("deploy")
        server, thread = start_http_server(0, "127.0.0.1", registry)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
                yield answer.read()
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
            metrics.uninstrument()


def test_what_is_asked_and_alerted_on_is_in_a_real_scrape(scraped: bytes) -> None:
    there = {name for name, _ in samples(scraped)}
    catalog = {**DATABASE, **WORKER, **PRODUCER}
    missing = {
        name
        for name, meaning in catalog.items()
        if (f"{name}_bucket" if meaning.kind == "histogram" else name) not in there
    }
    assert missing == set(), "the catalog promises what is not there"
    for text in (
        *expressions(),
        *re.findall(r"expr: (?:\|\n)?((?:.+\n)(?:          .+\n)*)", (FOLDER / "alerts.yml").read_text()),
    ):
        named = set(NAME.findall(text))
        assert named, text
        assert named <= there, text
    assert set(NAME.findall((FOLDER / "alerts_test.yml").read_text())) <= there
    [action] = [each for each in dashboard()["templating"]["list"] if each["name"] == "action"]
    assert set(NAME.findall(action["definition"])) <= there


def test_each_metric_is_explained_and_seen() -> None:
    headings = {"The queue": DATABASE, "Workers": WORKER, "Who enqueues": PRODUCER}
    for heading, catalog in headings.items():
        table = [row for row in rows(section("docs/monitoring.md", heading)) if row[0].startswith("pgfifo_")]
        assert table == [
            [name, each.kind, ", ".join(each.labels), each.text] for name, each in catalog.items()
        ]
    assert set(NAME.findall(read("docs/monitoring.md"))) - {"pgfifo_worker_run_seconds_sum"} - set(
        FIELDS
    ) <= {name for catalog in headings.values() for name in catalog}


FIELDS = ("pgfifo_id", "pgfifo_attempt", "pgfifo_action", "pgfifo_group", "pgfifo_worker")


def test_the_dashboard_is_whole() -> None:
    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]


def test_each_alert_is_explained_and_says_commands_that_exist() -> None:
    text = (FOLDER / "alerts.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", text)
    table = rows(section("docs/monitoring.md", "What to alert on"))
    assert sorted(row[0] for row in table if row[0].startswith("Pgfifo")) == sorted(alerts)
    tried = re.findall(
        r"alertname: (\w+)\n\s+exp_alerts:\s*(?:&\w+)?\n", (FOLDER / "alerts_test.yml").read_text()
    )
    assert set(tried) == set(alerts), "each is seen to fire"
    load()
    commands = {
        command.name or (command.callback.__name__ if command.callback else "")
        for command in app.registered_commands
    }
    said = re.findall(r"`pgfifo (\w+)", text + section("docs/monitoring.md", "What to alert on"))
    assert said
    assert set(said) <= commands


@needs_promtool
@pytest.mark.parametrize(
    "words",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ],
)
def test_promtool_takes_the_files_and_the_rules_do_what_they_say(words: list[str]) -> None:
    done = subprocess.run([str(PROMTOOL), *words], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_can_read_what_the_dashboard_asks(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": each} for n, each in enumerate(expressions())]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    command = [str(PROMTOOL), "check", "rules", "rules.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_finds_nothing_wrong_with_a_real_scrape(scraped: bytes) -> None:
    done = subprocess.run(
        [str(PROMTOOL), "check", "metrics"], input=scraped, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
