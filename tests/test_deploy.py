"""docs/deploy: the files for Docker, systemd and Kubernetes, by the tools that read such files."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from pgfifo.cli.app import app, load

DEPLOY = Path(__file__).resolve().parent.parent / "docs/deploy"
UNIT = (DEPLOY / "pgfifo-worker.service").read_text(encoding="utf-8")
MANIFESTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
)
SPARE = 10 + 5
"""Seconds beyond the shutdown timeout: kill-after, and some to end in."""


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not there")
    return found


def run(*words: object) -> None:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def manifest(kind: str, name: str) -> dict[str, Any]:
    [found] = [each for each in MANIFESTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def container(kind: str, name: str) -> dict[str, Any]:
    [only] = manifest(kind, name)["spec"]["template"]["spec"]["containers"]
    return dict(only)


def seconds(text: str) -> int:
    found = re.fullmatch(r"(\d+)(s|m)", text)
    assert found
    return int(found[1]) * {"s": 1, "m": 60}[found[2]]


def understood(words: list[str]) -> None:
    """Parse a command line of the program's without running it."""
    load()
    command = typer.main.get_command(app)
    with command.make_context("pgfifo", list(words)) as context:
        name, sub, rest = command.resolve_command(context, list(words))  # type: ignore[attr-defined]
        assert sub is not None, words
        sub.make_context(name, rest, parent=context)


def test_the_dockerfile_has_no_faults() -> None:
    run(tool("hadolint"), DEPLOY / "Dockerfile")


def test_the_unit_is_one_for_systemd(tmp_path: Path) -> None:
    unit = tmp_path / "pgfifo-worker.service"
    program = Path(sys.executable).with_name("pgfifo")  # systemd looks whether it can be run
    unit.write_text(UNIT.replace("/srv/myapp/venv/bin/pgfifo", str(program)), encoding="utf-8")
    run(tool("systemd-analyze"), "verify", "--man=no", unit)


def test_the_manifests_fit_the_schemas_of_kubernetes() -> None:
    run(tool("kubernetes-validate"), "--strict", "--quiet", "--no-warn", DEPLOY / "kubernetes.yaml")


def test_the_commands_in_the_files_are_understood() -> None:
    [start] = re.findall(r"^ExecStart=\S+/pgfifo (.+)$", UNIT, re.MULTILINE)
    [by_docker] = re.findall(r"^CMD (\[.+\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    for words in (
        start.split(),
        json.loads(by_docker),
        container("Deployment", "pgfifo-worker")["args"],
        container("Deployment", "pgfifo-web")["args"],
        container("Job", "pgfifo-upgrade-0-1-0")["args"],
    ):
        understood(words)


def test_who_stops_a_worker_waits_for_longer_than_it_takes() -> None:
    [stop] = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    [timeout] = re.findall(r"--shutdown-timeout (\w+)", UNIT)
    assert int(stop) >= seconds(timeout) + SPARE
    grace = manifest("Deployment", "pgfifo-worker")["spec"]["template"]["spec"][
        "terminationGracePeriodSeconds"
    ]
    [timeout] = [
        word.partition("=")[2]
        for word in container("Deployment", "pgfifo-worker")["args"]
        if word.startswith("--shutdown-timeout=")
    ]
    assert grace >= seconds(timeout) + SPARE


def test_probes_ask_the_port_that_the_worker_serves() -> None:
    worker = container("Deployment", "pgfifo-worker")
    assert f"--health-port={worker['ports'][0]['containerPort']}" in worker["args"]
    asked = {name: worker[name]["httpGet"]["path"] for name in worker if name.endswith("Probe")}
    assert asked == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    for name in asked:
        assert worker[name]["httpGet"]["port"] == worker["ports"][0]["name"]
