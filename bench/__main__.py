"""The benchmark's command line."""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import claims, floors, profile
from bench import scenarios as own
from bench.bench import Bench, Sizes
from bench.cases import cases
from bench.comparison import Comparison
from bench.environments import ENVIRONMENTS, ROOT
from bench.ground import Ground, machine, open_ground
from bench.report import Report, as_json, markdown, terminal
from bench.side_by_side import SETTINGS, Plan, scenarios
from bench.side_by_side import run as compare
from bench.systems import PEER, SYSTEMS, chosen
from bench.telling import as_json as comparison_json
from bench.telling import from_json
from bench.telling import markdown as comparison_page
from bench.telling import terminal as told

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"


def quick(bench: Bench, only: Collection[str]) -> None:
    """Everything, in under two minutes; or only some of it."""
    with bench.ground.database("small") as small, bench.ground.database("big") as big:
        with bench.ground.connect(small) as conn:
            floors.prepare(conn)
        measures: dict[str, Callable[[], None]] = {
            "drain": lambda: own.drain(bench, small),
            "many": lambda: _apart(bench, own.produce_many),
            "produce": lambda: _apart(bench, own.produce_singly),
            "consume": lambda: own.consume_singly(bench, small),
            "claims": lambda: claims.claim_cost(bench, small, big),
        }
        for name, measure in measures.items():
            if name in only or not only:
                bench.step(name)
                measure()
    if "held" in only or not only:
        bench.step("held")
        own.beside_snapshot(bench, bench.sizes.held, rounds=1)
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
    own.beside_snapshot(bench, bench.sizes.held, rounds=bench.sizes.rounds)
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


def command(typed: Sequence[str]) -> str:
    """What was typed, without where it ran and where results went: a DSN may hold a password."""
    shown: list[str] = []
    passed = iter(typed)
    for word in passed:
        if word in ("--dsn", "--out"):
            next(passed, None)
        elif not word.startswith(("--dsn=", "--out=")):
            shown.append(word)
    return shlex.join(["python", "-m", "bench", *shown])


def side_by_side(arguments: argparse.Namespace, console: Console, errors: Console) -> None:
    """All systems in all scenarios, or some of them; results are written unless only some were asked for."""
    plan = Plan(
        chosen(arguments.systems),
        scenarios(arguments.scenarios),
        arguments.scale,
        arguments.most,
        arguments.brief,
        arguments.rounds or 3,
        arguments.cap,
        arguments.minutes,
        command(sys.argv[1:]),
    )
    part = arguments.systems or arguments.scenarios or arguments.scale != 1
    out: Path | None = arguments.out or (None if part else RESULTS)

    def keep(comparison: Comparison) -> None:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / "side-by-side.json").write_text(comparison_json(comparison))
            (out / "side-by-side.md").write_text(comparison_page(comparison))

    with open_ground(arguments.dsn, SETTINGS) as ground:
        before = _before(out, machine(ground)) if arguments.resume else None
        comparison = compare(ground, plan, errors, keep, before)
    if arguments.note:
        comparison.notes.append(arguments.note)
    console.print(told(comparison))
    if out is None:
        errors.print("A part of it: nothing is written. --out FOLDER writes it there.")
    else:
        keep(comparison)
        _plot(comparison, out, errors)
    failed = [line for line in comparison.lines if line.kind != PEER and line.dash]
    if failed:
        raise SystemExit(1)


def _before(out: Path | None, now: dict[str, Any]) -> Comparison:
    """What an earlier run has left where the results go.

    Raises:
        SystemExit: there is none, or it was of something else.
    """
    results = out / "side-by-side.json" if out else None
    if results is None or not results.exists():
        raise SystemExit("There is no run to go on with. --out FOLDER says where it is.")
    earlier = from_json(results.read_text())
    for name in ("sql", "pgfifo", "postgresql", "cpu", "cores"):
        if earlier.machine[name] != now[name]:
            raise SystemExit(f"That run was of another {name}: {earlier.machine[name]}, now {now[name]}.")
    return earlier


