"""Logs that say which attempt they are about, as text or as JSON.

::

    handler = logging.StreamHandler()
    handler.addFilter(pgfifo.logs.ExecutionFilter())
    handler.setFormatter(pgfifo.logs.JsonFormatter())

The fields are ``pgfifo_id``, ``pgfifo_attempt``, ``pgfifo_action``, ``pgfifo_group``, ``pgfifo_worker``, and
``trace_id`` and ``span_id`` where the attempt is traced.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from pgfifo._run import CURRENT

__all__ = ["FIELDS", "ExecutionFilter", "JsonFormatter", "ids"]

FIELDS = (
    "pgfifo_id",
    "pgfifo_attempt",
    "pgfifo_action",
    "pgfifo_group",
    "pgfifo_worker",
    "trace_id",
    "span_id",
)

_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def ids() -> dict[str, object]:
    """Return what says which attempt this thread or task runs; empty where it runs none.

    In a batch it is the first of its executions. The span is the one that is current, where there is one.
    """
    run = CURRENT.get()
    found = {} if run is None else run.ids()
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            found["trace_id"] = trace.format_trace_id(context.trace_id)
            found["span_id"] = trace.format_span_id(context.span_id)
    return found


class ExecutionFilter(logging.Filter):
    """Gives each record that passes a handler the fields of the attempt that logs it.

    All fields are there, None where there is nothing to say, so that a format may name them:
    ``%(pgfifo_id)s``. What a record says of itself stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; lets everything pass."""
        known = ids()
        for name in FIELDS:
            if not hasattr(record, name):
                setattr(record, name, known.get(name))
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and whatever else the record has."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _ORDINARY and value is not None:
                fields.setdefault(name, value)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            fields["exception"] = record.exc_text
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return json.dumps(fields, default=str)
