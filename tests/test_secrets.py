"""Passwords in DSNs: in no message, log, repr, process list, or environment of a handler's program."""

import logging
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import pgfifo
from pgfifo.embedded import PrivateServer
from tests.support.cli import CommandLine, program
from tests.support.database import wait_for

SECRET = "s3cr3t-of-bob"


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port where a server asks for a password, reads it, and says that it is wrong, quoting it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    conn, _ = server.accept()
                except OSError:
                    return
                with conn:
                    said = conn.recv(4096)
                    if said[4:8] == b"\x04\xd2\x16\x2f":  # wants TLS
                        conn.sendall(b"N")
                        conn.recv(4096)
                    conn.sendall(b"R\0\0\0\x08\0\0\0\x03")  # a password in clear text, please
                    conn.recv(4096)
                    text = b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "bob"\0\0'
                    conn.sendall(b"E" + (len(text) + 4).to_bytes(4, "big") + text)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@pytest.fixture
def troubled(
    refusing: int, server: PrivateServer, empty_dsn: str, fresh_dsn: str, tmp_path: Path
) -> dict[str, str]:
    """DSNs with a password that lead into trouble of each kind."""
    with psycopg.connect(fresh_dsn, autocommit=True) as conn:
        conn.execute("update pgfifo.installation set min_client = 99")
    key = tmp_path / "key"
    return {
        "no server": f"postgresql://bob:{SECRET}@127.0.0.1:1/app",
        "no host": f"postgresql://bob:{SECRET}@no-such-host.invalid/app",
        "no socket": f"host={tmp_path} user=bob password={SECRET} dbname=app",
        "wrong password": f"postgresql://bob:{SECRET}@127.0.0.1:{refusing}/app?sslmode=disable",
        "no such database": make_conninfo(server.dsn("nowhere"), password=SECRET),
        "no such role": make_conninfo(server.dsn(), user="nobody-here", password=SECRET),
        "no schema": make_conninfo(empty_dsn, password=SECRET),
        "schema too new": make_conninfo(fresh_dsn, password=SECRET),
        "TLS that is not there": make_conninfo(
            server.dsn(), password=SECRET, sslmode="require", host="127.0.0.1"
        ),
        "a key that is not there": f"postgresql://bob@127.0.0.1:1/app?sslpassword={SECRET}&sslkey={key}",
        "no such option": f"postgresql://bob:{SECRET}@127.0.0.1/app?nonsense=1",
        "no such port": f"postgresql://bob:{SECRET}@127.0.0.1:nonsense/app",
        "two at signs": f"postgresql://bob:x@{SECRET}@127.0.0.1/app",
        "several hosts": f"postgresql://bob:{SECRET}@127.0.0.1:1,127.0.0.1:2/app",
        "no such service": f"service=nowhere password={SECRET}",
    }


