"""The figure of a soak: `python -m bench.soak.plot SOAK.json SOAK.png`, where there is matplotlib."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw four panels over the time."""
    samples = result["samples"]
    minutes = [each["at"] / 60 for each in samples]
    figure, ((flow, memory), (tables, claim)) = plt.subplots(2, 2, figsize=(13, 8), layout="constrained")
    for each in result["rounds"]:
        since = each["began"] / 60
        flow.axvspan(since, since + each["done"].get("seconds", 0) / 60, color="0.93")
    rates = [
        (after["completed"] - before["completed"]) / (after["at"] - before["at"])
        for before, after in itertools.pairwise(samples)
    ]
    flow.plot(minutes[1:], rates, lw=0.8, label="ended in a second")
    flow.scatter(
        [each["at"] / 60 for each in result["bursts"]],
        [each["drain"] for each in result["bursts"]],
        s=12,
        color="tab:green",
        label="of a burst, in a second",
    )
    waiting = [each["waiting"] for each in samples]
    flow.plot(minutes, waiting, lw=0.8, color="tab:orange", label="waiting or delayed")
    flow.set_title("Executions (grey: verified beside it)")
    for name in samples[-1]["memory"]:
        memory.plot(minutes, [each["memory"].get(name, 0) / 1e6 for each in samples], label=name)
    memory.set_title("Resident memory of processes that live as long as the soak, MB")
    for name, label in (("tables", "tables"), ("indexes", "indexes"), ("history", "history, with indexes")):
        tables.plot(minutes, [each["tables"][name] / 1e6 for each in samples], label=label)
    dead = tables.twinx()
    rows = [each["tables"]["dead_rows"] for each in samples]
    dead.plot(minutes, rows, color="tab:red", lw=0.8, label="dead rows (right)")
    tables.set_title("The queue's tables and indexes, MB, and dead rows")
    claim.plot(minutes, [each["probe"] for each in samples], label="buffers touched")
    busy = claim.twinx()
    load = [each["load"] for each in samples]
    busy.plot(minutes, load, color="tab:grey", lw=0.8, label="load average (right)")
    claim.set_title("Finishing ten and claiming ten")
    for panel in (flow, memory, tables, claim, dead, busy):
        panel.set_ylim(bottom=0)
        panel.set_xlabel("minutes")
    for panel in (flow, memory):
        panel.legend(fontsize=8)
    for panel, right in ((tables, dead), (claim, busy)):
        drawn = [*panel.get_lines(), *right.get_lines()]
        panel.legend(drawn, [str(line.get_label()) for line in drawn], fontsize=8)
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
