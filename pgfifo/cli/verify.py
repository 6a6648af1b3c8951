"""Prove the promises on one's own set-up."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgfifo.cli.app import app
from pgfifo.cli.database import address
from pgfifo.cli.exits import REFUSED, Refused, usage
from pgfifo.cli.options import SET_UP, AsJson, Dsn, duration, some_seconds
from pgfifo.cli.output import note, out, paint, print_json
from pgfifo.cli.schema import confirm

if TYPE_CHECKING:
    from pgfifo.verify.run import Harm, Report

_SHOWN = 10


@app.command(rich_help_panel=SET_UP)
def verify(
    length: Annotated[
        float, duration("--duration", "For how long to enqueue. [default: 60s]", some_seconds)
    ] = 60.0,
    producers: Annotated[
        int, typer.Option("--producers", min=1, max=64, help="How many processes enqueue.")
    ] = 8,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="How many worker processes.")] = 4,
    chaos: Annotated[
        str | None,
        typer.Option(
            "--chaos",
            metavar="KIND,...",
            help="Do harm to its own workers: kill (SIGKILL), pause (stop one until it counts as dead, then "
            "let it go on).",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option("--rate", min=0.1, max=1000, help="Transactions of each producer a second.")
    ] = 20.0,
    lease: Annotated[
        float,
        duration(
            "--lease", "Without a heartbeat for so long a worker counts as dead. [default: 5s]", some_seconds
        ),
    ] = 5.0,
    seed: Annotated[str, typer.Option("--seed", help="The same one makes the same executions.")] = "1",
    journals: Annotated[
        Path | None,
        typer.Option(
            "--journals", metavar="FOLDER", help="Leave what clients wrote down here.", show_default=False
        ),
    ] = None,
    poll_only: Annotated[
        bool, typer.Option("--poll-only", help="Only poll: for a PgBouncer in transaction mode.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before doing harm.")] = False,
    json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Prove order, slots, outcomes, fencing and progress on your own set-up: load, harm, and a verdict.

    Producers, workers and clients write down what they see, with times from one clock; a checker decides from
    that whether the promises held. All of it happens in actions of its own, named pgfifo_verify.…, with
    processes of its own on this machine; afterwards they are gone, also when it is interrupted.

    It adds load to the database. Exit code 1 if a promise did not hold.
    """
    from pgfifo.verify.children import BrokenError
    from pgfifo.verify.run import Settings
    from pgfifo.verify.run import verify as run

    settings = Settings(
        duration=length,
        producers=producers,
        workers=workers,
        chaos=_harms(chaos, workers),
        rate=rate,
        lease=lease,
        seed=seed,
        folder=journals,
        poll_only=poll_only,
    )
    with address(dsn) as found:
        if settings.chaos and not yes:
            confirm(
                f"Start {workers} workers here that run executions of {found}, and "
                f"{' and '.join(sorted(settings.chaos))} some of them again and again?"
            )
        try:
            report = run(found.conninfo, settings, note)
        except BrokenError as error:
            raise Refused(f"the verification does not work here: {error}") from None
    if json:
        print_json(report.as_json())
    else:
        _show(report)
    if not report.held:
        raise typer.Exit(REFUSED)


def _harms(given: str | None, workers: int) -> "frozenset[Harm]":
    """Read what harm is to be done."""
    found: set[Harm] = set()
    for word in (given or "").split(","):
        match word.strip():
            case "kill":
                found.add("kill")
            case "pause":
                found.add("pause")
            case "":
                continue
            case _:
                raise usage(
                    f"--chaos {word.strip()!r} is nothing that is known", "Give kill, pause, or kill,pause."
                )
    if "pause" in found and workers < 2:
        raise usage(
            "--chaos pause needs two workers", "One has to notice that the other is gone: --workers 2"
        )
    if found and os.name != "posix":
        raise usage("--chaos needs a POSIX system")
    return frozenset(found)


def _show(report: "Report") -> None:
    """Print the report for people."""
    done = dict(report.done)
    seconds = done.pop("seconds")
    out(
        f"In {seconds} s: "
        + ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in done.items() if count)
    )
    out("A second: " + ", ".join(f"{value:,.0f} {name}" for name, value in report.rates.items()))
    for check in report.checks:
        mark = paint("BROKEN", "31", sys.stdout)
        if check.holds:
            mark = paint("held", "32", sys.stdout) if check.exercised else "not exercised"
        out(f"{mark}  {check.name}" + (f": {check.seen}" if check.holds else ""))
        for finding in check.findings[:_SHOWN]:
            out(f"    {finding}")
        if len(check.findings) > _SHOWN:
            out(f"    … and {len(check.findings) - _SHOWN:,} more (--json has all)")
    for each in report.notes:
        note(f"Not shown: {each}.")
