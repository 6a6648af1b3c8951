"""The command line in tests: in this process, which is quick, or as the installed program."""

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pgfifo.cli import main


@dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        """Everything it said."""
        return self.out + self.err

    @property
    def undo(self) -> list[list[str]]:
        """The commands that it says would undo it, without the program's name."""
        lines = [line.partition("Undo: pgfifo ")[2] for line in self.err.splitlines()]
        return [shlex.split(line) for line in lines if line]


class CommandLine:
    """Runs commands in this process, against one database."""

    def __init__(
        self, dsn: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.use(dsn)

    def use(self, dsn: str | None) -> None:
        """Choose the database by PGFIFO_DSN; None: no variable names one."""
        if dsn is None:
            self._monkeypatch.delenv("PGFIFO_DSN", raising=False)
        else:
            self._monkeypatch.setenv("PGFIFO_DSN", dsn)

    def __call__(self, *words: object, stdin: str | bytes = b"") -> Said:
        """Run a command."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(_Pipe(data)))
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        if counting := sys.modules.get("pgfifo.metrics.producer"):
            counting.uninstrument()  # what a command has begun ends with its process
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        return Said(_code(left.value.code), out, err)

    def ok(self, *words: object, stdin: str | bytes = b"") -> Said:
        """Run a command that must succeed."""
        said = self(*words, stdin=stdin)
        assert said.code == 0, said.all
        return said


class _Pipe(io.BytesIO):
    """Bytes that can be read only once, as from a pipe."""

    def seekable(self) -> bool:
        return False


def _code(code: Any) -> int:
    return 0 if code is None else int(code)


def program() -> str:
    """Return the path of the installed program."""
    return str(Path(sys.executable).with_name("pgfifo"))


def run_program(*words: object, env: Mapping[str, str] | None = None, **options: Any) -> Said:
    """Run the installed program to its end."""
    done = subprocess.run(
        [program(), *map(str, words)],
        env=os.environ | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=options.pop("timeout", 60),
        check=False,
        **options,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Said(done.returncode, done.stdout, done.stderr)


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes that were started for a folder, where the system tells."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found
