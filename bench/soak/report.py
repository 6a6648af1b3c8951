"""What a soak has shown, as a page with a figure."""

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

from bench.environments import ENVIRONMENTS, ROOT
from bench.report import where_and_when
from bench.soak.run import KEPT, Sample, Soak

_HOW_TO_READ = (
    "Written by `make soak`, which takes a duration: `make soak DURATION=10m`. Producers enqueue in every way"
    " there is, workers run what comes with failures of every kind, programs hold slots, an operator looks on"
    " and changes limits, bursts come in between; one worker is killed again and again, and one `pgfifo"
    " verify` with kills and pauses follows the other. Of interest is not how fast that is, but that nothing"
    " changes while it goes on: the second third of the time is compared with the last."
)


def write(result: Soak, folder: Path, notes: list[str]) -> None:
    """Write the page, and the numbers that `plot` draws.

    Args:
        result: the run.
        folder: where to.
        notes: what a reader must know about it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.md").write_text(markdown(result, notes))
    (folder / "soak.json").write_text(as_json(result))


def plot(folder: Path) -> None:
    """Draw the figure of what was written there, in an environment that has matplotlib.

    Raises:
        OSError: there is none, and it cannot be made.
        CalledProcessError: the same, or it does not work.
    """
    environment = ENVIRONMENTS["plots"]
    environment.make()
    plotter = [str(environment.folder / "bin" / "python"), "-m", "bench.soak.plot"]
    subprocess.run([*plotter, str(folder / "soak.json"), str(folder / "soak.png")], check=True, cwd=ROOT)


def _story(result: Soak) -> list[str]:
    settings = result.settings
    verified = [each["done"] for each in result.rounds]

    def all_of(name: str) -> str:
        return f"{sum(done.get(name, 0) for done in verified):,}"

    return [
        (
            f"{settings.duration / 60:g} minutes of load: two producers with {settings.rate:g} calls a second"
            " each, two workers that live as long as the soak and one that was killed"
            f" {result.kills} times, five threads that hold slots, {len(result.bursts)} bursts."
        ),
        (
            f"{result.totals.get('enqueued', 0):,} executions. The operator made"
            f" {result.operator.get('calls', 0):,} calls, and read {result.operator.get('events', 0):,}"
            " events."
        ),
        (
            f"Verified beside it: {all_of('committed')} executions, {all_of('starts')} starts,"
            f" {all_of('kills')} kills, {all_of('pauses')} pauses, {all_of('late_hand_ins_refused')} late"
            f" hand-ins refused, in {len(verified)} runs, whose actions were removed after each."
        ),
    ]


def markdown(result: Soak, notes: list[str]) -> str:
    """The page."""
    kept = ", ".join(f"`{name}`" for name in KEPT)
    lines = [
        "# `make soak`",
        "",
        f"**{'Everything held.' if result.held else 'NOT everything held.'}** {_HOW_TO_READ}",
        "",
        *where_and_when(result.machine, result.seconds, [each.load for each in result.samples]),
        "",
        *[f"- {note}" for note in notes],
        *([""] if notes else []),
        "![executions, memory, tables and the cost of a claim over the time](soak.png)",
        "",
        "| | | seen |",
        "|---|---|---|",
        *[f"| {each.name} | {each.said} | {each.seen} |" for each in result.verdicts],
        "",
        "## What happened",
        "",
        *[f"- {each}" for each in _story(result)],
        "",
        "## Tables in the end, after a vacuum",
        "",
        "| table | KB | indexes KB | dead rows | living rows |",
        "|---|---:|---:|---:|---:|",
        *[
            f"| {name} | {size / 1024:,.0f} | {indexes / 1024:,.0f} | {dead:,} | {living:,} |"
            for name, (size, indexes, dead, living) in sorted(
                result.vacuumed.items(), key=lambda item: -sum(item[1][:2])
            )
            if size + indexes > _SMALL
        ],
        "",
        (
            f"Smaller ones are left out. {kept} keep what was, for as long as retention says; the others are"
            " the queue. The audit has a row for each cancel by hand and each change of a limit."
        ),
    ]
    return "\n".join(lines) + "\n"


_SMALL = 64 * 1024


def as_json(result: Soak) -> str:
    """The run for programs; of the tables, only sums."""
    content = asdict(result)
    for sample, told in zip(result.samples, content["samples"], strict=True):
        told["tables"] = {name: round(value) for name, value in _sums(sample).items()}
    for told in content["rounds"]:
        told.pop("promises", None)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _sums(sample: Sample) -> dict[str, float]:
    queue = [rows for name, rows in sample.tables.items() if name not in KEPT]
    return {
        "tables": sum(rows[0] for rows in queue),
        "indexes": sum(rows[1] for rows in queue),
        "history": sum(sample.tables["history"][:2]),
        "dead_rows": sum(rows[2] for rows in queue),
    }
