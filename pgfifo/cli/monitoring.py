"""Print what a monitoring system is to know."""

from dataclasses import asdict
from typing import Annotated

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import connected
from pgfifo.cli.exits import Refused
from pgfifo.cli.options import LOOK, AsJson, Dsn
from pgfifo.cli.output import out, print_json_rows


@app.command(rich_help_panel=LOOK)
def metrics(
    lanes: Annotated[
        int,
        typer.Option(
            "--lanes", metavar="N", min=0, max=1000, help="Tell of the N longest lines besides, lane by lane."
        ),
    ] = 0,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Print the queue's metrics once, as Prometheus reads them; --json needs no prometheus-client."""
    if json:
        with connected(dsn) as fifo:
            print_json_rows(map(asdict, fifo.metrics(lanes)))
        return
    try:
        from pgfifo.metrics.database import text
    except ImportError as error:
        raise Refused(str(error), "Or print them as JSON: --json") from None
    with connected(dsn) as fifo:
        out(text(fifo.metrics(lanes)).decode().rstrip("\n"))
