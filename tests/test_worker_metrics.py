"""What a worker's process shows: metrics of its attempts, its health, and logs that say whose they are."""

import asyncio
import gc
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest

import pgfifo
from pgfifo import _engine, logs, metrics, probes
from pgfifo.metrics.catalog import WORKER
from tests.support.cli import CommandLine, program
from tests.support.database import wait_for
from tests.test_metrics import Labels, of, samples

Connection = psycopg.Connection[Any]
NOBODY: Labels = frozenset()


@pytest.fixture
def fifo(dsn: str) -> Iterator[pgfifo.Client]:
    with pgfifo.Client(dsn) as client:
        yield client


def drain(dsn: str, actions: pgfifo.Actions) -> dict[tuple[str, Labels], float]:
    """Let a worker work all off; return what it has measured."""
    registry = CollectorRegistry()
    watch = metrics.WorkerMetrics(registry)
    pgfifo.Worker(dsn, actions, until_empty=True, poll_interval=0.05, watch=watch).run()
    return samples(generate_latest(registry))


def test_attempts_are_counted_by_what_became_of_them(dsn: str, fifo: pgfifo.Client) -> None:
    actions = pgfifo.Actions()
    attempts: list[int] = []

    @actions.action("fragile", max_attempts=2, backoff_initial=0.01)
    def fragile(execution: pgfifo.Execution) -> None:
        raise OSError("no route to host")

    @actions.action("patient", backoff_initial=0.01)
    async def patient(execution: pgfifo.Execution) -> None:
        attempts.append(execution.attempt)
        if len(attempts) == 1:
            raise pgfifo.Retry(after=0.01, count=False)

    @actions.action("many", batch=10, failure_mode="tail", max_attempts=1)
    def many(executions: list[pgfifo.Execution]) -> list[object]:
        return [ValueError(execution.id) if execution.payload == 2 else None for execution in executions]

    fifo.declare(actions)
    fifo.enqueue("fragile")
    fifo.enqueue("patient")
    fifo.enqueue_many("many", [1, 2, 3])
    found = drain(dsn, actions)
    ended = {
        (dict(labels)["action"], dict(labels)["outcome"]): value
        for (name, labels), value in found.items()
        if name == "pgfifo_worker_finished_total"
    }
    assert ended == {
        ("fragile", "failed"): 2,
        ("patient", "postponed"): 1,
        ("patient", "succeeded"): 1,
        ("many", "succeeded"): 2,
        ("many", "failed"): 1,
    }
    assert found["pgfifo_worker_started_total", of("fragile")] == 2
    assert found["pgfifo_worker_started_total", of("many")] == 3
    assert found["pgfifo_worker_wait_seconds_count", of("many")] == 3
    assert found["pgfifo_worker_run_seconds_count", of("many")] == 1, "a batch is one run"
    assert found["pgfifo_worker_run_seconds_count", of("patient")] == 2
    assert found["pgfifo_worker_call_seconds_count", NOBODY] > 0
    assert {value for (name, _), value in found.items() if name == "pgfifo_worker_busy"} == {0}
    assert found["pgfifo_worker_concurrency", NOBODY] == 0, "it has ended"


def test_what_runs_now_and_what_is_lost(dsn: str, fifo: pgfifo.Client) -> None:
    actions = pgfifo.Actions()
    go = threading.Event()

    @actions.action("deploy", max_concurrent=5, max_attempts=1)
    def deploy(execution: pgfifo.Execution) -> None:
        go.wait(60)

    registry = CollectorRegistry()
    watch = metrics.WorkerMetrics(registry)
    with pgfifo.Worker(dsn, actions, concurrency=7, watch=watch):
        jobs = [fifo.enqueue("deploy").id for _ in range(2)]

        def busy() -> bool:
            found = samples(generate_latest(registry))
            assert found["pgfifo_worker_concurrency", NOBODY] == 7
            return found.get(("pgfifo_worker_busy", of("deploy"))) == 2

        wait_for(busy, message="both to run")
        fifo.finish_execution(jobs[0], "failed", reason="taken away")
        go.set()
        wait_for(lambda: fifo.execution(jobs[1]).state == "succeeded")
    found = samples(generate_latest(registry))
    assert found["pgfifo_worker_finished_total", of("deploy", outcome="lost")] == 1
    assert found["pgfifo_worker_finished_total", of("deploy", outcome="succeeded")] == 1