def _plot(comparison: Comparison, out: Path, errors: Console) -> None:
    """Draw what is written, and write the page anew with the plots in it."""
    results = out / "side-by-side.json"
    for old in out.glob("side-by-side-*.svg"):
        old.unlink()
    try:
        environment = ENVIRONMENTS["plots"]
        environment.make()
        plotter = [str(environment.folder / "bin" / "python"), "-m", "bench.plots", str(results), str(out)]
        subprocess.run(plotter, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError) as error:
        errors.print(f"There are no plots: {error}", style="red")
    plots = sorted(path.name for path in out.glob("side-by-side-*.svg"))
    (out / "side-by-side.md").write_text(comparison_page(comparison, plots))
    errors.print(
        f"{comparison.seconds:.0f} s; written to {out}/side-by-side.md, .json and {len(plots)} plots"
    )


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=sys.modules["bench"].__doc__)
    parser.add_argument("what", nargs="?", default="all", choices=["all", "quick", "held", "profile"])
    parser.add_argument(
        "--dsn", help="use this server, in databases made for the run (default: a server of its own)"
    )
    parser.add_argument("--rounds", type=int, help="rounds of each comparison (default: 3; 1 for `held`)")
    parser.add_argument("--out", type=Path, help="where results go (default: docs/benchmarks)")
    parser.add_argument("--note", help="what a reader must know about this run; goes into the report")
    whole = parser.add_argument_group("all: side by side with floors and peers")
    whole.add_argument(
        "--systems", default="", help="as pgfifo,pgmq:best, or floors, peers (default: all); see --list"
    )
    whole.add_argument("--scenarios", default="", help="as S1,S4 (default: all)")
    whole.add_argument("--scale", type=float, default=1.0, help="times all sizes (default: 1)")
    whole.add_argument(
        "--cap", type=float, default=60.0, help="seconds after which a peer's trial is stopped (default: 60)"
    )
    whole.add_argument("--most", type=int, help="nothing is larger than this, and sizes below it stay")
    whole.add_argument(
        "--brief", action="store_true", help="leave out what says least for its time; the report says what"
    )
    whole.add_argument(
        "--minutes", type=float, default=0, help="begin nothing after so many (default: 0, no limit)"
    )
    whole.add_argument("--resume", action="store_true", help="go on with the run that is in --out")
    whole.add_argument("--list", action="store_true", help="say what there is, and end")
    parts = parser.add_argument_group("quick, profile")
    parts.add_argument(
        "--only", default="", help="scenarios of `quick`, as drain,many; nothing is written then"
    )
    parts.add_argument("--calls", type=int, default=500, help="calls that `profile` looks at (default: 500)")
    parts.add_argument("--least", type=float, default=5, help="what `profile` leaves out (µs; default: 5)")
    arguments = parser.parse_args()
    errors, console = Console(stderr=True), Console()
    if arguments.list:
        for system in SYSTEMS:
            console.print(f"{system.code}: {system.says}", highlight=False)
        for case in cases(arguments.scale, arguments.most):
            console.print(f"{case.scenario:4} {case.title}", highlight=False)
    elif arguments.what == "profile":
        with open_ground(arguments.dsn) as ground:
            profile.run(ground, arguments.calls, arguments.least, console)
    elif arguments.what == "all":
        side_by_side(arguments, console, errors)
    else:
        alone(arguments, console, errors)


def alone(arguments: argparse.Namespace, console: Console, errors: Console) -> None:
    """The quick run or the held one: pgfifo beside its floors."""
    what, out = arguments.what, arguments.out or RESULTS
    only = {name for name in arguments.only.split(",") if name}
    sizes = Sizes(rounds=arguments.rounds or 3)
    if what == "held":
        sizes = Sizes(rounds=arguments.rounds or 1, held=100_000)
    with open_ground(arguments.dsn) as ground:
        report = run(ground, what, sizes, errors, only)
    if arguments.note:
        report.notes.append(arguments.note)
    console.print(terminal(report))
    if only:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{what}.md").write_text(markdown(report))
    (out / f"{what}.json").write_text(as_json(report))
    errors.print(f"{report.seconds:.0f} s; written to {out}/{what}.md and .json")
    missed = [f"{row.scenario}: {row.system}" for row in report.rows if row.met is False]
    if missed:
        errors.print("missed: " + "; ".join(missed), style="red")


if __name__ == "__main__":
    main()
