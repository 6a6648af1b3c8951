"""Run workers, and look at them."""

import logging
import os
import re
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pgfifo.cli.app import app, arguments
from pgfifo.cli.database import address, command, connected, rows
from pgfifo.cli.exits import INTERRUPTED, usage
from pgfifo.cli.loading import load_actions
from pgfifo.cli.options import LOOK, WORK, AsJson, Dsn, duration
from pgfifo.cli.output import count, log_text, note, print_json_rows, print_table, span
from pgfifo.cli.probing import Listening, Probes, listening

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pgfifo.actions import Actions
    from pgfifo.dsn import Dsn as Resolved

_APPLICATION = re.compile(r"[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?")


@app.command(rich_help_panel=WORK)
def worker(
    application: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODULE[:ACTIONS] | -- COMMAND...]",
            help="Where the application's actions are, as myapp.jobs:actions, "
            "or myapp.jobs if it has one registry and no --action is given; "
            "or, with --action, the command that is run for each execution.",
            show_default=False,
        ),
    ] = None,
    action: Annotated[
        list[str] | None,
        typer.Option(
            "--action",
            "-a",
            metavar="ACTION",
            help="The action that the command runs; of an application, only this one. May be repeated.",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        list[str] | None,
        typer.Option(
            "--concurrency",
            "-c",
            metavar="N",
            help="How many run at once; ACTION=N caps one action, and may be repeated. [default: 10]",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", "-p", metavar="N", min=1, help="How many processes to run.")
    ] = 1,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="TEXT", help="What it is called. [default: host:pid]", show_default=False
        ),
    ] = None,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="End when nothing waits or runs any more.")
    ] = False,
    shell: Annotated[
        bool,
        typer.Option("--shell", help="The command is one line of shell, not a program and its arguments."),
    ] = False,
    result: Annotated[
        Literal["json"] | None,
        typer.Option("--result", help="What the command prints is the result.", show_default=False),
    ] = None,
    shutdown_timeout: Annotated[
        float | None,
        duration("--shutdown-timeout", "How long what runs may go on after a stop. [default: 30s]"),
    ] = None,
    kill_after: Annotated[
        float | None,
        duration(
            "--kill-after",
            "From SIGTERM to SIGKILL for a command that is to stop; a policy's wins. [default: 10s]",
        ),
    ] = None,
    poll: Annotated[
        float | None, duration("--poll", "How often to look for work while nothing wakes it. [default: 1s]")
    ] = None,
    heartbeat: Annotated[
        float | None, duration("--heartbeat", "From heartbeat to heartbeat. [default: 5s]")
    ] = None,
    lease: Annotated[
        float | None, duration("--lease", "Without a heartbeat for so long it counts as dead. [default: 30s]")
    ] = None,
    poll_only: Annotated[
        bool, typer.Option("--poll-only", help="Only poll: for a PgBouncer in transaction mode.")
    ] = False,
    listen_dsn: Annotated[
        str | None,
        typer.Option(
            "--listen-dsn",
            metavar="URL",
            help="The same database without the pooler, for notifications and the sign of life.",
            show_default=False,
        ),
    ] = None,
    declare: Annotated[
        bool,
        typer.Option(
            "--declare/--no-declare",
            help="Whether the values in the application's code are written into the database; "
            "without, what is in force there stays. A command declares nothing.",
            show_default=False,
        ),
    ] = True,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option("--log-level", help="What to log, to stderr."),
    ] = "info",
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option("--log-format", help="How to log; as JSON, each line says which execution it is about."),
    ] = "text",
    metrics_port: Annotated[
        Listening | None,
        typer.Option(
            "--metrics-port",
            metavar="[HOST:]PORT",
            help="Where to serve /metrics for Prometheus; one port for all processes.",
            parser=listening,
            show_default=False,
        ),
    ] = None,
    health_port: Annotated[
        Listening | None,
        typer.Option(
            "--health-port",
            metavar="[HOST:]PORT",
            help="Where to serve /healthz and /readyz for probes; may be the same port.",
            parser=listening,
            show_default=False,
        ),
    ] = None,
    health_file: Annotated[
        Path | None,
        typer.Option(
            "--health-file",
            metavar="PATH",
            help="A file that is written each second: ready, live (and not ready), or stuck.",
            show_default=False,
        ),
    ] = None,
    dsn: Dsn = None,
) -> None:
    """Run executions: with an application's handlers, or with a command for each of them.

    A command gets the payload on stdin, and PGFIFO_ID, PGFIFO_ATTEMPT, PGFIFO_TOKEN, PGFIFO_ACTION and
    PGFIFO_GROUP in its environment. Exit status 0 is success, 65 failure without another attempt, 75 and all
    others failure. It may say how far it is: echo 40% uploading >&$PGFIFO_PROGRESS_FD

    What a command prints goes to the worker's stdout, all of it and without a label, unless --result takes
    it; what it says on stderr goes to the worker's stderr, and the end of it is kept when it fails.

    SIGTERM and Ctrl-C stop it: it claims nothing more and finishes what runs. A second Ctrl-C ends it at
    once.

    With --processes, no process is started again: when one dies, killed by the kernel for its memory perhaps,
    the others are stopped as by SIGTERM, and all ends with 1. Have it run by what starts it again, such as
    systemd with Restart=always, or a container's restart policy.
    """
    from pgfifo.processes import SUPERVISED, follow_parent, supervise
    from pgfifo.worker import Worker

    probes = Probes(metrics_port, health_port, health_file)
    probes.prepare()
    words = application or []
    if action and not (len(words) == 1 and _APPLICATION.fullmatch(words[0]) and ":" in words[0]):
        actions = _command(action, words, shell=shell, result=result, kill_after=kill_after)
        declare = False
    else:
        actions = _application(words, action)
        if shell or result or kill_after is not None:
            raise usage(
                "--shell, --result and --kill-after belong to a command", "As in: --action NAME -- COMMAND"
            )
    options: dict[str, Any] = {
        "name": name,
        "concurrency": _concurrency(concurrency, actions),
        "poll_only": poll_only,
        "listen_dsn": listen_dsn,
        "until_empty": until_empty,
        "declare": declare,
    }
    times = {
        "shutdown_timeout": shutdown_timeout,
        "poll_interval": poll,
        "heartbeat": heartbeat,
        "lease": lease,
    }
    options |= {key: value for key, value in times.items() if value is not None}
    _log(log_level, log_format)
    supervised = SUPERVISED in os.environ
    with address(dsn, quiet=supervised) as found:
        if not (supervised or until_empty):
            _tell_paused(found, actions)
        if processes > 1 and not supervised:
            program = [sys.executable, "-m", "pgfifo", *_without_dsn(arguments())]
            # Not on the command lines of others, which everybody on the machine can read.
            secret = {} if dsn is None else {"PGFIFO_DSN": dsn}
            with probes.of_several(processes) as environment:
                raise typer.Exit(supervise(program, processes, {**secret, **environment}))
        runner = Worker(found.conninfo, actions, watch=probes.watch(), **options)
        follow_parent(runner.request_stop)
        with probes.shown(lambda: "live" if runner.health == "stopped" else runner.health):
            runner.run()
    if runner.interrupted and not supervised:
        raise typer.Exit(INTERRUPTED)