def test_a_worker_says_how_it_is(dsn: str, fifo: pgfifo.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "LEAST_PATIENCE", 0.3)
    monkeypatch.setattr(_engine, "_PULSE", 0.02)
    actions = pgfifo.Actions()
    blocked, running, go = threading.Event(), threading.Event(), threading.Event()

    @actions.action("rude")
    async def rude(execution: pgfifo.Execution) -> None:
        blocked.wait(20)  # the whole loop

    @actions.action("long")
    def long(execution: pgfifo.Execution) -> None:
        running.set()
        go.wait(60)

    worker = pgfifo.Worker(dsn, actions, heartbeat=0.1, lease=1)
    assert worker.health == "stopped"
    worker.start()
    try:
        wait_for(lambda: worker.health == "ready")
        fifo.enqueue("rude")
        wait_for(lambda: worker.health == "stuck", message="its loop to be missed")
        blocked.set()
        wait_for(lambda: worker.health == "ready", message="it to go on")
        fifo.enqueue("long")
        assert running.wait(30)
        worker.request_stop()
        wait_for(lambda: worker.health == "live", message="it to be about to stop")
    finally:
        blocked.set()
        go.set()
        assert worker.stop()
    assert worker.health == "stopped"


def test_a_worker_that_the_server_does_not_hear_is_live_and_not_ready(dsn: str) -> None:
    actions = pgfifo.Actions()
    actions.add("deploy", print)
    with pgfifo.Worker(dsn, actions, heartbeat=30, lease=90) as worker:
        wait_for(lambda: worker.health == "ready")
        assert worker._engine is not None
        heart = worker._engine._heartbeat
        heart.heard -= 91
        assert worker.health == "live"
        heart.beat_now()
        wait_for(lambda: worker.health == "ready", message="the next heartbeat")


# Probes


def test_several_processes_are_as_well_as_the_worst_of_them(tmp_path: Path) -> None:
    assert probes.read_health(tmp_path, 2) == "live", "they are about to begin"
    (tmp_path / "1").write_text("ready\n")
    assert probes.read_health(tmp_path, 2) == "live"
    (tmp_path / "2").write_text("ready\n")
    (tmp_path / ".3.draft").write_text("")
    assert probes.read_health(tmp_path, 2) == "ready"
    (tmp_path / "2").write_text("live\n")
    assert probes.read_health(tmp_path, 2) == "live"
    (tmp_path / "2").write_text("stuck\n")
    assert probes.read_health(tmp_path, 2) == "stuck"
    (tmp_path / "2").write_text("ready\n")
    long_ago = time.time() - probes.FRESH - 1
    os.utime(tmp_path / "2", (long_ago, long_ago))
    assert probes.read_health(tmp_path, 2) == "stuck", "a process that is frozen writes nothing"


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def test_the_pages_say_what_the_source_says() -> None:
    state: list[probes.State] = ["ready"]
    with probes.pages("127.0.0.1", 0, probes.health_pages(lambda: state[0])) as port:
        url = f"http://127.0.0.1:{port}"
        assert get(f"{url}/healthz") == (200, "ready\n")
        assert get(f"{url}/readyz?verbose") == (200, "ready\n")
        state[0] = "live"
        assert get(f"{url}/healthz") == (200, "live\n")
        assert get(f"{url}/readyz") == (503, "live\n")
        state[0] = "stuck"
        assert get(f"{url}/healthz") == (503, "stuck\n")
        assert get(f"{url}/metrics") == (404, "There are: /healthz, /readyz\n")
        with pytest.raises(OSError, match="in use"), probes.pages("127.0.0.1", port, {}):
            pass


def test_a_page_that_fails_and_a_client_that_goes_away_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_accept: str) -> tuple[int, str, bytes]:
        raise ValueError("no such page")

    def endless(_accept: str) -> tuple[int, str, bytes]:
        return 200, "text/plain", b"x" * 50_000_000

    with probes.pages("127.0.0.1", 0, {"/broken": broken, "/endless": endless}) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /endless HTTP/1.0\r\n\r\n")
            client.recv(1)
        with pytest.raises(http.client.RemoteDisconnected):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/broken", timeout=30)
        wait_for(lambda: "could not be shown" in caplog.text)
        assert get(f"http://127.0.0.1:{port}/")[0] == 404
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["no such page"]


JOBS = """
    import logging, os, pgfifo

    actions = pgfifo.Actions()

    @actions.action("deploy", group_by=["n"], max_attempts=1)
    def deploy(execution):
        logging.getLogger("jobs").warning("at work", extra={"pid": os.getpid()})
        if execution.payload["n"] == 3:
            raise OSError("no route to host")

    @actions.action("quiet")
    async def quiet(execution):
        assert "PGFIFO_PROBES" not in os.environ
"""

