"""The benchmark's command line."""

import argparse
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from rich.console import Console

from bench import claims, floors, profile, scenarios
from bench.bench import Bench, Sizes
from bench.ground import Ground, machine, open_ground
from bench.report import Report, as_json, markdown, terminal

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"


def quick(bench: Bench, only: Collection[str]) -> None:
    """Everything, in under two minutes; or only some of it."""
    with bench.ground.database("small") as small, bench.ground.database("big") as big:
        with bench.ground.connect(small) as conn:
            floors.prepare(conn)
        measures: dict[str, Callable[[], None]] = {
            "drain": lambda: scenarios.drain(bench, small),
            "many": lambda: _apart(bench, scenarios.produce_many),
            "produce": lambda: _apart(bench, scenarios.produce_singly),
            "consume": lambda: scenarios.consume_singly(bench, small),
            "claims": lambda: claims.claim_cost(bench, small, big),
        }
        for name, measure in measures.items():
            if name in only or not only:
                bench.step(name)
                measure()
    if "held" in only or not only:
        bench.step("held")
        scenarios.beside_snapshot(bench, bench.sizes.held, rounds=1)
        bench.report.notes.append(
            "The run beside a held snapshot is short here; `python -m bench held` drains 100,000 executions."
        )
    bench.step("done")


def _apart(bench: Bench, measure: Callable[[Bench, str], None]) -> None:
    """Measure in a database that is dropped with what is left in it."""
    with bench.ground.database("apart") as db:
        with bench.ground.connect(db) as conn:
            floors.prepare(conn)
        measure(bench, db)


def held(bench: Bench) -> None:
    """The long run beside a held snapshot, and the same without."""
    bench.step("held")
    scenarios.beside_snapshot(bench, bench.sizes.held, rounds=bench.sizes.rounds)
    bench.step("done")


def run(
    ground: Ground, what: str, sizes: Sizes, console: Console, only: Collection[str] = frozenset()
) -> Report:
    """Make one run and return its report.

    Args:
        ground: the server.
        what: quick or held.
        sizes: how much of everything.
        console: where to say what is being done.
        only: names of scenarios of quick. Defaults to all.
    """
    report = Report(f"python -m bench {what}", machine(ground))
    began = time.perf_counter()
    bench = Bench(ground, report, sizes, console.log)
    if what == "quick":
        quick(bench, only)
    else:
        held(bench)
    report.seconds = time.perf_counter() - began
    return report


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=sys.modules["bench"].__doc__)
    parser.add_argument("what", nargs="?", default="all", choices=["all", "quick", "held", "profile"])
    parser.add_argument(
        "--dsn", help="use this server, in databases made for the run (default: a server of its own)"
    )
    parser.add_argument("--rounds", type=int, help="rounds of each comparison (default: 3; 1 for `held`)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="where results go (default: docs/benchmarks)"
    )
    parser.add_argument(
        "--only", default="", help="scenarios of `quick`, as drain,many; nothing is written then"
    )
    parser.add_argument("--note", help="what a reader must know about this run; goes into the report")
    parser.add_argument("--calls", type=int, default=500, help="calls that `profile` looks at (default: 500)")
    parser.add_argument("--least", type=float, default=5, help="what `profile` leaves out (µs; default: 5)")
    arguments = parser.parse_args()
    errors, console = Console(stderr=True), Console()
    if arguments.what == "profile":
        with open_ground(arguments.dsn) as ground:
            profile.run(ground, arguments.calls, arguments.least, console)
        return
    only = {name for name in arguments.only.split(",") if name}
    for what in ["quick", "held"] if arguments.what == "all" else [arguments.what]:
        sizes = Sizes(rounds=arguments.rounds or 3)
        if what == "held":
            sizes = Sizes(rounds=arguments.rounds or 1, held=100_000)
        with open_ground(arguments.dsn) as ground:
            report = run(ground, what, sizes, errors, only)
        if arguments.note:
            report.notes.append(arguments.note)
        console.print(terminal(report))
        if only:
            continue
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"{what}.md").write_text(markdown(report))
        (arguments.out / f"{what}.json").write_text(as_json(report))
        errors.print(f"{report.seconds:.0f} s; written to {arguments.out}/{what}.md and .json")
        missed = [f"{row.scenario}: {row.system}" for row in report.rows if row.met is False]
        if missed:
            errors.print("missed: " + "; ".join(missed), style="red")


if __name__ == "__main__":
    main()
