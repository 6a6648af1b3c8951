"""A worker of a verification, a process of its own."""

import logging
import os
import sys

from pgfifo.processes import follow_parent
from pgfifo.verify.load import actions, recorder
from pgfifo.verify.worker import RecordedWorker

HEARTBEATS = 4
"""How many there are in a lease."""


def serve() -> None:
    """Work until stopped."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level="WARNING", stream=sys.stderr)
    lease = float(os.environ["PGFIFO_VERIFY_LEASE"])
    worker = RecordedWorker(
        os.environ["PGFIFO_DSN"],
        actions,
        recorder(),
        concurrency=int(os.environ["PGFIFO_VERIFY_ROOM"]),
        lease=lease,
        heartbeat=lease / HEARTBEATS,
        declare=False,
        poll_only=bool(os.environ["PGFIFO_VERIFY_POLL_ONLY"]),
    )
    follow_parent(worker.request_stop)
    worker.run()


if __name__ == "__main__":
    serve()
