"""Plots of a side by side: `python -m bench.plots RESULTS.json FOLDER`, where there is matplotlib."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "pgfifo"  # the same results make the same file
mpl.rcParams["svg.fonttype"] = "none"  # text stays text, and files small
mpl.rcParams["font.size"] = 8

from matplotlib import pyplot as plt  # noqa: E402

COLOURS = {"floor": "#9aa5b1", "pgfifo": "#2b7a4b", "peer": "#3f6fb5"}
BROKEN = "#c0392b"


def bars(scenario: str, cases: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """One panel a case: medians as bars, least and most as whiskers, broken promises in red and hatched."""
    most = max(len(lines) for lines in cases.values())
    figure, panels = plt.subplots(
        len(cases), 1, figsize=(9, len(cases) * (0.6 + 0.23 * most)), squeeze=False, layout="constrained"
    )
    for panel, (title, lines) in zip(panels[:, 0], cases.items(), strict=True):
        names = [line["system"] for line in lines]
        medians = [line["median"] for line in lines]
        whiskers = [
            [max(0.0, line["median"] - line["least"]) for line in lines],
            [max(0.0, line["most"] - line["median"]) for line in lines],
        ]
        drawn = panel.barh(
            names,
            medians,
            xerr=whiskers,
            color=[BROKEN if line["broken"] else COLOURS[line["kind"]] for line in lines],
            error_kw={"elinewidth": 0.8},
        )
        for bar, line in zip(drawn, lines, strict=True):
            if line["broken"]:
                bar.set_hatch("//")
                bar.set_edgecolor("white")
            said = f" {line['median']:,.0f}" if line["median"] >= 100 else f" {line['median']:.2f}"
            p99 = [outcome["more"]["p99"] for outcome in line["outcomes"] if "p99" in outcome["more"]]
            if p99:
                said += f", p99 {statistics.median(p99):.2f}"
            if line["broken"]:
                said += "  promise broken: " + ", ".join(line["broken"])
            panel.text(line["median"], bar.get_y() + bar.get_height() / 2, said, va="center", fontsize=7)
        panel.invert_yaxis()
        panel.margins(x=0.25)
        unit = lines[0]["unit"]
        if unit == "ms":
            panel.set_xscale("log")  # from a millisecond to seconds
        panel.set_title(f"{scenario}: {title}", loc="left", fontsize=8)
        panel.set_xlabel("executions a second" if unit == "/s" else "milliseconds (logarithmic)", fontsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def over_time(cases: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """The rate of each tenth of the way."""
    figure, panels = plt.subplots(
        1, len(cases), figsize=(10, 4), squeeze=False, sharey=True, layout="constrained"
    )
    for panel, (title, lines) in zip(panels[0], cases.items(), strict=True):
        for line in lines:
            tenths = next((o["more"]["tenths"] for o in line["outcomes"] if o["more"].get("tenths")), None)
            if tenths:
                panel.plot(range(1, len(tenths) + 1), tenths, marker=".", label=line["system"])
        panel.set_title(title, loc="left", fontsize=8)
        panel.set_xlabel("tenth of the way")
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("executions a second")
    panels[0][-1].legend(fontsize=6)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draw all of a run."""
    results, folder = Path(sys.argv[1]), Path(sys.argv[2])
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in json.loads(results.read_text())["lines"]:
        if line["outcomes"]:
            found.setdefault(line["scenario"], {}).setdefault(line["title"], []).append(line)
    for scenario, cases in found.items():
        path = folder / f"{results.stem}-{scenario.lower()}.svg"
        if scenario == "S10":
            over_time(cases, path)
        else:
            bars(scenario, cases, path)


if __name__ == "__main__":
    main()
