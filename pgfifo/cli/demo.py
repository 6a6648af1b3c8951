"""See it work."""

import time
from typing import Annotated, Literal

import typer

from pgfifo.cli.app import app
from pgfifo.cli.exits import REFUSED, Refused
from pgfifo.cli.options import SET_UP

_NEXT = """\
Nothing is left of it: its server and its data are gone. To go on, on a database that stays:
  pgfifo policy set deliver --group-by customer --max-concurrent 1
  pgfifo enqueue deliver '{"customer": "acme"}'
  pgfifo worker --action deliver --until-empty -- cat
  pgfifo stats
Without --dsn or PGFIFO_DSN these use an embedded PostgreSQL; see: pgfifo embedded --help"""


@app.command(rich_help_panel=SET_UP)
def demo(
    sabotage: Annotated[
        Literal["order", "slots", "lost"] | None,
        typer.Option("--sabotage", help="Take a safeguard out of the SQL first, and see the verdict notice."),
    ] = None,
    events: Annotated[int, typer.Option("--events", min=200, max=100_000, help="How many events.")] = 2000,
) -> None:
    """See it work, on a PostgreSQL of its own: producers, workers, a kill in the middle, a verdict.

    The verdict compares what the handlers wrote down, by the server's clock, with pgfifo's history. Exit code
    1 if anything does not hold.
    """
    from pgfifo.demo.screen import Screen
    from pgfifo.demo.story import BrokenError, Scale, run

    begin = time.monotonic()
    screen = Screen()
    try:
        checks = run(screen, Scale(events=events), sabotage)
    except BrokenError as error:
        raise Refused(f"the demo does not work here: {error}") from None
    screen.say("")
    screen.judge(checks)
    screen.say("")
    if all(check.holds for check in checks):
        screen.say(f"Everything holds, after {time.monotonic() - begin:.0f} s.\n{_NEXT}")
        return
    broken = ", ".join(check.name for check in checks if not check.holds)
    screen.say(
        f"This does not hold: {broken}." + (f" (A safeguard was taken out: {sabotage}.)" if sabotage else "")
    )
    raise typer.Exit(REFUSED)
