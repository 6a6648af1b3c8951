"""See it work."""

import time
from typing import Annotated, Literal

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import command
from pgfifo.cli.exits import REFUSED, Refused
from pgfifo.cli.options import SET_UP

_NEXT = (
    ("policy", "set", "deliver", "--group-by", "customer", "--max-concurrent", "1"),
    ("enqueue", "deliver", '{"customer": "acme"}'),
    ("worker", "--action", "deliver", "--until-empty", "--", "cat"),
    ("stats",),
)


@app.command(rich_help_panel=SET_UP)
def demo(
    sabotage: Annotated[
        Literal["order", "slots", "lost"] | None,
        typer.Option("--sabotage", help="Take a safeguard out of the SQL first, and see the verdict notice."),
    ] = None,
    events: Annotated[int, typer.Option("--events", min=200, max=100_000, help="How many events.")] = 2000,
) -> None:
    """See it work, on a PostgreSQL of its own: producers, workers, a kill in the middle, a verdict.

    The verdict compares what producers and handlers wrote down, by one clock, with pgfifo's history. Exit
    code 1 if anything does not hold.
    """
    from pgfifo.demo.screen import Screen
    from pgfifo.demo.story import Scale, run
    from pgfifo.verify.children import BrokenError

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
        screen.say(f"Everything holds, after {time.monotonic() - begin:.0f} s.")
        screen.say("Nothing is left of it: its server and its data are gone.")
        screen.say("To go on, on a database that stays:")
        for words in _NEXT:
            screen.say(f"  {command(*words)}")
        about = command("embedded", "--help")
        screen.say(f"Without --dsn or PGFIFO_DSN these use an embedded PostgreSQL; see: {about}")
        return
    broken = ", ".join(check.name for check in checks if not check.holds)
    screen.say(
        f"This does not hold: {broken}." + (f" (A safeguard was taken out: {sabotage}.)" if sabotage else "")
    )
    raise typer.Exit(REFUSED)