Start = Callable[..., "Program"]


class Program:
    """`pgfifo worker`, whose log is read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def listening(self) -> str:
        """Return the address that it says it listens at."""
        found: list[str] = []

        def said() -> bool:
            found[:] = re.findall(r"listening at (http://[^:]+:\d+)", "".join(self.lines))
            return bool(found)

        wait_for(said, 30, "it to listen")
        return found[0]

    def end(self) -> int:
        """Stop it; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        self._thread.join(30)
        return status


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    (tmp_path / "jobs.py").write_text(textwrap.dedent(JOBS))
    started: list[Program] = []

    def starter(*words: str) -> Program:
        command = [program(), "worker", *words, "--poll", "0.1"]
        env = {**os.environ, "PGFIFO_DSN": dsn, "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
        started.append(Program(process))
        return started[-1]

    yield starter
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
        assert each.process.stderr is not None
        each._thread.join(30)
        each.process.stderr.close()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM is POSIX's")
def test_a_scrape_of_several_processes_is_their_sum(
    start: Start, fifo: pgfifo.Client, tmp_path: Path
) -> None:
    file = tmp_path / "health"
    worker = start(
        "jobs:actions", "--processes", "2", "--metrics-port", "127.0.0.1:0", "--health-file", str(file),
        "--log-format", "json", "--concurrency", "1",
    )  # fmt: skip
    url = worker.listening()
    wait_for(lambda: get(f"{url}/readyz") == (200, "ready\n"), 30, "both to be ready")
    wait_for(lambda: file.read_text() == "ready\n", 30, "the file to say so")
    assert get(f"{url}/healthz") == (200, "ready\n")
    fifo.enqueue_many("deploy", [{"n": n} for n in range(20)])
    fifo.enqueue("quiet")
    wait_for(lambda: sum(each.total_completed for each in fifo.stats()) == 21, 30, "all to be done")

    def scraped() -> dict[tuple[str, Labels], float]:
        return samples(get(f"{url}/metrics")[1].encode())

    done = "pgfifo_worker_finished_total", of("deploy", outcome="succeeded")
    wait_for(lambda: scraped().get(done) == 19, 30, "all to be counted")
    found = scraped()
    assert found["pgfifo_worker_started_total", of("deploy")] == 20
    assert found["pgfifo_worker_run_seconds_count", of("deploy")] == 20
    assert found["pgfifo_worker_finished_total", of("deploy", outcome="failed")] == 1
    assert found["pgfifo_worker_finished_total", of("quiet", outcome="succeeded")] == 1, "".join(worker.lines)
    assert found["pgfifo_worker_concurrency", NOBODY] == 2
    assert found["pgfifo_worker_busy", of("deploy")] == 0
    names = {name for name, _ in found}
    for name, meaning in WORKER.items():
        assert (f"{name}_bucket" if meaning.kind == "histogram" else name) in names
    assert get(f"{url}/metrics", Accept="application/openmetrics-text; version=1.0.0")[1].endswith("# EOF\n")
    assert worker.end() == 0
    assert not file.exists()
    assert not list(tmp_path.glob("pgfifo-*")), "it has left its folder behind"

    told = [json.loads(line) for line in worker.lines]
    at_work = [line for line in told if line["message"] == "at work"]
    assert len(at_work) == 20
    assert len({line["pid"] for line in at_work}) >= 1
    assert {line["pgfifo_group"] for line in at_work} == {f'{{"n":{n}}}' for n in range(20)}
    assert {(line["logger"], line["level"], line["pgfifo_action"]) for line in at_work} == {
        ("jobs", "warning", "deploy")
    }
    [failure] = [line for line in told if "exception" in line]
    assert "no route to host" in failure["exception"]
    assert failure["pgfifo_group"] == '{"n":3}'
    [its_own] = [line for line in at_work if line["pgfifo_group"] == '{"n":3}']
    ids = ("pgfifo_id", "pgfifo_attempt", "pgfifo_worker")
    assert [failure[name] for name in ids] == [its_own[name] for name in ids]
    assert not [line for line in told if line["message"].startswith("listening") and "pgfifo_id" in line]


def test_one_process_serves_what_else_is_registered_too(start: Start, fifo: pgfifo.Client) -> None:
    job = fifo.enqueue("shell")
    worker = start("--metrics-port", "127.0.0.1:0", "--action", "shell", "--", "sh", "-c", "exit 0")
    url = worker.listening()
    fifo.wait(job.id, timeout=20)
    done = "pgfifo_worker_finished_total", of("shell", outcome="succeeded")
    wait_for(lambda: done in samples(get(f"{url}/metrics")[1].encode()), 30, "it to be counted")
    assert ("process_cpu_seconds_total", NOBODY) in samples(get(f"{url}/metrics")[1].encode())
    assert worker.end() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--metrics-port", "x"], "is no port"),
        (["--health-port", "127.0.0.1:99999"], "is no port"),
        (["--health-file", "/nowhere/at/all"], "/nowhere/at/all: No such file"),
        (["--health-port", "203.0.113.1:9"], "cannot be listened at"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    cli = CommandLine(dsn, monkeypatch, capsys)
    answer = cli("worker", "--until-empty", *words, "--action", "x", "--", "true")
    assert answer.code in (1, 2)
    assert said in answer.err


# Logs


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell's command")
def test_what_a_command_prints_moves_no_cursor_in_the_log(dsn: str, fifo: pgfifo.Client) -> None:
    fifo.set_policy("deploy", max_attempts=1)
    fifo.enqueue("deploy")
    words = ["--until-empty", "--action", "deploy", "--shell", "--", r"printf 'bad\033[2Jnews\n' >&2; exit 1"]
    env = {**os.environ, "PGFIFO_DSN": dsn}
    done = subprocess.run(
        [program(), "worker", *words], check=False, env=env, stderr=subprocess.PIPE, text=True, timeout=60
    )
    lines = [line for line in done.stderr.splitlines() if "bad" in line]
    assert "bad\x1b[2Jnews" in lines, "what a command prints is the worker's output as it is"
    [logged] = [line for line in lines if " WARNING " in line]
    assert r"bad\x1b[2Jnews" in logged
    assert "\x1b" not in logged


def record(**extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "app", "levelname": "INFO", "msg": "%s of %d", "args": ("one", 2)})
    vars(made).update(extra)
    return made


def test_a_line_of_json_has_what_the_record_has() -> None:
    line = json.loads(logs.JsonFormatter().format(record(customer=7, when=Path("x"), pgfifo_id=None)))
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "info", "logger": "app", "message": "one of 2", "customer": 7, "when": "x"}


