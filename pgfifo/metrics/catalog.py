"""The names, kinds, labels and meanings of all metrics, in one place; docs/monitoring.md is held against it.

It needs nothing but Python, so that a name can be looked up where prometheus-client is not installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a metric is.

    Attributes:
        kind: What Prometheus takes it for.
        labels: The names of its labels.
        text: What it says.
        buckets: The upper bounds of a histogram, in seconds.
    """

    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    text: str
    buckets: tuple[float, ...] = ()


_ACTION = ("action",)
_LANE = ("action", "group")
_LIMIT = ("limit",)

DATABASE: dict[str, Meaning] = {
    "pgfifo_up": Meaning(
        "gauge",
        (),
        "Whether the database has answered: 1, or 0, also where it refuses the role.",
    ),
    "pgfifo_queue_length": Meaning("gauge", _ACTION, "How many wait."),
    "pgfifo_running": Meaning("gauge", _ACTION, "How many a worker has."),
    "pgfifo_held": Meaning("gauge", _ACTION, "How many keep their slot through a backoff."),
    "pgfifo_delayed": Meaning("gauge", _ACTION, "How many are to join their line later."),
    "pgfifo_slots": Meaning("gauge", _ACTION, "How many slots its lanes have together."),
    "pgfifo_slots_taken": Meaning(
        "gauge", _ACTION, "How many of these are taken: running and held, a batch once."
    ),
    "pgfifo_lanes": Meaning("gauge", _ACTION, "How many lanes there are."),
    "pgfifo_paused": Meaning("gauge", _ACTION, "Whether the action is paused: 1 or 0."),
    "pgfifo_paused_lanes": Meaning(
        "gauge", _ACTION, "How many lanes are paused, all of them where the action is."
    ),
    "pgfifo_closed": Meaning("gauge", _ACTION, "Whether the action takes no enqueues: 1 or 0."),
    "pgfifo_stuck_lanes": Meaning(
        "gauge",
        _ACTION,
        "Lanes in which something has waited for five minutes, nothing runs, and nothing has moved, although "
        "they are not paused and no limit over time or shared limit keeps them waiting.",
    ),
    "pgfifo_oldest_wait_seconds": Meaning(
        "gauge",
        _ACTION,
        "For how long the head of a line has waited since its enqueue, the longest; 0 if none waits.",
    ),
    "pgfifo_longest_run_seconds": Meaning(
        "gauge", _ACTION, "For how long the attempt that runs longest has been running; 0 if none runs."
    ),
    "pgfifo_fullness": Meaning(
        "gauge",
        _ACTION,
        "How much of max_queue_length or max_action_queue_length is used, 0 to 1, in the fullest lane; "
        "absent without such a limit.",
    ),
    "pgfifo_serving_workers": Meaning("gauge", _ACTION, "Living workers that serve the action."),
    "pgfifo_enqueued_total": Meaning("counter", _ACTION, "Enqueued."),
    "pgfifo_started_total": Meaning("counter", _ACTION, "Starts; one that is tried again starts again."),
    "pgfifo_finished_total": Meaning(
        "counter", ("action", "outcome"), "Ended for good: succeeded, failed, cancelled, expired."
    ),
    "pgfifo_rescued_total": Meaning("counter", _ACTION, "Taken back from workers that were declared dead."),
    "pgfifo_lane_queue_length": Meaning("gauge", _LANE, "How many wait in the lane."),
    "pgfifo_lane_slots": Meaning("gauge", _LANE, "How many slots the lane has."),
    "pgfifo_lane_slots_taken": Meaning("gauge", _LANE, "How many of these are taken."),
    "pgfifo_lane_paused": Meaning("gauge", _LANE, "Whether the lane or its action is paused: 1 or 0."),
    "pgfifo_lane_oldest_wait_seconds": Meaning(
        "gauge", _LANE, "For how long the head of the line has waited."
    ),
    "pgfifo_shared_limit_active": Meaning("gauge", _LIMIT, "How many are running that drew from it."),
    "pgfifo_shared_limit_slots": Meaning(
        "gauge", _LIMIT, "How many may be running at once; absent if any number."
    ),
    "pgfifo_shared_limit_waiting_lanes": Meaning("gauge", _LIMIT, "How many lanes it keeps waiting."),
    "pgfifo_workers": Meaning(
        "gauge", ("state",), "Workers that are alive, and those that are dead or stopped since a day ago."
    ),
    "pgfifo_worker_slots": Meaning("gauge", (), "How many executions all living workers can run at once."),
    "pgfifo_maintenance_age_seconds": Meaning("gauge", (), "Seconds since the last round of maintenance."),
    "pgfifo_sweep_found_total": Meaning(
        "counter", (), "Lanes that the sweep had to get going; a bug of pgfifo's, if it grows."
    ),
    "pgfifo_oldest_snapshot_seconds": Meaning(
        "gauge",
        (),
        "Age of the oldest transaction that keeps dead rows from being removed, as far as the owner of the "
        "schema may see; absent if there is none.",
    ),
    "pgfifo_oldest_snapshot_xids": Meaning(
        "gauge", (), "The same in transactions since, replication slots included; everybody may see these."
    ),
    "pgfifo_schema_version": Meaning("gauge", (), "The version of the schema."),
}
"""What `Client.metrics` tells, and whether it could."""

_WAITS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)
_RUNS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400)
_CALLS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)

WORKER: dict[str, Meaning] = {
    "pgfifo_worker_started_total": Meaning("counter", _ACTION, "Attempts that this worker has started."),
    "pgfifo_worker_finished_total": Meaning(
        "counter",
        ("action", "outcome"),
        "Attempts that ended here: succeeded, failed, cancelled, postponed, released or lost.",
    ),
    "pgfifo_worker_wait_seconds": Meaning(
        "histogram", _ACTION, "From the time an execution was enqueued, or due, to its start.", _WAITS
    ),
    "pgfifo_worker_run_seconds": Meaning(
        "histogram", _ACTION, "How long handlers ran; a batch counts once.", _RUNS
    ),
    "pgfifo_worker_call_seconds": Meaning(
        "histogram", (), "How long calls took that hand in what has finished and claim what is next.", _CALLS
    ),
    "pgfifo_worker_busy": Meaning("gauge", _ACTION, "How many handlers run now."),
    "pgfifo_worker_concurrency": Meaning("gauge", (), "How many may run at once."),
}
"""What a worker measures of itself."""

PRODUCER: dict[str, Meaning] = {
    "pgfifo_client_enqueued_total": Meaning("counter", _ACTION, "Executions that this process has enqueued."),
    "pgfifo_client_rejected_total": Meaning(
        "counter",
        ("action", "reason"),
        "Enqueues of this process that were refused, by the error: queue_full, …",
    ),
}
"""What the clients of a process count."""
