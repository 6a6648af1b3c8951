"""What a screen of `pgfifo top` costs the server, with many lanes.

python -m bench.top            # on a server of its own, with 100,000 lanes
python -m bench.top --lanes 1000
"""

import argparse
import statistics
import time
from typing import Any, LiteralString

import psycopg

from bench.ground import open_ground
from bench.meter import server_cpu_of
from pgfifo.schema import install
from pgfifo.top import source

Screen = tuple[str, LiteralString, dict[str, object]]

_AT_ONCE = 500


def fill(conn: psycopg.Connection[Any], lanes: int) -> None:
    """Make lanes with one waiting each, one of them with 20,000, and a worker that runs a few."""
    install(conn)
    enqueue = "select count(*) from pgfifo.enqueue_many('deliver', array_fill('{}'::jsonb, array[%s]), %s)"
    for first in range(0, lanes, _AT_ONCE):
        groups = [f"customer {n}" for n in range(first, min(first + _AT_ONCE, lanes))]
        conn.execute(enqueue, [len(groups), groups])
    conn.execute(enqueue, [20_000, ["customer 0"] * 20_000])
    worker = conn.execute("select pgfifo.worker_start('bench', 'here', 1, '{deliver}', 50)").fetchall()[0][0]
    conn.execute("select from pgfifo.work(%s, '{deliver}', 50)", [worker])
    conn.execute("vacuum analyze")


def screens() -> list[Screen]:
    """Return what each screen asks."""
    lane: dict[str, object] = {"action": "deliver", "group": "customer 0"}
    any_lane: dict[str, object] = {"action": None, "search": None}
    sorts = ("depth", "oldest", "active", "group")
    return [
        ("actions", source.ACTIONS, {}),
        *((f"lanes by {sort}", source.LANES, any_lane | {"sort": sort}) for sort in sorts),
        ("lanes, filtered", source.LANES, {"action": "deliver", "search": "777", "sort": "depth"}),
        ("workers", source.WORKERS, {}),
        ("a lane with 20,000", source.LANE, lane),
        ("what has finished in it", source.FINISHED, lane),
        ("an execution", source.EXECUTION, {"id": 1}),
    ]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lanes", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dsn", help="an empty database; without, a server of its own")
    given = parser.parse_args()
    with open_ground(given.dsn) as ground, psycopg.connect(ground.dsn, autocommit=True) as conn:
        fill(conn, given.lanes)
        print("| screen | ms of the server's processor | ms that the client waits |\n|---|---|---|")
        for name, query, arguments in screens():
            cpu, waited = [], []
            for _ in range(given.rounds):
                before, began = server_cpu_of((conn,)), time.perf_counter()
                conn.execute(query, arguments).fetchall()
                waited.append((time.perf_counter() - began) * 1000)
                after = server_cpu_of((conn,))
                if before is not None and after is not None:
                    cpu.append((after - before) * 1000)
            print(
                f"| {name} | {statistics.median(cpu or waited):.0f} | {statistics.median(waited):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