def test_secrets_no_command_says_the_password_whatever_goes_wrong(
    troubled: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = CommandLine(None, monkeypatch, capsys)
    commands = [
        ["stats"],
        ["enqueue", "deploy", "{}"],
        ["list", "--json"],
        ["install"],
        ["worker", "--action", "deploy", "--", "true"],
        ["run", "deploy", "--", "true"],
        ["roles", "list"],
        ["policy", "set", "deploy", "--max-concurrent", "2"],
    ]
    for trouble, dsn in troubled.items():
        for number, command in enumerate(commands):
            if trouble == "no schema" and command[0] == "install":
                continue
            if number % 2:
                monkeypatch.setenv("PGFIFO_DSN", dsn)
                said = cli(*command)
            else:
                monkeypatch.delenv("PGFIFO_DSN", raising=False)
                said = cli(command[0], "--dsn", dsn, *command[1:])
            assert said.code in (1, 2, 3, 4) or trouble == "schema too new", (trouble, command)
            assert SECRET not in said.all, (trouble, command)


def test_secrets_no_error_log_or_repr_of_the_package_says_the_password(
    troubled: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    actions = pgfifo.Actions()
    actions.add("deploy", print)
    for trouble, dsn in troubled.items():
        calls: list[Callable[[], object]] = [
            lambda dsn=dsn: pgfifo.Client(dsn).stats(),  # type: ignore[misc]
            lambda dsn=dsn: pgfifo.Client(dsn).enqueue("deploy"),  # type: ignore[misc]
            lambda dsn=dsn: pgfifo.Worker(dsn, actions, until_empty=True).run(),  # type: ignore[misc]
            lambda dsn=dsn: pgfifo.Client(dsn).slot("deploy").__enter__(),  # type: ignore[misc]
        ]
        for call in calls:
            with pytest.raises(psycopg.Error) as caught:
                call()
            # Everything that a log would show of it, without the values of variables.
            shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.args)
            shown += repr(getattr(caught.value, "detail", "")) + repr(getattr(caught.value, "hint", ""))
            assert SECRET not in shown, trouble
    good = make_conninfo("host=127.0.0.1 port=1 user=bob", password=SECRET)
    with pgfifo.Client(good) as fifo:
        worker = pgfifo.Worker(good, actions)
        assert SECRET not in f"{fifo!r} {fifo} {fifo.slot('deploy')!r} {worker!r} {worker} {actions!r}"
    assert SECRET not in caplog.text


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc to look into")
@pytest.mark.parametrize("typed", [False, True], ids=["PGFIFO_DSN", "--dsn"])
def test_secrets_are_in_no_process_that_a_worker_starts(dsn: str, tmp_path: Path, typed: bool) -> None:
    """Everybody on the machine can read command lines; environments only their user.

    What somebody has typed is on his own command line, and on no other.
    """
    with pgfifo.Client(dsn) as fifo:
        fifo.enqueue("deploy", {"n": 1})
    look = tmp_path / "look.py"
    look.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "pid, shown = os.getpid(), [repr(dict(os.environ))]\n"
        "while pid > 1 and pid != int(sys.argv[1]):\n"
        "    shown.append(Path(f'/proc/{pid}/cmdline').read_bytes().decode())\n"
        "    status = Path(f'/proc/{pid}/status').read_text()\n"
        "    pid = int(status.split('PPid:')[1].split()[0])\n"
        "Path(sys.argv[2]).write_text(chr(10).join(shown))\n"
    )
    seen = tmp_path / "seen"
    address = make_conninfo(dsn, password=SECRET)
    words = [program(), "worker", "--action", "deploy", *(["--dsn", address] if typed else [])]
    words += [
        "--until-empty",
        "--processes",
        "2",
        "--",
        sys.executable,
        str(look),
        str(os.getpid()),
        str(seen),
    ]
    env = {**os.environ, **({} if typed else {"PGFIFO_DSN": address})}
    ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    wait_for(seen.exists, message="the command to look")
    text = seen.read_text()
    assert "pgfifo" in text
    assert text.count(SECRET) == typed
    assert SECRET not in ended.stdout + ended.stderr


def test_secrets_are_not_in_the_database_either(dsn: str) -> None:
    """Neither what a worker says of itself nor what the server shows of its sessions and statements."""
    actions = pgfifo.Actions()
    shown: list[str] = []

    def look(_: pgfifo.Execution) -> None:
        with psycopg.connect(dsn) as conn:
            for query in (
                "select a::text from pg_stat_activity a",
                "select w::text from pgfifo.workers w",
                "select w::text from pgfifo._workers w",
                "select a::text from pgfifo.audit a",
            ):
                shown.extend(row for (row,) in conn.execute(query.encode()))

    actions.add("deploy", look)
    secret = make_conninfo(dsn, password=SECRET)
    with pgfifo.Client(secret) as fifo:
        fifo.enqueue("deploy")
        fifo.pause("deploy")
        fifo.resume("deploy")
        pgfifo.Worker(secret, actions, until_empty=True).run()
    assert shown
    assert SECRET not in "".join(shown)
