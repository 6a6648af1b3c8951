"""An ordered queue with limits, inside your own PostgreSQL.

::

    actions = pgfifo.Actions()

    @actions.action("deploy", group_by=["env"], max_concurrent=1)
    def deploy(execution: pgfifo.Execution) -> dict: ...

    fifo = pgfifo.Client("postgresql://…")
    fifo.install()
    fifo.declare(actions)
    fifo.enqueue("deploy", {"env": "prod", "sha": "abc123"})
"""

from pgfifo.actions import Action, Actions
from pgfifo.client import Client
from pgfifo.client_async import AsyncClient
from pgfifo.command import Command
from pgfifo.errors import (
    ActionClosed,
    AlreadyHeld,
    Busy,
    CommitUnknown,
    ConcurrencyLimit,
    EventsGone,
    ExecutionFailed,
    GroupMismatch,
    GroupTooLong,
    InTransaction,
    InvalidPayload,
    InvalidValue,
    IsolationLevel,
    LeaseLost,
    NotPermitted,
    PayloadTooLarge,
    PgfifoError,
    QueueFull,
    QuotaExceeded,
    RateLimit,
    SchemaMismatch,
    SchemaMissing,
    SlotLost,
    SlotTimeout,
    SnapshotTooOld,
    TooManyLanes,
    UnknownAction,
    UnknownExecution,
    WaitTimeout,
)
from pgfifo.execution import Execution, ExecutionCancelled
from pgfifo.filters import Filter
from pgfifo.jsontext import JsonText
from pgfifo.models import (
    ActionOverview,
    ActionStats,
    AuditEntry,
    Cancelled,
    Diagnosis,
    Enqueued,
    Event,
    ExecutionInfo,
    Explanation,
    Finding,
    Grant,
    ImportStatus,
    Lane,
    LaneStats,
    Metric,
    Minute,
    OrderViolation,
    Pace,
    Place,
    PolicyChange,
    PolicyDifference,
    PolicyOverride,
    PolicyRecord,
    PolicyValue,
    Position,
    Retried,
    RetryAnswer,
    ScheduleInfo,
    SchemaInfo,
    SharedLimit,
    SharedLimitChange,
    SlotInfo,
    WaitTimes,
    WorkerInfo,
)
from pgfifo.policies import Policy, SharedLimitValues
from pgfifo.retrying import Abort, Retry
from pgfifo.slots import Slot
from pgfifo.slots_async import AsyncSlot
from pgfifo.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "Abort",
    "Action",
    "ActionClosed",
    "ActionOverview",
    "ActionStats",
    "Actions",
    "AlreadyHeld",
    "AsyncClient",
    "AsyncSlot",
    "AuditEntry",
    "Busy",
    "Cancelled",
    "Client",
    "Command",
    "CommitUnknown",
    "ConcurrencyLimit",
    "Diagnosis",
    "Enqueued",
    "Event",
    "EventsGone",
    "Execution",
    "ExecutionCancelled",
    "ExecutionFailed",
    "ExecutionInfo",
    "Explanation",
    "Filter",
    "Finding",
    "Grant",
    "GroupMismatch",
    "GroupTooLong",
    "ImportStatus",
    "InTransaction",
    "InvalidPayload",
    "InvalidValue",
    "IsolationLevel",
    "JsonText",
    "Lane",
    "LaneStats",
    "LeaseLost",
    "Metric",
    "Minute",
    "NotPermitted",
    "OrderViolation",
    "Pace",
    "PayloadTooLarge",
    "PgfifoError",
    "Place",
    "Policy",
    "PolicyChange",
    "PolicyDifference",
    "PolicyOverride",
    "PolicyRecord",
    "PolicyValue",
    "Position",
    "QueueFull",
    "QuotaExceeded",
    "RateLimit",
    "Retried",
    "Retry",
    "RetryAnswer",
    "ScheduleInfo",
    "SchemaInfo",
    "SchemaMismatch",
    "SchemaMissing",
    "SharedLimit",
    "SharedLimitChange",
    "SharedLimitValues",
    "Slot",
    "SlotInfo",
    "SlotLost",
    "SlotTimeout",
    "SnapshotTooOld",
    "TooManyLanes",
    "UnknownAction",
    "UnknownExecution",
    "WaitTimeout",
    "WaitTimes",
    "Worker",
    "WorkerInfo",
    "__version__",
]
