"""`pgfifo serve`: a real server, started and stopped as people do, and what it says when it cannot start."""

import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

import pgfifo
from tests.support.cli import CommandLine
from tests.support.database import wait_for
from tests.support.web import TOKEN

Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start(dsn: str) -> Iterator[Start]:
    """Starts servers on a port that is free; all are gone at the end."""
    started: list[subprocess.Popen[str]] = []

    def starter(*words: str, **environ: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgfifo", "serve", "--port", "0", *words],
            env=os.environ | {"PGFIFO_DSN": dsn} | environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stderr is not None
        said = ""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stderr, selectors.EVENT_READ)
            end = time.monotonic() + 30
            while (found := re.search(r"http://\S+:\d+", said)) is None:
                assert selector.select(end - time.monotonic()), f"the server did not start: {said}"
                line = process.stderr.readline()
                assert line, f"the server ended: {said}"
                said += line
        return process, found[0]

    yield starter
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture
def cli(dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    monkeypatch.delenv("PGFIFO_WEB_TOKEN", raising=False)
    return CommandLine(dsn, monkeypatch, capsys)


def test_a_live_page_ends_when_the_server_is_told_to_stop(start: Start) -> None:
    process, url = start("--shutdown-timeout", "10m")
    with httpx.stream("GET", f"{url}/live/", timeout=60) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "retry: 2000"
        process.send_signal(signal.SIGTERM)
        assert list(lines)[-1] == "", "it is not cut off"
    assert process.wait(60) == 0


def test_a_server_answers_until_it_is_told_to_stop(dsn: str, start: Start, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# who may\nann: {TOKEN}\n\n")
    process, url = start(
        "--token-file", str(tokens), "--allow-changes", PGFIFO_WEB_TOKEN="bob:" + TOKEN[::-1]
    )
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        answer = client.get("/healthz")
        assert answer.json() == {"status": "ok"}
        assert "server" not in answer.headers
        assert client.get("/readyz").status_code == 200
        made = client.post("/api/v1/actions/deploy/executions", json={"payload": {"n": 1}})
        assert made.status_code == 201
        closed = client.post("/api/v1/actions/deploy/close")
        assert client.post("/api/v1/actions/deploy/executions", json={}).status_code == 409, closed.text
        metrics = client.get("/metrics").text
        assert "pgfifo_up 1.0" in metrics
        assert 'pgfifo_client_enqueued_total{action="deploy"} 1.0' in metrics
        assert 'pgfifo_client_rejected_total{action="deploy",reason="action_closed"} 1.0' in metrics
        look = client.get(made.headers["location"])
        assert look.json()["data"]["payload"] == {"n": 1}
        told = client.get("/metrics").text
        assert 'pgfifo_queue_length{action="deploy"} 1.0' in told
        assert 'pgfifo_client_enqueued_total{action="deploy"} 1.0' in told, "what comes over HTTP is counted"
        as_bob = {"Authorization": f"Bearer {TOKEN[::-1]}"}
        assert client.get("/api/v1/about", headers=as_bob).json()["data"]["user"] == "bob"
        assert client.get("/api/v1/about", headers={"Authorization": ""}).status_code == 401
        with pgfifo.Client(dsn) as fifo, psycopg.connect(dsn) as conn:
            assert fifo.stats("deploy").queue_length == 1
            [(name,)] = conn.execute(
                "select distinct application_name from pg_stat_activity"
                " where datname = current_database() and application_name ~ 'serve'"
            )
            assert name == "pgfifo serve"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        with pytest.raises(httpx.TransportError):
            client.get("/healthz")


def test_an_interrupt_stops_it_and_lets_a_request_end(dsn: str, start: Start, connect: Any) -> None:
    process, url = start()
    other = connect(autocommit=False)
    other.execute("lock table pgfifo.audit")  # who reads it waits
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as asking, connect() as watching:
        asking.sendall(b"GET /api/v1/audit HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        waits = "select 1 from pg_locks where not granted"
        wait_for(lambda: watching.execute(waits).fetchone(), message="the request to wait")
        process.send_signal(signal.SIGINT)
        wait_for(lambda: not _accepts(host, int(port)), message="the server to accept nobody any more")
        other.rollback()
        answer = b"".join(iter(lambda: asking.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert process.wait(60) == 130


def _accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port)).close()
    except OSError:
        return False
    return True


def test_it_listens_for_other_machines_only_with_a_way_to_know_who_somebody_is(cli: CommandLine) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "queue.example"):
        said = cli("serve", "--host", host, "--port", 0)
        assert said.code == 2, said.err
        assert "nothing says who may use it" in said.err
        assert "--token-file" in said.err


def test_what_keeps_it_from_starting_is_told(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = cli("serve", "--port", port)
        assert (said.code, "Address already in use" in said.err) == (1, True), said.err
        assert f"127.0.0.1:{port}" in said.err
    said = cli("serve", "--port", 0, "--token-file", tmp_path / "missing")
    assert (said.code, "No such file" in said.err) == (1, True), said.err
    tokens = tmp_path / "tokens"
    for content, message in (
        ("\n# none\n", "there is no token in it"),
        ("ann:short\n", "the token of 'ann'"),
        (f"{TOKEN}\n{TOKEN}2\n", "two tokens called 'token'"),
    ):
        tokens.write_text(content)
        said = cli("serve", "--port", 0, "--token-file", tokens)
        assert (said.code, message in said.err) == (2, True), said.err
        assert "a-token" not in said.err
    tokens.write_bytes(b"\xff\xfe")
    assert "it is not text" in cli("serve", "--token-file", tokens).err
    said = cli("serve", "--port", 0, "--root-path", "queue")
    assert (said.code, "does not look like /queue" in said.err) == (2, True)
    said = cli("serve", "--port", 0, "--proxy-header", "X-User", "--trusted-proxy", "proxy")
    assert (said.code, "no address and no network" in said.err) == (2, True)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        cli.use(f"postgresql://app:hunter2@127.0.0.1:{unused.getsockname()[1]}/x")
        said = cli("serve", "--port", 0)
        assert (said.code, "hunter2" in said.err) == (3, False), said.err


def test_a_schema_that_does_not_fit_keeps_it_from_starting(
    cli: CommandLine, empty_dsn: str, fresh_dsn: str
) -> None:
    cli.use(empty_dsn)
    said = cli("serve", "--port", 0)
    assert (said.code, "pgfifo install" in said.err) == (4, True), said.err
    cli.use(fresh_dsn)
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        conn.execute("update pgfifo.installation set min_client = 99")
        newer = cli("serve", "--port", 0)
        conn.execute("update pgfifo.installation set min_client = 1, version = 0")
        older = cli("serve", "--port", 0)
    assert (newer.code, "Upgrade the package" in newer.err) == (4, True), newer.err
    assert (older.code, "pgfifo upgrade" in older.err) == (4, True), older.err


def test_without_the_extra_it_says_what_to_install(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in list(sys.modules):
        if module.startswith("pgfifo.web"):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = cli("serve", "--port", 0)
    assert said.code == 1
    assert "serve needs uvicorn, which is not installed" in said.err
    assert "pip install 'pgfifo[web]'" in said.err
    monkeypatch.delitem(sys.modules, "uvicorn")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    said = cli("serve", "--port", 0)
    assert (said.code, "pgfifo[web]" in said.err) == (1, True), said.err
