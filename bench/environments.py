"""Where the peers are installed: an environment each, from the registries, in a folder that git ignores."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
NODE = 24
"""The major version of Node, which comes from npm, too: what a machine has may be too old for the peers."""


@dataclass(frozen=True)
class Environment:
    """What is installed together.

    Attributes:
        name: of its folder.
        packages: what is asked for; the newest of it is taken.
        shown: packages whose versions go into reports.
        node: whether from npm, with Node itself; from PyPI otherwise.
    """

    name: str
    packages: tuple[str, ...]
    shown: tuple[str, ...]
    node: bool = False

    @property
    def folder(self) -> Path:
        """Where it is. What is asked for is part of the name: a change makes a new one."""
        asked = hashlib.sha256(" ".join(self.packages).encode()).hexdigest()[:8]
        return CACHE / f"{self.name}-{asked}"

    def command(self, program: str) -> list[str]:
        """How one of the programs of bench/peers is run in it."""
        if self.node:
            return [
                str(self.folder / "node_modules" / ".bin" / "node"),
                str(ROOT / "bench" / "peers" / program),
            ]
        return [str(self.folder / "bin" / "python"), "-m", f"bench.peers.{program}"]

    def variables(self) -> dict[str, str]:
        """What its programs need in their environment."""
        return {"BENCH_MODULES": str(self.folder)} if self.node else {}

    def make(self) -> None:
        """Make it, unless it is there.

        Raises:
            EnvironmentError: a registry or a tool is missing.
        """
        ready = self.folder / "versions.json"
        if ready.exists():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        if self.node:
            _run(["npm", "init", "--yes"], self.folder)
            install = ["npm", "install", "--no-audit", "--no-fund"]
            # Node comes first, and npm runs on it: it takes no package that is too new for what it runs on.
            _run([*install, f"node@{NODE}"], self.folder)
            bin_ = self.folder / "node_modules" / ".bin"
            path = os.pathsep.join([str(bin_), os.environ.get("PATH", os.defpath)])
            _run([*install, *self.packages], self.folder, path)
        else:
            _run([sys.executable, "-m", "venv", str(self.folder)], ROOT)
            pip = [str(self.folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            _run([*pip, "--disable-pip-version-check", *self.packages], ROOT)
        ready.write_text(json.dumps(self._look(), indent=2))

    def versions(self) -> dict[str, str]:
        """What is installed, of what reports show."""
        told = json.loads((self.folder / "versions.json").read_text())
        return {str(name): str(version) for name, version in told.items()}

    def _look(self) -> dict[str, str]:
        if self.node:
            modules = self.folder / "node_modules"
            return {
                name: json.loads((modules / name / "package.json").read_text())["version"]
                for name in self.shown
            }
        ask = (
            "import importlib.metadata as m, json, sys;"
            "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
        )
        told = subprocess.run(
            [str(self.folder / "bin" / "python"), "-c", ask, *self.shown],
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, str] = json.loads(told.stdout)
        return found


def _run(command: Sequence[str], folder: Path, path: str | None = None) -> None:
    variables = os.environ | ({"PATH": path} if path else {})
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=variables)
    except FileNotFoundError as missing:
        raise OSError(f"{command[0]} is needed for this system, and it is not there") from missing
    if done.returncode:
        raise OSError(f"{' '.join(command[:4])} … failed: {done.stderr.strip()[-500:]}")


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("procrastinate", ("procrastinate", "psycopg[binary]"), ("procrastinate", "psycopg")),
        Environment("pgqueuer", ("pgqueuer", "asyncpg"), ("pgqueuer", "asyncpg")),
        Environment("pgmq", ("pgmq", "psycopg[binary]"), ("pgmq", "psycopg")),
        Environment(
            "node",
            ("graphile-worker", "pg-boss", "pg"),
            ("node", "graphile-worker", "pg-boss", "pg"),
            node=True,
        ),
        Environment("dbos", ("dbos",), ("dbos",)),
        Environment("chancy", ("chancy", "psycopg[binary]"), ("chancy",)),
        Environment("absurd", ("absurd-sdk", "absurdctl"), ("absurd-sdk",)),
        Environment("plots", ("matplotlib",), ("matplotlib",)),
    )
}
