"""The program `pgfifo` for pages that call it dozens of times, forked from a process that has imported it.

What people see is the same; only the start is quicker. `tests.support.cli` runs the program as installed.
"""

import array
import io
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from multiprocessing import get_context
from pathlib import Path

from tests.support.database import wait_for

# What stands on PATH: it hands arguments, directory, environment and streams to the process that forks,
# passes signals on, and ends as the command does. Without site-packages, for a start of some milliseconds.
CLIENT = """\
#!{python} -IS
import array, json, os, signal, socket, sys

with socket.socket(socket.AF_UNIX) as there:
    there.connect({address!r})
    asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    streams = array.array("i", [0, 1, 2])
    there.sendmsg([len(asked).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    there.sendall(asked)
    answers = there.makefile("rb")
    process = int(answers.readline())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: os.kill(process, number))
    status = int(answers.readline() or 137)
sys.exit(status)
"""


@contextmanager
def quick_program(folder: Path) -> Iterator[Path]:
    """Make `pgfifo` in a folder for PATH. Its name has to be short: there will be a socket in it."""
    program, address = folder / "pgfifo", folder / "s"
    program.write_text(CLIENT.format(python=sys.executable, address=str(address)), encoding="utf-8")
    program.chmod(0o755)
    # Spawned, not forked: nothing of the tests (threads, connections) is in it.
    process = get_context("spawn").Process(target=_serve, args=[str(address)], daemon=True)
    process.start()
    try:
        wait_for(address.exists, 30, "the process that forks the program")
        yield folder
    finally:
        process.terminate()
        process.join(10)


def _serve(address: str) -> None:
    import rich.console
    import rich.table  # noqa: F401

    from pgfifo.cli import main

    # A command that gets as far as to the database has everything imported that others need.
    with suppress(SystemExit), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        main(["stats", "--dsn", "host=/nowhere dbname=none"])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address + "~")
        listening.listen(20)
        Path(address + "~").rename(address)
        while True:
            there = listening.accept()[0]
            if os.fork() == 0:
                listening.close()
                os._exit(_run(there))
            there.close()


def _run(there: socket.socket) -> int:
    """Be the command that the client has asked for; tell it how that ended."""
    from _pgfifo import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    streams = array.array("i", [0, 0, 0])
    head, [(_, _, sent)], *_ = there.recvmsg(4, socket.CMSG_SPACE(3 * streams.itemsize))
    streams = array.array("i", sent)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # Those that it was born with were made for other files.
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), errors="backslashreplace", line_buffering=True
    )
    with there.makefile("rb") as asked:
        words, folder, environment = json.loads(asked.read(int.from_bytes(head, "big")))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = ["pgfifo", *words]
    there.sendall(b"%d\n" % os.getpid())
    threading.Thread(target=_end_with, args=[there], daemon=True).start()
    status = 1
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else bool(end.code)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        there.sendall(b"%d\n" % status)
    return status


def _end_with(there: socket.socket) -> None:
    """Be killed when the client is."""
    if not there.recv(1):
        os.kill(os.getpid(), signal.SIGKILL)