def _tell_paused(found: "Resolved", actions: "Actions") -> None:
    """Say so where all that there is to do is paused: else the worker seems to do nothing for no reason."""
    import psycopg

    from pgfifo.client import Client

    query = "select waiting, startable from pgfifo.remaining(%s::text[])"
    # What is wrong with the database, the worker itself tells, or waits for.
    with suppress(psycopg.Error), Client(found, prepare_threshold=None) as fifo:
        [left] = rows(fifo, query, [actions.names])
        if left["waiting"] and not left["startable"]:
            waiting = count(left["waiting"], "execution waits", "executions wait")
            note(f"{waiting}, all of it paused: nothing starts until it is resumed. Why: {command('stats')}")


@app.command(rich_help_panel=LOOK)
def workers(json: AsJson = False, dsn: Dsn = None) -> None:
    """Show the workers: who serves what, since when, and with how many executions."""
    with connected(dsn) as fifo:
        found = fifo.workers()
    if json:
        print_json_rows(map(asdict, found))
        return
    now = datetime.now(UTC)
    lines = [
        {
            "id": each.id,
            "name": each.name,
            "host": each.host,
            "pid": each.pid,
            "state": each.state,
            "executions": each.executions,
            "concurrency": each.concurrency,
            "up": span(max(0.0, (now - each.started_at).total_seconds())),
            "last_seen": span(max(0.0, (now - each.last_seen).total_seconds())) + " ago",
            "actions": each.actions,
        }
        for each in found
    ]
    print_table(lines, "No workers.", wide=["actions"])


