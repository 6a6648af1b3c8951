"""The soak's command line."""

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console

import bench.soak
from bench.environments import ROOT
from bench.ground import open_ground
from bench.soak.report import plot, write
from bench.soak.run import Settings, soak
from pgfifo import durations

RESULTS = ROOT / "docs" / "benchmarks" / "soak"


def main() -> None:
    """Soak, write the report, and end with 1 if something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=bench.soak.__doc__)
    parser.add_argument("--dsn", help="use this server, in a database made for the run (default: its own)")
    parser.add_argument("--duration", default="30m", help="how long there is load (default: 30m)")
    parser.add_argument(
        "--rate", type=float, default=8, help="calls of each of its two producers a second (default: 8)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: docs/benchmarks/soak")
    parser.add_argument("--note", action="append", default=[], help="what a reader must know about this run")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    settings = Settings.lasting(durations.seconds(arguments.duration), arguments.rate)
    # A server as it comes, as far as checkpoints go.
    with open_ground(arguments.dsn, {"max_wal_size": "1GB", "checkpoint_timeout": "5min"}) as ground:
        result = soak(ground, settings, console.log)
    write(result, arguments.out, arguments.note)
    try:
        plot(arguments.out)
    except (OSError, subprocess.CalledProcessError) as error:
        console.print(f"There is no figure: {error}", style="red")
    for each in result.verdicts:
        console.print(f"{each.said:9} {each.name}: {each.seen}", highlight=False)
    console.print(f"{result.seconds:.0f} s; written to {arguments.out}")
    sys.exit(0 if result.held else 1)


if __name__ == "__main__":
    main()