def test_handlers_of_each_kind_log_with_their_ids(dsn: str, fifo: pgfifo.Client) -> None:
    actions = pgfifo.Actions()
    seen: dict[str, logging.LogRecord] = {}

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen[record.getMessage()] = record

    keep = Keep()
    keep.addFilter(logs.ExecutionFilter())
    log = logging.getLogger("app")
    log.addHandler(keep)

    @actions.action("sync")
    def sync(execution: pgfifo.Execution) -> None:
        log.warning("sync")

    @actions.action("async")
    async def coroutine(execution: pgfifo.Execution) -> None:
        await asyncio.gather(asyncio.to_thread(log.warning, "thread"), asyncio.sleep(0))
        log.warning("async", extra={"pgfifo_group": "my own"})

    @actions.action("batch", batch=5)
    def batch(executions: list[pgfifo.Execution]) -> None:
        log.warning("batch")

    fifo.declare(actions)
    jobs = {name: fifo.enqueue(name).id for name in ("sync", "async", "batch")}
    pgfifo.Worker(dsn, actions, until_empty=True).run()
    log.warning("outside")
    log.removeHandler(keep)
    for name, job in (*jobs.items(), ("thread", jobs["async"])):
        assert (seen[name].pgfifo_id, seen[name].pgfifo_attempt) == (job, 1)  # type: ignore[attr-defined]
    assert seen["async"].pgfifo_group == "my own"  # type: ignore[attr-defined]
    assert [getattr(seen["outside"], name) for name in logs.FIELDS] == [None] * len(logs.FIELDS)


def test_what_has_run_needs_no_collector(dsn: str, fifo: pgfifo.Client) -> None:
    """Who is current is kept in the context of the task that the run itself keeps."""
    actions = pgfifo.Actions()
    ran: list[weakref.ref[pgfifo.Execution]] = []

    @actions.action("async")
    async def coroutine(execution: pgfifo.Execution) -> None:
        ran.append(weakref.ref(execution))

    @actions.action("sync")
    def sync(execution: pgfifo.Execution) -> None:
        ran.append(weakref.ref(execution))

    @actions.action("last")
    def last(execution: pgfifo.Execution) -> list[bool]:
        return [each() is None for each in ran]

    for name in actions.names:
        fifo.enqueue(name)
    gc.collect()
    gc.disable()
    try:
        pgfifo.Worker(dsn, actions, until_empty=True, concurrency=1).run()
    finally:
        gc.enable()
    [job] = fifo.executions("last")
    assert job.result == [True, True]