def _log(level: str, form: str) -> None:
    """Have everything that is logged go to stderr."""
    if form == "text":
        log_text(level)
        return
    from pgfifo.logs import ExecutionFilter, JsonFormatter

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(ExecutionFilter())
    logging.basicConfig(handlers=[handler], level=level.upper())


def _command(
    names: "Sequence[str]",
    words: "Sequence[str]",
    *,
    shell: bool,
    result: str | None,
    kill_after: float | None,
) -> "Actions":
    """Return actions whose handler is a command."""
    from pgfifo.actions import Actions
    from pgfifo.command import Command

    if not words:
        raise usage("no command to run", "Write it behind two dashes: --action NAME -- COMMAND ARGUMENTS")
    if shell and len(words) != 1:
        raise usage("--shell takes one line of shell", "Put it into quotes: --shell -- 'curl … | jq …'")
    options: dict[str, Any] = {"result": result} | ({} if kill_after is None else {"kill_after": kill_after})
    try:
        handler = Command(words[0] if shell else list(words), **options)
    except NotImplementedError as error:
        raise usage(str(error)) from None
    if problem := handler.problem():
        raise usage(problem)
    actions = Actions()
    for name in dict.fromkeys(names):
        actions.add(name, handler)
    return actions


def _without_dsn(words: "Sequence[str]") -> list[str]:
    """Return the words of a command line without --dsn and its value; what stands behind -- is not ours."""
    rest: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--":
            return [*rest, word, *left]
        if word == "--dsn":
            next(left, None)
        elif not word.startswith("--dsn="):
            rest.append(word)
    return rest


def _application(words: "Sequence[str]", only: "Sequence[str] | None") -> "Actions":
    """Return the actions of an application, all or some."""
    if not words:
        raise usage(
            "nothing to run",
            "Name the application's actions, as myapp.jobs:actions, or a command: --action NAME -- COMMAND",
        )
    if len(words) > 1 or not _APPLICATION.fullmatch(words[0]):
        raise usage(
            f"{' '.join(words)!r} does not say where an application's actions are",
            "Write it as myapp.jobs:actions. A command needs to know its action: --action NAME -- COMMAND",
        )
    sys.path.insert(0, str(Path.cwd()))
    # Processes that this one starts find the application in the same place.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    actions = load_actions(words[0])
    with _named_here():
        return actions.subset(only) if only else actions


@contextmanager
def _named_here() -> "Iterator[None]":
    """Take an action without a handler for a mistake on the command line, not for one in the database."""
    from pgfifo.errors import UnknownAction

    try:
        yield
    except UnknownAction as unknown:
        raise usage(unknown.message, unknown.hint) from None


def _concurrency(given: "Sequence[str] | None", actions: "Actions") -> "int | Mapping[str, int]":
    """Read how many executions may run at once."""
    limits: dict[str, int] = {}
    for text in given or ():
        name, equals, number = text.rpartition("=")
        if not number.isascii() or not number.isdigit() or (equals and not name):
            raise usage(
                f"--concurrency {text!r} is no number", "Write --concurrency 10, or --concurrency index=2."
            )
        if equals:
            with _named_here():
                actions[name]
        limits[name or "*"] = int(number)
    return limits
