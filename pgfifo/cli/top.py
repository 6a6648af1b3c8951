"""The live view for a terminal."""

import os
import sys
from typing import Annotated

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import address, command
from pgfifo.cli.exits import Refused, usage
from pgfifo.cli.options import LOOK, Dsn, duration, seconds

_SELDOM = 2.0
"""Seconds between two reads, at the least."""


def _every(text: str) -> float:
    """Read how often to read."""
    found = seconds(text)
    if found < _SELDOM:
        raise typer.BadParameter(f"It must be {_SELDOM:g}s or longer: each read adds all lanes up.")
    return found


def _is_terminal() -> bool:
    """Tell whether there is a terminal to draw on."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


@app.command(rich_help_panel=LOOK)
def top(
    every: Annotated[
        float, duration("--every", "How often to look, 2s at least. [default: 2s]", _every)
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", hidden=True)] = False,
    json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
    dsn: Dsn = None,
) -> None:
    """Watch the queue live, and pause, cancel, retry or change limits by a key.

    Actions and lanes by depth, a lane's line in order, workers and what they run.

    For a terminal, 80x24 or larger; ? shows the keys. For one look, or for a script, there is `stats`.
    """
    for_scripts = f"For one look: {command('stats')}; for a script: {command('stats', '--json')}."
    if once or json:
        raise usage(f"top has no {'--once' if once else '--json'}: it is a live view", for_scripts)
    if not _is_terminal():
        raise Refused("top needs a terminal, and this is none", for_scripts)
    try:
        from pgfifo.top import Top
    except ModuleNotFoundError as missing:
        if missing.name is not None and missing.name.startswith("pgfifo"):
            raise
        raise Refused(
            f"top needs {missing.name}, which is not installed", "pip install 'pgfifo[top]'"
        ) from None
    from pgfifo.cli.database import check_schema
    from pgfifo.client import Client

    with address(dsn) as found:
        # What is wrong with the address, the schema or the rights is said before the screen is taken.
        with Client(found, prepare_threshold=None) as fifo:
            check_schema(fifo)
            fifo.overview()
        live = Top(found, every)
        live.run()
    raise typer.Exit(live.return_code or 0)
